"""Inversion of flows and partly noised samples."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import genmatch as gm
from genmatch.solvers import RK4, Dopri5

WORLD = gm.worlds.GaussianMixture(
    torch.tensor([[-1.5, 0.2], [1.0, 1.2], [0.6, -1.0]]),
    torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.2, 0.0], [0.0, 0.4]], [[0.25, -0.1], [-0.1, 0.3]]]),
)
FINE = Dopri5(1e-6, 1e-6)
CONDOT, COSINE, VP = gm.schedules.CondOT(), gm.schedules.Cosine(), gm.schedules.VP()


class Wavy(nn.Module):
    """A random network of two layers, bent as much as a trained one."""

    def __init__(self, size: int, seed: int = 0) -> None:
        super().__init__()
        draws = gm.Draws(seed, 64)
        self.first = nn.Parameter(draws.fork(1).normal((64, size + 1)))
        self.second = nn.Parameter(draws.fork(2).normal((64, size)).T / 8)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        joined = torch.cat([x.flatten(1), t[:, None]], 1)
        return (torch.tanh(joined @ self.first.T) @ self.second.T).reshape(x.shape)


def wavy(kind: type = gm.predict.Velocity, schedule: gm.Schedule = CONDOT, size: int = 12) -> gm.Flow:
    return gm.Flow(kind(Wavy(size), gm.GaussianPath(schedule)))


@pytest.mark.parametrize("schedule", [CONDOT, COSINE, VP], ids=lambda s: type(s).__name__)
def test_the_round_trip_of_a_mixture_in_float32(schedule: gm.Schedule) -> None:
    flow = gm.Flow(WORLD.predictor(gm.GaussianPath(schedule)))
    x1 = WORLD.sample(256, seed=0)
    x0 = gm.encode(flow, x1)
    back = gm.sample(flow, x0, solver=FINE)
    assert x0.dtype == back.dtype == torch.float32
    assert (back - x1).abs().max() < 1e-4
    exact = gm.encode(flow, x1.double(), tolerance=1e-9)
    assert (x0 - exact).abs().max() < 1e-4


def test_the_round_trip_of_a_random_network_in_float32() -> None:
    """On a state of any shape; with a large tolerance it does not close."""
    flow = wavy()
    x1 = gm.Draws(1, 8).normal((8, 3, 2, 2))
    x0 = gm.encode(flow, x1)
    back = gm.sample(flow, x0, solver=FINE)
    assert (back - x1).abs().max() < 1e-4
    loose = Dopri5(1e-2, 1e-2)
    assert (gm.sample(flow, gm.encode(flow, x1, solver=loose), solver=loose) - x1).abs().max() > 1e-4


@pytest.mark.parametrize("kind", [gm.predict.V, gm.predict.Velocity])
def test_the_round_trip_shrinks_with_the_tolerance(kind: type) -> None:
    flow = wavy(kind).double()
    x1 = gm.Draws(1, 8).normal((8, 12), torch.float64)
    errors = []
    for tolerance in (1e-4, 1e-6, 1e-8):
        x0 = gm.encode(flow, x1, tolerance=tolerance)
        back = gm.sample(flow, x0, solver=Dopri5(tolerance, tolerance))
        errors.append((back - x1).abs().max().item() / tolerance)
    assert max(errors) < 30


def test_part_of_the_way() -> None:
    flow = gm.Flow(WORLD.predictor(gm.GaussianPath(CONDOT)))
    x1 = WORLD.sample(8, seed=0)
    half = gm.encode(flow, x1, stop=0.6)
    assert (gm.sample(flow, half, start=0.6, solver=FINE) - x1).abs().max() < 1e-4
    rest = gm.encode(flow, half, start=0.6)
    assert (rest - gm.encode(flow, x1)).abs().max() < 1e-3


def test_a_solver_and_conditions_are_passed_on() -> None:
    class Conditional(nn.Module):
        def forward(self, x: Tensor, t: Tensor, rate: Tensor) -> Tensor:
            return rate[:, None] * torch.ones_like(x)

    flow = gm.Flow(gm.predict.Velocity(Conditional(), gm.GaussianPath()))
    rates = torch.tensor([1.0, 2.0, 3.0])
    x1 = torch.zeros(3, 1)
    for options in ({}, {"solver": RK4(), "steps": 3}, {"batch_size": 2}):
        x0 = gm.encode(flow, x1, condition={"rate": rates}, **options)
        assert (x0[:, 0] + rates).abs().max() < 1e-5


def test_gradients_flow_through_the_inverse() -> None:
    flow = wavy()
    x1 = gm.Draws(1, 2).normal((2, 12)).requires_grad_()
    x0 = gm.encode(flow, x1, grad=True)
    back = gm.sample(flow, x0, solver=FINE, grad=True)
    (gradient,) = torch.autograd.grad(back[0, 3], x1)
    expected = torch.zeros(2, 12)
    expected[0, 3] = 1
    assert (gradient - expected).abs().max() < 1e-3


def test_what_encode_refuses() -> None:
    model = WORLD.predictor(gm.GaussianPath(CONDOT))
    flow, x1 = gm.Flow(model), WORLD.sample(2, seed=0)
    with pytest.raises(TypeError, match=r"encode takes a generator such as gm\.Flow"):
        gm.encode(model, x1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="encode takes a tensor of samples"):
        gm.encode(flow, (2, 2))  # type: ignore[arg-type]
    for generator in (gm.Diffusion(model), gm.Diffusion(model, gm.diffusivity.EndpointSafe())):
        with pytest.raises(ValueError, match=r"has variance: a random run has no inverse. .*gm.Flow\(model\)"):
            gm.encode(generator, x1)
    tokens = gm.CTMC(gm.predict.Tokens(nn.Identity(), gm.MixturePath(3, mask=3)))
    with pytest.raises(ValueError, match="jumps have no inverse"):
        gm.encode(tokens, torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"1 >= start > stop >= 0, got 0.2 and 0.6"):
        gm.encode(flow, x1, start=0.2, stop=0.6)
    with pytest.raises(ValueError, match=r"give a solver, .* or a tolerance, not both"):
        gm.encode(flow, x1, solver=RK4(), tolerance=1e-3)


# Partly noised samples


def test_a_noised_sample_is_a_state_of_the_path() -> None:
    x1 = torch.full((4000, 2), 1.5)
    state = gm.noised(gm.GaussianPath(COSINE), x1, 0.6, seed=0)
    alpha, sigma = COSINE(torch.tensor(0.6))
    assert (state.mean(0) - alpha * 1.5).abs().max() < 5 * sigma / 4000**0.5
    assert (state.std(0) / sigma - 1).abs().max() < 5 / 8000**0.5
    assert torch.equal(gm.noised(gm.GaussianPath(CONDOT), x1, 1.0, seed=0), x1)


def test_noise_depends_on_seed_and_index_alone() -> None:
    path, x1 = gm.GaussianPath(), WORLD.sample(6, seed=0).double()
    state = gm.noised(path, x1, 0.6, seed=3)
    assert state.dtype == torch.float64
    assert torch.equal(gm.noised(path, x1[4:], 0.6, seed=3, first_index=4), state[4:])
    assert not torch.equal(gm.noised(path, x1, 0.6, seed=4), state)


def test_samples_of_noised_data_have_the_law_of_the_data() -> None:
    """And stay near what they were: less is left of them the earlier the time."""
    flow = gm.Flow(WORLD.predictor(gm.GaussianPath(CONDOT)))
    x1 = WORLD.sample(2000, seed=0)
    kept = []
    for t in (0.05, 0.6, 0.95):
        edited = gm.sample(flow, gm.noised(flow.path, x1, t, seed=0), start=t, steps=20)
        assert (edited.mean(0) - WORLD.mean).abs().max() < 0.15
        assert (edited.T.cov() - WORLD.covariance).abs().max() < 0.25
        kept.append((edited - x1).norm(dim=1).mean().item())
    assert kept == sorted(kept, reverse=True)
    assert kept[0] > 3 * kept[-1]


def test_tokens_and_products_are_noised_as_well() -> None:
    path = gm.MixturePath(5, mask=5)
    tokens = torch.arange(5).repeat(200, 4)
    state = gm.noised(path, tokens, 0.6, seed=0)
    masked = state == 5
    assert torch.equal(state[~masked], tokens[~masked])
    assert masked.double().mean().item() == pytest.approx(0.4, abs=0.05)
    both = gm.ProductPath({"x": gm.GaussianPath(), "k": path})
    state = gm.noised(both, {"x": torch.zeros(200, 2), "k": tokens}, 0.6, seed=0)
    assert state["x"].shape == (200, 2)
    assert (state["k"] == 5).any()


def test_what_noised_refuses() -> None:
    x1 = torch.zeros(2, 3)
    paired = gm.GaussianPath(coupling=gm.couplings.OT())
    with pytest.raises(ValueError, match="pairs source and data"):
        gm.noised(paired, x1, 0.6)
    with pytest.raises(TypeError, match=r"noised takes a path such as flow\.path"):
        gm.noised(wavy(), x1, 0.6)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="t must be a number"):
        gm.noised(gm.GaussianPath(), x1, torch.tensor([0.1, 0.2]))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"t must be in \[0, 1\]"):
        gm.noised(gm.GaussianPath(), x1, 1.5)
