"""Data: two-dimensional toys, and small real image sets read from files.

Toys (:class:`TwoMoons`, :class:`EightGaussians`, :class:`Checkerboard`, :class:`Spirals`, :class:`Pinwheel`) are
distributions on R^2 with counter-based draws; each can be the data or the source of a path.

Image sets (:func:`digits`, :func:`mnist`, :func:`cifar10`, :func:`image_folder`) come as :class:`Labelled`: float32
images ``(N, C, H, W)`` in ``[-1, 1]``, int64 labels ``(N,)``, class names; ``images, labels = digits()`` unpacks it.
Nothing here is ever unpickled, and archives are read in memory, never extracted.
"""

from .cifar import cifar10
from .digits import digits
from .folders import image_folder
from .idx import read_idx
from .labelled import Labelled
from .mnist import mnist
from .toys import Checkerboard, EightGaussians, Pinwheel, Spirals, Toy, TwoMoons

__all__ = [
    "Checkerboard",
    "EightGaussians",
    "Labelled",
    "Pinwheel",
    "Spirals",
    "Toy",
    "TwoMoons",
    "cifar10",
    "digits",
    "image_folder",
    "mnist",
    "read_idx",
]
