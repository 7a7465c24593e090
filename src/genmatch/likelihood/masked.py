r"""Bounds of likelihoods: how many nats a model needs for data.

A masked chain unmasks the positions one after the other, in an order and at times that do not depend on what they show,
so a network :math:`p^\theta` that fills masks bounds the negative log-likelihood of a sequence of D tokens by

.. math:: -\log p^\theta_1(x) \;\le\; \int_0^1 \frac{\dot\kappa_t}{1-\kappa_t}\,
   E\Bigl[\sum_{i\ \text{masked}} -\log p^\theta_t(x^i\,|\,x_t)\Bigr]\,dt
   \;=\; \sum_{n=1}^{D} \frac1n\, E_{|M| = n}\Bigl[\sum_{i \in M} -\log p^\theta(x^i\,|\,x_{\setminus M})\Bigr].

The right-hand side is the mean over all orders of the code length of an autoregressive model in that order. It equals
the left where the conditionals agree with one another, as those of the exact posterior do.

References
----------
.. [1] J. Shi et al., "Simplified and generalized masked diffusion", arXiv 2406.04329, and S. Sahoo et al., "Simple and
   effective masked diffusion language models", arXiv 2406.07524 (the integral).
.. [2] E. Hoogeboom et al., "Autoregressive diffusion models", arXiv 2110.02037 (the sum over orders).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..divergences import CrossEntropy
from ..paths import MixturePath
from ..predict import Predictor
from ..predict.predictor import Condition, check_condition
from ..random import Draws
from ..sampling import evaluation_mode

__all__ = ["bits_per_token", "masked_bound"]

ORDER, COUNT, TIME = 8, 9, 10  # streams of a bound's draws
RULES = ("counts", "times")


def masked_bound(
    model: Predictor,
    x1: Tensor,
    *,
    evaluations: int = 64,
    rule: str = "counts",
    fixed: Tensor | None = None,
    condition: Condition = None,
    draws: Draws | None = None,
    seed: int | None = None,
    grad: bool = False,
) -> Tensor:
    r"""An unbiased estimate of the upper bound of :math:`-\log p^\theta_1(x_1)` of a masked model, in nats.

    Parameters
    ----------
    model
        A predictor of tokens on a mixture path with a mask.
    x1
        Data tokens ``(B, *S)``; padding is not counted.
    evaluations
        How often the network runs on the batch, N.
    rule
        ``"counts"`` spreads the number n of masked positions evenly over 1 .. D, and draws the time given n (with the
        mask :math:`1-\kappa_t` is then a Beta(n, D - n + 1) variable). Each evaluation counts its mean loss D times, so
        no weight is large. ``"times"`` spreads :math:`\kappa_t` evenly over [0, 1] and weighs by
        :math:`1/(1-\kappa_t)`: the same mean, and more noise.
    fixed
        Bool ``(B, *S)``: positions that are given (a prompt). The bound is that of the others given these.
    condition
        Passed to the network, B rows.
    draws, seed
        Counter-based numbers, so that a sample's estimate does not depend on the batch; give one of them, or neither
        for a fresh seed.
    grad
        Keep the graph, to train on the bound; the network then stays in the mode it is in. Otherwise it runs in
        evaluation mode.

    Returns
    -------
    ``(B,)``, nats for each sequence; 0 for one with nothing to predict.

    Raises
    ------
    ValueError, TypeError
        Without a mask, on tokens outside the vocabulary or masks among the data, wrong shapes, an unknown rule.

    Examples
    --------
    >>> import genmatch as gm, torch
    >>> network = gm.nn.Transformer(5, inputs=6, width=16, depth=1, heads=1, length=8)
    >>> model = gm.predict.Tokens(network, gm.MixturePath(5, mask=5))
    >>> x1 = torch.zeros(2, 8, dtype=torch.int64)
    >>> nats = gm.likelihood.masked_bound(model, x1, evaluations=8, seed=0)
    >>> gm.likelihood.bits_per_token(nats, 8).shape
    torch.Size([2])
    """
    path = _check(model, x1, evaluations, rule, fixed, condition)
    draws = _read_draws(draws, seed, x1)
    counted = torch.ones_like(x1, dtype=torch.bool) if path.padding is None else x1 != path.padding
    counted = (counted if fixed is None else counted & ~fixed).flatten(1)
    if path.mask is not None and bool((counted & (x1.flatten(1) == path.mask)).any()):
        raise ValueError(f"the data have the mask {path.mask} among them: mark such positions in fixed")
    size = counted.sum(1)
    total = torch.zeros(len(x1), dtype=torch.float64, device=x1.device)
    with (
        evaluation_mode(model, grad),
        torch.set_grad_enabled(grad and torch.is_grad_enabled()),
    ):
        for k in range(evaluations):
            now = draws.at(draws.step * evaluations + k)
            first = draws.at(draws.step * evaluations)
            rank = _by_count if rule == "counts" else _by_time
            masked, t, weight = rank(path, counted, size, k, evaluations, now, first)
            shape = masked.reshape(x1.shape)
            x = torch.where(shape, path.mask, x1)  # type: ignore[arg-type]
            native = model.native(x, model.instant(t, x), condition)
            target = torch.where(shape, x1, 0)
            losses = CrossEntropy()(target, native).flatten(1).double()
            total = total + weight * torch.where(masked, losses, 0).sum(1)
    return total / evaluations


def bits_per_token(nats: Tensor, tokens: Tensor | int) -> Tensor:
    r""":math:`\mathrm{nats} / (\log 2 \cdot \mathrm{tokens})`, ``(B,)``; perplexity is 2 to the power of it.

    ``tokens`` are the counted tokens of each sequence, a number or ``(B,)``.
    """
    if bool((torch.as_tensor(tokens) < 1).any()):
        raise ValueError("bits per token need at least one token in every sequence")
    if isinstance(tokens, Tensor) and tokens.shape != nats.shape:
        raise ValueError(
            f"tokens are a number or one for each sequence, {tuple(nats.shape)}, got shape {tuple(tokens.shape)}"
        )
    return nats / (math.log(2) * tokens)


def _by_count(path: MixturePath, counted: Tensor, size: Tensor, k: int, of: int, draws: Draws, first: Draws):
    """A random set of n positions, a time at which n are masked, and the weight D / n of the sum of their losses."""
    share = (k + first.fork(COUNT).uniform((len(size),), torch.float64)) / of
    number = (share * size).long().clamp(max=(size - 1).clamp(min=0)) + 1
    masked = _rank(counted, draws) < number[:, None]
    # The n-th smallest of D uniforms is a Beta(n, D - n + 1) variable, and independent of which positions they are.
    levels = draws.fork(TIME).uniform(counted.shape, torch.float64).masked_fill(~counted, 2.0).sort(1).values
    rest = levels.gather(1, (number - 1)[:, None]).squeeze(1).clamp(max=1.0)
    return masked & counted, path.time(1 - rest), size / number


def _by_time(path: MixturePath, counted: Tensor, size: Tensor, k: int, of: int, draws: Draws, first: Draws):
    """Positions masked independently at a stratified time, and the weight 1 / (1 - kappa) of the sum of losses."""
    kappa = (k + first.fork(TIME).uniform((len(size),), torch.float64)) / of
    masked = draws.fork(ORDER).uniform(counted.shape, torch.float64) >= kappa[:, None]
    return masked & counted, path.time(kappa), 1 / (1 - kappa)


def _rank(counted: Tensor, draws: Draws) -> Tensor:
    """A random order of the counted positions of each sample."""
    level = draws.fork(ORDER).uniform(counted.shape, torch.float64).masked_fill(~counted, 2.0)
    return level.argsort(1).argsort(1)


def _check(model: Predictor, x1: Tensor, evaluations: int, rule: str, fixed: Tensor | None, condition: Condition):
    if not isinstance(model, Predictor) or not isinstance(model.path, MixturePath) or model.path.mask is None:
        what = repr(model.path) if isinstance(model, Predictor) else type(model).__name__
        raise TypeError(
            f"masked_bound takes a predictor on a path with a mask, gm.predict.Tokens(network, gm.MixturePath(K, "
            f"mask=K)), got {what}"
        )
    if isinstance(evaluations, bool) or not isinstance(evaluations, int):
        raise TypeError(f"evaluations must be an integer, got {type(evaluations).__name__}")
    if evaluations < 1:
        raise ValueError(f"evaluations must be at least 1, got {evaluations}")
    if rule not in RULES:
        raise ValueError(f"rule must be one of {', '.join(RULES)}, got {rule!r}")
    if not isinstance(x1, Tensor):
        raise TypeError(f"x1 must be a tensor of tokens (B, *S), got {type(x1).__name__}")
    model.path.space.check(x1)
    if x1.ndim < 2 or not len(x1):
        raise ValueError(f"x1 has the shape (B, *S) with B >= 1, got {tuple(x1.shape)}")
    if fixed is not None and (not isinstance(fixed, Tensor) or fixed.dtype != torch.bool or fixed.shape != x1.shape):
        raise ValueError(f"fixed must be bool of the shape {tuple(x1.shape)} of the tokens")
    check_condition(condition, len(x1))
    return model.path


def _read_draws(draws: Draws | None, seed: int | None, x1: Tensor) -> Draws:
    if draws is None:
        return Draws(seed, len(x1), device=x1.device)
    if seed is not None:
        raise ValueError("give draws or a seed, not both")
    if draws.samples != len(x1):
        raise ValueError(f"draws are for {draws.samples} samples, the batch has {len(x1)}")
    return draws
