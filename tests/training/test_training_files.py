from __future__ import annotations

import os
import random
import stat

import pytest
import torch
from safetensors.torch import load_file, save_file

from genmatch.training.files import checksum, read_tensors, replace_file, write_tensors


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "file.safetensors"


def some_tensors() -> dict[str, torch.Tensor]:
    return {
        "a": torch.randn(40, 3),
        "half": torch.randn(5).bfloat16(),
        "none": torch.empty(0),
        "flag": torch.tensor(True),
    }


def test_tensors_and_metadata_come_back(path):
    tensors = some_tensors()
    write_tensors(path, tensors, {"step": 3, "names": ["x", "é"]})
    back, metadata = read_tensors(path)
    assert metadata == {"step": 3, "names": ["x", "é"]}
    assert back.keys() == tensors.keys()
    for name, value in tensors.items():
        assert back[name].dtype == value.dtype
        assert torch.equal(back[name], value)


def test_other_programs_can_read_it(path):
    tensors = some_tensors()
    write_tensors(path, tensors, {})
    assert all(torch.equal(value, tensors[name]) for name, value in load_file(path).items())


def test_views_and_shared_memory_are_stored(path):
    whole = torch.arange(12.0)
    tensors = {"whole": whole, "part": whole[3:6], "columns": whole.view(3, 4)[:, ::2], "turned": whole.view(3, 4).T}
    write_tensors(path, tensors, {})
    back, _ = read_tensors(path)
    assert all(torch.equal(back[name], value) for name, value in tensors.items())


def test_what_was_read_does_not_change_with_the_file(path):
    write_tensors(path, {"a": torch.ones(1000)}, {})
    back, _ = read_tensors(path)
    with path.open("r+b") as file:  # written into, not replaced
        file.seek(-4000, os.SEEK_END)
        file.write(b"\0" * 4000)
    assert torch.equal(back["a"], torch.ones(1000))


def test_a_file_of_another_program_has_no_metadata(path, tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors", metadata={"format": "pt"})
    back, metadata = read_tensors(tmp_path / "x.safetensors")
    assert metadata == {}
    assert torch.equal(back["a"], torch.ones(2))


def test_every_flipped_bit_is_noticed(path):
    write_tensors(path, {"a": torch.randn(20), "b": torch.arange(9)}, {"step": 7, "note": "some text"})
    whole = path.read_bytes()
    expected = read_tensors(path)
    generator = random.Random(0)
    positions = {generator.randrange(len(whole) * 8) for _ in range(500)}
    noticed = 0
    for position in positions:
        damaged = bytearray(whole)
        damaged[position // 8] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            tensors, metadata = read_tensors(path)
        except ValueError:
            noticed += 1
            continue
        # Flips that change no content, in the padding of the header.
        assert metadata == expected[1]
        assert all(torch.equal(tensors[name], value) for name, value in expected[0].items())
    assert noticed > 0.97 * len(positions)


def test_every_truncation_is_noticed(path):
    write_tensors(path, {"a": torch.randn(20)}, {"step": 7})
    whole = path.read_bytes()
    for length in [0, 1, 7, 8, 9, 50, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"file\.safetensors is damaged or not a safetensors file"):
            read_tensors(path)


@pytest.mark.parametrize("content", [b"\x80\x04K\x01.", b"PK\x03\x04" + b"\0" * 100, b"\xff" * 64, b"{}" * 30])
def test_other_files_are_refused(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged or not a safetensors file"):
        read_tensors(path)


def test_a_missing_file_is_named(path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*file\.safetensors"):
        read_tensors(path)


def test_checksums_see_order_values_and_signs_of_zero():
    a, b = torch.randn(4), torch.randn(4)
    assert checksum([a, b]) != checksum([b, a])
    assert checksum([a]) != checksum([a + 1e-6])
    assert checksum([torch.zeros(2)]) != checksum([-torch.zeros(2)])
    assert checksum([a, b]) == checksum([torch.cat([a, b])])


def test_the_file_before_is_kept(path):
    previous = path.with_name("file.previous.safetensors")
    for step in range(3):
        write_tensors(path, {"a": torch.full((2,), float(step))}, {"step": step}, previous)
        assert read_tensors(path)[1] == {"step": step}
        if step:
            assert read_tensors(previous)[1] == {"step": step - 1}
    assert sorted(p.name for p in path.parent.iterdir()) == ["file.previous.safetensors", "file.safetensors"]


def test_without_hard_links_it_is_copied(path, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    previous = path.with_name("file.previous.safetensors")
    for step in range(2):
        write_tensors(path, {}, {"step": step}, previous)
    assert read_tensors(previous)[1] == {"step": 0}
    assert read_tensors(path)[1] == {"step": 1}


def test_a_failed_write_leaves_the_old_file_and_nothing_else(path):
    write_tensors(path, {}, {"step": 0})

    def fail(part):
        part.write_text("half")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        replace_file(path, fail)
    assert read_tensors(path)[1] == {"step": 0}
    assert [p.name for p in path.parent.iterdir()] == ["file.safetensors"]


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_the_file_has_the_permissions_that_other_files_get(path):
    old = os.umask(0o027)
    try:
        write_tensors(path, {"a": torch.ones(2)}, {})
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
