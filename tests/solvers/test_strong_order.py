"""Strong convergence: with a Brownian tree, runs of more and more steps converge sample by sample.

The truth is a much finer run on the same path. An increment alone fixes a run to order 1 in the length of a step,
however good the method is on a flow; with the area of the path it can be 1.5. Near the ends of a path the schedules
and the noise are not smooth, and whole runs lose up to a quarter of an order.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import gaussian_line as line
import pytest
import torch
from torch import Tensor, nn

import genmatch as gm
from genmatch.random import AREA
from genmatch.solvers import SRA, EndPoint, Euler, Exponential, Field, Heun, Solver, Strang

COUNT = 60
STEPS = (16, 32, 64, 128)
FINE = 512
SCHEDULE = gm.schedules.Cosine()
NOISE = {"memoryless": gm.diffusivity.Memoryless(), "safe": gm.diffusivity.EndpointSafe()}


class OtherArea:
    """Draws of a tree with areas that know nothing of its path."""

    def __init__(self, draws: Any) -> None:
        self.draws = draws

    def fork(self, stream: int) -> Any:
        return self.draws.fork(100) if stream == AREA else self.draws.fork(stream)


def run(generator: Any, solver: Solver, steps: int, start: float, stop: float, noise: str = "tree") -> Tensor:
    """Ends of runs from the same states, float64."""
    alpha, _ = line.levels(SCHEDULE, start)
    x = alpha * line.MEAN + math.sqrt(line.spread(SCHEDULE, start)) * gm.Draws(9, COUNT).normal(
        (COUNT, 1), torch.float64
    )
    times, draws = torch.linspace(start, stop, steps + 1, dtype=torch.float64), gm.Draws(0, COUNT)
    along: list[Any] = draws.steps(steps) if noise == "plain" else gm.BrownianTree().along(draws, times.tolist())
    if noise == "other area":
        along = [OtherArea(now) for now in along]
    return line.walk(generator, solver, times, x, draws=along)


def errors(generator: Any, solver: Solver, start: float, stop: float, noise: str = "tree") -> list[float]:
    """Root mean squares over the samples."""
    truth = run(generator, solver, FINE, start, stop, noise)
    return [(run(generator, solver, n, start, stop, noise) - truth).square().mean().sqrt().item() for n in STEPS]


def diffusion(noise: str) -> gm.Diffusion:
    return gm.Diffusion(line.predictor(SCHEDULE, "data"), NOISE[noise])


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("solver", [Euler(), Heun(), Exponential(1), Exponential(2)], ids=repr)
def test_increments_alone_give_strong_order_one(solver: Solver, noise: str) -> None:
    """Also to Heun, whose weak order is 2. Exponential(2) comes down to it from above: its flow's error is h^2."""
    found = errors(diffusion(noise), solver, 1 / 8, 7 / 8)
    measured = line.order(STEPS, found)
    assert 0.9 < measured < (1.5 if solver.order == 2 and isinstance(solver, Exponential) else 1.2)
    assert found[-1] < 0.01


@pytest.mark.parametrize("noise", NOISE)
def test_the_area_gives_strong_order_three_halves(noise: str) -> None:
    """It is the area of this very path: another one is noise like any other."""
    assert line.order(STEPS, errors(diffusion(noise), SRA(), 1 / 8, 7 / 8)) > 1.4
    assert line.order(STEPS, errors(diffusion(noise), SRA(), 1 / 8, 7 / 8, "other area")) < 1.2


@pytest.mark.parametrize(
    ("solver", "noise"),
    [(Exponential(1), "memoryless"), (Exponential(2), "memoryless"), (Exponential(2), "safe"), (Heun(), "safe")],
    ids=str,
)
def test_whole_runs_converge_strongly(solver: Solver, noise: str) -> None:
    found = errors(diffusion(noise), solver, 0.0, 1.0)
    assert line.order(STEPS, found) > 0.75
    assert all(late < 0.7 * early for early, late in pairwise(found))


@pytest.mark.parametrize("solver", [Euler(), Exponential(2)], ids=repr)
def test_without_a_tree_runs_do_not_converge_to_one_another(solver: Solver) -> None:
    generator, span = diffusion("safe"), (1 / 8, 7 / 8)
    gaps = {
        noise: [
            (run(generator, solver, n, *span, noise) - run(generator, solver, 2 * n, *span, noise))
            .square()
            .mean()
            .sqrt()
            for n in STEPS
        ]
        for noise in ("tree", "plain")
    }
    assert gaps["tree"][-1] < 0.25 * gaps["tree"][0]
    assert gaps["plain"][-1] > 0.8 * gaps["plain"][0]
    assert gaps["plain"][-1] > 20 * gaps["tree"][-1]


def test_different_solvers_follow_the_same_path() -> None:
    generator = diffusion("safe")
    ends = [run(generator, solver, 256, 1 / 8, 7 / 8) for solver in (Euler(), Heun(), Exponential(2), SRA())]
    assert max((a - b).abs().max().item() for a in ends for b in ends) < 0.02
    assert (ends[0] - run(generator, Euler(), 256, 1 / 8, 7 / 8, "plain")).abs().mean() > 0.1


# Through gm.sample: every kind of state and noise


class Bend(nn.Module):
    """Elementwise, so that samples do not depend on the batch to the bit."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(1.1 * x) * (0.5 + t.reshape(-1, *[1] * (x.ndim - 1)))


class Both(nn.Module):
    def forward(self, x: dict[str, Tensor], t: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: torch.tanh(part) * (0.5 + t[name][:, None]) for name, part in x.items()}


class Drifting(gm.Generator):
    """A flow and noise on a manifold."""

    def triplet(self, x: Tensor, t: Any, prediction: Any) -> gm.Triplet:
        return gm.Triplet(drift=prediction.velocity, variance=0.3)


PATH = gm.GaussianPath(SCHEDULE)
MODEL = gm.predict.V(Bend(), PATH)
STEADY = gm.diffusivity.Constant(0.3)
PAIR = gm.predict.Product(Both(), dict.fromkeys("ab", gm.predict.Data), gm.ProductPath({"a": PATH, "b": PATH}))
HYBRID = 0.6 * gm.Flow(MODEL) + 0.4 * gm.Diffusion(MODEL, STEADY)
UNEVEN = gm.diffusivity.StateDependent(lambda x, t: 1 + 0.5 * torch.sin(x), STEADY)
# The generator, the solver, the shape of a state, and where to stop.
RUNS: dict[str, tuple[Any, Solver, Any, float]] = {
    "memoryless": (gm.Diffusion(MODEL), Exponential(2), (3, 2), 1.0),
    "safe": (gm.Diffusion(MODEL, gm.diffusivity.EndpointSafe()), Euler(), (5,), 1.0),
    "hybrid": (HYBRID, Heun(), (5,), 7 / 8),
    "area": (HYBRID, SRA(), (5,), 7 / 8),
    "split": (HYBRID, Strang(Euler()), (5,), 7 / 8),
    "end point": (gm.Flow(MODEL) + gm.Multiplicative(MODEL, UNEVEN), EndPoint(), (5,), 7 / 8),
    "product": (
        gm.Product(PAIR, dict.fromkeys("ab", lambda m: gm.Diffusion(m, STEADY))),
        Euler(),
        {"a": 3, "b": 3},
        7 / 8,
    ),
    "sphere": (Drifting(gm.predict.TangentVelocity(Bend(), gm.GeodesicPath(gm.spaces.Sphere(2)))), Euler(), (3,), 1.0),
}
EVERY = pytest.mark.parametrize("name", RUNS)


def draw(name: str, count: int = 24, **options: Any) -> Tensor:
    generator, solver, shape, stop = RUNS[name]
    shapes: Any = {key: (count, size) for key, size in shape.items()} if isinstance(shape, dict) else (count, *shape)
    options = {"steps": 6, "seed": 11, "start": 1 / 8, "brownian": gm.BrownianTree(), **options}
    if isinstance(shape, dict) or generator.path is not PATH:
        options["start"] = 0.0
    else:  # states at the start, so that all solvers can begin
        shapes = gm.Draws(3, count, first_index=options.get("first_index", 0)).normal(shapes)
    states = gm.sample(generator, shapes, solver=solver, stop=stop, **options)
    return torch.cat(list(states.values()), -1) if isinstance(states, dict) else states


@EVERY
def test_runs_of_every_kind_converge_on_one_path(name: str) -> None:
    def gap(steps: int, **options: Any) -> float:
        return (
            (draw(name, steps=steps, **options) - draw(name, steps=2 * steps, **options)).square().mean().sqrt().item()
        )

    assert gap(64) < 0.6 * gap(8)
    assert gap(64, brownian=None) > 0.7 * gap(8, brownian=None)


@EVERY
def test_batches_shards_and_what_is_watched_do_not_matter(name: str) -> None:
    whole = draw(name)
    for batch_size in (1, 7, 24):
        assert torch.equal(draw(name, batch_size=batch_size), whole), batch_size
    assert torch.equal(torch.cat([draw(name, 11), draw(name, 13, first_index=11, batch_size=5)]), whole)
    assert torch.equal(draw(name, trajectory=True)[-1], whole)
    assert torch.equal(draw(name, check=True), whole)
    assert not torch.equal(draw(name, seed=12), whole)
    assert not torch.equal(draw(name, brownian=None), whole)


def test_factors_of_a_product_have_paths_of_their_own() -> None:
    states = draw("product", 2000, steps=8)
    assert torch.corrcoef(states.T).fill_diagonal_(0).abs().max() < 5 / math.sqrt(2000)


def test_a_run_from_data_to_noise_follows_the_path_back() -> None:
    """A flow and noise that runs back is driven by the same path, read from its end."""
    reverse = gm.Reverse(gm.Diffusion(line.predictor(SCHEDULE, "data"), STEADY))
    x = gm.Draws(5, COUNT).normal((COUNT, 1), torch.float64)
    ends = [
        gm.sample(reverse, x, steps=n, start=7 / 8, stop=1 / 8, solver=Euler(), seed=1, brownian=gm.BrownianTree())
        for n in (*STEPS, FINE)
    ]
    found = [(end - ends[-1]).square().mean().sqrt().item() for end in ends[:-1]]
    assert line.order(STEPS, found) > 0.9


# Compiled


@pytest.mark.parametrize(("noise", "solver"), [("safe", Heun()), ("memoryless", Exponential(2))], ids=str)
def test_prepared_draws_make_a_step_one_graph(noise: str, solver: Solver) -> None:
    """Without preparing, a step still is one graph, but another one each time."""
    steps, x = 5, gm.Draws(1, 6).normal((6, 2))
    times = gm.grids.uniform(steps, 0.05, 0.95)
    field = Field(gm.Diffusion(MODEL, NOISE[noise]), x)
    plan = solver.plan(field, times)

    def march(step: Any, *, prepared: bool) -> Tensor:
        state, carry = x, solver.start(field, x)
        for c, now in zip(plan, gm.BrownianTree().along(gm.Draws(0, 6), times.tolist()), strict=True):
            with torch.no_grad():
                state, carry = step(field, state, c, now.prepare(x.shape) if prepared else now, carry)
        return state

    torch._dynamo.reset()
    graphs: list[Any] = []

    def backend(graph: torch.fx.GraphModule, _inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    fast = march(torch.compile(solver.step, fullgraph=True, backend=backend), prepared=True)
    assert len(graphs) <= 4
    slow = march(solver.step, prepared=False)
    torch.testing.assert_close(fast, slow)
    assert torch.equal(march(solver.step, prepared=True), slow)


def test_a_network_may_be_compiled() -> None:
    torch._dynamo.reset()
    generator, solver, shape, stop = RUNS["hybrid"]
    fast: Any = torch.compile(MODEL.network, backend="eager", fullgraph=True)
    model = gm.predict.V(fast, PATH)
    hybrid = 0.6 * gm.Flow(model) + 0.4 * gm.Diffusion(model, STEADY)
    states = [
        gm.sample(one, (8, *shape), steps=6, start=0.0, stop=stop, seed=0, solver=solver, brownian=gm.BrownianTree())
        for one in (generator, hybrid)
    ]
    torch.testing.assert_close(*states)
