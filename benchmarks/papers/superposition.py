"""Generator matching (arXiv 2410.20587 and 2412.11024) on images: one family of models, its sums, noise and jumps."""

from __future__ import annotations

import hashlib
import inspect
import json
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

from . import (
    superposition_equivalence,
    superposition_errors,
    superposition_hybrids,
    superposition_jumps,
    superposition_noise,
)
from .images import Images, load
from .scale import Scale
from .superposition_figures import FIGURES

__all__ = ["FIGURES", "PARTS", "run"]

PARTS: dict[str, ModuleType] = {
    "equivalence": superposition_equivalence,
    "hybrids": superposition_hybrids,
    "noise": superposition_noise,
    "errors": superposition_errors,
    "jumps": superposition_jumps,
}


def run(scale: Scale) -> dict[str, Any]:
    """All parts, in their order; what a killed run had finished is taken up again."""
    images = {name: load(name, scale) for name in ("digits", "mnist")}
    found, seconds = {}, {}
    for name in PARTS:
        found[name], seconds[name] = part(name, scale)
    return {
        "settings": {
            "features": "last hidden layer of a classifier trained on the same images, 32 numbers",
            "accuracy": {name: of.accuracy for name, of in images.items()},
            "images": {name: len(of.train) for name, of in images.items()},
        },
        "part_seconds": seconds,
        **found,
    }


def part(name: str, scale: Scale) -> tuple[dict[str, Any], float]:
    """The results of a part, or of its pieces by name where it is made of some; and the seconds that it took.

    The seconds are those of processor time, what was trained for it included unless it was there.
    """
    module = PARTS[name]
    if not hasattr(module, "PIECES"):
        return kept(name, module, module.run, scale)
    pieces = {piece: kept(f"{name}-{piece}", module, run, scale) for piece, run in module.PIECES.items()}
    return {piece: found for piece, (found, _) in pieces.items()}, sum(seconds for _, seconds in pieces.values())


def kept(
    name: str, module: ModuleType, run: Callable[[Images, Scale], dict[str, Any]], scale: Scale
) -> tuple[dict[str, Any], float]:
    """What is measured, and the seconds; or what was, by the same code of the module at the same size."""
    code = hashlib.sha256(inspect.getsource(module).encode()).hexdigest()[:12]
    path = scale.cache / f"superposition-{name}-{scale.size}-{code}.json"
    if not path.exists():
        images, begin = load("digits", scale), time.process_time()
        found = run(images, scale)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"seconds": time.process_time() - begin, "found": found}))
    content = json.loads(path.read_text())
    return content["found"], content["seconds"]
