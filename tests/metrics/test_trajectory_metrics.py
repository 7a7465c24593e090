"""Curvature, straightness and kinetic energy against the exact trajectories of Gaussian flows.

The flow from N(0, I) to N(m, c^2 I) on the CondOT path is Z_t = t m + s_t x0 with s_t^2 = t^2 c^2 + (1 - t)^2. Then
s'^2 = 1 + c^2 - c^2 / s^2, and the integral of 1 / s^2 over [0, 1] is (arctan c + arctan 1/c) / c = pi / 2c, so

    int s'^2 dt = 1 + c^2 - pi c / 2,    K = |m|^2 + d int s'^2,    S = d (int s'^2 - (1 - c)^2) = (2 - pi/2) c d.

With x0 in place of its law, d becomes the mean of |x0|^2 and nothing is left to chance.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import genmatch as gm

CURVATURE, STRAIGHTNESS, ENERGY = gm.metrics.curvature, gm.metrics.straightness, gm.metrics.kinetic_energy


def condot(x0: Tensor, c: float, m: Tensor | float, times: Tensor) -> Tensor:
    t = times.reshape(-1, *[1] * x0.ndim)
    return t * m + ((t * c) ** 2 + (1 - t) ** 2).sqrt() * x0


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def grid(steps: int) -> Tensor:
    return torch.linspace(0, 1, steps + 1, dtype=torch.float64)


# Curvature


@pytest.mark.parametrize("c", [0.5, 2.0])
def test_curvature_of_a_gaussian_flow_that_turns_round(c: float):
    # s falls to its minimum c / sqrt(1 + c^2) at t = 1 / (1 + c^2), which is on this grid, and rises to c.
    result = CURVATURE(condot(normal(7, 2, 3), c, 0.0, grid(10)))
    expected = (1 + c - 2 * c / math.sqrt(1 + c**2)) / abs(1 - c)
    assert torch.allclose(result.values, torch.full((7,), expected, dtype=torch.float64), rtol=1e-12)
    assert (result.median, result.mean, result.ratio) == pytest.approx((expected,) * 3, rel=1e-12)
    assert (result.excluded, result.steps) == (0, 10)


@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
def test_curvature_of_a_half_circle(steps: int):
    angle = math.pi * grid(steps)
    arc = torch.stack([angle.cos(), angle.sin()], -1)[:, None]
    inscribed = steps * math.sin(math.pi / (2 * steps))  # N chords of 2 sin(pi / 2N) over a diameter of 2
    assert CURVATURE(arc).median == pytest.approx(inscribed, rel=1e-12)
    if steps == 1000:
        assert CURVATURE(arc).median == pytest.approx(math.pi / 2, rel=1e-6)


def test_a_straight_line_has_curvature_one_at_any_speed():
    progress = torch.tensor([0.0, 0.01, 0.5, 0.6, 1.0], dtype=torch.float64)
    line = progress[:, None, None, None] * normal(3, 4, 5)
    assert torch.allclose(CURVATURE(line).values, torch.ones(3, dtype=torch.float64), rtol=1e-12)
    back = torch.tensor([0.0, 0.5, 0.25, 1.0], dtype=torch.float64)  # straight, but not monotone
    assert CURVATURE(back[:, None, None] * normal(3, 2)).median == pytest.approx(1.5)


@given(angle=st.floats(0, 6), scale=st.floats(0.01, 100), shift=st.floats(-10, 10), seed=st.integers(0, 100))
def test_curvature_is_invariant_and_at_least_one(angle: float, scale: float, shift: float, seed: int):
    states = normal(6, 4, 2, seed=seed).cumsum(0)
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64)
    before, after = CURVATURE(states), CURVATURE(scale * states @ turn + shift)
    assert torch.allclose(before.values, after.values, rtol=1e-6)
    assert bool((before.values >= 1 - 1e-12).all())
    assert torch.allclose(before.values, CURVATURE(states.flip(0)).values, rtol=1e-12)


def test_samples_that_come_back_are_counted_not_dropped():
    out = torch.tensor([0.0, 1.0, 2.0, 3.0])
    home = torch.tensor([0.0, 1.0, 1.0, 0.0])
    still = torch.zeros(4)
    result = CURVATURE(torch.stack([out, 2 * out, home, still], 1)[..., None])
    assert result.values[:3].tolist() == [1.0, 1.0, math.inf]
    assert math.isnan(float(result.values[3]))
    assert result.excluded == 2
    assert result.mean == 1.0
    assert result.median == 1.0
    assert result.ratio == pytest.approx((3 + 6 + 2 + 0) / (3 + 6))
    # The infinite ones count in the median.
    assert CURVATURE(torch.stack([out, home, home], 1)[..., None]).median == math.inf


def test_the_guard_is_relative_to_the_path_length():
    states = torch.tensor([0.0, 1.0, 0.01], dtype=torch.float64)[:, None, None] * torch.tensor([[1.0], [1e-6]])
    assert CURVATURE(states).excluded == 0  # C = 199 for both, at either scale
    assert CURVATURE(states).mean == pytest.approx(199)
    assert CURVATURE(states, guard=0.01).excluded == 2
    assert math.isnan(CURVATURE(states, guard=0.01).mean)


def test_every_sample_of_an_identity_flow_comes_back():
    # N(0, I) to N(0, I) on CondOT: Z_1 = x0, though the path there is 2 (1 - 1/sqrt 2) |x0| long.
    x0 = normal(50, 2)
    states = condot(x0, 1.0, 0.0, grid(10))
    result = CURVATURE(states)
    assert (result.excluded, result.median) == (50, math.inf)
    assert math.isnan(result.mean)
    assert result.ratio == math.inf
    lengths = states.diff(dim=0).norm(dim=-1).sum(0)
    assert torch.allclose(lengths, (2 - math.sqrt(2)) * x0.norm(dim=-1))


def test_brownian_paths_have_no_curvature_of_their_own():
    # Increments of N steps and the displacement have the same law but for a factor 1/sqrt(N), so the ratio is sqrt(N).
    for steps in (16, 64):
        states = torch.cat([torch.zeros(1, 4000, 2), normal(steps, 4000, 2).cumsum(0) / math.sqrt(steps)])
        assert CURVATURE(states).ratio == pytest.approx(math.sqrt(steps), rel=0.03)


# Straightness and kinetic energy


@pytest.mark.parametrize("c", [0.3, 1.0, 2.0])
def test_straightness_and_energy_of_a_gaussian_flow(c: float):
    x0, m = normal(20, 2, 2), torch.tensor([[1.0, -2.0], [0.5, 0.0]], dtype=torch.float64)
    squares = x0.square().sum((1, 2))
    times = grid(2000)
    states = condot(x0, c, m, times)
    result = STRAIGHTNESS(states, times)
    assert result.value == pytest.approx((2 - math.pi / 2) * c * float(squares.mean()), rel=1e-5)
    moved = float((m + (c - 1) * x0).square().sum((1, 2)).mean())
    assert result.normalised == pytest.approx(result.value / moved, rel=1e-12)
    spread = (2 - math.pi / 2) * c * float(squares.std()) / math.sqrt(20)
    assert result.standard_error == pytest.approx(spread, rel=1e-5)

    # E|m + s' x0|^2 = |m|^2 + 2 <m, x0> (c - 1) + int s'^2 |x0|^2, with the sample's mean of x0 in place of 0.
    cross = 2 * (c - 1) * float((m * x0.mean(0)).sum())
    energy = float(m.square().sum()) + cross + (1 + c**2 - math.pi * c / 2) * float(squares.mean())
    assert ENERGY(states, times) == pytest.approx(energy, rel=1e-5)
    assert result.value == pytest.approx(ENERGY(states, times) - moved, rel=1e-9)  # S = K - E|Z_1 - Z_0|^2


def test_finite_differences_are_low_by_the_second_order_of_the_step():
    x0 = normal(5, 3)
    exact = (2 - math.pi / 2) * 2 * float(x0.square().sum(1).mean())
    gaps = [exact - STRAIGHTNESS(condot(x0, 2.0, 1.0, grid(n)), grid(n)).value for n in (50, 100, 200)]
    assert min(gaps) > 0
    orders = [math.log2(gaps[i] / gaps[i + 1]) for i in range(2)]
    assert orders == pytest.approx([2, 2], abs=0.02)


def test_uneven_speed_on_a_straight_line_is_seen_by_straightness_alone():
    # Z_t = t^2 v: C = 1, K = 4/3 |v|^2, S = 1/3 |v|^2.
    times, v = grid(1000), normal(4, 3)
    states = times[:, None, None] ** 2 * v
    size = float(v.square().sum(1).mean())
    assert CURVATURE(states).median == pytest.approx(1, rel=1e-12)
    assert ENERGY(states, times) == pytest.approx(4 / 3 * size, rel=1e-5)
    assert STRAIGHTNESS(states, times).normalised == pytest.approx(1 / 3, rel=1e-5)


@given(cuts=st.lists(st.floats(0.01, 0.99), min_size=1, max_size=6, unique=True), seed=st.integers(0, 100))
def test_constant_speed_is_straight_on_any_grid(cuts: list[float], seed: int):
    times = torch.tensor([0.0, *sorted(cuts), 1.0], dtype=torch.float64)
    x0, x1 = normal(3, 2, seed=seed), normal(3, 2, seed=seed + 1000)
    states = x0 + times[:, None, None] * (x1 - x0)
    result = STRAIGHTNESS(states, times)
    assert result.value == pytest.approx(0, abs=1e-20 + 1e-24 / float(times.diff().min()))
    assert ENERGY(states, times) == pytest.approx(float((x1 - x0).square().sum(1).mean()), rel=1e-9)
    # Times that do not fit: the same states are then uneven in speed.
    wrong = torch.linspace(0, 1, len(times), dtype=torch.float64)
    if float((wrong - times).abs().max()) > 0.01:
        assert STRAIGHTNESS(states, wrong).value > 1e-5 * float((x1 - x0).square().sum(1).mean())


def test_inequalities_between_length_energy_and_displacement():
    times = torch.tensor([0.0, 0.1, 0.5, 0.7, 1.0], dtype=torch.float64)
    states = normal(5, 200, 3)
    lengths = states.diff(dim=0).norm(dim=-1).sum(0)
    displacement = (states[-1] - states[0]).square().sum(-1).mean()
    assert float(displacement) <= float(lengths.square().mean()) <= ENERGY(states, times)


def test_backwards_and_part_of_the_way():
    times = grid(100)
    states = condot(normal(9, 2), 2.0, 1.0, times)
    forward = STRAIGHTNESS(states, times)
    assert STRAIGHTNESS(states.flip(0), times.flip(0)) == pytest.approx(forward, rel=1e-12)
    # On a span T the straight path's speed is the displacement over T: at constant speed S stays 0.
    half = times[:51, None, None] * normal(9, 2)
    assert STRAIGHTNESS(half, times[:51]).value == pytest.approx(0, abs=1e-20)
    # Z_t = t^2 v on [0, T]: int (T - 2 t)^2 dt = T^3 / 3, the displacement is T^2, and the normalised S 1/3 for any T.
    fine = grid(1000)
    result = STRAIGHTNESS(fine[:501, None, None] ** 2 * normal(9, 2), fine[:501])
    assert result.normalised == pytest.approx(1 / 3, rel=1e-5)
    assert result.value == pytest.approx(0.5**3 / 3 * float(normal(9, 2).square().sum(1).mean()), rel=1e-5)


def test_float32_states_are_measured_in_float64():
    times = grid(100)
    states = 1000 + condot(normal(9, 2), 2.0, 1.0, times)
    assert STRAIGHTNESS(states.float(), times.float()).value == pytest.approx(
        STRAIGHTNESS(states, times).value, rel=1e-4
    )
    leaf = states.clone().requires_grad_()
    assert not CURVATURE(leaf).values.requires_grad
    assert STRAIGHTNESS(states, times.tolist()) == STRAIGHTNESS(states, times)


def test_trajectories_of_the_sampler():
    # The same flow as above, solved from its exact velocity.
    world = gm.worlds.GaussianMixture(torch.zeros(1, 2), 4.0)
    flow = gm.Flow(world.predictor(gm.GaussianPath(gm.schedules.CondOT())))
    x0, times = normal(20, 2), gm.grids.uniform(100)
    states = gm.sample(flow, x0, times=times, trajectory=True)
    size = float(x0.square().sum(1).mean())
    assert CURVATURE(states).median == pytest.approx(3 - 4 / math.sqrt(5), rel=1e-3)
    assert STRAIGHTNESS(states, times).value == pytest.approx((2 - math.pi / 2) * 2 * size, rel=2e-3)
    assert ENERGY(states, times) == pytest.approx((5 - math.pi) * size, rel=2e-3)


# Bad input


@pytest.mark.parametrize(
    ("states", "error", "message"),
    [
        ([1.0], TypeError, "states must be a tensor, got list"),
        (torch.zeros(3, 2, 2, dtype=torch.int64), TypeError, "floating point, got torch.int64"),
        (torch.zeros(3), ValueError, r"\(N \+ 1, B, \*S\).*got \(3,\)"),
        (torch.zeros(1, 5, 2), ValueError, r"got \(1, 5, 2\).*trajectory=True"),
        (torch.zeros(4, 0, 2), ValueError, r"got \(4, 0, 2\)"),
        (torch.tensor([[[0.0]], [[math.nan]]]), ValueError, "1 non-finite values .* among 2"),
    ],
)
def test_bad_states(states: object, error: type, message: str):
    for measure in (CURVATURE, lambda s: STRAIGHTNESS(s, grid(2)), lambda s: ENERGY(s, grid(2))):
        with pytest.raises(error, match=message):
            measure(states)


@pytest.mark.parametrize(
    ("times", "error", "message"),
    [
        (0.1, TypeError, "times must be a tensor, got float"),
        (grid(3), ValueError, r"3 states need times of shape \(3,\), got \(4,\)"),
        (torch.tensor([0.0, 0.5, 0.5]), ValueError, "rise, or fall, strictly"),
        (torch.tensor([0.0, 0.5, 0.2]), ValueError, "rise, or fall, strictly"),
        (torch.tensor([0.0, math.inf, 1.0]), ValueError, "times holds 1 non-finite"),
    ],
)
def test_bad_times(times: object, error: type, message: str):
    for measure in (STRAIGHTNESS, ENERGY):
        with pytest.raises(error, match=message):
            measure(torch.zeros(3, 2, 2), times)


@pytest.mark.parametrize(
    ("guard", "error"), [(1.0, ValueError), (-0.1, ValueError), (math.nan, ValueError), ("x", TypeError)]
)
def test_bad_guard(guard: object, error: type):
    with pytest.raises(error, match="guard must be"):
        CURVATURE(torch.zeros(3, 2, 2), guard=guard)
