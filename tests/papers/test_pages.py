"""The places of tables in pages, and what is written into them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # benchmarks/ is beside the package and not in it

from benchmarks.papers.pages import fill  # noqa: E402

PAGE = """# Page

<!-- table one -->
| old |
<!-- end of table -->

Between.

<!-- table two -->
<!-- end of table -->
After.
"""


def test_tables_go_into_their_places_and_the_rest_stays(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    fill(page, {"two": "| b |\n", "one": "| a |"})
    text = page.read_text()
    assert text == PAGE.replace("| old |", "| a |").replace("two -->\n", "two -->\n| b |\n")
    fill(page, {"two": "| b |\n", "one": "| a |"})
    assert page.read_text() == text


@pytest.mark.parametrize(
    ("text", "tables"),
    [
        (PAGE, {"one": "| a |"}),
        (PAGE, {"one": "| a |", "two": "| b |", "three": "| c |"}),
        (PAGE + PAGE, {"one": "| a |", "two": "| b |"}),
        (PAGE.replace("<!-- end of table -->", "", 1), {"one": "| a |", "two": "| b |"}),
        (PAGE.replace("<!-- end of table -->", "", 1) + "<!-- end of table -->", {"one": "| a |", "two": "| b |"}),
        ("<!-- end of table -->" + PAGE, {"one": "| a |", "two": "| b |"}),
    ],
    ids=["a place too many", "a table too many", "places twice", "a place without an end", "two ends", "an end first"],
)
def test_a_page_with_other_places_is_refused(text: str, tables: dict[str, str], tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ValueError, match="needs one for each of"):
        fill(page, tables)
    assert page.read_text() == text
