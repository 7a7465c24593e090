r"""The variational bound of a diffusion.

The generative process starts from the source, scaled, at a low log-SNR :math:`\lambda_0`, runs the memoryless diffusion
of the model up to :math:`\lambda_1`, and decodes the data from the state there. With q the path's own law given the
data and :math:`\epsilon` the noise in a state,

.. math:: \log p(x_1) \;\ge\; -\operatorname{KL}\bigl(q(z_{\lambda_0}|x_1)\,\|\,p(z_{\lambda_0})\bigr)
   + E_q\bigl[\log p(x_1|z_{\lambda_1})\bigr]
   - \tfrac12\int_{\lambda_0}^{\lambda_1} E\,|\epsilon - \hat\epsilon(z_\lambda)|^2\,d\lambda ,

where the last term is :math:`\tfrac12\int \mathrm{SNR}'(t)\,E\,|x_1 - X_1(z_t)|^2\,dt` in another variable: it depends
on the schedule through its ends alone. For the exact posterior mean there is equality, but for what the two ends leave
out.

References
----------
.. [1] D. Kingma, T. Salimans, B. Poole, J. Ho, "Variational diffusion models", arXiv 2107.00630, equations 11 to 18 and
   Appendix I (stratified times).
.. [2] X. Kong, R. Brekelmans, G. Ver Steeg, "Information-theoretic diffusion", arXiv 2302.03792 (the equality).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

from ..generators.operator import in_full
from ..paths import GaussianPath
from ..predict import Predictor
from ..predict.predictor import Condition, check_condition
from ..random import Draws
from ..sampling import evaluation_mode
from .images import read_levels

__all__ = ["elbo"]

TIME, NOISE, DECODER = 202, 203, 204  # streams of the draws
SPAN = (-10.0, 12.0)
TAIL = 40.0  # standard deviations at which a level's share of the decoder is below the smallest number there is


def elbo(
    model: Predictor,
    x1: Tensor,
    *,
    evaluations: int = 64,
    span: Sequence[float] | None = None,
    levels: int | None = None,
    condition: Condition = None,
    seed: int | None = None,
    first_index: int = 0,
    grad: bool = False,
) -> Tensor:
    r"""An unbiased estimate of the lower bound of a diffusion's log-likelihood, ``(B,)`` in nats, float64.

    Parameters
    ----------
    model
        A predictor on a Gaussian path with the standard normal source, independent of the data; what it predicts does
        not matter, but that noise can be read off it.
    x1
        Data ``(B, *S)``.
    evaluations
        How often the network runs on the batch, N. The log-SNRs of a sample are spread evenly over the span, one in
        each of N equal parts, by one shift of its own.
    span
        :math:`(\lambda_0, \lambda_1)`, log-SNRs within those of the schedule: by default (-10, 12), or what the
        schedule has of it. At the first the state starts from the source, scaled to second moment
        :math:`\alpha^2 + \sigma^2`; at the second the data are decoded.
    levels
        For images of K integer levels (integers, or what a loader made of them: see
        :func:`~genmatch.likelihood.dequantise`): the bound is then of :math:`\log P(x_1)`, with the decoder
        :math:`p(x_1|z) \propto q(z|x_1)` over the K levels of each value. By default the bound is of the density, with
        the decoder :math:`N(x_1;\ z/\alpha, \sigma^2/\alpha^2)`.
    condition
        Passed to the network, B rows.
    seed, first_index
        Every number is a function of the seed and of a sample's index.
    grad
        Keep the graph, to train on the bound; the network then stays in the mode it is in. Otherwise it runs in
        evaluation mode.

    Returns
    -------
    ``(B,)``; :func:`~genmatch.likelihood.bits_per_dim` makes bits of it (with ``levels=None`` if levels were given
    here).

    Raises
    ------
    ValueError, TypeError
        On a path whose source is not independent standard normal noise, levels outside the schedule, wrong shapes,
        values that are no levels.
    FloatingPointError
        If the network's output is not finite.

    Notes
    -----
    Of :math:`|\epsilon - \hat\epsilon|^2` the part :math:`c^2(|\epsilon|^2 - d)` with
    :math:`c = \alpha^2/(\alpha^2 + \sigma^2)`, of mean 0, is subtracted: near the data that is nearly all of its noise.

    Examples
    --------
    >>> import genmatch as gm
    >>> world = gm.worlds.GaussianMixture(torch.zeros(1, 2), 1.0)
    >>> model = world.predictor(gm.GaussianPath())
    >>> bound = gm.likelihood.elbo(model, torch.zeros(3, 2), seed=0)
    >>> bool((bound - world.log_prob(torch.zeros(3, 2))).abs().max() < 0.3)
    True
    """
    path = _check(model, x1, evaluations, condition)
    low, high = _read_span(path, span)
    number = None if levels is None else read_levels(x1, levels)
    if number is not None and levels is not None:
        x1 = (number * (2 / (levels - 1)) - 1).to(x1.dtype if x1.is_floating_point() else torch.float32)
    path.space.check(x1)
    draws = Draws(seed, len(x1), first_index=first_index, device=x1.device)
    size = x1[0].numel()
    with evaluation_mode(model, grad), torch.set_grad_enabled(grad and torch.is_grad_enabled()):
        total = _prior(x1, low) - _diffusion(model, x1, low, high, evaluations, condition, draws)
        if not bool(total.isfinite().all()):
            bad = int((~total.isfinite()).sum())
            raise FloatingPointError(f"{bad} of {len(x1)} bounds are not finite: the network's output is not finite")
        spread = math.exp(-high / 2)  # sigma / alpha
        if number is None or levels is None:
            return total - 0.5 * size * (1 + math.log(2 * math.pi * spread**2))
        epsilon = draws.fork(DECODER).normal(x1.shape, torch.float64)
        return total + _sum(_decode(number, epsilon, spread * (levels - 1) / 2, levels))


def _prior(x1: Tensor, low: float) -> Tensor:
    """Minus the divergence of q(z | x1) from the scaled source, where alpha^2 / sigma^2 = exp(low)."""
    alpha2 = 1 / (1 + math.exp(-low))  # as shares of alpha^2 + sigma^2: only the ratio counts
    log_sigma2 = -math.log1p(math.exp(low))
    return -0.5 * (alpha2 * _sum(x1.double().square() - 1) - x1[0].numel() * log_sigma2)


def _diffusion(
    model: Predictor, x1: Tensor, low: float, high: float, count: int, condition: Condition, draws: Draws
) -> Tensor:
    """Half the integral of the squared error of the noise over the log-SNR."""
    schedule, size = model.path.schedule, x1[0].numel()
    shift = draws.fork(TIME).uniform((len(x1),), torch.float64)
    total = torch.zeros(len(x1), dtype=torch.float64, device=x1.device)
    for k in range(count):
        level = low + (high - low) * (k + shift) / count
        instant = model.instant(schedule.inverse_log_snr(level), x1)
        epsilon = draws.fork(NOISE).at(k).normal(x1.shape, x1.dtype)
        z = instant.alpha * x1 + instant.sigma * epsilon
        noise = model.prediction(z, instant, in_full(model.native(z, instant, condition), z)).noise
        error = _sum((epsilon - noise).double().square())
        total = total + error - level.sigmoid().square() * (_sum(epsilon.double().square()) - size)
    return 0.5 * (high - low) * total / count


def _decode(number: Tensor, epsilon: Tensor, spread: float, levels: int) -> Tensor:
    """log p(level | z) for each value, with the noise of standard deviation ``spread`` levels."""
    reach = min(levels - 1, math.ceil(TAIL * spread))
    total = torch.full_like(epsilon, -math.inf)
    for offset in range(-reach, reach + 1):
        inside = (number + offset >= 0) & (number + offset <= levels - 1)
        weight = torch.where(inside, -0.5 * (epsilon - offset / spread).square(), -math.inf)
        total = torch.logaddexp(total, weight)
    return -0.5 * epsilon.square() - total


def _sum(values: Tensor) -> Tensor:
    return values.reshape(len(values), -1).sum(1)


def _check(model: Predictor, x1: Tensor, evaluations: int, condition: Condition) -> GaussianPath:
    if not isinstance(model, Predictor):
        raise TypeError(f"elbo takes a predictor such as gm.predict.Noise(network, path), got {type(model).__name__}")
    if not isinstance(model.path, GaussianPath) or "noise" not in model.readings:
        raise TypeError(f"elbo bounds diffusions on a Gaussian path, got a {type(model).__name__} on {model.path!r}")
    why = model.path.why_no_score()
    if why:
        raise ValueError(f"elbo needs standard normal noise that is independent of the data: on {model.path!r} {why}")
    if isinstance(evaluations, bool) or not isinstance(evaluations, int):
        raise TypeError(f"evaluations must be an integer, got {type(evaluations).__name__}")
    if evaluations < 1:
        raise ValueError(f"evaluations must be at least 1, got {evaluations}")
    if not isinstance(x1, Tensor):
        raise TypeError(f"x1 must be a tensor of data (B, *S), got {type(x1).__name__}")
    if x1.ndim < 1 or not x1.numel():
        raise ValueError(f"x1 has the shape (B, *S) with B >= 1, got {tuple(x1.shape)}")
    check_condition(condition, len(x1))
    return model.path


def _read_span(path: GaussianPath, span: Sequence[float] | None) -> tuple[float, float]:
    """The log-SNRs of the two ends."""
    least, most = path.schedule.log_snr(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
    if span is None:
        span = (max(least, SPAN[0]), min(most, SPAN[1]))
    ends = tuple(span) if isinstance(span, Sequence) else ()
    if len(ends) != 2 or any(isinstance(end, bool) or not isinstance(end, Real) for end in ends):
        raise TypeError(f"span is a pair of log-SNRs, got {span!r}")
    low, high = (float(end) for end in ends)
    if not (math.isfinite(low) and math.isfinite(high) and least <= low < high <= most):
        raise ValueError(
            f"span is two finite log-SNRs in rising order, within {least:.4g} to {most:.4g} of {path.schedule!r}, got "
            f"{low:g} to {high:g}"
        )
    return low, high
