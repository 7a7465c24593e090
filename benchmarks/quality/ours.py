"""Our side: a network, what it predicts, and how it is trained within a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import genmatch as gm

from .budget import Budget

__all__ = ["Folded", "Ours", "Pairs", "build", "train"]

LAWS: dict[str, gm.times.TimeLaw] = {
    "uniform": gm.times.Uniform(),
    "stratified": gm.times.Uniform(stratified=True),
    "logit-normal": gm.times.LogitNormal(stratified=True),
    "logit-normal early": gm.times.LogitNormal(mean=-0.5, stratified=True),
    "logit-normal late": gm.times.LogitNormal(mean=0.5, stratified=True),
}
READINGS = {"velocity": gm.predict.Velocity, "data": gm.predict.Data, "v": gm.predict.V}
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Ours:
    """A recipe.

    Attributes
    ----------
    network
        ``"folded"`` (a U-Net whose pixels are squares of 2 x 2), ``"unet"`` or ``"dit"`` (patches of 4).
    width, multipliers, blocks
        Of the U-Net; of the transformer, its width and depth.
    reading
        What the network predicts: ``"velocity"``, ``"data"``, ``"v"``, or ``"karras"`` (preconditioned).
    time
        The law of the training time.
    pool
        Images that optimal transport pairs with noise at once; 0 for independent pairs.
    batch, lr, warmup, schedule
        Of AdamW, whose learning rate falls by half a cosine of the time spent, or not at all.
    ema
        Decay of the average of the weights, or None.
    bf16, compile
        How a step is computed.
    """

    network: str = "folded"
    width: int = 64
    multipliers: tuple[int, ...] = (1, 2)
    blocks: int = 1
    reading: str = "velocity"
    time: str = "stratified"
    pool: int = 512
    batch: int = 64
    lr: float = 2e-3
    warmup: int = 50
    schedule: str = "cosine"
    ema: float | None = 0.999
    bf16: bool = True
    compile: bool = False


class Folded(nn.Module):
    """A network on images of half the side and four times the channels, seen from outside as one on the images."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """States ``(B, C, H, W)`` and times ``(B,)``."""
        return F.pixel_shuffle(self.network(F.pixel_unshuffle(x, 2), t), 2)


class Pairs:
    """Batches of images, each with a noise that optimal transport chose for it among those of a pool."""

    def __init__(self, images: Tensor, batch: int, pool: int, seed: int) -> None:
        if pool % batch:
            raise ValueError(f"a pool is a whole number of batches of {batch}, got {pool}")
        if pool > len(images):
            raise ValueError(f"a pool of {pool} needs as many images, got {len(images)}")
        self.images, self.batch, self.pool, self.seed, self.epoch = images, batch, pool, seed, 0

    def __iter__(self) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        pair = gm.couplings.OT()
        order = torch.randperm(len(self.images), generator=torch.Generator().manual_seed(1000 * self.seed + self.epoch))
        self.epoch += 1
        for number, rows in enumerate(order.split(self.pool)):
            if len(rows) < self.pool:
                return
            x1 = self.images[rows]
            draws = gm.Draws(self.seed, self.pool, first_index=number * self.pool, step=self.epoch).fork(200)
            x0, x1, _ = pair(draws.normal(x1.shape), x1, None, draws)
            for x0_part, x1_part in zip(x0.split(self.batch), x1.split(self.batch), strict=True):
                yield x1_part, {"x0": x0_part}


def build(recipe: Ours, shape: tuple[int, ...]) -> gm.predict.Affine:
    """The untrained model for images of a shape ``(C, H, W)``."""
    channels, size = shape[0], shape[1]
    folds = 4 if recipe.network == "folded" else 1
    if recipe.network == "dit":
        depth = recipe.blocks
        network: nn.Module = gm.nn.DiT(channels, (size, size), patch=4, width=recipe.width, depth=depth, heads=4)
    elif recipe.network in ("folded", "unet"):
        network = gm.nn.UNet(
            folds * channels,
            width=recipe.width,
            multipliers=recipe.multipliers,
            blocks=recipe.blocks,
            attention=(),
        )
        network = Folded(network) if folds > 1 else network
    else:
        raise ValueError(f"the network is 'folded', 'unet' or 'dit', got {recipe.network!r}")
    path = gm.GaussianPath(coupling=gm.couplings.Given() if recipe.pool else None)
    if recipe.reading == "karras":
        return gm.predict.Karras(network, path, sigma_data=1.0)
    return READINGS[recipe.reading](network, path)


def train(
    recipe: Ours, images: Tensor, seed: int, budget: Budget, device: str = "cpu"
) -> tuple[dict[float, Weights], dict[str, float]]:
    """Train until the budget is spent: averaged weights at its marks and at the end, and how far it came."""
    torch.manual_seed(seed)
    model = build(recipe, tuple(images.shape[1:])).to(device)
    law = LAWS[recipe.time]
    kept: dict[float, Weights] = {}

    def loss(model: gm.predict.Affine, x1: Tensor, condition: Mapping[str, Tensor] | None, draws: gm.Draws) -> Tensor:
        x0 = condition["x0"] if condition else None
        return gm.matching_loss(model, x1, x0=x0, time=law, draws=draws)

    def look(fit: gm.training.Fit) -> bool:
        mark = budget.due()
        if mark is not None:
            with budget.paused():
                kept[mark] = _weights(fit)
        return budget.over

    def cosine(step: int) -> float:
        return 0.5 * (1 + math.cos(math.pi * budget.share))

    schedule: Callable[[int], float] | str = cosine if recipe.schedule == "cosine" else "constant"
    data = Pairs(images, recipe.batch, recipe.pool, seed) if recipe.pool else images
    fit = gm.training.fit(
        model,
        data,
        10**7,
        batch_size=None if recipe.pool else recipe.batch,
        loss=loss,
        lr=recipe.lr,
        warmup=recipe.warmup,
        schedule=schedule,  # type: ignore[arg-type]
        ema=recipe.ema,
        autocast="bf16" if recipe.bf16 else None,
        seed=seed,
        compile=recipe.compile,
        log_every=5,
        progress=False,
        callback=look,
    )
    spent = budget.spent
    kept[budget.seconds] = _weights(fit)
    last = fit.losses[-200:]
    return kept, {
        "spent": spent,
        "steps": fit.step,
        "images": fit.step * recipe.batch,
        "loss": sum(last) / len(last),
        "weights": sum(p.numel() for p in model.parameters()),
    }


def _weights(fit: gm.training.Fit) -> Weights:
    model = fit.model if fit.ema is None else fit.ema.copy()  # type: ignore[union-attr]
    state = {name.replace("_orig_mod.", ""): value for name, value in model.state_dict().items()}
    return {name: value.detach().cpu().clone() for name, value in state.items()}
