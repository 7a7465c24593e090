r"""The mixture path on an interval, and the diffusion that follows it.

From uniform noise on [a, b] to data, each coordinate by itself. Given its data value z, a coordinate follows

.. math:: p_t(\cdot|z) = (1-\kappa_t)\,U_{[a,b]} + \kappa_t\,\delta_z

by noise alone, reflected at the ends and absorbed at z. The forward equation
:math:`\tfrac12(\sigma^2 p_t)'' = \dot\kappa\,(\delta_z - \tfrac1{b-a})` with zero flux through the ends is solved by

.. math:: \sigma_t^2(x|z) = \frac{\dot\kappa}{1-\kappa}\,c(x, z), \qquad
   c(x, z) = \begin{cases} (z-a)^2 - (x-a)^2 & x \le z \\ (b-z)^2 - (b-x)^2 & x \ge z \end{cases}

which vanishes at z, so that what has arrived stays.

References
----------
.. [1] P. Holderrieth et al., "Generator matching", arXiv 2410.20587, Section 4, Example 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..couplings import Coupling
from ..random import Draws
from ..schedules import Schedule
from ..spaces.interval import Interval
from .continuous_mixture import ContinuousMixturePath
from .path import check_pair

__all__ = ["IntervalPath", "UniformInterval"]


class UniformInterval:
    """Uniform noise on an interval."""

    def __init__(self, low: float = 0.0, high: float = 1.0) -> None:
        self.space = Interval(low, high)

    def draw(self, shape: Sequence[int], draws: Draws) -> Tensor:
        """Uniforms of ``shape``."""
        return self.space.low + self.space.width * draws.uniform(shape)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UniformInterval) and other.space == self.space

    def __hash__(self) -> int:
        return hash((UniformInterval, self.space))

    def __repr__(self) -> str:
        return f"UniformInterval({self.space.low:g}, {self.space.high:g})"


class IntervalPath(ContinuousMixturePath):
    r"""The mixture path of coordinates in [low, high], from uniform noise.

    Parameters
    ----------
    low, high
        The ends; data lie between them.
    schedule
        :math:`\kappa_t` is its :math:`\alpha_t`, from 0 to 1; CondOT by default.
    coupling
        Independent by default.

    Examples
    --------
    >>> import genmatch as gm, torch
    >>> path = gm.paths.IntervalPath(0.0, 1.0)
    >>> path.variance(torch.tensor([0.2, 0.5]), torch.tensor([0.5, 0.5]), 0.0)
    tensor([0.2100, 0.0000])
    """

    def __init__(
        self,
        low: float = 0.0,
        high: float = 1.0,
        schedule: Schedule | None = None,
        coupling: Coupling | None = None,
    ) -> None:
        super().__init__(schedule, UniformInterval(low, high), coupling, space=Interval(low, high), whole=False)

    @property
    def interval(self) -> Interval:
        """Where coordinates live."""
        return self.source.space  # type: ignore[attr-defined]

    def exposure(self, x: Tensor, z: Tensor) -> Tensor:
        """c(x, z) of the module: the conditional variance per unit of the hazard, ``(B, *S)``; 0 where x is z."""
        low, high = self.interval.low, self.interval.high
        # Differences of squares as products: near z the squares cancel.
        return torch.where(x <= z, (z - x) * (z + x - 2 * low), (x - z) * (2 * high - x - z))

    def variance(self, x: Tensor, z: Tensor, t: Any) -> Tensor:
        r""":math:`\sigma_t^2(x|z)`, ``(B, *S)``; infinite at t = 1 but at z."""
        shape = self.exposure(x, z)
        return torch.where(x == z, 0.0, self.instant(t, x).hazard * shape)

    def walk(self, x: Tensor, x1: Tensor, times: Tensor, draws: Draws) -> Tensor:
        r"""The conditional process from ``x`` at ``times[0]`` to ``times[-1]``, given its data ``x1``.

        Reflected Euler steps with the hazard averaged over each, and a coordinate whose step crosses its data value is
        absorbed there. Without absorption the noise would carry it across, and too little mass would arrive.

        Parameters
        ----------
        x, x1
            ``(B, *S)``.
        times
            ``(steps + 1,)``, increasing in [0, 1].
        draws
            For B samples; step i draws as ``draws.at(i)``.

        Returns
        -------
        ``(B, *S)``.
        """
        check_pair(x, x1)
        self.space.check(x)
        self.space.check(x1)
        times = torch.as_tensor(times, dtype=torch.float64)
        if times.ndim != 1 or len(times) < 2 or not bool((times.diff() > 0).all()):
            raise ValueError(f"times must be at least two in a row, increasing, got shape {tuple(times.shape)}")
        if not bool(((times >= 0) & (times <= 1)).all()):
            raise ValueError(f"times must be in [0, 1], got {times[0].item():g} to {times[-1].item():g}")
        instants = self.at(times[:-1], times[1:]).rows()
        for now, instant, h in zip(draws.steps(len(instants)), instants, times.diff().tolist(), strict=True):
            if instant.kappa + instant.gain >= 1:  # all that is left arrives
                return x1.clone()
            variance = h * instant.hazard * self.exposure(x, x1)
            moved = x + variance.clamp(min=0).sqrt() * self.space.brownian(x, now)
            crossed = (moved - x1) * (x - x1) <= 0
            x = torch.where(crossed, x1, self.interval.fold(moved))
        return x
