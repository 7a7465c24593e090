r"""Worlds with closed forms: data laws whose score, velocity, posterior mean and density are known at every time.

They answer what no trained network can: is a solver right, is a metric right, what would a perfect network do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .paths import GaussianPath
from .predict import Data, clocks
from .random import Draws
from .schedules import Schedule

__all__ = ["GaussianMixture"]


class GaussianMixture:
    r"""A mixture of Gaussians on R^d, :math:`p_1 = \sum_k w_k N(\mu_k, C_k)`, as data on Gaussian paths.

    Under the standard normal source and independent coupling, with :math:`S_k = \alpha^2 C_k + \sigma^2 I`,

    .. math::
       p_t = \sum_k w_k N(\alpha\mu_k, S_k), \qquad
       E[x_1|x_t = x] = \sum_k r_k(x)\,\bigl(\mu_k + \alpha C_k S_k^{-1}(x - \alpha\mu_k)\bigr)

    with :math:`r_k` the responsibilities; everything else follows from the posterior mean. One component is a Gaussian
    world; zero covariances are an empirical law, whose exact model is the one that has memorised its data.

    Parameters
    ----------
    means
        ``(K, d)``.
    covariances
        ``(K, d, d)``, ``(d, d)`` for all, or a number c for :math:`cI`.
    weights
        K positive numbers, normalised here; equal by default.

    Examples
    --------
    >>> import genmatch as gm, torch
    >>> world = gm.worlds.GaussianMixture(torch.tensor([[-2.0], [2.0]]), 0.1)
    >>> model = world.predictor(gm.GaussianPath())
    >>> gm.sample(gm.Flow(model), (4, 1), steps=20, seed=0).shape
    torch.Size([4, 1])
    """

    def __init__(
        self, means: Tensor, covariances: Tensor | float, weights: Tensor | Sequence[float] | None = None
    ) -> None:
        means = torch.as_tensor(means, dtype=torch.float64)
        if means.ndim != 2 or not means.numel():
            raise ValueError(f"means must have shape (K, d), got {tuple(means.shape)}")
        count, dim = means.shape
        eye = torch.eye(dim, dtype=torch.float64)
        covariances = torch.as_tensor(covariances, dtype=torch.float64)
        if covariances.ndim == 0:
            covariances = covariances * eye
        if covariances.shape not in ((dim, dim), (count, dim, dim)):
            raise ValueError(
                f"covariances must be a number, ({dim}, {dim}) or ({count}, {dim}, {dim}), "
                f"got {tuple(covariances.shape)}"
            )
        if not bool(means.isfinite().all() and covariances.isfinite().all()):
            raise ValueError("means and covariances must be finite")
        if not torch.allclose(covariances, covariances.mT):
            raise ValueError("covariances must be symmetric")
        values, vectors = torch.linalg.eigh(covariances.expand(count, dim, dim))
        if bool((values < -1e-10).any()):
            raise ValueError(f"covariances must be positive semi-definite, got an eigenvalue {values.min().item():g}")
        weights = torch.ones(count) if weights is None else weights
        weights = torch.as_tensor(weights, dtype=torch.float64)
        if weights.shape != (count,) or not bool((weights > 0).all()):
            raise ValueError(f"weights must be {count} positive numbers, got {weights.tolist()}")
        self.means, self.weights = means, weights / weights.sum()
        self.values, self.vectors = values.clamp(min=0), vectors

    @property
    def dim(self) -> int:
        """d."""
        return self.means.shape[1]

    @property
    def mean(self) -> Tensor:
        """Mean of the data, ``(d,)``, float64."""
        return self.weights @ self.means

    @property
    def covariance(self) -> Tensor:
        """Covariance of the data, ``(d, d)``, float64."""
        within = (self.vectors * self.values[:, None]) @ self.vectors.mT
        centred = self.means - self.mean
        between = centred[:, :, None] * centred[:, None, :]
        return (self.weights[:, None, None] * (within + between)).sum(0)

    def sample(self, count: int, *, seed: int | None = None, first_index: int = 0) -> Tensor:
        """Data ``(count, d)``, float32; sample i depends on the seed and ``first_index + i`` alone."""
        return self.draw((count, self.dim), Draws(seed, count, first_index=first_index))

    def draw(self, shape: Sequence[int], draws: Draws) -> Tensor:
        """Data of ``shape`` ``(B, d)`` from given numbers: the world is a source, too."""
        if tuple(shape[1:]) != (self.dim,):
            raise ValueError(f"this world lives in dimension {self.dim}, asked for samples of shape {tuple(shape[1:])}")
        device = draws.device
        edges = self.weights.cumsum(0).to(device)
        k = torch.searchsorted(edges, draws.fork(1).uniform(shape[:1], torch.float64) * edges[-1], right=True)
        k = k.clamp(max=len(edges) - 1)
        z = draws.fork(2).normal(shape, torch.float64)
        spread = (self.vectors.to(device)[k] @ (self.values.to(device)[k].sqrt() * z)[..., None]).squeeze(-1)
        return (self.means.to(device)[k] + spread).float()

    def log_prob(self, x: Tensor, t: float = 1.0, schedule: Schedule | None = None) -> Tensor:
        r""":math:`\log p_t(x)` in nats, ``(B,)``, for x ``(B, d)``; of the data if no schedule is given."""
        if schedule is None:
            if t != 1.0:
                raise ValueError("the density at a time before the data needs the schedule")
            alpha, sigma = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        else:
            if not 0 <= t <= 1:
                raise ValueError(f"t must be in [0, 1], got {t}: 0 is noise, 1 is data")
            alpha, sigma = schedule(torch.tensor(t, dtype=torch.float64))
        if bool(sigma == 0) and bool((self.values == 0).any()):
            raise ValueError("a law with a singular covariance has no density: ask for it at a time before the data")
        logs, _ = self._components(x, alpha.to(x.device), sigma.to(x.device))
        return logs.logsumexp(-1).to(x.dtype)

    def posterior_mean(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        r""":math:`E[x_1\,|\,\alpha x_1 + \sigma x_0 = x]`, ``(B, d)``; ``alpha`` and ``sigma`` 0-d or ``(B,)``.

        Where sigma is 0 it is x / alpha, the limit for every x that the data can take.
        """
        logs, (coordinates, spread) = self._components(x, alpha, sigma)
        shrink = self.values.to(x.device, x.dtype) * _column(alpha, 1, x) / spread
        inner = (self.vectors.to(x.device, x.dtype) @ (shrink * coordinates)[..., None]).squeeze(-1)
        means = self.means.to(x.device, x.dtype) + inner
        mean = (logs.softmax(-1).to(x.dtype)[..., None] * means).sum(-2)
        clean = _column(sigma, 0, x) == 0
        # Where it is not chosen the quotient must be finite all the same: its derivative would be nan times 0.
        return torch.where(clean, x / torch.where(clean, _column(alpha, 0, x), 1.0), mean)

    def predictor(self, path: GaussianPath) -> Data:
        """The exact data predictor on a path with the standard normal source: what a perfect network would be."""
        if not path.has_score:
            raise ValueError(f"closed forms need the standard normal source and independent coupling, got {path!r}")
        return Data(_Exact(self, path.schedule), path, time=clocks.t)

    def _components(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """log w_k N(x; alpha mu_k, S_k) (B, K); eigen-coordinates of x - alpha mu_k and variances, (B, K, d)."""
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(f"x must have shape (B, {self.dim}), got {tuple(x.shape)}")
        means, values, vectors = (v.to(x.device, x.dtype) for v in (self.means, self.values, self.vectors))
        a, s = _column(alpha, 1, x), _column(sigma, 1, x)
        coordinates = (vectors.mT @ (x[:, None] - a * means)[..., None]).squeeze(-1)
        spread = a**2 * values + s**2
        logs = -0.5 * (coordinates**2 / spread + spread.log() + math.log(2 * math.pi)).sum(-1)
        return logs + self.weights.to(x.device, x.dtype).log(), (coordinates, spread)


class _Exact(nn.Module):
    """The posterior mean as a network of (x, t)."""

    def __init__(self, world: GaussianMixture, schedule: Schedule) -> None:
        super().__init__()
        self.world, self.schedule = world, schedule

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.schedule(t)
        return self.world.posterior_mean(x, alpha, sigma)


def _column(value: Tensor, extra: int, x: Tensor) -> Tensor:
    """A number, or ``(B,)`` as ``(B, 1, 1)``."""
    value = value.to(x.device, x.dtype)
    return value.reshape(-1, *[1] * (extra + 1)) if value.ndim else value
