"""A: few evaluations and straight ways, flow against diffusion on MNIST at 32 x 32 (arXiv 2511.19379)."""

from __future__ import annotations

import math
from typing import Any

import torch

from . import efficiency_figures
from .costs import energy, peak_memory, sampling, spread, timed
from .efficiency_exact import chain_curvature, crossing, exact_curvatures, exponent
from .efficiency_samples import ARMS, images_of, sample_all, summary
from .images import Images, load
from .models import RATES, Recipe, Trained, predictor
from .networks import full_unet, network, repeats, tiny_unet
from .scale import Scale

__all__ = ["FIGURES", "PAPER", "run"]

FIGURES = efficiency_figures.FIGURES
PAPER = {"flow curvature": 1.02, "diffusion curvature": 3.45, "milliseconds": 1.8, "milliseconds steps": 10}
TRACED = 100
BATCHES = (1, 8)


def run(scale: Scale) -> dict[str, Any]:
    """Curvatures, distances from the data and costs, of trained models and of exact fields."""
    images = load("mnist", scale)
    models: dict[str, list[Trained]] = {}
    tried: list[dict[str, Any]] = []
    for kind in ("flow", "diffusion"):
        models[kind], searched = repeats(images, scale, kind)
        tried += searched
    rows, pictures = sample_all(images, models, scale)
    count = images_of(scale)
    return {
        "paper": PAPER,
        "models": {kind: describe(trained) for kind, trained in models.items()},
        "search": {"rates": list(RATES), "tried": tried},
        "classifier": {"accuracy": images.accuracy, "features": 32},
        "images": count,
        "floor": images.floor(count),
        "exact": exact(images, scale),
        "rows": rows,
        "curvature": curvature(rows),
        "summary": summary(rows),
        "costs": costs(images, models, scale),
        "pictures": pictures,
    }


def describe(trained: list[Trained]) -> dict[str, Any]:
    """What was trained, how, and what it cost."""
    first = trained[0].recipe
    return {
        "parameters": trained[0].parameters,
        "network": first.network,
        "steps": first.steps,
        "batch_size": first.batch_size,
        "lr": first.lr,
        "held_out": [t.held_out for t in trained],
        "processor_seconds": [t.processor_seconds for t in trained],
    }


def exact(images: Images, scale: Scale) -> dict[str, Any]:
    """Curvatures where nothing is learned, and the chain's closed form."""
    counts = scale.pick((5, 10), (5, 10, 20, 50, 100, 1000), (5, 10, 20, 50, 100, 1000))
    square = float(images.train.double().square().mean())
    chain = [3, 4, 5, 6, 7, 8, 10, 20, 50, 100, 200, 500, 1000]
    values = [chain_curvature(square, n) for n in chain]
    return {
        "square": square,
        "rows": exact_curvatures(images.train, counts, TRACED, scale),
        "chain": {"steps": chain, "curvature": values},
        "passes": crossing(PAPER["diffusion curvature"], chain, values),
        "exponent": exponent(chain, values),
    }


def curvature(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The answers: where the trained chain passes the paper's number, and how it grows."""
    medians = {
        arm: sorted((r["steps"], r["curvature"]["median"]) for r in rows if r["arm"] == arm and r["seed"] == 0)
        for arm in ("flow, Euler", "diffusion, DDIM", "diffusion, ancestral")
    }
    steps, values = (list(column) for column in zip(*medians["diffusion, ancestral"], strict=True))
    level = PAPER["diffusion curvature"]
    odes = [c for arm, pairs in medians.items() if "ancestral" not in arm for _, c in pairs]
    return {
        "medians": {arm: {str(n): c for n, c in pairs} for arm, pairs in medians.items()},
        "passes": crossing(level, steps, values),
        "below": values[0] <= level,  # else even the fewest steps are above it
        "exponent": exponent(steps, values),
        "largest of an ODE": max(odes) if odes else math.nan,
    }


def costs(images: Images, models: dict[str, list[Trained]], scale: Scale) -> dict[str, Any]:
    """Milliseconds an image of ten steps, peak memory, energy."""
    steps, rounds = int(PAPER["milliseconds steps"]), scale.pick(1, 3, 10)
    found: list[dict[str, Any]] = []
    full = {"flow": predictor(Recipe("flow", "full", 1), scale.pick(tiny_unet, full_unet, full_unet))}
    own, _ = network(images, scale)
    nets = {own: {kind: trained[0].model for kind, trained in models.items()}, "the paper's": full}
    for name, members in nets.items():
        for batch in scale.pick((2,), BATCHES, (1, 100)):
            tasks = {
                arm: sampling(members[kind].to(scale.device).eval(), make(), (batch, *images.shape), steps)
                for arm, (kind, make, _) in ARMS.items()
                if kind in members and arm in ("flow, Euler", "diffusion, DDIM", "diffusion, ancestral")
            }
            for arm, seconds in timed(tasks, rounds, scale).items():
                each = [1000 * s / batch for s in seconds]
                found.append({"network": name, "arm": arm, "batch": batch, "steps": steps, **spread(each)})
    torch.cuda.empty_cache() if scale.device == "cuda" else None
    batch = scale.pick(2, 32, 128)
    memory = [
        {"task": task, "model": kind, "batch": batch, "mib": [peak_memory(task, kind, batch, scale) for _ in range(n)]}
        for n in (scale.pick(1, 1, 3),)
        for task in ("training", "sampling")
        for kind in ("flow", "diffusion")
    ]
    model = models["flow"][0].model
    spent = energy(sampling(model, ARMS["flow, Euler"].make(), (batch, *images.shape), steps))
    return {
        "milliseconds": found,
        "memory": memory,
        "joules per image": None if spent is None else spent / batch,
    }
