r"""Noise learned from what two networks get wrong.

A diffusion sampled with a velocity that is off by :math:`\delta u` and a score that is off by :math:`\delta s` ends in
a law :math:`q_1` with, by Girsanov's theorem,

.. math:: KL(p_1\,\|\,q_1) \le \tfrac12\int_0^1 E\,\bigl|\delta u + \tfrac12 A\,\delta s\bigr|^2_{A^{-1}}\,dt ,

least, for one variance at each state, where :math:`A = 2\,|\delta u|/|\delta s|`. If one network is read for both,
:math:`\delta u = b\,\delta s`, and that is :math:`2b`: the memoryless noise, the same at every state. Noise that
depends on the state can only gain where two networks were trained apart and err in different places.

References
----------
.. [1] N. Ma et al., "SiT", arXiv 2401.08740 (the bound, and its minimiser in time).
.. [2] E. Nadaraya, "On estimating regression", Theory Probab. Appl. 9 (1964) (the averages below).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..diffusivity import Diffusivity, Memoryless, StateDiffusivity
from ..paths import GaussianPath
from ..paths.path import BETWEEN
from ..predict import Predictor
from ..predict.predictor import Condition, check_condition
from ..random import Draws

__all__ = ["Residual", "fit_residual"]

TIMES, CENTRES = 8, 9  # streams of a fit's draws
INSIDE = (0.02, 0.98)  # where times are drawn: at the ends one of the errors is the network's input
ROWS = 4096  # in one run of the networks
LEAST = 1e-3  # of the mean error: below that an average of differences is noise


class Residual(nn.Module, StateDiffusivity):
    r""":math:`A_t(x) = 2 b_t\sqrt{e_u(x, t)/e_s(x, t)}`, from mean-square errors kept at a few centres.

    What :func:`fit_residual` returns. The errors are those of the two noise predictions, with which
    :math:`|\delta u|/|\delta s| = b\,\sqrt{e_u/e_s}`. Each is an average of its values at the centres, weighted by
    :math:`\exp(-|x - c|^2/2\ell^2 - (t - \tau)^2/2\ell_t^2)`: smooth, and between the least and the largest.

    Parameters
    ----------
    centres, times
        ``(M, d)`` and ``(M,)``: flattened states, and their times.
    upper, lower
        :math:`e_u` and :math:`e_s` at the centres, ``(M,)``, above 0.
    width, time_width
        :math:`\ell` and :math:`\ell_t`, above 0.
    """

    centres: Tensor
    times: Tensor
    upper: Tensor
    lower: Tensor

    def __init__(
        self, centres: Tensor, times: Tensor, upper: Tensor, lower: Tensor, *, width: float, time_width: float
    ) -> None:
        super().__init__()
        count = len(centres)
        if centres.ndim != 2 or not count or any(v.shape != (count,) for v in (times, upper, lower)):
            raise ValueError(
                "centres must be (M, d) and times, upper and lower (M,), got "
                f"{', '.join(str(tuple(v.shape)) for v in (centres, times, upper, lower))}"
            )
        if not bool(((upper > 0) & (lower > 0) & upper.isfinite() & lower.isfinite()).all()):
            raise ValueError("mean-square errors must be above 0 and finite")
        if not (width > 0 and time_width > 0):
            raise ValueError(f"widths must be above 0, got {width} and {time_width}")
        self.scale: Diffusivity = Memoryless()
        self.width, self.time_width = float(width), float(time_width)
        for name, value in (("centres", centres), ("times", times), ("upper", upper), ("lower", lower)):
            self.register_buffer(name, value)

    def share(self, prediction: Any) -> Callable[[Tensor], Tensor]:
        t = prediction.instant.t
        return lambda x: self.ratio(x, t)

    def ratio(self, x: Tensor, t: Any) -> Tensor:
        r""":math:`\sqrt{e_u/e_s}` at ``x`` ``(B, *S)`` and t, a number or ``(B, 1, ..., 1)``; ``(B, 1, ..., 1)``."""
        flat = x.flatten(1)
        if flat.shape[1] != self.centres.shape[1]:
            raise ValueError(f"this noise was fitted to states of {self.centres.shape[1]} values, got {flat.shape[1]}")
        away = (flat[:, None] - self.centres.to(x.dtype)).square().sum(-1) / self.width**2
        late = (t.reshape(-1, 1) if isinstance(t, Tensor) else t) - self.times.to(x.dtype)
        weights = torch.softmax(-0.5 * (away + (late / self.time_width) ** 2), dim=1)
        ratio = (weights @ self.upper.to(x.dtype)) / (weights @ self.lower.to(x.dtype))
        return ratio.sqrt().reshape(-1, *[1] * (x.ndim - 1))


def fit_residual(
    velocity: Predictor,
    score: Predictor,
    x1: Tensor,
    *,
    reference: Predictor | None = None,
    condition: Condition = None,
    centres: int = 64,
    width: float | None = None,
    time_width: float = 0.15,
    seed: int | None = None,
) -> Residual:
    r"""The noise :math:`A = 2\,|\delta u|/|\delta s|` at which two networks' errors hurt least.

    Both errors are measured in their noise prediction :math:`E_0`, on states of the path made of held-out data. With a
    reference they are the distances to its prediction. Without one, :math:`r_u = x_0 - E_0^u` and
    :math:`r_s = x_0 - E_0^s` hold the error and the spread of :math:`x_0` given the state, which is the same in both;
    with errors that are uncorrelated with one another it drops out of

    .. math:: e_u = E\,[r_u\cdot(r_u - r_s)], \qquad e_s = E\,[r_s\cdot(r_s - r_u)] ,

    averaged over neighbouring states and times.

    Parameters
    ----------
    velocity, score
        The predictors that flow and noise read, trained apart, on one Gaussian path with a score.
    x1
        Data ``(N, *S)`` that neither was trained on; some thousands without a reference.
    reference
        A better predictor on the same path, or an exact one.
    condition
        Tensors with N rows for the networks.
    centres
        At how many states the errors are kept.
    width, time_width
        Over which distance in state and time they are averaged; the width is by default the median distance of a centre
        to the nearest other.
    seed
        Of times, source samples and centres.

    Returns
    -------
    A state-dependent diffusivity for :class:`Multiplicative`.

    Raises
    ------
    ValueError
        If both are one network: then the answer is known, :class:`~genmatch.diffusivity.Memoryless`. If the errors
        cannot be told from 0. If the path has no score or the models are on different paths.

    Examples
    --------
    >>> import genmatch as gm, torch
    >>> world = gm.worlds.GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), 0.1)
    >>> path = gm.GaussianPath()
    >>> first, second = (gm.predict.Velocity(gm.nn.MLP(2, width=16), path) for _ in range(2))
    >>> noise = gm.fit_residual(first, second, world.sample(500, seed=0), reference=world.predictor(path), seed=0)
    >>> sde = gm.Flow(first) + gm.Multiplicative(second, noise)
    """
    path = _check_models(velocity, score, reference)
    path.space.check(x1)
    check_condition(condition, len(x1))
    if isinstance(centres, bool) or not isinstance(centres, int) or not 1 <= centres <= len(x1):
        raise ValueError(f"centres must be an integer from 1 to the number of data, {len(x1)}, got {centres!r}")
    if time_width <= 0 or (width is not None and width <= 0):
        raise ValueError(f"widths must be above 0, got {width} and {time_width}")
    draws = Draws(seed, len(x1), device=x1.device)
    with torch.no_grad():
        x, t, upper, lower = _errors(path, velocity, score, reference, x1, condition, draws)
        flat = x.flatten(1)
        rows = draws.fork(CENTRES).uniform((len(x1),)).argsort()[:centres]
        where, when = flat[rows], t[rows]
        if width is None:
            width = _spacing(where)
        away = torch.cdist(where, flat).square() / width**2 + ((when[:, None] - t) / time_width) ** 2
        weights = torch.softmax(-0.5 * away, dim=1)
        means = [weights @ error for error in (upper, lower)]
        least = [LEAST * float(error.mean()) for error in (upper, lower)]
        if not min(least) > 0:
            raise ValueError(
                "the errors of the two networks cannot be told from 0: give more held-out data, or a reference"
            )
        kept = [mean.clamp(min=bound) for mean, bound in zip(means, least, strict=True)]
    return Residual(where, when, *kept, width=width, time_width=time_width)


def _check_models(velocity: Any, score: Any, reference: Any) -> GaussianPath:
    for name, model in (("velocity", velocity), ("score", score), ("reference", reference)):
        if name == "reference" and model is None:
            continue
        if not isinstance(model, Predictor):
            raise TypeError(f"{name} must be a predictor such as gm.predict.Velocity, got {type(model).__name__}")
        if "noise" not in model.readings or not isinstance(model.path, GaussianPath):
            raise TypeError(f"{name} must have noise to be read, on a GaussianPath, got one on {model.path!r}")
        if not model.path.has_score:
            raise ValueError(f"there is no score on {model.path!r}: {model.path.why_no_score()}")
        if model.path != velocity.path:
            raise ValueError(f"the models must share one path, got {velocity.path!r} and {model.path!r}")
    if velocity is score:
        raise ValueError(
            "velocity and score are one network, so their errors are multiples of one another and the best noise is "
            "known: gm.diffusivity.Memoryless()"
        )
    return velocity.path


def _errors(
    path: GaussianPath,
    velocity: Predictor,
    score: Predictor,
    reference: Predictor | None,
    x1: Tensor,
    condition: Condition,
    draws: Draws,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States of the path, their times, and for each an unbiased estimate of both squared errors of the noise."""
    low, high = INSIDE
    t = low + (high - low) * draws.fork(TIMES).uniform((len(x1),)).to(x1.dtype)
    x0 = path.draw_source(tuple(x1.shape), draws).to(x1.dtype)
    x = path.between(x0, x1, path.instant(t, x1), draws.fork(BETWEEN))

    def noise(model: Predictor) -> Tensor:
        parts = []
        for first in range(0, len(x), ROWS):
            rows = slice(first, first + ROWS)
            own = None if condition is None else {name: value[rows] for name, value in condition.items()}
            parts.append(cast(Tensor, model(x[rows], t[rows], own).noise))
        return torch.cat(parts)

    u, s = noise(velocity), noise(score)
    if reference is not None:
        truth = noise(reference)
        upper, lower = (u - truth).square(), (s - truth).square()
    else:
        upper, lower = (x0 - u) * (s - u), (x0 - s) * (u - s)
    return x, t, upper.flatten(1).sum(1), lower.flatten(1).sum(1)


def _spacing(points: Tensor) -> float:
    """The median distance of a point to the nearest other."""
    if len(points) < 2:
        return 1.0
    apart = torch.cdist(points, points)
    apart.fill_diagonal_(float("inf"))
    return max(float(apart.min(1).values.median()), 1e-6)
