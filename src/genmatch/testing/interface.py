"""What a generator's value must be: right shapes and dtypes, each sample on its own, the same each time."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from ..predict.predictor import Condition
from ..spaces.states import State, batch, each, first
from ..triplet import Triplet
from .case import Case, all_close, factors, tensors
from .report import Failure, Skip

__all__ = [
    "check_batch",
    "check_dtype",
    "check_ends",
    "check_purity",
    "check_shapes",
    "check_state_dict",
    "check_times",
]


def check_shapes(case: Case) -> str:
    """Drift ``(B, *S)``; a variance a number or of as many dimensions; rates by position or by state."""
    parts: set[str] = set()
    for t in case.times:
        x, condition = case.states(t)
        triplet = case.operator(x, t, condition)
        for prefix, own, state in factors(triplet, x):
            if not isinstance(own, Triplet):
                raise Failure(f"{prefix}a generator returns a gm.Triplet, got {type(own).__name__}")
            _check_shapes_of(prefix, own, state)
            parts |= {prefix + part for part in own.parts}
        for name, value in tensors(triplet, x).items():
            if not bool(value.isfinite().all()):
                raise Failure(f"the {name} is not finite at t = {t:g}, inside (0, 1)")
    return ", ".join(sorted(parts)) or "no parts: it does not move"


def _check_shapes_of(prefix: str, own: Triplet, x: Tensor) -> None:
    if own.drift is not None and own.drift.shape != x.shape:
        raise Failure(f"{prefix}the drift has shape {tuple(own.drift.shape)} for a state {tuple(x.shape)}")
    variance = torch.as_tensor(0.0 if own.variance is None else own.variance)
    if variance.ndim and (variance.ndim != x.ndim or torch.broadcast_shapes(variance.shape, x.shape) != x.shape):
        raise Failure(f"{prefix}a variance of shape {tuple(variance.shape)} does not fit a state {tuple(x.shape)}")
    if bool((variance < 0).any()):
        raise Failure(f"{prefix}the variance is negative: {variance.min().item():.3g}")
    for total, where in () if own.rates is None else own.rates.terms:
        total, needed = torch.as_tensor(total), (len(x), *[1] * (x.ndim - 1)) if where.whole else tuple(x.shape)
        if total.ndim and tuple(total.shape) != needed:
            raise Failure(f"{prefix}total rates of shape {tuple(total.shape)}, needed {needed}")
        if bool((total < 0).any()):
            raise Failure(f"{prefix}a rate is negative: {total.min().item():.3g}")


def check_dtype(case: Case) -> str:
    """float32 in, float32 out, and the same for float64, unless the one that the data lack is refused."""
    own = {leaf.dtype for leaf in _leaves(case.data) if leaf.is_floating_point()}
    if not own:
        raise Skip("tokens have no floating dtype")
    said = []
    for dtype in (torch.float32, torch.float64):
        name = str(dtype).removeprefix("torch.")
        try:
            _check_dtype_of(case, dtype)
        except RuntimeError as error:  # what torch says of mixed dtypes
            if dtype in own:
                raise
            said.append(f"{name} is refused ({str(error).splitlines()[0]})")
        else:
            said.append(name)
    return ", ".join(said)


def _check_dtype_of(case: Case, dtype: torch.dtype) -> None:
    operator = _copied(case.operator).to(dtype)
    x, condition = case.states(case.times[0])
    x = each(lambda v: v.to(dtype) if v.is_floating_point() else v, x)
    if condition is not None:
        condition = {k: v.to(dtype) if v.is_floating_point() else v for k, v in condition.items()}
    for prefix, own, state in factors(operator(x, case.times[0], condition), x):
        if not state.is_floating_point():
            continue
        for name, value in tensors(own, state).items():
            # A 0-d tensor does not change the dtype of what it is multiplied with.
            if value.ndim and value.is_floating_point() and value.dtype != dtype:
                raise Failure(f"{prefix}the {name} is {value.dtype} for a state in {dtype}")


def check_purity(case: Case) -> str:
    """Twice the same value bit for bit; the state, the modes and the global random generator left as they were."""
    x, condition = case.states(case.times[0])
    before, random = each(torch.clone, x), torch.get_rng_state()
    first_value = tensors(case.operator(x, case.times[0], condition), x)
    if not torch.equal(torch.get_rng_state(), random):
        raise Failure("it draws from torch's global random generator: randomness belongs in the variance and the rates")
    again = tensors(case.operator(x, case.times[0], condition), x)
    for name, value in first_value.items():
        if not torch.equal(value, again[name]):
            raise Failure(f"the {name} is another one when it is asked for again")
        if value.requires_grad:
            raise Failure(f"under no_grad the {name} carries a gradient")
    if any(not torch.equal(a, b) for a, b in zip(_leaves(before), _leaves(x), strict=True)):
        raise Failure("it changes the state that it is given, in place")
    return "the same value each time, and no side effects"


def check_batch(case: Case) -> str:
    """A row alone has the value that it has in a batch, also in another order."""
    for t in case.times:
        x, condition = case.states(t)
        whole = tensors(case.operator(x, t, condition), x)
        _compare_rows(case, x, condition, whole, [t] * batch(x), f"at t = {t:g}")
        back, turned = each(lambda v: v.flip(0), x), _rows(condition, slice(None, None, -1))
        flipped = tensors(case.operator(back, t, turned), back)
        for name, value in whole.items():
            row = value.flip(0) if value.ndim and len(value) == batch(x) else value
            if not (all_close(row, flipped[name]) or all_close(value, flipped[name])):
                raise Failure(f"the {name} of a row depends on the order of the batch")
    return "rows alone, together and in another order"


def check_times(case: Case) -> str:
    """Times ``(B,)`` belong to the rows of a batch, also where B is the size of a feature."""
    wide = [leaf.shape[-1] for leaf in _leaves(case.data) if leaf.ndim > 1 and leaf.shape[-1] > 1]
    rows = min(wide[0] if wide else 3, 8, batch(case.data))
    x, condition = case.states(0.5, rows)
    t = torch.linspace(0.25, 0.75, rows, device=first(x).device)
    whole = tensors(case.operator(x, t, condition), x)
    _compare_rows(case, x, condition, whole, t.tolist(), "with a time for each row")
    return f"{rows} times for {rows} rows" + (" and features" if wide and rows == wide[0] else "")


def _compare_rows(
    case: Case, x: State, condition: Condition, whole: dict[str, Tensor], times: list[float], where: str
) -> None:
    for i, t in enumerate(times):
        row = each(lambda v, i=i: v[i : i + 1], x)
        alone = tensors(case.operator(row, t, _rows(condition, slice(i, i + 1))), row)
        if alone.keys() != whole.keys():
            raise Failure(f"{where} a row alone has the parts {', '.join(alone)}, together {', '.join(whole)}")
        for name, value in alone.items():
            together = whole[name]
            if together.ndim and len(together) == len(times) and together.shape != value.shape:
                together = together[i : i + 1]
            if not all_close(*torch.broadcast_tensors(together, value)):
                away = float((together.double() - value.double()).abs().max())
                raise Failure(f"{where} the {name} of row {i} is off by {away:.2g} from that of the row alone")


def check_state_dict(case: Case) -> str:
    """Loading a state dict into a copy restores its value; no tensor is stored twice."""
    state = case.operator.state_dict()
    if not state:
        raise Skip("it has no parameters")
    stored = [value.data_ptr() for value in state.values() if value.numel()]
    if len(set(stored)) < len(stored):
        raise Failure("its state dict holds a tensor twice: register each network once")
    twin = _copied(case.operator)
    with torch.no_grad():
        for value in twin.state_dict().values():
            if value.is_floating_point():
                value.add_(1.0)
    twin.load_state_dict(state)
    x, condition = case.states(case.times[0])
    ours, theirs = (tensors(o(x, case.times[0], condition), x) for o in (case.operator, twin))
    for name, value in ours.items():
        if not all_close(value, theirs[name]):
            raise Failure(f"the {name} is another one after its state dict was loaded: something is not registered")
    return f"{len(state)} tensors"


def check_ends(case: Case) -> str:
    """At t = 0 and 1 it is finite or refused with a ValueError, never infinite in silence."""
    said = []
    for t in (0.0, 1.0):
        x, condition = case.states(t)
        try:
            found = tensors(case.operator(x, t, condition), x)
        except ValueError:
            said.append(f"refused at {t:g}")
            continue
        for name, value in found.items():
            if not bool(value.isfinite().all()):
                raise Failure(
                    f"the {name} is not finite at t = {t:g} and nothing is said: raise a ValueError, or take the limit"
                )
        said.append(f"finite at {t:g}")
    return ", ".join(said)


def _rows(condition: Condition, which: slice) -> Condition:
    if condition is None:
        return None
    return {k: v.flip(0) if which.step == -1 else v[which] for k, v in condition.items()}


def _leaves(x: State) -> list[Tensor]:
    return list(x.values()) if isinstance(x, dict) else [x]


def _copied(operator: torch.nn.Module) -> torch.nn.Module:
    try:
        return copy.deepcopy(operator)
    except (RuntimeError, TypeError) as error:
        raise Skip(f"it cannot be copied: {error}") from None
