r"""UniPC: a predictor and a corrector in log-SNR that share their evaluations.

References
----------
.. [1] W. Zhao et al., "UniPC: a unified predictor-corrector framework for fast sampling of diffusion models",
   arXiv 2302.04867, Algorithms 1 and 2, eq. 3 and 8; Appendix E (B1, B2 and the coefficients of low order).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..generators import OperatorInstant
from ..random import Draws
from ..schedules import Instant
from .exponential import refuse_nonlinear
from .field import Field
from .log_snr import between, check_form, check_start, half_log_snr, moments, polynomial_gains, refuse_noise
from .single_step import Stages, plan_stages, through_stages
from .solver import Solver, read_order
from .transition import Kept, combine

__all__ = ["UniPC"]

Weights = tuple[float, ...]


class PredictorStep(NamedTuple):
    r"""A step: the state is corrected, then the next one predicted.

    With N the output at x and :math:`Q = k_0 x + k_1 N`, :math:`k` = ``keep``:
    :math:`x_c = c\,x_{prev} + \sum_j c_j Q_{-j}` (or x, without ``correct``) and
    :math:`x_s = a x_c + b N + \sum_j w_j Q_{-j}`, the sums from j = 0.
    """

    instant: OperatorInstant
    keep: tuple[float, float] | None
    correct: tuple[float, Weights] | None
    a: float
    b: float
    weights: Weights
    memory: int


class UniPC(Solver):
    r"""UniPC of order p = 1 to 3, with one evaluation a step, for flows.

    The predictor integrates the polynomial in :math:`\lambda = \log(\alpha/\sigma)` through the last p predictions (of
    data or noise); the corrector makes the same step once more when the next evaluation is there, of a polynomial with
    that one more, and so is of order p + 1 at no evaluation of its own. The last step is not corrected. The papers'
    function B(h) enters where they set a coefficient to 1/2: in the predictor of order 2, and in the corrector after a
    step of order 1. Elsewhere it cancels.

    ``order`` is p + 1 with the corrector and p without: UniPC(3) is of order 4. It needs log-SNR to be finite, as for
    VE, EDM, or inside (0, 1). A step that begins or ends where it is infinite is DDIM's, and is not corrected: a whole
    run from t = 0 to t = 1 of CondOT, Cosine or VP is of an order between 1 and 2. :class:`Exponential` keeps its order
    there.

    Parameters
    ----------
    order
        p: 1, 2 or 3.
    variant
        "bh2", :math:`B = e^h - 1`, or "bh1", :math:`B = h` (``h`` is negative in the data form).
    form
        "data" or "noise".
    corrector
        Without it ``UniPC(1)`` is DDIM and ``UniPC(2)``, "bh2", is ``DPMSolver(2)``.
    start
        "single": where steps of lower order at the start would cost the run its order (p = 3) the first is one of
        :class:`DPMSolverSingle`, with one or two evaluations more. "lower": the papers' steps of lower order, which
        leave the run at order 3 (2 without the corrector).
    """

    parts = frozenset({"drift"})

    def __init__(
        self,
        order: int = 2,
        variant: str = "bh2",
        form: str = "data",
        corrector: bool = True,
        start: str = "single",
    ) -> None:
        read_order(order, (1, 2, 3))
        if variant not in ("bh1", "bh2"):
            raise ValueError(f"variant must be 'bh1' or 'bh2', got {variant!r}")
        self.p, self.variant, self.form = order, variant, check_form(form)
        self.corrector, self.opens = bool(corrector), check_start(start) == "single"
        best = order + self.corrector
        self.order = best if self.opens or order < 3 else best - 1

    def defined(self, field: Field, t: float) -> bool:
        """Whether data and noise can be read off the network at ``t``."""
        refuse_nonlinear(self, field)
        (instant,) = field.at(torch.tensor([t], dtype=torch.float64))
        return field.models[0].reads(instant.models[0])

    def plan(self, field: Field, times: Tensor) -> list[PredictorStep | Stages]:
        """The weights of both halves of each step."""
        refuse_nonlinear(self, field)
        refuse_noise(self, field)
        model, instants, data = field.models[0], field.at(times), self.form == "data"
        numbers = [instant.models[0] for instant in instants]
        steps = _Steps.of(numbers, data)
        reach = steps.reach(self.p)
        opens = self.opens and self.p == 3 and len(reach) > 2 and reach[1] > 0
        plan: list[PredictorStep | Stages] = []
        for i, past in enumerate(reach):
            correct = None
            if self.corrector and i and steps.inside[i - 1] and not (opens and i == 1):
                correct = steps.damp[i - 1], steps.correction(i - 1, reach[i - 1], self.variant)
            if steps.inside[i] or correct:
                keep = model.coefficients(numbers[i], *((1.0, 0.0) if data else (0.0, 1.0)))
                a, b, weights = steps.damp[i], 0.0, steps.prediction(i, past, self.variant)
            else:
                keep = None
                a, b = model.coefficients(numbers[i], numbers[i + 1].alpha, numbers[i + 1].sigma)
                weights = ()
            plan.append(PredictorStep(instants[i], keep, correct, a, b, weights, self.p))
        if opens:
            plan[0] = plan_stages(field, times[:2], self.order - 1, self.form)[0]  # type: ignore[assignment]
        return plan

    def step(
        self, field: Field, x: Tensor, c: PredictorStep | Stages, draws: Draws, carry: Any
    ) -> tuple[Tensor, tuple[Tensor, Kept]]:
        """One step."""
        if not isinstance(c, PredictorStep):
            moved, read = through_stages(field, x, c)
            return moved, (x, (read,))
        before, past = (x, ()) if carry is None else carry
        native = field.native(x, c.instant)
        if c.keep is not None:
            past = (combine([(c.keep[0], x), (c.keep[1], native)]), *past)
        if c.correct is not None:
            x = combine([(c.correct[0], before), *zip(c.correct[1], past, strict=False)])
        moved = combine([(c.a, x), (c.b, native), *zip(c.weights, past, strict=False)])
        return moved, (x, past[: c.memory])

    def evaluations(self, plan: Sequence[PredictorStep | Stages]) -> int:
        """One a step, and those of an opening."""
        return sum(1 if isinstance(c, PredictorStep) else len(c) for c in plan)

    def __repr__(self) -> str:
        corrector, start = "" if self.corrector else ", corrector=False", "" if self.opens else ", start='lower'"
        return f"UniPC(order={self.p}, variant={self.variant!r}, form={self.form!r}{corrector}{start})"


class _Steps(NamedTuple):
    """The numbers of the steps of a grid, as host floats; those of steps of infinite log-SNR are not all finite."""

    h: list[float]
    inside: list[bool]  # whether log-SNR is finite at both ends
    damp: list[float]  # what multiplies the state
    frozen: list[float]  # what multiplies Q if it does not change
    moments: list[list[float]]  # of u^k, k = 0 .. 3, in units of alpha (data) or sigma (noise) at the end
    scale: list[float]
    z: list[float]

    @classmethod
    def of(cls, numbers: Sequence[Any], data: bool) -> _Steps:
        now = Instant(*torch.tensor([(n.t, n.alpha, n.sigma) for n in numbers], dtype=torch.float64).unbind(1))
        t, s = between(now)
        h = half_log_snr(s.alpha, s.sigma) - half_log_snr(t.alpha, t.sigma)
        z, scale = (h, s.alpha) if data else (-h, s.sigma)
        damp = s.sigma / t.sigma if data else s.alpha / t.alpha
        frozen = s.alpha - damp * t.alpha if data else s.sigma - damp * t.sigma
        inside = h.isfinite() & t.alpha.log().isfinite()
        values = (h, inside, damp, frozen, moments(z, 3), scale, z)
        return cls(*(value.tolist() for value in values))

    def reach(self, p: int) -> list[int]:
        """How many steps before each its predictor looks back on."""
        found, behind = [], 0
        for inside in self.inside:
            found.append(min(p - 1, behind) if inside else 0)
            behind = behind + 1 if inside else 0
        return found

    def places(self, i: int, past: int) -> list[float]:
        """Where the evaluations before step i lie, in units of its length from its start."""
        return [-sum(self.h[i - j : i]) / self.h[i] for j in range(1, past + 1)]

    def prediction(self, i: int, past: int, variant: str) -> Weights:
        """The weights of this step's Q and of the ones before, the latest first."""
        places = self.places(i, past)
        gains = [self._b(i, variant) / (2 * places[0])] if past == 1 else self._polynomial(i, places)
        return (self.frozen[i] - sum(gains), *gains)

    def correction(self, i: int, past: int, variant: str) -> Weights:
        """The weights of the Q at the step's end, of the one at its start, and of the ones before."""
        if past == 0:
            older, latest = [], self._b(i, variant) / 2
        else:
            *older, latest = self._polynomial(i, [*self.places(i, past), 1.0])
        return (latest, self.frozen[i] - sum(older) - latest, *older)

    def _polynomial(self, i: int, places: list[float]) -> list[float]:
        """What multiplies the differences from this step's Q of those at the places."""
        return [self.scale[i] * gain for gain in polynomial_gains(places, self.moments[i][1:])] if places else []

    def _b(self, i: int, variant: str) -> float:
        """B(h), with its sign."""
        return self.scale[i] * (self.z[i] if variant == "bh1" else self.moments[i][0])
