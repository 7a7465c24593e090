"""The same seed gives the same samples: whatever the batch, the shard, and what else is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import genmatch as gm
from genmatch.solvers import (
    DDIM,
    DDPM,
    DEIS,
    IPNDM,
    RK4,
    SRA,
    SRI,
    AdamsBashforth,
    BogackiShampine,
    Churn,
    Confidence,
    Dopri5,
    DormandPrince,
    DPMSolver,
    DPMSolverSingle,
    EndPoint,
    Euler,
    Exponential,
    Field,
    FirstHitting,
    Heun,
    JumpThinning,
    Midpoint,
    Ralston,
    Remasking,
    Solver,
    Strang,
    Thinning,
    TorchDiffEq,
    TwoEvent,
    UniPC,
)

COUNT = 12


class Elementwise(nn.Module):
    """Its arithmetic on a sample does not depend on the batch."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(1.1 * x) * (0.5 + t.reshape(-1, *[1] * (x.ndim - 1)))


class ByTable(nn.Module):
    """Logits of a token by its own table; no reduction over the batch."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.linspace(-1, 1, 35).reshape(7, 5) ** 3 * 4)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.table[x] * (1 + t[:, None, None])


class Mixing(nn.Module):
    """A small MLP: matrix products, which are not batch-invariant to the bit."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 32), nn.SiLU(), nn.Linear(32, 3))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.layers(torch.cat([x, t[:, None]], 1))


class ByBin(nn.Module):
    """Rates of jumps of a coordinate, and where they land, 8 bins."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        places = torch.linspace(-1, 1, 9, device=x.device)
        return torch.tanh(x[..., None] * places) * (0.5 + t.reshape(-1, *[1] * x.ndim))


PATH = gm.GaussianPath(gm.schedules.Cosine())
LINE = gm.GaussianPath()


def generators(wrap: Callable[[nn.Module], Any] = lambda network: network) -> dict[str, Any]:
    """One of each kind; ``wrap`` is done to every network."""
    flow = gm.Flow(gm.predict.V(wrap(Elementwise()), PATH))
    straight = gm.predict.Velocity(wrap(Elementwise()), LINE)
    sde = gm.Diffusion(flow.model)
    uneven = gm.diffusivity.StateDependent(lambda x, t: 1 + 0.5 * torch.sin(x), gm.diffusivity.Constant(0.3))
    jump = gm.Jump(gm.predict.Rates(wrap(ByBin()), LINE, torch.linspace(-2, 2, 9)))
    return {
        "flow": flow,
        "sde": sde,
        "safe": gm.Diffusion(flow.model, gm.diffusivity.EndpointSafe()),
        "hybrid": 0.7 * flow + 0.3 * sde,
        "uneven": gm.Flow(straight) + gm.Multiplicative(straight, uneven),
        "jump": jump,
        "moving": 0.5 * gm.Flow(straight) + 0.5 * jump,
        "tokens": gm.CTMC(gm.predict.Tokens(wrap(ByTable()), gm.MixturePath(5))),
        "masked": gm.CTMC(gm.predict.Tokens(wrap(ByTable()), gm.MixturePath(5, mask=5))),
    }


GENERATORS = generators()
MASKED, TOKENS = GENERATORS["masked"], GENERATORS["tokens"]

# What each shipped class of solvers is run on. A new solver belongs here.
SHIPPED: dict[type[Solver], list[tuple[str, Solver, tuple[int, ...]]]] = {
    Euler: [("flow", Euler(), (3, 2)), ("safe", Euler(), (3, 2)), ("tokens", Euler(), (6,)), ("masked", Euler(), (6,))],
    Midpoint: [("flow", Midpoint(), (3, 2))],
    Ralston: [("flow", Ralston(), (3, 2))],
    Heun: [("flow", Heun(), (3, 2)), ("safe", Heun(), (3, 2))],
    BogackiShampine: [("flow", BogackiShampine(), (3, 2))],
    RK4: [("flow", RK4(), (3, 2))],
    DormandPrince: [("flow", DormandPrince(), (3, 2))],
    AdamsBashforth: [("flow", AdamsBashforth(4), (3, 2))],
    Exponential: [
        *(("flow", Exponential(order), (3, 2)) for order in (1, 2, 3)),
        *(("sde", Exponential(order), (7,)) for order in (1, 2, 3)),
        ("safe", Exponential(), (3, 2)),
        ("hybrid", Exponential(), (5,)),
    ],
    DDIM: [("flow", DDIM(), (3, 2)), ("flow", DDIM(0.5), (3, 2))],
    DDPM: [("flow", DDPM(), (3, 2))],
    DPMSolver: [("flow", DPMSolver(3), (3, 2)), ("sde", DPMSolver(2), (3, 2))],
    DPMSolverSingle: [("flow", DPMSolverSingle(3), (3, 2))],
    UniPC: [("flow", UniPC(3), (3, 2))],
    DEIS: [("flow", DEIS(3), (3, 2))],
    IPNDM: [("flow", IPNDM(4), (3, 2))],
    Churn: [("flow", Churn(), (3, 2))],
    SRA: [("safe", SRA(), (3, 2))],
    SRI: [("uneven", SRI(), (3, 2))],
    EndPoint: [("uneven", EndPoint(), (3, 2))],
    Dopri5: [("flow", Dopri5(rtol=1e-3, atol=1e-3), (3, 2))],
    TorchDiffEq: [("flow", TorchDiffEq("rk4"), (3, 2))],  # adaptive methods share their steps over the batch
    TwoEvent: [("jump", TwoEvent(), (4,))],
    JumpThinning: [("jump", JumpThinning(12.0), (4,))],
    Strang: [("moving", Strang(), (4,))],
    Thinning: [("tokens", Thinning(last=0.1), (6,))],
    FirstHitting: [("masked", FirstHitting(), (6,))],
    Confidence: [("masked", Confidence(noise=1.0), (6,))],
    Remasking: [("masked", Remasking(1.0), (6,))],
}
RUNS = {f"{kind} {solver!r}": (kind, solver, shape) for runs in SHIPPED.values() for kind, solver, shape in runs}
CASES = pytest.mark.parametrize("name", RUNS)


def draw(name: str, count: int = COUNT, **options) -> Tensor:
    kind, solver, shape = RUNS[name]
    options = {"steps": 6, "seed": 11, "stop": 0.5 if kind == "jump" else 1.0, **options}
    return gm.sample(options.pop("generator", GENERATORS[kind]), (count, *shape), solver=solver, **options)


def shipped(kind: type[Solver]) -> Iterator[type[Solver]]:
    for child in kind.__subclasses__():
        yield from shipped(child)
        if child.__module__.startswith("genmatch.") and not child.__abstractmethods__ and hasattr(child, "parts"):
            yield child


def test_every_solver_is_run_here() -> None:
    missing = {kind.__name__ for kind in shipped(Solver)} - {kind.__name__ for kind in SHIPPED}
    assert not missing, f"nothing shows that runs of {', '.join(sorted(missing))} repeat: add it to SHIPPED"
    assert all(isinstance(solver, kind) for kind, runs in SHIPPED.items() for _, solver, _ in runs)


@CASES
def test_batches_and_shards_give_the_same_bits(name: str) -> None:
    whole = draw(name)
    assert torch.equal(draw(name), whole)
    for batch_size in (1, 5, 11, 12, 1000):
        assert torch.equal(draw(name, batch_size=batch_size), whole), batch_size
    assert torch.equal(draw(name, 1, first_index=7), whole[7:8])
    for cut in (1, 8):
        parts = [draw(name, cut), draw(name, COUNT - cut, first_index=cut, batch_size=5)]
        assert torch.equal(torch.cat(parts), whole), cut


@CASES
def test_what_else_is_asked_for_does_not_change_the_samples(name: str, capsys) -> None:
    whole = draw(name)
    calls: list[tuple[int, float]] = []
    states = draw(name, trajectory=True)
    assert states.shape == (7, *whole.shape)
    assert torch.equal(states[-1], whole)
    assert torch.equal(draw(name, trajectory=True, batch_size=5), states)
    assert torch.equal(draw(name, check=True), whole)
    assert torch.equal(draw(name, progress=True), whole)
    assert torch.equal(draw(name, callback=lambda i, t, x: calls.append((i, t))), whole)
    assert [i for i, _ in calls] == [1, 2, 3, 4, 5, 6]
    assert calls[-1][1] in (0.5, 1.0)
    assert [t for _, t in calls] == sorted(t for _, t in calls)
    assert "/6 [" in capsys.readouterr().err


@CASES
def test_the_global_generator_is_touched_only_without_a_seed(name: str) -> None:
    before = torch.get_rng_state()
    whole = draw(name)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(draw(name, seed=12), whole)
    first, second = draw(name, seed=None), draw(name, seed=None)
    assert not torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(first, second)
    torch.set_rng_state(before)
    assert torch.equal(draw(name, seed=None), first)
    # Without a seed, too, one seed serves all batches: shards of one call are not copies of one another.
    torch.set_rng_state(before)
    assert torch.equal(draw(name, seed=None, batch_size=7), first)


@pytest.mark.parametrize("build", [gm.Flow, gm.Diffusion])
def test_a_network_of_matrix_products_agrees_to_rounding(build: Callable[[gm.Predictor], gm.Generator]) -> None:
    generator = build(gm.predict.V(Mixing(), PATH))
    whole = gm.sample(generator, (COUNT, 3), steps=8, seed=0)
    for batch_size in (1, 7):
        torch.testing.assert_close(
            gm.sample(generator, (COUNT, 3), steps=8, seed=0, batch_size=batch_size), whole, rtol=1e-4, atol=1e-5
        )


def test_samples_and_steps_have_noise_of_their_own() -> None:
    """No two rows alike, and no step's noise used twice."""
    whole = draw("sde Exponential(order=1)")
    assert len(whole.unique(dim=0)) == COUNT
    seen: list[Tensor] = []
    kind, solver, shape = RUNS["safe Euler()"]
    generator = GENERATORS[kind]
    space = type(generator.path.space)
    original = space.brownian
    try:
        space.brownian = lambda self, x, draws: seen.append(original(self, x, draws)) or seen[-1]
        gm.sample(generator, (4, *shape), steps=5, seed=0, solver=solver)
    finally:
        space.brownian = original
    noise = torch.stack(seen).flatten(1)
    assert len(noise) == 5
    assert (torch.corrcoef(noise) - torch.eye(len(noise))).abs().max() < 0.95
    assert len(noise.unique()) == noise.numel()


def test_states_of_other_precision_get_the_same_noise() -> None:
    single, double = (draw("sde Exponential(order=2)", dtype=dtype) for dtype in (torch.float32, torch.float64))
    torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-4)


def test_conditions_follow_their_samples_into_batches_and_shards() -> None:
    class Labelled(nn.Module):
        def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
            return torch.tanh(x) * label[:, None]

    flow = gm.Flow(gm.predict.V(Labelled(), PATH))
    label = torch.arange(20.0)
    whole = gm.sample(flow, (20, 2), steps=4, seed=0, condition={"label": label})
    batches = gm.sample(flow, (20, 2), steps=4, seed=0, condition={"label": label}, batch_size=6)
    shard = gm.sample(flow, (8, 2), steps=4, seed=0, condition={"label": label[12:]}, first_index=12)
    assert torch.equal(batches, whole)
    assert torch.equal(shard, whole[12:])
    assert not torch.equal(gm.sample(flow, (20, 2), steps=4, seed=0, condition={"label": label.flip(0)}), whole)


def test_prompts_stay_and_follow_their_samples_into_batches() -> None:
    tokens = torch.full((9, 6), 5)
    tokens[:, :2] = torch.arange(18).reshape(9, 2) % 5
    fixed = tokens != 5
    whole = gm.sample(MASKED, tokens, steps=5, seed=0, fixed=fixed)
    assert torch.equal(whole[:, :2], tokens[:, :2])
    assert bool((whole < 5).all())
    assert torch.equal(gm.sample(MASKED, tokens, steps=5, seed=0, fixed=fixed, batch_size=2), whole)
    # On a uniform path a prompt would be resampled but for the mask of fixed positions.
    start = torch.zeros(9, 6, dtype=torch.int64)
    held = gm.sample(TOKENS, start, steps=5, seed=0, fixed=fixed)
    assert bool((held[:, :2] == 0).all())
    assert not bool((gm.sample(TOKENS, start, steps=5, seed=0)[:, :2] == 0).all())


@pytest.fixture(scope="module")
def compiled() -> dict[str, Any]:
    torch._dynamo.reset()
    return generators(lambda network: torch.compile(network, backend="aot_eager"))


@CASES
def test_compiled_networks_give_the_same_samples_to_rounding(name: str, compiled: dict[str, Any]) -> None:
    with torch._dynamo.config.patch(cache_size_limit=64):
        fast = draw(name, 6, generator=compiled[RUNS[name][0]])
    torch.testing.assert_close(fast, draw(name, 6), rtol=1e-4, atol=1e-5)


# Networks of half precision


class Clock(nn.Module):
    """A network in bfloat16 whose output is 1 everywhere, and which keeps what it was fed."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.ones((), dtype=torch.bfloat16))
        self.times: list[float] = []
        self.dtypes: set[torch.dtype] = set()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.times.append(t[0].item())
        self.dtypes |= {x.dtype, t.dtype}
        return self.level.expand_as(x)


def test_a_network_in_bfloat16_loses_no_point_of_a_long_grid() -> None:
    """Times are float64 on the host and float32 for the network; in bfloat16 a thousand steps have 507 times.

    States are float32 too: in bfloat16, whose numbers below 1 are 2**-8 apart, a step of 1/1000 near 1 would be lost.
    """
    steps = 1000
    network = Clock()
    flow = gm.Flow(gm.predict.Velocity(network, LINE))
    states = gm.sample(flow, torch.zeros(2, 1), steps=steps, seed=0, solver=Euler(), trajectory=True)
    grid = torch.arange(steps + 1, dtype=torch.float64) / steps
    assert network.dtypes == {torch.float32}
    assert network.times == grid[:-1].float().tolist()
    assert len(set(network.times)) == steps
    assert states.dtype == torch.float32
    torch.testing.assert_close(states[:, 0, 0].double(), grid, rtol=0, atol=2e-5)
    plan = Euler().plan(Field(flow, states[0]), grid)
    assert [step.instants[0].t for step in plan] == grid[:-1].tolist()
    torch.testing.assert_close(torch.tensor([step.h for step in plan], dtype=torch.float64), grid.diff())
    # The control: the grid, and a state that moves along it, in bfloat16.
    assert len(grid.bfloat16().unique()) < 0.6 * steps
    state = torch.zeros((), dtype=torch.bfloat16)
    for _ in range(steps):
        state += torch.tensor(1 / steps, dtype=torch.bfloat16)
    assert state < 0.6


@pytest.mark.parametrize("build", [gm.Flow, gm.Diffusion])
def test_the_numbers_of_a_plan_do_not_depend_on_the_precision_of_the_network(build: Callable) -> None:
    times, x = gm.grids.uniform(1000), torch.zeros(2, 1)
    plans: list[Any] = [
        Exponential().plan(Field(build(gm.predict.V(network, PATH)), x), times)
        for network in (Clock(), Clock().double())
    ]
    for half, double in zip(*plans, strict=True):
        assert (half.instant.t, half.a, half.b, half.std) == (double.instant.t, double.a, double.b, double.std)
    assert len({step.instant.t for step in plans[0]}) == 1000
