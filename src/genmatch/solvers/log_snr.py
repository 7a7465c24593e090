r"""Steps in log-SNR, in which the published exponential solvers extrapolate.

With :math:`\lambda = \log(\alpha/\sigma)`, h the step in it, and u in [0, 1] the place in the step, a flow's solution
over a step t -> s is, in terms of the data prediction or of the noise prediction Q,

.. math:: x_s = \tfrac{\sigma_s}{\sigma_t}x_t + \alpha_s\int_0^1 Q\,d e^{-h(1-u)}
              = \tfrac{\alpha_s}{\alpha_t}x_t + \sigma_s\int_0^1 Q\,d e^{h(1-u)} .

Langevin noise with exposure G to the end of the step puts :math:`e^{-h(1-u)-G(u)}` in the first integral, and
:math:`-e^{h(1-u)}(h\,du - dG)` in the second. A polynomial Q is integrated by its moments.

References
----------
.. [1] C. Lu et al., "DPM-Solver", arXiv 2206.00927, eq. 3.4; C. Lu et al., "DPM-Solver++", arXiv 2211.01095, eq. 8, 18.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.polynomial import legendre
from torch import Tensor

from ..schedules import Instant, Schedule
from .exposure import exposure, noise_terms
from .field import Field
from .solver import Solver

__all__ = [
    "between",
    "check_form",
    "check_start",
    "half_log_snr",
    "moments",
    "noisy_moments",
    "of_changes",
    "polynomial_gains",
    "refuse_noise",
    "second_order_opening",
]

NODES = 16  # of Gauss-Legendre in a step
LONG = 1.0  # steps at least so long take the moments' recurrence, which short ones would lose digits by


def half_log_snr(alpha: Tensor, sigma: Tensor) -> Tensor:
    r""":math:`\lambda = \log(\alpha/\sigma)`; infinite where one of them is 0."""
    return alpha.log() - sigma.log()


def between(now: Instant) -> tuple[Instant, Instant]:
    """The starts and the ends of the steps of a grid."""
    values = now.t, now.alpha, now.sigma
    return Instant(*(value[:-1] for value in values)), Instant(*(value[1:] for value in values))


def moments(z: Tensor, count: int) -> Tensor:
    r""":math:`\int_0^1 u^k\,d e^{-z(1-u)}` for k = 0 .. ``count``, ``(n, count + 1)``; z = h for data, -h for noise."""
    places, weights = _rule()
    kernel = z[:, None] * torch.exp(-z[:, None] * (1 - places)) * weights
    rows = [-torch.expm1(-z)]
    for k in range(1, count + 1):
        rows.append(torch.where(z.abs() < LONG, (kernel * places**k).sum(1), 1 - k * rows[-1] / z))
    return torch.stack(rows, 1)


def noisy_moments(field: Field, t: Instant, s: Instant, form: str, count: int) -> tuple[Tensor, Tensor, Tensor]:
    r"""The moments of steps with noise, and of noise prediction the two integrals over the noise of a step:

    .. math:: J_1 = \int e^{h(1-u)}\,dG, \qquad J_2 = 2\int e^{2h(1-u)}\,dG ,

    by which frozen noise is damped and the noise of a step made (dG > 0 here). Right for steps inside (0, 1).
    """
    places, weights = _rule()
    schedule: Schedule = field.operator.path.schedule  # type: ignore[attr-defined]
    times = t.t[:, None] + (s.t - t.t)[:, None] * places
    inner = schedule.at(times)
    level, end = half_log_snr(inner.alpha, inner.sigma), half_log_snr(s.alpha, s.sigma)[:, None]
    start = half_log_snr(t.alpha, t.sigma)[:, None]
    h = end - start
    u = (level - start) / h
    du = inner.wronskian / (inner.alpha * inner.sigma) / h * (s.t - t.t)[:, None] * weights
    ends = Instant(*(value[:, None].expand_as(times).flatten() for value in (s.t, s.alpha, s.sigma)))
    starts = Instant(times.flatten(), inner.alpha.flatten(), inner.sigma.flatten())
    left, total = exposure(field, starts, ends).reshape(times.shape), exposure(field, t, s)
    powers: list[Any] = [u**k for k in range(count + 1)]
    if form == "data":
        kernel = torch.exp(-h * (1 - u) - left) * du
        rows = [-torch.expm1(-h[:, 0] - total)]
        rows += [1 - k * (kernel * powers[k - 1]).sum(1) for k in range(1, count + 1)]
        return torch.stack(rows, 1), torch.zeros_like(total), torch.zeros_like(total)
    growth = torch.exp(h * (1 - u))
    # By parts, so that of the noise G alone is needed: G(u) is what is left of it.
    first = torch.exp(h[:, 0]) * total - (h * growth * left * du).sum(1)
    second = 2 * (torch.exp(2 * h[:, 0]) * total - 2 * (h * growth**2 * left * du).sum(1))
    plain = moments(-h[:, 0], count)
    rows = [plain[:, 0] - first]
    for k in range(1, count + 1):
        rows.append(plain[:, k] - (left * (k * powers[k - 1] - h * powers[k]) * growth * du).sum(1))
    return torch.stack(rows, 1), first, second


def polynomial_gains(places: Sequence[float], moment: Sequence[float]) -> list[float]:
    r"""What multiplies :math:`Q(u_j) - Q(0)` at each place :math:`u_j \ne 0` in the integral of the polynomial through
    these and 0; ``moment`` are those of :math:`u, u^2, \dots`
    """
    powers = np.array([[place**k for place in places] for k in range(1, len(places) + 1)])
    return np.linalg.solve(powers, np.array(moment[: len(places)])).tolist()


def of_changes(gains: Sequence[float]) -> tuple[float, ...]:
    """What multiplies the changes of Q from step to step, given what multiplies its differences from this step's."""
    return tuple(-sum(gains[j:]) for j in range(len(gains)))


def second_order_opening(now: Instant, form: str) -> float:
    r"""What multiplies the change of Q over the first step, made by order 1, in the same step of order 2.

    :math:`\sqrt{\alpha_s^2+\sigma_s^2}\,(1-\cos(\theta_s-\theta_t))/(\sin\theta_s-\sin\theta_t)` for data, with the
    cosines below the line for noise: in the angle :math:`\arctan(\alpha/\sigma)` it is finite at the ends, too.
    """
    a, b = math.atan2(now.alpha[0], now.sigma[0]), math.atan2(now.alpha[1], now.sigma[1])
    middle = (a + b) / 2
    change = math.cos(middle) if form == "data" else -math.sin(middle)
    return math.hypot(now.alpha[1], now.sigma[1]) * math.sin((b - a) / 2) / change


def check_form(form: str) -> str:
    """Raise unless ``form`` is one."""
    if form not in ("data", "noise"):
        raise ValueError(f"form must be 'data' or 'noise', what is extrapolated from step to step, got {form!r}")
    return form


def check_start(start: str) -> str:
    """Raise unless ``start`` is one."""
    if start not in ("single", "lower"):
        raise ValueError(
            f"start must be 'single' (a first step of more evaluations, which keeps the order) or 'lower' "
            f"(first steps of lower order), got {start!r}"
        )
    return start


def refuse_noise(solver: Solver, field: Field) -> None:
    """Raise if the field has noise, for solvers of flows alone."""
    if noise_terms(field):
        raise ValueError(
            f"{type(solver).__name__} moves flows, drift alone, and the generator has noise: use "
            "gm.solvers.DPMSolver() or gm.solvers.Exponential() for the diffusion, or pass the flow alone"
        )


def _rule() -> tuple[Tensor, Tensor]:
    """Gauss-Legendre on [0, 1]."""
    places, weights = legendre.leggauss(NODES)
    return torch.from_numpy((1 + places) / 2), torch.from_numpy(weights / 2)
