"""Generator matching in PyTorch: diffusion, flow matching, jumps and discrete models as one Markov generator.

``import genmatch as gm`` imports nothing but this file: names are loaded when they are first used, so the import
costs what ``import torch`` costs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0.dev0"

_MODULES = (
    "couplings",
    "data",
    "diffusivity",
    "divergences",
    "grids",
    "guidance",
    "metrics",
    "nn",
    "paths",
    "predict",
    "schedules",
    "solvers",
    "spaces",
    "times",
    "training",
    "viz",
    "weights",
    "worlds",
)
_NAMES = {
    "Draws": "random",
    "Triplet": "triplet",
    "Rates": "rates",
    "Schedule": "schedules",
    "Space": "spaces",
    "Path": "paths",
    "GaussianPath": "paths",
    "MixturePath": "paths",
    "ProductPath": "paths",
    "Coupling": "couplings",
    "Predictor": "predict",
    "Generator": "generators",
    "Superposition": "generators",
    "Flow": "generators",
    "Langevin": "generators",
    "Diffusion": "generators",
    "CTMC": "generators",
    "Product": "generators",
    "Solver": "solvers",
    "matching_loss": "losses",
    "sample": "sampling",
}
__all__ = [
    "CTMC",
    "Coupling",
    "Diffusion",
    "Draws",
    "Flow",
    "GaussianPath",
    "Generator",
    "Langevin",
    "MixturePath",
    "Path",
    "Predictor",
    "Product",
    "ProductPath",
    "Rates",
    "Schedule",
    "Solver",
    "Space",
    "Superposition",
    "Triplet",
    "__version__",
    "couplings",
    "data",
    "diffusivity",
    "divergences",
    "grids",
    "guidance",
    "matching_loss",
    "metrics",
    "nn",
    "paths",
    "predict",
    "sample",
    "schedules",
    "solvers",
    "spaces",
    "times",
    "training",
    "viz",
    "weights",
    "worlds",
]

if TYPE_CHECKING:  # what the lazy names are, for type checkers and editors
    from . import (
        couplings,
        data,
        diffusivity,
        divergences,
        grids,
        guidance,
        metrics,
        nn,
        paths,
        predict,
        schedules,
        solvers,
        spaces,
        times,
        training,
        viz,
        weights,
        worlds,
    )
    from .couplings import Coupling
    from .generators import CTMC, Diffusion, Flow, Generator, Langevin, Product, Superposition
    from .losses import matching_loss
    from .paths import GaussianPath, MixturePath, Path, ProductPath
    from .predict import Predictor
    from .random import Draws
    from .rates import Rates
    from .sampling import sample
    from .schedules import Schedule
    from .solvers import Solver
    from .spaces import Space
    from .triplet import Triplet


def __getattr__(name: str):
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name in _NAMES:
        value = getattr(importlib.import_module(f".{_NAMES[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'genmatch' has no attribute {name!r}; its names are {', '.join(sorted(__all__))}")


def __dir__() -> list[str]:
    return sorted(__all__)
