"""Command line of the demonstration."""

from __future__ import annotations

import argparse
from pathlib import Path

from .study import Settings, run


def main() -> None:
    """Read the arguments and run."""
    own = Settings()
    parser = argparse.ArgumentParser(
        prog="python -m genmatch.demo",
        description="Train a diffusion model and a flow alike on real images, and compare how few steps they need.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data", choices=("digits", "mnist", "cifar10"), default=own.data)
    parser.add_argument("--root", help="folder of the MNIST or CIFAR-10 files; GENMATCH_DATA if not given")
    parser.add_argument("--size", type=int, choices=(28, 32), default=own.size, help="side of MNIST images")
    parser.add_argument("--steps", type=int, default=own.steps, help="training steps of each model")
    parser.add_argument("--batch-size", type=int, default=own.batch_size)
    parser.add_argument("--lr", type=float, default=own.lr, help="learning rate")
    parser.add_argument("--samples", type=int, help="images per sampler; the size of the test set, 1000 at most")
    parser.add_argument("--seed", type=int, default=own.seed)
    parser.add_argument("--out", type=Path, default=own.out, help="folder of the results")
    parser.add_argument("--device", help="cuda if there is one, else cpu")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.add_argument("--short", action="store_true", help="leave out the 1000 steps of ancestral sampling")
    parser.add_argument("--download", action="store_true", help="fetch MNIST if the folder lacks it")
    args = vars(parser.parse_args())
    run(Settings(progress=not args.pop("quiet"), long=not args.pop("short"), **args))


if __name__ == "__main__":
    main()
