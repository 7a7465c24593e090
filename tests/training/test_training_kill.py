from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from killed_runs import PLACES, STEPS, train
from small_runs import same, weights

from genmatch.training.checkpoint import Checkpoint

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
@pytest.mark.parametrize("number", range(8))
def test_a_run_killed_at_any_time_ends_in_the_same_weights(number, tmp_path, whole):
    generator, attempts = random.Random(number), 0
    while True:
        attempts += 1
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(SCRIPT), "--train", str(tmp_path)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(generator.random() * 0.4 * attempts)
        process.send_signal(signal.SIGKILL)
        process.wait()
        saved = Checkpoint(tmp_path).open(True)  # whole, or not there
        if saved is not None and saved.step == STEPS:
            break
        assert attempts < 50
    assert same(state_of(train(tmp_path, seed=1)), whole)
