"""A whole step reads nothing to the host: it runs on the device ``meta``, where there is nothing to read."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

import pytest
import torch
from small_runs import points

import genmatch as gm
from genmatch import couplings
from genmatch.nn import EMA, MLP, PowerEMA, UNet
from genmatch.random import Draws
from genmatch.training import fit, run, trainer

META = torch.device("meta")


@pytest.fixture(autouse=True)
def without_generators(monkeypatch):
    """``meta`` has neither random numbers nor autocast, and optimal transport's assignment is made on the host."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(trainer, "seed_generators", lambda *_: None)
    monkeypatch.setattr(run, "_loop", loop)
    monkeypatch.setattr(couplings, "_assign", lambda cost: torch.arange(len(cost)))


def loop(trainer, cadence, *_) -> None:
    """The steps, without the rows: those are read from the device."""
    for step in range(cadence.steps):
        loss, norm = trainer.advance(step)
        assert (loss.device, norm.device) == (META, META)


def flow(coupling: couplings.Coupling) -> gm.predict.Velocity:
    return gm.predict.Velocity(MLP(2, width=8, depth=1, embedding=4, classes=3), gm.GaussianPath(coupling=coupling))


def train(model, data, monkeypatch, **options) -> None:
    monkeypatch.setattr(run, "keep_generators", lambda _: run.ExitStack())
    model.to(META)
    average = PowerEMA(model) if options.pop("power", False) else EMA(model)
    fit(model, data, 4, batch_size=8, ema=average, progress=False, **options)


def pictures() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    return torch.ones(24, 1, 8, 8), {"label": torch.zeros(24, dtype=torch.int64)}


@pytest.mark.parametrize("prefetch", [True, False])
def test_a_step_of_a_flow_with_pairing_reads_nothing(prefetch, monkeypatch):
    options = {"accumulate": 2, "clip": 0.5, "warmup": 2, "schedule": "cosine", "prefetch": prefetch}
    train(flow(couplings.OT()), points(), monkeypatch, **options)


def test_a_step_on_images_with_options_of_the_loss_reads_nothing(monkeypatch):
    network = UNet(1, width=8, multipliers=(1, 2), blocks=1, groups=4, heads=2, classes=3)
    model = gm.predict.Noise(network, gm.GaussianPath(gm.schedules.Cosine()))
    loss = partial(gm.matching_loss, weight=gm.weights.MinSNR(), time=gm.times.LogitNormal(stratified=True))
    train(model, pictures(), monkeypatch, loss=loss, power=True, channels_last=True)


def test_a_step_that_reads_is_seen(monkeypatch):
    class Reading(couplings.Coupling):
        independent = False

        def __call__(self, x0, x1, condition, draws: Draws):
            return x0[: int((x0 < 0).sum())], x1, condition

    with pytest.raises(RuntimeError, match="meta tensors"):
        train(flow(Reading()), points(), monkeypatch)
