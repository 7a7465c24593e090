"""The loss as it is called: shapes, draws, splits of a batch, which tokens count, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import genmatch as gm


class Own(nn.Module):
    """Bitwise independent of the batch: every value is worked on alone."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        y = self.scale * x + t.reshape(-1, *[1] * (x.ndim - 1))
        return y if label is None else y + label.reshape(-1, *[1] * (x.ndim - 1))


class OwnLogits(nn.Module):
    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.linspace(0, 1, vocabulary))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.seen, self.times = x, t
        return self.bias * (1 + x[..., None]) * t.reshape(-1, *[1] * x.ndim)


class First(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x[..., 0]


X = torch.randn(12, 3, 2, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randint(0, 5, (12, 6), generator=torch.Generator().manual_seed(0))
VELOCITY = gm.predict.Velocity(Own(), gm.GaussianPath())
MASKED = gm.predict.Tokens(OwnLogits(5), gm.MixturePath(5, mask=5))
UNIFORM = gm.predict.Tokens(OwnLogits(5), gm.MixturePath(5))
ADDED = gm.predict.Velocity(Own(), gm.GaussianPath(noise=0.2))
CASES = {"velocity": (VELOCITY, X), "masked": (MASKED, TOKENS), "uniform": (UNIFORM, TOKENS), "added noise": (ADDED, X)}


def test_it_is_the_formula():
    x0, t = torch.randn_like(X), torch.rand(12)
    losses = gm.matching_loss(VELOCITY, X, x0=x0, t=t, reduction="none")
    for i in range(12):
        state = t[i] * X[i] + (1 - t[i]) * x0[i]
        output = 0.3 * state + t[i]
        assert losses[i].item() == pytest.approx((X[i] - x0[i] - output).square().mean().item(), rel=1e-5)
    assert losses.shape == (12,)
    mean = gm.matching_loss(VELOCITY, X, x0=x0, t=t)
    assert mean.shape == ()
    assert mean.item() == pytest.approx(losses.mean().item(), rel=1e-6)
    mean.backward()
    assert VELOCITY.network.scale.grad.abs() > 0


@pytest.mark.parametrize("name", CASES)
def test_a_time_for_all_is_that_time_for_each(name: str):
    model, x1 = CASES[name]
    rows = gm.matching_loss(model, x1, t=torch.full((12,), 0.25), seed=0, reduction="none")
    for t in (0.25, torch.tensor(0.25), torch.full((12,), 0.25, dtype=torch.float64)):
        torch.testing.assert_close(gm.matching_loss(model, x1, t=t, seed=0, reduction="none"), rows)
    for t in (0, 1):
        assert gm.matching_loss(model, x1, t=t, seed=0).isfinite()


@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_parts_of_a_batch_have_the_losses_of_the_whole_bit_for_bit(name: str, stratified: bool):
    model, x1 = CASES[name]
    time = gm.times.LogitNormal(stratified=stratified)
    whole = gm.matching_loss(model, x1, time=time, draws=gm.Draws(3, 12, step=5), reduction="none")
    for size in (1, 5, 7):
        parts = []
        for first in range(0, 12, size):
            rows = x1[first : first + size]
            draws = gm.Draws(3, len(rows), first_index=first, step=5)
            parts.append(gm.matching_loss(model, rows, time=time, draws=draws, reduction="none"))
        assert torch.equal(torch.cat(parts), whole)
    other = gm.matching_loss(model, x1, time=time, draws=gm.Draws(3, 12, step=6), reduction="none")
    assert (other != whole).float().mean() > 0.5


def test_seeds_and_draws():
    first, second, third = (gm.matching_loss(VELOCITY, X, seed=s, reduction="none") for s in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert torch.equal(gm.matching_loss(VELOCITY, X, draws=gm.Draws(1, 12), reduction="none"), first)
    state = torch.random.get_rng_state()
    gm.matching_loss(VELOCITY, X, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator was touched in spite of a seed"
    free = [gm.matching_loss(VELOCITY, X, reduction="none") for _ in range(2)]
    assert not torch.equal(*free)
    torch.manual_seed(0)
    again = gm.matching_loss(VELOCITY, X, reduction="none")
    torch.manual_seed(0)
    assert torch.equal(gm.matching_loss(VELOCITY, X, reduction="none"), again)


def test_source_time_and_noise_are_drawn_apart():
    """No two of x0, t and the path's own noise share their numbers."""
    seen = {}

    class Spy(gm.GaussianPath):
        def between(self, x0, x1, instant, draws):
            seen.update(x0=x0, t=instant.t, noise=draws.normal(x0.shape), coins=draws.uniform(x0.shape))
            return super().between(x0, x1, instant, draws)

    gm.matching_loss(gm.predict.Velocity(Own(), Spy()), torch.zeros(3000, 1), seed=0)
    columns = torch.stack([v.flatten().double() for v in seen.values()])
    for i, j in ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3)):
        assert abs(torch.corrcoef(columns)[i, j]) < 4 / 3000**0.5


def test_conditions_follow_their_data():
    label = torch.arange(12.0)
    x0 = torch.randn_like(X)
    losses = gm.matching_loss(VELOCITY, X, x0=x0, t=0.5, condition={"label": label}, reduction="none")
    for i in range(12):
        output = 0.3 * (0.5 * X[i] + 0.5 * x0[i]) + 0.5 + i
        assert losses[i].item() == pytest.approx((X[i] - x0[i] - output).square().mean().item(), rel=1e-5)


def test_a_coupling_pairs_before_the_path_is_drawn():
    model = gm.predict.Velocity(Own(), gm.GaussianPath(coupling=gm.couplings.OT()))
    x0 = X[torch.randperm(12, generator=torch.Generator().manual_seed(3))]
    with torch.no_grad():
        model.network.scale.zero_()
    # Transport of a set to itself pairs each point with itself: the velocity is 0, and the output is t.
    losses = gm.matching_loss(model, X, x0=x0, t=0.5, reduction="none")
    torch.testing.assert_close(losses, torch.full((12,), 0.25), rtol=1e-5, atol=1e-6)


def test_half_precision_data_and_networks():
    model = gm.predict.Velocity(Own().double(), gm.GaussianPath())
    assert gm.matching_loss(model, X.double(), seed=0).dtype == torch.float64
    model = gm.predict.Velocity(Own().bfloat16(), gm.GaussianPath())
    assert gm.matching_loss(model, X.bfloat16(), seed=0).isfinite()


# Tokens


def cross_entropy(model: gm.predict.Tokens, x1: Tensor) -> Tensor:
    """At each position, from what the network saw last."""
    logits = model.network(model.network.seen, model.network.times)
    return -logits.log_softmax(-1).gather(-1, x1[..., None]).squeeze(-1)


def test_only_masked_positions_are_scored():
    losses = gm.matching_loss(MASKED, TOKENS, t=torch.linspace(0.1, 0.9, 12), seed=0, reduction="none")
    seen = MASKED.network.seen
    assert ((seen == 5) | (seen == TOKENS)).all()
    assert 0 < (seen == 5).sum() < seen.numel()
    expected = torch.where(seen == 5, cross_entropy(MASKED, TOKENS), 0).mean(1)
    torch.testing.assert_close(losses, expected)


def test_every_position_is_scored_on_a_uniform_path():
    losses = gm.matching_loss(UNIFORM, TOKENS, t=0.4, seed=0, reduction="none")
    torch.testing.assert_close(losses, cross_entropy(UNIFORM, TOKENS).mean(1))
    kept = (UNIFORM.network.seen == TOKENS).float().mean()
    assert kept.item() == pytest.approx(0.4 + 0.6 / 5, abs=0.2)


@pytest.mark.parametrize("mask", [None, 5])
def test_padding_is_excluded(mask: int | None):
    """From the state, from the loss and from the mean; a padded batch has the losses of its sequences alone."""
    model = gm.predict.Tokens(OwnLogits(5), gm.MixturePath(5, mask=mask, padding=8))
    padded = TOKENS.clone()
    lengths = torch.tensor([1, 2, 3, 4, 5, 6] * 2)
    padded[torch.arange(6) >= lengths[:, None]] = 8
    losses = gm.matching_loss(model, padded, t=0.4, seed=0, reduction="none")
    seen = model.network.seen
    assert (seen[padded == 8] == 8).all()
    assert (seen[padded != 8] != 8).all()
    alone = gm.predict.Tokens(OwnLogits(5), gm.MixturePath(5, mask=mask))
    for i in range(12):
        n = int(lengths[i])
        entropy = cross_entropy(model, padded.clamp(max=4))[i, :n]
        there = (seen[i, :n] == mask) if mask is not None else torch.ones(n, dtype=torch.bool)
        assert losses[i].item() == pytest.approx(torch.where(there, entropy, 0).sum().item() / n, rel=1e-5)
    one = gm.matching_loss(alone, TOKENS[5:6], t=0.4, draws=gm.Draws(0, 1, first_index=5), reduction="none")
    torch.testing.assert_close(losses[5:6], one)
    nothing = torch.full((2, 6), 8)
    assert gm.matching_loss(model, nothing, t=0.4, seed=0).item() == 0.0


@pytest.mark.parametrize("mask", [None, 5])
def test_fixed_positions_keep_their_data_and_carry_no_loss(mask: int | None):
    model = gm.predict.Tokens(OwnLogits(5), gm.MixturePath(5, mask=mask))
    fixed = torch.zeros(12, 6, dtype=torch.bool)
    fixed[:, :2] = True
    losses = gm.matching_loss(model, TOKENS, t=0.1, fixed=fixed, seed=0, reduction="none")
    seen = model.network.seen
    assert (seen[:, :2] == TOKENS[:, :2]).all()
    assert (seen[:, 2:] != TOKENS[:, 2:]).float().mean() > 0.5
    there = (seen == mask) if mask is not None else torch.ones_like(fixed)
    expected = torch.where(there & ~fixed, cross_entropy(model, TOKENS), 0).sum(1) / 4
    torch.testing.assert_close(losses, expected)
    # What stands outside the prompt is drawn as if there were none.
    gm.matching_loss(model, TOKENS, t=0.1, seed=0)
    assert torch.equal(model.network.seen[:, 2:], seen[:, 2:])


def test_tokens_of_any_shape():
    model = gm.predict.Tokens(OwnLogits(5), gm.MixturePath(5, mask=5))
    for shape in ((4,), (4, 2, 3, 2)):
        x1 = torch.randint(0, 5, shape)
        assert gm.matching_loss(model, x1, seed=0, reduction="none").shape == (4,)


# Bad input

LABEL = {"label": torch.zeros(11)}
BAD = {
    "an operator": (
        lambda: gm.matching_loss(gm.Flow(VELOCITY), X),
        TypeError,
        "got Flow: train the network it reads, generator.model",
    ),
    "a network": (
        lambda: gm.matching_loss(Own(), X),
        TypeError,
        r"takes a predictor such as gm\.predict\.Velocity, got Own$",
    ),
    "reduction": (
        lambda: gm.matching_loss(VELOCITY, X, reduction="sum"),
        ValueError,
        "reduction must be 'mean' or 'none', got 'sum'",
    ),
    "an unknown keyword": (
        lambda: gm.matching_loss(VELOCITY, X, tiem=0.5),
        TypeError,
        "unexpected keyword argument 'tiem'",
    ),
    "a list": (lambda: gm.matching_loss(VELOCITY, [[1.0]]), TypeError, r"x1 must be a tensor \(B, \*S\), got list"),
    "an array": (lambda: gm.matching_loss(VELOCITY, np.zeros((2, 2))), TypeError, "x1 must be a tensor .* got ndarray"),
    "integers": (
        lambda: gm.matching_loss(VELOCITY, TOKENS),
        TypeError,
        r"must be floating point, got torch.int64: call .float\(\)",
    ),
    "nan": (lambda: gm.matching_loss(VELOCITY, X * math.nan), ValueError, "72 non-finite values of 72: check the data"),
    "inf in x0": (lambda: gm.matching_loss(VELOCITY, X, x0=X * math.inf), ValueError, "72 non-finite values of 72"),
    "a scalar": (lambda: gm.matching_loss(VELOCITY, torch.tensor(1.0)), ValueError, r"shape \(B, \*S\), got a scalar"),
    "nothing": (lambda: gm.matching_loss(VELOCITY, X[:0]), ValueError, r"the batch is empty: x1 has shape \(0, 3, 2\)"),
    "shape of x0": (
        lambda: gm.matching_loss(VELOCITY, X, x0=X[:, :2]),
        ValueError,
        r"one shape \(B, \*S\), got \(12, 2, 2\) and \(12, 3, 2\)",
    ),
    "rows of x0": (lambda: gm.matching_loss(VELOCITY, X, x0=X[:1]), ValueError, r"got \(1, 3, 2\) and \(12, 3, 2\)"),
    "dtype of x0": (
        lambda: gm.matching_loss(VELOCITY, X, x0=X.double()),
        TypeError,
        r"one dtype, got torch.float64 and torch.float32",
    ),
    "x0 is no tensor": (lambda: gm.matching_loss(VELOCITY, X, x0=0.0), TypeError, "x0 must be a tensor .* got float"),
    "late": (
        lambda: gm.matching_loss(VELOCITY, X, t=1.5),
        ValueError,
        r"t must be in \[0, 1\], got 1.5: 0 is noise, 1 is data",
    ),
    "early": (
        lambda: gm.matching_loss(VELOCITY, X, t=torch.full((12,), -0.1)),
        ValueError,
        r"t must be in \[0, 1\], got -0.1",
    ),
    "late, 0-d": (
        lambda: gm.matching_loss(VELOCITY, X, t=torch.tensor(1.5)),
        ValueError,
        r"t must be in \[0, 1\], got 1.5",
    ),
    "never": (lambda: gm.matching_loss(VELOCITY, X, t=math.nan), ValueError, r"t must be in \[0, 1\], got nan"),
    "too few times": (
        lambda: gm.matching_loss(VELOCITY, X, t=torch.rand(3)),
        ValueError,
        r"shape \(12,\), one time for each sample, got \(3,\)",
    ),
    "a column of times": (lambda: gm.matching_loss(VELOCITY, X, t=torch.rand(12, 1)), ValueError, r"got \(12, 1\)"),
    "whole times": (
        lambda: gm.matching_loss(VELOCITY, X, t=torch.ones(12, dtype=torch.long)),
        TypeError,
        "t must be floating point, got torch.int64",
    ),
    "a time that is a word": (
        lambda: gm.matching_loss(VELOCITY, X, t="0.5"),
        TypeError,
        "t must be a number or a tensor, got str",
    ),
    "t and time": (
        lambda: gm.matching_loss(VELOCITY, X, t=0.5, time=gm.times.Uniform()),
        ValueError,
        "give t or a law of it",
    ),
    "a number as a law": (
        lambda: gm.matching_loss(VELOCITY, X, time=0.5),
        TypeError,
        r"time is a law such as gm\.times\.LogitNormal\(\), got 0.5.*t=",
    ),
    "a class as a law": (
        lambda: gm.matching_loss(VELOCITY, X, time=gm.times.Uniform),
        TypeError,
        "time is a law such as",
    ),
    "a number as a weight": (
        lambda: gm.matching_loss(VELOCITY, X, weight=5.0),
        TypeError,
        r"weight is a function of an instant such as .*MinSNR\(\), got 5.0",
    ),
    "a class as a weight": (
        lambda: gm.matching_loss(VELOCITY, X, weight=gm.weights.MinSNR),
        TypeError,
        r"weight is a function of an instant such as .*MinSNR\(\), got <class",
    ),
    "two sources of numbers": (
        lambda: gm.matching_loss(VELOCITY, X, seed=0, draws=gm.Draws(0, 12)),
        ValueError,
        "give draws or a seed, not both",
    ),
    "draws for others": (
        lambda: gm.matching_loss(VELOCITY, X, draws=gm.Draws(0, 3)),
        ValueError,
        "draws are for 3 samples, the batch has 12",
    ),
    "torch's generator": (
        lambda: gm.matching_loss(VELOCITY, X, draws=torch.Generator()),
        TypeError,
        r"must be genmatch.Draws\(seed, 12\), got Generator",
    ),
    "half a seed": (
        lambda: gm.matching_loss(VELOCITY, X, seed=0.5),
        TypeError,
        "seed must be an integer or None, got float",
    ),
    "a short condition": (
        lambda: gm.matching_loss(VELOCITY, X, condition=LABEL),
        ValueError,
        r"condition\['label'\] has shape \(11,\) for 12 samples",
    ),
    "a bare condition": (
        lambda: gm.matching_loss(VELOCITY, X, condition=torch.zeros(12)),
        TypeError,
        r"dict of tensors such as \{'label': y\}, got Tensor",
    ),
    "a condition of numbers": (
        lambda: gm.matching_loss(VELOCITY, X, condition={"label": [0] * 12}),
        TypeError,
        r"condition\['label'\] must be a tensor, got list",
    ),
    "a condition the network does not know": (
        lambda: gm.matching_loss(VELOCITY, X, condition={"lable": torch.zeros(12)}),
        TypeError,
        "unexpected keyword argument 'lable'",
    ),
    "a prompt in R^d": (
        lambda: gm.matching_loss(VELOCITY, X, fixed=torch.ones(12, 3, 2, dtype=torch.bool)),
        TypeError,
        "fixed positions are for tokens",
    ),
    "a prompt of numbers": (
        lambda: gm.matching_loss(MASKED, TOKENS, fixed=torch.ones(12, 6)),
        ValueError,
        r"fixed must be bool of the shape \(12, 6\).*got torch.float32 \(12, 6\)",
    ),
    "a prompt of another shape": (
        lambda: gm.matching_loss(MASKED, TOKENS, fixed=torch.ones(12, 1, dtype=torch.bool)),
        ValueError,
        r"got torch.bool \(12, 1\)",
    ),
    "floats as tokens": (
        lambda: gm.matching_loss(MASKED, TOKENS.float()),
        TypeError,
        "tokens must be integers, got torch.float32",
    ),
    "a token too many": (
        lambda: gm.matching_loss(MASKED, TOKENS + 2),
        ValueError,
        r"tokens must be in \[0, 5\) or 5, got 6",
    ),
    "a negative token": (
        lambda: gm.matching_loss(UNIFORM, TOKENS - 1),
        ValueError,
        r"tokens must be in \[0, 5\), got -1",
    ),
    "masks among the data": (
        lambda: gm.matching_loss(MASKED, torch.full((2, 3), 5)),
        ValueError,
        "is the mask or the padding among the data",
    ),
    "a network of another shape": (
        lambda: gm.matching_loss(gm.predict.Velocity(First(), gm.GaussianPath()), X, seed=0),
        ValueError,
        r"the network returned shape \(12, 3\) for a state of shape \(12, 3, 2\)",
    ),
    "too few logits": (
        lambda: gm.matching_loss(gm.predict.Tokens(OwnLogits(4), gm.MixturePath(5)), TOKENS, seed=0),
        ValueError,
        r"returned shape \(12, 6, 4\).*it needs \(12, 6, 5\)",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_at_the_call(name: str):
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()


def test_a_divergence_of_numbers_is_refused_for_tokens():
    """Where shapes happen to broadcast it would be a number that means nothing."""
    model = gm.predict.Tokens(OwnLogits(6), gm.MixturePath(6), divergence=gm.divergences.Squared())
    with pytest.raises(ValueError, match=r"Squared\(\) returned shape \(6, 6, 6\).*gm\.divergences\.CrossEntropy\(\)"):
        gm.matching_loss(model, TOKENS[:6], seed=0)


def test_a_weight_on_a_path_with_added_noise_is_refused():
    with pytest.raises(ValueError, match=r"noise=0.2\) no error in the data can be read off the network's"):
        gm.matching_loss(ADDED, X, weight=gm.weights.MinSNR(), seed=0)


def test_a_wrapper_is_not_trained():
    wrapped = gm.predict.Reschedule(
        gm.predict.Velocity(Own(), gm.GaussianPath()), gm.GaussianPath(gm.schedules.Cosine())
    )
    with pytest.raises(TypeError, match="Reschedule predictor is not trained: train the predictor it wraps"):
        gm.matching_loss(wrapped, X, seed=0)
