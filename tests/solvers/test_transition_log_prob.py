"""Transition probabilities against densities computed by other ways, and what policy gradients need of them."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from typing import Any

import gaussian_line as line
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, MultivariateNormal, Normal, kl_divergence

import genmatch as gm
from genmatch.solvers import (
    DDIM,
    DDPM,
    RK4,
    CategoricalLaw,
    Confidence,
    EndPoint,
    Euler,
    Exponential,
    Field,
    FirstHitting,
    GaussianLaw,
    Heun,
    JumpThinning,
    PointLaw,
    ProductLaw,
    Remasking,
    Solver,
    Strang,
    Thinning,
    TwoEvent,
    find_law,
)
from genmatch.solvers.exponential import Semilinear

SAFE, CONSTANT = gm.diffusivity.EndpointSafe(), gm.diffusivity.Constant(0.7)


def diffusion(kind: str, schedule: gm.Schedule, noise: Any = None) -> gm.Superposition:
    return gm.Diffusion(line.predictor(schedule, kind), noise)


def flow(kind: str, schedule: gm.Schedule) -> gm.Flow:
    return gm.Flow(line.predictor(schedule, kind))


def half_noisy(kind: str, schedule: gm.Schedule) -> gm.Superposition:
    model = line.predictor(schedule, kind)
    return 0.5 * gm.Flow(model) + 0.5 * gm.Diffusion(model)


VP, COSINE, COND = gm.schedules.VP(), gm.schedules.Cosine(), gm.schedules.CondOT()
RUNS = {  # generator, solver, start
    "DDPM": (flow("data", COSINE), DDPM(), 0.0),
    "DDPM of noise": (flow("noise", VP), DDPM(), 0.1),
    "DDIM .4": (flow("v", COND), DDIM(0.4), 0.0),
    "DDIM 1": (flow("velocity", COSINE), DDIM(1.0), 0.0),
    "exponential 1": (diffusion("data", COSINE), Exponential(1), 0.0),
    "exponential 2": (diffusion("data", COSINE), Exponential(2), 0.0),
    "exponential 2 by noise": (diffusion("noise", VP, SAFE), Exponential(2), 0.1),
    "exponential 2 of half the noise": (half_noisy("v", COND), Exponential(2), 0.0),
    "DPM-Solver++ 2": (diffusion("data", COSINE), gm.solvers.DPMSolver(2), 0.1),
    "DPM-Solver 2 by noise": (diffusion("noise", COSINE, SAFE), gm.solvers.DPMSolver(2, form="noise"), 0.1),
    "Euler-Maruyama": (diffusion("data", COND, SAFE), Euler(), 0.0),
    "Euler-Maruyama, constant": (diffusion("velocity", COSINE, CONSTANT), Euler(), 0.1),
}
EACH = pytest.mark.parametrize("name", RUNS)


def states_of(generator: Any, solver: Solver, times: Tensor, x: Tensor, draws: Any) -> Tensor:
    """All states of a run, by the solver's steps."""
    field, states = Field(generator, x), [x]
    carry = solver.start(field, x)
    for c, now in zip(solver.plan(field, times), draws, strict=True):
        x, carry = solver.step(field, x, c, now, carry)
        states.append(x)
    return torch.stack(states)


def joint(generator: Any, solver: Solver, times: Tensor, begin: float) -> MultivariateNormal:
    """The law of the states after the first: the run is an affine map of its normals, read off by unit vectors."""
    steps = len(times) - 1
    x = torch.full((steps + 2, 1), begin, dtype=torch.float64)
    states = states_of(generator, solver, times, x, [line.Probe(i) for i in range(steps)])[1:, :, 0]
    factor = states[:, 2:] - states[:, :1]  # (states, normals)
    return MultivariateNormal(states[:, 0], factor @ factor.T)


@EACH
def test_the_sum_over_steps_is_the_density_of_the_joint_law(name: str) -> None:
    generator, solver, start = RUNS[name]
    times = start + (0.9 - start) * torch.tensor([0.0, 0.15, 0.3, 0.55, 0.8, 1.0], dtype=torch.float64)
    truth = joint(generator, solver, times, 0.3)
    states = gm.sample(
        generator, torch.full((7, 1), 0.3, dtype=torch.float64), times=times, solver=solver, seed=0, trajectory=True
    )
    found = gm.transition_log_prob(generator, states, times=times, solver=solver)
    assert found.shape == (5, 7)
    torch.testing.assert_close(found.sum(0), truth.log_prob(states[1:, :, 0].T), rtol=1e-9, atol=1e-9)


def test_dropping_history_or_scaling_the_noise_is_seen() -> None:
    """The control of the test above: a law that forgets the steps before, or has another variance."""
    generator, solver, _ = RUNS["exponential 2"]
    times = torch.tensor([0.0, 0.15, 0.3, 0.55, 0.8, 0.9], dtype=torch.float64)
    truth = joint(generator, solver, times, 0.3)
    states = gm.sample(
        generator, torch.full((7, 1), 0.3, dtype=torch.float64), times=times, solver=solver, seed=0, trajectory=True
    )
    expected = truth.log_prob(states[1:, :, 0].T)
    field, entry = Field(generator, states[0]), find_law(solver)
    forgetful = torch.stack(
        [
            entry.law(solver, field, states[i], c, None)[0].log_prob(states[i + 1])
            for i, c in enumerate(solver.plan(field, times))
        ]
    )
    assert not torch.allclose(forgetful.sum(0), expected, atol=1e-3)
    laws = list(gm.transition_laws(generator, states, times=times, solver=solver))
    wrong = [GaussianLaw(law.mean, 1.1 * law.std).log_prob(x) for law, x in zip(laws, states[1:], strict=True)]
    assert not torch.allclose(torch.stack(wrong).sum(0), expected, atol=1e-3)


@pytest.mark.parametrize("schedule", [COND, COSINE, VP], ids=lambda s: type(s).__name__)
def test_the_ancestral_step_is_the_posterior_by_bayes(schedule: gm.Schedule) -> None:
    """The noising step from s to t as likelihood, the law of x_s given the data as prior."""
    t, s = 0.35, 0.6
    (alpha, sigma), (later, less) = line.levels(schedule, t), line.levels(schedule, s)
    shrink = alpha / later
    spread = sigma**2 - shrink**2 * less**2
    x, after = torch.randn(2, 9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = line.predictor(schedule, "data")
    variance = 1 / (1 / less**2 + shrink**2 / spread)
    mean = variance * (later * model(x, t).data / less**2 + shrink * x / spread)
    expected = Normal(mean, variance**0.5).log_prob(after).sum(1)
    for generator, solver in ((gm.Flow(model), DDPM()), (gm.Diffusion(model), Exponential(1))):
        found = gm.transition_log_prob(generator, torch.stack([x, after]), times=[t, s], solver=solver)[0]
        torch.testing.assert_close(found, expected)


class Geometric(gm.Generator):
    """Noise that depends on the state."""

    additive = False

    def triplet(self, x: Tensor, t: Any, prediction: Any) -> gm.Triplet:
        return gm.Triplet(drift=prediction.velocity, variance=0.1 + x**2)


def test_noise_that_depends_on_the_state_is_gaussian_given_the_state() -> None:
    generator = Geometric(line.predictor(COND, "velocity"))
    x, after = torch.randn(2, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mean = x + 0.2 * generator.model(x, 0.3).velocity
    expected = Normal(mean, (0.2 * (0.1 + x**2)).sqrt()).log_prob(after).sum(1)
    found = gm.transition_log_prob(generator, torch.stack([x, after]), times=[0.3, 0.5], solver=Euler())
    torch.testing.assert_close(found[0], expected)


def test_a_reversed_diffusion_has_probabilities_from_data_to_noise() -> None:
    generator = gm.Reverse(diffusion("data", COND, SAFE))
    x, after = torch.randn(2, 6, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    triplet = generator(x, 0.7)
    expected = Normal(x + 0.1 * triplet.drift, (0.1 * triplet.variance) ** 0.5).log_prob(after).sum(1)
    found = gm.transition_log_prob(generator, torch.stack([x, after]), times=[0.7, 0.6], solver=Euler())
    torch.testing.assert_close(found[0], expected)


@EACH
def test_densities_integrate_to_one(name: str) -> None:
    generator, solver, start = RUNS[name]
    x = torch.full((4001, 1), 0.4, dtype=torch.float64)
    after = torch.linspace(-12, 12, 4001, dtype=torch.float64)[:, None]
    run = {"times": [max(start, 0.2), 0.5], "solver": solver}
    found = gm.transition_log_prob(generator, torch.stack([x, after]), **run)[0]
    assert torch.trapezoid(found.exp(), after[:, 0]).item() == pytest.approx(1, abs=1e-6)
    (law,) = gm.transition_laws(generator, torch.stack([x, after]), **run)
    without = -0.5 * (((after - law.mean) / law.std) ** 2).sum(1)  # the control: no normaliser
    assert abs(torch.trapezoid(without.exp(), after[:, 0]).item() - 1) > 1e-2


# Tokens

K = 3


class Table(nn.Module):
    """Logits that depend on all positions."""

    def __init__(self, seed: int = 0, ids: int = 5) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.own = nn.Parameter(torch.randn(ids, K, generator=generator, dtype=torch.float64))
        self.other = nn.Parameter(torch.randn(ids, K, generator=generator, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.own[x] + t.double()[:, None, None] * self.other[x.flip(1)]


def tokens(kind: str, seed: int = 0) -> gm.Generator | gm.Superposition:
    if kind == "masked":
        return gm.CTMC(gm.predict.Tokens(Table(seed), gm.MixturePath(K, mask=K)))
    chain = gm.CTMC(gm.predict.Tokens(Table(seed), gm.MixturePath(K)))
    if kind == "uniform":
        return chain
    return 1.5 * chain + 0.5 * gm.ReverseCTMC(chain.model)


def masked_sum(seed: int = 0) -> gm.Superposition:
    model = gm.predict.Tokens(Table(seed), gm.MixturePath(K, mask=K))
    return 1.5 * gm.CTMC(model) + 0.5 * gm.ReverseCTMC(model)


CHAINS = {
    "masked": (tokens("masked"), [K, K], K + 1),
    "uniform": (tokens("uniform"), [0, 2], K),
    "uniform, reversed too": (tokens("both"), [0, 2], K),
    "masked, reversed too": (masked_sum(), [K, 1], K + 1),
}
CHAIN = pytest.mark.parametrize("name", CHAINS)


def outcomes(ids: int) -> Tensor:
    return torch.tensor(list(itertools.product(range(ids), repeat=2)))


@CHAIN
@pytest.mark.parametrize("times", [[0.3, 0.6], [0.8, 1.0]], ids=["inside", "to the data"])
def test_probabilities_of_all_next_states_add_to_one_and_are_the_frequencies(name: str, times: list[float]) -> None:
    generator, begin, ids = CHAINS[name]
    after = outcomes(ids)
    before = torch.tensor(begin).expand_as(after)
    chances = gm.transition_log_prob(generator, torch.stack([before, after]), times=times)[0].exp().detach()
    assert chances.sum().item() == pytest.approx(1, abs=1e-12 if times[1] < 1 else 1e-6)
    count = 40_000
    drawn = gm.sample(generator, torch.tensor(begin).repeat(count, 1), times=times, seed=3, solver=Euler())
    frequency = torch.bincount(drawn[:, 0] * ids + drawn[:, 1], minlength=ids**2) / count
    slack = 5 * (chances * (1 - chances) / count).sqrt() + 1e-9
    assert bool(((frequency - chances).abs() <= slack).all())
    assert not bool((frequency - chances.flip(0)).abs().le(slack.flip(0)).all()), "the control: another law"


@CHAIN
def test_the_table_is_the_law_of_each_position(name: str) -> None:
    generator, begin, ids = CHAINS[name]
    after = outcomes(ids)
    before = torch.tensor(begin).expand_as(after)
    (law,) = gm.transition_laws(generator, torch.stack([before, after]), times=[0.3, 0.6])
    table = law.table().detach()
    torch.testing.assert_close(table.exp().sum(-1), torch.ones_like(table[..., 0]))
    expected = sum(Categorical(logits=table[:, i]).log_prob(after[:, i]) for i in range(2))
    torch.testing.assert_close(law.log_prob(after).detach(), expected)


def test_a_masked_step_by_hand() -> None:
    """From kappa to kappa' a mask is lifted with probability (kappa' - kappa) / (1 - kappa)."""
    generator = tokens("masked")
    before = torch.tensor([[K, K], [K, 1], [K, 1]])
    after = torch.tensor([[2, K], [0, 1], [0, 2]])
    lift = (0.6 - 0.3) / 0.7
    posterior = generator.model(before, 0.3).probabilities.log().detach()
    found = gm.transition_log_prob(generator, torch.stack([before, after]), times=[0.3, 0.6])[0]
    assert found[0].item() == pytest.approx(math.log(lift) + posterior[0, 0, 2].item() + math.log(1 - lift))
    assert found[1].item() == pytest.approx(math.log(lift) + posterior[1, 0, 0].item())  # what shows stays, surely
    assert found[2].item() == -math.inf  # and never changes


def test_fixed_positions_do_not_count() -> None:
    generator = tokens("uniform")
    before, after = torch.tensor([[0, 2], [1, 1]]), torch.tensor([[0, 1], [1, 0]])
    fixed = torch.tensor([[True, False], [True, False]])
    states = torch.stack([before, after])
    run = {"times": [0.3, 0.6]}
    (law,) = gm.transition_laws(generator, states, **run)
    found = gm.transition_log_prob(generator, states, **run, fixed=fixed)[0]
    torch.testing.assert_close(found, law.table()[:, 1].gather(1, after[:, 1:]).squeeze(1))
    assert not torch.allclose(found, law.log_prob(after))  # the control
    moved = torch.stack([before, torch.tensor([[1, 1], [1, 0]])])
    assert gm.transition_log_prob(generator, moved, **run, fixed=fixed)[0, 0].item() == -math.inf


@CHAIN
def test_gradients_of_chains_are_finite_and_right(name: str) -> None:
    """Against differences, also where positions cannot move."""
    generator, begin, ids = CHAINS[name]
    after = outcomes(ids)
    states = torch.stack([torch.tensor(begin).expand_as(after), after])
    table = next(generator.parameters())
    possible = gm.transition_log_prob(generator, states, times=[0.3, 0.6])[0].isfinite()
    states = states[:, possible]

    def value() -> Tensor:
        found = gm.transition_log_prob(generator, states, times=[0.3, 0.6])[0]
        return (found * torch.arange(1, len(found) + 1)).sum()

    (slope,) = torch.autograd.grad(value(), table)
    assert bool(slope.isfinite().all())
    step = 1e-6
    for index in [(0, 1), (begin[0], 0)]:
        with torch.no_grad():
            table[index] += step
            above = value()
            table[index] -= 2 * step
            below = value()
            table[index] += step
        assert slope[index].item() == pytest.approx((above - below).item() / (2 * step), abs=1e-6)


# Products


def test_on_a_product_the_factors_add() -> None:
    path = gm.ProductPath({"label": gm.MixturePath(K), "point": gm.GaussianPath()})

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.randn(K, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))

        def forward(self, x: dict[str, Tensor], t: Any) -> dict[str, Tensor]:
            label = self.shift + 0 * x["point"].sum(1)[:, None, None]
            return {"label": label.expand(-1, 2, K), "point": torch.tanh(x["point"]) + self.shift[x["label"][:, :1]]}

    model = gm.predict.Product(Both(), {"label": gm.predict.Tokens, "point": gm.predict.Velocity}, path)
    generator = gm.Product(model, {"label": gm.CTMC, "point": lambda m: gm.Diffusion(m, CONSTANT)})
    before = {"label": torch.tensor([[0, 2]] * 5), "point": torch.full((5, 3), 0.2, dtype=torch.float64)}
    states = gm.sample(generator, before, start=0.2, stop=0.8, steps=4, seed=0, trajectory=True)
    found = gm.transition_log_prob(generator, states, start=0.2, stop=0.8)
    laws = list(gm.transition_laws(generator, states, start=0.2, stop=0.8))
    assert isinstance(laws[0], ProductLaw)
    x = {name: part[1] for name, part in states.items()}
    triplet = generator(x, 0.35)
    point = Normal(x["point"] + 0.15 * triplet["point"].drift, (0.15 * 0.7) ** 0.5)
    expected = point.log_prob(states["point"][2]).sum(1) + laws[1].factors["label"].log_prob(states["label"][2])
    torch.testing.assert_close(found[1], expected)
    torch.testing.assert_close(laws[0].kl(laws[0]), torch.zeros(5, dtype=torch.float64))
    found.sum().backward()
    assert model.network.shift.grad is not None


# What policy gradients use


class Constant(nn.Module):
    """The same data wherever the state is; a parameter for each sample, so that each has a gradient."""

    def __init__(self, data: float, count: int) -> None:
        super().__init__()
        self.data = nn.Parameter(torch.full((count, 1), data, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.data.expand_as(x)


COUNT = 20_000


def constant(data: float) -> gm.Flow:
    return gm.Flow(gm.predict.Data(Constant(data, COUNT), gm.GaussianPath(COSINE), time=gm.predict.clocks.t))


def test_ratios_average_to_one_under_the_law_that_drew() -> None:
    run: dict[str, Any] = {"times": [0.0, 0.4, 0.6], "solver": DDPM()}
    old, new = constant(0.5), constant(0.6)
    states = gm.sample(old, (COUNT, 1), seed=1, trajectory=True, dtype=torch.float64, **run)
    with torch.no_grad():
        logs = [gm.transition_log_prob(model, states, **run).sum(0) for model in (new, old)]
    ratio = (logs[0] - logs[1]).exp()
    error = ratio.std().item() / COUNT**0.5
    assert abs(ratio.mean().item() - 1) < 5 * error < 0.1
    reward = states[-1, :, 0]  # reweighted, it has the mean of the other law: alpha times the data
    weighted = ratio * reward
    assert abs(weighted.mean().item() - math.sin(0.3 * math.pi) * 0.6) < 5 * weighted.std().item() / COUNT**0.5
    assert abs(reward.mean().item() - math.sin(0.3 * math.pi) * 0.6) > 5 * error, "the control: no weights"


@pytest.mark.parametrize("power", [1, 2])
def test_the_policy_gradient_is_that_of_the_expected_reward(power: int) -> None:
    r"""Ancestral sampling with the data fixed at D ends in N(alpha D, sigma^2): E x = alpha D, E x^2 is known too."""
    flow, data = constant(0.5), 0.5
    run: dict[str, Any] = {"times": [0.0, 0.3, 0.6, 0.8], "solver": DDPM()}
    states = gm.sample(flow, (COUNT, 1), seed=2, trajectory=True, dtype=torch.float64, **run)
    alpha = math.sin(0.4 * math.pi)
    reward = states[-1, :, 0] ** power
    logs = gm.transition_log_prob(flow, states, **run)
    (scores,) = torch.autograd.grad(logs.sum(), flow.model.network.data)
    samples = scores[:, 0] * (reward - reward.mean())
    expected = alpha if power == 1 else 2 * alpha**2 * data
    error = samples.std().item() / COUNT**0.5
    assert abs(samples.mean().item() - expected) < 5 * error < 0.3 * expected
    assert abs(scores.mean().item()) < 5 * scores.std().item() / COUNT**0.5  # a score has mean 0
    (last,) = torch.autograd.grad(gm.transition_log_prob(flow, states, **run, which=[2]).sum(), flow.parameters())
    partial = last[:, 0] * (reward - reward.mean())
    assert abs(partial.mean().item() - expected) > 5 * error, "the control: one step alone is not enough"


def test_the_divergence_of_two_models_is_the_mean_log_ratio() -> None:
    run: dict[str, Any] = {"times": [0.0, 0.4, 0.6], "solver": DDPM()}
    old, new = constant(0.5), constant(0.8)
    states = gm.sample(old, (COUNT, 1), seed=1, trajectory=True, dtype=torch.float64, **run)
    with torch.no_grad():
        ratio = gm.transition_log_prob(old, states, **run) - gm.transition_log_prob(new, states, **run)
        pairs = zip(*(gm.transition_laws(m, states, **run) for m in (old, new)), strict=True)
        exact = torch.stack([a.kl(b) for a, b in pairs])
    slack = 5 * ratio.std(1) / COUNT**0.5
    assert bool(((ratio.mean(1) - exact.mean(1)).abs() < slack).all())
    assert bool((exact.mean(1) > slack).all())


# Laws on their own


def test_gaussian_divergences_against_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(2, 5, 3, 2, generator=generator, dtype=torch.float64)
    spread = torch.rand(2, 5, 3, 2, generator=generator, dtype=torch.float64) + 0.2
    for stds in ((0.4, 0.7), (spread[0], spread[1]), (spread[0], 0.7), (0.4, spread[1])):
        expected = kl_divergence(Normal(means[0], stds[0]), Normal(means[1], stds[1])).sum((1, 2))
        laws = [GaussianLaw(mean, std) for mean, std in zip(means, stds, strict=True)]
        torch.testing.assert_close(laws[0].kl(laws[1]), expected)
        torch.testing.assert_close(laws[0].log_prob(means[1]), Normal(means[0], stds[0]).log_prob(means[1]).sum((1, 2)))
        assert not torch.allclose(laws[1].kl(laws[0]), expected)


@CHAIN
def test_categorical_divergences_against_enumeration(name: str) -> None:
    _, begin, ids = CHAINS[name]
    make = (
        masked_sum
        if name == "masked, reversed too"
        else lambda seed: tokens({"masked": "masked", "uniform": "uniform"}.get(name, "both"), seed)
    )
    after = outcomes(ids)
    states = torch.stack([torch.tensor(begin).expand_as(after), after])
    (own,), (other,) = (list(gm.transition_laws(make(seed), states, times=[0.3, 0.6])) for seed in (0, 7))
    p, q = own.log_prob(after), other.log_prob(after)
    possible = p > -math.inf
    expected = (p.exp() * (p - q))[possible].sum()
    torch.testing.assert_close(own.kl(other)[0], expected)
    assert expected > 1e-3


def test_a_divergence_from_a_law_that_excludes_a_value_is_infinite() -> None:
    space, x = gm.spaces.Tokens(K), torch.tensor([[0]])
    moves = CategoricalLaw(space, x, gm.Rates((1.0, torch.zeros(1, 1, K))), 1.0)
    stays = CategoricalLaw(space, x, gm.Rates((torch.zeros(1, 1), torch.zeros(1, 1, K))), 1.0)
    assert moves.kl(stays).item() == math.inf
    assert stays.kl(moves).item() == pytest.approx(-math.log(math.exp(-1) + (1 - math.exp(-1)) / K))


def test_float32_keeps_ratios_of_large_states() -> None:
    """10^4 nats: a float32 sum would round the ratio of two close laws away."""
    generator = torch.Generator().manual_seed(0)
    mean, z = torch.randn(2, 4, 3, 64, 64, generator=generator)
    other, std = mean + 1e-4 * torch.randn(mean.shape, generator=generator), 0.01
    x = mean + std * z
    exact = [GaussianLaw(m.double(), std).log_prob(x.double()) for m in (mean, other)]
    found = [GaussianLaw(m, std).log_prob(x) for m in (mean, other)]
    assert exact[0].abs().min() > 1e4
    torch.testing.assert_close(found[0] - found[1], exact[0] - exact[1], rtol=0, atol=3e-3)
    assert ((found[0].float() - found[1].float()) - (exact[0] - exact[1])).abs().max() > 3e-4
    mean.requires_grad_()
    (slope,) = torch.autograd.grad(GaussianLaw(mean, std).log_prob(x).sum(), mean)
    torch.testing.assert_close(slope, z / std, rtol=1e-3, atol=1e-2)


# Steps without noise


def run_to_the_data(seed: int = 0) -> tuple[gm.Flow, Tensor]:
    flow = gm.Flow(line.predictor(COSINE, "data"))
    return flow, gm.sample(flow, (6, 2), steps=5, solver=DDPM(), seed=seed, trajectory=True)


def test_the_last_step_to_the_data_counts_nothing_and_is_checked() -> None:
    flow, states = run_to_the_data()
    found = gm.transition_log_prob(flow, states, solver=DDPM())
    assert bool((found[-1] == 0).all())
    assert bool((found[:-1] != 0).all())
    assert gm.transition_log_prob(flow, states, solver=DDPM(), which="random").shape == (4, 6)
    moved = states.clone()
    moved[-1, 2] += 0.01
    with pytest.raises(ValueError, match=r"1 of 6 states are not where a step without noise leads.*which='random'"):
        gm.transition_log_prob(flow, moved, solver=DDPM())
    torch.testing.assert_close(gm.transition_log_prob(flow, moved, solver=DDPM(), which="random"), found[:-1])


def test_laws_of_steps_without_noise_are_points() -> None:
    flow, states = run_to_the_data()
    *_, last = gm.transition_laws(flow, states, solver=DDPM())
    assert isinstance(last, PointLaw)
    assert last.kl(PointLaw(last.mean)).tolist() == [0.0] * 6
    assert last.kl(PointLaw(last.mean + torch.tensor([0.0, 1.0]))).tolist() == [math.inf] * 6
    assert PointLaw(torch.tensor([[1, 2]])).log_prob(torch.tensor([[1, 2]])).tolist() == [0.0]


def test_noise_that_is_off_for_a_while_leaves_points() -> None:
    generator = gm.Diffusion(line.predictor(COND, "velocity"), lambda t: 0.5 * (t < 0.5))
    for solver in (Euler(), Exponential(1), Exponential(2)):
        states = gm.sample(generator, (3, 1), steps=4, solver=solver, seed=0, trajectory=True)
        found = gm.transition_log_prob(generator, states, solver=solver)
        assert (found != 0).all(1).tolist() == [True, True, False, False]
        assert (found == 0).all(1).tolist() == [False, False, True, True]


def test_euler_ends_in_the_data_prediction() -> None:
    """Where drift or noise are not finite at the end, and in a sum that no exponential step takes."""
    world = diffusion("data", COND)
    states = gm.sample(world, torch.randn(3, 1), steps=4, start=0.1, solver=Euler(), seed=0, trajectory=True)
    found = gm.transition_log_prob(world, states, start=0.1, solver=Euler())
    assert bool((found[-1] == 0).all())
    assert bool(found.isfinite().all())


# Which solvers, which steps, what they cost


def shipped(kind: type[Solver]) -> Iterator[type[Solver]]:
    for child in kind.__subclasses__():
        yield from shipped(child)
        if child.__module__.startswith("genmatch.") and not child.__abstractmethods__:
            yield child


OTHERS: dict[type[Solver], Solver] = {JumpThinning: JumpThinning(30.0), Remasking: Remasking(0.5)}
NOISY = {DDPM: DDPM(), DDIM: DDIM(0.5)}  # with noise of their own


@pytest.mark.parametrize("kind", sorted(set(shipped(Solver)), key=lambda k: k.__name__), ids=lambda k: k.__name__)
def test_every_solver_has_a_law_or_is_refused_by_name(kind: type[Solver]) -> None:
    """And one that has a law has that of the states it makes: less its mean, over its spread, they are normal."""
    solver = NOISY.get(kind) or OTHERS.get(kind) or kind()
    if not issubclass(kind, (Semilinear, Euler)):
        with pytest.raises(ValueError, match=re.escape(repr(solver)) + r" has no transition probabilities.*Use DDPM\("):
            find_law(solver)
        return
    noise = CONSTANT if "variance" in solver.parts else None
    model = line.predictor(COND, "velocity")
    generator = gm.Flow(model) if noise is None else gm.Diffusion(model, noise)
    run: dict[str, Any] = {"start": 0.2, "stop": 0.8, "solver": solver}
    x = torch.zeros(1000, 2, dtype=torch.float64)
    if noise is None and kind not in NOISY:
        with pytest.raises(ValueError, match="makes no random step here"):
            gm.transition_log_prob(generator, x.expand(5, -1, -1), **run)
        return
    states = gm.sample(generator, x, steps=4, seed=0, trajectory=True, **run)
    laws = list(gm.transition_laws(generator, states, **run))
    z = torch.stack([(x - law.mean) / law.std for law, x in zip(laws, states[1:], strict=True)])
    assert z.shape == (4, 1000, 2)
    assert bool((z.var((1, 2)) - 1).abs().lt(5 * (2 / 2000) ** 0.5).all())
    assert bool(z.mean((1, 2)).abs().lt(5 / 2000**0.5).all())


@pytest.mark.parametrize(
    ("solver", "reason"),
    [
        (Heun(), "deterministic on a flow, and with noise its stages share"),
        (RK4(), "deterministic on a flow"),
        (EndPoint(), "that of where it leads"),
        (Strang(), "several random ones"),
        (TwoEvent(), "two jumps in a step"),
        (JumpThinning(30.0), "the number of jumps"),
        (Thinning(), "the number of jumps"),
        (FirstHitting(), "their order"),
        (Confidence(), "ranks"),
        (Remasking(0.5), r"Euler\(\) on \(1 \+ b\)"),
    ],
    ids=repr,
)
def test_solvers_without_a_law_say_why(solver: Solver, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        find_law(solver)


@pytest.mark.parametrize("solver", [DDIM(), Exponential(2), Exponential(3), Euler()], ids=repr)
def test_a_run_without_noise_is_refused(solver: Solver) -> None:
    flow, states = run_to_the_data()
    with pytest.raises(ValueError, match=r"makes no random step here.*Use DDPM"):
        gm.transition_log_prob(flow, states, solver=solver)


class Hops(gm.Generator):
    """Jumps of a vector."""

    speed, additive = 0.0, False

    def triplet(self, x: Tensor, t: Any, prediction: Any) -> gm.Triplet:
        bins = gm.rates.Bins(torch.zeros(*x.shape, 1), torch.tensor([1.0, 2.0]))
        return gm.Triplet(rates=gm.Rates((torch.ones_like(x), bins)))


def test_jumps_of_vectors_are_refused() -> None:
    model = line.predictor(COND, "velocity")
    states = torch.zeros(3, 2, 1)
    with pytest.raises(ValueError, match="jumps of a continuous state have no transition probability"):
        gm.transition_log_prob(gm.Flow(model) + Hops(model), states, start=0.2, stop=0.8)


def test_noise_on_a_curved_space_is_refused() -> None:
    path = gm.GeodesicPath(gm.spaces.Sphere(2))

    class Still(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return torch.zeros_like(x)

    class Noisy(gm.Generator):
        def triplet(self, x: Tensor, t: Any, prediction: Any) -> gm.Triplet:
            return gm.Triplet(drift=prediction.velocity, variance=0.5)

    states = torch.tensor([0.0, 0.0, 1.0]).expand(3, 2, 3)
    generator = Noisy(gm.predict.TangentVelocity(Still(), path))
    with pytest.raises(ValueError, match="not Gaussian: transition probabilities are for vectors and for tokens"):
        gm.transition_log_prob(generator, states, start=0.2, stop=0.8)


def test_another_step_of_a_known_solver_is_unknown_until_it_is_registered() -> None:
    class Doubled(Exponential):
        def step(self, field: Field, x: Tensor, c: Any, draws: Any, carry: Any) -> Any:
            return super().step(field, x, c, draws, carry)

    class Renamed(Exponential):
        pass

    assert find_law(Renamed()) is find_law(DDPM())
    with pytest.raises(ValueError, match=r"no law of its steps is registered with gm\.solvers\.step_law"):
        find_law(Doubled(1))

    @gm.solvers.step_law(Doubled)
    def law(solver: Doubled, field: Field, x: Tensor, c: Any, carry: Any) -> Any:
        return find_law(DDPM()).law(solver, field, x, c, carry)

    generator, states = diffusion("data", COSINE), torch.zeros(4, 2, 1, dtype=torch.float64)
    found = gm.transition_log_prob(generator, states, solver=Doubled(1), stop=0.8)
    torch.testing.assert_close(found, gm.transition_log_prob(generator, states, solver=Exponential(1), stop=0.8))


@pytest.mark.parametrize(
    ("solver", "which", "calls"),
    [
        (DDPM(), None, 6),
        (DDPM(), [3], 1),
        (DDPM(), [4, 1], 2),
        (Exponential(1), [2, 3], 2),
        (Exponential(2), None, 6),
        (Exponential(2), [3], 2),  # and the one that it looks back on
        (Exponential(2), [2, 3, 4], 4),
        (Exponential(2), [0], 1),
        (Exponential(2), [-1], 2),
    ],
    ids=repr,
)
def test_only_the_steps_asked_for_run_the_network(solver: Solver, which: Any, calls: int) -> None:
    model = line.predictor(COSINE, "data")
    generator = gm.Flow(model) if isinstance(solver, DDPM) else gm.Diffusion(model)
    run: dict[str, Any] = {"solver": solver, "stop": 0.9}
    states = gm.sample(generator, (3, 1), steps=6, seed=0, trajectory=True, dtype=torch.float64, **run)
    whole = gm.transition_log_prob(generator, states, **run)
    model.network.calls = 0
    found = gm.transition_log_prob(generator, states, **run, which=which)
    assert model.network.calls == calls
    torch.testing.assert_close(found, whole if which is None else whole[which])


def test_laws_are_made_one_by_one() -> None:
    model = line.predictor(COSINE, "data")
    laws = gm.transition_laws(gm.Flow(model), torch.zeros(5, 2, 1), solver=DDPM(), stop=0.9)
    assert model.network.calls == 0
    for i, _ in enumerate(laws, start=1):
        assert model.network.calls == i


def test_networks_run_in_evaluation_mode_under_the_gradients_of_the_caller() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))

    class Timeless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.inner(x)

    flow = gm.Flow(gm.predict.Data(Timeless(), gm.GaussianPath()))
    states = gm.sample(flow, (4, 2), steps=3, stop=0.9, solver=DDPM(), seed=0, trajectory=True).requires_grad_()
    one, two = (gm.transition_log_prob(flow, states, stop=0.9, solver=DDPM()) for _ in range(2))
    assert torch.equal(one, two)
    assert network.training
    one.sum().backward()
    assert bool(network[0].weight.grad.abs().sum() > 0)
    assert bool((states.grad[1:].abs().sum((1, 2)) > 0).all())
    with torch.no_grad():
        assert not gm.transition_log_prob(flow, states, stop=0.9, solver=DDPM()).requires_grad


def test_rows_of_states_have_their_conditions() -> None:
    class Labelled(nn.Module):
        def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
            return x * 0 + label[:, None].to(x.dtype)

    flow = gm.Flow(gm.predict.Data(Labelled(), gm.GaussianPath()))
    label, run = torch.tensor([0, 1, 2, 3]), {"stop": 0.9, "solver": DDPM()}
    states = gm.sample(flow, (4, 2), steps=3, seed=0, trajectory=True, condition={"label": label}, **run)
    whole = gm.transition_log_prob(flow, states, condition={"label": label}, **run)
    part = gm.transition_log_prob(flow, states[:, 2:], condition={"label": label[2:]}, **run)
    torch.testing.assert_close(part, whole[:, 2:])
    other = gm.transition_log_prob(flow, states, condition={"label": label.flip(0)}, **run)
    assert not torch.allclose(other, whole)


STATES = torch.zeros(4, 2, 1, dtype=torch.float64)
MASKS = torch.full((4, 2, 2), K)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f: gm.transition_log_prob(f.model, STATES), TypeError, "are of a generator, got Data"),
        (
            lambda f: gm.transition_log_prob(f, STATES, steps=4),
            ValueError,
            "4 states are those of 3 steps, got steps=4",
        ),
        (lambda f: gm.transition_log_prob(f, STATES[0, 0], solver=DDPM()), ValueError, r"\(N \+ 1, B, \*S\)"),
        (lambda f: gm.transition_log_prob(f, STATES[:1], solver=DDPM()), ValueError, r"\(N \+ 1, B, \*S\)"),
        (lambda f: gm.transition_log_prob(f, {"x": STATES}), TypeError, "one tensor"),
        (lambda f: gm.transition_log_prob(f, [1.0]), TypeError, "must be a tensor"),
        (lambda f: gm.transition_log_prob(f, STATES.long()), TypeError, "floating point"),
        (
            lambda f: gm.transition_log_prob(f, STATES, times=[0.0, 0.5], solver=DDPM()),
            ValueError,
            "times make 1 steps, and the states 3",
        ),
        (
            lambda f: gm.transition_log_prob(f, STATES, solver=DDPM(), which=[3]),
            ValueError,
            r"steps 0 to 2 of this run, got \[3\]",
        ),
        (lambda f: gm.transition_log_prob(f, STATES, solver=DDPM(), which=[]), ValueError, "got none"),
        (lambda f: gm.transition_log_prob(f, STATES, solver=DDPM(), which="noisy"), ValueError, "got 'noisy'"),
        (
            lambda f: gm.transition_log_prob(f, STATES, solver=DDPM(), condition={"y": torch.zeros(3)}),
            ValueError,
            "for 2 samples",
        ),
        (lambda f: gm.transition_laws(f, STATES, solver=Heun()), ValueError, r"Heun\(\) has no transition prob"),
        (lambda f: gm.transition_log_prob(f, STATES, solver=DDPM), TypeError, "call it"),
        (
            lambda f: gm.transition_log_prob(f, STATES, solver=DDPM(), fixed=torch.zeros(2, 1).bool()),
            ValueError,
            "only tokens can be fixed",
        ),
        (lambda f: GaussianLaw(STATES[0], 0.0), ValueError, "standard deviation 0 somewhere"),
        (lambda f: GaussianLaw(STATES[0], torch.tensor([[1.0], [0.0]])), ValueError, "above 0 at every state"),
        (lambda f: GaussianLaw(STATES[0], 1.0).log_prob(STATES), ValueError, r"shape \(2, 1\), got \(4, 2, 1\)"),
        (
            lambda f: GaussianLaw(STATES[0], 1.0).kl(PointLaw(STATES[0])),
            TypeError,
            "divergence of a GaussianLaw is from one of its own kind, got a PointLaw",
        ),
        (
            lambda f: CategoricalLaw(
                gm.spaces.Tokens(K), MASKS[0], gm.Rates((1.0, gm.rates.Atoms(MASKS[0], torch.zeros(1, 2)))), 1.0
            ),
            TypeError,
            "landing of the type Atoms",
        ),
    ],
)
def test_bad_input_is_refused(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(flow("data", COSINE))


def test_laws_of_different_tokens_have_no_divergence() -> None:
    x = torch.tensor([[0, 1]])
    laws = [CategoricalLaw(gm.spaces.Tokens(n), x, gm.Rates((1.0, torch.zeros(1, 2, n))), 1.0) for n in (3, 4)]
    with pytest.raises(ValueError, match="of different tokens"):
        laws[0].kl(laws[1])
