"""The metrics log: one row for each logging point, as CSV or JSON lines."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TextIO

from .files import replace_file

__all__ = ["Log", "Row"]


@dataclass(frozen=True)
class Row:
    """One logging point.

    Attributes
    ----------
    step
        Steps done.
    loss, grad_norm
        Means over the steps since the row before; the norm is that of the whole gradient before clipping.
    lr
        Learning rate of the last step (of the optimiser's first group).
    seconds
        Training time so far, that of the runs before an interruption included.
    samples
        Samples seen so far.
    """

    step: int
    loss: float
    lr: float
    grad_norm: float
    seconds: float
    samples: int


_COLUMNS = [field.name for field in fields(Row)]


class Log:
    """A file of rows, written and flushed one by one.

    Parameters
    ----------
    path
        Ends in ``.csv`` or ``.jsonl``.
    step
        Where the run stands. Rows of later steps, which a run killed after its last checkpoint left, are dropped, as
        the run will write them again; so a run from step 0 starts the file anew.

    Raises
    ------
    ValueError
        If the path ends otherwise, or the file is not a metrics log: it is not overwritten.
    """

    def __init__(self, path: str | os.PathLike[str], step: int) -> None:
        self.path = Path(path)
        formats: dict[str, tuple[Callable[[str], int], Callable[[Row], str], str]] = {
            ".csv": (_csv_step, _csv_line, ",".join(_COLUMNS) + "\n"),
            ".jsonl": (_json_step, _json_line, ""),
        }
        if self.path.suffix not in formats:
            raise ValueError(f"log must end in .csv or .jsonl, got {str(self.path)!r}")
        self._step_of, self._line_of, self._head = formats[self.path.suffix]
        self._keep(step)
        self._file: TextIO = self.path.open("a", encoding="utf-8", newline="")

    def write(self, row: Row) -> None:
        """Append a row."""
        self._file.write(self._line_of(row))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _keep(self, step: int) -> None:
        """Leave the head and the rows up to ``step`` in the file."""
        text = self.path.read_text(encoding="utf-8") if self.path.is_file() else ""
        if self._head and not self._head.startswith(text[: len(self._head)]):
            raise ValueError(
                f"{self.path} is not a metrics log with the columns {', '.join(_COLUMNS)}: choose another name"
            )
        lines = text[len(self._head) :].splitlines(keepends=True)
        kept = []
        for number, line in enumerate(lines):
            try:
                done = self._step_of(line)
            except (ValueError, KeyError, TypeError) as error:
                # A killed run can leave half a line at the end, and nowhere else.
                if number == len(lines) - 1 and not line.endswith("\n") and (number or self._head or line[:1] == "{"):
                    break
                raise ValueError(
                    f"{self.path} is not a metrics log: its row {number + 1} is {line.strip()[:80]!r}. Choose another "
                    "name or remove the file"
                ) from error
            if done <= step and line.endswith("\n"):
                kept.append(line)
        wanted = self._head + "".join(kept)
        if wanted != text or not self.path.is_file():
            replace_file(self.path, lambda part: part.write_text(wanted, encoding="utf-8", newline=""))


def _json_step(line: str) -> int:
    row = json.loads(line)
    if list(row) != _COLUMNS:
        raise ValueError(f"the keys are not {_COLUMNS}")
    return row["step"]


def _json_line(row: Row) -> str:
    return json.dumps(asdict(row)) + "\n"


def _csv_step(line: str) -> int:
    values = line.split(",")
    if len(values) != len(_COLUMNS):
        raise ValueError(f"{len(values)} values for {len(_COLUMNS)} columns")
    return int(values[0])


def _csv_line(row: Row) -> str:
    return ",".join(map(repr, asdict(row).values())) + "\n"
