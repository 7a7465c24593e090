r"""SRI on noise that leaves a law alone: the law of the path is reached at order 2, where Euler reaches it at order 1.

No Monte Carlo: a run is an integral operator on a grid (:mod:`noise_worlds`), here over both normals and the
coin of a step.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import noise_worlds as worlds
import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

import genmatch as gm
from genmatch.diffusivity import Curvature, EndpointSafe, StateDependent
from genmatch.random import AREA
from genmatch.solvers import SRI, Euler, Field

WORLD = worlds.Mixture(gm.schedules.CondOT())
NOISE = StateDependent(lambda x, t: (1 + t) * worlds.bell(x, t) / 2, EndpointSafe(1.0), elementwise=True)
STEPS = (10, 20, 40)
RULES = [np.polynomial.hermite_e.hermegauss(n) for n in (9, 5)]
# Increment, area and coin: each outcome, and its weight.
OUTCOMES = torch.tensor(list(itertools.product(RULES[0][0], RULES[1][0], (0.0, 0.9)))).T
MASS = torch.tensor([a * b / 2 for a, b, _ in itertools.product(RULES[0][1], RULES[1][1], range(2))])


class Nodes:
    """Draws of a step: all outcomes in place of its normals and its coin."""

    def __init__(self, stream: int = 0) -> None:
        self.stream = stream

    def fork(self, stream: int) -> Nodes:
        return Nodes(stream)

    def normal(self, shape: Sequence[int], dtype: torch.dtype = torch.float64) -> Tensor:
        return OUTCOMES[1 if self.stream == AREA else 0].repeat(len(worlds.GRID))[:, None]

    def uniform(self, shape: Sequence[int], dtype: torch.dtype = torch.float64) -> Tensor:
        return OUTCOMES[2].repeat(len(worlds.GRID))[:, None]


def backward(operator: Any, solver: gm.Solver, times: Tensor, function) -> Tensor:
    """Mean of f at the last time, as a function of the state at the first, on the grid."""
    x = worlds.GRID.repeat_interleave(len(MASS), 0)
    field = Field(operator, worlds.GRID)
    values, edges = function(worlds.GRID), worlds.GRID[[0, -1], 0].tolist()
    with torch.no_grad():
        for c in reversed(solver.plan(field, times)):
            moved, _ = solver.step(field, x, c, Nodes(), None)  # type: ignore[arg-type]
            after = CubicSpline(worlds.GRID[:, 0].numpy(), values.numpy())(moved[:, 0].clamp(*edges).numpy())
            values = torch.tensor(after).reshape(-1, len(MASS)) @ MASS / MASS.sum()
    return values


def test_the_law_is_reached_at_order_two() -> None:
    operator, function = gm.Diffusion(WORLD.model, NOISE), worlds.TESTS["square"]
    begin, end = WORLD.density(0.2), WORLD.density(0.7)
    truth = ((end * function(worlds.GRID)).sum() / end.sum()).item()

    def errors(run, solver: gm.Solver) -> list[float]:
        values = [run(operator, solver, 0.2 + 0.5 * gm.grids.uniform(n), function) for n in STEPS]
        return [abs(((begin * own).sum() / begin.sum()).item() - truth) for own in values]

    found, plain = errors(backward, SRI()), errors(worlds.backward, Euler())
    assert worlds.slope(STEPS, found) > 1.8
    assert 0.8 < worlds.slope(STEPS, plain) < 1.2
    assert found[-1] < plain[-1] / 30


def test_noise_that_reads_the_network() -> None:
    """Curvature: the variance as a function of the state asks the network again, at each of its seven values."""
    world = gm.worlds.GaussianMixture(
        torch.tensor([[-1.0, 0.0], [1.0, 0.5]]), torch.stack([0.2 * torch.eye(2)] * 2), torch.tensor([0.5, 0.5])
    )
    model = world.predictor(gm.GaussianPath())
    operator = gm.Diffusion(model, Curvature(EndpointSafe(1.0)))
    x = gm.sample(operator, (2000, 2), solver=SRI(), steps=12, seed=0)
    data = world.sample(20000, seed=1)
    assert (x.mean(0) - data.mean(0)).abs().max() < 0.1
    assert (x.var(0) - data.var(0)).abs().max() < 0.12
