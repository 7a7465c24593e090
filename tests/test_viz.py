"""Figures hold the artists and the data they should, are legible, and touch nothing global."""

from __future__ import annotations

import base64
import io
import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import genmatch as gm

matplotlib = pytest.importorskip("matplotlib")
from matplotlib.collections import LineCollection, PathCollection  # noqa: E402
from matplotlib.colors import same_color  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.image import imread  # noqa: E402
from matplotlib.patches import StepPatch  # noqa: E402

from genmatch.viz import canvas, images, labels, palette  # noqa: E402

viz = gm.viz


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def drawn(figure: Figure, dpi: float = 100) -> np.ndarray:
    """The figure's pixels, 0 .. 255."""
    return np.round(imread(io.BytesIO(viz.to_png(figure, dpi=dpi)))[..., :3] * 255).astype(np.uint8)


def is_clear(figure: Figure) -> None:
    """No two texts of a figure overlap, and none is cut off."""
    figure.draw_without_rendering()
    boxes = [
        (text.get_text(), text.get_window_extent())
        for text in figure.findobj(matplotlib.text.Text)
        if text.get_visible() and text.get_text().strip()
    ]
    axes = [ax for ax in figure.axes if ax.axison]
    inside = [  # tick labels beyond the limits of their axis exist, but are not drawn
        (name, box)
        for name, box in boxes
        if not any(name == tick.get_text() for ax in axes for tick in (*ax.get_xticklabels(), *ax.get_yticklabels()))
    ]
    for ax in axes:
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            inside += [
                (label.get_text(), label.get_window_extent())
                for tick, label in zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=False)
                if low <= tick <= high and label.get_text() and label.get_visible()
            ]
    width, height = figure.get_size_inches() * figure.dpi
    for i, (name, box) in enumerate(inside):
        assert box.x0 >= 0, name
        assert box.y0 >= 0, name
        assert box.x1 <= width + 0.5, name
        assert box.y1 <= height + 0.5, name
        for other, second in inside[i + 1 :]:
            apart = box.x1 <= second.x0 or second.x1 <= box.x0 or box.y1 <= second.y0 + 1 or second.y1 <= box.y0 + 1
            assert apart, f"{name!r} lies on {other!r}"


@pytest.mark.parametrize(("x", "y", "complaint"), [(0.31, 0.5, "lies on"), (0.95, 0.9, "cut"), (0.5, 0.99, "cut")])
def test_unclear_figures_are_seen(x: float, y: float, complaint: str):
    figure = Figure(figsize=(4, 3))
    figure.text(0.3, 0.5, "one text")
    figure.text(x, y, "cut off" if complaint == "cut" else "another")
    with pytest.raises(AssertionError, match=complaint):
        is_clear(figure)


# Grids


def test_grid_pixels_are_exact_on_the_screen():
    samples = normal(6, 1, 5, 4) * 0.4
    figure = viz.grid(samples, columns=3)
    (ax,) = figure.axes
    scale = 112 // 5
    sheet = ax.images[0].get_array()
    assert sheet.shape == (2 * 5 * scale + 3, 3 * 4 * scale + 2 * 3, 3)
    expected = ((samples.clamp(-1, 1) + 1) / 2 * 255).double().round()
    for i in range(6):
        y, x = i // 3 * (5 * scale + 3), i % 3 * (4 * scale + 3)
        for row, column in ((0, 0), (2, 3), (4, 1)):
            cell = sheet[y + row * scale : y + (row + 1) * scale, x + column * scale : x + (column + 1) * scale]
            assert (cell == int(expected[i, 0, row, column])).all()
    # What is drawn is that sheet, pixel for pixel, on white; and twice as large at twice the resolution.
    for factor in (1, 2):
        picture = drawn(figure, dpi=100 * factor)
        large = sheet.repeat(factor, 0).repeat(factor, 1)
        margin = 10 * factor
        inner = picture[margin : margin + large.shape[0], margin : margin + large.shape[1]]
        assert np.array_equal(inner, large)
        assert (picture[:margin] == 255).all()
        assert picture.shape[:2] == (large.shape[0] + 2 * margin, large.shape[1] + 2 * margin)


def test_grid_shows_colours_ranges_and_unfinished_rows():
    colours = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])[:, :, None, None].expand(-1, -1, 2, 2)
    sheet = viz.grid(colours, columns=2, value_range=(0, 1)).axes[0].images[0].get_array()
    side = 112
    corners = [sheet[0, 0], sheet[0, side + 3], sheet[side + 3, 0], sheet[side + 3, side + 3]]
    assert [corner.tolist() for corner in corners] == [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]
    assert (sheet[side : side + 3] == 255).all()  # the gap
    beyond = viz.grid(torch.tensor([-7.0, 0.0, 9.0]).reshape(3, 1, 1), columns=3).axes[0].images[0].get_array()
    assert beyond[0, [0, 115, 230], 0].tolist() == [0, 128, 255]


def test_grid_of_several_samplers():
    blocks = {name: normal(20, 8, 8, seed=i) for i, name in enumerate(("flow, Heun", "diffusion, DDIM", "hybrid"))}
    figure = viz.grid(blocks, columns=4, row_labels=["1", "2", "5", "10", "100 steps"], title="Samples")
    assert [ax.get_label() for ax in figure.axes] == list(blocks)
    scale = (figure.axes[0].images[0].get_array().shape[0] - 4 * 3) // 40
    for ax, block in zip(figure.axes, blocks.values(), strict=True):
        levels = ((block.clamp(-1, 1) + 1) / 2 * 255).double().round().byte()[..., None].expand(-1, -1, -1, 3)
        assert np.array_equal(ax.images[0].get_array(), images.mosaic(levels.numpy(), 4, scale, 3))
    # Titles stand above their blocks.
    width = figure.get_size_inches()[0] * 100
    for ax, name in zip(figure.axes, blocks, strict=True):
        (heading,) = [text for text in figure.texts if text.get_text() == name]
        assert heading.get_position()[0] == pytest.approx(ax.get_position().x0, abs=1 / width)
        assert 0 < heading.get_position()[1] - ax.get_position().y1 < 0.1
    texts = {text.get_text(): text for text in figure.texts}
    assert set(texts) == {"Samples", "1", "2", "5", "10", "100 steps", *blocks}
    is_clear(figure)
    assert figure.get_size_inches()[0] <= 7
    # Labels stand beside the middle of their rows.
    picture_height = figure.get_size_inches()[1] * 100
    tops = [(1 - texts[label].get_position()[1]) * picture_height for label in ("1", "2", "100 steps")]
    assert tops[1] - tops[0] == pytest.approx(8 * scale + 3)
    assert tops[2] - tops[0] == pytest.approx(4 * (8 * scale + 3))


@pytest.mark.parametrize(
    ("count", "size", "columns", "lines"),
    [
        (2, 8, 4, 1),
        (3, 8, 4, 1),
        (4, 8, 5, 2),
        (4, 8, 3, 1),
        (6, 8, 4, 2),
        (3, 32, 8, 2),
        (3, 64, 4, 2),
        (2, 64, 8, 2),
        (1, 64, 4, 1),
    ],
)
def test_blocks_are_arranged_evenly_and_fit(count: int, size: int, columns: int, lines: int):
    figure = viz.grid({str(i): normal(8, 3, size, size) for i in range(count)}, columns=columns)
    tops = {round(ax.get_position().y1, 6) for ax in figure.axes}
    assert len(tops) == lines
    assert figure.get_size_inches()[0] * 100 <= 700


def test_wide_grids_keep_whole_pixels():
    figure = viz.grid(normal(40, 40, 40), columns=40)
    assert figure.get_size_inches()[0] * 100 == 40 * 43 - 3 + 20


def test_grid_into_given_axes():
    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert viz.grid(normal(4, 8, 8), ax=right, title="right") is figure
    assert len(right.images) == 1
    assert not left.images
    assert right.get_title("left") == "right"
    assert figure.axes == [left, right]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"images": torch.zeros(4, 8)}, ValueError, r"\(B, H, W\) or \(B, C, H, W\).*got \(4, 8\)"),
        ({"images": torch.zeros(4, 2, 8, 8)}, ValueError, r"C = 1 or 3.*got \(4, 2, 8, 8\)"),
        ({"images": torch.zeros(0, 8, 8)}, ValueError, r"got \(0, 8, 8\)"),
        ({"images": torch.zeros(4, 8, 8).byte()}, TypeError, "got torch.uint8; scale integers"),
        ({"images": {"flow": [1]}}, TypeError, "images 'flow' must be a floating-point tensor, got list"),
        ({"images": {}}, ValueError, "no images to show"),
        ({"images": torch.full((1, 8, 8), math.nan)}, ValueError, "not finite"),
        ({"images": torch.zeros(4, 8, 8), "value_range": (1, 0)}, ValueError, "value_range must rise"),
        ({"images": torch.zeros(4, 8, 8), "columns": 0}, ValueError, "columns must be a positive integer, got 0"),
        ({"images": torch.zeros(4, 8, 8), "across": 1.5}, ValueError, "across must be a positive integer, got 1.5"),
        (
            {"images": torch.zeros(4, 8, 8), "columns": 2, "row_labels": ["a"]},
            ValueError,
            "4 images in 2 columns make 2 rows, got 1 labels",
        ),
        ({"images": torch.zeros(4, 8, 8), "row_labels": "ab"}, TypeError, "sequence of labels, got the string 'ab'"),
        (
            {"images": {"a": torch.zeros(1, 8, 8), "b": torch.zeros(1, 8, 9)}},
            ValueError,
            r"of one size, got \[\(8, 8\), \(8, 9\)\]",
        ),
    ],
)
def test_grid_refuses(arguments: dict, error: type, message: str):
    with pytest.raises(error, match=message):
        viz.grid(**arguments)


def test_axes_are_checked():
    with pytest.raises(TypeError, match="ax must be matplotlib axes, got Figure"):
        viz.grid(torch.zeros(1, 8, 8), ax=Figure())
    with pytest.raises(TypeError, match="ax must be matplotlib axes, got int"):
        viz.loss_curve([1.0], ax=3)
    with pytest.raises(ValueError, match="one block without row labels"):
        viz.grid({"a": torch.zeros(1, 8, 8), "b": torch.zeros(1, 8, 8)}, ax=Figure().subplots())


# Densities


def log_gaussian(x: Tensor) -> Tensor:
    return -((x - torch.tensor([1.0, -0.5])) ** 2 / torch.tensor([0.5, 2.0])).sum(1) / 2 - math.log(2 * math.pi)


def test_density_of_a_function():
    figure = viz.density(log_gaussian, bounds=(-4, 6, -8, 8), resolution=50, title="Gaussian")
    (ax,) = figure.axes
    shades = ax.images[0].get_array()
    x, y = -4 + 10 * (np.arange(50) + 0.5) / 50, -8 + 16 * (np.arange(50) + 0.5) / 50
    expected = np.exp(-((x - 1) ** 2) / 1.0 - (y[:, None] + 0.5) ** 2 / 4.0) / (2 * np.pi)
    assert np.allclose(shades, expected, rtol=1e-4, atol=1e-9)
    assert shades.sum() * (10 / 50) * (16 / 50) == pytest.approx(1, abs=1e-3)  # variances .5 and 2: determinant 1
    assert ax.images[0].get_extent() == [-4, 6, -8, 8]
    assert ax.images[0].origin == "lower"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("first coordinate", "second coordinate")
    assert ax.get_title("left") == "Gaussian"
    assert (ax.get_xlim(), ax.get_ylim()) == ((-4, 6), (-8, 8))
    assert ax.get_aspect() == 1
    is_clear(figure)


def test_density_of_samples_stands_upright():
    samples = torch.tensor([[0.1, 0.9]]).repeat(9, 1) + 0.01 * normal(9, 2)
    samples = torch.cat([samples, torch.tensor([[0.9, 0.1]])])
    ax = viz.density(samples, bounds=(0, 1, 0, 1), resolution=2).axes[0]
    # Rows run from bottom to top: nine at the upper left, one at the lower right. A cell has an area of 1/4.
    assert ax.images[0].get_array().tolist() == [[0, 0.1 * 4], [0.9 * 4, 0]]
    spread = viz.density(normal(500, 2)).axes[0]
    assert spread.images[0].get_array().shape == (60, 60)
    left, right, bottom, top = spread.images[0].get_extent()
    inside = (normal(500, 2) > torch.tensor([left, bottom])) & (normal(500, 2) < torch.tensor([right, top]))
    assert bool(inside.all())
    assert spread.images[0].get_array().sum() * (right - left) * (top - bottom) / 3600 == pytest.approx(1)


def test_trajectories_lie_over_the_density():
    states = normal(11, 7, 2)
    figure = viz.density(normal(100, 2), states, colour=palette.COLOURS["diffusion"])
    (ax,) = figure.axes
    (lines,) = [c for c in ax.collections if isinstance(c, LineCollection)]
    assert np.allclose(np.stack(lines.get_segments(), 1), states.numpy())
    assert same_color(lines.get_color()[0][:3], palette.COLOURS["diffusion"])
    starts, ends = [c for c in ax.collections if isinstance(c, PathCollection)]
    assert np.allclose(starts.get_offsets(), states[0])
    assert np.allclose(ends.get_offsets(), states[-1])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["start", "end"]
    low, high = states.reshape(-1, 2).min(0).values, states.reshape(-1, 2).max(0).values
    assert ax.get_xlim()[0] < float(low[0]) < float(high[0]) < ax.get_xlim()[1]
    assert viz.density(log_gaussian, states).axes[0].get_xlim() == viz.density(states[0], states).axes[0].get_xlim()
    is_clear(figure)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"target": log_gaussian}, ValueError, r"needs bounds=\(left, right, bottom, top\)"),
        (
            {"target": lambda x: x, "bounds": (0, 1, 0, 1), "resolution": 3},
            ValueError,
            r"\(9, 2\) to \(9,\), got \(9, 2\)",
        ),
        ({"target": lambda x: x[:, 0].log(), "bounds": (-1, 1, 0, 1)}, ValueError, "NaN or infinite"),
        ({"target": torch.zeros(5, 3)}, ValueError, r"target must have shape \(n, 2\), got \(5, 3\)"),
        ({"target": "p"}, TypeError, r"tensor \(n, 2\) or a log-density function, got str"),
        ({"target": torch.zeros(5, 2) * math.nan}, ValueError, "target holds values that are not finite"),
        (
            {"target": torch.zeros(5, 2), "trajectories": torch.zeros(5, 2)},
            ValueError,
            r"\(N \+ 1, B, 2\), got \(5, 2\)",
        ),
        ({"target": torch.zeros(5, 2), "bounds": (0, 1)}, ValueError, "four finite numbers"),
        ({"target": torch.zeros(5, 2), "bounds": (0, 1, 1, 1)}, ValueError, "bounds must rise"),
        ({"target": torch.zeros(5, 2), "resolution": 0}, ValueError, "resolution must be a positive integer, got 0"),
    ],
)
def test_density_refuses(arguments: dict, error: type, message: str):
    with pytest.raises(error, match=message):
        viz.density(**arguments)


# Curvature


def test_curvature_histogram():
    values = torch.tensor([1.0, 1.1, 1.2, 1.3, 1.4, 2.0, math.inf, math.nan])
    angle = torch.linspace(0, math.pi, 41)
    states = torch.stack([angle.cos(), angle.sin()], -1)[:, None].expand(-1, 5, -1)  # half circles
    result = gm.metrics.curvature(normal(3, 30, 2).cumsum(0))
    entries = {"flow": values, "diffusion": states, "hybrid": result}
    figure = viz.curvature_histogram(entries, bins=10, limit=2.0, title="Curvature")
    assert len(figure.axes) == 3
    flow, diffusion, hybrid = [ax.patches[0] for ax in figure.axes]
    assert all(isinstance(patch, StepPatch) for patch in (flow, diffusion, hybrid))
    counts, edges, _ = flow.get_data()
    assert np.allclose(edges, np.linspace(1, 2, 11))
    assert counts.sum() * 8 == pytest.approx(6)  # shares of all eight, of which two are not on the axis
    assert diffusion.get_data().values[5] == 1  # pi / 2 lies in [1.5, 1.6]
    finite = result.values[result.values <= 2]
    assert hybrid.get_data().values.sum() * 30 == pytest.approx(len(finite))
    for ax, name in zip(figure.axes, entries, strict=True):
        assert same_color(ax.patches[0].get_facecolor()[:3], palette.COLOURS[name])
        assert name in [text.get_text() for text in ax.texts]
    notes = [text.get_text() for text in figure.axes[0].texts]
    assert notes[1] == "median 1.3\n1 of 8 beyond\n1 of 8 never moved"
    assert figure.axes[1].texts[1].get_text() == "median 1.57"
    assert figure.axes[0].lines[0].get_xdata()[0] == pytest.approx(1.3)
    assert figure.axes[2].get_xlabel() == "curvature C: path length / displacement"
    assert figure.axes[2].get_xlim() == (1, 2)
    assert figure.axes[0].get_title("left") == "Curvature"
    is_clear(figure)


def test_a_wide_range_of_curvature_is_logarithmic():
    figure = viz.curvature_histogram(
        {"flow": 1 + 0.1 * normal(100).abs(), "diffusion, DDPM": 20 + normal(100)}, bins=20
    )
    assert figure.axes[0].get_xscale() == "log"
    edges = figure.axes[0].patches[0].get_data().edges
    assert np.allclose(np.diff(np.log(edges)), np.log(edges[-1]) / 20)
    head, rest = [text.get_text() for text in figure.axes[1].texts]
    assert (head, rest.splitlines()[0]) == ("diffusion", "DDPM")
    is_clear(figure)


@pytest.mark.parametrize(
    ("entries", "keywords", "error", "message"),
    [
        (torch.ones(3), {}, TypeError, "must map names to values or states, got Tensor"),
        ({}, {}, ValueError, "no curvatures to draw"),
        ({"a": [1.0]}, {}, TypeError, r"'a' must be curvatures \(B,\) or states .* got list"),
        ({"a": torch.tensor([0.5])}, {}, ValueError, "'a' has values below 1.*the least is 0.5"),
        ({"a": torch.tensor([math.nan])}, {}, ValueError, "'a' has no sample that moved"),
        ({"a": torch.tensor([math.inf])}, {}, ValueError, "no curvature is finite"),
        ({"a": torch.ones(3)}, {"limit": 1}, ValueError, "limit must be above 1 and finite, got 1"),
        ({"a": torch.ones(3)}, {"bins": 0}, ValueError, "bins must be a positive integer, got 0"),
    ],
)
def test_curvature_histogram_refuses(entries: object, keywords: dict, error: type, message: str):
    with pytest.raises(error, match=message):
        viz.curvature_histogram(entries, **keywords)


# Quality


LINES = (("flow", "Exponential", 1), ("flow", "RK4", 4), ("diffusion", "DDIM", 1), ("hybrid", "Exponential", 1))


def records(close: bool = False) -> list[dict]:
    return [
        {
            "model": model,
            "sampler": sampler,
            "steps": steps,
            "evaluations": each * steps,
            "frechet": (1 + (0.01 if close else 1) * i) * (1 + 50 / steps),
            "curvature": 1.1,
            "ms_per_image": 0.3 * steps * each,
        }
        for i, (model, sampler, each) in enumerate(LINES)
        for steps in (1, 2, 5, 10, 20, 50, 100)
    ]


def data_lines(figure: Figure) -> dict[str, matplotlib.lines.Line2D]:
    return {line.get_label(): line for line in figure.axes[0].lines if not line.get_label().startswith("_")}


def test_quality_curves():
    figure = viz.quality_curves(records(), floor=0.9, floor_label="train against test", title="Quality")
    (ax,) = figure.axes
    lines = data_lines(figure)
    assert list(lines) == ["flow, Exponential", "flow, RK4", "diffusion, DDIM", "hybrid, Exponential"]
    for name, line in lines.items():
        rows = [row for row in records() if f"{row['model']}, {row['sampler']}" == name]
        assert line.get_xdata().tolist() == [row["evaluations"] for row in rows]
        assert np.allclose(line.get_ydata(), [row["frechet"] for row in rows])
        assert same_color(line.get_color(), palette.COLOURS[name.split(",")[0]])
    same, other = lines["hybrid, Exponential"], lines["flow, RK4"]
    assert lines["flow, Exponential"].get_marker() == same.get_marker() != other.get_marker()
    assert lines["flow, Exponential"].get_linestyle() == same.get_linestyle() != other.get_linestyle()
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("network evaluations per sample", "Frechet distance")
    (floor,) = [line for line in ax.lines if line.get_label() == "_floor"]
    assert set(floor.get_ydata()) == {0.9}
    texts = {text.get_text(): text for text in ax.texts}
    assert set(texts) == {*lines, "train against test 0.9"}
    assert ax.get_title("left") == "Quality"
    assert not ax.collections  # one record at each x: no band
    is_clear(figure)


@pytest.mark.parametrize("close", [False, True])
def test_names_stand_in_the_order_of_the_line_ends(close: bool):
    figure = viz.quality_curves(records(close))
    figure.draw_without_rendering()
    lines = data_lines(figure)
    heights = {text.get_text(): text.get_window_extent().y0 for text in figure.axes[0].texts}
    ends = {name: float(line.get_ydata()[-1]) for name, line in lines.items()}
    assert sorted(heights, key=heights.__getitem__) == sorted(ends, key=ends.__getitem__)
    right = figure.axes[0].get_window_extent().x1
    for text in figure.axes[0].texts:
        assert text.get_window_extent().x0 > right
        assert same_color(text.get_color(), lines[text.get_text()].get_color())
    keys = [line for line in figure.axes[0].lines if line.get_label() == "_key"]
    assert [key.get_marker() for key in keys] == [line.get_marker() for line in lines.values()]
    assert [key.get_linestyle() for key in keys] == [line.get_linestyle() for line in lines.values()]
    is_clear(figure)


def test_several_seeds_make_a_band():
    rows = [dict(row, frechet=row["frechet"] * factor) for row in records() for factor in (1, 0.5, 4)]
    figure = viz.quality_curves([row for row in rows if row["model"] == "hybrid"])
    (band,) = figure.axes[0].collections
    line = data_lines(figure)["hybrid, Exponential"]
    single = np.array([row["frechet"] for row in records() if row["model"] == "hybrid"])
    assert np.allclose(line.get_ydata(), single)  # the median of a half, one and four
    low, high = band.get_paths()[0].vertices[:, 1].min(), band.get_paths()[0].vertices[:, 1].max()
    assert low == pytest.approx(0.5 * single.min())
    assert high == pytest.approx(4 * single.max())
    assert same_color(band.get_facecolor()[0][:3], palette.COLOURS["hybrid"])


def test_other_axes_and_given_axes():
    figure = Figure(figsize=(12, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    assert viz.quality_curves(records(), x="ms_per_image", y="curvature", ax=left) is figure
    viz.quality_curves([dict(row, mine=3.0) for row in records()], y="mine", ax=right)
    assert (left.get_xlabel(), left.get_ylabel()) == ("milliseconds per image", "curvature C")
    assert right.get_ylabel() == "mine"
    is_clear(figure)


def test_tick_labels_are_plain_numbers():
    figure = viz.quality_curves(records())
    figure.draw_without_rendering()
    (ax,) = figure.axes
    assert [tick for tick in ax.get_xticks() if 1 <= tick <= 250] == [1, 2, 5, 10, 20, 50, 100, 200]
    shown = {label.get_text() for label in ax.get_xticklabels()}
    assert {"1", "10", "200"} <= shown
    narrow = Figure(figsize=(3, 3), layout="constrained")
    viz.quality_curves(records(), ax=narrow.subplots())
    assert 2 not in narrow.axes[0].get_xticks()  # no room but for decades
    assert 10 in narrow.axes[0].get_xticks()


@pytest.mark.parametrize(
    ("rows", "keywords", "error", "message"),
    [
        ([], {}, ValueError, "no records to draw"),
        ({"model": 1}, {}, TypeError, "sequence of mappings, got dict"),
        ([{"model": "flow", "frechet": 1}], {}, ValueError, "record 0 has no 'sampler' and no 'evaluations'"),
        ([dict(records()[0], frechet=0.0)], {}, ValueError, r"frechet of record 0 \(flow, Exponential\).*got 0.0"),
        ([dict(records()[0], frechet=None)], {}, ValueError, "must be a positive number .* got None"),
        ([dict(records()[0], evaluations=math.nan)], {}, ValueError, "evaluations of record 0 .* got nan"),
        (records(), {"floor": -1.0}, ValueError, "floor must be a positive number"),
        (records(), {"y": "kid"}, ValueError, "record 0 has no 'kid'; its keys are"),
    ],
)
def test_quality_curves_refuse(rows: object, keywords: dict, error: type, message: str):
    with pytest.raises(error, match=message):
        viz.quality_curves(rows, **keywords)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.01, 0.3), st.integers(0, 100))
def test_spread_is_the_nearest_arrangement(heights: list[float], gap: float, seed: int):
    result = labels.spread(heights, gap)
    order = np.argsort(heights, kind="stable")
    assert (np.diff(np.array(result)[order]) >= gap - 1e-9).all()
    cost = sum((a - b) ** 2 for a, b in zip(result, heights, strict=True))
    # No other arrangement in this order with these gaps is nearer.
    rng = np.random.default_rng(seed)
    for size in (0.01, 0.3):
        other = np.array(result)[order] + size * rng.normal(size=len(heights))
        other[1:] = np.maximum.accumulate(other - gap * np.arange(len(heights)))[1:] + gap * np.arange(1, len(heights))
        assert ((other - np.array(heights)[order]) ** 2).sum() >= cost - 1e-9


def test_spread_by_hand():
    assert labels.spread([0.0, 1.0, 0.5], 0.4) == [0.0, 1.0, 0.5]
    assert labels.spread([0.5, 0.5], 0.2) == pytest.approx([0.4, 0.6])
    assert labels.spread([0.9, 0.1, 0.1, 0.1], 0.1) == pytest.approx([0.9, 0.0, 0.1, 0.2])


# Loss


@dataclass
class Row:
    step: int
    loss: float
    lr: float = 0.001


def test_loss_curve_reads_whatever_a_run_left(tmp_path: Path):
    losses = [4.0, 2.0, 1.0]
    rows = [{"step": i, "loss": loss, "lr": 0.1 * i} for i, loss in enumerate(losses, start=1)]
    (tmp_path / "log.csv").write_text("step,loss\n1,4.0\n2,2.0\n3,1.0\n")
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for log in (
        losses,
        rows,
        [Row(i + 1, v) for i, v in enumerate(losses)],
        tmp_path / "log.csv",
        str(tmp_path / "log.jsonl"),
    ):
        figure = viz.loss_curve(log, title="Loss")
        (ax,) = figure.axes
        assert [line.get_label() for line in ax.lines] == ["_logged", "loss"]
        for line in ax.lines:  # three rows: a window of one, so that both lines are the losses
            assert line.get_xdata().tolist() == [1, 2, 3]
            assert line.get_ydata().tolist() == losses
        assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_yscale()) == ("step", "loss", "log")
        assert ax.get_title("left") == "Loss"
        assert same_color(ax.lines[1].get_color(), palette.COLOURS["flow"])
        assert not ax.texts
    assert viz.loss_curve(rows, y="lr").axes[0].lines[0].get_ydata().tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_the_smoothed_line_is_a_running_mean():
    losses = (1 + normal(200).abs()).tolist()
    smooth = viz.loss_curve(losses).axes[0].lines[1].get_ydata()
    assert smooth[:40] == pytest.approx(losses[:20] + [losses[i] for i in range(20, 39)] + [sum(losses[38:40]) / 2])
    for i in (60, 150, 199):
        window = (i + 1) // 20
        assert smooth[i] == pytest.approx(sum(losses[i + 1 - window : i + 1]) / window)


def test_several_runs_are_named_at_their_ends():
    figure = viz.loss_curve({"flow": [3.0, 2.0, 1.0], "diffusion": [2.0, 1.0, 1.0, 1.0], "mine": [5.0, 4.0]})
    (ax,) = figure.axes
    assert [text.get_text() for text in ax.texts] == ["flow", "diffusion", "mine"]
    colours = [line.get_color() for line in ax.lines if line.get_label() in ("flow", "diffusion", "mine")]
    assert colours == [palette.COLOURS["flow"], palette.COLOURS["diffusion"], palette.OTHERS[0]]
    assert ax.get_xlim() == (0, 4)
    is_clear(figure)


def test_losses_below_zero_are_drawn_on_a_linear_axis():
    assert viz.loss_curve([1.0, -1.0]).axes[0].get_yscale() == "linear"


@pytest.mark.parametrize(
    ("log", "error", "message"),
    [
        ([], ValueError, "log has no rows"),
        ({}, ValueError, "no log to draw"),
        (3.0, TypeError, "must be rows, losses, or the path of a .csv or .jsonl file, got float"),
        ([{"step": 1}], ValueError, "row 0 of log has no 'loss'"),
        ([{"step": 1, "loss": "much"}], ValueError, "row 0 of log has 'much' for 'loss', needs a number"),
        ([1.0, math.nan], ValueError, "row 1 of log holds a value that is not finite: step 2, loss nan"),
        ({"flow": [Row(1, math.inf)]}, ValueError, "row 0 of log 'flow' .* loss inf"),
        ("log.txt", ValueError, "log must end in .csv or .jsonl, got 'log.txt'"),
    ],
)
def test_loss_curve_refuses(log: object, error: type, message: str):
    with pytest.raises(error, match=message):
        viz.loss_curve(log)


# Colours


def test_a_model_has_one_colour():
    names = ["diffusion, DDIM", "Flow (20 steps)", "mine", "hybrid", "flow", "yours"]
    assert viz.palette.colours(names) == {
        "diffusion, DDIM": palette.COLOURS["diffusion"],
        "Flow (20 steps)": palette.COLOURS["flow"],
        "mine": palette.OTHERS[0],
        "hybrid": palette.COLOURS["hybrid"],
        "flow": palette.COLOURS["flow"],
        "yours": palette.OTHERS[1],
    }
    assert len({*palette.COLOURS.values(), *palette.OTHERS}) == len(palette.COLOURS) + len(palette.OTHERS)
    assert len(palette.MARKERS) == len(palette.DASHES)


# Out of the figure


def test_png_and_data_uri():
    figure = viz.grid(normal(4, 8, 8))
    png = viz.to_png(figure)
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert b"Software" not in png
    assert png == viz.to_png(viz.grid(normal(4, 8, 8)))
    wide = [int.from_bytes(viz.to_png(figure, dpi=dpi)[16:20], "big") for dpi in (100, 200)]
    assert wide[1] == 2 * wide[0] == int.from_bytes(png[16:20], "big")
    uri = viz.to_data_uri(figure, dpi=100)
    head, data = uri.split(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(data) == viz.to_png(figure, dpi=100)
    with pytest.raises(ValueError, match="dpi must be above 0, got 0"):
        viz.to_png(figure, dpi=0)


def test_notebooks_show_figures():
    figure = viz.loss_curve([2.0, 1.0])
    png, size = figure._repr_png_()
    assert png == viz.to_png(figure)
    assert size == {"width": 700, "height": 380}
    formatters = pytest.importorskip("IPython.core.formatters")
    shown, about = formatters.DisplayFormatter().format(figure)
    assert shown["image/png"] == png
    assert about["image/png"] == size


def test_text_is_measured():
    figure = Figure(dpi=100)
    for text, bold in (("network evaluations", False), ("diffusion, DDIM", True)):
        drawn_text = figure.text(0, 0, text, fontsize=12, fontweight="bold" if bold else "normal")
        figure.draw_without_rendering()
        expected = drawn_text.get_window_extent().width
        assert canvas.text_width(text, 12, bold=bold) == pytest.approx(expected, abs=4)
    assert canvas.text_width(" ", 12) == 0


def test_mosaic_of_one():
    assert images.mosaic(np.zeros((1, 2, 3, 3), np.uint8), columns=4, scale=2, gap=3).shape == (4, 6, 3)


SCRIPT = """
import sys, torch
import genmatch as gm
calls = [
    lambda: gm.viz.grid(torch.zeros(2, 8, 8), title="t"),
    lambda: gm.viz.grid(torch.zeros(2, 8, 8), row_labels=["a"], columns=2),
    lambda: gm.viz.density(torch.randn(9, 2), torch.randn(3, 4, 2)),
    lambda: gm.viz.curvature_histogram({"flow": 1 + torch.rand(9)}),
    lambda: gm.viz.quality_curves([dict(model="flow", sampler="RK4", evaluations=1, frechet=1.0)]),
    lambda: gm.viz.loss_curve({"flow": [1.0, 2.0]}),
    lambda: gm.viz.loss_curve([1.0, 2.0], ax=1),
]
"""


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_without_matplotlib_the_error_says_what_to_install():
    code = """
sys.modules["matplotlib"] = None
for call in calls:
    try:
        call()
    except ImportError as error:
        print(type(error).__name__, error)
"""
    message = "ImportError genmatch.viz draws with matplotlib: pip install genmatch[plot]"
    assert run(SCRIPT + code).splitlines() == [message] * 7


def test_nothing_global_is_touched():
    code = """
import matplotlib
settings = lambda: {key: matplotlib.rcParams[key] for key in matplotlib.rcParams if key != "backend"}
before = settings()  # without the backend: to look at it chooses one
for call in calls[:-1]:
    gm.viz.to_png(call())
print("matplotlib.pyplot" in sys.modules, before == settings())
"""
    assert run(SCRIPT + code).split() == ["False", "True"]
