"""MNIST: where files are looked for, what is refused, downloads from a server of our own, and the real set."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import sys
import threading

import numpy as np
import pytest
import torch
from idx_writer import idx_bytes

import genmatch.data
from genmatch.data import mnist

MODULE = sys.modules["genmatch.data.mnist"]
IMAGES = {"train": "train-images-idx3-ubyte", "test": "t10k-images-idx3-ubyte"}
LABELS = {"train": "train-labels-idx1-ubyte", "test": "t10k-labels-idx1-ubyte"}
PIXELS = {
    "train": (np.arange(5 * 784) % 256).astype(np.uint8).reshape(5, 28, 28),
    "test": (np.arange(3 * 784) * 7 % 256).astype(np.uint8).reshape(3, 28, 28),
}
NUMBERS = {"train": np.array([5, 0, 4, 1, 9], np.uint8), "test": np.array([7, 2, 1], np.uint8)}


@pytest.fixture
def contents():
    return {IMAGES[part]: idx_bytes(PIXELS[part]) for part in IMAGES} | {
        LABELS[part]: idx_bytes(NUMBERS[part]) for part in LABELS
    }


def write(folder, contents, zipped=True):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        if zipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)


@pytest.mark.parametrize("place", [".", "mnist", "MNIST/raw"])
@pytest.mark.parametrize("zipped", [True, False])
def test_found_in_every_documented_place(tmp_path, contents, place, zipped, monkeypatch):
    write(tmp_path / place, contents, zipped)
    for part in ("train", "test"):
        images, labels = mnist(tmp_path, part)
        expected = torch.from_numpy(PIXELS[part]).float()[:, None] / 127.5 - 1
        assert images.shape == (len(PIXELS[part]), 1, 28, 28)
        torch.testing.assert_close(images, expected)
        assert labels.dtype == torch.int64
        assert labels.tolist() == NUMBERS[part].tolist()
    both = mnist(str(tmp_path), "all")
    assert both.labels.tolist() == [5, 0, 4, 1, 9, 7, 2, 1]
    assert both.classes == tuple("0123456789")
    monkeypatch.setenv("GENMATCH_DATA", str(tmp_path))
    assert torch.equal(mnist(split="all").images, both.images)


def test_size_32_adds_a_black_border(tmp_path, contents):
    write(tmp_path, contents)
    small, large = mnist(tmp_path).images, mnist(tmp_path, size=32).images
    assert large.shape == (5, 1, 32, 32)
    assert torch.equal(large[..., 2:30, 2:30], small)
    border = torch.ones(32, 32, dtype=torch.bool)
    border[2:30, 2:30] = False
    assert (large[..., border] == -1).all()
    with pytest.raises(ValueError, match="size is 28, or 32 for a border of two black pixels, got 64"):
        mnist(tmp_path, size=64)


def test_a_complete_folder_is_preferred_to_an_incomplete_one(tmp_path, contents):
    write(tmp_path, {IMAGES["train"]: contents[IMAGES["train"]]})
    write(tmp_path / "mnist", contents)
    assert len(mnist(tmp_path).labels) == 5


def test_missing_files_are_named_with_their_place(tmp_path, contents):
    del contents[LABELS["train"]]
    write(tmp_path, contents)
    assert len(mnist(tmp_path, "test").labels) == 3
    with pytest.raises(FileNotFoundError) as caught:
        mnist(tmp_path, "all")
    message = str(caught.value)
    assert f"put {LABELS['train']} (plain or .gz) into {tmp_path}" in message
    assert "download=True" in message
    assert IMAGES["train"] not in message
    with pytest.raises(
        FileNotFoundError, match=f"GENMATCH_DATA, to a folder that has {IMAGES['train']}, {LABELS['train']}"
    ):
        mnist()
    with pytest.raises(FileNotFoundError, match="MNIST is incomplete"):
        mnist(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        (IMAGES["train"], np.zeros((5, 32, 32), np.uint8), r"\(N, 28, 28\) images of bytes, got \(5, 32, 32\)"),
        (IMAGES["train"], np.zeros((5, 784), np.uint8), r"got \(5, 784\) of torch.uint8"),
        (IMAGES["train"], np.zeros((5, 28, 28), np.float32), "got .* of torch.float32"),
        (LABELS["train"], np.zeros(4, np.uint8), r"5 labels of one byte, got \(4,\)"),
        (LABELS["train"], np.zeros(5, np.int32), "got .* of torch.int32"),
        (LABELS["train"], np.full(5, 10, np.uint8), "labels 0 .. 9, got 10"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, contents, name, array, message):
    write(tmp_path, contents | {name: idx_bytes(array)})
    with pytest.raises(ValueError, match=message) as caught:
        mnist(tmp_path)
    assert f"{name}.gz" in str(caught.value)


def test_corrupt_file_is_named(tmp_path, contents):
    write(tmp_path, contents)
    path = tmp_path / f"{IMAGES['test']}.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=f"{path.name} is a damaged or truncated gzip"):
        mnist(tmp_path, "test")
    with pytest.raises(ValueError, match="split is one of"):
        mnist(tmp_path, "val")


@pytest.fixture
def server(contents, monkeypatch):
    """A mirror on this machine, behind one that does not answer; its files and checksums are ours to spoil."""
    files = {f"/mnist/{name}.gz": gzip.compress(content) for name, content in contents.items()}
    announced: dict[str, int] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path not in files:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(announced.get(self.path, len(files[self.path]))))
            self.end_headers()
            self.wfile.write(files[self.path])

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as mirror:
        threading.Thread(target=mirror.serve_forever, args=(0.01,), daemon=True).start()
        root = f"http://127.0.0.1:{mirror.server_port}"
        monkeypatch.setattr(MODULE, "_MIRRORS", (f"{root}/gone/", f"{root}/mnist/"))
        monkeypatch.setattr(
            MODULE, "_SHA256", {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        )
        yield files, announced
        mirror.shutdown()


def test_download_fetches_what_is_missing_once(tmp_path, server, contents):
    files, _ = server
    root = tmp_path / "new"
    assert mnist(root, "test", download=True, progress=False).labels.tolist() == [7, 2, 1]
    assert sorted(path.name for path in (root / "mnist").iterdir()) == [f"{IMAGES['test']}.gz", f"{LABELS['test']}.gz"]
    assert mnist(root, "all", download=True, progress=False).images.shape[0] == 8
    files.clear()  # nothing is fetched again
    assert mnist(root, "all", download=True, progress=False).images.shape[0] == 8


def test_download_completes_a_folder_where_it_lies(tmp_path, server, contents):
    write(tmp_path, {IMAGES["train"]: contents[IMAGES["train"]]}, zipped=False)
    mnist(tmp_path, download=True, progress=False)
    assert (tmp_path / f"{LABELS['train']}.gz").is_file()
    assert not (tmp_path / "mnist").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda content: gzip.compress(b"something else"), "has SHA-256 .*, expected .*nothing was kept"),
        (lambda content: content[:-30], "SHA-256 none"),
        (lambda content: b"<html>log in first</html>", "SHA-256 none"),
        (lambda content: bytes(2**24 + 1), "sends more than 16777216 bytes"),
    ],
)
def test_a_wrong_download_leaves_nothing(tmp_path, server, spoil, message):
    files, _ = server
    path = f"/mnist/{IMAGES['train']}.gz"
    files[path] = spoil(files[path])
    with pytest.raises(ValueError, match=message):
        mnist(tmp_path, download=True, progress=False)
    assert not list((tmp_path / "mnist").iterdir())


def test_a_cut_connection_leaves_no_half_file(tmp_path, server):
    files, announced = server
    path = f"/mnist/{IMAGES['train']}.gz"
    announced[path] = len(files[path])
    files[path] = files[path][:100]
    with pytest.raises((ValueError, FileNotFoundError)):
        mnist(tmp_path, download=True, progress=False)
    assert not list((tmp_path / "mnist").iterdir())


def test_without_a_network_the_error_says_what_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setattr(MODULE, "_MIRRORS", ("http://127.0.0.1:9/",))
    with pytest.raises(FileNotFoundError) as caught:
        mnist(tmp_path, download=True, progress=False)
    message = str(caught.value)
    assert "could not be downloaded" in message
    assert f"put {IMAGES['train']}, {LABELS['train']} (plain or .gz) into {tmp_path}" in message


def test_checksums_are_those_of_the_real_files(real_data):
    folder = real_data("mnist")
    for name, digest in MODULE._SHA256.items():
        assert MODULE._sha256(folder / f"{name}.gz") == digest
        with gzip.open(folder / f"{name}.gz") as file:
            assert hashlib.sha256(file.read()).hexdigest() == digest


def test_the_real_set(real_data):
    root = real_data("mnist").parent
    train, test = mnist(root), mnist(root, "test", size=32)
    assert train.images.shape == (60_000, 1, 28, 28)
    assert test.images.shape == (10_000, 1, 32, 32)
    # Figures everybody normalises by, and the best-known labels.
    pixels = (train.images.double() + 1) / 2
    assert pixels.mean().item() == pytest.approx(0.1307, abs=5e-5)
    assert pixels.std().item() == pytest.approx(0.3081, abs=5e-5)
    assert train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    # Upright: a seven has its bar above, a zero nothing in its middle where a one has ink.
    mean = torch.stack([train.images[train.labels == digit, 0].mean(0) for digit in range(10)])
    assert mean[7, :14].mean() > mean[7, 14:].mean()
    assert mean[6, :14].mean() < mean[6, 14:].mean()
    assert mean[0, 13:15, 13:15].mean() < mean[1, 13:15, 13:15].mean()


def test_reachable_from_the_package():
    assert genmatch.data.mnist is mnist
