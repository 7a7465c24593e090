r"""The divergence of a drift, exactly or by random probes.

The divergence is the trace of a Jacobian, :math:`\nabla\cdot u = \operatorname{tr} J`, and all that is needed of J are
products with a few directions:

.. math:: \nabla\cdot u = \sum_{i=1}^d e_i^T J e_i = E\bigl[z^T J z\bigr], \qquad E[z z^T] = I .

Products :math:`Jv` come out of forward-mode differentiation, all in one vectorised pass beside the drift itself. Where
there are few, products :math:`v^T J` by backward passes are as many operations and cost less overhead.

References
----------
.. [1] M. Hutchinson, "A stochastic estimator of the trace of the influence matrix", 1989.
.. [2] W. Grathwohl et al., "FFJORD", arXiv 1810.01367, Section 3.1: one probe for the whole of a solve.
.. [3] Y. Song et al., arXiv 2011.13456, Section 4.3 and Appendix D.2.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..random import Draws

__all__ = ["Exact", "Hutchinson", "Trace"]

Function = Callable[[Tensor], Tensor]
AT_ONCE = 1 << 22  # numbers in the tangents of one pass: 16 MB in float32
FEW = 8  # products up to which backward passes are the faster ones, at the price of keeping one evaluation's graph
MODES = ("auto", "forward", "reverse")
PROBES = 200  # stream of the probes' draws


class Trace(ABC):
    """An estimator of the divergence of a function of states ``(B, *S)`` that treats the samples one by one.

    Attributes
    ----------
    mode
        "forward": all products in one forward-mode pass, whose memory does not grow with the depth of the network.
        "reverse": a backward pass for each. "auto": reverse for up to 8 products, forward for more, and reverse where
        an operation of the network has no forward mode.
    """

    mode: str

    @abstractmethod
    def probes(self, x: Tensor, draws: Draws) -> Tensor | None:
        """What is drawn for states like ``x``, once for a whole solve."""

    @abstractmethod
    def passes(self, x: Tensor) -> int:
        """How many products with the Jacobian one divergence takes."""

    @abstractmethod
    def __call__(
        self, function: Function, x: Tensor, probes: Tensor | None, *, reverse: bool | None = None
    ) -> tuple[Tensor, Tensor]:
        """The function at ``x``, ``(B, *S)``, and its divergence, ``(B,)``.

        By backward passes if ``reverse``, by forward-mode products if not; ``None`` leaves it to ``mode``.
        """

    def backwards(self, x: Tensor, reverse: bool | None) -> bool:
        """Whether products are taken by backward passes."""
        few = self.mode == "auto" and self.passes(x) <= FEW
        return (few or self.mode == "reverse") if reverse is None else reverse


class Exact(Trace):
    r"""The divergence itself: d products with the unit vectors.

    Parameters
    ----------
    chunk
        How many products are taken in one pass. By default as many as keep the tangents below :math:`2^{22}` numbers;
        the memory that a pass needs is about 1 + chunk times that of the network alone.
    mode
        "auto", "forward" or "reverse"; see :class:`Trace`.

    Examples
    --------
    >>> x = torch.tensor([[1.0, 2.0]])
    >>> value, divergence = Exact(mode="forward")(lambda x: x**2, x)
    >>> value, divergence
    (tensor([[1., 4.]]), tensor([6.]))
    """

    def __init__(self, chunk: int | None = None, *, mode: str = "auto") -> None:
        _check_count("chunk", 1 if chunk is None else chunk)
        _check_mode(mode)
        self.chunk, self.mode = chunk, mode

    def probes(self, x: Tensor, draws: Draws) -> None:
        """Nothing is drawn."""
        return

    def passes(self, x: Tensor) -> int:
        """d."""
        return x[0].numel()

    def __call__(
        self, function: Function, x: Tensor, probes: Tensor | None = None, *, reverse: bool | None = None
    ) -> tuple[Tensor, Tensor]:
        size, reverse = x[0].numel(), self.backwards(x, reverse)
        chunk = size if reverse else min(size, self.chunk or max(1, AT_ONCE // x.numel()))
        value, divergence = x, x.new_zeros(len(x))
        for begin in range(0, size, chunk):
            rows = torch.arange(begin, min(begin + chunk, size), device=x.device)
            basis = (rows[:, None] == torch.arange(size, device=x.device)).to(x.dtype)
            value, products = _quadratic(function, x, basis.reshape(-1, 1, *x.shape[1:]), reverse)
            divergence = divergence + products.sum(0)
        return value, divergence

    def __repr__(self) -> str:
        return f"Exact(chunk={self.chunk}, mode={self.mode!r})"


class Hutchinson(Trace):
    r"""The mean of :math:`z^T J z` over random probes z: unbiased, in few products whatever the dimension.

    With :math:`A = (J + J^T)/2` the variance of one probe is :math:`2\sum_{i \ne j} A_{ij}^2` for signs and
    :math:`2\sum_{ij} A_{ij}^2` for normals. So signs are never worse, and exact where J is diagonal.

    The probes are drawn once for a solve, a function of the seed and of the sample's index: the log-density stays a
    smooth function of time, and the result does not depend on the batch.

    Parameters
    ----------
    probes
        How many; the variance falls with their number.
    distribution
        ``"rademacher"``, signs of equal probability, or ``"normal"``.
    mode
        "auto", "forward" or "reverse"; see :class:`Trace`.
    """

    def __init__(self, probes: int = 1, distribution: str = "rademacher", *, mode: str = "auto") -> None:
        _check_count("probes", probes)
        _check_mode(mode)
        if distribution not in ("rademacher", "normal"):
            raise ValueError(f"distribution must be 'rademacher' or 'normal', got {distribution!r}")
        self.count, self.distribution, self.mode = probes, distribution, mode

    def probes(self, x: Tensor, draws: Draws) -> Tensor:
        """Probes ``(P, B, *S)``."""
        draws = draws.fork(PROBES)
        if self.distribution == "normal":
            return torch.stack([draws.at(p).normal(x.shape, x.dtype) for p in range(self.count)])
        signs = [draws.at(p).integers(x.shape, 2) * 2 - 1 for p in range(self.count)]
        return torch.stack(signs).to(x.dtype)

    def passes(self, x: Tensor) -> int:
        """The number of probes."""
        return self.count

    def __call__(
        self, function: Function, x: Tensor, probes: Tensor | None, *, reverse: bool | None = None
    ) -> tuple[Tensor, Tensor]:
        if probes is None:
            raise ValueError("Hutchinson needs its probes (P, B, *S): draw them with .probes(x, draws)")
        value, products = _quadratic(function, x, probes, self.backwards(x, reverse))
        return value, products.mean(0)

    def __repr__(self) -> str:
        return f"Hutchinson(probes={self.count}, distribution={self.distribution!r}, mode={self.mode!r})"


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def _check_mode(mode: object) -> None:
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")


def _quadratic(function: Function, x: Tensor, directions: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
    """The function at ``x``, and :math:`v^T J v` ``(P, B)`` for directions v ``(P, B or 1, *S)``."""
    # The fused kernels of attention have no forward and no second derivative.
    plain = not reverse or torch.is_grad_enabled()
    with sdpa_kernel(SDPBackend.MATH) if plain else contextlib.nullcontext():
        value, tangents = (_reverse if reverse else _forward)(function, x, directions)
    return value, (directions * tangents).reshape(len(directions), len(x), -1).sum(2)


def _forward(function: Function, x: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    def along(direction: Tensor) -> tuple[Tensor, Tensor]:
        return torch.func.jvp(function, (x,), (direction.expand_as(x).contiguous(),))  # type: ignore[return-value]

    if len(directions) == 1:
        value, tangent = along(directions[0])
        return value, tangent[None]
    # The function itself is evaluated once: it does not depend on the direction.
    return torch.func.vmap(along, out_dims=(None, 0), randomness="same")(directions)  # type: ignore[arg-type]


def _reverse(function: Function, x: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    grad = torch.is_grad_enabled()
    with torch.enable_grad():
        y = x if x.requires_grad else x.detach().requires_grad_()
        value = function(y)
        if not value.requires_grad:  # it does not depend on the state, or was computed without gradients
            with sdpa_kernel(SDPBackend.MATH):
                return _forward(function, x, directions)
        rows = []
        for direction in directions:
            (row,) = torch.autograd.grad(
                value, y, direction.expand_as(value), retain_graph=True, create_graph=grad, allow_unused=True
            )
            rows.append(torch.zeros_like(y) if row is None else row)
    return value if grad else value.detach(), torch.stack(rows)
