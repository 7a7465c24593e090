"""What a forward and a training step of our networks cost beside those of other libraries, at equal parameters.

Each peer stands beside a network of ours with the same widths at the same resolutions, the same attention (as many
layers, at the same places, of as many heads) and as many weights, to 2%; every number is a ratio of times within the
same round, theirs to ours, so above 1 ours is faster. What is made equal, and how:

- The peers' U-Nets have attention after every block of a level that has any, and in the middle; ours after the last
  block of a level. Theirs is cut down to ours: the other layers are replaced by identities.
- The peers have one more block a level on the way up, and convolutions that halve and double; ours has its weights at
  the coarsest level instead, as ``blocks=(2, 2, n)`` with n, and the size of the embedding, chosen to match.
- ``DiTTransformer2DModel`` embeds time and label in every block anew. Ours has the same width, depth, heads and
  feed-forward layers, and its weights in a larger embedding of time and label. Its GELU is the exact one, theirs the
  approximation by tanh, which is the slower one on a CPU. Rotary positions are more work than theirs, learned ones the
  same.

A training step is a squared error, its gradient, and AdamW (fused), the same for all.

Run it as ``python benchmarks/networks.py --batch 32 [--bf16] [--compile] [--save]`` (results of other batches, dtypes
and compilers stay in the file) with diffusers and torchcfm installed, or as ``python benchmarks
--only networks``.
"""

from __future__ import annotations

import argparse
import bisect
import importlib
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from _interleave import RESULTS, interleave, origin, ratios, save, versions
from _suite import Row, Scale
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
            activation_fn="gelu",  # as ours; by default it is the approximation by tanh, which is slower
        )

        def call(network: nn.Module, x: Tensor, t: Tensor) -> Tensor:
            return network(x, 1000 * t, class_labels=labels(x), return_dict=False)[0]

        return Contender(network, call)

    def build(embedding: int, positions: str) -> nn.Module:
        return gm.nn.DiT(
            args.channels,
            (args.size, args.size),
            patch=args.patch,
            width=width,
            depth=depth,
            heads=heads,
            positions=positions,
            classes=CLASSES,
            embedding=embedding,
        )

    def pair(positions: str) -> Pair:
        def weights(embedding: int) -> int:
            with torch.device("meta"):
                return sum(p.numel() for p in build(embedding, positions).parameters())

        theirs = peer()
        embedding = width + bisect.bisect_left(range(width, 3 * width), theirs.weights, key=weights)
        ours = Contender(build(embedding, positions), lambda network, x, t: network(x, t, label=labels(x)))
        return Pair(f"diffusers DiT, {positions} positions", theirs, ours)

    return [pair("learned"), pair("rotary")]


def labels(x: Tensor) -> Tensor:
    return torch.arange(len(x), device=x.device) % CLASSES


def pairs(args: argparse.Namespace) -> tuple[list[Pair], dict[str, str]]:
    """All pairs of what is installed, and why the others are missing."""
    found: list[Pair] = []
    missing: dict[str, str] = {}
    for library, make in (("diffusers", diffusers_unet), ("torchcfm", torchcfm_unet)):
        try:
            for attention, where in ((True, "2 attention layers"), (False, "no attention")):
                title = f"{library} U-Net, {where}"
                if args.only in title:
                    peer = make(args, attention)
                    found.append(Pair(title, peer, our_unet(args, attention, peer.weights)))
        except ImportError as error:
            missing[library] = f"{type(error).__name__}: {error}"
    try:
        found += [pair for pair in dits(args) if args.only in pair.title]
    except ImportError as error:
        missing["diffusers"] = f"{type(error).__name__}: {error}"
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
    return row


def show(title: str, row: dict) -> None:
    """Print what was measured of a pair."""
    for name in ("forward", "training step"):
        span = f"({row[name]['least']:.2f}, {row[name]['most']:.2f})"
        share = row["our_weights"] / row["weights"]
        print(f"  {title:48} {name:14} {row[name]['ratio']:6.2f} {span:>14}  {share:8.3f}", flush=True)


def rows(scale: Scale) -> Iterator[Row]:
    """Two rows for each pair, a forward and a training step."""
    args = parse([])
    args.batch, args.rounds = scale.pick(8, 4, 2), scale.repeats(5)
    if scale.level != "full":
        args.size, args.width = scale.pick(0, 16, 8), 32
    found, missing = pairs(args)
    for pair in found:
        library, _, what = pair.title.partition(" ")
        row = measure(pair, args)
        for name in ("forward", "training step"):
            result = row[name]
            assert isinstance(result, dict)
            notes = {"weights": {"ours": row["our_weights"], "theirs": row["weights"]}}
            numbers = (result[key] for key in ("ratio", "least", "most"))
            own = f"gm.nn.{'DiT' if 'DiT' in what else 'UNet'}"
            yield Row(
                f"{what}, batch {args.batch}, {name}", own, pair.title.split(",")[0], library, *numbers, notes=notes
            )
    for library, why in missing.items():
        yield Row("U-Net", "gm.nn.UNet", f"{library} U-Net", library, missing=why)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
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
    return parser.parse_args(arguments)


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    found, missing = pairs(args)
    print(f"{args.channels} x {args.size} x {args.size}, batch {args.batch}: their time over ours, medians")
    print(f"  {'':48} {'':14} {'ratio':>6} {'(least, most)':>14}  {'weights':>8}")
    table = {}
    for pair in found:
        table[pair.title] = measure(pair, args)
        show(pair.title, table[pair.title])
    for name, why in missing.items():
        print(f"  {name}: left out, {why}")
    if args.save:
        print(f"\nwritten to {keep(setting(args), {'options': vars(args), 'rows': table})}")


def setting(args: argparse.Namespace) -> str:
    """What a run has in common, in words."""
    flags = [name for name, on in (("channels last", args.channels_last), ("compiled", args.compile)) if on]
    return ", ".join([f"batch {args.batch}", "bfloat16 autocast" if args.bf16 else "float32", *flags])


def keep(name: str, content: dict[str, object]) -> Path:
    """Save a run beside the ones of other settings, each with its date, machine and commit."""
    path = RESULTS / "networks.json"
    settings = json.loads(path.read_text()).get("settings", {}) if path.exists() else {}
    settings[name] = {**origin(), "versions": versions("genmatch", "diffusers", "torchcfm"), **content}
    return save("networks", {"settings": settings})


if __name__ == "__main__":
    main()
