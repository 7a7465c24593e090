r"""DEIS and iPNDM: Adams-Bashforth methods on the noise prediction, in time.

References
----------
.. [1] Q. Zhang, Y. Chen, "Fast sampling of diffusion models with exponential integrator" (DEIS), arXiv 2204.13902,
   eq. 14 and 15 (tAB), Section 3.4 and Appendix H (iPNDM).
.. [2] L. Liu et al., "Pseudo numerical methods for diffusion models on manifolds", arXiv 2202.09778, eq. 11 and 12.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..quadrature import integrate
from ..schedules import Instant, Schedule
from .exponential import Semilinear
from .field import Field
from .log_snr import between, check_start, of_changes, polynomial_gains, refuse_noise, second_order_opening
from .solver import read_order

__all__ = ["DEIS", "IPNDM"]

ADAMS = ((), (-1 / 2,), (-16 / 12, 5 / 12), (-59 / 24, 37 / 24, -9 / 24))  # weights of the steps before


class DEIS(Semilinear):
    r"""tAB-DEIS of order 1 to 3, for flows: the noise prediction is a polynomial in t, its weight is exact.

    .. math:: x_s = \tfrac{\alpha_s}{\alpha_t}\,x_t + \alpha_s\int_t^s E(\tau)\,d\rho_\tau, \qquad
       \rho = \tfrac{\sigma}{\alpha},

    with E the polynomial through the last ``order`` noise predictions; its integrals are taken by quadrature in
    float64. In t nothing is infinite at the ends but :math:`\rho_0`, so where the noise prediction is smooth in t
    (CondOT, Cosine) the order holds up to t = 1. From :math:`\alpha_0 = 0` the first step is DDIM's, and as the weight
    of the noise in the second is of the order of 1 and not of h, the run is of order 2 at most. On VP and DDPM, where
    :math:`\sigma \sim \sqrt{1-t}`, the noise prediction is not smooth at t = 1 either, and a run that ends there is
    of an order between 1 and 2. :class:`Exponential`, which extrapolates in an angle, keeps its order at both ends.

    With steps equal in :math:`\sigma` (EDM with ``rho=1``) it is the linear multistep method (LMS) on
    :math:`dx/d\sigma`. Where the logarithm of :math:`\rho` takes the place of t it is
    ``DPMSolver(order, form="noise")``.

    Parameters
    ----------
    order
        1 (DDIM), 2 or 3.
    start
        How order 3 starts: "single" makes the first step twice, "lower" leaves the run at order 2.
    """

    parts = frozenset({"drift"})
    form = "noise"
    guarded = False

    def __init__(self, order: int = 3, start: str = "single") -> None:
        read_order(order, (1, 2, 3))
        self.predictions, self.opens = order, check_start(start) == "single"
        self.order = order if self.opens else min(order, 2)

    def damping(self, field: Field, t: Instant, s: Instant) -> tuple[Tensor, Tensor]:
        """None, and no noise."""
        refuse_noise(self, field)
        return torch.ones_like(t.t), torch.zeros_like(t.t)

    def gains(self, field: Field, times: Tensor, now: Instant) -> list[tuple[float, ...]]:
        r"""Of the polynomial in :math:`v = (\tau-t)/(s-t)`, by parts:
        :math:`\alpha_s\int v^k\,d\rho = \sigma_s - k\,\alpha_s\int_0^1 v^{k-1}\rho\,dv`.
        """
        steps = len(times) - 1
        if self.predictions == 1 or steps == 1:
            return [()] * steps
        schedule: Schedule = field.operator.path.schedule  # type: ignore[attr-defined]
        t, s = between(Instant(now.t[1:], now.alpha[1:], now.sigma[1:]))  # the first has none before it
        width = s.t - t.t

        def part(k: int) -> list[float]:
            def integrand(tau: Tensor) -> Tensor:
                alpha, sigma = schedule(tau)
                return ((tau - t.t[:, None]) / width[:, None]) ** (k - 1) * sigma / alpha

            return (s.sigma - k * s.alpha * integrate(integrand, t.t, s.t) / width).tolist()

        moment = list(zip(part(1), part(2), strict=True))
        lengths = (times[1:] - times[:-1]).tolist()
        rows: list[tuple[float, ...]] = [()]
        for i in range(1, steps):
            places = [-sum(lengths[i - j : i]) / lengths[i] for j in range(1, min(self.predictions - 1, i) + 1)]
            rows.append(of_changes(polynomial_gains(places, moment[i - 1])))
        return rows

    def opening(self, field: Field, now: Instant) -> float:
        """Order 3 makes its first step twice, unless it is told not to."""
        if self.predictions < 3 or not self.opens or len(now.t) < 3:
            return 0.0
        return second_order_opening(now, self.form)

    def __repr__(self) -> str:
        start = "" if self.opens else ", start='lower'"
        return f"DEIS(order={self.predictions}{start})"


class IPNDM(Semilinear):
    r"""iPNDM: DDIM's step with the noise prediction of an Adams-Bashforth formula of fixed weights, for flows.

    .. math:: x_s = \tfrac{\alpha_s}{\alpha_t}\,x_t + \bigl(\sigma_s - \tfrac{\alpha_s\sigma_t}{\alpha_t}\bigr)\bar E,
       \qquad \bar E = \tfrac{1}{24}\,(55 E - 59 E' + 37 E'' - 9 E''')

    with ``order`` predictions, of fewer in the first steps. The average that the weights stand for is one over equal
    steps in t, and the weight of the noise is not constant in a step: the method is of order 2 for every ``order``
    above 1, and on grids whose steps change by a factor from one to the next it is of order 1. It is kept since it does
    well in few steps; :class:`DEIS` integrates what this one approximates.

    Parameters
    ----------
    order
        1 (DDIM), 2, 3 or 4: how many predictions it combines. The attribute ``order`` is 2 for all above 1.
    """

    parts = frozenset({"drift"})
    form = "noise"
    guarded = False

    def __init__(self, order: int = 4) -> None:
        read_order(order, (1, 2, 3, 4))
        self.predictions, self.order = order, min(order, 2)

    def damping(self, field: Field, t: Instant, s: Instant) -> tuple[Tensor, Tensor]:
        """None, and no noise."""
        refuse_noise(self, field)
        return torch.ones_like(t.t), torch.zeros_like(t.t)

    def gains(self, field: Field, times: Tensor, now: Instant) -> list[tuple[float, ...]]:
        """The fixed weights times what multiplies the noise prediction."""
        t, s = between(now)
        frozen = (s.sigma - s.alpha * t.sigma / t.alpha).tolist()
        rows = [ADAMS[min(i, self.predictions - 1)] for i in range(len(frozen))]
        return [of_changes([scale * w for w in row]) for scale, row in zip(frozen, rows, strict=True)]

    def opening(self, field: Field, now: Instant) -> float:
        """None."""
        return 0.0

    def __repr__(self) -> str:
        return f"IPNDM(order={self.predictions})"
