"""How runs end: at the data without a trace of noise or bins, at the source without a trace of data."""

from __future__ import annotations

import math

import pytest
import torch
from jump_worlds import exact_jump
from torch import Tensor, nn

import genmatch as gm
from genmatch.diffusivity import Constant, Curvature, EndpointSafe, StateDependent

F64 = torch.float64
RHO, SD = 0.9, 0.3
EDGES = torch.linspace(-6, 6, 121)
ATOMS, SHARES = torch.tensor([[-0.8], [0.6]]), torch.tensor([0.4, 0.6])


class Correlated(nn.Module):
    """The exact rates of two correlated normal coordinates that blend in one by one from a standard normal source."""

    def masses(self, mean: Tensor, spread: float) -> Tensor:
        ends = EDGES.double().clone()
        ends[0], ends[-1] = -1e9, 1e9
        return torch.special.ndtr((ends - mean[:, None]) / spread).diff(dim=-1).clamp(min=1e-30)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x, kappa = x.double(), t.double().clamp(1e-9, 1 - 1e-9)

        def log_normal(y: Tensor, mean: Tensor | float, variance: float) -> Tensor:
            return -0.5 * (y - mean) ** 2 / variance - 0.5 * math.log(2 * math.pi * variance)

        joint = log_normal(x[:, 0], 0.0, SD**2) + log_normal(x[:, 1], RHO * x[:, 0], SD**2 * (1 - RHO**2))
        out = []
        for a, b in (x.unbind(1), x.flip(1).unbind(1)):
            source, data = log_normal(a, 0.0, 1.0), [log_normal(y, 0.0, SD**2) for y in (a, b)]
            none = 2 * (1 - kappa).log() + source + log_normal(b, 0.0, 1.0)
            other = (1 - kappa).log() + kappa.log() + source + data[1]
            this = kappa.log() + (1 - kappa).log() + data[0] + log_normal(b, 0.0, 1.0)
            stays = torch.logaddexp(none, other)
            whole = torch.stack([none, other, this, 2 * kappa.log() + joint]).logsumexp(0)
            known = (other - stays).exp()[:, None]
            mass = known * self.masses(RHO * b, SD * math.sqrt(1 - RHO**2)) + (1 - known) * self.masses(0 * b, SD)
            out.append(torch.cat([(stays - whole)[:, None], mass.log()], 1))
        return torch.stack(out, 1).float()


def test_coordinates_that_have_arrived_are_not_drawn_anew():
    model = gm.predict.Rates(Correlated(), gm.ContinuousMixturePath(whole=False), EDGES, data_range=(-6.0, 6.0))
    x = gm.sample(gm.Jump(model), (4000, 2), steps=30, seed=0)
    assert torch.corrcoef(x.T)[0, 1].item() > 0.82  # 0.9, less the bins and the steps; near 0.9 ** 3 if all were
    assert (x.std(0) / SD - 1).abs().max().item() < 0.06


@pytest.mark.parametrize("solver", [gm.solvers.Euler(), gm.solvers.EndPoint(), gm.solvers.Strang()], ids=repr)
@pytest.mark.parametrize("weights", [(0.5, 0.5), (lambda t: t, lambda t: 1 - t)], ids=["constant", "in time"])
def test_a_sum_of_flow_and_jumps_ends_in_the_data(solver, weights):
    jump = gm.Jump(exact_jump(ATOMS, SHARES, torch.linspace(-1.7, 1.7, 69)))
    flow = gm.Flow(gm.worlds.GaussianMixture(ATOMS, 0.0, SHARES).predictor(gm.GaussianPath()))
    x = gm.sample(weights[0] * flow + weights[1] * jump, (500, 1), steps=20, seed=0, solver=solver)
    gap = (x - ATOMS.T).abs().amin(1)
    assert gap.quantile(0.9).item() < 1e-3


def point(at: float = 0.0) -> gm.predict.Predictor:
    return gm.worlds.GaussianMixture(torch.full((1, 2), at), 0.0).predictor(gm.GaussianPath())


@pytest.mark.parametrize("solver", [gm.solvers.Euler(), gm.solvers.EndPoint()], ids=repr)
@pytest.mark.parametrize(
    "noise",
    [
        EndpointSafe(),
        Constant(1.0),
        StateDependent(lambda x, t: torch.exp(-x[:, :1].square()), EndpointSafe()),
        Curvature(EndpointSafe()),
    ],
    ids=lambda noise: type(noise).__name__,
)
def test_noise_ends_in_the_data(noise, solver):
    x = gm.sample(gm.Diffusion(point(), noise), (100, 2), steps=20, seed=0, solver=solver)
    assert x.abs().max().item() < 1e-5


@pytest.mark.parametrize("solver", [gm.solvers.Euler(), gm.solvers.Heun()], ids=repr)
@pytest.mark.parametrize("kind", [gm.Bridge, gm.Flow])
def test_bridges_end_in_the_data(kind, solver):
    class Zero(nn.Module):
        def forward(self, x, t):
            return torch.zeros_like(x)

    model = gm.predict.BridgeData(Zero(), gm.BridgePath(1.0))
    x = gm.sample(kind(model), gm.Draws(1, 100).normal((100, 2)), steps=10, start=0.02, seed=0, solver=solver)
    assert x.abs().max().item() < 1e-5


@pytest.mark.parametrize(
    "solver", [gm.solvers.Euler(), gm.solvers.TwoEvent(), gm.solvers.Strang(), gm.solvers.EndPoint()], ids=repr
)
def test_no_state_of_a_mixture_path_is_left_behind(solver):
    class Ratio(nn.Module):  # log p_1 / p_0 of data at two far points and a normal source
        def forward(self, x, t):
            far = (x.abs() - 9).abs() > 1e-3
            return torch.where(far, -40.0, 40.0).squeeze(-1)

    data = torch.tensor([[-9.0], [9.0]])
    jump = gm.MixtureJump(gm.predict.Survival(Ratio(), gm.ContinuousMixturePath()), data)
    x = gm.sample(jump, (1000, 1), steps=5, seed=0, solver=solver)
    assert x.abs().sub(9).abs().max().item() < 1e-5


def test_a_memoryless_diffusion_does_not_run_back_to_its_infinite_noise():
    world = gm.worlds.GaussianMixture(torch.tensor([[-1.5, 0.0], [1.5, 0.0]]), 0.2)
    model, x1 = world.predictor(gm.GaussianPath()), world.sample(4000, seed=0)
    with pytest.raises(ValueError, match=r"the noise is infinite at t = 0, where this run ends: stop a little before"):
        gm.sample(gm.Reverse(gm.Diffusion(model)), x1, start=0.999, stop=0.0, steps=20)
    x = gm.sample(gm.Reverse(gm.Diffusion(model)), x1, start=0.999, stop=0.02, steps=200, seed=1)
    expected = 0.02**2 * torch.tensor([1.5**2 + 0.2, 0.2]) + 0.98**2
    assert (x.var(0) / expected - 1).abs().max().item() < 0.08


def test_a_bridge_runs_back_with_its_noise():
    class Zero(nn.Module):
        def forward(self, x, t):
            return torch.zeros_like(x)

    reverse = gm.Reverse(gm.Bridge(gm.predict.BridgeData(Zero(), gm.BridgePath(1.0))))
    x = gm.sample(reverse, torch.zeros(8000, 1), start=0.999, stop=0.5, steps=100, seed=0)
    assert x.var().item() == pytest.approx(0.25 + 0.25, rel=0.08)  # (1 - t)^2 of the source, t (1 - t) of the bridge


@pytest.mark.parametrize("b", [0.0, 0.5])
def test_chains_run_back_to_the_source(b: float):
    class Flat(nn.Module):
        def forward(self, x, t):
            return torch.zeros(*x.shape, 4)

    model = gm.predict.Tokens(Flat(), gm.MixturePath(4, mask=4))
    forward = (1 + b) * gm.CTMC(model) + b * gm.ReverseCTMC(model)
    x = gm.sample(gm.Reverse(forward), torch.zeros(500, 4, dtype=torch.int64), start=1.0, stop=0.0, steps=6, seed=0)
    assert bool((x == 4).all())


@pytest.mark.parametrize("solver", [gm.solvers.Strang(), gm.solvers.TwoEvent(), gm.solvers.EndPoint()], ids=repr)
def test_prompts_stay(solver):
    class Flat(nn.Module):
        def forward(self, x, t):
            return torch.zeros(*x.shape, 4)

    model = gm.predict.Tokens(Flat(), gm.MixturePath(4))
    x = torch.arange(4).repeat(200, 1)
    fixed = torch.zeros_like(x, dtype=torch.bool)
    fixed[:, 0] = True
    corrected = 1.5 * gm.CTMC(model) + 0.5 * gm.ReverseCTMC(model)
    y = gm.sample(corrected, x, steps=8, seed=0, fixed=fixed, solver=solver)
    assert torch.equal(y[:, 0], x[:, 0])
    assert not torch.equal(y[:, 1], x[:, 1])


@pytest.mark.parametrize(
    "build", [lambda c: 0.5 * c - 0.5 * gm.ReverseCTMC(c.model), lambda c: c - gm.TokenChurn(c.model)]
)
def test_negative_rates_are_seen_on_a_single_token(build):
    class Flat(nn.Module):
        def forward(self, x, t):
            return torch.zeros(*x.shape, 4)

    chain = gm.CTMC(gm.predict.Tokens(Flat(), gm.MixturePath(4, mask=4)))
    with pytest.raises(ValueError, match="make a jump rate negative"):
        gm.sample(build(chain), (4, 1), steps=4, seed=0)


def test_sources_that_are_not_the_vocabulary_s_are_refused():
    with pytest.raises(ValueError, match="the source draws from 3 tokens and the vocabulary is 5"):
        gm.MixturePath(5, source=gm.paths.UniformTokens(3))
    with pytest.raises(ValueError, match="a mask is given by mask=7"):
        gm.MixturePath(5, source=gm.paths.Masked(7))
    with pytest.raises(ValueError, match=r"needs its source: gm\.paths\.UniformPoints"):
        gm.ContinuousMixturePath(space=gm.spaces.Sphere())


def test_gradients_through_noise_that_vanishes_are_finite():
    network = gm.nn.MLP(2, width=8)
    noise = StateDependent(lambda x, t: x[:, :1].relu(), EndpointSafe())
    sde = gm.Diffusion(gm.predict.Velocity(network, gm.GaussianPath()), noise)
    gm.sample(sde, (16, 2), steps=3, seed=0, grad=True, stop=0.9).square().sum().backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in network.parameters())
