"""The states a run of the sampler begins with: what the caller gave, read and checked, and the rows of each batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .generators import Operator
from .paths import Path
from .random import Draws
from .spaces.states import State, each, first, same_factors

__all__ = ["Initial", "read_fixed", "read_state", "rows_of"]

TOKEN_DTYPES = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8)


class Initial(NamedTuple):
    """What a run begins with."""

    given: State | None  # states, or None for samples of the source
    like: State  # an empty state of one sample: its shape, dtype and device are those of all
    samples: int
    device: torch.device

    def states(self, path: Path, instant: Any, rows: slice, draws: Draws) -> State:
        """The states of some rows: those given, or samples of the source."""
        if self.given is not None:
            return each(lambda part, like: part[rows].to(like.device, like.dtype), self.given, self.like)
        x0 = path.draw_source(each(lambda like: (draws.samples, *like.shape[1:]), self.like), draws)
        path.space.check(x0)  # a user's source may draw anything
        return path.prior(each(lambda part, like: part.to(like.dtype), x0, self.like), instant)


def read_state(generator: Operator, shape_or_state: Any, device: Any, dtype: torch.dtype | None) -> Initial:
    """The shapes or states that a caller of ``sample`` gave."""
    parameter = next((p for p in generator.parameters() if p.is_floating_point()), None)
    parts, paths = shape_or_state, getattr(generator.path, "factors", None)
    if paths is not None:
        same_factors("the shapes or states", parts, paths)
    else:
        parts, paths = {"": parts}, {"": generator.path}
    shapes = {name: _read_shape(part, paths[name]) for name, part in parts.items()}
    counts = {name: shape[0] for name, shape in shapes.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"the factors must have one batch size, got {counts}")
    given = {name: isinstance(part, Tensor) for name, part in parts.items()}
    if any(given.values()) and not all(given.values()):
        missing = [name for name, is_given in given.items() if not is_given]
        raise ValueError(f"give states of all factors or shapes of all: {missing} are shapes. Draw them from p_t")
    if device is None:
        some = next((part for part in parts.values() if isinstance(part, Tensor)), parameter)
        device = "cpu" if some is None else some.device
    device = torch.device(device)
    like = {}
    for name, part in parts.items():
        wanted = dtype if not paths[name].space.discrete or "" in parts else None
        own = _read_dtype(paths[name], part, wanted, parameter)
        like[name] = torch.empty((1, *shapes[name][1:]), dtype=own, device=device)
    _check_device(generator, device)
    count = next(iter(counts.values()))
    plain = "" in parts
    states = None if not all(given.values()) else parts[""] if plain else dict(parts)
    return Initial(states, like[""] if plain else like, count, device)


def _read_shape(part: Any, path: Path) -> tuple[int, ...]:
    if isinstance(part, Tensor):
        path.space.check(part)
        shape = tuple(part.shape)
    else:
        shape = tuple(part) if isinstance(part, Sequence) else part
        if not isinstance(shape, tuple) or not all(isinstance(n, int) and n >= 0 for n in shape):
            raise TypeError(f"give a shape (B, *S) or a tensor of states, got {part!r}")
    if not shape or shape[0] < 1:
        raise ValueError(f"at least one sample is needed: shape (B, *S) with B >= 1, got {shape}")
    return shape


def _read_dtype(path: Path, part: Any, dtype: torch.dtype | None, parameter: Tensor | None) -> torch.dtype:
    given = isinstance(part, Tensor)
    if dtype is None:
        own = part.dtype if given else parameter.dtype if parameter is not None else torch.float32
        if path.space.discrete:
            own = part.dtype if given else torch.int64
        dtype = torch.float32 if not given and own in (torch.float16, torch.bfloat16) else own
    if path.space.discrete and dtype not in TOKEN_DTYPES:
        raise TypeError(f"tokens are integers, got dtype {dtype}: leave dtype out for torch.int64")
    if path.space.discrete:
        path.space.check(torch.empty(0, dtype=dtype))  # can it hold all ids?
    elif dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"states are float32 or float64, got {dtype}: half precision loses grid points; "
            "run the network under torch.autocast instead"
        )
    return dtype


def _check_device(generator: Operator, device: torch.device) -> None:
    homes = {parameter.device for parameter in generator.parameters()}
    if homes and not any(home.type == device.type and device.index in (None, home.index) for home in homes):
        raise ValueError(
            f"the states are on {device} and the network's parameters on {', '.join(sorted(map(str, homes)))}: "
            "move the generator with .to(...), or choose with device="
        )


def rows_of(value: Any, rows: slice, device: torch.device) -> Any:
    """Some rows of a tensor, or of each tensor of a dict."""
    if isinstance(value, Mapping):
        return {name: tensor[rows].to(device) for name, tensor in value.items()}
    return None if value is None else value[rows].to(device)


def read_fixed(fixed: State | None, given: State | None) -> None:
    """Raise unless ``fixed`` marks positions of given tokens; on a product a dict for some of its factors."""
    if fixed is None:
        return
    if isinstance(given, Tensor) and given.is_floating_point():
        raise ValueError("only tokens can be fixed: a continuous state is conditioned through its network, or given")
    if given is None:
        raise ValueError("fixed positions need given token states: pass the tokens with their prompt, not a shape")
    if isinstance(given, Mapping):
        if not isinstance(fixed, Mapping) or not set(fixed) <= set(given):
            raise ValueError(f"fixed must be a dict of bool tensors for some of the factors {', '.join(given)}")
        for name, part in fixed.items():
            read_fixed(part, given[name])
        return
    if not isinstance(fixed, Tensor):
        raise TypeError(f"fixed must be a bool tensor of the shape of the states, got {type(fixed).__name__}")
    if fixed.dtype != torch.bool or fixed.shape != first(given).shape:
        raise ValueError(
            f"fixed must be bool of the shape {tuple(given.shape)} of the states, "
            f"got {fixed.dtype} {tuple(fixed.shape)}"
        )
