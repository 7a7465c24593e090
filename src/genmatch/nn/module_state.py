"""The tensors of a module that an average of its weights holds, and the exchange of one for the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "check_state",
    "copy_tensors",
    "exchanged",
    "follow_module",
    "module_state",
    "other_names",
    "plain_name",
    "widen",
]


def module_state(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A module's tensors by name, each once: the ones to average, and the ones to copy."""
    averaged: dict[str, Tensor] = {}
    copied: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        averages = parameter.is_floating_point() or parameter.is_complex()
        (averaged if averages else copied)[plain_name(name)] = parameter
    buffers = dict(module.named_buffers())
    if buffers:  # else the walk that tells the persistent ones is for nothing, at every step of a training
        stored = module.state_dict(keep_vars=True)
        copied |= {plain_name(name): buffer for name, buffer in buffers.items() if name in stored}
    return averaged, copied


def other_names(module: nn.Module) -> dict[str, str]:
    """The further names of shared tensors in a module's state, each with the one :func:`module_state` gives."""
    averaged, copied = module_state(module)
    first = {id(tensor): name for name, tensor in {**averaged, **copied}.items()}
    state = {plain_name(name): tensor for name, tensor in module.state_dict(keep_vars=True).items()}
    return {name: first[id(tensor)] for name, tensor in state.items() if first.get(id(tensor), name) != name}


def plain_name(name: str) -> str:
    """A tensor's name without what ``torch.compile`` puts before the names of the module it wraps."""
    return name.replace("_orig_mod.", "")


def widen(tensor: Tensor) -> Tensor:
    """The tensor in its own precision, float32 at least."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@torch.no_grad()
def copy_tensors(targets: Mapping[str, Tensor], sources: Mapping[str, Tensor]) -> None:
    """Write each source into the target of its name."""
    for name, target in targets.items():
        target.copy_(sources[name])


def follow_module(mine: dict[str, Tensor], live: Mapping[str, Tensor]) -> None:
    """Check that a module still has the tensors that an average began with, and move the average where it went.

    Raises
    ------
    ValueError
        If there are others.
    """
    if mine.keys() != live.keys():
        changed = sorted(mine.keys() ^ live.keys())
        raise ValueError(f"parameters came or went since this average began, {changed[:3]}: begin a new EMA")
    for name, value in live.items():
        if mine[name].device != value.device:
            mine[name] = mine[name].to(value.device)


def check_state(own: Mapping[str, Tensor], state: Mapping[str, Any], owner: str) -> None:
    """Raise ``ValueError`` naming ``owner`` if a state to be loaded differs from its own in names or shapes."""
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unknown:
        raise ValueError(
            f"the state is not one of {owner}: "
            f"missing {missing[:3]} ({len(missing)}), unknown {unknown[:3]} ({len(unknown)})"
        )
    for name, value in own.items():
        if state[name].shape != value.shape:
            raise ValueError(f"{name} has shape {tuple(state[name].shape)}, the module's is {tuple(value.shape)}")


@contextmanager
def exchanged(module: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[nn.Module]:
    """The module with other values in its tensors; on leaving, by an exception too, its own come back bit for bit."""
    averaged, copied = module_state(module)
    live = {**averaged, **copied}
    kept = {name: value.detach().clone() for name, value in live.items()}
    try:
        copy_tensors(live, tensors)
        yield module
    finally:
        averaged, copied = module_state(module)  # not those of before: a move to another device makes new buffers
        copy_tensors({**averaged, **copied}, kept)
