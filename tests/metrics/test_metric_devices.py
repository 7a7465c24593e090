"""Every metric gives the same number on a GPU as on the CPU."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import genmatch as gm

metrics = gm.metrics

PAIRS: dict[str, Callable[[Tensor, Tensor], object]] = {
    "frechet": metrics.frechet,
    "frechet_infinity": lambda x, y: metrics.frechet_infinity(x, y, parts=2)[::2],
    "kid": metrics.kid,
    "precision_recall": metrics.precision_recall,
    "density_coverage": metrics.density_coverage,
    "sliced_wasserstein": metrics.sliced_wasserstein,
    "energy_distance": metrics.energy_distance,
    "mmd": metrics.mmd,
    "loss_by_time": lambda x, y: metrics.loss_by_time(x[:, 0], y[:, 0].sigmoid(), bins=3).mean.tolist(),
    "curvature": lambda x, y: metrics.curvature(x.reshape(6, -1, 2)).ratio,
    "straightness": lambda x, y: metrics.straightness(x.reshape(6, -1, 2), torch.linspace(0, 1, 6)),
    "kinetic_energy": lambda x, y: metrics.kinetic_energy(x.reshape(6, -1, 2), torch.linspace(0, 1, 6)),
}


def flat(result: object) -> list[float]:
    if isinstance(result, tuple | list):
        return [number for part in result for number in flat(part)]
    return [float(result)]


def test_every_metric_is_here():
    functions = {name for name in metrics.__all__ if name[0].islower()}
    assert functions == {*PAIRS, "kfe_residual", "default_test_functions"}  # of generators and not of two samples


@pytest.mark.gpu
@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("width", [4, 40])
def test_a_gpu_gives_what_the_cpu_gives(name: str, width: int):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 240, width, generator=generator) * torch.tensor([1.0, 1.5])[:, None, None]
    if name == "frechet_infinity":
        x, y = x[:, :4], y[:, :4]
    here, there = PAIRS[name](x, y), PAIRS[name](x.cuda(), y.cuda())
    assert flat(there) == pytest.approx(flat(here), rel=1e-6, nan_ok=True)
    assert not all(math.isnan(number) for number in flat(here))
