"""Power-function averages of a module's weights, of which an average of any width can be made afterwards."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .module_state import check_state, copy_tensors, exchanged, follow_module, module_state, other_names, widen
from .power_profile import admission, gamma_of
from .snapshots import Snapshot, list_snapshots

__all__ = ["PowerEMA"]


class PowerEMA:
    r"""Averages of the weights that remember a fixed share of the training, however long it is.

    .. math::
        \bar w_n = \beta_n \bar w_{n-1} + (1 - \beta_n) w_n, \quad \beta_n = (1 - 1/n)^{\gamma + 1},
        \qquad \bar w(t) = \int_0^t \tau^\gamma w(\tau) d\tau \Big/ \int_0^t \tau^\gamma d\tau.

    The recursion is the integral, with :math:`w(\tau) = w_n` on ``(n - 1, n]``. The weights from before the first
    update have no share in it. The standard deviation of the profile :math:`\tau^\gamma` is
    :math:`\sigma_{rel} t`, :math:`\sigma_{rel} = (\gamma + 1)^{1/2} (\gamma + 2)^{-1} (\gamma + 3)^{-1/2}`.

    Averages of one or two widths, stored a few tens of times along the training, are enough to make that of any other
    width, at the steps stored: :func:`genmatch.nn.reconstruct`. So the width is chosen after the training.

    Parameters
    ----------
    module
        The module being trained.
    sigma_rel
        Relative widths to be tracked, in ``(0, 12**-0.5]``; each costs the memory of the weights.
    every
        Updates from snapshot to snapshot; ``None`` takes none by itself.
    folder
        Where snapshots go as safetensors files; without it they stay in the host's memory, in :attr:`snapshots`.

    Attributes
    ----------
    sigma_rel
        The widths, a tuple.
    updates
        How many there were.

    Raises
    ------
    ValueError
        If a width is not in the interval or there twice, `every` is not positive, a folder is given without `every`, or
        the module has nothing to average.
    TypeError
        If an argument is of another type.

    Notes
    -----
    What is averaged, in which precision, and what is copied is as in :class:`EMA`. An update is one
    ``torch._foreach_lerp_`` for each width and reads nothing from the device. With `folder` a resumed training replaces
    the snapshots that it takes again; without one, snapshots are no part of :meth:`state_dict` and are lost when the
    process ends.

    References
    ----------
    .. [1] T. Karras et al., "Analyzing and improving the training dynamics of diffusion models",
       arXiv 2312.02696 (2023), Section 3.1 (equations 1 to 3) and Section 3.2.

    Examples
    --------
    >>> from genmatch.nn import reconstruct
    >>> network = nn.Linear(2, 1)
    >>> ema = PowerEMA(network, sigma_rel=(0.05, 0.10), every=2)
    >>> for _ in range(20):  # after each step of the optimiser
    ...     ema.update()
    >>> with ema.applied(0.05):  # the network has the averaged weights here
    ...     y = network(torch.zeros(1, 2))
    >>> network.load_state_dict(reconstruct(ema.snapshots, sigma_rel=0.07))
    <All keys matched successfully>
    """

    def __init__(
        self,
        module: nn.Module,
        sigma_rel: float | Sequence[float] = (0.05, 0.10),
        every: int | None = None,
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        if not isinstance(module, nn.Module):
            raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
        widths = (sigma_rel,) if isinstance(sigma_rel, int | float) else tuple(sigma_rel)
        if not widths or len({*widths}) < len(widths):
            raise ValueError(f"sigma_rel must be one or several different widths, got {sigma_rel}")
        self._gammas = [gamma_of(width) for width in widths]
        if every is not None and (isinstance(every, bool) or not isinstance(every, int)):
            raise TypeError(f"every must be an integer or None, got {every!r}")
        if every is not None and every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        if folder is not None and every is None:
            raise ValueError("a folder for snapshots needs every=..., the updates from one to the next")
        self.module, self.sigma_rel, self.every = module, tuple(map(float, widths)), every
        self.folder = None if folder is None else Path(folder)
        self.updates = 0
        self._applied = False
        self._held: list[Snapshot] = []
        averaged, copied = module_state(module)
        if not averaged:
            raise ValueError(f"{type(module).__name__} has no parameters to average")
        start = {name: widen(value).detach() for name, value in averaged.items()}
        self._averages = [{name: value.clone() for name, value in start.items()} for _ in widths]
        self._copied = {name: value.detach().clone() for name, value in copied.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the module's weights of now into the averages, and a snapshot if it is due.

        Raises
        ------
        RuntimeError
            Within :meth:`applied`.
        ValueError
            If parameters came or went.
        FileExistsError
            At the first update, if the folder holds snapshots: those of another training must not be mixed with these.
        """
        if self._applied:
            raise RuntimeError("update() within applied(): the module holds the average, not the trained weights")
        if not self.updates and self.folder is not None and list_snapshots(self.folder):
            raise FileExistsError(f"{self.folder} has snapshots of another training: give another folder or empty it")
        averaged, copied = module_state(self.module)
        for average in self._averages:
            follow_module(average, averaged)
        follow_module(self._copied, copied)
        self.updates += 1
        weights = [widen(parameter) for parameter in averaged.values()]
        for gamma, average in zip(self._gammas, self._averages, strict=True):
            torch._foreach_lerp_([*average.values()], weights, admission(gamma, self.updates))  # pyright: ignore[reportPrivateImportUsage]
        copy_tensors(self._copied, copied)
        if self.every is not None and self.updates % self.every == 0:
            self._store()

    @property
    def snapshots(self) -> list[Snapshot]:
        """The snapshots taken so far, one for each width and step; those of a folder are read."""
        if self.folder is None:
            return [*self._held]
        return [Snapshot.load(path) for path in list_snapshots(self.folder)]

    def snapshot(self) -> list[Snapshot]:
        """The averages of now, one for each width, as tensors of their own on the host.

        Raises ``RuntimeError`` before the first update: there is no average yet.
        """
        if not self.updates:
            raise RuntimeError("snapshot() before the first update(): there is no average yet")
        aliases = other_names(self.module)
        copies = {name: value.to("cpu", copy=True) for name, value in self._copied.items()}
        return [
            Snapshot(
                width, self.updates, {n: value.to("cpu", copy=True) for n, value in average.items()}, copies, aliases
            )
            for width, average in zip(self.sigma_rel, self._averages, strict=True)
        ]

    def _store(self) -> None:
        for snapshot in self.snapshot():
            if self.folder is None:
                self._held.append(snapshot)
            else:
                snapshot.save(self.folder)

    @contextmanager
    def applied(self, sigma_rel: float | None = None) -> Iterator[nn.Module]:
        """Put a tracked average, the first one by default, into the module; afterwards its own weights come back.

        They do so bit for bit, after an exception too, and tensors keep their places in memory.

        Raises
        ------
        ValueError
            If the width is not tracked; :func:`genmatch.nn.reconstruct` gives others.
        RuntimeError
            Within itself.
        """
        average = self._choose(sigma_rel)
        if self._applied:
            raise RuntimeError("applied() within applied(): the module already holds the average")
        self._applied = True
        try:
            with exchanged(self.module, {**average, **self._copied}):
                yield self.module
        finally:
            self._applied = False

    def copy(self, sigma_rel: float | None = None) -> nn.Module:
        """An independent copy of the module with a tracked average, in evaluation mode and without gradients."""
        average = self._choose(sigma_rel)
        if self._applied:
            raise RuntimeError("copy() within applied(): the module itself holds the average")
        module = copy.deepcopy(self.module).eval().requires_grad_(False)
        averaged, copied = module_state(module)
        copy_tensors({**averaged, **copied}, {**average, **self._copied})
        return module

    def _choose(self, sigma_rel: float | None) -> dict[str, Tensor]:
        if sigma_rel is None:
            return self._averages[0]
        if sigma_rel not in self.sigma_rel:
            raise ValueError(f"sigma_rel={sigma_rel} is not tracked ({self.sigma_rel}): reconstruct it from snapshots")
        return self._averages[self.sigma_rel.index(sigma_rel)]

    def state_dict(self) -> dict[str, Tensor]:
        """The averages, their widths and their count, tensors only, no two in one memory: safetensors can store it.

        As with modules, the tensors are those that later updates write to. Snapshots are not among them.
        """
        state = {"updates": torch.tensor(self.updates), "sigma_rel": torch.tensor(self.sigma_rel, dtype=torch.float64)}
        for i, average in enumerate(self._averages):
            # The first one has the names of an EMA, so genmatch.training.load(..., ema=True) finds it in a checkpoint.
            prefix = f"averaged_{i}" if i else "averaged"
            state |= {f"{prefix}.{name}": value for name, value in average.items()}
        return state | {f"copied.{name}": value for name, value in self._copied.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what :meth:`state_dict` gave.

        Raises
        ------
        ValueError
            If names, shapes or widths differ; nothing is changed then.
        """
        own = self.state_dict()
        check_state(own, state, f"a PowerEMA of {len(self.sigma_rel)} widths of this {type(self.module).__name__}")
        widths = tuple(state["sigma_rel"].tolist())
        if widths != self.sigma_rel:
            raise ValueError(f"the state has averages of sigma_rel={widths}, this object of {self.sigma_rel}")
        self.updates = int(state["updates"])
        del own["updates"], own["sigma_rel"]
        copy_tensors(own, {name: state[name] for name in own})

    def __repr__(self) -> str:
        return f"PowerEMA({type(self.module).__name__}, sigma_rel={self.sigma_rel}, updates={self.updates})"
