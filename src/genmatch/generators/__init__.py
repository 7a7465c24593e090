"""Markov generators on a path, and their superpositions."""

from .ctmc import CTMC
from .gaussian import Diffusion, Flow, Langevin
from .operator import Generator, Operator, OperatorInstant, Superposition
from .product import Product

__all__ = ["CTMC", "Diffusion", "Flow", "Generator", "Langevin", "Operator", "OperatorInstant", "Product", "Superposition"]
