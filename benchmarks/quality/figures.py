"""Figures of the comparison: distance against training time, and images."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from genmatch import viz
from genmatch.viz import canvas
from genmatch.viz.palette import COLOURS, DASHES, MARKERS, MUTED, OTHERS
from genmatch.viz.ticks import label_logarithmic

from .report import PICTURES

__all__ = ["draw"]

PALETTE = (COLOURS["flow"], COLOURS["diffusion"], OTHERS[0], OTHERS[1])


def draw(results: Path, folder: Path, cache: Path) -> None:
    """Draw what there is: the curve from the results' file, the images from the runs."""
    folder.mkdir(parents=True, exist_ok=True)
    content = json.loads((results / "quality.json").read_text())
    records = content["plans"].get("final", [])
    if records:
        floors = {int(name.split()[0]): values[0] for name, values in content["floor"].items()}
        shown = [point["samples"] for record in records for point in record["curve"]]
        floor = floors.get(min(shown, default=0), min(floors.values()))  # of as many images as there are samples
        (folder / "curve.png").write_bytes(curve(records, floor))
    if (cache / PICTURES).is_file():
        (folder / "images.png").write_bytes(images(torch.load(cache / PICTURES, weights_only=True)))


def curve(records: Sequence[Mapping[str, Any]], floor: float) -> bytes:
    """Frechet distance against seconds of training, both logarithmic; a hollow dot for each seed at the end."""
    figure, ax = canvas.new_axes(None, 700, 400)
    for i, record in enumerate(records):
        look: dict[str, Any] = {"color": PALETTE[i % len(PALETTE)], "marker": MARKERS[i]}
        points = sorted((p["seconds"], p["frechet"]) for p in record["curve"])
        if points:
            label = f"{record['name']}: first seed, {record['curve'][0]['samples']} samples"
            ax.plot(*zip(*points, strict=True), linestyle=DASHES[i], linewidth=1.5, label=label, **look)
        key, ends = next(iter(record["frechet"].items()))
        label = f"{record['name']}: every seed, {key.split(', ')[-1]}"
        seconds = [record["seconds"]] * len(ends)
        ax.plot(seconds, ends, linestyle="none", markerfacecolor="white", markersize=8, label=label, **look)
    ax.axhline(floor, color=MUTED, linewidth=1.0, linestyle=":", label="test images")
    ax.set(xscale="log", yscale="log", xlabel="seconds of training", ylabel="Fréchet distance at 10 evaluations")
    for axis in (ax.xaxis, ax.yaxis):
        label_logarithmic(axis)
    ax.legend(fontsize=9, frameon=False)
    return canvas.to_png(figure, dpi=canvas.DPI)


def images(blocks: Mapping[str, torch.Tensor]) -> bytes:
    """The first images of every recipe, beside training images; the noise is the same for all."""
    return canvas.to_png(viz.grid(blocks, columns=8), dpi=canvas.DPI)
