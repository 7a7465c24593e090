r"""Churn: before each step back up to more noise, by fresh noise, and from there down again along the flow.

With the noise level :math:`\hat\sigma = \sigma/\alpha` and :math:`\hat x = x/\alpha` the flow of any Gaussian path is

.. math:: \frac{d\hat x}{d\hat\sigma} = E_0(x, t) = \frac{\hat x - X_1}{\hat\sigma},

E_0 the prediction of the noise. A step from level :math:`\hat\sigma_t` to :math:`\hat\sigma_s` first adds noise up to
:math:`\hat\sigma' = (1 + \gamma)\hat\sigma_t`, at the earlier time :math:`t'`, and then solves that equation from
:math:`\hat\sigma'`: the network sees the state after the noise was added, at the level that it then has.

References
----------
.. [1] T. Karras et al., "Elucidating the design space of diffusion-based generative models", arXiv 2206.00364,
   Algorithms 1 and 2, and Table 5 (the numbers).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..generators import OperatorInstant
from ..random import Draws
from ..schedules import Schedule, check_positive
from .exponential import check_own_noise, refuse_nonlinear
from .field import Field
from .solver import Solver, read_order
from .transition import combine

__all__ = ["Churn"]

MOST = math.sqrt(2) - 1  # of gamma: the noise that is added is no more than there is


class Step(NamedTuple):
    """One step: up by ``keep x + std z``, then at ``instant`` Euler's ``a x + b N``, and Heun's second look at ``end``.

    ``late`` multiplies the Euler state and the network's output there, ``early`` the state before and its output.
    """

    keep: float
    std: float
    instant: OperatorInstant
    a: float
    b: float
    end: OperatorInstant | None = None
    late: tuple[float, float] = (0.0, 0.0)
    early: tuple[float, float] = (0.0, 0.0)


class Churn(Solver):
    r"""The stochastic sampler of EDM, on any Gaussian path and with any network.

    .. math::
        \hat\sigma' &= (1+\gamma)\,\hat\sigma_t, \qquad
        \hat x' = \hat x_t + \text{noise}\,\sqrt{\hat\sigma'^2 - \hat\sigma_t^2}\;z \\
        \tilde x &= \hat x' + (\hat\sigma_s - \hat\sigma')\,E_0(\hat x', \hat\sigma') \\
        \hat x_s &= \hat x' + \tfrac12 (\hat\sigma_s - \hat\sigma')\bigl(E_0(\hat x', \hat\sigma')
        + E_0(\tilde x, \hat\sigma_s)\bigr)

    with :math:`\gamma = \min(\text{churn}/N, \sqrt2 - 1)` for levels from ``low`` to ``high``, and 0 for others, over a
    run of N steps, with levels :math:`\hat\sigma = \sigma/\alpha` of the data's own scale. The level is not
    raised beyond that of t = 0. Order 1 ends a step with :math:`\tilde x`, which is DDIM's step; so do a step to
    :math:`\sigma = 0` and one from :math:`\alpha = 0`, where the level is infinite. With ``churn = 0`` it is the
    deterministic sampler of the paper, on any path.

    Where the schedule ends above 0 (EDM's ``sigma_min``) the last step is of the order chosen too: in a step from 80
    down to that order 2 overshoots, so few equal steps want order 1.

    Order 2 wants steps that shrink towards the data, as those of :func:`genmatch.grids.karras`, or a schedule whose
    noise fades linearly there: with equal steps in t on VP, where it fades as :math:`\sqrt{1-t}`, the last step brings
    it down towards 1.

    It adds noise of its own, so it takes a flow. With ``noise = 1`` the marginals converge to those of the path, with
    the order of the step; the authors add a little more noise than that, against networks that remove too much, and
    then they do not converge.

    Parameters
    ----------
    churn
        S_churn, at least 0: how much the level is raised in all, as a multiple of itself.
    noise
        S_noise, above 0: factor of the standard deviation of the noise added.
    low, high
        S_tmin and S_tmax: levels between which noise is added. The defaults, like those of ``churn`` and ``noise``, are
        the authors' for ImageNet at 64 x 64, for data of standard deviation 0.5.
    order
        2 (Heun, two evaluations a step) or 1 (Euler).

    Raises
    ------
    ValueError, TypeError
        At the call for numbers out of range. In a plan, for a generator with noise of its own or other than a flow of
        one network on a Gaussian path; with churn, for times that fall and for a source other than standard normal
        noise independent of the data.
    """

    parts = frozenset({"drift"})

    def __init__(
        self,
        churn: float = 40.0,
        *,
        noise: float = 1.003,
        low: float = 0.05,
        high: float = 50.0,
        order: int = 2,
    ) -> None:
        check_positive("churn", churn, zero=True)
        check_positive("noise", noise)
        check_positive("low", low, zero=True)
        if high != math.inf:
            check_positive("high", high)
        if high < low:
            raise ValueError(f"noise is added where the level is between low and high, got {low} and {high}")
        read_order(order, (1, 2))
        self.churn, self.noise, self.low, self.high, self.order = churn, noise, low, high, order

    def defined(self, field: Field, t: float) -> bool:
        """Whether data and noise can be read off the network at ``t``."""
        refuse_nonlinear(self, field)
        (instant,) = field.at(torch.tensor([t], dtype=torch.float64))
        return field.models[0].reads(instant.models[0])

    def plan(self, field: Field, times: Tensor) -> list[Step]:
        """The raised times, and the numbers at both ends of each step."""
        refuse_nonlinear(self, field)
        quiet = f"gm.solvers.Churn(0, order={self.order})" if self.churn else ""
        check_own_noise(self, field, quiet, bool(times[-1] < times[0]), "churn")
        raised = self._raised(field.operator.path.schedule, times)  # type: ignore[attr-defined]
        rows = zip(field.at(times[:-1]), field.at(raised), field.at(times[1:]), strict=True)
        return [self._step(field.models[0], *row) for row in rows]

    def _raised(self, schedule: Schedule, times: Tensor) -> Tensor:
        """The times of the raised levels."""
        now = times[:-1]
        alpha, sigma = schedule(now)
        level = sigma / alpha
        gamma = min(self.churn / len(now), MOST)
        up = schedule.inverse_log_snr(-2 * (level * (1 + gamma)).log())  # 0 for a level beyond that of t = 0
        churned = (level >= self.low) & (level <= self.high) & level.isfinite() & (up < now)
        return torch.where(churned, up, now) if gamma else now

    def _step(self, model: Any, now: OperatorInstant, up: OperatorInstant, end: OperatorInstant) -> Step:
        t, r, s = now.models[0], up.models[0], end.models[0]
        keep, std = 1.0, 0.0
        if r.t != t.t:
            keep = r.alpha / t.alpha
            std = self.noise * math.sqrt(max(r.sigma**2 - (keep * t.sigma) ** 2, 0.0))
        step = Step(keep, std, up, *model.coefficients(r, s.alpha, s.sigma))
        if self.order == 1 or not (s.sigma > 0 and s.alpha > 0 and r.sigma > 0 and r.alpha > 0):
            return step
        half = (s.sigma - s.alpha * r.sigma / r.alpha) / 2  # of the step in level, times alpha at its end
        early, late = model.coefficients(r, 0.0, 1.0), model.coefficients(s, 0.0, 1.0)
        if not all(map(math.isfinite, (*early, *late))):
            return step
        return step._replace(
            end=end, late=(1 + half * late[0], half * late[1]), early=(-half * early[0], -half * early[1])
        )

    def evaluations(self, plan: Sequence[Step]) -> int:
        """One a step, and one more where it is corrected."""
        return sum(1 + (step.end is not None) for step in plan)

    def step(self, field: Field, x: Tensor, c: Step, draws: Draws, carry: None) -> tuple[Tensor, None]:
        """One step; see the class."""
        if isinstance(c.std, Tensor) or c.std != 0.0:
            x = combine([(c.keep, x), (c.std, field.space.brownian(x, draws))])
        native = field.native(x, c.instant)
        moved = combine([(c.a, x), (c.b, native)])
        if c.end is None:
            return moved, None
        again = field.native(moved, c.end)
        return combine([(c.late[0], moved), (c.late[1], again), (c.early[0], x), (c.early[1], native)]), None

    def __repr__(self) -> str:
        return f"Churn({self.churn:g}, noise={self.noise:g}, low={self.low:g}, high={self.high:g}, order={self.order})"
