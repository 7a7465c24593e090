"""The IDX file format: an array as MNIST and its relatives ship it.

Two zero bytes, a type code, the number of dimensions n, n big-endian 32-bit sizes, then the numbers, big-endian, last
dimension fastest; the whole often gzipped. The header is believed only after it is checked against the file.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

__all__ = ["read_idx"]

_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_MAX_DIMENSIONS = 16
_CHUNK = 1 << 20
_GZIP_MAGIC = b"\x1f\x8b"
_DEFLATE_RATIO = 1032  # deflate cannot shrink by more: two bits stand for 258 bytes at most


def read_idx(path: str | os.PathLike[str], *, max_bytes: int = 2**31) -> Tensor:
    """The array in an IDX file, plain or gzipped (told by its content, not by its name).

    Parameters
    ----------
    path
        The file.
    max_bytes
        The largest array to accept. A header that asks for more is refused before anything is allocated.

    Returns
    -------
    Tensor
        Of the shape in the header: uint8, int8, int16, int32, float32 or float64.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is not IDX, is shorter or longer than its header says, is a damaged gzip, or asks for more than
        ``max_bytes``. At most one byte more than the header promises is ever decompressed.
    """
    path = Path(path)
    with path.open("rb") as raw:
        zipped = raw.read(2) == _GZIP_MAGIC
        raw.seek(0)
        stored = path.stat().st_size
        if not zipped:
            return _parse(raw, path, max_bytes, at_most=stored)
        try:
            with gzip.GzipFile(fileobj=raw) as unzipped:
                return _parse(unzipped, path, max_bytes, at_most=stored * _DEFLATE_RATIO)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is a damaged or truncated gzip file of {stored} bytes: {error}") from error


def _parse(file: BinaryIO | gzip.GzipFile, path: Path, max_bytes: int, at_most: int) -> Tensor:
    dtype, sizes = _header(file, path)
    expected = math.prod(sizes) * dtype.itemsize
    # A size of 0 hides the other sizes from the product, and they must be sane too.
    if math.prod(max(size, 1) for size in sizes) * dtype.itemsize > max_bytes:
        raise ValueError(
            f"{path} asks for {' x '.join(map(str, sizes))} numbers of {dtype.itemsize} bytes, more than "
            f"max_bytes={max_bytes}: a damaged header, or pass a larger max_bytes"
        )
    whole = 4 + 4 * len(sizes) + expected
    if whole > at_most:
        raise ValueError(f"{path} is truncated: its header says {whole} bytes, the file can hold at most {at_most}")
    data = bytearray()
    while len(data) <= expected and (chunk := file.read(min(_CHUNK, expected + 1 - len(data)))):
        data += chunk
    if len(data) != expected:
        found = f"{len(data)} follow" if len(data) < expected else "more follow"
        raise ValueError(f"{path} does not match its header: {expected} bytes of numbers expected, {found}")
    numbers = np.frombuffer(data, dtype).astype(dtype.newbyteorder("="), copy=False)
    return torch.from_numpy(numbers).reshape(sizes)


def _header(file: BinaryIO | gzip.GzipFile, path: Path) -> tuple[np.dtype, tuple[int, ...]]:
    magic = file.read(4)
    if len(magic) < 4:
        raise ValueError(f"{path} is too short for an IDX file: 4 bytes of header expected, {len(magic)} found")
    if magic[:2] != b"\0\0" or magic[2] not in _DTYPES or not 1 <= magic[3] <= _MAX_DIMENSIONS:
        raise ValueError(
            f"{path} is not an IDX file: it begins with {magic.hex(' ')}, expected 00 00, a type among "
            f"{', '.join(f'{code:02x}' for code in _DTYPES)}, and 1 to {_MAX_DIMENSIONS} dimensions"
        )
    size = 4 * magic[3]
    sizes = file.read(size)
    if len(sizes) < size:
        raise ValueError(f"{path} ends in its header: {size} bytes of sizes expected, {len(sizes)} found")
    return np.dtype(_DTYPES[magic[2]]), struct.unpack(f">{magic[3]}I", sizes)
