"""Launching the Triton programs: where they may run, and with which blocks."""

from __future__ import annotations

import importlib.util
import math
import sys
import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor

from . import reference
from .reference import Address

__all__ = ["jump", "normal", "step", "supported", "usable"]

BLOCK = 256  # counters of one program: 1024 elements
LEAST_CAPABILITY = (8, 0)  # of an NVIDIA GPU; the programs are compiled for it in the tests
LARGEST_VOCABULARY = 1 << 18
MOST_PROGRAMS = (1 << 31) - 1  # of one launch
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_TRIED: set[int] = set()
TOKENS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def usable(device: torch.device | str | None = None) -> bool:
    """Whether the kernels run in Triton on a device: an NVIDIA GPU, the package, and a small run that agrees.

    The first call on a device makes that run, and is remembered.
    """
    device = torch.device("cuda" if device is None else device)
    if device.type != "cuda" or not torch.cuda.is_available() or torch.version.hip is not None:
        return False
    index = torch.cuda.current_device() if device.index is None else device.index
    if index not in _TRIED and torch.cuda.is_current_stream_capturing():
        return False  # the run that finds out cannot be part of a graph
    _TRIED.add(index)
    return _agrees(index)


def supported(*tensors: Tensor | None) -> bool:
    """Whether tensors have a layout and a dtype that the programs take: contiguous, float32 or less, on one GPU."""
    own = [tensor for tensor in tensors if tensor is not None]
    return (
        len({tensor.device for tensor in own}) == 1
        and all(tensor.is_contiguous() and tensor.dtype in FLOATS for tensor in own)
        and usable(own[0].device)
    )


@cache
def _agrees(index: int) -> bool:
    if importlib.util.find_spec("triton") is None or torch.cuda.get_device_capability(index) < LEAST_CAPABILITY:
        return False
    return _same(torch.device("cuda", index))


def _same(device: torch.device) -> bool:
    """Whether a small run of the programs on a device gives the reference's numbers."""
    address = Address((1 << 63) + 12345, 7, 3, 513)
    x = torch.linspace(-2, 2, 2 * 1031, device=device).reshape(2, 1031)
    logits = torch.sin(torch.arange(2 * 3 * 300, device=device, dtype=torch.float32)).reshape(2, 3, 300) * 5
    tokens = torch.arange(6, device=device).reshape(2, 3)
    chance = torch.full((2, 3), 0.7, device=device)
    mixed = (0.3, -0.7, 2.0, 0.5)
    try:
        # The reference on a CPU: there its operations are deterministic, whatever the user asks of the GPU's.
        pairs = [
            [
                part.cpu().double()
                for part in (
                    run.normal(x.to(home), address),
                    run.step(*(part.to(home) for part in (x, x.sin(), x.cos())), *mixed, address),
                    run.jump(tokens.to(home), logits.to(home), chance.to(home), address, 769),
                )
            ]
            for run, home in ((sys.modules[__name__], device), (reference, "cpu"))
        ]
        agree = all(torch.allclose(a, b, atol=2e-6, rtol=2e-5) for a, b in zip(*pairs, strict=True))
    except Exception as error:  # whatever a driver or a compiler may raise: the reference is always there
        warnings.warn(f"Triton kernels do not run on {device}, torch is used instead: {error}", stacklevel=2)
        return False
    if agree:
        return True
    warnings.warn(f"Triton kernels give wrong numbers on {device}; torch is used instead", stacklevel=2)
    return False


def signed(seed: int) -> int:
    """A seed in [0, 2**64) as the 64-bit integer of the same bits."""
    return seed - (1 << 64) if seed >= 1 << 63 else seed


def word(value: int) -> int:
    """A number in [0, 2**32) as the 32-bit integer of the same bits."""
    return value - (1 << 32) if value >= 1 << 31 else value


def normal(like: Tensor, address: Address) -> Tensor:
    """The normals of :func:`genmatch.kernels.normal`, one program for each 1024 elements."""
    from .programs import normal_program

    out = torch.empty(like.shape, dtype=torch.float32, device=like.device)
    size = _size(like)
    if out.numel():
        blocks = _ceil(size, 4 * BLOCK)
        own = (signed(address.seed), address.first, word(address.step), word(address.stream))
        _over(normal_program, blocks * len(like), like)(out, *own, size, blocks, 0, BLOCK=BLOCK)
    return out


def step(
    x: Tensor, y: Tensor, other: Tensor | None, a: float, b: float, guidance: float, std: float, address: Address
) -> Tensor:
    """The step of :func:`genmatch.kernels.step`, one program for each 1024 elements."""
    from .programs import step_program

    out, size = torch.empty_like(x), _size(x)
    if out.numel():
        blocks = _ceil(size, 4 * BLOCK)
        own = (signed(address.seed), address.first, word(address.step), word(address.stream))
        tensors = (out, x, y, y if other is None else other)
        _over(step_program, blocks * len(x), x)(
            *tensors, a, b, guidance, std, *own, size, blocks, 0, GUIDED=other is not None, BLOCK=BLOCK
        )
    return out


def jump(x: Tensor, logits: Tensor, chance: Tensor, address: Address, where: int) -> Tensor:
    """The jumps of :func:`genmatch.kernels.jump`, one program for each position."""
    from .programs import jump_program

    out, values = torch.empty_like(x), logits.shape[-1]
    if out.numel():
        chunk = min(4096, max(64, 1 << (values - 1).bit_length()))
        chunks = 1 << (_ceil(values, chunk) - 1).bit_length()
        own = (signed(address.seed), address.first, word(address.step), word(address.stream), word(where))
        _over(jump_program, x.numel(), x)(out, x, logits, chance, *own, _size(x), values, 0, CHUNKS=chunks, CHUNK=chunk)
    return out


def _size(x: Tensor) -> int:
    return math.prod(x.shape[1:])


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _over(program: Any, count: int, like: Tensor) -> Any:
    """So many runs of a program, on the device of a tensor."""
    if like.device.type != "cuda":  # the interpreter
        return program[(count,)]

    def run(*arguments, **constants):
        with torch.cuda.device(like.device):
            program[(count,)](*arguments, **constants)

    return run
