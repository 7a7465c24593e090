"""The worked examples: their closed forms derived again, a rehearsal of all of it, and the page's numbers."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import integrate, stats

import genmatch as gm

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # benchmarks/ is beside the package and not in it

from benchmarks.papers import examples, examples_costs, examples_line  # noqa: E402
from benchmarks.papers.__main__ import main  # noqa: E402
from benchmarks.papers.examples_costs import needed, reach  # noqa: E402
from benchmarks.papers.examples_line import CASES, LAW, starts  # noqa: E402
from benchmarks.papers.examples_tables import TABLES  # noqa: E402
from benchmarks.papers.examples_world import Mixture, kl, normal, steps_for, to_law, wasserstein  # noqa: E402

RESULTS = ROOT / "benchmarks/results/papers/examples.json"
PAGE = ROOT / "docs/papers/examples.md"


def gaussian(mean: float, deviation: float) -> Mixture:
    return Mixture((1.0,), (mean,), (deviation,))


def test_noised_law_is_the_law_of_noised_samples():
    random = np.random.default_rng(0)
    part = random.choice(2, 200000, p=LAW.weights)
    x = np.array(LAW.means)[part] + np.array(LAW.deviations)[part] * random.standard_normal(part.size)
    noisy = 0.6 * x + 0.8 * random.standard_normal(part.size)
    assert to_law(noisy, LAW.noised(0.6, 0.8)) < 0.01
    assert to_law(noisy, LAW.noised(0.7, 0.8)) > 0.05


def test_density_distribution_and_quantile_belong_together():
    x = LAW.grid()
    steps = integrate.cumulative_trapezoid(LAW.density(x), x, initial=0)
    np.testing.assert_allclose(LAW.below(x), steps, atol=1e-5)
    u = np.array([1e-6, 0.1, 0.3, 0.5, 0.99])
    np.testing.assert_allclose(LAW.below(LAW.quantile(u)), u, atol=1e-12)


def test_distances_of_gaussians_have_their_closed_forms():
    near, far = gaussian(0.0, 1.0), gaussian(0.7, 1.5)
    closed = math.log(1.5) + (1 + 0.7**2) / (2 * 1.5**2) - 0.5
    assert kl(near, far) == pytest.approx(closed, rel=1e-6)
    assert kl(far, near) != pytest.approx(closed, rel=0.1)
    assert wasserstein(near, gaussian(0.7, 1.0)) == pytest.approx(0.7, rel=1e-5)
    assert wasserstein(near, gaussian(0.0, 1.5)) == pytest.approx(0.5 * math.sqrt(2 / math.pi), rel=1e-4)
    middles = near.quantile((np.arange(100) + 0.5) / 100)
    assert to_law(middles, near) == pytest.approx(0, abs=1e-9)
    assert to_law(middles[::-1] + 0.3, near) == pytest.approx(0.3)


def test_flow_carries_a_wrong_start_by_the_rising_map_and_keeps_its_information():
    begin, wrong = LAW.noised(0.6, 0.8), normal()
    x = LAW.grid(20001)
    carried = LAW.carried(x, begin, wrong)
    assert integrate.trapezoid(carried, x) == pytest.approx(1, abs=1e-5)
    inside = carried > 1e-200
    found = integrate.trapezoid(np.where(inside, carried * np.log(np.where(inside, carried / LAW.density(x), 1)), 0), x)
    assert found == pytest.approx(kl(wrong, begin), rel=1e-4)  # a map that can be undone changes no KL
    np.testing.assert_allclose(LAW.carried(x, begin, begin), LAW.density(x))


def test_constant_rate_leaves_six_tenths_of_the_data():
    found = starts()
    assert found["chain"]["alpha"] == pytest.approx(0.9**5, rel=1e-9)  # 0.59: ten steps, each keeps sqrt(1 - 0.1)
    assert found["constant rate"]["alpha"] == pytest.approx(math.exp(-0.5), rel=1e-9)  # beta T / 2 = 1 / 2
    for part in found.values():
        assert part["alpha"] ** 2 + part["sigma"] ** 2 == pytest.approx(1)
        assert part["KL(p_0 | N)"] > 0.2
    mean = 0.9**5 * 0.8  # of the start; that of N(0, 1) is 0, and W1 is no less than the difference
    assert found["chain"]["W1 at the start"] >= mean


def test_wrong_start_ends_where_the_map_of_quantiles_says():
    case = CASES["constant rate, without noise"]
    world = gm.worlds.GaussianMixture(torch.tensor(LAW.means)[:, None], 0.25, torch.tensor(LAW.weights))
    noise = torch.from_numpy(stats.norm.ppf((np.arange(2000) + 0.5) / 2000))[:, None]
    model = world.predictor(gm.GaussianPath(case.schedule))
    made = gm.sample(gm.Flow(model), noise, steps=200, solver=case.solver)
    expected = starts()["constant rate"]["W1 at the data"]
    assert to_law(made.numpy()[:, 0], LAW) == pytest.approx(expected, rel=0.01)
    alpha, sigma = case.schedule(torch.zeros((), dtype=torch.float64))
    right = LAW.noised(float(alpha), float(sigma)).quantile((np.arange(2000) + 0.5) / 2000)
    made = gm.sample(gm.Flow(model), torch.from_numpy(right)[:, None], steps=200, solver=case.solver)
    assert to_law(made.numpy()[:, 0], LAW) < 0.01


@pytest.mark.parametrize("chain", [True, False])
def test_length_for_a_level_reaches_it_and_no_less(chain: bool):
    length = steps_for(LAW, 0.1, 1e-3, chain=chain)
    for factor, above in ((0.9, True), (1.001, False)):
        kept = (0.9 if chain else math.exp(-0.1)) ** (factor * length)
        begin = LAW.noised(math.sqrt(kept), math.sqrt(1 - kept))
        assert (kl(begin, normal()) > 1e-3) is above


def curve(kind: str, scale: float, power: float = -1.0) -> list[dict]:
    return [
        {"model": kind, "steps": n, "seed": seed, "frechet": scale * (1 + 0.1 * seed) * n**power}
        for n in (100, 200, 400, 800, 1600)
        for seed in range(3)
    ]


def test_reach_gives_the_ratio_of_trainings_at_equal_quality():
    found = reach(curve("flow", 1.0) + curve("diffusion", 2.0))
    for row in found[:2]:  # flow needs half of the steps for every level
        assert row["ratio"]["mean"] == pytest.approx(0.5, rel=1e-6)
        assert row["repeats"] == 3
    assert reach(curve("flow", 2.0) + curve("diffusion", 2.0))[0]["ratio"]["mean"] == pytest.approx(1.0)
    never = reach(curve("flow", 1.0) + curve("diffusion", 100.0, 0.0))
    assert never[0]["ratio"] is None  # a level that one side is at from the first says nothing of the time


def test_needed_is_the_first_count_that_stays_near_the_best():
    rows = [{"arm": "a", "steps": n, "mean": m} for n, m in ((5, 1.0), (10, 2.0), (20, 1.04), (50, 1.0))]
    rows += [{"arm": "b", "steps": n, "mean": m} for n, m in ((5, 4.0), (10, 3.0), (20, 2.0), (50, 2.05))]
    found = needed(rows)
    assert (found["a"]["of its own"], found["a"]["of all"]) == (20, 20)  # 5 steps were near, and 10 were not
    assert (found["b"]["of its own"], found["b"]["of all"]) == (20, None)


def test_better_sampler_is_that_of_the_kind_at_the_most_steps():
    arms = (("flow, Euler", 3.0, 1.0), ("flow, Exponential(2)", 1.0, 2.0), ("diffusion, DDIM", 0.1, 0.2))
    rows = [{"arm": arm, "steps": n, "mean": m} for arm, *means in arms for n, m in zip((5, 50), means, strict=True)]
    assert examples_costs.better(rows, "flow") == "flow, Euler"  # the other was better at few
    assert examples_costs.better(rows, "diffusion") == "diffusion, DDIM"


@pytest.mark.slow
def test_rehearsal_runs_every_part(tmp_path: Path):
    folders = ["--out", str(tmp_path), "--figures", str(tmp_path), "--cache", str(tmp_path / "cache")]
    main(["examples", "--size", "smoke", "--quiet", "--device", "cpu", *folders])
    found = json.loads((tmp_path / "examples.json").read_text())
    rows = found["line"]["rows"]
    assert {row["case"] for row in rows} == set(CASES)
    assert {row["start"] for row in rows if row["case"].startswith("linear")} == {"N(0, 1)"}  # its start is exact
    assert all({r["field"] for r in rows if r["case"] == case} == {"exact", "trained"} for case in CASES)
    paid = found["costs"]
    assert {row["arm"] for row in paid["steps"]} == set(examples_costs.ARMS)
    assert {row["model"] for row in paid["learning"]} == {"flow", "diffusion"}
    for row in paid["repeatable"]:
        assert row["again"] == 0
        assert max(row["batches of 1"], row["batches of 7"]) < 1e-3 * max(1, row["another seed"])
        assert row["another seed"] > 0.1
    assert set(paid["timing"]["memory"]) == {"training", "sampling"}
    for name in examples.FIGURES:
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert all(table(found).count("\n") >= 2 for table in TABLES.values())


def test_page_has_the_numbers_of_the_results():
    results, page = json.loads(RESULTS.read_text()), PAGE.read_text()
    for name, table in TABLES.items():
        assert table(results) in page, f"the table {name!r} of docs/papers/examples.md is not that of the results"
    for title in examples.FIGURES:
        assert f"_static/papers/{title}.png" in page
        assert (ROOT / "docs/_static/papers" / f"{title}.png").is_file()
    assert results["line"]["law"]["means"] == list(examples_line.LAW.means)
