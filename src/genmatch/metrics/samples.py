"""What a metric measures: batches of samples, checked at the door and turned into float64 matrices ``(n, d)``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..random import Draws

__all__ = ["Features", "check_count", "check_finite", "embed", "flatten", "rows", "same_width", "shuffled"]

Features = Callable[[Tensor], Tensor]  # (B, *S) -> (B, d)


def check_count(name: str, value: int, least: int = 1) -> None:
    """Raise unless ``value`` is an integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_finite(name: str, x: Tensor, what: str = "values") -> None:
    """Raise if a real floating-point tensor holds NaN or infinity, or is not one."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}: torch.as_tensor makes one of an array")
    if not x.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {x.dtype}: call .float() if the {what} are numbers")
    wrong = int((~torch.isfinite(x)).sum())
    if wrong:
        raise ValueError(
            f"{name} holds {wrong} non-finite {what} (NaN or infinity) among {x.numel()}: "
            "find where they come from; a metric that left them out would flatter the model"
        )


def flatten(name: str, x: Tensor, least: int = 1) -> Tensor:
    """Samples ``(n, *S)`` as a float64 matrix ``(n, d)``, every element one coordinate.

    Raises
    ------
    TypeError
        If ``x`` is no floating-point tensor.
    ValueError
        If it has no batch dimension, fewer than ``least`` samples, no coordinates, or values that are not finite.
    """
    check_finite(name, x)
    if x.ndim == 0:
        raise ValueError(f"{name} must have shape (n, *S) with a leading sample dimension, got a single number")
    if len(x) < least:
        raise ValueError(f"{name} has {len(x)} samples, needs at least {least}")
    if x.numel() == 0:
        raise ValueError(f"{name} has samples without elements: its shape is {tuple(x.shape)}")
    return x.detach().reshape(len(x), -1).double()


def rows(name: str, x: Tensor, least: int = 1) -> Tensor:
    """Features ``(n, d)`` as a float64 matrix; anything else is refused, with the way out.

    Raises
    ------
    TypeError
        If ``x`` is no floating-point tensor.
    ValueError
        If it is not a matrix, has fewer than ``least`` rows, or values that are not finite.
    """
    if isinstance(x, Tensor) and x.ndim != 2:
        raise ValueError(
            f"{name} must be features of shape (n, d), got {tuple(x.shape)}: "
            "give features=network to map samples to features, or flatten(1) to measure raw coordinates"
        )
    return flatten(name, x, least)


def embed(name: str, x: Tensor, features: Features | None, batch_size: int = 256) -> Iterator[Tensor]:
    """The features of samples, batch by batch, as float64 matrices.

    Parameters
    ----------
    x
        ``(n, *S)`` samples, or ``(n, d)`` features if ``features`` is None.
    features
        Maps ``(B, *S)`` to ``(B, d)``. A module runs in evaluation mode, without gradients, and is then put back in
        the mode it was in.
    batch_size
        Samples per call.

    Raises
    ------
    TypeError
        If ``features`` is not callable, or does not return a floating-point tensor.
    ValueError
        If ``features`` returns another shape than ``(B, d)``.
    """
    check_count("batch_size", batch_size)
    if features is None:
        yield from rows(name, x).split(batch_size)
        return
    if not callable(features):
        raise TypeError(f"features must map a batch to (B, d) features, got {type(features).__name__}")
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if x.ndim == 0 or len(x) == 0:
        raise ValueError(f"{name} must have shape (n, *S) with n of at least 1, got {tuple(x.shape)}")
    if x.is_floating_point():
        check_finite(name, x)
    with torch.no_grad(), _evaluation(features):
        for batch in x.split(batch_size):
            out = features(batch)
            if not isinstance(out, Tensor) or out.ndim != 2 or len(out) != len(batch):
                got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
                raise ValueError(f"features must return ({len(batch)}, d) for {len(batch)} samples, got {got}")
            yield flatten(f"features of {name}", out)


@contextmanager
def _evaluation(features: Features) -> Iterator[None]:
    """Dropout and batch statistics would make a feature depend on the draw and on the batch."""
    modes = [(module, module.training) for module in features.modules()] if isinstance(features, nn.Module) else []
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def same_width(names: tuple[str, str], x: Tensor, y: Tensor) -> None:
    """Raise unless two matrices have as many columns and are on one device."""
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"{names[0]} and {names[1]} must have samples of one size, got {x.shape[1]} and {y.shape[1]} coordinates"
        )
    if x.device != y.device:
        raise ValueError(f"{names[0]} is on {x.device} and {names[1]} on {y.device}: move them to one device")


def shuffled(x: Tensor, seed: int | None, stream: int = 1) -> Tensor:
    """The rows in a random order, a function of the seed, of the number of rows and of nothing else."""
    keys = Draws(seed, len(x), device=x.device).fork(stream).bits((len(x),))
    return x[keys.argsort(stable=True)]
