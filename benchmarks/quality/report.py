"""Results of plans as records, a table, a JSON file, and the images that the figure shows."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from .._interleave import save, versions
from .plans import Named, Plan
from .runs import Run, measure, model_of, samples, train
from .task import Task

__all__ = ["PICTURES", "collect", "keep_pictures", "show", "spread", "store"]

PICTURES = "pictures.pt"
SHOWN = 40  # images of each recipe
FLOORS = (250, 500, 2000)
PACKAGES = ("torch", "torchcfm", "POT", "scipy")
Record = dict[str, Any]


def spread(values: Sequence[float]) -> str:
    """Mean, and least and greatest where there are several."""
    mean = statistics.fmean(values)
    return f"{mean:.3f}" if len(values) == 1 else f"{mean:.3f} ({min(values):.3f} to {max(values):.3f})"


def collect(plan: Plan, group: Sequence[tuple[Named, Run]], task: Task, cache: Path) -> list[Record]:
    """One record for each recipe that was trained; the Frechet distances are lists over the seeds."""
    records: dict[str, Record] = {}
    for named, run in group:
        if not run.trained(cache):
            continue
        facts = train(run, task, cache)
        record = records.setdefault(
            named.name,
            {
                "name": named.name,
                "side": facts["side"],
                "recipe": asdict(named.recipe),
                "seconds": run.seconds,
                "weights": facts["weights"],
                **{key: [] for key in ("seeds", "steps", "images", "spent", "loss")},
                "frechet": {},
                "second classifier": {},
                "curve": [],
            },
        )
        record["seeds"].append(run.seed)
        for key in ("steps", "images", "spent", "loss"):
            record[key].append(facts[key])
        for sampler, count in named.measured:
            first, second = measure(run, task, cache, sampler, count)
            key = f"{sampler.name}, {count} samples"
            record["frechet"].setdefault(key, []).append(first)
            record["second classifier"].setdefault(key, []).append(second)
        if named.curve and run.seed == plan.seeds[0]:
            sampler = named.measured[0][0]
            marks = (*(m for m in plan.marks if m < run.seconds), None)
            record["curve"] = [
                {
                    "seconds": m or run.seconds,
                    "samples": named.curve,
                    "frechet": measure(run, task, cache, sampler, named.curve, m)[0],
                }
                for m in marks
            ]
    return list(records.values())


def show(results: Mapping[str, Sequence[Record]]) -> None:
    """Print what was measured."""
    for name, records in results.items():
        if not records:
            continue
        print(f"\n{name}, {records[0]['seconds']:g} s of training, Frechet distance, mean (least to greatest)")
        for record in records:
            print(f"  {record['name']}, seeds {record['seeds']}, images {record['images']}")
            for key, values in record["frechet"].items():
                other = spread(record["second classifier"][key])
                print(f"    {key:38} {spread(values):32} second classifier {other}")


def store(results: Mapping[str, Sequence[Record]], task: Task, out: Path, options: Record) -> Path:
    """Write the JSON file."""
    content = {
        "options": options,
        "versions": versions(*PACKAGES),
        "classifiers": {"accuracy on the test images": list(task.accuracy)},
        "floor": {f"{n} test images": task.floor(n) for n in sorted({min(n, len(task.test)) for n in FLOORS})},
        "plans": dict(results),
    }
    return save("quality", content, out)


def keep_pictures(group: Sequence[tuple[Named, Run]], task: Task, cache: Path) -> None:
    """Put the first images of the first seed of every recipe beside the runs, for the figure."""
    found = {"training images": task.images[:SHOWN]}
    for named, run in group:
        if run.trained(cache) and named.name not in found:
            found[named.name] = samples(model_of(run, task, cache), task, named.measured[0][0], SHOWN)
    torch.save(found, cache / PICTURES)
