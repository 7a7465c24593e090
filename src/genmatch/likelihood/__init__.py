r"""Likelihoods: how probable a model finds data, exactly or by a bound.

A flow has a density, which :func:`~genmatch.log_prob` follows along its trajectories; a diffusion has the bound
:func:`elbo`, and a masked chain :func:`masked_bound`. Images of integer levels are made continuous by
:func:`dequantise`, and counted in :func:`bits_per_dim`.
"""

from ..solvers.traces import Exact, Hutchinson, Trace
from .density import log_prob
from .diffusion import elbo
from .images import bits_per_dim, dequantise
from .masked import bits_per_token, masked_bound

__all__ = [
    "Exact",
    "Hutchinson",
    "Trace",
    "bits_per_dim",
    "bits_per_token",
    "dequantise",
    "elbo",
    "log_prob",
    "masked_bound",
]
