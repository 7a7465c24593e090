"""The page of the demonstration: figures, tables, and what the numbers say."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import viz

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["summarise", "write_report"]

Record = Mapping[str, Any]
Key = tuple[str, str, int]
MAIN = (("flow", "Euler"), ("diffusion", "DDIM"), ("diffusion", "DDPM"), ("hybrid", "Exponential"))
SHOWN = (1, 2, 5, 10, 20, 100)
ACROSS = 10

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; color: #1c2430; background: #fff;
       max-width: 58rem; margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin-bottom: .3rem; } h2 { font-size: 1.2rem; margin-top: 2.6rem; }
p.lead { color: #55606e; margin-top: 0; } ul.verdict { font-size: 1.06rem; padding-left: 1.2rem; }
ul.verdict li { margin: .45rem 0; }
figure { margin: 1.2rem 0; } figure img { max-width: 100%; height: auto; }
figcaption { color: #55606e; font-size: .9rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .93rem; }
th, td { padding: .28rem .7rem; text-align: right; border-bottom: 1px solid #e3e7ec; }
th:first-child, td:first-child { text-align: left; } thead th { border-bottom: 2px solid #9aa5b1; font-weight: 600; }
td.best { font-weight: 700; } code { background: #f2f4f7; padding: .1rem .3rem; border-radius: 3px; font-size: .9em; }
.scroll { overflow-x: auto; }
"""


def summarise(results: Mapping[str, Any]) -> list[str]:
    """What the numbers say, as sentences made from them."""
    frechet = {(r["model"], r["sampler"], r["steps"]): r["frechet"] for r in results["records"]}
    curved = {(r["model"], r["sampler"], r["steps"]): r["curvature"] for r in results["records"]}
    few, many = 10, 100
    arms = {name: frechet[(*name, few)] for name in MAIN}
    lines = [
        f"At {few} evaluations the Fréchet distances are "
        + ", ".join(f"{_name(name)} {value:.2f}" for name, value in arms.items())
        + f"; real test images stand at {results['floor']:.2f}. The samplers differ, so this ranks no models."
    ]
    lines.append(
        "One diffusion network, two samplers, Fréchet distance at 5, 10 and 100 evaluations: DDIM "
        + ", ".join(f"{frechet['diffusion', 'DDIM', n]:.2f}" for n in (5, few, many))
        + "; ancestral sampling "
        + ", ".join(f"{frechet['diffusion', 'DDPM', n]:.2f}" for n in (5, few, many))
        + ". Where these differ it is the sampler's doing, not the model's."
    )
    lines.append(
        "Same networks, a solver of order 2 (Exponential) in the place of order 1, at 5 evaluations: flow "
        f"{frechet['flow', 'Euler', 5]:.2f} to {frechet['flow', 'Exponential', 5]:.2f}, diffusion "
        f"{frechet['diffusion', 'DDIM', 5]:.2f} to {frechet['diffusion', 'Exponential', 5]:.2f}."
    )
    needed = {name: _first_within(results, name, 1.1) for name in MAIN}
    lines.append(
        "Evaluations to come within 10% of one's own best: "
        + ", ".join(f"{_name(name)} {count}" for name, count in needed.items())
        + "."
    )
    lines.append(
        f"Median curvature at {many} steps (1 is a straight line): "
        + ", ".join(f"{_name(name)} {curved[(*name, many)]:.2f}" for name in MAIN)
        + ". The curvature of the random paths is that of their noise and grows with the steps."
    )
    return lines


def write_report(
    out: Path,
    results: Mapping[str, Any],
    real: Tensor,
    images: Mapping[Key, Tensor],
    curvatures: Mapping[Key, Tensor],
    losses: Mapping[str, Sequence[float]],
) -> Path:
    """Write the figures as PNG and the self-contained ``report.html``; returns its path."""
    figures = {
        "quality": viz.quality_curves(results["records"], floor=results["floor"], floor_label="real test images"),
        "samples": _grids(images),
        "real": viz.grid(real[:40], columns=20),
        "curvature": viz.curvature_histogram({f"{_name(name)}, 100 steps": curvatures[(*name, 100)] for name in MAIN}),
        "loss": viz.loss_curve(losses),
    }
    for name, figure in figures.items():
        (out / f"{name}.png").write_bytes(viz.to_png(figure))
    page = out / "report.html"
    page.write_text(_page(results, {name: viz.to_data_uri(figure) for name, figure in figures.items()}))
    return page


def _page(results: Mapping[str, Any], figures: Mapping[str, str]) -> str:
    e = html.escape
    name = {"digits": "8×8 handwritten digits", "mnist": "MNIST", "cifar10": "CIFAR-10"}[results["data"]]
    verdict = "".join(f"<li>{e(line)}</li>" for line in summarise(results))
    train = results["train_seconds"]
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>genmatch: few steps, flow against diffusion</title><style>{STYLE}</style></head><body>
<h1>Few steps: a flow and a diffusion on {e(name)}</h1>
<p class="lead">The same U-Net of {results["parameters"]:,} weights, trained twice on the same images in the same order
for {results["train_steps"]:,} steps: to predict a velocity (flow matching, straight path) and to predict noise (DDPM,
1000 steps). {results["samples"]} images from every sampler, all from the same noise.</p>
<ul class="verdict">{verdict}</ul>
<h2>Quality against cost</h2>
<figure><img alt="Fréchet distance against network evaluations" src="{figures["quality"]}"><figcaption>Fréchet distance
on 32 features of a classifier trained on the same images ({results["accuracy"]:.1%} of test labels right); lower is
better. The dashed line is the distance of real test images, as many as samples. One seed.</figcaption></figure>
<h2>What it looks like</h2>
<figure><img alt="samples" src="{figures["samples"]}"><figcaption>N evaluations of the network; the same ten starting
noises everywhere.</figcaption></figure>
<figure><img alt="real images" src="{figures["real"]}"><figcaption>Real test images.</figcaption></figure>
<h2>How straight the paths are</h2>
<figure><img alt="histograms of curvature" src="{figures["curvature"]}"><figcaption>Path length over displacement of
single trajectories.</figcaption></figure>
<h2>Fréchet distance</h2>{_table(results["records"], "frechet", ".2f", best=True)}
<h2>Median curvature</h2>{_table(results["records"], "curvature", ".3f")}
<h2>Milliseconds per image</h2>{_table(results["records"], "ms_per_image", ".2f")}
<h2>Euler against RK4 at equal evaluations</h2>{_equal(results["records"])}
<h2>Training</h2>
<figure><img alt="training losses" src="{figures["loss"]}"><figcaption>The two losses measure different things and
cannot be compared. Training took {train["flow"]:.0f} s for the flow and {train["diffusion"]:.0f} s for the
diffusion.</figcaption></figure>
<p>Made by <code>python -m genmatch.demo</code> with seed {results["settings"]["seed"]}, torch {e(results["torch"])},
{results["threads"]} threads, in {results["seconds"]:.0f} s. The numbers are in <code>results.json</code>.</p>
</body></html>
"""


def _table(records: Sequence[Record], key: str, form: str, *, best: bool = False) -> str:
    columns = list(dict.fromkeys((r["model"], r["sampler"]) for r in records if r["sampler"] != "RK4"))
    counts = sorted({r["evaluations"] for r in records if r["sampler"] == "DDPM"})
    cells = {(r["model"], r["sampler"], r["evaluations"]): r[key] for r in records}
    rows = []
    for count in counts:
        values = [cells.get((*column, count)) for column in columns]
        least = min(v for v in values if v is not None) if best else None
        rows.append([str(count), *(_cell(v, form, v is not None and v == least) for v in values)])
    return _html_table(["evaluations", *(f"{m}<br>{s}" for m, s in columns)], rows)


def _equal(records: Sequence[Record]) -> str:
    euler, rk4 = (
        {r["evaluations"]: r["frechet"] for r in records if (r["model"], r["sampler"]) == ("flow", sampler)}
        for sampler in ("Euler", "RK4")
    )
    rows = [
        [str(n), _cell(euler[n], ".2f", euler[n] <= rk4[n]), _cell(rk4[n], ".2f", rk4[n] <= euler[n])]
        for n in sorted(rk4)
    ]
    return _html_table(["evaluations", "Euler", "RK4"], rows)


def _cell(value: float | None, form: str, best: bool) -> str:
    text = "" if value is None else format(value, form)
    return f'<td class="best">{text}</td>' if best else f"<td>{text}</td>"


def _html_table(head: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    body = "".join(f"<tr><td>{first}</td>{''.join(rest)}</tr>" for first, *rest in rows)
    titles = "".join(f"<th>{title}</th>" for title in head)
    return f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'


def _grids(images: Mapping[Key, Tensor]) -> Figure:
    blocks = {}
    for name in MAIN:
        rows = [images[(*name, steps)][:ACROSS] for steps in SHOWN]
        blocks[_name(name)] = torch.cat(rows).clamp(-1, 1).cpu()
    return viz.grid(blocks, columns=ACROSS, row_labels=[f"N = {steps}" for steps in SHOWN], across=2)


def _name(arm: tuple[str, str]) -> str:
    model, sampler = arm
    return {"DDPM": f"{model} (ancestral)", "Exponential": model}.get(sampler, f"{model} ({sampler})")


def _first_within(results: Mapping[str, Any], arm: tuple[str, str], factor: float) -> int:
    own = sorted((r["evaluations"], r["frechet"]) for r in results["records"] if (r["model"], r["sampler"]) == arm)
    best = min(value for _, value in own)
    return next(count for count, value in own if value <= factor * best)
