"""Token worlds small enough to enumerate: every law, every rate and every transition is a table.

Two positions and three tokens, under a data law that is far from a product of its marginals, so that a network which
predicts each position must look at the other.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

import genmatch as gm

VOCABULARY = 3
DATA = torch.tensor([[0.30, 0.02, 0.05], [0.01, 0.25, 0.02], [0.05, 0.05, 0.25]], dtype=torch.float64)


def enumerate_states(values: int, length: int = 2) -> Tensor:
    """All sequences, ``(values ** length, length)``, the last position running fastest."""
    return torch.tensor(list(itertools.product(range(values), repeat=length)))


class TokenWorld:
    """A data law on pairs of tokens, and what follows from it on a mixture path.

    Parameters
    ----------
    path
        With ``mask`` 3 or ``None``; no padding.
    law
        ``(3, 3)``, probabilities of pairs.
    """

    def __init__(self, path: gm.MixturePath, law: Tensor = DATA) -> None:
        self.path, self.law = path, law.flatten()
        self.data = enumerate_states(VOCABULARY)
        self.states = enumerate_states(VOCABULARY if path.mask is None else VOCABULARY + 1)

    def kappa(self, t: Tensor) -> Tensor:
        return self.path.schedule(t)[0]

    def given(self, kappa: Tensor, x: Tensor | None = None) -> Tensor:
        """p_t(x_i | x1_i) at each position, ``(B, data, positions)``: (1 - kappa) p_0(x_i) + kappa [x_i = x1_i]."""
        x = self.states if x is None else x
        source = torch.full(x.shape, 1 / VOCABULARY, dtype=torch.float64)
        if self.path.mask is not None:
            source = (x == self.path.mask).double()
        same = (x[:, None] == self.data[None]).double()
        return (1 - kappa) * source[:, None] + kappa * same

    def density(self, t: Tensor) -> Tensor:
        """p_t of every state, ``(states,)``, differentiable in t."""
        return (self.given(self.kappa(t)).prod(-1) * self.law).sum(-1)

    def posterior(self, x: Tensor, t: Tensor) -> Tensor:
        """p(x1_i = v | x_t = x), ``(B, positions, 3)``.

        With a mask it is the same at every t, and defined also for tokens that show at t = 0 (a prompt).
        """
        kappa = self.kappa(t) if self.path.mask is None else torch.tensor(0.5, dtype=torch.float64)
        joint = self.given(kappa, x).prod(-1) * self.law
        one_hot = nn.functional.one_hot(self.data, VOCABULARY).double()
        joint = torch.einsum("bd,dpv->bpv", joint, one_hot)
        return joint / joint.sum(-1, keepdim=True)

    def model(self) -> gm.predict.Tokens:
        """What a perfect network would be."""
        return gm.predict.Tokens(ExactPosterior(self), self.path)

    def index(self, x: Tensor) -> Tensor:
        """The row of each state, ``(B,)``."""
        values = VOCABULARY if self.path.mask is None else VOCABULARY + 1
        return x[:, 0] * values + x[:, 1]

    def histogram(self, x: Tensor) -> Tensor:
        """Shares of the states in a sample, ``(states,)``."""
        return torch.bincount(self.index(x), minlength=len(self.states)).double() / len(x)

    def end(self) -> Tensor:
        """The data law on the states, ``(states,)``."""
        law = torch.zeros(len(self.states), dtype=torch.float64)
        law[self.index(self.data)] = self.law
        return law

    def start(self) -> Tensor:
        """The law of the source on the states, ``(states,)``."""
        return self.density(torch.zeros((), dtype=torch.float64))


class ExactPosterior(nn.Module):
    """Log posteriors as a network of (x, t); t is exact if it is a float32."""

    def __init__(self, world: TokenWorld) -> None:
        super().__init__()
        self.world = world

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        times = t.unique()
        assert len(times) == 1, "one time for all"
        flat = self.world.posterior(x.reshape(-1, 2), times[0].double())
        return flat.log().reshape(*x.shape, VOCABULARY)


def total_variation(p: Tensor, q: Tensor) -> float:
    return 0.5 * (p - q).abs().sum().item()
