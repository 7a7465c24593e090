"""The Brownian tree: its laws by exact linear algebra, and that its values depend on what they are said to alone."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import genmatch as gm
from genmatch import dyadic
from genmatch.brownian import NODES, BrownianTree, TreeDraws
from genmatch.dyadic import Course
from genmatch.random import AREA, BROWNIAN

DEPTH = 6
LEAVES = 2**DEPTH
TICKS = st.lists(st.integers(0, LEAVES), min_size=2, max_size=9, unique=True).map(sorted)
TIMES = (0.013, 0.1, 0.17, 0.33, 0.51, 0.777, 0.9, 0.99)


class Units:
    """In place of the nodes' draws: sample 2n + i sees 1 for the i-th normal of node n, and 0 for all others.

    So whatever is made of the normals comes out as the vector of its weights.
    """

    stream = 0

    def normals(self, nodes: list[int], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        z = torch.zeros(len(nodes), *shape, dtype=dtype)
        for row, node in enumerate(nodes):
            for i in range(2):
                z[row, 2 * node + i, i] = 1
        return z


def weights(ticks: list[int]) -> tuple[Tensor, Tensor]:
    """w and k of the steps between ticks, a row of weights for each."""
    course = Course(DEPTH, ticks)
    pairs = [course.pair(Units(), i, (2 * LEAVES,), torch.float64) for i in range(len(course))]  # type: ignore[arg-type]
    return torch.stack([w for w, _ in pairs]), torch.stack([k for _, k in pairs])


def by_definition(w: Tensor, k: Tensor, ticks: list[int]) -> tuple[Tensor, Tensor]:
    """w and k of coarser steps from those of the leaves: W is a sum and H an integral, of the path alone."""
    h = 1 / LEAVES
    increments, areas = w * math.sqrt(h), k * math.sqrt(h / 12)
    rows = []
    for a, b in pairwise(ticks):
        length = (b - a) * h
        path = torch.cat([torch.zeros_like(w[:1]), increments[a:b].cumsum(0)])
        integral = (h * (path[:-1] + path[1:]) / 2 + h * areas[a:b]).sum(0)
        rows.append((path[-1] / math.sqrt(length), (integral / length - path[-1] / 2) / math.sqrt(length / 12)))
    return torch.stack([w for w, _ in rows]), torch.stack([k for _, k in rows])


# The laws


def gram(ticks: list[int]) -> Tensor:
    """Covariance of all increments and areas of a grid."""
    rows = torch.cat(weights(ticks))
    return rows @ rows.T


def test_increments_and_areas_of_the_leaves_are_independent_standard_normals() -> None:
    torch.testing.assert_close(gram(list(range(LEAVES + 1))), torch.eye(2 * LEAVES, dtype=torch.float64))


@settings(max_examples=40, deadline=None)
@given(TICKS)
def test_those_of_any_grid_are_what_the_leaves_make_of_them(ticks: list[int]) -> None:
    leaves = weights(list(range(LEAVES + 1)))
    for found, expected in zip(weights(ticks), by_definition(*leaves, ticks), strict=True):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gram(ticks), torch.eye(2 * len(ticks) - 2, dtype=torch.float64))


@pytest.mark.parametrize("which", range(3))
def test_a_wrong_rotation_is_found_out(which: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dyadic, "ROOTS", tuple(0.9 * r if i == which else r for i, r in enumerate(dyadic.ROOTS)))
    assert (gram(list(range(LEAVES + 1))) - torch.eye(2 * LEAVES, dtype=torch.float64)).abs().max() > 0.01


def test_a_midpoint_that_does_not_know_the_area_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Levy's midpoint with areas of its own: increments are right, and areas are those of another path."""

    def halve(pair, fresh):
        (w, k), (z1, z2) = pair, fresh
        return ((w + z1) * math.sqrt(0.5), k), ((w - z1) * math.sqrt(0.5), z2)

    monkeypatch.setattr(dyadic, "halve", halve)
    increments, areas = weights([0, 5, 32, 64])
    expected = by_definition(*weights(list(range(LEAVES + 1))), [0, 5, 32, 64])
    torch.testing.assert_close(increments, expected[0])
    assert (areas - expected[1]).abs().max() > 0.1


def test_increments_and_areas_are_independent_standard_normals_in_a_sample_of_them() -> None:
    count = 20_000
    steps = BrownianTree().along(gm.Draws(3, count), TIMES)
    rows = [now.fork(stream).normal((count, 2)) for now in steps for stream in (BROWNIAN, AREA)]
    z = torch.cat(rows, 1).T
    assert z.shape == (4 * len(steps), count)
    assert z.mean(1).abs().max() < 5 / math.sqrt(count)
    assert (torch.cov(z) - torch.eye(len(z))).abs().max() < 5 * math.sqrt(2 / count)
    assert (z**4).mean(1).sub(3).abs().max() < 5 * math.sqrt(96 / count)


def test_short_steps_lose_no_digits() -> None:
    """Single precision agrees with double to its rounding, also in a step of 2**-22 far from 0."""
    times = [0.7, 0.7 + 2.0**-22, 0.7 + 2.0**-21]
    for stream in (BROWNIAN, AREA):
        single, double = (
            BrownianTree().along(gm.Draws(0, 500), times)[1].fork(stream).normal((500, 3), dtype)
            for dtype in (torch.float32, torch.float64)
        )
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), double, rtol=0, atol=2e-5)


# One path


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=3, max_size=6, unique_by=lambda t: round(t * 2**24)).map(sorted))
def test_fine_steps_make_up_the_coarse_one(times: list[float]) -> None:
    tree, draws, shape = BrownianTree(), gm.Draws(1, 3), (3, 2)
    ticks = [round(t * 2**24) / 2**24 for t in times]
    path, integral = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    for (t, s), (a, b) in zip(pairwise(times), pairwise(ticks), strict=True):
        increment, area = tree.draw(draws, t, s, shape, torch.float64)
        integral += (b - a) * (path + increment / 2 + area)
        path += increment
    increment, area = tree.draw(draws, times[0], times[-1], shape, torch.float64)
    torch.testing.assert_close(path, increment, rtol=0, atol=1e-12)
    length = ticks[-1] - ticks[0]
    torch.testing.assert_close(integral / length - path / 2, area, rtol=0, atol=1e-11)


def noise(
    times, draws: gm.Draws, shape: tuple[int, ...], *, depth: int = 24, order=None, dtype=torch.float32
) -> Tensor:
    steps = BrownianTree(depth).along(draws, times)
    found = {}
    for i in range(len(steps)) if order is None else order:
        found[i] = torch.stack([steps[i].fork(stream).normal(shape, dtype) for stream in (BROWNIAN, AREA)])
    return torch.stack([found[i] for i in sorted(found)])


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(len(TIMES) - 1)), st.sampled_from([(5, 3), (3, 3000)]), st.booleans())
def test_the_order_of_questions_does_not_matter(order: list[int], shape: tuple[int, ...], falls: bool) -> None:
    """The second shape is too large for the normals of several nodes to be made at once."""
    times = TIMES[::-1] if falls else TIMES
    draws = gm.Draws(0, shape[0])
    assert torch.equal(noise(times, draws, shape, depth=12, order=order), noise(times, draws, shape, depth=12))


def test_a_step_asked_again_or_alone_is_the_same() -> None:
    draws, shape = gm.Draws(0, 4), (4, 3)
    steps = BrownianTree().along(draws, TIMES)
    first = steps[3].fork(BROWNIAN).normal(shape)
    kept = first.clone()
    first.zero_()  # what is handed out is the caller's
    assert torch.equal(steps[3].fork(BROWNIAN).normal(shape), kept)
    (alone,) = BrownianTree().along(draws, TIMES[3:5])
    assert torch.equal(alone.fork(BROWNIAN).normal(shape), kept)
    length = alone.length
    assert length == pytest.approx(TIMES[4] - TIMES[3], abs=1e-7)
    increment, _ = BrownianTree().draw(draws, *TIMES[3:5], shape)
    torch.testing.assert_close(increment, kept * math.sqrt(length))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [1, 7, 64])
def test_batches_shards_and_shapes_do_not_matter(size: int, dtype: torch.dtype) -> None:
    whole = noise(TIMES, gm.Draws(5, 64, first_index=3), (64, 3, 2), dtype=dtype)
    parts = [
        noise(TIMES, gm.Draws(5, n, first_index=3 + i), (n, 3, 2), dtype=dtype)
        for i in range(0, 64, size)
        for n in [min(size, 64 - i)]
    ]
    assert torch.equal(torch.cat(parts, 2), whole)
    flat = noise(TIMES, gm.Draws(5, 64, first_index=3), (64, 6), dtype=dtype)
    assert torch.equal(flat.reshape(whole.shape), whole)
    assert torch.equal(noise(TIMES, gm.Draws(5, 64, first_index=3), (64, 4), dtype=dtype), flat[..., :4])
    assert not torch.equal(noise(TIMES, gm.Draws(5, 64, first_index=4), (64, 6), dtype=dtype), flat)
    assert len(whole.unique()) > 0.99 * whole.numel()


@pytest.mark.gpu
def test_a_gpu_follows_the_same_path() -> None:
    here, there = (noise(TIMES, gm.Draws(5, 64, device=device), (64, 6)) for device in ("cpu", "cuda"))
    torch.testing.assert_close(there.cpu(), here, rtol=0, atol=2e-5)


def test_falling_times_run_the_same_path_back() -> None:
    up, down = (noise(times, gm.Draws(0, 6), (6, 2)) for times in (TIMES, TIMES[::-1]))
    assert torch.equal(down.flip(0)[:, 0], -up[:, 0])  # W_s - W_t
    assert torch.equal(down.flip(0)[:, 1], up[:, 1])  # the area is the same from both ends


def test_times_are_rounded_to_the_depth() -> None:
    draws, shape = gm.Draws(0, 4), (4, 2)
    rounded = [round(t * 2**10) / 2**10 for t in TIMES]
    assert torch.equal(noise(TIMES, draws, shape, depth=10), noise(rounded, draws, shape, depth=10))
    assert torch.equal(noise(rounded, draws, shape, depth=10), noise(rounded, draws, shape, depth=32))
    assert not torch.equal(noise(TIMES, draws, shape, depth=10), noise(TIMES, draws, shape, depth=11))
    assert repr(BrownianTree(10)) == "BrownianTree(depth=10)"


# As draws of a step


def test_all_else_is_drawn_as_ever() -> None:
    draws = gm.Draws(7, 5, first_index=2)
    steps = BrownianTree().along(draws, TIMES)
    for i, now in enumerate(steps):
        plain = draws.at(i)
        for other, same in (
            (now, plain),
            (now.fork(20), plain.fork(20)),
            (now.fork(20).at(1000), plain.fork(20).at(1000)),
        ):
            assert torch.equal(other.normal((5, 3)), same.normal((5, 3)))
            assert torch.equal(other.uniform((5, 3)), same.uniform((5, 3)))
            assert torch.equal(other.integers((5, 3), 9), same.integers((5, 3), 9))
            assert torch.equal(other.bits((5, 3)), same.bits((5, 3)))
            assert (other.seed, other.samples, other.first_index) == (7, 5, 2)
            assert (other.step, other.stream, other.device) == (same.step, same.stream, same.device)
        assert torch.equal(now.fork(BROWNIAN).uniform((5, 3)), plain.fork(BROWNIAN).uniform((5, 3)))
        assert torch.equal(now.normals([0, 3], (5, 2)), draws.normals([0, 3], (5, 2)))
        assert not torch.equal(now.fork(BROWNIAN).normal((5, 3)), plain.fork(BROWNIAN).normal((5, 3)))
    assert "first_index=2" in repr(steps[0])


def test_forks_have_paths_of_their_own() -> None:
    (now,) = BrownianTree().along(gm.Draws(0, 400), (0.2, 0.7))
    z = torch.stack(
        [draws.fork(BROWNIAN).normal((400,)) for draws in (now, now.fork(64), now.fork(65), now.fork(64).fork(9))]
    )
    assert (torch.corrcoef(z) - torch.eye(4)).abs().max() < 5 / 20
    again = BrownianTree().along(gm.Draws(0, 400).fork(64), (0.2, 0.7))[0]
    assert torch.equal(again.fork(BROWNIAN).normal((400,)), z[1])
    steps = BrownianTree().along(gm.Draws(0, 400), (0.2, 0.4, 0.7))
    assert torch.equal(
        steps[0].fork(64).at(1).fork(BROWNIAN).normal((400,)), steps[1].fork(64).fork(BROWNIAN).normal((400,))
    )
    assert [one.step for one in now.steps(2)] == [0, 1]


def test_the_nodes_are_draws_of_their_own_stream() -> None:
    """The root: the whole interval is the first two normals of node 0."""
    draws = gm.Draws(4, 3, first_index=1)
    (now,) = BrownianTree().along(draws, (0.0, 1.0))
    fresh = draws.fork(NODES).normal((3, 2, 2))
    assert torch.equal(now.fork(BROWNIAN).normal((3, 2)), fresh[..., 0])
    assert torch.equal(now.fork(AREA).normal((3, 2)), fresh[..., 1])


def test_prepared_draws_are_the_same() -> None:
    steps = BrownianTree().along(gm.Draws(0, 4), TIMES)
    for now in steps:
        ready = now.prepare((4, 2))
        for stream in (BROWNIAN, AREA):
            assert torch.equal(ready.fork(stream).normal((4, 2)), now.fork(stream).normal((4, 2)))
            assert torch.equal(ready.fork(64).fork(stream).normal((4, 2)), now.fork(64).fork(stream).normal((4, 2)))
            assert torch.equal(ready.fork(stream).normal((4, 3)), now.fork(stream).normal((4, 3)))
            double = now.fork(stream).normal((4, 2), torch.float64)
            assert torch.equal(ready.fork(stream).normal((4, 2), torch.float64), double)
        assert torch.equal(ready.fork(20).normal((4, 2)), now.fork(20).normal((4, 2)))
    with pytest.raises(ValueError, match="before they are forked"):
        steps[0].fork(64).prepare((4, 2))


@pytest.mark.parametrize("steps", [64, 50])
def test_neighbouring_steps_share_what_is_above_them(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each node is halved once in a run, and what is held is a state or so for each level."""
    halved: list[object] = []
    original = dyadic.halve
    monkeypatch.setattr(dyadic, "halve", lambda *pairs: halved.append(pairs) or original(*pairs))
    times = [i / steps for i in range(steps + 1)]
    course = Course(24, [round(t * 2**24) for t in times])
    held = []
    for i in range(steps):
        course.pair(gm.Draws(0, 2), i, (2, 3), torch.float32)
        (walk,) = course._walks.values()
        held.append(len(walk.values))
    assert len(halved) <= (63 if steps == 64 else steps * (24 - math.floor(math.log2(steps))))
    assert max(held) <= (6 if steps == 64 else 24)


# Wrong input


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([0.5], "at least two times, got 1"),
        ([0.0, 1.2], "must be in .0, 1., got 0 to 1.2"),
        ([0.0, float("nan")], "must be in"),
        ([0.0, 0.5, 0.4], "rise strictly .* or fall strictly"),
        ([0.5, 0.5], "rise strictly"),
        ([0.3, 0.3 + 1e-9], "cannot tell the times .* apart.*deeper tree"),
    ],
)
def test_wrong_times_are_refused(times: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BrownianTree().along(gm.Draws(0, 2), times)


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"depth must be in \[1, 32\], got 33"):
        BrownianTree(33)
    with pytest.raises(TypeError, match="depth must be an integer, got float"):
        BrownianTree(24.0)  # type: ignore[arg-type]
    (now,) = BrownianTree().along(gm.Draws(0, 2), (0.0, 1.0))
    with pytest.raises(ValueError, match="draws for 2 samples have shape"):
        now.fork(BROWNIAN).normal((3, 2))
    with pytest.raises(TypeError, match="floating dtype, asked for"):
        now.fork(BROWNIAN).normal((2, 2), torch.int64)
    with pytest.raises(ValueError, match="asked for step 1 of a run of 1 steps"):
        now.at(1).fork(BROWNIAN).normal((2, 2))
    assert isinstance(now.at(1), TreeDraws)
