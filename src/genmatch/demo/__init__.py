"""The demonstration: a diffusion and a flow, trained alike on real images and compared at equal cost.

``python -m genmatch.demo`` runs it on scikit-learn's handwritten digits in a few minutes on a CPU;
``python -m genmatch.demo --help`` lists what can be changed.
"""

from .study import STEPS, Settings, run

__all__ = ["STEPS", "Settings", "run"]
