"""What the conformance suite found, as a table."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

__all__ = ["Check", "ConformanceError", "Failure", "Report", "Skip"]


class Failure(Exception):  # noqa: N818  raised and caught inside the suite: it is a verdict
    """A check found something wrong."""


class Skip(Exception):  # noqa: N818  the same
    """A check does not apply, and why."""


@dataclass(frozen=True)
class Check:
    """One line of a report.

    Attributes
    ----------
    name
        The name by which it is chosen.
    verdict
        ``"passed"``, ``"failed"`` or ``"skipped"``.
    detail
        What was measured, what is wrong, or why it does not apply.
    """

    name: str
    verdict: str
    detail: str


@dataclass(frozen=True, repr=False)
class Report:
    """What every check of a generator said.

    Attributes
    ----------
    subject
        The generator, in words.
    checks
        In the order in which they ran.
    """

    subject: str
    checks: tuple[Check, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.verdict == "failed")

    @property
    def passed(self) -> bool:
        """Whether none failed."""
        return not self.failed

    def __getitem__(self, name: str) -> Check:
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(f"no check {name!r} ran; these did: {', '.join(check.name for check in self.checks)}")

    def __repr__(self) -> str:
        lines = [f"conformance of {self.subject}"]
        for check in self.checks:
            first, *rest = textwrap.wrap(check.detail, 96) or [""]
            lines.append(f"  {check.verdict:8} {check.name:17} {first}")
            lines += [" " * 29 + line for line in rest]
        return "\n".join(lines)


class ConformanceError(ValueError):
    """A generator failed its conformance suite; ``report`` says where, and the message is its table."""

    def __init__(self, report: Report) -> None:
        names = ", ".join(check.name for check in report.failed)
        super().__init__(f"{len(report.failed)} of {len(report.checks)} checks failed ({names})\n{report}")
        self.report = report
