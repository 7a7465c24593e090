"""The minimal jump of a known density: exact over steps of any length."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import genmatch as gm
from genmatch.generators import MinimalJump
from genmatch.predict import Density

F64 = torch.float64
EDGES = torch.linspace(-5, 6, 441, dtype=F64)


def log_two_bumps(x: Tensor, t: Tensor) -> Tensor:
    """One bump that moves, and one whose weight grows: mass has to cross a gap."""
    x = x.squeeze(-1)
    first = torch.log(1 - 0.6 * t) - (x + 2 - t) ** 2 / 0.5 - 0.5 * math.log(math.pi * 0.5)
    second = torch.log(0.6 * t + 1e-3) - (x - 3) ** 2 / 0.18 - 0.5 * math.log(math.pi * 0.18)
    return torch.logaddexp(first, second) - math.log(1.001)


def model(log_density=log_two_bumps) -> Density:
    return Density(log_density, gm.GaussianPath())


def residual(jump: MinimalJump, x: Tensor, volumes: Tensor, t: float) -> float:
    time = torch.tensor(t, dtype=F64)
    density = jump.model.log_density
    law, change = torch.func.jvp(lambda s: density(x, s).exp(), (time,), (torch.ones_like(time),))
    triplet, worst = jump(x, t), 0.0
    for f in (lambda y: torch.sin(y.flatten(1).sum(1)), lambda y: y.flatten(1).square().sum(1)):
        moved, expected = (volumes * law * triplet.apply(f, x)).sum(), (volumes * change * f(x)).sum()
        worst = max(worst, ((moved - expected) / (volumes * law * triplet.apply(f, x).abs()).sum()).abs().item())
    return worst


def test_the_forward_equation_on_points():
    x, volumes = ((EDGES[1:] + EDGES[:-1]) / 2)[:, None], EDGES.diff()
    jump = MinimalJump(model(), points=x, volumes=volumes)
    for t in (0.1, 0.5, 0.9):
        assert residual(jump, x, volumes, t) < 1e-7  # the tail beyond the grid
    # Volumes are the quadrature's: without them, on an uneven grid, the landings are wrong.
    u = torch.linspace(-2.4, 2.55, 400, dtype=F64)
    points, widths = u.sinh()[:, None], u.cosh() * (u[1] - u[0])
    assert residual(MinimalJump(model(), points=points, volumes=widths), points, widths, 0.5) < 1e-6
    assert residual(MinimalJump(model(), points=points), points, widths, 0.5) > 0.05


def test_the_forward_equation_to_the_width_of_the_bins():
    x = torch.linspace(-5, 6, 1101, dtype=F64)[:, None]
    volumes = torch.full((1101,), 0.01, dtype=F64)
    found = [residual(MinimalJump(model(), torch.linspace(-5, 6, k + 1)), x, volumes, 0.5) for k in (44, 88)]
    assert found[1] < 1e-3
    assert found[0] / found[1] > 3.5


def test_the_expected_rate_is_the_least():
    x = ((EDGES[1:] + EDGES[:-1]) / 2)[:, None]
    time = torch.tensor(0.5, dtype=F64)
    law, change = torch.func.jvp(lambda s: log_two_bumps(x, s).exp(), (time,), (torch.ones_like(time),))
    rate = MinimalJump(model(), EDGES)(x, 0.5).rates.terms[0].total[:, 0]
    assert torch.allclose((law * rate).sum(), change.abs().sum() / 2, rtol=1e-6)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_step_of_any_length_is_exact(steps: int):
    count = 40_000
    start, stop = 0.1, 0.9
    x = ((EDGES[1:] + EDGES[:-1]) / 2)[:, None]
    law = {t: log_two_bumps(x, torch.tensor(t, dtype=F64)).exp() * EDGES.diff() for t in (start, stop)}
    begin = x[torch.multinomial(law[start], count, replacement=True, generator=torch.Generator().manual_seed(0))]
    end = gm.sample(MinimalJump(model(), EDGES), begin, steps=steps, start=start, stop=stop, seed=0)
    cells = torch.tensor([-3.0, -2.0, -1.0, 0.0, 2.5, 3.0, 3.5], dtype=F64)
    found = torch.bincount(torch.bucketize(end[:, 0], cells), minlength=8).double() / count
    expected = torch.zeros(8, dtype=F64).index_add(0, torch.bucketize(x[:, 0], cells), law[stop])
    assert (found - expected).abs().max() < 4 * math.sqrt(0.25 / count)
    # With the rate at the beginning frozen it is not.
    frozen = MinimalJump(model(), EDGES)(begin, start).rates.terms[0]
    stays = torch.exp(-(stop - start) * frozen.total[:, 0]).mean()
    assert abs(stays.item() - (end == begin).double().mean().item()) > 0.02


def test_the_conditional_law_of_a_gaussian_path_in_long_steps():
    # A coordinate survives from t to s with probability p_s/p_t where its density falls all the while.
    z, count = 1.3, 40_000

    def log_conditional(x: Tensor, t: Tensor) -> Tensor:
        return -0.5 * ((x.squeeze(-1) - t * z) / (1 - t)) ** 2 - torch.log(1 - t)

    jump = MinimalJump(model(log_conditional), torch.linspace(-5, 5, 1001, dtype=F64))
    x = gm.sample(jump, (count, 1), times=[0.0, 0.5, 0.9], seed=0, dtype=F64)
    assert x.mean().item() == pytest.approx(0.9 * z, abs=4 * 0.1 / math.sqrt(count))
    assert x.std().item() == pytest.approx(0.1, abs=4 * 0.1 / math.sqrt(2 * count) + 2e-4)
    # A rate that is frozen at the beginning of such a step is far off.
    kernel = gm.paths.GaussianJumpKernel(gm.GaussianPath())
    start = torch.full((1,), 0.3, dtype=F64)
    ends = [torch.exp(log_conditional(start[:, None], torch.tensor(t, dtype=F64))) for t in (0.5, 0.9)]
    frozen = torch.exp(-0.4 * kernel.rate(start, torch.full((1,), z, dtype=F64), 0.5))
    assert (ends[1] / ends[0]).item() < 1e-10
    assert frozen.item() > 0.3


def test_points_in_two_dimensions_and_times_of_each_sample():
    def log_density(x: Tensor, t: Tensor) -> Tensor:
        centre = torch.stack([t, -t], -1) if t.ndim else torch.stack([t, -t])
        return -2 * (x - centre).square().sum(-1)

    axis = torch.linspace(-2, 3, 26)
    points = torch.cartesian_prod(axis, axis - 1)
    jump = MinimalJump(Density(log_density, gm.GaussianPath()), points=points)
    x = torch.randn(5, 2)
    times = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])
    every = jump(x, times).rates.terms[0]
    for i, t in enumerate(times.tolist()):
        one = jump(x[i : i + 1], t).rates.terms[0]
        assert torch.allclose(every.total[i : i + 1], one.total, atol=1e-5)
        assert torch.allclose(
            every.where.logits[i].double().softmax(-1), one.where.logits[0].double().softmax(-1), atol=1e-5
        )
    start = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(0)) / 2
    end = gm.sample(jump, start, steps=4, start=0.0, stop=0.75, seed=0)
    assert torch.allclose(end.mean(0), torch.tensor([0.75, -0.75]), atol=0.02)
    assert torch.allclose(end.std(0), torch.full((2,), 0.5), atol=0.02)


def test_points_on_a_sphere():
    # From the uniform law to a von Mises-Fisher law of concentration 3, in one step.
    def log_density(x: Tensor, t: Tensor) -> Tensor:
        concentration = 3 * t + 1e-3
        return concentration * x[:, 2] + torch.log(concentration / torch.sinh(concentration))

    sphere, count, grid = gm.spaces.Sphere(2), 20_000, 2000
    k = torch.arange(grid, dtype=F64) + 0.5
    z, turn = 1 - 2 * k / grid, math.pi * (1 + math.sqrt(5)) * k  # a spiral of points that stand for equal areas
    radius = (1 - z**2).sqrt()
    points = torch.stack([radius * turn.cos(), radius * turn.sin(), z], 1)
    path = gm.paths.ContinuousMixturePath(source=gm.paths.UniformPoints(sphere), space=sphere)
    jump = MinimalJump(Density(log_density, path), points=points)
    x = gm.sample(jump, (count, 3), times=[0.0, 0.99], seed=0)
    concentration = 3 * 0.99 + 1e-3
    expected = 1 / math.tanh(concentration) - 1 / concentration
    assert torch.allclose(x.norm(dim=1), torch.ones(count), atol=1e-5)
    assert x[:, 2].mean().item() == pytest.approx(expected, abs=4 * 0.4 / math.sqrt(count))
    assert x[:, :2].mean(0).abs().max() < 4 * 0.6 / math.sqrt(count)


def test_a_density_that_stands_still_does_not_jump():
    jump = MinimalJump(model(lambda x, t: -(x.squeeze(-1) ** 2) + 0 * t), torch.linspace(-3, 3, 31))
    x = torch.randn(50, 1)
    assert torch.equal(gm.sample(jump, x, steps=3, start=0.2, stop=0.8, seed=0), x)
    assert torch.equal(jump(x, 0.5).apply(lambda y: y[:, 0], x), torch.zeros(50))


# Bad input


def test_a_density_must_be_positive_where_jumps_land():
    def cut(x: Tensor, t: Tensor) -> Tensor:
        x = x.squeeze(-1)
        return torch.where(x > 0, -x * (1 + t), -math.inf)

    with pytest.raises(ValueError, match="density is 0 at 10 of 20 states"):
        MinimalJump(model(cut), torch.linspace(-1, 1, 21))

    def broken(x: Tensor, t: Tensor) -> Tensor:
        return torch.where(x.squeeze(-1) > 0.5, math.nan, -x.squeeze(-1) * t)

    with pytest.raises(ValueError, match="must be positive and finite"):
        MinimalJump(model(broken), torch.linspace(-1, 1, 21))

    def steep(x: Tensor, t: Tensor) -> Tensor:  # finite, with a growth that is not
        return torch.sqrt((t - 0.5).clamp(min=0) * torch.ones_like(x.squeeze(-1)))

    with pytest.raises(ValueError, match=r"growth is (nan|inf) at 20 of 20 landing points"):
        MinimalJump(model(steep), torch.linspace(-1, 1, 21))


def test_what_jumps_land_on_is_said_once():
    with pytest.raises(ValueError, match="one of the two"):
        MinimalJump(model())
    with pytest.raises(ValueError, match="one of the two"):
        MinimalJump(model(), EDGES, points=EDGES[:, None])
    with pytest.raises(ValueError, match="strictly increasing"):
        MinimalJump(model(), EDGES.flip(0))
    with pytest.raises(ValueError, match="those of bins are their widths"):
        MinimalJump(model(), EDGES, volumes=EDGES.diff())
    with pytest.raises(ValueError, match="441 positive numbers"):
        MinimalJump(model(), points=EDGES[:, None], volumes=torch.zeros(441))
    with pytest.raises(ValueError, match=r"edges are for states \(B, 1\)"):
        MinimalJump(model(lambda x, t: -x.square().flatten(1).sum(1) * t), EDGES)(torch.zeros(2, 2), 0.5)
    velocity = gm.predict.Velocity(torch.nn.Identity(), gm.GaussianPath())
    with pytest.raises(TypeError, match="MinimalJump needs a model with a growth"):
        MinimalJump(velocity, EDGES)  # type: ignore[arg-type]
