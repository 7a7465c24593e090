"""What a run costs: evaluations against each method's theory, written by hand, and how many states are alive."""

from __future__ import annotations

import gc
import itertools
import math
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import gaussian_line as line
import pytest
import torch
from torch import Tensor, nn

import genmatch as gm
from genmatch import grids, solvers
from genmatch.solvers import Field, Solver

COSINE = gm.schedules.Cosine()
Count = Callable[[int], int]

# Evaluations of n steps: between two times inside the path; and up to the data with a network of the data, whose
# velocity is 0/0 there, so that a method of several stages ends in one evaluation.
THEORY: list[tuple[Solver, Count, Count]] = [
    (solvers.Euler(), lambda n: n, lambda n: n),
    (solvers.Midpoint(), lambda n: 2 * n, lambda n: 2 * n - 1),
    (solvers.Heun(), lambda n: 2 * n, lambda n: 2 * n - 1),
    (solvers.Ralston(), lambda n: 2 * n, lambda n: 2 * n - 1),
    (solvers.BogackiShampine(), lambda n: 3 * n, lambda n: 3 * n - 2),
    (solvers.RK4(), lambda n: 4 * n, lambda n: 4 * n - 3),
    (solvers.DormandPrince(), lambda n: 6 * n, lambda n: 6 * n - 5),
    (solvers.AdamsBashforth(2), lambda n: n, lambda n: n),
    (solvers.AdamsBashforth(3), lambda n: n + 1, lambda n: n + 1),  # a Runge-Kutta step of 2 stages
    (solvers.AdamsBashforth(4), lambda n: n + 4, lambda n: n + 4),  # two of 3 stages
    (solvers.Exponential(1), lambda n: n, lambda n: n),
    (solvers.Exponential(2), lambda n: n, lambda n: n),
    (solvers.Exponential(3), lambda n: n + 1, lambda n: n + 1),  # the first step twice
    (solvers.DDIM(), lambda n: n, lambda n: n),
    (solvers.DDIM(0.5), lambda n: n, lambda n: n),
    (solvers.DDPM(), lambda n: n, lambda n: n),
    (solvers.DPMSolver(1), lambda n: n, lambda n: n),
    (solvers.DPMSolver(2), lambda n: n, lambda n: n),
    (solvers.DPMSolver(2, form="noise"), lambda n: n, lambda n: n),
    (solvers.DPMSolver(3), lambda n: n + 1, lambda n: n + 1),
    (solvers.DPMSolver(3, start="lower"), lambda n: n, lambda n: n),
    (solvers.DPMSolverSingle(2), lambda n: 2 * n, lambda n: 2 * n - 1),
    (solvers.DPMSolverSingle(3), lambda n: 3 * n, lambda n: 3 * n - 2),
    (solvers.UniPC(1), lambda n: n, lambda n: n),
    (solvers.UniPC(2), lambda n: n, lambda n: n),
    (
        solvers.UniPC(3),
        lambda n: n + 2,
        lambda n: n + 2,
    ),  # opens with a single step of three stages, as it is of order 4
    (solvers.UniPC(3, corrector=False), lambda n: n + 1, lambda n: n + 1),
    (solvers.UniPC(3, start="lower"), lambda n: n, lambda n: n),
    (solvers.DEIS(2), lambda n: n, lambda n: n),
    (solvers.DEIS(3), lambda n: n + 1, lambda n: n + 1),
    (solvers.IPNDM(4), lambda n: n, lambda n: n),
    (solvers.Churn(), lambda n: 2 * n, lambda n: 2 * n - 1),
    (solvers.Churn(order=1), lambda n: n, lambda n: n),
    (solvers.SRA(), lambda n: 2 * n, lambda n: 2 * n - 1),
    (solvers.SRI(), lambda n: 2 * n, lambda n: 2 * n - 1),
    (solvers.EndPoint(), lambda n: n, lambda n: n),
    (solvers.Strang(), lambda n: 4 * n, lambda n: 4 * n - 3),  # without jumps: both halves of Heun's
]
# Those whose number of evaluations is not one of the steps, each with a test of its own below.
ELSEWHERE = {
    solvers.Confidence,
    solvers.FirstHitting,
    solvers.JumpThinning,
    solvers.Remasking,
    solvers.Thinning,
    solvers.TwoEvent,
    solvers.Dopri5,
    solvers.TorchDiffEq,
}
EACH = pytest.mark.parametrize(("solver", "inside", "to_data"), THEORY, ids=[repr(row[0]) for row in THEORY])


def shipped(kind: type[Solver]) -> Iterator[type[Solver]]:
    for child in kind.__subclasses__():
        yield from shipped(child)
        if (
            child.__module__.startswith("genmatch.")
            and not child.__abstractmethods__
            and hasattr(solvers, child.__name__)
        ):
            yield child


def test_every_solver_is_counted() -> None:
    found = {kind for kind in shipped(Solver) if kind is not solvers.RungeKutta}
    missing = found - {type(row[0]) for row in THEORY} - ELSEWHERE
    assert not missing, f"write down what {', '.join(sorted(kind.__name__ for kind in missing))} cost"


def flow(kind: str = "data") -> tuple[gm.Flow, nn.Module]:
    model = line.predictor(COSINE, kind)
    return gm.Flow(model), model.network


def cost(generator: Any, network: Any, solver: Solver, x: Tensor, **run: Any) -> int:
    """Calls of the network in a run, the same as the report says and as the plan promises."""
    network.calls = 0
    _, report = gm.sample(generator, x, solver=solver, seed=0, report=True, **run)
    calls = network.calls
    times = grids.uniform(run["steps"], run.get("start", 0.0), run.get("stop", 1.0))
    plan = solver.plan(Field(generator, x[:1]), times)
    assert network.calls == calls, "a plan runs no network"
    assert report.evaluations.tolist() == [calls] * len(x)
    assert solver.evaluations(plan) == calls
    assert report.accepted.tolist() == [run["steps"]] * len(x)
    return calls


X = torch.zeros(3, 1, dtype=torch.float64)


@EACH
@pytest.mark.parametrize("steps", [5, 9])
def test_evaluations_are_those_of_the_theory(solver: Solver, inside: Count, to_data: Count, steps: int) -> None:
    generator, network = flow()
    assert cost(generator, network, solver, X, steps=steps, start=0.2, stop=0.8) == inside(steps)
    assert cost(generator, network, solver, X, steps=steps, start=0.2) == to_data(steps)


@EACH
@pytest.mark.parametrize("steps", [1, 2])
def test_short_runs_are_counted_right(solver: Solver, inside: Count, to_data: Count, steps: int) -> None:
    """Start-up and the last step may then be one: what is promised is still what it costs, and no more."""
    generator, network = flow()
    assert cost(generator, network, solver, X, steps=steps, start=0.2, stop=0.8) <= inside(max(steps, 4))
    assert cost(generator, network, solver, X, steps=steps, start=0.2) >= steps


@pytest.mark.parametrize(("solver", "stages"), [(solvers.Heun(), 2), (solvers.RK4(), 4)], ids=["Heun", "RK4"])
def test_where_the_field_is_finite_at_the_data_the_last_step_has_all_stages(solver: Solver, stages: int) -> None:
    generator, network = flow("velocity")
    assert cost(generator, network, solver, X, steps=5) == 5 * stages


@pytest.mark.parametrize(
    ("solver", "each"),
    [
        (solvers.Euler(), 1),
        (solvers.Heun(), 2),
        (solvers.EndPoint(), 1),
        (solvers.Exponential(2), 1),
        (solvers.SRA(), 2),
        (solvers.SRI(), 2),
        (solvers.Strang(), 4),
    ],
    ids=repr,
)
def test_a_sum_of_generators_costs_one_evaluation_and_not_one_for_each(solver: Solver, each: int) -> None:
    model = line.predictor(COSINE, "data")
    generator = 0.5 * gm.Flow(model) + 0.5 * gm.Diffusion(model, gm.diffusivity.EndpointSafe())
    assert cost(generator, model.network, solver, X, steps=6, start=0.2, stop=0.8) == 6 * each


# Jumps


class Counted(nn.Module):
    """Logits of tokens, the same wherever the state is; it counts."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        return torch.zeros(*x.shape, 3)


def chain(mask: int | None = None) -> tuple[gm.CTMC, Counted]:
    network = Counted()
    return gm.CTMC(gm.predict.Tokens(network, gm.MixturePath(3, mask=mask))), network


@pytest.mark.parametrize("solver", [solvers.Euler(), solvers.Confidence(), solvers.Remasking(0.5)], ids=repr)
def test_a_step_of_tokens_costs_one(solver: Solver) -> None:
    generator, network = chain(mask=3)
    x = torch.full((2, 7), 3)
    assert cost(generator, network, solver, x, steps=5) == 5


def test_first_hitting_costs_one_a_position() -> None:
    generator, network = chain(mask=3)
    assert cost(generator, network, solvers.FirstHitting(), torch.full((2, 7), 3), steps=1) == 7


def test_two_events_cost_two_and_a_last_leap_one() -> None:
    generator, network = chain()
    x = torch.zeros(2, 7, dtype=torch.int64)
    assert cost(generator, network, solvers.TwoEvent(), x, steps=5, stop=0.8) == 10
    assert cost(generator, network, solvers.TwoEvent(), x, steps=5) == 9


class Hops(gm.Generator):
    """A jump a unit of time, into (1, 2); it leaves no law alone, which does not matter here."""

    additive = False

    def triplet(self, x: Tensor, t: Any, prediction: Any) -> gm.Triplet:
        logits = x.new_zeros(*x.shape, 1)
        return gm.Triplet(rates=gm.Rates((torch.ones_like(x), gm.rates.Bins(logits, x.new_tensor([1.0, 2.0])))))


class Stirs(Hops):
    """The same beside a flow."""

    speed = 0.0


def test_strang_costs_two_for_the_jumps_besides() -> None:
    model = line.predictor(COSINE, "velocity")
    generator = gm.Flow(model) + Stirs(model)
    assert cost(generator, model.network, solvers.Strang(), X, steps=4, start=0.2, stop=0.8) == 4 * (2 + 2 + 2)


@pytest.mark.parametrize("which", ["tokens", "vectors"])
def test_thinning_costs_its_candidates(which: str) -> None:
    """As many as a Poisson process has: D log (1 - kappa_t) / (1 - kappa_s), and for vectors the bound times that."""
    runs = 120
    if which == "tokens":
        generator, network = chain()
        x, solver = torch.zeros(1, 2, dtype=torch.int64), solvers.Thinning()
    else:
        model = line.predictor(gm.schedules.CondOT(), "data")
        generator, network = Hops(model), model.network
        x, solver = X[:1], solvers.JumpThinning(2.0)
    for seed in range(runs):
        gm.sample(generator, x, steps=1, stop=0.8, solver=solver, seed=seed)
    expected = 2 * math.log(1 / 0.2)
    assert abs(network.calls / runs - expected) < 5 * math.sqrt(expected / runs)
    plan = solver.plan(Field(generator, x), torch.tensor([0.0, 0.8], dtype=torch.float64))
    assert solver.evaluations(plan) == math.ceil(expected)


# Adaptive solvers


def test_an_adaptive_solver_reports_what_each_sample_cost() -> None:
    """Six a step, tried in vain or not, and two for the start: those of the slowest are the calls of the network."""
    model = line.predictor(COSINE, "velocity")
    x = torch.tensor([[0.0], [0.5], [40.0]], dtype=torch.float64)
    _, report = gm.sample(gm.Flow(model), x, solver=solvers.Dopri5(), report=True)
    assert report.evaluations.tolist() == (2 + 6 * (report.accepted + report.rejected)).tolist()
    assert model.network.calls == int(report.evaluations.max())
    assert len(set(report.evaluations.tolist())) > 1, "each sample has steps of its own"


def test_torchdiffeq_reports_the_calls_of_the_network() -> None:
    model = line.predictor(COSINE, "velocity")
    _, report = gm.sample(gm.Flow(model), X, solver=solvers.TorchDiffEq(), report=True)
    assert report.evaluations.tolist() == [model.network.calls] * 3


# Guidance


class Labelled(nn.Module):
    """It records how many samples it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        self.batches.append(len(x))
        return torch.tanh(x) * t[:, None] + label[:, None].to(x.dtype)


@EACH
def test_a_guided_prediction_is_one_evaluation_of_twice_the_batch(solver, inside: Count, to_data: Count) -> None:
    network = Labelled()
    model = gm.guidance.ClassifierFree(gm.predict.Data(network, gm.GaussianPath(COSINE)), 2.0, {"label": 5})
    label = {"label": torch.tensor([0, 1, 2])}
    gm.sample(gm.Flow(model), X, steps=5, start=0.2, stop=0.8, solver=solver, condition=label, seed=0)
    assert network.batches == [2 * len(X)] * inside(5)


# Memory

LARGE = (2, 3, 96, 96)  # draws are made ahead for small states alone


@pytest.fixture
def alive() -> Iterator[Callable[[], int]]:
    """Counts the tensors of a state's shape, made since, that something holds."""
    gc.freeze()  # what was there before is not looked through each time
    yield _count
    gc.unfreeze()


def _count() -> int:
    return sum(1 for thing in gc.get_objects() if type(thing) is Tensor and thing.shape == LARGE)


def large_flow() -> gm.Flow:
    class Small(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return torch.tanh(x)

    return gm.Flow(gm.predict.Data(Small(), gm.GaussianPath(COSINE)))


@EACH
def test_the_number_of_states_in_memory_does_not_grow_with_the_steps(alive, solver, inside, to_data) -> None:
    counts, x = [], torch.zeros(LARGE)

    def callback(i: int, t: float, x: Tensor) -> None:
        if i in (5, 10):
            counts.append(alive())

    gm.sample(large_flow(), x, steps=11, start=0.2, stop=0.8, solver=solver, seed=0, callback=callback)
    assert counts[1] <= counts[0] <= 8
    if type(solver) in (solvers.Euler, solvers.Exponential):  # the states given, the latest, the number kept
        assert max(counts) <= 2 + (solver.order - 1) + 1
    assert alive() == 1, "what is left are the states given: the result was let go"


def test_a_trajectory_is_seen_to_grow(alive) -> None:
    """The control: what is counted above is there if it is asked for."""
    counts: list[int] = []

    def callback(i: int, t: float, x: Tensor) -> None:
        if i in (3, 5, 7):
            counts.append(alive())

    run: dict[str, Any] = {"steps": 8, "start": 0.2, "stop": 0.8, "trajectory": True}
    gm.sample(large_flow(), torch.zeros(LARGE), callback=callback, **run)
    assert [b - a for a, b in itertools.pairwise(counts)] == [2, 2]


def test_each_state_is_let_go_and_the_callback_sees_all_of_them() -> None:
    generator, seen, refs, dead = large_flow(), [], [], []

    def callback(i: int, t: float, x: Tensor) -> None:
        dead.append(all(ref() is None for ref in refs))
        refs.append(weakref.ref(x))
        seen.append((i, t, x.sum().item()))

    run: dict[str, Any] = {"steps": 6, "solver": solvers.DDPM(), "seed": 0}
    end = gm.sample(generator, LARGE, callback=callback, **run)
    assert dead == [True] * 6
    states = gm.sample(generator, LARGE, trajectory=True, **run)
    assert seen == [(i, pytest.approx(i / 6), states[i].sum().item()) for i in range(1, 7)]
    assert torch.equal(states[-1], end)
