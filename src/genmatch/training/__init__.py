"""Training: :func:`fit` around any loss, exact resume, and weights in safetensors files.

A run is a function of its arguments: killed at any moment and started again, it ends in the same weights. There is no
trainer to configure and no state to seed, and a loop of one's own needs nothing from here but :func:`save` and
:func:`load`.
"""

from .fit import fit
from .log import Row
from .rate import LearningRate
from .report import Fit
from .weights import load, save

__all__ = ["Fit", "LearningRate", "Row", "fit", "load", "save"]
