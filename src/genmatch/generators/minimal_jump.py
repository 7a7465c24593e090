r"""The jump that moves a known density with the fewest jumps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..predict import Density
from ..predict.density import DensityInstant, DensityPrediction
from ..rates import Atoms, Bins, Rates, Term
from ..schedules import Number
from ..triplet import Triplet
from .operator import Generator, check_reading, in_full

__all__ = ["MinimalJump"]


class MinimalJump(Generator):
    r"""Leave where the density falls, land where it rises.

    .. math:: \lambda_t(x) = [-\partial_t\log p_t(x)]_+, \qquad
       J_t(dy) \propto [\partial_t p_t(y)]_+\,dy

    independent of where it comes from. Gain minus loss is :math:`\partial_t p_t`, and the expected rate,
    :math:`\tfrac12\int|\partial_t p_t|`, is the least that any jump process can do with.

    In a solver's plan a step from t to s is taken whole: a state stays with probability :math:`\min(1, p_s/p_t)` and
    lands where :math:`p_s > p_t`, by :math:`[p_s - p_t]_+`. Then the law after the step is :math:`p_s`, whatever the
    length of the step: all that is left is the grid of landings.

    Parameters
    ----------
    model
        A :class:`~genmatch.predict.Density`.
    edges
        ``(K + 1,)``, for states ``(B, 1)``: bins where jumps land, with the density of their middle.
    points
        ``(K, *S)``: the states where jumps land, in few dimensions or on a manifold; give this or ``edges``.
    volumes
        ``(K,)``, positive: how much of the space each point stands for; equal by default.

    Raises
    ------
    ValueError
        If not one of edges and points is given, if edges do not increase, or if the density is not positive and finite
        on all of them (looked at for t = 1/2 here, and at every time of a run on a CPU).

    Notes
    -----
    Bins or points must cover where the density rises; what rises elsewhere is not seen. The density is evaluated on all
    of them in each step.

    Examples
    --------
    >>> import genmatch as gm, torch
    >>> def log_normal(x, t):  # of N(t, 1), up to a constant
    ...     return -0.5 * (x.squeeze(-1) - t).square()
    >>> model = gm.predict.Density(log_normal, gm.GaussianPath())
    >>> jump = gm.MinimalJump(model, torch.linspace(-5, 6, 111))
    >>> gm.sample(jump, torch.zeros(4, 1), steps=3, seed=0).shape
    torch.Size([4, 1])
    """

    speed = 1.0
    additive = False

    def __init__(
        self,
        model: Density,
        edges: Tensor | None = None,
        *,
        points: Tensor | None = None,
        volumes: Tensor | None = None,
    ) -> None:
        super().__init__(model)
        check_reading(self, model, "growth")
        if (edges is None) == (points is None):
            raise ValueError("give edges, for states (B, 1), or points (K, *S) to land on: one of the two")
        if edges is not None:
            if edges.ndim != 1 or len(edges) < 2 or not bool((edges.diff() > 0).all()):
                raise ValueError(
                    f"edges must be at least two numbers in a row, strictly increasing, got shape {tuple(edges.shape)}"
                )
            if volumes is not None:
                raise ValueError("volumes belong to points: those of bins are their widths")
            points, volumes = ((edges[1:] + edges[:-1]) / 2)[:, None], edges.diff()
        volumes = torch.ones(len(points)) if volumes is None else volumes  # type: ignore[arg-type]
        if volumes.shape != (len(points),) or not bool((volumes > 0).all()):  # type: ignore[arg-type]
            raise ValueError(f"volumes must be {len(points)} positive numbers, got shape {tuple(volumes.shape)}")  # type: ignore
        self.register_buffer("edges", edges, persistent=False)
        self.register_buffer("points", points, persistent=False)
        self.register_buffer("log_volumes", volumes.log(), persistent=False)
        model.path.space.check(points)  # type: ignore[arg-type]
        self._landing(points, model(points, 0.5))  # type: ignore[arg-type]

    def triplet(self, x: Tensor, t: Number, prediction: DensityPrediction) -> Triplet:
        """The rate at ``x``, and bins or atoms."""
        if self.edges is not None and x.shape[1:] != (1,):
            raise ValueError(f"edges are for states (B, 1), got {tuple(x.shape)}: give points=")
        fall, h = _fall(prediction)
        # A time of float64 makes the growth float64, too.
        total = (
            (fall.clamp(min=0) / h).to(torch.promote_types(x.dtype, torch.float32)).reshape(len(x), *[1] * (x.ndim - 1))
        )
        logits = self._landing(x, prediction)
        if self.edges is not None:
            logits = logits[:, None].expand(len(x), 1, -1)
            return Triplet(rates=Rates(Term(total, Bins(logits, self.edges.to(x.device)))))  # type: ignore[arg-type]
        return Triplet(rates=Rates(Term(total, Atoms(self.points.to(x), logits))))  # type: ignore[operator]

    def _landing(self, x: Tensor, prediction: DensityPrediction) -> Tensor:
        """Log-masses of the landings, ``(1, K)`` or, for a time of each sample, ``(B, K)``."""
        instant = prediction.instant
        points: Tensor = self.points.to(x.device, x.dtype)  # type: ignore[operator]
        count, rows = len(points), 1
        if isinstance(instant.t, Tensor) and instant.t.ndim:
            rows = len(instant.t)
            points = points.repeat(rows, *[1] * (points.ndim - 1))
            until = None if instant.until is None else instant.until.reshape(-1).repeat_interleave(count)
            instant = DensityInstant(instant.t.reshape(-1).repeat_interleave(count), until, instant.inner)
        here = prediction.model.prediction(points, instant, in_full(prediction.model.native(points, instant), points))
        rise = -_fall(here)[0]
        _check_finite(rise)
        if instant.until is None:
            log_mass = here.native + rise.clamp(min=0).log()
        else:
            log_mass = here.native + torch.expm1(rise.clamp(min=0)).log()
        logits = log_mass.reshape(rows, count) + self.log_volumes.to(log_mass)  # type: ignore[operator]
        # Nothing rises: nothing jumps either, and the law of the landing is never asked for.
        return torch.where(torch.isneginf(logits).all(1, keepdim=True), 0.0, logits)


def _fall(prediction: Any) -> tuple[Tensor, Number]:
    """How much the log-density falls over the step, and the step's length; per unit of time where there is no step."""
    instant = prediction.instant
    if instant.until is None:
        return -prediction.growth, 1.0
    h = instant.until - instant.t
    return -prediction.log_ratio, h.reshape(-1) if isinstance(h, Tensor) else h


def _check_finite(rise: Tensor) -> None:
    if rise.device.type != "cpu" or torch.compiler.is_compiling():
        return
    wrong = rise.isnan() | torch.isposinf(rise)
    if bool(wrong.any()):
        raise ValueError(
            f"the density's growth is {rise[wrong][0].item():g} at {int(wrong.sum())} of {len(rise)} landing points: "
            "it must be positive and finite on all of them. Stay inside (0, 1), or move the points"
        )
