"""Timing side by side: each contender in turn, round after round, so that a machine that slows down slows all alike."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import genmatch

RESULTS = Path(__file__).parent / "results"
CLOCKS = {"wall": "perf_counter", "cpu": "process_time"}
_state = {"clock": "wall"}


def interleave(
    contenders: Mapping[str, Callable[[], object]], rounds: int, least: float = 0.0
) -> dict[str, list[float]]:
    """Seconds of a call of each contender in each round, after calls that are not counted.

    A contender that is done before ``least`` seconds have passed is called as often in a round as fills them.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    calls = dict.fromkeys(contenders, 1)
    for name, run in contenders.items():
        run()
        if least:
            calls[name] = max(1, math.ceil(least / _seconds(run, 1)))
    for _ in range(rounds):
        for name, run in contenders.items():
            times[name].append(_seconds(run, calls[name]))
    return times


def set_clock(name: str) -> None:
    """``"wall"``, the default, or ``"cpu"``: processor time of all threads of this process.

    With one thread, no GPU and nothing to wait for, the two are one on a machine that does nothing else; on one that
    does, processor time leaves out what others took.
    """
    if name not in CLOCKS:
        raise ValueError(f"the clock is one of {', '.join(CLOCKS)}, got {name!r}")
    _state["clock"] = name


def clock() -> str:
    """The function of ``time`` that is the clock."""
    return CLOCKS[_state["clock"]]


def _seconds(run: Callable[[], object], calls: int) -> float:
    now = getattr(time, clock())
    begin = now()
    for _ in range(calls):
        run()
    return (now() - begin) / calls


def ratios(times: Mapping[str, list[float]], base: str) -> dict[str, tuple[float, float, float]]:
    """Median, least and greatest of the ratio to ``base`` in the same round."""
    found = {}
    for name, values in times.items():
        quotients = [v / b for v, b in zip(values, times[base], strict=True)]
        found[name] = (statistics.median(quotients), min(quotients), max(quotients))
    return found


class HostReads(TorchDispatchMode):
    """Counts what makes a device wait: reads of a tensor's value by the host."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def host_reads(run: Callable[[], object]) -> int:
    """Reads of tensor values by the host in one call."""
    with HostReads() as mode:
        run()
    return mode.count


def versions(*packages: str) -> dict[str, str]:
    """Versions of the packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # a package that is run from its checkout has a version all the same
            found[package] = genmatch.__version__ if package == "genmatch" else "not installed"
    return found


def save(name: str, content: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """Write results with the machine, the date and the commit that made them."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({**origin(), **content}, indent=1) + "\n")
    return path


def origin() -> dict[str, Any]:
    """The date, the commit and the machine of a run; of a tree that was changed since, the commit is told as such."""
    try:
        changed = _git("status", "--porcelain", "--", "../src", "*.py")
        commit = _git("rev-parse", "--short", "HEAD") + (" with changes" if changed else "")
    except OSError:
        commit = ""
    machine = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    return {"date": date.today().isoformat(), "commit": commit, "machine": machine}


def machine_name(machine: Mapping[str, Any]) -> str:
    """A machine as the name of a folder: its processor, its cores and its GPU."""
    words = f"{machine['processor']} {machine['cores']} cores {machine['gpu'] or ''}"
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def _git(*arguments: str) -> str:
    folder = RESULTS.parent
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False, cwd=folder).stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
