"""What ``import genmatch`` costs: the time of ``import torch`` with and without it, each in processes of its own.

The two are timed in turns, A B A B, so that a machine that slows down slows both. The exit status is 1 if the
median with genmatch is above 1.10 times the median without. Run it as ``python benchmarks/import_time.py``; beside the
imports of other libraries, bare and up to the first thing that one samples with, ``python benchmarks --only import``.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace

from _interleave import clock, ratios
from _suite import Row, Scale, reason

LIMIT = 1.10
STATEMENTS = {
    "import torch": "import torch",
    "import torch, genmatch": "import torch, genmatch",
    "import genmatch": "import genmatch",
    "first use of gm.sample": "import genmatch as gm; gm.sample",
}
OURS = {"import": "import torch, genmatch", "first use": "import genmatch; genmatch.sample"}
PEERS = {
    ("import", "torch"): "import torch",
    ("import", "flow_matching"): "import torch, flow_matching",
    ("import", "torchcfm"): "import torch, torchcfm",
    ("import", "diffusers"): "import torch, diffusers",
    ("import", "azula"): "import torch, azula",
    ("import", "POT"): "import torch, ot",
    ("first use", "flow_matching"): "from flow_matching.solver import ODESolver",
    ("first use", "torchcfm"): "from torchcfm.conditional_flow_matching import ConditionalFlowMatcher",
    ("first use", "diffusers"): "from diffusers import DDIMScheduler",
    ("first use", "azula"): "from azula.sample import DDIMSampler",
}


def seconds(statement: str) -> float:
    """Seconds that one statement takes in a fresh interpreter, without the interpreter's own start."""
    now = f"time.{clock()}()"
    code = f"import time; start = {now}; {statement}; print({now} - start)"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def measure(rounds: int, statements: Mapping[str, str] = STATEMENTS) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in statements}
    for _ in range(rounds):
        for name, statement in statements.items():
            times[name].append(seconds(statement))
    return times


def rows(scale: Scale) -> Iterator[Row]:
    """A row for each library; that of torch alone says what of ours is torch."""
    quick = (("import", "torch"), ("first use", "flow_matching"), ("first use", "diffusers"))
    chosen = scale.pick(tuple(PEERS), quick, quick[:2])
    for what, ours in OURS.items():
        present, missing = {}, []
        for key in chosen:
            if key[0] != what:
                continue
            row = Row(what, ours, PEERS[key], key[1])
            if row.version == "not installed":
                missing.append(replace(row, missing="not installed"))
                continue
            try:
                seconds(PEERS[key])  # byte code and page cache
            except subprocess.CalledProcessError as error:
                last = (error.stderr or "").strip().rpartition("\n")[2]
                missing.append(replace(row, missing=reason(RuntimeError(last))))
            else:
                present[key[1]] = row
        if present:
            statements = {library: row.peer for library, row in present.items()}
            seconds(ours)
            found = ratios(measure(scale.repeats(5), {"genmatch": ours, **statements}), "genmatch")
            for library, row in present.items():
                ratio, least, most = found[library]
                yield replace(row, ratio=ratio, least=least, most=most)
        yield from missing


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11, help="processes for each row (default 11)")
    rounds = parser.parse_args().rounds
    if rounds < 1:
        parser.error(f"--rounds must be at least 1, got {rounds}")
    for statement in STATEMENTS.values():
        seconds(statement)  # byte code and page cache
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
