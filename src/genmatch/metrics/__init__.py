"""How good samples are, and how straight the way to them: metrics on tensors.

Everything is computed in float64, on the device of its arguments, in blocks that bound the memory, and returned as
Python floats or small records of them. Samples are ``(n, *S)`` tensors of any number; NaN is refused, never skipped.

============================================  ======================================================================
trajectories                                  :func:`curvature`, :func:`straightness`, :func:`kinetic_energy`
features (given, or by ``features=network``)  :func:`frechet`, :func:`frechet_infinity`, :func:`kid`,
                                              :func:`precision_recall`, :func:`density_coverage`
samples as they are                           :func:`sliced_wasserstein`, :func:`energy_distance`, :func:`mmd`
training                                      :func:`loss_by_time`
generators                                    :func:`kfe_residual`
============================================  ======================================================================
"""

from __future__ import annotations

from .densities import Density
from .discrepancies import KID, MMD, energy_distance, kid, mmd
from .families import default_test_functions
from .forward_equation import kfe_residual
from .losses import LossByTime, loss_by_time
from .manifolds import DensityCoverage, PrecisionRecall, density_coverage, precision_recall
from .moments import Frechet, FrechetInfinity, Moments, frechet, frechet_infinity
from .residuals import ForwardResidual
from .trajectories import Curvature, Straightness, curvature, kinetic_energy, straightness
from .transport import SlicedWasserstein, sliced_wasserstein

__all__ = [
    "KID",
    "MMD",
    "Curvature",
    "Density",
    "DensityCoverage",
    "ForwardResidual",
    "Frechet",
    "FrechetInfinity",
    "LossByTime",
    "Moments",
    "PrecisionRecall",
    "SlicedWasserstein",
    "Straightness",
    "curvature",
    "default_test_functions",
    "density_coverage",
    "energy_distance",
    "frechet",
    "frechet_infinity",
    "kfe_residual",
    "kid",
    "kinetic_energy",
    "loss_by_time",
    "mmd",
    "precision_recall",
    "sliced_wasserstein",
    "straightness",
]
