"""A model that tells how its trajectories move: velocity and acceleration, at any state."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..spaces import Euclidean
from .predictor import Condition, Predictor
from .wrapper import Wrapper

__all__ = ["Motion", "MovingPrediction"]


class _Asked(NamedTuple):
    """A model's output and the condition that it was asked under: an acceleration asks it again."""

    native: Any
    condition: Condition


class MovingPrediction:
    """The readings of a model, and :meth:`motion`."""

    __slots__ = ("_asked", "_model", "_reading")

    def __init__(self, model: Motion, reading: Any, asked: _Asked | None) -> None:
        self._model, self._reading, self._asked = model, reading, asked

    def __getattr__(self, name: str) -> Any:
        if name in MovingPrediction.__slots__:  # a copy in the making has none yet
            raise AttributeError(name)
        return getattr(self._reading, name)

    @property
    def strict(self) -> bool:
        """Whether readings that are not finite are refused."""
        return getattr(self._reading, "strict", False)

    @strict.setter
    def strict(self, value: bool) -> None:
        if hasattr(self._reading, "strict"):
            self._reading.strict = value

    def motion(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""Velocity u and acceleration :math:`\partial_t u + (u\cdot\nabla)u` at states ``x`` ``(B, *S)``.

        At the time and under the condition of the prediction. One pass of the network and one forward-mode pass.
        """
        if self._asked is None:  # a made-up prediction: its motion is straight
            velocity = self._reading.velocity
            return velocity, torch.zeros_like(velocity)
        return self._model.move(x, self._reading.instant.t, self._asked.condition)


class Motion(Wrapper):
    r"""A model with one more reading: the motion along its trajectories.

    .. math:: u_t(x), \qquad a_t(x) = \frac{d}{dt}u_t(x_t) = \partial_t u_t + (u_t\cdot\nabla)u_t

    by ``torch.func.jvp`` of the network in state and time. The network has to have a forward mode; the time it is fed
    has to depend smoothly on t (the step of a DDPM table, rounded to an integer, has no slope).

    Parameters
    ----------
    model
        A predictor with a velocity on R^d.
    """

    def __init__(self, model: Predictor) -> None:
        super().__init__(model)
        if "velocity" not in model.readings:
            raise TypeError(
                f"Motion needs a model with a velocity, a {type(model).__name__} has "
                f"{', '.join(sorted(model.readings)) or 'none'}"
            )
        if not isinstance(model.path.space, Euclidean):
            raise TypeError(f"accelerations are taken on R^d, got a model on {model.path.space!r}")
        self.path, self.kind = model.path, model.kind
        self.readings = model.readings | {"motion"}

    def at(self, t: Tensor, until: Tensor | None = None) -> Any:
        """The model's numbers."""
        return self.model.at(t, until)

    def native(self, x: Tensor, instant: Any, condition: Condition = None) -> Any:
        """The model's output, with the condition."""
        return _Asked(self.model.native(x, instant, condition), condition)

    def prediction(self, x: Tensor, instant: Any, native: Any) -> MovingPrediction:
        """The model's readings, and the motion."""
        if not isinstance(native, _Asked):  # made up, by :meth:`blank`
            return MovingPrediction(self, self.model.prediction(x, instant, native), None)
        return MovingPrediction(self, self.model.prediction(x, instant, native.native), native)

    def reads(self, instant: Any) -> bool:
        """As the model."""
        return self.model.reads(instant)

    def move(self, x: Tensor, t: Any, condition: Condition) -> tuple[Tensor, Tensor]:
        """Velocity and acceleration at ``x`` ``(B, *S)``, t a number or one for each sample."""
        # In float64, as 1 - t has no digits left in float32 near the data; one for each sample, not expanded, which
        # forward mode asks for.
        if isinstance(t, Tensor):
            times = t.reshape(-1).double().expand(len(x)).clone()
        else:
            times = torch.ones(len(x), dtype=torch.float64, device=x.device) * t

        x = x.clone()  # a view as input makes forward mode fail in a compiled graph

        def velocity(y: Tensor, s: Tensor) -> Tensor:
            instant = self.model.at(s).broadcast(y)
            # A network of half precision, without autocast, answers in its own.
            return self.model.prediction(y, instant, self.model.native(y, instant, condition).to(y.dtype)).velocity

        now = velocity(x, times)
        u, a, *_ = torch.func.jvp(velocity, (x, times), (now, torch.ones_like(times)))
        return u, a
