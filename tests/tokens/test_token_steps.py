"""Steps of token chains trace as one graph, read nothing to the host, and look the same in every dtype of tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import genmatch as gm
from genmatch.generators import ReverseCTMC, TokenChurn
from genmatch.paths import CategoricalTokens
from genmatch.solvers import Confidence, Euler, Field, Remasking


class Logits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 5)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.table(x.long()) * (1 + t[:, None, None])


def build(name: str):
    path = gm.MixturePath(5, mask=5)
    if name == "given corrected":
        path = gm.MixturePath(5, source=CategoricalTokens([0.3, 0.2, 0.2, 0.2, 0.1]), padding=9)
    model = gm.predict.Tokens(Logits(), path)
    forward = gm.CTMC(model)
    return 2 * forward + ReverseCTMC(model) + TokenChurn(model) if "corrected" in name else forward


CASES = {
    "mask corrected": Euler(),
    "given corrected": Euler(),
    "churn": Remasking(1.0),
    "rescale": Remasking(rescale=0.5),
    "surest": Confidence(noise=1.0),
    "margin": Confidence("margin", temperature=0.5),
    "entropy": Confidence("entropy", temperature=0.0),
}


class HostReads(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", CASES)
def test_a_step_is_one_graph(name: str):
    torch._dynamo.reset()
    operator, solver = build(name), CASES[name]
    x = torch.full((8, 4), 5) if "given" not in name else torch.zeros(8, 4, dtype=torch.int64)
    field = Field(operator, x[:1])
    plan = solver.plan(field, torch.linspace(0, 1, 5, dtype=torch.float64))

    def step(x: Tensor, carry, which: int):
        return solver.step(field, x, plan[which], gm.Draws(3, 8).at(which), carry)

    compiled = torch.compile(step, backend="eager", fullgraph=True)
    carry = solver.start(field, x)
    with torch.no_grad():
        for which in (0, 2):
            own, _ = step(x, carry, which)
            traced, _ = compiled(x, carry, which)
            assert torch.equal(traced, own)
            x = own
    assert not torch.equal(x, torch.full((8, 4), 5))


@pytest.mark.parametrize("name", CASES)
def test_a_traced_step_reads_nothing(name: str, monkeypatch: pytest.MonkeyPatch):
    """Off the CPU rows that do not jump are landed too, as in a graph: no value decides what is done."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    operator, solver = build(name), CASES[name]
    x = torch.full((8, 4), 5) if "given" not in name else torch.zeros(8, 4, dtype=torch.int64)
    field = Field(operator, x[:1])
    plan = solver.plan(field, torch.linspace(0, 1, 5, dtype=torch.float64))
    carry = solver.start(field, x)
    with torch.no_grad(), HostReads() as reads:
        for which, c in enumerate(plan):
            x, carry = solver.step(field, x, c, gm.Draws(3, 8).at(which), carry)
    assert reads.count == 0
    assert x.max() < 5


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_the_dtype_of_tokens_is_kept(name: str, dtype: torch.dtype):
    operator, solver = build(name), CASES[name]
    x = gm.sample(operator, (8, 4), steps=3, solver=solver, seed=0)
    few = gm.sample(operator, (8, 4), steps=3, solver=solver, seed=0, dtype=dtype)
    assert few.dtype == dtype
    assert torch.equal(few.long(), x)
