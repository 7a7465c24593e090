"""Cost and memory against size: batch, image side, dimension, vocabulary, steps, with fitted exponents.

For each curve the sizes take turns, round after round, and every time is told as a multiple of that of the smallest
size. The exponent is the slope of log time against log size by least squares, with Student's 95 % interval of the
slope; what does not grow with the size (calls, checks) bends a curve at its lower end, so the slope between the two
largest sizes stands beside it. Memory is the most that a call holds at a time (``_memory.py`` says how it is counted),
its exponent fitted alike.

Run it as ``python benchmarks/scaling.py [--save]``; it needs no other library.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _memory import peak_bytes  # before torch: it quietens the profiler's log

import torch  # isort: skip
import torch.nn.functional as F  # isort: skip
from _interleave import RESULTS, interleave, machine_name, origin, save, set_clock, versions
from _page import replace_between
from ctmc_step import ours as chain
from ctmc_step import problem
from ot_pairing import ours as pairing
from sampling_overhead import Negative
from scipy import stats
from torch import Tensor, nn

import genmatch as gm

__all__ = ["CURVES", "Curve", "draw", "exponent", "measure", "newest", "table"]

ROOT = Path(__file__).parents[1]
Run = Callable[[], object]


@dataclass(frozen=True)
class Curve:
    """A cost as a function of one size: the sizes, and what is run at each."""

    axis: str
    name: str
    sizes: Sequence[int]
    make: Callable[[int], Run]


def unet(batch: int, side: int, *, train: bool) -> Run:
    torch.manual_seed(0)
    network = gm.nn.UNet(3, width=32, multipliers=(1, 2), blocks=1, groups=4)
    x, t = torch.randn(batch, 3, side, side), torch.rand(batch)
    return step(network, x, t) if train else evaluate(network, x, t)


def dit(side: int) -> Run:
    torch.manual_seed(0)
    network = gm.nn.DiT(3, (side, side), patch=2, width=96, depth=2, heads=3)
    return evaluate(network, torch.randn(2, 3, side, side), torch.rand(2))


def evaluate(network: nn.Module, x: Tensor, t: Tensor) -> Run:
    network = network.eval()

    def run() -> None:
        with torch.no_grad():
            network(x, t)

    return run


def step(network: nn.Module, x: Tensor, t: Tensor) -> Run:
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    target = torch.randn_like(x)

    def run() -> None:
        optimiser.zero_grad()
        F.mse_loss(network(x, t), target).backward()
        optimiser.step()

    return run


def loop(shape: tuple[int, ...], steps: int) -> Run:
    flow = gm.Flow(gm.predict.Velocity(Negative(), gm.GaussianPath()))
    x = torch.randn(shape)
    return lambda: gm.sample(flow, x, steps=steps, solver=gm.solvers.Euler())


def density(trace: Callable[[], Any], dimension: int) -> Run:
    torch.manual_seed(0)
    flow = gm.Flow(gm.predict.Velocity(gm.nn.MLP(dimension, width=128, depth=2), gm.GaussianPath()))
    x, divergence = torch.randn(32, dimension), trace()
    return lambda: gm.log_prob(flow, x, divergence=divergence, solver=gm.solvers.Heun(), steps=4, seed=0)


def pairs(batch: int, dimension: int) -> Run:
    torch.manual_seed(0)
    return pairing(torch.randn(batch, dimension), torch.rand(batch, dimension) ** 3)


def tokens(share: float, vocabulary: int) -> Run:
    logits, x = problem(256, vocabulary)
    sampler = chain(logits)
    return lambda: sampler(x, [0.0, share])


SIDES, DIMENSIONS, VOCABULARIES = (8, 16, 32, 64), (4, 8, 16, 32, 64, 128), (1024, 4096, 16384, 65536)
LOOP = "sampling loop without a network"
CURVES = (
    Curve("batch", "U-Net, forward, 32 x 32", (2, 4, 8, 16, 32), lambda n: unet(n, 32, train=False)),
    Curve("batch", "U-Net, training step, 16 x 16", (2, 4, 8, 16, 32), lambda n: unet(n, 16, train=True)),
    Curve("batch", f"{LOOP}, 3 x 32 x 32", (4, 16, 64, 256), lambda n: loop((n, 3, 32, 32), 10)),
    Curve("batch", "optimal transport, 2 dimensions", (64, 128, 256, 512, 1024), lambda n: pairs(n, 2)),
    Curve("image side", "U-Net, forward, batch 4", SIDES, lambda n: unet(4, n, train=False)),
    Curve("image side", "U-Net, training step, batch 4", SIDES, lambda n: unet(4, n, train=True)),
    Curve("image side", "DiT, forward, batch 2, patches of 2", SIDES, dit),
    Curve("dimension", "log_prob, exact divergence", DIMENSIONS, lambda n: density(gm.likelihood.Exact, n)),
    Curve("dimension", "log_prob, Hutchinson", DIMENSIONS, lambda n: density(gm.likelihood.Hutchinson, n)),
    Curve("dimension", "optimal transport, batch 256", (2, 16, 128, 1024), lambda n: pairs(256, n)),
    Curve("vocabulary", "token step, 5 % of 256 positions jump", VOCABULARIES, lambda n: tokens(0.05, n)),
    Curve("vocabulary", "token step, 99 % of 256 positions jump", VOCABULARIES, lambda n: tokens(0.99, n)),
    Curve("steps", f"{LOOP}, 64 x 2", (8, 16, 32, 64, 128), lambda n: loop((64, 2), n)),
    Curve("steps", f"{LOOP}, 64 x 3 x 32 x 32", (8, 16, 32, 64), lambda n: loop((64, 3, 32, 32), n)),
)


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> tuple[float, float, float]:
    """Slope of log cost against log size by least squares, and its 95 % interval."""
    fit = stats.linregress([math.log(n) for n in sizes], [math.log(cost) for cost in costs])
    half = float(stats.t.ppf(0.975, len(sizes) - 2) * fit.stderr) if len(sizes) > 2 else math.inf
    return float(fit.slope), float(fit.slope) - half, float(fit.slope) + half


def measure(curve: Curve, rounds: int, least: float = 0.01) -> dict[str, Any]:
    """Times relative to the smallest size, peak bytes, and their exponents."""
    runs = {str(n): curve.make(n) for n in curve.sizes}
    times = interleave(runs, rounds, least)
    base = statistics.median(times[str(curve.sizes[0])])
    middle = [statistics.median(times[str(n)]) / base for n in curve.sizes]
    spread = [[min(times[str(n)]) / base, max(times[str(n)]) / base] for n in curve.sizes]
    peaks = [peak_bytes(run) for run in runs.values()]
    return {
        "axis": curve.axis,
        "name": curve.name,
        "sizes": list(curve.sizes),
        "time": [float(f"{t:.4g}") for t in middle],
        "spread": [[float(f"{t:.4g}") for t in pair] for pair in spread],
        "time_exponent": [round(value, 3) for value in exponent(curve.sizes, middle)],
        "time_exponent_last": round(_last(curve.sizes, middle), 3),
        "bytes": peaks,
        "memory_exponent": [round(value, 3) for value in exponent(curve.sizes, peaks)],
        "memory_exponent_last": round(_last(curve.sizes, peaks), 3),
    }


def _last(sizes: Sequence[float], costs: Sequence[float]) -> float:
    return math.log(costs[-1] / costs[-2]) / math.log(sizes[-1] / sizes[-2])


def line(curve: Mapping[str, Any]) -> str:
    """A curve as a row of the page's table."""
    time, memory = curve["time_exponent"], curve["memory_exponent"]
    cells = (
        curve["axis"],
        curve["name"],
        f"{curve['sizes'][0]:,} to {curve['sizes'][-1]:,}",
        f"{curve['time'][-1]:.3g}",
        f"{two(time[0])} ({two(time[1])}, {two(time[2])})",
        two(curve["time_exponent_last"]),
        f"{curve['bytes'][-1] / 2**20:.3g} MiB",
        two(memory[0]),
        two(curve["memory_exponent_last"]),
    )
    return f"| {' | '.join(cells)} |"


def two(value: float) -> str:
    """Two decimals, and no negative zero."""
    return f"{round(value, 2) + 0.0:.2f}"


def table(results: Mapping[str, Any]) -> str:
    """The exponents as Markdown."""
    machine = results["machine"]
    head = ("against", "of what", "sizes", "time, largest / smallest", "exponent (95 %)", "at the end", "peak memory",
            "exponent", "at the end")  # fmt: skip
    about = (
        f"Measured on {results['date']}: {machine['processor']}, {machine['threads']} thread, torch {machine['torch']}."
    )
    rows = [line(curve) for curve in results["curves"]]
    return "\n".join([about, "", f"| {' | '.join(head)} |", "|" + "---|" * len(head), *rows])


def figure(results: Mapping[str, Any]) -> bytes:
    """A row for each axis, time at the left and memory in the middle, names and last slopes at the right, as a PNG."""
    from genmatch.viz import canvas
    from genmatch.viz.palette import COLOURS, INK, MARKERS, OTHERS

    colours = (*COLOURS.values(), *OTHERS)
    axes = list(dict.fromkeys(curve["axis"] for curve in results["curves"]))
    drawing = canvas.new_figure(1000, 215 * len(axes))
    for row, axis in enumerate(axes):
        curves = [curve for curve in results["curves"] if curve["axis"] == axis]
        panels = [drawing.add_subplot(len(axes), 3, 3 * row + column + 1) for column in range(3)]
        names = []
        for i, curve in enumerate(curves):
            style = {"color": colours[i], "marker": MARKERS[i], "markersize": 4.5, "linewidth": 1.5}
            low, high = zip(*curve["spread"], strict=True)
            panels[0].vlines(curve["sizes"], low, high, color=colours[i], linewidth=1, alpha=0.5)
            panels[0].plot(curve["sizes"], curve["time"], **style)
            panels[1].plot(curve["sizes"], [value / curve["bytes"][0] for value in curve["bytes"]], **style)
            slopes = f"time {two(curve['time_exponent_last'])}, memory {two(curve['memory_exponent_last'])}"
            names += panels[2].plot([], [], label=f"{curve['name']}\n{slopes}", **style)
        for ax, what in zip(panels, ("time", "peak memory"), strict=False):
            _axes(ax, f"{what} against {axis}", curves)
        panels[2].axis("off")
        title = "slope between the two largest sizes" if row == 0 else None
        legend = panels[2].legend(handles=names, fontsize=8, frameon=False, loc="center left", title=title)
        legend.get_title().set(fontsize=8.5, fontweight="bold", color=INK)
    return canvas.to_png(drawing, dpi=1.5 * canvas.DPI)


def _axes(ax: Any, title: str, curves: Sequence[Mapping[str, Any]]) -> None:
    """Logarithmic axes with a line for what is proportional to the size, from each curve's start."""
    from genmatch.viz import canvas
    from genmatch.viz.palette import INK, MUTED
    from genmatch.viz.ticks import label_logarithmic

    canvas.style(ax)
    sizes = [size for curve in curves for size in curve["sizes"]]
    for first, last in {(curve["sizes"][0], curve["sizes"][-1]) for curve in curves}:
        ax.plot((first, last), (1, last / first), color=MUTED, linewidth=0.9, linestyle=":", zorder=0)
    ax.set(xscale="log", yscale="log", xlim=(min(sizes) / 1.2, max(sizes) * 1.2))
    ax.set_ylim(min(0.5, ax.get_ylim()[0]), max(4.0, ax.get_ylim()[1]))
    ax.set_title(title, loc="left", fontsize=9.5, color=INK)
    label_logarithmic(ax.xaxis)
    label_logarithmic(ax.yaxis)


def newest(folder: Path) -> Path:
    """The newest results of any machine."""
    files = sorted(folder.glob("*/scaling-????-??-??.json"), key=lambda path: (path.stem, path.parent.name))
    if not files:
        raise FileNotFoundError(f"no results in {folder}: run python benchmarks/scaling.py --save")
    return files[-1]


def draw(folder: Path, docs: Path) -> Path:
    """Write the figure and the table of the newest results into the docs; the file that they are from."""
    path = newest(folder)
    results = json.loads(path.read_text())
    (docs / "_static/benchmarks").mkdir(parents=True, exist_ok=True)
    (docs / "_static/benchmarks/scaling.png").write_bytes(figure(results))
    page = docs / "scaling.md"
    page.write_text(replace_between(page.read_text(), table(results)))
    return path


def curves(only: str) -> Iterator[Curve]:
    yield from (curve for curve in CURVES if only in f"{curve.axis}: {curve.name}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="run the curves whose axis or name contains this")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save", action="store_true", help="write the results, by machine and date, and draw the page")
    parser.add_argument("--draw", action="store_true", help="draw the page of the newest results")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of the page")
    args = parser.parse_args(arguments)
    if args.draw:
        print(f"drawn from {draw(args.out, args.docs)}")
        return
    if args.save and args.only:
        parser.error("--save with --only would lose the other curves")
    torch.set_num_threads(args.threads)
    set_clock("cpu" if args.threads == 1 and not torch.cuda.is_available() else "wall")
    found = []
    for curve in curves(args.only):
        found.append(measure(curve, args.rounds))
        print(line(found[-1]), flush=True)
    if args.save:
        about = origin()
        name = f"scaling-{about['date']}"
        content = {"versions": versions("genmatch", "torch", "scipy"), "rounds": args.rounds, "curves": found}
        print(f"saved in {save(name, content, args.out / machine_name(about['machine']))}")


if __name__ == "__main__":
    sys.exit(main())
