"""A prepared run: the plan, the probes and the checks of :func:`genmatch.sample` once, for many calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..generators import Operator
from ..initial import read_state
from ..predict.predictor import check_condition
from ..random import Draws
from ..spaces.states import State, each, same_factors
from .captured import CapturedRun, StaticRun, refuse_capture
from .compiled import CompiledStep, listen
from .field import Field
from .preparation import check_generator, evaluation_mode, prepare
from .run import Watch, check_finite, direction, follow
from .solver import Solver

__all__ = ["Sampler"]

Form = tuple[tuple[str, torch.Size, torch.dtype], ...]


class Sampler:
    r"""A run of :func:`gm.sample <genmatch.sample>` that is prepared once and called many times.

    Eager calls return bit for bit what ``gm.sample`` does with the same arguments.

    **Frozen at construction**: the generator's terms and weights, the batch size and shape, dtype and device of the
    states, the times, the solver's plan and with it all numbers of the schedule, the clocks and a Reschedule, and the
    direction of time. **Read at each call**: the seed, the first index, the condition, given states, the network's
    weights and whatever the network does, and the scale of :class:`~genmatch.guidance.ClassifierFree` (for which a
    compiled step compiles anew, eight times at most by torch's limit, and which a captured run does not see: it replays
    the scale of its first call).

    Parameters
    ----------
    generator
        As for ``gm.sample``.
    shape_or_state
        ``(B, *S)``: each call draws its first states from the path's source unless it is given some. States: an example
        of what every call will be given; only shape, dtype and device are kept. On a product a dict of either.
    steps, times, solver, start, stop, device, dtype
        As for ``gm.sample``.
    compile
        Compile the solver's step, network and all, by ``torch.compile(fullgraph=True)``, one graph for each kind of
        step (a multistep method begins with steps of fewer terms), and random numbers made outside of the graphs. The
        first call makes one eager run besides, which shows what the steps draw. Results agree with eager ones to the
        rounding of a fused step. For Gaussian paths and solvers whose step has a fixed form.
    capture
        Capture the whole run as a CUDA graph in the first call, and replay it in all: the host then costs a copy for
        each input. A call's condition must have the names, shapes and dtypes of the first one's; the random numbers of
        all steps lie in memory at once (``steps`` times the state, where there is noise). The weights may change in
        place.

    Raises
    ------
    ValueError, TypeError
        As ``gm.sample``, and where a run can not be compiled or captured: adaptive and event-driven solvers ask the
        host how far each sample is.

    Examples
    --------
    >>> import genmatch as gm, torch
    >>> flow = gm.Flow(gm.predict.Velocity(gm.nn.MLP(2), gm.GaussianPath()))
    >>> sampler = gm.Sampler(flow, (16, 2), steps=8)
    >>> torch.equal(sampler(seed=3), gm.sample(flow, (16, 2), steps=8, seed=3))
    True
    """

    def __init__(
        self,
        generator: Operator,
        shape_or_state: Sequence[int] | State,
        *,
        steps: int | None = None,
        times: Tensor | Sequence[float] | None = None,
        solver: Solver | None = None,
        start: float | None = None,
        stop: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        compile: bool = False,
        capture: bool = False,
    ) -> None:
        check_generator(generator, "Sampler")
        for name, value in (("compile", compile), ("capture", capture)):
            if not isinstance(value, bool):
                raise TypeError(f"{name} must be True or False, got {value!r}")
        initial = read_state(generator, shape_or_state, device, dtype)
        self.generator, self.drawn = generator, initial.given is None
        self._initial = initial._replace(given=None)  # an example of states is not kept
        with evaluation_mode(generator, False), torch.no_grad():
            self._speed = direction(generator, times, start, stop)
            field = Field(generator, initial.like, speed=self._speed)
            run = prepare(field, solver, steps, times, start, stop, from_source=self.drawn, dense=False)
            if compile or capture:
                _refuse_adaptive(run.solver)
            if capture:
                refuse_capture(initial.device, compiled=compile)
            self._compiled = CompiledStep(run.solver, run.plan, initial.device) if compile else None
        self._run, self._captures = run, capture
        self._captured: CapturedRun | None = None
        self._form: Form | None = None
        self._autocast: torch.dtype | None = None
        self._home = _home(generator)

    @property
    def times(self) -> list[float]:
        """The times of the steps."""
        return list(self._run.times)

    @property
    def solver(self) -> Solver:
        """The solver."""
        return self._run.solver

    @torch.no_grad()
    def __call__(
        self,
        *,
        seed: int | None = None,
        first_index: int = 0,
        condition: Mapping[str, Tensor] | None = None,
        x: State | None = None,
        progress: bool = False,
    ) -> State:
        """States at ``stop``, ``(B, *S)``: new ones from noise, or from states ``x`` at ``start``.

        Parameters
        ----------
        seed, first_index, condition
            As for ``gm.sample``.
        x
            The first states, of the shape that the sampler was built for; drawn from the source by default.
        progress
            Show a progress bar; not in a captured run.

        Raises
        ------
        ValueError, TypeError
            If states or condition do not fit what the sampler was built for, or the network was moved.
        FloatingPointError
            If a state becomes non-finite.
        """
        initial, run = self._initial, self._run
        if _home(self.generator) != self._home:
            raise ValueError(
                f"the network was on {self._home} when the sampler was built and is on {_home(self.generator)} now: "
                "build the sampler again"
            )
        check_condition(condition, initial.samples)
        self._check_states(x)
        draws = Draws(seed, initial.samples, first_index=first_index, device=initial.device)
        if condition is not None:
            condition = {name: value.to(initial.device) for name, value in condition.items()}
        own = initial._replace(given=x)
        with evaluation_mode(self.generator, False):
            states = own.states(self.generator.path, run.begin, slice(0, initial.samples), draws)
            field = Field(self.generator, initial.like, condition, speed=self._speed)
            if self._captures:
                return self._replay(states, condition, field, draws, progress)
            if self._compiled is not None:
                if not self._compiled.ready():
                    self._compiled.learn(listen(run.solver, run.plan, field, states, draws))
                states = each(torch.clone, states)  # rows of a larger tensor, as draws are, would cost a graph
                run = run._replace(plan=self._compiled.plan, step=self._compiled)
            with tqdm(total=len(run.plan), disable=not progress, unit="step", leave=False) as bar:
                return follow(run, field, states, draws, Watch(bar=bar if progress else None))[0]

    def _replay(self, x: State, condition: Any, field: Field, draws: Draws, progress: bool) -> State:
        if progress:
            raise ValueError("a captured run is replayed in one piece and has no progress to show: leave it out")
        form = tuple(sorted((name, value.shape, value.dtype) for name, value in (condition or {}).items()))
        kind = self._initial.device.type
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        if self._captured is None:
            with torch.inference_mode(False), torch.no_grad():  # buffers that a later call may write, whatever its mode
                asks = listen(self._run.solver, self._run.plan, field, x, draws)
                static = StaticRun(self._run, self.generator, self._speed, x, condition, draws, asks)
                self._captured, self._form, self._autocast = CapturedRun(static), form, autocast
        if autocast != self._autocast:
            raise ValueError(
                f"the run was captured under autocast to {self._autocast} and is called under {autocast}: call it "
                "alike, or build another sampler"
            )
        if form != self._form:
            raise ValueError(
                f"the run was captured with the condition {_describe(self._form)}, got {_describe(form)}: a graph "
                "reads buffers of one form; build another sampler for this one"
            )
        end = self._captured(x, condition, draws)
        check_finite(field.space, end, "at the end; gm.sample(..., check=True) tells at which step it begins")
        return end

    def _check_states(self, x: State | None) -> None:
        like, samples = self._initial.like, self._initial.samples
        if x is None:
            if not self.drawn:
                raise ValueError(
                    "this sampler was built from an example of its first states, and does not draw them: pass x="
                )
            return
        if isinstance(like, Mapping):
            same_factors("x", x, like)
        parts, likes = (x, like) if isinstance(like, Mapping) else ({"": x}, {"": like})
        for name, part in parts.items():
            where = f"x[{name!r}]" if name else "x"
            if not isinstance(part, Tensor):
                raise TypeError(f"{where} must be a tensor of states, got {type(part).__name__}")
            wanted = (samples, *likes[name].shape[1:])
            if tuple(part.shape) != wanted:
                raise ValueError(
                    f"this sampler was built for states {where} of shape {wanted}, got {tuple(part.shape)}: build one "
                    "for each batch size and shape"
                )
            if part.dtype != likes[name].dtype:
                raise TypeError(
                    f"this sampler was built for states {where} of {likes[name].dtype}, got {part.dtype}: convert them "
                    f"by .to({likes[name].dtype}), or build a sampler with dtype="
                )
        self.generator.path.space.check(x)

    def __repr__(self) -> str:
        shape = each(lambda like: (self._initial.samples, *like.shape[1:]), self._initial.like)
        how = ", compiled" if self._compiled is not None else ", captured" if self._captures else ""
        times = self._run.times
        return (
            f"Sampler({shape}, {len(times) - 1} steps from {times[0]:g} to {times[-1]:g} by {self._run.solver!r}, "
            f"on {self._initial.device}{how})"
        )


def _refuse_adaptive(solver: Solver) -> None:
    """Raise unless every run of a plan makes the same steps."""
    if solver.on_the_host:
        raise ValueError(
            f"{type(solver).__name__} asks the host after each step how far a sample is, so its run is no fixed "
            "sequence of steps to compile or capture: compile the network, or take a solver of a fixed grid such as "
            "gm.solvers.Heun()"
        )


def _home(generator: Operator) -> torch.device | None:
    parameter = next(iter(generator.parameters()), None)
    return None if parameter is None else parameter.device


def _describe(form: Form | None) -> str:
    return "{" + ", ".join(f"{name}: {dtype} {tuple(shape)}" for name, shape, dtype in form or ()) + "}"
