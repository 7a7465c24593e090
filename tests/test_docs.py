"""What the pages show runs, what the docstrings show is true, and what the pages link to is there.

The Python blocks of a page run in order in one namespace, in an empty folder. A block is left out only if it says so:
a fence that opens with ``python no-run``.
"""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest

import genmatch

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
FENCE = re.compile(r"^( *)```python *(.*)$")
PACKAGE = Path(genmatch.__file__).parent
MODULES = [
    ".".join(["genmatch", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.stem != "__main__"
]


def blocks(text: str) -> list[tuple[int, str]]:
    """(line, code) of the blocks to run, the line that of the block's first."""
    found, lines = [], text.splitlines()
    for number, line in enumerate(lines):
        fence = FENCE.match(line)
        if fence and "no-run" not in fence[2].split():
            indent, end = fence[1], number + 1
            while end < len(lines) and lines[end].strip() != "```":
                end += 1
            if end == len(lines):
                raise ValueError(f"the block that opens in line {number + 1} is not closed")
            found.append((number + 2, "\n".join(line.removeprefix(indent) for line in lines[number + 1 : end])))
    return found


def run(path: Path, text: str) -> dict:
    namespace: dict = {"__name__": "__main__"}
    for line, code in blocks(text):
        # Blank lines in front make a traceback name the line of the page.
        exec(compile("\n" * (line - 1) + code, str(path), "exec"), namespace)
    return namespace


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_blocks_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    run(path, path.read_text())


def test_blocks_share_a_namespace_and_errors_name_the_line():
    page = "text\n```python\nx = 1\n```\n\n```python no-run\nx = 0\n```\n1. item\n   ```python\n   y = x + 1\n   ```\n"
    assert run(Path("page.md"), page)["y"] == 2
    with pytest.raises(ZeroDivisionError) as caught:
        run(Path("page.md"), page + "```python\n\nx / 0\n```\n")
    assert caught.traceback[-1].lineno + 1 == len(page.splitlines()) + 3
    with pytest.raises(ValueError, match="line 1 is not closed"):
        blocks("```python\nx = 1\n")


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_are_true(name: str):
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("genmatch"):
            raise
        pytest.skip(f"{error.name} is not installed")
    assert doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS).failed == 0


def broken_links(text: str, folder: Path) -> list[str]:
    """Relative targets of Markdown links and images that are not there."""
    prose = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", prose)
    local = (target.split("#")[0] for target in targets if not re.match(r"[a-z]+:", target))
    return [target for target in local if target and not (folder / target).exists()]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path):
    assert broken_links(path.read_text(), path.parent) == []


def test_a_broken_link_is_seen(tmp_path: Path):
    (tmp_path / "there.md").touch()
    text = "[a](there.md) [b](gone.md#part) ![c](gone.png) [d](https://example.org) [e](#part) `[f](code.md)`"
    assert broken_links(text, tmp_path) == ["gone.md", "gone.png"]
