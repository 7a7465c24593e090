"""Conditional probability paths from noise to data, with the sources and the pairing that belong to them."""

from .gaussian import GaussianPath
from .mixture import MixtureInstant, MixturePath
from .path import Path
from .product import ProductInstant, ProductPath
from .sources import Empirical, Masked, Normal, Source, UniformTokens

__all__ = [
    "Empirical",
    "GaussianPath",
    "Masked",
    "MixtureInstant",
    "MixturePath",
    "Normal",
    "Path",
    "ProductInstant",
    "ProductPath",
    "Source",
    "UniformTokens",
]
