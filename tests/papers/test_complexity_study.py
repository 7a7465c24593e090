"""The study of complexity: its formulas, that it runs, and that its page says what its results do."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import genmatch as gm
from genmatch.predict import clocks

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # benchmarks/ is beside the package and not in it
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from benchmarks.papers import complexity_parts as parts  # noqa: E402
from benchmarks.papers import complexity_solvers as solvers  # noqa: E402
from benchmarks.papers import complexity_tables as tables  # noqa: E402
from benchmarks.papers.__main__ import main  # noqa: E402
from benchmarks.papers.complexity_data import Field, intrinsic_dimension, participation  # noqa: E402
from benchmarks.papers.complexity_models import ARCHITECTURES, KINDS  # noqa: E402
from benchmarks.papers.scale import Scale  # noqa: E402

RESULTS = ROOT / "benchmarks/results/papers/complexity.json"
PAGE = ROOT / "docs/papers/complexity.md"
PATHS = {"flow": gm.GaussianPath(gm.schedules.CondOT()), "diffusion": gm.GaussianPath(gm.schedules.DDPM())}
WIDTH = 0.3
SMOKE = Scale("smoke", progress=False)


def points(count: int = 7) -> Tensor:
    return torch.randn(count, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def field(kind: str, images: Tensor | None = None, width: float = WIDTH) -> gm.Predictor:
    """The study's exact model of some images."""
    path = PATHS[kind]
    network = Field(points() if images is None else images, path.schedule, velocity=kind == "flow", width=width)
    return (gm.predict.Velocity if kind == "flow" else gm.predict.Noise)(network, path, time=clocks.t)


@pytest.mark.parametrize("kind", KINDS)
def test_exact_field_is_that_of_the_mixture(kind: str):
    images, path = points(), PATHS[kind]
    world = gm.worlds.GaussianMixture(images.flatten(1), WIDTH**2).predictor(path)
    x = 0.8 * torch.randn(5, 1, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for t in (0.1, 0.5, 0.9, 0.99):
        found, known = field(kind, images)(x, t), world(x.flatten(1), t)
        for reading in ("velocity", "data", "noise"):
            same, other = getattr(found, reading).flatten(1), getattr(known, reading)
            assert torch.allclose(same, other, atol=1e-9), (t, reading)
    narrow = field(kind, images, width=WIDTH / 2)(x, 0.99).velocity.flatten(1)
    assert not torch.allclose(narrow, known.velocity, atol=0.1), "the width matters"


def test_flow_to_one_image_is_straight_and_one_step_of_euler_is_exact():
    flow = gm.Flow(field("flow", points(1), width=1e-6))
    about = solvers.bends(flow, (1, 2, 2), 4, SMOKE)
    assert about["median"] == pytest.approx(1, abs=1e-6)
    assert about["in"]["diffusion"] > 1.02, "on a variance-preserving path it is an arc"
    ends = gm.sample(flow, torch.randn(3, 1, 2, 2, dtype=torch.float64), steps=1, solver=gm.solvers.Euler())
    assert torch.allclose(ends, points(1).expand_as(ends), atol=1e-5)


def test_coordinates_of_a_path_are_those_of_the_same_model_rescheduled_to_it():
    flow, noise = gm.Flow(field("flow")), torch.randn(6, 1, 2, 2, dtype=torch.float64)
    states = gm.sample(flow, noise, steps=400, trajectory=True, solver=gm.solvers.RK4())
    moved = solvers.in_coordinates(flow, states)
    assert torch.allclose(moved["flow"], states)
    vp = gm.GaussianPath(gm.schedules.VP())
    again = gm.sample(
        gm.Flow(gm.predict.Reschedule(field("flow"), vp)), noise, steps=800, trajectory=True, solver=gm.solvers.RK4()
    )
    found, known = (gm.metrics.curvature(x).values for x in (moved["diffusion"], again))
    # VP begins at a little signal, and each has points of its own along the way.
    assert torch.allclose(found, known, rtol=0.01)
    assert not torch.allclose(gm.metrics.curvature(states).values, known, rtol=0.03)


def test_participation_counts_the_directions():
    x = torch.randn(20000, 6, generator=torch.Generator().manual_seed(0))
    assert participation(x) == pytest.approx(6, rel=0.01)
    assert participation(x[:, :1] * torch.ones(6)) == pytest.approx(1, rel=1e-6)
    assert participation(x * torch.tensor([2.0, 1, 0, 0, 0, 0])) == pytest.approx(25 / 17, rel=0.05)


@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_intrinsic_dimension_of_an_even_sheet_in_many_dimensions(dimension: int):
    generator = torch.Generator().manual_seed(0)
    sheet = torch.rand(8000, dimension, generator=generator)
    turned = sheet @ torch.linalg.qr(torch.randn(20, 20, generator=generator)).Q[:dimension]
    found = intrinsic_dimension(turned, queries=800)
    assert found == pytest.approx(dimension, rel=0.1)
    twice = torch.cat([turned, turned[:400]])
    assert intrinsic_dimension(twice, queries=800) == pytest.approx(found, rel=0.1), "what is there twice is left out"


def test_distances_are_by_pixel_and_the_median_image_does_not_see_an_outlier():
    x, y = torch.zeros(5, 1, 2, 2), torch.full((5, 1, 2, 2), 0.1)
    y[0] = 3.0
    found = solvers.distance(x, y)
    assert found["error"] == pytest.approx(math.sqrt((9 + 4 * 0.01) / 5))
    assert found["median"] == pytest.approx(0.1)


@pytest.fixture(scope="module")
def solved() -> tuple[gm.Flow, solvers.Solution]:
    flow = gm.Flow(field("flow", 0.3 * points()))
    scale = Scale("cpu", progress=False)
    return flow, solvers.solve(flow, (1, 2, 2), 8, scale)


def test_solution_is_that_of_runge_kutta(solved: tuple[gm.Flow, solvers.Solution]):
    flow, solution = solved
    ends = gm.sample(flow, solution.noise, steps=300, solver=gm.solvers.RK4())
    apart = solvers.distance(ends, solution.ends)["error"]
    assert apart < 3e-4
    assert apart < 1.2 * solution.doubt, "half as many steps are farther away"


def test_errors_fall_with_steps_by_their_orders(solved: tuple[gm.Flow, solvers.Solution]):
    flow, solution = solved
    rows = solvers.errors(flow, solution)

    def at(solver: str, evaluations: int) -> float:
        (row,) = tables.chosen(rows, solver=solver, evaluations=evaluations)
        return row["error"]

    assert 1.6 < at("Euler", 20) / at("Euler", 40) < 2.6
    assert at("Heun", 40) < at("Euler", 40) / 3
    assert at("RK4", 80) < at("Euler", 80) / 10
    row = {"errors": rows, "field": "trained"}
    assert tables.gain(row, "RK4", 20, equal="steps") == pytest.approx(at("Euler", 20) / at("RK4", 80))
    assert tables.gain(row, "RK4", 20, equal="evaluations") == pytest.approx(at("Euler", 80) / at("RK4", 80))
    for found in solvers.adaptive(flow, solution):
        plain = gm.sample(flow, solution.noise, steps=round(found["evaluations"]), solver=gm.solvers.Euler())
        assert found["euler"] == pytest.approx(solvers.distance(plain, solution.ends)["error"])
    assert found["error"] < found["euler"] / 3


def test_all_samplers_of_a_budget_cost_the_same(solved: tuple[gm.Flow, solvers.Solution]):
    flow, solution = solved
    rows = solvers.accelerated(flow, solution)
    assert {row["evaluations"] - row["budget"] for row in rows} == {0}
    assert {(row["solver"], row["budget"]) for row in rows} == {
        (name, n) for name in solvers.ACCELERATED for n in solvers.STEPS if (name, n) != ("Heun", 5)
    }
    assert {row["grid"] for row in rows} == set(solvers.GRIDS)
    euler = gm.sample(flow, solution.noise, steps=10, solver=gm.solvers.Euler())
    (row,) = tables.chosen(rows, solver="DDIM", budget=10, grid="uniform")
    assert row["error"] == pytest.approx(solvers.distance(euler, solution.ends)["error"]), "on CondOT they are one"


def test_the_nearest_grid_is_chosen_for_each_solver_and_budget():
    rows = [
        {"solver": "DDIM", "budget": 5, "grid": "uniform", "median": 0.2},
        {"solver": "DDIM", "budget": 5, "grid": "log-SNR", "median": 0.1},
        {"solver": "DDIM", "budget": 10, "grid": "uniform", "median": 0.01},
    ]
    assert parts.nearest({"accelerated": rows}, "DDIM", 5) == "log-SNR"
    assert parts.nearest({"accelerated": rows}, "DDIM", 10) == "uniform"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures_are_as_named(name: str):
    images = type("Images", (), {"shape": (1, 8, 8)})()
    network = ARCHITECTURES[name](images)(1000.0)
    assert network(torch.zeros(2, 1, 8, 8), torch.rand(2)).shape == (2, 1, 8, 8)
    attention = [m for m in network.modules() if type(m).__name__ == "SelfAttention"]
    assert bool(attention) is ("no attention" not in name)
    if name.startswith("U-Net"):
        first = next(m for m in network.modules() if isinstance(m, nn.Conv2d))
        assert f"U-Net {first.out_channels}" == name.split(",")[0]


def test_spread_is_the_geometric_mean_with_its_range():
    assert tables.spread([0.1, 0.4]) == "0.20 (0.10–0.40)"
    assert tables.spread([1.01234], 4) == "1.012"
    assert tables.spread([12.3, 12.3], 2) == "12 (12–12)"


def test_what_was_measured_is_kept_by_what_it_is_of(tmp_path: Path):
    scale, calls = Scale("smoke", cache=tmp_path, progress=False), []

    def run() -> dict[str, int]:
        calls.append(1)
        return {"calls": len(calls)}

    assert parts._kept(scale, ["a", 0], run) == parts._kept(scale, ["a", 0], run) == {"calls": 1}
    assert parts._kept(scale, ["a", 1], run) == {"calls": 2}


@pytest.mark.slow
def test_rehearsal(tmp_path: Path):
    folders = [word for name in ("out", "figures", "cache") for word in (f"--{name}", str(tmp_path / name))]
    main(["complexity", "--size", "smoke", "--quiet", *folders])
    found = json.loads((tmp_path / "out/complexity.json").read_text())
    assert {"sets", "fields", "quality", "architectures", "settings", "seconds"} <= set(found)
    for kind in KINDS:
        assert {row["field"] for row in tables.chosen(found["fields"], kind=kind)} == {"exact", "trained"}
        made = {row["solver"] for row in tables.chosen(found["quality"], kind=kind)}
        assert made == {*solvers.ACCELERATED, *(["DDPM (ancestral)"] if kind == "diffusion" else [])}
        assert {row["architecture"] for row in tables.chosen(found["architectures"], kind=kind)} == set(ARCHITECTURES)
    for name, table in tables.TABLES.items():
        lines = table(found).splitlines()
        assert len({line.count("|") for line in lines}) == 1, name
    assert "few-step distilled models" in tables.frechet(found)
    for name in ("solvers", "gains", "curvature", "accelerated", "architectures"):
        assert (tmp_path / f"figures/complexity-{name}.png").read_bytes().startswith(b"\x89PNG")
    for part in ("sets", "fields", "quality", "architectures"):  # a missing part is not drawn over
        with pytest.raises((KeyError, ValueError, IndexError, ZeroDivisionError)):
            [table({**found, part: []}) for table in tables.TABLES.values()]


def test_recorded_results_are_of_all_sets_and_their_references_are_solved():
    found = json.loads(RESULTS.read_text())
    assert found["size"] != "smoke"
    assert [row["set"] for row in found["sets"]] == list(parts.SETS)
    for row in tables.chosen(found["fields"], field="trained", kind="flow"):
        assert row["doubt"] < 0.2 * tables.error(row, "Euler", 20), "the solution is known better than what is measured"
    for kind in KINDS:  # both kinds get the same search
        rates = {(row["set"], tuple(t["lr"] for t in row["tried"])) for row in found["fields"] if row.get("tried")}
        assert {lrs for _, lrs in rates} == {tuple(found["settings"]["rates"])}, kind


def test_the_page_shows_the_recorded_tables():
    found, page = json.loads(RESULTS.read_text()), PAGE.read_text()
    for name, table in tables.TABLES.items():
        assert table(found) in page, f"table {name!r} of docs/papers/complexity.md differs from the results"
