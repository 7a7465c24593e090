"""What training and sampling cost: time, peak memory in a process of its own, energy where the machine tells it."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import torch

import genmatch as gm
from genmatch.solvers import Solver

from .models import Recipe, predictor
from .scale import ROOT, Scale

__all__ = ["RAPL", "energy", "joules", "peak_memory", "sampling", "spread", "timed", "training"]

RAPL = Path("/sys/class/powercap")
MIB = 2**20


def sampling(model: gm.Predictor, solver: Solver, shape: tuple[int, ...], steps: int) -> Callable[[], object]:
    """A run of a sampler on noise that it gets ready before."""
    noise = gm.Draws(3, shape[0]).normal(shape).to(next(model.parameters()).device)
    return lambda: gm.sample(gm.Flow(model), noise, steps=steps, solver=solver, seed=3)


def training(model: gm.Predictor, shape: tuple[int, ...], steps: int, bf16: bool = False) -> Callable[[], object]:
    """Training steps on images of noise: what they show does not change the cost."""
    data = gm.Draws(4, shape[0]).normal(shape).to(next(model.parameters()).device)
    autocast = "bf16" if bf16 else None
    return lambda: gm.training.fit(model, data, steps, batch_size=shape[0], autocast=autocast, progress=False)


def timed(tasks: Mapping[str, Callable[[], object]], rounds: int, scale: Scale) -> dict[str, list[float]]:
    """Seconds of each task, in turn, round after round: of processor time on a CPU, of the clock on a GPU."""
    clock = time.process_time if scale.device == "cpu" else time.perf_counter
    found: dict[str, list[float]] = {name: [] for name in tasks}
    for task in tasks.values():
        task()
    for _ in range(rounds):
        for name, task in tasks.items():
            begin = clock()
            task()
            scale.wait()
            found[name].append(clock() - begin)
    return found


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def peak_memory(task: str, kind: str, batch: int, scale: Scale) -> float:
    """MiB that ``"training"`` or ``"sampling"`` takes at its worst, above what the process holds before it.

    On a CPU of a process that does nothing else, whose peak is not another's; on a GPU of what torch has allocated.
    """
    if scale.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        _once(task, kind, batch, scale)
        return (torch.cuda.max_memory_allocated() - before) / MIB
    # The path lets the other process find what this one has found, wherever it was started. With a fixed threshold the
    # C library gives the memory of large tensors back at once, and what stays does not depend on what came before.
    found = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
    }
    told = [task, kind, str(batch), scale.size, str(torch.get_num_threads())]
    command = [sys.executable, "-m", "benchmarks.papers.costs", *told]
    done = subprocess.run(command, cwd=ROOT, env=found, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the process that measures the memory of {task} has failed:\n{done.stderr}")
    return float(done.stdout.split()[-1])


def _alone(task: str, kind: str, batch: int, scale: Scale) -> float:
    """What the other process does; a first small run loads what is loaded once."""
    _once(task, kind, 1, scale)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of what was loaded
    before = _resident("VmRSS")
    _once(task, kind, batch, scale)
    return (_resident("VmHWM") - before) / MIB


def _resident(field: str) -> float:
    """Bytes of this process that are in memory now (VmRSS), or were at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024.0 * float(line.split()[1]) for line in lines if line.startswith(field))


def _once(task: str, kind: str, batch: int, scale: Scale) -> None:
    from .networks import full_unet, mnist_unet, tiny_unet

    build = scale.pick(tiny_unet, mnist_unet, full_unet)
    model = predictor(Recipe(kind, "memory", 1), build).to(scale.device)
    shape = (batch, 1, *scale.pick((8, 8), (32, 32), (32, 32)))
    solver = gm.solvers.Euler() if kind == "flow" else gm.solvers.DDIM()
    (training(model, shape, 3) if task == "training" else sampling(model, solver, shape, 3))()
    scale.wait()


def joules(folder: Path = RAPL) -> float | None:
    """What the processors have used since some moment in the past; None where the machine does not tell."""
    total = None
    for package in sorted(folder.glob("intel-rapl:[0-9]*")):
        if package.name.count(":") == 1:  # the deeper ones are parts of a package
            with suppress(OSError, ValueError):
                total = (total or 0.0) + 1e-6 * int((package / "energy_uj").read_text())
    return total


def energy(task: Callable[[], object], folder: Path = RAPL) -> float | None:
    """Joules of the whole machine while a task runs, None where they cannot be read."""
    before = joules(folder)
    if before is None:
        return None
    task()
    after = joules(folder)
    return None if after is None or after < before else after - before  # a counter has begun again


if __name__ == "__main__":
    what, model_kind, size_of_batch, size, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    print(_alone(what, model_kind, int(size_of_batch), Scale(size, progress=False)))
