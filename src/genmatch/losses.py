r"""The one loss: the divergence of a conditional target from what a network predicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .generators import Operator
from .paths import GaussianPath, MixtureInstant, Path
from .paths.path import BETWEEN, check_pair
from .predict import Predictor, Product
from .predict.predictor import Condition, check_condition
from .random import Draws
from .schedules import Instant, Number
from .spaces.product import FACTORS
from .spaces.states import State, batch, each, first, same_factors
from .times import TimeLaw, Uniform

__all__ = ["Pair", "Task", "compare", "corrupt", "draw_pair", "draw_task", "matching_loss"]

TIMES = 7  # stream of a loss's draws
TINY = 1e-9  # least alpha and sigma that a weight sees: at 0 it would be 0 times infinity; its square is a float32


def matching_loss(
    model: Predictor,
    x1: State,
    *,
    x0: State | None = None,
    paired: bool = False,
    t: Tensor | float | Mapping[str, Any] | MixtureInstant | None = None,
    condition: Condition = None,
    time: TimeLaw | Mapping[str, TimeLaw] | None = None,
    weight: Callable[[Any], Number] | None = None,
    fixed: State | None = None,
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
        Data ``(B, *S)``; on a product a dict of them, and so for ``x0`` and ``fixed``. The factors' losses add.
    x0
        Source samples of the same shape; drawn from the path's source if not given. If they belong to ``x1``, say so in
        the path: ``coupling=gm.couplings.Given()``.
    paired
        ``x0`` has been paired with ``x1`` by the path's coupling already: it is not asked again.
    t
        Times ``(B,)`` or a number in [0, 1]; drawn from ``time`` if not given. On a product a dict gives every factor
        a time of its own.
    condition
        Tensors with B rows, passed to the network by name; a coupling keeps them with their data.
    time
        The law of t: uniform by default, see :mod:`genmatch.times`. On a product a dict of laws draws the factors'
        times independently, as a sampler with other clocks, or with some factors given, needs.
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
    if reduction not in ("mean", "none"):
        raise ValueError(f"reduction must be 'mean' or 'none', got {reduction!r}")
    task = draw_task(
        model,
        x1,
        x0=x0,
        paired=paired,
        t=t,
        condition=condition,
        time=time,
        weight=weight,
        fixed=fixed,
        draws=draws,
        seed=seed,
    )
    instant = model.instant(task.t, task.x1)
    x = corrupt(model, task, instant, task.draws)
    loss = compare(model, task, instant, x, weight)
    return loss.mean() if reduction == "mean" else loss


class Pair(NamedTuple):
    """Source and data ``(B, *S)`` as a coupling pairs them, and the condition of each pair."""

    x0: State
    x1: State
    condition: Condition


class Task(NamedTuple):
    """What a network is to be right about: pairs, their times, positions that are given, draws for what is random."""

    x0: State
    x1: State
    condition: Condition
    t: Any
    fixed: State | None
    draws: Draws


def draw_pair(model: Predictor, x1: State, x0: State | None, condition: Condition, draws: Draws) -> Pair:
    """Source samples, drawn unless they are given, and their pairing with the data; all of it is checked."""
    path = _check_data(model, x1, condition)
    return _pair(path, x1, x0, condition, draws)


def _pair(path: Path, x1: State, x0: State | None, condition: Condition, draws: Draws) -> Pair:
    return Pair(*path.pair(_choose_source(x0, x1, path, draws), x1, condition, draws))


def draw_task(
    model: Predictor,
    x1: State,
    *,
    x0: State | None,
    paired: bool,
    t: Any,
    condition: Condition,
    time: TimeLaw | Mapping[str, TimeLaw] | None,
    weight: Callable[[Any], Number] | None,
    fixed: State | None,
    draws: Draws | None,
    seed: int | None,
) -> Task:
    """The arguments of :func:`matching_loss` checked, and its random numbers drawn, but for those between the ends."""
    path = _check_data(model, x1, condition)
    _check_options(model, time, weight)
    if not isinstance(paired, bool):
        raise TypeError(f"paired must be True or False, got {paired!r}: the states themselves are x0=")
    draws = _choose_draws(draws, seed, first(x1))
    if paired:
        if x0 is None:
            raise ValueError("paired=True says that x0 belongs to x1: give x0 as well")
        pair = Pair(_choose_source(x0, x1, path, draws), x1, condition)
    else:
        pair = _pair(path, x1, x0, condition, draws)
    if t is None:
        t = _draw_times(time, path, draws.fork(TIMES))
    elif time is not None:
        raise ValueError("give t or a law of it (time=), not both")
    return Task(*pair, t, fixed, draws)


def corrupt(model: Predictor, task: Task, instant: Any, draws: Draws) -> State:
    """The states between the ends of the pairs, fixed positions at their data value."""
    x = model.path.between(task.x0, task.x1, instant, draws.fork(BETWEEN))
    return x if task.fixed is None else _hold(task.fixed, task.x1, x)


def compare(model: Predictor, task: Task, instant: Any, x: State, weight: Callable[[Any], Number] | None) -> Tensor:
    """The loss of each sample ``(B,)`` of the network at the states ``x``."""
    x0, x1, fixed = task.x0, task.x1, task.fixed
    error = model.error(model.native(x, instant, task.condition), x, x0, x1, instant)
    if not isinstance(model, Product):
        return _per_sample(model, error, x, x1, instant, weight, fixed)
    losses = [
        model.weights[name]
        * _per_sample(own, error[name], x[name], x1[name], instant.factors[name], None, (fixed or {}).get(name))
        for name, own in model.models.items()
    ]
    return torch.stack(losses).sum(0)


def _check_data(model: Any, x1: State, condition: Condition) -> Path:
    """Raise unless data and condition suit the model; returns its path."""
    if not isinstance(model, Predictor):
        hint = ": train the network it reads, generator.model" if isinstance(model, Operator) else ""
        raise TypeError(
            f"matching_loss takes a predictor such as gm.predict.Velocity, got {type(model).__name__}{hint}"
        )
    _check_state("x1", x1, model.path)
    each(_check_some, x1)
    check_condition(condition, batch(x1))
    return model.path


def _draw_times(time: Any, path: Path, draws: Draws) -> Any:
    if not isinstance(time, Mapping):
        return (Uniform() if time is None else time).draw(path, draws)
    factors: Mapping[str, Path] = path.factors  # type: ignore[attr-defined]
    return {name: time[name].draw(own, draws.fork(FACTORS + i)) for i, (name, own) in enumerate(factors.items())}


def _hold(fixed: State, x1: State, x: State) -> State:
    """The state with fixed positions at their data value."""
    if not isinstance(x1, Mapping):
        return torch.where(_check_fixed(fixed, x1), x1, x)
    if not isinstance(fixed, Mapping) or not set(fixed) <= set(x1):
        raise ValueError(f"fixed must be a dict of bool tensors for some of the factors {', '.join(x1)}")
    return {name: _hold(fixed[name], part, x[name]) if name in fixed else x[name] for name, part in x1.items()}


def _per_sample(model, loss, x, x1, instant, weight, fixed) -> Tensor:
    """The mean over the positions that count, ``(B,)``."""
    if loss.shape != x1.shape:
        raise ValueError(
            f"{model.divergence!r} returned shape {tuple(loss.shape)}, one value for each position is needed, "
            f"{tuple(x1.shape)}: tokens are trained with gm.divergences.CrossEntropy()"
        )
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
    return loss


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


def _check_options(model: Predictor, time: Any, weight: Callable[[Any], Number] | None) -> None:
    path = model.path
    if isinstance(time, Mapping):
        if not isinstance(model, Product):
            raise TypeError("a dict of time laws is for a product path: give one law")
        same_factors("time", time, path.factors)
        for law in time.values():
            _check_options(model, law, None)
        time = None
    if weight is not None and isinstance(model, Product):
        raise TypeError("a product's loss is weighted factor by factor: gm.predict.Product(..., weights=...)")
    if time is not None and not isinstance(time, TimeLaw):
        raise TypeError(f"time is a law such as gm.times.LogitNormal(), got {time!r}; times themselves are given as t=")
    if weight is not None and (isinstance(weight, type) or not callable(weight)):
        raise TypeError(f"weight is a function of an instant such as gm.weights.MinSNR(), got {weight!r}")
    if weight is not None and isinstance(path, GaussianPath) and not path.readable:
        raise ValueError(f"on {path!r} no error in the data can be read off the network's, so it cannot be weighted")


def _check_state(name: str, x: State, path: Path) -> None:
    if not isinstance(x, Tensor) and not hasattr(path, "factors"):
        raise TypeError(f"{name} must be a tensor (B, *S), got {type(x).__name__}")
    path.space.check(x)


def _choose_source(x0: State | None, x1: State, path: Path, draws: Draws) -> State:
    if x0 is None:
        source = path.draw_source(each(lambda part: tuple(part.shape), x1), draws)
        source = each(lambda part, like: part.to(like.dtype), source, x1)
        path.space.check(source)
    else:
        _check_state("x0", x0, path)
        each(_check_dtypes, x0, x1)
        source = x0
    each(check_pair, source, x1)
    return source


def _check_some(x1: Tensor) -> None:
    if not x1.numel():
        raise ValueError(f"the batch is empty: x1 has shape {tuple(x1.shape)}")


def _check_dtypes(x0: Tensor, x1: Tensor) -> None:
    if x0.dtype != x1.dtype:
        raise TypeError(f"x0 and x1 must have one dtype, got {x0.dtype} and {x1.dtype}: convert one with .to(...)")


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
