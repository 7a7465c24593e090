"""Trained models: one recipe for flow and diffusion, the same search for both, and weights kept between runs."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import genmatch as gm

from .images import Images
from .scale import Scale

__all__ = ["KINDS", "RATES", "Recipe", "Trained", "objective", "predictor", "search", "train"]

RATES = (1e-3, 4e-3)  # the search: the same for every kind of model, decided by the held-out loss
HELD_OUT = 12345  # seed of the times and the noise of the held-out loss
TIMES = {"flow": 1000.0, "diffusion": 1.0}  # scale of the embedded time: t in [0, 1], and the chain's index 0 .. 999

Network = Callable[[float], nn.Module]  # of the scale of the embedded time


def _flow(network: nn.Module) -> gm.Predictor:
    return gm.predict.Velocity(network, gm.GaussianPath(gm.schedules.CondOT()))


def _diffusion(network: nn.Module) -> gm.Predictor:
    return gm.predict.Noise(network, gm.GaussianPath(gm.schedules.DDPM()))


KINDS: dict[str, Callable[[nn.Module], gm.Predictor]] = {"flow": _flow, "diffusion": _diffusion}


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Attributes
    ----------
    kind
        ``"flow"`` (velocity on the linear path) or ``"diffusion"`` (noise, on the chain of 1000 steps).
    network
        A name for the architecture, which goes into the cache's key.
    steps, batch_size, lr, seed
        Of :func:`genmatch.training.fit`, with a cosine schedule.
    bf16
        Whether the loss is computed under autocast.
    ema
        Decay of the average whose weights are used.
    """

    kind: str
    network: str
    steps: int
    batch_size: int = 64
    lr: float = 2e-3
    seed: int = 0
    bf16: bool = True
    ema: float = 0.995


class Trained(NamedTuple):
    """A predictor with its averaged weights, in evaluation mode, and what its training cost."""

    model: gm.Predictor
    recipe: Recipe
    losses: list[float]
    held_out: float  # loss on test images, with the same times and noise for all models of a kind
    seconds: float  # of the clock
    processor_seconds: float  # of all threads: unlike the clock it does not see who else uses the machine
    parameters: int


def predictor(recipe: Recipe, network: Network) -> gm.Predictor:
    """The untrained model: networks of one seed begin with the same weights, whatever the kind."""
    torch.manual_seed(recipe.seed)
    return KINDS[recipe.kind](network(TIMES[recipe.kind]))


def train(images: Images, recipe: Recipe, network: Network, scale: Scale) -> Trained:
    """Train, or take from the cache what was trained in the same way on the same images."""
    model = predictor(recipe, network).to(scale.device)
    data = hashlib.sha256(images.train[:: max(1, len(images.train) // 256)].cpu().numpy().tobytes()).hexdigest()
    what = [images.name, len(images.train), asdict(recipe), repr(model), data, torch.__version__]
    key = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12]
    path = scale.cache / f"{images.name}-{recipe.kind}-{recipe.network}-{recipe.seed}-{key}.pt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(_fit(model, images, recipe, scale), path)
    kept = torch.load(path, map_location=scale.device, weights_only=True)
    model.load_state_dict(kept.pop("weights"))
    return Trained(model.eval(), recipe, parameters=sum(p.numel() for p in model.parameters()), **kept)


def _fit(model: gm.Predictor, images: Images, recipe: Recipe, scale: Scale) -> dict[str, Any]:
    busy = time.process_time()
    fitted = gm.training.fit(
        model,
        images.train,
        recipe.steps,
        batch_size=recipe.batch_size,
        loss=objective,
        lr=recipe.lr,
        warmup=min(100, recipe.steps // 10),
        schedule="cosine",
        ema=recipe.ema,
        autocast="bf16" if recipe.bf16 else None,
        seed=recipe.seed,
        progress=scale.progress,
    )
    scale.wait()
    busy = time.process_time() - busy
    with fitted.ema.applied():  # type: ignore[union-attr]
        weights = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(weights)
    return {
        "weights": weights,
        "losses": fitted.losses,
        "held_out": _held_out(model.eval(), images.test[: scale.pick(64, 1024, 10000)]),
        "seconds": fitted.seconds,
        "processor_seconds": busy,
    }


def objective(model: nn.Module, x1: Tensor, **options: Any) -> Tensor:
    """The matching loss; of a list of predictors the sum of theirs, with the same times and the same noise for all."""
    parts: Any = model if isinstance(model, nn.ModuleList) else [model]
    return sum((gm.matching_loss(part, x1, **options) for part in parts), torch.zeros((), device=x1.device))


@torch.no_grad()
def _held_out(model: gm.Predictor, test: Tensor) -> float:
    """Loss on images that were not trained on."""
    parts = test.split(256)
    losses = [float(objective(model, part, seed=HELD_OUT + i)) for i, part in enumerate(parts)]
    return sum(loss * len(part) for loss, part in zip(losses, parts, strict=True)) / len(test)


def search(
    images: Images, recipes: Sequence[Recipe], network: Network, scale: Scale
) -> tuple[Recipe, list[dict[str, Any]]]:
    """The recipe of the least held-out loss, and all that were tried: give every kind the same ones."""
    tried = [train(images, recipe, network, scale) for recipe in recipes]
    best = min(tried, key=lambda t: t.held_out)
    return best.recipe, [{**asdict(t.recipe), "held_out": t.held_out} for t in tried]
