"""Activation checkpointing that stays out of the way of derivatives taken by torch.func."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

__all__ = ["in_transform", "run", "wanted"]


def in_transform() -> bool:
    """Whether a derivative is being taken by ``torch.func``, or forwards: what is computed again has none."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0  # type: ignore[attr-defined]


def wanted(network: nn.Module) -> bool:
    """Whether this call of a network with the option ``checkpoint`` should keep no activations inside its parts."""
    return bool(network.checkpoint) and network.training and torch.is_grad_enabled() and not in_transform()


def run(part: nn.Module, *inputs: Any, again: bool) -> Any:
    """A part's output; with `again` it is computed once more for the backward pass instead of being kept."""
    return checkpoint(part, *inputs, use_reentrant=False) if again else part(*inputs)
