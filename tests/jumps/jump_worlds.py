"""Laws of finitely many atoms, whose jump rates are sums over the atoms."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import genmatch as gm
from genmatch.paths import GaussianJumpKernel


class ExactRates(nn.Module):
    """What a perfect network of rates returns for data that are a few atoms: sums over the posterior of the atoms."""

    def __init__(self, path: gm.GaussianPath, atoms: Tensor, weights: Tensor, edges: Tensor) -> None:
        super().__init__()
        self.path, self.atoms, self.weights, self.edges = path, atoms.double(), weights.double(), edges.double()
        self.kernel = GaussianJumpKernel(path)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        time = t.double().reshape(-1, *[1] * (x.ndim - 1))
        if bool((time == time.reshape(-1)[0]).all()):  # the masses do not depend on the state: once for all
            time = time[:1]
        alpha, sigma = self.path.schedule(time)
        state = x.double()[:, None]
        gap = (state - alpha[:, None] * self.atoms) / sigma[:, None]
        posterior = (self.weights.log() - 0.5 * gap.square().sum(2)).softmax(1)[..., None]  # (B, J, 1)
        per_atom, masses = [], []
        for atom in self.atoms:
            z = atom.expand(len(time), -1)
            instant = self.kernel.instant(time.squeeze(-1) if time.ndim == 2 else time, z)
            rate = self.kernel.rate(x, atom.expand_as(x), self._time(time, x))
            per_atom.append(rate / instant.hazard.expand_as(rate))
            masses.append(self.kernel.masses(z, instant, self.edges)[0])
        intensity = posterior * torch.stack(per_atom, 1)  # (B, J, d)
        total = intensity.sum(1).clamp(min=1e-300)
        landing = torch.einsum("bjd,bjdk->bdk", intensity, torch.stack(masses, 1).expand(len(x), -1, -1, -1))
        landing = (landing / total[..., None]).clamp(min=1e-300)
        return torch.cat([total.log()[..., None], landing.log()], -1).to(x.dtype)

    @staticmethod
    def _time(time: Tensor, x: Tensor) -> Tensor | float:
        return time.reshape(-1) if len(time) == len(x) else time.item()


def exact_jump(atoms: Tensor, weights: Tensor, edges: Tensor, path: gm.GaussianPath | None = None) -> gm.predict.Rates:
    """The exact predictor of rates for data on ``atoms`` ``(J, d)``."""
    path = gm.GaussianPath() if path is None else path
    low, high = atoms.min().item(), atoms.max().item()
    span = (low, high) if low < high else (low - 1e-6, high + 1e-6)
    return gm.predict.Rates(ExactRates(path, atoms, weights, edges), path, edges, data_range=span)


def density(x: Tensor, t: Tensor, atoms: Tensor, weights: Tensor, schedule: gm.Schedule) -> Tensor:
    """p_t at ``x`` ``(N, 1)`` of data on atoms, written out."""
    alpha, sigma = schedule(t)
    gap = (x.double() - alpha * atoms.double().reshape(1, -1)) / sigma
    return (weights.double() * torch.exp(-gap.square() / 2)).sum(1) / (sigma * (2 * torch.pi) ** 0.5)
