from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from genmatch.training import LearningRate


def sgd(*rates: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates])


def test_warmup_is_linear_and_reaches_the_rate():
    rate = LearningRate(sgd(0.1), 100, 4, "constant")
    assert [rate.factor(k) for k in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_no_warmup_starts_at_the_rate():
    assert LearningRate(sgd(0.1), 10, 0, "constant").factor(0) == 1.0


def test_cosine_agrees_with_torch():
    optimizer = sgd(0.1)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    ours = LearningRate(sgd(0.1), 20, 0, "cosine")
    for step in range(20):
        assert ours.apply(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        optimizer.step()
        theirs.step()


def test_cosine_after_warmup():
    rate = LearningRate(sgd(1.0), 30, 10, "cosine")
    assert rate.factor(9) == 1.0
    assert rate.factor(10) == 1.0
    assert rate.factor(20) == pytest.approx(0.5)
    assert 0 < rate.factor(29) < 0.01
    factors = [rate.factor(k) for k in range(10, 30)]
    assert factors == sorted(factors, reverse=True)


def test_a_function_is_a_schedule_and_warms_up_too():
    rate = LearningRate(sgd(1.0), 10, 2, lambda step: 1 / math.sqrt(step + 1))
    assert rate.factor(0) == 0.5
    assert rate.factor(3) == 0.5


def test_groups_keep_their_proportions_and_get_their_rates_back():
    optimizer = sgd(0.1, 0.4)
    rate = LearningRate(optimizer, 10, 2, "constant")
    assert rate.apply(0) == pytest.approx(0.05)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.2])
    rate.restore()
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.4]


def test_a_rate_that_is_a_tensor_stays_that_tensor():
    lr = torch.tensor(0.5)
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=lr)
    LearningRate(optimizer, 10, 2, "constant").apply(0)
    assert optimizer.param_groups[0]["lr"] is lr
    assert lr.item() == 0.25


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "linear"}, "schedule must be 'constant', 'cosine' or a function of the step, got 'linear'"),
        ({"schedule": None}, "schedule must be"),
        ({"schedule": "cosine", "warmup": 10}, "warmup=10 leaves nothing of steps=10 to the cosine"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LearningRate(sgd(0.1), 10, **{"warmup": 0, "schedule": "constant", **options})


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_a_factor_that_makes_no_sense_is_refused(value):
    with pytest.raises(ValueError, match=r"factor must be finite and not negative, got .* at step 3"):
        LearningRate(sgd(0.1), 10, 0, lambda step: value).factor(3)
