"""Worlds whose every quantity is known, written out by hand and apart from the library: what the tests compare with."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from scipy import stats
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from genmatch import schedules

F64 = torch.float64


def subclasses(base: type) -> Iterator[type]:
    """Every concrete subclass of ``base`` in the library, at any depth."""
    for cls in base.__subclasses__():
        if cls.__module__.split(".")[0] == "genmatch":
            if not getattr(cls, "__abstractmethods__", None):
                yield cls
            yield from subclasses(cls)


# One or more of every schedule; test_schedules.py fails when a class is missing.
SCHEDULES = [
    schedules.CondOT(),
    schedules.CondOT(sigma_min=0.05),
    schedules.Polynomial(1.0),
    schedules.Polynomial(2.0),
    schedules.Polynomial(3.5),
    schedules.Cosine(),
    schedules.VP(),
    schedules.VP(beta_min=1.0, beta_max=4.0),
    schedules.DDPM(),
    schedules.DDPM([0.1] * 10),
    schedules.DDPM([0.3]),
    schedules.VE(),
    schedules.EDM(),
    schedules.EDM(sigma_min=0.1, sigma_max=5.0, rho=3.0),
    schedules.Shifted(schedules.CondOT(), 3.0),
    schedules.Shifted(schedules.VP(), 0.4),
    schedules.Shifted(schedules.EDM(), 2.0),
    schedules.Shifted(schedules.DDPM([0.1] * 10), 2.0),
    schedules.ZeroTerminal(schedules.VP()),
    schedules.ZeroTerminal(schedules.DDPM()),
]


def name(value: object) -> str | None:
    """A test id that tells the examples of one class apart; pytest's own for functions."""
    if callable(value) and not isinstance(value, schedules.Schedule):
        return None
    length = getattr(value, "length", None)
    return repr(value) if length is None else f"DDPM({length})"


def column(values: Tensor, x: Tensor) -> Tensor:
    """``(B,)`` along the batch of ``x``, written apart from the library's own."""
    return values.view((len(values),) + (1,) * (x.ndim - 1))


def fits(counts: Tensor, law: Tensor) -> bool:
    """Whether counts could come from a law: false for one right sampler in 10,000 (chi-square)."""
    law = law.double() / law.double().sum()
    if bool((counts[law == 0] > 0).any()):
        return False
    counts, law = counts[law > 0], law[law > 0]
    return float(stats.chisquare(counts.numpy(), (counts.sum() * law).numpy()).pvalue) > 1e-4


class Truth(NamedTuple):
    """The exact readings at one state and time."""

    velocity: Tensor
    data: Tensor
    noise: Tensor
    score: Tensor
    v: Tensor


class Mixture:
    """A mixture of Gaussians by the textbook: densities from torch.distributions, scores by autograd."""

    def __init__(self, means: Tensor, covariances: Tensor, weights: Tensor) -> None:
        self.means, self.covariances, self.weights = means, covariances, weights / weights.sum()

    def laws(self, alpha: float, sigma: float) -> list[MultivariateNormal]:
        eye = torch.eye(self.means.shape[1], dtype=F64)
        return [
            MultivariateNormal(alpha * m, alpha**2 * c + sigma**2 * eye)
            for m, c in zip(self.means, self.covariances, strict=True)
        ]

    def log_prob(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        logs = [w.log() + law.log_prob(x) for w, law in zip(self.weights, self.laws(alpha, sigma), strict=True)]
        return torch.stack(logs).logsumexp(0)

    def score(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        x = x.clone().requires_grad_()
        return torch.autograd.grad(self.log_prob(x, alpha, sigma).sum(), x)[0]

    def data(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """Posterior mean by conditioning each Gaussian: mu + alpha C (alpha^2 C + sigma^2 I)^-1 (x - alpha mu)."""
        eye = torch.eye(self.means.shape[1], dtype=F64)
        logs = torch.stack(
            [w.log() + law.log_prob(x) for w, law in zip(self.weights, self.laws(alpha, sigma), strict=True)]
        )
        means = torch.stack(
            [
                m + (x - alpha * m) @ torch.linalg.inv(alpha**2 * c + sigma**2 * eye) @ (alpha * c)
                for m, c in zip(self.means, self.covariances, strict=True)
            ]
        )
        return (logs.softmax(0)[..., None] * means).sum(0)

    def truth(self, x: Tensor, schedule: schedules.Schedule, t: float) -> Truth:
        """Every reading where alpha and sigma are above 0, from the posterior mean and the gradient of the density."""
        _, alpha, sigma, alpha_dot, sigma_dot = (float(f) for f in schedule.at(torch.tensor(t, dtype=F64)))
        data = self.data(x, alpha, sigma)
        score = self.score(x, alpha, sigma)
        noise = (x - alpha * data) / sigma
        return Truth(alpha_dot * data + sigma_dot * noise, data, noise, score, alpha * noise - sigma * data)


def mixture() -> Mixture:
    """Two correlated, unequal components in the plane."""
    means = torch.tensor([[-1.5, 0.5], [1.0, -0.7]], dtype=F64)
    covariances = torch.tensor([[[0.30, 0.12], [0.12, 0.20]], [[0.10, -0.05], [-0.05, 0.40]]], dtype=F64)
    return Mixture(means, covariances, torch.tensor([0.35, 0.65], dtype=F64))


class Perfect(nn.Module):
    """What a perfectly trained network of each kind would output, fed the time t itself.

    The Karras network is fed c_in x / alpha and outputs F; both are written as in arXiv 2206.00364, eq. 7 and 8.
    """

    def __init__(self, world: Mixture, schedule: schedules.Schedule, kind: str, sigma_data: float = 0.5) -> None:
        super().__init__()
        self.world, self.schedule, self.kind, self.sigma_data = world, schedule, kind, sigma_data

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        result = torch.empty_like(x)
        for time in t.unique():
            result[t == time] = self.one(x[t == time], float(time))
        return result

    def one(self, x: Tensor, t: float) -> Tensor:
        if self.kind != "karras":
            return getattr(self.world.truth(x, self.schedule, t), self.kind)
        alpha, sigma = (float(f) for f in self.schedule(torch.tensor(t, dtype=F64)))
        hat, d = sigma / alpha, self.sigma_data
        c_skip, c_out = d**2 / (hat**2 + d**2), hat * d / math.sqrt(hat**2 + d**2)
        c_in = 1 / math.sqrt(hat**2 + d**2)
        noisy = x / c_in  # data plus noise of standard deviation hat
        return (self.world.data(alpha * noisy, alpha, sigma) - c_skip * noisy) / c_out


class Recorder(nn.Module):
    """Outputs a constant multiple of its input and remembers what it was fed."""

    def __init__(self, factor: float = 0.5) -> None:
        super().__init__()
        self.factor = factor
        self.times: list[Tensor] = []
        self.conditions: list[dict] = []
        self.outputs: list[Tensor] = []

    def forward(self, x: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        self.times.append(t)
        self.conditions.append(condition)
        self.outputs.append(self.factor * x)
        return self.outputs[-1]
