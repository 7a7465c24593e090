r"""The gradient of the conditional loss is that of the marginal loss, which is what makes training possible.

Both are exact here. Data are a few points; the conditional loss is an expectation over source samples by Gauss-Hermite
quadrature, through ``matching_loss``. The marginal loss is an expectation over the states of p_t by the trapezoidal
rule, against the posterior mean of the target, written out from Bayes' rule and each target's textbook definition.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import genmatch as gm
from token_worlds import VOCABULARY, TokenWorld

DATA, SHARES = torch.tensor([-1.2, 0.3, 1.5], dtype=torch.float64), torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
SCHEDULES = {"condot": gm.schedules.CondOT(), "cosine": gm.schedules.Cosine(), "vp": gm.schedules.VP()}
KINDS = ("Velocity", "Noise", "Data", "Score", "V", "Karras")
TIMES = (0.2, 0.5, 0.85)


class Linear(nn.Module):
    """Linear in its parameters, and not affine in the state: sum_k theta_k phi_k(x, t)."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([0.3, -0.7, 0.2, 0.5, -0.4], dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        t = t.reshape(-1, *[1] * (x.ndim - 1)).expand_as(x)
        return torch.stack([torch.ones_like(x), x, x * t, torch.sin(x), torch.cos(2 * x)], -1) @ self.theta


def build(kind: str, schedule: gm.Schedule, divergence: gm.divergences.Divergence | None = None):
    return getattr(gm.predict, kind)(
        Linear(), gm.GaussianPath(schedule), time=gm.predict.clocks.t, divergence=divergence
    )


def gradient(model, loss: Tensor) -> Tensor:
    (slope,) = torch.autograd.grad(loss, [model.network.theta])
    return slope


def conditional(model, t: float, weight=None) -> Tensor:
    """E over x1 and x0 of the loss at time t, x0 by 120 Gauss-Hermite nodes."""
    nodes, mass = np.polynomial.hermite_e.hermegauss(120)
    x0, mass = torch.tensor(nodes), torch.tensor(mass / math.sqrt(2 * math.pi))
    x1, x0 = torch.cartesian_prod(DATA, x0).unbind(1)
    losses = gm.matching_loss(model, x1[:, None], x0=x0[:, None], t=t, weight=weight, seed=0, reduction="none")
    return (losses * torch.outer(SHARES, mass).flatten()).sum()


def marginal(kind: str, model, t: float) -> Tensor:
    """E over x_t of the divergence of the posterior mean of the target from the prediction."""
    time = torch.tensor(t, dtype=torch.float64)
    (alpha, sigma), (a, s) = torch.func.jvp(model.path.schedule, (time,), (torch.ones_like(time),))
    grid = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    likely = torch.exp(-((grid[:, None] - alpha * DATA) ** 2) / (2 * sigma**2)) * SHARES
    density = likely.sum(1) / (sigma * math.sqrt(2 * math.pi))
    data = torch.where(density > 1e-290, (likely * DATA).sum(1) / likely.sum(1).clamp(min=1e-300), 0.0)
    noise = (grid - alpha * data) / sigma
    ratio = sigma / alpha  # EDM's sigma, with sigma_data = 1/2
    skip, out = 0.25 / (ratio**2 + 0.25), ratio * 0.5 / (ratio**2 + 0.25).sqrt()
    target = {
        "Velocity": a * data + s * noise,
        "Noise": noise,
        "Data": data,
        "Score": -noise / sigma,
        "V": alpha * noise - sigma * data,
        "Karras": (data - skip * grid / alpha) / out,
    }[kind]
    output = model.native(grid[:, None], model.instant(t, grid[:, None])).squeeze(1)
    return (model.divergence(target, output) * density).sum() * (grid[1] - grid[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_both_losses_have_one_gradient(schedule: str, kind: str):
    model = build(kind, SCHEDULES[schedule])
    for t in TIMES:
        first, second = conditional(model, t), marginal(kind, model, t)
        assert first.item() > second.item() + 1e-5, "they differ by the variance of the target, a constant"
        expected = gradient(model, second)
        assert expected.abs().max() > 0.1
        torch.testing.assert_close(gradient(model, first), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", ["Velocity", "Noise", "Data"])
def test_pseudo_huber_has_two(kind: str):
    """It is no Bregman divergence: the negative control of the test above."""
    model = build(kind, SCHEDULES["condot"], gm.divergences.PseudoHuber(0.1))
    first, second = (gradient(model, loss) for loss in (conditional(model, 0.5), marginal(kind, model, 0.5)))
    assert (first - second).norm() > 0.05 * second.norm()


def test_a_wrong_target_has_another_gradient():
    """A target with the sign of the source flipped, through the same quadratures."""

    class Flipped(gm.predict.Velocity):
        def target(self, x0, x1, instant):
            return super().target(-x0, x1, instant)

    model = Flipped(Linear(), gm.GaussianPath())
    first, second = (gradient(model, loss) for loss in (conditional(model, 0.5), marginal("Velocity", model, 0.5)))
    assert (first - second).norm() > 0.05 * second.norm()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_weight_is_one_of_the_error_in_data(schedule: str, kind: str):
    """For every kind the weighted gradient is that of w E |data - data_theta|^2, data read off the network's output."""
    model, path = build(kind, SCHEDULES[schedule]), gm.GaussianPath(SCHEDULES[schedule])
    for t in TIMES:
        nodes, mass = np.polynomial.hermite_e.hermegauss(120)
        x0, mass = torch.tensor(nodes), torch.tensor(mass / math.sqrt(2 * math.pi))
        x1, x0 = (v[:, None] for v in torch.cartesian_prod(DATA, x0).unbind(1))
        errors = (model(path.sample(x0, x1, t), t).data - x1).square().squeeze(1)
        weight = 0.3 + t  # any function of time
        expected = gradient(model, weight * (errors * torch.outer(SHARES, mass).flatten()).sum())
        weighted = gradient(model, conditional(model, t, weight=lambda instant: 0.3 + instant.t))
        torch.testing.assert_close(weighted, expected, rtol=1e-9, atol=1e-9)


# Tokens


class Logits(nn.Module):
    """Linear in its parameters: a logit for each token from features of both positions and the time."""

    def __init__(self, values: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.values = values
        self.theta = nn.Parameter(torch.randn(2 * values + 2, VOCABULARY, generator=generator, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.seen = x
        own, other = (nn.functional.one_hot(v, self.values).double() for v in (x, x.flip(-1)))
        time = t.double().reshape(-1, 1, 1).expand(*x.shape, 1)
        return torch.cat([own, other, time, torch.ones_like(time)], -1) @ self.theta


@pytest.mark.parametrize("mask", [None, 3])
def test_token_losses_have_one_gradient(mask: int | None):
    """The loss is the same for all draws with one (x1, x_t): each such pair is taken once, at its exact probability."""
    t = 0.375
    world = TokenWorld(gm.MixturePath(3, mask=mask))
    network = Logits(3 if mask is None else 4)
    model = gm.predict.Tokens(network, world.path)
    rows = torch.arange(9).repeat(400)
    losses = gm.matching_loss(model, world.data[rows], t=t, seed=0, reduction="none")
    pairs = rows * len(world.states) + world.index(network.seen)
    joint = (world.given(world.kappa(torch.tensor(t, dtype=torch.float64))).prod(-1) * world.law).T.flatten()
    found, first = np.unique(pairs.numpy(), return_index=True)
    assert set(found) == set(torch.nonzero(joint).flatten().tolist()), "a pair was not drawn: draw more"
    first_loss = (losses[torch.tensor(first)] * joint[torch.tensor(found)]).sum()

    states, time = world.states, torch.tensor(t, dtype=torch.float64)
    exact = world.posterior(states, time)
    exact = torch.where(exact.isfinite(), exact, 0.0)
    log_model = network(states, time.expand(len(states))).log_softmax(-1)
    cross = -(exact * log_model).sum(-1)
    if mask is not None:
        cross = torch.where(states == mask, cross, 0.0)
    second_loss = (cross.mean(1) * world.density(time)).sum()
    # Of the cross-entropy from one-hot targets and from their mean even the values agree: it is linear in the target.
    assert first_loss.item() == pytest.approx(second_loss.item(), rel=1e-9)
    a, b = (torch.autograd.grad(loss, [network.theta])[0] for loss in (first_loss, second_loss))
    assert b.abs().max() > 0.01
    torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)
