"""The learned jump kernel: its loss, what it learns, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from jump_worlds import ExactRates
from torch import Tensor, nn

import genmatch as gm
from genmatch.generators import Jump
from genmatch.paths import ContinuousMixturePath, GaussianJumpKernel

EDGES = torch.linspace(-1.7, 1.7, 35)
F64 = torch.float64


class Table(nn.Module):
    """A network that is constant on cells of the state: its best output is a mean over each cell."""

    def __init__(self, cells: Tensor, outputs: int) -> None:
        super().__init__()
        self.cells = cells
        self.values = nn.Parameter(torch.zeros(len(cells) + 1, outputs))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.values[torch.bucketize(x, self.cells)]


def test_the_loss_is_the_divergence_of_the_rates_of_all_bins():
    torch.manual_seed(0)
    path = gm.GaussianPath()
    model = gm.predict.Rates(nn.Identity(), path, EDGES)
    kernel = GaussianJumpKernel(path)
    x0, x1 = torch.randn(64, 3, dtype=F64) * 1.5, torch.rand(64, 3, dtype=F64) * 2 - 1
    t = torch.rand(64, dtype=F64) * 0.9
    x = path.sample(x0, x1, t)
    native = torch.randn(64, 3, len(EDGES), dtype=F64)
    error = model.error(native, x, x0, x1, model.instant(t, x))
    # Bin by bin, from the rate and the distribution function of landings alone.
    target = torch.empty(64, 3, len(EDGES) - 1, dtype=F64)
    for b in range(64):
        for i in range(3):
            z = x1[b, i].expand(len(EDGES))
            below = kernel.cdf(EDGES.double(), z, t[b].item())
            rate = kernel.rate(x[b, i : i + 1], x1[b, i : i + 1], t[b].item()) * (1 - t[b])
            target[b, i] = rate * below.diff()
    predicted = native[..., :1].exp() * native[..., 1:].softmax(-1)
    expected = gm.divergences.GeneralisedKL()(target, predicted).sum(-1)
    assert torch.allclose(error, expected, atol=1e-10)
    assert bool((error > 0).all())
    perfect = torch.cat([target.sum(-1, keepdim=True).log().clamp(min=-60), target.clamp(min=1e-60).log()], -1)
    assert model.error(perfect, x, x0, x1, model.instant(t, x)).abs().max() < 1e-12


def test_the_loss_of_a_jump_that_does_not_come_is_the_rate():
    model = gm.predict.Rates(nn.Identity(), gm.GaussianPath(), EDGES)
    x1, x0 = torch.zeros(1, 1), torch.tensor([[0.5]])  # |xi| < 1 at z = 0: the density rises here
    x = 0.5 * x0
    native = torch.full((1, 1, len(EDGES)), 2.0)
    assert model.error(native, x, x0, x1, model.instant(0.5, x)).item() == pytest.approx(math.exp(2.0))


def test_training_finds_the_posterior_mean_of_the_rates():
    torch.manual_seed(0)
    path, time = gm.GaussianPath(), 0.6
    atoms, weights = torch.tensor([[-0.8], [0.5]]), torch.tensor([0.3, 0.7])
    edges, cells = torch.linspace(-1.7, 1.7, 13), torch.linspace(-1.2, 1.2, 9)
    model = gm.predict.Rates(Table(cells, 13), path, edges)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for step in range(400):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * (1 - step / 400)
        x1 = atoms[torch.multinomial(weights, 4096, replacement=True)]
        optimizer.zero_grad()
        gm.matching_loss(model, x1, t=time, seed=step).backward()
        optimizer.step()
    # The rate of each bin, averaged over each cell with p_t.
    x = torch.linspace(-3, 3, 6001, dtype=F64)[:, None]
    exact = ExactRates(path, atoms, weights, edges)(x, torch.full((6001,), time, dtype=F64))[:, 0]
    rates = exact[:, :1].exp() * exact[:, 1:].softmax(-1)
    gaps = (x - time * atoms.double().T) / (1 - time)
    p = (weights * torch.exp(-(gaps**2) / 2)).sum(1)
    cell = torch.bucketize(x[:, 0].float(), cells)
    learned = model.network.values.detach()
    predicted = learned[:, :1].exp() * learned[:, 1:].softmax(-1)
    for which in range(len(cells) + 1):
        inside = cell == which
        expected = (p[inside, None] * rates[inside]).sum(0) / p[inside].sum()
        share = (p[inside].sum() / p.sum()).item()
        # Monte-Carlo error of the last few hundred thousand samples, of which this cell saw a share.
        assert (predicted[which] - expected).abs().max() < 0.012 / math.sqrt(share), which
    # A prediction without the kernel's shape, the same in each cell, is not it.
    flat = (p[:, None] * rates).sum(0) / p.sum()
    assert max((predicted[k] - flat).abs().max() for k in range(len(cells) + 1)) > 0.2


def test_training_on_the_mixture_path_finds_the_data():
    torch.manual_seed(0)
    path = ContinuousMixturePath(whole=False)
    edges = torch.tensor([-1.0, -0.6, 0.0, 0.4, 1.0])
    model = gm.predict.Rates(Table(torch.tensor([-0.85, -0.75, 0.45, 0.55]), 5), path, edges)
    atoms, weights = torch.tensor([[-0.8], [0.5]]), torch.tensor([0.3, 0.7])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for step in range(300):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * (1 - step / 300)
        x1 = atoms[torch.multinomial(weights, 2048, replacement=True)]
        optimizer.zero_grad()
        gm.matching_loss(model, x1, t=0.5, seed=step).backward()
        optimizer.step()
    prediction = model(torch.tensor([[0.0], [2.0], [-0.8], [0.5]]), 0.5)
    intensity, table = prediction.intensity[:, 0], prediction.rates.table()[:, 0]
    assert torch.allclose(intensity[:2], torch.ones(2), atol=0.03)  # away from the data: has not jumped
    assert torch.allclose(table[0] / table[0].sum(), torch.tensor([0.3, 0.0, 0.0, 0.7]), atol=0.03)
    # Beside an atom p_0 has mass 0.1 phi(z), which has not jumped, and the atom its weight.
    for row, z, weight in ((2, -0.8, 0.3), (3, 0.5, 0.7)):
        stays = 0.1 * math.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
        assert intensity[row].item() == pytest.approx(stays / (stays + weight), rel=0.15)


def test_readings_carry_the_hazard():
    model = gm.predict.Rates(nn.Identity(), gm.GaussianPath(), EDGES)
    x = torch.zeros(2, 3)
    native = torch.randn(2, 3, 35)
    prediction = model.prediction(x, model.instant(0.75, x), native)
    assert torch.allclose(prediction.rates.total(), native[..., 0].exp() / 0.25)
    assert torch.allclose(prediction.rates.table().sum(-1), prediction.rates.total())
    last = model.at(torch.tensor([0.9], dtype=F64), torch.ones(1, dtype=F64)).rows()[0]
    assert bool(model.prediction(x, last, native).rates.total().isfinite().all())


def test_vectors_may_come_flat():
    model = gm.predict.Rates(gm.nn.MLP(2, out=2 * 35), gm.GaussianPath(), EDGES)
    assert model(torch.zeros(5, 2), 0.3).native.shape == (5, 2, 35)
    model = gm.predict.Rates(gm.nn.MLP(2, out=35), gm.GaussianPath(), EDGES)
    with pytest.raises(ValueError, match=r"returned shape \(5, 35\) .* needs \(5, 2, 35\)"):
        model(torch.zeros(5, 2), 0.3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_network_is_read_in_float32(dtype: torch.dtype):
    class Half(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return torch.zeros(*x.shape, 35, dtype=dtype) + 0.5

    model = gm.predict.Rates(Half(), gm.GaussianPath(), EDGES)
    assert gm.matching_loss(model, torch.zeros(3, 2), seed=0).dtype == torch.float32
    assert model(torch.zeros(3, 2), 0.5).rates.total().dtype == torch.float32


# Bad input


def test_bins_must_cover_the_landings_and_not_only_the_data():
    with pytest.raises(ValueError, match=r"do not cover where jumps land: for data in \[-1, 1\].*\[-1.618, 1.618\]"):
        gm.predict.Rates(nn.Identity(), gm.GaussianPath(), torch.linspace(-1, 1, 65))
    with pytest.raises(ValueError, match="Widen the edges"):
        gm.predict.Rates(nn.Identity(), gm.GaussianPath(), torch.linspace(-1.7, 1.5, 65))
    gm.predict.Rates(nn.Identity(), gm.GaussianPath(), torch.linspace(-1.62, 1.62, 65))
    gm.predict.Rates(nn.Identity(), gm.GaussianPath(), torch.linspace(-1.01, 2.71, 65), data_range=(0.0, 2.0 + 1 / 3))
    with pytest.raises(ValueError, match="do not cover"):
        gm.predict.Rates(nn.Identity(), gm.GaussianPath(gm.schedules.Cosine()), torch.linspace(-1.7, 1.7, 65))


@pytest.mark.parametrize(
    "edges", [[0.0], [1.0, 0.0, -1.0], [-2.0, 0.0, 0.0, 2.0], [-2.0, math.inf], [[-2.0, 2.0]], [-2.0, math.nan, 2.0]]
)
def test_edges_increase(edges: list):
    with pytest.raises(ValueError, match="strictly increasing"):
        gm.predict.Rates(nn.Identity(), gm.GaussianPath(), edges)


@pytest.mark.parametrize("span", [(1.0, -1.0), (0.0, 0.0), (0.0, math.inf)])
def test_a_data_range_is_two_numbers(span: tuple[float, float]):
    with pytest.raises(ValueError, match="data_range must be two finite numbers"):
        gm.predict.Rates(nn.Identity(), gm.GaussianPath(), EDGES, data_range=span)


def test_data_outside_their_range_raise_instead_of_being_dropped():
    model = gm.predict.Rates(gm.nn.MLP(1, out=35), gm.GaussianPath(), EDGES)
    gm.matching_loss(model, torch.ones(64, 1), seed=0)
    with pytest.raises(ValueError, match=r"lands outside the bins .* the data value 2.5"):
        gm.matching_loss(model, torch.full((64, 1), 2.5), seed=0)
    coordinate = gm.predict.Rates(gm.nn.MLP(1, out=35), ContinuousMixturePath(whole=False), EDGES)
    with pytest.raises(ValueError, match="lands outside the bins"):
        gm.matching_loss(coordinate, torch.full((64, 1), 2.5), seed=0)


def test_a_jump_needs_rates():
    with pytest.raises(TypeError, match="Jump needs a model with rates"):
        Jump(gm.predict.Velocity(nn.Identity(), gm.GaussianPath()))
