"""Checkpoints of a run: one file, and the one before it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from .files import read_tensors, write_tensors
from .tree import pack, unpack
from .weights import check_format

__all__ = ["Checkpoint", "Resume", "Saved", "check_settings"]

Resume = bool | Literal["previous"]
_FOREIGN = {".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle", ".npz"}


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds."""

    path: Path
    step: int
    settings: dict[str, Any]
    aliases: dict[str, str]
    state: dict[str, Any]


class Checkpoint:
    """Where a run keeps its state: ``checkpoint.safetensors`` in a folder, or a file of that ending.

    The checkpoint before the last stays beside it, as ``NAME.previous.safetensors``. Writing is atomic (see
    :mod:`genmatch.training.files`), so a run killed at any moment leaves a whole checkpoint. A damaged one (a failing
    disk, a copy cut short) raises and names the other; it is never replaced by the other in silence, as the user should
    know that a stretch of the run is lost.
    """

    def __init__(self, place: str | os.PathLike[str]) -> None:
        path = Path(place)
        if path.suffix in _FOREIGN:
            raise ValueError(f"checkpoints are safetensors, got {str(path)!r}: give a folder or NAME.safetensors")
        self.path = path if path.suffix == ".safetensors" else path / "checkpoint.safetensors"
        self.previous = self.path.with_name(f"{self.path.stem}.previous.safetensors")
        self._rotate, self._stale = True, False

    def open(self, resume: Resume) -> Saved | None:
        """The state to go on from; ``None`` where the run starts afresh.

        Raises
        ------
        ValueError
            If the file is damaged or not a checkpoint, or the one asked for is not there.
        """
        if resume is False:
            # What stands here belongs to another run: it must not become this one's previous checkpoint.
            self._rotate, self._stale = False, True
            return None
        if resume == "previous":
            self._rotate = False  # the damaged file must not push out the good one
            if not self.previous.is_file():
                raise ValueError(f"resume='previous', but there is no {self.previous}")
            return _read(self.previous)
        if not self.path.is_file():
            if self.previous.is_file():
                raise ValueError(f"{self.path} is missing. {self._advice()}")
            return None
        try:
            return _read(self.path)
        except ValueError as error:
            raise ValueError(f"{error}. {self._advice()}") from error

    def write(self, step: int, settings: dict[str, Any], aliases: dict[str, str], state: dict[str, Any]) -> None:
        """Store the state after ``step`` steps."""
        packed, tensors = pack(state)
        content = {
            "kind": "checkpoint",
            "format": 1,
            "step": step,
            "settings": settings,
            "aliases": aliases,
            "torch": torch.__version__,
            "state": packed,
        }
        write_tensors(self.path, tensors, content, self.previous if self._rotate else None)
        if self._stale:
            self.previous.unlink(missing_ok=True)
        self._rotate, self._stale = True, False

    def _advice(self) -> str:
        try:
            step = _read(self.previous).step
        except (FileNotFoundError, ValueError):
            return "There is no whole checkpoint before it: resume=False starts over"
        return (
            f"The one before it, {self.previous}, is whole, at step {step}: resume='previous' goes on from there, "
            "resume=False starts over"
        )


def _read(path: Path) -> Saved:
    tensors, content = read_tensors(path)
    if content.get("kind") != "checkpoint":
        raise ValueError(f"{path} holds {content.get('kind', 'tensors')} and is not a checkpoint of a training run")
    check_format(path, content)
    state = unpack(content["state"], tensors)
    return Saved(path, content["step"], content["settings"], content["aliases"], state)


def check_settings(saved: Saved, settings: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` naming every setting in which the run that wrote a checkpoint differs from this one."""
    nothing = "nothing"
    differing = []
    for name in dict.fromkeys([*saved.settings, *settings]):
        was, now = saved.settings.get(name, nothing), settings.get(name, nothing)
        # Versions of torch differ in the options that optimisers have: one that only one of them knows has its default.
        if was != now and not (name.startswith("optimizer.") and nothing in (was, now)):
            differing.append(f"{name} was {was}, is {now}")
    if differing:
        raise ValueError(
            f"{saved.path} was written under other settings, so going on from it would give neither run: "
            f"{'; '.join(differing)}. Use the same ones; or start another run from its weights by "
            "genmatch.training.load and another checkpoint=; or resume=False to start over"
        )
