"""The mixture path on continuous states: whole states that jump, and what is learned of them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import genmatch as gm
from genmatch.generators import Jump, MixtureJump
from genmatch.paths import ContinuousMixturePath
from genmatch.predict import Survival
from genmatch.quadrature import integrate

F64 = torch.float64
MEAN, STD = torch.tensor([1.0, -0.5], dtype=F64), 0.6


def log_normal(x: Tensor, mean: Tensor | float, std: float) -> Tensor:
    return -(((x - mean) / std) ** 2).sum(-1) / 2 - x.shape[-1] * (math.log(std) + 0.5 * math.log(2 * math.pi))


class LogRatio(nn.Module):
    """log p_1/p_0 for data N(MEAN, STD^2) and standard normal noise."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return log_normal(x, MEAN[: x.shape[1]].to(x), STD) - log_normal(x, 0.0, 1.0)


def data(count: int, dim: int = 2, seed: int = 0) -> Tensor:
    noise = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))
    return (MEAN[:dim] + STD * noise).float()


class Normal:
    """The data's law, to draw from."""

    def draw(self, shape, draws: gm.Draws) -> Tensor:
        return (MEAN[: shape[1]] + STD * draws.normal(shape)).float()


@pytest.mark.parametrize("schedule", [gm.schedules.CondOT(), gm.schedules.Cosine()], ids=repr)
def test_the_forward_equation(schedule: gm.Schedule):
    jump = MixtureJump(Survival(LogRatio(), ContinuousMixturePath(schedule)), Normal())
    x = torch.linspace(-9, 9, 2001, dtype=F64)[:, None]
    source, target = log_normal(x, 0.0, 1.0).exp(), log_normal(x, MEAN[:1], STD).exp()
    for t in (0.1, 0.5, 0.9):
        instant = jump.path.instant(t, x)
        kappa_dot = schedule.at(torch.tensor(t, dtype=F64)).alpha_dot
        law = (1 - instant.kappa) * source + instant.kappa * target
        rate = jump(x, t).rates.terms[0].total[:, 0]
        gain, loss = (rate * law).sum() / target.sum() * target, rate * law
        change = kappa_dot * (target - source)
        assert (gain - loss - change).abs().max() < 1e-9 * change.abs().max()
        # Without the probability of not having jumped the rate is the hazard for all, and mass is lost.
        assert (instant.hazard * law - loss).abs().max() > 0.1 * change.abs().max()


@pytest.mark.parametrize("stop", [0.7, 1.0])
def test_a_step_is_survived_with_the_exact_probability(stop: float):
    model = Survival(LogRatio(), ContinuousMixturePath())
    x, start = torch.tensor([[0.3, 0.1], [1.0, -0.5], [-2.0, 1.0], [5.0, 5.0]], dtype=F64), 0.2
    instant = model.at(torch.tensor([start], dtype=F64), torch.tensor([stop], dtype=F64)).rows()[0]
    rate = model.prediction(x, instant, model.native(x, instant)).rate
    source, target = log_normal(x, 0.0, 1.0).exp(), log_normal(x, MEAN, STD).exp()
    ends = torch.full((4,), start, dtype=F64), torch.full((4,), stop, dtype=F64)
    p, q = source[:, None], target[:, None]
    expected = integrate(lambda k: p / ((1 - k) * p + k * q), *ends) / (stop - start)
    assert torch.allclose(rate[:3].double(), expected[:3], rtol=1e-5)
    if stop == 1.0:  # far from all data: a jump is as good as certain
        assert rate[3] > 10
    # As the rate at one time it is that of the posterior.
    now = model(x, start)
    assert torch.allclose(now.survival, (1 - start) * source / ((1 - start) * source + start * target))
    assert torch.allclose(now.rate, now.survival / (1 - start))


@pytest.mark.parametrize(("steps", "tolerance"), [(50, 0.0), (5, 0.06)])
def test_samples_have_the_marginal_law(steps: int, tolerance: float):
    jump = MixtureJump(Survival(LogRatio(), ContinuousMixturePath()), Normal())
    for stop in (0.5, 1.0):
        x = gm.sample(jump, (20_000, 2), steps=steps, stop=stop, seed=1).double()
        mean = stop * MEAN
        second = (1 - stop) + stop * (STD**2 + MEAN**2)
        assert torch.allclose(x.mean(0), mean, atol=4 / math.sqrt(20_000) + tolerance)
        assert torch.allclose(x.square().mean(0), second, atol=4 * 2 / math.sqrt(20_000) + tolerance)


def test_states_of_a_sphere_jump_as_a_whole():
    # Uniform noise on the sphere, data uniform on the upper half: the log-ratio is log 2, or minus infinity below.
    sphere = gm.spaces.Sphere(2)
    uniform = gm.paths.UniformPoints(sphere)
    path = ContinuousMixturePath(source=uniform, space=sphere)

    class Upper(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return torch.where(x[:, 2] > 0, math.log(2), -math.inf)

    points = uniform.draw((4000, 3), gm.Draws(5, 4000))
    upper = torch.cat([points[:, :2], points[:, 2:].abs()], 1)
    jump = MixtureJump(Survival(Upper(), path), upper)
    for stop in (0.5, 1.0):
        x = gm.sample(jump, (8000, 3), steps=20, stop=stop, seed=0)
        assert torch.allclose(x.norm(dim=1), torch.ones(8000), atol=1e-5)
        assert (x[:, 2] > 0).double().mean().item() == pytest.approx((1 + stop) / 2, abs=4 * 0.5 / math.sqrt(8000))
        assert x[:, 2].mean().item() == pytest.approx(stop / 2, abs=4 * 0.6 / math.sqrt(8000))


def test_a_state_jumps_as_a_whole_or_by_its_coordinates():
    x0, x1 = torch.zeros(4000, 3), torch.ones(4000, 3)
    whole = ContinuousMixturePath().sample(x0, x1, 0.3, gm.Draws(0, 4000))
    assert bool((whole == whole[:, :1]).all())
    single = ContinuousMixturePath(whole=False).sample(x0, x1, 0.3, gm.Draws(0, 4000))
    assert not bool((single == single[:, :1]).all())
    for x in (whole, single):
        assert x.mean().item() == pytest.approx(0.3, abs=4 * 0.46 / math.sqrt(4000))


def test_coordinates_jump_into_their_bins():
    # Atoms in two dimensions that are correlated: each coordinate sees the whole state.
    atoms = torch.tensor([[-0.75, -0.25], [0.25, 0.75]])
    edges = torch.linspace(-1, 1, 5)

    class Exact(nn.Module):
        """The posterior rates: which atoms are possible, and which coordinate has not jumped."""

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            home = torch.bucketize(atoms, edges[1:-1])
            equal = (
                torch.stack([torch.bucketize(x.contiguous(), edges[1:-1]) == h for h in home], 1)
                & (x.abs() <= 1)[:, None]
            )
            inside = edges.diff()[0]
            # Density of a coordinate in a bin of its atom: data, spread over the bin, or noise.
            noise = torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
            time = t[:, None, None]
            stays = (1 - time) * noise[:, None].expand(-1, 2, -1)
            either = stays + time * equal / inside
            posterior = either.prod(2, keepdim=True)
            posterior = posterior / posterior.sum(1, keepdim=True)
            rates = posterior * stays / either  # (B, atom, coordinate)
            table = torch.zeros(len(x), 2, 4)
            for j in range(2):
                for i in range(2):
                    table[:, i, home[j, i]] += rates[:, j, i]
            total = table.sum(-1, keepdim=True)
            return torch.cat([total.log(), (table / total).clamp(min=1e-30).log()], -1)

    path = ContinuousMixturePath(whole=False)
    jump = Jump(gm.predict.Rates(Exact(), path, edges))
    x = gm.sample(jump, (4000, 2), steps=100, seed=0)
    bins = torch.bucketize(x, edges[1:-1])
    joint = torch.bincount(bins[:, 0] * 4 + bins[:, 1], minlength=16).double() / 4000
    assert joint[0 * 4 + 1].item() == pytest.approx(0.5, abs=0.04)
    assert joint[2 * 4 + 3].item() == pytest.approx(0.5, abs=0.04)


def test_training_finds_the_log_ratio():
    torch.manual_seed(0)

    class Quadratic(nn.Module):  # what a log-ratio of normals is
        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.Parameter(torch.zeros(5))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return torch.cat([torch.ones(len(x), 1), x, x**2], 1) @ self.weights

    model = Survival(Quadratic(), ContinuousMixturePath())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for step in range(400):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * (1 - step / 400)
        optimizer.zero_grad()
        gm.matching_loss(model, data(2048, seed=step), seed=step).backward()
        optimizer.step()
    x = data(200, seed=999)
    found, expected = model.network(x, torch.zeros(200)), LogRatio()(x, torch.zeros(200))
    assert (found - expected).abs().mean() < 0.05
    assert (expected - expected.mean()).abs().mean() > 0.5


def test_the_loss_is_finite_at_both_ends():
    model = Survival(LogRatio(), ContinuousMixturePath())
    for t in (0.0, 1.0):
        loss = gm.matching_loss(model, data(64), t=t, seed=0, reduction="none")
        assert bool(loss.isfinite().all())
        assert loss.max() < 1e-4  # whether it has jumped is known there


def test_given_pairs_and_other_sources():
    path = ContinuousMixturePath(source=data(10), coupling=gm.couplings.Given())
    assert path != ContinuousMixturePath(source=data(10))
    assert "Given" in repr(path)
    with pytest.raises(ValueError, match="source and data are dependent"):
        MixtureJump(Survival(LogRatio(), path), Normal())


# Bad input


def test_what_cannot_be_is_refused():
    path = ContinuousMixturePath()
    with pytest.raises(ValueError, match=r"gm.MixturePath is the mixture path on tokens"):
        ContinuousMixturePath(space=gm.spaces.Tokens(3))
    with pytest.raises(ValueError, match="bound to one another"):
        ContinuousMixturePath(space=gm.spaces.Sphere(2), whole=False)
    with pytest.raises(ValueError, match="kappa must run from 0 to 1"):
        ContinuousMixturePath(gm.schedules.VP())
    with pytest.raises(TypeError, match="space must be a genmatch Space"):
        ContinuousMixturePath(space="R^d")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="schedule must be"):
        ContinuousMixturePath("linear")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="each coordinate jumps by itself"):
        Survival(LogRatio(), ContinuousMixturePath(whole=False))
    with pytest.raises(TypeError, match="needs a ContinuousMixturePath"):
        Survival(LogRatio(), gm.GaussianPath())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="MixtureJump needs a model with a survival"):
        MixtureJump(gm.predict.Velocity(nn.Identity(), gm.GaussianPath()), Normal())
    with pytest.raises(TypeError, match="data must be a tensor"):
        MixtureJump(Survival(LogRatio(), path), 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"returned shape \(5, 2\) for 5 states"):
        Survival(nn.Linear(2, 2), path).checked(torch.zeros(5, 2), torch.zeros(5, 2))


def test_a_shape_late_on_the_path_is_refused():
    jump = MixtureJump(Survival(LogRatio(), ContinuousMixturePath()), data(10))
    with pytest.raises(ValueError, match=r"is not noise at t = 0\.5"):
        gm.sample(jump, (3, 2), start=0.5, stop=0.9, seed=0)
