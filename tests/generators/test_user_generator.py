r"""A generator written downstream: it stirs p_t and leaves it as it is.

For an antisymmetric R the current :math:`p\,R\nabla\log p = R\nabla p` has no divergence.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

import genmatch as gm

ROTATION = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)


class Swirl(gm.Generator):
    speed = 0.0

    def triplet(self, x, t, prediction):
        return gm.Triplet(drift=prediction.score @ ROTATION.to(x.dtype))


class Shear(gm.Generator):
    """The same with a matrix that is not antisymmetric, and the same claim: a mistake."""

    speed = 0.0

    def triplet(self, x, t, prediction):
        return gm.Triplet(drift=prediction.score @ ROTATION.to(x.dtype).abs())


MEANS = torch.tensor([[-1.0, 0.5], [1.5, 0.0], [0.0, -1.0]], dtype=torch.float64)
COVARIANCES = torch.tensor(
    [[[0.3, 0.1], [0.1, 0.5]], [[0.6, -0.2], [-0.2, 0.3]], [[0.2, 0.0], [0.0, 0.7]]], dtype=torch.float64
)
WEIGHTS = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)


def density(schedule: gm.Schedule, x: Tensor, t: Tensor) -> Tensor:
    """p_t of the mixture at ``x`` (n, 2), written out."""
    alpha, sigma = schedule(t)
    value = torch.zeros(len(x), dtype=x.dtype)
    for mean, covariance, weight in zip(MEANS, COVARIANCES, WEIGHTS, strict=True):
        spread = alpha**2 * covariance + sigma**2 * torch.eye(2, dtype=x.dtype)
        away = x - alpha * mean
        # The inverse of a 2 x 2 matrix by its adjugate: forward mode goes through it.
        a, b, d = spread[0, 0], spread[0, 1], spread[1, 1]
        area = a * d - b * b
        square = (d * away[:, 0] ** 2 - 2 * b * away[:, 0] * away[:, 1] + a * away[:, 1] ** 2) / area
        value = value + weight * torch.exp(-square / 2) / (2 * math.pi * area.sqrt())
    return value


@pytest.mark.parametrize("schedule", [gm.schedules.CondOT(), gm.schedules.Cosine()], ids=repr)
def test_it_leaves_the_law_alone_in_the_plane(schedule: gm.Schedule):
    model = gm.worlds.GaussianMixture(MEANS, COVARIANCES, WEIGHTS).predictor(gm.GaussianPath(schedule))
    side = torch.linspace(-7, 7, 141, dtype=torch.float64)
    grid, area = torch.cartesian_prod(side, side), (side[1] - side[0]) ** 2
    swirl, shear = Swirl(model), Shear(model)
    stirred = gm.Flow(model) + 0.5 * swirl
    tests = (
        lambda x: torch.sin(x[:, 0] + 0.3) * torch.cos(0.7 * x[:, 1]),
        lambda x: x[:, 0] ** 2 * x[:, 1],
        lambda x: torch.exp(-((x[:, 0] - 0.5) ** 2) - x[:, 1] ** 2 / 2),
    )
    for t in (0.3, 0.8):
        time = torch.tensor(t, dtype=torch.float64)
        p, rate = torch.func.jvp(lambda s: density(schedule, grid, s), (time,), (torch.ones_like(time),))

        def means(operator, f, p=p, t=t) -> tuple[float, float]:
            """<p, L f> and <p, |L f|>."""
            value = operator(grid, t).apply(f, grid)
            return (p * value).sum().item() * area.item(), (p * value.abs()).sum().item() * area.item()

        for f in tests:
            moved, scale = means(swirl, f)
            assert scale > 0.05, "the swirl does nothing: nothing is tested"
            assert abs(moved) < 1e-9 * scale
            along, scale = means(stirred, f)
            assert abs(along - (rate * f(grid)).sum().item() * area.item()) < 1e-9 * scale
        assert max(abs(means(shear, f)[0]) / means(shear, f)[1] for f in tests) > 0.05


# A Gaussian world, where every step is an affine map of the state: its law is read off the images of three points.
COVARIANCE = torch.tensor([[0.3, 0.2], [0.2, 2.0]], dtype=torch.float64)
MEAN = torch.tensor([0.7, -0.4], dtype=torch.float64)


def final_law(operator: gm.Superposition, solver: gm.Solver, steps: int, stop: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and covariance at ``stop`` of a start in N(0, I), and the matrix of the map."""
    points = torch.cat([torch.zeros(1, 2), torch.eye(2)]).double()
    ends = gm.sample(operator, points, steps=steps, solver=solver, stop=stop)
    matrix = (ends[1:] - ends[0]).T
    return ends[0], matrix @ matrix.T, matrix


@pytest.mark.parametrize(("solver", "order"), [(gm.solvers.Euler(), 1), (gm.solvers.Heun(), 2)], ids=repr)
def test_sampling_keeps_the_law(solver: gm.Solver, order: int):
    world = gm.worlds.GaussianMixture(MEAN[None], COVARIANCE)
    model, stop = world.predictor(gm.GaussianPath()), 0.9
    stirred, sheared = gm.Flow(model) + 0.5 * Swirl(model), gm.Flow(model) + 0.5 * Shear(model)
    exact = stop**2 * COVARIANCE + (1 - stop) ** 2 * torch.eye(2)

    def error(operator, steps: int) -> float:
        mean, covariance, _ = final_law(operator, solver, steps, stop)
        return max((covariance - exact).abs().max().item(), (mean - stop * MEAN).abs().max().item())

    errors = [error(stirred, steps) for steps in (40, 80, 160)]
    rates = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert rates[-1] == pytest.approx(order, abs=0.15)
    assert error(sheared, 160) > 0.2
    # It does stir: the map is another one than the flow's, by a rotation of a good angle.
    plain, turned = (final_law(o, solver, 160, stop)[2] for o in (gm.Flow(model), stirred))
    turn = torch.linalg.inv(plain) @ turned
    assert abs(math.atan2(turn[1, 0].item(), turn[0, 0].item())) > 0.3


def test_it_works_to_the_data_and_by_default():
    world = gm.worlds.GaussianMixture(MEAN[None], COVARIANCE)
    model = world.predictor(gm.GaussianPath())
    mean, covariance, _ = final_law(gm.Flow(model) + 0.5 * Swirl(model), gm.solvers.Heun(), 200, 1.0)
    torch.testing.assert_close(covariance, COVARIANCE, rtol=0, atol=0.02)
    torch.testing.assert_close(mean, MEAN, rtol=0, atol=0.02)
    assert gm.sample(gm.Flow(model) + 0.5 * Swirl(model), (4, 2), steps=4, seed=0).shape == (4, 2)


def test_the_exponential_solver_refuses_it_by_name():
    model = gm.worlds.GaussianMixture(MEAN[None], COVARIANCE).predictor(gm.GaussianPath())
    with pytest.raises(ValueError, match=r"Swirl is not semilinear.*Use gm\.solvers\.Euler\(\), Heun\(\)"):
        gm.sample(gm.Flow(model) + 0.5 * Swirl(model), (4, 2), steps=4, seed=0, solver=gm.solvers.Exponential())


def test_a_value_that_is_no_triplet_is_refused():
    class Bare(gm.Generator):
        def triplet(self, x, t, prediction):
            return prediction.velocity

    model = gm.worlds.GaussianMixture(MEAN[None], COVARIANCE).predictor(gm.GaussianPath())
    for call in (
        lambda: Bare(model)(torch.zeros(1, 2), 0.5),
        lambda: gm.sample(0.5 * Bare(model) + 0.5 * gm.Flow(model), (4, 2)),
    ):
        with pytest.raises(TypeError, match=r"Bare\.triplet must return a gm\.Triplet\(drift=\.\.\.\), got Tensor"):
            call()


def test_alone_it_is_no_way_to_the_data():
    model = gm.worlds.GaussianMixture(MEAN[None], COVARIANCE).predictor(gm.GaussianPath())
    with pytest.raises(ValueError, match="speed 0, not 1"):
        gm.sample(Swirl(model), (4, 2), steps=4, seed=0)
