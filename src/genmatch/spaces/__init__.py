"""State spaces: the only place where a state is moved."""

from .space import Euclidean, Space, Tokens

__all__ = ["Euclidean", "Space", "Tokens"]
