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
    "generators",
    "grids",
    "guidance",
    "kernels",
    "likelihood",
    "metrics",
    "nn",
    "paths",
    "predict",
    "rates",
    "schedules",
    "solvers",
    "spaces",
    "testing",
    "times",
    "training",
    "viz",
    "weights",
    "worlds",
)
_NAMES = {
    "Draws": "random",
    "BrownianTree": "brownian",
    "Triplet": "triplet",
    "Rates": "rates",
    "Schedule": "schedules",
    "Space": "spaces",
    "Path": "paths",
    "GaussianPath": "paths",
    "MixturePath": "paths",
    "ProductPath": "paths",
    "BridgePath": "paths",
    "GeodesicPath": "paths",
    "ContinuousMixturePath": "paths",
    "IntervalPath": "paths",
    "Coupling": "couplings",
    "Predictor": "predict",
    "Generator": "generators",
    "Superposition": "generators",
    "Flow": "generators",
    "Langevin": "generators",
    "Diffusion": "generators",
    "CTMC": "generators",
    "Product": "generators",
    "Jump": "generators",
    "MixtureJump": "generators",
    "MinimalJump": "generators",
    "PureDiffusion": "generators",
    "Multiplicative": "generators",
    "Bridge": "generators",
    "Reverse": "generators",
    "ReverseCTMC": "generators",
    "TokenChurn": "generators",
    "fit_residual": "generators",
    "Solver": "solvers",
    "Sampler": "solvers",
    "log_prob": "likelihood",
    "matching_loss": "losses",
    "sample": "sampling",
    "encode": "editing",
    "noised": "editing",
    "transition_laws": "transitions",
    "transition_log_prob": "transitions",
}
__all__ = [
    "CTMC",
    "Bridge",
    "BridgePath",
    "BrownianTree",
    "ContinuousMixturePath",
    "Coupling",
    "Diffusion",
    "Draws",
    "Flow",
    "GaussianPath",
    "Generator",
    "GeodesicPath",
    "IntervalPath",
    "Jump",
    "Langevin",
    "MinimalJump",
    "MixtureJump",
    "MixturePath",
    "Multiplicative",
    "Path",
    "Predictor",
    "Product",
    "ProductPath",
    "PureDiffusion",
    "Rates",
    "Reverse",
    "ReverseCTMC",
    "Sampler",
    "Schedule",
    "Solver",
    "Space",
    "Superposition",
    "TokenChurn",
    "Triplet",
    "__version__",
    "couplings",
    "data",
    "diffusivity",
    "divergences",
    "encode",
    "fit_residual",
    "generators",
    "grids",
    "guidance",
    "kernels",
    "likelihood",
    "log_prob",
    "matching_loss",
    "metrics",
    "nn",
    "noised",
    "paths",
    "predict",
    "rates",
    "sample",
    "schedules",
    "solvers",
    "spaces",
    "testing",
    "times",
    "training",
    "transition_laws",
    "transition_log_prob",
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
        generators,
        grids,
        guidance,
        kernels,
        likelihood,
        metrics,
        nn,
        paths,
        predict,
        rates,
        schedules,
        solvers,
        spaces,
        testing,
        times,
        training,
        viz,
        weights,
        worlds,
    )
    from .brownian import BrownianTree
    from .couplings import Coupling
    from .editing import encode, noised
    from .generators import (
        CTMC,
        Bridge,
        Diffusion,
        Flow,
        Generator,
        Jump,
        Langevin,
        MinimalJump,
        MixtureJump,
        Multiplicative,
        Product,
        PureDiffusion,
        Reverse,
        ReverseCTMC,
        Superposition,
        TokenChurn,
        fit_residual,
    )
    from .likelihood import log_prob
    from .losses import matching_loss
    from .paths import (
        BridgePath,
        ContinuousMixturePath,
        GaussianPath,
        GeodesicPath,
        IntervalPath,
        MixturePath,
        Path,
        ProductPath,
    )
    from .predict import Predictor
    from .random import Draws
    from .rates import Rates
    from .sampling import sample
    from .schedules import Schedule
    from .solvers import Sampler, Solver
    from .spaces import Space
    from .transitions import transition_laws, transition_log_prob
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
