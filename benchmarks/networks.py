"""What a forward and a training step of our networks cost beside those of other libraries, at equal parameters.

Each peer stands beside a network of ours with the same widths at the same resolutions, the same attention (as many
layers, at the same places, of as many heads) and as many weights, to 2%; every number is a ratio of times within the
same round, theirs to ours, so above 1 ours is faster. What is made equal, and how:

- The peers' U-Nets have attention after every block of a level that has any, and in the middle; ours after the last
  block of a level. Theirs is cut down to ours: the other layers are replaced by identities.
- The peers have one more block a level on the way up, and convolutions that halve and double; ours has its weights at
  the coarsest level instead, as ``blocks=(2, 2, n)`` with n, and the size of the embedding, chosen to match.
- ``DiTTransformer2DModel`` embeds time and label in every block anew. At equal width, depth and heads ours is smaller,
  so a second row widens our feed-forward layers until the weights are as many.

A training step is a squared error, its gradient, and AdamW (fused), the same for all.

Run it as ``python benchmarks/networks.py [--save]`` with diffusers and torchcfm installed.
"""

from __future__ import annotations

import argparse
import importlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from _interleave import interleave, ratios, save, versions
from torch import Tensor, nn

import genmatch as gm

MULTIPLIERS, HEADS, CLASSES = (1, 2, 4), 4, 10
Call = Callable[[nn.Module, Tensor, Tensor], Tensor]


@dataclass
class Contender:
    """A network, and how it is called with states and times in [0, 1]."""

    network: nn.Module
    call: Call

    @property
    def weights(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.network.parameters())


@dataclass
class Pair:
    """A peer beside ours."""

    title: str
    peer: Contender
    ours: Contender
    tolerance: float = 0.02

    def check(self) -> None:
        """Refuse to compare networks of other sizes."""
        excess = self.ours.weights / self.peer.weights - 1
        if abs(excess) > self.tolerance:
            raise RuntimeError(f"{self.title}: {self.ours.weights} weights against {self.peer.weights}")


def keep_last(layers: nn.ModuleList) -> None:
    """Leave the last attention of a level alone."""
    for i in range(len(layers) - 1):
        layers[i] = nn.Identity()


def diffusers_unet(args: argparse.Namespace, attention: bool) -> Contender:
    library = importlib.import_module("diffusers")
    down, up = ["DownBlock2D"] * 3, ["UpBlock2D"] * 3
    if attention:
        down[1], up[1] = "AttnDownBlock2D", "AttnUpBlock2D"
    network = library.UNet2DModel(
        args.size,
        args.channels,
        args.channels,
        block_out_channels=tuple(args.width * m for m in MULTIPLIERS),
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        attention_head_dim=2 * args.width // HEADS,
        add_attention=False,
        norm_num_groups=8,
        resnet_time_scale_shift="scale_shift",
    )
    if attention:
        keep_last(network.down_blocks[1].attentions)
        keep_last(network.up_blocks[1].attentions)
    return Contender(network, lambda network, x, t: network(x, 1000 * t, return_dict=False)[0])


def torchcfm_unet(args: argparse.Namespace, attention: bool) -> Contender:
    unet = importlib.import_module("torchcfm.models.unet.unet")
    network = unet.UNetModelWrapper(
        (args.channels, args.size, args.size),
        args.width,
        2,
        channel_mult=MULTIPLIERS,
        num_heads=HEADS,
        attention_resolutions=str(args.size // 2),
        use_scale_shift_norm=True,
    )
    found = [
        (part, i)
        for part in (*network.input_blocks, network.middle_block, *network.output_blocks)
        for i, layer in enumerate(part)
        if isinstance(layer, unet.AttentionBlock)
    ]
    kept = {1, len(found) - 1} if attention else set()  # 2 on the way down, 1 in the middle, 3 on the way up
    for n, (part, i) in enumerate(found):
        if n not in kept:
            part[i] = nn.Identity()
    return Contender(network, lambda network, x, t: network(1000 * t, x))


def our_unet(args: argparse.Namespace, attention: bool, weights: int) -> Contender:
    """The U-Net of ours whose number of weights is nearest."""

    def candidates() -> Iterator[tuple[int, int, int]]:
        for last in range(1, 12):
            for embedding in range(args.width, 8 * args.width + 1, args.width // 2):
                with torch.device("meta"):
                    size = sum(p.numel() for p in build(last, embedding).parameters())
                yield abs(size - weights), last, embedding

    def build(last: int, embedding: int) -> nn.Module:
        return gm.nn.UNet(
            args.channels,
            width=args.width,
            multipliers=MULTIPLIERS,
            blocks=(2, 2, last),
            attention=(1,) if attention else (),
            heads=HEADS,
            embedding=embedding,
        )

    _, last, embedding = min(candidates())
    return Contender(build(last, embedding), lambda network, x, t: network(x, t))


def dits(args: argparse.Namespace) -> list[Pair]:
    library = importlib.import_module("diffusers")
    width, depth, heads = args.tokens, 6, args.tokens // 32

    def peer() -> Contender:
        network = library.DiTTransformer2DModel(
            heads,
            width // heads,
            in_channels=args.channels,
            num_layers=depth,
            sample_size=args.size,
            patch_size=args.patch,
            num_embeds_ada_norm=CLASSES,
        )

        def call(network: nn.Module, x: Tensor, t: Tensor) -> Tensor:
            return network(x, 1000 * t, class_labels=labels(x), return_dict=False)[0]

        return Contender(network, call)

    def ours(ratio: float, positions: str) -> Contender:
        network = gm.nn.DiT(
            args.channels,
            (args.size, args.size),
            patch=args.patch,
            width=width,
            depth=depth,
            heads=heads,
            ratio=ratio,
            positions=positions,
            classes=CLASSES,
        )
        return Contender(network, lambda network, x, t: network(x, t, label=labels(x)))

    missing = (peer().weights - ours(4.0, "learned").weights) / (2 * depth * width)
    ratio = 4.0 + round(missing) / width
    return [
        Pair("diffusers DiT, equal shape, learned positions", peer(), ours(4.0, "learned"), tolerance=0.25),
        Pair("diffusers DiT, equal shape, rotary positions", peer(), ours(4.0, "rotary"), tolerance=0.25),
        Pair("diffusers DiT, equal weights, learned positions", peer(), ours(ratio, "learned")),
    ]


def labels(x: Tensor) -> Tensor:
    return torch.arange(len(x), device=x.device) % CLASSES


def pairs(args: argparse.Namespace) -> tuple[list[Pair], dict[str, str]]:
    """All pairs of what is installed, and why the others are missing."""
    found: list[Pair] = []
    missing: dict[str, str] = {}
    for library, make in (("diffusers", diffusers_unet), ("torchcfm", torchcfm_unet)):
        try:
            for attention, where in ((True, "2 attention layers"), (False, "no attention")):
                peer = make(args, attention)
                found.append(Pair(f"{library} U-Net, {where}", peer, our_unet(args, attention, peer.weights)))
        except ImportError as error:
            missing[library] = f"{type(error).__name__}: {error}"
    if "diffusers" not in missing:
        found += dits(args)
    return found, missing


def forward(contender: Contender, x: Tensor, t: Tensor, args: argparse.Namespace) -> Callable[[], object]:
    def run() -> Tensor:
        with torch.no_grad(), torch.autocast(args.device, torch.bfloat16, enabled=args.bf16):
            output = contender.call(contender.network, x, t)
        if args.device == "cuda":
            torch.cuda.synchronize()
        return output

    return run


def step(contender: Contender, x: Tensor, t: Tensor, args: argparse.Namespace) -> Callable[[], object]:
    optimiser = torch.optim.AdamW(contender.network.parameters(), lr=1e-4, fused=True)
    target = torch.randn_like(x)

    def run() -> None:
        optimiser.zero_grad()
        with torch.autocast(args.device, torch.bfloat16, enabled=args.bf16):
            output = contender.call(contender.network, x, t)
        F.mse_loss(output[:, : x.shape[1]].float(), target).backward()
        optimiser.step()
        if args.device == "cuda":
            torch.cuda.synchronize()

    return run


def measure(pair: Pair, args: argparse.Namespace) -> dict[str, object]:
    """Ratios of a pair, and what was compared."""
    pair.check()
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    torch.manual_seed(0)
    x = torch.randn(args.batch, args.channels, args.size, args.size, device=args.device).to(memory_format=layout)
    t = torch.rand(args.batch, device=args.device)
    both = {"ours": pair.ours, "peer": pair.peer}
    for each in both.values():
        each.network.to(args.device).to(memory_format=layout)  # pyright: ignore[reportCallIssue]
        if args.compile:
            each.network.compile()
    row: dict[str, object] = {"weights": pair.peer.weights, "our_weights": pair.ours.weights}
    for name, make in (("forward", forward), ("training step", step)):
        times = interleave({who: make(each, x, t, args) for who, each in both.items()}, args.rounds)
        middle, least, most = ratios(times, "ours")["peer"]
        ours = sorted(times["ours"])[args.rounds // 2]
        row[name] = {"ratio": middle, "least": least, "most": most, "our_seconds": ours}
        span = f"({least:.2f}, {most:.2f})"
        print(f"  {pair.title:48} {name:14} {middle:6.2f} {span:>14}  {pair.ours.weights / pair.peer.weights:8.3f}")
    return row


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("batch", 64), ("size", 32), ("channels", 1), ("width", 64), ("rounds", 7), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--tokens", type=int, default=192, help="width of the transformers, a multiple of 32")
    parser.add_argument("--patch", type=int, default=4)
    parser.add_argument("--only", default="", help="run the pairs whose title contains this")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    for flag in ("bf16", "compile", "channels-last"):
        parser.add_argument(f"--{flag}", action="store_true", help="for both sides")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/networks.json")
    return parser.parse_args()


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    found, missing = pairs(args)
    print(f"{args.channels} x {args.size} x {args.size}, batch {args.batch}: their time over ours, medians")
    print(f"  {'':48} {'':14} {'ratio':>6} {'(least, most)':>14}  {'weights':>8}")
    rows = {pair.title: measure(pair, args) for pair in found if args.only in pair.title}
    for name, why in missing.items():
        print(f"  {name}: left out, {why}")
    if args.save:
        content = {"options": vars(args), "versions": versions("diffusers", "torchcfm"), "rows": rows}
        print(f"\nwritten to {save('networks', content)}")


if __name__ == "__main__":
    main()
