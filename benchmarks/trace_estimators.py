"""Hutch++ beside plain random signs: variance of the divergence at equal numbers of products, on trained networks.

Jacobians of the velocity of a small MLP and a small UNet, trained for half a minute each on 8 x 8 digits, at states of
several times. Hutch++ (R. Meyer et al., arXiv 2010.09649, Algorithm 1) spends a third of its products on a sketch of
the range, a third on the trace there, a third on signs projected off it. ``less`` is the same with the mean of the
diagonal taken off first, which plain signs do not notice. Ratios above 1 are against Hutch++.

Run it as ``python benchmarks/trace_estimators.py [--save]``; it needs scikit-learn for the digits.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from _interleave import save, versions
from torch import Tensor, nn

import genmatch as gm

DRAWS = 4000


class Flat(nn.Module):
    """An MLP on flattened images."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = gm.nn.MLP(64, width=128, depth=3)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.inner(x.flatten(1), t).reshape(x.shape)


def train(network: nn.Module, images: Tensor, steps: int) -> gm.Predictor:
    model = gm.predict.Velocity(network, gm.GaussianPath())
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    for _ in range(steps):
        loss = gm.matching_loss(model, images[torch.randint(len(images), (128,))]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def jacobian(model: gm.Predictor, x: Tensor, t: float) -> Tensor:
    def velocity(y: Tensor) -> Tensor:
        return model.native(y, model.instant(t, y)).flatten(1)

    found = torch.autograd.functional.jacobian(velocity, x)
    return found.reshape(64, 64).double()  # type: ignore[union-attr]


def signs(count: int) -> Tensor:
    return torch.randint(0, 2, (DRAWS, 64, count)).double() * 2 - 1


def hutchinson(matrix: Tensor, products: int) -> Tensor:
    z = signs(products)
    return (z * (matrix @ z)).sum(1).mean(1)


def hutch_pp(matrix: Tensor, products: int) -> Tensor:
    third = products // 3
    basis, _ = torch.linalg.qr(matrix @ signs(third))
    z = signs(third)
    z = z - basis @ (basis.mT @ z)
    return (basis * (matrix @ basis)).sum((1, 2)) + (z * (matrix @ z)).sum((1, 2)) / third


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/trace_estimators.json")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    images, _ = gm.data.digits()
    unet = gm.nn.UNet(1, width=16, multipliers=(1, 2), blocks=1, groups=4)
    table = {}
    for name, network, steps in (("MLP", Flat(), 1200), ("UNet", unet, 130)):
        model = train(network, images, steps)
        for t in (0.1, 0.5, 0.95):
            states = [t * images[i : i + 1] + (1 - t) * torch.randn(1, 1, 8, 8) for i in range(3)]
            whole = [jacobian(model, x, t) for x in states]
            less = [matrix - matrix.trace() / 64 * torch.eye(64, dtype=torch.float64) for matrix in whole]
            for products in (6, 24):

                def variance(estimate: Callable[[Tensor, int], Tensor], matrices: list[Tensor], n: int = products):
                    return sum(estimate(matrix, n).var().item() for matrix in matrices) / len(matrices)

                base = variance(hutchinson, whole)
                row = {"plain": variance(hutch_pp, whole) / base, "less": variance(hutch_pp, less) / base}
                table[f"{name}, t = {t}, {products} products"] = row
                print(
                    f"{name:5} t = {t:4} {products:3} products  {row['plain']:6.2f}  less {row['less']:6.2f}",
                    flush=True,
                )
    if args.save:
        print(save("trace_estimators", {"versions": versions("scikit-learn"), "table": table}))


if __name__ == "__main__":
    main()
