"""The torchdiffeq back end: accuracy, ends of time, cost, failures by name, and gradients by its adjoint."""

from __future__ import annotations

import gaussian_line as line
import pytest
import torch
from torch import Tensor, nn

import genmatch as gm
from genmatch.solvers import (
    RK4,
    Euler,
    Exponential,
    Field,
    Heun,
    Midpoint,
    Solver,
    TorchDiffEq,
    UnfinishedError,
    ending,
)

F64 = torch.float64
X = torch.linspace(-2, 2, 5, dtype=F64)[:, None]
SCHEDULES = [gm.schedules.CondOT(), gm.schedules.Cosine(), gm.schedules.VP(), gm.schedules.EDM()]
ADAPTIVE = ["dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun"]


class Seen(nn.Module):
    """Counts its calls and remembers the times."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.times = network, []

    def forward(self, x: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        self.times += t.unique().tolist()
        return self.network(x, t, **condition)


def flow_of(schedule: gm.Schedule, kind: str) -> gm.Flow:
    network = Seen(line.Exact(kind, schedule))
    return gm.Flow(line.KINDS[kind](network, gm.GaussianPath(schedule), time=gm.predict.clocks.t))


def error(flow: gm.Flow, schedule: gm.Schedule, solver: TorchDiffEq, start: float, stop: float) -> float:
    """In units of the spread at the end."""
    x = X * line.spread(schedule, start) ** 0.5
    end = gm.sample(flow, x, solver=solver, start=start, stop=stop)
    truth = line.flow_map(schedule, x, start, stop)
    return (end - truth).abs().max().item() / max(1.0, line.spread(schedule, stop) ** 0.5)


# Accuracy.


@pytest.mark.parametrize("span", [(0.0, 1.0), (1.0, 0.0), (0.2, 0.9), (0.9, 0.2)], ids=str)
@pytest.mark.parametrize("kind", ["velocity", "data", "noise"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_the_flow_map_is_met_to_the_tolerance_wherever_it_starts_and_ends(schedule, kind: str, span) -> None:
    """Also where the network's velocity is not finite: at the data, and at pure noise."""
    if kind == "velocity" and 1.0 in span and isinstance(schedule, gm.schedules.VP):
        kind = "v"  # the velocity's derivative is infinite, and so are its values at the start
    flow = flow_of(schedule, kind)
    assert error(flow, schedule, TorchDiffEq(), *span) < 2e-4
    low, high = sorted(span)
    assert min(flow.model.network.times) >= low
    assert max(flow.model.network.times) <= high


def test_a_cut_too_far_from_the_end_would_miss_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: the exponential step from a noise level a hundred times that of the cut."""
    flow, solver = flow_of(SCHEDULES[1], "data"), TorchDiffEq(rtol=1e-6, atol=1e-6)
    assert error(flow, SCHEDULES[1], solver, 0.0, 1.0) < 1.5e-5
    monkeypatch.setattr(ending, "MARGIN", 0.04)
    assert error(flow, SCHEDULES[1], solver, 0.0, 1.0) > 1e-3


def test_the_cut_is_where_the_docstring_says() -> None:
    flow = flow_of(gm.schedules.CondOT(), "data")
    gm.sample(flow, X, solver=TorchDiffEq(rtol=5e-5, atol=5e-5))
    cut = max(flow.model.network.times)
    assert (1 - cut) / cut == pytest.approx(0.01 / 4, rel=1e-6)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_every_adaptive_method_follows_its_tolerance(method: str) -> None:
    flow, schedule = flow_of(gm.schedules.Cosine(), "data"), gm.schedules.Cosine()
    coarse, fine = (error(flow, schedule, TorchDiffEq(method, rtol=t, atol=t), 0.0, 1.0) for t in (1e-3, 1e-5))
    assert fine < 5e-3
    assert fine < coarse / 8  # a second-order estimate of a first-order step: the error goes as its root at least


FIXED = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4, "implicit_adams": 4}


@pytest.mark.parametrize("method", FIXED)
def test_fixed_methods_have_their_order(method: str) -> None:
    """TorchDiffEq's claim, on a grid of asked times."""
    schedule, solver = gm.schedules.Cosine(), TorchDiffEq(method)
    flow = gm.Flow(line.predictor(schedule, "velocity"))
    steps = (10, 20, 40)
    assert solver.order == FIXED[method]
    if method == "implicit_adams":  # a run is one span, as the history is torchdiffeq's
        runs = [TorchDiffEq(method, rtol=1e-9, atol=1e-9, options={"step_size": 1 / n, "max_iters": 20}) for n in steps]
        ends = [gm.sample(flow, X, solver=run) for run in runs]
    else:
        ends = [gm.sample(flow, X, solver=solver, steps=n) for n in steps]
    errors = [(end - line.flow_map(schedule, X, 0.0, 1.0)).abs().max().item() for end in ends]
    assert line.order(steps, errors) > FIXED[method] - 0.35


@pytest.mark.parametrize(("name", "ours"), [("euler", Euler()), ("midpoint", Midpoint()), ("heun2", Heun())])
@pytest.mark.parametrize("span", [(0.1, 0.9), (0.9, 0.1)], ids=str)
def test_fixed_methods_are_ours(name: str, ours, span: tuple[float, float]) -> None:
    flow = gm.Flow(line.predictor(gm.schedules.VP(), "noise"))
    known = {"start": span[0], "stop": span[1]}
    whole = gm.sample(flow, X, solver=TorchDiffEq(name, options={"step_size": 0.1}), **known)
    steps = gm.sample(flow, X, solver=TorchDiffEq(name), steps=8, **known)
    torch.testing.assert_close(steps, gm.sample(flow, X, solver=ours, steps=8, **known), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(whole, steps, rtol=1e-9, atol=1e-9)
    assert TorchDiffEq(name).default_steps == 50
    assert TorchDiffEq(name, options={"step_size": 0.1}).default_steps == TorchDiffEq().default_steps == 1


def test_states_at_asked_times_also_in_the_layers_at_the_ends() -> None:
    schedule, solver = gm.schedules.CondOT(), TorchDiffEq(rtol=1e-6, atol=1e-6)
    near = 1e-5
    for kind in ("data", "noise"):
        flow = flow_of(schedule, kind)
        for times in (
            [0.0, near, 0.5, 1 - near, 1.0],
            [1.0, 1 - near, 1 - 2 * near, 0.5, near, 0.0],
            [0.5, 1 - near, 1.0],
        ):
            x = X * line.spread(schedule, times[0]) ** 0.5
            states = gm.sample(flow, x, times=times, solver=solver, trajectory=True)
            for t, state in zip(times, states, strict=True):
                truth = line.flow_map(schedule, x, times[0], t)
                torch.testing.assert_close(state, truth, rtol=2e-5, atol=2e-5)


def test_float32_states_and_a_network_of_half_precision() -> None:
    schedule = gm.schedules.CondOT()
    flow = flow_of(schedule, "data")
    x = gm.sample(flow, X.float(), solver=TorchDiffEq())
    assert x.dtype == torch.float32
    torch.testing.assert_close(x.double(), line.flow_map(schedule, X, 0.0, 1.0), rtol=1e-4, atol=1e-4)
    narrow = gm.Flow(gm.predict.Velocity(Small().bfloat16(), gm.GaussianPath()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = gm.sample(narrow, (4, 2), solver=TorchDiffEq(rtol=0.1, atol=0.1), seed=0)
    assert x.dtype == torch.float32


def test_a_reversed_flow_and_a_lifted_state() -> None:
    flow = gm.Flow(line.predictor(gm.schedules.Cosine(), "velocity"))
    solver = TorchDiffEq(rtol=1e-8, atol=1e-8)
    back = gm.sample(gm.Reverse(flow), X, start=0.9, stop=0.1, solver=solver)
    torch.testing.assert_close(back, line.flow_map(gm.schedules.Cosine(), X, 0.9, 0.1), rtol=1e-6, atol=1e-6)

    def clock(triplet, state, instant):
        own = triplet(state[:, :1], instant).drift
        return gm.Triplet(drift=torch.cat([own, 2 * torch.ones_like(own) * instant.t], 1))

    times = torch.tensor([0.1, 0.9], dtype=F64)
    field = Field(flow, X, lift=clock)
    (leg,) = solver.plan(field, times)
    state = torch.cat([X, torch.zeros_like(X)], 1)
    end, _ = solver.step(field, state, leg, gm.Draws(0, 5), solver.start(field, state))
    torch.testing.assert_close(end[:, :1], line.flow_map(gm.schedules.Cosine(), X, 0.1, 0.9), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(end[:, 1:], torch.full_like(X, 0.8), rtol=1e-6, atol=1e-6)  # 0.81 - 0.01


def test_a_lifted_state_does_not_end_where_the_field_is_infinite() -> None:
    field = Field(gm.Flow(line.predictor(gm.schedules.Cosine(), "data")), X, lift=lambda triplet, x, i: triplet(x, i))
    with pytest.raises(ValueError, match="the field is not finite at t = 1, and a state that carries more"):
        TorchDiffEq().plan(field, torch.tensor([0.0, 1.0], dtype=F64))


# What it costs.


@pytest.mark.parametrize("kind", ["velocity", "data", "noise"])
@pytest.mark.parametrize("method", ["dopri5", "bosh3", "rk4", "implicit_adams"])
def test_the_report_counts_the_calls(method: str, kind: str) -> None:
    flow = flow_of(gm.schedules.Cosine(), kind)
    _, report = gm.sample(flow, (4, 1), solver=TorchDiffEq(method), seed=0, report=True, dtype=F64)
    assert report.evaluations.tolist() == [len(flow.model.network.times)] * 4
    assert report.status.tolist() == [0] * 4
    assert report.accepted[0] > 1
    if method == "dopri5":
        ends = {"velocity": 0, "data": 1, "noise": 1}[kind]  # exponential steps
        inner = report.accepted + report.rejected - ends
        assert torch.equal(report.evaluations, 2 + 6 * inner + ends)
    with pytest.raises(ValueError, match="known after a run alone"):
        TorchDiffEq().evaluations([])


def test_lower_tolerances_cost_more_and_err_less() -> None:
    schedule = gm.schedules.VP()
    spent, errors = [], []
    for tolerance in (1e-3, 1e-5, 1e-7):
        flow = flow_of(schedule, "data")
        errors.append(error(flow, schedule, TorchDiffEq(rtol=tolerance, atol=tolerance), 0.0, 1.0))
        spent.append(len(flow.model.network.times))
    assert spent == sorted(spent)
    assert errors[0] > 10 * errors[1] > 100 * errors[2]


# Failures.


class Explodes(nn.Module):
    """x' = x^2: infinite at t = 1 / x(0)."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x**2


class Nothing(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x * float("nan")


def test_runs_that_do_not_end_are_named() -> None:
    explodes = gm.Flow(gm.predict.Velocity(Explodes(), gm.GaussianPath()))
    x = torch.full((3, 1), 2.0, dtype=F64)
    with pytest.raises(UnfinishedError, match=r"torchdiffeq stopped at t = 0\.(5|499)\d*: the step became too small"):
        gm.sample(explodes, x, solver=TorchDiffEq())
    with pytest.raises(UnfinishedError, match=r"the most steps allowed, options=\{'max_num_steps': ...\}"):
        gm.sample(explodes, x, solver=TorchDiffEq(options={"max_num_steps": 3}))
    nothing = gm.Flow(gm.predict.Velocity(Nothing(), gm.GaussianPath()))
    with pytest.raises(UnfinishedError, match="torchdiffeq stopped at t = "):
        gm.sample(nothing, x, solver=TorchDiffEq())


def test_samples_that_are_not_finite_are_told_from_the_others() -> None:
    """A fixed-step method does not look."""
    explodes = gm.Flow(gm.predict.Velocity(Explodes(), gm.GaussianPath()))
    x = torch.tensor([[0.5], [1e200]], dtype=F64)
    end, report = gm.sample(explodes, x, solver=TorchDiffEq("euler"), steps=20, report=True)
    assert report.status.tolist() == [0, 3]
    assert end[0].isfinite().all()
    with pytest.raises(UnfinishedError, match="1 of 2: the field is not finite"):
        gm.sample(explodes, x, solver=TorchDiffEq("euler"), steps=20)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "dopri6"}, r"method must be one of dopri5, .*, implicit_adams, got 'dopri6'"),
        ({"rtol": 0.0}, "rtol must be"),
        ({"atol": -1.0}, "atol must be"),
        ({"options": {"maximal_steps": 3}}, "torchdiffeq's dopri5 does not take these options: .*maximal_steps"),
        ({"method": "rk4", "options": {"first_step": 0.1}}, "torchdiffeq's rk4 does not take these options"),
        ({"options": {"step_t": torch.ones(1)}}, r"give times to gm\.sample\(..., times=...\) and not in options"),
    ],
)
def test_wrong_arguments_are_refused_at_once(arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TorchDiffEq(**arguments)


class Table(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.zeros(*x.shape, 5)


class Still(nn.Module):
    def forward(self, x, t):
        return {"a": x["a"]} if isinstance(x, dict) else torch.zeros_like(x)


def test_noise_and_jumps_and_other_spaces_are_refused() -> None:
    diffusion = gm.Diffusion(gm.predict.Velocity(Small(), gm.GaussianPath()))
    with pytest.raises(ValueError, match=r"TorchDiffEq cannot move variance: it handles drift\. Use gm\.solvers\.Exp"):
        gm.sample(diffusion, torch.zeros(3, 2), start=0.1, solver=TorchDiffEq())
    tokens = gm.CTMC(gm.predict.Tokens(Table(), gm.MixturePath(5)))
    with pytest.raises(ValueError, match=r"in R\^d alone and not on Tokens"):
        gm.sample(tokens, (3, 4), solver=TorchDiffEq())
    sphere = gm.Flow(gm.predict.TangentVelocity(Still(), gm.GeodesicPath(gm.spaces.Sphere(3))))
    with pytest.raises(ValueError, match=r"in R\^d alone and not on Sphere"):
        gm.sample(sphere, (3, 3), solver=TorchDiffEq())
    path = gm.ProductPath({"a": gm.GaussianPath()})
    product = gm.Product(gm.predict.Product(Still(), {"a": gm.predict.Velocity}, path), {"a": gm.Flow})
    with pytest.raises(ValueError, match="TorchDiffEq is for one space, not for a product"):
        gm.sample(product, {"a": (3, 1)}, solver=TorchDiffEq())


def test_a_field_that_no_exponential_step_follows_does_not_end_where_it_is_infinite() -> None:
    flow = gm.Flow(line.predictor(gm.schedules.Cosine(), "data"))
    with pytest.raises(ValueError, match=r"not finite at t = 1, an end .* run back in time: keep .* 0\.999"):
        ending.before_the_end(Field(gm.Reverse(flow), X, speed=-1.0), torch.tensor([0.5, 1.0], dtype=F64), 1e-5)


# Gradients.


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        shift = condition.get("shift", torch.zeros_like(x))
        return self.last(torch.tanh(self.first(torch.cat([x + shift, t[:, None]], 1))))


class Near(nn.Module):
    """An exact network and a learned part: a flow that neither contracts nor expands by much."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.exact, self.learned = line.Exact(kind, gm.schedules.Cosine()), Small().double()

    def forward(self, x: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        vanishing = 0.5 * (1 - t)[:, None]  # a denoiser that errs at the data has no flow there
        return self.exact(x, t) + vanishing * self.learned(x, t, **condition)


def gradients(solver: Solver, kind: str, span: tuple[float, float], steps: int = 1) -> list[Tensor]:
    """Of the states, the condition and every parameter."""
    network = Near(kind)
    flow = gm.Flow(line.KINDS[kind](network, gm.GaussianPath(gm.schedules.Cosine()), time=gm.predict.clocks.t))
    x = gm.Draws(1, 3).normal((3, 2), F64).requires_grad_()
    shift = gm.Draws(2, 3).normal((3, 2), F64).requires_grad_()
    known = {"start": span[0], "stop": span[1], "condition": {"shift": shift}, "grad": True}
    end = gm.sample(flow, x, solver=solver, steps=steps, **known)
    (end**2).sum().backward()
    return [x.grad, shift.grad, *(p.grad for p in network.parameters())]


@pytest.mark.parametrize(
    ("kind", "span"), [("velocity", (0.0, 1.0)), ("data", (0.0, 1.0)), ("data", (1.0, 0.0))], ids=str
)
def test_gradients_by_the_adjoint_and_by_the_steps_are_the_flows(kind: str, span: tuple[float, float]) -> None:
    """Also through the steps at the ends; the reference is another solver's on a fine grid."""
    finely = {
        ("velocity", 0.0): RK4(),
        ("data", 0.0): Exponential(3),
        ("data", 1.0): TorchDiffEq("dopri8", rtol=1e-8, atol=1e-8),
    }
    reference = gradients(finely[kind, span[0]], kind, span, steps=1 if span[0] else 200)
    for adjoint in (True, False):
        found = gradients(TorchDiffEq(rtol=1e-6, atol=1e-6, adjoint=adjoint), kind, span)
        for ours, theirs in zip(found, reference, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-4)
            assert theirs.abs().max() > 0.01


def saved(solver: TorchDiffEq) -> int:
    """Numbers that a run keeps for its backward pass."""
    flow = gm.Flow(gm.predict.Velocity(Small().double(), gm.GaussianPath()))
    x = gm.Draws(1, 6).normal((6, 2), F64).requires_grad_()
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        gm.sample(flow, x, solver=solver, grad=True)
    return sum(kept)


def test_the_adjoint_keeps_as_much_however_many_steps_there_are() -> None:
    def of(adjoint: bool) -> list[int]:
        return [saved(TorchDiffEq("rk4", adjoint=adjoint, options={"step_size": 1 / n})) for n in (5, 20, 80)]

    few, some, many = of(adjoint=True)
    assert few == some == many
    few, some, many = of(adjoint=False)
    assert many > 3.5 * some > 10 * few


def test_without_gradients_the_adjoint_is_the_solver() -> None:
    flow = gm.Flow(gm.predict.Velocity(Small().double(), gm.GaussianPath()))
    x = gm.Draws(1, 6).normal((6, 2), F64)
    ends = [gm.sample(flow, x, solver=TorchDiffEq(adjoint=adjoint)) for adjoint in (False, True)]
    assert torch.equal(*ends)
    assert not ends[1].requires_grad
