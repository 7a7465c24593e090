r"""One step of tokens: at each position (1 - q) delta_x + q posterior, with q = (kappa_s - kappa_t)/(1 - kappa_t).

Laws are exact here: uniforms are fed to the step instead of drawn, all of a grid in which every probability is a
multiple of the grid's width.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import genmatch as gm
from genmatch.rates import WHERE, WHETHER
from genmatch.solvers import Euler, Field
from token_worlds import VOCABULARY, TokenWorld, enumerate_states, total_variation

EIGHTHS = torch.tensor([[1, 5, 2], [4, 1, 3], [2, 2, 4], [3, 4, 1]], dtype=torch.float64) / 8


class ByNeighbour(nn.Module):
    """At each position a row of eighths that the other position's token chooses."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return EIGHTHS.log()[x.flip(-1)]


class Fixed(nn.Module):
    def __init__(self, probabilities, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.logits = torch.tensor(probabilities, dtype=torch.float64).log().to(dtype)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.logits.expand(*x.shape, -1)


class Fed:
    """Stands in for draws: gives the uniforms it was given, to the stream they are for."""

    def __init__(self, whether: Tensor, where: Tensor) -> None:
        self.numbers = {WHETHER: whether, WHERE: where}

    def fork(self, stream: int) -> Fed:
        self.asked = self.numbers[stream]
        return self

    def uniform(self, shape) -> Tensor:
        assert tuple(shape) == tuple(self.asked.shape)
        return self.asked


def step(operator, x: Tensor, t: float, s: float, whether: Tensor, where: Tensor) -> Tensor:
    """One step of the Euler solver from t to s on given uniforms."""
    field, solver = Field(operator, x), Euler()
    (plan,) = solver.plan(field, torch.tensor([t, s], dtype=torch.float64))
    return solver.step(field, x, plan, Fed(whether, where), None)[0]


def midpoints(count: int) -> list[float]:
    return [(j + 0.5) / count for j in range(count)]


@pytest.mark.parametrize("mask", [None, 3])
@pytest.mark.parametrize(
    ("t", "s", "chance"), [(0.5, 0.625, 0.25), (0.0, 0.125, 0.125), (0.25, 1.0, 1.0), (0.75, 0.875, 0.5)]
)
def test_the_law_of_a_step_by_enumeration(mask: int | None, t: float, s: float, chance: float):
    path = gm.MixturePath(3, mask=mask)
    ctmc, states = gm.CTMC(gm.predict.Tokens(ByNeighbour(), path)), enumerate_states(3 if mask is None else 4)
    values = 3 if mask is None else 4
    numbers = torch.tensor(list(itertools.product(midpoints(8), repeat=4)))  # whether and where, at both positions
    for x in states:
        ends = step(ctmc, x.expand(len(numbers), 2), t, s, numbers[:, :2], numbers[:, 2:])
        law = torch.bincount(ends[:, 0] * values + ends[:, 1], minlength=values**2).double() / len(ends)
        expected = torch.ones(values, values, dtype=torch.float64)
        for i in range(2):
            moves = chance if mask is None or x[i] == mask else 0.0
            marginal = torch.zeros(values, dtype=torch.float64)
            marginal[x[i]] += 1 - moves
            marginal[:3] += moves * EIGHTHS[x[1 - i]]
            expected = expected * (marginal[:, None] if i == 0 else marginal[None, :])
        torch.testing.assert_close(law, expected.flatten(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "schedule", [gm.schedules.CondOT(), gm.schedules.Cosine(), gm.schedules.Polynomial(3.0)], ids=repr
)
def test_the_chance_of_a_jump_is_exact_for_every_schedule_and_precision(schedule: gm.Schedule, dtype: torch.dtype):
    """Uniforms just below the chance jump, just above stay; at every length of step."""
    ctmc = gm.CTMC(gm.predict.Tokens(Fixed([0.0, 1.0], dtype), gm.MixturePath(2, mask=2, schedule=schedule)))
    x = torch.full((2, 1), 2)
    for t, s in ((0.0, 0.02), (0.1, 0.5), (0.37, 0.371), (0.9, 0.99), (0.5, 0.9999)):
        kappa, end = (schedule(torch.tensor(v, dtype=torch.float64))[0].item() for v in (t, s))
        chance = (end - kappa) / (1 - kappa)
        near = torch.tensor([[chance - 5e-7], [chance + 5e-7]])
        assert step(ctmc, x, t, s, near, torch.full((2, 1), 0.5)).flatten().tolist() == [1, 2]
    almost = torch.full((2, 1), 1 - 2.0**-24)
    assert step(ctmc, x, 0.9, 1.0, almost, almost).flatten().tolist() == [1, 1], "the last step leaves no mask"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("t", "s", "chance"), [(0.5, 0.625, 0.25), (0.75, 0.875, 0.5), (0.25, 1.0, 1.0), (0.0, 1.0, 1.0)]
)
def test_a_sum_of_two_networks_shares_jumps_by_its_weights(t: float, s: float, chance: float, dtype: torch.dtype):
    """Also in the step that ends at the data, where the hazard is infinite: there the shares are the weights, too."""
    path = gm.MixturePath(3, mask=3)
    first, second = Fixed([0.5, 0.125, 0.375], dtype), Fixed([0.0, 1.0, 0.0], dtype)
    hybrid = 0.25 * gm.CTMC(gm.predict.Tokens(first, path)) + 0.75 * gm.CTMC(gm.predict.Tokens(second, path))
    numbers = torch.tensor(list(itertools.product(midpoints(64), midpoints(8))))
    ends = step(hybrid, torch.full((len(numbers), 1), 3), t, s, numbers[:, :1], numbers[:, 1:])
    law = torch.bincount(ends.flatten(), minlength=4).double() / len(ends)
    expected = chance * (0.25 * torch.tensor([0.5, 0.125, 0.375, 0]) + 0.75 * torch.tensor([0, 1.0, 0, 0]))
    expected[3] = 1 - chance
    torch.testing.assert_close(law, expected.double(), rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-2)


@pytest.mark.parametrize("mask", [None, 3])
def test_weights_that_make_a_rate_negative_are_refused(mask: int | None):
    path = gm.MixturePath(3, mask=mask)
    first, second = (gm.CTMC(gm.predict.Tokens(Fixed([0.5, 0.25, 0.25]), path)) for _ in range(2))
    with pytest.raises(ValueError, match=r"weights \(1.5, -0.5\) make a jump rate negative"):
        gm.sample(1.5 * first - 0.5 * second, (4, 2), steps=3, seed=0)


# Many steps, exactly


def transition(world: TokenWorld, field: Field, plan) -> Tensor:
    """The matrix of one step on all states, from the step's rates: each position on its own."""
    triplet = field(world.states, plan.instants[0])
    (term,) = triplet.rates.terms
    chance = -torch.expm1(-plan.h * term.total.double())
    values = 3 if world.path.mask is None else 4
    landing = nn.functional.pad(term.where.logits.softmax(-1).double(), (0, values - VOCABULARY))
    stay = nn.functional.one_hot(world.states, values).double()
    law = (1 - chance)[..., None] * stay + chance[..., None] * landing
    return (law[:, 0, :, None] * law[:, 1, None, :]).flatten(1)


def law_after(world: TokenWorld, steps: int) -> Tensor:
    field = Field(gm.CTMC(world.model()), world.states)
    p = world.start()
    for plan in Euler().plan(field, gm.grids.uniform(steps)):
        p = p @ transition(world, field, plan)
    return p


@pytest.mark.parametrize("mask", [None, 3])
def test_tau_leaping_converges_at_order_one(mask: int | None):
    world = TokenWorld(gm.MixturePath(3, mask=mask))
    errors = [total_variation(law_after(world, steps), world.end()) for steps in (8, 16, 32, 64)]
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert errors[0] > 0.01, "the law is so simple that any number of steps would do"
    assert orders[-1] == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("mask", [None, 3])
def test_one_step_is_exact_for_independent_positions(mask: int | None):
    first, second = torch.tensor([0.2, 0.3, 0.5]).double(), torch.tensor([0.6, 0.3, 0.1]).double()
    world = TokenWorld(gm.MixturePath(3, mask=mask), first[:, None] * second[None])
    for steps in (1, 4):
        torch.testing.assert_close(law_after(world, steps), world.end(), rtol=0, atol=1e-12)
    correlated = TokenWorld(gm.MixturePath(3, mask=mask))
    product = correlated.law.reshape(3, 3).sum(1)[:, None] * correlated.law.reshape(3, 3).sum(0)[None]
    gap = total_variation(product.flatten(), correlated.law)
    assert total_variation(law_after(correlated, 1), correlated.end()) == pytest.approx(gap, abs=1e-12)


def test_the_loop_draws_from_the_law():
    """Monte Carlo through gm.sample, against the exact law of the same few steps: chi-squared."""
    for mask in (None, 3):
        world = TokenWorld(gm.MixturePath(3, mask=mask))
        count, exact = 20_000, law_after(world, 4)
        ends = gm.sample(gm.CTMC(world.model()), (count, 2), steps=4, seed=3)
        observed, expected = world.histogram(ends) * count, exact * count
        there = expected > 1e-9
        assert observed[~there].sum() == 0
        assert stats.chisquare(observed[there].numpy(), expected[there].numpy()).pvalue > 1e-3
        wrong = world.end() * count  # four steps are not enough, and 20,000 samples see it
        assert stats.chisquare(observed[there].numpy(), wrong[there].numpy()).pvalue < 1e-6
