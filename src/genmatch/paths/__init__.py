"""Conditional probability paths from noise to data, with the sources and the pairing that belong to them."""

from .bridge import BridgeInstant, BridgePath
from .continuous_mixture import ContinuousMixtureInstant, ContinuousMixturePath
from .gaussian import GaussianPath
from .gaussian_jumps import GaussianJumpKernel, JumpInstant
from .geodesic import GeodesicInstant, GeodesicPath, UniformPoints, WrappedNormal
from .interval import IntervalPath, UniformInterval
from .jump_kernel import JumpKernel, MixtureJumpKernel
from .mixture import MixtureInstant, MixturePath
from .path import Path
from .product import ProductInstant, ProductPath
from .sources import Empirical, Masked, Normal, Source, UniformTokens
from .token_sources import CategoricalTokens

__all__ = [
    "BridgeInstant",
    "BridgePath",
    "CategoricalTokens",
    "ContinuousMixtureInstant",
    "ContinuousMixturePath",
    "Empirical",
    "GaussianJumpKernel",
    "GaussianPath",
    "GeodesicInstant",
    "GeodesicPath",
    "IntervalPath",
    "JumpInstant",
    "JumpKernel",
    "Masked",
    "MixtureInstant",
    "MixtureJumpKernel",
    "MixturePath",
    "Normal",
    "Path",
    "ProductInstant",
    "ProductPath",
    "Source",
    "UniformInterval",
    "UniformPoints",
    "UniformTokens",
    "WrappedNormal",
]
