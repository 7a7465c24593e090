"""The published exponential solvers: orders, start-ups, ends, equivalences, and coefficients against closed forms."""

from __future__ import annotations

import math
from itertools import pairwise

import gaussian_line as line
import pytest
import torch
from scipy.integrate import quad
from test_order import uniform, waves
from test_weak_order import PROCESSES, errors, factor
from torch import Tensor, nn

import genmatch as gm
from genmatch.schedules import Instant
from genmatch.solvers import (
    DDIM,
    DEIS,
    IPNDM,
    RK4,
    DPMSolver,
    DPMSolverSingle,
    Exponential,
    Field,
    Solver,
    UniPC,
)
from genmatch.solvers.log_snr import moments, noisy_moments

SCHEDULES = gm.schedules
STEPS = (40, 80, 160)
MANY = (160, 320, 640)
SLACK = 0.3
FORMS = ("data", "noise")

SOLVERS: list[Solver] = [
    *(DPMSolver(order, form) for order in (1, 2, 3) for form in FORMS),
    *(DPMSolverSingle(order, form) for order in (2, 3) for form in FORMS),
    *(UniPC(order, "bh2", form) for order in (1, 2, 3) for form in FORMS),
    *(UniPC(order, "bh1", corrector=False) for order in (2, 3)),
    UniPC(1, "bh1"),
    *(DEIS(order) for order in (1, 2, 3)),
    *(IPNDM(order) for order in (1, 2, 4)),
]
EVERY = pytest.mark.parametrize("solver", SOLVERS, ids=repr)
# Spans inside (0, 1), and stiff schedules as a whole: sigma falls by four orders of magnitude.
SPANS = {
    "CondOT": (SCHEDULES.CondOT(), 0.2, 0.9),
    "Cosine": (SCHEDULES.Cosine(), 0.2, 0.9),
    "VP": (SCHEDULES.VP(), 0.0, 0.9),
    "EDM": (SCHEDULES.EDM(), 0.0, 1.0),
    "VE": (SCHEDULES.VE(), 0.0, 1.0),
}


def misses(solver: Solver, span: tuple[gm.Schedule, float, float], grid=uniform, steps=STEPS, kind="data"):
    """Errors against the closed-form flow map."""
    schedule, start, stop = span
    flow = gm.Flow(line.predictor(schedule, kind))
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None] * line.spread(schedule, start) ** 0.5
    truth = line.flow_map(schedule, x, start, stop)
    return [(line.walk(flow, solver, start + (stop - start) * grid(n), x) - truth).abs().max().item() for n in steps]


def slope(solver: Solver, span: tuple[gm.Schedule, float, float], grid=uniform, steps=STEPS, kind="data") -> float:
    return line.order(steps, misses(solver, span, grid, steps, kind))


@EVERY
def test_the_order_on_a_gaussian(solver: Solver) -> None:
    assert slope(solver, (SCHEDULES.CondOT(), 0.15, 0.7), waves) > solver.order - SLACK
    assert slope(solver, (SCHEDULES.EDM(0.1, 5.0), 0.0, 1.0), waves) > solver.order - SLACK


@pytest.mark.slow
@pytest.mark.parametrize("grid", [uniform, waves])
@pytest.mark.parametrize("name", SPANS)
@EVERY
def test_the_order_everywhere(solver: Solver, name: str, grid) -> None:
    """On stiff schedules errors that change sign late, or reach rounding early, bend the slopes by up to a half."""
    found = misses(solver, SPANS[name], grid, MANY)
    assert line.order(MANY, found) > solver.order - 0.5 or found[-1] < 1e-9


@pytest.fixture(scope="module")
def mixture() -> tuple[gm.Generator, Tensor, Tensor]:
    world = gm.worlds.GaussianMixture(
        torch.tensor([[-1.5, 0.2], [1.0, 1.2], [0.6, -1.0]]),
        torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.2, 0.0], [0.0, 0.4]], [[0.25, -0.1], [-0.1, 0.3]]]),
        [0.5, 0.2, 0.3],
    )
    flow = gm.Flow(world.predictor(gm.GaussianPath(SCHEDULES.Cosine())))
    x = gm.Draws(0, 12).normal((12, 2), torch.float64)
    return flow, x, line.walk(flow, RK4(), 0.3 + 0.5 * uniform(400), x)


def bends(solver: Solver, mixture, steps=STEPS) -> list[float]:
    flow, x, truth = mixture
    return [(line.walk(flow, solver, 0.3 + 0.5 * uniform(n), x) - truth).abs().max().item() for n in steps]


@EVERY
def test_the_order_on_a_mixture_against_a_fine_reference(solver: Solver, mixture) -> None:
    found = bends(solver, mixture)
    assert line.order(STEPS, found) > solver.order - SLACK


@pytest.mark.parametrize(
    ("right", "lower"),
    [
        *((DPMSolver(3, form), DPMSolver(3, form, start="lower")) for form in FORMS),
        *((UniPC(3, "bh2", form), UniPC(3, "bh2", form, start="lower")) for form in FORMS),
        (UniPC(3, corrector=False), UniPC(3, corrector=False, start="lower")),
        (DEIS(3), DEIS(3, start="lower")),
    ],
    ids=repr,
)
def test_a_start_of_lower_order_loses_one(right: Solver, lower: Solver, mixture) -> None:
    assert lower.order == right.order - 1
    kept, lost = (line.order(STEPS, bends(solver, mixture)) for solver in (right, lower))
    assert kept > right.order - SLACK
    assert lost < right.order - 0.5


# Coefficients.


class Bent(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(1.3 * x + torch.sin(3 * t)[:, None]) + 0.2 * torch.cos(x)


def bent(schedule: gm.Schedule, kind=gm.predict.Data) -> gm.Predictor:
    return kind(Bent(), gm.GaussianPath(schedule), time=gm.predict.clocks.t)


def states() -> Tensor:
    return gm.Draws(3, 6).normal((6, 2), torch.float64)


@pytest.mark.parametrize("schedule", [SCHEDULES.CondOT(), SCHEDULES.Cosine(), SCHEDULES.EDM()], ids=repr)
def test_all_are_ddim_at_order_one(schedule: gm.Schedule) -> None:
    flow, times = gm.Flow(bent(schedule)), waves(7)
    expected = line.walk(flow, DDIM(), times, states())
    ones = [DPMSolver(1, form) for form in FORMS] + [UniPC(1, "bh1", form, corrector=False) for form in FORMS]
    for solver in [*ones, Exponential(1), DEIS(1), IPNDM(1)]:
        torch.testing.assert_close(line.walk(flow, solver, times, states()), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_the_predictor_of_unipc_is_dpm_solver(form: str) -> None:
    flow, times = gm.Flow(bent(SCHEDULES.Cosine())), 0.1 + 0.85 * waves(9)
    for order in (2, 3):
        unipc = line.walk(flow, UniPC(order, "bh2", form, corrector=False, start="lower"), times, states())
        dpm = line.walk(flow, DPMSolver(order, form, start="lower"), times, states())
        torch.testing.assert_close(unipc, dpm, rtol=1e-12, atol=1e-12)


def test_with_noise_order_one_is_exponential() -> None:
    for generator in (gm.Diffusion(bent(SCHEDULES.CondOT())), gm.Diffusion(bent(SCHEDULES.VP()), lambda t: 1 - t)):
        ours, other = (
            gm.sample(generator, states(), seed=4, steps=9, solver=s) for s in (DPMSolver(1), Exponential(1))
        )
        torch.testing.assert_close(ours, other, rtol=1e-12, atol=1e-12)


def levels(schedule: gm.Schedule, times: Tensor) -> list[tuple[float, float, float]]:
    """alpha, sigma, lambda."""
    alpha, sigma = schedule(times)
    return list(zip(alpha.tolist(), sigma.tolist(), (alpha / sigma).log().tolist(), strict=True))


@pytest.mark.parametrize("gamma", [0.0, 1.0], ids=["flow", "memoryless"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", [gm.predict.Data, gm.predict.Noise], ids=lambda k: k.__name__)
def test_the_papers_second_order_steps(form: str, kind: type[gm.Predictor], gamma: float) -> None:
    """DPM-Solver++(2M), DPM-Solver-2 (multistep) and both with noise, written out; nothing is held back.

    In seven steps from nearly pure noise, where the data prediction of a noise network is bad, too.
    """
    schedule = SCHEDULES.VP()
    model, times, x = bent(schedule, kind), 0.02 + 0.96 * waves(7), states()
    noise = [gm.Draws(i, 6).normal((6, 2), torch.float64) for i in range(7)]
    generator = gm.Diffusion(model) if gamma else gm.Flow(model)
    ours = line.walk(generator, DPMSolver(2, form), times, x, draws=[line.Given(z) for z in noise])
    before, last, rows = None, 0.0, levels(schedule, times)
    for i, ((a, b, low), (a2, b2, high)) in enumerate(pairwise(rows)):
        h = high - low
        prediction = model(x, times[i].item())
        now = prediction.data if form == "data" else prediction.noise
        guess = now if before is None else now + (now - before) * h / (2 * last)
        if form == "data":
            x = b2 / b * math.exp(-gamma * h) * x - a2 * math.expm1(-(1 + gamma) * h) * guess
            x = x + b2 * math.sqrt(-math.expm1(-2 * gamma * h)) * noise[i]
        else:
            x = a2 / a * x - (1 + gamma) * b2 * math.expm1(h) * guess
            x = x + b2 * math.sqrt(gamma * math.expm1(2 * h)) * noise[i]
        before, last = now, h
    torch.testing.assert_close(ours, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_any_other_noise_enters_by_its_exposure(form: str) -> None:
    """EndpointSafe on CondOT: dG = dt / (1 - t), so that all integrals are elementary."""
    (t, s), x = (0.3, 0.55), states()
    model = bent(SCHEDULES.CondOT())
    z = gm.Draws(5, 6).normal((6, 2), torch.float64)
    generator = gm.Diffusion(model, gm.diffusivity.EndpointSafe(1.0))
    times = torch.tensor([t, s], dtype=torch.float64)
    ours = line.walk(generator, DPMSolver(1, form), times, x, draws=[line.Given(z)])
    prediction = model(x, t)
    if form == "data":
        keep = (1 - s) / (1 - t)
        expected = s * prediction.data + (1 - s) * keep * prediction.noise + (1 - s) * math.sqrt(1 - keep**2) * z
    else:
        frozen = s * (1 / s - 1 / t - math.log(s / t))  # -alpha_s int (d(lambda) + dG) / snr^(1/2)
        spread = s * math.sqrt(2 * (1 / t - 1 / s - math.log(s / t)))
        expected = s / t * x + frozen * prediction.noise + spread * z
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("noise", ["memoryless", "endpoint-safe"])
def test_moments_against_quadrature(form: str, noise: str) -> None:
    """With noise the moments of the kernel d/du of e^{-h(1-u)-G(u)}, or -(h + G') e^{h(1-u)}; without, z = h or -h."""
    schedule = SCHEDULES.CondOT()
    field = Field(PROCESSES[noise].build(bent(schedule)), states())
    t, s = (schedule.at(torch.tensor(times, dtype=torch.float64)) for times in ([0.2, 0.5], [0.5, 0.9]))
    found, _, _ = noisy_moments(field, t, s, form, 2)
    for i, row in enumerate(found.tolist()):
        low, high = (math.log(v.t[i].item() / (1 - v.t[i].item())) for v in (t, s))
        h, end = high - low, s.t[i].item()

        def kernel(u: float, h=h, low=low, high=high, end=end) -> float:
            time = 1 / (1 + math.exp(-low - u * h))
            # G from here to the end, and -dG/du: for memoryless noise G = h (1 - u), else log((1 - t) / (1 - s)).
            if noise == "memoryless":
                left, rate = h * (1 - u), h
            else:
                left, rate = math.log((1 - time) / (1 - end)), h * time
            if form == "data":
                return (h + rate) * math.exp(-h * (1 - u) - left)
            return -(h + rate) * math.exp(h * (1 - u))

        expected = [quad(lambda u, k=k: u**k * kernel(u), 0, 1, epsabs=1e-13)[0] for k in range(3)]
        assert row == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("z", [-9.0, -1.0, -1e-3, 1e-5, 0.5, 1.0, 12.0])
def test_moments_of_flows_at_every_length(z: float) -> None:
    (row,) = moments(torch.tensor([z], dtype=torch.float64), 3).tolist()
    for k, value in enumerate(row):
        expected = quad(lambda u, k=k: u**k * z * math.exp(-z * (1 - u)), 0, 1, epsabs=1e-14, epsrel=1e-13)[0]
        assert value == pytest.approx(expected, rel=1e-10)


class Parabola(nn.Module):
    """A prediction that is quadratic in log-SNR, or in t, and depends on nothing else."""

    def __init__(self, schedule: gm.Schedule | None) -> None:
        super().__init__()
        self.schedule = schedule

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        u = t if self.schedule is None else self.schedule.log_snr(t) / 2
        return (1 - u + u**2)[:, None] + 0 * x


@pytest.mark.parametrize(
    ("solver", "kind", "first"),
    [
        (DPMSolver(3), "Data", 2),
        (DPMSolver(3, "noise"), "Noise", 2),
        (UniPC(3, corrector=False), "Data", 2),
        (DEIS(3), "Noise", 2),
        (DPMSolver(2), "Data", None),
        (IPNDM(3), "Noise", None),
    ],
    ids=repr,
)
def test_which_methods_integrate_a_parabola_exactly(solver: Solver, kind: str, first: int | None) -> None:
    r"""A local error of 0 once there are three predictions: of DEIS in t, of the others in log-SNR.

    The change of x over sigma (data) or alpha (noise) over a step is that of a known integral.
    """
    schedule, in_t = SCHEDULES.Cosine(), isinstance(solver, (DEIS, IPNDM))
    network = Parabola(None if in_t else schedule)
    model = getattr(gm.predict, kind)(network, gm.GaussianPath(schedule), time=gm.predict.clocks.t)
    times, x = 0.2 + 0.6 * waves(8), torch.zeros(1, 1, dtype=torch.float64)
    field, carry, found = Field(gm.Flow(model), x), None, [0.0]
    for c in solver.plan(field, times):
        x, carry = solver.step(field, x, c, gm.Draws(0, 1), carry)
        found.append(x.item())

    def integrand(t: float) -> float:
        alpha, sigma, alpha_dot, sigma_dot = line.numbers(schedule, t)
        u = t if in_t else math.log(alpha / sigma)
        wronskian = alpha_dot * sigma - alpha * sigma_dot
        return (1 - u + u**2) * (wronskian / sigma**2 if kind == "Data" else -wronskian / alpha**2)

    defects = []
    for i, (t, s) in enumerate(zip(times[:-1].tolist(), times[1:].tolist(), strict=True)):
        (a, b), (a2, b2) = line.levels(schedule, t), line.levels(schedule, s)
        one, two = (b, b2) if kind == "Data" else (a, a2)
        defects.append(abs(found[i + 1] / two - found[i] / one - quad(integrand, t, s, epsabs=1e-13)[0]))
    if first is None:
        assert max(defects[3:]) > 1e-6
    else:
        assert max(defects[first:]) < 1e-12


# Noise.

NOISY = [DPMSolver(order, form) for order in (1, 2, 3) for form in FORMS]


@pytest.mark.parametrize("name", ["memoryless", "hybrid", "difference"])
@pytest.mark.parametrize("solver", NOISY, ids=repr)
def test_the_weak_order_with_noise_is_at_most_two(solver: Solver, name: str) -> None:
    """Offset, factor and variance of the run, exactly: see test_weak_order."""
    schedule, process = SCHEDULES.Cosine(), PROCESSES[name]
    phi = factor(process, schedule, 0.1, 0.9)
    found, _ = errors(process.build(line.predictor(schedule)), solver, schedule, phi, 0.1, 0.9)
    assert line.order((40, 80, 160), found) > min(solver.order, 2) - SLACK
    assert found[-1] < (1e-2 if solver.order == 1 else 2.5e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["memoryless", "gamma", "endpoint-safe", "constant", "function", "weighted"])
@pytest.mark.parametrize("schedule", [SCHEDULES.CondOT(), SCHEDULES.VP()], ids=repr)
@pytest.mark.parametrize("solver", NOISY, ids=repr)
def test_the_weak_order_with_every_noise(solver: Solver, schedule: gm.Schedule, name: str) -> None:
    """Errors that change sign bend the slopes by up to a half."""
    process = PROCESSES[name]
    phi = factor(process, schedule, 0.1, 0.9)
    found, _ = errors(process.build(line.predictor(schedule)), solver, schedule, phi, 0.1, 0.9)
    assert line.order((40, 80, 160), found) > min(solver.order, 2) - 0.55


class Still(DPMSolver):
    """Gains of a flow, as if noise did not damp the change of the data."""

    def gains(self, field: Field, times: Tensor, now: Instant) -> list[tuple[float, ...]]:
        return super().gains(Field(gm.Flow(field.models[0]), field.like), times, now)


def test_order_two_needs_the_exposure_in_the_gain() -> None:
    schedule = SCHEDULES.CondOT()
    process = PROCESSES["memoryless"]
    generator, phi = gm.Diffusion(line.predictor(schedule)), factor(process, schedule, 0.1, 0.7)
    right, _ = errors(generator, DPMSolver(2), schedule, phi, 0.1, 0.7)
    wrong, _ = errors(generator, Still(2), schedule, phi, 0.1, 0.7)
    assert line.order((40, 80, 160), right) > 1.8
    assert line.order((40, 80, 160), wrong) < 1.3


# Ends.


@pytest.mark.parametrize(
    "solver", [DPMSolver(3), DPMSolver(2, "noise"), DPMSolverSingle(3), UniPC(3), DEIS(3)], ids=repr
)
def test_what_is_lost_where_log_snr_is_infinite(solver: Solver) -> None:
    """From t = 0 to t = 1 all fall to order 2 or below, as their docstrings say; Exponential(3) does not."""
    whole = (SCHEDULES.CondOT(), 0.0, 1.0)
    assert slope(solver, whole) < 2.3
    assert misses(solver, whole, steps=(160,))[0] < 1e-3
    assert slope(Exponential(3), whole) > 2.8


@pytest.mark.parametrize("order", [2, 3])
def test_deis_keeps_its_order_at_the_data(order: int) -> None:
    """Where the noise prediction is smooth in t: not so on VP, and not from pure noise."""
    assert slope(DEIS(order), (SCHEDULES.CondOT(), 0.1, 1.0)) > order - SLACK
    assert slope(DEIS(3), (SCHEDULES.VP(), 0.1, 1.0)) < 2.0


class Point(nn.Module):
    """All data are at 0.4."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.full_like(x, 0.4)


@pytest.mark.parametrize("schedule", [SCHEDULES.CondOT(), SCHEDULES.VP()], ids=repr)
@EVERY
def test_the_last_step_is_clean(solver: Solver, schedule: gm.Schedule) -> None:
    """Runs of any length end in the data exactly, from pure noise too; and with noise."""
    model = gm.predict.Data(Point(), gm.GaussianPath(schedule))
    flow, diffusion = gm.Flow(model), gm.Diffusion(model)
    noisy = [diffusion, 0.6 * flow + 0.4 * gm.Diffusion(model, lambda t: 1 - t)]
    for steps in (1, 2, 3, 6):
        for generator in (flow, *(noisy if isinstance(solver, DPMSolver) else ())):
            ends = gm.sample(generator, states(), steps=steps, solver=solver, seed=0)
            torch.testing.assert_close(ends, torch.full_like(ends, 0.4), rtol=1e-9, atol=1e-9)


@EVERY
def test_one_step_is_the_data_prediction(solver: Solver) -> None:
    model = bent(SCHEDULES.CondOT())
    end = gm.sample(gm.Flow(model), states(), steps=1, solver=solver)
    torch.testing.assert_close(end, model(states(), 0.0).data, rtol=1e-12, atol=1e-12)


@EVERY
def test_evaluations_are_the_networks_calls(solver: Solver) -> None:
    for start, stop, steps in ((0.0, 1.0, 6), (0.1, 0.9, 6), (0.1, 0.9, 1), (0.1, 0.9, 2)):
        flow = gm.Flow(line.predictor(SCHEDULES.CondOT()))
        network = flow.model.network
        times = start + (stop - start) * uniform(steps)
        count = solver.evaluations(solver.plan(Field(flow, states()), times))
        network.calls = 0
        line.walk(flow, solver, times, states())
        assert network.calls == count
        if not isinstance(solver, DPMSolverSingle):
            assert count <= steps + 2


def test_what_each_costs() -> None:
    field, times = Field(gm.Flow(line.predictor(SCHEDULES.CondOT())), states()), 0.1 + 0.8 * uniform(6)
    costs = {
        DPMSolver(3): 7,
        DPMSolver(3, start="lower"): 6,
        DPMSolverSingle(2): 12,
        DPMSolverSingle(3): 18,
        UniPC(2): 6,
        UniPC(3): 8,
        UniPC(3, corrector=False): 7,
        UniPC(3, start="lower"): 6,
        DEIS(3): 7,
        IPNDM(4): 6,
    }
    for solver, cost in costs.items():
        assert solver.evaluations(solver.plan(field, times)) == cost


@EVERY
def test_flows_run_back_at_the_same_order(solver: Solver) -> None:
    assert slope(solver, (SCHEDULES.CondOT(), 0.8, 0.1)) > solver.order - 0.4
    flow = gm.Flow(line.predictor(SCHEDULES.CondOT(), "velocity"))
    there = gm.sample(flow, states(), steps=60, solver=solver)
    back = gm.sample(flow, there, steps=60, solver=solver, start=1.0, stop=0.0)
    assert (back - states()).abs().max() < 0.3
    assert bool(back.isfinite().all())


def uneven(steps: int) -> Tensor:
    """Steps of length 1 and 3 by turns."""
    lengths = torch.tensor([1.0, 3.0], dtype=torch.float64).repeat(steps // 2)
    return torch.cat([torch.zeros(1, dtype=torch.float64), lengths.cumsum(0) / lengths.sum()])


def test_fixed_weights_are_of_order_one_on_uneven_grids() -> None:
    assert slope(IPNDM(4), SPANS["CondOT"], uneven) < 1.3
    assert slope(IPNDM(2), SPANS["CondOT"], uneven) < 1.3
    for solver in (DEIS(3), DPMSolver(3), UniPC(2), DPMSolverSingle(3)):
        assert slope(solver, SPANS["CondOT"], uneven) > solver.order - SLACK


# What is refused.


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DPMSolver(4), "order must be 1, 2 or 3, got 4"),
        (lambda: DPMSolver(2, "velocity"), "form must be 'data' or 'noise'"),
        (lambda: DPMSolver(3, start="none"), "start must be 'single'"),
        (lambda: DPMSolverSingle(1), "order must be 2 or 3, got 1: of order 1 it is gm.solvers.DDIM"),
        (lambda: DPMSolverSingle(2, "x0"), "form must be"),
        (lambda: UniPC(4), "order must be 1, 2 or 3"),
        (lambda: UniPC(2, "bh3"), "variant must be 'bh1' or 'bh2', got 'bh3'"),
        (lambda: UniPC(2, form="v"), "form must be"),
        (lambda: DEIS(0), "order must be 1, 2 or 3"),
        (lambda: DEIS(3, start=""), "start must be"),
        (lambda: IPNDM(5), "order must be 1, 2, 3 or 4, got 5"),
    ],
)
def test_wrong_parameters_are_refused(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


class Swirl(gm.Generator):
    speed = 0.0

    def triplet(self, x, t, prediction):
        return gm.Triplet(drift=prediction.score.flip(-1))


@EVERY
def test_what_is_not_semilinear_is_refused(solver: Solver) -> None:
    model = bent(SCHEDULES.CondOT())
    with pytest.raises(ValueError, match=f"{type(solver).__name__} needs one network and generators that are flow"):
        gm.sample(gm.Flow(model) + Swirl(model), states(), steps=3, solver=solver)


@pytest.mark.parametrize("solver", [UniPC(), DPMSolverSingle(), DEIS(), IPNDM()], ids=repr)
def test_solvers_of_flows_refuse_noise(solver: Solver) -> None:
    with pytest.raises(ValueError, match=f"{type(solver).__name__} moves flows, drift alone"):
        gm.sample(gm.Diffusion(bent(SCHEDULES.CondOT())), states(), steps=3, solver=solver)


@pytest.mark.parametrize("form", FORMS)
def test_noise_does_not_run_back(form: str) -> None:
    safe = gm.Diffusion(bent(SCHEDULES.CondOT()), gm.diffusivity.EndpointSafe())
    with pytest.raises(ValueError, match="noise runs from noise to data"):
        gm.sample(safe, states(), steps=3, start=0.9, stop=0.1, solver=DPMSolver(2, form))


@pytest.mark.parametrize("solver", [DPMSolver(), DPMSolverSingle(), UniPC(), DEIS(), IPNDM()], ids=repr)
def test_states_may_be_images_in_single_precision(solver: Solver) -> None:
    class Image(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return 0.5 * x

    flow = gm.Flow(gm.predict.Velocity(Image(), gm.GaussianPath()))
    x = gm.sample(flow, (2, 3, 4, 4), steps=4, solver=solver, seed=0)
    assert (x.shape, x.dtype) == ((2, 3, 4, 4), torch.float32)
