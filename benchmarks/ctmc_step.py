"""One step of a token chain over a large vocabulary, beside flow_matching's MixtureDiscreteEulerSolver.

512 positions and 16,384 tokens, uniform source, kappa_t = t. The network is free: it returns stored logits here, and
the probabilities that the other library asks for there, their softmax already taken. Each library is called by its
documented sampling function, and the runs take turns, round after round. Our step is a run of five over five, what a
run costs once among it. Theirs is a third of the difference between three steps with a closing one and the closing one
alone, which leaves that out: their last step is another one than the rest.

    5 %      5 % of the rows jump
    all      nearly every row jumps (99 %)
    closing  the last step of a run, in which both libraries draw every row

The law of both is tested on 8 tokens by chi-square, and ours on 16,384 tokens in 64 groups. Peak memory is the high
water mark of a process of its own, above what it held before the run, in multiples of the logits.

Run it as ``python benchmarks/ctmc_step.py [--save] [--rounds 7]``, the times alone as ``python benchmarks --only
tokens``.
"""

from __future__ import annotations

import argparse
import importlib
import math
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from _interleave import interleave, ratios, save, versions
from _suite import Row, Scale, reason
from scipy.stats import chi2
from torch import Tensor, nn

import genmatch as gm

POSITIONS, VOCABULARY = 512, 16_384
STEPS = {"genmatch": 5, "flow_matching": 3}
SHARES = {"5 %": 0.05, "all": 0.99}
CLOSING = 1e-6  # length of the closing step: the other library draws every row in it, however short it is
Sampler = Callable[[Tensor, list[float]], Tensor]


class Stored(nn.Module):
    """The same output whatever it is asked."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor, t: Tensor, **extras: Tensor) -> Tensor:
        return self.output


def ours(logits: Tensor, seed: int | None = None) -> Sampler:
    chain = gm.CTMC(gm.predict.Tokens(Stored(logits), gm.MixturePath(logits.shape[-1])))
    return lambda x, times: gm.sample(chain, x, times=times, seed=seed)


def theirs(logits: Tensor) -> Sampler:
    solvers = importlib.import_module("flow_matching.solver")
    paths = importlib.import_module("flow_matching.path")
    schedulers = importlib.import_module("flow_matching.path.scheduler")
    wrapper = importlib.import_module("flow_matching.utils").ModelWrapper
    path = paths.MixtureDiscreteProbPath(scheduler=schedulers.PolynomialConvexScheduler(n=1.0))
    solver = solvers.MixtureDiscreteEulerSolver(
        model=wrapper(Stored(logits.softmax(-1))), path=path, vocabulary_size=logits.shape[-1]
    )
    return lambda x, times: solver.sample(x_init=x, step_size=None, time_grid=torch.tensor(times))


LIBRARIES: dict[str, Callable[[Tensor], Sampler]] = {"genmatch": ours, "flow_matching": theirs}


def grid(share: float, steps: int) -> list[float]:
    """Times between which that share of the rows jumps, and a closing step. The schedule's hazard is 1 / (1 - t)."""
    times = [1 - (1 - share) ** k for k in range(steps + 1)]
    return [*times, times[-1] + CLOSING * (1 - times[-1])]


def problem(positions: int = POSITIONS, vocabulary: int = VOCABULARY) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    logits = torch.empty(1, positions, vocabulary).normal_().mul_(2)
    return logits, torch.randint(vocabulary, (1, positions))


def seconds(rounds: int, logits: Tensor, x: Tensor) -> dict[str, dict[str, list[float]]]:
    """Seconds of a step of either library in each round, for each share of rows that jump."""
    runs: dict[str, Callable[[], object]] = {}
    own, other = ours(logits), theirs(logits)
    for name, share in SHARES.items():
        short, long = grid(share, STEPS["genmatch"])[:-1], grid(share, STEPS["flow_matching"])
        runs[f"genmatch {name}"] = lambda t=short: own(x, t)
        runs[f"flow_matching {name}"] = lambda t=long: other(x, t)
        runs[f"flow_matching {name} end"] = lambda t=long[-2:]: other(x, t)
    # The other library draws every row in its last step whatever its length; ours where the step ends at the data.
    runs["genmatch closing"] = lambda: own(x, [0.0, 1.0])
    runs["flow_matching closing"] = lambda: other(x, [0.0, CLOSING])
    times = interleave(runs, rounds)
    return {name: {library: _steps(times, library, name) for library in STEPS} for name in (*SHARES, "closing")}


def rows(scale: Scale) -> Iterator[Row]:
    """A row for each share of rows that jump; two vocabularies."""
    for vocabulary in scale.pick((1024, VOCABULARY), (1024, VOCABULARY), (16,)):
        positions = scale.pick(POSITIONS, POSITIONS, 8)
        names = {name: f"{positions} x {vocabulary:,} tokens, {name} of the rows jump" for name in SHARES}
        names["closing"] = f"{positions} x {vocabulary:,} tokens, last step"
        solver = ("gm.sample", "MixtureDiscreteEulerSolver", "flow_matching")
        try:
            with torch.no_grad():
                found = seconds(scale.repeats(7), *problem(positions, vocabulary))
        except ImportError as error:
            yield from (Row(what, *solver, missing=reason(error)) for what in names.values())
            continue
        for name, steps in found.items():
            yield Row(names[name], *solver, *ratios(steps, "genmatch")["flow_matching"])


def time_steps(rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of a step, the median over the rounds, and the ratio of the libraries round by round."""
    found: dict[str, dict[str, float]] = {}
    for name, steps in seconds(rounds, *problem()).items():
        ratio = [b / a for a, b in zip(steps["genmatch"], steps["flow_matching"], strict=True)]
        found[name] = {library: round(1e3 * statistics.median(v), 3) for library, v in steps.items()}
        found[name] |= {"ratio": round(statistics.median(ratio), 1), "least": round(min(ratio), 1)}
    return found


def _steps(times: dict[str, list[float]], library: str, name: str) -> list[float]:
    """Seconds of one step in each round."""
    runs = times[f"{library} {name}"]
    if name == "closing":
        return runs
    ends = times.get(f"{library} {name} end", [0.0] * len(runs))
    return [(run - end) / STEPS[library] for run, end in zip(runs, ends, strict=True)]


def fit(counts: Tensor, law: Tensor) -> float:
    """The p-value of Pearson's test."""
    expected = law.double() * counts.sum()
    statistic = ((counts - expected) ** 2 / expected).sum().item()
    return float(chi2.sf(statistic, len(law) - 1))


def laws() -> dict[str, float]:
    """p-values of one step that a third of the rows jump in, on 8 tokens, 200,000 rows each; and of 16,384 tokens."""
    torch.manual_seed(1)
    count, share = 200_000, 1 / 3
    chances = torch.rand(8).softmax(-1)
    x = torch.zeros(1, count, dtype=torch.int64)
    law = share * chances
    law[0] += 1 - share
    small = chances.log().expand(1, count, 8)
    hazard = -math.log1p(-share)  # the other library jumps by the hazard at the step's start: 1 - exp(-h)
    with torch.no_grad():
        found = {"genmatch": ours(small, 3)(x, [0.0, share])}
        # Its last step draws anew, so the state before it is asked for.
        solver = theirs(small)
        found["flow_matching"] = _intermediate(solver, x, [0.0, hazard, hazard + CLOSING])
        result = {name: fit(torch.bincount(y.flatten(), minlength=8), law) for name, y in found.items()}
        logits, state = problem()
        counts = torch.zeros(64)
        for seed in range(40):
            drawn = ours(logits, seed)(state, [0.0, 1.0])
            counts += torch.bincount(drawn.flatten() % 64, minlength=64)
        groups = torch.zeros(64).index_add(0, torch.arange(VOCABULARY) % 64, logits.softmax(-1)[0].mean(0))
    return {**result, "genmatch, 16,384 tokens": fit(counts, groups)}


def _intermediate(sampler: Sampler, x: Tensor, times: list[float]) -> Tensor:
    solver = next(c.cell_contents for c in sampler.__closure__ or () if hasattr(c.cell_contents, "sample"))
    states = solver.sample(x_init=x, step_size=None, time_grid=torch.tensor(times), return_intermediates=True)
    return states[1]


def peak(library: str, name: str) -> float:
    """High water above what was held before, in multiples of the logits, of a run in this process."""
    logits, x = problem()
    sampler = LIBRARIES[library](logits)
    times = [0.0, SHARES[name]] if library == "genmatch" else [0.0, SHARES[name], SHARES[name] + CLOSING]
    LIBRARIES[library](logits[:, :1])(x[:, :1], times)  # imports what it needs
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _status("VmRSS")
    sampler(x, times)
    return (_status("VmHWM") - before) * 1024 / (logits.numel() * 4)


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def memory() -> dict[str, dict[str, float]]:
    """Peak memory of each library, each in a process of its own."""
    found: dict[str, dict[str, float]] = {}
    for name in SHARES:
        found[name] = {}
        for library in LIBRARIES:
            command = [sys.executable, __file__, "--peak", library, name]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[name][library] = round(float(done.stdout), 2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/ctmc_step.json")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peak", nargs=2, metavar=("LIBRARY", "ROWS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print(peak(*arguments.peak))
        return
    steps, memories, chances = time_steps(arguments.rounds), memory(), laws()
    print(f"{'rows':>8} {'genmatch':>12} {'flow_matching':>14} {'ratio':>7} {'least':>7}   peak memory / logits")
    for name, row in steps.items():
        own = memories.get(name, {})
        tail = f"{own['genmatch']:.2f} and {own['flow_matching']:.2f}" if own else ""
        columns = f"{row['genmatch']:9.2f} ms {row['flow_matching']:11.2f} ms {row['ratio']:7} {row['least']:7}"
        print(f"{name:>8} {columns}   {tail}")
    print("p-values of the law:", ", ".join(f"{name} {p:.3f}" for name, p in chances.items()))
    if arguments.save:
        content = {
            "versions": versions("torch", "flow_matching", "genmatch"),
            "setting": {"positions": POSITIONS, "vocabulary": VOCABULARY, "rounds": arguments.rounds},
            "milliseconds": steps,
            "peak_memory_over_logits": memories,
            "p_values": chances,
        }
        print(save("ctmc_step", content))


if __name__ == "__main__":
    main()
