r"""The left side of the forward equation: :math:`\tfrac{d}{dt}\langle p_t, f\rangle` by one number for each sample.

The numbers are unbiased, and belong to the very states at which the generator is evaluated: paired sample by sample,
most of the noise of both sides cancels. In order of preference:

- where a state moves smoothly for fixed draws, the derivative along it, :math:`\nabla f(x_t)\cdot\dot x_t`;
- on a mixture path the derivative of the expectation over what a position shows,
  :math:`\dot\kappa_t\sum_i\bigl(f(x|_{x^i=x_1^i}) - f(x|_{x^i=x_0^i})\bigr)`, exact as positions are independent given
  both ends, or :math:`\dot\kappa_t (f(x_1) - f(x_0))` if states change as a whole;
- elsewhere a central difference of fourth order in t with the same draws: its bias is of the order of the fourth power
  of the step, 1/50 (less near the ends).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..paths import ContinuousMixturePath, MixturePath, Path, ProductPath
from ..random import Draws
from ..spaces.product import FACTORS
from ..spaces.states import State, batch, each, first
from .families import spreads

__all__ = ["Change", "change", "draw_ends"]

POSITIONS = 16  # of one sequence that are switched; longer ones are sampled from
CHOICE = 9  # stream of which positions
STEP = 0.02  # of the difference
PROBE = 0.01  # of the distance to the nearer end, and of the time to move by the spread: how far to look for jumps

Functions = Sequence[Callable[[Any], Tensor]]


class Change(NamedTuple):
    """States at a time, and d/dt of each test function there."""

    x: State
    values: Tensor  # (functions, B), float64
    method: str


def change(path: Path, functions: Functions, x0: State, x1: State, t: float, draws: Draws) -> Change:
    """States :math:`x_t` between the ends and an unbiased estimate of the rate of each function for each of them.

    The states are those of ``path.between(x0, x1, path.instant(t, x1), draws)``.
    """
    if isinstance(path, ProductPath):
        return _by_factors(path, functions, x0, x1, t, draws)
    if isinstance(path, (MixturePath, ContinuousMixturePath)):
        return _switch(path, functions, x0, x1, t, draws)
    found = _along(path, functions, x0, x1, t, draws)
    return _difference(path, functions, x0, x1, t, draws) if found is None else found


def draw_ends(path: Path, data: State, condition: Any, draws: Draws) -> tuple[State, State, Any]:
    """Source and data as the path's coupling pairs them."""
    if isinstance(data, Mapping):
        shape: Any = {name: tuple(value.shape) for name, value in data.items()}
    else:
        shape = tuple(data.shape)
    source = path.draw_source(shape, draws)
    source = each(lambda s, d: s.to(d.dtype), source, data)
    return path.pair(source, data, condition, draws)


def _by_factors(path: ProductPath, functions: Functions, x0: State, x1: State, t: float, draws: Draws) -> Change:
    """The sum over factors: given both ends they are independent, and each has a time and draws of its own."""
    instant = path.instant(t, x1)
    x = path.between(x0, x1, instant, draws)
    total: Any = torch.zeros(len(functions), batch(x1), dtype=torch.float64, device=first(x1).device)
    methods = {}
    for i, (name, factor) in enumerate(path.factors.items()):
        partial = [lambda y, f=f, name=name: f({**x, name: y}) for f in functions]
        time = float(instant.factors[name].t)
        if float(instant.speeds[name]) == 0:
            continue  # it stands, a given one at the data, where its own rate may be infinite
        part = change(factor, partial, x0[name], x1[name], time, draws.fork(FACTORS + i))
        total = total + instant.speeds[name] * part.values
        methods[part.method] = None
    return Change(x, total, ", ".join(methods) or "of a path that stands")


def _along(path: Path, functions: Functions, x0: Tensor, x1: Tensor, t: float, draws: Draws) -> Change | None:
    """The derivative along the path; ``None`` unless states move smoothly in t for fixed draws."""
    if not x1.is_floating_point():
        return None

    def state(time: Tensor) -> Tensor:
        return path.between(x0, x1, path.instant(time, x1), draws)

    time = torch.tensor(t, dtype=torch.float64)
    try:
        x, velocity, *_ = torch.func.jvp(state, (time,), (torch.ones_like(time),))
    except (RuntimeError, TypeError, NotImplementedError):  # torch's words for what forward mode cannot do
        return None
    if not bool((velocity != 0).any()):
        return None  # a path that stays, or one that jumps: a difference serves both
    values = _stacked([torch.func.jvp(f, (x,), (velocity,))[1] for f in functions])
    spread = spreads(x)
    # Over a longer time a fast path, such as that to data far from 0, is not straight on the scale of the functions.
    h = PROBE * min(t, 1 - t, float((spread / _largest(velocity)).min()))
    late, early = (path.between(x0, x1, path.instant(t + s, x1), draws) for s in (h, -h))
    step = _stacked([f(late) - f(early) for f in functions])
    size = max(1.0, float(_stacked([f(x) for f in functions]).abs().max()), float((_largest(x) / spread).max()))
    rounding = 16 * torch.finfo(x.dtype).eps * size
    # A jump shows in some sample as a step that the derivative does not explain.
    smooth = (step - 2 * h * values).abs() <= 0.1 * 2 * h * values.abs().amax(1, keepdim=True) + rounding
    return Change(x, values, "along the path") if bool(smooth.all()) else None


def _largest(x: Tensor) -> Tensor:
    """The largest absolute value of each coordinate."""
    return x.double().reshape(len(x), -1).abs().amax(0)


def _switch(
    path: MixturePath | ContinuousMixturePath, functions: Functions, x0: Tensor, x1: Tensor, t: float, draws: Draws
) -> Change:
    instant = path.instant(t, x1)
    x = path.between(x0, x1, instant, draws)
    speed = instant.hazard * (1 - instant.kappa)
    if isinstance(path, ContinuousMixturePath) and path.whole:
        return Change(x, speed * _stacked([f(x1) - f(x0) for f in functions]), "by switching states")
    flat, source, data = (v.reshape(len(x), -1) for v in (x, x0, x1))
    if isinstance(path, MixturePath) and path.padding is not None:  # it shows at all times
        source = torch.where(data == path.padding, data, source)
    size = flat.shape[1]
    order = torch.arange(size, device=x.device).expand(len(x), size)
    if size > POSITIONS:  # for each sample its own, so that the standard error knows
        order = draws.fork(CHOICE).uniform((len(x), size)).argsort(1)[:, :POSITIONS]
    values = torch.zeros(len(functions), len(x), dtype=torch.float64, device=x.device)
    for where in order.split(1, dim=1):
        shown = [flat.scatter(1, where, end.gather(1, where)).reshape(x.shape) for end in (data, source)]
        values += _stacked([f(shown[0]) - f(shown[1]) for f in functions])
    return Change(x, speed * size / order.shape[1] * values, "by switching positions")


def _difference(path: Path, functions: Functions, x0: State, x1: State, t: float, draws: Draws) -> Change:
    h = min(STEP, t / 3, (1 - t) / 3)
    x = path.between(x0, x1, path.instant(t, x1), draws)
    values: Any = 0.0
    for shift, weight in ((2, -1), (1, 8), (-1, -8), (-2, 1)):
        state = path.between(x0, x1, path.instant(t + shift * h, x1), draws)
        values = values + weight / (12 * h) * _stacked([f(state) for f in functions])
    return Change(x, values, f"by differences over {h:.2g}")


def _stacked(values: Sequence[Tensor]) -> Tensor:
    return torch.stack([value.double() for value in values])
