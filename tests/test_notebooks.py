"""The notebooks are stored executed, without errors and without traces of the machine they ran on."""

import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_executed(path: Path) -> None:
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in cells), "execute it: make notebooks ARGS=--inplace"
    assert any(output.get("data", {}).get("image/png") for cell in cells for output in cell["outputs"])
    assert not any(output["output_type"] == "error" for cell in cells for output in cell["outputs"])
    assert not any(trace in path.read_text() for trace in ("site-packages", ".venv/", "Warning"))


def test_there_are_notebooks() -> None:
    assert len(NOTEBOOKS) >= 2
