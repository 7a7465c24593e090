"""What the topics of ``python -m benchmarks`` share: a row of a table, how large a run is, and the comparison itself.

A topic is a module of this folder with a function ``rows(scale)`` that yields a :class:`Row` as soon as it is measured.
A ratio is the other library's time over ours in the same round, so above 1 ours is faster.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeVar

from _interleave import interleave, ratios, versions

__all__ = ["STUDIES", "TOPICS", "Peer", "Row", "Scale", "compare", "reason", "show", "verdict"]

TOPICS: Mapping[str, str] = {
    "import": "import_time",
    "target": "target_construction",
    "pairing": "ot_pairing",
    "overhead": "sampling_overhead",
    "step": "sampling_step",
    "tokens": "ctmc_step",
    "networks": "networks",
    "likelihood": "likelihood",
}
STUDIES: Mapping[str, str] = {
    "python benchmarks/scaling.py --save": "cost and memory against size, with exponents (docs/scaling.md)",
    "python benchmarks/training.py --save": "the loop of gm.training, pairing ahead, compilation (docs/training.md)",
    "python benchmarks/networks.py --save": "networks at other batches, in bfloat16, compiled (docs/networks.md)",
    "python benchmarks/grids.py --save": "time grids at few evaluations (docs/grids.md)",
    "python benchmarks/trace_estimators.py --save": "estimators of the divergence (docs/likelihood.md)",
    "python -m benchmarks.solvers": "error against evaluations of every solver (docs/solvers.md)",
    "python -m benchmarks.robustness": "which errors a flow or a diffusion forgives (docs/robustness.md)",
    "python -m benchmarks.quality": "quality for a given time of training",
    "python -m benchmarks.papers": "experiments of papers, measured again",
}
LEAST = 0.02  # seconds that a contender is timed for in a round: shorter calls are repeated
T = TypeVar("T")
Run = Callable[[], object]


@dataclass(frozen=True)
class Scale:
    """How large a run is: in full, quick (smaller and fewer rounds), or a rehearsal whose numbers mean nothing."""

    level: Literal["full", "quick", "smoke"] = "full"
    rounds: int | None = None

    def pick(self, full: T, quick: T, smoke: T) -> T:
        """The value of this level."""
        return {"full": full, "quick": quick, "smoke": smoke}[self.level]

    def repeats(self, full: int) -> int:
        """Rounds: as asked, or ``full``, a third of them in a quick run, one in a rehearsal."""
        return self.rounds or self.pick(full, max(3, full // 3), 1)

    @property
    def least(self) -> float:
        """Seconds that a contender is timed for in a round."""
        return self.pick(LEAST, LEAST, 0.0)


@dataclass(frozen=True)
class Peer:
    """Another library's way: its name, its distribution, and a function that imports it and returns what is timed."""

    name: str
    library: str
    make: Callable[[], Run]


@dataclass(frozen=True)
class Row:
    """One line of a table: what is measured, how on either side, and the median ratio with its least and most."""

    what: str
    ours: str
    peer: str
    library: str
    ratio: float | None = None
    least: float | None = None
    most: float | None = None
    missing: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def version(self) -> str:
        """Version of the other library that is installed here."""
        return versions(self.library)[self.library]

    def record(self) -> dict[str, Any]:
        """The row as it is saved: numbers to four digits, and nothing that is empty."""
        row = {key: _rounded(value) for key, value in asdict(self).items() if value not in (None, "", {})}
        return {**row, "version": self.version}


def compare(what: str, ours: str, run: Run, peers: Iterable[Peer], rounds: int, **options: Any) -> list[Row]:
    """A row for each peer, ours and all of them timed in turns.

    A peer that cannot be imported, or that fails, is a row that says why. ``least`` are the seconds of a round, and
    ``notes`` what else is told of all rows.
    """
    notes = options.get("notes", {})
    runs, rows, present = {ours: run}, [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for peer in peers:
            try:
                runs[peer.name] = peer.make()
                runs[peer.name]()
            except Exception as error:
                runs.pop(peer.name, None)
                rows.append(Row(what, ours, peer.name, peer.library, missing=reason(error)))
            else:
                present.append(peer)
        if not present:
            run()  # ours runs all the same: what is broken is to be seen wherever the suite runs
        if present:
            found = ratios(interleave(runs, rounds, options.get("least", LEAST)), ours)
            rows[:0] = [Row(what, ours, p.name, p.library, *found[p.name], notes=notes) for p in present]
    return rows


def reason(error: BaseException) -> str:
    """Why a contender is left out, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def verdict(row: Mapping[str, Any]) -> Literal["faster", "slower", "even"]:
    """What all rounds of a saved row agree on, of our side; ``even`` if they do not."""
    return "faster" if row["least"] > 1 else "slower" if row["most"] < 1 else "even"


def show(row: Mapping[str, Any]) -> str:
    """A saved row as a line of text."""
    peer = f"{row['peer']} ({row['version']})"
    if "missing" in row:
        result = f"left out, {row['missing']}"
    else:
        note = {"faster": "", "even": "  even", "slower": "  slower"}[verdict(row)]
        result = f"{row['ratio']:9.4g}  ({row['least']:.3g}, {row['most']:.3g}){note}"
    return f"  {row['what']:42} {row['ours']:34} {peer:44} {result}"


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(each) for key, each in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) and math.isfinite(value) else value
