"""One topic in a process of its own: ``python benchmarks/_topic.py TOPIC LEVEL ROUNDS THREADS FILE CLOCK``.

Each row is printed and appended to FILE, a line of JSON, as soon as it is there, so a topic that ends early has kept
what it had; so do topics that come after one which changes or breaks its process. ROUNDS is 0 for the usual number.
"""

from __future__ import annotations

import importlib
import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from _interleave import set_clock
from _suite import TOPICS, Row, Scale, show

__all__ = ["describe", "measure"]


def measure(topic: str, scale: Scale) -> Iterator[Row]:
    """The rows of a topic as they come."""
    yield from importlib.import_module(TOPICS[topic]).rows(scale)


def describe(topic: str) -> str:
    """The first line of a topic's docstring."""
    text = importlib.import_module(TOPICS[topic]).__doc__ or topic
    return text.strip().splitlines()[0].rstrip(".")


def main(topic: str, level: str, rounds: str, threads: str, file: str, clock: str = "cpu") -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(int(threads))
    set_clock(clock)
    with Path(file).open("a") as lines:
        lines.write(json.dumps({"title": describe(topic)}) + "\n")
        for row in measure(topic, Scale(level, int(rounds) or None)):  # type: ignore[arg-type]
            record = row.record()
            print(show(record), flush=True)
            lines.write(json.dumps(record) + "\n")
            lines.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
