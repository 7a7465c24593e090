"""The loss of a batch, and what of it can be made ahead or as one compiled graph."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from ..losses import Task, compare, corrupt, draw_pair, draw_task, matching_loss
from ..predict import Predictor
from ..random import Ahead, Draws
from .batches import Batch

__all__ = ["Objective"]

BACKEND = "inductor"  # of torch.compile


class Objective:
    """A loss as a step evaluates it: its draws, its precision, its pairing ahead of time, its compilation.

    Attributes
    ----------
    pairs_ahead
        Whether source and data can be, and are worth to be, paired before the step: :meth:`pair`.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[..., Tensor],
        *,
        seed: int,
        device: torch.device,
        autocast: torch.dtype | None,
        compiled: bool,
        steps: int,
    ) -> None:
        self.model, self.loss, self.seed, self.device, self.autocast = model, loss, seed, device, autocast
        options = _matching_options(loss)
        matches = options is not None and isinstance(model, Predictor)
        if compiled and not matches:
            raise ValueError(
                "compile='step' compiles gm.matching_loss of a predictor, with functools.partial for its options: with "
                "another loss or model use compile='network'"
            )
        given = matches and not {"x0", "draws", "seed", "paired"}.isdisjoint(options or {})
        path: Any = model.path if matches else None
        self.pairs_ahead = matches and not given and path.coupling.costly
        self._graph = _Graph(model, options or {}) if compiled else None
        self._ahead, self._ahead_of_pairs = Ahead(steps), Ahead(steps)  # pairs may be made on a thread of their own

    def pair(self, batch: Batch, step: int) -> Batch:
        """The batch with its source samples drawn and paired: the same as the loss would, from the same draws."""
        with self._precision():
            x1, condition = batch.read()
            draws = self._draws(batch, step).made(self._ahead_of_pairs)
            return batch._replace(pair=draw_pair(self.model, x1, None, condition, draws))  # pyright: ignore[reportArgumentType]

    def __call__(self, batch: Batch, step: int) -> Tensor:
        """The loss of a batch, a scalar that the parameters can be differentiated from."""
        given: dict[str, Any] = {"draws": self._draws(batch, step).made(self._ahead)}
        with self._precision():
            if batch.pair is None:
                x1, given["condition"] = batch.read()
            else:
                given["x0"], x1, given["condition"] = batch.pair
                given["paired"] = True
            loss = self.loss(self.model, x1, **given) if self._graph is None else self._graph(x1, **given)
        if not isinstance(loss, Tensor) or loss.shape != ():
            got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"the loss must be a scalar tensor, the mean over the batch, got {got}")
        if not loss.requires_grad:
            raise ValueError("the loss does not depend on any trainable parameter: is it computed under no_grad?")
        return loss

    def _draws(self, batch: Batch, step: int) -> Draws:
        return Draws(self.seed, batch.x1.shape[0], first_index=batch.first_index, step=step, device=self.device)

    def _precision(self) -> AbstractContextManager[object]:
        return nullcontext() if self.autocast is None else torch.autocast(self.device.type, self.autocast)


class _Graph:
    """:func:`genmatch.matching_loss` with all that follows its random numbers as one compiled function.

    Draws are functions of the step's number, which a graph would be compiled anew for: they are made before it. So are
    the states of a path that is random given both ends.
    """

    def __init__(self, model: Any, options: dict[str, Any]) -> None:
        self.model = model
        self.reduction = options.get("reduction", "mean")
        self.weight = options.get("weight")
        names = ("x0", "paired", "t", "condition", "time", "weight", "fixed", "draws", "seed")
        self.options = {**dict.fromkeys(names), "paired": False, **options}
        self.options.pop("reduction", None)
        self.random: bool | None = None  # whether the path is, between its ends; known from the first batch
        # Code of its own: what has been compiled is kept with the code, for a few models at most.
        evaluate = FunctionType(_evaluate.__code__.replace(), globals())
        self._evaluate = torch.compile(evaluate, backend=BACKEND)

    def __call__(self, x1: Any, **given: Any) -> Tensor:
        task = draw_task(self.model, x1, **{**self.options, **given})
        if self.random is None:
            self.random = _is_random(self.model, task)
        x = corrupt(self.model, task, self.model.instant(task.t, task.x1), task.draws) if self.random else None
        loss = self._evaluate(self.model, task._replace(draws=NO_DRAWS), x, self.weight)
        return loss.mean() if self.reduction == "mean" else loss


class _DrawnError(AttributeError):
    """A number was asked for where there is none."""


class _NoDraws:
    """Stands for draws where nothing should be drawn."""

    def fork(self, stream: int) -> _NoDraws:
        return self

    def __getattr__(self, name: str) -> Any:
        raise _DrawnError(name)


NO_DRAWS: Any = _NoDraws()


def _is_random(model: Any, task: Task) -> bool:
    """Whether a state between two ends asks for random numbers."""
    try:
        corrupt(model, task, model.instant(task.t, task.x1), NO_DRAWS)
    except _DrawnError:
        return True
    return False


def _evaluate(model: Any, task: Task, x: Any, weight: Any) -> Tensor:
    instant = model.instant(task.t, task.x1)
    if x is None:
        x = corrupt(model, task, instant, task.draws)
    return compare(model, task, instant, x, weight)


def _matching_options(loss: Callable[..., Tensor]) -> dict[str, Any] | None:
    """The keywords of ``functools.partial(gm.matching_loss, ...)``; ``None`` for another loss."""
    if loss is matching_loss:
        return {}
    if isinstance(loss, partial) and loss.func is matching_loss and not loss.args:
        return loss.keywords
    return None
