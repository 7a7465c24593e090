"""Files that are either whole or not there: tensors by safetensors, with checksums, written atomically.

A file is written beside its place, forced to the disk, and renamed into place in one step; a process killed at any
moment leaves the old file or the new one. safetensors notices a file that is cut short but not one with a flipped bit,
so a CRC-32 of every tensor and of the text travels along. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

__all__ = ["checksum", "read_tensors", "replace_file", "write_tensors"]

_TEXT, _CHECK = "genmatch", "genmatch_crc32"


def replace_file(path: Path, write: Callable[[Path], object], previous: Path | None = None) -> None:
    """Put what ``write`` writes at ``path`` atomically; what stood there moves to ``previous``, if given.

    There is a whole file at ``path`` at every moment after the first call returns.
    """
    # A folder, as safetensors makes a file of its own beside the one it writes.
    part = path.with_name(path.name + ".part")
    shutil.rmtree(part, ignore_errors=True)  # what a killed process left
    part.mkdir(parents=True)
    try:
        fresh, keep = part / path.name, part / "previous"
        fresh.touch()
        mode = fresh.stat().st_mode  # safetensors makes files that nobody else may read
        write(fresh)
        fresh.chmod(mode)
        _flush(fresh)
        if previous is not None and path.exists():
            _duplicate(path, keep)
            os.replace(keep, previous)
        os.replace(fresh, path)
        if hasattr(os, "O_DIRECTORY"):
            _flush(path.parent)  # makes the new names last
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _duplicate(path: Path, copy: Path) -> None:
    """Give a file a second name, rather than rename it: ``path`` is never missing."""
    try:
        os.link(path, copy)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, copy)
        _flush(copy)


def _flush(path: Path) -> None:
    # Windows can flush a file only through a handle that may write.
    handle = os.open(path, os.O_RDONLY if path.is_dir() or os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def checksum(tensors: Iterable[Tensor]) -> int:
    """CRC-32 of the bytes of tensors, in order."""
    value = 0
    for tensor in tensors:
        data = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
        value = zlib.crc32(data.numpy().data, value)
    return value


def write_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any], previous: Path | None = None
) -> None:
    """Write tensors and a JSON-able dict to ``path`` atomically; see :func:`replace_file`."""
    host = {name: _independent(tensor) for name, tensor in tensors.items()}
    sums = {name: _identify(tensor) for name, tensor in host.items()}
    text = json.dumps({"metadata": metadata, "checksums": sums})
    header = {_TEXT: text, _CHECK: str(zlib.crc32(text.encode()))}
    replace_file(path, lambda part: save_file(host, str(part), metadata=header), previous)


def _identify(tensor: Tensor) -> str:
    return f"{checksum([tensor]):08x} {tensor.dtype} {list(tensor.shape)}"


def _independent(tensor: Tensor) -> Tensor:
    """On the host, contiguous, alone in its memory, as safetensors asks."""
    host = tensor.detach().to("cpu").contiguous()
    alone = host.untyped_storage().nbytes() == host.numel() * host.element_size()
    return host if alone else host.clone()


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a safetensors file, on the CPU, and its metadata; ``{}`` where another program wrote it.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not a safetensors file, is cut short, or a checksum does not agree.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            header = file.metadata() or {}
            # Cloned: safetensors maps the file, which the next checkpoint replaces, at addresses that are not aligned.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged or not a safetensors file: {error}") from error
    if _TEXT not in header and _CHECK not in header:
        return tensors, {}
    text = header.get(_TEXT, "")
    if header.get(_CHECK) != str(zlib.crc32(text.encode())):
        raise ValueError(f"{path} is damaged: the checksum of its metadata does not agree")
    content = json.loads(text)
    if content["checksums"].keys() != tensors.keys():
        raise ValueError(f"{path} is damaged: it does not hold the tensors that it lists")
    for name, tensor in tensors.items():
        if _identify(tensor) != content["checksums"][name]:
            raise ValueError(f"{path} is damaged: the checksum of {name!r} does not agree")
    return tensors, content["metadata"]
