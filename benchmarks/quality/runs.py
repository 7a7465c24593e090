"""Runs, each kept in a folder and never repeated: training first, measuring after, perhaps by another process."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import genmatch as gm

from . import ours, theirs
from .budget import Budget
from .ours import Ours
from .task import Task
from .theirs import Theirs

__all__ = ["Run", "Sampler", "measure", "model_of", "samples", "train"]

NOISE = 77  # seed of the noise that samples are made from


@dataclass(frozen=True)
class Run:
    """One training: of what, for how long, by which clock."""

    recipe: Ours | Theirs
    seed: int
    seconds: float
    clock: str
    data: str

    @property
    def name(self) -> str:
        """The side, and a digest of everything."""
        side = type(self.recipe).__name__
        text = json.dumps([side, asdict(self.recipe), self.seed, self.seconds, self.clock, self.data])
        return f"{side.lower()}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def trained(self, cache: Path) -> bool:
        """Whether the cache has it."""
        return _files(self, cache)[1].exists()


@dataclass(frozen=True)
class Sampler:
    """A solver, its steps, and how they are spread: equal, or shifted by a factor of sigma / alpha."""

    name: str
    solver: gm.Solver
    steps: int
    shift: float = 1.0

    def times(self) -> Tensor:
        """The times of the steps."""
        return gm.grids.uniform(self.steps) if self.shift == 1.0 else gm.grids.shifted(self.steps, self.shift)


def _files(run: Run, cache: Path) -> tuple[Path, Path]:
    return cache / f"{run.name}.pt", cache / f"{run.name}.json"


def train(run: Run, task: Task, cache: Path, device: str = "cpu", marks: tuple[float, ...] = ()) -> dict[str, Any]:
    """How a run went; trains it if the cache does not have it."""
    weights, record = _files(run, cache)
    if not record.exists():
        cache.mkdir(parents=True, exist_ok=True)
        side = ours if isinstance(run.recipe, Ours) else theirs
        budget = Budget(run.seconds, run.clock, marks)
        kept, facts = side.train(run.recipe, task.images, run.seed, budget, device)  # type: ignore[arg-type]
        torch.save(kept, weights)
        content = {"side": type(run.recipe).__name__, "recipe": asdict(run.recipe), "seed": run.seed, **facts}
        record.write_text(json.dumps({**content, "seconds": run.seconds, "measured": {}}))
    return json.loads(record.read_text())


def model_of(run: Run, task: Task, cache: Path, mark: float | None = None) -> gm.predict.Affine:
    """The trained model, at a mark or at the end."""
    side = ours if isinstance(run.recipe, Ours) else theirs
    model = side.build(run.recipe, tuple(task.images.shape[1:]))  # type: ignore[arg-type]
    kept = torch.load(_files(run, cache)[0], weights_only=True)
    model.load_state_dict(kept[run.seconds if mark is None else mark])
    return model.eval().requires_grad_(False)


def samples(model: gm.predict.Affine, task: Task, sampler: Sampler, count: int, first: int = 0) -> Tensor:
    """Images from the same noise for all."""
    noise = gm.Draws(NOISE, count, first_index=first).normal((count, *task.images.shape[1:]))
    return gm.sample(gm.Flow(model), noise, times=sampler.times(), solver=sampler.solver, batch_size=250)


def measure(run: Run, task: Task, cache: Path, sampler: Sampler, count: int, mark: float | None = None) -> list[float]:
    """Frechet distances of a run's samples, from the cache or made now."""
    record = _files(run, cache)[1]
    key = f"{sampler.name}, {count} samples" + ("" if mark is None else f", at {mark:g} s")
    content = json.loads(record.read_text())
    if key not in content["measured"]:
        found = task.distance(samples(model_of(run, task, cache, mark), task, sampler, count))
        content = json.loads(record.read_text())  # another process may have written meanwhile
        content["measured"][key] = found
        record.write_text(json.dumps(content))
    return content["measured"][key]
