"""Images in class-named folders, on disk or in an archive: ``cat/001.png``, or ``train/cat/001.png``."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
import torch

from .archives import read_files
from .labelled import Labelled, signed

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

__all__ = ["image_folder", "is_image"]

_SUFFIXES = (".jpg", ".jpeg", ".png")
_OTHER_SUFFIXES = (".bmp", ".gif", ".jp2", ".tif", ".tiff", ".webp")
_MODES = {1: "L", 3: "RGB"}
_KNOWN_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}  # 8 bits a channel
_MAX_PIXELS = 2**26


def image_folder(
    root: str | os.PathLike[str],
    size: int | None = None,
    *,
    parts: str | Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    channels: int = 3,
    progress: bool = True,
) -> Labelled:
    """JPEG and PNG images that lie in one folder per class.

    Parameters
    ----------
    root
        A folder ``root/cat/001.png``, or a .tar.gz, .tar.xz or .zip of such a folder, at any depth.
    size
        Height and width in pixels: the largest centred square is cut out and resampled (bicubic). ``None`` takes the
        images as they are, and then they must all have one shape.
    parts
        Read ``root/train/cat/001.png`` for ``parts="train"``; for several parts, one after another.
    classes
        The class names in the order of their labels. By default those found, sorted.
    channels
        3 (RGB) or 1 (grey, ITU-R 601 luma).
    progress
        Show a bar on work longer than a second.

    Returns
    -------
    Labelled
        Images ``(N, channels, H, W)``, ``v / 127.5 - 1``, sorted by part, class and name; shuffle before training.

    Raises
    ------
    ImportError
        Without Pillow: ``pip install 'genmatch[data]'``.
    FileNotFoundError
        If there is no such folder or archive.
    ValueError
        If there are no images, images outside class folders or in class folders at several places, classes other than
        ``classes``, an image that is damaged, transparent, deeper than 8 bits, too large or of another shape, an image
        of another format, or an archive that is damaged or not safe. Files that are no images are passed over, and so
        are names that begin with a dot.

    Notes
    -----
    All images are held in memory.
    """
    if channels not in _MODES:
        raise ValueError(f"channels is 1 or 3, got {channels!r}")
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise ValueError(f"size is a number of pixels or None, got {size!r}")
    root = Path(root).expanduser()
    order = (parts,) if isinstance(parts, str) else parts
    found, prefixes = [], set()
    for name, content in read_files(root, lambda name: _is_wanted(root, name, order), progress=progress):
        *prefix, label, _ = PurePosixPath(name).parts
        part = 0 if order is None else order.index(prefix.pop())
        prefixes.add("/".join(prefix))
        found.append((part, label, name, _decode(root, name, content, size, channels)))
    where = "" if order is None else f" under {' and '.join(repr(part) for part in order)}"
    if not found:
        raise ValueError(f"{root} has no images in class-named folders{where}, such as cat/001.png")
    if len(prefixes) > 1:
        raise ValueError(
            f"{root} has class folders{where} at several places, {', '.join(map(repr, sorted(prefixes)))}: "
            "give one of them as root=, or parts='train'"
        )
    for part in range(len(order or ())):
        if not any(item[0] == part for item in found):
            raise ValueError(f"{root} has no images under {(order or ())[part]!r}")
    found.sort(key=lambda item: item[:3])
    names = _class_names(root, {item[1] for item in found}, classes)
    index = {name: i for i, name in enumerate(names)}
    labels = torch.tensor([index[item[1]] for item in found])
    return Labelled(signed(_stack(root, found)), labels, names)


def is_image(name: str) -> bool:
    """Whether a file name is that of a JPEG or PNG image, in no hidden folder."""
    return name.lower().endswith(_SUFFIXES) and not _is_hidden(name)


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)


def _is_wanted(root: Path, name: str, parts: Sequence[str] | None) -> bool:
    above = PurePosixPath(name).parts[:-1]
    if parts is not None:
        if len(above) == 1 and above[0] in parts:
            above = ()  # train/001.png: under a part, in no class
        elif len(above) < 2 or above[-2] not in parts:
            return False
    if not is_image(name):
        if name.lower().endswith(_OTHER_SUFFIXES) and not _is_hidden(name):
            raise ValueError(f"{root}: {name!r} is not JPEG or PNG: convert it, or move it away")
        return False
    if not above:
        raise ValueError(f"{root}: {name!r} is in no class-named folder, such as cat/001.png")
    return True


def _class_names(root: Path, found: set[str], classes: Sequence[str] | None) -> tuple[str, ...]:
    if classes is None:
        return tuple(sorted(found))
    if found != set(classes):
        unknown, missing = sorted(found - set(classes)), sorted(set(classes) - found)
        raise ValueError(f"{root}: the class folders do not match: unknown {unknown}, missing or empty {missing}")
    return tuple(classes)


def _stack(root: Path, found: list[tuple[int, str, str, np.ndarray]]) -> np.ndarray:
    shape = found[0][3].shape
    for *_, name, pixels in found:
        if pixels.shape != shape:
            raise ValueError(
                f"{root}: images of one shape expected, but {found[0][2]!r} is {shape[0]}x{shape[1]} and {name!r} is "
                f"{pixels.shape[0]}x{pixels.shape[1]}: pass size="
            )
    return np.stack([pixels.transpose(2, 0, 1) for *_, pixels in found])


def _decode(root: Path, name: str, content: bytes, size: int | None, channels: int) -> np.ndarray:
    """Pixels ``(H, W, channels)``, uint8."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ImportError("reading images needs Pillow: pip install 'genmatch[data]'") from error
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise ValueError(
                    f"{root}: {name!r} claims {image.width}x{image.height} pixels, more than {_MAX_PIXELS}"
                )
            # Cameras turn the picture by a tag and leave the pixels as they are.
            picture = _flatten(root, name, ImageOps.exif_transpose(image)).convert(_MODES[channels])
    except (OSError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise ValueError(f"{root}: {name!r} is not a readable JPEG or PNG image: {error}") from error
    if size is not None:
        picture = ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(picture).reshape(picture.height, picture.width, channels)


def _flatten(root: Path, name: str, picture: Picture) -> Picture:
    """The picture without its alpha channel; what is see-through has no colour to take, so it is an error."""
    if picture.mode not in _KNOWN_MODES:
        raise ValueError(f"{root}: {name!r} has pixels of mode {picture.mode!r}, 8 bits a channel expected")
    if not picture.has_transparency_data:
        return picture
    picture = picture.convert("RGBA")
    if picture.getchannel("A").getextrema() != (255, 255):
        raise ValueError(f"{root}: {name!r} is partly transparent: put it on a background first")
    return picture
