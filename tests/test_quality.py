"""Quality for a given time of training: the budget, the pairing, both sides on a smoke run of seconds."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import nn

import genmatch as gm

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks/ is beside the package and not in it
pytest.importorskip("sklearn")

from benchmarks.quality import ours, tables, theirs
from benchmarks.quality.__main__ import main
from benchmarks.quality.budget import Budget
from benchmarks.quality.plans import ABLATION, BEST, FINAL, OUR_NAME, PUBLISHED_NAME, SEARCH, THEIR_BEST
from benchmarks.quality.runs import Run, Sampler, samples
from benchmarks.quality.task import load

ROOT = Path(__file__).parents[1]


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _work(seconds: float) -> None:
    begin = time.process_time()
    while time.process_time() - begin < seconds:
        pass


def test_a_processor_budget_counts_work_and_not_waiting(one_thread: None) -> None:
    budget = Budget(60.0, "cpu")
    time.sleep(0.3)
    idle = budget.spent
    _work(0.3)
    assert idle < 0.2
    assert budget.spent - idle >= 0.25


def test_a_wall_budget_counts_waiting() -> None:
    budget = Budget(60.0, "wall")
    time.sleep(0.1)
    assert budget.spent >= 0.1


@pytest.mark.parametrize("clock", ["cpu", "wall"])
def test_a_pause_is_not_counted(clock: str, one_thread: None) -> None:
    budget = Budget(60.0, clock)
    with budget.paused():
        _work(0.3)
    assert budget.spent < 0.2
    assert not budget.over


def test_marks_come_once_and_in_order() -> None:
    budget = Budget(0.2, "wall", (0.1, 0.0, 0.5))
    assert budget.due() == 0.0
    assert budget.due() is None
    time.sleep(0.25)
    assert budget.over
    assert budget.share == 1.0
    assert budget.due() == 0.1
    assert budget.due() is None  # 0.5 is beyond the end


def test_a_budget_refuses_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="clock must be one of"):
        Budget(1.0, "sun")
    with pytest.raises(ValueError, match="positive number of seconds"):
        Budget(0.0, "wall")


def test_processor_time_of_several_threads_is_refused() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ValueError, match="stands for wall time on one thread, there are 2"):
            Budget(1.0, "cpu")
    finally:
        torch.set_num_threads(threads)


def test_a_folded_network_sees_each_square_as_channels() -> None:
    class Double(nn.Module):
        shape: tuple[int, ...] = ()

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            self.shape = tuple(x.shape)
            return 2 * x

    inner = Double()
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(ours.Folded(inner)(x, torch.rand(3)), 2 * x)
    assert inner.shape == (3, 4, 4, 4)


def test_pairs_are_the_cheapest_of_their_pool_and_use_every_noise_once() -> None:
    images = torch.randn(40, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    batches = list(ours.Pairs(images, batch=4, pool=8, seed=3))
    assert len(batches) == 10
    again = list(ours.Pairs(images, batch=4, pool=8, seed=3))
    other = list(ours.Pairs(images, batch=4, pool=8, seed=4))
    assert all(torch.equal(a[1]["x0"], b[1]["x0"]) for a, b in zip(batches, again, strict=True))
    assert not torch.equal(batches[0][1]["x0"], other[0][1]["x0"])
    every = torch.cat([x1 for x1, _ in batches]).flatten(1)
    assert sorted(map(tuple, every.tolist())) == sorted(map(tuple, images.flatten(1).tolist()))
    for first in range(0, len(batches), 2):  # two batches make a pool
        x1 = torch.cat([x1 for x1, _ in batches[first : first + 2]]).flatten(1)
        x0 = torch.cat([c["x0"] for _, c in batches[first : first + 2]]).flatten(1)
        cost = torch.cdist(x1, x0).square()
        paired = cost.diagonal().sum()
        # An assignment is the cheapest only if exchanging two of its noises never pays.
        for i in range(8):
            for j in range(i):
                assert cost[i, j] + cost[j, i] >= cost[i, i] + cost[j, j] - 1e-4
        assert paired < cost.mean() * 8


def test_a_second_pass_over_the_pairs_draws_other_noise() -> None:
    pairs = ours.Pairs(torch.randn(8, 1, 2, 2), batch=8, pool=8, seed=0)
    (_, first), (_, second) = next(iter(pairs)), next(iter(pairs))
    assert set(map(tuple, first["x0"].flatten(1).tolist())).isdisjoint(map(tuple, second["x0"].flatten(1).tolist()))


def test_pools_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="whole number of batches of 4, got 6"):
        ours.Pairs(torch.zeros(8, 1, 2, 2), batch=4, pool=6, seed=0)
    with pytest.raises(ValueError, match="needs as many images, got 8"):
        ours.Pairs(torch.zeros(8, 1, 2, 2), batch=4, pool=16, seed=0)


def test_an_unknown_network_is_refused() -> None:
    with pytest.raises(ValueError, match="'folded', 'unet' or 'dit', got 'mlp'"):
        ours.build(replace(BEST, network="mlp"), (1, 8, 8))


def test_the_two_sides_have_searches_of_one_size_and_meet_for_one_time() -> None:
    sides = [type(named.recipe).__name__ for named in SEARCH.recipes]
    assert sides.count("Ours") == sides.count("Theirs")
    assert SEARCH.seconds is not None
    assert ABLATION.seconds is not None
    assert FINAL.seconds is None  # that of the command line, for all alike
    assert len(FINAL.seeds) == 3
    assert {named.recipe for named in FINAL.recipes} >= {BEST, theirs.Theirs()}


def test_every_ablation_undoes_one_choice() -> None:
    for named in ABLATION.recipes[1:]:
        assert isinstance(named.recipe, ours.Ours)
        changed = {key for key, value in vars(BEST).items() if getattr(named.recipe, key) != value}
        # Another network has a width, levels and blocks of its own.
        assert len(changed) == 1 or "network" in changed, named.name


def test_runs_have_names_of_their_own() -> None:
    run = Run(BEST, 0, 60.0, "cpu", "mnist")
    others = [
        replace(run, seed=1),
        replace(run, seconds=61.0),
        replace(run, clock="wall"),
        replace(run, data="digits"),
        replace(run, recipe=replace(BEST, lr=1e-5)),
        replace(run, recipe=theirs.Theirs()),
    ]
    assert len({run.name, *(other.name for other in others)}) == 7


def test_samples_take_the_solver_and_the_times_that_are_named(tmp_path: Path) -> None:
    task = load("digits", None, tmp_path, steps=2)

    class Still(nn.Module):
        calls = 0

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return torch.zeros_like(x)

    model = gm.predict.Velocity(Still(), gm.GaussianPath())
    x = samples(model, task, Sampler("four", gm.solvers.Euler(), 4), 5)
    assert model.network.calls == 4
    assert torch.equal(x, samples(model, task, Sampler("two", gm.solvers.Euler(), 2), 5))  # the noise itself
    assert task.distance(x)[0] > 10 * task.floor(100)[0]


def test_the_benchmark_runs_from_end_to_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], one_thread: None
) -> None:
    folders = [word for name in ("out", "figures", "cache") for word in (f"--{name}", str(tmp_path / name))]
    main(["--smoke", "--budget", "0.5", *folders])
    content = json.loads((tmp_path / "out/quality.json").read_text())
    records = {record["name"]: record for record in content["plans"]["final"]}
    shown = capsys.readouterr().out
    assert OUR_NAME in records
    if len(records) == 1:
        assert "left out, torchcfm is not installed" in shown
    for record in records.values():
        assert all(0.5 <= spent < 5 for spent in record["spent"])
        assert all(steps > 0 for steps in record["steps"])
        assert all(value >= 0 for values in record["frechet"].values() for value in values)
        assert [point["seconds"] for point in record["curve"]] == sorted(p["seconds"] for p in record["curve"])
    trained = sorted((tmp_path / "cache").glob("ours-*.pt"))
    before = [path.stat().st_mtime_ns for path in trained]
    main(["--smoke", "--budget", "0.5", *folders])  # nothing is trained again
    assert [path.stat().st_mtime_ns for path in trained] == before


def test_a_rehearsal_does_not_overwrite_results() -> None:
    with pytest.raises(SystemExit):
        main(["--smoke"])


def test_a_gpu_is_timed_by_the_wall(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--device", "cuda"])
    assert "give --clock wall" in capsys.readouterr().err


def test_their_matcher_and_ours_train_one_velocity() -> None:
    """Euler steps of ours on their network are x + h v(t, x): what torchdiffeq's ``euler`` does."""
    pytest.importorskip("torchcfm")
    odeint = pytest.importorskip("torchdiffeq").odeint
    model = theirs.build(theirs.Theirs(channels=32, attention="1"), (1, 8, 8)).eval()
    x = torch.randn(2, 1, 8, 8)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.05)
    with torch.no_grad():
        expected = odeint(
            lambda t, y: model.network.network(t.expand(len(y)), y), x, torch.linspace(0, 1, 5), method="euler"
        )[-1]
    assert torch.allclose(gm.sample(gm.Flow(model), x, steps=4, solver=gm.solvers.Euler()), expected, atol=1e-5)


def test_the_page_says_what_was_measured() -> None:
    results = ROOT / "benchmarks/results/quality.json"
    page = (ROOT / "docs/quality.md").read_text(encoding="utf-8")
    measured = page.split(tables.BEGIN)[1].split(tables.END)[0]
    assert measured.strip() == tables.markdown(json.loads(results.read_text())).strip()


KEY = "Euler, 10 steps, 500 samples"


def test_the_recipes_that_meet_are_the_best_of_their_searches() -> None:
    plans = json.loads((ROOT / "benchmarks/results/quality.json").read_text())["plans"]
    for side, recipe in (("Ours", BEST), ("Theirs", THEIR_BEST)):
        tried = [record for record in plans["search"] if record["side"] == side]
        assert len(tried) == len(plans["search"]) / 2
        best = min(tried, key=lambda record: next(iter(record["frechet"].values()))[0])
        assert best["recipe"] == json.loads(json.dumps(asdict(recipe)))
    assert len({key for record in plans["search"] for key in record["frechet"]}) == 2  # one solver a side, one count
    assert len({key.split(", ")[2] for record in plans["search"] for key in record["frechet"]}) == 1


def test_distances_of_unequal_counts_are_not_compared() -> None:
    ours, theirs = _record(OUR_NAME, [1.0]), _record(PUBLISHED_NAME, [4.0])
    ours["frechet"] = {KEY.replace("500", "2000"): [1.0]}
    ours["second classifier"] = ours["frechet"]
    with pytest.raises(ValueError, match="compare at equal evaluations and counts"):
        tables.markdown({"plans": {"final": [ours, theirs]}, "floor": {"10 test images": [0.5, 0.5]}})


def _record(name: str, values: list[float]) -> dict:
    return {
        "name": name,
        "seconds": 300.0,
        "weights": 1000,
        "seeds": list(range(len(values))),
        "steps": [10] * len(values),
        "images": [320] * len(values),
        "frechet": {KEY: values},
        "second classifier": {KEY: values},
    }


@pytest.mark.parametrize(
    ("own", "verdict"), [([1.0, 2.0], "every seed of ours is"), ([1.0, 4.5], "not every seed of ours is")]
)
def test_the_verdict_is_the_ratio_of_the_means(own: list[float], verdict: str) -> None:
    records = [_record(OUR_NAME, own), _record(PUBLISHED_NAME, [4.0, 5.0])]
    text = tables.markdown({"plans": {"final": records}, "floor": {"2000 test images": [0.045, 0.046]}})
    ratio = 4.5 / (sum(own) / 2)
    assert f"- {PUBLISHED_NAME}, {KEY}: a distance {ratio:.2f} times ours by Euler; {verdict} below all" in text
    assert f"| {OUR_NAME} | Euler | 10 | 500 | {own[0]:.2f} {own[1]:.2f} |" in text
    assert "0.045 for 2000 test images" in text


def test_the_ablation_is_compared_seed_by_seed() -> None:
    records = [_record("the recipe", [1.0, 2.0, 4.0]), _record("worse", [2.0, 3.0, 4.0]), _record("one", [3.0])]
    text = tables.markdown({"plans": {"ablation": records}})
    assert "3 seeds" in text
    assert "| the recipe | 10 | 320 | 2.33 (1.00 to 4.00) |  |" in text
    assert "| worse | 10 | 320 | 3.00 (2.00 to 4.00) | 1.50 (1.00 to 2.00) |" in text
    assert "| one | 10 | 320 | 3.00 | 3.00 |" in text


def test_tables_replace_what_stands_between_the_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n")
    content = {"plans": {"final": [_record(OUR_NAME, [1.0])]}, "floor": {"10 test images": [0.5, 0.5]}}
    tables.write(page, content)
    text = page.read_text()
    assert text.startswith(f"before\n{tables.BEGIN}\n")
    assert text.endswith(f"{tables.END}\nafter\n")
    assert "old" not in text
    tables.write(page, content)
    assert page.read_text() == text
    page.write_text("nothing")
    with pytest.raises(ValueError, match="needs the lines"):
        tables.write(page, content)
