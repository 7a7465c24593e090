"""What a step of ``gm.training.fit`` costs: beside a loop by hand, torchcfm's recipe, and itself with other options.

The network, the data and the batch are the same for all. ``loop by hand`` is the least a training can do: rows of the
data, noise and times by ``torch.randn`` and ``torch.rand``, a squared error, its gradient, fused AdamW. ``torchcfm`` is
the recipe of its image example: its ConditionalFlowMatcher, Adam, clipping, an average of the weights. ``fit`` does all
of that and reads its losses, with counter-based draws. Seconds are those between the first and the last row of a run,
so that neither set-up nor compilation counts.

Pairings are exact in all libraries; times of the pairing alone are those of ``genmatch.couplings.OT`` and of POT's
``emd`` with its cost matrix.

Run it as ``python benchmarks/training.py [--save] [--only loop pairing assignment compile]``; ``--draw`` writes the
tables of docs/training.md from what was saved.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from _interleave import RESULTS, save, versions
from _suite import Row, Scale, reason
from torch import Tensor, nn

import genmatch as gm

__all__ = ["rows"]

Run = Callable[[], float]  # seconds of what is compared
LR, DECAY, CLIP = 2e-4, 0.999, 1.0


def mlp() -> nn.Module:
    return gm.nn.MLP(2, width=64, depth=3)


def unet(width: int = 16) -> nn.Module:
    return gm.nn.UNet(1, width=width, multipliers=(1, 2), blocks=1, groups=4, heads=2)


def plane(count: int = 10_000) -> Tensor:
    """Points around eight centres on a circle."""
    generator = torch.Generator().manual_seed(0)
    angles = torch.randint(8, (count,), generator=generator) * (math.pi / 4)
    centres = 2 * torch.stack([angles.cos(), angles.sin()], 1)
    return centres + 0.1 * torch.randn(count, 2, generator=generator)


def pictures(count: int = 4096, size: int = 16) -> Tensor:
    """Images of one bright disc each, with noise."""
    generator = torch.Generator().manual_seed(0)
    place = torch.rand(count, 3, 1, 1, generator=generator) * size
    axis = torch.arange(size).float()
    inside = (axis[:, None] - place[:, 0]) ** 2 + (axis - place[:, 1]) ** 2 < (1 + place[:, 2] / 3) ** 2
    return inside[:, None].float() * 2 - 1 + 0.1 * torch.randn(count, 1, size, size, generator=generator)


def fitted(network: nn.Module, data: Tensor, batch: int, steps: int, coupling=None, **options) -> Run:
    """Seconds of the steps after the first row of a run of ``fit``."""
    model = gm.predict.Velocity(network, gm.GaussianPath(coupling=coupling or gm.couplings.Independent()))

    def run() -> float:
        torch._dynamo.reset()
        first = max(1, steps // 4)
        rows = gm.training.fit(
            model, data, steps, batch_size=batch, lr=LR, log_every=first, progress=False, **options
        ).rows
        return rows[-1].seconds - rows[0].seconds

    return run


def timed(advance: Callable[[], object], steps: int) -> Run:
    def run() -> float:
        for _ in range(max(1, steps // 4)):
            advance()
        begin = time.perf_counter()
        for _ in range(steps - max(1, steps // 4)):
            advance()
        return time.perf_counter() - begin

    return run


def by_hand(network: nn.Module, data: Tensor, batch: int, steps: int) -> Run:
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR, fused=True)

    def advance() -> None:
        x1 = data[torch.randint(len(data), (batch,))]
        x0, t = torch.randn_like(x1), torch.rand(batch)
        at = t.reshape(-1, *[1] * (x1.ndim - 1))
        loss = (network((1 - at) * x0 + at * x1, t) - (x1 - x0)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return timed(advance, steps)


def torchcfm(network: nn.Module, data: Tensor, batch: int, steps: int, matcher: str) -> Run:
    """The steps of torchcfm's image example, with data in memory."""
    flow = getattr(importlib.import_module("torchcfm.conditional_flow_matching"), matcher)(sigma=0.0)
    optimizer = torch.optim.Adam(network.parameters(), lr=LR)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step, 5000) / 5000)
    average = {name: value.clone() for name, value in network.state_dict().items()}

    def advance() -> None:
        x1 = data[torch.randint(len(data), (batch,))]
        t, x, u = flow.sample_location_and_conditional_flow(torch.randn_like(x1), x1)
        optimizer.zero_grad()
        loss = torch.mean((network(x, t) - u) ** 2)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimizer.step()
        rate.step()
        with torch.no_grad():
            for name, value in network.state_dict().items():
                average[name].copy_(average[name] * DECAY + value * (1 - DECAY))

    return timed(advance, steps)


def turns(runs: Mapping[str, Run], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender, all in turn, after a round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            seconds = run()
            if number:
                times[name].append(seconds)
    return times


def against(times: Mapping[str, list[float]], peer: str, own: str) -> tuple[float, float, float]:
    """The peer's seconds over ours in the same round: median, least, most."""
    quotients = [a / b for a, b in zip(times[peer], times[own], strict=True)]
    return statistics.median(quotients), min(quotients), max(quotients)


def table(what: str, own: str, runs: Mapping[str, Callable[[], Run]], libraries: Mapping[str, str], rounds: int):
    """A row for each contender beside ours."""
    made: dict[str, Run] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, make in runs.items():
            try:
                made[name] = make()
            except Exception as error:
                yield Row(what, own, name, libraries.get(name, "torch"), missing=reason(error))
        times = turns(made, rounds)
    for name in made:
        if name != own:
            yield Row(what, own, name, libraries.get(name, "torch"), *against(times, name, own))


def settings(scale: Scale) -> list[tuple[str, Callable[[], nn.Module], Callable[[], Tensor], int, int]]:
    """Name, network, data, batch and steps."""
    return [
        ("MLP of 34 thousand weights, batch 256", mlp, plane, 256, scale.pick(400, 120, 4)),
        ("U-Net of 38 thousand weights, 16 x 16, batch 64", unet, pictures, 64, scale.pick(24, 12, 4)),
    ]


def loop(scale: Scale) -> Iterator[Row]:
    """The cost of the loop around the network."""
    for name, network, data, batch, steps in settings(scale):
        x1 = data()
        runs = {
            "gm.training.fit": functools.partial(fitted, network(), x1, batch, steps),
            "loop by hand": functools.partial(by_hand, network(), x1, batch, steps),
            "torchcfm's recipe": functools.partial(torchcfm, network(), x1, batch, steps, "ConditionalFlowMatcher"),
        }
        yield from table(name, "gm.training.fit", runs, {"torchcfm's recipe": "torchcfm"}, scale.repeats(7))


def pairing(scale: Scale) -> Iterator[Row]:
    """What optimal transport adds to a step, paired ahead or within."""
    cases = [
        ("MLP, batch 256", mlp, plane, 256, scale.pick(200, 60, 4)),
        ("MLP, batch 1024", mlp, plane, 1024, scale.pick(60, 24, 4)),
        ("U-Net, batch 256", unet, pictures, scale.pick(256, 256, 8), scale.pick(8, 4, 4)),
        ("U-Net, batch 1024", unet, pictures, scale.pick(1024, 1024, 8), 4),
    ]
    for name, network, data, batch, steps in cases:
        x1, ot = data(), gm.couplings.OT()
        runs = {
            "OT, paired ahead": functools.partial(fitted, network(), x1, batch, steps, ot),
            "no pairing": functools.partial(fitted, network(), x1, batch, steps),
            "OT, paired within the step": functools.partial(fitted, network(), x1, batch, steps, ot, prefetch=False),
            "torchcfm's recipe with OT": functools.partial(
                torchcfm, network(), x1, batch, steps, "ExactOptimalTransportConditionalFlowMatcher"
            ),
        }
        yield from table(name, "OT, paired ahead", runs, {"torchcfm's recipe with OT": "torchcfm"}, scale.repeats(5))


def assignment(scale: Scale) -> Iterator[Row]:
    """The pairing alone, beside POT and beside SciPy without prices."""
    for name, data in (("points around eight centres", plane), ("images, 16 x 16", pictures)):
        for batch in scale.pick((64, 128, 256, 512, 1024, 2048), (64, 256, 1024), (8,)):
            x1 = data()[:batch]
            x0 = gm.Draws(0, batch).normal(x1.shape)
            repeats = max(1, 2**19 // batch**2)
            runs = {
                "gm.couplings.OT()": lambda x0=x0, x1=x1, n=repeats: calls(functools.partial(paired, x0, x1), n),
                "POT, emd": lambda x0=x0, x1=x1, n=repeats: calls(pot(x0, x1), n),
                "SciPy alone": lambda x0=x0, x1=x1, n=repeats: calls(functools.partial(scipy, x0, x1), n),
            }
            libraries = {"POT, emd": "POT", "SciPy alone": "scipy"}
            yield from table(f"{batch} {name}", "gm.couplings.OT()", runs, libraries, scale.repeats(5))


def calls(run: Callable[[], object], count: int) -> Run:
    def timed() -> float:
        begin = time.perf_counter()
        for _ in range(count):
            run()
        return time.perf_counter() - begin

    return timed


def paired(x0: Tensor, x1: Tensor) -> Tensor:
    return gm.couplings.OT()(x0, x1, None, gm.Draws(0, len(x0)))[0]


def scipy(x0: Tensor, x1: Tensor) -> Tensor:
    cost = torch.cdist(x1.flatten(1), x0.flatten(1)).square()
    _, columns = importlib.import_module("scipy.optimize").linear_sum_assignment(cost.numpy())
    return x0[torch.as_tensor(columns)]


def pot(x0: Tensor, x1: Tensor) -> Callable[[], Tensor]:
    library = importlib.import_module("ot")
    weights = library.unif(len(x0))

    def run() -> Tensor:
        cost = torch.cdist(x1.flatten(1), x0.flatten(1)).square()
        plan = library.emd(weights, weights, cost.numpy(), numItermax=10_000_000)
        return x0[torch.as_tensor(plan.argmax(1))]

    return run


def compile(scale: Scale) -> Iterator[Row]:
    """What compiling the network, or the whole of corruption, network and loss, saves."""
    if scale.level == "smoke":
        return  # minutes of compilation
    for name, network, data, batch, steps in settings(scale):
        x1 = data()
        runs = {
            f"compile={how!r}": functools.partial(fitted, network(), x1, batch, steps, compile=how)
            for how in ("step", "network", False)
        }
        yield from table(name, "compile='step'", runs, {}, scale.repeats(3))


def draw() -> None:
    """Write the saved tables into the page."""
    page = Path(__file__).parents[1] / "docs/training.md"
    text, found = page.read_text(), json.loads((RESULTS / "training.json").read_text())
    for part, records in found["parts"].items():
        lines = ["| | ours | beside it | its time over ours | least, most |", "|---|---|---|---|---|"]
        for row in records:
            peer = f"{row['peer']} ({row['library']} {row['version']})" if row["library"] != "torch" else row["peer"]
            ratio = f"{row['ratio']:.3g} | {row['least']:.3g}, {row['most']:.3g}" if "ratio" in row else "not run |"
            lines.append(f"| {row['what']} | {row['ours']} | {peer} | {ratio} |")
        begin, end = f"<!-- {part}: begin -->", f"<!-- {part}: end -->"
        head, rest = text.split(begin)
        text = head + "\n".join([begin, *lines, end]) + rest.split(end)[1]
    page.write_text(text)


PARTS = {"loop": loop, "pairing": pairing, "assignment": assignment, "compile": compile}


def rows(scale: Scale) -> Iterator[Row]:
    """All but the compilation, which takes minutes."""
    for name in ("loop", "pairing", "assignment"):
        yield from PARTS[name](scale)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=tuple(PARTS), default=list(PARTS))
    parser.add_argument("--level", choices=("full", "quick", "smoke"), default="full")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/training.json, part by part")
    parser.add_argument("--draw", action="store_true", help="only write the tables of docs/training.md")
    args = parser.parse_args(arguments)
    if args.draw:
        return draw()
    torch.set_num_threads(args.threads)
    scale = Scale(args.level, args.rounds or None)
    print("their time over ours in the same round, medians: above 1 ours is faster")
    for part in args.only:
        records = []
        for row in PARTS[part](scale):
            records.append(row.record())
            result = row.missing or f"{row.ratio:7.3f}  ({row.least:.3f}, {row.most:.3f})"
            print(f"  {row.what:50} {row.ours:20} {row.peer:28} {row.version:10} {result}", flush=True)
            if args.save:  # row by row: a run that is cut short leaves what it has
                keep(part, records)


def keep(part: str, records: list[dict[str, object]]) -> None:
    """Save a part beside the others."""
    path = RESULTS / "training.json"
    parts = json.loads(path.read_text())["parts"] if path.exists() else {}
    parts[part] = records
    save("training", {"versions": versions("genmatch", "torchcfm", "POT", "scipy"), "parts": parts})


if __name__ == "__main__":
    main()
