"""What a sampling step costs around the network, beside a plain loop and beside other libraries.

The network is trivial, x -> -x, so what is timed is the loop. Each number is the ratio to the same number of steps of

    for i in range(steps): x = x + h * network(x)

in the same round, as a median over the rounds; each library is called in its documented way, with its schedule set up
inside the timed call, as a user would. ``reads`` are reads of tensor values by the host per step: on a GPU each is a
wait.

Run it as ``make bench`` or ``python benchmarks/sampling_overhead.py [--save]``.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from _interleave import host_reads, interleave, ratios, save, versions
from torch import Tensor, nn

import genmatch as gm

SHAPES = ((64, 2), (64, 1, 32, 32), (16, 3, 128, 128))
PACKAGES = ("flow_matching", "torchdiffeq", "diffusers", "k-diffusion", "azula")
Contenders = dict[str, Callable[[], object]]


class Negative(nn.Module):
    """x -> -x, whatever the time."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return -x


def plain(x: Tensor, steps: int) -> Contenders:
    network, h = Negative(), 1 / steps

    def loop() -> Tensor:
        state = x
        for _ in range(steps):
            state = state + h * network(state, None)  # type: ignore[arg-type]
        return state

    return {"plain loop": loop}


def ours(x: Tensor, steps: int) -> Contenders:
    flow = gm.Flow(gm.predict.Velocity(Negative(), gm.GaussianPath()))
    ddpm = gm.Flow(gm.predict.Noise(Negative(), gm.GaussianPath(gm.schedules.DDPM())))
    sample = functools.partial(gm.sample, steps=steps)
    multistep = {
        "genmatch Exponential(3)": gm.solvers.Exponential(3),
        "genmatch DPM-Solver++ 2M": gm.solvers.DPMSolver(2),
        "genmatch DPM-Solver++ 3M": gm.solvers.DPMSolver(3),
        "genmatch UniPC(2)": gm.solvers.UniPC(2),
        "genmatch DEIS(2)": gm.solvers.DEIS(2),
        "genmatch Adams-Bashforth 4": gm.solvers.AdamsBashforth(4),
    }
    return {
        "genmatch Euler": lambda: sample(flow, x, solver=gm.solvers.Euler()),
        "genmatch DDIM = Exponential(1)": lambda: sample(ddpm, x, solver=gm.solvers.DDIM()),
        "genmatch Exponential(2)": lambda: sample(ddpm, x, solver=gm.solvers.Exponential()),
        **{name: functools.partial(sample, ddpm, x, solver=solver) for name, solver in multistep.items()},
    }


def torchdiffeq(x: Tensor, steps: int) -> Contenders:
    odeint = importlib.import_module("torchdiffeq").odeint
    ends = torch.tensor([0.0, 1.0])
    options = {"step_size": 1 / steps}
    return {"torchdiffeq euler": lambda: odeint(lambda t, y: -y, x, ends, method="euler", options=options)}


def flow_matching(x: Tensor, steps: int) -> Contenders:
    solver = importlib.import_module("flow_matching.solver").ODESolver(velocity_model=lambda x, t: -x)
    return {"flow_matching euler": lambda: solver.sample(x_init=x, method="euler", step_size=1 / steps)}


def diffusers(x: Tensor, steps: int) -> Contenders:
    library = importlib.import_module("diffusers")

    def run(name: str) -> Callable[[], Tensor]:
        scheduler = getattr(library, name)()

        def loop() -> Tensor:
            state = x
            scheduler.set_timesteps(steps)
            for t in scheduler.timesteps:
                state = scheduler.step(-state, t, state).prev_sample
            return state

        return loop

    names = (
        "FlowMatchEulerDiscreteScheduler",
        "DDIMScheduler",
        "DPMSolverMultistepScheduler",
        "UniPCMultistepScheduler",
        "DEISMultistepScheduler",
    )
    return {f"diffusers {name.removesuffix('Scheduler')}": run(name) for name in names}


def k_diffusion(x: Tensor, steps: int) -> Contenders:
    # Its samplers alone: the package's own import pulls in its training code and torchvision, which they do not need.
    package = types.ModuleType("k_diffusion")
    package.__path__ = [str(Path(next(p for p in sys.path if (Path(p) / "k_diffusion").is_dir())) / "k_diffusion")]
    sys.modules.setdefault("k_diffusion", package)
    for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["torchvision.transforms"].functional = None  # type: ignore[attr-defined]
    sampling = importlib.import_module("k_diffusion.sampling")

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        return -x

    def run(name: str) -> Callable[[], Tensor]:
        def loop() -> Tensor:
            sigmas = sampling.get_sigmas_karras(steps, 0.002, 80.0)
            return getattr(sampling, name)(model, x * 80, sigmas, disable=True)

        return loop

    return {f"k-diffusion {name}": run(f"sample_{name}") for name in ("euler", "dpmpp_2m")}


def azula(x: Tensor, steps: int) -> Contenders:
    noise, denoise, sample = (importlib.import_module(f"azula.{name}") for name in ("noise", "denoise", "sample"))

    class Network(nn.Module):
        def forward(self, x: Tensor, t: Tensor, **kwargs) -> Tensor:
            return -x

    denoiser = denoise.KarrasDenoiser(Network(), noise.VPSchedule())
    found: Contenders = {}
    for name in ("EulerSampler", "DDIMSampler"):
        sampler = getattr(sample, name)(denoiser, steps=steps, silent=True)
        found[f"azula {name.removesuffix('Sampler')}"] = functools.partial(sampler, x)
    return found


def gather(x: Tensor, steps: int) -> tuple[Contenders, dict[str, str]]:
    """All contenders that are installed, and why the others are missing."""
    contenders: Contenders = {**plain(x, steps), **ours(x, steps)}
    missing = {}
    for make in (torchdiffeq, flow_matching, diffusers, k_diffusion, azula):
        try:
            contenders.update(make(x, steps))
        except (ImportError, StopIteration, AttributeError) as error:
            missing[make.__name__] = f"{type(error).__name__}: {error}"
    return contenders, missing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/sampling_overhead.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    tables: dict[str, dict] = {}
    with torch.no_grad():
        for shape in SHAPES:
            torch.manual_seed(0)
            x = torch.randn(shape)
            contenders, missing = gather(x, args.steps)
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
