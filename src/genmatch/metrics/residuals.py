"""What a check of the forward equation found: residuals, their standard errors, and when they count as none."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["ForwardResidual", "critical", "rounding_of"]


@dataclass(frozen=True, eq=False, repr=False)
class ForwardResidual:
    r"""The forward equation of a generator at T times and for F test functions, float64 tensors ``(T, F)`` on the CPU.

    Attributes
    ----------
    times, functions
        The times, and the names of the functions.
    moved
        :math:`\langle p_t, L_t f\rangle`, what the generator does to the mean of f.
    expected
        :math:`v\,\tfrac{d}{dt}\langle p_t, f\rangle`, what the path does, times the generator's speed.
    standard_error
        Of their difference; 0 by quadrature.
    scale
        The smaller of :math:`\langle p_t, |L_t f|\rangle` and the mean absolute value of the path's own rate of f
        (of each sample's, or by quadrature :math:`\int |\partial_t p_t|\,|f - \langle p_t,f\rangle|`). A generator can
        inflate the first by large terms that cancel, and a small generator would hide behind the second.
    rounding
        A bound on what the dtype may do to the difference.
    speed
        ``(T,)``, v.
    samples
        How many; 0 by quadrature.
    method
        How the time derivative was taken, and at which times if not at all alike.
    """

    times: tuple[float, ...]
    functions: tuple[str, ...]
    moved: Tensor
    expected: Tensor
    standard_error: Tensor
    scale: Tensor
    rounding: Tensor
    speed: Tensor
    samples: int
    method: str

    @property
    def residual(self) -> Tensor:
        """``moved - expected``, ``(T, F)``."""
        return self.moved - self.expected

    @property
    def relative(self) -> Tensor:
        """The residual over its scale, ``(T, F)``; 0 where both are, infinite where only the scale is."""
        residual = self.residual
        return torch.where(residual == 0, 0.0, residual / self.scale)

    @property
    def relative_error(self) -> Tensor:
        """The standard error over the scale, ``(T, F)``."""
        return torch.where(self.standard_error == 0, 0.0, self.standard_error / self.scale)

    @property
    def worst(self) -> float:
        """The largest relative residual in absolute value; NaN if any is not a number."""
        return float(self.relative.abs().max())

    def excess(self, tolerance: float = 1e-6, false_alarm: float = 1e-3) -> Tensor:
        """The residual over what is allowed, ``(T, F)``; above 1 (or NaN) fails. See :meth:`passed`."""
        if not tolerance >= 0:
            raise ValueError(f"tolerance is a relative residual of at least 0, got {tolerance}")
        allowed = tolerance * self.scale + self.rounding
        if self.samples:
            allowed = allowed + critical(false_alarm, self.residual.numel(), self.samples) * self.standard_error
        return torch.where(self.residual == 0, 0.0, self.residual.abs() / allowed)

    def passed(self, tolerance: float = 1e-6, false_alarm: float = 1e-3) -> bool:
        r"""Whether every residual is within ``tolerance * scale + z * standard_error``.

        Parameters
        ----------
        tolerance
            The relative residual that is allowed; as it is, that of a quadrature for a generator that should be exact.
        false_alarm
            The probability that a right generator fails by chance. z is Student's quantile for
            ``false_alarm`` shared among all T x F residuals (Bonferroni).
        """
        return bool((self.excess(tolerance, false_alarm) <= 1).all())

    def failures(self, tolerance: float = 1e-6, false_alarm: float = 1e-3) -> list[str]:
        """One line for each residual that is too large, the worst first."""
        excess = self.excess(tolerance, false_alarm).nan_to_num(nan=torch.inf)
        lines = []
        for place in excess.flatten().argsort(descending=True).tolist():
            i, j = divmod(place, len(self.functions))
            if excess[i, j] <= 1:
                break
            lines.append(
                f"at t = {self.times[i]:g} {self.functions[j]!r} moves at {self.moved[i, j]:.4g}, "
                f"the path at {self.expected[i, j]:.4g} +- {self.standard_error[i, j]:.2g}: "
                f"relative residual {self.relative[i, j]:.3g}"
            )
        return lines

    def __repr__(self) -> str:
        how = f"{self.samples} samples, d/dt {self.method}" if self.samples else self.method
        width = max(8, *(len(name) for name in self.functions))
        times = "".join(f"{f't = {t:g}':>18}" for t in self.times)
        lines = [f"relative residual of the forward equation ({how})", f"{'':{width}}{times}"]
        for j, name in enumerate(self.functions):
            lines.append(f"{name:{width}}{''.join(self._cell(i, j) for i in range(len(self.times)))}")
        return "\n".join(lines)

    def _cell(self, i: int, j: int) -> str:
        value = f"{self.relative[i, j]:.1e}"
        return f"{value:>18}" if not self.samples else f"{f'{value} +- {self.relative_error[i, j]:.0e}':>18}"


def critical(false_alarm: float, tests: int, samples: int) -> float:
    """How many standard errors ``tests`` right residuals all stay within, but for a chance of ``false_alarm``."""
    if not 0 < false_alarm < 1:
        raise ValueError(f"false_alarm is a probability inside (0, 1), got {false_alarm}")
    from scipy.special import stdtrit  # 0.1 s, which only a verdict should cost

    return float(stdtrit(samples - 1, 1 - false_alarm / (2 * tests)))


def rounding_of(dtype: torch.dtype) -> float:
    """What a dtype may do to a difference of two means, relative to their terms."""
    return 64 * torch.finfo(dtype).eps
