"""What ``import genmatch`` costs: the time of ``import torch`` with and without it, each in processes of its own.

The two are timed in turns, A B A B, so that a machine that slows down slows both. The exit status is 1 if the
median with genmatch is above 1.10 times the median without. Run it as ``python benchmarks/import_time.py``.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

LIMIT = 1.10
STATEMENTS = {
    "import torch": "import torch",
    "import torch, genmatch": "import torch, genmatch",
    "import genmatch": "import genmatch",
    "first use of gm.sample": "import genmatch as gm; gm.sample",
}


def seconds(statement: str) -> float:
    """Seconds that one statement takes in a fresh interpreter, without the interpreter's own start."""
    code = f"import time; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def measure(rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    for statement in STATEMENTS.values():
        seconds(statement)  # byte code and page cache
    for _ in range(rounds):
        for name, statement in STATEMENTS.items():
            times[name].append(seconds(statement))
    return times


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11, help="processes for each row (default 11)")
    rounds = parser.parse_args().rounds
    if rounds < 1:
        parser.error(f"--rounds must be at least 1, got {rounds}")
    times = measure(rounds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    base = medians["import torch"]
    print(f"{'':24} {'median':>9} {'fastest':>9} {'slowest':>9} {'ratio':>7}   ({rounds} processes each)")
    for name, values in times.items():
        row = (medians[name], min(values), max(values))
        print(f"{name:24}", *(f"{1e3 * value:6.0f} ms" for value in row), f"{medians[name] / base:7.3f}")
    ratio = medians["import torch, genmatch"] / base
    verdict = "holds" if ratio <= LIMIT else "is broken"
    print(f"genmatch adds {100 * (ratio - 1):+.1f}% to import torch; the limit of {100 * (LIMIT - 1):.0f}% {verdict}")
    return int(ratio > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
