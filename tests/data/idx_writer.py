"""IDX files for tests, written by the letter of the format."""

from __future__ import annotations

import struct

import numpy as np

CODES = {"u1": 8, "i1": 9, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx_bytes(array: np.ndarray) -> bytes:
    """The array as an IDX file, number by number."""
    kind = array.dtype.str[1:]
    letter = {"u1": "B", "i1": "b", "i2": "h", "i4": "i", "f4": "f", "f8": "d"}[kind]
    header = bytes([0, 0, CODES[kind], array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + b"".join(struct.pack(f">{letter}", number) for number in array.flatten().tolist())
