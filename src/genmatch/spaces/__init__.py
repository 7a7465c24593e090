"""State spaces: the only place where a state is moved."""

from .hyperbolic import PoincareBall
from .interval import Interval
from .manifold import Manifold
from .product import Product
from .rotations import SO3
from .space import Euclidean, Space, Tokens
from .sphere import Sphere
from .torus import Torus

__all__ = [
    "SO3",
    "Euclidean",
    "Interval",
    "Manifold",
    "PoincareBall",
    "Product",
    "Space",
    "Sphere",
    "Tokens",
    "Torus",
]
