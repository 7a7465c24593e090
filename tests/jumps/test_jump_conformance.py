"""The generators of this folder, put through the conformance suite that is shipped for anybody's generators."""

from __future__ import annotations

import pytest
import torch
from jump_worlds import exact_jump
from torch import Tensor, nn

import genmatch as gm
from genmatch.generators import Flow, Jump, MinimalJump, MixtureJump, PureDiffusion
from genmatch.paths import ContinuousMixturePath, IntervalPath
from genmatch.testing import check_generator

F64 = torch.float64


def normal(count: int, dim: int = 1) -> Tensor:
    return 0.3 + 0.4 * torch.randn(count, dim, dtype=F64, generator=torch.Generator().manual_seed(0))


def log_marginal(x: Tensor, t: Tensor) -> Tensor:
    variance = 0.16 * t**2 + (1 - t) ** 2
    return -0.5 * ((x.squeeze(-1) - 0.3 * t) ** 2 / variance + variance.log())


class LogRatio(nn.Module):
    """log of N(0.3, 0.16) over N(0, 1)."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return (x.square() / 2 - (x - 0.3).square() / 0.32).sum(-1) - x.shape[1] * torch.tensor(0.4).log()


class LinearLaw(nn.Module):
    """For data of density 2x on [0, 1]: E c(x, z) in closed form, as a network of the variance."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        # E c = int_x^1 (z^2 - x^2) 2z dz + int_0^x ((1-z)^2 - (1-x)^2) 2z dz
        above = (1 - x**4) / 2 - x**2 * (1 - x**2)
        below = x**2 - 4 * x**3 / 3 + x**4 / 2 - (1 - x) ** 2 * x**2
        time = t[:, None]
        return ((above + below) / ((1 - time) + time * 2 * x).clamp(min=1e-6)).expm1().log()


def atoms(count: int) -> tuple[Jump, Tensor]:
    places, weights = torch.tensor([[-0.8], [0.1], [0.6]]), torch.tensor([0.3, 0.2, 0.5])
    which = torch.multinomial(weights, count, replacement=True, generator=torch.Generator().manual_seed(0))
    return Jump(exact_jump(places, weights, torch.linspace(-1.7, 1.7, 52))), places[which].double()


def cases() -> dict[str, tuple[gm.Generator, Tensor]]:
    density = gm.predict.Density(log_marginal, gm.GaussianPath())
    survival = gm.predict.Survival(LogRatio(), ContinuousMixturePath())
    ramp = torch.rand(4000, 1, dtype=F64, generator=torch.Generator().manual_seed(0)).sqrt()
    return {
        "Jump": atoms(1000),
        "MinimalJump": (MinimalJump(density, torch.linspace(-4, 4, 81, dtype=F64)), normal(1000)),
        "MixtureJump": (MixtureJump(survival, normal(5000, 2)), normal(4000, 2)),
        "PureDiffusion": (PureDiffusion(gm.predict.Variance(LinearLaw(), IntervalPath(0.0, 1.0))), ramp),
    }


@pytest.mark.parametrize("name", ["Jump", "MinimalJump", "MixtureJump", "PureDiffusion"])
def test_it_conforms(name: str):
    generator, data = cases()[name]
    skip = ["ends"] if name == "MinimalJump" else []  # its density is none at t = 1
    report = check_generator(generator, data=data, skip=skip)
    assert {"forward equation", "move"} <= {check.name for check in report.checks if check.verdict == "passed"}


def test_the_sum_of_a_flow_and_jumps_follows_the_path():
    jump, data = atoms(1000)
    world = gm.worlds.GaussianMixture(torch.tensor([[-0.8], [0.1], [0.6]]), 0.0, [0.3, 0.2, 0.5])
    flow = Flow(world.predictor(jump.path))
    assert gm.metrics.kfe_residual(0.4 * flow + 0.6 * jump, data=data).passed()


def test_a_rate_that_is_wrong_is_seen():
    jump, data = atoms(1000)

    class Often(gm.Generator):
        additive = False

        def triplet(self, x, t, prediction):
            return gm.Triplet(rates=1.5 * prediction.rates)

    assert not gm.metrics.kfe_residual(Often(jump.model), data=data).passed()
