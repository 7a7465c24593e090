"""Weights against their published formulas, and at the ends of the path."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import genmatch as gm

VARIANCE_PRESERVING = (gm.schedules.Cosine(), gm.schedules.VP(), gm.schedules.DDPM())
T = torch.tensor([0.03, 0.2, 0.4, 0.5, 0.7, 0.9, 0.99], dtype=torch.float64)


class Zero(nn.Module):
    """Predicts 0: the loss of each sample is its squared target."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.zeros_like(x)


def factor(kind: str, schedule: gm.Schedule, weight, t=T, **options) -> Tensor:
    """Weighted over plain loss, per sample."""
    model = getattr(gm.predict, kind)(Zero(), gm.GaussianPath(schedule), **options)
    x1 = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    losses = [gm.matching_loss(model, x1, t=t, weight=w, seed=0, reduction="none") for w in (weight, None)]
    return losses[0] / losses[1]


@pytest.mark.parametrize("schedule", VARIANCE_PRESERVING, ids=lambda s: type(s).__name__)
def test_min_snr_is_the_published_weight_of_each_network(schedule: gm.Schedule):
    """arXiv 2303.09556: min(SNR, 5)/SNR for noise, min(SNR, 5) for data, min(SNR, 5)/(SNR + 1) for v."""
    alpha, sigma = schedule(T)
    snr = alpha**2 / sigma**2
    least = snr.clamp(max=5)
    weight = gm.weights.MinSNR()
    torch.testing.assert_close(factor("Noise", schedule, weight), least / snr)
    torch.testing.assert_close(factor("Data", schedule, weight), least)
    torch.testing.assert_close(factor("V", schedule, weight), least / (snr + 1))


def test_min_snr_of_a_velocity_and_a_score():
    """Of the same error in data: |dX1|^2 = (sigma / W)^2 |du|^2 = (sigma^2 / alpha)^2 |ds|^2."""
    for schedule in (gm.schedules.CondOT(), *VARIANCE_PRESERVING[:2]):
        instant = schedule.at(T)
        least = instant.snr.clamp(max=2.5)
        weight = gm.weights.MinSNR(2.5)
        torch.testing.assert_close(
            factor("Velocity", schedule, weight), least * (instant.sigma / instant.wronskian) ** 2
        )
        torch.testing.assert_close(factor("Score", schedule, weight), least * (instant.sigma**2 / instant.alpha) ** 2)


@pytest.mark.parametrize(
    "schedule", [gm.schedules.EDM(), gm.schedules.VE(), gm.schedules.CondOT(), gm.schedules.Cosine()], ids=repr
)
@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_edm_is_unit_weight_on_the_network(schedule: gm.Schedule, sigma_data: float):
    weight = gm.weights.EDM(sigma_data)
    found = factor("Karras", schedule, weight, sigma_data=sigma_data)
    torch.testing.assert_close(found, torch.ones_like(T), rtol=1e-9, atol=0)
    ratio = (lambda a, s: s / a)(*schedule(T))
    published = (ratio**2 + sigma_data**2) / (ratio * sigma_data) ** 2  # arXiv 2206.00364, Table 1, on the denoiser
    torch.testing.assert_close(factor("Data", schedule, weight), published)
    other = factor("Karras", schedule, gm.weights.EDM(2 * sigma_data), sigma_data=sigma_data)
    assert (other - 1).abs().max() > 0.1


@pytest.mark.parametrize("kind", ["Noise", "V", "Velocity", "Data", "Score", "Karras"])
def test_a_weight_of_one_is_the_error_in_data(kind: str):
    """Also at a time for all, and at a 0-d one."""
    schedule = gm.schedules.Cosine()
    rows = factor(kind, schedule, lambda instant: 1.0)
    for i, t in enumerate(T):
        for time in (t.item(), t):
            alone = factor(kind, schedule, lambda instant: 1.0, t=time)
            torch.testing.assert_close(alone, rows[i].expand(7))


@pytest.mark.parametrize(
    ("kind", "t", "expected"),
    [
        ("Noise", 0.0, 1.0),  # SNR = 0: min(SNR, 5) / SNR
        ("V", 0.0, 0.0),
        ("Data", 1.0, 5.0),  # SNR infinite
        ("V", 1.0, 0.0),
        ("Noise", 1.0, 0.0),
        ("Velocity", 0.0, 0.0),
        ("Velocity", 1.0, 0.0),
    ],
)
@pytest.mark.parametrize("schedule", [gm.schedules.CondOT(), gm.schedules.Cosine()], ids=repr)
def test_weights_have_their_limits_at_the_ends(schedule: gm.Schedule, kind: str, t: float, expected: float):
    """Where 0 times infinity would be nan and stop a training run one day: t = 0 is drawn once in 16 million times."""
    for dtype in (torch.float32, torch.float64):
        model = getattr(gm.predict, kind)(Zero(), gm.GaussianPath(schedule))
        x1 = torch.ones(2, 3, dtype=dtype)
        for time in (t, torch.tensor(t, dtype=dtype), torch.full((2,), t, dtype=dtype)):
            plain, weighted = (
                gm.matching_loss(model, x1, t=time, weight=w, seed=0, reduction="none")
                for w in (None, gm.weights.MinSNR())
            )
            torch.testing.assert_close(weighted, expected * plain, rtol=1e-5, atol=1e-12)


def test_edm_has_its_limits_too():
    for t in (0.0, 1.0):
        found = factor("Karras", gm.schedules.CondOT(), gm.weights.EDM(), t=t)
        torch.testing.assert_close(found, torch.ones_like(found), rtol=1e-6, atol=0)


def test_the_loss_without_a_weight_is_the_plain_error():
    model = gm.predict.Noise(Zero(), gm.GaussianPath())
    x1, x0 = torch.randn(5, 2, 3), torch.randn(5, 2, 3)
    loss = gm.matching_loss(model, x1, x0=x0, reduction="none", seed=0)
    torch.testing.assert_close(loss, x0.square().mean((1, 2)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gm.weights.MinSNR(0.0), "gamma must be above 0 and finite, got 0"),
        (lambda: gm.weights.MinSNR(math.nan), "gamma must be above 0 and finite, got nan"),
        (lambda: gm.weights.MinSNR("5"), "gamma must be a number, got str"),
        (lambda: gm.weights.EDM(-1.0), "sigma_data must be above 0 and finite, got -1"),
    ],
)
def test_bad_parameters_are_refused(make, message: str):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_weights_of_the_noise_level_are_for_gaussian_paths():
    class Logits(nn.Module):
        def forward(self, x, t):
            return torch.zeros(*x.shape, 3)

    model = gm.predict.Tokens(Logits(), gm.MixturePath(3, mask=3))
    for weight in (gm.weights.MinSNR(), gm.weights.EDM()):
        with pytest.raises(TypeError, match="signal-to-noise ratio: it is for models on Gaussian paths"):
            gm.matching_loss(model, torch.zeros(2, 4, dtype=torch.long), weight=weight, seed=0)
    # A weight of the path's own numbers is fine: with the hazard the loss is the bound on the likelihood.
    t = torch.tensor([0.25, 0.5])
    x1 = torch.zeros(2, 4, dtype=torch.long)
    plain, bound = (
        gm.matching_loss(model, x1, t=t, weight=w, seed=0, reduction="none") for w in (None, lambda i: i.hazard)
    )
    torch.testing.assert_close(bound, plain / (1 - t))
