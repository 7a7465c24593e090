"""The task: images, and what samples of them are measured by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import genmatch as gm
from genmatch.demo.classifier import Classifier, train_classifier

__all__ = ["DATA", "Task", "load"]

DATA = ("mnist", "digits")
CLASSIFIERS = (0, 1)  # seeds; the second one checks that the first one's features are not special
STEPS = 3000  # of a classifier's training
TEST = 10_000


@dataclass(frozen=True)
class Task:
    """Training images, and for each classifier its features and the moments of the training images in them."""

    name: str
    images: Tensor
    features: tuple[Callable[[Tensor], Tensor], ...]
    moments: tuple[gm.metrics.Moments, ...]
    test: Tensor
    accuracy: tuple[float, ...]

    def distance(self, x: Tensor) -> list[float]:
        """Frechet distances of samples from the training images, one for each classifier."""
        x = x.clamp(-1, 1)
        return [gm.metrics.frechet(x, m, f).value for m, f in zip(self.moments, self.features, strict=True)]

    def floor(self, count: int) -> list[float]:
        """The same of as many test images: what no finite sample of the truth goes below, but by luck."""
        chosen = torch.randperm(len(self.test), generator=torch.Generator().manual_seed(0))[:count]
        return self.distance(self.test[chosen])


def load(name: str, root: Path | None, cache: Path, steps: int = STEPS) -> Task:
    """The data in ``[-1, 1]``, ``(N, 1, H, W)``, and classifiers from the cache or trained now."""
    if name == "mnist":
        train, test = (gm.data.mnist(root, split, 28) for split in ("train", "test"))
    elif name == "digits":
        train, test = (gm.data.digits(split) for split in ("train", "test"))
    else:
        raise ValueError(f"the data are one of {DATA}, got {name!r}")
    cache.mkdir(parents=True, exist_ok=True)
    classifiers = [_classifier(name, train, cache, steps, seed) for seed in CLASSIFIERS]
    features = tuple(c.features for c in classifiers)
    return Task(
        name,
        train.images,
        features,
        tuple(gm.metrics.Moments.of(train.images, f) for f in features),
        test.images,
        tuple(c.accuracy(test) for c in classifiers),
    )


def _classifier(name: str, train: gm.data.Labelled, cache: Path, steps: int, seed: int) -> Classifier:
    kept = cache / f"{name}-classifier-{steps}-{seed}.pt"
    if not kept.exists():
        torch.save(train_classifier(train, steps=steps, seed=seed, progress=False).state_dict(), kept)
    _, channels, size, _ = train.images.shape
    model = Classifier(channels, size, len(train.classes))
    model.load_state_dict(torch.load(kept, weights_only=True))
    return model.eval().requires_grad_(False)
