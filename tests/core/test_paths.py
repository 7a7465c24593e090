"""Paths: the law of their states, times along the batch, sources, pairing, and equality."""

from __future__ import annotations

import math

import pytest
import torch
from closed_forms import F64, SCHEDULES, column, fits, mixture, name, subclasses
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import covered
import genmatch as gm
from covered import proved
from genmatch.paths import Empirical, GaussianPath, Masked, MixturePath, Normal, Path, UniformTokens
from genmatch.random import Draws
from genmatch.schedules import DDPM, EDM, VE, VP, CondOT, Cosine, Polynomial

RARE = 1e-4
PATHS = [
    GaussianPath(),
    GaussianPath(Cosine()),
    GaussianPath(VP(), noise=0.1),
    GaussianPath(coupling=gm.couplings.OT()),
    MixturePath(5),
    MixturePath(5, mask=5, schedule=Polynomial(2.0)),
    MixturePath(5, mask=7, padding=6),
]
every = pytest.mark.parametrize("path", PATHS, ids=repr)


def states(path: Path, batch: int, *shape: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Source and data for any path."""
    draws = Draws(seed, batch)
    x0 = path.draw_source((batch, *shape), draws)
    if isinstance(path, MixturePath):
        return x0, draws.fork(9).integers((batch, *shape), path.vocabulary)
    return x0, draws.fork(9).normal((batch, *shape)) + 1


def test_every_path_is_covered():
    assert {type(p).__name__ for p in PATHS} == {kind.__name__ for kind in subclasses(Path)} - proved(covered.PATHS)


# Times run along the batch


@every
@pytest.mark.parametrize("shape", [(4,), (4, 4), (4, 2, 4), (4, 1)])
def test_times_run_along_the_batch(path: Path, shape: tuple[int, ...]):
    x0, x1 = states(path, *shape)
    t = torch.tensor([0.1, 0.35, 0.6, 0.9])
    together = path.sample(x0, x1, t, Draws(3, 4))
    for i in range(4):
        alone = path.sample(x0[i : i + 1], x1[i : i + 1], float(t[i]), Draws(3, 1, first_index=i))
        torch.testing.assert_close(together[i], alone[0], rtol=1e-5, atol=1e-6)
    if len(shape) > 1 and shape[1:] == (4,):  # along the feature they would be other states
        wrong = path.sample(x0.T.contiguous(), x1.T.contiguous(), t, Draws(3, 4)).T
        assert not torch.equal(wrong, together)


def test_the_wrong_broadcast_is_another_state():
    x0, x1 = states(GaussianPath(), 4, 4)
    t = torch.tensor([0.1, 0.35, 0.6, 0.9])
    right = GaussianPath().sample(x0, x1, t, Draws(3, 4))
    torch.testing.assert_close(right, t[:, None] * x1 + (1 - t[:, None]) * x0)
    assert not torch.allclose(right, t * x1 + (1 - t) * x0)


@every
def test_numbers_0d_tensors_and_batches_agree(path: Path):
    x0, x1 = states(path, 3, 5)
    draws = Draws(3, 3)
    expected = path.sample(x0, x1, 0.3, draws)
    for t in (torch.tensor(0.3), torch.tensor(0.3, dtype=F64), torch.full((3,), 0.3), torch.full((3,), 0.3, dtype=F64)):
        got = path.sample(x0, x1, t, draws)
        assert got.dtype == expected.dtype
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(path.sample(x0, x1, 1, draws), path.sample(x0, x1, 1.0, draws))
    assert path.sample(x0, x1, 0.3).shape == x1.shape  # draws of its own


def test_a_double_state_keeps_its_digits():
    x0, x1 = states(GaussianPath(Cosine()), 3, 5)
    x0, x1 = x0.double(), x1.double()
    expected = math.sin(math.pi * 0.25 / 2) * x1 + math.cos(math.pi * 0.25 / 2) * x0
    for t in (0.25, torch.tensor(0.25), torch.full((3,), 0.25)):  # float32 times, exact here
        torch.testing.assert_close(GaussianPath(Cosine()).sample(x0, x1, t), expected, rtol=1e-15, atol=1e-15)


@every
def test_a_sample_does_not_depend_on_its_batch(path: Path):
    x0, x1 = states(path, 20, 6)
    t = torch.linspace(0, 1, 20)
    whole = path.sample(x0, x1, t, Draws(4, 20))
    for first in range(0, 20, 7):
        rows = slice(first, min(first + 7, 20))
        part = path.sample(x0[rows], x1[rows], t[rows], Draws(4, rows.stop - first, first_index=first))
        assert torch.equal(part, whole[rows])


# Gaussian paths


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_the_state_is_the_weighted_sum(schedule):
    x0, x1 = states(GaussianPath(), 4, 3, 2)
    t = torch.tensor([0.0, 0.2, 0.77, 1.0], dtype=F64)
    alpha, sigma = schedule(t)
    expected = column(alpha, x1) * x1.double() + column(sigma, x0) * x0.double()
    torch.testing.assert_close(GaussianPath(schedule).sample(x0.double(), x1.double(), t), expected)


@pytest.mark.parametrize(
    "path", [GaussianPath(), GaussianPath(VP()), GaussianPath(EDM(0.1, 5.0)), GaussianPath(noise=0.4)], ids=repr
)
@pytest.mark.parametrize("t", [0.2, 0.8])
def test_mean_and_covariance_of_the_state(path: GaussianPath, t: float):
    n, world = 40_000, gm.worlds.GaussianMixture(mixture().means, mixture().covariances, mixture().weights)
    x1 = world.sample(n, seed=5).double()
    x = path.sample(path.draw_source((n, 2), Draws(6, n)).double(), x1, t, Draws(6, n))
    alpha, sigma = (float(v) for v in path.schedule(torch.tensor(t, dtype=F64)))
    expected = alpha**2 * world.covariance + (sigma**2 + path.noise**2) * torch.eye(2, dtype=F64)
    error = (x.mean(0) - alpha * world.mean).abs()
    assert bool((error < 4.5 * (expected.diagonal() / n) ** 0.5).all())
    tolerance = 4.5 * (2 * expected.diagonal()[:, None] * expected.diagonal() / n) ** 0.5
    assert bool(((x.T.cov() - expected).abs() < tolerance).all())
    if path.noise:  # dropping the added noise would be seen
        assert not bool(((x.T.cov() - expected + 0.16 * torch.eye(2)).abs() < tolerance).all())


def test_added_noise():
    n = 20_000
    path = GaussianPath(noise=0.3)
    x0, x1 = states(path, n, 2)
    added = (path.sample(x0, x1, 0.5, Draws(6, n)) - 0.5 * (x0 + x1)) / 0.3
    assert stats.kstest(added.double().flatten().numpy(), "norm").pvalue > RARE
    # It is noise of its own: of neither end, and of no other stream.
    for other in (x0, x1, Draws(6, n).normal((n, 2))):
        assert abs(float(torch.corrcoef(torch.stack([added[:, 0], other[:, 0]]))[0, 1])) < 4.5 / n**0.5


def test_what_may_be_concluded():
    normal, ot, noisy = GaussianPath(), GaussianPath(coupling=gm.couplings.OT()), GaussianPath(noise=0.1)
    moons = GaussianPath(source=gm.data.EightGaussians())
    assert (normal.readable, normal.has_score) == (True, True)
    assert (ot.readable, ot.has_score) == (True, False)
    assert (noisy.readable, noisy.has_score) == (False, False)
    assert (moons.readable, moons.has_score) == (True, False)
    assert normal.why_no_score() == ""
    assert "its coupling OT() makes noise and data dependent" in ot.why_no_score()
    assert "adds noise of standard deviation 0.1" in noisy.why_no_score()
    assert "is not the standard normal" in moons.why_no_score()


def test_from_eight_gaussians_to_two_moons():
    source, n = gm.data.EightGaussians(), 4_000
    path = GaussianPath(source=source, coupling=gm.couplings.OT())
    draws = Draws(5, n)
    x0 = path.draw_source((n, 2), draws)
    assert torch.equal(x0, path.draw_source((n, 2), draws))
    assert torch.equal(x0[:7], path.draw_source((7, 2), Draws(5, 7)))
    assert stats.kstest(x0.norm(dim=1).numpy(), source.draw((n, 2), Draws(77, n)).norm(dim=1).numpy()).pvalue > RARE
    x0, x1 = x0[:256], gm.data.TwoMoons().sample(256, seed=1)
    paired, kept, _ = path.pair(x0, x1, None, draws)
    assert kept is x1
    assert float(((paired - x1) ** 2).sum()) < 0.8 * float(((x0 - x1) ** 2).sum())
    x = path.sample(paired, x1, 0.5, Draws(5, 256))
    torch.testing.assert_close(x, (paired + x1) / 2)


def test_an_empirical_source_draws_rows():
    rows = torch.arange(12.0).reshape(6, 2)
    path = GaussianPath(source=rows)
    assert path.source == Empirical(rows)
    n = 12_000
    x0 = path.draw_source((n, 2), Draws(5, n))
    assert bool((x0[:, 1] == x0[:, 0] + 1).all())
    assert fits(torch.bincount((x0[:, 0] / 2).long(), minlength=6), torch.ones(6))
    assert torch.equal(x0[:5], path.draw_source((5, 2), Draws(5, 5)))


def test_the_prior():
    x0 = torch.randn(5, 3)
    at_noise = {
        path: path.instant(0.0, x0) for path in (GaussianPath(), GaussianPath(Cosine()), GaussianPath(VE(0.1, 9.0)))
    }
    assert GaussianPath().prior(x0, at_noise[GaussianPath()]) is x0
    ve = GaussianPath(VE(0.1, 9.0))
    torch.testing.assert_close(ve.prior(x0, at_noise[ve]), x0 * 82**0.5)
    # The second moment of p_t for data of mean 0 and variance 1.
    middle = GaussianPath().instant(0.25, x0)
    torch.testing.assert_close(GaussianPath().prior(x0, middle), x0 * (0.25**2 + 0.75**2) ** 0.5)


# Mixture paths


@pytest.mark.parametrize(
    ("schedule", "kappa"),
    [(CondOT(), lambda t: t), (Polynomial(3.0), lambda t: t**3), (Cosine(), lambda t: math.sin(math.pi * t / 2))],
    ids=name,
)
@pytest.mark.parametrize("t", [0.4, 0.7])
def test_the_law_of_tokens(schedule, kappa, t):
    n = 20_000
    path = MixturePath(6, mask=6, schedule=schedule)
    x0, x1 = states(path, n, 2)
    x = path.sample(x0, x1, t, Draws(3, n))
    assert bool(((x == x1) | (x == 6)).all())
    arrived = x == x1
    assert stats.binomtest(int(arrived.sum()), 2 * n, kappa(t)).pvalue > RARE
    assert stats.binomtest(int(arrived.all(1).sum()), n, kappa(t) ** 2).pvalue > RARE  # each position on its own
    assert stats.binomtest(int(arrived.sum()), 2 * n, min(1.0, kappa(t) * 1.1)).pvalue < RARE


def test_ends_of_a_mixture_path():
    for path in (MixturePath(5), MixturePath(5, mask=5)):
        x0, x1 = states(path, 50, 4)
        assert torch.equal(path.sample(x0, x1, 0.0), x0)
        assert torch.equal(path.sample(x0, x1, 1.0), x1)
        assert torch.equal(path.sample(x0, x1, torch.ones(50)), x1)


def test_sources_of_tokens():
    n = 20_000
    uniform = MixturePath(5).draw_source((n, 2), Draws(0, n))
    assert fits(torch.bincount(uniform.flatten(), minlength=5), torch.ones(5))
    assert torch.equal(MixturePath(5, mask=9).draw_source((3, 2), Draws(0, 3)), torch.full((3, 2), 9))
    assert MixturePath(5).prior(uniform, None) is uniform


def test_padding_stays():
    path = MixturePath(5, mask=6, padding=5)
    x1 = torch.tensor([[0, 1, 2, 5, 5], [3, 5, 5, 5, 5]])
    x0 = path.draw_source((2, 5), Draws(0, 2))
    for t in (0.0, 0.5, torch.tensor([0.2, 1.0])):
        x = path.sample(x0, x1, t, Draws(1, 2))
        assert torch.equal(x == 5, x1 == 5)
    assert torch.equal(MixturePath(5, mask=5, padding=6).sample(x0 * 0 + 5, x1 * 0, 0.0), x0 * 0 + 5)


def test_what_may_still_move():
    x = torch.tensor([[0, 6, 5]])
    assert MixturePath(5, mask=6, padding=5).movable(x).tolist() == [[False, True, False]]
    assert MixturePath(5, padding=5).movable(x).tolist() == [[True, True, False]]
    assert MixturePath(5).movable(x) is None


HAZARDS = {
    CondOT(): lambda t: 1 / (1 - t),
    Polynomial(3.0): lambda t: 3 * t**2 / (1 - t**3),
    Cosine(): lambda t: math.pi / 2 * math.cos(math.pi * t / 2) / (1 - math.sin(math.pi * t / 2)),
}


@pytest.mark.parametrize("schedule", HAZARDS, ids=name)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_hazard(schedule, dtype):
    path = MixturePath(4, schedule=schedule)
    t = torch.tensor([0.0, 0.3, 0.9, 0.9999], dtype=dtype)
    instant = path.at(t)
    expected = [HAZARDS[schedule](v) for v in t.tolist()]
    assert instant.hazard.dtype == instant.kappa.dtype == dtype
    # In float32, 1 - kappa of the cosine has lost its digits at t = .9999: it must be taken in float64.
    assert instant.hazard.tolist() == pytest.approx(expected, rel=1e-5)
    assert float(path.at(torch.ones(1, dtype=dtype)).hazard) == math.inf


@pytest.mark.parametrize("schedule", HAZARDS, ids=name)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_average_hazard_is_exact_for_a_step(schedule, dtype):
    path = MixturePath(4, schedule=schedule)
    t, s = torch.tensor([0.0, 0.3, 0.9, 0.9999], dtype=dtype), torch.tensor([0.2, 0.35, 1.0, 1.0], dtype=dtype)
    jump = -torch.expm1(-(s - t) * path.at(t, s).hazard)
    kappa, later = schedule(t.double())[0], schedule(s.double())[0]
    torch.testing.assert_close(jump.double(), (later - kappa) / (1 - kappa), rtol=1e-5, atol=0)
    assert jump[2:].tolist() == [1, 1]
    if schedule != CondOT() or dtype == F64:  # the hazard at the start of a step is not its average
        assert abs(float(-torch.expm1(-(s - t) * path.at(t).hazard)[1] - jump[1])) > 1e-4


def test_rows_and_broadcast_of_a_mixture_instant():
    instant = MixturePath(4).at(torch.tensor([0.25, 0.5, 0.75], dtype=F64))
    assert [row.kappa for row in instant.rows()] == [0.25, 0.5, 0.75]
    assert all(isinstance(value, float) for row in instant.rows() for value in row)
    x = torch.zeros(3, 3, 2, dtype=torch.int64)
    assert all(field.shape == (3, 1, 1) for field in instant.broadcast(x))


# Paths as keys


def test_paths_compare_by_value():
    rows = torch.randn(5, 2)
    different = [
        GaussianPath(),
        GaussianPath(Cosine()),
        GaussianPath(noise=0.1),
        GaussianPath(coupling=gm.couplings.OT()),
        GaussianPath(source=gm.data.EightGaussians()),
        GaussianPath(source=rows),
        GaussianPath(source=rows.clone()),
        MixturePath(5),
        MixturePath(6),
        MixturePath(5, mask=5),
        MixturePath(5, mask=6),
        MixturePath(5, padding=5),
        MixturePath(5, schedule=Cosine()),
    ]
    for i, path in enumerate(different):
        assert [path == other for other in different] == [i == j for j in range(len(different))]
    assert len(set(different)) == len(different)
    twins = [
        (GaussianPath(CondOT(), Normal(), gm.couplings.Independent()), GaussianPath()),
        (GaussianPath(DDPM()), GaussianPath(DDPM())),
        (GaussianPath(source=rows), GaussianPath(source=rows)),
        (MixturePath(5, mask=5), MixturePath(5, mask=5, schedule=CondOT())),
        (MixturePath(5, source=UniformTokens(5)), MixturePath(5)),
    ]
    for path, twin in twins:
        assert path == twin
        assert hash(path) == hash(twin)
    assert GaussianPath() != "GaussianPath()"


def test_paths_say_what_they_are():
    assert repr(GaussianPath()) == "GaussianPath(CondOT(sigma_min=0.0))"
    assert repr(GaussianPath(coupling=gm.couplings.OT(), noise=0.1)).endswith("coupling=OT(), noise=0.1)")
    assert repr(MixturePath(5, mask=6, padding=7)) == "MixturePath(5, mask=6, padding=7)"
    assert repr(Masked(3)) == "Masked(3)"


# Bad input


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: GaussianPath("cosine"), TypeError, "schedule must be a genmatch Schedule, got str"),
        (lambda: GaussianPath(CondOT), TypeError, "schedule must be a genmatch Schedule"),
        (lambda: GaussianPath(source=3), TypeError, r"have a method draw\(shape, draws\), got int"),
        (lambda: GaussianPath(source=gm.data.TwoMoons), TypeError, "got the class TwoMoons: call it"),
        (lambda: GaussianPath(source=torch.zeros(0, 2)), ValueError, "at least one row"),
        (lambda: GaussianPath(source=torch.tensor(1.0)), ValueError, "at least one row"),
        (lambda: GaussianPath(coupling="ot"), TypeError, "coupling must be a genmatch Coupling, got str"),
        (lambda: GaussianPath(coupling=gm.couplings.OT), TypeError, "got the class OT: call it"),
        (lambda: GaussianPath(noise=-0.1), ValueError, "noise must be at least 0 and finite, got -0.1"),
        (lambda: GaussianPath(sigma=0.1), TypeError, "sigma"),
        (
            lambda: GaussianPath(source=torch.zeros(4, 3)).draw_source((5, 2), Draws(0, 5)),
            ValueError,
            r"asked for \(2,\)",
        ),
        (lambda: MixturePath(1), ValueError, "vocabulary must be at least 2, got 1"),
        (lambda: MixturePath(5.0), TypeError, "vocabulary must be an integer, got float"),
        (lambda: MixturePath(5, mask=4), ValueError, "the mask id 4 is one of the tokens 0 .. 4: use 5 or above"),
        (lambda: MixturePath(5, padding=0), ValueError, "the padding id 0 is one of the tokens"),
        (lambda: MixturePath(5, mask=5, padding=5), ValueError, "mask and padding are both 5"),
        (lambda: MixturePath(5, mask=5.0), TypeError, "the mask id must be an integer, got float"),
        (lambda: MixturePath(5, Cosine()), TypeError, "the mask id must be an integer, got Cosine"),
        (lambda: MixturePath(5, mask=5, source=Masked(5)), ValueError, "give a mask or a source, not both"),
        (lambda: MixturePath(5, schedule="t"), TypeError, "schedule must be a genmatch Schedule, got str"),
        (lambda: MixturePath(5, schedule=VP()), ValueError, "whose alpha runs from 0 to 1"),
        (lambda: MixturePath(5, schedule=VE()), ValueError, "runs from 1 to 1: CondOT, Polynomial and Cosine do"),
        (lambda: MixturePath(5, source="uniform"), TypeError, "got str"),
        (lambda: MixturePath(5, coupling=gm.couplings.OT), TypeError, "got the class OT: call it"),
    ],
)
def test_bad_paths(call, error, message):
    with pytest.raises(error, match=message):
        call()


PAIR = torch.zeros(3, 3)


@pytest.mark.parametrize(
    ("t", "error", "message"),
    [
        (1.5, ValueError, r"t must be in \[0, 1\], got 1.5: 0 is noise, 1 is data"),
        (-1e-9, ValueError, "t must be in"),
        (math.nan, ValueError, "t must be in"),
        (True, TypeError, "t must be a number or a tensor, got bool"),
        ("0.5", TypeError, "t must be a number or a tensor, got str"),
        ([0.1, 0.2, 0.3], TypeError, "t must be a number or a tensor, got list"),
        ((0.1, 0.2, 0.3), TypeError, "t must be a number or a tensor, got tuple"),
        (torch.tensor(1.5), ValueError, "t must be in"),
        (torch.tensor(math.nan), ValueError, "t must be in"),
        (torch.tensor([0.1, 0.2, 1.2]), ValueError, r"t must be in \[0, 1\], got 0.1 to 1.2"),
        (torch.tensor([0.1, math.nan, 0.2]), ValueError, "t must be in"),
        (torch.tensor([0.1, 0.2]), ValueError, r"shape \(3,\), one time for each sample, got \(2,\)"),
        (torch.full((3, 1), 0.5), ValueError, r"one time for each sample, got \(3, 1\)"),
        (torch.tensor([0, 1, 0]), TypeError, "t must be floating point, got torch.int64"),
    ],
    ids=repr,
)
def test_bad_times(t, error, message):
    with pytest.raises(error, match=message):
        GaussianPath().sample(PAIR, PAIR, t)
    with pytest.raises(error, match=message):
        MixturePath(5).sample(PAIR.long(), PAIR.long(), t)


@pytest.mark.parametrize(
    ("path", "x0", "x1", "error", "message"),
    [
        (
            GaussianPath(),
            PAIR,
            PAIR[:2],
            ValueError,
            r"x0 and x1 must have one shape \(B, \*S\), got \(3, 3\) and \(2, 3\)",
        ),
        (GaussianPath(), PAIR, torch.zeros(3, 3, 1), ValueError, "x0 and x1 must have one shape"),
        (GaussianPath(), PAIR, PAIR.long(), TypeError, "a continuous state must be floating point"),
        (GaussianPath(), PAIR * math.nan, PAIR, ValueError, "9 non-finite values of 9"),
        (MixturePath(5), PAIR.long(), PAIR, TypeError, "tokens must be integers"),
        (MixturePath(5), PAIR.long(), PAIR.long() + 5, ValueError, r"tokens must be in \[0, 5\), got 5"),
        (MixturePath(5, mask=5), PAIR.long() + 6, PAIR.long(), ValueError, r"tokens must be in \[0, 5\) or 5, got 6"),
    ],
    ids=["batch", "rank", "dtype", "nan", "floats", "outside", "source outside"],
)
def test_bad_states(path, x0, x1, error, message):
    with pytest.raises(error, match=message):
        path.sample(x0, x1, 0.5)


def test_draws_of_another_batch():
    with pytest.raises(ValueError, match="draws for 2 samples"):
        GaussianPath(noise=0.1).sample(PAIR, PAIR, 0.5, Draws(0, 2))


@given(t=st.floats(0, 1), kappa=st.floats(0, 1))
@settings(max_examples=20)
def test_every_time_in_the_unit_interval_is_one(t, kappa):
    assert bool(GaussianPath().sample(PAIR, PAIR + 1, t).isfinite().all())
    x = MixturePath(5).sample(PAIR.long(), PAIR.long() + 1, kappa)
    assert bool(((x == 0) | (x == 1)).all())
