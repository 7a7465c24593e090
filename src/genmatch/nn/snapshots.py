"""Stored power-function averages, and the average of any other width made of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .power_profile import gamma_of, mix_profiles

__all__ = ["Snapshot", "list_snapshots", "reconstruct"]

_HEADER = "genmatch_power_ema"


@dataclass(frozen=True)
class Snapshot:
    """One power-function average of a module as it was after some updates.

    Attributes
    ----------
    sigma_rel
        Relative width of its profile.
    step
        Updates it had seen.
    averaged
        The averaged tensors by name, in float32 at least, each once.
    copied
        Buffers and integer parameters of that step.
    aliases
        The other names of shared tensors.
    """

    sigma_rel: float
    step: int
    averaged: Mapping[str, Tensor] = field(repr=False)
    copied: Mapping[str, Tensor] = field(repr=False)
    aliases: Mapping[str, str] = field(repr=False)

    @property
    def file_name(self) -> str:
        """What the file of this snapshot is called in a folder."""
        return f"step_{self.step:010d}_sigma_{self.sigma_rel!r}.safetensors"

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write it into a folder, which is made if missing, in one step: a file of its name is whole at any moment."""
        path = Path(folder) / self.file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        facts = {"sigma_rel": self.sigma_rel, "step": self.step, "copied": [*self.copied], "aliases": {**self.aliases}}
        tensors = {name: value.detach().cpu().contiguous() for name, value in {**self.averaged, **self.copied}.items()}
        part = path.with_suffix(".part")
        save_file(tensors, str(part), metadata={_HEADER: json.dumps(facts)})
        os.replace(part, path)
        return path

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Snapshot:
        """Read a file that :meth:`save` wrote.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If it is damaged or no snapshot.
        """
        facts, tensors = _read(Path(path), tensors=True)
        copied = {name: tensors.pop(name) for name in facts["copied"]}
        return Snapshot(facts["sigma_rel"], facts["step"], tensors, copied, facts["aliases"])


def _read(path: Path, tensors: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            text = (file.metadata() or {}).get(_HEADER)
            # Cloned: safetensors maps the file, which a resumed run may replace.
            held = {name: file.get_tensor(name).clone() for name in file.keys()} if tensors else {}  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged or not a safetensors file: {error}") from error
    if text is None:
        raise ValueError(f"{path} is no snapshot of a PowerEMA: other safetensors files belong in another folder")
    return json.loads(text), held


def list_snapshots(folder: str | os.PathLike[str]) -> list[Path]:
    """The snapshot files in a folder, oldest first; none if there is no such folder."""
    return sorted(Path(folder).glob("step_*_sigma_*.safetensors"))


def reconstruct(
    snapshots: Iterable[Snapshot] | str | os.PathLike[str],
    sigma_rel: float,
    step: int | None = None,
    *,
    tolerance: float = 0.1,
) -> dict[str, Tensor]:
    r"""The power-function average of any width, after the training, out of stored averages of other widths.

    The snapshots are averages with profiles :math:`p_{\gamma_i, t_i}`, so a sum of them with coefficients c is the
    average with the profile :math:`\sum_i c_i p_{\gamma_i, t_i}`. The c taken are those of least squares,

    .. math:: \min_c \Big\| \sum_i c_i p_{\gamma_i, t_i} - p_{\gamma, t} \Big\|^2, \qquad \sum_i c_i = 1,

    whose inner products have a closed form. The constraint is this library's: it leaves weights that do not move where
    they are, and makes the error on random walks 2 to 3 times less where snapshots are few.

    Parameters
    ----------
    snapshots
        Those of :class:`genmatch.nn.PowerEMA`, or the folder they are in, of which one at a time is then read.
    sigma_rel
        Relative width of the average wanted, in ``(0, 12**-0.5]``.
    step
        The update after which it is wanted, the latest of the snapshots by default. Profiles end abruptly, so only
        those of steps that have snapshots are approached well.
    tolerance
        The largest :math:`\| \sum_i c_i p_i - p \| / \| p \|` that is accepted.

    Returns
    -------
    The averaged weights, in float32 at least, and the buffers of the snapshot nearest to `step`, by name, on the CPU:
    ``module.load_state_dict(...)`` takes them.

    Raises
    ------
    FileNotFoundError
        If the folder holds no snapshot.
    ValueError
        If there is no snapshot, two are the same, they are of different modules, `step` is after the last one, or the
        error of the profile is above the tolerance.

    References
    ----------
    .. [1] T. Karras et al., "Analyzing and improving the training dynamics of diffusion models",
       arXiv 2312.02696 (2023), Section 3.2 and Appendix C.
    """
    gamma = gamma_of(sigma_rel)
    entries = _entries(snapshots)
    profiles = [(gamma_of(width), float(at)) for width, at, _ in entries]
    last = max(at for _, at, _ in entries)
    step = last if step is None else step
    if isinstance(step, bool) or not isinstance(step, int):
        raise TypeError(f"step must be an integer, got {step!r}")
    if not 1 <= step <= last:
        raise ValueError(f"step must be from 1 to {last}, that of the last snapshot, got {step}")
    if len({(width, at) for width, at, _ in entries}) < len(entries):
        raise ValueError("two snapshots have the same sigma_rel and step: give each once, and of one training only")
    if not tolerance > 0:
        raise ValueError(f"tolerance must be positive, got {tolerance}: 0.1 is usual")
    coefficients, error = mix_profiles(profiles, (gamma, float(step)))
    if error > tolerance:
        raise ValueError(
            f"{len(entries)} snapshots give the profile of sigma_rel={sigma_rel} at step {step} with a relative error "
            f"of {error:.2g}, above tolerance={tolerance}: choose the step of a snapshot, take them of two widths and "
            f"more often (about every sigma_rel * step updates), or raise the tolerance"
        )
    nearest = min(range(len(entries)), key=lambda i: abs(entries[i][1] - step))
    return _sum([read for _, _, read in entries], coefficients.tolist(), nearest)


def _entries(
    snapshots: Iterable[Snapshot] | str | os.PathLike[str],
) -> list[tuple[float, int, Callable[[], Snapshot]]]:
    """(sigma_rel, step, how to get it) of each snapshot."""
    if isinstance(snapshots, str | os.PathLike):
        paths = list_snapshots(snapshots)
        if not paths:
            raise FileNotFoundError(f"there is no snapshot of a PowerEMA in {Path(snapshots)}")
        facts = [_read(path, tensors=False)[0] for path in paths]
        return [(f["sigma_rel"], f["step"], partial(Snapshot.load, p)) for f, p in zip(facts, paths, strict=True)]
    held = list(snapshots)
    for snapshot in held:
        if not isinstance(snapshot, Snapshot):
            raise TypeError(f"snapshots must be those of a PowerEMA or a folder, got a {type(snapshot).__name__}")
    if not held:
        raise ValueError("snapshots is empty: PowerEMA(..., every=n) takes one at every n-th update")
    return [(each.sigma_rel, each.step, partial(_same, each)) for each in held]


def _same(snapshot: Snapshot) -> Snapshot:
    return snapshot


def _sum(reads: list[Callable[[], Snapshot]], coefficients: list[float], nearest: int) -> dict[str, Tensor]:
    """The weighted sum of snapshots, read one at a time and summed in float64."""
    total: dict[str, Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    copied, aliases = {}, {}
    for i, (read, coefficient) in enumerate(zip(reads, coefficients, strict=True)):
        snapshot = read()
        forms = {name: (value.shape, value.dtype) for name, value in snapshot.averaged.items()}
        if not total:
            dtypes = {name: dtype for name, (_, dtype) in forms.items()}
            total = {
                name: torch.zeros(shape, dtype=torch.promote_types(dtype, torch.float64))
                for name, (shape, dtype) in forms.items()
            }
        elif forms != {name: (value.shape, dtypes[name]) for name, value in total.items()}:
            raise ValueError(f"the snapshots are of different modules: that of step {snapshot.step} has other tensors")
        for name, value in snapshot.averaged.items():
            total[name].add_(value.to("cpu", total[name].dtype), alpha=coefficient)
        if i == nearest:
            copied = {name: value.detach().cpu().clone() for name, value in snapshot.copied.items()}
            aliases = snapshot.aliases
    state = {name: value.to(dtypes[name]) for name, value in total.items()} | copied
    return state | {name: state[other] for name, other in aliases.items()}
