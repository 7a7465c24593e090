"""A transformer on the patches of a signal, an image or a volume."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from .attention import Rotation, rotary
from .blocks import zero
from .conditioning import Conditioning, Context, read_context
from .embeddings import Sinusoidal
from .modulated import MODULATIONS, ModulatedBlock, modulate
from .recomputation import run, wanted

__all__ = ["DiT"]

AXES = ("i", "j", "k")


class DiT(nn.Module):
    """Diffusion transformer: ``(B, C, *size) -> (B, out, *size)``, for one, two or three axes.

    The state is cut into patches, each a token; blocks of attention and feed-forward layers follow, which the time,
    and perhaps a class, modulates (adaLN-Zero), and which may read a context; each token is unfolded into its patch.

    Parameters
    ----------
    channels
        Channels of the input.
    size
        Length, height and width, ...: one number for each axis (1 to 3 of them).
    out_channels
        Channels of the output; as many as the input for None.
    patch
        Side of a patch: a number, or one for each axis; divides the size.
    width
        Size of a token.
    depth
        Number of blocks.
    heads
        Heads of the attention; divides `width`.
    ratio
        Width of the feed-forward layers, in units of `width`.
    positions
        ``"rotary"``: queries and keys are turned by their positions, and other sizes than `size` are welcome.
        ``"learned"``: a vector for each position is added; states have the size given.
    classes
        Number of classes for ``label=``; None for an unconditional network. See :class:`~genmatch.nn.Labels`.
    label_dropout
        Probability of training without the label, for classifier-free guidance.
    context
        Size of the vectors of a context sequence for ``context=``; None for no context. See
        :class:`~genmatch.nn.Context`.
    context_dropout
        Probability of training without the context.
    embedding
        Size of the vector that carries time and class; `width` for None. Every sample has one: a larger embedding costs
        next to no time.
    time_scale
        Multiplies the times in front of the sinusoidal embedding: 1000 suits times in ``[0, 1]``.
    time
        Another embedding of the time than ``Sinusoidal(256, scale=time_scale)``.
    checkpoint
        In training mode keep no activations inside the blocks for the backward pass, and compute them again there: less
        memory for a third more time. Within a transform of ``torch.func`` all are kept.

    Raises
    ------
    ValueError
        If a size does not divide as said above, on construction; on a call, if x is not ``(B, channels, *size)`` or,
        with rotary positions, not a multiple of the patch, or times, labels or the context have wrong shapes.

    Notes
    -----
    A call is ``network(x, t, label=None, context=None, context_mask=None)`` with x ``(B, channels, *size)``, t ``(B,)``
    any real numbers, label ``(B,)`` int64 in ``[0, classes)``, context ``(B, M, context)`` and context_mask bool
    ``(B, M)``, true where a vector counts. A new network returns zero.

    References
    ----------
    .. [1] W. Peebles and S. Xie, "Scalable diffusion models with transformers", arXiv 2212.09748, Section 3.2.
    .. [2] J. Chen et al., "PixArt-alpha", arXiv 2310.00426, Section 2.3 (cross-attention between the two halves).

    Examples
    --------
    >>> import torch
    >>> network = DiT(3, (8, 8), width=32, depth=2, heads=2, classes=10)
    >>> network(torch.zeros(2, 3, 8, 8), torch.rand(2), label=torch.tensor([3, 10])).shape
    torch.Size([2, 3, 8, 8])
    """

    table: Tensor | None

    def __init__(
        self,
        channels: int,
        size: int | Sequence[int],
        out_channels: int | None = None,
        *,
        patch: int | Sequence[int] = 2,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        ratio: float = 4.0,
        positions: str = "rotary",
        classes: int | None = None,
        label_dropout: float = 0.1,
        context: int | None = None,
        context_dropout: float = 0.1,
        embedding: int | None = None,
        time_scale: float = 1000.0,
        time: nn.Module | None = None,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        size = (size,) if isinstance(size, int) else tuple(size)
        patch = (patch,) * len(size) if isinstance(patch, int) else tuple(patch)
        out_channels = channels if out_channels is None else out_channels
        _check_sizes(channels, out_channels, size, patch, width, depth, heads, positions)
        self.channels, self.size, self.patch, self.width = channels, size, patch, width
        self.classes, self.checkpoint, self.rotates = classes, checkpoint, positions == "rotary"
        dim = width if embedding is None else embedding
        self.conditioning = Conditioning(
            Sinusoidal(256, scale=time_scale) if time is None else time, dim, classes, label_dropout
        )
        self.context = None if context is None else Context(context, context_dropout)
        self.input = nn.Linear(channels * math.prod(patch), width)
        self.blocks = nn.ModuleList(ModulatedBlock(width, heads, context=context, ratio=ratio) for _ in range(depth))
        tokens = math.prod(n // p for n, p in zip(size, patch, strict=True))
        if self.rotates:
            self.register_parameter("table", None)
        else:
            self.table = nn.Parameter(torch.randn(tokens, width) * 0.02)
        # One product makes the modulations of all blocks, and a shift and a scale in front of the output.
        self.modulations = nn.Linear(dim, (MODULATIONS * depth + 2) * width)
        self.output = nn.Linear(width, out_channels * math.prod(patch))
        zero(self.modulations)
        zero(self.output)
        axes, sides = AXES[: len(size)], [f"p{axis}" for axis in AXES[: len(size)]]
        whole = " ".join(f"({axis} {side})" for axis, side in zip(axes, sides, strict=True))
        self._whole, self._cut = f"b c {whole}", f"b ({' '.join(axes)}) ({' '.join(sides)} c)"

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        label: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        """Evaluate at states ``(B, channels, *size)`` and times ``(B,)``."""
        grid = self._check(x)
        sides = {f"p{axis}": p for axis, p in zip(AXES, self.patch, strict=False)}
        condition = self.conditioning(t, label, x.shape[0])
        modulations = self.modulations(condition)[:, None].chunk(MODULATIONS * len(self.blocks) + 2, dim=-1)
        h = self.input(rearrange(x, f"{self._whole} -> {self._cut}", **sides))
        rotation: Rotation | None = None
        if self.table is not None:
            h = h + self.table
        else:
            rotation = rotary(grid, self.width // self.blocks[0].attention.heads, device=x.device)  # type: ignore[union-attr]
        context, mask = read_context(self.context, context, context_mask, x.shape[0])
        again = wanted(self)
        for i, block in enumerate(self.blocks):
            own = (*modulations[MODULATIONS * i : MODULATIONS * (i + 1)], rotation, context, mask)
            h = run(block, h, *own, again=again)
        h = self.output(modulate(h, *modulations[-2:]))
        lengths = dict(zip(AXES, grid, strict=False))
        return rearrange(h, f"{self._cut} -> {self._whole}", **sides, **lengths)

    def _check(self, x: Tensor) -> tuple[int, ...]:
        """The number of patches along each axis."""
        if x.ndim != 2 + len(self.size) or x.shape[1] != self.channels:
            sizes = ", ".join(map(str, self.size))
            raise ValueError(f"x must be (B, {self.channels}, {sizes}), got {tuple(x.shape)}")
        if self.rotates:
            if any(n % p or not n for n, p in zip(x.shape[2:], self.patch, strict=True)):
                raise ValueError(f"the size must be multiples of the patch {self.patch}, got {tuple(x.shape[2:])}")
        elif tuple(x.shape[2:]) != self.size:
            raise ValueError(
                f"learned positions are for states of size {self.size}, got {tuple(x.shape[2:])}: "
                'build the network with positions="rotary" for others'
            )
        return tuple(n // p for n, p in zip(x.shape[2:], self.patch, strict=True))


def _check_sizes(
    channels: int,
    out_channels: int,
    size: tuple[int, ...],
    patch: tuple[int, ...],
    width: int,
    depth: int,
    heads: int,
    positions: str,
) -> None:
    if not 1 <= len(size) <= len(AXES):
        raise ValueError(f"size has one to three axes, got {size}")
    if min(channels, out_channels, width, depth, *size, *patch) < 1:
        raise ValueError(
            f"sizes must be positive, got channels={channels}, out_channels={out_channels}, size={size}, "
            f"patch={patch}, width={width}, depth={depth}"
        )
    if len(patch) != len(size) or any(n % p for n, p in zip(size, patch, strict=True)):
        raise ValueError(f"the patch must divide the size on every axis, got patch={patch} and size={size}")
    if positions not in ("rotary", "learned"):
        raise ValueError(f'positions must be "rotary" or "learned", got {positions!r}')
    if positions == "rotary" and heads > 0 and width % heads == 0 and width // heads < 2 * len(size):
        raise ValueError(
            f"rotary positions need a pair of a head's coordinates for each axis: a size of at least {2 * len(size)}, "
            f"got {width // heads}; take fewer heads"
        )
    if positions == "rotary" and heads > 0 and width % heads == 0 and (width // heads) % 2:
        raise ValueError(f"rotary positions turn pairs: a head has an even size, got {width // heads}")
