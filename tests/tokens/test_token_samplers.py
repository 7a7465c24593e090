"""The samplers of token chains: exact laws, exact times, exact kernels, and what each refuses."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from enumerated import F64, PATHS, Chain, draw, leap_kernel, p_value
from torch import Tensor, nn

import genmatch as gm
from genmatch.generators import ReverseCTMC, TokenChurn
from genmatch.rates import Categorical, Listed, Rates, Term
from genmatch.solvers import Confidence, Euler, Field, FirstHitting, Remasking, Solver, Thinning
from token_worlds import total_variation

SOLVERS = [FirstHitting(), Thinning(), Confidence(), Remasking(1.0)]


def masked_chain() -> tuple[Chain, gm.CTMC]:
    world = Chain(PATHS["mask cubic"])
    return world, gm.CTMC(world.predictor())


# Exact samplers


@pytest.mark.parametrize("name", ["mask", "mask cubic"])
def test_first_hitting_samples_the_law_with_one_evaluation_a_position(name: str):
    world = Chain(PATHS[name])
    model = world.predictor()
    x = draw(world, FirstHitting(), 50_000, gm.CTMC(model))
    assert p_value(world, x, world.end()) > 1e-4
    assert len(model.network.times) == 2
    # One leap draws both positions from what shows before it: far off, with the same budget of evaluations.
    assert p_value(world, draw(world, Euler(), 50_000, gm.CTMC(model), steps=2), world.end()) < 1e-12


def test_first_hitting_evaluates_at_the_times_of_the_jumps():
    """kappa at the first of two jumps is the least of two uniforms, of mean 1/3 and variance 1/18."""
    world = Chain(PATHS["mask cubic"])
    model = world.predictor()
    draw(world, FirstHitting(), 20_000, gm.CTMC(model))
    first, second = (world.kappa(t.double()) for t in model.network.times)
    assert (first < second).all()
    assert first.mean().item() == pytest.approx(1 / 3, abs=5 * math.sqrt(1 / 18 / 20_000))
    assert second.mean().item() == pytest.approx(2 / 3, abs=5 * math.sqrt(1 / 18 / 20_000))


def test_first_hitting_does_not_depend_on_the_steps():
    _, chain = masked_chain()
    once = gm.sample(chain, (200, 2), steps=1, solver=FirstHitting(), seed=2)
    often = gm.sample(chain, (200, 2), steps=7, solver=FirstHitting(), seed=2, trajectory=True)
    assert torch.equal(once, often[-1])
    shown = (often != 3).double().mean((1, 2))
    kappa = (torch.arange(8) / 7.0) ** 3
    torch.testing.assert_close(shown, kappa.double(), rtol=0, atol=0.1)
    assert ((often[1:] == often[:-1]) | (often[:-1] == 3)).all(), "what shows stays"


def test_first_hitting_starts_anywhere_on_the_path():
    world, chain = masked_chain()
    x1 = world.data[torch.multinomial(world.law, 40_000, True, generator=torch.Generator().manual_seed(0))]
    start = world.path.sample(torch.full_like(x1, 3), x1, 0.75, gm.Draws(1, 40_000))
    x = gm.sample(chain, start, start=0.75, steps=1, solver=FirstHitting(), seed=3)
    assert p_value(world, x, world.end()) > 1e-4
    middle = gm.sample(chain, start, start=0.75, stop=0.875, steps=1, solver=FirstHitting(), seed=3)
    assert p_value(world, middle, world.density(torch.tensor(0.875, dtype=F64))) > 1e-4


@pytest.mark.parametrize("name", ["uniform", "given quadratic", "mask"])
def test_thinning_samples_the_law_in_one_step(name: str):
    world = Chain(PATHS[name])
    x = draw(world, Thinning(), 15_000)
    assert p_value(world, x, world.end()) > 1e-4
    assert p_value(world, draw(world, Thinning(last=0.9), 15_000), world.end()) < 1e-6, "a leap of nearly all"


def test_thinning_of_a_sum_of_chains():
    world = Chain(PATHS["given"])
    model = world.predictor()
    operator = 1.5 * gm.CTMC(model) + 0.5 * ReverseCTMC(model) + TokenChurn(model)
    x = draw(world, Thinning(24.0), 6_000, operator, stop=0.625)
    assert p_value(world, x, world.density(torch.tensor(0.625, dtype=F64))) > 1e-4
    assert p_value(world, x, world.density(torch.tensor(0.375, dtype=F64))) < 1e-6


def test_thinning_of_a_masked_sum():
    world = Chain(PATHS["mask"])
    model = world.predictor()
    operator = 1.5 * gm.CTMC(model) + 0.5 * ReverseCTMC(model)
    x1 = world.data[torch.multinomial(world.law, 6_000, True, generator=torch.Generator().manual_seed(0))]
    start = world.path.sample(torch.full_like(x1, 3), x1, 0.5, gm.Draws(1, 6_000))
    x = gm.sample(operator, start, times=[0.5, 0.6, 0.7], solver=Thinning(11.0), seed=1)
    assert p_value(world, x, world.density(torch.tensor(0.7, dtype=F64))) > 1e-4


def test_a_bound_that_is_too_small_is_told():
    world = Chain(PATHS["uniform"])
    with pytest.raises(ValueError, match=r"have the rate .* above the bound 2: give a higher bound"):
        draw(world, Thinning(2.0), 500)
    with pytest.raises(ValueError, match="bound must be above 0"):
        Thinning(0.0)
    with pytest.raises(ValueError, match=r"last is a share in \(0, 1\), got 1"):
        Thinning(last=1)
    model = world.predictor()
    with pytest.raises(ValueError, match=r"without a bound Thinning samples gm.CTMC\(model\) alone, got 2 \* CTMC"):
        draw(world, Thinning(), 5, 2 * gm.CTMC(model) + ReverseCTMC(model))
    gaussian = gm.Flow(gm.predict.Velocity(nn.Identity(), gm.GaussianPath()))
    with pytest.raises(ValueError, match="samples chains of tokens"):
        gm.sample(gaussian, (2, 2), solver=Thinning(1.0))


# All samplers


@pytest.mark.parametrize("solver", [*SOLVERS, Thinning(40.0)], ids=repr)
def test_a_samples_draws_do_not_depend_on_the_batch(solver):
    _, chain = masked_chain()
    options = {"solver": solver, "steps": 6, "seed": 4}
    whole = gm.sample(chain, (50, 2), stop=0.9375, **options)
    split = gm.sample(chain, (50, 2), stop=0.9375, batch_size=7, **options)
    later = gm.sample(chain, (10, 2), stop=0.9375, first_index=40, **options)
    assert torch.equal(whole, split)
    assert torch.equal(whole[40:], later)
    assert not torch.equal(whole, gm.sample(chain, (50, 2), stop=0.9375, **{**options, "seed": 5}))


class Flat(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.zeros(*x.shape, 4)


@pytest.mark.parametrize("solver", [*SOLVERS, Thinning(50.0)], ids=repr)
def test_prompts_and_padding_stay(solver):
    chain = gm.CTMC(gm.predict.Tokens(Flat(), gm.MixturePath(4, mask=4, padding=7)))
    x0 = torch.tensor([[2, 4, 4, 4, 7], [4, 1, 4, 4, 4]]).repeat(50, 1)
    fixed = torch.tensor([[True, False, True, False, True], [False, True, False, False, False]]).repeat(50, 1)
    stop = 0.9 if "bound" in repr(solver) else 1.0
    x = gm.sample(chain, x0, fixed=fixed, solver=solver, steps=4, seed=0, stop=stop)
    assert torch.equal(x[fixed], x0[fixed]), "also a mask that is fixed"
    if stop == 1.0:
        assert x[~fixed].max() < 4
    assert torch.equal(gm.sample(chain, x0.int(), fixed=fixed, solver=solver, steps=4, seed=0, stop=stop), x.int())


@pytest.mark.parametrize("solver", [FirstHitting(), Confidence(), Remasking(1.0)], ids=repr)
def test_samplers_of_masks_refuse_what_they_cannot(solver):
    name = type(solver).__name__
    uniform = Chain(PATHS["uniform"])
    with pytest.raises(ValueError, match=f"{name} unmasks, and MixturePath\\(3\\) has no mask"):
        draw(uniform, solver, 4)
    world, chain = masked_chain()
    corrected = 2 * chain + ReverseCTMC(chain.model)
    with pytest.raises(ValueError, match=f"{name} samples gm.CTMC\\(model\\) alone, got 2 \\* CTMC"):
        draw(world, solver, 4, corrected)
    with pytest.raises(ValueError, match="samples chains of tokens"):
        gm.sample(gm.Flow(gm.predict.Velocity(nn.Identity(), gm.GaussianPath())), (2, 2), solver=solver)
    with pytest.raises(ValueError, match="from noise to data"):
        gm.sample(chain, torch.zeros(2, 2, dtype=torch.int64), times=[1.0, 0.5], solver=solver)


# Remasking


@pytest.mark.parametrize("solver", [Remasking(0.7), Remasking(cap=0.2), Remasking(rescale=0.4)], ids=repr)
def test_a_remasking_step_keeps_the_share_that_shows(solver):
    """From p_t exactly, kappa_s shows exactly: each position alone has the law of the path."""
    world, chain = masked_chain()
    times = torch.linspace(0, 1, 6, dtype=F64)
    field = Field(chain, world.states[:1])
    law = world.start()
    for step, end in zip(solver.plan(field, times), times[1:], strict=True):
        law = law @ remask_kernel(world, field, step)
        masked = (law[:, None] * (world.states == 3)).sum(0)
        torch.testing.assert_close(masked, (1 - end**3).expand(2), rtol=0, atol=1e-12)


def remask_kernel(world: Chain, field: Field, step) -> Tensor:
    """The kernel that the step describes: reveal to the posterior, hide to the mask."""
    logits = field(world.states, step.instant).rates.terms[0].where.logits
    masked = (world.states == 3).double()
    mask, sure = torch.tensor([3]), torch.ones(1, dtype=F64)
    rates = Rates(Term(masked * step.reveal, logits), Term((1 - masked) * step.hide, Listed(mask, sure)))
    return leap_kernel(world, rates, 1.0)


def remasked_law(world: Chain, chain: gm.CTMC, solver: Remasking, steps: int) -> Tensor:
    field, law = Field(chain, world.states[:1]), world.start()
    for step in solver.plan(field, torch.linspace(0, 1, steps + 1, dtype=F64)):
        law = law @ remask_kernel(world, field, step)
    return law


def test_remasking_by_a_churn_has_order_one():
    world, chain = masked_chain()
    for churn in (0.0, 1.0, 3.0):
        laws = [remasked_law(world, chain, Remasking(churn), steps) for steps in (64, 128, 256)]
        errors = [total_variation(law, world.end()) for law in laws]
        assert min(math.log2(a / b) for a, b in itertools.pairwise(errors)) > 0.8
        assert errors[-1] < 0.02
    tau = total_variation(remasked_law(world, chain, Remasking(0.0), 16), world.end())
    euler = gm.solvers.Euler().plan(Field(chain, world.states[:1]), torch.linspace(0, 1, 17, dtype=F64))
    law = world.start()
    for step in euler:
        law = law @ leap_kernel(world, Field(chain, world.states[:1])(world.states, step.instants[0]).rates, step.h)
    assert tau == pytest.approx(total_variation(law, world.end()), abs=1e-12), "no churn is tau-leaping"


@pytest.mark.parametrize("solver", [Remasking(2.0), Remasking(cap=0.3)], ids=repr)
def test_remasking_samples_what_its_kernel_says(solver):
    world, chain = masked_chain()
    x = draw(world, solver, 40_000, chain, steps=5)
    assert p_value(world, x, remasked_law(world, chain, solver, 5)) > 1e-4
    assert p_value(world, x, remasked_law(world, chain, Remasking(0.0), 5)) < 1e-6


def test_the_share_of_remasking():
    """Of the churn: the two-state chain of hiding at b kappa'/kappa and revealing at (1 + b) kappa'/(1 - kappa)."""
    b, now, then, steps = 1.5, 0.3, 0.45, 20_000
    masked, h = 0.0, (then - now) / steps
    for i in range(steps):  # the midpoint rule for d masked / d kappa
        kappa = now + (i + 0.5) * h
        middle = masked + h / 2 * (b * (1 - masked) / kappa - (1 + b) * masked / (1 - kappa))
        masked += h * (b * (1 - middle) / kappa - (1 + b) * middle / (1 - kappa))
    assert Remasking(b).share(now, then) == pytest.approx(masked, rel=1e-6)
    assert Remasking(b).share(0.0, 0.3) == pytest.approx(0.7)
    assert Remasking(b).share(0.3, 1.0) == 0
    assert Remasking(cap=0.5).share(0.8, 0.9) == pytest.approx(0.125)
    assert Remasking(cap=0.1).share(0.8, 0.9) == 0.1
    assert Remasking(rescale=0.5).share(0.8, 0.9) == pytest.approx(0.0625)
    assert Remasking(rescale=0.5).share(0.2, 0.3) == 0.5


def test_one_rule_of_remasking():
    with pytest.raises(ValueError, match="give one of churn, cap and rescale, got none"):
        Remasking()
    with pytest.raises(ValueError, match="got churn, cap"):
        Remasking(1.0, cap=0.1)
    with pytest.raises(ValueError, match=r"cap is a probability or a share, in \[0, 1\], got 1.5"):
        Remasking(cap=1.5)
    with pytest.raises(ValueError, match="churn must be at least 0"):
        Remasking(-1.0)


# Confidence


class Sure(nn.Module):
    """Three positions with known posteriors over four tokens, the same whatever shows."""

    TABLE = torch.tensor(
        [
            [0.40, 0.39, 0.20, 0.01],  # likeliest 0.40, margin 0.01, entropy 1.10
            [0.46, 0.18, 0.18, 0.18],  # likeliest 0.46, margin 0.28, entropy 1.28
            [0.50, 0.49, 0.005, 0.005],  # likeliest 0.50, margin 0.01, entropy 0.75
        ]
    )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.TABLE.log().expand(len(x), 3, 4)


@pytest.mark.parametrize(("score", "order"), [("probability", [2, 1, 0]), ("margin", [1]), ("entropy", [2, 0, 1])])
def test_the_surest_are_unmasked_first(score: str, order: list[int]):
    chain = gm.CTMC(gm.predict.Tokens(Sure(), gm.MixturePath(4, mask=4)))
    solver = Confidence(score, temperature=0.0)
    states = gm.sample(chain, (2, 3), times=[0, 1 / 3, 2 / 3, 1], solver=solver, trajectory=True)
    for k, position in enumerate(order):
        assert (states[k, :, position] == 4).all()
        assert (states[k + 1, :, position] == 0).all(), "the likeliest token"
    assert (states != 4).sum((1, 2)).tolist() == [0, 2, 4, 6]


def test_as_many_are_unmasked_as_the_schedule_says():
    path = gm.MixturePath(4, mask=4, padding=7, schedule=gm.schedules.Polynomial(2.0))
    chain = gm.CTMC(gm.predict.Tokens(Flat(), path))
    x0 = torch.full((3, 20), 4)
    x0[1, 10:] = 7
    x0[2, :5] = 1
    states = gm.sample(chain, x0, steps=5, solver=Confidence(noise=1.0), seed=1, trajectory=True)
    for k, state in enumerate(states):
        masked = (state == 4).sum(1)
        assert masked.tolist() == [round(d * (1 - (k / 5) ** 2)) for d in (20, 10, 15)]
    half = states[3]
    again = gm.sample(chain, half, start=0.6, steps=1, stop=0.8, solver=Confidence(), seed=1)
    left = (half == 4).sum(1).double() * (1 - 0.64) / (1 - 0.36)
    assert (again == 4).sum(1).tolist() == left.round().long().tolist()


def test_temperature_and_noise():
    chain = gm.CTMC(gm.predict.Tokens(Sure(), gm.MixturePath(4, mask=4)))

    def shares(solver: Confidence) -> Tensor:
        x = gm.sample(chain, (40_000, 3), steps=1, solver=solver, seed=0)
        return torch.stack([(x == v).double().mean(0) for v in range(4)], 1)

    torch.testing.assert_close(shares(Confidence()).float(), Sure.TABLE, rtol=0, atol=0.012)
    sharp = Sure.TABLE**2 / (Sure.TABLE**2).sum(1, keepdim=True)
    torch.testing.assert_close(shares(Confidence(temperature=0.5)).float(), sharp, rtol=0, atol=0.012)
    # The Gumbel trick: with noise of scale 2/3 * 1.5 = 1 the first position is drawn by the softmax of the scores.
    solver = Confidence(temperature=0.0, noise=1.5)
    first = gm.sample(chain, (40_000, 3), times=[0, 1 / 3], solver=solver, seed=0)
    expected = torch.tensor([0.40, 0.46, 0.50]) / 1.36
    torch.testing.assert_close((first != 4).double().mean(0).float(), expected, rtol=0, atol=0.012)


def test_confidence_does_not_sample_the_law():
    world, chain = masked_chain()
    assert p_value(world, draw(world, Confidence(), 20_000, chain, steps=8), world.end()) < 1e-6


def test_confidence_refuses_bad_options():
    with pytest.raises(ValueError, match="score must be one of probability, margin, entropy, got 'best'"):
        Confidence("best")
    with pytest.raises(ValueError, match="temperature must be at least 0"):
        Confidence(temperature=-1)
    with pytest.raises(ValueError, match="noise must be at least 0"):
        Confidence(noise=-1)


def test_counts_of_evaluations():
    world, chain = masked_chain()
    field, times = Field(chain, world.states[:1]), torch.linspace(0, 1, 5, dtype=F64)
    solvers: list[Solver] = [FirstHitting(), Confidence(), Remasking(1.0)]
    assert [s.evaluations(s.plan(field, times)) for s in solvers] == [2, 4, 4]
    assert Thinning(40.0).evaluations(Thinning(40.0).plan(field, times)) == 40
    assert Thinning(last=0.01).evaluations(Thinning(last=0.01).plan(field, times)) == math.ceil(2 * math.log(100)) + 1


def test_a_shared_law_lands_on_its_values():
    law = Listed(torch.tensor([7, 0, 3]), torch.tensor([0.25, 0.0, 0.75], dtype=F64))
    u = torch.tensor([[0.0, 0.2499, 0.2501], [0.5, 0.9, 1 - 2.0**-24]])
    assert law.land(u, gm.Draws(0, 2)).tolist() == [[7, 7, 3], [3, 3, 3]]
    assert law.take(torch.tensor([0, 1])) is law
    x = torch.tensor([[3, 7]])
    gain = law.gain(lambda y: y.sum(1).double(), x, torch.tensor([[2.0, 1.0]], dtype=F64))
    mean = 0.25 * 7 + 0.75 * 3
    assert gain.item() == pytest.approx(2 * (mean - 3) + (mean - 7))
    with pytest.raises(ValueError, match="one probability for each listed value"):
        Listed(torch.tensor([1, 2]), torch.ones(3))


@pytest.mark.parametrize("size", [65, 100, 1000, 1024, 16_384, 16_385])
def test_large_vocabularies_are_searched_exactly(size: int):
    """Two levels, also where the blocks do not divide the vocabulary: the distribution function inverted."""
    logits = 3 * gm.Draws(size, 4).normal((4, size), F64)
    logits[0, -1], logits[1, 0], logits[2, size // 2 :] = 8.0, -math.inf, -math.inf
    u = torch.linspace(0, 1 - 2.0**-24, 301, dtype=F64)
    landed = Categorical(logits[:, None].expand(4, 301, size)).land(u.expand(4, 301), gm.Draws(0, 4))
    edges = logits.softmax(-1).cumsum(-1)
    low = torch.cat([torch.zeros(4, 1, dtype=F64), edges], 1).gather(1, landed)
    assert (edges.gather(1, landed) >= u - 1e-12).all()
    assert (low <= u + 1e-12).all()
    assert (logits.gather(1, landed) > -math.inf).all()


def test_rows_are_landed_alike_whole_or_in_parts(monkeypatch: pytest.MonkeyPatch):
    logits = gm.Draws(1, 3).normal((3, 40, 100))
    x = torch.zeros(3, 40, dtype=torch.int64)
    rates = Rates((torch.full((3, 40), 1.0), logits))
    whole = rates.leap(x, 1.0, gm.Draws(0, 3))
    monkeypatch.setattr("genmatch.rates.CACHED", 700)
    assert torch.equal(rates.leap(x, 1.0, gm.Draws(0, 3)), whole)
    shared = Rates((torch.full((3, 40), 1.0), logits[:1].expand(3, 40, 100)))  # no view of all rows
    own = Rates((torch.full((3, 40), 1.0), logits[:1].expand(3, 40, 100).contiguous()))
    assert torch.equal(shared.leap(x, 1.0, gm.Draws(0, 3)), own.leap(x, 1.0, gm.Draws(0, 3)))
    assert (whole != 0).any()
