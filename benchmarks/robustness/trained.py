"""Trained networks: the tasks, one search for every kind of network, and weights kept between runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import genmatch as gm
from genmatch.demo.classifier import train_classifier

from .errors import READINGS
from .record import Scale

__all__ = ["Recipe", "Task", "Trained", "digits", "moons", "networks", "plane", "spread", "train"]

RATES = (1e-3, 4e-3)  # the search: the same for every kind of network, decided by the held-out loss
HELD_OUT = 12345  # seed of the times and noises of the held-out loss


@dataclass(frozen=True, eq=False)
class Task:
    """Data, a network for them, and what samples are measured by.

    ``measure`` is a distance of samples from the data; ``count`` samples go into a measurement; ``seeds`` networks of a
    kind are trained.
    """

    name: str
    metric: str
    scale: Scale
    seeds: int
    steps: int
    batch_size: int
    count: int
    data: Tensor
    held_out: Tensor
    network: Callable[[], nn.Module]
    measure: Callable[[Tensor], float]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return tuple(self.data.shape[1:])

    @property
    def floor(self) -> float:
        """What held-out data score, as many as there are samples."""
        return self.measure(self.held_out[: self.count])


def plane(name: str, toy: gm.data.Toy | gm.worlds.GaussianMixture, scale: Scale) -> Task:
    """A toy of R^2, by sliced Wasserstein distance from 20,000 other points."""
    reference = toy.sample(scale.pick(20000, 400), seed=3)
    return Task(
        name=name,
        metric="sliced Wasserstein distance",
        scale=scale,
        seeds=scale.pick(5, 2),
        steps=scale.pick(2500, 20),
        batch_size=256,
        count=scale.pick(4000, 200),
        data=toy.sample(20000, seed=1),
        held_out=toy.sample(scale.pick(8000, 400), seed=2),
        network=lambda: gm.nn.MLP(2, width=96, depth=3),
        measure=lambda x: gm.metrics.sliced_wasserstein(x, reference, projections=64).value,
    )


def moons(scale: Scale) -> Task:
    """Two moons."""
    return plane("two moons", gm.data.TwoMoons(), scale)


def digits(scale: Scale) -> Task:
    """scikit-learn's handwritten digits, by the Frechet distance of a classifier's features."""
    train, test = gm.data.digits("train"), gm.data.digits("test")
    classifier = train_classifier(train, steps=scale.pick(600, 5), seed=0, progress=False)
    reference = gm.metrics.Moments.of(train.images, classifier.features)
    return Task(
        name="digits",
        metric="Fréchet distance",
        scale=scale,
        seeds=scale.pick(3, 2),
        steps=scale.pick(2000, 4),
        batch_size=64,
        count=scale.pick(297, 40),
        data=train.images,
        held_out=test.images,
        network=lambda: gm.nn.UNet(1, width=16, multipliers=(1, 2), blocks=(1, 1), attention=()),
        measure=lambda x: gm.metrics.frechet(x, reference, classifier.features).value,
    )


class Recipe(NamedTuple):
    """How a network is trained."""

    reading: str
    lr: float
    seed: int
    weight: Callable[[Any], Any] | None = None
    label: str = ""  # of the weight


class Trained(NamedTuple):
    """A predictor with its averaged weights, and how its training went."""

    model: gm.predict.Affine
    recipe: Recipe
    losses: list[float]
    held_out: float

    @property
    def unrest(self) -> float:
        """Spread of the batch losses over the last fifth of the training, in units of their mean."""
        last = torch.tensor(self.losses[-max(len(self.losses) // 5, 2) :])
        return float(last.std() / last.mean())


def train(task: Task, recipe: Recipe) -> Trained:
    """Train, or take from the cache what was trained in the same way."""
    torch.manual_seed(recipe.seed)
    model = READINGS[recipe.reading](task.network(), gm.GaussianPath())
    what = [task.name, task.steps, task.batch_size, repr(model), recipe.reading, recipe.lr, recipe.seed, recipe.label]
    data = hashlib.sha256(task.data.numpy().tobytes()).hexdigest()
    key = hashlib.sha256(json.dumps([*what, data, torch.__version__]).encode()).hexdigest()[:12]
    path = task.scale.cache / f"{task.name.replace(' ', '-')}-{recipe.reading}{recipe.label}-{recipe.seed}-{key}.pt"
    if path.exists():
        kept = torch.load(path, weights_only=True)
        model.load_state_dict(kept["weights"])
        return Trained(model.eval(), recipe, kept["losses"], kept["held_out"])
    fitted = gm.training.fit(
        model,
        task.data,
        task.steps,
        batch_size=task.batch_size,
        loss=partial(gm.matching_loss, weight=recipe.weight) if recipe.weight else None,
        lr=recipe.lr,
        warmup=min(100, task.steps // 10),
        schedule="cosine",
        ema=0.995,
        seed=recipe.seed,
        progress=False,
    )
    with fitted.ema.applied():  # type: ignore[union-attr]
        weights = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(weights)
    with torch.no_grad():
        loss = float(gm.matching_loss(model.eval(), task.held_out, seed=HELD_OUT))
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"weights": weights, "losses": fitted.losses, "held_out": loss}, path)
    return Trained(model, recipe, fitted.losses, loss)


def networks(task: Task) -> tuple[dict[str, list[Trained]], list[dict[str, Any]]]:
    """Velocity and noise networks of several seeds, at the rate that won each its own search, and the search."""
    found: dict[str, list[Trained]] = {}
    search = []
    for reading in task.scale.bar(("velocity", "noise"), f"training on {task.name}"):
        tried = [train(task, Recipe(reading, lr, 0)) for lr in RATES]
        search += [{"reading": reading, "lr": t.recipe.lr, "held_out": t.held_out} for t in tried]
        best = min(tried, key=lambda t: t.held_out)
        others = [train(task, Recipe(reading, best.recipe.lr, seed)) for seed in range(1, task.seeds)]
        found[reading] = [best, *others]
    return found, search


def spread(values: Sequence[float]) -> float:
    """Standard deviation over the mean."""
    numbers = torch.tensor(values, dtype=torch.float64)
    return float(numbers.std() / numbers.mean()) if len(numbers) > 1 else 0.0
