"""Identities between solvers, and with the formulas of the papers written out again, to rounding."""

from __future__ import annotations

import math

import gaussian_line as line
import pytest
import torch
from gaussian_line import Given
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from torch import Tensor, nn

import genmatch as gm
from genmatch.schedules import Instant
from genmatch.solvers import DDIM, DDPM, Euler, Exponential, Field, Heun, Solver

SCHEDULES = [
    gm.schedules.CondOT(),
    gm.schedules.CondOT(sigma_min=0.05),
    gm.schedules.Cosine(),
    gm.schedules.Polynomial(2),
    gm.schedules.VP(),
    gm.schedules.VE(),
    gm.schedules.EDM(),
    gm.schedules.DDPM(),
]
EXACT = {"rtol": 1e-12, "atol": 1e-12}


class Curved(nn.Module):
    """A nonlinear network of x and t without parameters."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(1.3 * x + 0.2 * x.flip(-1)) + 0.5 * torch.cos(0.01 * t)[:, None]


def normals(*shape: int) -> Tensor:
    return gm.Draws(5, shape[0]).normal(shape, torch.float64)


@pytest.mark.parametrize("least", [0.0, 0.1])
def test_euler_on_condot_is_ddim_and_both_are_the_plain_loop(least: float) -> None:
    flow = gm.Flow(gm.predict.Velocity(Curved(), gm.GaussianPath(gm.schedules.CondOT(least))))
    x0 = normals(6, 2)
    x, n = x0, 17
    for i in range(n):
        x = x + (1 / n) * Curved()(x, torch.full((6,), i / n, dtype=torch.float64))
    for solver in (Euler(), Exponential(1), DDIM()):
        torch.testing.assert_close(gm.sample(flow, x0, steps=n, solver=solver), x, **EXACT)
    assert (gm.sample(flow, x0, steps=n, solver=Heun()) - x).abs().max() > 1e-3


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("kind", line.KINDS)
def test_ddim_is_the_exponential_solver_of_order_one(schedule: gm.Schedule, kind: str) -> None:
    flow = gm.Flow(line.KINDS[kind](Curved(), gm.GaussianPath(schedule)))
    x0, times = normals(4, 2), torch.tensor([0.1, 0.25, 0.6, 0.7, 1.0], dtype=torch.float64)
    ddim = gm.sample(flow, x0, times=times, solver=DDIM())
    torch.testing.assert_close(ddim, gm.sample(flow, x0, times=times, solver=Exponential(1)), **EXACT)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("kind", ["velocity", "noise", "score", "v", "karras"])
@pytest.mark.parametrize("noisy", [False, True])
def test_all_predictors_of_one_law_give_the_same_run(order: int, kind: str, noisy: bool) -> None:
    schedule = gm.schedules.Cosine()
    x0, times = normals(4, 2), torch.linspace(0.1, 1, 9, dtype=torch.float64)
    build = gm.Diffusion if noisy else gm.Flow
    runs = [
        gm.sample(build(line.predictor(schedule, k)), x0, times=times, solver=Exponential(order), seed=1)
        for k in (kind, "data")
    ]
    torch.testing.assert_close(*runs, rtol=0, atol=1e-11)


# The chains of DDPM and DDIM, from their papers' formulas and nothing else.


class Chain:
    """betas, alphas and their running products; step n = T-1 .. 0."""

    def __init__(self, betas: Tensor) -> None:
        self.betas, self.alphas = betas, 1 - betas
        self.bars = self.alphas.cumprod(0)
        self.before = torch.cat([torch.ones(1, dtype=torch.float64), self.bars[:-1]])

    def ancestral(self, network: nn.Module, x: Tensor, z: Tensor) -> Tensor:
        """arXiv 2006.11239, eq. 6 and 7: mean of q(x_{n-1} | x_n, x_0) by the predicted x_0, variance beta tilde."""
        for n in reversed(range(len(self.betas))):
            beta, alpha, bar, before = self.betas[n], self.alphas[n], self.bars[n], self.before[n]
            noise = network(x, torch.full((len(x),), float(n), dtype=torch.float64))
            data = (x - (1 - bar).sqrt() * noise) / bar.sqrt()
            mean = before.sqrt() * beta / (1 - bar) * data + alpha.sqrt() * (1 - before) / (1 - bar) * x
            x = mean + ((1 - before) / (1 - bar) * beta).sqrt() * z[len(self.betas) - 1 - n]
        return x

    def implicit(self, network: nn.Module, x: Tensor, z: Tensor, chosen: list[int], eta: float) -> Tensor:
        """arXiv 2010.02502, eq. 12 and 16, over a falling subsequence of the chain and on to the data."""
        for i, n in enumerate(chosen):
            bar = self.bars[n]
            before = self.bars[chosen[i + 1]] if i + 1 < len(chosen) else torch.ones((), dtype=torch.float64)
            noise = network(x, torch.full((len(x),), float(n), dtype=torch.float64))
            std = eta * ((1 - before) / (1 - bar)).sqrt() * (1 - bar / before).sqrt()
            data = (x - (1 - bar).sqrt() * noise) / bar.sqrt()
            x = before.sqrt() * data + (1 - before - std**2).clamp(min=0).sqrt() * noise + std * z[i]
        return x


BETAS = {
    "linear-1000": torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64),
    "constant-10": torch.full((10,), 0.1, dtype=torch.float64),
}


@pytest.mark.parametrize("name", BETAS)
def test_ddpm_is_the_posterior_of_the_chain_and_the_exponential_solver_of_memoryless_noise(name: str) -> None:
    betas = BETAS[name]
    steps = len(betas)
    model = gm.predict.Noise(Curved(), gm.GaussianPath(gm.schedules.DDPM(betas.tolist())))
    x, z = normals(3, 2), gm.Draws(9, steps).normal((steps, 3, 2), torch.float64)
    draws = [Given(now) for now in z]
    times = gm.grids.uniform(steps)
    truth = Chain(betas).ancestral(Curved(), x, z)
    posterior = line.walk(gm.Flow(model), DDPM(), times, x, draws=draws)
    torch.testing.assert_close(posterior, truth, **EXACT)
    memoryless = line.walk(gm.Diffusion(model), Exponential(1), times, x, draws=draws)
    torch.testing.assert_close(memoryless, truth, **EXACT)
    torch.testing.assert_close(line.walk(gm.Flow(model), DDIM(1.0), times, x, draws=draws), truth, **EXACT)
    # Negative control: twice the noise, or none, is another sampler.
    for other in (gm.Diffusion(model, gm.diffusivity.Memoryless(2.0)), gm.Flow(model)):
        assert (line.walk(other, Exponential(1), times, x, draws=draws) - truth).abs().max() > 1e-3


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", BETAS)
def test_ddim_with_eta_is_the_papers_formula_on_a_subsequence(eta: float, name: str) -> None:
    betas = BETAS[name]
    length = len(betas)
    chosen = list(range(length - 1, -1, -20)) if length == 1000 else [9, 6, 5, 1]
    model = gm.predict.Noise(Curved(), gm.GaussianPath(gm.schedules.DDPM(betas.tolist())))
    x, z = normals(3, 2), gm.Draws(9, len(chosen)).normal((len(chosen), 3, 2), torch.float64)
    times = torch.tensor([1 - (n + 1) / length for n in chosen] + [1.0], dtype=torch.float64)
    ours = line.walk(gm.Flow(model), DDIM(eta), times, x, draws=[Given(now) for now in z])
    torch.testing.assert_close(ours, Chain(betas).implicit(Curved(), x, z, chosen, eta), **EXACT)


# Exact wherever the data prediction is what the solver takes it for.


class Fixed(nn.Module):
    """The same answer whatever the state."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.full_like(x, 0.4)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("kind", ["data", "noise"])
@pytest.mark.parametrize("order", [1, 2])
def test_one_step_is_a_thousand_where_the_prediction_is_constant(schedule, kind: str, order: int) -> None:
    flow = gm.Flow(line.KINDS[kind](Fixed(), gm.GaussianPath(schedule)))
    x, (t, s) = normals(4, 2), (0.1, 0.95)
    (a0, s0), (a1, s1) = line.levels(schedule, t), line.levels(schedule, s)
    truth = a1 * 0.4 + s1 / s0 * (x - a0 * 0.4) if kind == "data" else s1 * 0.4 + a1 / a0 * (x - s0 * 0.4)
    for steps in (1, 3, 40):
        torch.testing.assert_close(
            gm.sample(flow, x, steps=steps, start=t, stop=s, solver=Exponential(order)), truth, rtol=1e-10, atol=1e-10
        )


@settings(max_examples=40)
@given(
    inner=st.lists(st.floats(0.01, 0.99), min_size=2, max_size=8, unique_by=lambda t: round(t, 4)),
    schedule=st.sampled_from(SCHEDULES),
    order=st.sampled_from([1, 2]),
    falls=st.booleans(),
)
def test_on_any_times_in_either_direction(inner: list[float], schedule: gm.Schedule, order: int, falls: bool) -> None:
    """Constant data again: the state moves on a known line, over whichever steps."""
    times = sorted(inner, reverse=falls)
    flow = gm.Flow(gm.predict.Data(Fixed(), gm.GaussianPath(schedule)))
    x = normals(2, 1)
    (a0, s0), (a1, s1) = line.levels(schedule, times[0]), line.levels(schedule, times[-1])
    end = gm.sample(flow, x, times=times, solver=Exponential(order))
    # Backwards order 2 extrapolates the noise, which is not constant here: order 1 alone is exact.
    if order == 1 or not falls:
        torch.testing.assert_close(end, a1 * 0.4 + s1 / s0 * (x - a0 * 0.4), rtol=1e-8, atol=1e-8)
    assert end.isfinite().all()


@pytest.mark.parametrize("schedule", [SCHEDULES[0], SCHEDULES[2], SCHEDULES[4], SCHEDULES[6]], ids=repr)
@pytest.mark.parametrize(
    "diffusivity",
    [
        gm.diffusivity.Memoryless(),
        gm.diffusivity.Memoryless(3.0),
        gm.diffusivity.EndpointSafe(0.7),
        gm.diffusivity.Constant(0.2),
        gm.diffusivity.Function(lambda t: t * (1 - t)),
    ],
    ids=lambda d: type(d).__name__,
)
def test_one_noisy_step_has_the_law_of_many_where_the_data_prediction_is_constant(schedule, diffusivity) -> None:
    generator = gm.Diffusion(gm.predict.Data(Fixed(), gm.GaussianPath(schedule)), diffusivity)
    laws = []
    for steps in (1, 3, 40):
        offset, slope, stds = line.transfer(generator, Exponential(2), gm.grids.uniform(steps, 0.2, 0.9))
        laws.append(torch.tensor([offset, slope, (stds**2).sum().item()], dtype=torch.float64))
    torch.testing.assert_close(laws[0], laws[1], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(laws[0], laws[2], rtol=1e-9, atol=1e-10)


class Oscillator(nn.Module):
    """Data p + K sin(theta), or noise q + K cos(theta), of the time alone: the forced oscillator y'' + y = K."""

    K = 0.8

    def __init__(self, schedule: gm.Schedule, kind: str) -> None:
        super().__init__()
        self.schedule, self.wave = schedule, math.sin if kind == "data" else math.cos

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.full_like(x, 0.3 + self.K * self.wave(math.atan2(*line.levels(self.schedule, t[0].item()))))


class LogSNR(Exponential):
    """The gain of a data prediction that is linear in log-SNR (DPM-Solver++ 2M)."""

    def gains(self, field: Field, times: Tensor, now: Instant) -> list[tuple[float, ...]]:
        schedule = field.operator.path.schedule
        h = schedule.log_snr(times).diff() / 2
        alpha, _ = schedule(times)
        gains = -alpha[2:] * torch.expm1(-h[1:]) * h[1:] / (2 * h[:-1])
        return [(), *((gain,) for gain in gains.tolist())]


@pytest.mark.parametrize("schedule", SCHEDULES[:-1], ids=repr)
@pytest.mark.parametrize("kind", ["data", "noise"])
def test_order_two_solves_the_forced_oscillator_exactly_on_every_schedule(schedule: gm.Schedule, kind: str) -> None:
    """After its first step, which does not know K yet: forwards by the data, backwards by the noise."""
    flow = gm.Flow(line.KINDS[kind](Oscillator(schedule, kind), gm.GaussianPath(schedule), time=gm.predict.clocks.t))
    times = torch.tensor([0.1, 0.2, 0.5, 0.6, 0.95], dtype=torch.float64)
    times = times if kind == "data" else times.flip(0)
    angles = torch.tensor([math.atan2(*line.levels(schedule, t)) for t in times.tolist()], dtype=torch.float64)
    norms = torch.tensor([math.hypot(*line.levels(schedule, t)) for t in times.tolist()], dtype=torch.float64)

    def misses(solver: Solver) -> float:
        states = gm.sample(flow, normals(1, 1), times=times, solver=solver, trajectory=True).flatten() / norms
        sine, cosine, k = angles.sin(), angles.cos(), Oscillator.K
        # y = p sin + q cos + K through the state after the first step
        if kind == "data":
            truth = 0.3 * sine + (states[1] - 0.3 * sine[1] - k) / cosine[1] * cosine + k
        else:
            truth = 0.3 * cosine + (states[1] - 0.3 * cosine[1] - k) / sine[1] * sine + k
        return ((states - truth)[2:].abs() / (1 + truth[2:].abs())).max().item()

    assert misses(Exponential(2)) < 1e-11
    assert misses(Exponential(1)) > 1e-4
    if kind == "data":
        assert misses(LogSNR(2)) > 1e-4


@pytest.mark.parametrize("schedule", [SCHEDULES[0], SCHEDULES[2], SCHEDULES[4]], ids=repr)
@pytest.mark.parametrize(
    ("diffusivity", "variance"),
    [
        (gm.diffusivity.EndpointSafe(0.5), lambda a, s, w: s * w),
        (gm.diffusivity.Memoryless(), lambda a, s, w: 2 * s * w / a),
        (gm.diffusivity.Constant(0.3), lambda a, s, w: 0.3),
    ],
    ids=["endpoint-safe", "memoryless", "constant"],
)
def test_order_two_damps_the_change_of_the_data_by_the_noise_exactly(schedule, diffusivity, variance) -> None:
    """Data p + K sin(theta) under noise: the mean solves a linear equation, integrated here by other means."""
    model = gm.predict.Data(Oscillator(schedule, "data"), gm.GaussianPath(schedule))
    times = torch.tensor([0.3, 0.4, 0.6, 0.7], dtype=torch.float64)

    def slope(t: float, x):
        alpha, sigma, alpha_dot, sigma_dot = line.numbers(schedule, t)
        g2 = variance(alpha, sigma, alpha_dot * sigma - alpha * sigma_dot)
        data = 0.3 + Oscillator.K * math.sin(math.atan2(alpha, sigma))
        noise = (x - alpha * data) / sigma
        return alpha_dot * data + sigma_dot * noise - g2 / (2 * sigma) * noise

    def mean(generator, solver: Solver) -> list[float]:
        x = torch.ones(1, 1, dtype=torch.float64)
        silent = [Given(torch.zeros(1, 1, dtype=torch.float64))] * 3
        return [line.walk(generator, solver, times[: n + 1], x, draws=silent[:n]).item() for n in (1, 2, 3)]

    first, *states = mean(gm.Diffusion(model, diffusivity), Exponential(2))
    options = {"rtol": 1e-12, "atol": 1e-13, "method": "DOP853"}
    truth = solve_ivp(slope, (0.4, 0.7), [first], t_eval=[0.6, 0.7], **options).y[0]
    torch.testing.assert_close(torch.tensor(states), torch.tensor(truth.tolist()), rtol=0, atol=1e-11)
    assert abs(mean(gm.Diffusion(model, diffusivity), Exponential(1))[-1] - truth[-1]) > 1e-4


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("schedule", SCHEDULES[1:-1], ids=repr)
def test_the_schedule_does_not_matter_at_equal_signal_to_noise(order: int, noisy: bool, schedule) -> None:
    """One algorithm on the same samples up to scale: flows and memoryless diffusions see signal to noise alone."""
    base, build = gm.schedules.CondOT(), gm.Diffusion if noisy else gm.Flow
    levels = torch.linspace(-3, 4, 12, dtype=torch.float64)
    runs = []
    for s in (base, schedule):
        times = s.inverse_log_snr(levels)
        assert times.diff().gt(0).all()
        start = math.hypot(*line.levels(s, times[0].item()))
        stop = math.hypot(*line.levels(s, times[-1].item()))
        x = start * normals(3, 2)
        draws = [Given(z) for z in gm.Draws(3, 11).normal((11, 3, 2), torch.float64)]
        runs.append(line.walk(build(line.predictor(s)), Exponential(order), times, x, draws=draws) / stop)
    torch.testing.assert_close(*runs, rtol=0, atol=1e-9)


def test_heun_is_the_trapezium_rule_by_hand() -> None:
    """Tableaus against the textbook's lines, on a network that bends."""
    flow = gm.Flow(gm.predict.Velocity(Curved(), gm.GaussianPath()))
    x = normals(5, 2)

    def u(state: Tensor, t: float) -> Tensor:
        return Curved()(state, torch.full((5,), t, dtype=torch.float64))

    t, h = 0.25, 0.5
    k1 = u(x, t)
    expected = {"Heun": x + h / 2 * (k1 + u(x + h * k1, t + h)), "Midpoint": x + h * u(x + h / 2 * k1, t + h / 2)}
    k2 = u(x + h / 2 * k1, t + h / 2)
    k3 = u(x + h / 2 * k2, t + h / 2)
    expected["RK4"] = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + u(x + h * k3, t + h))
    for name, truth in expected.items():
        solver = getattr(gm.solvers, name)()
        torch.testing.assert_close(gm.sample(flow, x, times=[t, t + h], solver=solver), truth, **EXACT)


@pytest.mark.parametrize("solver", [Euler(), Heun()], ids=repr)
def test_stochastic_steps_by_hand(solver: Solver) -> None:
    """Drift u + g^2 s / 2 and noise g sqrt(h) z, written out on the Gaussian law; one increment for both stages."""
    schedule = gm.schedules.Cosine()
    generator = gm.Diffusion(line.predictor(schedule), gm.diffusivity.Constant(0.4))
    x, z, (t, h) = normals(5, 1), normals(5, 1) + 0.3, (0.3, 0.2)

    def drift(state: Tensor, t: float) -> Tensor:
        alpha, sigma, alpha_dot, sigma_dot = line.numbers(schedule, t)
        centred = (state - alpha * line.MEAN) / line.spread(schedule, t)
        u = alpha_dot * line.MEAN + (alpha * alpha_dot * line.VARIANCE + sigma * sigma_dot) * centred
        return u - 0.2 * centred

    noise = math.sqrt(h * 0.4) * z
    truth = x + h * drift(x, t) + noise
    if isinstance(solver, Heun):
        truth = x + h / 2 * (drift(x, t) + drift(truth, t + h)) + noise
    times = torch.tensor([t, t + h], dtype=torch.float64)
    torch.testing.assert_close(line.walk(generator, solver, times, x, draws=[Given(z)]), truth, **EXACT)


def test_steps_that_differ_a_millionfold_stay_finite_and_right() -> None:
    """Near the ends the sines of the angle are equal to rounding; their differences are taken by products."""
    schedule = gm.schedules.CondOT()
    x = normals(4, 1)
    times = [0.0, 1e-9, 2e-9, *(i / 50 for i in range(1, 50)), 1 - 2e-8, 1 - 1e-8, 1.0]
    for build in (gm.Flow, gm.Diffusion):
        end = gm.sample(build(line.predictor(schedule)), x, times=times, seed=0, check=True)
        assert end.isfinite().all()
    truth = line.flow_map(schedule, x, 0.0, 1.0)
    # The flow's: no worse than on the same grid without the crowded ends.
    crowded = gm.sample(gm.Flow(line.predictor(schedule)), x, times=[0.0, *times[3:]])
    plain = gm.sample(gm.Flow(line.predictor(schedule)), x, steps=50)
    assert (crowded - truth).abs().max() < 2 * (plain - truth).abs().max()
