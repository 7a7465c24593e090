"""Does the generator move its path, at the speed that it declares? Does the space move a state by the generator?"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..metrics.families import default_test_functions, spreads
from ..metrics.forward_equation import Terms, at_each, forward_terms, seeded, summarise
from ..metrics.residuals import ForwardResidual, critical
from ..random import Draws
from ..spaces.states import State, batch, each, first
from .case import Case, factors
from .report import Failure, Skip

__all__ = ["Dynamics"]

MOVING = 31  # stream of the moves
SMOOTH_TURNS, JUMP_TURNS = 2, 16  # moves of each state: few of them jump
JUMP, DIFFUSE = 0.2, 0.02  # expected jumps, and share of the state's spread, in the shortest move
# (f - f_0) / s over moves of s = 1, 2 and 4 times the shortest, extrapolated to s = 0 but for terms of third order.
EXTRAPOLATION = {1: 8 / 3, 2: -2.0, 4: 1 / 3}
BIAS = 0.02  # relative; of a move over a finite time, after extrapolation


class Dynamics:
    """The statistical checks of a case; both sides of the forward equation are computed once for all."""

    def __init__(self, case: Case) -> None:
        self.case = case

    @cached_property
    def terms(self) -> list[Terms]:
        """Both sides at every time."""
        case = self.case
        return [
            forward_terms(case.operator, None, case.data, t, case.condition, case.seed, step)
            for step, t in enumerate(case.times)
        ]

    @cached_property
    def residual(self) -> ForwardResidual:
        """Their difference."""
        rows = [summarise(terms) for terms in self.terms]
        moved, changed, error, scale, rounding = (torch.stack(part).cpu() for part in zip(*rows, strict=True))
        speed = torch.tensor([terms.speed for terms in self.terms], dtype=torch.float64)
        first_terms = self.terms[0]
        return ForwardResidual(
            self.case.times, first_terms.names, moved, speed[:, None] * changed, error, scale, rounding, speed,
            first_terms.moves.shape[1], at_each(self.case.times, [terms.method for terms in self.terms]),
        )  # fmt: skip

    def forward_equation(self, case: Case) -> str:
        """The mean of L f is the speed times d/dt of the mean of f, for a family of f."""
        wrong = self.residual.failures(case.tolerance, case.false_alarm)
        if wrong:
            more = f" (and {len(wrong) - 1} more of {self.residual.residual.numel()})" if len(wrong) > 1 else ""
            raise Failure(wrong[0] + more)
        noise = float(self.residual.relative_error.median())
        return f"{self.residual.residual.numel()} residuals, relative standard error {noise:.1g} (median)"

    def speed(self, case: Case) -> str:
        r"""The declared speed is the slope of :math:`\langle p, L f\rangle` on :math:`d/dt \langle p, f\rangle`.

        The slope is taken by halves: weights from one half of the samples, residuals from the other, so that their
        noise is independent.
        """
        count = self.terms[0].moves.shape[1]
        halves = torch.arange(count, device=self.terms[0].moves.device) % 2 == 0
        rows, total = torch.zeros(count, dtype=torch.float64, device=halves.device), 0.0
        for terms in self.terms:
            error = terms.moves - terms.speed * terms.changes
            weight = 1 / (error.var(1) + 1e-6 * terms.changes.var(1) + 1e-300)
            ours, theirs = terms.changes[:, halves].mean(1), terms.changes[:, ~halves].mean(1)
            rows += torch.where(halves, (weight * theirs) @ error, (weight * ours) @ error)
            total += float((weight * ours * theirs).sum())
        if total <= 0:
            raise Skip("the path hardly moves: no speed to be seen")
        off, noise = float(rows.mean()) / total, float(rows.std()) / count**0.5 / total
        if not abs(off) <= case.tolerance + 1e-5 + critical(case.false_alarm, 1, count) * noise:
            declared = sorted({terms.speed for terms in self.terms})
            raise Failure(
                f"it moves the path at a speed that is off by {off:.3g} +- {noise:.1g} from the declared "
                f"{', '.join(f'{v:.4g}' for v in declared)}"
            )
        return f"off by {off:.1g} +- {noise:.1g} from the declared"

    def move(self, case: Case) -> str:
        r"""The mean of f over a short move, less f, over its time tends to L f.

        Moves over h, 2h and 4h by the same draws, extrapolated to h = 0; with noise, z and -z.
        """
        found, noise = [], []
        for step, t in enumerate(case.times):
            x, condition = case.states(t, batch(case.data))
            triplet = case.operator(x, t, condition)
            functions = default_test_functions(case.operator.path.space, each(lambda v: v[:512], x), seed=case.seed)
            h = duration(triplet, x)
            precise = each(lambda v: v.double() if v.is_floating_point() else v, x)  # digits for short moves far from 0
            try:
                moved = self._rates_of_moves(triplet, precise, h, functions, step)
            except RuntimeError:  # a space with constants in float32
                moved = self._rates_of_moves(triplet, x, h, functions, step)
            for k, (name, f) in enumerate(functions.items()):
                # Weighted by another function too: a mean of zero at p_t could hide what happens at each state.
                weights = list(functions.values())[k - 1](x).double()
                weights = (weights - weights.mean()) / weights.std().clamp(min=1e-12)
                with seeded(case.seed + k):
                    applied = triplet.apply(f, x, case.operator.path.space).double()
                for label, weight in (("", torch.ones_like(weights)), (" (weighted)", weights)):
                    away, size = (moved[k] - applied) * weight, (applied * weight).abs().mean()
                    allowed = (case.tolerance + BIAS) * size
                    mean, error = away.mean(), away.std() / len(away) ** 0.5
                    found.append((t, name + label, mean, error, size, allowed))
                    noise.append(error / size if size > 0 else error)
        z = critical(case.false_alarm, len(found), batch(case.data))
        for t, name, mean, error, size, allowed in found:
            if not abs(mean) <= allowed + z * error + 1e-6:
                raise Failure(
                    f"a move at t = {t:g} changes {name!r} by {float(mean):.3g} +- {float(error):.2g} a unit of time "
                    f"more than L f, whose size is {float(size):.3g}: is space.move given a variance, and does it "
                    "move by all parts?"
                )
        middle = float(torch.stack(noise).median())
        return f"{len(found)} rates of short moves, relative standard error {middle:.1g} (median)"

    def _rates_of_moves(self, triplet: Any, x: State, h: float, functions: Any, step: int) -> list[Tensor]:
        """(E f(moved) - f) / h of each function and state, extrapolated."""
        space, seed = self.case.operator.path.space, self.case.seed
        parts = [own for _, own, _ in factors(triplet, x)]
        turns = SMOOTH_TURNS if all(own.rates is None for own in parts) else JUMP_TURNS
        noisy = any(own.variance is not None for own in parts)
        totals: list[Any] = [0.0] * len(functions)
        here = [f(x).double() for f in functions.values()]
        for turn in range(turns):
            draws = Draws(seed, batch(x), step=step * turns + turn, device=first(x).device).fork(MOVING)
            noise = space.brownian(x, draws) if noisy else None
            sides = [None] if noise is None else [noise, each(lambda z: -z, noise)]
            for z in sides:
                for times, weight in EXTRAPOLATION.items():
                    moved = space.move(x, triplet, times * h, draws, z)
                    for k, f in enumerate(functions.values()):
                        gain = (f(moved).double() - here[k]) / (times * h)
                        totals[k] = totals[k] + weight * gain / (turns * len(sides))
        return totals


def duration(triplet: Any, x: State) -> float:
    """A time over which a state moves little."""
    speeds = [1.0]
    for _, own, state in factors(triplet, x):
        for total, where in () if own.rates is None else own.rates.terms:
            positions = 1 if where.whole else state[0].numel()
            # Shapes (B, *S), (B, 1, ..., 1) and () alike: jumps of a state per unit of time.
            speeds.append(float(torch.as_tensor(total).double().mean()) * positions / JUMP)
        if not state.is_floating_point():
            continue
        spread = spreads(state)  # by coordinate: all of them together would take distances between means for spread
        if own.drift is not None:
            drift = own.drift.double().reshape(len(state), -1)
            speeds.append(float((drift.square().mean(0).sqrt() / (DIFFUSE * spread)).max()))
        if own.variance is not None:
            variance = torch.as_tensor(own.variance).double().expand(state.shape).reshape(len(state), -1)
            speeds.append(float((variance.mean(0) / (DIFFUSE * spread**2)).max()))
    return min(1e-2, 1 / max(speeds))
