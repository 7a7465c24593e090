"""Small models, losses and data to train in tests, also in processes that are killed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genmatch.random import Draws


class Network(nn.Module):
    """A network of x, t and a label with all that a resumed run could forget: dropout, buffers, shared weights."""

    def __init__(self, width: int = 8, dropout: float = 0.3, classes: int = 3) -> None:
        super().__init__()
        self.entry = nn.Linear(3, width)
        self.label = nn.Embedding(classes, width)
        self.norm = nn.BatchNorm1d(width, affine=False)
        self.dropout = nn.Dropout(dropout)
        self.middle = nn.Linear(width, width)
        self.again = nn.Linear(width, width, bias=False)
        self.again.weight = self.middle.weight  # tied
        self.exit = nn.Linear(width, 2)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        h = self.entry(torch.cat([x, t[:, None]], 1))
        if label is not None:
            h = h + self.label(label)
        h = self.dropout(torch.tanh(self.norm(h)))
        return self.exit(self.again(torch.tanh(self.middle(h))))


class Plain(nn.Module):
    """A network whose samples do not see each other, without randomness of its own."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, width), nn.SiLU(), nn.Linear(width, 2))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.body(torch.cat([x, t[:, None]], 1))


class Mean:
    """A moving average of the parameters, other than the library's."""

    def __init__(self, module: nn.Module, decay: float = 0.9) -> None:
        self.decay, self.module = decay, module
        self.values = {name: p.detach().clone() for name, p in module.named_parameters()}

    def update(self) -> None:
        for name, p in self.module.named_parameters():
            self.values[name].lerp_(p.detach(), 1 - self.decay)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.values)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, value in state.items():
            self.values[name].copy_(value)


def flow_loss(model: nn.Module, x1: Tensor, condition: dict[str, Tensor] | None, draws: Draws) -> Tensor:
    """Flow matching by hand, all of its numbers from the draws."""
    x0 = draws.normal(x1.shape)
    t = draws.fork(1).uniform((len(x1), 1))
    return (model((1 - t) * x0 + t * x1, t[:, 0], **(condition or {})) - (x1 - x0)).square().mean()


def build(seed: int = 0, **options) -> Network:
    torch.manual_seed(seed)
    return Network(**options)


def points(count: int = 50, seed: int = 1) -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    x1 = torch.randn(count, 2, generator=generator) * 0.5 + 1
    return x1, {"label": torch.randint(3, (count,), generator=generator)}


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two states are equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class CrashError(Exception):
    """What a test raises in the middle of a run."""
