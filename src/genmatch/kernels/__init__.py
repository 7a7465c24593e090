"""Kernels for GPUs, in Triton, each beside a reference in torch that gives the same numbers.

===============  ==============================================================================================
:func:`normal`   the normals of :class:`genmatch.Draws` in one pass
:func:`step`     ``a x + b y + std z`` in one pass, the normals made where they are used, with guidance if asked
:func:`jump`     the jumps of tokens over a large vocabulary: the logits of positions that jump are read once
===============  ==============================================================================================

They are operators of ``torch.library`` with fake and autograd registrations, so ``torch.compile`` takes them whole. On
a GPU, with the extra ``kernels`` installed, they run in Triton after a small run on that GPU has agreed with the
reference; everywhere else the reference runs. :func:`usable` tells which.
"""

from __future__ import annotations

from .launch import usable
from .operators import jump, normal, step

__all__ = ["jump", "normal", "step", "usable"]
