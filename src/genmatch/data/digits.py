"""scikit-learn's handwritten digits: real data that needs no network and no files."""

from __future__ import annotations

import numpy as np
import torch

from ..random import Draws
from .labelled import Labelled, split_parts

__all__ = ["digits"]

_TEST = 297
_SPLIT_SEED = 0


def digits(split: str = "train") -> Labelled:
    """The 1,797 handwritten digits of 8x8 pixels that scikit-learn carries.

    Parameters
    ----------
    split
        ``"train"`` (1,500), ``"test"`` (297) or ``"all"`` (train, then test). The split is ours, fixed for good, and
        stratified: each class gives the test part its share, to the nearest image. Each part keeps the order of the
        set. Both parts share their 13 writers, so the test part says nothing about new hands.

    Returns
    -------
    Labelled
        Images ``(N, 1, 8, 8)``: pixels are counts 0 .. 16, taken to ``count / 8 - 1``, so 17 levels in ``[-1, 1]``
        with ink at 1. Labels 0 .. 9.

    Raises
    ------
    ImportError
        Without scikit-learn: ``pip install 'genmatch[data]'``.
    ValueError
        For another split.

    References
    ----------
    E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998: the
    test part of that set.
    """
    parts = split_parts(split)
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("digits need scikit-learn: pip install 'genmatch[data]'") from error
    counts, classes = load_digits(return_X_y=True)
    labels = torch.from_numpy(classes.astype(np.int64))
    images = torch.from_numpy(counts.astype(np.float32)).reshape(-1, 1, 8, 8).div_(8).sub_(1)
    in_test = _in_test(labels)
    index = torch.cat([(in_test if part == "test" else ~in_test).nonzero()[:, 0] for part in parts])
    return Labelled(images[index], labels[index], tuple(str(digit) for digit in range(10)))


def _in_test(labels: torch.Tensor) -> torch.Tensor:
    """Which images are in the test part: a random choice within each class, by our own draws.

    The draws are a fixed function, so no release of another library can change the split.
    """
    keys = Draws(_SPLIT_SEED, len(labels)).bits((len(labels),))
    chosen = torch.zeros_like(labels, dtype=torch.bool)
    for label, count in enumerate(_shares(torch.bincount(labels).tolist(), _TEST)):
        members = (labels == label).nonzero()[:, 0]
        chosen[members[keys[members].argsort(stable=True)[:count]]] = True
    return chosen


def _shares(sizes: list[int], total: int) -> list[int]:
    """``total`` shared out in proportion to ``sizes``, rounded by largest remainder."""
    whole = sum(sizes)
    shares = [total * size // whole for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda i: -(total * sizes[i] % whole))
    for i in by_remainder[: total - sum(shares)]:
        shares[i] += 1
    return shares
