"""The mixture world against torch.distributions, numerical integration and autograd."""

from __future__ import annotations

import math

import pytest
import torch
from closed_forms import F64, Mixture, fits, mixture, name
from scipy import stats
from scipy.integrate import quad
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal, Normal

import genmatch as gm
from genmatch.random import Draws
from genmatch.schedules import DDPM, EDM, VP, CondOT, Cosine
from genmatch.worlds import GaussianMixture

SCHEDULES = [CondOT(), CondOT(0.05), Cosine(), VP(), DDPM(), EDM(0.1, 5.0)]
RARE = 1e-4


def world_and_truth() -> tuple[GaussianMixture, Mixture]:
    truth = mixture()
    return GaussianMixture(truth.means, truth.covariances, truth.weights), truth


def points(n: int = 6) -> torch.Tensor:
    return 1.5 * Draws(1, n).normal((n, 2), F64)


# The law of the data


def test_density_of_the_data():
    world, truth = world_and_truth()
    law = MixtureSameFamily(Categorical(truth.weights), MultivariateNormal(truth.means, truth.covariances))
    torch.testing.assert_close(world.log_prob(points()), law.log_prob(points()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
@pytest.mark.parametrize("t", [0.0, 0.3, 0.9, 1.0])
def test_density_along_the_path(schedule, t):
    world, truth = world_and_truth()
    alpha, sigma = (float(v) for v in schedule(torch.tensor(t, dtype=F64)))
    got = world.log_prob(points(), t, schedule)
    torch.testing.assert_close(got, truth.log_prob(points(), alpha, sigma), rtol=1e-11, atol=1e-11)
    assert not torch.allclose(got, truth.log_prob(points(), alpha, sigma + 0.01), rtol=1e-6)


def test_weights_keep_their_digits():
    # As float32 numbers .3 and .7 would be right to 1e-8 only.
    world = GaussianMixture(torch.zeros(2, 1), 1.0, [0.3, 0.7])
    assert world.weights.tolist() == [0.3, 0.7]
    assert GaussianMixture(torch.zeros(2, 1), 1.0, [3, 7]).weights.tolist() == pytest.approx([0.3, 0.7], rel=1e-15)
    assert GaussianMixture(torch.zeros(3, 1), 1.0).weights.tolist() == pytest.approx([1 / 3] * 3, rel=1e-15)


def test_moments():
    world, truth = world_and_truth()
    assert world.dim == 2
    torch.testing.assert_close(world.mean, (truth.weights[:, None] * truth.means).sum(0))
    second = sum(
        w * (c + torch.outer(m, m)) for w, m, c in zip(truth.weights, truth.means, truth.covariances, strict=True)
    )
    torch.testing.assert_close(world.covariance, second - torch.outer(world.mean, world.mean))


def test_samples_follow_the_density():
    world = GaussianMixture(torch.tensor([[-2.0], [1.0]]), torch.tensor([[[0.25]], [[1.0]]]), [0.3, 0.7])
    x = world.sample(20_000, seed=3)
    assert x.dtype == torch.float32

    def cdf(v):
        return 0.3 * stats.norm.cdf(v, -2, 0.5) + 0.7 * stats.norm.cdf(v, 1, 1)

    assert stats.kstest(x[:, 0].double().numpy(), cdf).pvalue > RARE
    assert stats.kstest(1.05 * x[:, 0].double().numpy(), cdf).pvalue < RARE


def test_samples_have_the_covariances():
    truth, n = mixture(), 40_000
    for k in range(2):
        x = GaussianMixture(truth.means[k : k + 1], truth.covariances[k]).sample(n, seed=4).double()
        law = MultivariateNormal(truth.means[k], truth.covariances[k])
        white = torch.linalg.solve_triangular(law.scale_tril, (x - truth.means[k]).T, upper=False)
        assert stats.kstest(white.flatten().numpy(), "norm").pvalue > RARE
        assert abs(float(torch.corrcoef(white)[0, 1])) < 4.5 / n**0.5


def test_samples_of_an_empirical_law_are_its_points():
    data = torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]])
    x = GaussianMixture(data, 0.0, [1, 1, 2]).sample(8_000, seed=0)
    assert fits(torch.bincount((x[:, 0] / 2).long(), minlength=3), torch.tensor([1.0, 1.0, 2.0]))
    assert bool((x[:, 1] == x[:, 0] + 1).all())


def test_samples_depend_on_seed_and_index_alone():
    world, _ = world_and_truth()
    whole = world.sample(20, seed=5)
    assert torch.equal(torch.cat([world.sample(7, seed=5), world.sample(13, seed=5, first_index=7)]), whole)
    assert not torch.equal(world.sample(20, seed=6), whole)
    assert torch.equal(world.draw((20, 2), Draws(5, 20)), whole)
    assert torch.equal(gm.GaussianPath(source=world).source.draw((20, 2), Draws(5, 20)), whole)


def test_forms_of_covariances():
    means = torch.tensor([[0.0, 1.0], [2.0, -1.0]])
    shared = torch.tensor([[0.5, 0.1], [0.1, 0.3]])
    a = GaussianMixture(means, shared).log_prob(points())
    torch.testing.assert_close(a, GaussianMixture(means, shared.expand(2, 2, 2)).log_prob(points()))
    b = GaussianMixture(means, 0.5).log_prob(points())
    torch.testing.assert_close(b, GaussianMixture(means, 0.5 * torch.eye(2)).log_prob(points()))


# Posterior means, scores


@pytest.mark.parametrize("t", [0.05, 0.4, 0.9])
def test_posterior_mean_by_integration(t: float):
    world = GaussianMixture(torch.tensor([[-1.0], [1.5]]), torch.tensor([[[0.1]], [[0.4]]]), [0.4, 0.6])
    alpha, sigma = t, 1 - t

    def joint(x1: float, x: float) -> float:
        density = 0.4 * stats.norm.pdf(x1, -1, 0.1**0.5) + 0.6 * stats.norm.pdf(x1, 1.5, 0.4**0.5)
        return density * stats.norm.pdf(x, alpha * x1, sigma)

    for x in (-1.2, 0.1, 0.8):
        spots = sorted([-1.0, 1.5, x / alpha])
        options = {"limit": 400, "epsabs": 1e-13, "epsrel": 1e-11}
        points = [p for p in spots if -6 < p < 7]
        weight = quad(joint, -6, 7, args=(x,), points=points, **options)[0]
        mean = quad(lambda x1, x=x: x1 * joint(x1, x), -6, 7, points=points, **options)[0] / weight
        got = world.posterior_mean(torch.tensor([[x]], dtype=F64), torch.tensor(alpha), torch.tensor(sigma))
        assert float(got) == pytest.approx(mean, rel=1e-6)
        assert abs(float(got) - x / alpha) > 1e-3  # it shrinks towards the components


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_readings_of_the_exact_predictor(schedule):
    world, truth = world_and_truth()
    model = world.predictor(gm.GaussianPath(schedule))
    for t in (0.1, 0.6, 0.95):
        expected = truth.truth(points(), schedule, t)
        prediction = model(points(), t)
        for reading, value in zip(expected._fields, expected, strict=True):
            scale = float(value.abs().max())
            torch.testing.assert_close(getattr(prediction, reading), value, rtol=1e-10, atol=1e-10 * max(1.0, scale))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_the_score_is_the_gradient_of_the_log_density(schedule):
    world, _ = world_and_truth()
    x = points().requires_grad_()
    (score,) = torch.autograd.grad(world.log_prob(x, 0.7, schedule).sum(), x)
    torch.testing.assert_close(world.predictor(gm.GaussianPath(schedule))(points(), 0.7).score, score)


def test_an_empirical_law_has_memorised_its_data():
    data = torch.tensor([[0.0, 1.0], [2.0, -1.0], [4.0, 0.5]], dtype=F64)
    world, x = GaussianMixture(data, 0.0), points()
    for t in (0.2, 0.9, 0.999):
        weights = (-((x[:, None] - t * data) ** 2).sum(-1) / (2 * (1 - t) ** 2)).softmax(-1)
        torch.testing.assert_close(world.predictor(gm.GaussianPath())(x, t).data, weights @ data)


def test_end_points():
    world, truth = world_and_truth()
    memorised = GaussianMixture(truth.means, 0.0)
    for each in (world, memorised):
        model = each.predictor(gm.GaussianPath())
        at_noise = model(points(), 0.0)
        torch.testing.assert_close(at_noise.data, each.mean.expand(6, 2))
        torch.testing.assert_close(at_noise.velocity, each.mean - points())
        torch.testing.assert_close(at_noise.score, -points())
        # At the data, the state is the data: also where the law is a set of points.
        for t in (1.0, torch.ones(6, dtype=F64)):
            assert torch.equal(model(points(), t).data, points())
        mixed = model(points(), torch.tensor([0.0, 0.5, 1.0, 0.5, 1.0, 0.0], dtype=F64)).data
        assert torch.equal(mixed[[2, 4]], points()[[2, 4]])
        torch.testing.assert_close(mixed[[0, 5]], each.mean.expand(2, 2))


def test_single_precision_and_other_times():
    world, truth = world_and_truth()
    x = points().float()
    t = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9, 0.2])
    got = world.predictor(gm.GaussianPath())(x, t).data
    assert got.dtype == torch.float32
    rows = [truth.data(points()[i : i + 1], float(t[i]), 1 - float(t[i])) for i in range(6)]
    torch.testing.assert_close(got.double(), torch.cat(rows), rtol=1e-4, atol=1e-5)


def test_one_component_is_a_gaussian():
    mean, deviation = torch.tensor([[0.7]], dtype=F64), 0.6
    world = GaussianMixture(mean, deviation**2)
    x = torch.linspace(-2, 2, 5, dtype=F64)[:, None]
    torch.testing.assert_close(world.log_prob(x), Normal(0.7, deviation).log_prob(x)[:, 0])
    # Bishop's formula: X1 = m + alpha c^2 (x - alpha m) / (alpha^2 c^2 + sigma^2).
    got = world.predictor(gm.GaussianPath())(x, 0.25).data
    torch.testing.assert_close(got, 0.7 + 0.25 * 0.36 * (x - 0.25 * 0.7) / (0.25**2 * 0.36 + 0.75**2))


# Bad input

PLANE = torch.zeros(2, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: GaussianMixture(torch.zeros(3), 1.0), r"means must have shape \(K, d\), got \(3,\)"),
        (lambda: GaussianMixture(torch.zeros(0, 2), 1.0), "means must have shape"),
        (lambda: GaussianMixture(PLANE, torch.ones(3, 3)), r"a number, \(2, 2\) or \(2, 2, 2\), got \(3, 3\)"),
        (lambda: GaussianMixture(PLANE, -1.0), "positive semi-definite, got an eigenvalue -1"),
        (lambda: GaussianMixture(PLANE, torch.tensor([[1.0, 2.0], [2.0, 1.0]])), "positive semi-definite"),
        (lambda: GaussianMixture(PLANE, torch.tensor([[1.0, 0.5], [0.0, 1.0]])), "covariances must be symmetric"),
        (lambda: GaussianMixture(PLANE * math.nan, 1.0), "must be finite"),
        (lambda: GaussianMixture(PLANE, math.inf), "must be finite"),
        (lambda: GaussianMixture(PLANE, 1.0, [1.0]), "weights must be 2 positive numbers, got"),
        (lambda: GaussianMixture(PLANE, 1.0, [1.0, -1.0]), "weights must be 2 positive numbers"),
        (lambda: GaussianMixture(PLANE, 1.0).log_prob(torch.zeros(3, 3)), r"x must have shape \(B, 2\), got \(3, 3\)"),
        (lambda: GaussianMixture(PLANE, 1.0).log_prob(PLANE, 0.5), "needs the schedule"),
        (lambda: GaussianMixture(PLANE, 1.0).log_prob(PLANE, 1.5, CondOT()), r"t must be in \[0, 1\], got 1.5"),
        (lambda: GaussianMixture(PLANE, 0.0).log_prob(PLANE), "has no density"),
        (
            lambda: GaussianMixture(PLANE, torch.diag(torch.tensor([1.0, 0.0]))).log_prob(PLANE, 1.0, CondOT()),
            "has no density",
        ),
        (lambda: GaussianMixture(PLANE, 1.0).draw((4, 3), Draws(0, 4)), r"lives in dimension 2, .* shape \(3,\)"),
        (
            lambda: GaussianMixture(PLANE, 1.0).predictor(gm.GaussianPath(coupling=gm.couplings.OT())),
            "closed forms need the standard normal source and independent coupling",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
