"""Command line: ``python -m benchmarks.papers NAME ...`` from the root of a checkout."""

from __future__ import annotations

import argparse
import importlib
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from .._interleave import RESULTS, save, versions
from .pages import fill
from .scale import ROOT, SIZES, Scale

__all__ = ["STUDIES", "main"]

STUDIES = {
    "efficiency": "few evaluations, straight paths: flow against diffusion on MNIST (arXiv 2511.19379)",
    "complexity": "when higher-order solvers pay, accelerated diffusion, and what the architecture does",
    "superposition": "equivalence, hybrids, state-dependent noise, jumps (arXiv 2412.11024, 2410.20587)",
    "examples": "worked examples in one dimension, and costs as ratios",
}
PACKAGES = ("genmatch", "torch", "numpy", "scipy", "scikit-learn")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run studies, write their results, draw their figures.

    Each study is a module with ``run(scale) -> dict`` of what JSON holds, and ``FIGURES``, functions of such results by
    the name of the picture.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.papers",
        description="; ".join(f"{name}: {what}" for name, what in STUDIES.items()),
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(STUDIES)}; all by default")
    parser.add_argument("--size", choices=SIZES, default="cpu", help="smoke: seconds, whose numbers mean nothing")
    parser.add_argument("--draw", action="store_true", help="draw the figures of results that are there")
    parser.add_argument("--data", type=Path, default=Scale.data, help="folder of mnist and cifar10")
    parser.add_argument("--out", type=Path, default=RESULTS / "papers", help="folder of the results")
    parser.add_argument("--figures", type=Path, default=ROOT / "docs/_static/papers", help="folder of the figures")
    parser.add_argument("--pages", type=Path, default=None, help="write the tables into the pages of this folder")
    parser.add_argument("--cache", type=Path, default=Scale.cache, help="folder of trained weights")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    args = parser.parse_args(arguments)
    if unknown := sorted(set(args.names) - set(STUDIES)):
        parser.error(f"no study is called {', '.join(unknown)}: choose from {', '.join(STUDIES)}")
    if args.size == "smoke" and any(getattr(args, name) == parser.get_default(name) for name in ("out", "figures")):
        parser.error("--size smoke would overwrite the real results: give --out and --figures")
    scale = Scale(args.size, args.data, args.cache, args.device, not args.quiet)
    for name in args.names or STUDIES:
        study = importlib.import_module(f"{__package__}.{name}")
        if not args.draw:
            begin = time.perf_counter()
            found = study.run(scale)
            about = {
                "command": f"python -m benchmarks.papers {name} --size {args.size}",
                "size": args.size,
                "seconds": round(time.perf_counter() - begin, 1),
                "versions": versions(*PACKAGES),
            }
            save(name, {**about, **found}, args.out)
        draw(study, args.out / f"{name}.json", args.figures)
        if args.pages is not None:
            tables = importlib.import_module(f"{__package__}.{name}_tables").TABLES
            results = json.loads((args.out / f"{name}.json").read_text())
            fill(args.pages / f"{name}.md", {title: table(results) for title, table in tables.items()})
        if not args.quiet:
            print(f"{name}: {args.out / name}.json")


def draw(study, results: Path, folder: Path) -> None:
    """Draw a study's figures from its results."""
    from genmatch.viz import to_png

    found = json.loads(results.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    for title, figure in study.FIGURES.items():
        (folder / f"{title}.png").write_bytes(to_png(figure(found)))


if __name__ == "__main__":
    main()
