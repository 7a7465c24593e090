"""The IDX parser: round trips against a writer of our own, and everything that can be wrong with a file."""

from __future__ import annotations

import gzip
import math
import struct
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from idx_writer import CODES, idx_bytes

from genmatch.data import read_idx


@settings(max_examples=150, deadline=None)
@given(
    array=st.sampled_from(sorted(CODES)).flatmap(
        lambda kind: hnp.arrays(
            np.dtype(kind),
            hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5),
            elements={"allow_nan": False} if kind[0] == "f" else None,
        )
    ),
    zipped=st.booleans(),
)
def test_round_trip(array, zipped):
    content = idx_bytes(array)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "numbers"  # the name says nothing: the content does
        path.write_bytes(gzip.compress(content) if zipped else content)
        read = read_idx(path)
    assert read.numpy().dtype == array.dtype
    assert read.shape == array.shape
    assert np.array_equal(read.numpy(), array)
    read.add_(1)  # writable, no view of a file


@settings(max_examples=100, deadline=None)
@given(data=st.data(), zipped=st.booleans())
def test_any_cut_and_any_excess_is_refused(data, zipped):
    content = idx_bytes(np.arange(24, dtype=np.int16).reshape(2, 3, 4))
    cut = data.draw(st.integers(0, len(content) - 1))
    extra = data.draw(st.binary(min_size=1, max_size=9))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "numbers"
        for wrong in (content[:cut], content + extra):
            path.write_bytes(gzip.compress(wrong) if zipped else wrong)
            with pytest.raises(ValueError, match="numbers"):
                read_idx(path)


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=60))
def test_arbitrary_bytes_give_an_array_or_a_value_error(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "numbers"
        for wrong in (content, gzip.compress(content), b"\x1f\x8b" + content, bytes([0, 0]) + content):
            path.write_bytes(wrong)
            # A file is read, or refused by name: anything else that is raised fails the test.
            outcome: object = None
            try:
                outcome = read_idx(path)
            except ValueError as error:
                outcome = str(error)
            assert isinstance(outcome, torch.Tensor) or str(path) in str(outcome)


CONTENT = idx_bytes(np.arange(12, dtype=np.uint8).reshape(3, 4))


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (CONTENT[:-2], r"(12 bytes of numbers expected, 10 follow|24 bytes, the file can hold at most 22)"),
        (CONTENT + b"!", "12 bytes of numbers expected, more follow"),
        (CONTENT[:9], "8 bytes of sizes expected, 5 found"),
        (CONTENT[:3], "4 bytes of header expected, 3 found"),
        (b"", "4 bytes of header expected, 0 found"),
        (b"\x89PNG" + CONTENT, "begins with 89 50 4e 47"),
        (b"\0\0\x0a\x02" + CONTENT[4:], "begins with 00 00 0a 02"),
        (b"\0\0\x08\0", "begins with 00 00 08 00"),
        (b"\0\0\x08\xff" + CONTENT, "1 to 16 dimensions"),
    ],
)
def test_messages(tmp_path, content, message, zipped):
    path = tmp_path / "wrong.idx"
    path.write_bytes(gzip.compress(content) if zipped else content)
    with pytest.raises(ValueError, match=message) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)


def test_broken_gzip(tmp_path):
    path = tmp_path / "wrong.gz"
    good = gzip.compress(idx_bytes(np.arange(3000, dtype=np.int32)))
    flipped = bytearray(good)
    flipped[-6] ^= 1  # the checksum
    for wrong in (good[: len(good) // 2], good[:-4], good[:5], bytes(flipped), good + b"tail"):
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match=rf"wrong.gz is a damaged or truncated gzip file of {len(wrong)} bytes"):
            read_idx(path)
    path.write_bytes(good)
    assert read_idx(path).shape == (3000,)  # the control: it is the damage that was refused


def test_a_lying_header_is_refused_before_memory_is_taken(tmp_path):
    path = tmp_path / "liar"
    header = bytes([0, 0, 8, 2]) + struct.pack(">II", 30_000, 60_000)  # 1.8 GB, below max_bytes
    absurd = bytes([0, 0, 14, 3]) + struct.pack(">III", *[2**32 - 1] * 3)
    hidden = bytes([0, 0, 8, 3]) + struct.pack(">III", 0, 2**32 - 1, 2**32 - 1)
    tracemalloc.start()
    for content, message in [
        (header + bytes(100), "the file can hold at most 112"),
        (gzip.compress(header + bytes(100)), "truncated"),
        (absurd, "more than max_bytes=2147483648"),
        (gzip.compress(absurd), "more than max_bytes=2147483648"),
        (hidden, "more than max_bytes"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_idx(path)
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


def test_a_decompression_bomb_is_read_one_byte_too_far_at_most(tmp_path, monkeypatch):
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(CONTENT + bytes(50_000_000)))
    read = 0

    class Counting(gzip.GzipFile):
        def read(self, size=-1):
            nonlocal read
            data = super().read(size)
            read += len(data)
            return data

    monkeypatch.setattr(gzip, "GzipFile", Counting)
    with pytest.raises(ValueError, match="12 bytes of numbers expected, more follow"):
        read_idx(path)
    assert read == len(CONTENT) + 1


def test_max_bytes(tmp_path):
    path = tmp_path / "numbers"
    path.write_bytes(CONTENT)
    assert math.prod(read_idx(path, max_bytes=12).shape) == 12
    with pytest.raises(ValueError, match=r"asks for 3 x 4 numbers of 1 bytes, more than max_bytes=11"):
        read_idx(path, max_bytes=11)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_idx(tmp_path / "nothing")


def test_the_writer_of_these_tests_agrees_with_real_files(real_data):
    path = real_data("mnist/t10k-images-idx3-ubyte.gz")
    content = gzip.decompress(path.read_bytes())
    images = read_idx(path)
    assert images.shape == (10_000, 28, 28)
    few = images[:3].numpy()
    assert idx_bytes(few)[16:] == content[16 : 16 + few.size]
