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
    places = re.findall(r"<!-- table (.+?) -->", text)
    if sorted(places) != sorted(tables) or text.count(END) != len(places):
        raise ValueError(
            f"{page} has places for the tables {sorted(places)}, and needs one for each of {sorted(tables)}: "
            f"the lines '<!-- table NAME -->' and '{END}'"
        )
    for name, table in tables.items():
        begin = f"<!-- table {name} -->"
        before, after = text.split(begin)
        text = f"{before}{begin}\n{table.strip()}\n{after[after.index(END) :]}"
    page.write_text(text, encoding="utf-8")
