"""A whole run as one CUDA graph: every buffer stays where it is, and a call copies in, replays and copies out.

Nothing of a replay passes through Python, so what the host costs is a copy for each input. The random numbers are made
between replays, into buffers that the graph reads: those of a step depend on seed and sample index, host integers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..generators import Operator
from ..random import Draws
from ..spaces.states import State, each
from .field import Field
from .handed import Ask, Handed
from .run import Run

__all__ = ["CapturedRun", "StaticRun", "refuse_capture"]

WARM_UPS = 2  # runs before the capture: libraries choose their kernels and allocate their work space in the first


class StaticRun:
    """A run as a pure function of buffers that never move: the first states, the condition, and each step's numbers.

    Parameters
    ----------
    run
        The steps.
    operator, speed
        The generator, and the speed it is run at.
    x, condition
        States and tensors of the shapes of every call; copied.
    draws
        Draws of as many samples on the same device.
    asks
        What each step asks its draws for.
    """

    def __init__(
        self,
        run: Run,
        operator: Operator,
        speed: float,
        x: State,
        condition: Mapping[str, Tensor] | None,
        draws: Draws,
        asks: Sequence[tuple[Ask, ...]],
    ) -> None:
        self.run, self.asks = run, asks
        self.x = each(torch.clone, x)
        self.condition = None if condition is None else {name: value.clone() for name, value in condition.items()}
        self.field = Field(operator, self.x, self.condition, speed=speed)
        self.numbers = [
            {ask: ask.answer(now).contiguous() for ask in own}
            for own, now in zip(asks, draws.steps(len(asks)), strict=True)
        ]
        self.handed = [Handed(draws.samples, draws.device, own) for own in self.numbers]

    def load(self, x: State, condition: Mapping[str, Tensor] | None, draws: Draws) -> None:
        """Copy the inputs of a call into the buffers, and make its random numbers."""
        each(lambda own, given: own.copy_(given), self.x, x)
        for name, own in (self.condition or {}).items():
            own.copy_(condition[name])  # type: ignore[index]
        for own, now in zip(self.numbers, draws.steps(len(self.asks)), strict=True):
            for ask, number in own.items():
                number.copy_(ask.answer(now))

    def body(self) -> State:
        """The state at the end: nothing but operations on tensors."""
        solver, step = self.run.solver, self.run.step or self.run.solver.step
        x, carry = self.x, solver.start(self.field, self.x)
        for c, handed in zip(self.run.plan, self.handed, strict=True):
            x, carry = step(self.field, x, c, handed, carry)  # type: ignore[arg-type]
        return x


class CapturedRun:
    """A static run, captured as a CUDA graph.

    Weights may change their values between replays, not their place: the graph reads them where they were.
    """

    def __init__(self, static: StaticRun) -> None:
        self.static = static
        self.places = places(static.field.operator)
        device = static.handed[0].device
        # Autocast would keep casts of the weights in a cache: a graph would read those, and they end with the context.
        with torch.cuda.device(device), _uncached(device.type):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UPS):
                    static.body()
            torch.cuda.current_stream().wait_stream(side)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.end = static.body()

    def __call__(self, x: State, condition: Mapping[str, Tensor] | None, draws: Draws) -> State:
        """The states at the end, in memory of their own."""
        if places(self.static.field.operator) != self.places:
            raise ValueError(
                "the network's weights have been replaced since the run was captured, and the graph reads the old ones:"
                " change them in place, by load_state_dict() or copy_(), or build the sampler again"
            )
        self.static.load(x, condition, draws)
        self.graph.replay()
        return each(torch.clone, self.end)


def _uncached(kind: str) -> torch.autocast:
    """The caller's autocast, if there is one, without a cache."""
    enabled = torch.is_autocast_enabled(kind)
    return torch.autocast(kind, dtype=torch.get_autocast_dtype(kind), enabled=enabled, cache_enabled=False)


def places(operator: Operator) -> tuple[int, ...]:
    """Where parameters and buffers lie in memory."""
    return tuple(tensor.data_ptr() for group in (operator.parameters(), operator.buffers()) for tensor in group)


def refuse_capture(device: torch.device, *, compiled: bool) -> None:
    """Raise unless a run on the device can be captured."""
    if compiled:
        raise ValueError("a run is compiled or captured: to have both, compile the network and capture the run")
    if device.type != "cuda" or not torch.cuda.is_available():
        raise ValueError(
            f"capture=True makes a CUDA graph, and the states are on {device}: move the generator to a GPU, or leave "
            "capture out"
        )
