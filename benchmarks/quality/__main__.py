"""Quality for a given time of training: ``python -m benchmarks.quality`` from the root of a checkout.

A flow of ours and torchcfm's U-Net are trained on MNIST for the same time, five minutes by default, each from three
seeds, and their samples of ten network evaluations are compared with the training images by the Frechet distance of a
classifier's features. Three recipes run: torchcfm's own (its MNIST example), the best of a search around it, and the
best of a search of the same size around ours; then each choice of ours is undone alone (the ablation).

Every run is kept in ``--cache`` and never repeated, so that the work can be cut into pieces: ``--most 2`` trains at
most two runs, and measures what there is. ``--train`` only trains, ``--draw`` only publishes:
figures, and with ``--page docs/quality.md`` the tables of the page. With ``--clock cpu``, the default, the budget is
processor time of one thread: what the wall clock would show on a machine with nothing else to do. On a GPU::

    python -m benchmarks.quality --device cuda --clock wall --budget 600 --out elsewhere
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from tqdm import tqdm

from .budget import CLOCKS
from .figures import draw
from .plans import ABLATION, FINAL, SEARCH, SMOKE, Named, Plan
from .report import collect, keep_pictures, show, store
from .runs import Run, train
from .tables import write
from .task import DATA, load

ROOT = Path(__file__).parents[2]
PLANS = {"search": SEARCH, "ablation": ABLATION, "final": FINAL}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--smoke", action="store_true", help="a rehearsal of seconds, whose numbers mean nothing")
    parser.add_argument("--data", choices=DATA, default="mnist")
    parser.add_argument("--root", type=Path, default=ROOT / "data", help="folder of MNIST's files (%(default)s)")
    parser.add_argument("--plans", nargs="+", choices=PLANS, default=list(PLANS))
    parser.add_argument("--budget", type=float, default=300.0, help="seconds of the final runs (%(default)s)")
    parser.add_argument("--clock", choices=CLOCKS, default="cpu")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to train; a CPU measures")
    parser.add_argument(
        "--most", type=int, default=None, help="train at most this many runs; those that are missing then are left out"
    )
    parser.add_argument("--train", action="store_true", help="train, and measure nothing")
    parser.add_argument("--draw", action="store_true", help="publish the results that are there, and run nothing")
    parser.add_argument("--cache", type=Path, default=ROOT / "runs/quality", help="folder of the runs (%(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results", help="folder of the results")
    parser.add_argument("--figures", type=Path, default=ROOT / "docs/_static/quality", help="folder of the figures")
    parser.add_argument("--page", type=Path, default=None, help="write the tables into this page")
    args = parser.parse_args(arguments)
    if args.smoke and {args.out, args.figures} & {parser.get_default("out"), parser.get_default("figures")}:
        parser.error("a rehearsal must not overwrite results: give --out and --figures")
    if args.device == "cuda" and args.clock == "cpu":
        parser.error("a GPU works while the processor waits: give --clock wall")
    return args


def _runs(plan: Plan, args: argparse.Namespace) -> list[tuple[Named, Run]]:
    """All runs of a plan, seed after seed, so that the sides alternate."""
    seconds = args.budget if plan.seconds is None else plan.seconds
    return [
        (named, Run(named.recipe, seed, seconds, args.clock, args.data))
        for seed in plan.seeds
        for named in plan.recipes
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, measure, print, save and draw."""
    args = parse(arguments)
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # so that compilation counts where it is done
    os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")  # and is never found done already
    warnings.simplefilter("ignore")
    if args.draw:
        publish(args)
        return
    torch.set_num_threads(1 if args.clock == "cpu" else torch.get_num_threads())
    plans = {"final": SMOKE} if args.smoke else {name: PLANS[name] for name in args.plans}
    if args.smoke:
        args.data = "digits"
    task = load(args.data, args.root, args.cache, steps=50) if args.smoke else load(args.data, args.root, args.cache)
    runs = {name: _runs(plan, args) for name, plan in plans.items()}
    done = 0
    for name, group in runs.items():
        for named, run in tqdm(group, desc=name, disable=not sys.stderr.isatty()):
            reason = named.missing()
            if reason:
                print(f"{named.name}: left out, {reason}")
            elif not run.trained(args.cache) and done != args.most:
                record = train(run, task, args.cache, args.device, plans[name].marks)
                done += 1
                print(
                    f"{named.name}, seed {run.seed}: {record['images']} images in {record['spent']:.1f} s", flush=True
                )
    if args.train:
        return
    results = {name: collect(plans[name], group, task, args.cache) for name, group in runs.items()}
    show(results)
    options = {"budget": args.budget, "clock": args.clock, "device": args.device}
    print(f"\nwritten to {store(results, task, args.out, options)}")
    if "final" in runs:
        keep_pictures(runs["final"], task, args.cache)
    if find_spec("matplotlib") is None:
        print("no figures: matplotlib is not installed; --draw draws them where it is")
    else:
        publish(args)


def publish(args: argparse.Namespace) -> None:
    """Draw the figures, and write the tables into the page, of the results that are there."""
    draw(args.out, args.figures, args.cache)
    if args.page is not None:
        write(args.page, json.loads((args.out / "quality.json").read_text()))


if __name__ == "__main__":
    main()
