r"""A learned jump kernel: how often each coordinate jumps, and in which bin it lands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import rates
from ..divergences import GeneralisedKL
from ..paths import ContinuousMixturePath, GaussianJumpKernel, GaussianPath, JumpKernel, MixtureJumpKernel, Path
from ..schedules import Number
from . import clocks
from .predictor import Learned, check_parts

__all__ = ["Rates", "RatesPrediction"]

CERTAIN = 1e30  # for the infinite hazard of a step that ends at the data: weights of a sum keep their shares of it
BEYOND = 1e-6  # the mass of landings beyond the bins that training accepts: rounding, and tails without a bound


class RatesPrediction:
    """The readings of a network of rates."""

    __slots__ = ("instant", "model", "native", "x")

    def __init__(self, model: Any, x: Tensor, instant: Any, native: Tensor) -> None:
        self.model, self.x, self.instant, self.native = model, x, instant, native

    @property
    def intensity(self) -> Tensor:
        """Jumps of each coordinate per unit of the hazard, ``(B, *S)``, float32 at least."""
        native = self.native[..., 0]
        return native.to(torch.promote_types(native.dtype, torch.float32)).exp()

    @property
    def rates(self) -> rates.Rates:
        """The hazard times the intensity, and the bins: each coordinate jumps by itself."""
        where = rates.Bins(self.native[..., 1:], self.model.edges)
        return rates.Rates(rates.Term(self._total(), where))

    def _total(self) -> Tensor:
        hazard: Number = self.instant.hazard
        gain = getattr(self.instant, "gain", None)
        if isinstance(gain, float) and gain > 0:
            # On a mixture path the intensity is the probability p of not having jumped, and only those that have not
            # jump: over a step a share p (kappa_s - kappa_t)/(1 - kappa_t), which is p at the end and not 1.
            share = self.intensity.clamp(max=1) * (gain / (1 - self.instant.kappa))
            return (-torch.log1p(-share)).clamp(max=CERTAIN) * (self.instant.slope / gain)
        hazard = hazard.clamp(max=CERTAIN) if isinstance(hazard, Tensor) else min(hazard, CERTAIN)
        return self.intensity * hazard


class Rates(Learned):
    r"""The network predicts how each coordinate jumps: a rate, and the masses of K bins where it lands.

    .. math:: Q^i_t(dy; x) = h_t\,e^{N^i_0(x)}\,\sum_k \mathrm{softmax}(N^i_{1:}(x))_k\,U_k(dy)

    with :math:`U_k` the uniform law on bin k and :math:`h_t` the known hazard of the path: :math:`W/\sigma` on a
    Gaussian path (:math:`1/(1-t)` under CondOT), :math:`\dot\kappa/(1-\kappa)` on a mixture path. It is trained with
    the generalised Kullback-Leibler divergence of the bins' rates, of :math:`\phi(a) = \sum_k a_k \log a_k`,

    .. math:: \Lambda^\theta - \Lambda + \Lambda\log\frac{\Lambda}{\Lambda^\theta} + \Lambda\,
       \mathrm{KL}(J\,\|\,J^\theta) ,

    :math:`\Lambda` and J the rate (without the hazard) and the bin masses of the conditional jump, both in closed form:
    :class:`~genmatch.paths.JumpKernel`. The best prediction is then the posterior mean of the rate of every bin.

    Parameters
    ----------
    network
        Called as ``network(x, t, **condition)`` with x ``(B, *S)``; returns ``(B, *S, K + 1)``: the logarithm of the
        intensity, then K logits. For vectors ``(B, d)`` it may return ``(B, d (K + 1))``, coordinate by coordinate.
    path
        A :class:`~genmatch.GaussianPath` with the standard normal source independent of the data, or a
        :class:`~genmatch.paths.ContinuousMixturePath` with ``whole=False``.
    edges
        ``(K + 1,)``, strictly increasing: the bins. They must cover where jumps land, which is more than where the data
        are: under CondOT, for data in [-1, 1], from -1.618 to 1.618.
    data_range
        The least and the greatest value that a coordinate of the data takes.
    time
        What the network is fed for t, see :mod:`genmatch.predict.clocks`.

    Raises
    ------
    ValueError
        If the edges do not increase or do not cover where jumps land. By the loss, if a jump of the data lands outside
        the bins (seen on a CPU): the data are not in ``data_range``.

    Notes
    -----
    A jump lands anywhere in its bin, so samples are as fine as the bins are near the data. Edges need not be equally
    spaced.

    Examples
    --------
    >>> import genmatch as gm, torch
    >>> edges = torch.linspace(-1.7, 1.7, 65)
    >>> model = gm.predict.Rates(gm.nn.MLP(2, out=2 * 65), gm.GaussianPath(), edges)
    >>> gm.matching_loss(model, torch.rand(8, 2) * 2 - 1, seed=0).shape
    torch.Size([])
    """

    kind = "rates"
    readings = frozenset({"rates", "intensity"})
    edges: Tensor

    def __init__(
        self,
        network: nn.Module,
        path: Path,
        edges: Tensor | Sequence[float],
        *,
        data_range: tuple[float, float] = (-1.0, 1.0),
        time: clocks.Clock | None = None,
    ) -> None:
        super().__init__()
        check_parts(network, time, None)
        self.network, self.path, self.kernel = network, path, _kernel_of(path)
        self.time = clocks.t if time is None else time
        self.divergence = GeneralisedKL()
        self.data_range = _read_range(data_range)
        edges = torch.as_tensor(edges, dtype=torch.float32)
        if edges.ndim != 1 or len(edges) < 2 or not bool(edges.isfinite().all() & (edges.diff() > 0).all()):
            raise ValueError(
                f"edges must be at least two finite numbers in a row, strictly increasing, got shape "
                f"{tuple(edges.shape)}: torch.linspace(-1.7, 1.7, 65) makes 64 bins"
            )
        low, high = self.kernel.reach(*self.data_range)
        slack = 1e-4 * (high - low)
        if float(edges[0]) > low + slack or float(edges[-1]) < high - slack:
            raise ValueError(
                f"bins from {edges[0].item():g} to {edges[-1].item():g} do not cover where jumps land: for data in "
                f"[{self.data_range[0]:g}, {self.data_range[1]:g}] on {path!r} that is [{low:.4g}, {high:.4g}]. "
                "Widen the edges"
            )
        self.register_buffer("edges", edges)

    @property
    def bins(self) -> int:
        """K."""
        return len(self.edges) - 1

    def at(self, t: Tensor, until: Tensor | None = None) -> Any:
        """The path's numbers, and the hazard."""
        return self.kernel.at(t, until)

    def inputs(self, x: Tensor, instant: Any) -> Tensor:
        """The state."""
        return x

    def checked(self, output: Tensor, x: Tensor) -> Tensor:
        """The log-intensities and logits, ``(B, *S, K + 1)``."""
        shape = (*x.shape, self.bins + 1)
        if x.ndim == 2 and output.shape == (len(x), x.shape[1] * (self.bins + 1)):
            return output.reshape(shape)
        if output.shape != shape:
            raise ValueError(
                f"the network returned shape {tuple(output.shape)} for a state of shape {tuple(x.shape)}: with "
                f"{self.bins} bins it needs {shape}, a log-intensity and {self.bins} logits for each coordinate"
            )
        return output

    def prediction(self, x: Tensor, instant: Any, native: Tensor) -> RatesPrediction:
        """The lazy readings of ``native``."""
        return RatesPrediction(self, x, instant, native)

    def blank(self, x: Tensor) -> Tensor:
        """Intensity 1, all bins alike."""
        return torch.zeros(*x.shape, self.bins + 1, dtype=x.dtype, device=x.device)

    def error(self, native: Tensor, x: Tensor, x0: Tensor, x1: Tensor, instant: Any) -> Tensor:
        """The generalised Kullback-Leibler divergence of the conditional rates from the predicted ones."""
        dtype = torch.promote_types(native.dtype, torch.float32)
        log_intensity, log_masses = native[..., 0].to(dtype), native[..., 1:].to(dtype).log_softmax(-1)
        intensity = self.kernel.intensity(x, x0, x1, instant).to(dtype)
        masses, outside = self.kernel.masses(x1, instant, self.edges)
        self._check_inside(x1, outside)
        masses = masses.to(dtype)
        landing = (torch.xlogy(masses, masses) - masses * log_masses).sum(-1)
        often = log_intensity.exp() - intensity + torch.xlogy(intensity, intensity) - intensity * log_intensity
        return often + intensity * landing

    def scored(self, x: Tensor, x1: Tensor) -> tuple[None, None]:
        """All positions."""
        return None, None

    def per_data(self, instant: Any) -> float:
        """1: rates are not compared with data."""
        return 1.0

    def reads(self, instant: Any) -> bool:
        """Always: the intensity is finite at all times."""
        return True

    def _check_inside(self, x1: Tensor, outside: Tensor) -> None:
        if x1.device.type != "cpu" or torch.compiler.is_compiling():
            return  # reading the values would make a GPU wait
        if bool((outside > BEYOND).any()):
            worst = x1[outside == outside.max()][0].item()
            raise ValueError(
                f"a jump lands outside the bins with probability {outside.max().item():.3g}, for the data value "
                f"{worst:g}: the bins were made for data in [{self.data_range[0]:g}, {self.data_range[1]:g}]. "
                "Scale the data, or pass data_range= and wider edges"
            )

    def extra_repr(self) -> str:
        return f"path={self.path!r}, bins={self.bins}"


def _kernel_of(path: Any) -> JumpKernel:
    """The conditional jump of single coordinates on a path; raises where none is known in closed form."""
    if isinstance(path, GaussianPath):
        return GaussianJumpKernel(path)
    if isinstance(path, ContinuousMixturePath):
        return MixtureJumpKernel(path)
    raise TypeError(
        "jumps of single coordinates are known on a GaussianPath and on a ContinuousMixturePath(whole=False), "
        f"got {path!r}"
    )


def _read_range(data_range: tuple[float, float]) -> tuple[float, float]:
    low, high = (float(value) for value in data_range)
    if not low < high or not bool(torch.tensor([low, high]).isfinite().all()):
        raise ValueError(f"data_range must be two finite numbers, low < high, got ({low:g}, {high:g})")
    return low, high
