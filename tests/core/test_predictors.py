"""Every reading of every native prediction, against worlds in closed form; end points, targets, clocks, refusals."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable

import pytest
import torch
from closed_forms import F64, Perfect, Recorder, Truth, column, mixture, name, subclasses
from torch import Tensor, nn

import genmatch as gm
from genmatch.predict import Affine, Data, Karras, Noise, Prediction, Score, V, Velocity, clocks
from genmatch.random import Draws
from genmatch.schedules import DDPM, EDM, VE, VP, CondOT, Cosine, Polynomial, Schedule

KINDS: dict[str, type[Affine]] = {
    "velocity": Velocity,
    "data": Data,
    "noise": Noise,
    "score": Score,
    "v": V,
    "karras": Karras,
}
READINGS = ("velocity", "data", "noise", "score", "v")
SCHEDULES = [
    CondOT(),
    CondOT(0.05),
    Cosine(),
    Polynomial(2.0),
    VP(),
    DDPM(),
    DDPM([0.1] * 10),
    EDM(0.1, 10.0),
    VE(0.1, 10.0),
]
kinds = pytest.mark.parametrize("kind", KINDS)
schedules = pytest.mark.parametrize("schedule", SCHEDULES, ids=name)


def states(n: int = 5, dtype: torch.dtype = F64) -> Tensor:
    return 1.5 * Draws(1, n).normal((n, 2), dtype)


@functools.cache
def exact(schedule: Schedule, t: float) -> Truth:
    """The exact readings at ``states()``."""
    return mixture().truth(states(), schedule, t)


def perfect(kind: str, schedule: Schedule, t: float) -> Affine:
    """A predictor whose network is right at ``states()`` and ``t``."""
    if kind == "karras":
        network: nn.Module = Perfect(mixture(), schedule, kind)
    else:
        network = Constant(getattr(exact(schedule, t), kind))
    return KINDS[kind](network, gm.GaussianPath(schedule), time=clocks.t)


class Constant(nn.Module):
    """A network that outputs what it is told to."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.value


def test_every_affine_predictor_is_covered():
    assert set(KINDS.values()) == set(subclasses(Affine))
    assert all(cls.kind == kind for kind, cls in KINDS.items())


# The readings


@kinds
@schedules
def test_every_reading_of_every_prediction(kind: str, schedule: Schedule):
    x = states()
    for t in (0.06, 0.5, 0.97):
        expected, model = exact(schedule, t), perfect(kind, schedule, t)
        for time in (t, torch.tensor(t, dtype=F64), torch.full((5,), t, dtype=F64)):
            prediction = model(x, time)
            for reading, value in zip(READINGS, expected, strict=True):
                got = getattr(prediction, reading)
                assert got.shape == x.shape
                assert got.dtype == F64
                scale = max(1.0, float(value.abs().max()))
                torch.testing.assert_close(got, value, rtol=1e-10, atol=1e-10 * scale)


@schedules
def test_a_reading_is_not_another(schedule: Schedule):
    # The comparison above would see one taken for another: they differ by much more than 1e-10.
    expected = exact(schedule, 0.5)
    for i, a in enumerate(expected):
        assert not any(torch.allclose(a, b, rtol=1e-4) for b in expected[i + 1 :])


@kinds
def test_there_and_back(kind: str):
    """Each prediction, rebuilt from the data and noise that were read off it, is itself."""
    x = states()
    for schedule in SCHEDULES:
        for t in (0.06, 0.5, 0.97):
            model = KINDS[kind](Recorder(1.0), gm.GaussianPath(schedule), time=clocks.t)
            native = Draws(9, 5).normal((5, 2), F64)
            instant = model.instant(t, x)
            prediction = model.prediction(x, instant, native)
            torch.testing.assert_close(instant.alpha * prediction.data + instant.sigma * prediction.noise, x)
            again = model.target(prediction.noise, prediction.data, instant)
            torch.testing.assert_close(again, native, rtol=1e-9, atol=1e-9)


@kinds
@schedules
def test_the_native_reading_is_the_output_itself(kind: str, schedule: Schedule):
    network = Recorder()
    prediction = KINDS[kind](network, gm.GaussianPath(schedule), time=clocks.t)(states(), 0.4)
    assert len(network.outputs) == 1  # and the network has run once, whatever is read
    assert prediction.native is network.outputs[0]
    if kind in READINGS:
        assert getattr(prediction, kind) is network.outputs[0]
    for reading in READINGS:
        getattr(prediction, reading)
    assert len(network.outputs) == 1


def test_the_identities_of_the_literature():
    x, t = states(), 0.3
    for schedule in (CondOT(), Cosine(), VP()):
        i = schedule.at(torch.tensor([t], dtype=F64)).rows()[0]
        b = i.sigma * i.wronskian / i.alpha
        p = perfect("data", schedule, t)(x, t)
        torch.testing.assert_close(p.velocity, i.alpha_dot / i.alpha * x + b * p.score)
        torch.testing.assert_close(p.velocity, i.sigma_dot / i.sigma * x + i.wronskian / i.sigma * p.data)
        torch.testing.assert_close(p.velocity, i.alpha_dot / i.alpha * x - i.wronskian / i.alpha * p.noise)
        torch.testing.assert_close(p.data, (x + i.sigma**2 * p.score) / i.alpha)  # Tweedie
        # Dropping the b of the score is seen.
        assert not torch.allclose(p.velocity, i.alpha_dot / i.alpha * x + p.score, rtol=1e-3)
    cosine = perfect("noise", Cosine(), t)(x, t)
    torch.testing.assert_close(cosine.velocity, -math.pi / 2 * cosine.v)
    a, s = math.sin(math.pi * t / 2), math.cos(math.pi * t / 2)
    torch.testing.assert_close(cosine.data, a * x - s * cosine.v)  # Salimans and Ho
    torch.testing.assert_close(cosine.noise, s * x + a * cosine.v)
    condot = perfect("velocity", CondOT(), t)(x, t)
    torch.testing.assert_close(condot.data, x + (1 - t) * condot.velocity)
    torch.testing.assert_close(condot.noise, x - t * condot.velocity)


# Times along the batch


@kinds
@pytest.mark.parametrize("schedule", [CondOT(), VP(), DDPM(), EDM(0.1, 10.0)], ids=name)
@pytest.mark.parametrize("shape", [(4, 4), (4, 2, 4), (4,), (4, 1, 1)])
def test_times_run_along_the_batch(kind: str, schedule: Schedule, shape: tuple[int, ...]):
    x, t = Draws(1, 4).normal(shape, F64), torch.tensor([0.1, 0.35, 0.6, 0.9], dtype=F64)
    model = KINDS[kind](Recorder(), gm.GaussianPath(schedule))
    together = model(x, t)
    for i in range(4):
        alone = model(x[i : i + 1], float(t[i]))
        for reading in READINGS:
            torch.testing.assert_close(getattr(together, reading)[i], getattr(alone, reading)[0])
    x1 = Draws(2, 4).normal(shape, F64)
    instant = model.instant(t, x)
    target = model.target(x, x1, instant)
    for i in range(4):
        rows = slice(i, i + 1)
        torch.testing.assert_close(target[rows], model.target(x[rows], x1[rows], model.instant(float(t[i]), x[rows])))


def test_the_wrong_broadcast_is_another_reading():
    x, t = states(4)[:, [0, 1, 0, 1]], torch.tensor([0.1, 0.35, 0.6, 0.9], dtype=F64)
    p = Velocity(Recorder(), gm.GaussianPath())(x, t)
    torch.testing.assert_close(p.data, x + (1 - t[:, None]) * p.native)
    assert not torch.allclose(p.data, x + (1 - t) * p.native)


# End points. Native outputs at an end are written out for a law of mean m (t = 0) or a state of the data (t = 1).

ALL = set(READINGS)
AT_NOISE = {
    "velocity": ALL,
    "data": ALL,
    "v": ALL,
    "karras": ALL,
    "noise": {"noise", "score"},
    "score": {"noise", "score"},
}
AT_DATA = {
    "velocity": ALL - {"score"},
    "data": {"data"},
    "v": ALL - {"score"},
    "karras": ALL - {"score"},
    "noise": ALL - {"score"},
    "score": ALL,
}


def natives(truth: dict[str, Tensor], alpha: float, sigma: float) -> dict[str, Tensor]:
    norm = math.sqrt(sigma**2 + alpha**2 * 0.25)
    return {**truth, "karras": (sigma * truth["data"] - alpha * 0.25 * truth["noise"]) / (0.5 * norm)}


def check_end(
    kind: str,
    schedule: Schedule,
    t: float,
    truth: dict[str, Tensor],
    x: Tensor,
    finite: set[str],
    readings: Iterable[str] = READINGS,
) -> None:
    alpha, sigma = (float(v) for v in schedule(torch.tensor(t, dtype=F64)))
    native = natives(truth, alpha, sigma)[kind]
    model = KINDS[kind](Constant(native), gm.GaussianPath(schedule), time=clocks.t)
    for time in (t, torch.full((len(x),), t, dtype=F64)):
        prediction = model(x, time)
        for reading in readings:
            if reading in finite:
                value = getattr(prediction, reading)
                torch.testing.assert_close(value, truth[reading], rtol=1e-12, atol=1e-12, msg=f"{reading} at {time}")
            elif isinstance(time, float):
                with pytest.raises(ValueError, match=f"at t = {t:g} of .* this cannot be read off a {kind} network"):
                    getattr(prediction, reading)
            else:
                assert not bool(getattr(prediction, reading).isfinite().all()), f"{reading} at {time}"
    assert model.reads(model.instant(t, x)) == ({"data", "noise"} <= finite)


@kinds
@pytest.mark.parametrize("schedule", [CondOT(), Cosine(), Polynomial(1.0), CondOT(0.05)], ids=name)
def test_at_pure_noise(kind: str, schedule: Schedule):
    # alpha = 0, sigma = 1: X1 = m, E0 = x, s = -x, u = alpha' m + sigma' x, v = -m.
    x, m = states(), torch.tensor([0.4, -0.2], dtype=F64).expand(5, 2)
    i = schedule.at(torch.zeros(1, dtype=F64)).rows()[0]
    truth = {"velocity": i.alpha_dot * m + i.sigma_dot * x, "data": m, "noise": x, "score": -x, "v": -m}
    check_end(kind, schedule, 0.0, truth, x, AT_NOISE[kind])


@kinds
def test_at_pure_noise_where_the_path_stands_still(kind: str):
    # Polynomial(2) has velocity 0 at t = 0, which tells nothing; all else is as above.
    x, m = states(), torch.tensor([0.4, -0.2], dtype=F64).expand(5, 2)
    truth = {"velocity": 0 * x, "data": m, "noise": x, "score": -x, "v": -m}
    finite = {"velocity"} if kind == "velocity" else AT_NOISE[kind]
    readings = READINGS if kind not in ("noise", "score") else ("data", "noise", "score", "v")
    check_end(kind, Polynomial(2.0), 0.0, truth, x, finite, readings)


@kinds
@pytest.mark.parametrize("schedule", [CondOT(), Cosine(), Polynomial(2.0)], ids=name)
def test_at_the_data(kind: str, schedule: Schedule):
    # alpha = 1, sigma = 0: X1 = x, u = alpha' x + sigma' E0, v = E0; a finite score says that E0 = -sigma s = 0.
    x = states()
    e0 = torch.zeros_like(x) if kind == "score" else 0.3 * Draws(5, 5).normal((5, 2), F64)
    i = schedule.at(torch.ones(1, dtype=F64)).rows()[0]
    truth = {"velocity": i.alpha_dot * x + i.sigma_dot * e0, "data": x, "noise": e0, "score": -2 * x, "v": e0}
    check_end(kind, schedule, 1.0, truth, x, AT_DATA[kind])


@kinds
@pytest.mark.parametrize("schedule", [VP(), DDPM()], ids=name)
def test_at_the_data_where_sigma_falls_like_a_square_root(kind: str, schedule: Schedule):
    # sigma' is infinite there, so no velocity is read, nor anything off a velocity; the rest is as above.
    x = states()
    e0 = torch.zeros_like(x) if kind == "score" else 0.3 * Draws(5, 5).normal((5, 2), F64)
    truth = {"velocity": x, "data": x, "noise": e0, "score": -2 * x, "v": e0}
    finite = {"velocity"} if kind == "velocity" else AT_DATA[kind] - {"velocity"}
    check_end(kind, schedule, 1.0, truth, x, finite)


@kinds
@pytest.mark.parametrize("schedule", [EDM(0.1, 10.0), VE(0.1, 10.0)], ids=name)
@pytest.mark.parametrize("t", [0.0, 1.0])
def test_schedules_without_singular_ends(kind: str, schedule: Schedule, t: float):
    check_end(kind, schedule, t, exact(schedule, t)._asdict(), states(), ALL)


@kinds
def test_network_times_at_the_ends_are_finite(kind: str):
    for schedule in SCHEDULES:
        network = Recorder()
        model = KINDS[kind](network, gm.GaussianPath(schedule))
        model(states(), 0.0), model(states(), 1.0)
        assert all(bool(t.isfinite().all()) for t in network.times)


# What forbids a reading

FORBIDDING = {
    "coupling": (
        lambda: gm.GaussianPath(coupling=gm.couplings.OT()),
        r"its coupling OT\(\) makes noise and data dependent",
    ),
    "given": (lambda: gm.GaussianPath(coupling=gm.couplings.Given()), "makes noise and data dependent"),
    "source": (lambda: gm.GaussianPath(source=gm.data.EightGaussians()), "is not the standard normal"),
    "noise": (lambda: gm.GaussianPath(noise=0.1), "the path adds noise of standard deviation 0.1"),
}


@kinds
@pytest.mark.parametrize("reason", FORBIDDING)
def test_a_score_that_is_none(kind: str, reason: str):
    path, message = FORBIDDING[reason]
    prediction = KINDS[kind](Recorder(), path())(states(), 0.5)
    with pytest.raises(ValueError, match=message):
        _ = prediction.score
    if reason != "noise":  # the rest are posterior means under any coupling
        assert bool(prediction.velocity.isfinite().all())
        torch.testing.assert_close(0.5 * (prediction.data + prediction.noise), states())


@kinds
def test_added_noise_leaves_the_native_reading_alone(kind: str):
    prediction = KINDS[kind](Recorder(), gm.GaussianPath(noise=0.1))(states(), 0.5)
    for reading in ("velocity", "data", "noise", "v"):
        if reading == kind:
            assert getattr(prediction, reading) is prediction.native
        else:
            with pytest.raises(ValueError, match=f"nothing but the network's own output .a {kind}. can be read off it"):
                getattr(prediction, reading)


# Targets


@pytest.mark.parametrize("schedule", [CondOT(), VP(), EDM(0.1, 10.0)], ids=name)
@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_targets(schedule: Schedule, sigma_data: float):
    x0, x1 = states(), Draws(2, 5).normal((5, 2), F64)
    t = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=F64)
    _, alpha, sigma, alpha_dot, sigma_dot = (column(f, x0) for f in schedule.at(t))
    x = alpha * x1 + sigma * x0
    hat, d = sigma / alpha, sigma_data
    c_skip, c_out = d**2 / (hat**2 + d**2), hat * d / (hat**2 + d**2) ** 0.5
    expected = {
        "velocity": alpha_dot * x1 + sigma_dot * x0,
        "data": x1,
        "noise": x0,
        "score": -x0 / sigma,
        "v": alpha * x0 - sigma * x1,
        "karras": (x1 - c_skip * x / alpha) / c_out,
    }
    for kind, value in expected.items():
        options = {"sigma_data": sigma_data} if kind == "karras" else {}
        model = KINDS[kind](Recorder(), gm.GaussianPath(schedule), **options)
        torch.testing.assert_close(model.target(x0, x1, model.instant(t, x)), value)
    torch.testing.assert_close(
        Velocity(Recorder(), gm.GaussianPath()).target(x0, x1, (CondOT().at(t)).broadcast(x)), x1 - x0
    )


def test_the_karras_network_is_fed_and_taught_unit_variance():
    n, d = 40_000, 0.5
    x1, x0 = d * Draws(1, n).normal((n, 1), F64), Draws(2, n).normal((n, 1), F64)
    network = Recorder(1.0)
    model = Karras(network, gm.GaussianPath(EDM()), sigma_data=d)
    for t in (0.0, 0.5, 0.8, 1.0):
        instant = model.instant(t, x1)
        x = instant.alpha * x1 + instant.sigma * x0
        model(x, t)
        assert float(network.outputs[-1].std()) == pytest.approx(1, abs=0.03)
        assert float(model.target(x0, x1, instant).std()) == pytest.approx(1, abs=0.03)


@kinds
@pytest.mark.parametrize("schedule", [CondOT(), VP(), EDM(0.1, 10.0)], ids=name)
def test_error_in_data_for_an_error_in_the_output(kind: str, schedule: Schedule):
    x = states()
    model = KINDS[kind](Recorder(), gm.GaussianPath(schedule), time=clocks.t)
    for t in (0.1, 0.5, 0.9):
        instant = model.instant(t, x)
        native, error = Draws(2, 5).normal((5, 2), F64), Draws(3, 5).normal((5, 2), F64)
        change = model.prediction(x, instant, native + error).data - model.prediction(x, instant, native).data
        torch.testing.assert_close(change**2, model.per_data(instant) * error**2)
        i = instant
        formula = {
            "velocity": (i.sigma / i.wronskian) ** 2,
            "data": 1.0,
            "noise": (i.sigma / i.alpha) ** 2,
            "score": (i.sigma**2 / i.alpha) ** 2,
            "v": (i.sigma / (i.alpha**2 + i.sigma**2)) ** 2,
            "karras": (i.sigma / i.alpha) ** 2 * 0.25 / ((i.sigma / i.alpha) ** 2 + 0.25),  # c_out squared
        }[kind]
        assert float(model.per_data(instant)) == pytest.approx(formula)
        along = model.per_data(model.instant(torch.full((5,), t, dtype=F64), x))
        assert torch.as_tensor(along).flatten()[0] == pytest.approx(formula)
    # EDM's weight is unit weight on F.
    if kind == "karras":
        assert gm.weights.EDM(0.5)(instant) * model.per_data(instant) == pytest.approx(1)


def test_error_in_data_at_the_ends():
    x = states()
    ends = {
        kind: [
            KINDS[kind](Recorder(), gm.GaussianPath()).per_data(CondOT().at(torch.tensor([t])).rows()[0])
            for t in (0.0, 1.0)
        ]
        for kind in KINDS
    }
    assert ends["data"] == [1, 1]  # an error of the data is an error of the data, also where sigma is 0
    assert ends["velocity"] == [1, 0]
    assert ends["v"] == [1, 0]
    assert ends["karras"] == [0.25, 0]
    assert ends["noise"] == ends["score"] == [math.inf, 0]
    loss = gm.matching_loss(Data(Recorder(), gm.GaussianPath()), x, t=1.0, weight=gm.weights.MinSNR(), seed=0)
    assert float(loss) == pytest.approx(5 * float(((0.5 * x) ** 2).mean()))


# Clocks


@kinds
def test_a_ddpm_network_is_fed_the_index_of_the_chain(kind: str):
    network = Recorder(0.1)
    model = KINDS[kind](network, gm.GaussianPath(DDPM()))
    for instant in model.at(torch.linspace(0, 1, 1001, dtype=F64)[:-1]).rows():
        model.native(torch.zeros(2, 1), instant)
    fed = torch.stack(network.times)
    assert fed.shape == (1000, 2)
    assert fed.dtype == torch.float32
    assert torch.equal(fed[:, 0], torch.arange(999.0, -1, -1))
    assert torch.equal(fed[:, 1], fed[:, 0])
    times = torch.linspace(0, 1, 1001)[:-1]
    model(torch.zeros(1000, 1), times)
    assert torch.equal(network.times[-1], torch.arange(999.0, -1, -1))


def test_the_sampler_feeds_every_index_of_the_chain():
    network = Recorder(0.1)
    model = Noise(network, gm.GaussianPath(DDPM()))
    gm.sample(gm.Flow(model), (2, 1), steps=1000, seed=0, solver=gm.solvers.DDIM())
    assert torch.stack(network.times)[:, 0].tolist() == list(range(999, -1, -1))


def test_clocks():
    x = states()
    cases = [
        (Karras(Recorder(), gm.GaussianPath(EDM())), 0.3, math.log(float(EDM()(torch.tensor(0.3, dtype=F64))[1])) / 4),
        (Karras(Recorder(), gm.GaussianPath(VE())), 0.3, math.log(50 * (0.01 / 50) ** 0.3) / 4),
        (Karras(Recorder(), gm.GaussianPath()), 0.3, 0.3),  # infinite noise at t = 0: the time itself
        (Karras(Recorder(), gm.GaussianPath(), time=clocks.log_noise), 0.3, math.log(0.7 / 0.3) / 4),
        (Noise(Recorder(), gm.GaussianPath(EDM())), 0.3, 0.3),
        (Velocity(Recorder(), gm.GaussianPath(), time=clocks.scaled(1000)), 0.3, 300.0),
        (Velocity(Recorder(), gm.GaussianPath(), time=clocks.index(DDPM([0.1] * 10))), 0.25, 6.5),
        (Velocity(Recorder(), gm.GaussianPath(VP()), time=lambda i: i.sigma), 1.0, 0.0),
    ]
    for model, t, expected in cases:
        for time in (t, torch.tensor(t, dtype=F64), torch.full((5,), t, dtype=F64)):
            model(x, time)
            fed = model.network.times[-1]
            assert fed.shape == (5,)
            assert fed.dtype == x.dtype
            assert fed.tolist() == pytest.approx([expected] * 5)


def test_a_clock_that_is_infinite():
    model = Karras(Recorder(), gm.GaussianPath(), time=clocks.log_noise)
    for t in (0.0, 1.0):
        with pytest.raises(ValueError, match=f"the log noise level is infinite at t = {t:g} on this schedule"):
            model(states(), t)


# Calling the network


def test_conditions_reach_the_network():
    network = Recorder()
    label, text = torch.arange(5), torch.randn(5, 7)
    Data(network, gm.GaussianPath())(states(), 0.5, {"label": label, "text": text})
    assert network.conditions[-1]["label"] is label
    assert network.conditions[-1]["text"] is text
    Data(network, gm.GaussianPath())(states(), 0.5)
    assert network.conditions[-1] == {}


class Returns(nn.Module):
    def __init__(self, make) -> None:
        super().__init__()
        self.make = make

    def forward(self, x, t):
        return self.make(x)


PATH = gm.GaussianPath()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: Noise(Returns(lambda x: x[:, :1]), PATH)(states(), 0.5),
            ValueError,
            r"the network returned shape \(5, 1\) for a state of shape \(5, 2\): a Noise network returns one noise",
        ),
        (lambda: V(Returns(lambda x: x[None]), PATH)(states(), 0.5), ValueError, r"returned shape \(1, 5, 2\)"),
        (lambda: Data(Returns(lambda x: (x, x)), PATH)(states(), 0.5), TypeError, "must return one tensor, got tuple"),
        (lambda: Data(Recorder(), PATH)(states().long(), 0.5), TypeError, "must be floating point"),
        (lambda: Data(Recorder(), PATH)(states() * math.nan, 0.5), ValueError, "10 non-finite values of 10"),
        (lambda: Data(Recorder(), PATH)(states(), 1.5), ValueError, r"t must be in \[0, 1\], got 1.5"),
        (lambda: Data(Recorder(), PATH)(states(), torch.tensor(1.5)), ValueError, "t must be in"),
        (lambda: Data(Recorder(), PATH)(states(), torch.zeros(4)), ValueError, "one time for each sample, got"),
        (
            lambda: Data(Recorder(), PATH)(states(), 0.5, torch.arange(5)),
            TypeError,
            "must be a dict of tensors such as",
        ),
        (lambda: Data(Recorder(), PATH)(states(), 0.5, {"y": [1, 2]}), TypeError, r"condition\['y'\] must be a tensor"),
        (
            lambda: Data(Recorder(), PATH)(states(), 0.5, {"y": torch.arange(4)}),
            ValueError,
            r"condition\['y'\] has shape \(4,\) for 5 samples: it needs one row for each sample",
        ),
        (lambda: Data(Recorder(), PATH)(states(), 0.5, {"y": torch.tensor(1)}), ValueError, "one row for each sample"),
        (lambda: Data(Returns(lambda x: x), PATH)(states(), 0.5, {"y": torch.arange(5)}), TypeError, "'y'"),
        (lambda: Data(Recorder(), PATH)(states(), 0.5, label=torch.arange(5)), TypeError, "label"),
        (lambda: Data(lambda x, t: x, PATH), TypeError, "the network must be a torch.nn.Module called as"),
        (lambda: Data(Recorder(), CondOT()), TypeError, "Data needs a GaussianPath, got CondOT"),
        (lambda: Velocity(Recorder(), gm.MixturePath(5)), TypeError, "Velocity needs a GaussianPath, got MixturePath"),
        (lambda: Data(Recorder(), PATH, time="t"), TypeError, "time must be a function of an instant"),
        (
            lambda: Data(Recorder(), PATH, divergence="mse"),
            TypeError,
            "divergence must be a genmatch Divergence, got str",
        ),
        (
            lambda: Data(Recorder(), PATH, divergence=gm.divergences.Squared),
            TypeError,
            "got the class Squared: call it",
        ),
        (lambda: Karras(Recorder(), PATH, sigma_data=0.0), ValueError, "sigma_data must be above 0"),
        (lambda: Data(Recorder(), PATH, sigma_data=0.5), TypeError, "sigma_data"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_predictors_are_modules():
    network = nn.Linear(2, 2)
    model = Velocity(network, PATH)
    assert list(model.state_dict()) == ["network.weight", "network.bias"]
    assert "path=GaussianPath(CondOT" in repr(model)
    assert isinstance(model.divergence, gm.divergences.Squared)
    assert Velocity(network, PATH, divergence=gm.divergences.PseudoHuber()).divergence == gm.divergences.PseudoHuber()


def test_readings_are_differentiable():
    x = states().requires_grad_()
    linear = nn.Linear(2, 2).double()
    model = Velocity(Returns(linear), PATH)
    model(x, 0.3).data.sum().backward()
    weight = linear.weight
    torch.testing.assert_close(x.grad, 1 + 0.7 * weight.detach().sum(0).expand(5, 2))
    assert weight.grad is not None
    assert isinstance(model(x, 0.3), Prediction)
