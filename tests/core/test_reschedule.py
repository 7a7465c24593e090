"""A model on another path: its readings are the world's there, and its samples those of the path it was trained on."""

from __future__ import annotations

import math

import pytest
import torch
from closed_forms import F64, Perfect, Recorder, mixture, name
from torch import Tensor, nn

import genmatch as gm
from genmatch.predict import Data, Karras, Noise, Reschedule, Velocity, clocks
from genmatch.random import Draws
from genmatch.schedules import DDPM, EDM, VE, VP, CondOT, Cosine, Polynomial, Schedule

READINGS = ("velocity", "data", "noise", "score", "v")
KINDS = {"velocity": Velocity, "data": Data, "noise": Noise, "karras": Karras}


def states(n: int = 5) -> Tensor:
    return 1.5 * Draws(1, n).normal((n, 2), F64)


def trained(kind: str, schedule: Schedule):
    """What training to perfection on ``schedule`` would give."""
    return KINDS[kind](Perfect(mixture(), schedule, kind), gm.GaussianPath(schedule), time=clocks.t)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (CondOT(), Cosine()),
        (Cosine(), CondOT()),
        (CondOT(), VP()),
        (VP(), CondOT()),
        (DDPM(), CondOT()),
        (CondOT(), EDM(0.1, 10.0)),
        (EDM(0.01, 50.0), Polynomial(2.0)),
        (CondOT(), CondOT()),
    ],
    ids=name,
)
def test_readings_on_the_new_path(kind: str, old: Schedule, new: Schedule):
    model = Reschedule(trained(kind, old), gm.GaussianPath(new))
    for t in (0.2, 0.7):
        expected = mixture().truth(states(), new, t)
        for time in (t, torch.full((5,), t, dtype=F64)):
            prediction = model(states(), time)
            for reading, value in zip(READINGS, expected, strict=True):
                scale = max(1.0, float(value.abs().max()))
                torch.testing.assert_close(getattr(prediction, reading), value, rtol=1e-10, atol=1e-10 * scale)


def test_it_matters():
    # Read as if it were on its own path, the model says something else.
    model = trained("velocity", CondOT())
    expected = mixture().truth(states(), Cosine(), 0.4)
    assert not torch.allclose(model(states(), 0.4).data, expected.data, rtol=1e-2)
    naive = Velocity(model.network, gm.GaussianPath(Cosine()), time=clocks.t)
    assert not torch.allclose(naive(states(), 0.4).data, expected.data, rtol=1e-2)
    torch.testing.assert_close(Reschedule(model, gm.GaussianPath(Cosine()))(states(), 0.4).data, expected.data)


def test_the_network_is_called_where_it_was_trained():
    network = Recorder()
    model = Reschedule(Noise(network, gm.GaussianPath(DDPM())), gm.GaussianPath())
    seen: list[Tensor] = []
    network.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    t = 0.3
    x = states()
    model(x, t, {"label": torch.arange(5)})
    schedule = DDPM()
    inner = schedule.inverse_log_snr(torch.tensor(2 * math.log(0.3 / 0.7)))
    alpha, sigma = (float(v) for v in schedule(inner))
    assert alpha / sigma == pytest.approx(0.3 / 0.7)
    assert network.times[-1].tolist() == pytest.approx([float(schedule.index(inner))] * 5)  # by its own clock
    torch.testing.assert_close(seen[-1], x * sigma / 0.7)  # the same point, on its own scale
    assert "label" in network.conditions[-1]


def test_times_run_along_the_batch():
    x, t = Draws(1, 4).normal((4, 4), F64), torch.tensor([0.1, 0.35, 0.6, 0.9], dtype=F64)
    model = Reschedule(Velocity(Recorder(), gm.GaussianPath(Cosine())), gm.GaussianPath())
    together = model(x, t)
    for i in range(4):
        alone = model(x[i : i + 1], float(t[i]))
        for reading in READINGS:
            torch.testing.assert_close(getattr(together, reading)[i], getattr(alone, reading)[0])


@pytest.mark.parametrize("old", [CondOT(), Cosine()], ids=name)
@pytest.mark.parametrize("new", [CondOT(), Cosine()], ids=name)
def test_ends_are_finite(old: Schedule, new: Schedule):
    for kind, t, finite in (
        ("velocity", 0.0, READINGS),
        ("velocity", 1.0, ("velocity", "data", "noise", "v")),
        ("data", 0.0, READINGS),
        ("noise", 0.0, ("noise", "score")),
        ("noise", 1.0, ("velocity", "data", "noise", "v")),
    ):
        inner = KINDS[kind](Recorder(), gm.GaussianPath(old), time=clocks.t)
        model = Reschedule(inner, gm.GaussianPath(new))
        prediction = model(states(), torch.full((5,), t, dtype=F64))
        for reading in READINGS:
            assert bool(getattr(prediction, reading).isfinite().all()) == (reading in finite), (kind, t, reading)
            if reading not in finite:
                with pytest.raises(
                    ValueError, match=f"at t = {t:g} of .* this cannot be read off a rescheduled network"
                ):
                    getattr(model(states(), t), reading)
        assert model.reads(model.instant(t, states())) == inner.reads(inner.instant(t, states()))


def test_where_the_new_path_has_a_noise_level_that_the_old_never_had():
    # VE stops at noise .1: at the data of CondOT the network is called at its own last time.
    network = Recorder()
    model = Reschedule(Noise(network, gm.GaussianPath(VE(0.1, 10.0)), time=clocks.t), gm.GaussianPath())
    prediction = model(states(), 0.999)
    assert network.times[-1].tolist() == [1.0] * 5
    assert bool(prediction.data.isfinite().all())


MEAN = torch.tensor([0.8, -0.4], dtype=F64)
COVARIANCE = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=F64)


class GaussianVelocity(nn.Module):
    """The velocity of N(m, C) on CondOT, m + (t C - (1 - t) I) S^-1 (x - t m) with S = t^2 C + (1 - t)^2 I."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        eye, t = torch.eye(2, dtype=F64), t[:, None, None]
        slope = (t * COVARIANCE - (1 - t) * eye) @ torch.linalg.inv(t**2 * COVARIANCE + (1 - t) ** 2 * eye)
        return MEAN + (slope @ (x - t[:, 0] * MEAN)[..., None])[..., 0]


def test_terminal_samples_agree():
    """The flow map from noise to N(m, C) is x0 -> m + C^1/2 x0 on any schedule; RK4 reaches it at its order."""
    values, vectors = torch.linalg.eigh(COVARIANCE)
    noise = Draws(3, 16).normal((16, 2), F64)
    expected = MEAN + noise @ (vectors * values.sqrt()) @ vectors.T
    model = Velocity(GaussianVelocity(), gm.GaussianPath())
    for flow in (gm.Flow(model), gm.Flow(Reschedule(model, gm.GaussianPath(Cosine())))):
        coarse, fine = (
            float((gm.sample(flow, noise, steps=n, solver=gm.solvers.RK4()) - expected).abs().max()) for n in (10, 40)
        )
        assert coarse < 1e-4
        assert coarse > 100 * fine  # 4**4 = 256 at fourth order


def test_samples_of_a_mixture_agree_as_the_steps_grow():
    truth = mixture()
    world = gm.worlds.GaussianMixture(truth.means, truth.covariances, truth.weights)
    model, noise = world.predictor(gm.GaussianPath()), Draws(3, 64).normal((64, 2), F64)
    moved = gm.Flow(Reschedule(model, gm.GaussianPath(Cosine())))
    gaps = []
    for steps in (10, 40, 160):
        a = gm.sample(gm.Flow(model), noise, steps=steps, solver=gm.solvers.Heun())
        gaps.append(float((a - gm.sample(moved, noise, steps=steps, solver=gm.solvers.Heun())).abs().median()))
    assert gaps[2] < 1e-3
    assert gaps[0] > 8 * gaps[1] > 64 * gaps[2]
    # The same path under another schedule is another model: unless rescheduled they do not agree.
    other = gm.Flow(Data(model.network, gm.GaussianPath(Cosine()), time=clocks.t))
    b = gm.sample(other, noise, steps=40, solver=gm.solvers.Heun(), stop=0.99)
    assert float((b - gm.sample(gm.Flow(model), noise, steps=40, stop=0.99)).abs().median()) > 1e-2


def test_it_is_not_trained():
    model = Reschedule(Velocity(Recorder(), gm.GaussianPath()), gm.GaussianPath(Cosine()))
    with pytest.raises(TypeError, match="a Reschedule predictor is not trained: train the predictor it wraps"):
        gm.matching_loss(model, states(), seed=0)


VELOCITY = Velocity(Recorder(), gm.GaussianPath())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Reschedule(Recorder(), gm.GaussianPath()), TypeError, "got Recorder"),
        (lambda: Reschedule(VELOCITY, CondOT()), TypeError, "the new path must be a GaussianPath, got CondOT"),
        (
            lambda: Reschedule(Reschedule(VELOCITY, gm.GaussianPath(Cosine())), gm.GaussianPath()),
            TypeError,
            "own predictor on a Gaussian path can be rescheduled, got Reschedule: reschedule the model inside",
        ),
        (
            lambda: Reschedule(VELOCITY, gm.GaussianPath(noise=0.1)),
            ValueError,
            "a path with added noise cannot be rescheduled",
        ),
        (
            lambda: Reschedule(Velocity(Recorder(), gm.GaussianPath(noise=0.1)), gm.GaussianPath()),
            ValueError,
            "a path with added noise cannot be rescheduled",
        ),
        (
            lambda: Reschedule(VELOCITY, gm.GaussianPath(coupling=gm.couplings.OT())),
            ValueError,
            "the paths must share source and coupling",
        ),
        (
            lambda: Reschedule(VELOCITY, gm.GaussianPath(source=gm.data.EightGaussians())),
            ValueError,
            "the paths must share source and coupling",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_paths_with_the_same_source_and_coupling():
    rows = torch.randn(7, 2)
    for options in ({"source": gm.data.EightGaussians()}, {"source": rows}, {"coupling": gm.couplings.OT()}):
        model = Reschedule(Velocity(Recorder(), gm.GaussianPath(**options)), gm.GaussianPath(Cosine(), **options))
        assert bool(model(states(), 0.4).velocity.isfinite().all())
        with pytest.raises(ValueError, match="there is no score"):
            _ = model(states(), 0.4).score
