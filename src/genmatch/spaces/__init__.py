"""State spaces: the only place where a state is moved."""

from .product import Product
from .space import Euclidean, Space, Tokens

__all__ = ["Euclidean", "Product", "Space", "Tokens"]
