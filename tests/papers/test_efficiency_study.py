"""The study of efficiency: its formulas against closed forms, a rehearsal of all of it, and the page's numbers."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch

import genmatch as gm
from genmatch.predict import clocks

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # benchmarks/ is beside the package and not in it

from benchmarks.papers import costs, efficiency, efficiency_samples  # noqa: E402
from benchmarks.papers.__main__ import main  # noqa: E402
from benchmarks.papers.efficiency_exact import Gaussian, Points, chain_curvature, crossing, exponent  # noqa: E402
from benchmarks.papers.efficiency_samples import ARMS, pack, plan, summary, unpack  # noqa: E402
from benchmarks.papers.efficiency_tables import TABLES  # noqa: E402
from benchmarks.papers.networks import full_unet, mnist_unet, tiny_unet  # noqa: E402
from benchmarks.papers.scale import Scale  # noqa: E402

RESULTS = ROOT / "benchmarks/results/papers/efficiency.json"
PAGE = ROOT / "docs/papers/efficiency.md"
F64 = torch.float64


def noised(x: torch.Tensor, steps: int, schedule) -> torch.Tensor:
    """A chain of noising from data, one draw after the other, in the order of generation (noise first)."""
    alpha, sigma = schedule(torch.linspace(0, 1, steps + 1, dtype=F64))
    states = [x]
    for k in range(steps, 0, -1):
        keep = alpha[k - 1] / alpha[k]
        spread = (sigma[k - 1] ** 2 - keep**2 * sigma[k] ** 2).sqrt()
        states.append(keep * states[-1] + spread * torch.randn_like(x))
    return torch.stack(states[::-1])


@pytest.mark.parametrize("steps", [4, 30])
@pytest.mark.parametrize("square", [0.05, 0.94])
def test_chain_curvature_is_that_of_a_chain_drawn_step_by_step(steps: int, square: float):
    torch.manual_seed(0)
    schedule = gm.schedules.DDPM()
    data = math.sqrt(square) * torch.randn(8, 20000, dtype=F64).sign()
    drawn = gm.metrics.curvature(noised(data, steps, schedule)).median
    assert chain_curvature(square, steps) == pytest.approx(drawn, rel=0.01)
    # The number is the noise's: without it the way would be almost straight.
    alpha, _ = schedule(torch.linspace(0, 1, steps + 1, dtype=F64))
    assert drawn > 2 * float(((1 - alpha[:-1] / alpha[1:]).abs() * alpha[1:]).sum())


def test_reading_every_tenth_state_gives_the_curvature_of_the_short_chain():
    torch.manual_seed(1)
    data = torch.randn(8, 20000, dtype=F64).sign()
    states = noised(data, 100, gm.schedules.DDPM())
    whole, tenth = gm.metrics.curvature(states).median, gm.metrics.curvature(states[::10]).median
    assert whole == pytest.approx(chain_curvature(1.0, 100), rel=0.01)
    assert tenth == pytest.approx(chain_curvature(1.0, 10), rel=0.01)
    assert whole > 3 * tenth


def test_diagonal_gaussian_and_points_are_the_exact_worlds():
    torch.manual_seed(2)
    schedule = gm.schedules.DDPM()
    x, t = torch.randn(5, 3, dtype=F64), torch.tensor([0.0, 0.2, 0.5, 0.9, 0.99], dtype=F64)
    alpha, sigma = schedule(t)
    mean, variances = torch.randn(3, dtype=F64), torch.tensor([0.0, 0.3, 2.0], dtype=F64)
    world = gm.worlds.GaussianMixture(mean[None], torch.diag(variances))
    expected = world.posterior_mean(x, alpha, sigma)
    torch.testing.assert_close(Gaussian(mean, variances, schedule)(x, t), expected)
    points = torch.randn(7, 3, dtype=F64)
    expected = gm.worlds.GaussianMixture(points, 0.0).posterior_mean(x, alpha, sigma)
    torch.testing.assert_close(Points(points, schedule)(x, t), expected)
    assert not torch.allclose(Points(points[:-1], schedule)(x, t), expected)


def test_gaussian_of_images_has_their_moments():
    torch.manual_seed(3)
    images = torch.randn(500, 1, 2, 3) * torch.tensor([0.1, 1.0, 2.0]) + 0.5
    found = Gaussian.of(images, gm.schedules.CondOT())
    rows = images.flatten(1).double()
    assert float(found.mean.norm()) == pytest.approx(float(rows.mean(0).norm()))
    assert float(found.variances.sum()) == pytest.approx(float(rows.var(0, correction=0).sum()))
    # The largest axis is that of the widest pixels, not the mean of all.
    assert float(found.variances.max()) == pytest.approx(4.0, rel=0.2)


@pytest.mark.parametrize("c", [0.3, 2.0])
def test_flow_of_an_exact_gaussian_has_the_curvature_of_the_closed_form(c: float):
    path = gm.GaussianPath(gm.schedules.CondOT())
    field = Gaussian(torch.zeros(4, dtype=F64), torch.full((4,), c**2, dtype=F64), path.schedule)
    model = gm.predict.Data(field, path, time=clocks.t)
    noise = torch.randn(6, 4, dtype=F64)
    states = gm.sample(gm.Flow(model), noise, steps=800, solver=gm.solvers.Euler(), trajectory=True)
    # s_t = sqrt(t^2 c^2 + (1 - t)^2) falls from 1 to its least, c / sqrt(1 + c^2), and rises to c.
    closed = (1 + c - 2 * c / math.sqrt(1 + c**2)) / abs(1 - c)
    assert gm.metrics.curvature(states).median == pytest.approx(closed, rel=2e-3)


def test_crossing_and_exponent_of_a_power_law():
    counts = [4, 16, 64, 256]
    values = [2 * n**0.5 for n in counts]
    assert exponent(counts, values) == pytest.approx(0.5)
    assert crossing(2 * 10**0.5, counts, values) == pytest.approx(10)
    assert math.isnan(crossing(1.0, counts, values))  # below the first
    assert math.isnan(crossing(1000.0, counts, values))  # above the last


def test_pictures_come_back_to_a_grey_of_sixteen():
    pictures = 2.4 * torch.rand(3, 5, 4) - 1.2
    strip = unpack(pack(pictures))
    assert strip.shape == (5, 12)
    expected = (torch.cat(list(pictures), 1).clamp(-1, 1) + 1) / 2
    assert float((torch.from_numpy(strip.copy()) - expected).abs().max()) <= 0.5 / 15 + 1e-6


@pytest.mark.parametrize("size", ["cpu", "full"])
def test_plan_compares_equal_counts_and_has_every_number_that_the_study_names(size: str):
    runs = plan(Scale(size))
    swept = [arm for arm, (_, _, extra) in ARMS.items() if extra is None]
    for arm in swept:
        assert {run.steps for run in runs if run.arm == arm} >= {5, 10, 20, 50, 100, 1000}
    assert {run.steps for run in runs if run.arm == "flow, RK4"} == {5, 10}
    for few in (5, 10, 20):
        assert len({run.images for run in runs if run.steps == few}) == 1
        assert {(run.arm, run.seed) for run in runs if run.steps == few} >= {
            (arm, s) for arm in swept for s in (0, 1, 2)
        }
    # RK4 at equal evaluations: 20 and 40 steps of Euler, on the same seeds.
    euler = {(run.steps, run.seed) for run in runs if run.arm == "flow, Euler"}
    assert {(4 * run.steps, run.seed) for run in runs if run.arm == "flow, RK4"} <= euler


def test_networks_of_the_paper_and_of_the_short_run():
    full, small = full_unet(1000.0), mnist_unet(1000.0)
    assert sum(p.numel() for p in full.parameters()) == pytest.approx(4.5e6, rel=0.01)
    assert set(full.film_sizes) == {64, 128, 256}  # type: ignore[arg-type]
    assert set(small.film_sizes) == {16, 32, 64}  # type: ignore[arg-type]
    assert tiny_unet(1.0)(torch.zeros(2, 1, 8, 8), torch.zeros(2)).shape == (2, 1, 8, 8)


def test_joules_add_the_packages_and_not_their_parts(tmp_path: Path):
    assert costs.joules(tmp_path) is None
    assert costs.energy(lambda: None, tmp_path) is None
    for name, value in (("intel-rapl:0", 3_000_000), ("intel-rapl:1", 500_000), ("intel-rapl:0:0", 9_000_000)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(f"{value}\n")
    assert costs.joules(tmp_path) == pytest.approx(3.5)
    counter = tmp_path / "intel-rapl:0/energy_uj"
    assert costs.energy(lambda: counter.write_text("4000000"), tmp_path) == pytest.approx(1.0)
    assert costs.energy(lambda: counter.write_text("7"), tmp_path) is None  # it began again: no number


def test_summary_joins_seeds_and_keeps_the_single_one():
    row = {"evaluations": 5, "images": 10, "error": 0.1, "curvature": {"median": 1.5}}
    rows = [{**row, "arm": "a", "steps": 5, "seed": s, "frechet": 1.0 + s} for s in range(3)]
    rows.append({**row, "arm": "a", "steps": 9, "seed": 0, "frechet": 7.0})
    few, one = summary(rows)
    assert (few["repeats"], few["frechet"]["mean"]) == (3, pytest.approx(2.0))
    assert few["frechet"]["low"] < few["frechet"]["least"] == 1.0
    assert (one["repeats"], one["frechet"]["low"]) == (1, 7.0)


@pytest.mark.slow
def test_memory_is_that_of_the_task_and_grows_with_the_batch():
    scale = Scale("smoke", progress=False)
    small, large = (costs.peak_memory("training", "flow", batch, scale) for batch in (2, 512))
    assert large > small + 20
    with pytest.raises(RuntimeError, match="has failed"):
        costs.peak_memory("training", "no such model", 2, scale)


@pytest.mark.slow
def test_rehearsal_runs_every_part(tmp_path: Path):
    folders = ["--out", str(tmp_path), "--figures", str(tmp_path), "--cache", str(tmp_path / "cache")]
    main(["efficiency", "--size", "smoke", "--quiet", "--device", "cpu", *folders])
    found = json.loads((tmp_path / "efficiency.json").read_text())
    assert {row["arm"] for row in found["rows"]} == set(ARMS)
    for arm, (_, make, _) in ARMS.items():
        rows = [row for row in found["rows"] if row["arm"] == arm]
        stages = 4 if isinstance(make(), gm.solvers.RK4) else 1
        assert all(row["evaluations"] == stages * row["steps"] for row in rows)
        assert all(row["curvature"]["median"] >= 1 - 1e-6 for row in rows)
        assert all(math.isfinite(row["frechet"]) for row in rows)
    assert {row["images"] for row in found["rows"]} == {found["images"]}  # distances compare at equal counts
    assert {row["law"] for row in found["exact"]["rows"]} == {"Gaussian", "training images"}
    assert len(found["search"]["tried"]) == 2 * len(found["search"]["rates"])
    assert {row["network"] for row in found["costs"]["milliseconds"]} == {"tiny", "the paper's"}
    assert all(mib > 0 for row in found["costs"]["memory"] for mib in row["mib"])
    for name in efficiency.FIGURES:
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert all(table(found).count("\n") >= 2 for table in TABLES.values())
    # What was sampled is kept, under names that another solver or another training does not share.
    kept = list((tmp_path / "cache").glob("samples-*.pt"))
    assert len(kept) == len(plan(Scale("smoke"))) == len(found["rows"])


def test_page_has_the_numbers_of_the_results():
    results, page = json.loads(RESULTS.read_text()), PAGE.read_text()
    for name, table in TABLES.items():
        assert table(results) in page, f"the table {name!r} of docs/papers/efficiency.md is not that of the results"
    for title in efficiency.FIGURES:
        assert f"_static/papers/{title}.png" in page
        assert (ROOT / "docs/_static/papers" / f"{title}.png").is_file()
    assert set(results["pictures"]) == set(efficiency_samples.ARMS)
