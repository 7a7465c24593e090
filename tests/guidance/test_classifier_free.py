"""Classifier-free guidance against its formula, its end points, and what it must refuse."""

import pytest
import torch
from torch import Tensor, nn

import genmatch as gm

NULL = 3
PATHS = {"CondOT": gm.GaussianPath(), "Cosine": gm.GaussianPath(gm.schedules.Cosine())}


class Labelled(nn.Module):
    """A network that depends on state, time and label, and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.shift, self.batches = nn.Embedding(NULL + 1, 2), []
        self.shift.weight.requires_grad_(False)

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        self.batches.append(len(x))
        return torch.tanh(x) * t[:, None] + self.shift(label)


def guided(kind: str, scale: float, path: gm.GaussianPath = PATHS["CondOT"]):
    torch.manual_seed(0)
    model = getattr(gm.predict, kind)(Labelled(), path)
    return model, gm.guidance.ClassifierFree(model, scale, null={"label": NULL})


X = torch.tensor([[0.3, -1.0], [2.0, 0.5], [-0.7, 0.1]])
LABEL = {"label": torch.tensor([0, 2, 1])}
NONE = {"label": torch.full((3,), NULL)}


@pytest.mark.parametrize("time", [0.4, torch.tensor([0.2, 0.5, 0.9])], ids=["number", "per-sample"])
@pytest.mark.parametrize("kind", ["Velocity", "Data", "Noise", "V"])
@pytest.mark.parametrize("reading", ["velocity", "data", "noise", "score"])
def test_every_reading_is_the_extrapolation_of_that_reading(kind: str, reading: str, time) -> None:
    model, wrapped = guided(kind, 2.5)
    given, free = (getattr(model(X, time, c), reading) for c in (LABEL, NONE))
    torch.testing.assert_close(getattr(wrapped(X, time, LABEL), reading), free + 2.5 * (given - free))
    assert not torch.allclose(given, free), "the control: the two predictions differ"


@pytest.mark.parametrize(("scale", "condition"), [(1.0, LABEL), (0.0, NONE)])
def test_scales_one_and_zero_are_the_two_models(scale: float, condition: dict) -> None:
    model, wrapped = guided("Velocity", scale)
    torch.testing.assert_close(wrapped(X, 0.4, LABEL).velocity, model(X, 0.4, condition).velocity)


def test_one_batched_evaluation_a_step() -> None:
    model, wrapped = guided("Velocity", 2.0)
    gm.sample(gm.Flow(wrapped), X, steps=4, condition=LABEL, solver=gm.solvers.Euler())
    assert model.network.batches == [6] * 4


@pytest.mark.parametrize(("scale", "condition"), [(1.0, LABEL), (0.0, NONE)])
@pytest.mark.parametrize("time", [0.4, torch.tensor([0.2, 0.5, 0.9])], ids=["number", "per-sample"])
def test_a_half_that_does_not_count_is_not_evaluated(scale: float, condition: dict, time) -> None:
    model, wrapped = guided("Velocity", scale)
    found = wrapped(X, time, LABEL).velocity
    assert model.network.batches == [3]
    assert torch.equal(found, model(X, time, condition).velocity)
    with pytest.raises(ValueError, match="needs a condition for label"):
        wrapped(X, time)


@pytest.mark.parametrize("solver", [gm.solvers.Exponential(), gm.solvers.Heun(), gm.solvers.Euler()], ids=repr)
@pytest.mark.parametrize("kind", ["Velocity", "Data", "Noise"])
def test_a_guided_step_compiles_as_one_graph(kind: str, solver: gm.Solver) -> None:
    model, wrapped = guided(kind, 2.0, PATHS["Cosine"])
    model.network.batches = None

    def quiet(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return torch.tanh(x) * t[:, None] + model.network.shift(label)

    model.network.forward = quiet  # counting calls is a side effect
    field = gm.solvers.Field(gm.Flow(wrapped), X, LABEL)
    torch._dynamo.reset()
    step = torch.compile(solver.step, fullgraph=True, backend="eager")
    carry = other = None
    x = y = X
    for c in solver.plan(field, torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.float64)):
        draws = gm.Draws(0, 3)
        x, carry = step(field, x, c, draws, carry)
        y, other = solver.step(field, y, c, draws, other)
    torch.testing.assert_close(x, y)


def test_tokens_are_guided_by_their_rates() -> None:
    class Letters(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(NULL + 1, 5)

        def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
            return self.table(label)[:, None].expand(*x.shape, 5)

    torch.manual_seed(0)
    model = gm.predict.Tokens(Letters(), gm.MixturePath(5, mask=5))
    x = torch.full((3, 2), 5)
    given, free = (model(x, 0.5, c).probabilities for c in (LABEL, NONE))
    wrapped = gm.guidance.ClassifierFree(model, 1.7, null={"label": NULL})
    expected = given**1.7 * free**-0.7
    torch.testing.assert_close(wrapped(x, 0.5, LABEL).probabilities, expected / expected.sum(-1, keepdim=True))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda m: gm.guidance.ClassifierFree(m, float("nan"), null={"label": 3}),
            ValueError,
            "finite number, got nan",
        ),
        (lambda m: gm.guidance.ClassifierFree(m, 2.0, null={}), ValueError, "must say what stands for no condition"),
        (lambda m: gm.guidance.ClassifierFree(m.network, 2.0, null={"label": 3}), TypeError, "wraps a predictor"),
        (lambda m: guided("Velocity", 2.0)[1](X, 0.5), ValueError, "needs a condition for label, got none"),
        (lambda m: gm.matching_loss(guided("Data", 2.0)[1], X, condition=LABEL), TypeError, "is not trained: train"),
    ],
)
def test_bad_input_is_refused(make, error: type[Exception], message: str) -> None:
    model, _ = guided("Velocity", 1.0)
    with pytest.raises(error, match=message):
        make(model)
