"""Optimisers: the default one, what identifies one, and its state to the last bit."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["choose_optimizer", "describe_optimizer", "optimizer_state", "restore_optimizer"]

# How a step is computed rather than which: they follow the device of this run, not the one that was stored.
_IMPLEMENTATION = frozenset({"foreach", "fused", "capturable", "differentiable"})
LR = 2e-4


def choose_optimizer(model: nn.Module, optimizer: Optimizer | None, lr: float | None) -> Optimizer:
    """The given optimiser, checked against the model, or AdamW over what is trainable."""
    if optimizer is None:
        lr = LR if lr is None else lr
        if not (isinstance(lr, int | float) and math.isfinite(lr) and lr > 0):
            raise ValueError(f"lr must be a positive number, got {lr!r}")
        parameters = [p for p in model.parameters() if p.requires_grad]
        if not parameters:
            raise ValueError(f"{type(model).__name__} has no parameter to train")
        fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
        return torch.optim.AdamW(parameters, lr=float(lr), fused=fused or None)
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch optimiser or None, got {type(optimizer).__name__}")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise TypeError("LBFGS evaluates the loss several times a step: it needs a loop of its own")
    if lr is not None:
        raise ValueError("give lr to the optimiser, or leave the optimiser to fit: with both, one would be ignored")
    own = {id(p) for p in model.parameters()}
    strangers = sum(id(p) not in own for group in optimizer.param_groups for p in group["params"])
    if strangers:
        raise ValueError(
            f"the optimiser holds {strangers} parameters that are not the model's: make it from model.parameters() of "
            "the model that is trained (a parameter elsewhere would be lost when the run resumes)"
        )
    return optimizer


def describe_optimizer(optimizer: Optimizer) -> dict[str, Any]:
    """What must agree for a run to go on, as JSON: the class, and each group's hyperparameters and size."""
    groups = {}
    for i, group in enumerate(optimizer.param_groups):
        groups |= {
            f"optimizer.{i}.{name}": _plain(value)
            for name, value in group.items()
            if name != "params" and name not in _IMPLEMENTATION
        }
        groups[f"optimizer.{i}.parameters"] = len(group["params"])
    return {"optimizer": type(optimizer).__name__, "optimizer groups": len(optimizer.param_groups), **groups}


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def optimizer_state(optimizer: Optimizer) -> dict[str, Any]:
    """The state and the groups' hyperparameters (some optimisers keep counters there)."""
    state = optimizer.state_dict()
    groups = [
        {name: value for name, value in group.items() if name != "params" and name not in _IMPLEMENTATION}
        for group in state["param_groups"]
    ]
    return {"state": state["state"], "groups": groups}


def restore_optimizer(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """Put back what :func:`optimizer_state` gave, exactly."""
    current = optimizer.state_dict()["param_groups"]
    groups = [{**own, **group} for own, group in zip(current, saved["groups"], strict=True)]
    optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
    # load_state_dict chooses the devices, but casts to the parameter's dtype: float32 moments of bfloat16 weights
    # would lose bits.
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, parameter in enumerate(parameters):
        state = optimizer.state.get(parameter, {})
        for name, value in state.items():
            if isinstance(value, Tensor):
                state[name] = saved["state"][index][name].to(value.device)
