r"""A model trained on one Gaussian path, used on another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..paths import GaussianPath
from ..schedules import Instant, Number
from .affine import Affine, Prediction
from .predictor import Condition
from .wrapper import Wrapper

__all__ = ["Reschedule"]


class _Both:
    """The numbers of the new path, and those of the model's own at the same signal-to-noise ratio."""

    __slots__ = ("inner", "outer")

    def __init__(self, outer: Instant, inner: Any) -> None:
        self.outer, self.inner = outer, inner

    def __getattr__(self, name: str) -> Any:  # t, alpha, sigma and the rest are the new path's
        if name in ("inner", "outer"):  # a copy in the making has neither yet
            raise AttributeError(name)
        return getattr(self.outer, name)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.outer, self.inner))

    @property
    def derived(self) -> bool:
        return self.outer.derived or self.inner.derived

    @property
    def alpha_dot(self) -> Number:
        _ = self.inner.alpha_dot  # taken together: a plan asks once for all that its steps will read
        return self.outer.alpha_dot

    def rows(self) -> list[_Both]:
        return [_Both(outer, inner) for outer, inner in zip(self.outer.rows(), self.inner.rows(), strict=True)]

    def broadcast(self, x: Tensor) -> _Both:
        return _Both(self.outer.broadcast(x), self.inner.broadcast(x))


class Reschedule(Wrapper):
    r"""A trained predictor on a new path: change of schedule after training.

    States of equal signal-to-noise ratio differ by a factor only, :math:`\bar x_r = c_r\,x_{t(r)}` with
    :math:`\bar\alpha_r/\bar\sigma_r = \alpha_t/\sigma_t` and :math:`c_r = \bar\sigma_r/\sigma_t`, and have the same
    posterior of data and noise. The network is called where it was trained, and read on the new path; solved exactly,
    both give the same samples from the same noise (arXiv 2412.06264, Section 4.6.2).

    Where the new path has a signal-to-noise ratio that the old one never had, the old one's end is used.

    Parameters
    ----------
    model
        A predictor on a Gaussian path without added noise.
    path
        The new path, with the same source and coupling and another schedule.
    """

    kind = "rescheduled"
    model: Affine
    path: GaussianPath

    def __init__(self, model: Affine, path: GaussianPath) -> None:
        super().__init__(model)
        if not isinstance(model, Affine):
            raise TypeError(
                f"only a network's own predictor on a Gaussian path can be rescheduled, got {type(model).__name__}: "
                "reschedule the model inside a wrapper, then wrap the result"
            )
        if not isinstance(path, GaussianPath):
            raise TypeError(f"the new path must be a GaussianPath, got {type(path).__name__}")
        if not (model.path.readable and path.readable):
            raise ValueError("a path with added noise cannot be rescheduled: its states are no sum of data and source")
        if (model.path.source, model.path.coupling) != (path.source, path.coupling):
            raise ValueError(
                f"the paths must share source and coupling, got {model.path!r} and {path!r}: another schedule "
                "is a change of clock and scale, another source or pairing is another model"
            )
        self.path = path

    def at(self, t: Tensor, until: Tensor | None = None) -> _Both:
        """The numbers of both paths."""
        schedule = self.path.schedule
        inner = self.model.path.schedule.inverse_log_snr(schedule.log_snr(t.double())).to(t.dtype)
        return _Both(schedule.at(t), self.model.at(inner))

    def native(self, x: Tensor, instant: _Both, condition: Condition = None) -> Tensor:
        """The network's output at the state of equal signal-to-noise ratio on its own path."""
        return self.model.native(_ratio(instant) * x, instant.inner, condition)

    def prediction(self, x: Tensor, instant: _Both, native: Tensor) -> Prediction:
        """The readings on the new path."""
        return Prediction(self, x, instant, native)

    def coefficients(self, instant: _Both, p: Number, q: Number) -> tuple[Number, Number]:
        """Data and noise are the same on both paths; the state is not."""
        a, b = self.model.coefficients(instant.inner, p, q)
        return a * _ratio(instant), b

    def reads(self, instant: _Both) -> bool:
        """As the model at its own time."""
        return self.model.reads(instant.inner)


def _ratio(instant: _Both) -> Number:
    """State of the model's path over state of the new one; by the norms, which vanish at neither end."""
    inner = instant.inner
    norm = (inner.alpha**2 + inner.sigma**2) / (instant.alpha**2 + instant.sigma**2)
    return norm.sqrt() if isinstance(norm, torch.Tensor) else norm**0.5
