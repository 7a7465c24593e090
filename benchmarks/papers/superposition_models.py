"""The models of the study of superpositions: one body, trained to tell velocity, noise, jump rates, or two at once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import genmatch as gm
from genmatch.generators import Operator
from genmatch.solvers import Solver

from ..robustness.record import interval
from . import models, networks
from .images import Images
from .models import Network, Recipe, Trained
from .scale import Scale

__all__ = [
    "EDGES",
    "Binned",
    "Remembering",
    "calls",
    "digits",
    "equal",
    "frechet_of",
    "levels",
    "made",
    "summary",
    "widened",
]

PATH = gm.GaussianPath(gm.schedules.CondOT())
LEVEL = 1 / 8  # between two of the 17 grey levels of scikit-learn's digits
EDGES = LEVEL * (torch.arange(28) - 13.5)  # 27 bins, a grey level in the middle of each, that hold all landings
START = 1 / (1 + math.e**5)  # log-SNR -10 on the linear path
FRESH = 400  # seed of the noise that images are made of


class Binned(nn.Module):
    """The channels of a network of one-channel images as what :class:`genmatch.predict.Rates` takes.

    ``(B, K + 1, H, W)`` becomes ``(B, 1, H, W, K + 1)``.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.network(x, t).movedim(1, -1).unsqueeze(1)


class Remembering(nn.Module):
    """A network that is not run twice on the same states and times: two heads read it one after the other.

    What it remembers is dropped when a weight changes, and where gradients are asked for that it has not.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.kept: tuple[tuple[int, ...], Tensor, Tensor, Tensor] | None = None

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        stamp = (torch.is_grad_enabled(), self.training, *(p._version for p in self.parameters()))
        if self.kept is not None:
            known, at, time, output = self.kept
            if known == stamp and at.shape == x.shape and torch.equal(at, x) and torch.equal(time, t):
                return output
        output = self.network(x, t)
        self.kept = (stamp, x.clone(), t.clone(), output)  # a solver may go on in the buffer of the state
        return output


class Head(nn.Module):
    """Some of a network's output channels."""

    def __init__(self, body: nn.Module, first: int, last: int | None) -> None:
        super().__init__()
        self.body, self.channels = body, slice(first, last)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.body(x, t)[:, self.channels]


def widened(build: Network, outputs: int) -> Network:
    """The same U-Net with another number of output channels: of one seed all weights but the last layer's are equal."""

    def wide(time_scale: float) -> nn.Module:
        network = build(time_scale)
        last: Any = network.output
        network.output = nn.Conv2d(last.in_channels, outputs, 3, padding=1)
        nn.init.zeros_(network.output.weight)
        nn.init.zeros_(network.output.bias)  # type: ignore[arg-type]
        return network

    return wide


def _noise(network: nn.Module) -> gm.Predictor:
    return gm.predict.Noise(network, PATH)


def _jump(network: nn.Module) -> gm.Predictor:
    return gm.predict.Rates(Binned(network), PATH, EDGES)


def _joint(network: nn.Module) -> nn.Module:
    """A velocity and a jump of one body: the loss of such a list is the sum of its parts' losses."""
    body = Remembering(network)
    velocity = gm.predict.Velocity(Head(body, 0, 1), PATH)
    return nn.ModuleList([velocity, gm.predict.Rates(Binned(Head(body, 1, None)), PATH, EDGES)])


OUTPUTS = {"flow": 1, "noise": 1, "jump": len(EDGES), "joint": len(EDGES) + 1}
OWN: dict[str, Callable[[nn.Module], Any]] = {"noise": _noise, "jump": _jump, "joint": _joint}
models.KINDS.update(OWN)
models.TIMES.update(dict.fromkeys(OWN, models.TIMES["flow"]))


def digits(images: Images, scale: Scale, kind: str, longer: int = 1) -> tuple[list[Trained], list[dict[str, Any]]]:
    """Models of digits of three seeds at the rate of the least held-out loss, and what the search tried.

    On a CPU they are trained ``longer`` times as long as in the search.

    ``"flow"`` (a velocity network), ``"noise"``, ``"jump"`` and ``"joint"`` differ in what they are told to predict
    and, for jumps, in the last layer: images, path, body, seeds, steps and rates that are tried are the same.
    """
    name, build = networks.network(images, scale)
    outputs = OUTPUTS[kind]
    if outputs > 1:
        name, build = f"{name}-{outputs}", widened(build, outputs)

    def recipe(lr: float, seed: int, longer: int = 1) -> Recipe:
        steps = scale.pick(6, 1000 * longer, 20000)
        return replace(networks.recipe(images, scale, kind, lr=lr, seed=seed), network=name, steps=steps)

    best, tried = models.search(images, [recipe(lr, 0) for lr in models.RATES], build, scale)
    seeds = scale.pick(networks.SEEDS[:2], networks.SEEDS, networks.SEEDS)
    return [models.train(images, recipe(best.lr, seed, longer), build, scale) for seed in seeds], tried


def equal(steps: int) -> Tensor:
    """Equal steps from log-SNR -10, where a noise network already says something of the data, to the data."""
    return gm.grids.uniform(steps, START, 1.0)


def levels(images: Tensor) -> Tensor:
    """Every pixel at the nearest of the 17 grey levels that scanned digits have."""
    return (images / LEVEL).round().clamp(-8, 8) * LEVEL


class Calls:
    """Counts the runs of the U-Nets in a module while it is a context."""

    def __init__(self, module: nn.Module) -> None:
        self.networks = [m for m in module.modules() if isinstance(m, gm.nn.UNet)]
        self.count = 0

    def __enter__(self) -> Calls:
        self.hooks = [m.register_forward_hook(self._seen) for m in self.networks]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _seen(self, *_: object) -> None:
        self.count += 1


def calls(operator: Operator, images: Images, times: Tensor, solver: Solver | None) -> int:
    """How often networks are run for one image."""
    x = images.train[:1] * 0 + gm.Draws(FRESH, 1, device=images.train.device).normal((1, *images.shape))
    with Calls(operator) as seen:
        gm.sample(operator, x, times=times, solver=solver, seed=FRESH)
    return seen.count


class Made(NamedTuple):
    """Images, and the seconds of processor time (of the clock on a GPU) that one of them took."""

    images: Tensor
    seconds: float


def made(
    images: Images,
    operator: Operator,
    count: int,
    scale: Scale,
    *,
    times: Tensor,
    solver: Solver | None = None,
    seed: int = 0,
    batch_size: int = 250,
) -> Made | None:
    """Images of a process, from noise that the seed gives, the same for all processes; ``None`` if one diverged."""
    clock = time.process_time if scale.device == "cpu" else time.perf_counter
    x = gm.Draws(FRESH + seed, count, device=scale.device).normal((count, *images.shape))
    try:
        begin = clock()
        found = gm.sample(operator, x, times=times, solver=solver, seed=FRESH + seed, batch_size=batch_size)
        scale.wait()
    except FloatingPointError:
        return None
    return Made(found, (clock() - begin) / count)


def frechet_of(images: Images, found: Made | None, finish: Callable[[Tensor], Tensor] | None = None) -> float | None:
    """Frechet distance from the training images; ``None`` for what diverged."""
    if found is None:
        return None
    return images.frechet(found.images if finish is None else finish(found.images))


def summary(values: Sequence[float | None]) -> dict[str, Any]:
    """Values of the seeds with their geometric mean and its 95% interval; of those that did not diverge."""
    finite = [v for v in values if v is not None]
    kept: dict[str, Any] = dict.fromkeys(("mean", "low", "high"))
    if finite:
        kept = interval(finite, log=True)._asdict()
    return {"values": list(values), "diverged": len(values) - len(finite), **kept}
