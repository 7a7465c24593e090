"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from torch import Tensor
from torch.optim import Optimizer

__all__ = ["LearningRate", "Schedule"]

Schedule = Literal["constant", "cosine"] | Callable[[int], float]


class LearningRate:
    r"""Sets an optimiser's learning rates: those it came with, times a factor of the step k = 0, 1, ...

    .. math:: f_k = \min\Bigl(1, \frac{k+1}{w}\Bigr)\; s_k, \qquad
       s_k = 1 \;\text{ or }\; \tfrac12\Bigl(1 + \cos\pi\,\frac{\max(0, k-w)}{n-w}\Bigr)

    with w the steps of warm-up and n all steps: linear warm-up (arXiv 1706.02677, Section 2.2), then constant or a half
    cosine (arXiv 1608.03983, eq. 5, one cycle). It has no state, so there is nothing to store or to restore.

    Parameters
    ----------
    optimizer
        Its groups' learning rates are those of factor 1; :meth:`restore` puts them back.
    steps, warmup
        n and w.
    schedule
        ``"constant"``, ``"cosine"``, or a function of k that gives :math:`s_k`.
    """

    def __init__(self, optimizer: Optimizer, steps: int, warmup: int, schedule: Schedule) -> None:
        if not callable(schedule) and schedule not in ("constant", "cosine"):
            raise ValueError(f"schedule must be 'constant', 'cosine' or a function of the step, got {schedule!r}")
        if schedule == "cosine" and warmup >= steps:
            raise ValueError(f"warmup={warmup} leaves nothing of steps={steps} to the cosine: warm up for less")
        self.optimizer, self.steps, self.warmup, self.schedule = optimizer, steps, warmup, schedule
        self.rates = [float(group["lr"]) for group in optimizer.param_groups]

    def factor(self, step: int) -> float:
        """:math:`f_k`."""
        warm = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        if callable(self.schedule):
            value = float(self.schedule(step))
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"the schedule's factor must be finite and not negative, got {value} at step {step}")
            return warm * value
        if self.schedule == "constant":
            return warm
        done = max(0, step - self.warmup) / (self.steps - self.warmup)
        return warm * 0.5 * (1 + math.cos(math.pi * done))

    def apply(self, step: int) -> float:
        """Set the rates of a step; returns that of the first group."""
        factor = self.factor(step)
        self._set([factor * rate for rate in self.rates])
        return factor * self.rates[0]

    def restore(self) -> None:
        """Set the rates the optimiser came with."""
        self._set(self.rates)

    def _set(self, rates: list[float]) -> None:
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
