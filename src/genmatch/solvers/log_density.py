r"""The log-density of a flow's law, carried along with its states.

Along a trajectory of :math:`\dot x = u_t(x)` the density of the law that flows with it changes by the divergence alone,

.. math:: \frac{d}{dt}\log p_t(x_t) = -\nabla\cdot u_t(x_t),

so a state with one number more, :math:`(x, \ell)` with :math:`\dot\ell = -\nabla\cdot u_t(x)`, is again a state of a
flow, which every solver of drifts can move.

References
----------
.. [1] R. Chen et al., "Neural ordinary differential equations", arXiv 1806.07366, Theorem 1.
.. [2] W. Grathwohl et al., "FFJORD", arXiv 1810.01367.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..generators import Operator, OperatorInstant
from ..paths import GaussianPath, Path
from ..paths.sources import Normal
from ..predict.predictor import Learned
from ..random import Draws
from ..spaces import Euclidean
from ..triplet import Triplet
from .adaptive import Dopri5
from .field import Field
from .run import BLIND_LOG_SNR
from .solver import Solver
from .traces import Exact, Trace

__all__ = ["LogDensity", "check_density", "check_span", "density_solver", "inner_time", "source_log_prob"]

CLEAN_LOG_SNR = 12.0  # noise of 0.0025 times the data: a third of a level of an 8-bit image in [-1, 1]


class LogDensity:
    r"""The lift of a flow to states ``(B, d + 1)``: x, flattened, and the change of its log-density.

    Parameters
    ----------
    divergence
        How the divergence is taken; exactly by default.
    like
        A state ``(B, *S)``: its shape, dtype and device are those of all states.
    draws
        From which probes are drawn, once for all evaluations.
    operator
        The flow: whether its networks let gradients through is looked at in the first evaluation.
    """

    def __init__(self, divergence: Trace | None, like: Tensor, draws: Draws, operator: Operator) -> None:
        self.operator, self.looked = operator, False
        self.divergence: Trace = Exact() if divergence is None else divergence
        self.shape = like.shape[1:]
        states = torch.empty((draws.samples, *self.shape), dtype=like.dtype, device=like.device)
        self.probes = self.divergence.probes(states, draws)
        self.reverse: bool | None = None  # True once it is found out that the network has no forward mode

    def join(self, x: Tensor) -> Tensor:
        """States with no change yet."""
        return torch.cat([x.reshape(len(x), -1), x.new_zeros(len(x), 1)], 1)

    def split(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """x ``(B, *S)`` and the change of its log-density ``(B,)``."""
        return state[:, :-1].reshape(-1, *self.shape), state[:, -1]

    def states(self, state: Tensor) -> Tensor:
        """x alone."""
        return self.split(state)[0]

    def __call__(
        self, triplet: Callable[[Tensor, OperatorInstant], Any], state: Tensor, instant: OperatorInstant
    ) -> Triplet:
        """The drift of the larger state: the network runs once, and its divergence beside it."""
        x = self.states(state)

        def drift(y: Tensor) -> Tensor:
            return triplet(y, instant).drift

        if self.looked:
            value, divergence = self._take(drift, x)
        else:
            value, divergence = self._look(drift, x)
        return Triplet(drift=torch.cat([value.reshape(len(x), -1), -divergence[:, None]], 1))

    def _look(self, drift: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        """The first evaluation. A network under ``no_grad`` would look constant to backward passes."""
        hidden: list[bool] = []

        def see(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor) and inputs[0].requires_grad:
                hidden.append(not output.requires_grad)
                if output.is_inference():
                    raise ValueError(
                        f"{type(module).__name__} runs in inference mode, which keeps no derivatives, and a "
                        "log-density needs its divergence: run it under torch.no_grad() or plainly"
                    )

        networks = [part.network for part in self.operator.modules() if isinstance(part, Learned)]
        handles = [network.register_forward_hook(see) for network in networks]
        try:
            value, divergence = self._take(drift, x)
        finally:
            for handle in handles:
                handle.remove()
        self.looked = True
        if not any(hidden):
            return value, divergence
        if self.divergence.mode == "reverse" or torch.is_grad_enabled():
            raise ValueError(
                "a network computes under torch.no_grad(), so nothing can be differentiated backwards through it: "
                'leave mode="reverse" and grad=True out, or take no_grad away'
            )
        self.reverse = False
        return self._take(drift, x)

    def _take(self, drift: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        """The drift and its divergence; by backward passes if the network has no forward mode."""
        try:
            return self.divergence(drift, x, self.probes, reverse=self.reverse)
        except (NotImplementedError, RuntimeError) as error:
            settled = self.divergence.mode != "auto" or self.divergence.backwards(x, self.reverse)
            if settled or isinstance(error, torch.OutOfMemoryError):
                raise
        self.reverse = True  # anything else that is wrong with the network comes up there again
        return self.divergence(drift, x, self.probes, reverse=True)


def check_density(generator: Operator, divergence: Trace | None, what: str) -> None:
    """Raise unless the law of the generator has a density that can be followed."""
    if divergence is not None and not isinstance(divergence, Trace):
        hint = ": call it" if isinstance(divergence, type) else ""
        raise TypeError(
            "divergence must be gm.likelihood.Exact() or gm.likelihood.Hutchinson(), got "
            f"{divergence.__name__ if isinstance(divergence, type) else type(divergence).__name__}{hint}"
        )
    path = generator.path
    if type(path.space) is not Euclidean:
        bound = "; of masked tokens there is a bound, gm.likelihood.masked_bound" if path.space.discrete else ""
        raise TypeError(f"{what} is of flows on R^d with the Lebesgue measure, got a path on {path.space!r}{bound}")
    if not isinstance(path.source, Normal) and not callable(getattr(path.source, "log_prob", None)):
        raise TypeError(
            f"{what} needs the density of the source, and {path.source!r} has none: use the standard normal source, "
            "or one with a method log_prob(x) in nats, such as gm.worlds.GaussianMixture"
        )


def check_span(field: Field, solver: Solver, grid: Tensor, instant: Any, what: str) -> None:
    """Raise unless a solver can follow the density over the times ``grid``, from or to the path's source.

    ``instant`` is the path's at the end that is the source's.
    """
    other = sorted(field.parts(field.at(grid[:1])[0]) - {"drift"})
    if other:
        raise ValueError(
            f"{what} is that of a flow, drift alone, and this generator has {' and '.join(other)}: take the flow of "
            "the same model, gm.Flow(model), which has the same law if the model is exact, or for a diffusion the "
            "bound gm.likelihood.elbo(model, x1)"
        )
    if not solver.lifts:
        raise ValueError(
            f"{what} needs a solver of general drifts, and {solver!r} integrates a part of the drift by itself, adds "
            "noise, or moves no drift: use gm.solvers.RK4() or Heun(), or leave solver out (a solver of your own that "
            "reads the field by field(x, instant) alone may say lifts = True)"
        )
    falls = bool(grid[-1] < grid[0])
    why = field.operator.path.why_not_noise(instant)
    if why and instant.t > 0:
        raise ValueError(f"{what} is known of the source alone: {why.split(': pass', 1)[0]}")
    for end in (float(grid[0]), float(grid[-1])):
        if not solver.defined(field, end):
            inside = inner_time(field, noisy=end < 0.5)
            name = "start" if (end == float(grid[0])) else "stop"
            raise ValueError(
                f"the flow's velocity is infinite at t = {end:g}, so its density cannot be followed there: "
                f"{'run' if falls else 'sample'} with {name}={inside:.6g}, say, for the density at that time"
            )


def inner_time(field: Field, *, noisy: bool) -> float:
    """A time near an end of the path that is not itself one: where the log-SNR is -10 or 12."""
    level = torch.tensor([BLIND_LOG_SNR if noisy else CLEAN_LOG_SNR], dtype=torch.float64)
    schedules = [schedule for model in field.models if (schedule := getattr(model.path, "schedule", None)) is not None]
    times = [schedule.inverse_log_snr(level).item() for schedule in schedules]
    if not times:
        return 0.001 if noisy else 0.999
    return max(times) if noisy else min(times)


def density_solver() -> Solver:
    """What follows a density where no solver is given: steps of each sample's own, with tolerances of 1e-5."""
    return Dopri5(rtol=1e-5, atol=1e-5)


def source_log_prob(path: Path, x: Tensor, instant: Any) -> Tensor:
    r"""The log-density ``(B,)`` of what a sampler starts from at ``instant``: the source, scaled by ``path.prior``."""
    scale = math.sqrt(instant.alpha**2 + instant.sigma**2) if isinstance(path, GaussianPath) else 1.0
    size = x[0].numel()
    y = x / scale
    if isinstance(path.source, Normal):
        # Squares of thousands of coordinates are added in float64.
        value = -0.5 * y.double().square().reshape(len(x), -1).sum(1) - 0.5 * size * math.log(2 * math.pi)
    else:
        value = path.source.log_prob(y)  # type: ignore[attr-defined]
        if not isinstance(value, Tensor) or value.shape != x.shape[:1]:
            raise ValueError(f"the source's log_prob must return ({len(x)},), one number for each sample")
    return (value.double() - size * math.log(scale)).to(x.dtype)
