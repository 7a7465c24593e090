"""When higher-order solvers pay, accelerated diffusion beside the flow, and what the architecture does.

The questions that arXiv 2511.19379 leaves open.
"""

from __future__ import annotations

import json
from typing import Any

from .complexity_figures import FIGURES
from .complexity_parts import architectures, describe, fields, quality
from .complexity_solvers import GRIDS, STEPS, TOLERANCES
from .models import RATES
from .scale import Scale

__all__ = ["FIGURES", "run"]


def run(scale: Scale) -> dict[str, Any]:
    """Describe the sets, train, and measure."""
    sets = describe(scale)
    measured = fields(scale)
    found = {
        "sets": sets,
        "fields": measured,
        "quality": quality(scale, measured),
        "architectures": architectures(scale),
    }
    kept = [json.loads(path.read_text()) for path in scale.cache.glob("complexity-*.json")]
    settings = {
        "rates": RATES,
        "steps": STEPS,
        "tolerances": TOLERANCES,
        "grids": list(GRIDS),
        "reference": f"Exponential(2), {scale.pick(30, 200, 1000)} equal steps",
        "measuring_seconds": round(sum(part["seconds"] for part in kept)),
        "cifar10": "a JPEG copy, where it is read from folders of JPEG images",
    }
    return {"settings": settings, **found}
