from __future__ import annotations

import os
from pathlib import Path

import pytest

_SHARED = Path(os.environ.get("GENMATCH_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")


@pytest.fixture(autouse=True)
def _no_data_folder(monkeypatch):
    """The tests say themselves where data are."""
    monkeypatch.delenv("GENMATCH_DATA", raising=False)


@pytest.fixture
def real_data():
    """Path of a real data set below the folder of real data, or skip."""

    def find(name: str) -> Path:
        path = _SHARED / name
        if not path.exists():
            pytest.skip(f"no real data at {path}: set GENMATCH_DATA to a folder that has {name}")
        return path

    return find
