"""Noise by the curvature of trajectories: the acceleration against closed forms, and the recipes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import genmatch as gm
from genmatch.diffusivity import Curvature, EndpointSafe
from genmatch.predict import Motion

F64 = torch.float64
PATH = gm.GaussianPath()
X = gm.Draws(0, 5).normal((5, 2), F64)


class Wheel(nn.Module):
    """Trajectories are circles about 0, run through at an angular speed of 1 + c t."""

    def __init__(self, c: float = 0.0) -> None:
        super().__init__()
        self.c = c

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return (1 + self.c * t)[:, None] * torch.stack([-x[:, 1], x[:, 0]], 1)


class Labelled(nn.Module):
    """The wheel, at a speed that comes as a condition."""

    def forward(self, x: Tensor, t: Tensor, speed: Tensor) -> Tensor:
        return speed[:, None] * torch.stack([-x[:, 1], x[:, 0]], 1)


def test_accelerations_on_a_circle():
    """a = -w^2 x + w' J x, from the derivatives of (cos, sin) at the angle's speed w = 1 + c t."""
    c, t = 0.7, 0.3
    model = Motion(gm.predict.Velocity(Wheel(c), PATH))
    u, a = model(X, t).motion(X)
    turned = torch.stack([-X[:, 1], X[:, 0]], 1)
    w = 1 + c * t
    torch.testing.assert_close(u, w * turned)
    torch.testing.assert_close(a, -(w**2) * X + c * turned)
    for time in (torch.tensor(t, dtype=F64), torch.full((5,), t, dtype=F64)):
        torch.testing.assert_close(model(X, time).motion(X)[1], a)


@pytest.mark.parametrize("schedule", [gm.schedules.CondOT(), gm.schedules.Cosine(), gm.schedules.VP()], ids=repr)
@pytest.mark.parametrize("kind", ["Velocity", "Noise", "Data", "Score"])
def test_accelerations_of_every_kind_are_those_of_finite_differences(kind: str, schedule: gm.Schedule):
    class Net(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return torch.tanh(x.flip(-1) + t[:, None]) * (1 + 0.3 * t[:, None])

    model, t, h = getattr(gm.predict, kind)(Net(), gm.GaussianPath(schedule)), 0.4, 1e-5
    u, a = Motion(model)(X, t).motion(X)
    torch.testing.assert_close(u, model(X, t).velocity, rtol=1e-6, atol=1e-6)
    ahead, behind = model(X + h * u, t + h).velocity, model(X - h * u, t - h).velocity
    torch.testing.assert_close(a, (ahead - behind) / (2 * h), rtol=1e-5, atol=1e-5)


def test_the_curvature_of_a_circle_is_one_over_its_radius():
    noise = Curvature(softening=1e-9)
    for c in (0.0, 2.0):  # the speed along the circle does not matter, nor does its change
        model = Motion(gm.predict.Velocity(Wheel(c), PATH))
        square = noise.square(*model(X, 0.5).motion(X))
        torch.testing.assert_close(square, 1 / X.square().sum(1), rtol=1e-5, atol=0)


def test_where_it_stands_still_there_is_none():
    model = Motion(gm.predict.Velocity(Wheel(), PATH))
    origin = torch.zeros(1, 2, dtype=F64)
    assert Curvature().square(*model(origin, 0.5).motion(origin)).item() == 0


@pytest.mark.parametrize("half", [0.5, 2.0])
def test_the_recipes(half: float):
    """r = k^2 / (k0^2 + k^2) and k0^2 / (k0^2 + k^2), with k = 1 / radius, times the scale."""
    model = gm.predict.Velocity(Wheel(), PATH)
    radius, t = X.norm(dim=1, keepdim=True), 0.3
    bent = 1 / (1 + (half * radius) ** 2)
    for where, share in (("bent", bent), ("straight", 1 - bent)):
        noise = Curvature(EndpointSafe(1.5), where=where, half=half, softening=1e-9)
        triplet = gm.Diffusion(model, noise)(X, t)
        torch.testing.assert_close(triplet.variance, 3 * (1 - t) * share, rtol=1e-5, atol=1e-8)


def test_conditions_reach_the_acceleration():
    model = Motion(gm.predict.Velocity(Labelled(), PATH))
    speed = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=F64)
    _, a = model(X, 0.5, {"speed": speed}).motion(X)
    torch.testing.assert_close(a, -(speed[:, None] ** 2) * X)
    sde = gm.Diffusion(gm.predict.Velocity(Labelled(), PATH), Curvature())
    arguments: dict[str, Any] = {"steps": 3, "seed": 0, "stop": 0.9, "condition": {"speed": speed.float()}}
    for solver in (gm.solvers.Euler(), gm.solvers.EndPoint()):
        whole = gm.sample(sde, (5, 2), solver=solver, **arguments)
        parts = gm.sample(sde, (5, 2), solver=solver, batch_size=2, **arguments)
        torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-5)


def test_a_guided_model_moves_too():
    class Guidable(nn.Module):
        def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
            return (1.0 + label)[:, None] * torch.stack([-x[:, 1], x[:, 0]], 1)

    guided = gm.guidance.ClassifierFree(gm.predict.Velocity(Guidable(), PATH), 2.0, null={"label": 0})
    _, a = Motion(guided)(X, 0.5, {"label": torch.ones(5, dtype=torch.int64)}).motion(X)
    torch.testing.assert_close(a, -9 * X)  # speeds 1 and 2, guided to 1 + 2 (2 - 1) = 3


def test_readings_pass_through():
    plain = gm.predict.Noise(Wheel(), PATH)
    model = Motion(plain)
    assert model.readings == plain.readings | {"motion"}
    for reading in ("velocity", "data", "noise", "score", "v"):
        torch.testing.assert_close(getattr(model(X, 0.5), reading), getattr(plain(X, 0.5), reading))
    with pytest.raises(ValueError, match="cannot be read off a noise network"):
        _ = model(X, 0.0).data
    with pytest.raises(TypeError, match="a Motion predictor is not trained: train the predictor it wraps"):
        gm.matching_loss(model, X.float())


def test_the_flow_beside_the_noise_is_sampled_as_any_other():
    """Its model carries the condition along, which the exponential solver has no use for: Euler takes it."""
    plain, sde = (
        gm.Flow(gm.predict.Velocity(Wheel(), PATH)),
        gm.Diffusion(gm.predict.Velocity(Wheel(), PATH), Curvature()),
    )
    flow = sde.terms[0][1]
    expected = gm.sample(plain, (4, 2), steps=5, seed=0, solver=gm.solvers.Euler())
    torch.testing.assert_close(gm.sample(flow, (4, 2), steps=5, seed=0), expected)
    with pytest.raises(ValueError, match=r"cannot be read off a Motion by two numbers"):
        gm.sample(flow, (4, 2), steps=5, seed=0, solver=gm.solvers.Exponential())


def test_what_has_no_motion_is_refused():
    with pytest.raises(TypeError, match="needs a model with a velocity, a Density has growth, log_density, score"):
        Motion(gm.predict.Density(lambda x, t: -x.square().sum(-1) / 2, PATH))
    sphere = gm.paths.GeodesicPath(gm.spaces.Sphere(2))
    with pytest.raises(TypeError, match=r"accelerations are taken on R\^d, got a model on Sphere"):
        Motion(gm.predict.TangentVelocity(Wheel(), sphere))
    assert math.isfinite(gm.Diffusion(gm.predict.Velocity(Wheel(), PATH), Curvature())(X, 0.5).drift.sum())
