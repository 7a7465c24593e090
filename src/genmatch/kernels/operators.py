"""The kernels as operators of torch: on a GPU in Triton where that is usable, else by the reference."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..random import Draws
from . import launch, reference
from .launch import signed
from .reference import Address

__all__ = ["jump", "normal", "step"]


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
        If shapes or devices differ, or one is not floating point.
    """
    _check(x, draws)
    for name, tensor in (("y", y), ("other", other)):
        if tensor is not None and (tensor.shape != x.shape or tensor.device != x.device):
            raise ValueError(
                f"{name} must have the shape and device of x, {tuple(x.shape)} on {x.device}, "
                f"got {tuple(tensor.shape)} on {tensor.device}"
            )
    if any(t is not None and not t.is_floating_point() for t in (x, y, other)):
        raise TypeError("x, y and other must be floating point")
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
    ``(B, *S)`` in the dtype of x; -1 where the logits of a position that jumps are not numbers.

    Raises
    ------
    ValueError, TypeError
        If shapes do not fit, x does not hold integers, or the draws differ in more than their stream.
    """
    _check(x, whether)
    if x.is_floating_point() or x.dtype == torch.bool:
        raise TypeError(f"tokens are integers, got {x.dtype}")
    if logits.shape[:-1] != x.shape or not logits.shape[-1] or not logits.is_floating_point():
        raise ValueError(
            f"logits must be floating point of shape {(*x.shape, 'V')}, got {logits.dtype} {tuple(logits.shape)}"
        )
    if chance.shape != x.shape:
        raise ValueError(f"chance must have the shape {tuple(x.shape)} of the tokens, got {tuple(chance.shape)}")
    if _numbers(whether)[:3] != _numbers(where)[:3]:
        raise ValueError("whether and where must be draws of one seed, step and first index")
    return torch.ops.genmatch.jump(x, logits.detach(), chance.detach(), *_numbers(whether), where.stream)


def _check(x: Tensor, draws: Draws) -> None:
    if not x.ndim or len(x) != draws.samples:
        raise ValueError(f"draws for {draws.samples} samples need a tensor (B, *S) with as many, got {tuple(x.shape)}")


def _numbers(draws: Draws) -> tuple[int, int, int, int]:
    return signed(draws.seed), draws.first_index, draws.step, draws.stream


def _address(seed: int, first: int, step: int, stream: int) -> Address:
    return Address(seed % (1 << 64), first, step, stream)


@torch.library.custom_op("genmatch::normal", mutates_args=())
def _normal(like: Tensor, seed: int, first: int, step: int, stream: int) -> Tensor:
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
    address = _address(seed, first, step, whether)
    x, logits, chance = x.contiguous(), logits.contiguous(), chance.contiguous().float()
    fits = x.dtype in launch.TOKENS and logits.shape[-1] <= launch.LARGEST_VOCABULARY
    run = launch if fits and launch.supported(logits, chance) else reference
    return run.jump(x, logits, chance, address, where)


@_jump.register_fake
def _(x, logits, chance, seed, first, step, whether, where) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)
