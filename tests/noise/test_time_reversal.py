"""Generators run back in time, and predictor-corrector sums of both."""

from __future__ import annotations

from typing import Any

import noise_worlds as worlds
import pytest
import torch
from torch import Tensor

import genmatch as gm
from genmatch.diffusivity import Constant, EndpointSafe, StateDependent
from genmatch.generators import Multiplicative, Reverse, ReverseDiffusion, reverses

F64 = torch.float64
WORLD = worlds.Mixture(gm.schedules.CondOT())
MODEL, X = WORLD.model, gm.Draws(0, 6).normal((6, 1), torch.float64)


class Plain(gm.Generator):
    """Flow and noise in one, of which the library knows nothing."""

    def triplet(self, x: Tensor, t: Any, prediction: Any) -> gm.Triplet:
        return gm.Triplet(drift=prediction.velocity + 0.35 * prediction.score, variance=0.7)


class Unstirred(gm.Generator):
    """A drift that leaves p_t alone: in one dimension p^-1 times a number."""

    speed = 0.0

    def triplet(self, x: Tensor, t: Any, prediction: Any) -> gm.Triplet:
        return gm.Triplet(drift=0.01 / WORLD.log_density(x, torch.as_tensor(t, dtype=x.dtype)).exp()[:, None])


FORWARD = {
    "flow": gm.Flow(MODEL),
    "langevin": gm.Langevin(MODEL, Constant(0.6)),
    "diffusion": gm.Diffusion(MODEL, EndpointSafe(1.4)),
    "memoryless": gm.Diffusion(MODEL),
    "state-dependent": gm.Diffusion(MODEL, StateDependent(worlds.bell, EndpointSafe())),
    "user's": Plain(MODEL),
    "hybrid": 0.6 * gm.Diffusion(MODEL) + 0.4 * Plain(MODEL),
    "in time": (lambda t: t) * gm.Diffusion(MODEL) + (lambda t: 1 - t) * gm.Flow(MODEL),
}


@pytest.mark.parametrize("name", FORWARD)
def test_the_reverse_runs_the_path_back(name: str):
    forward = FORWARD[name]
    reverse = Reverse(forward)
    for t in (0.1, 0.5, 0.9):
        law = WORLD.law(t)
        assert reverse.speed_at(t) == pytest.approx(-forward.speed_at(t))
        assert worlds.residual(reverse, law, t) < 1e-6
        for b in (0.5, 2.0):
            assert worlds.residual((1 + b) * forward + b * reverse, law, t) < 1e-6
        if name != "langevin":
            assert worlds.residual(reverse, law, t, speed=1.0) > 1e-2, "speed -1 passes for speed 1"


@pytest.mark.parametrize("name", FORWARD)
def test_it_is_the_adjoint_under_the_law(name: str):
    """<p, g L f> = <p, f Lbar g> + <g, d/dt p f>-terms: the definition, p Lbar g = L*(p g) - g L* p, tested weakly.

    <p, f Lbar g> = <p, g L f> - <p, L(f g)>, as <f, L*(p g)> = <p g, L f> and <f g, L* p> = <p, L(f g)>.
    """
    forward, t = FORWARD[name], 0.4
    density, _ = WORLD.law(t)
    ahead, back = forward(worlds.GRID, t), Reverse(forward)(worlds.GRID, t)
    f, g = worlds.TESTS["sine"], worlds.TESTS["bump"]
    left = (density * f(worlds.GRID) * back.apply(g, worlds.GRID)).sum()
    both = ahead.apply(lambda x: f(x) * g(x), worlds.GRID)
    right = (density * (g(worlds.GRID) * ahead.apply(f, worlds.GRID) - both)).sum()
    scale = (density * both.abs()).sum()
    assert (left - right).abs() / scale < 1e-6
    # Flow alone, turned round, has the speed but not the adjoint of a diffusion.
    if name in ("diffusion", "user's"):
        wrong = (density * f(worlds.GRID) * (-1.0 * gm.Flow(MODEL))(worlds.GRID, t).apply(g, worlds.GRID)).sum()
        assert (wrong - right).abs() / scale > 1e-2


def test_reversed_twice_it_is_the_forward():
    for name, forward in FORWARD.items():
        again, once = Reverse(Reverse(forward))(X, 0.4), forward(X, 0.4)
        torch.testing.assert_close(again.drift, once.drift, rtol=1e-6, atol=1e-7, msg=name)


def test_reverse_time_drift_of_a_diffusion():
    """-b + A s, and for noise in the state + div A, by hand."""
    t = 0.4
    score = MODEL(X, t).score
    forward, reverse = FORWARD["diffusion"](X, t), Reverse(FORWARD["diffusion"])(X, t)
    torch.testing.assert_close(reverse.drift, -forward.drift + forward.variance * score)
    forward, reverse = FORWARD["state-dependent"](X, t), Reverse(FORWARD["state-dependent"])(X, t)
    slope = 2 * (1 - t) * worlds.bell_slope(X)
    torch.testing.assert_close(reverse.drift, -forward.drift + forward.variance * score + slope)
    torch.testing.assert_close(reverse.variance, forward.variance)


def test_known_generators_are_turned_without_a_class_of_their_own():
    """So that a predictor-corrector of a diffusion stays semilinear, and takes the exponential solver."""
    sde = gm.Diffusion(MODEL)
    corrected = 1.5 * sde + 0.5 * Reverse(sde)
    assert [(w, type(g)) for w, g in corrected.terms] == [(1.0, gm.Flow), (2.0, gm.Langevin)]
    assert len(corrected.models) == 1


MOMENTS = (
    sum(w * m for w, m in zip(worlds.WEIGHTS, worlds.MEANS, strict=True)),
    sum(w * (m**2 + v) for w, m, v in zip(worlds.WEIGHTS, worlds.MEANS, worlds.VARIANCES, strict=True)),
)


@pytest.mark.parametrize(
    ("name", "solver"),
    [
        ("diffusion", None),
        ("diffusion", gm.solvers.Heun()),
        ("memoryless", None),
        ("state-dependent", None),
        ("state-dependent", gm.solvers.EndPoint()),
    ],
)
def test_predictor_corrector_samples_have_the_law_of_the_data(name: str, solver: gm.Solver | None):
    forward = FORWARD[name]
    for b in (0.5, lambda t: 4 * t * (1 - t)):
        weights = (1 + b, b) if isinstance(b, float) else (lambda t, b=b: 1 + b(t), b)
        corrected = weights[0] * forward + weights[1] * Reverse(forward)
        x = gm.sample(corrected, (8000, 1), steps=100, seed=0, solver=solver)
        assert x.mean().item() == pytest.approx(MOMENTS[0], abs=0.05)
        assert x.square().mean().item() == pytest.approx(MOMENTS[1], abs=0.07)


def test_the_corrector_corrects():
    """From a wrong law at t = 0.5 the corrector comes nearer to p_1 than the predictor alone."""
    start = gm.Draws(5, 8000).normal((8000, 1)) * 0.4
    sde = gm.Diffusion(MODEL, EndpointSafe(0.2))
    errors = []
    for b in (0.0, 20.0):
        x = gm.sample((1 + b) * sde + b * Reverse(sde), start, start=0.5, steps=200, seed=0)
        errors.append(abs(x.mean().item() - MOMENTS[0]) + abs(x.square().mean().item() - MOMENTS[1]))
    assert errors[1] < errors[0] / 2


@pytest.mark.parametrize("name", ["diffusion", "user's", "state-dependent"])
def test_data_become_noise(name: str):
    """From data to the middle of the path and to its start, by mean and second moment; the flow alone remembers."""
    forward = FORWARD[name]
    data = gm.worlds.GaussianMixture(
        torch.tensor(worlds.MEANS)[:, None], torch.tensor(worlds.VARIANCES)[:, None, None], torch.tensor(worlds.WEIGHTS)
    )
    x1 = data.sample(8000, seed=3)
    for stop in (0.5, 0.02):
        x = gm.sample(Reverse(forward), x1, start=0.99, stop=stop, steps=150, seed=0)
        alpha, sigma = stop, 1 - stop
        mean = alpha * MOMENTS[0]
        second = alpha**2 * MOMENTS[1] + sigma**2
        assert x.mean().item() == pytest.approx(mean, abs=0.05)
        assert x.square().mean().item() == pytest.approx(second, abs=0.07)
    kept = torch.corrcoef(torch.cat([x, x1], 1).T)[0, 1].item()
    flown = gm.sample(gm.Flow(MODEL), x1, start=0.99, stop=0.02, steps=150)
    assert kept < 0.9 * torch.corrcoef(torch.cat([flown, x1], 1).T)[0, 1].item()


def test_a_reversed_generator_runs_from_data_to_noise_alone():
    x = torch.zeros(4, 1)
    with pytest.raises(ValueError, match="a reversed generator runs from data to noise"):
        gm.sample(Reverse(FORWARD["diffusion"]), (4, 1), steps=4)
    with pytest.raises(ValueError, match=r"not 1, at t = 0\.9"):
        gm.sample(0.5 * Reverse(FORWARD["diffusion"]), x, start=0.9, stop=0.1, steps=4)
    with pytest.raises(ValueError, match="it is run back in time"):
        gm.sample(Reverse(FORWARD["diffusion"]), x, start=0.9, stop=0.1, solver=gm.solvers.Exponential())
    with pytest.raises(ValueError, match=r"a flow, drift alone, or the generator's reverse, gm\.Reverse"):
        gm.sample(FORWARD["diffusion"], x, start=0.9, stop=0.1, solver=gm.solvers.Heun())


def test_the_wrong_weights_are_refused():
    sde = FORWARD["diffusion"]
    with pytest.raises(ValueError, match=r"at speed 0.5, not 1"):
        gm.sample(sde + 0.5 * Reverse(sde), (4, 1), steps=4, seed=0)
    with pytest.raises(ValueError, match="at speed -1, not 1"):
        gm.sample(Reverse(sde), (4, 1), steps=4, seed=0)


def test_networks_are_saved_once():
    network = gm.nn.MLP(1, width=8)
    plain = Plain(gm.predict.Velocity(network, gm.GaussianPath()))
    corrected = 1.5 * plain + 0.5 * Reverse(plain)
    assert len(corrected.state_dict()) == len(network.state_dict())
    assert len(Reverse(plain).state_dict()) == len(network.state_dict())
    twin = 1.5 * Plain(gm.predict.Velocity(gm.nn.MLP(1, width=8), gm.GaussianPath()))
    twin = twin + 0.5 * Reverse(twin.terms[0][1])
    twin.load_state_dict(corrected.state_dict())
    torch.testing.assert_close(twin(X.float(), 0.3).drift, corrected(X.float(), 0.3).drift)


class Jumping(gm.Generator):
    """Jumps that nobody said how to reverse."""

    def triplet(self, x: Tensor, t: Any, prediction: Any) -> gm.Triplet:
        atoms = gm.rates.Atoms(torch.zeros(1, 1), torch.zeros(len(x), 1))
        return gm.Triplet(rates=gm.Rates(gm.rates.Term(torch.ones(len(x), 1), atoms)))


class Varying(gm.Generator):
    """Noise in the state that nobody said how to reverse."""

    additive = False

    def triplet(self, x: Tensor, t: Any, prediction: Any) -> gm.Triplet:
        return gm.Triplet(variance=1 + x.square())


def test_users_say_how_theirs_are_reversed():
    class Mine(Varying):
        pass

    with pytest.raises(ValueError, match="Mine is not known to have noise that is the same at every state"):
        Reverse(Mine(MODEL))

    @reverses(Mine)
    def back(generator: Mine) -> gm.Generator:
        return Plain(generator.model)

    assert isinstance(Reverse(Mine(MODEL)).terms[0][1], Plain)


def test_another_triplet_is_another_generator():
    """What is known of Flow does not hold for a subclass that writes its own triplet."""

    class Noisy(gm.Flow):
        def triplet(self, x: Tensor, t: Any, prediction: Any) -> gm.Triplet:
            return gm.Triplet(drift=prediction.velocity + 0.2 * prediction.score, variance=0.4)

    assert isinstance(Reverse(Noisy(MODEL)).terms[0][1], ReverseDiffusion)
    assert worlds.residual(Reverse(Noisy(MODEL)), WORLD.law(0.5), 0.5, speed=-1.0) < 1e-6


def test_what_cannot_be_reversed_is_refused():
    with pytest.raises(TypeError, match=r"Reverse takes a generator such as gm.Flow\(model\), got Data"):
        Reverse(MODEL)
    ot = gm.predict.Velocity(worlds.Still(), gm.GaussianPath(coupling=gm.couplings.OT()))
    Reverse(gm.Flow(ot))(X, 0.5)  # a drift alone needs no score

    class Shaken(gm.Generator):
        def triplet(self, x: Tensor, t: Any, prediction: Any) -> gm.Triplet:
            return gm.Triplet(drift=prediction.velocity, variance=1.0)

    with pytest.raises(ValueError, match=r"there is no score on GaussianPath.*makes noise and data dependent"):
        Reverse(Shaken(ot))(X, 0.5)
    with pytest.raises(TypeError, match=r"the jumps of Jumping cannot be reversed by a score.*@gm.generators.reverses"):
        Reverse(Jumping(MODEL))(X, 0.5)
    with pytest.raises(ValueError, match="Varying is not known"):
        Reverse(Varying(MODEL))
    assert isinstance(Reverse(Multiplicative(MODEL, StateDependent(worlds.bell))).terms[0][1], Multiplicative)
