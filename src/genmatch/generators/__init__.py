"""Markov generators on a path, and their superpositions."""

from .bridge import Bridge
from .ctmc import CTMC
from .ctmc_reverse import ReverseCTMC, TokenChurn
from .gaussian import Diffusion, Flow, Langevin
from .jump import Jump, MixtureJump
from .minimal_jump import MinimalJump
from .multiplicative import Multiplicative
from .operator import Generator, Operator, OperatorInstant, Superposition, check_reading
from .product import Product
from .pure_diffusion import PureDiffusion
from .residual import Residual, fit_residual
from .reverse import Reverse, ReverseDiffusion, reverses

__all__ = [
    "CTMC",
    "Bridge",
    "Diffusion",
    "Flow",
    "Generator",
    "Jump",
    "Langevin",
    "MinimalJump",
    "MixtureJump",
    "Multiplicative",
    "Operator",
    "OperatorInstant",
    "Product",
    "PureDiffusion",
    "Residual",
    "Reverse",
    "ReverseCTMC",
    "ReverseDiffusion",
    "Superposition",
    "TokenChurn",
    "check_reading",
    "fit_residual",
    "reverses",
]
