r"""Noise whose variance depends on the state, and the drift that makes up for it.

If :math:`\partial_t p = -\nabla\cdot(u p)`, then for any smooth :math:`A_t(x) \ge 0` the Ito diffusion

.. math:: dX = \bigl(u + \tfrac12\nabla\cdot A + \tfrac12 A\,\nabla\log p_t\bigr)\,dt + A^{1/2}\,dW, \qquad
   (\nabla\cdot A)_i = \partial_i A_i ,

has the marginals :math:`p_t` as well, since the two terms of the drift take away what the noise adds,

.. math:: \tfrac12\textstyle\sum_i\partial_i^2(A_i p) = \tfrac12\nabla\cdot\bigl(p\,\nabla\cdot A + A\nabla p\bigr) .

Without the divergence the law that is left alone is no longer :math:`p` but, if nothing flows, :math:`p/A`: mass
gathers where there is little noise.

References
----------
.. [1] T. Lelièvre, G. Stoltz, "Partial differential equations and stochastic methods in molecular dynamics", Acta
   Numerica 25 (2016).
.. [2] P. Holderrieth et al., "Generator matching", arXiv 2410.20587 (components that leave p_t alone).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..diffusivity import StateDiffusivity
from ..predict import Predictor
from ..predict.density import gradient
from ..predict.motion import Motion
from ..schedules import Number
from ..spaces import Euclidean
from ..triplet import Triplet
from .operator import Generator
from .readings import check_affine, half_noise

__all__ = ["Multiplicative", "NotFiniteError", "divergence", "moving"]


class NotFiniteError(ValueError):
    """The variance read off a network is not finite: a solver's plan takes it for a time to keep away from."""


class Multiplicative(Generator):
    r"""Noise of variance :math:`A_t(x)` with the drift that undoes it.

    .. math:: L_t f = \tfrac12\nabla f\cdot\bigl(\nabla\cdot A_t + A_t\nabla\log p_t\bigr) + \tfrac12 A_t\cdot\nabla^2 f

    It leaves every :math:`p_t` alone (speed 0). Its triplet is the Ito one, with the divergence by ``torch.func.vjp``;
    :class:`genmatch.solvers.EndPoint` needs no divergence. Of the solvers of several stages only
    :class:`genmatch.solvers.SRI` takes it; others would converge to another law.

    Parameters
    ----------
    model
        A predictor with a score.
    diffusivity
        :class:`~genmatch.diffusivity.StateDependent`, :class:`~genmatch.diffusivity.Curvature`, or what
        :func:`genmatch.fit_residual` returns.

    Raises
    ------
    TypeError, ValueError
        At the call, if the model has no score. In a step, if the share is of another shape than ``(B, 1, ..., 1)`` or
        ``(B, *S)`` and (on a CPU, outside a compiled graph) if it is negative or not finite, or is said to be
        elementwise and is not.
    """

    speed = 0.0
    additive = False

    def __init__(self, model: Predictor, diffusivity: StateDiffusivity) -> None:
        if not isinstance(diffusivity, StateDiffusivity):
            raise TypeError(
                "Multiplicative needs noise that depends on the state, such as "
                f"gm.diffusivity.StateDependent(function), got {type(diffusivity).__name__}: "
                "for noise that does not, use gm.Langevin"
            )
        super().__init__(moving(model, diffusivity))
        check_affine(self, model, "score")
        for module in (diffusivity, getattr(diffusivity, "function", None)):
            if isinstance(module, nn.Module):
                self.function = module
        self.diffusivity = diffusivity

    def triplet(self, x: Tensor, t: Number, prediction: Any) -> Triplet:
        """The Ito drift and the variance."""
        share = self.diffusivity.share(prediction)
        triplet, scale = self._without_divergence(x, share, prediction)
        slope = gradient(self.path.space, x, divergence(share, x, elementwise=self.diffusivity.elementwise))
        return Triplet(drift=triplet.drift + scale / 2 * slope, variance=triplet.variance)

    def end_point(self, x: Tensor, t: Number, prediction: Any) -> tuple[Triplet, Callable[[Tensor], Tensor]]:
        """The triplet without half the divergence in its drift, and the variance as a function of the state.

        What :class:`genmatch.solvers.EndPoint` steps with: nothing is differentiated.
        """
        share = self.diffusivity.share(prediction)
        triplet, scale = self._without_divergence(x, share, prediction)
        return triplet, lambda y: scale * _checked(share(y), y)

    def _without_divergence(
        self, x: Tensor, share: Callable[[Tensor], Tensor], prediction: Any
    ) -> tuple[Triplet, Number]:
        scale = self.diffusivity.scale.variance(prediction.instant)
        part = _checked(share(x), x)
        if part.shape != x.shape[:1] + (1,) * (x.ndim - 1) and not isinstance(self.path.space, Euclidean):
            raise ValueError(
                f"on {self.path.space!r} the noise is one variance for each sample, (B, 1, ..., 1), "
                f"got shape {tuple(part.shape)}: single coordinates have no meaning there"
            )
        return Triplet(part * half_noise(prediction, self.diffusivity.scale, scale), scale * part), scale


def moving(model: Predictor, diffusivity: StateDiffusivity) -> Predictor:
    """The model, with accelerations among its readings if the noise asks for them."""
    if not isinstance(model, Predictor) or not diffusivity.motion or "motion" in model.readings:
        return model
    return Motion(model)


def divergence(function: Callable[[Tensor], Tensor], x: Tensor, *, elementwise: bool = False) -> Tensor:
    r"""The divergence of a scalar or diagonal A: :math:`\partial_i A` or :math:`\partial_i A_i`, ``(B, *S)``.

    One backward pass of the function for one value per sample, or for a diagonal that is ``elementwise``. Otherwise as
    many as a sample has values, side by side.
    """
    value, pull, *_ = torch.func.vjp(function, x)
    (slope,) = pull(torch.ones_like(value))
    if value.shape != x.shape or x[0].numel() == 1:
        return slope
    if elementwise:
        if not torch.compiler.is_compiling() and x.device.type == "cpu":
            _check_elementwise(pull, slope)
        return slope
    basis = (
        torch.eye(x[0].numel(), dtype=value.dtype, device=x.device).reshape(-1, 1, *x.shape[1:]).expand(-1, *x.shape)
    )
    return torch.func.vmap(lambda e: pull(e)[0] * e)(basis).sum(0)


def _checked(share: Tensor, x: Tensor) -> Tensor:
    """The share of a state-dependent variance, if it is one."""
    if not isinstance(share, Tensor):
        raise TypeError(f"a variance that depends on the state must be a tensor, got {type(share).__name__}")
    if share.shape not in (x.shape, x.shape[:1] + (1,) * (x.ndim - 1)):
        raise ValueError(
            f"a variance that depends on the state has shape (B, 1, ..., 1) or (B, *S) for a state of shape "
            f"{tuple(x.shape)}, got {tuple(share.shape)}: keep the dimensions, as sum(-1, keepdim=True) does"
        )
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        wrong = ~((share >= 0) & share.isfinite())
        if bool(wrong.any()):
            kind = ValueError if bool((share < 0).any()) else NotFiniteError
            raise kind(
                f"a variance must be at least 0 and finite, got {share[wrong][0].item():g} "
                f"and {int(wrong.sum())} such values of {share.numel()}"
            )
    return share


def _check_elementwise(pull: Callable[[Tensor], tuple[Tensor, ...]], slope: Tensor) -> None:
    """Raise unless the Jacobian is diagonal: then any vector comes back as itself times the diagonal."""
    vector = torch.cos(torch.arange(slope.numel(), dtype=slope.dtype, device=slope.device)).reshape(slope.shape)
    (back,) = pull(vector)
    if not torch.allclose(back, vector * slope, rtol=1e-3, atol=1e-5 * (1 + slope.abs().max().item())):
        raise ValueError(
            "the variance is said to be elementwise, but its values depend on other values of the state, or on other "
            "samples: leave elementwise out"
        )
