"""The files of a folder, a tar.gz, a tar.xz or a zip, one after another and in memory: nothing is ever extracted.

An archive is somebody else's word. Every entry is checked, also those nobody asked for: a name that leaves the
archive's folder, a link or a device is an error, as is an entry larger than the caller expects. A tar file that
stops early looks complete to :mod:`tarfile`, so its end mark and the check sums behind it are read too.
"""

from __future__ import annotations

import gzip
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO, cast

from tqdm import tqdm

__all__ = ["ARCHIVE_SUFFIXES", "read_files"]

ARCHIVE_SUFFIXES = (".tar.gz", ".tgz", ".tar.xz", ".txz", ".zip")
_GZIP, _XZ, _ZIP = b"\x1f\x8b", b"\xfd7zXZ\0", b"PK"
_BLOCK = 512
_MAX_PADDING = 2**24
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, gzip.BadGzipFile)
_BAR_DELAY = 1.0  # seconds: short work shows no bar


def read_files(
    path: Path, wanted: Callable[[str], bool], *, max_bytes: int = 2**26, progress: bool = True
) -> Iterator[tuple[str, bytes]]:
    """Name and content of every wanted file under a folder or in an archive.

    Parameters
    ----------
    path
        A folder, or an archive (told by its content, not by its name).
    wanted
        Of a name relative to the folder or archive, with ``/`` between its parts.
    max_bytes
        The largest wanted file to accept.
    progress
        Show a bar on work longer than a second.

    Raises
    ------
    FileNotFoundError
        If there is no such path.
    ValueError
        If the archive is of another kind, damaged or truncated, or an entry escapes it, is a link or a device, is
        encrypted, or is larger than ``max_bytes``; the message names archive and entry.
    """
    if path.is_dir():
        yield from _folder(path, wanted, max_bytes, progress)
        return
    with path.open("rb") as file:
        magic = file.read(6)
        file.seek(0)
        try:
            if magic.startswith(_ZIP):
                yield from _zip(path, file, wanted, max_bytes, progress)
            elif magic.startswith((_GZIP, _XZ)):
                with tqdm.wrapattr(
                    file, "read", total=path.stat().st_size, desc=path.name, delay=_BAR_DELAY, disable=not progress
                ) as counted:
                    opener = gzip.open if magic.startswith(_GZIP) else lzma.open
                    with opener(cast(BinaryIO, counted)) as unpacked:
                        yield from _tar(path, cast(BinaryIO, unpacked), wanted, max_bytes)
            else:
                raise ValueError(
                    f"{path} is not a {', '.join(ARCHIVE_SUFFIXES)} archive: it begins with {magic.hex(' ')!r}"
                )
        except _DAMAGE as error:
            raise ValueError(f"{path} is damaged or truncated: {error}") from error


def _folder(path: Path, wanted: Callable[[str], bool], max_bytes: int, progress: bool) -> Iterator[tuple[str, bytes]]:
    names, seen = [], set()
    # Data sets are often linked together from several disks, so links are followed, but never round in a circle.
    for folder, _, files in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            raise ValueError(f"{folder} is a link to {real}, which is under {path} already")
        seen.add(real)
        names += [(Path(folder) / file).relative_to(path).as_posix() for file in files]
    for name in tqdm(
        [name for name in sorted(names) if wanted(name)], path.name, delay=_BAR_DELAY, disable=not progress
    ):
        file = path / name
        _check_size(path, name, file.stat().st_size, max_bytes)
        yield name, file.read_bytes()


def _zip(
    path: Path, file: BinaryIO, wanted: Callable[[str], bool], max_bytes: int, progress: bool
) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(file) as archive:
        for info in tqdm(archive.infolist(), path.name, delay=_BAR_DELAY, disable=not progress):
            name = _check_name(path, info.filename)
            if stat.S_ISLNK(info.external_attr >> 16):
                raise ValueError(f"{path}: entry {info.filename!r} is a link; archives of data hold files only")
            if info.is_dir() or not wanted(name):
                continue
            _check_size(path, name, info.file_size, max_bytes)
            try:
                with archive.open(info) as entry:
                    content = entry.read(info.file_size + 1)
            except (RuntimeError, NotImplementedError) as error:  # encrypted; packed by a method unknown to Python
                raise ValueError(f"{path}: entry {info.filename!r} cannot be read: {error}") from error
            if len(content) != info.file_size:
                raise ValueError(_short(path, name, content, info.file_size))
            yield name, content


def _tar(path: Path, unpacked: BinaryIO, wanted: Callable[[str], bool], max_bytes: int) -> Iterator[tuple[str, bytes]]:
    stream = _Stream(path, unpacked, max_bytes)
    with tarfile.open(fileobj=cast(BinaryIO, stream), mode="r:") as archive:
        for member in archive:
            name = _check_name(path, member.name)
            if not (member.isdir() or member.isreg()) or member.issparse():
                raise ValueError(
                    f"{path}: entry {member.name!r} is a link, a device or sparse; archives of data hold files only"
                )
            if member.isdir() or not wanted(name):
                continue
            _check_size(path, name, member.size, max_bytes)
            stream.seek(member.offset_data)
            content = stream.read(member.size)
            if len(content) != member.size:
                raise ValueError(_short(path, name, content, member.size))
            yield name, content
    if stream.last != bytes(_BLOCK):
        raise ValueError(f"{path} is damaged or truncated: no end mark after its last entry")
    for _ in range(_MAX_PADDING // _BLOCK):
        padding = unpacked.read(_BLOCK)
        if not padding:
            return
        if padding.strip(b"\0"):
            break
    raise ValueError(f"{path} is damaged: something follows the end mark of the archive")


class _Stream:
    """What tarfile reads: no more at once than the largest entry, and remembering what it read last."""

    def __init__(self, path: Path, file: BinaryIO, max_bytes: int) -> None:
        self.path, self.file, self.max_bytes = path, file, max_bytes
        self.last = b""

    def read(self, size: int) -> bytes:
        if size > self.max_bytes + _BLOCK:  # a header may ask for any length of a file's name
            raise ValueError(f"{self.path} is damaged: a header asks for {size} bytes, more than {self.max_bytes}")
        self.last = self.file.read(size)
        return self.last

    def seek(self, offset: int) -> int:
        return self.file.seek(offset)

    def tell(self) -> int:
        return self.file.tell()


def _check_name(archive: Path, name: str) -> str:
    plain = PurePosixPath(name.replace("\\", "/"))
    if plain.is_absolute() or ".." in plain.parts or PureWindowsPath(name).drive:
        raise ValueError(f"{archive}: entry {name!r} escapes the archive's folder; it is not read")
    return str(plain)


def _check_size(archive: Path, name: str, size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise ValueError(f"{archive}: {name!r} has {size} bytes, at most {max_bytes} expected")


def _short(archive: Path, name: str, content: bytes, size: int) -> str:
    return f"{archive} is damaged or truncated: entry {name!r} has {len(content)} bytes, {size} expected"
