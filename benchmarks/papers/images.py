"""The image sets, and what samples of them are measured by."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import genmatch as gm
from genmatch.data import Labelled
from genmatch.demo.classifier import Classifier, train_classifier

from .scale import Scale

__all__ = ["SETS", "Images", "load"]


class Images(NamedTuple):
    """Training and test images in [-1, 1], and a classifier whose features take the place of Inception's."""

    name: str
    train: Tensor
    test: Tensor
    labels: Tensor
    classifier: Classifier
    accuracy: float  # of the classifier on the test images
    reference: gm.metrics.Moments  # of the training images' features

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image."""
        return tuple(self.train.shape[1:])

    def frechet(self, images: Tensor) -> float:
        """Frechet distance from the training images, in the classifier's features."""
        return gm.metrics.frechet(images, self.reference, self.classifier.features).value

    def floor(self, count: int) -> float:
        """What as many test images score: no sampler that has not learned the training set by heart does better."""
        return self.frechet(self.test[:count])


def _grey(images: Labelled) -> Labelled:
    """16 x 16 pixels of luminance: photographs, in an eighth of the numbers."""
    weights = torch.tensor([0.299, 0.587, 0.114]).reshape(1, 3, 1, 1)  # ITU-R BT.601
    small = torch.cat([F.avg_pool2d((part * weights).sum(1, keepdim=True), 2) for part in images.images.split(4096)])
    return Labelled(small, images.labels, images.classes)


@cache  # decoded once for both sets that are made of them
def _photographs(scale: Scale, split: str) -> Labelled:
    found = gm.data.cifar10(scale.data, split, progress=scale.progress)
    if split == "train":
        return found
    # Folders are read class by class, and it is the first test images that are measured.
    order = torch.randperm(len(found.images), generator=torch.Generator().manual_seed(0))
    return Labelled(found.images[order], found.labels[order], found.classes)


SETS: dict[str, Callable[[Scale, str], Labelled]] = {
    "digits": lambda scale, split: gm.data.digits(split),
    "mnist": lambda scale, split: gm.data.mnist(scale.data, split, 32),
    "mnist28": lambda scale, split: gm.data.mnist(scale.data, split, 28),
    "grey": lambda scale, split: _grey(_photographs(scale, split)),
    "cifar10": _photographs,
}


@cache
def load(name: str, scale: Scale) -> Images:
    """An image set by its name in :data:`SETS`, or its stand-in of 8 x 8 digits in a rehearsal."""
    own = "digits" if scale.size == "smoke" else name
    train, test = (SETS[own](scale, split) for split in ("train", "test"))
    train, test = (Labelled(d.images.to(scale.device), d.labels.to(scale.device), d.classes) for d in (train, test))
    classifier = _classifier(own, train, scale)
    reference = gm.metrics.Moments.of(train.images, classifier.features)
    return Images(name, train.images, test.images, train.labels, classifier, classifier.accuracy(test), reference)


def _classifier(name: str, train: Labelled, scale: Scale) -> Classifier:
    """Trained, or taken from the cache."""
    steps = scale.pick(5, 1500, 6000)
    path = scale.cache / f"classifier-{name}-{steps}-{torch.__version__}.pt"
    if path.exists():
        _, channels, side, _ = train.images.shape
        classifier = Classifier(channels, side, len(train.classes)).to(scale.device)
        classifier.load_state_dict(torch.load(path, map_location=scale.device, weights_only=True))
        return classifier.eval()
    classifier = train_classifier(train, steps=steps, seed=0, progress=scale.progress)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(classifier.state_dict(), path)
    return classifier
