r"""The law of a solver's step, for solvers whose steps are Gaussian, or categorical on tokens.

A step of Euler and Maruyama is :math:`N(x + h b, h\Sigma)`, one of an exponential solver (DDIM with noise and DDPM
among them) :math:`N(A x + B N + \sum_j p_j D_{-j}, \text{std}^2)`, the means from one evaluation of the network at x.
A tau-leap of tokens is categorical, position by position.

References
----------
.. [1] K. Black et al., "Training diffusion models with reinforcement learning", arXiv 2305.13301 (the chain of
   denoising steps as a policy, each of a known Gaussian law).
.. [2] Y. Fan et al., "DPOK", arXiv 2305.16381.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..spaces import Euclidean, Product, Space, Tokens
from ..spaces.space import root
from ..spaces.states import State
from ..triplet import Triplet, Triplets
from .adams import AdamsBashforth
from .adaptive import Dopri5
from .churn import Churn
from .end_point import EndPoint
from .exponential import Opening, Semilinear
from .field import Field
from .first_hitting import FirstHitting
from .jump_thinning import JumpThinning
from .laws import CategoricalLaw, GaussianLaw, PointLaw, ProductLaw, TransitionLaw
from .runge_kutta import Euler, RungeKutta
from .single_step import DPMSolverSingle
from .solver import Solver
from .staged import Staged, Step
from .strang import Strang
from .thinning import Thinning
from .torchdiffeq import TorchDiffEq
from .transition import Transition, apply_transition
from .two_event import TwoEvent
from .unipc import UniPC
from .unmasking import Confidence, Remasking

__all__ = ["StepLaw", "find_law", "step_law"]

OFFERS = "Use DDPM(), DDIM(eta) or Exponential() on a gm.Diffusion(model), Euler() on a noisy generator or on tokens"


class StepLaw(NamedTuple):
    """What is known of the steps of a class of solvers; see :func:`step_law`."""

    law: Callable[[Any, Field, Any, Any, Any], tuple[TransitionLaw, Any]]
    random: Callable[[Field, Any], bool]
    memory: Callable[[Any], int]


_LAWS: dict[type[Solver], StepLaw] = {}
_REASONS: dict[type[Solver], str] = {
    **dict.fromkeys((AdamsBashforth, Dopri5, DPMSolverSingle, TorchDiffEq, UniPC), "it is deterministic"),
    Churn: "the network sees the noise of the step",
    RungeKutta: "it is deterministic on a flow, and with noise its stages share the noise of the step",
    Staged: "its stages share the noise of the step",
    EndPoint: "the noise of a step is that of where it leads",
    Strang: "a step is made of several random ones",
    TwoEvent: "a state may come by any of two jumps in a step",
    JumpThinning: "the number of jumps in a step is random",
    Thinning: "the number of jumps in a step is random",
    FirstHitting: "the number of jumps in a step is random, and their order",
    Confidence: "which positions it unmasks depends on the ranks of all of them",
    Remasking: "none is written down for it; Euler() on (1 + b) * gm.CTMC(model) + b * gm.ReverseCTMC(model) has one",
}


def _always(field: Field, c: Any) -> bool:
    return True


def _nothing(c: Any) -> int:
    return 0


def step_law(
    kind: type[Solver],
    *,
    random: Callable[[Field, Any], bool] = _always,
    memory: Callable[[Any], int] = _nothing,
) -> Callable[[Callable[..., tuple[TransitionLaw, Any]]], Callable[..., tuple[TransitionLaw, Any]]]:
    """Register the law of the steps of a class of solvers, and of those derived from it that keep its ``step``.

    The decorated function is called as ``law(solver, field, x, c, carry)`` with a step ``c`` of the plan and the states
    ``x`` before it, and returns a :class:`~genmatch.solvers.TransitionLaw` and what the next step needs to know: what
    ``solver.step`` carries on, without the draw.

    Parameters
    ----------
    kind
        The class.
    random
        ``random(field, c)``: whether a step draws anything. By default all do.
    memory
        ``memory(c)``: how many steps back, itself included, the step after ``c`` needs to know. By default none.

    Examples
    --------
    >>> import genmatch as gm
    >>> class Noisy(gm.solvers.Exponential):  # keeps the step, and so has its law
    ...     pass
    >>> gm.solvers.find_law(Noisy()) is gm.solvers.find_law(gm.solvers.DDPM())
    True
    """

    def register(function: Callable[..., tuple[TransitionLaw, Any]]) -> Callable[..., tuple[TransitionLaw, Any]]:
        _LAWS[kind] = StepLaw(function, random, memory)
        return function

    return register


def find_law(solver: Solver) -> StepLaw:
    """What is known of a solver's steps.

    Raises
    ------
    ValueError
        For a solver whose steps have no law in closed form, or none that is registered.
    """
    reason = "no law of its steps is registered with gm.solvers.step_law"
    for kind in type(solver).__mro__:
        if kind in _LAWS:
            return _LAWS[kind]
        if kind in _REASONS:
            reason = _REASONS[kind]
            break
        if {"step", "advance"} & vars(kind).keys():  # what is known of a class above does not hold for another step
            break
    raise ValueError(f"{solver!r} has no transition probabilities in closed form: {reason}. {OFFERS}")


def refuse_certain(solver: Solver, entry: StepLaw, field: Field, plan: Sequence[Any]) -> list[int]:
    """The numbers of the steps that draw anything; none raises."""
    found = [i for i, c in enumerate(plan) if entry.random(field, c)]
    if not found:
        raise ValueError(
            f"{solver!r} makes no random step here, so that the states have no transition probabilities. {OFFERS}"
        )
    return found


def _adds_noise(field: Field, c: Any) -> bool:
    if isinstance(c, Opening) and c.first.std == 0:
        return False
    if not isinstance(c, Transition):
        raise ValueError(
            f"a step {type(c).__name__} is not Gaussian with a mean from one evaluation, and has no transition "
            f"probability in closed form. {OFFERS}"
        )
    return c.std > 0


def _kept(c: Transition | Opening) -> int:
    return (c.first if isinstance(c, Opening) else c).memory


@step_law(Semilinear, random=_adds_noise, memory=_kept)
def _of_transition(
    solver: Semilinear, field: Field, x: Tensor, c: Transition | Opening, carry: Any
) -> tuple[TransitionLaw, Any]:
    if not _adds_noise(field, c):
        moved, kept = solver.step(field, x, c, None, carry)  # type: ignore[arg-type]  # it draws nothing
        return PointLaw(moved), kept
    return _gaussian(field, x, c, carry)  # type: ignore[arg-type]


def _gaussian(field: Field, x: Tensor, c: Transition, carry: Any) -> tuple[TransitionLaw, Any]:
    mean, kept = apply_transition(field, x, c._replace(std=0.0), None, carry)
    return (GaussianLaw(mean, c.std) if c.std > 0 else PointLaw(mean)), kept


def _leaps(field: Field, c: Step) -> bool:
    if c.ending is not None:
        return False
    if c.last is not None:
        return c.last.std > 0
    triplet = field.probe(c.instants[0])
    parts = triplet.values() if isinstance(triplet, Triplets) else (triplet,)
    return any(part.rates is not None or _positive(part.variance) for part in parts)


@step_law(Euler, random=_leaps)
def _of_euler(solver: Euler, field: Field, x: State, c: Step, carry: None) -> tuple[TransitionLaw, None]:
    if c.ending is not None:
        return PointLaw(c.ending.step(field, x)), None
    if c.last is not None:
        return _gaussian(field, x, c.last, None)[0], None
    return _of_move(field.space, x, field(x, c.instants[0]), c.h), None


def _of_move(space: Space, x: State, triplet: Any, h: float) -> TransitionLaw:
    """The law of ``space.move(x, triplet, h, draws)``."""
    if isinstance(space, Product):
        own = {name: triplet.get(name, Triplet()) for name in space.factors}
        return ProductLaw({name: _of_move(space.factors[name], x[name], own[name], h) for name in own})
    noisy = _positive(triplet.variance)
    if triplet.rates is None and not noisy:
        return PointLaw(space.move(x, Triplet(triplet.drift), h, None))  # type: ignore[arg-type]  # it draws nothing
    if isinstance(space, Tokens):
        return CategoricalLaw(space, x, triplet.rates, h)  # type: ignore[arg-type]  # there are some
    if triplet.rates is not None:
        raise ValueError(
            "jumps of a continuous state have no transition probability that is Gaussian or categorical: give a flow, "
            "a diffusion or a chain of tokens"
        )
    if not isinstance(space, Euclidean):
        raise ValueError(
            f"a random step on {space!r} is not Gaussian: transition probabilities are for vectors and for tokens"
        )
    none = torch.zeros_like(x)
    mean = space.move(x, Triplet(triplet.drift, triplet.variance), h, None, none)  # type: ignore[arg-type]
    variance = h * triplet.variance
    return GaussianLaw(mean, root(variance) if isinstance(variance, Tensor) else math.sqrt(variance))


def _positive(variance: Any) -> bool:
    """Whether there is noise; a tensor is taken for some."""
    return variance is not None and (isinstance(variance, Tensor) or variance > 0)
