"""The predictor of tokens: its readings, its targets, and the posterior that cross-entropy teaches it."""

from __future__ import annotations

import itertools

import pytest
import torch
from closed_forms import F64
from torch import Tensor, nn

import genmatch as gm
from genmatch.paths import MixturePath
from genmatch.predict import Predictor, Tokens, clocks
from genmatch.random import Draws


class Table(nn.Module):
    """Logits that depend on nothing; remembers what it was fed."""

    def __init__(self, vocabulary: int, extra: int = 0) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.arange(float(vocabulary + extra)))
        self.fed: list[tuple[Tensor, Tensor, dict]] = []

    def forward(self, x: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        self.fed.append((x, t, condition))
        return self.logits.expand(*x.shape, -1)


def test_readings():
    network = Table(4)
    model = Tokens(network, MixturePath(4, mask=4))
    x = torch.tensor([[0, 4, 3]])
    prediction = model(x, 0.25, {"label": torch.tensor([1])})
    assert prediction.native is prediction.logits
    assert prediction.logits.shape == (1, 3, 4)
    torch.testing.assert_close(prediction.probabilities, network.logits.softmax(-1).expand(1, 3, 4))
    fed = network.fed[-1]
    assert fed[0] is x
    assert fed[1].tolist() == [0.25]
    assert fed[1].dtype == torch.float32
    assert "label" in fed[2]
    assert isinstance(model, Predictor)
    assert model.reads(model.instant(0.0, x))
    assert model.per_data(model.instant(0.5, x)) == 1


def test_probabilities_of_half_precision_logits():
    class Half(nn.Module):
        def forward(self, x, t):
            return torch.zeros(*x.shape, 300, dtype=torch.bfloat16)

    probabilities = Tokens(Half(), MixturePath(300))(torch.tensor([[0]]), 0.5).probabilities
    assert probabilities.dtype == torch.float32
    assert float(probabilities.sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("shape", [(3,), (3, 3), (3, 2, 3)])
def test_times_run_along_the_batch(shape: tuple[int, ...]):
    class Clock(nn.Module):
        def forward(self, x, t):
            return t.reshape(-1, *[1] * x.ndim).expand(*x.shape, 4)

    model = Tokens(Clock(), MixturePath(4), time=clocks.scaled(1000))
    t = torch.tensor([0.1, 0.5, 0.9])
    logits = model(torch.zeros(shape, dtype=torch.int64), t).logits
    assert logits.flatten(1)[:, 0].tolist() == pytest.approx([100, 500, 900])
    assert model(torch.zeros(shape, dtype=torch.int64), 0.25).logits.flatten()[0] == 250


def test_targets_and_what_is_scored():
    x1 = torch.tensor([[0, 3, 5], [1, 5, 5]])
    x = torch.tensor([[0, 4, 5], [4, 5, 5]])
    masked = Tokens(Table(4), MixturePath(4, mask=4, padding=5))
    instant = masked.instant(0.5, x)
    assert masked.target(x, x1, instant).tolist() == [[0, 3, 0], [1, 0, 0]]
    scored, counted = masked.scored(x, x1)
    assert scored.tolist() == [[False, True, False], [True, False, False]]
    assert counted.tolist() == [[True, True, False], [True, False, False]]
    uniform = Tokens(Table(4), MixturePath(4))
    assert uniform.target(x, x1, instant) is x1
    assert uniform.scored(x, x1) == (None, None)
    padded = Tokens(Table(4), MixturePath(4, padding=5))
    assert padded.scored(x, x1)[0].tolist() == [[True, True, False], [True, False, False]]


@pytest.mark.parametrize("mask", [None, 3])
def test_cross_entropy_teaches_the_posterior(mask: int | None):
    """Two correlated tokens: the loss, averaged over the path exactly, is stationary at Bayes' rule alone."""
    joint = torch.tensor([[0.3, 0.05, 0.05], [0.02, 0.2, 0.08], [0.1, 0.05, 0.15]], dtype=F64)
    kappa = 0.4
    path = MixturePath(3, mask=mask)
    values = range(3 if mask is None else 4)
    source = torch.full((3,), 1 / 3, dtype=F64) if mask is None else torch.tensor([0.0, 0, 0, 1], dtype=F64)

    def likelihood(seen: int, clean: int) -> float:
        return (1 - kappa) * float(source[seen]) + kappa * (seen == clean)

    pairs = list(itertools.product(values, values))
    x = torch.tensor(pairs)
    bayes = torch.zeros(len(pairs), 2, 3, dtype=F64)
    for row, (a, b) in enumerate(pairs):
        weight = torch.tensor(
            [[float(joint[i, j]) * likelihood(a, i) * likelihood(b, j) for j in range(3)] for i in range(3)]
        )
        bayes[row, 0], bayes[row, 1] = weight.sum(1), weight.sum(0)
    logits = (bayes / bayes.sum(-1, keepdim=True)).clamp(min=1e-12).log()

    class Posterior(nn.Module):
        def __init__(self, logits: Tensor) -> None:
            super().__init__()
            self.logits = nn.Parameter(logits)

        def forward(self, x, t):
            return self.logits

    def gradient(start: Tensor) -> Tensor:
        model = Tokens(Posterior(start.clone()), path)
        total = torch.zeros((), dtype=F64)
        for i, j in itertools.product(range(3), range(3)):
            chance = torch.tensor(
                [float(joint[i, j]) * likelihood(a, i) * likelihood(b, j) for a, b in pairs], dtype=F64
            )
            x1 = torch.tensor([[i, j]]).expand(len(pairs), 2)
            instant = model.instant(kappa, x)
            loss = model.divergence(model.target(x, x1, instant), model.native(x, instant))
            scored, _ = model.scored(x, x1)
            loss = loss if scored is None else torch.where(scored, loss, 0)
            total = total + (chance[:, None] * loss).sum()
        total.backward()
        return model.network.logits.grad

    assert float(gradient(logits).abs().max()) < 1e-8
    assert float(gradient(0 * logits).abs().max()) > 1e-2


PATH = MixturePath(4, mask=4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Tokens(Table(4), gm.GaussianPath()), TypeError, "Tokens needs a MixturePath, got GaussianPath"),
        (lambda: Tokens(lambda x, t: x, PATH), TypeError, "the network must be a torch.nn.Module"),
        (lambda: Tokens(Table(4), PATH, time=3), TypeError, "time must be a function of an instant"),
        (lambda: Tokens(Table(4), PATH, divergence="ce"), TypeError, "divergence must be a genmatch Divergence"),
        (
            lambda: Tokens(Table(4, extra=1), PATH)(torch.tensor([[0, 4]]), 0.5),
            ValueError,
            r"returned shape \(1, 2, 5\) for tokens of shape \(1, 2\): it needs \(1, 2, 4\), one logit for each of",
        ),
        (
            lambda: Tokens(Table(4), PATH)(torch.tensor([[0, 5]]), 0.5),
            ValueError,
            r"tokens must be in \[0, 4\) or 4, got 5",
        ),
        (lambda: Tokens(Table(4), PATH)(torch.tensor([[0.0]]), 0.5), TypeError, "tokens must be integers"),
        (lambda: Tokens(Table(4), PATH)(torch.tensor([[0]]), -0.5), ValueError, "t must be in"),
        (lambda: Tokens(Table(4), PATH)(torch.tensor([[0]]), 0.5, {"y": torch.zeros(2)}), ValueError, "for 1 samples"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_mask_among_the_data():
    with pytest.raises(
        ValueError, match=r"targets must be in \[0, 4\), got 4: is the mask or the padding among the data"
    ):
        gm.matching_loss(Tokens(Table(4), PATH), torch.tensor([[0, 4]]), seed=0)


def test_counts_of_draws_do_not_matter():
    model = Tokens(Table(4), PATH)
    x1 = Draws(1, 6).integers((6, 5), 4)
    whole = gm.matching_loss(model, x1, t=torch.linspace(0, 1, 6), seed=3, reduction="none")
    head = gm.matching_loss(model, x1[:2], t=torch.linspace(0, 1, 6)[:2], draws=Draws(3, 2), reduction="none")
    torch.testing.assert_close(whole[:2], head)
