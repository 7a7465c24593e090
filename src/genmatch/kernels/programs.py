"""The Triton programs. Imported only where Triton is; all arithmetic is in float32, whatever the tensors hold."""

# Triton reads these functions as programs; a checker of Python takes some of what they say for mistakes.
# pyright: reportPrivateImportUsage=false, reportGeneralTypeIssues=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["jump_program", "normal_program", "step_program"]


@triton.jit
def _normals(seed, counters, sample, step, stream, BLOCK: tl.constexpr):
    """Four standard normals for each counter, in the order of their elements: ``(4 * BLOCK,)``.

    The numbers of :mod:`genmatch.random`: Philox-4x32-10 under (element block, sample, step, stream), then Box-Muller.
    """
    zero = counters * 0
    w0, w1, w2, w3 = tl.philox(seed, counters, zero + sample, zero + step, zero + stream)
    a, b = _pair(w0, w1)
    c, d = _pair(w2, w3)
    return tl.interleave(tl.interleave(a, c), tl.interleave(b, d))


@triton.jit
def _pair(radius_word, angle_word):
    # (w + 1) / 2**32 is in (0, 1]: the logarithm is finite.
    unit = (radius_word.to(tl.uint32, bitcast=True).to(tl.uint64) + 1).to(tl.float32) * 2.3283064365386963e-10
    radius = tl.sqrt(-2.0 * tl.log(unit))
    angle = (angle_word.to(tl.uint32, bitcast=True) >> 8).to(tl.float32) * 5.9604644775390625e-08 * 6.283185307179586
    return radius * tl.cos(angle), radius * tl.sin(angle)


@triton.jit(do_not_specialize=["seed", "first", "step", "stream", "before"])
def normal_program(out, seed, first, step, stream, size, blocks, before, BLOCK: tl.constexpr):
    """Normals of one sample's stretch of 4 * BLOCK elements; out ``(B, size)``, ``blocks`` stretches a sample.

    ``before`` programs of the grid are left to other launches.
    """
    program = tl.program_id(0).to(tl.int64) + before
    row, block = program // blocks, program % blocks * BLOCK
    counters = (block + tl.arange(0, BLOCK)).to(tl.uint32)
    places = 4 * block + tl.arange(0, 4 * BLOCK)
    z = _normals(seed, counters, (first + row).to(tl.uint32), step, stream, BLOCK)
    tl.store(out + row * size + places, z, mask=places < size)


@triton.jit(do_not_specialize=["seed", "first", "step", "stream", "before"])
def step_program(
    out,
    x,
    y,
    other,
    a,
    b,
    guidance,
    std,
    seed,
    first,
    step,
    stream,
    size,
    blocks,
    before,
    GUIDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``a x + b y + std z`` in one pass; guided, y stands for ``other + guidance (y - other)``."""
    program = tl.program_id(0).to(tl.int64) + before
    row, block = program // blocks, program % blocks * BLOCK
    counters = (block + tl.arange(0, BLOCK)).to(tl.uint32)
    places = 4 * block + tl.arange(0, 4 * BLOCK)
    inside = places < size
    at = row * size + places
    z = _normals(seed, counters, (first + row).to(tl.uint32), step, stream, BLOCK)
    native = tl.load(y + at, mask=inside).to(tl.float32)
    if GUIDED:
        free = tl.load(other + at, mask=inside).to(tl.float32)
        native = free + guidance * (native - free)
    moved = a * tl.load(x + at, mask=inside).to(tl.float32) + b * native + std * z
    tl.store(out + at, moved, mask=inside)


@triton.jit
def _uniform(seed, element, sample, step, stream):
    """One uniform in [0, 1), a multiple of 2**-24: that of :mod:`genmatch.random` for an element of a sample."""
    w0, w1, w2, w3 = tl.philox(seed, (element // 4).to(tl.uint32), sample.to(tl.uint32), step, stream)
    which = element % 4
    word = tl.where(which == 0, w0, tl.where(which == 1, w1, tl.where(which == 2, w2, w3)))
    return (word.to(tl.uint32, bitcast=True) >> 8).to(tl.float32) * 5.9604644775390625e-08


@triton.jit(do_not_specialize=["seed", "first", "step", "whether", "where", "before"])
def jump_program(
    out,
    x,
    logits,
    chance,
    seed,
    first,
    step,
    whether,
    where,
    positions,
    values,
    before,
    CHUNKS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """One position: whether it jumps and, if so, where to, by inverting the distribution function of its logits.

    The logits are read once, and the one chunk in which the level lies once more. A position that does not jump reads
    none. Logits that are not numbers give -1.
    """
    row = tl.program_id(0).to(tl.int64) + before
    sample, element = first + row // positions, row % positions
    token = tl.load(x + row)
    p = tl.load(chance + row)
    jumps = _uniform(seed, element, sample, step, whether) < p
    if jumps:
        chunks = tl.arange(0, CHUNKS)
        inner = tl.arange(0, CHUNK)
        most = tl.full((CHUNKS,), float("-inf"), tl.float32)
        sums = tl.zeros((CHUNKS,), tl.float32)
        for i in range(CHUNKS):
            place = i * CHUNK + inner
            inside = place < values
            part = tl.load(logits + row * values + place, mask=inside, other=float("-inf")).to(tl.float32)
            top = tl.max(part, 0)
            low = tl.where(top == float("-inf"), 0.0, top)  # a chunk of weight zero: no infinity less infinity
            most = tl.where(chunks == i, top, most)
            sums = tl.where(chunks == i, tl.sum(tl.exp(part - low), 0), sums)
        highest = tl.max(most, 0)
        masses = tl.where(sums == 0.0, 0.0, sums * tl.exp(most - highest))  # nan stays nan
        edges = tl.cumsum(masses, 0)
        total = tl.sum(masses, 0)
        level = _uniform(seed, element, sample, step, where) * total
        # Rounding must not lead past the last chunk that has any weight.
        last = tl.max(tl.where(masses > 0, chunks, 0), 0)
        chunk = tl.minimum(tl.sum((edges <= level).to(tl.int32), 0), last)
        # A sum and a running sum round differently: never a chunk, or a value in it, of weight zero.
        chunk = tl.min(tl.where((masses > 0) & (chunks >= chunk), chunks, last), 0)
        below = tl.sum(tl.where(chunks < chunk, masses, 0.0), 0)
        place = chunk * CHUNK + inner
        part = tl.load(logits + row * values + place, mask=place < values, other=float("-inf")).to(tl.float32)
        weights = tl.exp(part - highest)
        final = tl.max(tl.where(weights > 0, inner, 0), 0)
        value = tl.minimum(tl.sum((tl.cumsum(weights, 0) <= level - below).to(tl.int32), 0), final)
        value = tl.min(tl.where((weights > 0) & (inner >= value), inner, final), 0)
        landed = chunk * CHUNK + value
        token = tl.where(total > 0, landed, -1).to(token.dtype)
    told = tl.where(p == p, token.to(tl.int64), -1)  # a chance that is not a number is told as well
    tl.store(out + row, told.to(token.dtype))
