"""Is a manifold the one that it says? A wrong scale of its noise passes all checks that only compare it with itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from ..random import Draws
from ..spaces.manifold import Manifold
from ..spaces.states import batch
from .case import Case
from .report import Failure, Skip

__all__ = ["check_space"]

ROWS = 32
CLOSE = 1e-4  # relative
LENGTH = 0.1  # of geodesics, in the space's unit: short, as log undoes exp only up to the cut locus
DIRECTIONS = 32  # stream


def check_space(case: Case) -> str:
    r"""On a manifold: :math:`\sum_k \langle u, \xi_k\rangle_g^2 = |u|_g^2` over the noise of an ambient basis.

    Summed over an orthonormal basis of u it says :math:`E\langle\xi,\xi\rangle_g = n`. Geodesics have constant speed,
    start along their velocity, and stay on the manifold; ``retract`` starts along it, too; ``log`` undoes ``exp``.
    """
    names = []
    for t in case.times:
        x, _ = case.states(t, min(ROWS, batch(case.data)))
        names = []
        for prefix, space, points in _manifolds(case.operator.path.space, x):
            z = Draws(case.seed, len(points), stream=DIRECTIONS, device=points.device).normal(
                points.shape, points.dtype
            )
            try:
                _check(prefix, space, points.double(), z.double())
            except RuntimeError:  # a space with constants in float32
                _check(prefix, space, points, z)
            names.append(repr(space))
    if not names:
        raise Skip("it is no manifold")
    return ", ".join(names)


def _manifolds(space: object, x: Tensor | Mapping[str, Tensor]) -> Iterator[tuple[str, Manifold, Tensor]]:
    if isinstance(x, Mapping):
        for name, own in space.factors.items():  # type: ignore[attr-defined]
            if isinstance(own, Manifold):
                yield f"{name}: ", own, x[name]
    elif isinstance(space, Manifold):
        yield "", space, x


def _check(prefix: str, space: Manifold, x: Tensor, z: Tensor) -> None:
    _check_noise(prefix, space, x, space.noise(x, z))
    v = space.noise(x, z)
    v = v * (LENGTH / space.norm(x, v)).reshape(*v.shape[: v.ndim - space.event_ndim], *[1] * space.event_ndim)
    start, end = x.new_zeros(()), x.new_ones(())
    for name, move in (("exp", space.exp), ("retract", space.retract)):
        there, slope = _along(lambda s, move=move: move(x, s * v), start)
        _compare(f"{prefix}{name}(x, 0)", there - x, x)
        _compare(f"{prefix}the derivative of {name}(x, s v) at s = 0, less v,", slope - v, v)
        _on_it(f"{prefix}{name}", space, move(x, v))
    there, slope = _along(lambda s: space.exp(x, s * v), end)
    length = torch.full_like(space.norm(x, v), LENGTH)
    _compare(
        f"{prefix}the speed of a geodesic, exp(x, s v), at s = 1, less that at 0,",
        space.norm(there, slope) - length,
        length,
    )
    _compare(f"{prefix}log(x, exp(x, v)) - v", space.log(x, there) - v, v)
    _compare(
        f"{prefix}the distance of x and exp(x, v), less the length of v,", space.distance(x, there) - length, length
    )


def _check_noise(prefix: str, space: Manifold, x: Tensor, u: Tensor) -> None:
    points = x.shape[: x.ndim - space.event_ndim]
    size = x[0].numel() // max(1, points[1:].numel())
    basis = torch.eye(size, dtype=x.dtype, device=x.device).reshape(size, *space.event_shape)
    noises = [space.noise(x, e.expand_as(x)) for e in basis]
    square = torch.stack([space.inner(x, xi, xi) for xi in noises]).sum(0)
    if not bool(((square - space.dimension).abs() <= CLOSE * space.dimension).all()):
        raise Failure(
            f"{prefix}the mean square of {space!r}'s noise in the metric is {float(square.mean()):.4g}, not its "
            f"dimension {space.dimension}: noise(x, z) must be of the law N(0, g^-1)"
        )
    along = torch.stack([space.inner(x, u, xi) for xi in noises]).square().sum(0)
    _compare(
        f"{prefix}the variance of noise along a tangent vector, less its squared length,",
        along - space.inner(x, u, u),
        along,
    )


def _along(curve: Callable[[Tensor], Tensor], s: Tensor) -> tuple[Tensor, Tensor]:
    value, slope, *_ = torch.func.jvp(curve, (s,), (torch.ones_like(s),))
    return value, slope


def _compare(what: str, difference: Tensor, scale: Tensor) -> None:
    away = float(difference.abs().max() / scale.abs().max().clamp(min=1e-12))
    if not away <= CLOSE:
        raise Failure(f"{what} is {away:.2g} of its size and should be 0")


def _on_it(what: str, space: Manifold, x: Tensor) -> None:
    off = float(space.deviation(x).max())
    if not off <= space.tolerance:
        raise Failure(f"{what} leads off {space!r} by {off:.2g}, which allows {space.tolerance:g}")
