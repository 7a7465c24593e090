"""Their side: torchcfm's U-Net and flow matcher, trained as its examples do, and variants of that."""

from __future__ import annotations

import copy
import importlib
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import genmatch as gm

from .budget import Budget

__all__ = ["Theirs", "build", "train"]

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Theirs:
    """A recipe; the defaults are those of the library's MNIST example.

    Attributes
    ----------
    channels, blocks, multipliers, attention
        Of ``UNetModel``: ``num_channels``, ``num_res_blocks``, ``channel_mult`` (None for the library's choice) and
        ``attention_resolutions``. With its default "16" the attention of 28 x 28 images is at full resolution.
    pairing
        ``"ot"`` (``ExactOptimalTransportConditionalFlowMatcher``) or ``"independent"`` (``ConditionalFlowMatcher``).
    batch, lr, warmup, clip
        Of Adam.
    ema
        Decay of an average that begins at the first weights, as in the library's CIFAR-10 example; None for none.
    bf16
        Autocast, which the examples do not use.
    """

    channels: int = 32
    blocks: int = 1
    multipliers: tuple[int, ...] | None = None
    attention: str = "16"
    pairing: str = "ot"
    batch: int = 128
    lr: float = 1e-3
    warmup: int = 0
    clip: float | None = None
    ema: float | None = None
    bf16: bool = False


class _TimeFirst(nn.Module):
    """Their network, which takes the time first, in our order of arguments."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.network(t, x)


def build(recipe: Theirs, shape: tuple[int, ...]) -> gm.predict.Velocity:
    """Their untrained network as a velocity of ours, so that every solver can run it."""
    unet = importlib.import_module("torchcfm.models.unet")
    network = unet.UNetModel(
        dim=shape,
        num_channels=recipe.channels,
        num_res_blocks=recipe.blocks,
        channel_mult=recipe.multipliers,
        attention_resolutions=recipe.attention,
    )
    return gm.predict.Velocity(_TimeFirst(network), gm.GaussianPath(coupling=gm.couplings.Given()))


def train(
    recipe: Theirs, images: Tensor, seed: int, budget: Budget, device: str = "cpu"
) -> tuple[dict[float, Weights], dict[str, float]]:
    """Train until the budget is spent: weights at its marks and at the end, and how far it came."""
    matching = importlib.import_module("torchcfm.conditional_flow_matching")
    matcher = {
        "ot": matching.ExactOptimalTransportConditionalFlowMatcher,
        "independent": matching.ConditionalFlowMatcher,
    }[recipe.pairing](sigma=0.0)
    torch.manual_seed(seed)
    model = build(recipe, tuple(images.shape[1:])).to(device).train()
    average = None if recipe.ema is None else copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.lr)
    kept: dict[float, Weights] = {}
    steps, losses = 0, []
    order = torch.randperm(len(images))
    position = 0
    while not budget.over:
        if position + recipe.batch > len(images):
            order, position = torch.randperm(len(images)), 0
        x1 = images[order[position : position + recipe.batch]].to(device)
        position += recipe.batch
        if recipe.warmup:
            optimizer.param_groups[0]["lr"] = recipe.lr * min(1.0, steps / recipe.warmup)
        optimizer.zero_grad()
        t, xt, ut = matcher.sample_location_and_conditional_flow(torch.randn_like(x1), x1)
        with torch.autocast(device, torch.bfloat16) if recipe.bf16 else nullcontext():
            vt = model.network(xt, t)
        loss = ((vt.float() - ut) ** 2).mean()
        loss.backward()
        if recipe.clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        if average is not None:
            _follow(average, model, recipe.ema or 0.0)
        losses.append(loss.detach())
        steps += 1
        mark = budget.due()
        if mark is not None:
            with budget.paused():
                kept[mark] = _weights(average or model)
    spent = budget.spent
    kept[budget.seconds] = _weights(average or model)
    return kept, {
        "spent": spent,
        "steps": steps,
        "images": steps * recipe.batch,
        "loss": torch.stack(losses[-200:]).mean().item(),
        "weights": sum(p.numel() for p in model.parameters()),
    }


@torch.no_grad()
def _follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    for kept, now in zip(average.parameters(), model.parameters(), strict=True):
        kept.lerp_(now, 1 - decay)


def _weights(model: nn.Module) -> Weights:
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
