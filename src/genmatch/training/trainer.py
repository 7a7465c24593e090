"""One optimisation step, and all the state that it reads and writes."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from .batches import Batches
from .checkpoint import Saved
from .objective import Objective
from .optimizers import optimizer_state, restore_optimizer
from .prefetch import Prefetch
from .rate import LearningRate
from .seeds import derive_seed, seed_generators
from .weights import collect_weights, fill_weights

__all__ = ["Average", "Trainer"]


class Average(Protocol):
    """What :class:`Trainer` asks of a moving average of the weights, such as :class:`genmatch.nn.EMA`."""

    def update(self) -> object:
        """Take the weights of now into the average."""

    def state_dict(self) -> Any:
        """A mapping from names to tensors."""

    def load_state_dict(self, state: Any, /) -> object:
        """Put such a mapping back."""


class Trainer:
    """Steps of stochastic gradient descent, each a function of the state, the step's number and the seed."""

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        prefetch: Prefetch,
        objective: Objective,
        optimizer: Optimizer,
        rate: LearningRate,
        ema: Average | None,
        *,
        seed: int,
        clip: float | None,
        device: torch.device,
    ) -> None:
        self.model, self.batches, self.prefetch, self.objective = model, batches, prefetch, objective
        self.optimizer, self.rate, self.ema = optimizer, rate, ema
        self.seed, self.clip, self.device = seed, clip, device
        self.samples, self.lr = 0, 0.0
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def advance(self, step: int) -> tuple[Tensor, Tensor]:
        """Take a step; returns its loss and the norm of its gradient before clipping, on the device."""
        batches = self.prefetch.take(step)
        count = sum(batch.x1.shape[0] for batch in batches)  # len() of a tensor costs microseconds
        seed_generators(derive_seed(self.seed, "step", step), self.device)
        self.lr = self.rate.apply(step)
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for batch in batches:
            loss = self.objective(batch, step)
            if len(batches) > 1:
                loss = loss * (batch.x1.shape[0] / count)
            loss.backward()
            losses.append(loss.detach())
        norm = self._clip()
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update()
        self.samples += count
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum(), norm

    def _clip(self) -> Tensor:
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        if not gradients:
            raise ValueError("no parameter of the optimiser got a gradient: does the loss use this model?")
        norm = get_total_norm(gradients)
        if self.clip is not None:
            clip_grads_with_norm_(self._parameters, self.clip, norm)
        return norm

    def check_weights(self) -> None:
        """Raise ``FloatingPointError`` if a weight is not finite."""
        broken = torch.stack([~parameter.detach().isfinite().all() for parameter in self._parameters])
        if bool(broken.any()):
            names = {id(parameter): name for name, parameter in self.model.named_parameters()}
            first = names[id(self._parameters[int(broken.int().argmax())])]
            raise FloatingPointError(f"the weights are no longer finite ({first} is the first): lower lr")

    def aliases(self) -> dict[str, str]:
        """The second names of shared weights."""
        return collect_weights(self.model)[1]

    def state(self) -> dict[str, Any]:
        """All that the next step depends on, besides its number and the seed."""
        return {
            "model": collect_weights(self.model)[0],
            "optimizer": optimizer_state(self.optimizer),
            "ema": None if self.ema is None else dict(self.ema.state_dict()),
            "data": self.prefetch.position(),
            "samples": self.samples,
        }

    def restore(self, saved: Saved) -> None:
        """Put a stored state back."""
        state = saved.state
        fill_weights(self.model, state["model"], saved.aliases, str(saved.path))
        restore_optimizer(self.optimizer, state["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.batches.seek(state["data"])
        self.samples = state["samples"]
