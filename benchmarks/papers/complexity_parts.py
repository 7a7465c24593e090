"""The measurements of the study of complexity, in parts that are kept: a run can be stopped and goes on."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

import genmatch as gm

from .complexity_data import complexity, exact
from .complexity_models import ARCHITECTURES, KINDS, repeats, seeds
from .complexity_solvers import (
    ACCELERATED,
    GRIDS,
    STEPS,
    Solution,
    accelerated,
    adaptive,
    bends,
    errors,
    solve,
    steps_of,
)
from .images import Images, load
from .models import Trained
from .scale import Scale

__all__ = ["SETS", "architectures", "describe", "fields", "quality"]

SETS = ("digits", "mnist", "grey", "cifar10")  # by intrinsic dimension
VERSION = 2  # of what is kept: another number measures all again
Rows = list[dict[str, Any]]


def sets(scale: Scale) -> tuple[str, ...]:
    """Those that are measured."""
    return scale.pick((SETS[0], SETS[-1]), SETS, SETS)


def budgets(scale: Scale) -> tuple[int, ...]:
    """Evaluations of an image at which quality is measured."""
    return scale.pick((10,), STEPS, STEPS)


def describe(scale: Scale) -> Rows:
    """What the image sets are."""

    def measured(name: str) -> dict[str, Any]:
        images = load(name, scale)
        found = {"set": name, "shape": list(images.shape), "train": len(images.train), **complexity(images, scale)}
        count = samples(images, scale)
        return {**found, "accuracy": images.accuracy, "samples": count, "floor": images.floor(count)}

    return [
        _kept(scale, ["describe", name], lambda name=name: measured(name)) for name in scale.bar(sets(scale), "sets")
    ]


def fields(scale: Scale) -> Rows:
    """Curvature and solver errors of the exact field of each set, and of the trained models."""
    found: Rows = []
    for name in scale.bar(sets(scale), "fields"):
        images = load(name, scale)
        for kind in KINDS:
            about = {"set": name, "kind": kind, "field": "exact", "seed": 0}
            run = lambda images=images, kind=kind: _field(images, exact(images, kind, scale), kind, scale)  # noqa: E731
            found.append({**about, **_kept(scale, ["fields", *about.values()], run)})
            models, tried = repeats(images, kind, scale)
            for model in models[: len(seeds(images, scale))]:
                about = {"set": name, "kind": kind, "field": "trained", "seed": model.recipe.seed}
                run = lambda images=images, model=model: _field(images, model.model, model.recipe.kind, scale)  # noqa: E731
                kept = _kept(scale, ["fields", *about.values(), model.held_out], run)
                found.append({**about, **_training(model), "tried": tried, **kept})
    return found


def _field(images: Images, model: gm.Predictor, kind: str, scale: Scale) -> dict[str, Any]:
    """Of one model."""
    generator = gm.Flow(model)
    solution = solve(generator, images.shape, scale.pick(2, 32 if images.shape[-1] < 32 else 8, 256), scale)
    found: dict[str, Any] = {"curvature": bends(generator, images.shape, scale.pick(4, 50, 100), scale)}
    found |= {"doubt": solution.doubt, "reference": len(solution.noise)}
    if kind == "flow":
        found["errors"] = errors(generator, solution)
        found["adaptive"] = adaptive(generator, solution)
    found["accelerated"] = accelerated(generator, solution)
    return found


def quality(scale: Scale, measured: Rows) -> Rows:
    """Frechet distances at equal evaluations, each solver on the grid that ends nearest to the solution."""
    found: Rows = []
    for row in scale.bar([row for row in measured if row["field"] == "trained"], "quality"):
        images = load(row["set"], scale)
        model = next(m for m in repeats(images, row["kind"], scale)[0] if m.recipe.seed == row["seed"])
        about = {"set": row["set"], "kind": row["kind"], "seed": row["seed"]}
        run = lambda images=images, model=model, row=row: _quality(images, model, row, scale)  # noqa: E731
        for part in _kept(scale, ["quality", *about.values(), model.held_out], run):
            found.append({**about, **part})
        if row["seed"] == 0:
            run = lambda images=images, model=model: _converged(images, model, scale)  # noqa: E731
            found.append({**about, **_kept(scale, ["converged", *about.values(), model.held_out], run)})
    return found


def _converged(images: Images, model: Trained, scale: Scale) -> dict[str, Any]:
    """What is left of the distance when the solver errs little: the model's own."""
    steps = scale.pick(8, 40, 100)
    times = gm.grids.uniform(steps)
    value = _frechet(images, gm.Flow(model.model), gm.solvers.Exponential(2), times, scale)
    return {"solver": "Exponential 2", "budget": steps, "steps": steps, "grid": "uniform", "frechet": value}


def _quality(images: Images, model: Trained, row: Mapping[str, Any], scale: Scale) -> Rows:
    generator, kind = gm.Flow(model.model), model.recipe.kind
    arms: Rows = []
    for budget in budgets(scale):
        for name in ACCELERATED:
            if (steps := steps_of(name, budget)) is not None:
                arms.append({"solver": name, "budget": budget, "steps": steps, "grid": nearest(row, name, budget)})
        if kind == "diffusion":
            arms.append({"solver": "DDPM (ancestral)", "budget": budget, "steps": budget, "grid": "uniform"})
    solvers = {**ACCELERATED, "DDPM (ancestral)": gm.solvers.DDPM}
    for arm in arms:
        times = GRIDS[arm["grid"]](generator, arm["steps"])
        arm["frechet"] = _frechet(images, generator, solvers[arm["solver"]](), times, scale)
    return arms


def nearest(row: Mapping[str, Any], solver: str, budget: int) -> str:
    """The grid on which a solver ended nearest to the solution, by the median image."""
    of = [r for r in row["accelerated"] if (r["solver"], r["budget"]) == (solver, budget)]
    return min(of, key=lambda r: r["median"])["grid"]


def samples(images: Images, scale: Scale) -> int:
    """Images of which a Frechet distance is taken: of digits as many as there are test images."""
    return scale.pick(16, min(len(images.test), 128 if images.shape[-1] == 32 else 200), min(len(images.test), 10000))


def _frechet(images: Images, generator: Any, solver: Any, times: torch.Tensor, scale: Scale) -> float:
    count = samples(images, scale)
    noise = gm.Draws(1, count, device=scale.device).normal((count, *images.shape))
    return images.frechet(gm.sample(generator, noise, solver=solver, times=times, seed=1, batch_size=250))


def architectures(scale: Scale) -> Rows:
    """Curvature and few-step quality of each architecture on digits."""
    images = load("digits", scale)
    found: Rows = []
    for name in scale.bar(ARCHITECTURES, "architectures"):
        for kind in KINDS:
            models, tried = repeats(images, kind, scale, name)
            for model in models:
                about = {"architecture": name, "kind": kind, "seed": model.recipe.seed}
                trained = {**_training(model), "held_out": model.held_out}
                run = lambda model=model: _architecture(images, model, scale)  # noqa: E731
                kept = _kept(scale, ["architecture", *about.values(), model.held_out], run)
                found.append({**about, **trained, "tried": tried, **kept})
    return found


def _architecture(images: Images, model: Trained, scale: Scale) -> dict[str, Any]:
    generator = gm.Flow(model.model)
    found: dict[str, Any] = {"curvature": bends(generator, images.shape, scale.pick(4, 50, 100), scale)}
    solution = solve(generator, images.shape, scale.pick(2, 32, 256), scale)
    found["doubt"] = solution.doubt
    found["few"] = [_few(images, generator, solution, name, steps, scale) for name, steps in FEW]
    fine = scale.pick(6, 40, 100)
    times = gm.grids.uniform(fine)
    found["fine"] = _frechet(images, generator, gm.solvers.Exponential(2), times, scale)
    return found


FEW = (("DDIM", 5), ("DDIM", 10), ("Exponential 2", 5), ("Exponential 2", 10))


def _few(
    images: Images, generator: Any, solution: Solution, name: str, steps: int, scale: Scale
) -> dict[str, float | str | int]:
    times, solver = gm.grids.uniform(steps), ACCELERATED[name]()
    ends = gm.sample(generator, solution.noise, solver=solver, times=times)
    apart = float((ends - solution.ends).double().square().mean().sqrt())
    return {
        "solver": name,
        "steps": steps,
        "error": apart,
        "frechet": _frechet(images, generator, solver, times, scale),
    }


def _training(model: Trained) -> dict[str, Any]:
    recipe = model.recipe
    return {
        "parameters": model.parameters,
        "lr": recipe.lr,
        "training_steps": recipe.steps,
        "batch_size": recipe.batch_size,
        "training_seconds": model.processor_seconds,
    }


def _kept(scale: Scale, what: Iterable[Any], run: Callable[[], Any]) -> Any:
    """What a function returns, kept between runs by what it is of."""
    what = [VERSION, scale.size, torch.__version__, *what]
    key = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
    path = scale.cache / f"complexity-{key}.json"
    if not path.exists():
        begin = time.process_time()
        found = run()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"what": what, "seconds": time.process_time() - begin, "found": found}))
    return json.loads(path.read_text())["found"]
