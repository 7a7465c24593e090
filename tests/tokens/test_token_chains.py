"""Forward, reverse, corrected and churned token chains against the exact laws of enumerable worlds."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from enumerated import F64, PATHS, Chain, density_and_rate, draw, generator_matrix, leap_kernel, leapt_law, p_value
from torch import Tensor, nn

import genmatch as gm
from genmatch.generators import Generator, Reverse, ReverseCTMC, TokenChurn
from genmatch.paths import MixtureInstant
from genmatch.rates import Listed, Rates, Term
from genmatch.solvers import Field
from token_worlds import total_variation

TIMES = (0.0625, 0.5, 0.90625)  # exact in float32


@pytest.fixture(params=PATHS)
def world(request) -> Chain:
    return Chain(PATHS[request.param])


def chains(world: Chain) -> tuple[gm.CTMC, ReverseCTMC, TokenChurn]:
    model = world.predictor()
    return gm.CTMC(model), ReverseCTMC(model), TokenChurn(model)


def residual(world: Chain, q: Tensor, t: float, speed: float) -> float:
    density, rate = density_and_rate(world, t)
    return (density @ q - speed * rate).abs().max().item()


def test_the_forward_equation_holds(world: Chain):
    forward, reverse, churn = chains(world)
    cases = [(forward, 1), (reverse, -1), (churn, 0), (1.7 * forward + 0.7 * reverse + 2 * churn, 1)]
    for operator, speed in cases:
        assert operator.speed_at(0.5) == pytest.approx(speed)
        for t in TIMES:
            q = generator_matrix(world, operator, t)
            assert residual(world, q, t, speed) < 1e-10
            assert q.sum(1).abs().max() < 1e-10
            assert (q - torch.diag(q.diagonal()) >= 0).all()


def test_the_reverse_is_the_time_reversal(world: Chain):
    """p(x) Q(x, y) of the reverse is p(y) Q(y, x) of the forward chain, for every pair of states."""
    forward, reverse, _ = chains(world)
    for t in TIMES:
        density, _ = density_and_rate(world, t)
        flux = (density[:, None] * generator_matrix(world, forward, t)).fill_diagonal_(0)
        back = (density[:, None] * generator_matrix(world, reverse, t)).fill_diagonal_(0)
        assert flux.max() > 0.001
        torch.testing.assert_close(back, flux.T, rtol=0, atol=1e-12)


def test_churn_is_in_detailed_balance(world: Chain):
    _, _, churn = chains(world)
    density, _ = density_and_rate(world, 0.5)
    flux = density[:, None] * generator_matrix(world, churn, 0.5)
    torch.testing.assert_close(flux, flux.T, rtol=0, atol=1e-12)
    assert flux.abs().max() > 0.01, "it moves"


class Altered(Generator):
    """A chain with one thing wrong."""

    def __init__(self, model, speed: float, rates) -> None:
        super().__init__(model)
        self.speed, self.rates = speed, rates

    def triplet(self, x, t, prediction):
        return gm.Triplet(rates=self.rates(self.path, x, prediction))


def forgotten_rest(path, x, prediction) -> Rates:
    """kappa' for kappa' / (1 - kappa)."""
    return Rates(Term(torch.ones(x.shape, dtype=F64) * prediction.instant.slope, prediction.logits))


def forgotten_posterior(path, x, prediction) -> Rates:
    """The right rate for tokens that are data, whether or not they are."""
    rate = prediction.instant.backward(path.source_share(x))
    return Rates(Term(torch.ones(x.shape, dtype=F64) * rate, Listed(*path.source_law(x))))


def forgotten_source(path, x, prediction) -> Rates:
    """p_{1|t}(x) / kappa, without the source's share of the token that shows."""
    rate = prediction.instant.slope / prediction.instant.kappa
    return Rates(Term(prediction.chance(x) * rate, Listed(*path.source_law(x))))


def forgotten_mixture(path, x, prediction) -> Rates:
    """A churn to the posterior alone."""
    return Rates(Term(torch.ones(x.shape, dtype=F64), prediction.logits))


@pytest.mark.parametrize(
    ("speed", "rates"),
    [(1.0, forgotten_rest), (-1.0, forgotten_posterior), (-1.0, forgotten_source), (0.0, forgotten_mixture)],
)
def test_a_wrong_rate_is_seen(speed: float, rates):
    world = Chain(PATHS["given"])
    wrong = Altered(world.predictor(), speed, rates)
    assert residual(world, generator_matrix(world, wrong, 0.5), 0.5, speed) > 1e-3


def test_a_transposed_generator_is_seen():
    world = Chain(PATHS["uniform"])
    q = generator_matrix(world, gm.CTMC(world.predictor()), 0.5)
    turned = q.T - torch.diag(q.T.sum(1))
    assert residual(world, turned, 0.5, 1.0) > 1e-2


def test_correctors_sample_the_data_to_order_one():
    """Without drawing: the law that the steps end in is off by O(1 / steps), and nothing of the source is left."""
    for name in PATHS:
        world = Chain(PATHS[name])
        forward, reverse, churn = chains(world)
        for operator in (forward, 1.5 * forward + 0.5 * reverse, forward + churn):
            laws = [leapt_law(world, operator, steps) for steps in (32, 64, 128)]
            errors = [total_variation(law, world.end()) for law in laws]
            slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
            assert min(slopes) > 0.8, (name, operator, errors)
            assert errors[-1] < 0.02
            assert max(law[world.end() == 0].sum().item() for law in laws) < 1e-12 if world.path.mask == 3 else True


def test_a_corrected_chain_samples_what_its_kernel_says():
    """The library's leaps against the exact kernels: same law, few steps, far from the data's."""
    world = Chain(PATHS["given"])
    forward, reverse, churn = chains(world)
    operator = 2 * forward + reverse + 0.5 * churn
    x = draw(world, gm.solvers.Euler(), 40_000, operator, steps=4)
    assert p_value(world, x, leapt_law(world, operator, 4)) > 1e-4
    assert p_value(world, x, leapt_law(world, forward, 4)) < 1e-6
    masked = Chain(PATHS["mask"])
    operator = 2 * gm.CTMC(masked.predictor()) + ReverseCTMC(masked.predictor())
    x = draw(masked, gm.solvers.Euler(), 20_000, operator, steps=4)
    assert p_value(masked, x, leapt_law(masked, operator, 4)) > 1e-4
    assert int((x == 3).sum()) == 0


def test_the_rate_back_is_averaged_over_a_step():
    """The mean over a step of kappa' / (p + (1 - p) kappa) times the chance that the hazard spares a jump."""
    path = PATHS["mask cubic"]
    u = (torch.arange(20_000, dtype=F64) + 0.5) / 20_000
    for now, then in ((0.25, 0.5), (0.75, 0.9375)):
        row = path.at(torch.tensor([now], dtype=F64), torch.tensor([then], dtype=F64)).rows()[0]
        t = now + (then - now) * u
        inside = path.at(t)
        spared = (1 - row.ahead) / (1 - inside.kappa)
        for p in (0.0, 1 / 3, 1.0):
            expected = (inside.slope / (p + (1 - p) * inside.kappa) * spared).mean().item()
            assert row.backward(p) == pytest.approx(expected, rel=1e-6)
        shares = torch.tensor([0.2, 0.7], dtype=F64)
        both = row.backward(shares)
        assert isinstance(both, Tensor)
        assert both.tolist() == pytest.approx([row.backward(0.2), row.backward(0.7)])


def test_the_rate_back_at_the_ends():
    path = PATHS["mask"]
    zero, quarter = torch.zeros(1, dtype=F64), torch.tensor([0.25], dtype=F64)
    first = path.at(zero, quarter).rows()[0]
    assert first.backward(0.0) == math.inf
    assert first.backward(0.5) < math.inf
    assert path.at(quarter, torch.ones(1, dtype=F64)).rows()[0].backward(0.0) == 0.0
    instant = path.at(quarter).rows()[0]
    assert instant.backward(0.0) == pytest.approx(4)
    assert instant.backward(1.0) == pytest.approx(1)
    samples = path.at(torch.tensor([0.0, 0.5], dtype=F64))
    assert isinstance(samples, MixtureInstant)
    back = samples.backward(0.0)
    assert isinstance(back, Tensor)
    assert back.tolist() == [math.inf, 2.0]


def test_padding_and_prompts_stay():
    class Flat(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return torch.zeros(*x.shape, 4)

    for mask in (None, 4):
        model = gm.predict.Tokens(Flat(), gm.MixturePath(4, mask=mask, padding=7))
        operator = 3 * gm.CTMC(model) + 2 * ReverseCTMC(model) + 5 * TokenChurn(model)
        x0 = torch.tensor([[1, 4 if mask else 2, 4 if mask else 0, 7]]).repeat(500, 1)
        fixed = torch.tensor([[True, False, False, False]]).expand(500, 4)
        x = gm.sample(operator, x0, fixed=fixed, steps=5, seed=0)
        assert (x[:, 0] == 1).all()
        assert (x[:, 3] == 7).all()
        assert x[:, 1:3].max() < 4, "no mask is left"
        assert x[:, 1].unique().tolist() == [0, 1, 2, 3]


def test_reverses_are_known():
    forward, reverse, churn = chains(Chain(PATHS["mask"]))
    assert type(Reverse(forward).terms[0][1]) is ReverseCTMC
    assert type(Reverse(reverse).terms[0][1]) is gm.CTMC
    assert Reverse(churn).terms[0][1] is churn
    assert Reverse(2 * forward + churn).speed_at(0.3) == -2


class Letters:
    """A source of unknown law."""

    def draw(self, shape, draws):
        return draws.integers(shape, 2)


@pytest.mark.parametrize("kind", [ReverseCTMC, TokenChurn])
def test_a_source_that_is_not_known_is_refused(kind):
    network = nn.Identity()
    with pytest.raises(ValueError, match=r"posterior of the source.*probabilities of its source"):
        kind(gm.predict.Tokens(network, gm.MixturePath(3, source=Letters())))
    paired = gm.MixturePath(3, coupling=gm.couplings.Given())
    with pytest.raises(ValueError, match="pairs source and data"):
        kind(gm.predict.Tokens(network, paired))
    with pytest.raises(TypeError, match="needs a model on a MixturePath"):
        kind(gm.predict.Data(network, gm.GaussianPath()))
    with pytest.raises(ValueError, match="law is not known"):
        gm.MixturePath(3, source=Letters()).source_law(torch.zeros(1, 1, dtype=torch.int64))


@pytest.mark.parametrize("name", list(PATHS))
def test_data_turn_back_into_the_source(name: str):
    """A reversed chain, from data to noise: its law by exact kernels, of order 1 on the way and right at the end."""
    world = Chain(PATHS[name])
    reverse = gm.Reverse(gm.CTMC(world.predictor()))
    for stop, bound in ((0.3, 0.02), (0.0, 0.03)):
        errors = []
        for steps in (8, 16):
            field = Field(reverse, world.states[:1], speed=-1.0)
            law = world.density(torch.tensor(1.0, dtype=F64))
            times = torch.linspace(1.0, stop, steps + 1, dtype=F64)
            for step in gm.solvers.Euler().plan(field, times):
                law = law @ leap_kernel(world, field(world.states, step.instants[0]).rates, step.h)
            errors.append(float((law - world.density(torch.tensor(stop, dtype=F64))).abs().sum()) / 2)
        assert errors[1] < bound
        assert errors[1] < 0.65 * errors[0] or errors[1] < 1e-9
    x = gm.sample(reverse, world.data.repeat(50, 1), start=1.0, stop=0.0, steps=5, seed=0)
    if world.path.mask is not None:
        assert bool((x == world.path.mask).all())  # none is left, in however few steps


def test_a_reverse_alone_is_not_sampled():
    _, reverse, churn = chains(Chain(PATHS["uniform"]))
    with pytest.raises(ValueError, match="speed -1, not 1"):
        gm.sample(reverse, (2, 2))
    with pytest.raises(ValueError, match="speed 0, not 1"):
        gm.sample(churn, (2, 2))


@pytest.mark.parametrize("name", ["uniform", "mask", "given"])
def test_a_negative_rate_is_refused(name: str):
    """Also where it is only shown tokens that would move at a negative rate."""
    forward, reverse, _ = chains(Chain(PATHS[name]))
    with pytest.raises(ValueError, match=r"make a jump rate negative"):
        gm.sample(0.5 * forward - 0.5 * reverse, (2, 2), steps=4)
