"""Counter-based random numbers: every draw is a pure function of where it is used.

A number is addressed by ``(seed, sample, step, stream, element)`` and computed by Philox-4x32 with ten rounds,
so the same sample gets the same numbers for batch 1 or 1000, in one process or eight, eager or compiled, on a
CPU or a GPU. ``torch.Generator`` promises none of that: its numbers depend on the order of calls, and on a GPU
on the number of multiprocessors.

Integers and uniforms agree bit for bit everywhere; normals go through ``log``, ``sqrt``, ``cos`` and ``sin`` and
agree to the rounding of those.

References
----------
.. [1] J. K. Salmon, M. A. Moraes, R. O. Dror and D. E. Shaw, "Parallel random numbers: as easy as 1, 2, 3",
   SC'11. Philox-4x32-10: the constants, the rounds, and the known-answer vectors the tests use.
.. [2] G. E. P. Box and M. E. Muller, "A note on the generation of random normal deviates", 1958.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Draws", "fusible", "kernels", "philox"]

# Streams of a step's draws that a Brownian tree answers; beside them are those of genmatch.rates, and a solver that
# needs more takes numbers from 16 on.
BROWNIAN = 1
AREA = 4  # the space-time area of the same Brownian motion, for solvers that use it

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_PIECE = 1 << 14  # counters that NumPy works on at once
_KEPT = 32  # purposes and shapes of which a loop has the coming numbers at hand
_LOOKAHEAD = 1 << 15  # numbers drawn at once for the coming steps: small states pay one call for many steps


def philox(counter: Sequence[Tensor], key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox-4x32-10: four 32-bit words for each 128-bit counter under a 64-bit key.

    Parameters
    ----------
    counter
        Four int64 tensors of one shape, each in ``[0, 2**32)``, least significant word first.
    key
        Two integers in ``[0, 2**32)``.

    Returns
    -------
    Four int64 tensors of that shape, each in ``[0, 2**32)``.

    Notes
    -----
    A 32 x 32 bit product overflows int64, but its bits are right modulo 2**64: the low word is a mask away, the
    high word a shift and a mask (the mask removes the copies of the sign bit that the shift drags in). A C++ compiler
    takes it that signed numbers never overflow, and leaves that mask out, and torch's compiler writes out a value as
    often as it is used, which doubles with every round: so a compiled graph calls an operator, and an exported one,
    which is to run without this package, multiplies in two halves.
    """
    if _compiling() and not _exporting():
        first, second, third, fourth = torch.ops.genmatch.philox(*counter, *key).unbind(0)
        return first, second, third, fourth
    return _philox_in_torch(counter, key)


@torch.library.custom_op("genmatch::philox", mutates_args=())
def _operator(c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor, k0: int, k1: int) -> Tensor:
    counter = (c0, c1, c2, c3)
    if c0.device.type == "cpu":
        return torch.stack(_philox_on_host([c.numpy() for c in counter], (k0, k1)))
    return torch.stack(_philox_in_torch(counter, (k0, k1)))


@_operator.register_fake
def _(c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor, k0: int, k1: int) -> Tensor:
    return c0.new_empty((4, *torch.broadcast_shapes(c0.shape, c1.shape, c2.shape, c3.shape)))


def _compiling() -> bool:
    return torch.compiler.is_compiling()


def _exporting() -> bool:
    return torch.compiler.is_exporting()


def _philox_in_torch(counter: Sequence[Tensor], key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        (high0, low0), (high1, low1) = _product(c0, _MULTIPLIERS[0]), _product(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def _product(c: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """The high and the low word of a product of 32-bit words."""
    if not _compiling():
        product = c * multiplier
        return (product >> 32) & _MASK, product & _MASK
    low, high = (c & 0xFFFF) * multiplier, (c >> 16) * multiplier  # below 2**48 each
    return (high + (low >> 16)) >> 16, (((high & 0xFFFF) << 16) + low) & _MASK


def _philox_on_host(counter: Sequence[np.ndarray], key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same by NumPy, which has the unsigned product that torch lacks, and so fewer operations."""
    parts = [np.asarray(c, dtype=np.uint64) for c in counter]
    whole = np.broadcast(*parts)
    if whole.size <= _PIECE:
        words = _rounds(parts, key)  # the first rounds on what is left to broadcast
    else:  # in pieces that stay in the cache
        parts = np.broadcast_arrays(*parts)
        words = [np.empty(whole.shape, dtype=np.uint64) for _ in range(4)]
        longest = max(whole.shape)
        axis, piece = whole.shape.index(longest), max(1, _PIECE * longest // whole.size)
        for begin in range(0, longest, piece):
            rows = (*[slice(None)] * axis, slice(begin, begin + piece))
            for word, made in zip(words, _rounds([part[rows] for part in parts], key), strict=True):
                word[rows] = made
    first, second, third, fourth = (torch.from_numpy(np.asarray(word).view(np.int64)) for word in words)
    return first, second, third, fourth


def _rounds(counter: Sequence[np.ndarray], key: tuple[int, int]) -> Sequence[np.ndarray]:
    c0, c1, c2, c3 = counter
    k0, k1 = key
    mask, half = np.uint64(_MASK), np.uint64(32)
    for _ in range(_ROUNDS):
        p0, p1 = c0 * np.uint64(_MULTIPLIERS[0]), c2 * np.uint64(_MULTIPLIERS[1])
        c0, c2 = (p1 >> half) ^ (c1 ^ np.uint64(k0)), (p0 >> half) ^ (c3 ^ np.uint64(k1))
        c1, c3 = p1 & mask, p0 & mask
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


class Draws:
    """Random numbers for a batch of samples, each addressed by (seed, sample, step, stream, element).

    Parameters
    ----------
    seed
        Any integer in ``[0, 2**64)``. ``None`` takes one from torch's global generator (the only time it is touched).
    samples
        How many samples, B; the draws have a leading dimension B.
    first_index
        Global index of the first sample: batches ``[0, 7)`` and ``[7, 64)`` together draw what ``[0, 64)`` does.
    step, stream
        The step of the loop, in ``[0, 2**32)``, and the purpose; see :meth:`at` and :meth:`fork`.
    device
        Where the numbers are made.

    Notes
    -----
    The object holds no state: asking twice gives the same numbers. Ask :meth:`fork` for a stream of its own where
    independent numbers are needed.

    Examples
    --------
    >>> import torch
    >>> whole = Draws(seed=0, samples=8).normal((8, 3))
    >>> part = Draws(seed=0, samples=3, first_index=5).normal((3, 3))
    >>> torch.equal(whole[5:], part)
    True
    """

    __slots__ = ("_ahead", "device", "first_index", "samples", "seed", "step", "stream")

    def __init__(
        self,
        seed: int | None = None,
        samples: int = 1,
        *,
        first_index: int = 0,
        step: int = 0,
        stream: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        if seed is None:
            seed = int(torch.randint(0, 2**63 - 1, (), dtype=torch.int64))
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise TypeError(f"seed must be an integer or None, got {type(seed).__name__}")
        for name, value in (("samples", samples), ("first_index", first_index), ("step", step), ("stream", stream)):
            _check_integer(name, value)
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed must be in [0, 2**64), got {seed}")
        if not 0 <= first_index <= first_index + samples <= 2**32:
            raise ValueError(
                f"sample indices must be in [0, 2**32), got first_index={first_index} with {samples} samples"
            )
        for name, value in (("step", step), ("stream", stream)):
            if not 0 <= value < 2**32:
                raise ValueError(f"{name} must be in [0, 2**32), got {value}")
        self.seed, self.samples, self.first_index = seed, samples, first_index
        self.step, self.stream = step, stream
        self.device = torch.device("cpu" if device is None else device)
        self._ahead: Ahead | None = None

    def at(self, step: int) -> Draws:
        """The draws of another step, same samples and stream."""
        _check_integer("step", step)
        if not 0 <= step < 2**32:
            raise ValueError(f"step must be in [0, 2**32), got {step}")
        return self._with(step, self.stream, None)

    def _with(self, step: int, stream: int, ahead: Ahead | None) -> Draws:
        draws = object.__new__(Draws)  # the checks of __init__ cost more than a small step of a solver
        draws.seed, draws.samples, draws.first_index, draws.device = (
            self.seed,
            self.samples,
            self.first_index,
            self.device,
        )
        draws.step, draws.stream, draws._ahead = step, stream, ahead
        return draws

    def fork(self, stream: int) -> Draws:
        """An independent stream, ``stream`` in ``[1, 256)``; forks nest up to four deep."""
        if not isinstance(stream, int) or not 1 <= stream < 256:
            raise ValueError(f"a stream is an integer in [1, 256), got {stream}")
        if self.stream >= 1 << 24:
            raise ValueError("streams can be forked four deep at most")
        return self._with(self.step, self.stream * 256 + stream, self._ahead)

    def steps(self, count: int) -> list[Draws]:
        """The draws of steps 0 .. count-1, in order, which make the numbers of several steps in one call.

        The numbers are those of ``[self.at(i) for i in range(count)]``; only the cost differs: for a small state
        the cost of Philox is the number of kernels it launches, and one launch serves many steps.
        """
        _check_integer("count", count)
        if not 0 <= count <= 2**32:
            raise ValueError(f"count must be in [0, 2**32], got {count}")
        ahead = Ahead(count)
        return [self._with(i, self.stream, ahead) for i in range(count)]

    def made(self, ahead: Ahead) -> Draws:
        """The same draws, whose numbers are made together with those of the coming steps of a loop."""
        return self._with(self.step, self.stream, ahead)

    def normal(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normals of ``shape`` ``(B, *S)`` (Box-Muller on pairs of 32-bit uniforms; ``|z| <= 6.67``)."""
        return self._make(tuple(shape), dtype, _normal)

    def normals(self, steps: Sequence[int], shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normals of several steps in one call, ``(len(steps), B, *S)``: row i is ``at(steps[i]).normal``."""
        shape = tuple(shape)
        self._check_batch(shape)
        return _normal(self._philox(shape, steps), (len(steps), *shape), dtype)

    def uniform(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Uniforms in ``[0, 1)`` of ``shape`` ``(B, *S)``: multiples of 2**-24 (2**-32 in float64)."""
        return self._make(tuple(shape), dtype, _uniform)

    def integers(self, shape: Sequence[int], high: int) -> Tensor:
        """Integers in ``[0, high)``, int64, of ``shape`` ``(B, *S)``; ``high <= 2**31``."""
        _check_integer("high", high)
        if not 1 <= high <= 2**31:
            raise ValueError(f"high must be in [1, 2**31], got {high}")
        # The high word of word * high: its bias, below high / 2**32, is smaller than any test of ours could see.
        return self._make(tuple(shape), torch.int64, lambda words, shape, dtype: _words(words, shape) * high >> 32)

    def bits(self, shape: Sequence[int]) -> Tensor:
        """Integers in ``[0, 2**32)``, int64, of ``shape`` ``(B, *S)``."""
        return self._make(tuple(shape), torch.int64, lambda words, shape, dtype: _words(words, shape))

    def _make(self, shape: tuple[int, ...], dtype: torch.dtype, transform) -> Tensor:
        self._check_batch(shape)
        # A compiled step would guard on the memo: there the numbers are made in its graph. A fake mode would fill it.
        small = 2 * math.prod(shape) <= _LOOKAHEAD and transform in (_normal, _uniform)
        if self._ahead is None or not small or torch.compiler.is_compiling() or not _numbers_are_real():
            return transform(self._philox(shape, (self.step,)), (1, *shape), dtype)[0]
        return self._ahead.take(self, shape, dtype, transform)

    def _check_batch(self, shape: tuple[int, ...]) -> None:
        if not shape or shape[0] != self.samples:
            raise ValueError(
                f"draws for {self.samples} samples have shape ({self.samples}, ...), asked for {shape}: "
                "the first dimension is the batch"
            )

    def _philox(self, shape: tuple[int, ...], steps: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Words of shape (steps, B, blocks): four for each block of four elements."""
        size = math.prod(shape[1:])
        if size > 2**34:
            raise ValueError(f"one sample has at most 2**34 elements, got {size}")
        blocks, key = (size + 3) // 4, (self.seed & _MASK, self.seed >> 32)
        if self.device.type == "cpu" and not _compiling() and _host_is_quicker(len(steps) * shape[0] * blocks):
            samples = np.arange(self.first_index, self.first_index + shape[0])[:, None]
            when = np.array(steps, dtype=np.uint64)[:, None, None]
            return _philox_on_host((np.arange(blocks), samples, when, np.array(self.stream)), key)
        where = {"dtype": torch.int64, "device": self.device}
        # Masked, as a compiler takes a bare arange for an index, and its products with 32-bit constants overflow there.
        counter = (  # left to broadcast: the first rounds work on small tensors
            torch.arange(blocks, **where) & _MASK,
            torch.arange(self.first_index, self.first_index + shape[0], **where)[:, None] & _MASK,
            _steps(steps, self.device)[:, None, None] & _MASK,
            torch.full((), self.stream, **where),
        )
        return philox(counter, key)

    def __getstate__(self) -> tuple[None, dict[str, Any]]:
        """Without the numbers at hand, which are made again."""
        return None, {name: None if name == "_ahead" else getattr(self, name) for name in self.__slots__}

    def __repr__(self) -> str:
        return (
            f"Draws(seed={self.seed}, samples={self.samples}, first_index={self.first_index}, step={self.step}, "
            f"stream={self.stream}, device={str(self.device)!r})"
        )


class Ahead:
    """The numbers of the coming steps, made in one call: a memo of a pure function, shared by the steps of one loop.

    Of steps below ``count``, where a step asks for what the step before it did, and of no more at once than a small
    state has. What is handed out is the asker's own: a copy costs less than a number.
    """

    __slots__ = ("_memo", "count")

    def __init__(self, count: int) -> None:
        self.count = count
        self._memo: dict[tuple, tuple[int, Tensor]] = {}

    def take(self, draws: Draws, shape: tuple[int, ...], dtype: torch.dtype, transform) -> Tensor:
        """What ``transform`` makes of the words of ``draws``, of ``shape`` ``(B, *S)``."""
        key = (draws.seed, draws.first_index, draws.stream, draws.device, shape, dtype, transform)
        first, numbers = self._memo.pop(key, (draws.step, None))
        if numbers is None or not first <= draws.step < first + len(numbers):
            follows = numbers is not None and draws.step == first + len(numbers)
            first, steps = draws.step, 1
            if follows:
                steps = max(1, min(self.count - first, _LOOKAHEAD // max(1, math.prod(shape))))
            numbers = transform(draws._philox(shape, range(first, first + steps)), (steps, *shape), dtype)
        if not torch._C._functorch.is_functorch_wrapped_tensor(numbers):  # type: ignore[attr-defined]
            self._memo[key] = first, numbers
            if len(self._memo) > _KEPT:  # the one that was not asked for longest
                del self._memo[next(iter(self._memo))]
        return numbers[draws.step - first].clone()


def fusible(x: Tensor, draws: object) -> bool:
    """Whether a kernel may make the numbers for a state on a GPU: plain draws, float32, outside a compiled graph."""
    plain = type(draws) is Draws and x.dtype == torch.float32 and not torch.compiler.is_compiling()
    return plain and kernels().usable(x.device)


def kernels() -> Any:
    """:mod:`genmatch.kernels`, imported where it is first needed: it registers operators, and asks for Triton."""
    return importlib.import_module("genmatch.kernels")


def _check_integer(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")


def _host_is_quicker(count: int) -> bool:
    """Whether NumPy should make so many words: it has one thread, and would make real ones within a fake mode."""
    return (count <= 2 * _PIECE or torch.get_num_threads() <= 2) and _numbers_are_real()


def _numbers_are_real() -> bool:
    """Whether a tensor made here has numbers: not within a fake mode."""
    return type(torch.empty(0)) is Tensor


def _steps(steps: Sequence[int], device: torch.device) -> Tensor:
    if len(steps) == 1:  # never from a constant: a compiled step would be compiled anew for each
        return torch.arange(steps[0], steps[0] + 1, dtype=torch.int64, device=device)
    return torch.tensor(steps, dtype=torch.int64, device=device)


def _words(words: tuple[Tensor, ...], shape: tuple[int, ...]) -> Tensor:
    size = math.prod(shape[2:])
    return torch.stack(words, -1).flatten(-2)[..., :size].reshape(shape)


def _unit(words: Tensor, dtype: torch.dtype) -> Tensor:
    """[0, 1) from 32-bit words; float32 keeps the 24 bits that it holds exactly, so 1.0 never comes out."""
    if dtype == torch.float64:
        return words.to(dtype) * 2.0**-32
    return (words >> 8).to(torch.float32) * 2.0**-24


def _uniform(words: tuple[Tensor, ...], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    # Half precision would round .9999 up to 1: draw in float32 and let the caller round if they must.
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"uniforms are float32 or float64, asked for {dtype}: fewer bits would round up to 1")
    return _unit(_words(words, shape), dtype)


def _normal(words: tuple[Tensor, ...], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if not dtype.is_floating_point:
        raise TypeError(f"normals need a floating dtype, asked for {dtype}")
    work = torch.float64 if dtype == torch.float64 else torch.float32
    pairs = []
    for radius_word, angle_word in (words[:2], words[2:]):
        # (w + 1) / 2**32 is in (0, 1]: the logarithm is finite.
        radius = ((radius_word + 1).to(work) * 2.0**-32).log_().mul_(-2.0).sqrt_()
        angle = _unit(angle_word, work).mul_(2 * math.pi)
        pairs += [radius * angle.cos(), radius * angle.sin()]
    return _words(tuple(pairs), shape).to(dtype)
