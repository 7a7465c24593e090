"""What every predictor is: a network with a path, whose native output can be turned into what generators read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..divergences import Divergence
from ..paths.path import read_time
from ..schedules import Number
from ..spaces.states import State, batch

__all__ = ["Condition", "Learned", "Predictor"]

Condition = Mapping[str, Tensor] | None


class Predictor(nn.Module, ABC):
    """A network on a path.

    Calling it, ``predictor(x, t, condition)``, gives a lazy prediction: nothing but the network's own output is
    computed until a reading is asked for, and the native reading is that output untouched.

    Attributes
    ----------
    kind
        What the network predicts.
    readings
        What a prediction can be asked for, by name: generators look here for what they need.
    """

    kind: str
    readings: frozenset[str]
    path: Any  # a Path; subclasses say which
    divergence: Divergence

    @abstractmethod
    def at(self, t: Tensor, until: Tensor | None = None) -> Any:
        """The numbers of a vector of times that :meth:`native` and the readings need; see ``Path.at``."""

    @abstractmethod
    def native(self, x: State, instant: Any, condition: Condition = None) -> State:
        """The network's output at ``x`` ``(B, *S)``."""

    @abstractmethod
    def prediction(self, x: State, instant: Any, native: State) -> Any:
        """The lazy readings of a native output."""

    @abstractmethod
    def blank(self, x: State) -> State:
        """A made-up native output for ``x``: what a solver's plan uses to see which parts a generator has."""

    @abstractmethod
    def error(self, native: State, x: State, x0: State, x1: State, instant: Any) -> State:
        """The divergence of what the network should output at ``x`` on a path between ``x0`` and ``x1`` from what it
        does, one value for each position ``(B, *S)``.
        """

    @abstractmethod
    def scored(self, x: State, x1: State) -> tuple[Tensor | None, Tensor | None]:
        """Which positions carry loss, and which count in the mean; ``None`` for all."""

    @abstractmethod
    def per_data(self, instant: Any) -> Number:
        """Squared error in data for a unit of squared error in the native output; 1 where that makes no sense."""

    @abstractmethod
    def reads(self, instant: Any) -> bool:
        """Whether data and source can be read off the native output at an instant of host floats."""

    def forward(self, x: State, t: Any, condition: Condition = None) -> Any:
        """The prediction at ``x`` ``(B, *S)`` and ``t``, a number or ``(B,)``, under ``condition``."""
        self.path.space.check(x)
        check_condition(condition, batch(x))
        instant = self.instant(t, x)
        return asked_at(t, self.prediction(x, instant, self.native(x, instant, condition)))

    def instant(self, t: Any, x: State) -> Any:
        """The numbers of a user's time, to broadcast against ``x``: see :func:`genmatch.paths.path.read_time`."""
        return read_time(self, t, x)


class Learned(Predictor):
    """A predictor with a network of its own, called as ``network(x, t, **condition)`` with t ``(B,)``.

    Attributes
    ----------
    network
        The network.
    time
        What it is fed for t: a function of the instant, see :mod:`genmatch.predict.clocks`.
    """

    network: Any
    time: Any

    @abstractmethod
    def inputs(self, x: Tensor, instant: Any) -> Tensor:
        """What the network is fed for ``x``."""

    @abstractmethod
    def checked(self, output: Tensor, x: Tensor) -> Tensor:
        """The network's output at ``x`` as the native output; a wrong shape raises."""

    def native(self, x: Tensor, instant: Any, condition: Condition = None) -> Tensor:
        """The network's output at ``x``; a wrong shape raises."""
        time = spread(self.time(instant), x)
        return self.checked(call(self.network, self.inputs(x, instant), time, condition), x)


def check_parts(network: Any, time: Any, divergence: Any) -> None:
    """Raise unless a predictor can be built of these; ``None`` stands for its own choice of clock and divergence."""
    if not isinstance(network, nn.Module):
        raise TypeError(
            f"the network must be a torch.nn.Module called as network(x, t, **condition), got {type(network).__name__}"
        )
    if time is not None and not callable(time):
        raise TypeError(f"time must be a function of an instant such as gm.predict.clocks.t, got {type(time).__name__}")
    if divergence is not None and not isinstance(divergence, Divergence):
        what = (
            f"the class {divergence.__name__}: call it" if isinstance(divergence, type) else type(divergence).__name__
        )
        raise TypeError(f"divergence must be a genmatch Divergence, got {what}")


def asked_at(t: Any, prediction: Any) -> Any:
    """The prediction, which for a time that a user gave as a number refuses readings that are not finite there."""
    if isinstance(t, (int, float)) and hasattr(prediction, "strict"):
        prediction.strict = True
    return prediction


def spread(time: Number, x: Tensor) -> Tensor:
    """A time for each sample of ``x``, ``(B,)``, or for each of its positions, ``(B, *S)``, as it was given."""
    dtype = x.dtype if x.is_floating_point() else torch.float32
    if isinstance(time, Tensor):
        if time.shape == x.shape and time.numel() > len(x):
            return time.to(x.device, dtype)
        return time.to(x.device, dtype).reshape(-1).expand(len(x))
    # A compiled graph takes the number as an input in a product, and would be compiled anew for each in a fill.
    compiling = torch.compiler.is_compiling()
    return x.new_ones((len(x),), dtype=dtype) * time if compiling else x.new_full((len(x),), time, dtype=dtype)


def call(network: nn.Module, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
    """``network(x, t, **condition)``."""
    if torch.compiler.is_compiling():
        output = network(x, time, **condition) if condition else network(x, time)
    else:
        try:
            output = network(x, time, **condition) if condition else network(x, time)
        except RuntimeError as error:
            _explain_dtypes(network, x, error)
            raise
    if not isinstance(output, Tensor):
        raise TypeError(
            f"the network must return one tensor, got {type(output).__name__}: wrap it to return its prediction"
        )
    return output


def _explain_dtypes(network: nn.Module, x: Tensor, error: RuntimeError) -> None:
    """Raise in the place of torch's message if state and weights differ in precision."""
    own = next((p.dtype for p in network.parameters() if p.is_floating_point()), None)
    if own is not None and x.is_floating_point() and own != x.dtype and "dtype" in str(error):
        half = own in (torch.float16, torch.bfloat16)
        other = (
            f"run it under torch.autocast({x.device.type!r}, {own})" if half else f"convert the data with .to({own})"
        )
        raise TypeError(
            f"the state is {x.dtype} and the network's weights are {own}: convert the network with "
            f"network.to({x.dtype}), or {other}"
        ) from error


def check_condition(condition: Condition, batch: int) -> None:
    """Raise unless ``condition`` is a dict of tensors with ``batch`` rows."""
    if condition is None:
        return
    if not isinstance(condition, Mapping):
        raise TypeError(f"condition must be a dict of tensors such as {{'label': y}}, got {type(condition).__name__}")
    for name, value in condition.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"condition[{name!r}] must be a tensor, got {type(value).__name__}")
        if value.ndim < 1 or len(value) != batch:
            raise ValueError(
                f"condition[{name!r}] has shape {tuple(value.shape)} for {batch} samples: "
                "it needs one row for each sample"
            )
