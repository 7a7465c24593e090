"""A prepared run: the samples of ``gm.sample``, one graph for each kind of step, and buffers that stay in place."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import genmatch as gm
from genmatch.solvers import DPMSolver, Euler, Exponential, Field, Heun, Sampler, Solver, captured
from genmatch.solvers.captured import StaticRun
from genmatch.solvers.compiled import CompiledStep, listen
from genmatch.solvers.handed import Handed, Listening
from genmatch.solvers.numbers import as_tensors, kinds_of

COSINE = gm.GaussianPath(gm.schedules.Cosine())
STEPS = 12


class Labelled(nn.Module):
    """A network with a label and, so that the mode shows, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.table, self.drop = nn.Linear(3, 2), nn.Embedding(4, 2), nn.Dropout(0.5)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        out = torch.tanh(self.layer(torch.cat([x, t[:, None]], 1)))
        return self.drop(out if label is None else out + self.table(label))


class Logits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 5)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.table(x) * (1 + t[:, None, None])


def noisy(kind: str = "Noise") -> gm.Generator:
    return gm.Diffusion(getattr(gm.predict, kind)(Labelled(), COSINE))


def tokens() -> gm.Generator:
    return gm.CTMC(gm.predict.Tokens(Logits(), gm.MixturePath(5, mask=5)))


# The same samples

RUNS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "flow": (lambda: gm.Flow(gm.predict.Velocity(Labelled(), gm.GaussianPath())), (7, 2), {}),
    "noise": (noisy, (7, 2), {"steps": 9}),
    "blind": (lambda: gm.Flow(gm.predict.Noise(Labelled(), COSINE)), (7, 2), {"steps": 9, "solver": DPMSolver(3)}),
    "times": (lambda: noisy("V"), (7, 2), {"times": [0.0, 0.2, 0.7, 1.0], "solver": Exponential(1)}),
    "double": (lambda: noisy().double(), (7, 2), {"steps": 5}),
    "adaptive": (
        lambda: gm.Flow(gm.predict.Velocity(Labelled(), gm.GaussianPath())),
        (7, 2),
        {"solver": gm.solvers.Dopri5()},
    ),
    "tokens": (tokens, (7, 3), {"steps": 6}),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_call_is_gm_sample_to_the_bit(name: str) -> None:
    make, shape, options = RUNS[name]
    generator = make()
    sampler = Sampler(generator, shape, **options)
    for seed, first in ((3, 0), (4, 0), (3, 5)):
        expected = gm.sample(generator, shape, seed=seed, first_index=first, **options)
        assert torch.equal(sampler(seed=seed, first_index=first), expected)
    assert not torch.equal(sampler(seed=3), sampler(seed=4))


def test_conditions_states_and_modes_are_read_at_each_call() -> None:
    generator = noisy()
    generator.train()
    sampler = Sampler(generator, (6, 2), steps=5)
    x = gm.Draws(9, 6).normal((6, 2))
    for label in (torch.zeros(6, dtype=torch.int64), torch.arange(6) % 4):
        got = sampler(seed=1, condition={"label": label})
        assert torch.equal(got, gm.sample(generator, (6, 2), steps=5, seed=1, condition={"label": label}))
    assert torch.equal(sampler(seed=1, x=x), gm.sample(generator, x, steps=5, seed=1))
    assert all(part.training for part in generator.modules())


def test_changed_weights_are_seen() -> None:
    generator = noisy()
    sampler = Sampler(generator, (6, 2), steps=5)
    before = sampler(seed=1)
    with torch.no_grad():
        generator.models[0].network.layer.weight.mul_(2.0)
    after = sampler(seed=1)
    assert not torch.equal(before, after)
    assert torch.equal(after, gm.sample(generator, (6, 2), steps=5, seed=1))


def test_the_plan_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    plan = Exponential.plan
    monkeypatch.setattr(Exponential, "plan", lambda *given: made.append(1) or plan(*given))
    sampler = Sampler(noisy(), (6, 2), steps=5)
    for seed in range(3):
        sampler(seed=seed)
    assert made == [1]


def test_an_example_of_states_and_runs_back() -> None:
    flow = gm.Flow(gm.predict.Velocity(Labelled(), gm.GaussianPath()))
    x = gm.Draws(9, 6).normal((6, 2))
    sampler = Sampler(flow, torch.zeros(6, 2), steps=5, start=1.0, stop=0.1, solver=Heun())
    assert torch.equal(sampler(x=x), gm.sample(flow, x, steps=5, start=1.0, stop=0.1, solver=Heun()))
    with pytest.raises(ValueError, match="was built from an example of its first states"):
        sampler(seed=0)


def test_it_tells_what_it_is() -> None:
    sampler = Sampler(noisy("V"), (6, 2), steps=5)
    assert repr(sampler) == "Sampler((6, 2), 5 steps from 0 to 1 by Exponential(order=2), on cpu)"
    assert sampler.times == gm.grids.uniform(5).tolist()
    assert isinstance(sampler.solver, Exponential)


# Wrong input


def test_wrong_input_raises_at_the_call() -> None:
    generator = noisy()
    with pytest.raises(TypeError, match=r"Sampler takes a generator such as gm.Flow\(model\), got Noise: a predictor"):
        Sampler(generator.models[0], (6, 2))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="compile must be True or False, got 'default'"):
        Sampler(generator, (6, 2), compile="default")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="steps"):
        Sampler(generator, (6, 2), steps=0)
    sampler = Sampler(generator, (6, 2), steps=3)
    with pytest.raises(
        ValueError, match=r"built for states x of shape \(6, 2\), got \(5, 2\): build one for each batch"
    ):
        sampler(x=torch.zeros(5, 2))
    with pytest.raises(TypeError, match=r"for states x of torch.float32, got torch.float64: convert them by \.to"):
        sampler(x=torch.zeros(6, 2, dtype=torch.float64))
    with pytest.raises(TypeError, match="x must be a tensor of states, got list"):
        sampler(x=[1.0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"has shape \(5,\) for 6 samples"):
        sampler(condition={"label": torch.zeros(5, dtype=torch.int64)})
    with pytest.raises(TypeError, match="unexpected keyword argument 'labels'"):
        sampler(condition={"labels": torch.zeros(6, dtype=torch.int64)})
    with pytest.raises(ValueError, match="non-finite"):
        sampler(x=torch.full((6, 2), float("nan")))


def test_a_network_that_moved_is_refused() -> None:
    generator = noisy()
    sampler = Sampler(generator, (6, 2), steps=3)
    generator.to("meta")
    with pytest.raises(ValueError, match="was on cpu when the sampler was built and is on meta now"):
        sampler(seed=0)


@pytest.mark.parametrize("solver", [gm.solvers.Dopri5(), gm.solvers.Thinning(), gm.solvers.FirstHitting()], ids=repr)
def test_runs_that_ask_the_host_are_not_compiled(solver: Solver) -> None:
    generator = tokens() if "rates" in solver.parts else gm.Flow(gm.predict.Velocity(Labelled(), gm.GaussianPath()))
    with pytest.raises(ValueError, match=f"{type(solver).__name__} asks the host after each step"):
        Sampler(generator, (6, 2), solver=solver, compile=True)


def test_every_solver_that_asks_the_host_says_so() -> None:
    def shipped(kind: type[Solver]) -> set[type[Solver]]:
        return {kind}.union(*(shipped(child) for child in kind.__subclasses__()))

    own = {kind.__name__ for kind in shipped(Solver) if kind.on_the_host and kind.__module__.startswith("genmatch.")}
    assert own == {"Dopri5", "TorchDiffEq", "FirstHitting", "Thinning", "JumpThinning"}


def test_numbers_that_mean_something_else_as_tensors_are_not_compiled() -> None:
    with pytest.raises(ValueError, match="they hold a MixtureInstant, whose numbers mean averages"):
        Sampler(tokens(), (6, 2), compile=True)
    inner = gm.predict.Noise(Labelled(), COSINE)
    moved = gm.Flow(gm.predict.Reschedule(inner, gm.GaussianPath(gm.schedules.VP())))
    with pytest.raises(ValueError, match="they hold a _Both"):
        Sampler(moved, (6, 2), compile=True)


def test_capture_needs_a_gpu() -> None:
    with pytest.raises(ValueError, match=r"capture=True makes a CUDA graph, and the states are on cpu"):
        Sampler(noisy(), (6, 2), capture=True)
    with pytest.raises(ValueError, match="a run is compiled or captured"):
        Sampler(noisy(), (6, 2), capture=True, compile=True)


# One graph for each kind of step


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """The graphs that are made, by a compiler that only traces."""
    torch._dynamo.reset()
    made: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _inputs: Any) -> Any:
        made.append(graph)
        return graph.forward

    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: compiler(function, backend=backend, **options))
    return made


def of(what: str) -> gm.Generator:
    model = gm.predict.Noise(Labelled(), COSINE)
    safe = gm.Diffusion(model, gm.diffusivity.EndpointSafe())
    return {
        "flow": gm.Flow(model),
        "noisy": gm.Diffusion(model),
        "safe": safe,
        "turning": (lambda t: 1 - t) * gm.Flow(model) + (lambda t: t) * safe,
    }[what]


COUNTS = [
    ("noisy", Exponential(2), 2),
    ("flow", Exponential(1), 1),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in (
            ("flow", Euler(), 1),
            ("flow", Exponential(2), 2),
            ("turning", Exponential(2), 2),
            ("turning", Heun(), 3),
            ("flow", Exponential(3), 3),
            ("flow", DPMSolver(3), 3),
            ("flow", gm.solvers.AdamsBashforth(4), 4),
            ("flow", gm.solvers.Churn(5.0), 2),
            ("safe", gm.solvers.SRI(), 1),
            ("turning", gm.solvers.SRI(), 1),
            ("flow", gm.solvers.UniPC(3), 5),
        )
    ),
]


@pytest.mark.parametrize(("what", "solver", "most"), COUNTS, ids=str)
def test_one_graph_for_each_kind_of_step(what: str, solver: Solver, most: int, graphs: list) -> None:
    generator = of(what)
    span = {"steps": STEPS, "start": 0.05, "solver": solver}
    x = gm.Draws(9, 6).normal((6, 2))
    sampler = Sampler(generator, x, compile=True, **span)
    for seed in (3, 4):
        expected = gm.sample(generator, x, seed=seed, **span)
        torch.testing.assert_close(sampler(seed=seed, x=x), expected, rtol=1e-4, atol=1e-4)
    assert 1 <= len(graphs) <= most
    other = torch.ones(6, dtype=torch.int64)
    sampler(seed=3, x=x, condition={"label": other})
    sampler(seed=3, x=x, condition={"label": other + 1})
    assert len(graphs) <= 2 * most  # the network does something else with a label; another label is no other graph


@pytest.mark.slow
def test_the_count_counts(graphs: list) -> None:
    """The control: without tensors for numbers each step of a mixture's chain would be compiled, or refused."""
    generator = tokens()
    x = torch.full((6, 2), 5)
    field = Field(generator, x)
    solver = Euler()
    plan = solver.plan(field, gm.grids.uniform(4))
    step = torch.compile(solver.step, fullgraph=True)
    for c, draws in zip(plan, gm.Draws(0, 6).steps(4), strict=True):
        step(field, x, c, draws, None)
    assert len(graphs) > 1


@pytest.mark.slow
def test_samplers_of_one_solver_do_not_use_up_each_others_graphs(graphs: list) -> None:
    """A compiler makes eight graphs of one code and then gives up."""
    for size in range(2, 12):
        Sampler(of("flow"), torch.zeros(size, 2), steps=2, solver=Euler(), compile=True, start=0.1)(
            x=torch.zeros(size, 2)
        )
    assert len(graphs) == 10


@pytest.mark.slow
@pytest.mark.parametrize(("what", "solver", "most"), [("flow", Euler(), 1), ("noisy", Exponential(2), 2)], ids=str)
def test_the_default_compiler_makes_no_more(what: str, solver: Solver, most: int) -> None:
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    generator, x = of(what), gm.Draws(9, 6).normal((6, 2))
    sampler = Sampler(generator, x, steps=STEPS, start=0.05, solver=solver, compile=True)
    expected = gm.sample(generator, x, steps=STEPS, start=0.05, solver=solver, seed=3)
    torch.testing.assert_close(sampler(seed=3, x=x), expected, rtol=1e-4, atol=1e-4)
    assert counters["stats"]["unique_graphs"] <= most


# Numbers of a plan as tensors


def test_kinds_differ_in_more_than_numbers() -> None:
    field = Field(of("flow"), torch.zeros(6, 2))
    plan = Exponential(2).plan(field, gm.grids.uniform(6, 0.1, 1.0))
    assert kinds_of(plan) == [0, 1, 1, 1, 1, 1]
    filled = as_tensors(plan, torch.device("cpu"))
    for step, own in zip(plan, filled, strict=True):
        assert own.a.dtype == torch.float64
        assert own.a.ndim == 0
        assert float(own.a) == step.a
        assert own.std == 0.0
        assert isinstance(own.std, float)  # none has noise: it stays out of the sum
        assert float(own.instant.models[0].alpha) == step.instant.models[0].alpha
        assert own.memory == step.memory


def test_a_term_of_weight_zero_is_left_out() -> None:
    field = Field(of("turning"), torch.zeros(6, 2))
    plan = Heun().plan(field, gm.grids.uniform(4, 0.0625, 1.0))
    filled = as_tensors(
        [plan[0]._replace(instants=(plan[0].instants[0]._replace(weights=(0.0, 1.0)),))], torch.device("cpu")
    )
    assert filled[0].instants[0].weights == (0.0, 1.0)


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="they hold a object, and a plan is made of numbers"):
        kinds_of([(1.0, object())])


# Random numbers made ahead


def test_what_is_handed_over_is_what_was_asked() -> None:
    asked: dict = {}
    draws = gm.Draws(5, 3, step=2)

    def ask(source: Any) -> list[Tensor]:
        own = source.fork(4)
        return [
            source.normal((3, 2)),
            own.normal((3, 2), torch.float64),
            own.fork(1).uniform((3,)),
            own.integers((3, 4), 7),
            source.at(9).bits((3, 1)),
        ]

    expected = ask(draws)
    heard = ask(Listening(draws, asked))
    given = ask(Handed.of(draws, asked))
    assert len(asked) == 5
    for a, b, c in zip(expected, heard, given, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    with pytest.raises(KeyError):
        Handed.of(draws, asked).normal((3, 5))


# A run of buffers


class Calls(TorchDispatchMode):
    """The operations of a run in order, with the shapes of what they return."""

    READS = ("aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::is_nonzero", "aten::equal")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        shapes = tuple(
            part.shape for part in (out if isinstance(out, (tuple, list)) else (out,)) if isinstance(part, Tensor)
        )
        self.seen.append((function.name(), shapes))
        return out

    @property
    def reads(self) -> list[str]:
        return [name for name, _ in self.seen if name in self.READS]


def static(
    what: str, solver: Solver, condition: dict[str, Tensor] | None = None
) -> tuple[StaticRun, gm.Generator, Tensor]:
    generator = of(what).eval()
    x = gm.Draws(9, 6).normal((6, 2))
    sampler = Sampler(generator, x, steps=STEPS, start=0.05, solver=solver)
    field, draws = Field(generator, x, condition), gm.Draws(0, 6)
    asks = listen(solver, sampler._run.plan, field, x, draws)
    return StaticRun(sampler._run, generator, 1.0, x, condition, draws, asks), generator, x


STATIC = [
    ("flow", Euler()),
    ("noisy", Exponential(2)),
    ("noisy", Exponential(1)),
    ("safe", gm.solvers.SRI()),
    ("turning", Heun()),
]


@torch.no_grad()
@pytest.mark.parametrize(("what", "solver"), STATIC, ids=str)
def test_a_run_is_a_pure_function_of_its_buffers(what: str, solver: Solver) -> None:
    label = torch.arange(6) % 4
    run, generator, x = static(what, solver, {"label": label})
    options = {"steps": STEPS, "start": 0.05, "solver": solver}
    before = {
        tensor.data_ptr()
        for tensor in (run.x, run.condition["label"], *(n for own in run.numbers for n in own.values()))
    }
    for seed, shift in ((3, 0), (8, 1)):
        condition = {"label": (label + shift) % 4}
        run.load(x + shift, condition, gm.Draws(seed, 6, first_index=shift))
        expected = gm.sample(generator, x + shift, seed=seed, first_index=shift, condition=condition, **options)
        for _ in range(2):  # a second replay without a load changes nothing
            assert torch.equal(run.body(), expected)
    after = {
        tensor.data_ptr()
        for tensor in (run.x, run.condition["label"], *(n for own in run.numbers for n in own.values()))
    }
    assert before == after


@torch.no_grad()
@pytest.mark.parametrize(("what", "solver"), STATIC, ids=str)
def test_its_operations_do_not_depend_on_the_data_and_read_nothing(what: str, solver: Solver) -> None:
    run, _, x = static(what, solver)
    seen = []
    for scale in (1.0, 100.0):
        run.load(scale * x, None, gm.Draws(int(scale), 6))
        with Calls() as calls:
            run.body()
        assert calls.reads == []
        seen.append(calls.seen)
    assert seen[0] == seen[1]
    # The control: making the numbers in the run would be seen, as it is made of other operations.
    with Calls() as calls:
        gm.Draws(0, 6).normal((6, 2))
    assert not any(name.startswith("aten::log") for name, _ in seen[0])
    assert any(name.startswith("aten::log") for name, _ in calls.seen)


def test_weights_that_were_replaced_are_noticed() -> None:
    generator = of("flow")
    before = captured.places(generator)
    with torch.no_grad():
        generator.models[0].network.layer.weight.mul_(2.0)
    generator.load_state_dict(copy.deepcopy(generator.state_dict()))
    assert captured.places(generator) == before
    generator.models[0].network.layer = nn.Linear(3, 2)
    assert captured.places(generator) != before


@pytest.mark.gpu
@pytest.mark.parametrize(("what", "solver"), STATIC, ids=str)
def test_a_captured_run_is_the_eager_one(what: str, solver: Solver) -> None:
    generator = of(what).cuda()
    label = torch.arange(64, device="cuda") % 4
    options: dict[str, Any] = {"steps": STEPS, "start": 0.05, "solver": solver}
    x = gm.Draws(9, 64, device="cuda").normal((64, 2))
    sampler = Sampler(generator, x, capture=True, **options)
    for seed in (3, 8):
        condition = {"label": (label + seed) % 4}
        expected = gm.sample(generator, x + seed, seed=seed, condition=condition, **options)
        torch.testing.assert_close(sampler(seed=seed, x=x + seed, condition=condition), expected, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        generator.models[0].network.layer.weight.mul_(2.0)
    condition = {"label": label}
    expected = gm.sample(generator, x, seed=1, condition=condition, **options)
    torch.testing.assert_close(sampler(seed=1, x=x, condition=condition), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"the run was captured with the condition \{label: torch.int64"):
        sampler(seed=1, x=x)
    with pytest.raises(ValueError, match="has no progress to show"):
        sampler(seed=1, x=x, condition=condition, progress=True)


@pytest.mark.gpu
@pytest.mark.parametrize("what", ["flow", "noisy"])
def test_a_compiled_run_on_a_gpu(what: str) -> None:
    generator = of(what).cuda()
    x = gm.Draws(9, 64, device="cuda").normal((64, 2))
    sampler = Sampler(generator, x, steps=STEPS, start=0.05, compile=True)
    for seed in (3, 8):
        expected = gm.sample(generator, x, steps=STEPS, start=0.05, seed=seed)
        torch.testing.assert_close(sampler(seed=seed, x=x), expected, rtol=1e-3, atol=1e-3)


def test_a_plan_nobody_has_listened_to_is_refused() -> None:
    field = Field(of("flow"), torch.zeros(6, 2))
    solver = Euler()
    step = CompiledStep(solver, solver.plan(field, gm.grids.uniform(3, 0.1, 0.9)), torch.device("cpu"))
    with pytest.raises(RuntimeError, match="nobody has listened"):
        _ = step.plan


@pytest.mark.gpu
def test_the_loop_costs_less_than_two_percent_of_a_unet() -> None:
    """Kernels' time on the device around the network, by the profiler: batch 64 at 32 x 32."""
    unet = gm.nn.UNet(3, width=128, multipliers=(1, 2, 2, 2)).cuda().eval()
    x, t = torch.randn(64, 3, 32, 32, device="cuda"), torch.full((64,), 0.5, device="cuda")
    sampler = Sampler(gm.Flow(gm.predict.Velocity(unet, gm.GaussianPath())), x, steps=10)

    def busy(run: Any) -> float:
        run()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            run()
            torch.cuda.synchronize()
        return sum(event.self_device_time_total for event in profile.key_averages())

    with torch.no_grad():
        alone = busy(lambda: [unet(x, t) for _ in range(10)])
        whole = busy(lambda: sampler(x=x))
    assert whole < 1.02 * alone
