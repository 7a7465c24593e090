"""The bound of diffusions: against likelihoods that are known."""

from __future__ import annotations

import math

import pytest
import torch
from gaussian_data import KINDS, World
from torch import nn

import genmatch as gm
from genmatch.likelihood import diffusion, elbo

F64 = torch.float64


class Unit(nn.Module):
    """The exact noise prediction for data N(0, 1)."""

    def __init__(self, schedule: gm.Schedule) -> None:
        super().__init__()
        self.schedule = schedule

    def forward(self, x, t):
        alpha, sigma = (value.reshape(-1, *[1] * (x.ndim - 1)) for value in self.schedule(t))
        return sigma / (alpha**2 + sigma**2) * x


def unit(schedule: gm.Schedule) -> gm.Predictor:
    return gm.predict.Noise(Unit(schedule), gm.GaussianPath(schedule), time=gm.predict.clocks.t)


@pytest.mark.parametrize("span", [(-10.0, 12.0), (-1.0, 8.0), (0.5, 12.0)])
def test_it_is_the_likelihood_of_a_perfect_model_of_unit_normals(span: tuple[float, float]):
    # There the law of the states is the scaled source at every time: nothing is lost at the start.
    x = torch.randn(4000, 2, dtype=F64)
    bound = elbo(unit(gm.schedules.Cosine()), x, evaluations=24, span=span, seed=0)
    exact = -0.5 * (x**2 + math.log(2 * math.pi)).sum(1)
    # The decoder N(z / alpha, 1 / snr) stands for the posterior, of variance 1 / (1 + snr): log1p(1 / snr) / 2 a value.
    gap = exact - math.log1p(math.exp(-span[1])) - bound
    assert abs(gap.mean()) < 4 * gap.std() / 4000**0.5
    without_prior = gap.mean() + diffusion._prior(x, span[0]).mean()
    assert abs(without_prior) > 10 * gap.std() / 4000**0.5 or span[0] == -10


def test_it_is_the_likelihood_of_each_datum():
    schedule, world = gm.schedules.CondOT(), gm.worlds.GaussianMixture(torch.tensor([[-1.0], [1.5]]), 0.1)
    model = world.predictor(gm.GaussianPath(schedule))
    for value in (-1.2, 0.3, 1.5):
        x = torch.full((3000, 1), value, dtype=F64)
        bound = elbo(model, x, evaluations=32, seed=1)
        assert abs(bound.mean() - world.log_prob(x[:1])) < 4 * bound.std() / 3000**0.5 + 1e-3


def test_a_worse_model_has_a_lower_bound_by_what_its_error_costs():
    schedule = gm.schedules.VP()

    class Off(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.exact = Unit(schedule)

        def forward(self, x, t):
            return self.exact(x, t) + 0.3

    x = torch.randn(4000, 2, dtype=F64)
    known = {"evaluations": 16, "span": (-4.0, 6.0), "seed": 3}
    worse = gm.predict.Noise(Off(), gm.GaussianPath(schedule), time=gm.predict.clocks.t)
    loss = elbo(unit(schedule), x, **known) - elbo(worse, x, **known)
    assert abs(loss.mean() - 0.5 * 10 * 2 * 0.09) < 4 * loss.std() / 4000**0.5


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "velocity"])
def test_what_the_network_predicts_does_not_matter(kind: str):
    world, schedule = World((1, 2, 2)), gm.schedules.Cosine()
    x = world.states(schedule, 1.0)
    expected = elbo(world.predictor(schedule), x, evaluations=4, seed=0)
    torch.testing.assert_close(elbo(world.predictor(schedule, kind), x, evaluations=4, seed=0), expected)


def test_the_schedule_matters_by_its_ends_alone():
    x, known = torch.randn(5, 2, dtype=F64), {"evaluations": 4, "span": (-8.0, 8.0), "seed": 0}
    bounds = [elbo(unit(s), x, **known) for s in (gm.schedules.Cosine(), gm.schedules.CondOT(), gm.schedules.EDM())]
    for other in bounds[1:]:
        torch.testing.assert_close(other, bounds[0])


def test_the_estimate_is_unbiased_and_spread_times_and_the_known_mean_make_it_calm():
    x = torch.full((4000, 3), 0.7, dtype=F64)
    model = unit(gm.schedules.Cosine())
    once, often = (elbo(model, x, evaluations=n, seed=n) for n in (1, 16))
    assert abs(once.mean() - often.mean()) < 4 * (once.var() / 4000 + often.var() / 4000) ** 0.5
    assert often.var() < once.var() / 32, "stratified: better than independent times"
    assert often.std() < 0.5 * (0.5 * 22 * (2 * 3 / 2 / 16) ** 0.5), "half of what |epsilon|^2 alone would leave"


def test_samples_have_their_own_numbers():
    model, x = unit(gm.schedules.Cosine()), torch.randn(6, 2)
    whole = elbo(model, x, evaluations=3, seed=0)
    torch.testing.assert_close(elbo(model, x[4:], evaluations=3, seed=0, first_index=4), whole[4:])
    assert whole.dtype == F64
    assert not whole.requires_grad


def test_levels_give_probabilities():
    # Data uniform on the four corners of a grid of two levels: a perfect model gives each log 1/2 a value.
    means = torch.tensor([[a, b] for a in (-1.0, 1.0) for b in (-1.0, 1.0)])
    model = gm.worlds.GaussianMixture(means, 0.0).predictor(gm.GaussianPath())
    x = torch.randint(0, 2, (2000, 2))
    bound = elbo(model, x, levels=2, evaluations=16, span=(-10.0, 6.0), seed=0)
    assert abs(bound.mean() - 2 * math.log(0.5)) < 4 * bound.std() / 2000**0.5 + 1e-3
    torch.testing.assert_close(
        elbo(model, 2.0 * x - 1, levels=2, evaluations=2, seed=0).float(),
        elbo(model, x, levels=2, evaluations=2, seed=0).float(),
    )


def test_the_decoder_is_normalised():
    for spread in (0.05, 0.8, 3.0):
        numbers = torch.arange(5.0, dtype=F64)
        z = 1.3  # one noisy value, in levels; the noise that each level would need for it
        logs = diffusion._decode(numbers, (z - numbers) / spread, spread, 5)
        assert abs(logs.exp().sum() - 1) < 1e-12


def test_gradients_reach_the_network():
    path = gm.GaussianPath()
    network = gm.nn.MLP(2, width=8, depth=1)
    model = gm.predict.Noise(network, path)
    elbo(model, torch.randn(4, 2), evaluations=2, seed=0, grad=True).mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_what_it_refuses():
    x = torch.zeros(2, 2)
    model = unit(gm.schedules.VP())
    with pytest.raises(TypeError, match="takes a predictor"):
        elbo(gm.Flow(model), x)  # type: ignore[arg-type]
    paired = gm.GaussianPath(coupling=gm.couplings.OT())
    with pytest.raises(ValueError, match="independent of the data"):
        elbo(gm.predict.Velocity(gm.nn.MLP(2), paired), x)
    with pytest.raises(ValueError, match=r"within -10.05 to inf"):
        elbo(model, x, span=(-20.0, 3.0))
    with pytest.raises(ValueError, match="rising order"):
        elbo(model, x, span=(3.0, 1.0))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        elbo(model, x, evaluations=0)
    with pytest.raises(TypeError, match="evaluations must be an integer"):
        elbo(model, x, evaluations=2.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not on a grid of 4 levels"):
        elbo(model, x + 0.123, levels=4)
    with pytest.raises(TypeError, match="floating point"):
        elbo(model, x.long())
    with pytest.raises(TypeError, match="x1 must be a tensor"):
        elbo(model, [0.0])  # type: ignore[arg-type]
    tokens = gm.predict.Tokens(gm.nn.Transformer(3, width=8, depth=1, heads=1, length=4), gm.MixturePath(3))
    with pytest.raises(TypeError, match="diffusions on a Gaussian path"):
        elbo(tokens, torch.zeros(2, 4, dtype=torch.int64))


def spread_of(monkeypatch, evaluations: int) -> float:
    """Standard deviation of the bound over seeds, at one datum."""
    model = unit(gm.schedules.Cosine())
    x1 = torch.full((400, 1), 0.5, dtype=F64)
    return elbo(model, x1, evaluations=evaluations, seed=0).std().item()


def test_each_evaluation_has_noise_of_its_own_and_little_of_it_is_left(monkeypatch) -> None:
    """The same noise at all levels has the right mean too, and does not average out; so has a poorer control."""
    one, sixteen = spread_of(monkeypatch, 1), spread_of(monkeypatch, 16)
    assert sixteen < 0.35 * one
    monkeypatch.setattr(torch.Tensor, "sigmoid", lambda level: torch.special.expit(level).sqrt())  # c for c^2
    assert spread_of(monkeypatch, 16) > 1.3 * sixteen


def test_a_network_that_is_not_finite_is_said_so() -> None:
    class Nan(nn.Module):
        def forward(self, x, t):
            return x * float("nan")

    with pytest.raises(FloatingPointError, match="3 of 3 bounds are not finite"):
        elbo(gm.predict.Noise(Nan(), gm.GaussianPath()), torch.zeros(3, 2))


@pytest.mark.parametrize("span", [(1,), 3, "ab", ("a", "b"), (1, 2, 3)])
def test_a_span_is_a_pair(span) -> None:
    with pytest.raises(TypeError, match="span is a pair of log-SNRs"):
        elbo(unit(gm.schedules.Cosine()), torch.zeros(3, 1), span=span)
