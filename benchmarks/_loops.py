"""The sampling loops of this library and of others around one network, each as its documentation has it.

A network here is a function of a state ``(B, *S)`` and a time, a number, a scalar tensor or ``(B,)``; libraries that
scale the time they pass do so here as well, for the network's cost does not depend on it.
"""

from __future__ import annotations

import functools
import importlib
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from _interleave import interleave, ratios
from _suite import Row
from torch import Tensor, nn

import genmatch as gm

__all__ = ["RIVALS", "Network", "against", "gather"]

Network = nn.Module
Contenders = dict[str, Callable[[], object]]

# What is compared with what: the same method, as far as the other library has it.
RIVALS: Mapping[str, tuple[str, ...]] = {
    "genmatch Euler": (
        "plain loop",
        "torchdiffeq euler",
        "flow_matching euler",
        "diffusers FlowMatchEulerDiscrete",
    ),
    "genmatch DDIM = Exponential(1)": ("diffusers DDIM", "azula DDIM", "azula Euler", "k-diffusion euler"),
    "genmatch DPM-Solver++ 2M": ("diffusers DPMSolverMultistep", "k-diffusion dpmpp_2m"),
    "genmatch UniPC(2)": ("diffusers UniPCMultistep",),
    "genmatch DEIS(2)": ("diffusers DEISMultistep",),
}


def plain(network: Network, x: Tensor, steps: int) -> Contenders:
    h = 1 / steps

    def loop() -> Tensor:
        state = x
        for i in range(steps):
            state = state + h * network(state, i * h)
        return state

    return {"plain loop": loop}


def ours(network: Network, x: Tensor, steps: int) -> Contenders:
    flow = gm.Flow(gm.predict.Velocity(network, gm.GaussianPath()))
    ddpm = gm.Flow(gm.predict.Noise(network, gm.GaussianPath(gm.schedules.DDPM())))
    sample = functools.partial(gm.sample, steps=steps)
    solvers = {
        "DDIM = Exponential(1)": gm.solvers.DDIM(),
        "Exponential(2)": gm.solvers.Exponential(),
        "Exponential(3)": gm.solvers.Exponential(3),
        "DPM-Solver++ 2M": gm.solvers.DPMSolver(2),
        "DPM-Solver++ 3M": gm.solvers.DPMSolver(3),
        "UniPC(2)": gm.solvers.UniPC(2),
        "DEIS(2)": gm.solvers.DEIS(2),
        "Adams-Bashforth 4": gm.solvers.AdamsBashforth(4),
    }
    return {
        "genmatch Euler": lambda: sample(flow, x, solver=gm.solvers.Euler()),
        **{f"genmatch {name}": functools.partial(sample, ddpm, x, solver=each) for name, each in solvers.items()},
    }


def torchdiffeq(network: Network, x: Tensor, steps: int) -> Contenders:
    odeint = importlib.import_module("torchdiffeq").odeint
    ends = torch.tensor([0.0, 1.0])
    options = {"step_size": 1 / steps}
    return {"torchdiffeq euler": lambda: odeint(lambda t, y: network(y, t), x, ends, method="euler", options=options)}


def flow_matching(network: Network, x: Tensor, steps: int) -> Contenders:
    solver = importlib.import_module("flow_matching.solver").ODESolver(velocity_model=network)
    return {"flow_matching euler": lambda: solver.sample(x_init=x, method="euler", step_size=1 / steps)}


def diffusers(network: Network, x: Tensor, steps: int) -> Contenders:
    library = importlib.import_module("diffusers")

    def run(name: str) -> Callable[[], Tensor]:
        scheduler = getattr(library, f"{name}Scheduler")()

        def loop() -> Tensor:
            state = x
            scheduler.set_timesteps(steps)
            for t in scheduler.timesteps:
                state = scheduler.step(network(state, t), t, state).prev_sample
            return state

        return loop

    names = ("FlowMatchEulerDiscrete", "DDIM", "DPMSolverMultistep", "UniPCMultistep", "DEISMultistep")
    return {f"diffusers {name}": run(name) for name in names}


def k_diffusion(network: Network, x: Tensor, steps: int) -> Contenders:
    # Its samplers alone: the package's own import pulls in its training code and torchvision, which they do not need.
    place = next((Path(p) / "k_diffusion" for p in sys.path if (Path(p) / "k_diffusion").is_dir()), None)
    if place is None:
        raise ModuleNotFoundError("No module named 'k_diffusion'")
    stubs = ["torchvision", "torchvision.transforms", "torchvision.transforms.functional"]
    known = dict(sys.modules)
    package = types.ModuleType("k_diffusion")
    package.__path__ = [str(place)]
    sys.modules.update({name: types.ModuleType(name) for name in stubs}, k_diffusion=package)
    sys.modules["torchvision.transforms"].functional = None  # type: ignore[attr-defined]
    try:
        sampling = importlib.import_module("k_diffusion.sampling")
    finally:  # other libraries look whether torchvision is there
        for name in stubs:
            sys.modules.pop(name)
            if name in known:
                sys.modules[name] = known[name]

    def run(name: str) -> Callable[[], Tensor]:
        def loop() -> Tensor:
            sigmas = sampling.get_sigmas_karras(steps, 0.002, 80.0)
            return getattr(sampling, name)(network, x * 80, sigmas, disable=True)

        return loop

    return {f"k-diffusion {name}": run(f"sample_{name}") for name in ("euler", "dpmpp_2m")}


def azula(network: Network, x: Tensor, steps: int) -> Contenders:
    noise, denoise, sample = (importlib.import_module(f"azula.{name}") for name in ("noise", "denoise", "sample"))
    denoiser = denoise.KarrasDenoiser(network, noise.VPSchedule())
    found: Contenders = {}
    for name in ("EulerSampler", "DDIMSampler"):
        sampler = getattr(sample, name)(denoiser, steps=steps, silent=True)
        found[f"azula {name.removesuffix('Sampler')}"] = functools.partial(sampler, x)
    return found


LOOPS: Mapping[str, Callable[[Network, Tensor, int], Contenders]] = {
    "torchdiffeq": torchdiffeq,
    "flow_matching": flow_matching,
    "diffusers": diffusers,
    "k-diffusion": k_diffusion,
    "azula": azula,
}


def gather(network: Network, x: Tensor, steps: int) -> tuple[Contenders, dict[str, str]]:
    """All contenders whose library is installed, and why other libraries are left out."""
    contenders = {**plain(network, x, steps), **ours(network, x, steps)}
    missing = {}
    for library, make in LOOPS.items():
        try:
            contenders.update(make(network, x, steps))
        except ImportError as error:
            missing[library] = f"{type(error).__name__}: {error}"
    return contenders, missing


def against(network: Network, x: Tensor, steps: int, rounds: int, least: float = 0.0) -> Iterator[Row]:
    """A row for each rival of each method of ours, timed in turns."""
    what = f"{' x '.join(map(str, x.shape))}, {steps} steps"
    with torch.no_grad():
        contenders, missing = gather(network, x, steps)
        for own, rivals in RIVALS.items():
            present = [name for name in rivals if name in contenders]
            found = ratios(interleave({name: contenders[name] for name in (own, *present)}, rounds, least), own)
            for name in rivals:
                library = "torch" if name == "plain loop" else name.split()[0]
                if name in found:
                    yield Row(what, own, name, library, *found[name])
                else:
                    yield Row(what, own, name, library, missing=missing[library])
