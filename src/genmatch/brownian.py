r"""One Brownian path for every grid: a dyadic tree whose values are drawn where they are needed.

Plain draws give each step of a run noise of its own, so a run with twice the steps follows another path. A tree gives
each sample one path on [0, 1] and each step its increment, whatever the grid: halving the steps then converges sample
by sample (strongly), and runs of several solvers can be compared on the same noise.

With an increment comes its space-time area, which stochastic Runge-Kutta methods of strong order 3/2 use:

.. math:: W = W_s - W_t, \qquad
   H = \frac1h\int_t^s \Bigl(W_u - W_t - \frac{u-t}{h}\,W\Bigr)\,du, \qquad h = s - t,

independent, of variances :math:`h` and :math:`h/12`. In units of their deviations, :math:`w = W/\sqrt h` and
:math:`k = H/\sqrt{h/12}`, the halves of an interval come from it and from two fresh normals by a rotation, the same
at every level:

.. math::
   \begin{pmatrix} w_l \\ w_r \\ k_l \\ k_r \end{pmatrix} = \frac14\begin{pmatrix}
   2\sqrt2 & \sqrt6 & \sqrt2 & 0 \\ 2\sqrt2 & -\sqrt6 & -\sqrt2 & 0 \\
   0 & \sqrt2 & -\sqrt6 & 2\sqrt2 \\ 0 & \sqrt2 & -\sqrt6 & -2\sqrt2 \end{pmatrix}
   \begin{pmatrix} w \\ k \\ z_1 \\ z_2 \end{pmatrix}

and those of an interval from pieces of lengths :math:`l_i = p_i h` with centres at :math:`c_i` by

.. math:: w = \sum_i \sqrt{p_i}\,w_i, \qquad
   k = \sum_i p_i^{3/2}\,k_i + \sqrt{12}\,\frac{c - c_i}{h}\,\sqrt{p_i}\,w_i .

Increments are sums of dyadic pieces, never differences of values of the path: short steps lose no digits.

References
----------
.. [1] P. Levy, "Processus stochastiques et mouvement brownien", 1948: the construction by midpoints.
.. [2] J. Foster, T. Lyons, H. Oberhauser, "An optimal polynomial approximation of Brownian motion", SIAM J. Numer.
   Anal. 58 (2020): space-time areas.
.. [3] X. Li, T.-K. L. Wong, R. T. Q. Chen, D. Duvenaud, "Scalable gradients for stochastic differential equations",
   AISTATS 2020: the tree as a function of a seed, nothing stored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from .dyadic import Course, Pair
from .random import AREA, BROWNIAN, Draws

__all__ = ["BrownianTree", "TreeDraws"]

NODES = 5  # stream of a tree's own normals, beside BROWNIAN and AREA; the step of their address is the node
DEEPEST = 32  # nodes to halve are below 2**32, as steps are


class BrownianTree:
    """Brownian noise that is one path of time for each sample, for ``gm.sample(..., brownian=gm.BrownianTree())``.

    Parameters
    ----------
    depth
        Times are rounded to multiples of ``2**-depth``, ``1 <= depth <= 32``: with 24 by at most 3e-8.

    Notes
    -----
    A value depends on the seed, the sample, the streams it was forked from, the interval and the element, and on
    nothing else: not on the grid around it, the order of questions, the batch, the shard or the device.

    A time that is a multiple of ``2**-k`` needs k halvings, another one ``depth``; what neighbouring steps share is
    made once. A run in n = ``2**k`` equal steps makes n nodes, in other grids about ``depth - log2(n)`` for each step.
    A run holds at most one pair of states for each level.

    Examples
    --------
    >>> import torch
    >>> tree, draws = BrownianTree(), Draws(seed=0, samples=4)
    >>> whole, _ = tree.draw(draws, 0.1, 0.7, (4, 3), torch.float64)
    >>> first, _ = tree.draw(draws, 0.1, 0.3, (4, 3), torch.float64)
    >>> second, _ = tree.draw(draws, 0.3, 0.7, (4, 3), torch.float64)
    >>> torch.allclose(first + second, whole)
    True
    """

    __slots__ = ("depth",)

    def __init__(self, depth: int = 24) -> None:
        if isinstance(depth, bool) or not isinstance(depth, int):
            raise TypeError(f"depth must be an integer, got {type(depth).__name__}")
        if not 1 <= depth <= DEEPEST:
            raise ValueError(f"depth must be in [1, {DEEPEST}], got {depth}")
        self.depth = depth

    def along(self, draws: Draws, times: Sequence[float]) -> list[TreeDraws]:
        """The draws of each step between ``times``: those of ``draws``, but for the Brownian noise.

        Parameters
        ----------
        draws
            Of all samples of a run.
        times
            Strictly monotone in [0, 1], at least two. Falling times see the same path, run back.

        Raises
        ------
        ValueError
            If the times are not so, or two of them are one multiple of ``2**-depth``.
        """
        course = Course(self.depth, self._ticks(times))
        return [TreeDraws(now, None, course) for now in draws.steps(len(course))]

    def draw(
        self, draws: Draws, start: float, stop: float, shape: Sequence[int], dtype: torch.dtype = torch.float32
    ) -> Pair:
        r"""The increment :math:`W_{stop} - W_{start}` and the area H of the path between, both ``(B, *S)``.

        That is the path that ``gm.sample`` follows under the same seed.
        """
        if not isinstance(draws, Draws):
            raise TypeError(f"draws must be gm.Draws, got {type(draws).__name__}")
        shape = tuple(shape) if isinstance(shape, Sequence) else (shape,)
        if not shape or shape[0] != draws.samples or min(shape) < 0:
            raise ValueError(f"draws for {draws.samples} samples have a shape ({draws.samples}, ...), got {shape}")
        (now,) = self.along(draws, (start, stop))
        length = abs(now.length)
        increment, area = now.fork(BROWNIAN).normal(shape, dtype), now.fork(AREA).normal(shape, dtype)
        return increment.mul_(math.sqrt(length)), area.mul_(math.sqrt(length / 12))

    def _ticks(self, times: Sequence[float]) -> list[int]:
        times = [float(t) for t in times]
        if len(times) < 2:
            raise ValueError(f"a path is asked for between at least two times, got {len(times)}")
        if not all(0 <= t <= 1 for t in times):
            raise ValueError(f"times must be in [0, 1], got {min(times):g} to {max(times):g}")
        pairs = list(pairwise(times))
        if not (all(t < s for t, s in pairs) or all(t > s for t, s in pairs)):
            raise ValueError("times must rise strictly (noise to data) or fall strictly (data to noise)")
        ticks = [round(t * 2**self.depth) for t in times]
        for (t, s), (a, b) in zip(pairs, pairwise(ticks), strict=True):
            if a == b:
                raise ValueError(
                    f"a tree of depth {self.depth} cannot tell the times {t} and {s} apart: they are the same multiple "
                    f"of 2**-{self.depth}. Take a deeper tree, gm.BrownianTree(depth=...) with up to {DEEPEST}, or "
                    "longer steps"
                )
        return ticks

    def __repr__(self) -> str:
        return f"BrownianTree(depth={self.depth})"


class TreeDraws:
    """A step's :class:`~genmatch.Draws` whose Brownian noise comes from a tree.

    Normals of a fork whose last stream is ``BROWNIAN`` are the increment of the step, and those of ``AREA`` its
    space-time area, each divided by its standard deviation. Everything else is drawn as ever.
    """

    __slots__ = ("_course", "_draws", "_made", "_parent")

    def __init__(self, draws: Draws, parent: Draws | None, course: Course, made: Pair | None = None) -> None:
        self._draws, self._parent, self._course, self._made = draws, parent, course, made

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return self._draws.seed

    @property
    def samples(self) -> int:
        """How many samples, B."""
        return self._draws.samples

    @property
    def first_index(self) -> int:
        """Global index of the first sample."""
        return self._draws.first_index

    @property
    def step(self) -> int:
        """The step of the loop."""
        return self._draws.step

    @property
    def stream(self) -> int:
        """The purpose; see :meth:`genmatch.Draws.fork`."""
        return self._draws.stream

    @property
    def device(self) -> torch.device:
        """Where the numbers are made."""
        return self._draws.device

    @property
    def length(self) -> float:
        """The length of the step as the tree sees it, negative where times fall."""
        low, high = self._course.span(self.step)
        return math.copysign((high - low) / 2**self._course.depth, self._course.direction)

    def at(self, step: int) -> TreeDraws:
        """The draws of another step, same samples and stream; Brownian noise has only the steps of the run."""
        parent = None if self._parent is None else self._parent.at(step)
        return TreeDraws(self._draws.at(step), parent, self._course)

    def steps(self, count: int) -> list[TreeDraws]:
        """The draws of steps 0 .. count-1."""
        return [self.at(i) for i in range(count)]

    def fork(self, stream: int) -> TreeDraws:
        """An independent stream; its Brownian path is another one."""
        made = self._made if self._parent is None else None
        return TreeDraws(self._draws.fork(stream), self._draws, self._course, made)

    def prepare(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> TreeDraws:
        """These draws with the increment and the area of the step made now, for states of this shape and dtype.

        A step that is compiled takes them as inputs; without, it has the halvings of its own interval in its graph, and
        is compiled anew for each step. Factors of a product have streams of their own, which are not prepared.
        """
        if self._parent is not None:
            raise ValueError("prepare the draws of a step before they are forked")
        increment, area = self.fork(BROWNIAN).normal(shape, dtype), self.fork(AREA).normal(shape, dtype)
        return TreeDraws(self._draws, None, self._course, (increment, area))

    def normal(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normals of ``shape`` ``(B, *S)``; see the class."""
        which = {BROWNIAN: 0, AREA: 1}.get(self.stream % 256)
        if which is None or self._parent is None:
            return self._draws.normal(shape, dtype)
        if not dtype.is_floating_point:
            raise TypeError(f"normals need a floating dtype, asked for {dtype}")
        pair = self._made
        if pair is None or pair[0].shape != tuple(shape) or pair[0].dtype != dtype:
            pair = self._course.pair(self._parent.fork(NODES), self.step, tuple(shape), dtype)
        return pair[which].to(dtype, copy=True)  # the memo keeps its own

    def normals(self, steps: Sequence[int], shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Those of several steps, ``(len(steps), B, *S)``."""
        return torch.stack([self.at(step).normal(shape, dtype) for step in steps])

    def uniform(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Uniforms in ``[0, 1)`` of ``shape`` ``(B, *S)``."""
        return self._draws.uniform(shape, dtype)

    def integers(self, shape: Sequence[int], high: int) -> Tensor:
        """Integers in ``[0, high)``, int64, of ``shape`` ``(B, *S)``."""
        return self._draws.integers(shape, high)

    def bits(self, shape: Sequence[int]) -> Tensor:
        """Integers in ``[0, 2**32)``, int64, of ``shape`` ``(B, *S)``."""
        return self._draws.bits(shape)

    def __repr__(self) -> str:
        return f"TreeDraws({self._draws!r}, depth={self._course.depth})"
