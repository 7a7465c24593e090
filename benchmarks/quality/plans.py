"""What is run: the search on both sides, the ablation of ours, and the comparison."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import genmatch as gm

from .ours import Ours
from .runs import Sampler
from .theirs import Theirs

__all__ = [
    "ABLATION",
    "BEST",
    "FINAL",
    "OUR_NAME",
    "PUBLISHED_NAME",
    "SEARCH",
    "SMOKE",
    "THEIR_BEST",
    "THEIR_NAME",
    "Named",
    "Plan",
]

EULER = {steps: Sampler(f"Euler, {steps} steps", gm.solvers.Euler(), steps) for steps in (5, 10, 20)}
OURS = {steps: Sampler(f"Exponential(2), {steps} steps", gm.solvers.Exponential(2), steps) for steps in (5, 10, 20)}
UNFOLDED = {"network": "unet", "width": 16, "multipliers": (1, 2, 4), "blocks": 1}
Measured = tuple[tuple[Sampler, int], ...]


@dataclass(frozen=True)
class Named:
    """A recipe, what it is called, and with how many samples of which samplers it is measured.

    ``curve`` samples are measured at each mark of the plan, from the first seed; none for 0.
    """

    name: str
    recipe: Ours | Theirs
    measured: Measured
    curve: int = 0

    def missing(self) -> str:
        """Why it cannot run; empty if it can."""
        if isinstance(self.recipe, Theirs):
            for package in ("torchcfm", "ot"):
                if find_spec(package) is None:
                    return f"{package} is not installed"
        return ""


@dataclass(frozen=True)
class Plan:
    """Recipes from several seeds; where ``seconds`` is None, for the budget of the command line."""

    recipes: tuple[Named, ...]
    seeds: tuple[int, ...]
    seconds: float | None
    marks: tuple[float, ...] = ()  # seconds at which weights are kept, for the curve


OUR_NAME, THEIR_NAME, PUBLISHED_NAME = "ours", "torchcfm, best of a search", "torchcfm, its own recipe"
BEST = Ours(width=32, blocks=2, batch=32, lr=4e-3)
PUBLISHED = Theirs()
LIGHT = Theirs(attention="7", bf16=True)  # attention at 7 x 7: four times as many images in the same time
THEIR_BEST = replace(LIGHT, batch=16, multipliers=(1, 1, 1))

FEW: Measured = ((OURS[10], 250),)  # as many samples on both sides: fewer make a distance larger
THEIRS_FEW: Measured = ((EULER[10], 250),)


def _ours(name: str, measured: Measured = FEW, **changes: Any) -> Named:
    return Named(name, replace(BEST, **changes), measured)


def _theirs(name: str, **changes: Any) -> Named:
    return Named(name, replace(LIGHT, **changes), THEIRS_FEW)


FIRST = {"width": 64, "blocks": 1, "batch": 64, "lr": 2e-3}  # where the search of ours began

SEARCH = Plan(
    (
        _ours("ours: 64 channels, 1 block, batch 64, rate 0.002", **FIRST),
        _ours("ours: the same, rate 0.004", **{**FIRST, "lr": 4e-3}),
        _ours("ours: the same, batch 32", **{**FIRST, "batch": 32}),
        _ours("ours: the same, 32 channels, 2 blocks", **{**FIRST, "width": 32, "blocks": 2}),
        _ours("ours: the same, 16, 32, 64 channels at 28 x 28", **{**FIRST, **UNFOLDED}),
        _ours("ours: the same, independent pairs", **FIRST, pool=0),
        _ours("ours: the same, logit-normal times", **FIRST, time="logit-normal"),
        _ours("ours: the same, preconditioned", **FIRST, reading="karras"),
        _ours("ours: 32 channels, 2 blocks, batch 32, rate 0.004"),
        _ours("ours: the same, 1 block", blocks=1),
        _ours("ours: the same, 48 channels", width=48),
        Named("theirs: the MNIST example", PUBLISHED, THEIRS_FEW),
        _theirs("theirs: attention at 7 x 7, bfloat16"),
        _theirs("theirs: the same, the optimiser of CIFAR-10", lr=2e-4, clip=1.0, ema=0.9999, warmup=5000),
        _theirs("theirs: the same, batch 32", batch=32),
        _theirs("theirs: the same, batch 32, rate 0.002", batch=32, lr=2e-3),
        _theirs("theirs: the same, batch 32, independent pairs", batch=32, pairing="independent"),
        _theirs("theirs: the same, batch 32, average of 0.99, clipping", batch=32, clip=1.0, ema=0.99),
        _theirs("theirs: the same, batch 32, 32 channels at every level", batch=32, multipliers=(1, 1, 1)),
        _theirs("theirs: the same, batch 16, 32 channels at every level", batch=16, multipliers=(1, 1, 1)),
        _theirs("theirs: the same, batch 32, attention in the middle alone", batch=32, attention="1"),
        _theirs("theirs: the same, batch 16", batch=16),
    ),
    seeds=(0,),
    seconds=40.0,
)

ABLATION = Plan(
    (
        _ours("the recipe"),
        _ours("not folded: 16, 32, 64 channels at 28 x 28", **UNFOLDED),
        _ours("independent pairs", pool=0),
        _ours("constant rate", schedule="constant"),
        _ours("batch 128", batch=128),
        _ours("float32", bf16=False),
        _ours("no average", ema=None),
        _ours("rate 0.001", lr=1e-3),
        _ours("predicts the data", reading="data"),
        _ours("compiled", compile=True),
        _ours("logit-normal times", time="logit-normal"),
        _ours("transformer, patches of 4", network="dit", width=128, blocks=6),
    ),
    seeds=(0, 1, 2),
    seconds=40.0,
)

FINAL = Plan(
    (
        Named(
            OUR_NAME,
            BEST,
            (
                *FEW,
                *THEIRS_FEW,
                *((OURS[steps], 500) for steps in (5, 10, 20)),
                *((EULER[steps], 500) for steps in (5, 10, 20)),
                (OURS[10], 2000),
            ),
            curve=250,
        ),
        Named(
            THEIR_NAME,
            THEIR_BEST,
            (*THEIRS_FEW, *((EULER[steps], 500) for steps in (5, 10, 20)), (OURS[10], 500)),
        ),
        Named(PUBLISHED_NAME, PUBLISHED, THEIRS_FEW),
    ),
    seeds=(0, 1, 2),
    seconds=None,
    marks=(30.0, 60.0, 120.0, 180.0),
)

SMOKE = Plan(
    (
        Named(OUR_NAME, replace(BEST, width=8, blocks=1, pool=128), ((OURS[10], 40), (EULER[10], 40)), curve=40),
        Named(PUBLISHED_NAME, replace(PUBLISHED, batch=32), ((EULER[10], 40),)),
    ),
    seeds=(0,),
    seconds=None,
    marks=(0.2,),
)
