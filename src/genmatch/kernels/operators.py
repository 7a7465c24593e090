"""The kernels as operators of torch: on a GPU in Triton where that is usable, else by the reference."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..random import Draws
from . import launch, reference
from .launch import signed
from .reference import Address

__all__ = ["jump", "normal", "step"]

LARGEST_SAMPLE = 1 << 34  # elements: four to each of the 32-bit counters


def normal(like: Tensor, draws: Draws) -> Tensor:
    """Standard normals, float32, of the shape of ``like`` ``(B, *S)``: ``draws.normal(like.shape)`` to rounding.

    Parameters
    ----------
    like
        Its shape, device, and nothing else, are those of the result.
    draws
        Where they are taken from; for B samples.
    """
    _check(like, draws)
    return torch.ops.genmatch.normal(like.detach(), *_numbers(draws))


def step(
    x: Tensor,
    y: Tensor,
    a: float,
    b: float,
    std: float,
    draws: Draws,
    *,
    other: Tensor | None = None,
    guidance: float = 1.0,
) -> Tensor:
    """``a x + b y + std z``, z the normals of ``draws``; with ``other`` y is ``other + guidance (y - other)``.

    In one pass: x, y and other are read once and the result written once; z is never in memory. The arithmetic is in
    float32. Differentiable in x, y and other.

    Parameters
    ----------
    x, y, other
        ``(B, *S)``, floating point, of one shape and device.
    a, b, std, guidance
        Host numbers.
    draws
        For B samples; not used where ``std`` is 0.

    Returns
    -------
    ``(B, *S)`` in the dtype of x.

    Raises
    ------
    ValueError, TypeError
        If shapes, devices or layouts differ, one is not floating point, or the draws are those of a Brownian tree.
    """
    _check(x, draws)
    _check_step(x, y, other)
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:  # type: ignore[attr-defined]
        # An operator of torch has no forward derivative, and would drop tangents without a word.
        return reference.step(x, y, other, float(a), float(b), float(guidance), float(std), Address.of(draws))
    return torch.ops.genmatch.step(x, y, other, float(a), float(b), float(guidance), float(std), *_numbers(draws))


def jump(x: Tensor, logits: Tensor, chance: Tensor, whether: Draws, where: Draws) -> Tensor:
    """Tokens after a step: each jumps with probability ``chance``, and then lands by its logits.

    Two uniforms a position, of ``whether`` and ``where``. The logits of a position that does not jump are not read;
    those of one that does are read once, and a small part of them again.

    Parameters
    ----------
    x
        Tokens ``(B, *S)``, integers.
    logits
        ``(B, *S, V)``, floating point; half precision is read as it is, and computed with in float32.
    chance
        ``(B, *S)``.
    whether, where
        Draws of one step for B samples, in two streams.

    Returns
    -------
    ``(B, *S)`` in the dtype of x; -1 (255 in uint8, a token of its own where V is 256) where the chance is not a
    number, and where the logits of a position that jumps are not.

    Raises
    ------
    ValueError, TypeError
        If shapes, devices or dtypes do not fit, x cannot hold V - 1, or the draws differ in more or less than their
        stream.
    """
    _check(x, whether)
    _check(x, where)
    _check_jump(x, logits, chance)
    if _numbers(whether)[:3] != _numbers(where)[:3]:
        raise ValueError("whether and where must be draws of one seed, step and first index")
    if whether.stream == where.stream:
        raise ValueError("whether and where must be of two streams, or one number decides both: take draws.fork(n)")
    return torch.ops.genmatch.jump(x, logits.detach(), chance.detach(), *_numbers(whether), where.stream)


def _check(x: Tensor, draws: Draws) -> None:
    if type(draws) is not Draws:
        raise TypeError(
            f"the kernels make the numbers of plain gm.Draws, got {type(draws).__name__}, whose noise they would pass "
            "over: take .normal(shape) of it"
        )
    if not x.ndim or len(x) != draws.samples:
        raise ValueError(f"draws for {draws.samples} samples need a tensor (B, *S) with as many, got {tuple(x.shape)}")


def _check_dense(**tensors: Tensor | None) -> None:
    """Raise unless all are plain dense tensors on one device; the operators check again what they are called with."""
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    for name, tensor in given.items():
        if tensor.layout != torch.strided:
            raise TypeError(f"{name} must be a dense tensor, got {tensor.layout}: call .to_dense() on it")
    first, *others = given.items()
    for name, tensor in others:
        if tensor.device != first[1].device:
            raise ValueError(f"{name} must be on the device of {first[0]}, {first[1].device}, got {tensor.device}")


def _check_size(x: Tensor) -> None:
    size = math.prod(x.shape[1:])
    if size > LARGEST_SAMPLE:
        raise ValueError(f"one sample has at most 2**34 elements, got {size}")


def _check_step(x: Tensor, y: Tensor, other: Tensor | None) -> None:
    _check_dense(x=x, y=y, other=other)
    _check_size(x)
    for name, tensor in (("y", y), ("other", other)):
        if tensor is not None and tensor.shape != x.shape:
            raise ValueError(f"{name} must have the shape {tuple(x.shape)} of x, got {tuple(tensor.shape)}")
    for name, tensor in (("x", x), ("y", y), ("other", other)):
        if tensor is not None and not tensor.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {tensor.dtype}")


def _check_jump(x: Tensor, logits: Tensor, chance: Tensor) -> None:
    _check_dense(x=x, logits=logits, chance=chance)
    _check_size(x)
    if x.dtype not in launch.TOKENS:
        raise TypeError(f"tokens are integers of 8 to 64 bits, signed or uint8, got {x.dtype}")
    if not logits.ndim or logits.shape[:-1] != x.shape or not logits.shape[-1] or not logits.is_floating_point():
        raise ValueError(
            f"logits must be floating point of shape {(*x.shape, 'V')}, got {logits.dtype} {tuple(logits.shape)}"
        )
    if chance.shape != x.shape or not chance.is_floating_point():
        raise ValueError(
            f"chance must be floating point of the shape {tuple(x.shape)} of the tokens, got {chance.dtype} "
            f"{tuple(chance.shape)}"
        )
    if logits.shape[-1] - 1 > torch.iinfo(x.dtype).max:
        raise ValueError(f"{x.dtype} cannot hold the token {logits.shape[-1] - 1}: call .long() on the tokens")


def _numbers(draws: Draws) -> tuple[int, int, int, int]:
    return signed(draws.seed), draws.first_index, draws.step, draws.stream


def _address(seed: int, first: int, step: int, stream: int) -> Address:
    return Address(seed % (1 << 64), first, step, stream)


@torch.library.custom_op("genmatch::normal", mutates_args=())
def _normal(like: Tensor, seed: int, first: int, step: int, stream: int) -> Tensor:
    _check_dense(like=like)
    _check_size(like)
    run = launch if launch.usable(like.device) else reference
    return run.normal(like, _address(seed, first, step, stream))


@_normal.register_fake
def _(like: Tensor, seed: int, first: int, step: int, stream: int) -> Tensor:
    return torch.empty(like.shape, dtype=torch.float32, device=like.device)


@torch.library.custom_op("genmatch::step", mutates_args=())
def _step(
    x: Tensor,
    y: Tensor,
    other: Tensor | None,
    a: float,
    b: float,
    guidance: float,
    std: float,
    seed: int,
    first: int,
    step: int,
    stream: int,
) -> Tensor:
    _check_step(x, y, other)
    if x.is_contiguous():  # a network in channels_last returns its own layout
        y, other = y.contiguous(), None if other is None else other.contiguous()
    run = launch if launch.supported(x, y, other) else reference
    return run.step(x, y, other, a, b, guidance, std, _address(seed, first, step, stream))


@_step.register_fake
def _(x, y, other, a, b, guidance, std, seed, first, step, stream) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _keep(ctx, inputs, output) -> None:
    x, y, other, a, b, guidance, *_ = inputs
    ctx.weights = (a, b if other is None else b * guidance, None if other is None else b * (1 - guidance))
    ctx.dtypes = (x.dtype, y.dtype, None if other is None else other.dtype)


def _back(ctx, gradient: Tensor):
    parts = [
        None if weight is None else (weight * gradient).to(dtype)
        for weight, dtype in zip(ctx.weights, ctx.dtypes, strict=True)
    ]
    return (*parts, *[None] * 8)


_step.register_autograd(_back, setup_context=_keep)


@torch.library.custom_op("genmatch::jump", mutates_args=())
def _jump(
    x: Tensor, logits: Tensor, chance: Tensor, seed: int, first: int, step: int, whether: int, where: int
) -> Tensor:
    _check_jump(x, logits, chance)
    address = _address(seed, first, step, whether)
    x, logits, chance = x.contiguous(), logits.contiguous(), chance.contiguous().float()
    fits = x.numel() <= launch.MOST_PROGRAMS and logits.shape[-1] <= launch.LARGEST_VOCABULARY
    run = launch if fits and launch.supported(logits, chance) else reference
    return run.jump(x, logits, chance, address, where)


@_jump.register_fake
def _(x, logits, chance, seed, first, step, whether, where) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)
