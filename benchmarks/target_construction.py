"""The training loss around a network that costs nothing: times, noise, the state in between, the target, the error.

Every library makes the same from a batch of data: a uniform time for each sample, normal noise, the state between the
two, the regression target, and the mean squared distance of what the network says, here the state itself, from it.
Each is called as its documentation has it. Ours draws counter-based numbers by default, which do not depend on the
batch; "noise given" leaves the drawing of the noise out on both sides. Ours checks its input besides, NaN in the data
among it. "In a training step" is the same loss around a small U-Net of ours, with its gradient: what the difference
comes to where a network is trained.

Run it as ``python benchmarks --only target``.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from _suite import Peer, Row, Run, Scale, compare
from torch import Tensor, nn

import genmatch as gm

__all__ = ["rows"]


class Same(nn.Module):
    """x -> x, whatever the time."""

    def forward(self, x: Tensor, t: Tensor, **extras: Tensor) -> Tensor:
        return x


def torchcfm(network: nn.Module, x1: Tensor, x0: Tensor | None) -> Callable[[], Tensor]:
    library = importlib.import_module("torchcfm.conditional_flow_matching")
    matcher = library.ConditionalFlowMatcher(sigma=0.0)

    def run() -> Tensor:
        t, x, target = matcher.sample_location_and_conditional_flow(torch.randn_like(x1) if x0 is None else x0, x1)
        return F.mse_loss(network(x, t), target)

    return run


def flow_matching(network: nn.Module, x1: Tensor, x0: Tensor | None) -> Callable[[], Tensor]:
    scheduler = importlib.import_module("flow_matching.path.scheduler").CondOTScheduler()
    path = importlib.import_module("flow_matching.path").AffineProbPath(scheduler=scheduler)

    def run() -> Tensor:
        t = torch.rand(len(x1))
        found = path.sample(t=t, x_0=torch.randn_like(x1) if x0 is None else x0, x_1=x1)
        return F.mse_loss(network(found.x_t, t), found.dx_t)

    return run


def diffusers(network: nn.Module, x1: Tensor, x0: Tensor | None) -> Callable[[], Tensor]:
    scheduler = importlib.import_module("diffusers").DDPMScheduler()
    steps = scheduler.config.num_train_timesteps

    def run() -> Tensor:
        noise = torch.randn_like(x1) if x0 is None else x0
        t = torch.randint(0, steps, (len(x1),))
        return F.mse_loss(network(scheduler.add_noise(x1, noise, t), t), noise)

    return run


def azula(network: nn.Module, x1: Tensor, x0: None) -> Run:  # draws the noise itself
    noise, denoise = (importlib.import_module(f"azula.{name}") for name in ("noise", "denoise"))
    denoiser = denoise.KarrasDenoiser(network, noise.VPSchedule())
    return lambda: denoiser.loss(x1, torch.rand(len(x1)))


def rows(scale: Scale) -> Iterator[Row]:
    """A row for each library, on points and on images."""
    torch.manual_seed(0)
    for shape in scale.pick(((256, 2), (64, 3, 32, 32)), ((256, 2), (64, 3, 32, 32)), ((4, 2),)):
        x1, given = torch.randn(shape), torch.randn(shape)
        for noise, x0 in (("noise drawn", None), ("noise given", given)):
            yield from beside(f"{' x '.join(map(str, shape))}, {noise}", Same(), x1, x0, scale)
    batch, side = scale.pick(16, 4, 2), scale.pick(32, 32, 8)
    unet = gm.nn.UNet(3, width=32, multipliers=(1, 2), blocks=1, groups=4)
    yield from beside(
        f"{batch} x 3 x {side} x {side}, in a training step", unet, torch.randn(batch, 3, side, side), None, scale
    )


def beside(what: str, network: nn.Module, x1: Tensor, x0: Tensor | None, scale: Scale) -> Iterator[Row]:
    """The rows of one batch: three losses of ours, each beside the libraries that have it."""
    train = isinstance(network, gm.nn.UNet)
    kinds = (
        (
            "flow",
            gm.predict.Velocity(network, gm.GaussianPath()),
            {"torchcfm": torchcfm, "flow_matching": flow_matching},
        ),
        ("DDPM", gm.predict.Noise(network, gm.GaussianPath(gm.schedules.DDPM())), {"diffusers": diffusers}),
        ("Karras", gm.predict.Karras(network, gm.GaussianPath(gm.schedules.EDM())), {"azula": azula}),
    )
    for name, model, peers in kinds[: 2 if x0 is not None else 1 if train else 3]:
        own = functools.partial(gm.matching_loss, model, x1, x0=x0)
        makes = {key: functools.partial(make, network, x1, x0) for key, make in peers.items()}
        if train:
            own, makes = backward(own), {key: lambda make=make: backward(make()) for key, make in makes.items()}
        rivals = [Peer(f"{key} loss", key, make) for key, make in makes.items()]
        yield from compare(what, f"matching_loss, {name}", own, rivals, scale.repeats(15), least=scale.least)


def backward(loss: Callable[[], Tensor]) -> Run:
    """The loss with its gradient."""
    return lambda: loss().backward()
