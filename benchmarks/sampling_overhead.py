"""What a sampling step costs around the network, beside a plain loop and beside other libraries.

The network is trivial, x -> -x, so what is timed is the loop. Each number is the ratio to the same number of steps of

    for i in range(steps): x = x + h * network(x)

in the same round, as a median over the rounds; each library is called in its documented way, with its schedule set up
inside the timed call, as a user would. ``reads`` are reads of tensor values by the host per step: on a GPU each is a
wait.

Run it as ``python benchmarks/sampling_overhead.py [--save]``, or as ``python benchmarks --only overhead``, where each
library is compared with the same method of ours.
"""

from __future__ import annotations

import argparse
import functools
import warnings
from collections.abc import Callable, Iterator

import torch
from _interleave import host_reads, interleave, ratios, save, versions
from _loops import against, gather
from _suite import Row, Scale
from torch import Tensor, nn

import genmatch as gm

__all__ = ["Negative", "rows"]

SHAPES = ((64, 2), (64, 1, 32, 32), (16, 3, 128, 128))
PACKAGES = ("flow_matching", "torchdiffeq", "diffusers", "k-diffusion", "azula")


class Negative(nn.Module):
    """x -> -x, whatever the time."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return -x


def rows(scale: Scale) -> Iterator[Row]:
    """A row for each library that has the method, and for a plain loop."""
    torch.manual_seed(0)
    steps = scale.pick(50, 20, 2)
    for shape in scale.pick(SHAPES, SHAPES[:2], ((2, 2),)):
        yield from against(Negative(), torch.randn(shape), steps, scale.repeats(9), least=scale.least)


def prepared(network: nn.Module, x: Tensor, steps: int) -> dict[str, Callable[[], object]]:
    """Runs of ours that were prepared once: what is paid again in every call of the rows beside them."""
    flow = gm.Flow(gm.predict.Velocity(network, gm.GaussianPath()))
    ddpm = gm.Flow(gm.predict.Noise(network, gm.GaussianPath(gm.schedules.DDPM())))
    runs = {
        "Euler": (flow, gm.solvers.Euler()),
        "DDIM = Exponential(1)": (ddpm, gm.solvers.DDIM()),
        "Exponential(2)": (ddpm, gm.solvers.Exponential()),
        "Exponential(3)": (ddpm, gm.solvers.Exponential(3)),
        "DPM-Solver++ 2M": (ddpm, gm.solvers.DPMSolver(2)),
        "UniPC(2)": (ddpm, gm.solvers.UniPC(2)),
    }
    found: dict[str, Callable[[], object]] = {}
    for name, (generator, solver) in runs.items():
        sampler = gm.solvers.Sampler(generator, x, steps=steps, solver=solver)
        found[f"genmatch {name}, prepared"] = functools.partial(sampler, x=x)
    return found


def on_a_gpu(steps: int, rounds: int) -> dict[str, float]:
    """Whole runs of a U-Net at batch 64 over the same number of its evaluations alone: eager, and captured."""
    torch.manual_seed(0)
    unet = gm.nn.UNet(3, width=128, multipliers=(1, 2, 2, 2)).cuda().eval()
    x, t = torch.randn(64, 3, 32, 32, device="cuda"), torch.full((64,), 0.5, device="cuda")
    generator = gm.Flow(gm.predict.Velocity(unet, gm.GaussianPath()))
    samplers = {
        "prepared": gm.solvers.Sampler(generator, x, steps=steps),
        "captured": gm.solvers.Sampler(generator, x, steps=steps, capture=True),
    }

    def whole(run: Callable[[], object]) -> Callable[[], object]:
        def timed() -> None:
            run()
            torch.cuda.synchronize()

        return timed

    def network() -> None:
        for _ in range(steps):
            unet(x, t)

    contenders = {"network alone": whole(network)}
    contenders |= {name: whole(functools.partial(sampler, x=x)) for name, sampler in samplers.items()}
    with torch.no_grad():
        found = ratios(interleave(contenders, rounds), "network alone")
    return {name: middle for name, (middle, _, _) in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/sampling_overhead.json")
    parser.add_argument("--gpu", action="store_true", help="the loop around a U-Net at batch 64 on a GPU, and no more")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    if args.gpu:
        if not torch.cuda.is_available():
            parser.error("--gpu needs a CUDA device")
        for name, ratio in on_a_gpu(args.steps, args.rounds).items():
            print(f"{name:20} {ratio:.4f}")
        return
    tables: dict[str, dict] = {}
    with torch.no_grad():
        for shape in SHAPES:
            torch.manual_seed(0)
            x = torch.randn(shape)
            contenders, missing = gather(Negative(), x, args.steps)
            contenders |= prepared(Negative(), x, args.steps)
            times = interleave(contenders, args.rounds)
            found = ratios(times, "plain loop")
            base = sorted(times["plain loop"])[args.rounds // 2] / args.steps
            print(f"\n{shape}, {args.steps} steps; the plain loop takes {1e6 * base:.1f} us a step")
            print(f"  {'':42} {'ratio':>8} {'(least, most)':>18} {'reads':>7}")
            rows = {}
            for name, (middle, least, most) in found.items():
                reads = host_reads(contenders[name]) / args.steps
                rows[name] = {"ratio": middle, "least": least, "most": most, "host_reads_per_step": reads}
                print(f"  {name:42} {middle:8.2f} {f'({least:.2f}, {most:.2f})':>18} {reads:7.2f}")
            for name, why in missing.items():
                print(f"  {name}: left out, {why}")
            tables[str(shape)] = rows
    if args.save:
        path = save("sampling_overhead", {"steps": args.steps, "versions": versions(*PACKAGES), "tables": tables})
        print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
