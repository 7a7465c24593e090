r"""Stochastic Runge-Kutta: exact laws and strong errors for additive noise, closed-form solutions for other noise.

For additive noise on a Gaussian world a run is an affine map of its first state and of both normals of each step, and
the process itself is :math:`X_s = m + \Phi x + \int K(r)\,dW_r`. An increment and an area of a step are integrals of 1
and of a linear function against dW, so that a run is such an integral too, with a kernel that is linear in each step:
the mean square strong error is :math:`\int (K - \hat K)^2`, without Monte Carlo.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import gaussian_line as line
import numpy as np
import pytest
import torch
from scipy.linalg import expm
from test_weak_order import PROCESSES, SCHEDULES, factor
from torch import Tensor, nn

import genmatch as gm
from genmatch.diffusivity import Constant, EndpointSafe, StateDependent
from genmatch.random import AREA, BROWNIAN
from genmatch.solvers import SRA, SRI, Euler, Field, Heun, Solver
from genmatch.solvers.stochastic import COIN

STEPS = (40, 80, 160)


class Pair:
    """Draws of a step with a given normal for the increment, and one for the area."""

    def __init__(self, z: Tensor, y: Tensor, stream: int = 0, coin: float | Tensor = 0.0) -> None:
        self.z, self.y, self.stream, self.coin = z, y, stream, torch.as_tensor(coin)

    def fork(self, stream: int) -> Pair:
        return Pair(self.z, self.y, stream, self.coin)

    def normal(self, shape: Sequence[int], dtype: torch.dtype = torch.float64) -> Tensor:
        return {BROWNIAN: self.z, AREA: self.y}[self.stream].expand(tuple(shape))

    def uniform(self, shape: Sequence[int], dtype: torch.dtype = torch.float64) -> Tensor:
        assert self.stream == COIN
        return self.coin.expand(tuple(shape)).to(dtype)


def transfer(generator: Any, solver: Solver, times: Tensor) -> tuple[float, float, Tensor, Tensor]:
    """(offset, factor, p, q) of the map x -> offset + factor x + sum_i (p_i z_i + q_i y_i) that a run is."""
    steps = len(times) - 1
    rows = 2 + 2 * steps
    x = torch.zeros(rows, 1, dtype=torch.float64)
    x[1] = 1
    unit = torch.eye(rows, dtype=torch.float64)[2:, :, None]
    end = line.walk(generator, solver, times, x, draws=[Pair(unit[i], unit[steps + i]) for i in range(steps)]).flatten()
    noise = end[2:] - end[0]
    return end[0].item(), (end[1] - end[0]).item(), noise[:steps], noise[steps:]


# Additive noise: the law


def path_errors(generator: Any, solver: Solver, schedule: gm.Schedule, phi: float, t: float, s: float) -> list[float]:
    """Errors of the law of the state at s given that at t: offset, factor and variance."""
    (m0, v0), (m1, v1) = line.law(schedule, t), line.law(schedule, s)
    found = []
    for n in STEPS:
        offset, slope, p, q = transfer(generator, solver, t + (s - t) * gm.grids.uniform(n))
        noise = (p.square().sum() + q.square().sum()).item()
        found.append(max(abs(offset - (m1 - phi * m0)), abs(slope - phi), abs(noise - (v1 - phi**2 * v0))))
    return found


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_sra_has_weak_order_two(name: str, schedule: gm.Schedule) -> None:
    process = PROCESSES[name]
    found = path_errors(
        process.build(line.predictor(schedule)), SRA(), schedule, factor(process, schedule, 0.1, 0.9), 0.1, 0.9
    )
    assert line.order(STEPS, found) > 1.9
    assert found[-1] < 1e-4


class Frozen(SRA):
    """SRA with the noise of the step's start: g as if it did not change."""

    def advance(self, field, x, c, draws):
        frozen = _Held(field, c.instants[0])
        return super().advance(frozen, x, c, draws)  # type: ignore[arg-type]


class _Held:
    """A field whose variance is always that at one instant."""

    def __init__(self, field: Field, instant: Any) -> None:
        self.field, self.instant, self.space = field, instant, field.space

    def __call__(self, x: Tensor, instant: Any) -> gm.Triplet:
        return gm.Triplet(self.field(x, instant).drift, self.field(x, self.instant).variance)


def test_noise_that_changes_in_a_step_is_followed() -> None:
    schedule = gm.schedules.CondOT()
    process = PROCESSES["endpoint-safe"]
    generator, phi = process.build(line.predictor(schedule)), factor(process, schedule, 0.1, 0.9)
    assert line.order(STEPS, path_errors(generator, Frozen(), schedule, phi, 0.1, 0.9)) < 1.2


@pytest.mark.parametrize("name", ["endpoint-safe", "hybrid"])
def test_the_whole_run_ends_in_the_law(name: str) -> None:
    """To the data, where the drift of a data network is 0/0: the last step is the exponential one."""
    schedule = gm.schedules.CondOT()
    generator = PROCESSES[name].build(line.predictor(schedule))
    start = 0.1
    (m0, v0), (m1, v1), found = line.law(schedule, start), line.law(schedule, 1.0), []
    for n in STEPS:
        offset, slope, p, q = transfer(generator, SRA(), start + (1 - start) * gm.grids.uniform(n))
        variance = slope**2 * v0 + (p.square().sum() + q.square().sum()).item()
        found.append(max(abs(offset + slope * m0 - m1), abs(variance - v1)))
    assert line.order(STEPS, found) > 1.7
    assert found[-1] < 1e-3


def test_sri_on_additive_noise_has_the_law_of_sra() -> None:
    schedule = gm.schedules.Cosine()
    generator, times = gm.Diffusion(line.predictor(schedule), EndpointSafe(0.8)), 0.1 + 0.8 * gm.grids.uniform(7)
    for mine, other in zip(transfer(generator, SRI(), times), transfer(generator, SRA(), times), strict=True):
        torch.testing.assert_close(torch.as_tensor(mine), torch.as_tensor(other), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("solver", [SRA(), SRI()], ids=repr)
def test_without_noise_it_is_a_method_of_order_two(solver: Solver) -> None:
    schedule = gm.schedules.Cosine()
    flow, x = gm.Flow(line.predictor(schedule)), torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    truth = line.flow_map(schedule, x, 0.0, 0.9)
    errors = [(line.walk(flow, solver, 0.9 * gm.grids.uniform(n), x) - truth).abs().max().item() for n in STEPS]
    assert line.order(STEPS, errors) > 1.9


# Additive noise: the path


def strong_error(solver: Solver, name: str, schedule: gm.Schedule, steps: int, t: float = 0.1, s: float = 0.9) -> float:
    """Root mean square distance from the solution with the same Brownian path, from x = 0.5 at t."""
    process = PROCESSES[name]
    times = t + (s - t) * gm.grids.uniform(steps)
    offset, slope, p, q = transfer(process.build(line.predictor(schedule)), solver, times)
    places, weights = np.polynomial.legendre.leggauss(4)
    total, left = 0.0, s  # of the mean square; the exposure from r to s is summed up from behind
    rate = lambda u: process.variance(schedule, u) / line.spread(schedule, u)  # noqa: E731
    behind = 0.0
    for i in reversed(range(steps)):
        start, left = times[i].item(), times[i + 1].item()
        h = left - start
        for place, weight in zip(places, weights, strict=True):
            r = start + h * (1 + place) / 2
            inner = sum(w * rate(r + (left - r) * (1 + u) / 2) for u, w in zip(places, weights, strict=True))
            log_phi = -(behind + inner * (left - r) / 2) / 2
            kernel = math.sqrt(line.spread(schedule, s) / line.spread(schedule, r)) * math.exp(log_phi)
            kernel *= math.sqrt(process.variance(schedule, r))
            # H = int ((left - r) / h - 1/2) dW, of variance h / 12.
            run = (p[i].item() + q[i].item() * math.sqrt(12) * ((left - r) / h - 0.5)) / math.sqrt(h)
            total += weight * h / 2 * (kernel - run) ** 2
        behind += sum(w * rate(start + h * (1 + u) / 2) for u, w in zip(places, weights, strict=True)) * h / 2
    phi = math.sqrt(line.spread(schedule, s) / line.spread(schedule, t)) * math.exp(-behind / 2)
    mean = line.law(schedule, s)[0] + phi * (0.5 - line.law(schedule, t)[0])
    return math.sqrt(total + (offset + slope * 0.5 - mean) ** 2)


class Shortened(SRA):
    """SRA without the area: H as if it were 0."""

    def advance(self, field, x, c, draws):
        return super().advance(field, x, c, Pair(draws.fork(BROWNIAN).normal(x.shape, x.dtype), torch.zeros_like(x)))


@pytest.mark.parametrize("name", ["endpoint-safe", "constant", "memoryless"])
@pytest.mark.parametrize("schedule", SCHEDULES[:2], ids=lambda s: type(s).__name__)
def test_strong_orders_for_additive_noise_on_a_linear_equation(name: str, schedule: gm.Schedule) -> None:
    """SRA has order 2 here, as what stops it at 1.5 is a second derivative of the drift; Euler and Heun have 1."""

    def order(solver: Solver) -> float:
        return line.order(STEPS, [strong_error(solver, name, schedule, n) for n in STEPS])

    assert order(SRA()) > 1.85
    assert 0.85 < order(Euler()) < 1.2
    assert 0.85 < order(Heun()) < 1.2
    assert order(Shortened()) < 1.2


WORLD = gm.worlds.GaussianMixture(
    torch.tensor([[-1.2], [0.9]]), torch.tensor([[[0.3]], [[0.15]]]), torch.tensor([0.4, 0.6])
)


class Path:
    """A Brownian path of unit time for each sample, as increments and areas of equal steps."""

    def __init__(self, steps: int, samples: int, span: float = 1.0, width: int = 1) -> None:
        h = span / steps
        seed = torch.Generator().manual_seed(5)
        z, y = torch.randn(2, steps, samples, width, generator=seed, dtype=torch.float64)
        self.h, self.w = h, math.sqrt(h) * z
        self.integral = h * (self.w / 2 + math.sqrt(h / 12) * y)

    def coarse(self, steps: int) -> list[Pair]:
        """The normals of fewer steps: increments add, and an area gains what the path had gone before times h."""
        per = len(self.w) // steps
        w = self.w.reshape(steps, per, *self.w.shape[1:])
        before = w.cumsum(1) - w
        integral = (self.integral.reshape(w.shape) + self.h * before).sum(1)
        total, h = w.sum(1), per * self.h
        coins = torch.rand(total.shape, generator=torch.Generator().manual_seed(6), dtype=total.dtype)
        return [
            Pair(a / math.sqrt(h), (b / h - a / 2) / math.sqrt(h / 12), coin=coin)
            for a, b, coin in zip(total, integral, coins, strict=True)
        ]


def test_a_path_made_coarser_is_a_path() -> None:
    path = Path(64, 4000)
    pairs = path.coarse(4)
    z, y = torch.stack([p.z for p in pairs]).flatten(), torch.stack([p.y for p in pairs]).flatten()
    for value in (z.mean(), y.mean(), z.var() - 1, y.var() - 1, (z * y).mean()):
        assert abs(value.item()) < 5 * math.sqrt(2 / len(z))
    torch.testing.assert_close(path.w.sum(0), torch.stack([p.z for p in pairs]).sum(0) * 0.5, rtol=1e-12, atol=1e-12)


def test_strong_order_of_sra_on_a_field_that_bends() -> None:
    """A mixture, against a run of the same path in steps eight times finer than the finest."""
    generator = gm.Diffusion(WORLD.predictor(gm.GaussianPath(gm.schedules.CondOT())), EndpointSafe(1.0))
    path, steps = Path(512, 400, span=0.6), (16, 32, 64)
    x = gm.Draws(8, 400).normal((400, 1), torch.float64)

    def run(solver: Solver, n: int) -> Tensor:
        return line.walk(generator, solver, 0.2 + 0.6 * gm.grids.uniform(n), x, draws=path.coarse(n))

    truth = run(SRA(), 512)

    def order(solver: Solver) -> float:
        return line.order(steps, [(run(solver, n) - truth).square().mean().sqrt().item() for n in steps])

    assert order(SRA()) > 1.4
    assert order(Euler()) < 1.25
    assert order(Shortened()) < 1.25


# Noise that depends on the state


class Still(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.zeros_like(x)


class Same(nn.Module):
    def forward(self, x: dict[str, Tensor], t: dict[str, Tensor]) -> dict[str, Tensor]:
        return x


class Process(gm.Generator):
    """An Ito equation by its drift and its variance; it reads nothing."""

    additive = False

    def __init__(self, drift: Callable[[Tensor, Any], Tensor], variance: Callable[[Tensor, Any], Tensor]) -> None:
        super().__init__(gm.predict.Velocity(Still(), gm.GaussianPath()))
        self.drift, self.variance = drift, variance

    def triplet(self, x: Tensor, t: Any, prediction: Any) -> gm.Triplet:
        return gm.Triplet(self.drift(x, t), self.variance(x, t))

    def end_point(self, x: Tensor, t: Any, prediction: Any) -> tuple[gm.Triplet, Callable[[Tensor], Tensor]]:
        return self.triplet(x, t, prediction), lambda y: self.variance(y, t)


GAIN, RATE = 0.6, 0.3
GEOMETRIC = Process(lambda x, t: RATE * x, lambda x, t: (GAIN * x) ** 2)
SINH = Process(lambda x, t: x / 8, lambda x, t: (1 + x**2) / 4)
CHANGING = Process(lambda x, t: 0 * x, lambda x, t: ((1 + t) * x / 2) ** 2)


# X_1 from 1, given W_1 and the integral of W over [0, 1].
SOLUTIONS: dict[str, tuple[Process, Callable[[Tensor, Tensor], Tensor]]] = {
    "geometric": (GEOMETRIC, lambda w, i: torch.exp((RATE - GAIN**2 / 2) + GAIN * w)),
    "sinh": (SINH, lambda w, i: torch.sinh(w / 2 + math.asinh(1))),
    "changing": (CHANGING, lambda w, i: torch.exp((2 * w - i) / 2 - 7 / 24)),  # int (1 + t)^2 / 8 = 7 / 24
}


class Slim(SRI):
    """SRI without the area."""

    def advance(self, field, x, c, draws):
        return super().advance(field, x, c, Pair(draws.z, torch.zeros_like(x), coin=draws.coin))


def strong_order(solver: Solver, name: str, steps: Sequence[int], samples: int = 4000) -> float:
    process, solution = SOLUTIONS[name]
    path = Path(max(steps), samples)
    (whole,) = path.coarse(1)
    truth = solution(whole.z, whole.z / 2 + whole.y / math.sqrt(12))
    errors = []
    for n in steps:
        x = torch.ones(samples, 1, dtype=torch.float64)
        end = line.walk(process, solver, gm.grids.uniform(n), x, draws=path.coarse(n))
        errors.append((end - truth).square().mean().sqrt().item())
    return line.order(steps, errors)


@pytest.mark.parametrize("name", SOLUTIONS)
def test_strong_orders_for_noise_of_the_state(name: str) -> None:
    """Against the closed form on the same Brownian path. Steps are fine, as tails settle late."""
    steps = (64, 128, 256)
    assert strong_order(SRI(), name, steps) > 1.3
    assert 0.35 < strong_order(Euler(), name, steps) < 0.65
    if name == "changing":  # the solution of the others is a function of W_1 alone
        assert 0.8 < strong_order(Slim(), name, steps) < 1.25


def step_moment(
    solver: Solver, process: Process, x: Tensor, h: float, function, nodes: int = 7, coins: Sequence[float] = (0.0, 0.9)
) -> float:
    """Mean of a function of the state one step after x ``(1, d)``, exactly: Gauss-Hermite in its normals, all coins."""
    width = x.shape[1]
    places, weights = np.polynomial.hermite_e.hermegauss(nodes)
    grid = torch.tensor(list(itertools.product(places, repeat=2 * width)), dtype=torch.float64)
    mass = torch.tensor([math.prod(ws) for ws in itertools.product(weights / weights.sum(), repeat=2 * width)])
    field = Field(process, x)
    (c,) = solver.plan(field, torch.tensor([0.5, 0.5 + h], dtype=torch.float64))
    sides = list(itertools.product(coins, repeat=width))
    total = 0.0
    for side in sides:
        draws: Any = Pair(grid[:, :width], grid[:, width:], coin=torch.tensor(side, dtype=torch.float64))
        y, _ = solver.step(field, x.expand(len(grid), width), c, draws, None)
        total += (mass * function(y)).sum().item() / len(sides)
    return total


@pytest.mark.parametrize(("solver", "order"), [(SRI(), 2), (Euler(), 1)], ids=repr)
def test_weak_order_for_noise_of_the_state(solver: Solver, order: int) -> None:
    """Moments of the geometric equation, exactly: a step multiplies the state by a random number of its own."""
    one = torch.ones(1, 1, dtype=torch.float64)
    for power in (1, 2, 3):
        truth = math.exp(power * RATE + power * (power - 1) / 2 * GAIN**2)
        function = lambda y, k=power: y.flatten() ** k  # noqa: E731
        moments = [step_moment(solver, GEOMETRIC, one, 1 / n, function) ** n for n in STEPS]
        # A step of length 1/n starts at 1/2, which this equation does not see.
        assert line.order(STEPS, [abs(m - truth) for m in moments]) > order - 0.15


# dX = (f_0 + f_1 X) dt + (a_0 + a_1 X + a_2 X^2)^(1/2) dW, whose moments obey linear equations.
POLYNOMIALS = {
    "square root": ((0.8, -0.5), (0.0, 0.3, 0.0)),
    "quadratic": ((0.3, -0.7), (0.3, 0.1, 0.4)),
    "sinh": ((0.0, 1 / 8), (1 / 4, 0.0, 1 / 4)),
}


def moment(f: Sequence[float], a: Sequence[float], x: float, h: float, power: int) -> float:
    """E X^power after a time h, from x: d/dt E X^k = k E[f X^(k-1)] + k(k-1)/2 E[A X^(k-2)]."""
    rates = np.zeros((power + 1, power + 1))
    for k in range(1, power + 1):
        rates[k, k - 1 : k + 1] += k * np.array(f)
        for j, own in enumerate(a):
            if k >= 2:
                rates[k, k - 2 + j] += k * (k - 1) / 2 * own
    return float((expm(rates * h) @ x ** np.arange(power + 1))[power])


@pytest.mark.parametrize("name", POLYNOMIALS)
def test_local_weak_order_is_three_by_the_toss_of_a_coin(name: str) -> None:
    """With coins of one side, the published scheme, the error of a step goes as h^2.5: weak order 1.5."""
    f, a = POLYNOMIALS[name]
    process = Process(lambda x, t: f[0] + f[1] * x, lambda x, t: a[0] + a[1] * x + a[2] * x**2)
    x, lengths = torch.full((1, 1), 0.9, dtype=torch.float64), (0.02, 0.01, 0.005)

    def order(power: int, coins: Sequence[float]) -> float:
        function = lambda y: y.flatten() ** power  # noqa: E731
        errors = [
            abs(step_moment(SRI(), process, x, h, function, 15, coins) - moment(f, a, 0.9, h, power)) for h in lengths
        ]
        return line.order([1 / h for h in lengths], errors)

    for power in (1, 2, 3, 4):
        assert order(power, (0.0, 0.9)) > 2.9
    if name == "quadratic":
        assert 2.4 < order(2, (0.9,)) < 2.7


class Unchecked(Heun):
    """Heun on noise that depends on the state: what its plan refuses."""

    def check(self, field, parts):
        pass


def test_heun_on_noise_of_the_state_would_have_the_law_of_another_equation() -> None:
    """That of Stratonovich: its mean grows at RATE + GAIN^2 / 2. This is why its plan refuses; SRI has Ito's."""
    one = torch.ones(1, 1, dtype=torch.float64)

    def mean(solver: Solver) -> float:
        return step_moment(solver, GEOMETRIC, one, 1 / 160, lambda y: y.flatten()) ** 160

    assert mean(SRI()) == pytest.approx(math.exp(RATE), rel=1e-4)
    assert mean(Unchecked()) == pytest.approx(math.exp(RATE + GAIN**2 / 2), rel=1e-2)


SWAP = Process(  # dX_1 = X_2 dW_1, dX_2 = dW_2: the noise of a value depends on another
    lambda x, t: torch.zeros_like(x), lambda x, t: torch.stack([x[:, 1] ** 2, torch.ones_like(x[:, 1])], -1)
)
APART = Process(  # the same, but each on itself
    lambda x, t: torch.zeros_like(x), lambda x, t: torch.stack([x[:, 0] ** 2, torch.ones_like(x[:, 1])], -1)
)


def test_local_weak_order_falls_where_noise_does_not_commute() -> None:
    """The mean of X_1^2 X_2^2 after one step: errors of h^2 (weak order 1) against h^3 (weak order 2)."""
    a, b = 0.7, 2.0
    x, lengths = torch.tensor([[a, b]], dtype=torch.float64), (0.1, 0.05, 0.025)

    def swapped(h: float) -> float:  # a^2 E X_2^2 + int E [X_2(t)^2 X_2(h)^2] dt
        inner = b**4 * h + 3 * b**2 * h**2 + h**3 + b**2 * h**2 / 2 + h**3 / 6
        return a**2 * (b**2 + h) + inner

    def apart(h: float) -> float:
        return a**2 * math.exp(h) * (b**2 + h)

    def order(process: Process, truth: Callable[[float], float]) -> float:
        function = lambda y: y[:, 0] ** 2 * y[:, 1] ** 2  # noqa: E731
        errors = [abs(step_moment(SRI(), process, x, h, function, nodes=5) - truth(h)) for h in lengths]
        return line.order([1 / h for h in lengths], errors)

    assert order(APART, apart) > 2.8
    assert 1.8 < order(SWAP, swapped) < 2.2


def test_strong_order_falls_where_noise_does_not_commute() -> None:
    """Of X_1 = int X_2 dW_1, X_2 = 5 + W_2, in steps 16 times finer by Euler: order 1/2, an error above Euler's."""
    path, steps = Path(1024, 1000, width=2), (16, 32, 64)
    before = path.w.cumsum(0) - path.w
    truth = ((5 + before[:, :, 1]) * path.w[:, :, 0]).sum(0)

    def errors(solver: Solver) -> list[float]:
        x = torch.tensor([0.0, 5.0], dtype=torch.float64).expand(1000, 2)
        ends = [line.walk(SWAP, solver, gm.grids.uniform(n), x, draws=path.coarse(n))[:, 0] for n in steps]
        return [(end - truth).square().mean().sqrt().item() for end in ends]

    mine, plain = errors(SRI()), errors(Euler())
    assert 0.4 < line.order(steps, mine) < 0.65
    assert all(a > b for a, b in zip(mine, plain, strict=True))


# The whole call


@pytest.mark.parametrize(
    ("solver", "noise"),
    [
        (SRA(), EndpointSafe(1.0)),
        (SRI(), StateDependent(lambda x, t: 0.2 + x**2 / (1 + x**2), EndpointSafe(1.0), elementwise=True)),
    ],
    ids=["SRA", "SRI"],
)
def test_samples_have_the_law_and_evaluations_are_counted(solver: Solver, noise: Any) -> None:
    model, samples = line.predictor(gm.schedules.CondOT(), "velocity"), 20000
    x, report = gm.sample(
        gm.Diffusion(model, noise), (samples, 1), solver=solver, steps=30, seed=3, dtype=torch.float64, report=True
    )
    assert abs(x.mean().item() - line.MEAN) < 5 * math.sqrt(line.VARIANCE / samples) + 2e-3
    assert abs(x.var().item() - line.VARIANCE) < 5 * line.VARIANCE * math.sqrt(2 / samples) + 2e-3
    network: Any = model.network
    assert network.calls == int(report.evaluations[0]) == 60


@pytest.mark.parametrize("solver", [SRA(), SRI()], ids=repr)
def test_the_last_step_to_the_data_costs_one_evaluation(solver: Solver) -> None:
    model = line.predictor(gm.schedules.CondOT())
    field = Field(gm.Diffusion(model, EndpointSafe()), torch.zeros(1, 1, dtype=torch.float64))
    assert solver.evaluations(solver.plan(field, gm.grids.uniform(10))) == 19


@pytest.mark.parametrize("solver", [SRA(), SRI()], ids=repr)
def test_noise_that_begins_within_the_run(solver: Solver) -> None:
    """A weight that is 0 at t = 0: there is no variance at the first stage, and one at the second."""
    model = line.predictor(gm.schedules.CondOT(), "velocity")
    generator = gm.Flow(model) + (lambda t: t) * gm.Langevin(model, Constant(0.5))
    times = 0.6 * gm.grids.uniform(60)
    offset, slope, p, q = transfer(generator, solver, times)
    (m0, v0), (m1, v1) = line.law(gm.schedules.CondOT(), 0.0), line.law(gm.schedules.CondOT(), 0.6)
    assert offset + slope * m0 == pytest.approx(m1, abs=1e-4)
    assert slope**2 * v0 + (p.square().sum() + q.square().sum()).item() == pytest.approx(v1, abs=1e-3)
    assert p[0] > 0


def test_a_reverse_runs_with_it() -> None:
    """From data to noise, by the time reversal of a diffusion."""
    model = line.predictor(gm.schedules.CondOT(), "velocity")
    reverse = gm.Reverse(gm.Diffusion(model, EndpointSafe(1.0)))
    x = line.MEAN + math.sqrt(line.VARIANCE) * gm.Draws(0, 20000).normal((20000, 1), torch.float64)
    end = gm.sample(reverse, x, solver=SRA(), steps=30, seed=1, start=1.0, stop=0.0)
    assert abs(end.mean().item()) < 0.04
    assert abs(end.var().item() - 1) < 0.06


def test_runs_on_one_brownian_tree_converge_sample_by_sample() -> None:
    """The tree gives increment and area of each step of any grid: steps that differ, at order 1.5 or above."""
    generator = gm.Diffusion(WORLD.predictor(gm.GaussianPath(gm.schedules.CondOT())), EndpointSafe(1.0))
    x, steps = gm.Draws(8, 300).normal((300, 1), torch.float64), (12, 24, 48)

    def run(n: int, solver: Solver = SRA()) -> Tensor:  # noqa: B008
        u = gm.grids.uniform(n)
        times = 0.2 + 0.6 * (u + torch.sin(2 * math.pi * u) / 12)
        return gm.sample(generator, x, times=times, solver=solver, seed=2, brownian=gm.BrownianTree())

    truth = run(384)
    errors = [(run(n) - truth).square().mean().sqrt().item() for n in steps]
    assert line.order(steps, errors) > 1.35
    assert errors[-1] < (run(48, Euler()) - truth).square().mean().sqrt().item() / 5


@pytest.mark.slow
def test_a_step_of_sri_compiles_as_one_graph() -> None:
    noise = StateDependent(lambda x, t: 0.2 + t * x**2 / (1 + x**2), EndpointSafe(1.0), elementwise=True)
    generator = gm.Diffusion(line.predictor(gm.schedules.CondOT(), "velocity"), noise)
    x, times = gm.Draws(1, 4).normal((4, 1), torch.float64), 0.1 + 0.8 * gm.grids.uniform(3)
    field = Field(generator, x)
    plan = SRI().plan(field, times)
    torch._dynamo.reset()
    generator.models[0].network = Still()  # counting its calls would be a new graph each
    step = torch.compile(SRI().step, fullgraph=True, backend="eager")
    with torch.no_grad():
        for c, draws in zip(plan, gm.Draws(0, 4).steps(3), strict=True):
            torch.testing.assert_close(step(field, x, c, draws, None)[0], SRI().step(field, x, c, draws, None)[0])


# What is refused


def test_what_is_refused() -> None:
    model = line.predictor(gm.schedules.CondOT(), "velocity")
    multiplicative = gm.Diffusion(model, StateDependent(lambda x, t: 1 + x**2))
    with pytest.raises(ValueError, match=r"SRA needs additive noise, .* Use gm.solvers.SRI\(\) or gm.solvers.Euler"):
        gm.sample(multiplicative, (2, 1), solver=SRA())
    for solver in (SRA(), SRI()):
        name = repr(solver)[:-2]
        with pytest.raises(ValueError, match="noise and jumps run from noise to data"):
            gm.sample(gm.Diffusion(model, EndpointSafe()), torch.zeros(2, 1), solver=solver, start=0.9, stop=0.1)
        with pytest.raises(ValueError, match="cannot start at t = 0, where a network's reading or the noise is infin"):
            gm.sample(gm.Diffusion(model), (2, 1), solver=solver)
        sphere = gm.Flow(gm.predict.TangentVelocity(Still(), gm.GeodesicPath(gm.spaces.Sphere(2))))
        with pytest.raises(ValueError, match=rf"{name} steps on R\^d, got Sphere"):
            gm.sample(sphere, (2, 3), solver=solver)
        chain = gm.CTMC(gm.predict.Tokens(nn.Identity(), gm.MixturePath(5, mask=5)))
        with pytest.raises(ValueError, match=f"{name} cannot move rates"):
            gm.sample(chain, (2, 3), solver=solver)

    two = gm.ProductPath({"a": gm.GaussianPath(), "b": gm.GaussianPath()})
    parts = gm.predict.Product(Same(), {"a": gm.predict.Velocity, "b": gm.predict.Velocity}, two)
    product = gm.Product(parts, {"a": gm.Flow, "b": gm.Flow})
    with pytest.raises(ValueError, match=r"SRA steps on R\^d, got Product"):
        gm.sample(product, {"a": (2, 1), "b": (2, 1)}, solver=SRA())

    class Blunt(gm.Generator):
        additive = False

        def triplet(self, x: Tensor, t: Any, prediction: Any) -> gm.Triplet:
            return gm.Triplet(prediction.velocity, 1 + x**2)

    with pytest.raises(ValueError, match="SRI needs the variance as a function of the state, and Blunt gives none"):
        gm.sample(Blunt(model), (2, 1), solver=SRI())


@pytest.mark.parametrize("solver", [SRA(), SRI()], ids=repr)
def test_a_flow_runs_back(solver) -> None:
    flow = gm.Flow(line.predictor(gm.schedules.Cosine(), "velocity"))
    x = torch.linspace(-1, 1, 4, dtype=torch.float64)[:, None]
    back = gm.sample(flow, x, steps=200, start=0.9, stop=0.1, solver=solver)
    truth = line.flow_map(gm.schedules.Cosine(), x, 0.9, 0.1)
    torch.testing.assert_close(back, truth, atol=1e-3, rtol=0)


class Misshapen(gm.Generator):
    """A drift or a variance of a wrong shape, or a variance below 0."""

    def __init__(self, model, drift=None, variance=None) -> None:
        super().__init__(model)
        self.drift, self.variance = drift, variance

    def triplet(self, x, t, prediction):
        drift = prediction.velocity if self.drift is None else torch.zeros(self.drift, dtype=x.dtype)
        return gm.Triplet(drift=drift, variance=self.variance)


@pytest.mark.parametrize("solver", [SRA(), SRI()], ids=repr)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drift": (2, 3)}, "a drift has the shape"),
        ({"variance": torch.ones(2)}, "a variance is a number or has shape"),
        ({"variance": -1.0}, "negative|must be at least 0"),
    ],
)
def test_shapes_are_checked(solver, options, message) -> None:
    model = line.predictor(gm.schedules.CondOT(), "velocity")
    with pytest.raises(ValueError, match=message):
        gm.sample(
            Misshapen(model, **options),
            torch.zeros(2, 1, dtype=torch.float64),
            steps=2,
            start=0.2,
            stop=0.8,
            solver=solver,
        )
