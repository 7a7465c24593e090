"""A step compiles as one graph, reads nothing to the host, derives nothing, and stays on its device."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

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
    DormandPrince,
    DPMSolver,
    DPMSolverSingle,
    Euler,
    Exponential,
    Field,
    Heun,
    Midpoint,
    Ralston,
    Solver,
    UniPC,
)

STEPS = 12


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(self.layer(torch.cat([x, t[:, None]], 1)))


class Logits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 5)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.table(x) * (1 + t[:, None, None])


PATH = gm.GaussianPath(gm.schedules.Cosine())
DETERMINISTIC = [
    *(Euler(), Midpoint(), Ralston(), Heun(), BogackiShampine(), RK4(), DormandPrince()),
    *(AdamsBashforth(2), AdamsBashforth(3), AdamsBashforth(4)),
    *(Exponential(1), Exponential(2), Exponential(3), DDIM()),
]
PUBLISHED = [
    *(DPMSolver(2), DPMSolver(3), DPMSolver(3, start="lower"), DPMSolverSingle(2), DPMSolverSingle(3)),
    *(UniPC(2), UniPC(3), DEIS(2), DEIS(3), IPNDM(2), IPNDM(4)),
]
LONG_STARTS = {
    repr(solver)
    for solver in (
        *(AdamsBashforth(4), Exponential(3), DPMSolver(3), DPMSolver(3, start="lower"), UniPC(2), UniPC(3), DEIS(3)),
        IPNDM(4),
    )
}
# Steps that compile are tested beside what they move; these ask the host how far a sample is, and need not.
BESIDE = {"EndPoint", "Strang", "TwoEvent", "Confidence", "Remasking"}
ON_THE_HOST = {"Dopri5", "TorchDiffEq", "FirstHitting", "Thinning", "JumpThinning"}
KINDS = ["Velocity", "Data", "Noise", "Score", "V", "Karras"]


def model(kind: str) -> gm.Predictor:
    return getattr(gm.predict, kind)(Small(), PATH)


def build(name: str, kind: str = "Noise") -> gm.Generator:
    if name == "tokens":
        return gm.CTMC(gm.predict.Tokens(Logits(), gm.MixturePath(5, mask=5)))
    predictor = model(kind)
    safe = gm.Diffusion(predictor, gm.diffusivity.EndpointSafe())
    return {
        "flow": gm.Flow(predictor),
        "memoryless": gm.Diffusion(predictor),
        "safe": safe,
        "hybrid": 0.7 * gm.Flow(predictor) + 0.3 * safe,
    }[name]


CASES: dict[str, tuple[str, Solver]] = {
    **{f"flow-{solver!r}": ("flow", solver) for solver in [*DETERMINISTIC, DDIM(0.5), DDPM()]},
    **{f"memoryless-{solver!r}": ("memoryless", solver) for solver in (Exponential(1), Exponential(2))},
    **{f"safe-{solver!r}": ("safe", solver) for solver in (Euler(), Heun(), Exponential(2), SRA(), SRI())},
    **{f"flow-{solver!r}": ("flow", solver) for solver in (Churn(5.0), Churn(5.0, order=1))},
    **{f"flow-{solver!r}": ("flow", solver) for solver in PUBLISHED},
    **{f"hybrid-{solver!r}": ("hybrid", solver) for solver in (DPMSolver(2), DPMSolver(2, "noise"))},
    "hybrid-Heun()": ("hybrid", Heun()),
    "hybrid-Exponential(order=2)": ("hybrid", Exponential(2)),
    "tokens-Euler()": ("tokens", Euler()),
}
EVERY = pytest.mark.parametrize("name", CASES)


def states(name: str, device: str = "cpu") -> Tensor:
    if name == "tokens":
        return torch.full((8, 4), 5, device=device)
    return gm.Draws(1, 8).normal((8, 2)).to(device)


def march(step, solver: Solver, field: Field, plan, x: Tensor, device: str = "cpu") -> Tensor:
    carry = solver.start(field, x)
    with torch.no_grad():
        for c, draws in zip(plan, gm.Draws(0, len(x), device=device).steps(len(plan)), strict=True):
            x, carry = step(field, x, c, draws, carry)
    return x


def compiled(name: str, solver: Solver, generator: gm.Generator) -> tuple[Tensor, Tensor, int]:
    """End of a compiled run and of an eager one, and how many graphs were made."""
    torch._dynamo.reset()
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _inputs):
        graphs.append(graph)
        return graph.forward

    x = states(name)
    field = Field(generator, x)
    plan = solver.plan(field, gm.grids.uniform(STEPS, 0.05, 1.0))
    step = torch.compile(solver.step, fullgraph=True, backend=backend)
    return march(step, solver, field, plan, x), march(solver.step, solver, field, plan, x), len(graphs)


def shipped(kind: type[Solver] = Solver) -> set[str]:
    own = kind.__module__.startswith("genmatch.") and not kind.__abstractmethods__ and kind is not gm.solvers.RungeKutta
    return ({kind.__name__} if own else set()).union(*(shipped(child) for child in kind.__subclasses__()))


def test_every_solver_on_a_grid_is_here() -> None:
    assert shipped() - BESIDE - ON_THE_HOST == {type(solver).__name__ for _, solver in CASES.values()}


@EVERY
def test_a_step_compiles_as_one_graph_and_a_loop_over_the_plan_recompiles_little(name: str) -> None:
    """fullgraph=True: one graph or an error. Each entry of the plan has other numbers; they must not each cost one.

    What is allowed: numbers that turn out to vary (one), a first and a last step unlike the others (two), and for noise
    in a sum of stages one more, as for start-ups whose first steps are of two kinds.
    """
    what, solver = CASES[name]
    fast, slow, graphs = compiled(what, solver, build(what))
    torch.testing.assert_close(fast, slow)
    assert 1 <= graphs <= (6 if repr(solver) in LONG_STARTS else 4)


@pytest.mark.parametrize(
    ("kind", "solver"),
    [(kind, solver) for kind in KINDS for solver in (Heun(), Exponential(2))],
    ids=lambda value: value if isinstance(value, str) else repr(value),
)
def test_so_does_a_step_of_every_predictor(kind: str, solver: Solver) -> None:
    fast, slow, graphs = compiled("flow", solver, build("flow", kind))
    torch.testing.assert_close(fast, slow)
    assert 1 <= graphs <= 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "solver"),
    [
        ("memoryless", Exponential(2)),
        ("flow", Heun()),
    ],
    ids=str,
)
def test_the_default_compiler_agrees(what: str, solver: Solver) -> None:
    torch._dynamo.reset()
    x = states(what)
    field = Field(build(what), x)
    plan = solver.plan(field, gm.grids.uniform(STEPS, 0.05, 1.0))[:6]
    fast = march(torch.compile(solver.step, fullgraph=True), solver, field, plan, x)
    torch.testing.assert_close(fast, march(solver.step, solver, field, plan, x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_default_compiler_makes_the_numbers_of_draws() -> None:
    """A C++ compiler takes it that signed integers never overflow: products of 32-bit words must not."""
    torch._dynamo.reset()
    counter = [
        torch.tensor(row) for row in ([0, 1, 2**32 - 1, 7], [5, 2**31, 0, 3], [0, 3, 4, 2**32 - 1], [1, 1, 1, 9])
    ]
    fast = torch.compile(gm.random.philox, fullgraph=True)(counter, (0, 0))
    for words, expected in zip(fast, gm.random.philox(counter, (0, 0)), strict=True):
        assert torch.equal(words, expected)


class Reads(TorchDispatchMode):
    """Counts what moves a number from a tensor to Python, or a tensor to another device."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name()
        if name in ("aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::is_nonzero", "aten::equal"):
            self.reads.append(name)
        return function(*args, **(kwargs or {}))


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither lists of numbers, which no dispatcher sees, nor derivatives."""

    def refuse(*args, **kwargs):
        raise AssertionError("a step read a tensor to the host, or took a derivative")

    for method in ("tolist", "numpy", "item", "__bool__", "__float__", "__int__", "cpu"):
        monkeypatch.setattr(torch.Tensor, method, refuse)
    for transform in ("jvp", "vjp", "grad"):
        monkeypatch.setattr(torch.func, transform, refuse)


@EVERY
def test_no_step_reads_to_the_host_or_differentiates(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    what, solver = CASES[name]
    x = states(what)
    field = Field(build(what), x)
    plan = solver.plan(field, gm.grids.uniform(STEPS, 0.05, 1.0))
    with Reads() as seen:
        forbid(monkeypatch)
        march(solver.step, solver, field, plan, x)
        monkeypatch.undo()
    # On a CPU, where it makes nobody wait, tokens look which rows jump; elsewhere they do not, as on the meta device.
    allowed = {"aten::nonzero"} if what == "tokens" else set()
    assert set(seen.reads) <= allowed


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("solver", DETERMINISTIC, ids=repr)
@pytest.mark.parametrize("span", [(0.1, 0.9), (0.05, 1.0), (0.9, 0.1)], ids=str)
def test_the_plan_knows_all_numbers_of_every_predictor(kind, solver, span, monkeypatch: pytest.MonkeyPatch) -> None:
    x = states("flow")
    field = Field(build("flow", kind), x)
    plan = solver.plan(field, gm.grids.uniform(4, *span))
    forbid(monkeypatch)
    march(solver.step, solver, field, plan, x)


def test_the_counter_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The controls of the two tests above."""

    class Reader(Euler):
        def step(self, field, x, c, draws, carry):
            return (x if float(x.sum()) > 1e9 else x * 1.0), None

    field = Field(build("flow"), states("flow"))
    plan = Euler().plan(field, gm.grids.uniform(STEPS, 0.05, 1.0))
    with Reads() as seen:
        march(Reader().step, Reader(), field, plan, states("flow"))
    assert len(seen.reads) == STEPS
    forbid(monkeypatch)
    with pytest.raises(AssertionError, match="read a tensor"):
        march(Reader().step, Reader(), field, plan, states("flow"))


def test_a_whole_run_reads_once_at_its_end_and_each_step_under_check() -> None:
    def reads(**options) -> int:
        with Reads() as seen:
            gm.sample(flow, x, seed=0, solver=Heun(), **options)
        return len(seen.reads)

    flow, x = build("flow", "Velocity"), states("flow")
    reads(steps=5)  # the first run asks once where the schedule is finite
    short, long = reads(steps=5), reads(steps=50)
    assert short == long  # what is read is read before and after the loop
    assert reads(steps=50, check=True) == long - 1 + 50


@EVERY
def test_no_tensor_is_made_on_another_device(name: str) -> None:
    """On the meta device, where a kernel with one foot on the CPU raises."""
    what, solver = CASES[name]
    generator = build(what)
    plan = solver.plan(Field(generator, states(what)), gm.grids.uniform(STEPS, 0.05, 1.0))
    x = states(what, "meta")
    end = march(solver.step, solver, Field(generator.to("meta"), x), plan, x, device="meta")
    assert end.device.type == "meta"
    assert (end.shape, end.dtype) == (x.shape, x.dtype)


@pytest.mark.gpu
@EVERY
def test_a_gpu_agrees_and_no_step_waits_for_it(name: str) -> None:
    what, solver = CASES[name]
    generator = build(what)
    x = states(what)
    times = gm.grids.uniform(STEPS, 0.05, 1.0)
    plan = solver.plan(Field(generator, x), times)
    expected = march(solver.step, solver, Field(generator, x), plan, x)
    y = x.cuda()
    field = Field(generator.cuda(), y)
    torch.cuda.set_sync_debug_mode("error")
    try:
        end = march(solver.step, solver, field, plan, y, device="cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(end.cpu(), expected, rtol=1e-3, atol=1e-4)
