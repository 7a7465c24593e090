"""A known density in the place of a network: score, growth and the log-ratio of a step against closed forms."""

from __future__ import annotations

import math
from typing import Any

import noise_worlds as worlds
import pytest
import torch
from torch import Tensor

import genmatch as gm
from genmatch.predict import Density

F64 = torch.float64
WORLD = worlds.Mixture(gm.schedules.CondOT())
DENSITY = Density(WORLD.log_density, WORLD.path)
X = gm.Draws(0, 6).normal((6, 1), F64)
TIMES = torch.linspace(0.1, 0.9, 6, dtype=F64)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("t", [0.3, torch.tensor(0.3, dtype=F64), TIMES], ids=["number", "0-d", "batch"])
def test_readings_are_those_of_finite_differences(t: Any, grad: bool):
    with torch.set_grad_enabled(grad):
        prediction = DENSITY(X, t)
        time, h = torch.as_tensor(t, dtype=F64), 1e-5
        torch.testing.assert_close(prediction.log_density, WORLD.log_density(X, time))
        slope = (WORLD.log_density(X + h, time) - WORLD.log_density(X - h, time)) / (2 * h)
        torch.testing.assert_close(prediction.score, slope[:, None], rtol=1e-6, atol=1e-8)
        growth = (WORLD.log_density(X, time + h) - WORLD.log_density(X, time - h)) / (2 * h)
        torch.testing.assert_close(prediction.growth, growth, rtol=1e-6, atol=1e-8)


def test_the_score_is_that_of_the_exact_network():
    torch.testing.assert_close(DENSITY(X, 0.4).score, WORLD.model(X, 0.4).score, rtol=1e-6, atol=1e-6)


def test_states_of_many_dimensions():
    density = Density(lambda x, t: -0.5 * (x.square() * (1 + t.reshape(-1, 1, 1))).sum((1, 2)), WORLD.path)
    x = gm.Draws(0, 4).normal((4, 2, 3), F64)
    t = torch.linspace(0.1, 0.7, 4, dtype=F64)
    torch.testing.assert_close(density(x, t).score, -x * (1 + t[:, None, None]))
    torch.testing.assert_close(density(x, t).growth, -0.5 * x.square().sum((1, 2)))


def test_the_log_ratio_is_over_the_step_of_a_plan():
    starts, ends = torch.tensor([0.2, 0.5], dtype=F64), torch.tensor([0.5, 0.9], dtype=F64)
    for instant, t, s in zip(DENSITY.at(starts, ends).rows(), starts, ends, strict=True):
        assert (instant.t, instant.until) == (t.item(), s.item())
        prediction = DENSITY.prediction(X, instant, DENSITY.native(X, instant))
        torch.testing.assert_close(prediction.log_ratio, WORLD.log_density(X, s) - WORLD.log_density(X, t))
        # The integral of the growth, by Simpson's rule.
        u = torch.linspace(t.item(), s.item(), 41, dtype=F64)
        growths = torch.stack([DENSITY(X, v.item()).growth for v in u])
        weights = torch.tensor([1.0, *[4.0, 2.0] * 19, 4.0, 1.0], dtype=F64) * (s - t) / 120
        torch.testing.assert_close((weights[:, None] * growths).sum(0), prediction.log_ratio, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="no step is known here"):
        _ = DENSITY(X, 0.3).log_ratio


@pytest.mark.parametrize("noise", [None, gm.diffusivity.EndpointSafe(), gm.diffusivity.Constant(0.5), lambda t: 1 - t])
def test_langevin_reads_the_score(noise: Any):
    """The forward equation of a Langevin that no network stands behind."""
    for t in (0.2, 0.7):
        assert worlds.residual(gm.Langevin(DENSITY, noise), WORLD.law(t), t) < 1e-6
    both = gm.Flow(WORLD.model) + gm.Langevin(DENSITY, noise)
    assert worlds.residual(both, WORLD.law(0.4), 0.4) < 1e-6


def test_a_density_is_there_also_where_a_coupling_hides_the_score():
    """Optimal transport between two normals: x_t is normal, and its density known though no network has the score."""
    path = gm.GaussianPath(coupling=gm.couplings.OT())

    def log_density(x: Tensor, t: Tensor) -> Tensor:  # x1 = x0 / 2
        spread = 1 - t / 2
        return -0.5 * (x.squeeze(-1) / spread).square() - spread.log()

    model = Density(log_density, path)
    torch.testing.assert_close(model(X, 0.5).score, -X / 0.75**2)
    gm.Langevin(model, gm.diffusivity.Constant(1.0))
    with pytest.raises(
        TypeError, match=r"Flow needs a model with a velocity; a Density .* has growth, log_density, score"
    ):
        gm.Flow(model)


def test_on_manifolds_scores_are_gradients_in_the_metric():
    """Tangent on the sphere; on the ball the metric shrinks them. Against derivatives along geodesics."""
    for space, start in (
        (gm.spaces.Sphere(2), torch.nn.functional.normalize(gm.Draws(1, 5).normal((5, 3), F64), dim=-1)),
        (gm.spaces.PoincareBall(2), 0.3 * torch.tanh(gm.Draws(1, 5).normal((5, 2), F64))),
    ):
        model = Density(lambda x, t: torch.sin(2 * x[:, 0]) + x[:, 1] * t, gm.paths.GeodesicPath(space))
        score = model(start, 0.5).score
        torch.testing.assert_close(space.tangent(start, score), score)
        v, h = space.noise(start, gm.Draws(2, 5).normal(start.shape, F64)), 1e-5
        half = torch.tensor(0.5, dtype=F64)
        ahead, behind = (model.log_density(space.exp(start, s * v), half) for s in (h, -h))
        torch.testing.assert_close(space.inner(start, score, v), (ahead - behind) / (2 * h), rtol=1e-5, atol=1e-8)


def test_tokens_have_a_growth_and_no_score():
    path = gm.MixturePath(3)
    model = Density(lambda x, t: torch.log(1 / 3 + t * ((x == 0).all(-1).double() - 1 / 3)), path)
    x = torch.tensor([[0], [1]])
    torch.testing.assert_close(model(x, 0.5).growth, torch.tensor([(2 / 3) / (2 / 3), (-1 / 3) / (1 / 6)], dtype=F64))
    assert "score" not in model.readings
    with pytest.raises(ValueError, match="no gradient over discrete states"):
        _ = model(x, 0.5).score
    with pytest.raises(TypeError, match="Langevin needs a model on a GaussianPath, got one on MixturePath"):
        gm.Langevin(model)


@pytest.mark.slow
def test_a_step_compiles_as_one_graph():
    torch._dynamo.reset()
    generator = gm.Flow(WORLD.model) + gm.Langevin(DENSITY, gm.diffusivity.EndpointSafe())
    fast = slow = X.float()
    solver, field = gm.solvers.Euler(), gm.solvers.Field(generator, fast)
    plan = solver.plan(field, gm.grids.uniform(3, 0.1, 0.9))
    step = torch.compile(solver.step, fullgraph=True, backend="eager")
    with torch.no_grad():
        for c, draws in zip(plan, gm.Draws(0, 6).steps(3), strict=True):
            fast, slow = step(field, fast, c, draws, None)[0], solver.step(field, slow, c, draws, None)[0]
    torch.testing.assert_close(fast, slow)


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda x, t: x.squeeze(-1).log(), ValueError, "log_density is nan at .* must be positive and finite"),
        (lambda x, t: x.squeeze(-1) / 0, ValueError, "log_density is (inf|nan)"),
        (lambda x, t: x, ValueError, r"returned shape \(6, 1\) .* one number for each sample, \(6,\)"),
        (lambda x, t: t, ValueError, r"returned shape \(\)"),
        (lambda x, t: 0.0, TypeError, "must return a tensor"),
    ],
)
def test_what_is_no_density_is_refused(function, error, message: str):
    with pytest.raises(error, match=message):
        Density(function, WORLD.path)(X, 0.5)


def test_where_the_density_is_zero_there_is_no_score():
    model = Density(lambda x, t: torch.where(x.squeeze(-1) > 0, -x.squeeze(-1), -math.inf) + 0 * t, WORLD.path)
    prediction = model(X, 0.5)
    zero = int((X <= 0).sum())
    assert int(prediction.log_density.isneginf().sum()) == zero > 0
    for reading in ("score", "growth"):
        with pytest.raises(ValueError, match=f"the density is 0 at {zero} of 6 states, so there is no {reading}"):
            getattr(prediction, reading)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Density(3.0, WORLD.path), TypeError, r"function of \(x, t\), got float"),
        (
            lambda: Density(WORLD.log_density, WORLD.schedule),
            TypeError,
            "needs the path that it is the law of, got CondOT",
        ),
        (lambda: DENSITY(X, 0.5, {"label": torch.zeros(6)}), ValueError, "takes no condition, got label"),
        (lambda: gm.matching_loss(DENSITY, X), TypeError, "a Density predictor is not trained"),
        (lambda: DENSITY(X, 1.5), ValueError, r"t must be in \[0, 1\]"),
    ],
)
def test_bad_input_is_refused(call, error, message: str):
    with pytest.raises(error, match=message):
        call()
