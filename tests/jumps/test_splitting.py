"""Jump steps of order 2, and Strang splitting: orders measured, and the laws of sums of flow, noise and jumps."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from jump_worlds import PLACES, Hopping, Known, exact_jump, exact_law, rate_table
from torch import Tensor, nn

import genmatch as gm
from genmatch.generators import Flow, Jump, Langevin
from genmatch.rates import Atoms, Rates, Term
from genmatch.solvers import Euler, Heun, Midpoint, Strang, TwoEvent
from genmatch.triplet import Triplet

F64 = torch.float64


def two_event_matrix(t: float, h: float) -> Tensor:
    """Transition probabilities of a step, integrated over the time of the first jump by hand."""
    table = rate_table(t + h / 2)
    total = table.sum(1)
    leave = torch.zeros(3, 3, dtype=F64)
    for i in range(3):
        for j in range(3):
            if i == j:
                leave[i, i] += torch.exp(-h * total[i])
                continue
            gap = total[j] - total[i]
            stays = table[i, j] * (torch.exp(-h * total[i]) - torch.exp(-h * total[j])) / gap  # at j until the end
            gone = table[i, j] * (1 - torch.exp(-h * total[i])) / total[i] - stays
            leave[i, j] += stays
            for k in range(3):
                leave[i, k] += gone * table[j, k] / total[j]
    return leave


def leap_matrix(t: float, h: float) -> Tensor:
    """Transition probabilities of a leap with the rates at its start."""
    table = rate_table(t)
    total = table.sum(1, keepdim=True)
    return torch.diag(torch.exp(-h * total[:, 0])) - torch.expm1(-h * total) * table / total


def slopes(errors: list[float]) -> list[float]:
    return [math.log2(a / b) for a, b in itertools.pairwise(errors)]


def error_of(matrix, steps: int, stop: float = 0.8) -> float:
    p, h = torch.eye(3, dtype=F64)[0], stop / steps
    for i in range(steps):
        p = p @ matrix(i * h, h)
    return (p - exact_law(0, stop)).abs().max().item()


def test_two_events_are_of_order_two_and_a_leap_of_order_one():
    two = slopes([error_of(two_event_matrix, steps) for steps in (16, 32, 64, 128)])
    one = slopes([error_of(leap_matrix, steps) for steps in (16, 32, 64, 128)])
    assert min(two) > 1.85
    assert max(one) < 1.15


@pytest.mark.parametrize(
    ("solver", "matrix"), [(TwoEvent(), two_event_matrix), (Euler(), leap_matrix)], ids=["two", "leap"]
)
def test_a_step_has_the_transition_probabilities_whose_order_is_measured(solver, matrix):
    count, t, h = 200_000, 0.1, 0.5
    other = leap_matrix if matrix is two_event_matrix else two_event_matrix
    for start in range(3):
        x = PLACES[start].expand(count, 1).contiguous()
        end = gm.sample(Hopping(Known()), x, times=[t, t + h], solver=solver, seed=start)
        found = torch.bincount(torch.cdist(end, PLACES).argmin(1), minlength=3).double() / count
        assert (found - matrix(t, h)[start]).abs().max() < 4 * math.sqrt(0.25 / count)
        assert (found - other(t, h)[start]).abs().max() > 8 * math.sqrt(0.25 / count)


def test_two_events_of_many_positions():
    # Positions that jump to a bin beside them at a rate that the first one sets: the first jump is seen.
    class Led(gm.Generator):
        additive = False

        def triplet(self, x: Tensor, t, prediction) -> Triplet:
            rate = torch.where(x[:, :1] > 0, 3.0, 0.5).expand_as(x)
            logits = x.new_zeros(*x.shape, 1)
            return Triplet(rates=Rates(Term(rate, gm.rates.Bins(logits, torch.tensor([1.0, 2.0])))))

    count, h = 100_000, 0.4
    x = torch.full((count, 4), -1.0)
    # P(a follower has jumped by h): the leader stays, or jumps at s.
    s = torch.linspace(0, h, 20_001, dtype=F64)
    after = 0.5 * torch.exp(-0.5 * s) * (1 - torch.exp(-0.5 * s) * torch.exp(-3.0 * (h - s)))
    exact = torch.trapezoid(after, s).item() + math.exp(-0.5 * h) * (1 - math.exp(-0.5 * h))
    error = 4 * 0.5 / math.sqrt(3 * count) + 0.002
    found = {}
    for solver in (TwoEvent(), Euler()):
        y = gm.sample(Led(Known()), x, times=[0.1, 0.1 + h], solver=solver, seed=0)
        found[type(solver)] = (y[:, 1:] > 0).double().mean().item()
        assert bool(((y == -1) | (y >= 1)).all())
    assert found[Euler] == pytest.approx(1 - math.exp(-0.5 * h), abs=error)
    assert abs(found[Euler] - exact) > 0.025
    assert abs(found[TwoEvent] - exact) < 0.35 * abs(found[Euler] - exact)


# Flow, noise and jumps


class Everything(gm.Generator):
    """A linear drift, constant noise, and jumps whose rate grows: its moments are closed."""

    additive = True

    def __init__(self, model, variance: float = 0.0) -> None:
        super().__init__(model)
        self.variance = variance

    @staticmethod
    def rate(t: float) -> float:
        return 1.5 + 2 * t

    def triplet(self, x: Tensor, t, prediction) -> Triplet:
        rates = Rates(
            Term(x.new_full((len(x), 1), self.rate(float(t))), Atoms(x.new_tensor([[2.0]]), x.new_zeros(1, 1)))
        )
        return Triplet(-2.0 * x + 1, self.variance or None, rates)


def moments(variance: float, stop: float) -> Tensor:
    """Mean and second moment of the process from 0, by the moment equations."""
    m, steps = torch.zeros(2, dtype=F64), 4000
    h = stop / steps

    def slope(m: Tensor, t: float) -> Tensor:
        rate = Everything.rate(t)
        return torch.stack([1 - 2 * m[0] + rate * (2 - m[0]), 2 * (m[0] - 2 * m[1]) + variance + rate * (4 - m[1])])

    for i in range(steps):
        t = i * h
        a = slope(m, t)
        b = slope(m + h / 2 * a, t + h / 2)
        m = m + h * b
    return m


def strang_moments(variance: float, stop: float, steps: int, split: str = "strang") -> Tensor:
    """The same of a splitting: Heun's map of a linear drift, and the jump's, in closed form."""
    m, h = torch.zeros(2, dtype=F64), stop / steps

    def smooth(m: Tensor, h: float) -> Tensor:
        # x' = x g + c + noise, from Heun's two stages with one increment of variance s h.
        g = 1 - 2 * h + 2 * h * h
        c = h - h * h
        spread = variance * h * (1 - h) ** 2
        return torch.stack([g * m[0] + c, g * g * m[1] + 2 * g * c * m[0] + c * c + spread])

    def jump(m: Tensor, t: float, h: float) -> Tensor:
        stays = math.exp(-h * Everything.rate(t + h / 2))
        return torch.stack([stays * m[0] + (1 - stays) * 2, stays * m[1] + (1 - stays) * 4])

    for i in range(steps):
        if split == "strang":
            m = smooth(jump(smooth(m, h / 2), i * h, h), h / 2)
        else:
            m = jump(smooth(m, h), i * h, h)
    return m


@pytest.mark.parametrize("variance", [0.0, 0.6])
def test_strang_is_of_order_two_and_lie_of_order_one(variance: float):
    truth = moments(variance, 0.9)
    for split, low, high in (("strang", 1.8, 2.3), ("lie", 0.8, 1.3)):
        errors = [(strang_moments(variance, 0.9, n, split) - truth).abs() for n in (16, 32, 64, 128)]
        for k in range(2):
            found = slopes([error[k].item() for error in errors])
            assert all(low < slope < high for slope in found), (split, k, found)


@pytest.mark.parametrize("variance", [0.0, 0.6])
def test_the_solver_does_what_was_measured(variance: float):
    count, steps, stop = 200_000, 2, 0.9
    x = torch.zeros(count, 1)
    generator = Everything(Known(), variance)
    end = gm.sample(generator, x, steps=steps, stop=stop, solver=Strang(), seed=0).double()
    found = torch.stack([end.mean(), end.square().mean()])
    expected, lie = strang_moments(variance, stop, steps), strang_moments(variance, stop, steps, "lie")
    error = torch.tensor([end.std(), end.square().std()], dtype=F64) / math.sqrt(count)
    assert bool(((found - expected).abs() < 4 * error).all())
    assert (found - lie).abs().max() > 8 * error.max()


@pytest.mark.slow
def test_strang_beats_euler_on_a_path():
    # The law of x^2 at t = 0.8, from exact rates and the exact velocity, at 6 steps of each.
    atoms, weights = torch.tensor([[-0.8], [0.6]]), torch.tensor([0.4, 0.6])
    jump = Jump(exact_jump(atoms, weights, torch.linspace(-1.7, 1.7, 103)))
    flow = Flow(gm.worlds.GaussianMixture(atoms, 0.0, weights).predictor(gm.GaussianPath()))
    both = 0.5 * flow + 0.5 * jump
    stop, count = 0.8, 60_000
    truth = stop**2 * (weights * atoms[:, 0] ** 2).sum().item() + (1 - stop) ** 2
    error = {}
    for solver in (Euler(), Strang()):
        x = gm.sample(both, (count, 1), steps=6, stop=stop, solver=solver, seed=0).double()
        error[type(solver)] = abs(x.square().mean().item() - truth)
    assert error[Strang] < 0.35 * error[Euler]


def test_two_networks_on_one_path_make_one_generator():
    # Trained apart, a velocity and rates; both exact here. The sum has the marginals of the path.
    atoms, weights = torch.tensor([[-0.8], [0.6]]), torch.tensor([0.4, 0.6])
    path, stop, count = gm.GaussianPath(), 0.7, 5000
    jump = Jump(exact_jump(atoms, weights, torch.linspace(-1.7, 1.7, 69)))
    exact = gm.worlds.GaussianMixture(atoms, 0.0, weights).predictor(path)

    class Field(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return exact(x, t).velocity

    flow = Flow(gm.predict.Velocity(Field(), path))
    noise = Langevin(exact, gm.diffusivity.Constant(0.3))
    truth = torch.tensor([stop * 0.04, stop**2 * (0.4 * 0.64 + 0.6 * 0.36) + (1 - stop) ** 2], dtype=F64)
    sums = {
        "flow + jump": 0.3 * flow + 0.7 * jump,
        "flow + noise + jump": 0.5 * flow + 0.5 * jump + 0.5 * noise,
        "weights in time": (lambda t: 1 - t) * flow + (lambda t: t) * jump,
    }
    for name, both in sums.items():
        for solver, steps in ((Euler(), 40), (Strang(), 10)):
            x = gm.sample(both, (count, 1), steps=steps, stop=stop, solver=solver, seed=0).double()
            found = torch.stack([x.mean(), x.square().mean()])
            error = 4 * torch.tensor([x.std(), x.square().std()], dtype=F64) / math.sqrt(count) + 0.006
            assert bool(((found - truth).abs() < error).all()), (name, solver, found, truth)
    # To the data: the flow ends the run, also where a velocity is finite at t = 1.
    for solver in (Euler(), Strang()):
        x = gm.sample(sums["flow + jump"], (1000, 1), steps=30, solver=solver, seed=0)
        assert (x - atoms.T).abs().amin(1).quantile(0.9) < 0.02


def test_networks_that_a_part_does_not_read_do_not_run():
    calls = {"flow": 0, "jump": 0}

    class Counted(nn.Module):
        def __init__(self, name: str, outputs: int) -> None:
            super().__init__()
            self.name, self.outputs = name, outputs

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            calls[self.name] += 1
            return x.new_zeros(*x.shape, self.outputs) if self.outputs > 1 else x.new_zeros(x.shape)

    path = gm.GaussianPath()
    flow = Flow(gm.predict.Velocity(Counted("flow", 1), path))
    jump = Jump(gm.predict.Rates(Counted("jump", 35), path, torch.linspace(-1.7, 1.7, 35)))
    gm.sample(0.5 * flow + 0.5 * jump, (2, 1), steps=3, stop=0.9, solver=Strang(), seed=0)
    assert calls == {"flow": 12, "jump": 6}


def test_the_solvers_count_their_evaluations():
    path = gm.GaussianPath()
    edges = torch.linspace(-1.7, 1.7, 35)
    jump = Jump(exact_jump(torch.tensor([[0.5]]), torch.ones(1), edges, path))
    field = gm.solvers.Field(jump, torch.zeros(1, 1))
    solver = TwoEvent()
    assert solver.evaluations(solver.plan(field, gm.grids.uniform(4, 0.0, 0.9))) == 8
    assert solver.evaluations(solver.plan(field, gm.grids.uniform(4))) == 7  # the last one is a leap
    strang = Strang(Midpoint())
    assert strang.evaluations(strang.plan(field, gm.grids.uniform(4, 0.0, 0.9))) == 8


@pytest.mark.parametrize("solver", [Euler(), Strang()], ids=repr)
def test_a_step_compiles_in_one_graph(solver: gm.Solver):
    torch.manual_seed(0)
    path = gm.GaussianPath()
    rates = gm.predict.Rates(gm.nn.MLP(2, width=8, depth=1, out=2 * 35), path, torch.linspace(-1.7, 1.7, 35))
    velocity = gm.predict.Velocity(gm.nn.MLP(2, width=8, depth=1), path)
    both = 0.5 * Flow(velocity) + 0.5 * Jump(rates)
    with torch.no_grad():
        for parameter in both.parameters():
            parameter.normal_(std=0.3)
        x = torch.randn(32, 2)
        field = gm.solvers.Field(both, x[:1])
        plan, draws = solver.plan(field, gm.grids.uniform(4, 0.0, 0.9)), gm.Draws(0, 32).at(1)

        def step(x: Tensor) -> Tensor:
            return solver.step(field, x, plan[1], draws, None)[0]

        compiled = torch.compile(step, fullgraph=True, backend="eager")(x)
        assert torch.allclose(compiled, step(x), atol=1e-5)
        assert bool((compiled != x).any())


# Bad input


def test_what_the_solvers_cannot_do_is_refused():
    world = gm.worlds.GaussianMixture(torch.tensor([[0.5]]), 0.1)
    flow = Flow(world.predictor(gm.GaussianPath()))
    with pytest.raises(ValueError, match=r"TwoEvent cannot move drift.*Use gm.solvers.Strang\(\)"):
        gm.sample(flow, (2, 1), steps=3, solver=TwoEvent())
    with pytest.raises(ValueError, match="cannot move variance"):
        gm.sample(Everything(Known(), 0.5), torch.zeros(2, 1), steps=3, stop=0.9, solver=Strang(Midpoint()))
    for solver in (TwoEvent(), Strang()):
        with pytest.raises(ValueError, match="times that fall are for a flow"):
            gm.sample(Hopping(Known()), torch.zeros(2, 1), times=[0.9, 0.5], solver=solver)
    path = gm.ProductPath({"a": gm.GaussianPath(), "b": gm.GaussianPath()})

    class Joint(nn.Module):
        def forward(self, x, t):
            return x

    product = gm.predict.Product(Joint(), {"a": gm.predict.Velocity, "b": gm.predict.Velocity}, path)
    flows = gm.Product(product, {"a": gm.Flow, "b": gm.Flow})
    for solver in (TwoEvent(), Strang(), gm.solvers.JumpThinning(1.0)):
        with pytest.raises(ValueError, match="is for one space, not for a product"):
            gm.sample(flows, {"a": (2, 1), "b": (2, 1)}, steps=3, solver=solver)
    with pytest.raises(TypeError, match="inner must be a Runge-Kutta solver"):
        Strang(TwoEvent())  # type: ignore[arg-type]
    assert repr(Strang()) == f"Strang({Heun()!r})"

    class Uneven(gm.Generator):
        additive = False

        def triplet(self, x: Tensor, t, prediction) -> Triplet:
            return Triplet(variance=1 + x**2)

    with pytest.raises(ValueError, match="that of Uneven is not"):
        gm.sample(Uneven(Known()), torch.zeros(2, 1), times=[0.1, 0.5], solver=Strang())
    gm.sample(Uneven(Known()), torch.zeros(2, 1), times=[0.1, 0.5], solver=Strang(Euler()))
