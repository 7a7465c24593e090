"""Runs that are killed by SIGKILL at given places: ``python killed_runs.py FOLDER PLACE ...`` forks one for each.
``python killed_runs.py --random FOLDER SEED`` kills one again and again until it ends.

One process imports everything and forks, as importing takes longer than training here.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from small_runs import build, flow_loss, points

import genmatch.training.files as files
from genmatch.nn import EMA
from genmatch.training import Fit, fit
from genmatch.training.checkpoint import Checkpoint

STEPS, EVERY = 12, 4
MANY = 100


def train(folder: Path | None, seed: int = 0, steps: int = STEPS, every: int = EVERY) -> Fit:
    """The run: everything is made anew, with other weights for another seed."""
    model = build(seed)
    torch.manual_seed(seed + 100)
    return fit(
        model,
        points(),
        steps,
        loss=flow_loss,
        ema=0.9,
        batch_size=8,
        lr=1e-2,
        progress=False,
        log=None if folder is None else folder / "log.csv",
        log_every=3,
        checkpoint=folder,
        checkpoint_every=every,
    )


def die(*_args, **_kwargs) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def on_call(module, name: str, number: int, before: bool) -> None:
    """Die at the given call of a function: before it, or after it."""
    function, calls = getattr(module, name), iter(range(1, 10**6))

    def wrapped(*args, **kwargs):
        last = next(calls) == number
        if last and before:
            die()
        result = function(*args, **kwargs)
        if last:
            die()
        return result

    setattr(module, name, wrapped)


def half_written(number: int) -> None:
    """Die when half of the bytes of a checkpoint are written."""
    save, calls = files.save_file, iter(range(1, 10**6))

    def wrapped(tensors, path, metadata):
        save(tensors, path, metadata=metadata)
        if next(calls) == number:
            os.truncate(path, os.path.getsize(path) // 2)
            die()

    files.save_file = wrapped


# The log begins with a call of os.replace and two of os.fsync, for file and folder. Checkpoints are written after steps
# 4, 8 and 12: the first makes the same calls, the others begin with os.link and os.replace to keep the one before.
PLACES = {
    "half of the first": (lambda: half_written(1), 0),
    "half of the second": (lambda: half_written(2), 4),
    "before the first is flushed": (lambda: on_call(os, "fsync", 3, before=True), 0),
    "before the first is in place": (lambda: on_call(os, "replace", 2, before=True), 0),
    "when the first is in place": (lambda: on_call(os, "replace", 2, before=False), 4),
    "before the second is flushed": (lambda: on_call(os, "fsync", 5, before=True), 4),
    "before the first is kept": (lambda: on_call(os, "link", 1, before=True), 4),
    "when the first has two names": (lambda: on_call(os, "link", 1, before=False), 4),
    "when the first is kept": (lambda: on_call(os, "replace", 3, before=False), 4),
    "when the second is in place": (lambda: on_call(os, "replace", 4, before=False), 8),
    "before the second's folder is flushed": (lambda: on_call(os, "fsync", 6, before=True), 8),
    "when the last is in place": (lambda: on_call(os, "replace", 6, before=False), 12),
    "within a step": (lambda: on_call(torch.Tensor, "backward", 7, before=False), 4),
    "before the weights move": (lambda: on_call(torch.optim.AdamW, "step", 11, before=True), 8),
    "before the average moves": (lambda: on_call(EMA, "update", 11, before=True), 8),
}


def main(folder: str, *places: str) -> None:
    for number, place in enumerate(places):
        child = os.fork()
        if child == 0:
            PLACES[place][0]()
            train(Path(folder) / str(number))
            os._exit(0)  # it was not killed
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            raise SystemExit(f"not killed {place}: status {status}")


def kill_at_random(folder: Path, seed: int) -> None:
    """Kill a run a random time after a random step, again and again until it ends; print the checkpoint's step then."""
    generator, step = random.Random(seed), 0
    while step < MANY:
        child = os.fork()
        if child == 0:
            train(folder, steps=MANY, every=1)
            os._exit(0)
        left, last = generator.randint(1, MANY // 3), _stamp(folder)
        while left and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            time.sleep(0.0005)
            left, last = left - (_stamp(folder) != last), _stamp(folder)
        time.sleep(generator.random() * 0.01)  # a few steps, and anywhere within one
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        saved = Checkpoint(folder).open(True)  # whole, or not there
        step = 0 if saved is None else saved.step
        print(step)


def _stamp(folder: Path) -> tuple[int, int] | None:
    """What changes with every checkpoint that is written; reading one while it is replaced would be no test of it."""
    path = folder / "checkpoint.safetensors"
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


if __name__ == "__main__":
    torch.set_num_threads(1)  # a pool of threads does not survive a fork
    torch.optim.SGD([torch.zeros(1, requires_grad=True)])  # the first optimiser imports much
    if sys.argv[1] == "--random":
        kill_at_random(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        main(*sys.argv[1:])
