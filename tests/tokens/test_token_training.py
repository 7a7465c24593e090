"""Training of token chains: by posterior and by rates, at one time for a sequence or one for each position."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from enumerated import F64, PATHS, Chain, any_order_bound
from torch import Tensor, nn

import genmatch as gm
from genmatch.divergences import CrossEntropy, GeneralisedKL
from genmatch.random import Draws


class Table(nn.Module):
    """Free logits for every state of two positions."""

    def __init__(self, ids: int) -> None:
        super().__init__()
        self.ids = ids
        self.logits = nn.Parameter(torch.zeros(ids * ids, 2, 3, dtype=F64))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.logits[x[:, 0] * self.ids + x[:, 1]]


def tokens(count: int, *, mask: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """States, data and logits that have nothing to do with one another."""
    draws = Draws(3, count)
    x1 = draws.fork(1).integers((count, 5), 4)
    x = torch.where(draws.fork(2).uniform((count, 5)) < 0.5, x1, draws.fork(3).integers((count, 5), 4))
    if mask is not None:
        x = torch.where(draws.fork(4).uniform((count, 5)) < 0.5, mask, x1)
    return x, x1, draws.fork(5).normal((count, 5, 4), F64)


class Fixed(nn.Module):
    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.logits


def rate_tables(path: gm.MixturePath, x: Tensor, x1: Tensor, logits: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """Rates to each token given the data, and the network's, to the token that shows 0."""
    hazard = float(path.at(torch.tensor([t], dtype=F64)).hazard)
    own = nn.functional.one_hot(x1, 4).double()
    other = torch.arange(4) != x[..., None]
    return hazard * own * other, hazard * logits.softmax(-1) * other


@pytest.mark.parametrize("mask", [None, 4])
def test_the_rate_loss_is_the_divergence_of_the_rate_tables(mask: int | None):
    path = gm.MixturePath(4, mask=mask, schedule=gm.schedules.Polynomial(2.0))
    x, x1, logits = tokens(200, mask=mask)
    model = gm.predict.Tokens(Fixed(logits), path, divergence=GeneralisedKL())
    error = model.error(logits, x, x1, x1, model.instant(0.75, x))
    target, predicted = rate_tables(path, x, x1, logits, 0.75)
    cells = GeneralisedKL()(target, predicted)
    expected = torch.where(torch.arange(4) != x[..., None], cells, 0).sum(-1)
    scored, _ = model.scored(x, x1)
    if scored is not None:
        error, expected = torch.where(scored, error, 0), torch.where(scored, expected, 0)
    assert expected.max() > 1
    torch.testing.assert_close(error, expected, rtol=1e-9, atol=1e-9)


def test_on_a_masked_path_it_is_weighted_cross_entropy():
    _, x1, _ = tokens(50)
    logits = Draws(1, 50).normal((50, 5, 4), F64)
    path = gm.MixturePath(4, mask=4)
    losses = {
        divergence: gm.matching_loss(
            gm.predict.Tokens(Fixed(logits), path, divergence=divergence), x1, t=0.75, seed=0, reduction="none"
        )
        for divergence in (CrossEntropy(), GeneralisedKL())
    }
    torch.testing.assert_close(losses[GeneralisedKL()], 4 * losses[CrossEntropy()])


def expected_gradient(world: Chain, divergence, t: float, logits: Tensor) -> Tensor:
    """The gradient of the loss averaged over data and path exactly, in the logits of every state."""
    logits = logits.clone().requires_grad_()
    model = gm.predict.Tokens(nn.Identity(), world.path, divergence=divergence)
    given = world.given(world.kappa(torch.tensor(t, dtype=F64))).prod(-1) * world.law
    total = torch.zeros((), dtype=F64)
    for k, data in enumerate(world.data):
        x1 = data.expand(len(world.states), 2)
        error = model.error(logits, world.states, x1, x1, model.instant(t, world.states))
        scored, _ = model.scored(world.states, x1)
        total = total + (given[:, k, None] * (error if scored is None else torch.where(scored, error, 0))).sum()
    return torch.autograd.grad(total, logits)[0]


@pytest.mark.parametrize("divergence", [CrossEntropy(), GeneralisedKL()], ids=["posterior", "rates"])
@pytest.mark.parametrize("name", ["uniform", "given", "mask"])
def test_the_posterior_is_where_the_gradient_vanishes(name: str, divergence):
    world = Chain(PATHS[name])
    exact = world.predictor()(world.states, 0.5).logits
    assert expected_gradient(world, divergence, 0.5, exact).abs().max() < 1e-12
    assert expected_gradient(world, divergence, 0.5, exact + Draws(0, 1).normal(exact[:1].shape)).abs().max() > 1e-3


@pytest.mark.parametrize("divergence", [CrossEntropy(), GeneralisedKL()], ids=["posterior", "rates"])
@pytest.mark.parametrize("name", ["uniform", "mask"])
def test_training_reaches_the_exact_answer(name: str, divergence):
    world = Chain(PATHS[name])
    ids = 3 if world.path.mask is None else 4
    model = gm.predict.Tokens(Table(ids), world.path, divergence=divergence)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    steps = 250
    for step in range(steps):
        rows = torch.multinomial(world.law, 4096, True, generator=torch.Generator().manual_seed(step))
        loss = gm.matching_loss(model, world.data[rows], t=0.5, draws=Draws(1, 4096, step=step))
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    learned, exact = model(world.states, 0.5).probabilities, world.predictor()(world.states, 0.5).probabilities
    moving = world.path.movable(world.states)
    error = (learned - exact).abs().sum(-1) / 2
    error = error if moving is None else error[moving]
    assert error.max() < 0.03
    start = (1 / 3 - exact).abs().sum(-1) / 2
    assert start.max() > 0.4


class Unsure(nn.Module):
    """A posterior that is wrong: the exact one, mixed with the uniform."""

    def __init__(self, world: Chain) -> None:
        super().__init__()
        self.exact = world.predictor().network

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return (0.7 * self.exact(x, t).softmax(-1) + 0.1).log()


def test_the_rate_loss_is_the_bound_of_the_likelihood():
    """Its mean over t, times the number of positions, is the mean code length over all orders of a masked model."""
    world = Chain(PATHS["mask"])
    model = gm.predict.Tokens(Unsure(world), world.path, divergence=GeneralisedKL())
    x1 = world.data.repeat(20_000, 1)
    time = gm.times.Uniform(stratified=True)
    losses = 2 * gm.matching_loss(model, x1, time=time, seed=0, reduction="none").reshape(20_000, 9)
    expected = any_order_bound(world, lambda x: model(x, 0.5).probabilities)
    error = losses.std(0) / math.sqrt(20_000)
    assert ((losses.mean(0) - expected).abs() < 5 * error).all()
    assert error.max() < 0.06


def test_the_rate_loss_bounds_the_divergence_of_an_unmasked_chain():
    """Up to a time T the divergence of the processes is above that of their laws at T, and both are 0 for the truth."""
    path, horizon, steps = gm.MixturePath(3), 0.75, 48
    world = Chain(path)
    model = gm.predict.Tokens(Unsure(world), path, divergence=GeneralisedKL())
    chain = gm.CTMC(model)
    h, law = horizon / steps, world.start()
    bound = torch.zeros(9, dtype=F64)
    data = world.data[None].expand(9, 9, 2)
    for k in range(steps):  # midpoint rule for both
        t = (k + 0.5) * h
        q = torch.zeros(9, 9, dtype=F64)
        table = chain(world.states, t).rates.table()
        for position in range(2):
            for token in range(3):
                landed = world.states.clone()
                landed[:, position] = token
                rows = torch.arange(9)
                q.index_put_((rows, world.index(landed)), table[:, position, token].double(), accumulate=True)
                q.index_put_((rows, rows), -table[:, position, token].double(), accumulate=True)
        law = law @ torch.linalg.matrix_exp(h * q)
        states = world.states[:, None].expand(9, 9, 2)
        native = model(world.states, t).native[:, None].expand(9, 9, 2, 3)
        error = model.error(
            native.reshape(81, 2, 3),
            states.reshape(81, 2),
            data.reshape(81, 2),
            data.reshape(81, 2),
            model.instant(t, states.reshape(81, 2)),
        )
        weight = world.given(world.kappa(torch.tensor(t, dtype=F64))).prod(-1)  # p_t(x | x1), states by data
        bound += h * (weight * error.sum(1).reshape(9, 9)).sum(0)
    given = world.given(world.kappa(torch.tensor(horizon, dtype=F64))).prod(-1)
    divergence = (given * (given / law[:, None]).log()).sum(0)
    assert (bound > divergence).all()
    assert (bound < 4 * divergence).all()
    assert divergence.min() > 0.1


def test_rates_are_not_trained_at_the_data():
    path = gm.MixturePath(4)
    x1 = tokens(4)[1]
    model = gm.predict.Tokens(Fixed(torch.zeros(4, 5, 4, requires_grad=True)), path, divergence=GeneralisedKL())
    with pytest.raises(ValueError, match="rates are trained at t < 1"):
        gm.matching_loss(model, x1, t=1.0)
    with pytest.raises(ValueError, match="rates are trained at t < 1"):
        gm.matching_loss(model, x1, t=torch.tensor([0.5, 1.0, 0.2, 0.3]))
    masked = gm.predict.Tokens(model.network, gm.MixturePath(4, mask=4), divergence=GeneralisedKL())
    for each in (model, masked):
        loss = gm.matching_loss(each, x1, t=torch.full((4,), 1 - 2.0**-24))
        (gradient,) = torch.autograd.grad(loss, each.network.logits)
        assert loss.isfinite()
        assert gradient.isfinite().all()


# A time for each position


class Clock(nn.Module):
    """Logits that say the time: it is seen at every position."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.seen = t
        return torch.zeros(*x.shape, 4) + t[..., None]


def test_positions_have_times_of_their_own():
    path = gm.MixturePath(4, mask=4, schedule=gm.schedules.Cosine())
    x1 = Draws(0, 4000).integers((4000, 6), 4)
    t = torch.tensor([0.0, 0.1, 0.4, 0.7, 0.95, 1.0]).expand(4000, 6)
    instant: Any = path.per_token(t)
    x = path.sample(torch.full_like(x1, 4), x1, instant, Draws(1, 4000))
    shown = (x != 4).double().mean(0)
    kappa = path.schedule(t[0].double())[0]
    torch.testing.assert_close(shown, kappa, rtol=0, atol=0.04)
    assert shown[0] == 0
    assert shown[-1] == 1
    model = gm.predict.Tokens(Clock(), path)
    gm.matching_loss(model, x1, t=instant, seed=0)
    assert torch.equal(model.network.seen, t)


def test_one_time_for_all_positions_is_the_loss_of_samples():
    class Twice(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            t = t.expand(x.shape) if t.ndim > 1 else t[:, None].expand(x.shape)
            return torch.stack([t, 2 * t, x.float(), 1 - t], -1)

    for path in (gm.MixturePath(4), gm.MixturePath(4, mask=4)):
        for divergence in (CrossEntropy(), GeneralisedKL()):
            model = gm.predict.Tokens(Twice(), path, divergence=divergence)
            x1, t = tokens(30)[1], 0.9 * Draws(9, 30).uniform((30,))
            samples = gm.matching_loss(model, x1, t=t, seed=0, reduction="none")
            each: Any = path.per_token(t[:, None].expand(30, 5))
            positions = gm.matching_loss(model, x1, t=each, seed=0, reduction="none")
            torch.testing.assert_close(samples, positions)


def test_bad_times_of_positions_are_refused():
    path = gm.MixturePath(4)
    with pytest.raises(TypeError, match=r"floating point tensor \(B, \*S\), got torch.int64"):
        path.per_token(torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(TypeError, match="got float"):
        path.per_token(0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"have the shape \(B, \*S\) of the tokens, got \(2,\)"):
        path.per_token(torch.zeros(2))
    with pytest.raises(ValueError, match=r"t must be in \[0, 1\], got 0 to 2"):
        path.per_token(torch.tensor([[0.0, 2.0]]))
