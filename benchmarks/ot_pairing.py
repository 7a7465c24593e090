"""Minibatch optimal transport: noise paired with data at the least squared distance, beside torchcfm and POT.

All solve the same assignment exactly. What they return is not the same: ours is a permutation, each sample used once;
torchcfm draws pairs from the plan with replacement, so that about 37 % of a batch is dropped (``kept`` is the share of
the data that is left); POT returns the plan, of which the pairing is the greatest entry of each row. ``cost`` is the
mean squared distance of the pairs, over that of ours.

Run it as ``python benchmarks --only pairing``.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from _suite import Peer, Row, Scale, compare
from torch import Tensor

import genmatch as gm

__all__ = ["rows"]

Pairs = Callable[[], tuple[Tensor, Tensor]]


def ours(x0: Tensor, x1: Tensor) -> Pairs:
    coupling, draws = gm.couplings.OT(), gm.Draws(0, len(x0))
    return lambda: coupling(x0, x1, None, draws)[:2]


def torchcfm(x0: Tensor, x1: Tensor) -> Pairs:
    sampler = importlib.import_module("torchcfm.optimal_transport").OTPlanSampler("exact")
    return lambda: sampler.sample_plan(x0, x1)


def pot(x0: Tensor, x1: Tensor) -> Pairs:
    library = importlib.import_module("ot")
    weights = library.unif(len(x0))

    def run() -> tuple[Tensor, Tensor]:
        cost = torch.cdist(x0.flatten(1), x1.flatten(1)).square()
        plan = library.emd(weights, weights, cost.numpy())
        return x0, x1[torch.as_tensor(plan.argmax(1))]

    return run


PEERS = {"torchcfm": ("OTPlanSampler, exact", torchcfm), "POT": ("emd, greatest entries", pot)}


def rows(scale: Scale) -> Iterator[Row]:
    """A row for each library and size."""
    torch.manual_seed(0)
    for shape in scale.pick(((2,), (1, 28, 28)), ((2,), (1, 28, 28)), ((2,),)):
        for batch in scale.pick((64, 256, 1024), (64, 256), (8,)):
            x0, x1 = torch.randn(batch, *shape), torch.rand(batch, *shape) ** 3
            makes = {name: functools.partial(make, x0, x1) for name, (_, make) in PEERS.items()}
            own = ours(x0, x1)
            least = distance(*own())
            for row in compare(
                f"{batch} x {' x '.join(map(str, shape))}",
                "gm.couplings.OT()",
                own,
                [Peer(title, name, makes[name]) for name, (title, _) in PEERS.items()],
                scale.repeats(9 if batch < 1024 else 5),
                least=scale.least,
            ):
                if row.missing:
                    yield row
                    continue
                first, second = makes[row.library]()()
                kept = len(torch.unique(second.flatten(1), dim=0)) / batch
                yield replace(row, notes={"cost": distance(first, second) / least, "kept": kept})


def distance(x0: Tensor, x1: Tensor) -> float:
    """Mean squared distance of pairs."""
    return (x0 - x1).double().flatten(1).square().sum(1).mean().item()
