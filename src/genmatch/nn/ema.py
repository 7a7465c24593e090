"""The exponential moving average of a module's weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .module_state import check_state, copy_tensors, exchanged, follow_module, module_state, widen

__all__ = ["EMA"]


class EMA:
    r"""Exponential moving average of the weights, :math:`\bar w_n = d_n \bar w_{n-1} + (1 - d_n) w_n`.

    Parameters
    ----------
    module
        The module being trained. The average starts at its weights of now, :math:`\bar w_0`.
    decay
        d, in ``[0, 1)``; about 1 / (1 - d) updates are remembered.
    warmup
        Whether young averages forget faster, :math:`d_n = \min(d, (1 + n) / (10 + n))` for update n = 1, 2, ..., so
        that a short training is not averaged with the weights it started from; :math:`d_n = d` if not.

    Raises
    ------
    ValueError
        If `decay` is not in ``[0, 1)`` or the module has nothing to average.
    TypeError
        If `module` is not a module.

    Notes
    -----
    Parameters of a real or complex type are averaged, a shared one once, and those of less than 32 bits in float32:
    in bfloat16 a step of 1 - d would round to nothing. Buffers (persistent ones) and integer parameters are copied as
    they are at each update, not averaged. The average follows the module to another device.

    References
    ----------
    .. [1] B. Polyak and A. Juditsky, "Acceleration of stochastic approximation by averaging", 1992.
    .. [2] ``tf.train.ExponentialMovingAverage``, argument ``num_updates``: the warm-up.

    Examples
    --------
    >>> network = nn.Linear(2, 1)
    >>> ema = EMA(network, decay=0.999)
    >>> # after each step of the optimiser
    >>> ema.update()
    >>> with ema.applied():  # the network has the averaged weights here
    ...     y = network(torch.zeros(1, 2))
    >>> averaged = ema.copy()  # a network of its own
    """

    def __init__(self, module: nn.Module, decay: float = 0.9999, warmup: bool = True) -> None:
        if not isinstance(module, nn.Module):
            raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.module, self.decay, self.warmup = module, float(decay), bool(warmup)
        self.updates = 0
        self._applied = False
        averaged, copied = module_state(self.module)
        if not averaged:
            raise ValueError(f"{type(module).__name__} has no parameters to average")
        self._averaged = {name: widen(p).detach().clone() for name, p in averaged.items()}
        self._copied = {name: value.detach().clone() for name, value in copied.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the module's weights of now into the average."""
        if self._applied:
            raise RuntimeError("update() within applied(): the module holds the average, not the trained weights")
        averaged, copied = module_state(self.module)
        follow_module(self._averaged, averaged)
        follow_module(self._copied, copied)
        self.updates += 1
        weights = [widen(parameter) for parameter in averaged.values()]
        torch._foreach_lerp_([*self._averaged.values()], weights, 1 - self.effective_decay)  # pyright: ignore[reportPrivateImportUsage]
        copy_tensors(self._copied, copied)

    @property
    def effective_decay(self) -> float:
        """The decay that the latest update had."""
        return min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.warmup else self.decay

    @contextmanager
    def applied(self) -> Iterator[nn.Module]:
        """Put the average into the module; on leaving, by an exception too, its own weights come back bit for bit.

        The tensors keep their places in memory, so optimisers, compiled code and CUDA graphs go on working.
        """
        if self._applied:
            raise RuntimeError("applied() within applied(): the module already holds the average")
        self._applied = True
        try:
            with exchanged(self.module, {**self._averaged, **self._copied}):
                yield self.module
        finally:
            self._applied = False

    def copy(self) -> nn.Module:
        """An independent copy of the module with the averaged weights, in evaluation mode and without gradients."""
        if self._applied:
            raise RuntimeError("copy() within applied(): the module itself holds the average")
        module = copy.deepcopy(self.module).eval().requires_grad_(False)
        averaged, copied = module_state(module)
        copy_tensors({**averaged, **copied}, {**self._averaged, **self._copied})
        return module

    def state_dict(self) -> dict[str, Tensor]:
        """The average and its count, tensors only, no two in one memory: safetensors can store it.

        As with modules, the tensors are those that later updates write to.
        """
        state = {"updates": torch.tensor(self.updates)}
        state |= {f"averaged.{name}": value for name, value in self._averaged.items()}
        return state | {f"copied.{name}": value for name, value in self._copied.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what :meth:`state_dict` gave; decay and warm-up stay this object's own.

        Raises
        ------
        ValueError
            If names or shapes differ from the module's; nothing is changed then.
        """
        own = self.state_dict()
        check_state(own, state, f"an EMA of this {type(self.module).__name__}")
        self.updates = int(state["updates"])
        del own["updates"]
        copy_tensors(own, {name: state[name] for name in own})

    def __repr__(self) -> str:
        return f"EMA({type(self.module).__name__}, decay={self.decay:g}, warmup={self.warmup}, updates={self.updates})"
