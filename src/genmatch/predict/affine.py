r"""Predictors on Gaussian paths: six things a network can predict, one map between all of them.

On :math:`x = \alpha X_1 + \sigma E_0` with :math:`X_1 = E[x_1|x]` and :math:`E_0 = E[x_0|x]`, everything a network
usually predicts is linear in the pair, :math:`N = (p X_1 + q E_0)/c`:

==========  ====================  ======================  =====================================================
predictor   p                     q                       c
==========  ====================  ======================  =====================================================
Velocity    :math:`\dot\alpha`    :math:`\dot\sigma`      1
Data        1                     0                       1
Noise       0                     1                       1
Score       0                     -1                      :math:`\sigma`
V           :math:`-\sigma`       :math:`\alpha`          1
Karras      :math:`\sigma`        :math:`-\alpha d^2`     :math:`d\sqrt{\sigma^2 + \alpha^2 d^2}`, d = sigma_data
==========  ====================  ======================  =====================================================

With the state itself as the second equation, any other combination :math:`r_1 X_1 + r_2 E_0` follows by Cramer's rule,

.. math:: r_1 X_1 + r_2 E_0 = A\,x + B\,N, \qquad A = \frac{r_1 q - r_2 p}{\Delta}, \quad
   B = c\,\frac{\alpha r_2 - \sigma r_1}{\Delta}, \quad \Delta = \alpha q - \sigma p .

It is finite wherever :math:`\Delta \ne 0`: always for V and Karras, for Velocity where :math:`W = -\Delta \ne 0`, but
not for Noise and Score where :math:`\alpha = 0` (pure noise says nothing about the data), nor for Data where
:math:`\sigma = 0`.

References
----------
.. [1] T. Salimans, J. Ho, "Progressive distillation", arXiv 2202.00512, Section 4 and Appendix D (v, data, noise).
.. [2] T. Karras et al., arXiv 2206.00364, eq. 7 and Table 1 (the preconditioned network F).
.. [3] Y. Lipman et al., "Flow matching guide and code", arXiv 2412.06264, Section 4.8 (velocity and the rest).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..divergences import Divergence, Squared
from ..paths import GaussianPath
from ..schedules import DDPM, Instant, Number, check_positive, divide
from . import clocks
from .predictor import Learned, check_parts

__all__ = ["Affine", "Data", "Karras", "Noise", "Prediction", "Row", "Score", "V", "Velocity"]


class Row(NamedTuple):
    """What a network predicts, :math:`(p X_1 + q E_0)/c`."""

    p: Number
    q: Number
    c: Number = 1.0


class Prediction:
    r"""The readings of a native output on a Gaussian path, computed when asked for; each of the shape of the state.

    A reading is what the two coefficients of the module's formula give. Where a schedule's derivative is infinite
    (:math:`\dot\sigma` of VP and DDPM at t = 1) no velocity is read, nor anything off a velocity, though some of these
    have finite limits there.

    Raises
    ------
    ValueError
        By a reading that the path does not allow: a score under optimal transport pairing, say. By a reading that is
        not finite at the end asked for (the data off a noise network at t = 0), where a predictor was called with a
        number; per-sample times give infinities there, and solvers look for them in their plan.
    """

    __slots__ = ("instant", "model", "native", "strict", "x")

    def __init__(self, model: Any, x: Tensor, instant: Any, native: Tensor) -> None:
        self.model, self.x, self.instant, self.native = model, x, instant, native
        self.strict = False

    @property
    def velocity(self) -> Tensor:
        r""":math:`u = \dot\alpha X_1 + \dot\sigma E_0 = E[\dot x_t\,|\,x]`."""
        if self.model.kind == "velocity":
            return self.native
        return self.combine(self.instant.alpha_dot, self.instant.sigma_dot)

    @property
    def data(self) -> Tensor:
        """:math:`X_1 = E[x_1|x]`, the posterior mean of the data."""
        return self.native if self.model.kind == "data" else self.combine(1.0, 0.0)

    @property
    def noise(self) -> Tensor:
        """:math:`E_0 = E[x_0|x]`, the posterior mean of the source sample."""
        return self.native if self.model.kind == "noise" else self.combine(0.0, 1.0)

    @property
    def score(self) -> Tensor:
        r""":math:`\nabla\log p_t(x) = -E_0/\sigma`, for a standard normal source independent of the data."""
        why = self.model.path.why_no_score()
        if why:
            raise ValueError(
                f"there is no score on {self.model.path!r}: {why}, so the score is not -E[x0 | x_t] / sigma. "
                "Use a path with the standard normal source and independent coupling"
            )
        if self.model.kind == "score":
            return self.native
        return self.combine(0.0, divide(-1.0, self.instant.sigma))

    @property
    def v(self) -> Tensor:
        r""":math:`\alpha E_0 - \sigma X_1`."""
        return self.native if self.model.kind == "v" else self.combine(-self.instant.sigma, self.instant.alpha)

    def combine(self, p: Number, q: Number) -> Tensor:
        """:math:`p X_1 + q E_0`."""
        if not self.model.path.readable:
            raise ValueError(
                f"on {self.model.path!r} noise is added to the state, so nothing but the network's own output "
                f"(a {self.model.kind}) can be read off it"
            )
        a, b = self.model.coefficients(self.instant, p, q)
        if self.strict and not (math.isfinite(a) and math.isfinite(b)):
            where = f"at t = {self.instant.t:g} of {self.model.path!r}"
            raise ValueError(
                f"{where} this cannot be read off a {self.model.kind} network, "
                "as it is not finite there. Ask inside (0, 1), or for what the network itself predicts"
            )
        return weighted(a, self.x, b, self.native)


def weighted(a: Number, x: Tensor, b: Number, y: Tensor) -> Tensor:
    """``a x + b y``, skipping products with host numbers 0 and 1.

    A compiled step does not: it would be compiled anew where a number is 0 at one time and 1e-17 at another.
    """
    if isinstance(a, float) and not torch.compiler.is_compiling():
        if a == 0.0:
            return y if isinstance(b, float) and b == 1.0 else b * y
        if isinstance(b, float):  # one pass less over the memory
            return torch.add(x if a == 1.0 else a * x, y, alpha=b)
        if a == 1.0:
            return x + b * y
    return a * x + b * y


class Affine(Learned):
    """A predictor on a Gaussian path whose native output is linear in data and noise.

    Parameters
    ----------
    network
        Called as ``network(x, t, **condition)`` with x ``(B, *S)`` and t ``(B,)``; returns ``(B, *S)``.
    path
        The path it is trained on.
    time
        What the network is fed for t: a function of the instant (:mod:`genmatch.predict.clocks`). By default t itself;
        on a DDPM schedule the step 0 .. T - 1, for which the networks of :mod:`genmatch.nn` take ``time_scale=1``.
    divergence
        What it is trained with; squared error by default.
    """

    kind: str
    readings = frozenset({"velocity", "data", "noise", "score", "v"})
    path: GaussianPath
    gain: Any = None  # a function of the instant: what the network's input is multiplied by, where it is scaled

    def __init__(
        self,
        network: nn.Module,
        path: GaussianPath,
        *,
        time: clocks.Clock | None = None,
        divergence: Divergence | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(path, GaussianPath):
            raise TypeError(f"{type(self).__name__} needs a GaussianPath, got {type(path).__name__}")
        check_parts(network, time, divergence)
        self.network, self.path = network, path
        self.divergence = Squared() if divergence is None else divergence
        self.time = self._choose_clock() if time is None else time

    @abstractmethod
    def row(self, instant: Instant) -> Row:
        """What the network predicts at an instant."""

    def _choose_clock(self) -> clocks.Clock:
        schedule = self.path.schedule
        if isinstance(schedule, DDPM):
            return clocks.index(schedule)
        if self.kind == "karras":
            ends = schedule.log_snr(torch.tensor([0.0, 1.0], dtype=torch.float64))
            if bool(ends.isfinite().all()):
                return clocks.log_noise
        return clocks.t

    def at(self, t: Tensor, until: Tensor | None = None) -> Instant:
        """The path's numbers."""
        return self.path.at(t, until)

    def inputs(self, x: Tensor, instant: Instant) -> Tensor:
        """The state, scaled where the network wants it scaled."""
        return x if self.gain is None else self.gain(instant) * x

    def checked(self, output: Tensor, x: Tensor) -> Tensor:
        """The output ``(B, *S)``."""
        if output.shape != x.shape:
            raise ValueError(
                f"the network returned shape {tuple(output.shape)} for a state of shape {tuple(x.shape)}: "
                f"a {type(self).__name__} network returns one {self.kind} for each value of the state"
            )
        return output

    def prediction(self, x: Tensor, instant: Instant, native: Tensor) -> Prediction:
        """The lazy readings of ``native``."""
        return Prediction(self, x, instant, native)

    def blank(self, x: Tensor) -> Tensor:
        """Ones of the shape of ``x``."""
        return torch.ones_like(x)

    def coefficients(self, instant: Instant, p: Number, q: Number) -> tuple[Number, Number]:
        """(A, B) with :math:`p X_1 + q E_0 = A x + B N`; infinite or nan where there are none."""
        row = self.row(instant)
        # A multiple of the output itself needs no state: the score of a noise network is finite at pure noise.
        if _absent(p) and _absent(row.p):
            return 0.0, divide(q * row.c, row.q)
        if _absent(q) and _absent(row.q):
            return 0.0, divide(p * row.c, row.p)
        delta = instant.alpha * row.q - instant.sigma * row.p
        a = divide(p * row.q - q * row.p, delta)
        return a, divide((instant.alpha * q - instant.sigma * p) * row.c, delta)

    def target(self, x0: Tensor, x1: Tensor, instant: Instant) -> Tensor:
        """:math:`(p x_1 + q x_0)/c`."""
        row = self.row(instant)
        value = weighted(row.p, x1, row.q, x0)
        return value if isinstance(row.c, float) and row.c == 1.0 else value / row.c

    def error(self, native: Tensor, x: Tensor, x0: Tensor, x1: Tensor, instant: Instant) -> Tensor:
        """The divergence of the target from the output."""
        return self.divergence(self.target(x0, x1, instant), native)

    def scored(self, x: Tensor, x1: Tensor) -> tuple[None, None]:
        """All positions."""
        return None, None

    def per_data(self, instant: Instant) -> Number:
        r""":math:`|dX_1|^2/|dN|^2 = (\sigma c/\Delta)^2`."""
        return self.coefficients(instant, 1.0, 0.0)[1] ** 2

    def reads(self, instant: Instant) -> bool:
        """Whether data and noise are finite combinations of state and output here."""
        numbers = (*self.coefficients(instant, 1.0, 0.0), *self.coefficients(instant, 0.0, 1.0))
        return all(math.isfinite(n) for n in numbers)

    def extra_repr(self) -> str:
        return f"path={self.path!r}"


class Velocity(Affine):
    r"""The network predicts the velocity :math:`E[\dot\alpha x_1 + \dot\sigma x_0\,|\,x_t]` (flow matching)."""

    kind = "velocity"

    def row(self, instant: Instant) -> Row:
        return Row(instant.alpha_dot, instant.sigma_dot)


class Data(Affine):
    r"""The network predicts the data :math:`E[x_1|x_t]` (a denoiser)."""

    kind = "data"

    def row(self, instant: Instant) -> Row:
        return Row(1.0, 0.0)


class Noise(Affine):
    r"""The network predicts the noise :math:`E[x_0|x_t]` (DDPM's epsilon)."""

    kind = "noise"

    def row(self, instant: Instant) -> Row:
        return Row(0.0, 1.0)


class Score(Affine):
    r"""The network predicts the score :math:`\nabla\log p_t(x_t) = -E[x_0|x_t]/\sigma_t`."""

    kind = "score"

    def row(self, instant: Instant) -> Row:
        return Row(0.0, -1.0, instant.sigma)


class V(Affine):
    r"""The network predicts :math:`v = \alpha E[x_0|x_t] - \sigma E[x_1|x_t]` (arXiv 2202.00512)."""

    kind = "v"

    def row(self, instant: Instant) -> Row:
        return Row(-instant.sigma, instant.alpha)


class Karras(Affine):
    r"""The preconditioned network F of arXiv 2206.00364, eq. 7, on any Gaussian path.

    With :math:`\hat\sigma = \sigma/\alpha` and d = ``sigma_data``, the data prediction is
    :math:`c_{skip}\,x/\alpha + c_{out} F(c_{in}\,x/\alpha)`; input and target have unit variance at every noise level.
    """

    kind = "karras"

    def __init__(
        self,
        network: nn.Module,
        path: GaussianPath,
        *,
        sigma_data: float = 0.5,
        time: clocks.Clock | None = None,
        divergence: Divergence | None = None,
    ) -> None:
        check_positive("sigma_data", sigma_data)
        super().__init__(network, path, time=time, divergence=divergence)
        self.sigma_data = float(sigma_data)

    def row(self, instant: Instant) -> Row:
        return Row(instant.sigma, -instant.alpha * self.sigma_data**2, self.sigma_data / self.gain(instant))

    def gain(self, instant: Instant) -> Number:
        r""":math:`c_{in}/\alpha = 1/\sqrt{\sigma^2 + \alpha^2 d^2}`."""
        return (instant.sigma**2 + instant.alpha**2 * self.sigma_data**2) ** -0.5


def _absent(coefficient: Number) -> bool:
    return isinstance(coefficient, float) and coefficient == 0.0
