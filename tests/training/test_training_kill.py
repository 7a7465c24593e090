from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from killed_runs import MANY, PLACES, train
from small_runs import same, weights

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork and SIGKILL")
SCRIPT = Path(__file__).with_name("killed_runs.py")


def state_of(result) -> dict[str, torch.Tensor]:
    return {
        **weights(result.model),
        **{f"ema.{name}": value.clone() for name, value in result.ema.state_dict().items()},
    }


@pytest.fixture(scope="module")
def whole() -> dict[str, torch.Tensor]:
    return state_of(train(None))


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, str(SCRIPT), str(folder), *PLACES], check=True, env=environment, timeout=300)
    return folder


@pytest.mark.parametrize("place", PLACES)
def test_a_run_killed_anywhere_ends_in_the_same_weights(place, killed, whole):
    folder, reached = killed / str(list(PLACES).index(place)), PLACES[place][1]
    result = train(
        folder, seed=1 if reached else 0
    )  # other weights, where there is a checkpoint to bring the right ones
    assert result.start == reached
    assert same(state_of(result), whole)
    steps = [int(line.split(",")[0]) for line in (folder / "log.csv").read_text().splitlines()[1:]]
    assert steps == [3, 6, 9, 12]
    # Nothing is left of what was being written.
    files = {"checkpoint.safetensors", "checkpoint.previous.safetensors", "log.csv"}
    assert {path.name for path in folder.iterdir()} - files <= (
        {"checkpoint.safetensors.part"} if reached == 12 else set()
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", range(4))
def test_a_run_killed_at_any_time_ends_in_the_same_weights(number, tmp_path):
    # A checkpoint after every step: most of the time is spent in writing them.
    command = [sys.executable, str(SCRIPT), "--random", str(tmp_path), str(number)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, env=environment, timeout=300, capture_output=True, text=True)
    reached = [int(step) for step in done.stdout.split()]
    assert reached == sorted(reached)
    assert reached[-1] == MANY
    assert len(set(reached)) > 1  # killed on the way at least once; how often depends on the machine
    result = state_of(train(tmp_path, seed=1, steps=MANY, every=1))
    assert same(result, state_of(train(None, steps=MANY)))
