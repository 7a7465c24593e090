"""The tables of the documentation's page, written from the results' file so that they cannot differ from it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .plans import OUR_NAME, PUBLISHED_NAME, THEIR_NAME

__all__ = ["BEGIN", "END", "markdown", "write"]

BEGIN, END = "<!-- measured: written by the benchmark -->", "<!-- end of measured -->"
Record = Mapping[str, Any]


def write(page: Path, content: Mapping[str, Any]) -> None:
    """Replace what stands between the two marks of a page."""
    text = page.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{page} needs the lines {BEGIN!r} and {END!r}, once each")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n\n{markdown(content)}\n{END}{after}", encoding="utf-8")


def markdown(content: Mapping[str, Any]) -> str:
    """Sections for the plans that were run."""
    plans = content["plans"]
    parts = []
    if plans.get("final"):
        parts += [_final(plans["final"], content)]
    if len(plans.get("ablation", [])) > 1:
        parts += [_ablation(plans["ablation"])]
    if plans.get("search"):
        parts += [_search(plans["search"])]
    return "\n".join(parts)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _mean(values: Sequence[float]) -> str:
    if len(values) == 1:
        return _number(values[0])
    return f"{_number(statistics.fmean(values))} ({_number(min(values))} to {_number(max(values))})"


def _count(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):,.0f}"


def _final(records: Sequence[Record], content: Mapping[str, Any]) -> str:
    seconds = records[0]["seconds"]
    floors = ", ".join(f"{values[0]:.3f} for {name}" for name, values in content["floor"].items())
    rows = [
        [
            record["name"],
            key.split(", ")[0],
            key.split(", ")[1].removesuffix(" steps"),
            key.split(", ")[2].removesuffix(" samples"),
            " ".join(_number(v) for v in values),
            _mean(values),
            _mean(record["second classifier"][key]),
        ]
        for record in records
        for key, values in record["frechet"].items()
    ]
    runs = [
        [
            record["name"],
            f"{record['weights']:,}",
            _count(record["steps"]),
            _count(record["images"]),
            str(len(record["seeds"])),
        ]
        for record in records
    ]
    head = [
        "recipe",
        "solver",
        "evaluations",
        "samples",
        "seeds 0, 1, ...",
        "mean (least to greatest)",
        "second classifier",
    ]
    return "\n".join(
        [
            f"### After {seconds:g} s of training\n",
            _verdict(records),
            _table(["recipe", "weights", "steps", "images", "seeds"], runs),
            _table(head, rows),
            f"The same distance of real images: {floors}.\n",
        ]
    )


def _verdict(records: Sequence[Record]) -> str:
    """How far ahead the first recipe is, at ten evaluations."""
    by_name = {record["name"]: record["frechet"] for record in records}
    if OUR_NAME not in by_name:
        return ""
    own, lines = by_name[OUR_NAME], []
    first = next(iter(own))
    for name in (PUBLISHED_NAME, THEIR_NAME):
        if name not in by_name:
            continue
        key, values = next(iter(by_name[name].items()))
        if key.split(", ")[1:] != first.split(", ")[1:]:
            raise ValueError(f"distances compare at equal evaluations and counts, got {first!r} and {key!r}")
        apart = "every seed of ours is" if max(own[first]) < min(values) else "not every seed of ours is"
        of = [
            f"{_ratio(values, own[k])} times ours by {k.split(', ')[0]}"
            for k in dict.fromkeys((first, key))
            if k in own
        ]
        lines.append(f"- {name}, {key}: a distance {' and '.join(of)}; {apart} below all of theirs.\n")
    return "".join(lines)


def _ratio(values: Sequence[float], base: Sequence[float]) -> str:
    return _number(statistics.fmean(values) / statistics.fmean(base))


def _ablation(records: Sequence[Record]) -> str:
    def distances(record: Record) -> Mapping[int, float]:
        """Of each seed."""
        return dict(zip(record["seeds"], next(iter(record["frechet"].values())), strict=True))

    base, rows = distances(records[0]), []
    for record in records:
        own = distances(record)
        effect = "" if record is records[0] else _mean([own[seed] / base[seed] for seed in own if seed in base])
        images = [_count(record[key]) for key in ("steps", "images")]
        rows.append([record["name"], *images, _mean(list(own.values())), effect])
    count = len(base)
    title = f"### Each choice undone, {records[0]['seconds']:g} s of training, {count} seed{'s' if count > 1 else ''}\n"
    head = ["recipe", "steps", "images", "distance", "times the first row, seed by seed"]
    return "\n".join([title, _table(head, rows)])


def _search(records: Sequence[Record]) -> str:
    rows = [
        [
            record["name"],
            _count(record["images"]),
            key.split(", ")[2].removesuffix(" samples"),
            _number(values[0]),
        ]
        for record in records
        for key, values in record["frechet"].items()
    ]
    title = f"### The search, {records[0]['seconds']:g} s of training, one seed\n"
    return "\n".join([title, _table(["recipe", "images", "samples", "distance"], rows)])
