r"""Transition log-probabilities: how likely each step of a run was, as a function of the networks' parameters.

A run of a stochastic solver is a Markov chain (with multistep methods, one of higher order), so that

.. math:: \log p(x_{1:N}\,|\,x_0) = \sum_i \log p(x_{i+1}\,|\,x_i, x_{i-1}, \dots)

and :math:`\nabla E[r(x_N)] = E\bigl[r(x_N)\sum_i\nabla\log p(x_{i+1}\,|\,x_i)\bigr]`: fine-tuning by policy gradients
needs nothing else of the sampler.

References
----------
.. [1] R. Williams, "Simple statistical gradient-following algorithms", Machine Learning 8 (1992) (REINFORCE).
.. [2] K. Black et al., arXiv 2305.13301, eq. 4 and 5 (the same for chains of denoising steps, with ratios).
.. [3] J. Liu et al., "Flow-GRPO", arXiv 2505.05470 (flows, by the diffusions that have their marginals).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from operator import index
from typing import Any

import torch
from torch import Tensor

from .generators import Operator
from .initial import read_fixed
from .predict.predictor import check_condition
from .solvers import Field, Solver
from .solvers.laws import TransitionLaw
from .solvers.preparation import evaluation_mode, prepare
from .solvers.run import direction
from .solvers.transition_law import StepLaw, find_law, refuse_certain
from .spaces.states import State, batch, each, first, same_factors

__all__ = ["transition_laws", "transition_log_prob"]


def transition_log_prob(
    generator: Operator,
    states: State,
    *,
    steps: int | None = None,
    times: Tensor | Sequence[float] | None = None,
    solver: Solver | None = None,
    condition: Mapping[str, Tensor] | None = None,
    fixed: State | None = None,
    start: float | None = None,
    stop: float | None = None,
    which: Sequence[int] | str | None = None,
) -> Tensor:
    r"""Log-probabilities of the steps of a run, per sample: :math:`\log p(x_{i+1}\,|\,x_i, \dots)`, in nats.

    A density where the step is Gaussian (Euler-Maruyama, DDIM with :math:`\eta` > 0, DDPM, the exponential solvers on a
    diffusion), a probability where it is categorical (Euler on tokens), the sum of both on a product. Differentiable in
    the networks' parameters, and in the states and the condition if they ask for it.

    A step without noise inside a stochastic run is a point mass: it counts 0, and a state that is not where it leads
    raises, as a ratio would mean nothing. The last step to the data is one for DDPM, DDIM and the exponential solvers
    on most schedules. It leads elsewhere once the parameters have changed, so ``which="random"`` leaves such steps out.
    What the result of the run owes to the parameters *through* such a step is then not in the log-probabilities either:
    a policy gradient takes the state before it for the end, or differentiates the reward through it.

    Parameters
    ----------
    generator
        As given to :func:`genmatch.sample`, or with other parameters.
    states
        ``(N + 1, B, *S)`` as ``gm.sample(..., trajectory=True)`` returns them; on a product a dict of such. With
        ``batch_size`` in the way of memory pass some rows, ``states[:, rows]``, and their conditions.
    steps, times, solver, condition, fixed, start, stop
        As in the run that made the states: without ``times`` the steps are equal. ``steps`` is N, and may be left out.
    which
        The numbers of the steps that are wanted, 0 .. N - 1 (negative ones count from the end); ``"random"`` for those
        that draw anything; all by default. Only these run the network, and those before that a multistep method looks
        back on.

    Returns
    -------
    ``(n, B)`` in float64, one row for each wanted step, in the order asked for.

    Raises
    ------
    ValueError, TypeError
        On wrong input; for solvers whose steps have no law in closed form, which are named; for runs without any noise.

    Notes
    -----
    Networks run in evaluation mode, as in a run: dropout would make the ratio of a state's probability to its own
    differ from 1. Gradients are taken, or not, as around the call (``torch.no_grad()``).

    Examples
    --------
    >>> import genmatch as gm, torch
    >>> flow = gm.Flow(gm.predict.Velocity(gm.nn.MLP(2), gm.GaussianPath()))
    >>> run = {"solver": gm.solvers.DDPM(), "stop": 0.95}
    >>> states = gm.sample(flow, (4, 2), steps=5, seed=0, trajectory=True, **run)
    >>> gm.transition_log_prob(flow, states, **run).shape
    torch.Size([5, 4])
    """
    asked = _Asked.of(generator, states, steps, times, solver, condition, fixed, start, stop)
    numbers = asked.numbers(which)
    rows = [law.log_prob(asked.state(i + 1)) for i, law in zip(numbers, asked.laws(numbers), strict=True)]
    return torch.stack(rows)


def transition_laws(
    generator: Operator,
    states: State,
    *,
    steps: int | None = None,
    times: Tensor | Sequence[float] | None = None,
    solver: Solver | None = None,
    condition: Mapping[str, Tensor] | None = None,
    fixed: State | None = None,
    start: float | None = None,
    stop: float | None = None,
    which: Sequence[int] | str | None = None,
) -> Iterator[TransitionLaw]:
    """The laws of the steps of a run, one after the other, each made when it is asked for.

    A :class:`~genmatch.solvers.TransitionLaw` has ``log_prob(x)`` and ``kl(other)``, the divergence between the same
    step of two models, in closed form. Walking through them takes the memory of one step where gradients are taken and
    used step by step. With a multistep solver the steps share evaluations: there ask for one at a time, by ``which``.

    Parameters are those of :func:`transition_log_prob`, and so are the errors.

    Examples
    --------
    >>> import genmatch as gm, torch
    >>> flow, other = (gm.Flow(gm.predict.Velocity(gm.nn.MLP(2), gm.GaussianPath())) for _ in range(2))
    >>> run = {"solver": gm.solvers.DDPM(), "stop": 0.95}
    >>> states = gm.sample(flow, (4, 2), steps=5, seed=0, trajectory=True, **run)
    >>> pairs = zip(*(gm.transition_laws(model, states, **run) for model in (flow, other)))
    >>> sum(own.kl(reference).mean() for own, reference in pairs).shape
    torch.Size([])
    """
    asked = _Asked.of(generator, states, steps, times, solver, condition, fixed, start, stop)
    return asked.laws(asked.numbers(which))


class _Asked:
    """A run that was made: its states, the plan of its solver, and the law of its steps."""

    def __init__(self, states: State, solver: Solver, field: Field, plan: Sequence[Any], entry: StepLaw) -> None:
        self.states, self.solver, self.field, self.plan, self.entry = states, solver, field, plan, entry
        self.random = refuse_certain(solver, entry, field, plan)

    @classmethod
    def of(
        cls, generator: Operator, states: State, steps: int | None, times: Any, solver: Any, condition: Any, fixed: Any,
        start: float | None, stop: float | None,
    ) -> _Asked:  # fmt: skip
        """The run that was asked about, checked."""
        if not isinstance(generator, Operator):
            raise TypeError(f"transition probabilities are of a generator, got {type(generator).__name__}")
        count = _check_states(generator, states)
        if steps is not None and steps != count:
            raise ValueError(f"{count + 1} states are those of {count} steps, got steps={steps}")
        now = each(lambda part: part[0], states)
        check_condition(condition, batch(now))
        read_fixed(fixed, now)
        speed = direction(generator, times, start, stop)
        like = each(lambda part: torch.empty_like(part[:1]), now)
        equal = count if times is None else None
        field = Field(generator, like, speed=speed)
        run = prepare(field, solver, equal, times, start, stop, from_source=False, dense=False)
        entry = find_law(run.solver)
        if len(run.plan) != count:
            raise ValueError(f"times make {len(run.plan)} steps, and the states {count}: pass all states of the run")
        return cls(states, run.solver, Field(generator, like, condition, fixed, speed=speed), run.plan, entry)

    def state(self, i: int) -> State:
        """The states ``(B, *S)`` after i steps."""
        return each(lambda part: part[i], self.states)

    def numbers(self, which: Any) -> list[int]:
        """The steps asked for, from 0."""
        count = len(self.plan)
        if which is None:
            return list(range(count))
        if isinstance(which, str):
            if which != "random":
                raise ValueError(f"which is a list of steps, 'random' or None for all, got {which!r}")
            return self.random
        if isinstance(which, Tensor):
            which = which.tolist()
        if not isinstance(which, Sequence) or any(isinstance(i, bool) or not hasattr(i, "__index__") for i in which):
            raise TypeError(f"which is a list of step numbers, 'random', or None for all steps, got {which!r}")
        numbers = [index(i) for i in which]
        wrong = [i for i in numbers if not -count <= i < count]
        if wrong or not numbers:
            raise ValueError(f"which names steps 0 to {count - 1} of this run, got {wrong or 'none'}")
        return [i % count for i in numbers]

    def laws(self, numbers: Sequence[int]) -> Iterator[TransitionLaw]:
        """The laws of some steps; what a step looks back on is made anew unless the step before it was the last."""
        carry, at = None, -1
        for number in numbers:
            if at != number:
                carry, at = None, max(0, number - self._reach(number))
            while True:
                with evaluation_mode(self.field.operator, False):
                    law, carry = self.entry.law(self.solver, self.field, self.state(at), self.plan[at], carry)
                at += 1
                if at > number:
                    break
            yield law

    def _reach(self, number: int) -> int:
        """How many steps before a step it looks back on."""
        return self.entry.memory(self.plan[number - 1]) if number else 0


def _check_states(generator: Operator, states: State) -> int:
    """The number of steps between the states."""
    factors = getattr(generator.path, "factors", None)
    if factors is not None:
        same_factors("the states", states, factors)
    elif isinstance(states, Mapping):
        raise TypeError("the states of this generator are one tensor (N + 1, B, *S), got a dict")
    parts = states if factors is not None else {"": states}
    for name, part in parts.items():
        where = f" of the factor {name!r}" if name else ""
        if not isinstance(part, Tensor):
            raise TypeError(f"the states{where} must be a tensor (N + 1, B, *S), got {type(part).__name__}")
        if part.ndim < 2 or len(part) < 2:
            raise ValueError(
                f"the states{where} are (N + 1, B, *S) as of gm.sample(..., trajectory=True), got {tuple(part.shape)}"
            )
    shapes = {name: tuple(part.shape[:2]) for name, part in parts.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"the factors must have one number of steps and of samples, got {shapes}")
    generator.path.space.check(each(lambda part: part.flatten(0, 1), states))
    return len(first(states)) - 1
