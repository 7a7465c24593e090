"""Command line of the experiments: ``python -m benchmarks.robustness`` from the root of a checkout.

Each experiment writes its numbers as JSON and its figures as PNG. In full they take 15 to 25 minutes on two CPU cores,
half of it for training, which is kept in ``--cache`` and not repeated.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .._interleave import RESULTS, save, versions
from . import density, drift, hybrids, initial, network, quantised, state_noise
from .figures import FIGURES, to_png
from .record import Scale

__all__ = ["EXPERIMENTS", "main"]

ROOT = Path(__file__).parents[2]
EXPERIMENTS: dict[str, Callable[[Scale], dict[str, Any]]] = {
    "E1": density.run,
    "E2": drift.run,
    "E3": network.run,
    "E4": initial.run,
    "E5": quantised.run,
    "hybrids": hybrids.run,
    "noise": state_noise.run,
}
PACKAGES = ("genmatch", "torch", "numpy", "scipy", "scikit-learn")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run experiments, write their results, draw their figures."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.robustness",
        description="How errors pass through flows and diffusions.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=tuple(EXPERIMENTS),
        default=list(EXPERIMENTS),
        metavar="NAME",
        help=f"which of {', '.join(EXPERIMENTS)}",
    )
    parser.add_argument("--smoke", action="store_true", help="a rehearsal of seconds, whose numbers mean nothing")
    parser.add_argument("--draw", action="store_true", help="draw the figures of results that are there")
    parser.add_argument("--out", type=Path, default=RESULTS / "robustness", help="folder of the results")
    parser.add_argument("--figures", type=Path, default=ROOT / "docs/_static/robustness", help="folder of the figures")
    parser.add_argument("--cache", type=Path, default=ROOT / "runs/robustness", help="folder of trained weights")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    args = parser.parse_args(arguments)
    if args.smoke and any(getattr(args, name) == parser.get_default(name) for name in ("out", "figures", "cache")):
        parser.error("--smoke would overwrite the real results: give --out, --figures and --cache")
    scale = Scale(smoke=args.smoke, progress=not args.quiet, cache=args.cache)
    for name in args.only:
        if not args.draw:
            begin = time.perf_counter()
            found = EXPERIMENTS[name](scale)
            command = f"python -m benchmarks.robustness --only {name}"
            about = {"command": command, "smoke": args.smoke, "seconds": round(time.perf_counter() - begin, 1)}
            save(name, {**about, "versions": versions(*PACKAGES), **found}, args.out)
        results = json.loads((args.out / f"{name}.json").read_text())
        args.figures.mkdir(parents=True, exist_ok=True)
        for title, figure in FIGURES[name].items():
            (args.figures / f"{title}.png").write_bytes(to_png(figure(results)))
        if not args.quiet:
            print(f"{name}: {results['seconds']:.0f} s, {args.out / name}.json")


if __name__ == "__main__":
    main()
