r"""The minimal jump of a Gaussian path, given the data: how often a coordinate jumps, and where it lands.

With :math:`\xi = (x - \alpha z)/\sigma`, :math:`a = -\dot\sigma \ge 0` and
:math:`b = \dot\alpha z`, the density of a coordinate given its data value z falls at the rate

.. math:: -\partial_t \log p_t(x|z) = \frac{1}{\sigma}\,\bigl(a\,(\xi^2 - 1) - b\,\xi\bigr) .

The minimal jump leaves where the density falls and lands where it rises,

.. math::
   \lambda_t(x|z) = \frac1\sigma\,[a(\xi^2 - 1) - b\,\xi]_+, \qquad
   J_t(dy|z) \propto [a(1 - \eta^2) + b\,\eta]_+\,\phi(\eta)\,d\eta, \quad \eta = (y - \alpha z)/\sigma ,

so that gain minus loss is :math:`\partial_t p_t`. The landing law is a function of the *target* alone. It lives between
the roots :math:`\xi_\pm` of :math:`a\xi^2 - b\xi - a` (whose product is -1), and its antiderivative is elementary:

.. math:: \frac{d}{d\eta}\bigl[(a\eta - b)\,\phi(\eta)\bigr] = (a - a\eta^2 + b\eta)\,\phi(\eta) .

So bin masses need no quadrature. Under CondOT a = 1, b = z, and :math:`\xi` is a time-homogeneous process in
:math:`-\log(1-t)`, which jumps :math:`Z(z)\log\frac{1}{1-t}` times on average up to t.

References
----------
.. [1] P. Holderrieth et al., "Generator matching", arXiv 2410.20587, eq. 13 (CondOT) and Appendix E.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..quadrature import integrate
from ..schedules import Number, along_batch
from .gaussian import GaussianPath
from .jump_kernel import JumpKernel
from .path import read_time

__all__ = ["GaussianJumpKernel", "JumpInstant"]

FAR = 40.0  # standard deviations beyond which a normal density is zero in float64
TAIL = 1e-9  # the mass of landings that may lie beyond the reach, where landings have no bound
EDGE = (1e-6, 1 - 1e-12)  # times between which a schedule's derivatives and their ratios are taken


class JumpInstant(NamedTuple):
    r"""The numbers of jumps on a Gaussian path: those of the schedule, and the hazard.

    The hazard is :math:`W/\sigma` with :math:`W = \dot\alpha\sigma - \alpha\dot\sigma`: :math:`1/(1-t)` under CondOT.
    In a solver's plan it is its average over the coming step, infinite for a step that ends at :math:`\sigma = 0`.
    """

    t: Number
    alpha: Number
    sigma: Number
    hazard: Number

    def rows(self) -> list[JumpInstant]:
        """The instants of a vector of times, one by one, as host floats."""
        return [JumpInstant(*row) for row in zip(*(f.tolist() for f in self), strict=True)]

    def broadcast(self, x: Tensor) -> JumpInstant:
        """Per-sample values ``(B,)`` as ``(B, 1, ..., 1)``."""
        return JumpInstant(*(along_batch(f, x) for f in self))


class GaussianJumpKernel(JumpKernel):
    r"""The minimal jump of a Gaussian path, in closed form; see the module.

    Parameters
    ----------
    path
        A :class:`~genmatch.GaussianPath` with the standard normal source, independent of the data.

    Raises
    ------
    TypeError, ValueError
        If it is none; if :math:`\sigma_t` rises anywhere.

    Examples
    --------
    >>> import genmatch as gm, torch
    >>> kernel = GaussianJumpKernel(gm.GaussianPath())
    >>> low, high = kernel.roots(torch.tensor([1.0], dtype=torch.float64), 0.5)
    >>> round(low.item(), 4), round(high.item(), 4)
    (-0.618, 1.618)
    """

    def __init__(self, path: GaussianPath) -> None:
        if not isinstance(path, GaussianPath):
            raise TypeError(f"the jump kernel of a Gaussian path needs one, got {path!r}")
        why = path.why_no_score()
        if why:
            raise ValueError(
                f"no jump is known on {path!r}: {why}, so that p_t given the data is not normal. "
                "Use the standard normal source and independent coupling"
            )
        sigma = path.schedule(torch.linspace(0, 1, 1001, dtype=torch.float64))[1]
        if bool((sigma.diff() > 0).any()):
            raise ValueError(f"jumps need noise that never grows: sigma of {path.schedule!r} rises somewhere in [0, 1]")
        self.path = path

    def at(self, t: Tensor, until: Tensor | None = None) -> JumpInstant:
        """The schedule's values and the hazard."""
        time = t.double()
        alpha, sigma = self.path.schedule(time)
        if until is None:
            instant = self.path.schedule.at(time)
            hazard = instant.wronskian / sigma
        else:
            # By parts, as W / sigma = alpha_dot - alpha d/dt log sigma: what is left is integrable up to sigma = 0.
            end = until.double()
            last_alpha, last_sigma = self.path.schedule(end)
            rest = integrate(self._remainder, time, end)
            hazard = (last_alpha * (1 - last_sigma.log()) - alpha * (1 - sigma.log()) + rest) / (end - time)
        return JumpInstant(*(value.to(t.dtype) for value in (t, alpha, sigma, hazard)))

    def instant(self, t: Any, x: Tensor) -> JumpInstant:
        """The numbers of a user's time."""
        return read_time(self, t, x)

    def rate(self, x: Tensor, z: Tensor, t: Any) -> Tensor:
        r""":math:`\lambda_t(x|z)`, jumps per unit of time of a coordinate at ``x`` with data ``z``; float64."""
        alpha, sigma, a, b, _ = self._numbers(z, self.instant(t, z))
        xi = (x.double() - alpha * z.double()) / sigma
        return (a * (xi**2 - 1) - b * xi).clamp(min=0) / sigma

    def roots(self, z: Tensor, t: Any) -> tuple[Tensor, Tensor]:
        r""":math:`\xi_- < 0 < \xi_+`, between which coordinates land; float64."""
        _, _, a, b, _ = self._numbers(z, self.instant(t, z))
        return _roots(a, b)

    def flux(self, z: Tensor, t: Any) -> Tensor:
        r""":math:`E_{p_t(\cdot|z)}\lambda_t`, jumps per unit of time: :math:`Z(z)/(1-t)` under CondOT; float64."""
        _, sigma, a, b, _ = self._numbers(z, self.instant(t, z))
        low, high = _roots(a, b)
        return _between(low, high, a, b) / sigma

    def density(self, y: Tensor, z: Tensor, t: Any) -> Tensor:
        r""":math:`J_t(y|z)`, the density of landings at ``y``; float64."""
        alpha, sigma, a, b, _ = self._numbers(z, self.instant(t, z))
        eta = (y.double() - alpha * z.double()) / sigma
        low, high = _roots(a, b)
        return (a * (1 - eta**2) + b * eta).clamp(min=0) * _phi(eta) / (_between(low, high, a, b) * sigma)

    def cdf(self, y: Tensor, z: Tensor, t: Any) -> Tensor:
        """The probability of landing at or below ``y``; float64."""
        alpha, sigma, a, b, _ = self._numbers(z, self.instant(t, z))
        low, high = _roots(a, b)
        eta = ((y.double() - alpha * z.double()) / sigma).clamp(low, high)
        return _between(low, eta, a, b) / _between(low, high, a, b)

    def quantile(self, u: Tensor, z: Tensor, t: Any) -> Tensor:
        """The landing below which the probability is ``u`` in [0, 1]: the inverse of :meth:`cdf`; float64."""
        alpha, sigma, a, b, _ = self._numbers(z, self.instant(t, z))
        low, high = _roots(a, b)
        wanted = u.double() * _between(low, high, a, b)
        below, above = low.clamp(min=-FAR / 3), high.clamp(max=FAR / 3)  # nothing lands beyond in float64
        for _ in range(60):
            middle = (below + above) / 2
            over = _between(low, middle, a, b) > wanted
            below, above = torch.where(over, below, middle), torch.where(over, middle, above)
        return alpha * z.double() + sigma * (below + above) / 2

    def reach(self, low: float, high: float) -> tuple[float, float]:
        r"""The outermost landings of the outermost data; where they have no bound, all but 1e-9 of them.

        Landings have no bound where :math:`\dot\sigma = 0`.
        """
        times = torch.cat([torch.linspace(0, 1, 257, dtype=torch.float64), 1 - torch.logspace(-9, -3, 13).double()])
        ends = torch.tensor([[TAIL, low], [1 - TAIL, high]], dtype=torch.float64)
        u, z = (ends[:, i, None].expand(2, len(times)) for i in (0, 1))
        landing = self.quantile(u.T.contiguous(), z.T.contiguous(), times)
        return landing[:, 0].min().item(), landing[:, 1].max().item()

    def intensity(self, x: Tensor, x0: Tensor, x1: Tensor, instant: JumpInstant) -> Tensor:
        r""":math:`[a(\xi^2 - 1) - b\xi]_+/W` at :math:`\xi = x_0`, which no rounding near t = 1 disturbs."""
        _, _, a, b, wronskian = self._numbers(x1, instant)
        xi = x0.double()
        return (a * (xi**2 - 1) - b * xi).clamp(min=0) / wronskian

    def masses(self, x1: Tensor, instant: JumpInstant, edges: Tensor) -> tuple[Tensor, Tensor]:
        """By differences of the antiderivative, float64."""
        alpha, sigma, a, b, _ = (n[..., None] for n in self._numbers(x1, instant))
        low, high = _roots(a, b)
        eta = (edges.double() - alpha * x1.double()[..., None]) / sigma
        eta = torch.minimum(torch.maximum(eta, low), high)
        total = _between(low, high, a, b).clamp(min=torch.finfo(torch.float64).tiny)
        outside = _between(low, eta[..., :1], a, b) + _between(eta[..., -1:], high, a, b)
        eta = torch.cat([low, eta[..., 1:-1], high], -1)
        return _between(eta[..., :-1], eta[..., 1:], a, b) / total, (outside / total).squeeze(-1)

    def _remainder(self, t: Tensor) -> Tensor:
        instant = self.path.schedule.at(t)
        return instant.alpha_dot * instant.sigma.log()

    def _numbers(self, z: Tensor, instant: JumpInstant) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        r"""alpha, sigma, :math:`a = -\dot\sigma`, :math:`b = \dot\alpha z` and W, float64, of the shape of ``z``.

        From the time and not from the instant's own numbers, which are as short as the state. At the ends, where the
        scale is zero or infinite, the limits.
        """
        time = torch.as_tensor(instant.t, dtype=torch.float64, device=z.device).clamp(*EDGE)
        known = self.path.schedule.at(time)
        values = (known.alpha, known.sigma, -known.sigma_dot, known.alpha_dot * z.double(), known.wronskian)
        alpha, sigma, a, b, wronskian = (value.expand(z.shape) for value in values)
        return alpha, sigma, a.clamp(min=0), b, wronskian


def _phi(xi: Tensor) -> Tensor:
    return torch.exp(-(xi**2) / 2) / math.sqrt(2 * math.pi)


def _roots(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The roots of a xi^2 - b xi - a, the larger first by a sum of like signs, the other as their product is -1."""
    tiny = torch.finfo(torch.float64).tiny
    top = (b.abs() + torch.hypot(b, 2 * a)).clamp(min=tiny)
    # Where a vanishes one root is at infinity; nothing lands so far out.
    larger, smaller = (top / (2 * a).clamp(min=tiny)).clamp(max=FAR), 2 * a / top
    return torch.where(b < 0, -larger, -smaller), torch.where(b < 0, smaller, larger)


def _between(low: Tensor, high: Tensor, a: Tensor, b: Tensor) -> Tensor:
    r""":math:`[(a\eta - b)\phi(\eta)]` between two points, without the cancellation of its values in a narrow bin."""
    swap = low.abs() > high.abs()
    near, far = torch.where(swap, high, low), torch.where(swap, low, high)
    width = high - low
    # phi(far) / phi(near) - 1, its exponent from the width: squares of neighbours would cancel.
    ratio = torch.expm1(torch.where(swap, 1, -1) * width * (low + high) / 2)
    change = torch.where(swap, -1, 1) * (a * far - b) * ratio + a * width
    return (_phi(near) * change).clamp(min=0)
