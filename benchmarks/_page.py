"""The page of the results: a table and a figure for each topic, made from the newest file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _suite import verdict

__all__ = ["BEGIN", "END", "chart", "draw", "newest", "number", "replace_between", "tables"]

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
PLOT, RIGHT, ABOVE, BELOW, ROW, HEAD = 470, 55, 28, 48, 19, 26  # pixels
SIZE = 8.5  # of the type, in points
CLOCKS = {"cpu": ", processor time", "wall": ", wall time"}
STYLES = {  # colour, marker and words of what a range says
    "faster": ("#0072B2", "o", "genmatch is faster"),
    "even": ("#6B6B6B", "D", "the rounds disagree"),
    "slower": ("#D55E00", "s", "genmatch is slower"),
}


def newest(folder: Path) -> Path:
    """The newest full results of any machine."""
    files = [path for path in folder.glob("*/*.json") if re.fullmatch(r"\d{4}-\d\d-\d\d", path.stem)]
    if not files:
        raise FileNotFoundError(f"no results in {folder}: run python benchmarks")
    return max(files, key=lambda path: (path.stem, path.parent.name))


def number(value: float) -> str:
    """Two decimals below ten, and fewer above."""
    return f"{value:.3f}" if value < 0.1 else f"{value:.2f}" if value < 10 else f"{value:.0f}"


def tables(results: Mapping[str, Any]) -> str:
    """The tables of all topics, as Markdown."""
    machine = results["machine"]
    gpu = machine["gpu"] or "no GPU"
    shown = {name: version for name, version in results["versions"].items() if version != "not installed"}
    lines = [
        f"Measured on {results['date']}: {machine['processor']}, {machine['cores']} cores, {gpu}; "
        + ", ".join(f"{name} {version}" for name, version in {"Python": machine["python"], **shown}.items())
        + ".",
    ]
    for name, topic in results["topics"].items():
        threads = f"{topic['threads']} thread" + "s" * (topic["threads"] > 1) + CLOCKS[topic["clock"]]
        lines += [
            "",
            f"## {topic['title']}",
            "",
            f"`python benchmarks --only {name}`, {threads}, commit {topic['commit']}.",
        ]
        if "error" in topic:
            lines += ["", f"**Incomplete**: this topic {topic['error']}."]
        if any("ratio" in row for row in topic["rows"]):
            alt = f"{topic['title']}: ratios of time with their ranges"
            lines += ["", f"![{alt}](_static/benchmarks/{name}.png)"]
        head = ["what", "ours", "theirs", "theirs / ours", "(least, most)"]
        noted = any(row.get("notes") for row in topic["rows"])
        head += ["besides"] * noted
        lines += ["", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        lines += [_line(row, len(head)) for row in topic["rows"]]
    return "\n".join(lines)


def _line(row: Mapping[str, Any], columns: int) -> str:
    cells = [row["what"], f"`{row['ours']}`", f"{peer_of(row)} ({row['version']})"]
    if "ratio" in row:
        mark = "**" if verdict(row) == "slower" else ""
        cells += [f"{mark}{number(row['ratio'])}{mark}", f"({number(row['least'])}, {number(row['most'])})"]
    else:
        cells.append(f"left out: {row['missing']}")
    if row.get("notes"):
        cells.append("; ".join(f"{name} {_note(value)}" for name, value in row["notes"].items()))
    return f"| {' | '.join(cells + [''] * (columns - len(cells)))} |"


def _note(value: Any) -> str:
    """A number, or those of both sides, ours first."""
    if isinstance(value, Mapping):
        return f"{_note(value['ours'])} / {_note(value['theirs'])}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.2g}"


def replace_between(page: str, text: str, begin: str = BEGIN, end: str = END) -> str:
    """A page whose part between two lines is another text."""
    before, _, rest = page.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"the page has no part from {begin} to {end}")
    return f"{before}{begin}\n{text}\n{end}{after}"


def chart(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Ratios on a logarithmic axis with a line at 1, as a PNG: a mark for a median, a line from least to most."""
    from genmatch.viz import canvas
    from genmatch.viz.palette import GRID, INK
    from genmatch.viz.ticks import label_logarithmic

    rows = [row for row in rows if "ratio" in row]
    groups = list(dict.fromkeys((row["what"], row["ours"]) for row in rows))
    height = ROW * len(rows) + HEAD * len(groups)
    whole = height + ABOVE + BELOW
    left = 25 + max(canvas.text_width(peer_of(row), SIZE) for row in rows)
    width = left + PLOT + RIGHT
    figure = canvas.new_figure(width, whole, constrained=False)
    ax = figure.add_axes((left / width, BELOW / whole, PLOT / width, height / whole))
    canvas.style(ax)
    ax.grid(visible=False, axis="y")
    ax.spines["left"].set_visible(False)
    ax.grid(visible=True, axis="x", color=GRID, linewidth=0.8)
    ends = [row[key] for row in rows for key in ("least", "most")]
    ax.set(xscale="log", xlim=(min(0.8, min(ends) / 1.1), max(1.25, max(ends) * 1.1)), ylim=(height, 0), yticks=[])
    ax.axvline(1, color=INK, linewidth=1.0)
    place = {"transform": ax.get_yaxis_transform(), "fontsize": SIZE, "color": INK, "va": "center"}
    seen, y = {}, 0.0
    for group in groups:
        title = ax.text((10 - left) / PLOT, y + 0.6 * HEAD, "  ·  ".join(group), fontweight="bold", **place)
        title.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1.5})
        y += HEAD
        for row in (row for row in rows if (row["what"], row["ours"]) == group):
            middle = y + ROW / 2
            colour, marker, words = STYLES[verdict(row)]
            ax.plot([row["least"], row["most"]], [middle] * 2, color=colour, linewidth=1.6, alpha=0.55)
            style = {"color": colour, "marker": marker, "markersize": 5.5, "linestyle": "none"}
            (seen[words],) = ax.plot([row["ratio"]], [middle], **style)
            ax.text(-10 / PLOT, middle, peer_of(row), ha="right", **place)
            ax.text(1 + 10 / PLOT, middle, number(row["ratio"]), **place)
            y += ROW
    label_logarithmic(ax.xaxis)
    ax.set_xlabel("their time / ours: right of the line genmatch is faster", fontsize=9)
    seen = {words: seen[words] for _, _, words in STYLES.values() if words in seen}
    figure.legend(seen.values(), seen.keys(), loc="upper right", ncols=3, fontsize=8, frameon=False)
    return canvas.to_png(figure, dpi=1.5 * canvas.DPI)


def peer_of(row: Mapping[str, Any]) -> str:
    """The other side of a row, with the name of its library."""
    return row["peer"] if row["library"].lower() in row["peer"].lower() else f"{row['library']}: {row['peer']}"


def draw(folder: Path, docs: Path) -> Path:
    """Write the figures and the tables of the newest results into the docs; the file that they are from."""
    path = newest(folder)
    results = json.loads(path.read_text())
    figures = docs / "_static/benchmarks"
    figures.mkdir(parents=True, exist_ok=True)
    for name, topic in results["topics"].items():
        if any("ratio" in row for row in topic["rows"]):
            (figures / f"{name}.png").write_bytes(chart(topic["rows"]))
    page = docs / "benchmarks.md"
    page.write_text(replace_between(page.read_text(), tables(results)))
    return path
