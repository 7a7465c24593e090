"""Reading archives in memory: the same files from every kind, and nothing from one that is unsafe or damaged."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_writer import write_any, write_folder, write_tar, write_zip

from genmatch.data.archives import read_files

FILES = {"a/one.txt": b"1" * 700, "a/two.txt": b"", "b/c/three.txt": os.urandom(5000), "four.txt": b"x" * 1024}
KINDS = ["folder", "gz", "xz", "zip"]


def read(path, wanted=lambda name: True, **options):
    return dict(read_files(path, wanted, progress=False, **options))


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_files_from_every_kind(tmp_path, kind):
    path = write_any(kind, tmp_path / "files", FILES)
    assert read(path) == FILES
    assert read(path, lambda name: name.startswith("a/")) == {k: v for k, v in FILES.items() if k[0] == "a"}
    assert read(path, lambda name: False) == {}


@settings(max_examples=25, deadline=None)
@given(
    files=st.dictionaries(
        st.text("abcäß .-_", min_size=1, max_size=120).map(str.strip).filter(lambda s: s.strip(". ")),
        st.binary(max_size=1100),
        max_size=5,
    ),
    kind=st.sampled_from(["gz", "xz", "zip"]),
)
def test_any_names_and_contents(files, kind):
    with tempfile.TemporaryDirectory() as folder:
        assert read(write_any(kind, Path(folder) / "files", files)) == files


def test_kind_is_told_by_content_not_by_name(tmp_path):
    path = write_tar(tmp_path / "files.zip", FILES, "w:xz")
    assert read(path) == FILES
    other = tmp_path / "files.tar.gz"
    other.write_bytes(b"%PDF-1.7 and more")
    with pytest.raises(ValueError, match=r"files.tar.gz is not a .tar.gz, .* archive: it begins with '25 50 44 46"):
        read(other)


def test_nothing_is_written_anywhere(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "files.tar.gz", FILES)
    monkeypatch.chdir(tmp_path)
    read(path)
    assert [p.name for p in tmp_path.rglob("*")] == ["files.tar.gz"]


ESCAPES = ["../evil.txt", "a/../../evil.txt", "/etc/evil.txt", "..\\evil.txt", "C:\\evil.txt", "C:evil.txt", "a/.."]


@pytest.mark.parametrize("name", ESCAPES)
@pytest.mark.parametrize("kind", ["gz", "xz", "zip"])
def test_entries_that_escape_are_refused_also_when_not_wanted(tmp_path, name, kind):
    path = write_any(kind, tmp_path / "files", FILES | {name: b"evil"})
    for wanted in (lambda name: True, lambda name: name == "four.txt"):
        with pytest.raises(ValueError, match="escapes the archive's folder") as caught:
            read(path, wanted)
        assert repr(name) in str(caught.value)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_tar_links_and_devices_are_refused(tmp_path, kind):
    info = tarfile.TarInfo("a/link.txt")
    info.type, info.linkname = kind, "four.txt"
    path = write_tar(tmp_path / "files.tar.gz", FILES, extra=[info])
    with pytest.raises(ValueError, match=r"entry 'a/link.txt' is a link, a device"):
        read(path)


def test_zip_links_are_refused(tmp_path):
    path = write_zip(tmp_path / "files.zip", FILES, links={"a/link.txt": "/etc/passwd"})
    with pytest.raises(ValueError, match=r"entry 'a/link.txt' is a link"):
        read(path)


@pytest.mark.parametrize("kind", KINDS)
def test_files_larger_than_expected_are_refused(tmp_path, kind):
    path = write_any(kind, tmp_path / "files", FILES)
    with pytest.raises(ValueError, match=r"'b/c/three.txt' has 5000 bytes, at most 4999 expected"):
        read(path, max_bytes=4999)
    assert read(path, max_bytes=5000) == FILES
    assert read(path, lambda name: name == "four.txt", max_bytes=1024) == {"four.txt": FILES["four.txt"]}


def test_a_name_of_absurd_length_is_refused_before_it_is_read(tmp_path):
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 50_000_000
    path = tmp_path / "files.tar.gz"
    path.write_bytes(gzip.compress(info.tobuf() + b"n" * info.size))
    with pytest.raises(ValueError, match="a header asks for 50000384 bytes"):
        read(path, max_bytes=1_000_000)


@pytest.mark.parametrize("kind", ["gz", "xz", "zip"])
def test_every_truncation_is_noticed(tmp_path, kind):
    path = write_any(kind, tmp_path / "files", FILES)
    content = path.read_bytes()
    for cut in {1, 7, 20, len(content) // 3, len(content) // 2, len(content) - 9, len(content) - 1}:
        path.write_bytes(content[:cut])
        with pytest.raises(ValueError, match=r"damaged or truncated|is not a"):
            read(path)


@pytest.mark.parametrize("kind", ["gz", "xz", "zip"])
def test_a_flipped_bit_in_the_content_is_noticed(tmp_path, kind):
    path = write_any(kind, tmp_path / "files", FILES)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4  # amid 5000 bytes that do not compress
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged or truncated"):
        read(path)


def test_a_tar_that_ends_early_inside_a_sound_gzip_is_noticed(tmp_path):
    path = write_tar(tmp_path / "files.tar.gz", FILES)
    with gzip.open(path) as file:
        whole = file.read()
    second = whole.index(b"b/c/three.txt")  # a header begins here: tarfile takes this for the end
    with tarfile.open(fileobj=io.BytesIO(whole[:second])) as archive:
        assert archive.getnames() == ["a/one.txt", "a/two.txt"]  # the control
    for wrong in (whole[:second], whole[: second + 100], whole[: second + 600]):
        path.write_bytes(gzip.compress(wrong))
        with pytest.raises(ValueError, match="damaged or truncated"):
            read(path)
    path.write_bytes(gzip.compress(whole + b"more"))
    with pytest.raises(ValueError, match="something follows the end mark"):
        read(path)
    spoilt = bytearray(whole)
    spoilt[second + 150] ^= 1  # in the checksum of a header: tarfile stops there without a word
    path.write_bytes(gzip.compress(bytes(spoilt)))
    with pytest.raises(ValueError, match="damaged or truncated"):
        read(path)


def test_padding_behind_the_end_is_bounded(tmp_path):
    path = write_tar(tmp_path / "files.tar.xz", FILES, "w:xz")
    with lzma.open(path) as file:
        whole = file.read()
    path.write_bytes(lzma.compress(whole + bytes(1_000_000), preset=0))
    assert read(path) == FILES
    path.write_bytes(lzma.compress(whole + bytes(20_000_000), preset=0))
    with pytest.raises(ValueError, match="something follows the end mark"):
        read(path)


def test_encrypted_zip_is_refused(tmp_path):
    path = write_zip(tmp_path / "files.zip", {"a.txt": b"secret"})
    content = bytearray(path.read_bytes())
    for magic, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.index(magic) + offset] |= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"entry 'a.txt' cannot be read: .*encrypted"):
        read(path)


def test_a_zip_that_lies_about_sizes_is_refused(tmp_path):
    path = write_zip(tmp_path / "files.zip", {"a.txt": bytes(100_000)})
    content = bytearray(path.read_bytes())
    start = content.index(b"PK\1\2") + 24
    content[start : start + 4] = (10).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"files\.zip is damaged"):
        read(path, max_bytes=1000)
    with zipfile.ZipFile(path) as archive:
        assert archive.infolist()[0].file_size == 10  # the control: the lie got past the size check


def test_folder_links_are_followed_but_not_in_circles(tmp_path):
    write_folder(tmp_path / "elsewhere", {"x.txt": b"x"})
    root = write_folder(tmp_path / "root", {"a/y.txt": b"y"})
    (root / "b").symlink_to(tmp_path / "elsewhere")
    assert read(root) == {"a/y.txt": b"y", "b/x.txt": b"x"}
    (root / "a" / "loop").symlink_to(root)
    with pytest.raises(ValueError, match="loop is a link to"):
        read(root)


def test_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "nothing")
