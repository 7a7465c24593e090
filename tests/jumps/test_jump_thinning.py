"""Exact jumps on continuous spaces, by thinning."""

from __future__ import annotations

import math

import pytest
import torch
from jump_worlds import PLACES, Hopping, Known, exact_jump, exact_law

import genmatch as gm
from genmatch.generators import Flow, Jump
from genmatch.solvers import Euler, Field, JumpThinning


def law(end: torch.Tensor) -> torch.Tensor:
    return torch.bincount(torch.cdist(end, PLACES).argmin(1), minlength=3).double() / len(end)


def test_one_step_has_the_exact_law():
    count, stop = 30_000, 0.8
    x = PLACES[0].expand(count, 1).contiguous()
    # Rates of at most 5.5 on a clock that runs 1/(1 - t) as fast as t.
    end = gm.sample(Hopping(Known()), x, times=[0.0, stop], solver=JumpThinning(6.0), seed=0)
    exact = exact_law(0, stop)
    assert (law(end) - exact).abs().max() < 4 * math.sqrt(0.25 / count)
    two = gm.sample(Hopping(Known()), x, times=[0.0, 0.3, stop], solver=JumpThinning(12.0), seed=1)
    assert (law(two) - exact).abs().max() < 4 * math.sqrt(0.25 / count)
    leap = gm.sample(Hopping(Known()), x, times=[0.0, stop], solver=Euler(), seed=0)
    assert (law(leap) - exact).abs().max() > 0.03


def test_one_step_reproduces_a_path():
    atoms, weights, stop, count = torch.tensor([[-0.8], [0.6]]), torch.tensor([0.4, 0.6]), 0.8, 1500
    jump = Jump(exact_jump(atoms, weights, torch.linspace(-1.7, 1.7, 69)))
    x = gm.sample(jump, (count, 1), times=[0.0, stop], solver=JumpThinning(30.0), seed=0).double()
    variance = stop**2 * (0.4 * 0.64 + 0.6 * 0.36 - 0.04**2) + (1 - stop) ** 2
    assert x.mean().item() == pytest.approx(stop * 0.04, abs=4 * math.sqrt(variance / count))
    assert x.var().item() == pytest.approx(variance, abs=4 * variance / math.sqrt(count) + 0.002)
    ended = gm.sample(jump, (100, 1), times=[0.0, 0.99, 1.0], solver=JumpThinning(30.0), seed=0)
    assert (ended - atoms.T).abs().amin(1).mean() < 0.06


def test_it_counts_the_candidates():
    solver = JumpThinning(4.0)
    field = Field(Hopping(Known()), torch.zeros(1, 1))
    plan = solver.plan(field, gm.grids.uniform(5, 0.0, 0.9))
    assert solver.evaluations(plan) == math.ceil(4 * math.log(10))


def test_what_cannot_be_is_refused():
    x = torch.zeros(500, 1)
    with pytest.raises(ValueError, match=r"above the bound 1: give a higher bound"):
        gm.sample(Hopping(Known()), x, times=[0.0, 0.5], solver=JumpThinning(1.0), seed=0)
    with pytest.raises(ValueError, match="bound must be above 0"):
        JumpThinning(0.0)
    with pytest.raises(ValueError, match="times that fall are for a flow"):
        gm.sample(Hopping(Known()), x, times=[0.5, 0.2], solver=JumpThinning(6.0))
    flow = Flow(gm.worlds.GaussianMixture(torch.tensor([[0.5]]), 0.1).predictor(gm.GaussianPath()))
    with pytest.raises(ValueError, match="JumpThinning cannot move drift"):
        gm.sample(flow, (2, 1), steps=3, solver=JumpThinning(6.0))
