"""Laws of the training time: their distributions, their strata, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

import genmatch as gm
from genmatch.times import LogitNormal, LogNormalNoise, TimeLaw, Uniform

CONDOT, EDM_PATH = gm.GaussianPath(), gm.GaussianPath(gm.schedules.EDM())


def condot_time_of_noise(t: np.ndarray) -> np.ndarray:
    """log(sigma / alpha) on CondOT."""
    return np.log((1 - t) / t)


LAWS = [
    (Uniform(), CONDOT, stats.uniform().cdf),
    (Uniform(low=0.2, high=0.7), CONDOT, stats.uniform(0.2, 0.5).cdf),
    (LogitNormal(), CONDOT, lambda t: stats.norm.cdf(np.log(t / (1 - t)))),
    (LogitNormal(mean=-0.5, std=1.4), CONDOT, lambda t: stats.norm(-0.5, 1.4).cdf(np.log(t / (1 - t)))),
    # More noise is an earlier time: P(T <= t) = P(log noise >= that of t).
    (LogNormalNoise(), CONDOT, lambda t: stats.norm(-1.2, 1.2).sf(condot_time_of_noise(t))),
    (LogNormalNoise(mean=0.3, std=0.8), CONDOT, lambda t: stats.norm(0.3, 0.8).sf(condot_time_of_noise(t))),
]


@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize(
    ("law", "path", "cdf"), LAWS, ids=lambda value: repr(value) if isinstance(value, TimeLaw) else ""
)
def test_the_law_is_the_one_it_says(law: TimeLaw, path, cdf, stratified: bool):
    t = replace(law, stratified=stratified).draw(path, gm.Draws(0, 4096))
    assert t.dtype == torch.float32
    assert t.shape == (4096,)
    result = stats.kstest(t.double().numpy(), cdf)
    if stratified:
        assert result.statistic < 1.01 / 4096 + 1e-6, "one time in each of 4,096 quantiles"
    else:
        assert result.pvalue > 1e-3
        assert result.statistic > 1 / 4096, "independent draws are never so even"


@pytest.mark.parametrize(
    ("law", "path", "cdf"), LAWS, ids=lambda value: repr(value) if isinstance(value, TimeLaw) else ""
)
def test_the_quantile_inverts_the_distribution_function(law: TimeLaw, path, cdf):
    u = torch.tensor([0.001, 0.1, 0.5, 0.8, 0.999])
    np.testing.assert_allclose(cdf(law.quantile(u, path).double().numpy()), u.numpy(), rtol=1e-4, atol=1e-6)


def test_every_law_is_tested():
    def below(cls: type) -> set[type]:
        return {cls, *(leaf for child in cls.__subclasses__() for leaf in below(child))}

    named = {type(law) for law, *_ in LAWS}
    missing = {cls for cls in below(TimeLaw) - {TimeLaw} if cls.__module__.startswith("genmatch")} - named
    assert not missing, f"add {missing} to LAWS with its distribution function"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("first", "count"), [(0, 64), (7, 64), (1000, 256), (2**24 - 3, 8), (5, 1), (3, 2)])
def test_a_power_of_two_has_one_time_in_each_stratum(first: int, count: int, seed: int):
    t = Uniform(stratified=True).draw(CONDOT, gm.Draws(seed, count, first_index=first))
    assert sorted((t * count).floor().int().tolist()) == list(range(count))
    plain = Uniform().draw(CONDOT, gm.Draws(seed, 64, first_index=first))
    assert len(set((plain * 64).floor().int().tolist())) < 60, "independent draws leave a third of the strata empty"


def test_any_batch_is_even():
    """Of B in a row, each of the largest power of two strata below B has one time or two; the gaps are small."""
    for count in (3, 48, 100, 1000):
        t = Uniform(stratified=True).draw(CONDOT, gm.Draws(1, count, first_index=17))
        strata = 2 ** int(math.log2(count))
        shares = torch.bincount((t * strata).floor().long(), minlength=strata)
        assert int(shares.min()) >= 1
        assert int(shares.max()) <= 2


def test_each_time_of_a_stratified_batch_keeps_the_law():
    """Over seeds the time of one sample is uniform, and that of its neighbour another."""
    first = torch.stack([Uniform(stratified=True).draw(CONDOT, gm.Draws(seed, 4)) for seed in range(1000)])
    for i in range(4):
        assert stats.kstest(first[:, i].numpy(), stats.uniform().cdf).pvalue > 1e-3
    steps = torch.cat([Uniform(stratified=True).draw(CONDOT, gm.Draws(0, 1, step=k)) for k in range(1000)])
    assert stats.kstest(steps.numpy(), stats.uniform().cdf).pvalue > 1e-3


@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize("law", [Uniform(), LogitNormal(), LogNormalNoise()], ids=repr)
def test_a_batch_has_the_same_times_in_parts(law: TimeLaw, stratified: bool):
    law = replace(law, stratified=stratified)
    whole = law.draw(CONDOT, gm.Draws(4, 24, step=3))
    for size in (1, 5, 24):
        parts = [law.draw(CONDOT, gm.Draws(4, min(size, 24 - i), first_index=i, step=3)) for i in range(0, 24, size)]
        assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(law.draw(CONDOT, gm.Draws(4, 24, step=4)), whole)
    assert not torch.equal(law.draw(CONDOT, gm.Draws(5, 24, step=3)), whole)


def test_log_normal_noise_is_a_log_normal_draw():
    """The noise levels of EDM's training set-up, against direct draws of exp(-1.2 + 1.2 z)."""
    t = LogNormalNoise().draw(EDM_PATH, gm.Draws(0, 4000))
    _, sigma = gm.schedules.EDM()(t.double())
    direct = np.exp(-1.2 + 1.2 * np.random.default_rng(0).standard_normal(4000))
    assert stats.ks_2samp(sigma.numpy(), direct).pvalue > 1e-3
    assert (
        stats.ks_2samp(sigma.numpy(), np.exp(1.2 + 1.2 * np.random.default_rng(0).standard_normal(4000))).pvalue < 1e-9
    )
    assert np.log(sigma.numpy()).mean() == pytest.approx(-1.2, abs=4 * 1.2 / 4000**0.5)


@pytest.mark.parametrize(
    "law",
    [Uniform(), Uniform(low=0.5), LogitNormal(std=20.0), LogitNormal(mean=9.0), LogNormalNoise(mean=-30.0)],
    ids=repr,
)
def test_times_stay_below_one(law: TimeLaw):
    """At the extremes of the uniforms, too, where float32 rounds up."""

    class Extreme(gm.Draws):
        def uniform(self, shape, dtype=torch.float32):
            return torch.tensor([0.0, 2.0**-24, 0.5, 1 - 2.0**-24])

    t = law.draw(CONDOT, Extreme(0, 4))
    assert ((t >= 0) & (t < 1)).all()
    assert (t.diff() >= 0).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Uniform(low=0.5, high=0.2), "0 <= low < high <= 1, got 0.5 and 0.2"),
        (lambda: Uniform(low=-0.1), "low must be at least 0 and finite, got -0.1"),
        (lambda: Uniform(high=1.5), "0 <= low < high <= 1, got 0.0 and 1.5"),
        (lambda: Uniform(low=math.nan), "low must be at least 0 and finite, got nan"),
        (lambda: Uniform(low="0"), "low must be a number, got str"),
        (lambda: Uniform(0.2), "stratified must be True or False, got 0.2"),
        (lambda: LogitNormal(std=0.0), "std must be above 0 and finite, got 0"),
        (lambda: LogitNormal(mean=math.nan), "mean must be a finite number, got nan"),
        (lambda: LogNormalNoise(mean="a"), "mean must be a finite number, got 'a'"),
        (lambda: LogNormalNoise(std=-1.0), "std must be above 0 and finite, got -1"),
        (lambda: LogNormalNoise(stratified=1), "stratified must be True or False, got 1"),
    ],
)
def test_bad_parameters_are_refused(make, message: str):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_noise_levels_need_a_gaussian_path():
    with pytest.raises(TypeError, match=r"noise levels are those of a Gaussian path, got MixturePath\(3\)"):
        LogNormalNoise().draw(gm.MixturePath(3), gm.Draws(0, 4))
