"""The benchmarks beside other libraries: ``python benchmarks`` from the root of a checkout, or ``make bench``.

Every topic runs in a process of its own and prints its table as it comes: what is measured, how on our side, how and
with which version on the other, and the other's time over ours, as a median over rounds in which all take turns, with
the least and the most. Above 1 ours is faster; where it is not, the line says so. A library that is not installed is a
line that says so. The tables are saved as JSON, by machine and date; a topic that is run again on the same day replaces
what it was. The exit status is 1 if a topic failed; the others are saved all the same.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from _interleave import CLOCKS, RESULTS, machine_name, origin, versions
from _page import draw
from _suite import STUDIES, TOPICS

__all__ = ["main"]

ROOT = Path(__file__).parents[1]
PACKAGES = (
    "genmatch",
    "torch",
    "flow_matching",
    "torchcfm",
    "diffusers",
    "k-diffusion",
    "azula",
    "POT",
    "torchdiffeq",
    "scipy",
)


def run(topic: str, args: argparse.Namespace) -> dict[str, Any]:
    """Measure a topic in a process of its own: its rows, and why it failed if it did."""
    level = "smoke" if args.smoke else "quick" if args.quick else "full"
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "rows"
        command = [sys.executable, str(Path(__file__).parent / "_topic.py"), topic, level, str(args.rounds)]
        done = subprocess.run([*command, str(args.threads), str(lines), args.clock], check=False)
        records = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    found: dict[str, Any] = {"title": records.pop(0)["title"] if records else topic}
    about = origin()
    found |= {
        "commit": about["commit"],
        "threads": args.threads,
        "clock": args.clock,
        "seconds": round(time.perf_counter() - begin, 1),
    }
    if done.returncode:
        found["error"] = f"ended with exit status {done.returncode}; what it printed says why"
    return {**found, "rows": records}


def store(topic: str, found: dict[str, Any], args: argparse.Namespace) -> Path:
    """Put a topic into the file of this machine and day, but never a failed one in the place of a measured one."""
    about = origin()
    about["machine"]["threads"] = args.threads
    folder = args.out / machine_name(about["machine"])
    folder.mkdir(parents=True, exist_ok=True)
    path = (
        folder / f"{about['date']}{'' if not (args.quick or args.smoke) else '-smoke' if args.smoke else '-quick'}.json"
    )
    topics = json.loads(path.read_text())["topics"] if path.exists() else {}
    if "error" in found and "error" not in topics.get(topic, found):
        return path  # what was measured before stays
    topics = {name: {**topics, topic: found}[name] for name in TOPICS if name in {*topics, topic}}
    content = {**about, "versions": versions(*PACKAGES), "topics": topics}
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run topics, print and save them."""
    args = parse(arguments)
    if args.list:
        width = max(map(len, [*TOPICS, *STUDIES]))
        print("topics, for --only:", *(f"  {name:{width}}  {file}.py" for name, file in TOPICS.items()), sep="\n")
        print("\nstudies apart:", *(f"  {command:{width}}  {what}" for command, what in STUDIES.items()), sep="\n")
        return 0
    if args.draw:
        print(f"drawn from {draw(args.out, args.docs)}")
        return 0
    failed, path = [], None
    for number, topic in enumerate(args.only, 1):
        print(f"[{number}/{len(args.only)}] {topic}", flush=True)
        found = run(topic, args)
        path = store(topic, found, args)
        print(f"  {found['seconds']:.0f} s", flush=True)
        if "error" in found:
            failed.append(topic)
    print(f"saved in {path}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    topics = ", ".join(TOPICS)
    parser.add_argument("--only", nargs="+", choices=tuple(TOPICS), default=list(TOPICS), metavar="TOPIC", help=topics)
    parser.add_argument("--quick", action="store_true", help="smaller and fewer rounds, under two minutes")
    parser.add_argument("--smoke", action="store_true", help="a rehearsal, whose numbers mean nothing: needs --out")
    parser.add_argument("--list", action="store_true", help="list the topics, and the studies that are run apart")
    parser.add_argument("--draw", action="store_true", help="draw docs/benchmarks.md from the newest results")
    parser.add_argument("--rounds", type=int, default=0, help="rounds of every comparison; by default each its own")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    parser.add_argument("--clock", choices=tuple(CLOCKS), help="by default cpu with one thread and no GPU, else wall")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of the page that --draw writes")
    args = parser.parse_args(arguments)
    for name, least in (("rounds", 0), ("threads", 1)):
        if getattr(args, name) < least:
            parser.error(f"--{name} must be at least {max(least, 1)}, got {getattr(args, name)}")
    if args.clock is None:
        args.clock = "cpu" if args.threads == 1 and not torch.cuda.is_available() else "wall"
    if args.smoke and args.out == RESULTS:
        parser.error("--smoke would save numbers that mean nothing beside the real ones: give --out")
    return args


if __name__ == "__main__":
    sys.exit(main())
