"""The bound of masked likelihoods: against exact likelihoods, exact orders, and its own other rule."""

from __future__ import annotations

import math

import pytest
import torch
from enumerated import F64, PATHS, Chain, any_order_bound
from torch import Tensor, nn

import genmatch as gm
from genmatch.likelihood import bits_per_token, masked_bound


class Unsure(nn.Module):
    """Another posterior at every time: the exact one, mixed with more of the uniform the later it is."""

    def __init__(self, world: Chain, by_time: bool = False) -> None:
        super().__init__()
        self.exact, self.by_time = world.predictor().network, by_time

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        share = t[:, None, None] if self.by_time else 0.3
        return ((1 - share) * self.exact(x, t).softmax(-1) + share / 3).log()


def estimates(model, world: Chain, repeats: int, **options) -> tuple[Tensor, Tensor]:
    """Mean and standard error of the bound of each data pair."""
    nats = masked_bound(model, world.data.repeat(repeats, 1), seed=0, **options).reshape(repeats, 9)
    return nats.mean(0), nats.std(0) / math.sqrt(repeats)


@pytest.mark.parametrize("rule", ["counts", "times"])
def test_it_is_tight_for_the_exact_posterior(rule: str):
    world = Chain(PATHS["mask cubic"])
    mean, error = estimates(world.predictor(), world, 2000, rule=rule, evaluations=8)
    assert ((mean + world.law.log()).abs() < 5 * error).all()
    assert error.max() < {"counts": 0.002, "times": 0.2}[rule]


@pytest.mark.parametrize("rule", ["counts", "times"])
def test_it_is_the_mean_code_length_over_all_orders(rule: str):
    """And above -log of the mean over orders of the probability, which is what first-hitting samples."""
    world = Chain(PATHS["mask"])
    model = gm.predict.Tokens(Unsure(world), world.path)
    mean, error = estimates(model, world, 4000, rule=rule, evaluations=6)
    expected = any_order_bound(world, lambda x: model(x, 0.5).probabilities)
    assert ((mean - expected).abs() < 5 * error).all()
    assert (expected > order_likelihood(world, model) - 1e-12).all()
    assert (mean - expected).abs().max() < (expected + world.law.log()).abs().max(), "it is not the exact likelihood"
    x = gm.sample(gm.CTMC(model), (40_000, 2), steps=1, solver=gm.solvers.FirstHitting(), seed=1)
    shares = world.histogram(x)[world.index(world.data)]
    torch.testing.assert_close(shares, (-order_likelihood(world, model)).exp(), rtol=0, atol=0.01)


def order_likelihood(world: Chain, model) -> Tensor:
    """-log of the mean over both orders of p(first) p(second | first)."""
    total, rows = torch.zeros(9, dtype=F64), torch.arange(9)
    for first, second in ((0, 1), (1, 0)):
        x = torch.full_like(world.data, 3)
        start = model(x, 0.5).probabilities[rows, first, world.data[:, first]]
        x[:, first] = world.data[:, first]
        total += start * model(x, 0.5).probabilities[rows, second, world.data[:, second]] / 2
    return -total.log()


@pytest.mark.parametrize("name", ["mask", "mask cubic"])
def test_a_network_of_time_is_asked_at_the_right_times(name: str):
    """The integral over kappa of 1 / (1 - kappa) times the losses of all ways to mask, by quadrature."""
    world = Chain(PATHS[name])
    model = gm.predict.Tokens(Unsure(world, by_time=True), world.path)
    kappa = (torch.arange(400, dtype=F64) + 0.5) / 400
    times = world.path.time(kappa)
    rows, expected = torch.arange(9), torch.zeros(9, dtype=F64)
    for k, t in zip(kappa, times, strict=True):
        for masked in ((0,), (1,), (0, 1)):
            x = world.data.clone()
            x[:, list(masked)] = 3
            chances = model(x, t.expand(9)).probabilities
            loss = -sum(chances[rows, i, world.data[:, i]].log() for i in masked)
            expected += (1 - k) ** (len(masked) - 1) * k ** (2 - len(masked)) * loss / 400
    for rule in ("counts", "times"):
        mean, error = estimates(model, world, 3000, rule=rule, evaluations=6)
        assert ((mean - expected).abs() < 5 * error).all(), rule
    assert error.max() < 0.3


class Independent(nn.Module):
    """Tokens of known probabilities, whatever shows."""

    CHANCES = torch.tensor([0.5, 0.25, 0.125, 0.125])

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.CHANCES.log().expand(*x.shape, 4)


def test_prompts_and_padding_are_not_counted():
    """-log2 of independent tokens is 1, 2, 3 and 3 bits; one evaluation for each count is exact where all are alike."""
    model = gm.predict.Tokens(Independent(), gm.MixturePath(4, mask=9, padding=7))
    x1 = torch.tensor([[0, 0, 0, 0, 0], [1, 1, 1, 7, 7], [2, 3, 2, 3, 2], [7, 7, 7, 7, 7]])
    nats = masked_bound(model, x1, evaluations=5, seed=0)
    assert nats.tolist() == pytest.approx([5 * math.log(2), 6 * math.log(2), 15 * math.log(2), 0.0])
    fixed = torch.tensor([True, False, False, False, False]).expand(4, 5)
    given = masked_bound(model, x1, evaluations=3, seed=0, fixed=fixed)
    assert given.tolist() == pytest.approx([4 * math.log(2), 4 * math.log(2), 12 * math.log(2), 0.0])
    prompt = x1.clone()
    prompt[:, 0] = 9
    assert torch.equal(masked_bound(model, prompt, evaluations=3, seed=0, fixed=fixed), given)
    with pytest.raises(ValueError, match="the data have the mask 9 among them"):
        masked_bound(model, prompt)
    counts = torch.tensor([5, 3, 5])
    assert bits_per_token(nats[:3], counts).tolist() == pytest.approx([1.0, 2.0, 3.0])
    assert bits_per_token(nats[:1], 5).tolist() == pytest.approx([1.0])


@pytest.mark.parametrize("rule", ["counts", "times"])
def test_each_step_of_a_training_run_masks_anew(rule: str):
    world = Chain(PATHS["mask"])
    model, draws = world.predictor(), gm.Draws(3, 9)
    estimates = [masked_bound(model, world.data, evaluations=2, rule=rule, draws=draws.at(i)) for i in (0, 1, 7)]
    assert not torch.equal(estimates[0], estimates[1])
    assert not torch.equal(estimates[1], estimates[2])
    again = masked_bound(model, world.data, evaluations=2, rule=rule, draws=draws.at(1))
    assert torch.equal(again, estimates[1])


def test_an_estimate_does_not_depend_on_the_batch():
    world = Chain(PATHS["mask"])
    model = gm.predict.Tokens(Unsure(world), world.path)
    x1 = world.data
    for rule in ("counts", "times"):
        whole = masked_bound(model, x1, evaluations=5, rule=rule, seed=3)
        part = masked_bound(model, x1[4:], evaluations=5, rule=rule, draws=gm.Draws(3, 5, first_index=4))
        torch.testing.assert_close(part, whole[4:], rtol=1e-12, atol=0)
        assert not torch.equal(whole, masked_bound(model, x1, evaluations=5, rule=rule, seed=4))


def test_conditions_modes_and_gradients():
    class Labelled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits = nn.Parameter(torch.zeros(2, 4))
            self.drop = nn.Dropout(0.5)

        def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
            assert self.training is torch.is_grad_enabled()
            return self.drop(self.logits)[label][:, None].expand(*x.shape, 4)

    model = gm.predict.Tokens(Labelled(), gm.MixturePath(4, mask=4))
    x1, condition = torch.zeros(3, 5, dtype=torch.int64), {"label": torch.tensor([0, 1, 1])}
    nats = masked_bound(model, x1, evaluations=2, condition=condition, seed=0)
    assert nats.tolist() == pytest.approx([5 * math.log(4)] * 3)
    assert model.training
    assert not nats.requires_grad
    masked_bound(model, x1, evaluations=2, condition=condition, seed=0, grad=True).sum().backward()
    assert model.network.logits.grad.abs().sum() > 0


def test_bad_input_is_refused():
    model = gm.predict.Tokens(Independent(), gm.MixturePath(4, mask=4))
    x1 = torch.zeros(2, 3, dtype=torch.int64)
    uniform = gm.predict.Tokens(Independent(), gm.MixturePath(4))
    with pytest.raises(TypeError, match=r"on a path with a mask.*got MixturePath\(4\)"):
        masked_bound(uniform, x1)
    with pytest.raises(TypeError, match="got CTMC"):
        masked_bound(gm.CTMC(model), x1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="evaluations must be at least 1, got 0"):
        masked_bound(model, x1, evaluations=0)
    with pytest.raises(TypeError, match="evaluations must be an integer, got float"):
        masked_bound(model, x1, evaluations=2.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rule must be one of counts, times, got 'time'"):
        masked_bound(model, x1, rule="time")
    with pytest.raises(ValueError, match=r"tokens must be in \[0, 4\) or 4, got 6"):
        masked_bound(model, x1 + 6)
    with pytest.raises(TypeError, match="x1 must be a tensor"):
        masked_bound(model, [[0, 1]])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"x1 has the shape \(B, \*S\)"):
        masked_bound(model, x1[:0])
    with pytest.raises(ValueError, match="fixed must be bool"):
        masked_bound(model, x1, fixed=x1)
    with pytest.raises(ValueError, match="draws or a seed, not both"):
        masked_bound(model, x1, draws=gm.Draws(0, 2), seed=1)
    with pytest.raises(ValueError, match="draws are for 3 samples, the batch has 2"):
        masked_bound(model, x1, draws=gm.Draws(0, 3))
    with pytest.raises(ValueError, match="at least one token"):
        bits_per_token(torch.ones(2), torch.tensor([3, 0]))
    with pytest.raises(ValueError, match=r"one for each sequence, \(2,\)"):
        bits_per_token(torch.ones(2), torch.tensor([3]))
