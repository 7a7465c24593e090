"""Seeds of torch's own generators: what dropout, augmentation and a loader's shuffling draw from.

Counter-based draws serve what this library draws itself. The network, the loss and the data may draw from torch's
global generators besides; those are set anew before every step and every batch, to a function of the seed and of where
the run stands. A resumed run then repeats itself without a stored state, and nothing that a callback draws disturbs it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["derive_seed", "keep_generators", "seed_generators"]


def derive_seed(seed: int, purpose: str, *index: int) -> int:
    """An integer in ``[0, 2**64)``, a function of its arguments (BLAKE2b, 64 bits)."""
    text = "/".join(map(str, (seed, purpose, *index)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def seed_generators(seed: int, device: torch.device | None = None) -> None:
    """Set the global generator of the CPU, and that of ``device``."""
    # Not torch.manual_seed: it visits every back end there might be, 90 microseconds each time.
    torch.default_generator.manual_seed(seed)
    if device is None or device.type == "cpu":
        return
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(seed)
    else:
        torch.get_device_module(device).manual_seed(seed)


@contextmanager
def keep_generators(device: torch.device) -> Iterator[None]:
    """A context after which the global generators of the CPU and of ``device`` are as they were."""
    where = (device,) if device.type == "cuda" else ()  # other back ends have one generator, that of their one device
    module = None if device.type == "cpu" else torch.get_device_module(device)
    host, own = torch.get_rng_state(), None if module is None else module.get_rng_state(*where)
    try:
        yield
    finally:
        torch.set_rng_state(host)
        if module is not None:
            module.set_rng_state(own, *where)
