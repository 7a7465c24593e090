"""Order 2 must not build on what a network cannot know: a noise network's reading of the data near pure noise."""

import pytest
import torch
from torch import Tensor, nn

import genmatch as gm
from genmatch.solvers import Exponential, exponential

WORLD = gm.worlds.GaussianMixture(torch.tensor([[-1.0], [1.0]]), 0.1)


class Blurred(nn.Module):
    """The exact noise prediction, off by a little that changes from step to step, as a trained network's is."""

    def __init__(self, path: gm.GaussianPath, error: float) -> None:
        super().__init__()
        self.exact, self.error, self.schedule = WORLD.predictor(path), error, path.schedule

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (value[:, None] for value in self.schedule(t))
        noise = (x - alpha * WORLD.posterior_mean(x, alpha[:, 0], sigma[:, 0])) / sigma
        return noise + self.error * torch.cos(40 * t)[:, None]


def error_of(order: int, steps: int, network_error: float) -> float:
    path = gm.GaussianPath(gm.schedules.DDPM())
    x0 = torch.randn(500, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = gm.predict.Noise(Blurred(path, network_error), path, time=gm.predict.clocks.t)
    exact = gm.sample(gm.Flow(WORLD.predictor(path)), x0, steps=400)
    return float((gm.sample(gm.Flow(model), x0, steps=steps, solver=Exponential(order)) - exact).square().mean().sqrt())


def test_order_two_does_not_blow_up_a_networks_error_in_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    assert error_of(2, 5, 0.03) < 1.2 * error_of(1, 5, 0.03)
    trusting = error_of(2, 5, 0.03)
    monkeypatch.setattr(exponential, "TRUST", 1e9)
    assert error_of(2, 5, 0.03) > 2 * trusting, "without the limit the errors are multiplied: the control"


@pytest.mark.parametrize("kind", ["Velocity", "Data", "V", "Karras"])
def test_networks_that_know_the_data_are_trusted(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = getattr(gm.predict, kind)(nn.Identity(), gm.GaussianPath())
    field = gm.solvers.Field(gm.Flow(model), torch.zeros(1, 1))
    limited = Exponential(2).plan(field, gm.grids.uniform(5))
    monkeypatch.setattr(exponential, "TRUST", 1e9)
    assert limited == Exponential(2).plan(field, gm.grids.uniform(5))
