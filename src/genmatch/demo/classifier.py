"""A small classifier: its last hidden layer gives the features that images are compared by."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import Labelled
from ..random import Draws
from ..training import fit

__all__ = ["FEATURES", "Classifier", "train_classifier"]

FEATURES = 32


class Classifier(nn.Module):
    """Two convolutions and two linear layers: images ``(B, C, H, W)`` to logits ``(B, classes)``."""

    def __init__(self, channels: int, size: int, classes: int) -> None:
        super().__init__()
        # Digits of 8 x 8 keep their resolution in the first layer: there is none to spare.
        stride = 1 if size < 16 else 2
        side = (size - 1) // stride // 2 + 1
        self.body = nn.Sequential(
            nn.Conv2d(channels, 32, 3, stride=stride, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(64 * side * side, FEATURES),
        )
        self.head = nn.Linear(FEATURES, classes)

    def features(self, x: Tensor) -> Tensor:
        """``(B, 32)``."""
        return torch.tanh(self.body(x))

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(B, classes)``."""
        return self.head(self.features(x))

    @torch.no_grad()
    def accuracy(self, data: Labelled) -> float:
        """Share of labels that are right."""
        guesses = torch.cat([self(images).argmax(1) for images in data.images.split(512)])
        return (guesses == data.labels).float().mean().item()


def train_classifier(data: Labelled, *, steps: int, seed: int, progress: bool) -> Classifier:
    """A classifier trained on labelled images, in evaluation mode, on their device."""
    torch.manual_seed(seed)
    _, channels, size, _ = data.images.shape
    model = Classifier(channels, size, len(data.classes)).to(data.images.device)

    def loss(model: nn.Module, x1: Tensor, condition: Mapping[str, Tensor], draws: Draws) -> Tensor:
        # A little noise, so that the features do not live off what no generator would reproduce.
        noisy = x1 + 0.1 * draws.normal(x1.shape)
        return F.cross_entropy(model(noisy), condition["label"])

    fit(
        model,
        (data.images, data.labels),
        steps,
        condition="label",
        loss=loss,
        lr=2e-3,
        schedule="cosine",
        batch_size=128,
        ema=None,
        seed=seed,
        progress=progress,
    )
    return model.eval()
