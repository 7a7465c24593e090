"""The benchmarks run from end to end, on numbers too small to mean anything; ratios are right side up; pages agree."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks"
sys.path.insert(0, str(ROOT))

PEERS = ("flow_matching", "torchcfm", "diffusers", "k_diffusion", "azula", "ot", "torchdiffeq")
TOPICS = ("import", "target", "pairing", "overhead", "step", "tokens", "networks", "likelihood")


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The modules of the suite, as ``python benchmarks`` sees them, and gone afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(FOLDER))
    names = ("_suite", "_interleave", "_topic", "_page", "_memory")
    yield SimpleNamespace(**{name.lstrip("_"): importlib.import_module(name) for name in names})
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(file).parent == FOLDER:
            del sys.modules[name]


@pytest.fixture
def command(modules: SimpleNamespace) -> ModuleType:
    """The command line ``python benchmarks``, loaded without running it."""
    spec = importlib.util.spec_from_file_location("command_of_the_benchmarks", FOLDER / "__main__.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture
def clock(modules: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that goes only when it is told to."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(modules.interleave.time, "perf_counter", lambda: now.seconds)
    return now


def working(clock: SimpleNamespace, seconds: float, calls: list[str], name: str):
    """A contender that takes so long."""

    def run() -> None:
        clock.seconds += seconds
        calls.append(name)

    return run


@pytest.mark.parametrize("topic", [name for name in TOPICS if name != "import"])
def test_a_topic_gives_rows_and_says_which_library_is_missing(
    topic: str, modules: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in PEERS:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if not (Path(entry) / "k_diffusion").is_dir()])
    rows = [row.record() for row in modules.topic.measure(topic, modules.suite.Scale("smoke"))]
    missing = [row for row in rows if "missing" in row]
    assert missing, "every topic has a peer that is not there"
    assert all("Error" in row["missing"] and "ratio" not in row for row in missing)
    for row in rows:
        assert row["what"]
        assert row["peer"]
        assert {"version", "library", "ours"} <= set(row)
        if "missing" not in row:
            assert 0 < row["least"] <= row["ratio"] <= row["most"]
    assert all(modules.suite.show(row) for row in rows)


def test_imports_are_compared_the_right_way_round(modules: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    topic = importlib.import_module("import_time")
    monkeypatch.setattr(topic, "seconds", lambda statement: 2.0 if "genmatch" in statement else 3.0)
    rows = [row.record() for row in topic.rows(modules.suite.Scale("smoke"))]
    (torch_alone,) = (row for row in rows if row["library"] == "torch")
    assert torch_alone["ratio"] == 1.5
    assert torch_alone["version"] == torch.__version__


def test_ratio_is_theirs_over_ours_and_a_slow_spell_cancels(modules: SimpleNamespace, clock: SimpleNamespace) -> None:
    calls: list[str] = []
    slow = working(clock, 3.0, calls, "theirs")
    runs = {"ours": working(clock, 1.0, calls, "ours"), "theirs": slow}
    times = modules.interleave.interleave(runs, 3)
    assert calls == ["ours", "theirs"] * 4  # one round to warm up; then in turns
    assert modules.interleave.ratios(times, "ours")["theirs"] == (3.0, 3.0, 3.0)
    times = {"ours": [1.0, 10.0, 2.0], "theirs": [3.0, 30.0, 8.0]}  # the machine is ten times slower in the second
    assert modules.interleave.ratios(times, "ours")["theirs"] == (3.0, 3.0, 4.0)


def test_short_calls_are_repeated_until_they_can_be_timed(modules: SimpleNamespace, clock: SimpleNamespace) -> None:
    calls: list[str] = []
    runs = {"short": working(clock, 0.25, calls, "short"), "long": working(clock, 4.0, calls, "long")}
    times = modules.interleave.interleave(runs, 2, least=1.0)
    assert times == {"short": [0.25, 0.25], "long": [4.0, 4.0]}
    assert calls[4:] == (["short"] * 4 + ["long"]) * 2


def test_the_clock_can_be_the_processor_s(modules: SimpleNamespace, clock: SimpleNamespace, monkeypatch) -> None:
    monkeypatch.setattr(modules.interleave.time, "process_time", lambda: clock.seconds / 4)  # the rest is others' time
    run = working(clock, 4.0, [], "")
    assert modules.interleave.interleave({"": run}, 1) == {"": [4.0]}
    modules.interleave.set_clock("cpu")
    assert modules.interleave.interleave({"": run}, 1) == {"": [1.0]}
    with pytest.raises(ValueError, match="wall, cpu, got 'sun'"):
        modules.interleave.set_clock("sun")


def test_a_peer_that_fails_leaves_the_others(modules: SimpleNamespace, clock: SimpleNamespace) -> None:
    def broken() -> None:
        raise RuntimeError("of its\nown")

    def absent():
        raise ModuleNotFoundError("No module named 'absent'")

    peers = [
        modules.suite.Peer("broken", "torch", lambda: broken),
        modules.suite.Peer("absent", "absent", absent),
        modules.suite.Peer("works", "torch", lambda: working(clock, 2.0, [], "")),
    ]
    rows = modules.suite.compare("case", "ours", working(clock, 1.0, [], ""), peers, 2)
    rows = {row.peer: row.record() for row in rows}
    assert rows["works"]["ratio"] == 2.0
    assert rows["broken"]["missing"] == "RuntimeError: of its own"
    assert rows["absent"]["missing"] == "ModuleNotFoundError: No module named 'absent'"
    assert rows["absent"]["version"] == "not installed"


@pytest.mark.parametrize(
    ("least", "most", "said"), [(1.1, 2.0, "faster"), (0.5, 0.9, "slower"), (0.9, 1.1, "even"), (1.0, 1.2, "even")]
)
def test_a_loss_is_called_one(least: float, most: float, said: str, modules: SimpleNamespace) -> None:
    row = {"what": "w", "ours": "o", "peer": "p", "version": "1", "ratio": 1.0, "least": least, "most": most}
    assert modules.suite.verdict(row) == said
    assert ("slower" in modules.suite.show(row)) == (said == "slower")


def test_the_network_of_a_step_is_run_as_often_by_all(modules: SimpleNamespace) -> None:
    step = importlib.import_module("sampling_step")
    loops = importlib.import_module("_loops")
    x = torch.zeros(2, 3)

    class Twice(step.Counted):
        def forward(self, x, t):
            super().forward(x, t)
            return super().forward(x, t)

    step.Counted(loops.gm.nn.MLP(3)).check(x, 2)
    with pytest.raises(RuntimeError, match="takes 4 evaluations for 2 steps"):
        Twice(loops.gm.nn.MLP(3)).check(x, 2)


def test_one_command_prints_and_saves_by_machine_and_date(
    command: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = ["--smoke", "--out", str(tmp_path), "--only"]
    assert command.main([*options, "pairing"]) == 0
    (path,) = tmp_path.glob("*/*-smoke.json")
    found = json.loads(path.read_text())
    assert {"date", "commit", "machine", "versions", "topics"} <= set(found)
    assert path.parent.name == command.machine_name(found["machine"])
    assert path.stem == f"{found['date']}-smoke"
    rows = found["topics"]["pairing"]["rows"]
    assert {row["library"] for row in rows} == {"torchcfm", "POT"}
    assert found["topics"]["pairing"]["title"].startswith("Minibatch optimal transport")
    assert "gm.couplings.OT()" in capfd.readouterr().out


def test_a_topic_that_fails_is_said_and_loses_no_other(
    command: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = {"title": "T", "commit": "", "threads": 1, "seconds": 1.0, "rows": [{"what": "kept"}]}
    runs = {"target": whole, "pairing": {**whole, "error": "ended"}, "tokens": whole}
    monkeypatch.setattr(command, "run", lambda topic, args: runs[topic])
    assert command.main(["--out", str(tmp_path), "--only", "tokens", "pairing"]) == 1
    assert "failed: pairing" in capsys.readouterr().err
    assert command.main(["--out", str(tmp_path), "--only", "target"]) == 0
    (path,) = tmp_path.glob("*/*.json")
    assert list(json.loads(path.read_text())["topics"].items()) == list(runs.items())  # all three, in the usual order


def test_a_process_that_fails_has_kept_its_rows(command: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def process(words: list[str], check: bool) -> SimpleNamespace:
        Path(words[-2]).write_text('{"title": "T"}\n{"what": "kept"}\n')
        return SimpleNamespace(returncode=-11)

    monkeypatch.setattr(command, "origin", lambda: {"commit": ""})
    monkeypatch.setattr(command, "subprocess", SimpleNamespace(run=process))
    found = command.run("pairing", argparse.Namespace(smoke=True, quick=False, rounds=0, threads=1, clock="cpu"))
    assert found["title"] == "T"
    assert found["rows"] == [{"what": "kept"}]
    assert "exit status -11" in found["error"]


def test_bad_options_are_refused_and_the_list_is_whole(command: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert tuple(command.TOPICS) == TOPICS
    for options, message in (
        (["--smoke"], "give --out"),
        (["--rounds", "-1"], "got -1"),
        (["--threads", "0"], "got 0"),
        (["--only", "speed"], "invalid choice"),
    ):
        with pytest.raises(SystemExit):
            command.main(options)
        assert message in capsys.readouterr().err
    assert command.main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in TOPICS)
    assert all((FOLDER / f"{file}.py").is_file() for file in command.TOPICS.values())
    for study in command.STUDIES:  # what is listed is there
        words = study.split()
        assert (ROOT / (words[2].replace(".", "/") if words[1] == "-m" else words[1])).exists()


def test_the_page_and_its_results_agree(modules: SimpleNamespace) -> None:
    path = modules.page.newest(FOLDER / "results")
    results = json.loads(path.read_text())
    page = (ROOT / "docs/benchmarks.md").read_text()
    assert modules.page.replace_between(page, modules.page.tables(results)) == page
    assert set(results["topics"]) == set(TOPICS)
    for name, topic in results["topics"].items():
        assert "error" not in topic
        figure = ROOT / f"docs/_static/benchmarks/{name}.png"
        assert figure.read_bytes().startswith(b"\x89PNG")
    row = next(row for row in results["topics"]["networks"]["rows"] if "ratio" in row)
    row["ratio"] *= 2
    assert modules.page.replace_between(page, modules.page.tables(results)) != page


def test_a_page_without_its_part_is_refused(modules: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match="no part"):
        modules.page.replace_between("text", "more")
    with pytest.raises(FileNotFoundError, match="run python benchmarks"):
        modules.page.newest(FOLDER / "robustness")


def test_the_page_is_drawn_from_the_newest_full_results(modules: SimpleNamespace, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    row = {"what": "w", "ours": "o", "peer": "p", "library": "torch", "version": "1", "ratio": 0.5, "least": 0.4}
    row |= {"most": 0.6, "notes": {"kept": 0.63, "weights": {"ours": 1000, "theirs": 999}}}
    absent = {"what": "w", "ours": "o", "peer": "q", "library": "q", "version": "not installed", "missing": "not here"}
    topic = {"title": "T", "commit": "c", "threads": 1, "clock": "cpu", "seconds": 1.0, "rows": [row, absent]}
    machine = {"processor": "P", "cores": 2, "gpu": None, "python": "3"}
    for name in ("a/2026-01-01", "b/2026-03-01", "a/2026-02-01", "a/2026-04-01-quick", "a/scaling-2026-05-01"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        content = {"date": name, "machine": machine, "versions": {"torch": "1"}, "topics": {"step": topic}}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "benchmarks.md").write_text(f"before\n{modules.page.BEGIN}\n{modules.page.END}\nafter\n")
    assert modules.page.draw(tmp_path, docs) == tmp_path / "b/2026-03-01.json"
    page = (docs / "benchmarks.md").read_text()
    assert page.startswith("before\n")
    assert page.endswith("after\n")
    assert "| w | `o` | torch: p (1) | **0.50** | (0.40, 0.60) | kept 0.63; weights 1,000 / 999 |" in page
    assert "left out: not here" in page
    assert (docs / "_static/benchmarks/step.png").read_bytes().startswith(b"\x89PNG")


def test_peak_memory_is_what_is_held_at_a_time(modules: SimpleNamespace) -> None:
    size = 4 * 1000 * 1000

    def two_at_a_time() -> None:
        x = torch.ones(1000, 1000)
        y = x + 1
        del x
        y * 2

    def three_at_a_time() -> None:
        x = torch.ones(1000, 1000)
        y = x + 1
        assert (y * 2).shape == x.shape

    assert modules.memory.peak_bytes(two_at_a_time) == pytest.approx(2 * size, rel=0.01)
    assert modules.memory.peak_bytes(three_at_a_time) == pytest.approx(3 * size, rel=0.01)


def test_peak_memory_counts_what_autograd_keeps(modules: SimpleNamespace) -> None:
    x = torch.ones(1000, 1000, requires_grad=True)

    def run(grad: bool) -> None:
        with torch.set_grad_enabled(grad):
            y = x
            for _ in range(5):
                y = y.tanh()  # each keeps its output for the gradient

    size = 4 * x.numel()
    assert modules.memory.peak_bytes(lambda: run(True)) == pytest.approx(5 * size, rel=0.01)
    assert modules.memory.peak_bytes(lambda: run(False)) == pytest.approx(2 * size, rel=0.01)


def test_exponents_of_powers_are_found(modules: SimpleNamespace) -> None:
    exponent = importlib.import_module("scaling").exponent
    sizes = [2, 4, 8, 16, 32]
    assert exponent(sizes, [3 * n**1.5 for n in sizes]) == pytest.approx((1.5, 1.5, 1.5))
    slope, low, high = exponent(sizes, [100 + n for n in sizes])  # a constant hides the growth
    assert 0 < low < slope < high < 0.5
    noisy = [n**2 * factor for n, factor in zip(sizes, (1.1, 0.9, 1.0, 1.1, 0.9), strict=True)]
    slope, low, high = exponent(sizes, noisy)
    # Slope and standard error of simple regression, written out.
    u = [math.log(n) for n in sizes]
    v = [math.log(cost) for cost in noisy]
    mean_u, mean_v = sum(u) / 5, sum(v) / 5
    sxx = sum((a - mean_u) ** 2 for a in u)
    expected = sum((a - mean_u) * (b - mean_v) for a, b in zip(u, v, strict=True)) / sxx
    rest = sum((b - mean_v - expected * (a - mean_u)) ** 2 for a, b in zip(u, v, strict=True))
    half = 3.182446 * math.sqrt(rest / 3 / sxx)  # the 97.5 % point of Student's law with 3 degrees of freedom
    assert (slope, low, high) == pytest.approx((expected, expected - half, expected + half), rel=1e-5)


def test_a_curve_is_measured_and_drawn(modules: SimpleNamespace, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    scaling = importlib.import_module("scaling")
    curve = scaling.Curve("batch", "tanh", (1000, 2000, 4000), lambda n: torch.zeros(n, 250).tanh)
    found = scaling.measure(curve, rounds=1, least=0.0)
    assert found["bytes"] == [1000 * n for n in curve.sizes]
    assert found["memory_exponent"] == pytest.approx([1.0, 1.0, 1.0])
    assert found["time"][0] == 1.0
    machine = {"processor": "P", "cores": 2, "gpu": None, "threads": 1, "torch": "2"}
    path = tmp_path / "m/scaling-2026-01-01.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"date": "2026-01-01", "machine": machine, "curves": [found]}))
    (tmp_path / "scaling.md").write_text(f"{modules.page.BEGIN}\n{modules.page.END}\n")
    assert scaling.draw(tmp_path, tmp_path) == path
    assert "| batch | tanh | 1,000 to 4,000 |" in (tmp_path / "scaling.md").read_text()
    assert (tmp_path / "_static/benchmarks/scaling.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_of_scaling_and_its_results_agree(modules: SimpleNamespace) -> None:
    scaling = importlib.import_module("scaling")
    path = scaling.newest(FOLDER / "results")
    results = json.loads(path.read_text())
    page = (ROOT / "docs/scaling.md").read_text()
    assert modules.page.replace_between(page, scaling.table(results)) == page
    assert [(curve["axis"], curve["name"]) for curve in results["curves"]] == [(c.axis, c.name) for c in scaling.CURVES]
    results["curves"][0]["time_exponent"][0] += 1
    assert modules.page.replace_between(page, scaling.table(results)) != page


@pytest.mark.slow
def test_error_against_evaluations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    solvers, families = _solvers()
    folders = [word for name in ("out", "figures", "cache") for word in (f"--{name}", str(tmp_path / name))]
    solvers.main(["--smoke", *folders])
    worlds = json.loads((tmp_path / "out/solvers.json").read_text())["worlds"]
    names = {name for family in families.values() for name in family}
    for records in worlds.values():
        found = {record["solver"] for record in records}
        # Some take more evaluations for one step than the rehearsal allows.
        assert names - found <= {"Dormand-Prince 5"}
        assert all(record["error"] >= 0 for record in records)
    assert (tmp_path / "figures/error.png").read_bytes().startswith(b"\x89PNG")
    assert "digits, velocity network" in capsys.readouterr().out


def test_a_rehearsal_does_not_overwrite_results() -> None:
    solvers, _ = _solvers()
    with pytest.raises(SystemExit):
        solvers.main(["--smoke"])


def _solvers():
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    names = ("__main__", "contenders")
    solvers, contenders = (importlib.import_module(f"benchmarks.solvers.{name}") for name in names)
    return solvers, contenders.FAMILIES
