"""Counter-based draws against Random123's vectors, a scalar implementation in Python integers, and their laws."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import genmatch as gm
from genmatch.random import _KEPT, Ahead, Draws, _normal, _uniform, philox

WORD = st.integers(0, 2**32 - 1)
SHAPES = [(4,), (4, 1), (4, 3), (4, 2, 5), (4, 0), (4, 1, 7, 3)]


def scalar_philox(counter: tuple[int, ...], key: tuple[int, ...], rounds: int = 10) -> tuple[int, ...]:
    """Philox-4x32-10 in Python integers, from the paper's figure: multiply, split in halves, swap, xor."""
    c, k = list(counter), list(key)
    for _ in range(rounds):
        high0, low0 = divmod(0xD2511F53 * c[0], 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c[2], 2**32)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return tuple(c)


def word(draws: Draws, sample: int, element: int) -> int:
    """The word of one element: its address is (block, sample, step, stream) under the seed's two halves."""
    counter = (element // 4, draws.first_index + sample, draws.step, draws.stream)
    return scalar_philox(counter, (draws.seed % 2**32, draws.seed // 2**32))[element % 4]


VECTORS = [  # kat_vectors of Random123: philox4x32 with 10 rounds; the last one's input is the digits of pi
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def hexes(text: str) -> tuple[int, ...]:
    return tuple(int(part, 16) for part in text.split())


def run(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(w) for w in philox([torch.tensor(c) for c in counter], (key[0], key[1])))


@pytest.mark.parametrize(("counter", "key", "expected"), VECTORS)
def test_known_answers(counter: str, key: str, expected: str):
    assert run(hexes(counter), hexes(key)) == hexes(expected)
    assert scalar_philox(hexes(counter), hexes(key)) == hexes(expected)
    assert scalar_philox(hexes(counter), hexes(key), rounds=9) != hexes(expected)


@settings(max_examples=200)
@given(st.tuples(WORD, WORD, WORD, WORD), st.tuples(WORD, WORD))
def test_philox_is_the_scalar_one(counter, key):
    assert run(counter, key) == scalar_philox(counter, key)


@pytest.mark.parametrize("shape", [(1,), (2, 0), (7,), (3, 50), (90, 2, 3), (2, 400)])
def test_all_ways_to_the_words_agree(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    def draw() -> list[Tensor]:
        draws = Draws(2**64 - 5, shape[0], first_index=2**32 - 100, step=2**32 - 3)
        return [draws.bits(shape), draws.uniform(shape), draws.normals([0, 2**32 - 1, 5], shape)]

    host = draw()
    monkeypatch.setattr(gm.random, "_PIECE", 8)
    pieces = draw()
    monkeypatch.setattr(gm.random, "_compiling", lambda: True)
    operator = draw()
    monkeypatch.setattr(gm.random, "_exporting", lambda: True)
    halves = draw()  # products in halves
    monkeypatch.setattr(gm.random, "_product", lambda c, m: ((c * m >> 32) & 0xFFFFFFFF, (c * m) & 0xFFFFFFFF))
    whole = draw()  # other devices
    for found in (pieces, operator, halves, whole):
        assert all(map(torch.equal, found, host))


@pytest.mark.parametrize(("threads", "size", "host"), [(1, 400, True), (2, 400, True), (8, 400, False), (8, 40, True)])
def test_many_threads_make_many_numbers(threads, size, host, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, used = Draws(0, 2).normal((2, size)), []
    own = gm.random._philox_on_host
    monkeypatch.setattr(gm.random, "_philox_on_host", lambda *given: used.append(1) or own(*given))
    monkeypatch.setattr(gm.random, "_PIECE", 16)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert torch.equal(Draws(0, 2).normal((2, size)), expected)
    assert bool(used) == host


def test_products_in_halves_are_those_of_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    words = torch.tensor([0, 1, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x9E3779B9])
    for compiling in (False, True):
        monkeypatch.setattr(gm.random, "_compiling", lambda now=compiling: now)
        for multiplier in (0xD2511F53, 0xCD9E8D57, 0xFFFFFFFF):
            high, low = gm.random._product(words, multiplier)
            expected = [list(divmod(word * multiplier, 2**32)) for word in words.tolist()]
            assert torch.stack([high, low], 1).tolist() == expected


def test_draws_within_transforms_and_fake_modes_are_those_outside() -> None:
    draws = Draws(3, 4)
    expected = draws.normal((4, 2))
    x = torch.ones(4, 2)
    value, tangent = torch.func.jvp(lambda x: x * draws.normal((4, 2)), (x,), (x,))
    assert torch.equal(value, expected)
    assert torch.equal(tangent, expected)
    assert torch.equal(torch.func.grad(lambda x: (x * draws.normal((4, 2))).sum())(x), expected)
    each = torch.func.vmap(lambda x: x + draws.normal((4, 2)))(torch.zeros(3, 4, 2))
    assert torch.equal(each, expected.expand(3, 4, 2))
    with FakeTensorMode():
        assert draws.normal((4, 2)).shape == (4, 2)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**64 - 1),
    first=st.integers(0, 2**32 - 8),
    step=st.integers(0, 2**32 - 1),
    streams=st.lists(st.integers(1, 255), max_size=4),
    sample=st.integers(0, 4),
    element=st.integers(0, 10),
)
def test_every_element_has_its_address(seed, first, step, streams, sample, element):
    draws = Draws(seed, 5, first_index=first, step=step)
    stream = 0
    for one in streams:
        draws, stream = draws.fork(one), 256 * stream + one
    assert draws.stream == stream
    expected = word(draws, sample, element)
    assert int(draws.bits((5, 11))[sample, element]) == expected
    assert int(draws.integers((5, 11), 1000)[sample, element]) == expected * 1000 // 2**32
    assert float(draws.uniform((5, 11))[sample, element]) == expected // 256 / 2**24
    assert float(draws.uniform((5, 11), torch.float64)[sample, element]) == expected / 2**32


@pytest.mark.parametrize("element", range(9))
def test_normals_are_box_muller_of_two_words(element: int):
    draws = Draws(11, 3, first_index=6, step=2)
    first = element - element % 2
    radius = math.sqrt(-2 * math.log((word(draws, 1, first) + 1) / 2**32))
    angle = 2 * math.pi * word(draws, 1, first + 1) / 2**32
    expected = radius * (math.sin(angle) if element % 2 else math.cos(angle))
    assert float(draws.normal((3, 9), torch.float64)[1, element]) == pytest.approx(expected, abs=1e-12)
    assert float(draws.normal((3, 9))[1, element]) == pytest.approx(expected, abs=3e-6)


# Independence of the batch, bit for bit

KINDS = {
    "normal": lambda d, shape: d.normal(shape),
    "normal64": lambda d, shape: d.normal(shape, torch.float64),
    "uniform": lambda d, shape: d.uniform(shape),
    "uniform64": lambda d, shape: d.uniform(shape, torch.float64),
    "integers": lambda d, shape: d.integers(shape, 17),
    "bits": lambda d, shape: d.bits(shape),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 7, 64])
def test_batches_and_shards_draw_what_the_whole_does(kind: str, size: int):
    draw = KINDS[kind]
    whole = draw(Draws(5, 64, first_index=3, step=9).fork(2), (64, 3, 2))
    parts = [
        draw(Draws(5, min(size, 64 - i), first_index=3 + i, step=9).fork(2), (min(size, 64 - i), 3, 2))
        for i in range(0, 64, size)
    ]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(draw(Draws(5, 64, first_index=4, step=9).fork(2), (64, 3, 2)), whole)


@settings(max_examples=30)
@given(total=st.integers(1, 40), cut=st.integers(0, 40), step=st.integers(0, 99), seed=st.integers(0, 2**64 - 1))
def test_any_split_of_a_batch(total, cut, step, seed):
    cut = min(cut, total)
    whole = Draws(seed, total, step=step).normal((total, 5))
    head = Draws(seed, cut, step=step).normal((cut, 5))
    tail = Draws(seed, total - cut, first_index=cut, step=step).normal((total - cut, 5))
    assert torch.equal(torch.cat([head, tail]), whole)


def test_asking_twice_gives_the_same_and_others_differ():
    draws = Draws(5, 4)
    same = draws.normal((4, 3))
    assert torch.equal(draws.normal((4, 3)), same)
    for other in (Draws(6, 4), draws.at(1), draws.fork(1), draws.fork(1).fork(1), Draws(5, 4, first_index=4)):
        assert not torch.equal(other.normal((4, 3)), same)
    assert torch.equal(draws.at(3).at(0).normal((4, 3)), same)
    assert torch.equal(draws.at(7).fork(9).bits((4, 2)), draws.fork(9).at(7).bits((4, 2)))
    assert torch.equal(Draws(5, 4, stream=9).bits((4, 2)), draws.fork(9).bits((4, 2)))


def test_nested_streams_never_meet():
    draws = Draws(0, 1)
    streams = {draws.stream}
    for a in (1, 2, 255):
        for b in (1, 2, 255):
            streams |= {draws.fork(a).stream, draws.fork(a).fork(b).stream, draws.fork(a).fork(b).fork(a).stream}
    assert len(streams) == 1 + 3 + 9 + 9
    assert max(streams) < 2**32


# Steps in advance


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_the_steps_one_by_one(kind: str, shape: tuple[int, ...]):
    draw, base = KINDS[kind], Draws(8, 4, first_index=2).fork(3)
    for i, now in enumerate(base.steps(6)):
        assert torch.equal(draw(now, shape), draw(base.at(i), shape))
        assert torch.equal(draw(now.fork(1), shape), draw(base.at(i).fork(1), shape))


def test_steps_of_a_state_larger_than_the_look_ahead():
    base = Draws(8, 2)
    for shape in ((2, 20_000), (2, 7_000)):
        for i, now in enumerate(base.steps(5)):
            assert torch.equal(now.normal(shape), base.at(i).normal(shape))


def test_steps_in_any_order():
    base = Draws(8, 2)
    steps = base.steps(12)
    for i in (7, 3, 11, 0, 3, 4):
        assert torch.equal(steps[i].uniform((2, 3)), base.at(i).uniform((2, 3)))


def test_loops_over_parts_of_a_batch_share_a_look_ahead():
    ahead, shape = Ahead(6), (2, 3)
    for step in range(6):
        for first in (0, 2):
            for seed in (8, 9):
                draws = Draws(seed, 2, first_index=first, step=step)
                assert torch.equal(draws.made(ahead).fork(1).normal(shape), draws.fork(1).normal(shape))
                assert torch.equal(draws.made(ahead).uniform(shape), draws.uniform(shape))
    # What was asked once at each step, so that the numbers at hand are those of another asker.
    ahead = Ahead(6)
    for step, (seed, first) in enumerate(((8, 0), (8, 0), (9, 0), (8, 2), (8, 0), (9, 2))):
        draws = Draws(seed, 2, first_index=first, step=step)
        assert torch.equal(draws.made(ahead).normal(shape), draws.normal(shape))


def test_numbers_ahead_are_made_in_one_call_for_those_who_ask_at_every_step(monkeypatch: pytest.MonkeyPatch):
    made, whole = [], Draws._philox
    monkeypatch.setattr(
        Draws, "_philox", lambda self, shape, steps: made.append(len(steps)) or whole(self, shape, steps)
    )
    ahead = Ahead(100)
    for step in range(100):
        Draws(0, 4, step=step).made(ahead).normal((4, 3))
    assert made == [1, 99]
    made.clear()
    for step in range(100):  # another length at every step: nothing is made that nobody asks for
        Draws(0, 4, step=step).made(ahead).normal((4, 3 + step))
    assert made == [1] * 100
    assert len(ahead._memo) == _KEPT
    ahead, made[:] = Ahead(100), []
    for step in range(3):  # of a large state nothing is made ahead, kept or copied
        Draws(0, 4, step=step).made(ahead).normal((4, 5000))
    assert made == [1, 1, 1]
    assert not ahead._memo


def test_numbers_ahead_are_the_askers_own():
    ahead, weight = Ahead(9), torch.ones(3, requires_grad=True)
    base, kept = Draws(8, 2), []
    for step in range(4):
        noise = base.at(step).made(ahead).normal((2, 3))
        loss = (noise * weight).sum()
        kept.append((loss, noise.clone()))
        later = base.at(step + 1).made(ahead).normal((2, 3))
        later += weight  # in place, with a gradient
        later.detach().mul_(2)
        assert later.untyped_storage().nbytes() == 24
    for loss, noise in kept:
        (gradient,) = torch.autograd.grad(loss, weight)
        assert torch.equal(gradient, noise.sum(0))


def test_numbers_ahead_know_modes_and_transforms():
    ahead, base, shape = Ahead(9), Draws(8, 2), (2, 3)
    for step, mode in enumerate([torch.inference_mode, FakeTensorMode, torch.no_grad] * 2):
        with mode():
            base.at(step).made(ahead).normal(shape)
        weight = torch.ones(3, requires_grad=True)
        noise = base.at(step).made(ahead).normal(shape)
        (weight * noise).sum().backward()
        assert torch.equal(weight.grad, base.at(step).normal(shape).sum(0))
    for step in (6, 7, 8):
        torch.func.jvp(
            lambda x, step=step: x + base.at(step).made(ahead).normal(shape), (torch.ones(shape),), (torch.ones(shape),)
        )
        noise = base.at(step).made(ahead).normal(shape)
        assert torch.equal(copy.deepcopy(noise), base.at(step).normal(shape))


def test_draws_are_copied_without_the_numbers_at_hand():
    ahead, draws = Ahead(9), Draws(8, 2, step=3, first_index=5, stream=2)
    for step in range(3):
        draws.at(step).made(ahead).normal((2, 300))
    for again in (pickle.loads(pickle.dumps(draws.made(ahead))), copy.deepcopy(draws.made(ahead))):
        assert repr(again) == repr(draws)
        assert torch.equal(again.normal((2, 3)), draws.normal((2, 3)))
    assert len(pickle.dumps(draws.made(ahead))) < 1000


def test_numbers_changed_in_place_are_not_what_the_next_asker_gets():
    base = Draws(8, 2)
    for now, i in zip(base.steps(3), range(3), strict=True):
        now.normal((2, 3)).mul_(0)
        assert torch.equal(now.normal((2, 3)), base.at(i).normal((2, 3)))


# Laws. Seeds are fixed, so the thresholds (1 in 10,000 for a right generator) cannot flake.

RARE = 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normals_are_normal(dtype: torch.dtype):
    z = Draws(1, 4096).normal((4096, 16), dtype)
    assert z.dtype == dtype
    flat = z.double().flatten()
    assert stats.kstest(flat.numpy(), "norm").pvalue > RARE
    assert float(flat.abs().max()) <= 6.67
    assert stats.kstest((1.05 * flat).numpy(), "norm").pvalue < RARE  # five percent too wide is seen
    for moment, expected in ((1, 0), (2, 1), (3, 0), (4, 3)):
        values = flat**moment
        assert abs(float(values.mean()) - expected) < 4.5 * float(values.std()) / len(flat) ** 0.5


def correlation(columns: torch.Tensor) -> float:
    return float((torch.corrcoef(columns.T) - torch.eye(columns.shape[1], dtype=columns.dtype)).abs().max())


def test_neighbouring_normals_are_independent():
    n = 20_000
    z = Draws(2, n).normal((n, 8), torch.float64)
    for columns in (z, z**2, (z > 0.5).double()):
        assert correlation(columns) < 4.5 / n**0.5
    # The halves of a Box-Muller pair share a radius and an angle; made of one word for both they would not be.
    u = (Draws(2, n).uniform((n,), torch.float64) + 2.0**-33).clamp(max=1)
    pair = (-2 * u.log()).sqrt()[:, None] * torch.stack([(2 * math.pi * u).cos(), (2 * math.pi * u).sin()], 1)
    assert correlation(pair**2) > 0.1


def test_streams_steps_and_samples_are_uncorrelated():
    n = 40_000
    base = Draws(3, n)
    rows = [base, base.at(1), base.at(2), base.fork(1), base.fork(2), base.fork(1).fork(1), Draws(4, n)]
    rows = [d.normal((n, 1), torch.float64)[:, 0] for d in rows]
    rows.append(rows[0].roll(1))  # the neighbouring sample
    assert correlation(torch.stack(rows, 1)) < 4.5 / n**0.5


@pytest.mark.parametrize("high", [2, 10, 257])
def test_integers_and_uniforms_are_uniform(high: int):
    n = 50_000
    draws = Draws(7, n)
    counts = torch.bincount(draws.integers((n, 2), high).flatten(), minlength=high)
    assert len(counts) == high
    assert stats.chisquare(counts.numpy()).pvalue > RARE
    u = draws.fork(1).uniform((n, 2))
    assert float(u.min()) >= 0
    assert float(u.max()) < 1
    assert stats.kstest(u.flatten().double().numpy(), "uniform").pvalue > RARE
    assert stats.kstest((u**1.05).flatten().double().numpy(), "uniform").pvalue < RARE


def test_uniforms_never_round_up_to_one():
    words = tuple(torch.full((1, 1, 1), 2**32 - 1) for _ in range(4))
    assert float(_uniform(words, (1, 1, 4), torch.float32).max()) == 1 - 2.0**-24
    assert float(_uniform(words, (1, 1, 4), torch.float64).max()) == 1 - 2.0**-32
    zeros = tuple(torch.zeros(1, 1, 1, dtype=torch.int64) for _ in range(4))
    extreme = _normal(zeros, (1, 1, 4), torch.float32)
    assert bool(extreme.isfinite().all())
    assert float(extreme.max()) == pytest.approx((2 * 32 * math.log(2)) ** 0.5)


def test_half_precision():
    z = Draws(1, 4).normal((4, 8), torch.bfloat16)
    assert torch.equal(z, Draws(1, 4).normal((4, 8)).bfloat16())
    with pytest.raises(TypeError, match="fewer bits would round up to 1"):
        Draws(1, 4).uniform((4, 8), torch.float16)
    with pytest.raises(TypeError, match="normals need a floating dtype"):
        Draws(1, 4).normal((4, 8), torch.int64)


# The global generator


def test_a_seed_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    draws = Draws(3, 4)
    draws.normal((4, 2)), draws.integers((4,), 5), draws.fork(1).uniform((4,)), draws.steps(3)[1].bits((4,))
    gm.GaussianPath().sample(torch.zeros(4, 2), torch.zeros(4, 2), 0.5, draws)
    assert torch.equal(torch.get_rng_state(), state)


def test_without_a_seed_the_global_generator_decides():
    state = torch.get_rng_state()
    first = Draws(None, 4)
    assert not torch.equal(torch.get_rng_state(), state)
    assert Draws(None, 4).seed != first.seed
    torch.set_rng_state(state)
    assert Draws(None, 4).seed == first.seed


# Compiled


def shifted_noise(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draws = Draws(3, len(x), first_index=2, step=4)
    return x + draws.normal(x.shape), draws.fork(2).uniform(x.shape), draws.at(1).integers(x.shape, 9)


def test_a_draw_compiles_as_one_graph():
    compiled = torch.compile(shifted_noise, fullgraph=True, backend="eager")
    for got, expected in zip(compiled(torch.zeros(4, 5)), shifted_noise(torch.zeros(4, 5)), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(4, 5), (8, 2)])  # a sample of one block: its counter is a constant of the graph
def test_a_compiled_draw_gives_the_same_numbers(shape: tuple[int, int]):
    torch._dynamo.reset()
    compiled = torch.compile(shifted_noise, fullgraph=True)
    noise, uniform, integers = compiled(torch.zeros(shape))
    expected = shifted_noise(torch.zeros(shape))
    torch.testing.assert_close(noise, expected[0], rtol=0, atol=1e-6)
    assert torch.equal(uniform, expected[1])
    assert torch.equal(integers, expected[2])


@pytest.mark.gpu
def test_a_gpu_draws_the_same_numbers():
    for kind, draw in KINDS.items():
        here = draw(Draws(5, 64, first_index=3, step=9).fork(2), (64, 3, 2))
        there = draw(Draws(5, 64, first_index=3, step=9, device="cuda").fork(2), (64, 3, 2)).cpu()
        if kind.startswith("normal"):
            torch.testing.assert_close(there, here, rtol=0, atol=2e-6 if kind == "normal" else 1e-13)
        else:
            assert torch.equal(there, here)


# Bad input


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Draws(-1, 2), ValueError, r"seed must be in \[0, 2\*\*64\), got -1"),
        (lambda: Draws(2**64, 2), ValueError, "seed must be in"),
        (lambda: Draws(1.0, 2), TypeError, "seed must be an integer or None, got float"),
        (lambda: Draws(True, 2), TypeError, "seed must be an integer or None, got bool"),
        (lambda: Draws(1, -2), ValueError, "sample indices must be in"),
        (lambda: Draws(1, 2, first_index=2**32 - 1), ValueError, "sample indices must be in"),
        (lambda: Draws(1, 2.0), TypeError, "samples must be an integer, got float"),
        (lambda: Draws(1, 2, first_index=1.5), TypeError, "first_index must be an integer, got float"),
        (lambda: Draws(1, 2, step=-1), ValueError, "step must be in"),
        (lambda: Draws(1, 2, step=0.5), TypeError, "step must be an integer"),
        (lambda: Draws(1, 2, stream=2**32), ValueError, "stream must be in"),
        (lambda: Draws(1, 2).at(2**32), ValueError, "step must be in"),
        (lambda: Draws(1, 2).at(1.0), TypeError, "step must be an integer"),
        (lambda: Draws(1, 2).fork(0), ValueError, r"a stream is an integer in \[1, 256\), got 0"),
        (lambda: Draws(1, 2).fork(256), ValueError, "a stream is an integer"),
        (lambda: Draws(1, 2).fork(1).fork(1).fork(1).fork(1).fork(1), ValueError, "four deep"),
        (lambda: Draws(1, 2).steps(-1), ValueError, "count must be in"),
        (
            lambda: Draws(1, 2).normal((3, 2)),
            ValueError,
            r"draws for 2 samples have shape \(2, ...\), asked for \(3, 2\)",
        ),
        (lambda: Draws(1, 2).uniform(()), ValueError, "the first dimension is the batch"),
        (lambda: Draws(1, 2).integers((2,), 0), ValueError, "high must be in"),
        (lambda: Draws(1, 2).integers((2,), 2.5), TypeError, "high must be an integer"),
        (lambda: Draws(1, 1).bits((1, 2**34 + 1)), ValueError, "at most 2\\*\\*34 elements"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_the_operator_of_compiled_graphs() -> None:
    counter = [torch.arange(3)[:, None], torch.arange(2, 4), torch.tensor(2**32 - 1), torch.tensor(7)]
    torch.library.opcheck(torch.ops.genmatch.philox.default, (*counter, 5, 2**32 - 1))
    compiled = torch.compile(lambda x: Draws(3, 4).at(3).normal((4, 6)) + x, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(torch.zeros(4, 6)), Draws(3, 4).at(3).normal((4, 6)))
