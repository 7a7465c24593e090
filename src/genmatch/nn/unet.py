"""A U-Net for signals, images and volumes of any size that halves often enough."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import CONVOLUTIONS, Stage, halve, zero
from .conditioning import Conditioning, Context, read_context
from .embeddings import Sinusoidal
from .recomputation import run, wanted

__all__ = ["UNet"]


class UNet(nn.Module):
    """U-Net of residual blocks that a time, and perhaps a class, modulates: ``(B, C, *size) -> (B, out, *size)``.

    Images ``(B, C, H, W)`` by default; signals ``(B, C, L)`` and volumes ``(B, C, D, H, W)`` by `axes`.
    Level i works at 1 / 2**i of the resolution with ``width * multipliers[i]`` channels. Each level but the last has
    `blocks` residual blocks on the way down and as many on the way up, joined one to one by concatenation; the last
    has `blocks` in all. Between levels stand means of 2 pixels an axis and nearest-neighbour doubling, which have no
    weights: the residual blocks change the number of channels. Attention, where chosen, follows the last block of a
    level.

    Parameters
    ----------
    channels
        Channels of the input.
    out_channels
        Channels of the output; as many as the input for None.
    width
        Channels of a unit multiplier; even.
    multipliers
        One for each level, full resolution first.
    blocks
        Residual blocks of each level: a number, or one for each level.
    attention
        Levels with self-attention, negative ones counted from the coarsest. It costs the square of the number of
        pixels: level 1 of a 32 x 32 image has 256.
    heads
        Heads of the attention; divides the channels of each level that has one.
    groups
        Groups of each normalisation; divides the channels of every level.
    classes
        Number of classes for ``label=``; None for an unconditional network. See :class:`~genmatch.nn.Labels`.
    label_dropout
        Probability of training without the label, for classifier-free guidance.
    dropout
        Probability of zeroing an activation in front of the second convolution of a block, in training mode.
    embedding
        Size of the vector that carries time and class; ``2 * width`` for None.
    time_scale
        Multiplies the times in front of the sinusoidal embedding: 1000 suits times in ``[0, 1]``. Pass 1 where the
        predictor feeds table indices 0 .. 999.
    time
        Another embedding of the time than ``Sinusoidal(width, scale=time_scale)``.
    axes
        Number of axes of a state: 1, 2 or 3.
    context
        Size of the vectors of a context sequence for ``context=``; None for no context. The levels with attention read
        it. See :class:`~genmatch.nn.Context`.
    context_dropout
        Probability of training without the context.
    checkpoint
        In training mode keep no activations inside the stages for the backward pass, and compute them again there: less
        memory for a third more time. Within a transform of ``torch.func`` all are kept.

    Raises
    ------
    ValueError
        If a size does not divide as said above, on construction; on a call, if x is not ``(B, channels, *size)`` with
        a size divisible by ``2**(levels - 1)``, or times, labels or the context have wrong shapes.

    Notes
    -----
    A call is ``network(x, t, label=None, context=None, context_mask=None)`` with x ``(B, channels, *size)``, t ``(B,)``
    any real numbers, label ``(B,)`` int64 in ``[0, classes)``, context ``(B, M, context)`` and context_mask bool
    ``(B, M)``, true where a vector counts. The null label is ``classes``; None means null for every sample.

    The output layer, and the last layer of every block, start at zero: a new network returns zero and each block the
    identity.

    The memory layout is the user's choice, ``network.to(memory_format=torch.channels_last)`` or nothing. On a CPU leave
    it: from 64 channels on the two take the same time to a tenth, but with 16 channels torch 2.13's group normalisation
    makes channels last take 1.3 to 3.4 times as long. On GPUs with tensor cores it is usually the faster one.

    The attention's softmax costs the same for each head, however small: on a CPU heads of 32 or 64 channels are the
    fast ones. With 32 channels one head makes a whole training step up to 1.5 times as fast as 4.

    Train volumes in float32 on a CPU: under bfloat16, torch 2.13's gradient of a 3-D convolution reads memory that
    nothing has written where a level is down to a few pixels, such as 2 x 2 x 2, and may be NaN.
    ``torch.func.jvp`` works with weights in bfloat16, but not under bfloat16 autocast on a CPU.

    References
    ----------
    .. [1] O. Ronneberger, P. Fischer and T. Brox, "U-Net", 2015.
    .. [2] J. Ho, A. Jain and P. Abbeel, "Denoising diffusion probabilistic models", 2020, appendix B.
    .. [3] P. Dhariwal and A. Nichol, "Diffusion models beat GANs on image synthesis", 2021, section 3 (adaptive group
       normalisation).

    Examples
    --------
    >>> import torch
    >>> network = UNet(channels=3, width=16, multipliers=(1, 2), blocks=1, classes=10)
    >>> network(torch.zeros(2, 3, 8, 8), torch.rand(2), label=torch.tensor([3, 10])).shape
    torch.Size([2, 3, 8, 8])
    """

    def __init__(
        self,
        channels: int,
        out_channels: int | None = None,
        *,
        width: int = 64,
        multipliers: Sequence[int] = (1, 2, 4),
        blocks: int | Sequence[int] = 2,
        attention: Iterable[int] = (-1,),
        heads: int = 4,
        groups: int = 8,
        classes: int | None = None,
        label_dropout: float = 0.1,
        dropout: float = 0.0,
        embedding: int | None = None,
        time_scale: float = 1000.0,
        time: nn.Module | None = None,
        axes: int = 2,
        context: int | None = None,
        context_dropout: float = 0.1,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        if axes not in CONVOLUTIONS:
            raise ValueError(f"a state has 1, 2 or 3 axes, got axes={axes!r}")
        convolution = CONVOLUTIONS[axes]
        levels = len(multipliers)
        counts = (blocks,) * levels if isinstance(blocks, int) else tuple(blocks)
        attended = _levels(attention, levels)
        _check_sizes(channels, out_channels, multipliers, counts, dropout)
        if context is not None and not attended:
            raise ValueError("a context is read by attention: name at least one level in attention")
        sizes = [width * multiplier for multiplier in multipliers]
        for size in sizes:
            if groups < 1 or size % groups:
                raise ValueError(f"groups must divide the channels of every level, {sizes}, got groups={groups}")
        dim = 2 * width if embedding is None else embedding
        self.channels, self.classes, self.levels, self.axes = channels, classes, levels, axes
        self.checkpoint = checkpoint
        self.conditioning = Conditioning(
            Sinusoidal(width, scale=time_scale) if time is None else time, dim, classes, label_dropout
        )
        self.context = None if context is None else Context(context, context_dropout)
        self.input = convolution(channels, sizes[0], 3, padding=1)

        def level(i: int, inputs: list[int]) -> nn.ModuleList:
            last = len(inputs) - 1
            return nn.ModuleList(
                Stage(size, sizes[i], groups, heads if i in attended and n == last else None, dropout, axes, context)
                for n, size in enumerate(inputs)
            )

        enter = [sizes[0], *sizes]  # channels that come into a level on the way down
        down = [level(i, [enter[i]] + [sizes[i]] * (counts[i] - 1)) for i in range(levels)]
        self.down, self.middle = nn.ModuleList(down[:-1]), down[-1]
        coarse_to_fine = range(levels - 2, -1, -1)
        self.rise = nn.ModuleList(convolution(sizes[i + 1], sizes[i], 1) for i in coarse_to_fine)
        self.up = nn.ModuleList(level(i, [2 * sizes[i]] * counts[i]) for i in coarse_to_fine)
        self.norm = nn.GroupNorm(groups, sizes[0])
        self.output = convolution(sizes[0], channels if out_channels is None else out_channels, 3, padding=1)
        zero(self.output)
        # One product makes the scales and shifts of all blocks.
        self.film_sizes = [stage.block.outputs for stage in self._stages()]
        self.film = nn.Linear(dim, 2 * sum(self.film_sizes))

    @classmethod
    def mnist(
        cls,
        *,
        classes: int | None = None,
        label_dropout: float = 0.1,
        dropout: float = 0.0,
        time_scale: float = 1000.0,
    ) -> UNet:
        """The network for 1 x 32 x 32 digits: 64, 128 and 256 channels, attention at 16 x 16, 4.5 million weights."""
        return cls(
            1,
            attention=(1,),
            classes=classes,
            label_dropout=label_dropout,
            dropout=dropout,
            time_scale=time_scale,
        )

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        label: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        """Evaluate at states ``(B, channels, *size)`` and times ``(B,)``."""
        self._check(x)
        films = self._films(self.conditioning(t, label, x.shape[0]))
        told = read_context(self.context, context, context_mask, x.shape[0])
        again = wanted(self)

        def through(stage: nn.Module, h: Tensor) -> Tensor:
            return run(stage, h, *next(films), *told, again=again)

        h = self.input(x)
        skips: list[Tensor] = []
        for level in self.down:
            for stage in level:  # pyright: ignore[reportGeneralTypeIssues]
                h = through(stage, h)
                skips.append(h)
            h = halve(h)
        for stage in self.middle:
            h = through(stage, h)
        for rise, level in zip(self.rise, self.up, strict=True):
            h = F.interpolate(rise(h), scale_factor=2.0, mode="nearest")
            for stage in level:  # pyright: ignore[reportGeneralTypeIssues]
                h = through(stage, torch.cat((h, skips.pop()), dim=1))
        return self.output(F.silu(self.norm(h)))

    def _stages(self) -> Iterator[Stage]:
        """The stages in the order in which they run."""
        return (module for module in self.modules() if isinstance(module, Stage))

    def _films(self, condition: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        scale, shift = self.film(condition).chunk(2, dim=1)
        scales, shifts = (scale + 1).split(self.film_sizes, dim=1), shift.split(self.film_sizes, dim=1)
        return zip(scales, shifts, strict=True)

    def _check(self, x: Tensor) -> None:
        if x.ndim != 2 + self.axes or x.shape[1] != self.channels:
            size = ", ".join(("D", "H", "W")[-self.axes :]) if self.axes > 1 else "L"
            raise ValueError(f"x must be (B, {self.channels}, {size}), got {tuple(x.shape)}")
        factor = 2 ** (self.levels - 1)
        if any(n % factor or not n for n in x.shape[2:]):
            what = {1: "length", 2: "height and width", 3: "depth, height and width"}[self.axes]
            raise ValueError(
                f"{what} must be multiples of {factor}, as {self.levels} levels halve them "
                f"{self.levels - 1} times; got {' x '.join(map(str, x.shape[2:]))}: pad the states or use fewer "
                "multipliers"
            )


def _levels(attention: Iterable[int], levels: int) -> set[int]:
    chosen = tuple(attention)
    for level in chosen:
        if not -levels <= level < levels:
            raise ValueError(f"attention names levels 0 .. {levels - 1} (or -1 .. -{levels}), got {level} in {chosen}")
    return {level % levels for level in chosen}


def _check_sizes(
    channels: int, out_channels: int | None, multipliers: Sequence[int], counts: tuple[int, ...], dropout: float
) -> None:
    if channels < 1 or (out_channels is not None and out_channels < 1):
        raise ValueError(f"channels must be positive, got channels={channels} and out_channels={out_channels}")
    if not multipliers or min(multipliers) < 1:
        raise ValueError(f"multipliers are positive integers, one for each level, got {tuple(multipliers)}")
    if len(counts) != len(multipliers) or min(counts) < 1:
        raise ValueError(
            f"blocks is a positive integer, or one for each of the {len(multipliers)} levels, got {counts}"
        )
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is a probability in [0, 1), got {dropout}")
