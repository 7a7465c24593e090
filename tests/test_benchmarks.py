"""The benchmark of solvers runs from end to end, on numbers too small to mean anything."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from benchmarks.solvers import __main__ as solvers
from benchmarks.solvers.contenders import FAMILIES


@pytest.mark.slow
def test_error_against_evaluations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [word for name in ("out", "figures", "cache") for word in (f"--{name}", str(tmp_path / name))]
    solvers.main(["--smoke", *folders])
    worlds = json.loads((tmp_path / "out/solvers.json").read_text())["worlds"]
    names = {name for family in FAMILIES.values() for name in family}
    for records in worlds.values():
        found = {record["solver"] for record in records}
        # Some take more evaluations for one step than the rehearsal allows.
        assert names - found <= {"Dormand-Prince 5"}
        assert all(record["error"] >= 0 for record in records)
    assert (tmp_path / "figures/error.png").read_bytes().startswith(b"\x89PNG")
    assert "digits, velocity network" in capsys.readouterr().out


def test_a_rehearsal_does_not_overwrite_results() -> None:
    with pytest.raises(SystemExit):
        solvers.main(["--smoke"])
