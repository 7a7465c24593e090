r"""DPM-Solver-2 and -3, single-step: several evaluations a step, and nothing kept from step to step.

References
----------
.. [1] C. Lu et al., "DPM-Solver", arXiv 2206.00927, Algorithms 1 and 2 (with r1 = 1/2; r1 = 1/3, r2 = 2/3).
.. [2] C. Lu et al., "DPM-Solver++", arXiv 2211.01095, Algorithm 1 (2S).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..generators import OperatorInstant
from ..random import Draws
from ..schedules import Instant, Schedule
from .exponential import refuse_nonlinear
from .field import Field
from .log_snr import between, check_form, half_log_snr, moments, refuse_noise
from .solver import Solver, read_order
from .transition import Transition, apply_transition, combine

__all__ = ["DPMSolverSingle", "Stage", "Stages", "plan_stages", "through_stages"]


class Stage(NamedTuple):
    r"""An evaluation and what follows: :math:`y = a x + \sum_j w_j Q_j`, with x the state at the start of the step.

    :math:`Q_j = k_0 y_j + k_1 N_j`, with :math:`k` = ``keep``, is read off the network at the j-th stage's state.
    """

    instant: OperatorInstant
    keep: tuple[float, float]
    a: float
    weights: tuple[float, ...]


Stages = tuple[Stage, ...]


class DPMSolverSingle(Solver):
    r"""DPM-Solver-2 and -3 (``form="noise"``), DPM-Solver++(2S) and (3S) (``form="data"``), for flows.

    ``order`` evaluations a step, at equal parts of the step in :math:`\lambda=\log(\alpha/\sigma)`. With
    :math:`\phi_1 = 1 - e^{-h}` and X, X' the data predictions at the start and in the middle, order 2 is

    .. math:: x_s = \tfrac{\sigma_s}{\sigma_t}\,x_t + \alpha_s\,\phi_1 X' ;

    order 3 takes the slope of Q from a second stage at 2/3, which a first one at 1/3 makes of order 2.

    Where log-SNR is infinite at an end of a step (t = 0 with :math:`\alpha` = 0, t = 1 with :math:`\sigma` = 0) the
    step is one of order 1, with one evaluation: such a whole run is of order 2 at most (1.5 on VP), while
    ``Exponential(order=3)`` keeps order 3 to both ends. One step from noise to data is DDIM's.

    Parameters
    ----------
    order
        2 or 3.
    form
        Whether the noise or the data prediction is taken for a polynomial.
    """

    parts = frozenset({"drift"})

    def __init__(self, order: int = 2, form: str = "noise") -> None:
        read_order(order, (2, 3), ": of order 1 it is gm.solvers.DDIM()")
        self.order, self.form = order, check_form(form)

    def defined(self, field: Field, t: float) -> bool:
        """Whether data and noise can be read off the network at ``t``."""
        refuse_nonlinear(self, field)
        (instant,) = field.at(torch.tensor([t], dtype=torch.float64))
        return field.models[0].reads(instant.models[0])

    def plan(self, field: Field, times: Tensor) -> list[Stages | Transition]:
        """The stages of each step; one transition where log-SNR is infinite at an end."""
        refuse_nonlinear(self, field)
        refuse_noise(self, field)
        return plan_stages(field, times, self.order, self.form)

    def step(self, field: Field, x: Tensor, c: Stages | Transition, draws: Draws, carry: None) -> tuple[Tensor, None]:
        """One step."""
        if isinstance(c, Transition):
            return apply_transition(field, x, c, None)[0], None
        return through_stages(field, x, c)[0], None

    def evaluations(self, plan: Sequence[Stages | Transition]) -> int:
        """``order`` a step, but one where log-SNR is infinite."""
        return sum(1 if isinstance(c, Transition) else len(c) for c in plan)

    def __repr__(self) -> str:
        return f"DPMSolverSingle(order={self.order}, form={self.form!r})"


def plan_stages(field: Field, times: Tensor, order: int, form: str) -> list[Stages | Transition]:
    """Stages of single steps of order 2 or 3, and DDIM's transitions for steps of infinite log-SNR."""
    schedule: Schedule = field.operator.path.schedule  # type: ignore[attr-defined]
    instants = field.at(times)
    numbers = [instant.models[0] for instant in instants]
    now = Instant(*torch.tensor([(n.t, n.alpha, n.sigma) for n in numbers], dtype=torch.float64).unbind(1))
    t, s = between(now)
    low, high = half_log_snr(t.alpha, t.sigma), half_log_snr(s.alpha, s.sigma)
    inside = (high - low).isfinite()
    plan: list[Stages | Transition] = []
    places = torch.arange(1, order, dtype=torch.float64) / order
    levels = low[inside, None] + (high - low)[inside, None] * places
    inner = schedule.inverse_log_snr(2 * levels.flatten())
    stages = iter(field.at(inner))
    for i, finite in enumerate(inside.tolist()):
        if finite:
            own = [instants[i], *(next(stages) for _ in range(order - 1)), instants[i + 1]]
            plan.append(_stages(field, own, form))
        else:
            end = numbers[i + 1]
            plan.append(Transition(instants[i], *field.models[0].coefficients(numbers[i], end.alpha, end.sigma)))
    return plan


def through_stages(field: Field, x: Tensor, stages: Stages) -> tuple[Tensor, Tensor]:
    """The state at the end of the step, and the first reading Q."""
    state, read = x, []
    for stage in stages:
        native = field.native(state, stage.instant)
        read.append(combine([(stage.keep[0], state), (stage.keep[1], native)]))
        state = combine([(stage.a, x), *zip(stage.weights, read, strict=True)])
    return state, read[0]


def _stages(field: Field, instants: Sequence[OperatorInstant], form: str) -> Stages:
    """From the instants of the stages and of the step's end."""
    numbers = [instant.models[0] for instant in instants]
    alpha, sigma = torch.tensor([(n.alpha, n.sigma) for n in numbers], dtype=torch.float64).unbind(1)
    rise = half_log_snr(alpha, sigma)
    rise = (rise - rise[0])[1:]
    part = (rise / rise[-1]).tolist()
    data = form == "data"
    scale = (alpha if data else sigma)[1:]
    phi = (scale[:, None] * moments(rise if data else -rise, 1)).tolist()
    damp = ((sigma / sigma[0]) if data else (alpha / alpha[0]))[1:].tolist()
    rows: list[tuple[float, ...]] = [(phi[0][0],)]
    if len(numbers) == 3:
        slope = phi[1][0] / (2 * part[0])
        rows.append((phi[1][0] - slope, slope))
    else:
        slope, last = phi[1][1] * part[1] / part[0], phi[2][1] / part[1]
        rows += [(phi[1][0] - slope, slope), (phi[2][0] - last, 0.0, last)]
    history = (1.0, 0.0) if data else (0.0, 1.0)
    keeps = [field.models[0].coefficients(number, *history) for number in numbers]
    made = zip(instants[:-1], keeps[:-1], damp, rows, strict=True)
    return tuple(Stage(instant, keep, a, row) for instant, keep, a, row in made)
