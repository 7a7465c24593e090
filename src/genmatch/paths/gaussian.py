r"""Affine paths :math:`x_t = \alpha_t x_1 + \sigma_t x_0` and what may be concluded on them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..couplings import Coupling, Independent
from ..random import Draws
from ..schedules import CondOT, Instant, Schedule, check_positive
from ..spaces import Euclidean
from .path import NOISY, Path
from .sources import Empirical, Normal, Source, check_ends

__all__ = ["GaussianPath"]


class GaussianPath(Path):
    r"""The path :math:`x_t = \alpha_t x_1 + \sigma_t x_0 + s\,z`.

    Parameters
    ----------
    schedule
        :math:`(\alpha_t, \sigma_t)`; :class:`~genmatch.schedules.CondOT` by default (rectified flow, flow matching).
    source
        The law of x0: ``None`` for the standard normal, a tensor of samples, or an object with ``draw(shape, draws)``
        such as a toy of :mod:`genmatch.data`.
    coupling
        Who is paired with whom; independent by default.
    noise
        s, the standard deviation of noise added to the state (the ``sigma`` of OT-CFM, arXiv 2302.00482, eq. 14).

    Notes
    -----
    ``readable`` tells whether data and noise may be read off a velocity: not with added noise, where
    :math:`x_t \ne \alpha E[x_1|x_t] + \sigma E[x_0|x_t]`. ``has_score`` tells whether the score is
    :math:`-E[x_0|x_t]/\sigma_t` besides: that needs the standard normal source *independent* of the data. Under optimal
    transport pairing, or from another source, it is false, and whoever asks for a score is told so.
    """

    def __init__(
        self,
        schedule: Schedule | None = None,
        source: Source | Tensor | None = None,
        coupling: Coupling | None = None,
        noise: float = 0.0,
    ) -> None:
        schedule = CondOT() if schedule is None else schedule
        if not isinstance(schedule, Schedule):
            hint = f"the class {schedule.__name__}: call it" if isinstance(schedule, type) else type(schedule).__name__
            raise TypeError(f"schedule must be a genmatch Schedule, got {hint}")
        if type(schedule).__hash__ is None:
            raise TypeError(
                f"a schedule is a value, whose numbers are remembered, and {type(schedule).__name__} can change: "
                "make it @dataclass(frozen=True)"
            )
        if isinstance(source, Tensor):
            source = Empirical(source)
        source = Normal() if source is None else source
        coupling = Independent() if coupling is None else coupling
        check_ends(source, coupling)
        _check_noise_falls(schedule)
        check_positive("noise", noise, zero=True)
        self.schedule, self.source, self.coupling, self.noise = schedule, source, coupling, float(noise)
        self.space = Euclidean()

    @property
    def readable(self) -> bool:
        """Whether velocity, data and noise are readings of one another."""
        return self.noise == 0

    @property
    def has_score(self) -> bool:
        """Whether the score is a reading too."""
        return not self.why_no_score()

    def why_no_score(self) -> str:
        """The reason why no score can be read off a network on this path; empty where it can."""
        if self.noise:
            return f"the path adds noise of standard deviation {self.noise} to the state"
        if not self.coupling.independent:
            return f"its coupling {self.coupling!r} makes noise and data dependent"
        if not isinstance(self.source, Normal):
            return f"its source {self.source!r} is not the standard normal"
        return ""

    def at(self, t: Tensor, until: Tensor | None = None) -> Instant:
        """The schedule's values and derivatives at ``t``."""
        return self.schedule.at(t)

    def between(self, x0: Tensor, x1: Tensor, instant: Instant, draws: Draws) -> Tensor:
        r""":math:`\alpha_t x_1 + \sigma_t x_0 + s z`, shape ``(B, *S)``."""
        x = instant.alpha * x1 + instant.sigma * x0
        return x + self.noise * draws.normal(x.shape, x.dtype) if self.noise else x

    def prior(self, x0: Tensor, instant: Instant) -> Tensor:
        r""":math:`\sqrt{\alpha_t^2 + \sigma_t^2}\,x_0`: the source, scaled to the second moment that :math:`p_t` has
        for data of mean 0 and variance 1. Exactly :math:`x_0` where :math:`\alpha_0 = 0, \sigma_0 = 1`.
        """
        scale = (torch.as_tensor(instant.alpha**2 + instant.sigma**2)).sqrt()
        return x0 if bool(scale == 1) else x0 * scale

    def why_not_noise(self, instant: Instant) -> str:
        r"""Unless :math:`\alpha_t \ll \sigma_t`."""
        if instant.alpha <= NOISY * instant.sigma:
            return ""
        return (
            f"{self!r} is not noise at t = {instant.t:g}, where alpha = {instant.alpha:.3g} and sigma = "
            f"{instant.sigma:.3g}: pass states drawn from its p_t, alpha_t * x1 + sigma_t * noise, instead of a shape"
        )

    def _key(self) -> tuple[Any, ...]:
        return (type(self), self.schedule, self.source, self.coupling, self.noise)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GaussianPath) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        parts = [repr(self.schedule)]
        if not isinstance(self.source, Normal):
            parts.append(f"source={self.source!r}")
        if not self.coupling.independent:
            parts.append(f"coupling={self.coupling!r}")
        if self.noise:
            parts.append(f"noise={self.noise}")
        return f"GaussianPath({', '.join(parts)})"


def _check_noise_falls(schedule: Schedule) -> None:
    levels = schedule.log_snr(torch.linspace(0, 1, 33, dtype=torch.float64))
    if bool((levels[1:] <= levels[:-1]).any()) or bool(levels.isnan().any()):
        raise ValueError(
            f"alpha / sigma of {schedule!r} must increase from noise (t = 0) to data (t = 1): are the two exchanged, "
            "or does its time run the other way?"
        )
