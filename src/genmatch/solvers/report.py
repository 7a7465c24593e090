"""What a run of a solver cost, and how it ended, for each sample."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["CAPPED", "DONE", "NOT_FINITE", "TOO_SMALL", "Report", "UnfinishedError", "known", "read_report"]

DONE, CAPPED, TOO_SMALL, NOT_FINITE = 0, 1, 2, 3
MEANINGS = {
    DONE: "done",
    CAPPED: "the most evaluations allowed were spent before the end: allow more, or a larger tolerance",
    TOO_SMALL: "the step became too small for the precision of the state: the field is not smooth there, or the "
    "tolerance is below what the state's dtype can hold",
    NOT_FINITE: "the field is not finite there",
}


class UnfinishedError(RuntimeError):
    """Some samples of an adaptive run did not reach its end."""


class Report(NamedTuple):
    """Costs and ends of a run, one number for each sample, ``(B,)``, int64.

    How often each network ran for it, and how many steps were accepted and rejected. Its status is 0 if it reached the
    end; 1 if the most evaluations allowed were spent, 2 if its step became too small, 3 if the field was not finite:
    the sample is then where it got to.
    """

    evaluations: Tensor
    accepted: Tensor
    rejected: Tensor
    status: Tensor

    def __repr__(self) -> str:
        numbers = self.evaluations.double()
        spread = f"{int(numbers.min())} to {int(numbers.max())}, {numbers.mean().item():.1f} on average"
        return (
            f"Report({len(numbers)} samples; evaluations {spread}; {int(self.accepted.sum())} steps taken, "
            f"{int(self.rejected.sum())} rejected; {self.message})"
        )

    @property
    def message(self) -> str:
        """How many samples ended how, in words."""
        codes, counts = self.status.unique(return_counts=True)
        total = len(self.status)
        pairs = zip(codes.tolist(), counts.tolist(), strict=True)
        return "; ".join(f"{count} of {total}: {MEANINGS[code]}" for code, count in pairs)

    def refuse(self) -> None:
        """Raise unless all samples reached the end."""
        if bool((self.status != DONE).any()):
            raise UnfinishedError(
                f"{self.message}. With report=True the states are returned as they are, with a status for each sample"
            )


def known(log_prob: Tensor, report: Report) -> Tensor:
    """Log-densities, nan for samples that did not get to the end: where they stopped none is known."""
    return log_prob.masked_fill(report.status != DONE, float("nan"))


def read_report(solver: Any, plan: Any, carry: Any, samples: int, device: torch.device) -> Report:
    """The report of a run: an adaptive solver's carry has one, other solvers cost each sample the same."""
    if hasattr(carry, "report"):
        return carry.report()

    def full(value: int) -> Tensor:
        return torch.full((samples,), value, dtype=torch.int64, device=device)

    return Report(full(solver.evaluations(plan)), full(len(plan)), full(0), full(DONE))
