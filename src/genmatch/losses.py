r"""The one loss: the divergence of a conditional target from what a network predicts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from .generators import Operator
from .paths import GaussianPath, Path
from .paths.path import BETWEEN, check_pair
from .predict import Predictor
from .predict.predictor import Condition, check_condition
from .random import Draws
from .schedules import Instant, Number
from .times import TimeLaw, Uniform

__all__ = ["matching_loss"]

TIMES = 7  # stream of a loss's draws
TINY = 1e-9  # least alpha and sigma that a weight sees: at 0 it would be 0 times infinity; its square is a float32


def matching_loss(
    model: Predictor,
    x1: Tensor,
    *,
    x0: Tensor | None = None,
    t: Tensor | float | None = None,
    condition: Condition = None,
    time: TimeLaw | None = None,
    weight: Callable[[Any], Number] | None = None,
    fixed: Tensor | None = None,
    draws: Draws | None = None,
    seed: int | None = None,
    reduction: Literal["mean", "none"] = "mean",
) -> Tensor:
    r"""The conditional generator-matching loss of a predictor on its path.

    .. math:: E_{t,\,(x_0,x_1),\,x_t}\; w_t\, D\bigl(F_t(x_t\,|\,x_0,x_1),\; F^\theta_t(x_t)\bigr)

    with F what the network predicts and D the predictor's divergence. Its gradient is that of the intractable marginal
    loss whenever D is a Bregman divergence (arXiv 2410.20587, Proposition 2). Flow matching (arXiv 2210.02747, eq. 9),
    DDPM's simple loss (arXiv 2006.11239, eq. 14), denoising score matching and masked diffusion are cases.

    Parameters
    ----------
    model
        A predictor. Train each network of a superposition on its own: the loss of a sum is under-determined.
    x1
        Data ``(B, *S)``.
    x0
        Source samples of the same shape; drawn from the path's source if not given. If they belong to ``x1``, say so in
        the path: ``coupling=gm.couplings.Given()``.
    t
        Times ``(B,)`` or a number in [0, 1]; drawn from ``time`` if not given.
    condition
        Tensors with B rows, passed to the network by name; a coupling keeps them with their data.
    time
        The law of t: uniform by default, see :mod:`genmatch.times`.
    weight
        Multiplies the squared error of the *data* prediction, see :mod:`genmatch.weights`; by default the loss is the
        error of the network's own output.
    fixed
        Bool ``(B, *S)``, tokens only: positions that are given (a prompt). They keep their data value at all times and
        carry no loss.
    draws, seed
        Counter-based numbers for x0, t, pairing and path; give one of them, or neither for a fresh seed.
    reduction
        ``"mean"`` for a scalar, ``"none"`` for ``(B,)``. Each sample's loss is the mean over its positions.

    Returns
    -------
    A scalar or ``(B,)``, differentiable in the network's parameters.

    Raises
    ------
    ValueError, TypeError
        On wrong shapes, dtypes or times, NaN in the data (seen on a CPU; on a GPU looking would make it wait), tokens
        outside the vocabulary, conditions of another length.
    """
    if not isinstance(model, Predictor):
        hint = ": train the network it reads, generator.model" if isinstance(model, Operator) else ""
        raise TypeError(
            f"matching_loss takes a predictor such as gm.predict.Velocity, got {type(model).__name__}{hint}"
        )
    if reduction not in ("mean", "none"):
        raise ValueError(f"reduction must be 'mean' or 'none', got {reduction!r}")
    path: Path = model.path
    _check_options(path, time, weight)
    _check_state("x1", x1, path)
    if not len(x1):
        raise ValueError(f"the batch is empty: x1 has shape {tuple(x1.shape)}")
    check_condition(condition, len(x1))
    draws = _choose_draws(draws, seed, x1)
    x0, x1, condition = path.pair(_choose_source(x0, x1, path, draws), x1, condition, draws)
    if t is None:
        t = (Uniform() if time is None else time).draw(path, draws.fork(TIMES))
    elif time is not None:
        raise ValueError("give t or a law of it (time=), not both")
    instant = model.instant(t, x1)
    x = path.between(x0, x1, instant, draws.fork(BETWEEN))
    if fixed is not None:
        x = torch.where(_check_fixed(fixed, x1), x1, x)
    native = model.native(x, instant, condition)
    loss = model.error(native, x, x0, x1, instant)
    if loss.shape != x1.shape:
        raise ValueError(
            f"{model.divergence!r} returned shape {tuple(loss.shape)}, one value for each position is needed, "
            f"{tuple(x1.shape)}: tokens are trained with gm.divergences.CrossEntropy()"
        )
    return _reduce(model, loss, x, x1, instant, weight, fixed, reduction)


def _reduce(model, loss, x, x1, instant, weight, fixed, reduction) -> Tensor:
    scored, counted = model.scored(x, x1)
    if fixed is not None:
        scored = ~fixed if scored is None else scored & ~fixed
        counted = ~fixed if counted is None else counted & ~fixed
    if scored is not None:
        loss = torch.where(scored, loss, 0)
    loss = loss.reshape(len(loss), -1)
    loss = loss.mean(1) if counted is None else loss.sum(1) / counted.reshape(len(loss), -1).sum(1).clamp(min=1)
    if weight is not None:
        inside = _inside(instant)
        factor = torch.as_tensor(weight(inside) * model.per_data(inside), device=loss.device, dtype=loss.dtype)
        loss = loss * factor.reshape(-1)
    return loss.mean() if reduction == "mean" else loss


def _inside(instant: Any) -> Any:
    if not isinstance(instant, Instant):
        return instant

    def raised(value: Number) -> Number:
        return value.clamp(min=TINY) if isinstance(value, Tensor) else max(value, TINY)

    return Instant(
        instant.t,
        raised(instant.alpha),
        raised(instant.sigma),
        derive=lambda: (instant.alpha_dot, instant.sigma_dot),
    )


def _check_options(path: Path, time: TimeLaw | None, weight: Callable[[Any], Number] | None) -> None:
    if time is not None and not isinstance(time, TimeLaw):
        raise TypeError(f"time is a law such as gm.times.LogitNormal(), got {time!r}; times themselves are given as t=")
    if weight is not None and (isinstance(weight, type) or not callable(weight)):
        raise TypeError(f"weight is a function of an instant such as gm.weights.MinSNR(), got {weight!r}")
    if weight is not None and isinstance(path, GaussianPath) and not path.readable:
        raise ValueError(f"on {path!r} no error in the data can be read off the network's, so it cannot be weighted")


def _check_state(name: str, x: Tensor, path: Path) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor (B, *S), got {type(x).__name__}")
    path.space.check(x)


def _choose_source(x0: Tensor | None, x1: Tensor, path: Path, draws: Draws) -> Tensor:
    if x0 is None:
        source = path.draw_source(tuple(x1.shape), draws).to(x1.dtype)
    else:
        _check_state("x0", x0, path)
        if x0.dtype != x1.dtype:
            raise TypeError(f"x0 and x1 must have one dtype, got {x0.dtype} and {x1.dtype}: convert one with .to(...)")
        source = x0
    check_pair(source, x1)
    return source


def _choose_draws(draws: Draws | None, seed: int | None, x1: Tensor) -> Draws:
    if draws is None:
        return Draws(seed, len(x1), device=x1.device)
    if not isinstance(draws, Draws):
        raise TypeError(f"draws must be genmatch.Draws(seed, {len(x1)}), got {type(draws).__name__}")
    if seed is not None:
        raise ValueError("give draws or a seed, not both")
    if draws.samples != len(x1):
        raise ValueError(f"draws are for {draws.samples} samples, the batch has {len(x1)}")
    return draws


def _check_fixed(fixed: Tensor, x1: Tensor) -> Tensor:
    if not isinstance(fixed, Tensor):
        raise TypeError(f"fixed must be a bool tensor of the shape of the tokens, got {type(fixed).__name__}")
    if x1.is_floating_point():
        raise TypeError("fixed positions are for tokens: a continuous state is conditioned through its network")
    if fixed.dtype != torch.bool or fixed.shape != x1.shape:
        raise ValueError(
            f"fixed must be bool of the shape {tuple(x1.shape)} of the tokens, got {fixed.dtype} {tuple(fixed.shape)}"
        )
    return fixed
