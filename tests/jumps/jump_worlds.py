"""Laws of finitely many atoms, whose jump rates are sums over the atoms."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import genmatch as gm
from genmatch.paths import ContinuousMixturePath, GaussianJumpKernel
from genmatch.rates import Atoms, Rates, Term


class ExactRates(nn.Module):
    """What a perfect network of rates returns for data that are a few atoms: sums over the posterior of the atoms."""

    def __init__(self, path: gm.GaussianPath, atoms: Tensor, weights: Tensor, edges: Tensor) -> None:
        super().__init__()
        self.path, self.atoms, self.weights, self.edges = path, atoms.double(), weights.double(), edges.double()
        self.kernel = GaussianJumpKernel(path)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        time = t.double().clamp(max=1 - 1e-9).reshape(-1, *[1] * (x.ndim - 1))  # the limit at the data
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


PLACES = torch.tensor([[0.0], [1.0], [2.5]])


class Known(gm.Predictor):
    """No network: generators of this file know what they do."""

    kind, readings, path = "known", frozenset(), ContinuousMixturePath()
    divergence = gm.divergences.Squared()

    def at(self, t: Tensor, until: Tensor | None = None) -> Any:
        return self.path.at(t, until)

    def native(self, x: Tensor, instant: Any, condition: Any = None) -> Tensor:
        return x

    def prediction(self, x: Tensor, instant: Any, native: Tensor) -> None:
        return None

    def blank(self, x: Tensor) -> Tensor:
        return x

    def error(self, native: Any, x: Any, x0: Any, x1: Any, instant: Any) -> Tensor:
        raise NotImplementedError

    def scored(self, x: Any, x1: Any) -> tuple[None, None]:
        return None, None

    def per_data(self, instant: Any) -> float:
        return 1.0

    def reads(self, instant: Any) -> bool:
        return True


def rate_table(t: float | Tensor) -> Tensor:
    """Jumps between the three places per unit of time: far from symmetric, and changing in time; ``(..., 3, 3)``."""
    table = torch.tensor([[0.0, 1.6, 0.3], [0.2, 0.0, 2.0], [2.4, 0.5, 0.0]], dtype=torch.float64)
    t = torch.as_tensor(t, dtype=torch.float64)
    return table * torch.stack([1 + t, 2 - t, 1 + 0.5 * torch.sin(3 * t)], -1)[..., None]


class Hopping(gm.Generator):
    """A chain on three places of the line."""

    additive = False

    def triplet(self, x: Tensor, t: Any, prediction: Any) -> gm.Triplet:
        time = t.reshape(-1) if isinstance(t, Tensor) else t
        table = rate_table(time).to(x).expand(len(x), 3, 3)
        where = torch.cdist(x, PLACES.to(x)).argmin(1)
        rows = table[torch.arange(len(x)), where]
        return gm.Triplet(rates=Rates(Term(rows.sum(1)[:, None], Atoms(PLACES.to(x), rows.log()))))


@cache
def exact_law(start: int, stop: float) -> Tensor:
    """The law at ``stop``, by many small steps of order 4 of the forward equation."""
    p, steps = torch.eye(3, dtype=torch.float64)[start], 2000
    h = stop / steps

    def slope(p: Tensor, t: float) -> Tensor:
        table = rate_table(t)
        return p @ table - p * table.sum(1)

    for i in range(steps):
        t = i * h
        a = slope(p, t)
        b = slope(p + h / 2 * a, t + h / 2)
        c = slope(p + h / 2 * b, t + h / 2)
        p = p + h / 6 * (a + 2 * b + 2 * c + slope(p + h * c, t + h))
    return p
