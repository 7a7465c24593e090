"""The conformance suite: every check of a generator, by name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from ..generators import Operator
from ..metrics.residuals import critical
from ..predict.predictor import Condition
from ..predict.predictor import check_condition as check_rows
from ..random import Draws
from ..spaces.states import State, batch
from . import claims, geometry, interface
from .case import Case
from .dynamics import Dynamics
from .report import Check, ConformanceError, Failure, Report, Skip

__all__ = ["CHECKS", "check_generator"]

TIMES = (0.2, 0.5, 0.8)
# In the order in which they run; the last one only if it is asked for.
CHECKS = (
    "shapes", "dtype", "purity", "batch", "times", "state dict", "ends", "additive", "semilinear", "affine",
    "condition", "space", "forward equation", "speed", "move", "compile",
)  # fmt: skip


def check_generator(
    generator: Operator,
    *,
    data: State,
    condition: Condition = None,
    t: Collection[float] = TIMES,
    tolerance: float = 0.02,
    false_alarm: float = 1e-3,
    seed: int = 0,
    only: Collection[str] | None = None,
    skip: Collection[str] = (),
    compiled: bool = False,
) -> Report:
    r"""Check that a generator is one, that what it says of itself is true, and that it moves its path.

    ================  ==============================================================================================
    check             what must hold
    ================  ==============================================================================================
    shapes            parts have the shapes of a triplet, are finite inside (0, 1), variance and rates at least 0
    dtype             float32 in, float32 out; the same for float64, unless it raises
    purity            the same value twice; no side effects, no gradient under ``no_grad``
    batch             a row has the same value alone, in a batch, and in another order
    times             times ``(B,)`` belong to the rows, also where B is the size of a feature
    state dict        loading restores the value, and no tensor is stored twice
    ends              at t = 0 and 1 the value is finite, or refused with a ``ValueError``
    additive          if claimed: variance and rates are the same at every state
    semilinear        if claimed: the drift is speed * velocity + variance / 2 * score
    affine            the value is affine in the prediction
    condition         a condition makes a difference
    space             on a manifold: noise has the inverse metric as its covariance, ``exp`` makes geodesics, ``log``
                      undoes it
    forward equation  :math:`\langle p_t, L_t f\rangle = v\,\tfrac{d}{dt}\langle p_t, f\rangle`, see
                      :func:`genmatch.metrics.kfe_residual`
    speed             the slope of one side on the other is the declared ``speed``
    move              the mean of f over short moves of the space tends to L f
    compile           the value compiles as one graph; runs if ``compiled`` or chosen by ``only``
    ================  ==============================================================================================

    Parameters
    ----------
    generator
        A generator or a sum of generators. It is put in evaluation mode for the time of the checks.
    data
        Independent samples of the data ``(B, *S)``, or a dict of them on a product; some thousand. For a learned
        generator such as were not trained on.
    condition
        Tensors with B rows.
    t
        Times inside (0, 1).
    tolerance
        The relative residual that is allowed besides noise: the model's error if it is learned.
    false_alarm
        The probability with which each statistical check fails a right generator.
    seed
        Of everything random; the global generator is not touched.
    only, skip
        Names of checks to run, or to leave out.
    compiled
        Whether to compile, too: some seconds.

    Returns
    -------
    A table of what was found; ``report["speed"].detail`` is a line of it.

    Raises
    ------
    ConformanceError
        If a check fails: a ``ValueError`` whose message is the whole table and whose ``report`` is the report.
    ValueError, TypeError
        On a wrong argument.

    Examples
    --------
    >>> import genmatch as gm, torch
    >>> world = gm.worlds.GaussianMixture(torch.tensor([[-2.0], [2.0]]), 0.1)
    >>> flow = gm.Flow(world.predictor(gm.GaussianPath()))
    >>> gm.testing.check_generator(flow, data=world.sample(2000, seed=1)).passed
    True
    """
    times = _check_arguments(generator, data, condition, t, tolerance, false_alarm)
    chosen = _choose(only, skip, compiled)
    case = Case(generator, data, condition, times, float(tolerance), float(false_alarm), Draws(seed).seed)
    dynamics = Dynamics(case)
    checks: dict[str, Callable[[Case], str]] = {
        "shapes": interface.check_shapes,
        "dtype": interface.check_dtype,
        "purity": interface.check_purity,
        "batch": interface.check_batch,
        "times": interface.check_times,
        "state dict": interface.check_state_dict,
        "ends": interface.check_ends,
        "additive": claims.check_additive,
        "semilinear": claims.check_semilinear,
        "affine": claims.check_affine,
        "condition": claims.check_condition,
        "space": geometry.check_space,
        "forward equation": dynamics.forward_equation,
        "speed": dynamics.speed,
        "move": dynamics.move,
        "compile": claims.check_compile,
    }
    modes = {module: module.training for module in generator.modules()}
    generator.eval()
    try:
        with torch.no_grad():
            report = Report(_in_words(generator), tuple(_run(n, checks[n], case) for n in chosen))
    finally:
        for module, mode in modes.items():
            module.training = mode
    if not report.passed:
        raise ConformanceError(report)
    return report


def _run(name: str, check: Callable[[Case], str], case: Case) -> Check:
    try:
        return Check(name, "passed", check(case))
    except Skip as reason:
        return Check(name, "skipped", str(reason))
    except Failure as reason:
        return Check(name, "failed", str(reason))
    except Exception as error:  # whatever a user's generator does is a finding, and the other checks go on
        return Check(name, "failed", f"{type(error).__name__}: {error}")


def _in_words(generator: Operator) -> str:
    words = repr(generator)
    return type(generator).__name__ if "\n" in words else words


def _choose(only: Collection[str] | None, skip: Collection[str], compiled: bool) -> list[str]:
    for option, names in (("only", only or ()), ("skip", skip)):
        if isinstance(names, str):
            raise TypeError(f"{option} is a list of names of checks, got the string {names!r}")
        for name in names:
            if name not in CHECKS:
                raise ValueError(f"there is no check {name!r}: they are {', '.join(CHECKS)}")
    wanted = [n for n in CHECKS if n != "compile" or compiled] if only is None else [n for n in CHECKS if n in only]
    wanted = [name for name in wanted if name not in skip]
    if not wanted:
        raise ValueError("no check is left to run")
    return wanted


def _check_arguments(
    generator: Any, data: Any, condition: Any, t: Any, tolerance: float, false_alarm: float
) -> tuple[float, ...]:
    if not isinstance(generator, Operator):
        made = ": make one, generator = MyGenerator(model)" if isinstance(generator, type) else ""
        raise TypeError(f"a generator or a sum of generators is checked, got {generator!r}{made}")
    if not isinstance(data, (Tensor, Mapping)):
        raise TypeError(f"data must be a tensor (B, *S), or a dict of them on a product, got {type(data).__name__}")
    generator.path.space.check(data)
    if batch(data) < 8:
        raise ValueError(f"data has {batch(data)} rows: give at least 8, and some thousand for a sharp check")
    check_rows(condition, batch(data))
    times = tuple(float(v) for v in ((t,) if isinstance(t, (int, float)) else t))
    if not times or not all(0 < time < 1 for time in times):
        raise ValueError(f"a generator is checked at times inside (0, 1), got {t}")
    if not tolerance >= 0:
        raise ValueError(f"tolerance is a relative residual of at least 0, got {tolerance}")
    critical(false_alarm, 1, 8)
    return times
