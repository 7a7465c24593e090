"""Enumerable chains with per-sample times, other sources and exact kernels of a sampler's step."""

from __future__ import annotations

import torch
from scipy.stats import chi2
from torch import Tensor, nn

import genmatch as gm
from genmatch.generators import Operator
from genmatch.paths import CategoricalTokens
from genmatch.rates import Rates
from genmatch.solvers import Field, Solver
from token_worlds import DATA, VOCABULARY, TokenWorld

F64 = torch.float64


class Chain(TokenWorld):
    """A token world whose source may be any known law, and whose perfect network takes a time for each sample."""

    def given(self, kappa: Tensor, x: Tensor | None = None) -> Tensor:
        x = self.states if x is None else x
        if not isinstance(self.path.source, CategoricalTokens):
            return super().given(kappa, x)
        source = self.path.source.probabilities[x][:, None]
        return (1 - kappa) * source + kappa * (x[:, None] == self.data[None]).double()

    def predictor(self) -> gm.predict.Tokens:
        return gm.predict.Tokens(Perfect(self), self.path)


class Perfect(nn.Module):
    """The exact posterior, at a time for each sample; counts its calls and remembers the times."""

    def __init__(self, world: Chain) -> None:
        super().__init__()
        self.world, self.times = world, []

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.times.append(t)
        world = self.world
        masked = world.path.mask is not None  # then the posterior is the same at every time, and defined at all
        kappa = torch.full_like(t, 0.5, dtype=F64) if masked else world.kappa(t.double())
        joint = world.given(kappa[:, None, None], x).prod(-1) * world.law
        one_hot = nn.functional.one_hot(world.data, VOCABULARY).double()
        # Anything where a state has no probability: nothing is there.
        return torch.einsum("bd,dpv->bpv", joint.clamp(min=1e-300), one_hot).log()


PATHS = {
    "uniform": gm.MixturePath(3),
    "mask": gm.MixturePath(3, mask=3),
    "given": gm.MixturePath(3, source=CategoricalTokens([0.5, 0.3, 0.2])),
    "uniform cosine": gm.MixturePath(3, schedule=gm.schedules.Cosine()),
    "mask cubic": gm.MixturePath(3, mask=3, schedule=gm.schedules.Polynomial(3.0)),
    "given quadratic": gm.MixturePath(
        3, source=CategoricalTokens([0.0, 0.3, 0.7]), schedule=gm.schedules.Polynomial(2.0)
    ),
}


def generator_matrix(world: Chain, operator: Operator, t: float) -> Tensor:
    """Q[x, y] by the definition: the generator of the indicator of y, at x."""
    triplet = operator(world.states, t)
    columns = [
        triplet.apply(lambda y, j=j: (world.index(y) == j).double(), world.states) for j in range(len(world.states))
    ]
    return torch.stack(columns, 1)


def density_and_rate(world: Chain, t: float) -> tuple[Tensor, Tensor]:
    """p_t and its time derivative on the states."""
    time = torch.tensor(t, dtype=F64)
    density, rate = torch.func.jvp(world.density, (time,), (torch.ones_like(time),))  # type: ignore[misc]
    return density, rate


def leap_kernel(world: Chain, rates: Rates, h: float) -> Tensor:
    """P[x, y] of a leap: each position jumps with probability 1 - exp(-h lambda), on its own, exactly."""
    ids = VOCABULARY if world.path.mask is None else VOCABULARY + 1
    count = len(world.states)
    chances = torch.zeros(count, 2, ids, dtype=F64)
    total = torch.zeros(count, 2, dtype=F64)
    for term, where in rates.terms:
        weight = term.double()[..., None]
        total += term.double()
        if isinstance(where, gm.rates.Categorical):
            chances[..., :VOCABULARY] += weight * where.logits.double().softmax(-1)
        else:
            chances[..., where.values] += weight * where.probabilities
    share = (chances / total.clamp(min=1e-300)[..., None]) * -torch.expm1(-h * total)[..., None]
    stay = nn.functional.one_hot(world.states, ids).double() * torch.exp(-h * total)[..., None]
    own = share + stay
    first, second = own[:, 0][:, world.states[:, 0]], own[:, 1][:, world.states[:, 1]]
    return first * second


def leapt_law(world: Chain, operator: Operator, steps: int) -> Tensor:
    """The law on the states that Euler's steps end in, from the source, without drawing anything."""
    field = Field(operator, world.states[:1])
    times = torch.linspace(0, 1, steps + 1, dtype=F64)
    law = world.start()
    for step in gm.solvers.Euler().plan(field, times):
        law = law @ leap_kernel(world, field(world.states, step.instants[0]).rates, step.h)
    return law


def p_value(world: Chain, x: Tensor, law: Tensor) -> float:
    """Of Pearson's test that samples follow a law on the states; 0 where one of no probability is seen."""
    counts, expected = world.histogram(x) * len(x), law * len(x)
    possible = expected > 1e-9
    if counts[~possible].sum() > 0:
        return 0.0
    statistic = ((counts - expected)[possible] ** 2 / expected[possible]).sum().item()
    return float(chi2.sf(statistic, int(possible.sum()) - 1))


def draw(world: Chain, solver: Solver, count: int, operator: Operator | None = None, **options) -> Tensor:
    operator = gm.CTMC(world.predictor()) if operator is None else operator
    return gm.sample(operator, (count, 2), solver=solver, **{"seed": 5, "steps": 1, **options})


def any_order_bound(world: Chain, posterior) -> Tensor:
    """The mean over both orders of -log p(first) p(second | first), for every data pair, ``(9,)``."""
    data, mask = world.data, int(world.path.mask or 0)
    rows = torch.arange(len(data))
    bound = torch.zeros(len(data), dtype=F64)
    for first, second in ((0, 1), (1, 0)):
        x = torch.full_like(data, mask)
        bound -= posterior(x)[rows, first, data[:, first]].log() / 2
        x[:, first] = data[:, first]
        bound -= posterior(x)[rows, second, data[:, second]].log() / 2
    return bound


__all__ = [
    "DATA",
    "F64",
    "PATHS",
    "VOCABULARY",
    "Chain",
    "Perfect",
    "any_order_bound",
    "density_and_rate",
    "draw",
    "generator_matrix",
    "leap_kernel",
    "leapt_law",
    "p_value",
]
