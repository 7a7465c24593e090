"""Tables of results in pages of the documentation, so that the two cannot differ."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

__all__ = ["fill"]

END = "<!-- end of table -->"


def fill(page: Path, tables: Mapping[str, str]) -> None:
    """Replace what stands in a page between ``<!-- table NAME -->`` and ``<!-- end of table -->``, for each name.

    Raises
    ------
    ValueError
        If the page has not one such place for every table, or one for a table that there is not.
    """
    text = page.read_text(encoding="utf-8")
    marks = re.findall(rf"<!-- table (.+?) -->|{END}", text)  # an end is ""
    places = marks[::2]
    if any(marks[1::2]) or len(marks) % 2 or sorted(places) != sorted(tables):
        raise ValueError(
            f"{page} has places for the tables {sorted(places)}, and needs one for each of {sorted(tables)}: "
            f"the lines '<!-- table NAME -->' and '{END}'"
        )
    for name, table in tables.items():
        begin = f"<!-- table {name} -->"
        before, after = text.split(begin)
        text = f"{before}{begin}\n{table.strip()}\n{after[after.index(END) :]}"
    page.write_text(text, encoding="utf-8")
