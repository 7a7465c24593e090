r"""A path whose density is known: its score, and how fast the density grows.

References
----------
.. [1] P. Holderrieth et al., "Generator matching", arXiv 2410.20587 (generators from the density's time
   derivative).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from ..divergences import Squared
from ..paths import Path
from ..schedules import along_batch
from ..spaces import Space
from ..spaces.manifold import Manifold
from .predictor import Condition, Predictor

__all__ = ["Density", "DensityInstant", "DensityPrediction", "gradient"]


class DensityInstant:
    """A time, the end of the step that starts there (``None`` outside a plan), and the path's own numbers."""

    __slots__ = ("inner", "t", "until")

    def __init__(self, t: Any, until: Any, inner: Any) -> None:
        self.t, self.until, self.inner = t, until, inner

    def __getattr__(self, name: str) -> Any:  # alpha, sigma, kappa and the rest are the path's
        if name in DensityInstant.__slots__:  # a copy in the making has none yet
            raise AttributeError(name)
        return getattr(self.inner, name)

    def rows(self) -> list[DensityInstant]:
        """The instants of a vector of times, one by one, as host floats."""
        ends = [None] * len(self.t) if self.until is None else self.until.tolist()
        return [DensityInstant(*row) for row in zip(self.t.tolist(), ends, self.inner.rows(), strict=True)]

    def broadcast(self, x: Tensor) -> DensityInstant:
        """Per-sample values ``(B,)`` as ``(B, 1, ..., 1)``."""
        return DensityInstant(along_batch(self.t, x), along_batch(self.until, x), self.inner.broadcast(x))


class DensityPrediction:
    """The readings of a density, computed when asked for.

    Raises
    ------
    ValueError
        By score, growth and log-ratio where the density is 0 (seen on a CPU, outside a compiled graph); by the
        log-ratio where no step is known; by the score of a discrete state.
    """

    __slots__ = ("instant", "model", "native", "x")

    def __init__(self, model: Density, x: Tensor, instant: DensityInstant, native: Tensor) -> None:
        self.model, self.x, self.instant, self.native = model, x, instant, native

    @property
    def log_density(self) -> Tensor:
        r""":math:`\log p_t(x)`, ``(B,)``; minus infinity where the density is 0."""
        return self.native

    @property
    def score(self) -> Tensor:
        r""":math:`\nabla\log p_t(x)` of the shape of the state, by ``torch.func.vjp``.

        On a manifold it is the gradient in its metric, a tangent vector.
        """
        space = self.model.path.space
        if space.discrete:
            raise ValueError(f"a density on {space!r} has no score: there is no gradient over discrete states")
        self._check_positive("score")
        time = _time(self.instant.t, self.x)
        value, pull, *_ = torch.func.vjp(lambda y: self.model.log_density(y, time), self.x)
        (score,) = pull(torch.ones_like(value))
        return gradient(space, self.x, score)

    @property
    def growth(self) -> Tensor:
        r""":math:`\partial_t\log p_t(x)`, ``(B,)``, by ``torch.func.jvp``."""
        self._check_positive("growth")
        time = _time(self.instant.t, self.x)
        return torch.func.jvp(lambda s: self.model.log_density(self.x, s), (time,), (torch.ones_like(time),))[1]

    @property
    def log_ratio(self) -> Tensor:
        r""":math:`\log p_s(x) - \log p_t(x)` over the coming step from t to s, ``(B,)``.

        Where the density falls throughout the step this is minus the integral over it of the least hazard that makes it
        fall, :math:`[-\partial_t\log p_t]_+`, at a frozen state.
        """
        if self.instant.until is None:
            raise ValueError("the log-ratio is over a step, and no step is known here: it is read in a solver's plan")
        self._check_positive("log-ratio")
        later = self.model.log_density(self.x, _time(self.instant.until, self.x))
        return later - self.native

    def _check_positive(self, reading: str) -> None:
        if not _visible(self.native):
            return
        zero = torch.isneginf(self.native)
        if bool(zero.any()):
            raise ValueError(
                f"the density is 0 at {int(zero.sum())} of {len(zero)} states, so there is no {reading}: "
                "a density has to be positive wherever its path can be"
            )


class Density(Predictor):
    r"""A known :math:`\log p_t(x)` in the place of a network.

    Parameters
    ----------
    log_density
        ``(x, t) -> (B,)``, nats, x ``(B, *S)`` and t a 0-d tensor or ``(B,)``; on a manifold the density with respect
        to its volume. Each sample on its own; differentiable in t (``growth``) and, for ``score``, in x. A constant
        factor of the density is only needed in its dependence on t. If it is a module its parameters are the
        predictor's.
    path
        The path that it is the law of.

    Notes
    -----
    Readings: ``log_density``, ``growth`` and, where states are continuous, ``score``. Not trained: there is nothing to
    learn. It takes no condition; the law of a class is a density of its own.

    Examples
    --------
    >>> import genmatch as gm, torch
    >>> def log_normal(x, t):  # of N(0, t^2 + (1 - t)^2)
    ...     variance = t**2 + (1 - t) ** 2
    ...     return -0.5 * (x.squeeze(-1).square() / variance + variance.log())
    >>> model = gm.predict.Density(log_normal, gm.GaussianPath())
    >>> model(torch.tensor([[1.0]]), 0.5).score
    tensor([[-2.]])
    """

    kind = "density"
    readings = frozenset({"log_density", "score", "growth"})

    def __init__(self, log_density: Callable[[Any, Tensor], Tensor], path: Path) -> None:
        super().__init__()
        if not callable(log_density):
            raise TypeError(f"log_density must be a function of (x, t), got {type(log_density).__name__}")
        if not isinstance(path, Path):
            raise TypeError(f"Density needs the path that it is the law of, got {type(path).__name__}")
        self.log_density, self.path, self.divergence = log_density, path, Squared()
        if path.space.discrete:
            self.readings = frozenset({"log_density", "growth"})

    def at(self, t: Tensor, until: Tensor | None = None) -> DensityInstant:
        """The times, and the path's numbers."""
        return DensityInstant(t, until, self.path.at(t, until))

    def native(self, x: Tensor, instant: DensityInstant, condition: Condition = None) -> Tensor:
        """The log-density ``(B,)``; one that is none raises."""
        if condition:
            raise ValueError(
                f"a density takes no condition, got {', '.join(sorted(condition))}: "
                "make the density of each class a gm.predict.Density of its own"
            )
        value = self.log_density(x, _time(instant.t, x))
        if not isinstance(value, Tensor):
            raise TypeError(f"log_density must return a tensor (B,), got {type(value).__name__}")
        if value.shape != x.shape[:1]:
            raise ValueError(
                f"log_density returned shape {tuple(value.shape)} for a state of shape {tuple(x.shape)}: "
                f"it needs one number for each sample, ({len(x)},)"
            )
        if _visible(value):
            wrong = value.isnan() | torch.isposinf(value)
            if bool(wrong.any()):
                raise ValueError(
                    f"log_density is {value[wrong][0].item():g} at {int(wrong.sum())} of {len(value)} states: "
                    "a density must be positive and finite, and its logarithm is what is asked for"
                )
        return value

    def prediction(self, x: Tensor, instant: DensityInstant, native: Tensor) -> DensityPrediction:
        """The lazy readings."""
        return DensityPrediction(self, x, instant, native)

    def blank(self, x: Tensor) -> Tensor:
        """Zeros."""
        return torch.zeros(len(x), dtype=torch.get_default_dtype(), device=x.device)

    def error(self, native: Tensor, x: Tensor, x0: Tensor, x1: Tensor, instant: Any) -> NoReturn:
        self._refuse()

    def scored(self, x: Tensor, x1: Tensor) -> NoReturn:
        self._refuse()

    def per_data(self, instant: Any) -> NoReturn:
        self._refuse()

    def reads(self, instant: Any) -> bool:
        """Yes: it is known at all times."""
        return True

    def _refuse(self) -> NoReturn:
        raise TypeError("a Density predictor is not trained: it is known")

    def extra_repr(self) -> str:
        return f"path={self.path!r}"


def gradient(space: Space, x: Tensor, slope: Tensor) -> Tensor:
    r"""The gradient :math:`g^{-1}\partial f` in a space's metric, from partial derivatives ``(B, *S)``.

    ``space.noise`` at x is a linear map N with :math:`N N^T = g^{-1}`, so it is :math:`N N^T\partial f`.
    """
    if not isinstance(space, Manifold):
        return slope
    _, pull, *_ = torch.func.vjp(lambda z: space.noise(x, z), torch.zeros_like(x))
    return space.noise(x, pull(slope)[0])


def _time(t: Any, x: Tensor) -> Tensor:
    """A time as a tensor: 0-d, in float64 (which promotes no state), or ``(B,)``."""
    if isinstance(t, Tensor):
        return t.reshape(-1) if t.ndim else t
    return torch.ones((), dtype=torch.float64, device=x.device) * t


def _visible(value: Tensor) -> bool:
    """Whether values can be looked at without making a GPU wait, a graph break, or a transform fail."""
    if torch.compiler.is_compiling() or value.device.type != "cpu":
        return False
    return not torch._C._functorch.is_functorch_wrapped_tensor(value)  # type: ignore[attr-defined]
