"""Adaptive steps for each sample: errors against closed forms and scipy, costs, failures, states between."""

from __future__ import annotations

import math

import gaussian_line as line
import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn

import genmatch as gm
from genmatch.solvers import Dopri5, Field, UnfinishedError, controller, pair
from genmatch.solvers import adaptive as module
from genmatch.solvers.controller import Controller, first_step, size
from genmatch.solvers.pair import CURVE, ERROR, Trial, try_step
from genmatch.solvers.report import CAPPED, DONE, NOT_FINITE, TOO_SMALL
from genmatch.spaces import Euclidean

DOUBLE = torch.float64
CLASSICAL = (0.0, 1.0, 0.0)
C = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
B = (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0)
TOLERANCES = (1e-3, 1e-6, 1e-9)
MIXTURE = gm.worlds.GaussianMixture(
    torch.tensor([[-1.5, 0.2], [1.0, 1.2], [0.6, -1.0]]),
    torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.2, 0.0], [0.0, 0.4]], [[0.25, -0.1], [-0.1, 0.3]]]) / 10,
    [0.5, 0.2, 0.3],
)


class Law(nn.Module):
    """A perfect network of a kind for the Gaussian on the line, at a time for each sample."""

    def __init__(self, kind: str, schedule: gm.Schedule) -> None:
        super().__init__()
        self.kind, self.schedule, self.rows = kind, schedule, 0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.rows += len(x)
        alpha, sigma = (value[:, None] for value in self.schedule(t.to(x.dtype)))
        centred = x - alpha * line.MEAN
        spread = alpha**2 * line.VARIANCE + sigma**2
        data, noise = line.MEAN + alpha * line.VARIANCE / spread * centred, sigma / spread * centred
        if self.kind == "velocity":  # on CondOT
            return data - noise
        return {"data": data, "noise": noise, "v": alpha * noise - sigma * data}[self.kind]


class Rate(nn.Module):
    """A velocity given as a function of (x, t) with t along the batch."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function, self.rows = function, 0

    def forward(self, x: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        self.rows += len(x)
        return self.function(x, t.reshape(-1, *[1] * (x.ndim - 1)), **condition)


def law(kind: str, schedule: gm.Schedule) -> gm.Flow:
    return gm.Flow(line.KINDS[kind](Law(kind, schedule), gm.GaussianPath(schedule), time=gm.predict.clocks.t))


def flow_of(function) -> gm.Flow:
    return gm.Flow(gm.predict.Velocity(Rate(function), gm.GaussianPath()))


def run(generator, x: Tensor, *, solver: Dopri5 | None = None, **options):
    """States and report."""
    return gm.sample(generator, x, solver=solver or Dopri5(), report=True, **options)


def starts(schedule: gm.Schedule, t: float) -> Tensor:
    return torch.linspace(-2, 2, 9, dtype=DOUBLE)[:, None] * line.spread(schedule, t) ** 0.5


# Errors


@pytest.mark.parametrize("kind", ["data", "noise", "v"])
@pytest.mark.parametrize(
    "schedule", [gm.schedules.CondOT(), gm.schedules.VP(), gm.schedules.EDM()], ids=lambda s: type(s).__name__
)
def test_the_error_follows_the_tolerance_to_the_ends_of_the_path(kind: str, schedule: gm.Schedule) -> None:
    """A data network is not finite at the data, a noise network at pure noise, no velocity of VP at the data."""
    generator = law(kind, schedule)
    for tolerance in TOLERANCES:
        x = starts(schedule, 0.0)
        end, report = run(generator, x, solver=Dopri5(tolerance, tolerance))
        assert report.status.eq(DONE).all()
        truth = line.flow_map(schedule, x, 0.0, 1.0)
        assert (end - truth).abs().max() < 20 * tolerance


@pytest.mark.parametrize("kind", ["data", "noise"])
@pytest.mark.parametrize("schedule", [gm.schedules.CondOT(), gm.schedules.VP()], ids=lambda s: type(s).__name__)
def test_back_to_the_noise_and_forth(kind: str, schedule: gm.Schedule) -> None:
    generator = law(kind, schedule)
    for tolerance in (1e-4, 1e-7):
        x = starts(schedule, 1.0)
        noise, _ = run(generator, x, solver=Dopri5(tolerance, tolerance), start=1.0, stop=0.0)
        assert (noise - line.flow_map(schedule, x, 1.0, 0.0)).abs().max() < 20 * tolerance
        back, _ = run(generator, noise, solver=Dopri5(tolerance, tolerance))
        assert (back - x).abs().max() < 20 * tolerance


def velocity(schedule: gm.Schedule, t: float, y: np.ndarray) -> np.ndarray:
    """The mixture's, from its definition."""
    alpha, sigma, alpha_dot, sigma_dot = line.numbers(schedule, t)
    parts, logs = [], []
    for mean, values, vectors, weight in zip(
        MIXTURE.means.numpy(), MIXTURE.values.numpy(), MIXTURE.vectors.numpy(), MIXTURE.weights.numpy(), strict=True
    ):
        covariance = vectors @ np.diag(values) @ vectors.T
        spread = alpha**2 * covariance + sigma**2 * np.eye(2)
        solved = np.linalg.solve(spread, y - alpha * mean)
        parts.append(mean + alpha * covariance @ solved)
        logs.append(math.log(weight) - (y - alpha * mean) @ solved / 2 - math.log(np.linalg.det(spread)) / 2)
    shares = np.exp(np.array(logs) - max(logs))
    data = shares @ np.array(parts) / shares.sum()
    return alpha_dot * data + sigma_dot * (y - alpha * data) / sigma


def scipy_run(schedule: gm.Schedule, x: Tensor, stop: float, method: str, tolerance: float) -> tuple[Tensor, list[int]]:
    """Each sample on its own: ends and evaluations."""
    runs = [
        solve_ivp(lambda t, y: velocity(schedule, t, y), (0, stop), y, method=method, rtol=tolerance, atol=tolerance)
        for y in x.numpy()
    ]
    return torch.tensor(np.array([r.y[:, -1] for r in runs])), [r.nfev for r in runs]


WORLDS = [(gm.schedules.CondOT(), 0.99), (gm.schedules.VP(), 0.99), (gm.schedules.EDM(), 1.0)]


@pytest.mark.parametrize(("schedule", "stop"), WORLDS, ids=[type(s).__name__ for s, _ in WORLDS])
def test_a_mixture_against_scipy(schedule: gm.Schedule, stop: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The classical controller takes the very steps of scipy's RK45, if they may grow tenfold as they may there."""
    generator = gm.Flow(MIXTURE.predictor(gm.GaussianPath(schedule)))
    x = gm.Draws(0, 4).normal((4, 2), DOUBLE) * line.levels(schedule, 0.0)[1]
    truth, _ = scipy_run(schedule, x, stop, "DOP853", 1e-11)
    for tolerance in (1e-3, 1e-6):
        theirs, costs = scipy_run(schedule, x, stop, "RK45", tolerance)
        end, report = run(generator, x, solver=Dopri5(tolerance, tolerance), stop=stop)
        assert sum(report.evaluations.tolist()) < 1.5 * sum(costs)
        assert (end - truth).abs().max() < max(60 * tolerance, 3 * (theirs - truth).abs().max())
        with monkeypatch.context() as patch:
            patch.setattr(controller, "MOST", 10.0)
            end, report = run(generator, x, solver=Dopri5(tolerance, tolerance, pid=CLASSICAL), stop=stop)
        assert sum(report.evaluations.tolist()) == pytest.approx(sum(costs), rel=0.03)
        assert (end - theirs).abs().max() < 0.1 * (theirs - truth).abs().max() + 1e-9


def test_the_error_goes_down_with_the_tolerance_and_the_cost_goes_up_as_its_fifth_root() -> None:
    schedule = gm.schedules.EDM()
    generator, x = law("data", schedule), starts(schedule, 0.0)
    errors, costs = [], []
    tolerances = [1e-4, 1e-5, 1e-6, 1e-7, 1e-8]
    for tolerance in tolerances:
        end, report = run(generator, x, solver=Dopri5(tolerance, tolerance))
        errors.append((end - line.flow_map(schedule, x, 0.0, 1.0)).abs().max().item())
        costs.append(report.accepted.double().mean().item())
    inverse = [round(1 / tolerance) for tolerance in tolerances]
    assert line.order(inverse, errors) == pytest.approx(1.0, abs=0.15)
    assert -line.order(inverse, costs) == pytest.approx(0.2, abs=0.04)


def test_a_linear_field_in_two_dimensions_costs_a_few_dozen_evaluations() -> None:
    turn = torch.tensor([[-0.5, -3.0], [3.0, -0.5]])
    generator = flow_of(lambda x, t: x @ turn.to(x).T)
    x = gm.Draws(0, 64).normal((64, 2), DOUBLE)
    end, report = run(generator, x)
    assert report.evaluations.max() < 150
    assert (end - x @ torch.matrix_exp(turn.double()).T).abs().max() < 1e-4


def test_wrong_weights_of_the_error_leave_it_uncontrolled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the tests above: with a hundredth of the estimate the error is beyond what they allow."""
    schedule = gm.schedules.EDM()
    x, generator = starts(schedule, 0.0), law("data", schedule)
    monkeypatch.setattr(pair, "ERROR", tuple(e / 1000 for e in ERROR))
    end, _ = run(generator, x, solver=Dopri5(1e-5, 1e-5))
    assert (end - line.flow_map(schedule, x, 0.0, 1.0)).abs().max() > 20 * 1e-5


# The pair


def test_the_weights_of_the_error_are_those_of_a_method_of_order_four() -> None:
    """b - e integrates t^4 exactly with a sum over the stages, and t^5 not."""
    lower = [b - e for b, e in zip(B, ERROR, strict=True)]
    for power in range(4):
        exact = 1 / (power + 1)
        assert sum(b * c**power for b, c in zip(B, C, strict=True)) == pytest.approx(exact, abs=1e-14)
        assert sum(b * c**power for b, c in zip(lower, C, strict=True)) == pytest.approx(exact, abs=1e-14)
    assert sum(b * c**4 for b, c in zip(B, C, strict=True)) == pytest.approx(1 / 5, abs=1e-14)
    assert abs(sum(b * c**4 for b, c in zip(lower, C, strict=True)) - 1 / 5) > 1e-4


def within_one_step(h: float, share: float) -> tuple[float, float]:
    """Error of the state within a step of x' = 2 t x, and at its end."""
    field = Field(flow_of(lambda x, t: 2 * t * x), torch.ones(1, 1, dtype=DOUBLE))
    t, until = torch.full((1,), 0.2, dtype=DOUBLE), torch.full((1,), 0.2 + h, dtype=DOUBLE)
    x = torch.full((1, 1), math.exp(0.04), dtype=DOUBLE)
    trial = try_step(field, x, pair.slope(field, x, field.among(t)), t, until)
    inner = trial.within(torch.full((1,), share, dtype=DOUBLE)).item()
    return abs(inner - math.exp((0.2 + share * h) ** 2)), abs(trial.end.item() - math.exp((0.2 + h) ** 2))


def test_a_step_has_order_five_and_the_states_within_it_order_four(monkeypatch: pytest.MonkeyPatch) -> None:
    """A local error of h^5; of h^4 without the fourth-degree term, and of h^6 at the end."""
    steps = [12, 16, 24, 32]
    inner, ends = zip(*(within_one_step(1 / n, 0.4) for n in steps), strict=True)
    assert line.order(steps, inner) == pytest.approx(5, abs=0.4)
    assert line.order(steps, ends) > 5.6
    monkeypatch.setattr(pair, "CURVE", (0.0,) * len(CURVE))
    inner, _ = zip(*(within_one_step(1 / n, 0.4) for n in steps), strict=True)
    assert line.order(steps, inner) == pytest.approx(4, abs=0.4)


def test_states_within_a_step_meet_its_ends_exactly() -> None:
    draws = gm.Draws(0, 5)
    x, end = draws.fork(1).normal((5, 3)), draws.fork(2).normal((5, 3))
    trial = Trial(x, torch.full((5, 1), 0.1), tuple(draws.fork(20 + i).normal((5, 3)) for i in range(7)), end)
    assert torch.equal(trial.within(torch.zeros(5, dtype=DOUBLE)), x)
    assert torch.equal(trial.within(torch.ones(5, dtype=DOUBLE)), end)
    slope = (trial.within(torch.full((5,), 1e-3, dtype=DOUBLE)).double() - x) / 1e-4
    assert (slope - trial.slopes[0]).abs().max() < 0.1  # and its slopes


@pytest.mark.parametrize("kind", ["v", "data", "noise"])
@pytest.mark.parametrize(("start", "stop"), [(0.0, 1.0), (1.0, 0.0)])
def test_states_at_times_asked_for_change_nothing(kind: str, start: float, stop: float) -> None:
    """Not the end to a bit, not the steps; and they are right, also in the layers where the field is not finite."""
    schedule = gm.schedules.CondOT()
    generator, x = law(kind, schedule), starts(schedule, start)
    times = start + (stop - start) * torch.cat(
        [torch.tensor([0.0, 1e-6, 1e-4]), torch.linspace(0.01, 0.99, 40), torch.tensor([1 - 1e-4, 1 - 1e-6, 1.0])]
    ).to(DOUBLE)
    solver = Dopri5(1e-7, 1e-7)
    alone, cost = run(generator, x, start=start, stop=stop, solver=solver)
    states, report = run(generator, x, times=times, trajectory=True, solver=solver)
    assert torch.equal(states[-1], alone)
    assert torch.equal(report.accepted, cost.accepted)
    assert torch.equal(report.rejected, cost.rejected)
    for t, state in zip(times.tolist(), states, strict=True):
        assert (state - line.flow_map(schedule, x, start, t)).abs().max() < 1e-5, t


def test_states_between_are_kept_until_the_slowest_sample_is_there() -> None:
    """One sample takes long steps over many times, another short ones."""
    generator = flow_of(lambda x, t: torch.where(x.abs() > 5, x * torch.cos(60 * t), 0.1 * x))
    x = torch.tensor([[1.0], [20.0]], dtype=DOUBLE)
    times = torch.linspace(0, 1, 30, dtype=DOUBLE)
    states, report = run(generator, x, times=times, trajectory=True)
    truth = torch.stack([torch.exp(0.1 * times), 20 * torch.exp(torch.sin(60 * times) / 60)], 1)
    assert (states[..., 0] - truth).abs().max() < 5e-3
    assert report.accepted[0] * 5 < report.accepted[1]


# Each sample for itself


def stiff(x: Tensor, t: Tensor) -> Tensor:
    """Mild where |x| < 5, oscillating fast elsewhere; elementwise arithmetic."""
    wave = (t * 40) % 2.0 - 1.0
    return torch.where(x.abs() > 5, 40 * x * wave * (1 - wave.abs()), -x * t)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sample_does_not_depend_on_its_batch(dtype: torch.dtype) -> None:
    generator = flow_of(stiff)
    x = (gm.Draws(3, 41).normal((41, 5)) * 2).to(dtype)
    x[7] = 9.0
    end, report = run(generator, x)
    for i in (0, 7, 40):
        alone, own = run(generator, x[i : i + 1])
        assert torch.equal(alone[0], end[i])
        assert [int(part[i]) for part in report] == [int(part[0]) for part in own]
    again = gm.sample(generator, x, solver=Dopri5(), batch_size=8)
    assert torch.equal(again, end)


def test_easy_samples_beside_a_stiff_one_stay_cheap() -> None:
    generator = flow_of(stiff)
    x = gm.Draws(3, 32).normal((32, 5), DOUBLE).clamp(-3, 3)
    x[5] = 9.0
    _, report = run(generator, x)
    easy = torch.arange(32) != 5
    assert report.evaluations[easy].max() < 100
    assert report.evaluations[5] > 8 * report.evaluations[easy].max()
    assert torch.equal(report.evaluations, 2 + 6 * (report.accepted + report.rejected))
    assert report.rejected[5] > 0
    # What the network saw is what the samples cost: those that are done are left out.
    assert generator.model.network.rows == report.evaluations.sum()


def test_conditions_go_with_their_samples() -> None:
    generator = flow_of(lambda x, t, rate: rate[:, None] * torch.cos(rate[:, None] * t))
    rates = torch.tensor([0.5, 30.0, 2.0, 60.0, 1.0], dtype=DOUBLE)
    end, report = run(generator, torch.zeros(5, 1, dtype=DOUBLE), condition={"rate": rates})
    assert (end[:, 0] - rates.sin()).abs().max() < 1e-3
    assert report.accepted[3] > 2 * report.accepted[0]


def test_weights_that_are_functions_of_time_are_taken_at_each_samples_time() -> None:
    flow = law("velocity", gm.schedules.CondOT())
    other = law("velocity", gm.schedules.CondOT())
    mixed = (lambda t: 1 + math.sin(9 * t)) * flow - (lambda t: math.sin(9 * t)) * other
    x = starts(gm.schedules.CondOT(), 0.0)
    end, _ = run(mixed, x)
    assert (end - line.flow_map(gm.schedules.CondOT(), x, 0.0, 1.0)).abs().max() < 1e-4
    with pytest.raises(ValueError, match="the weights carry the path at speed"):
        run((lambda t: 1.0 if t in (0.0, 1.0) else 0.5) * flow, x)


def test_a_reversed_flow_runs_back() -> None:
    schedule = gm.schedules.CondOT()
    x = starts(schedule, 1.0)
    back, _ = run(gm.Reverse(law("velocity", schedule)), x, start=1.0, stop=0.0)
    assert (back - line.flow_map(schedule, x, 1.0, 0.0)).abs().max() < 1e-4


def test_a_state_that_carries_more_is_controlled_as_a_whole() -> None:
    """x and its logarithm, which is integrated beside it; done samples stay where they are."""
    flow = flow_of(lambda x, t: x * torch.cos(x.sign() * 9 * t))
    like = torch.ones(3, 1, dtype=DOUBLE)

    def lift(triplet, state, instant):
        drift = triplet(state[:, :1], instant).drift
        return gm.Triplet(drift=torch.cat([drift, drift / state[:, :1]], 1))

    field = Field(flow, like, lift=lift)
    solver, times = Dopri5(), torch.tensor([0.0, 0.5, 1.0], dtype=DOUBLE)
    assert solver.defined(field, 0.0)
    state, carry = torch.tensor([[1.0, 0.0], [-0.1, 0.0], [5.0, 0.0]], dtype=DOUBLE), None
    for c in solver.plan(field, times):
        state, carry = solver.step(field, state, c, gm.Draws(0, 3), carry)
    assert (state[:, 1] - math.sin(9) / 9).abs().max() < 1e-4
    assert carry.report().status.eq(DONE).all()
    with pytest.raises(ValueError, match="can only be followed by steps"):
        solver.plan(Field(law("data", gm.schedules.CondOT()), like, lift=lift), times)


# Samples that do not get to the end


def test_the_cap_is_never_exceeded_and_holds_for_each_sample() -> None:
    x = gm.Draws(3, 8).normal((8, 5), DOUBLE).clamp(-3, 3)
    x[5] = 9.0
    generator = flow_of(stiff)
    _, full = run(generator, x)
    states, report = run(generator, x, solver=Dopri5(max_evaluations=200))
    assert report.status.tolist() == [DONE] * 5 + [CAPPED] + [DONE] * 2
    assert 200 - 6 < report.evaluations[5] <= 200 < full.evaluations[5]
    assert states.isfinite().all()
    with pytest.raises(UnfinishedError, match="1 of 8: the most evaluations"):
        gm.sample(generator, x, solver=Dopri5(max_evaluations=200))


def test_a_network_that_is_not_finite_for_one_sample() -> None:
    generator = flow_of(lambda x, t: torch.where(x > 3, math.nan, -x))
    x = torch.tensor([[1.0], [4.0], [2.0]], dtype=DOUBLE)
    states, report = run(generator, x)
    assert report.status.tolist() == [DONE, NOT_FINITE, DONE]
    assert states[1].item() == 4.0
    assert (states[[0, 2]] - x[[0, 2]] * math.exp(-1)).abs().max() < 1e-4


def test_a_network_that_ceases_to_be_finite() -> None:
    """The sample stops before the time at which it does, as near as its step can."""
    generator = flow_of(lambda x, t: torch.where((x > 3) & (t > 0.5), math.nan, 0.0 * x + 1))
    x = torch.tensor([[1.0], [4.0]], dtype=DOUBLE)
    states, report = run(generator, x, times=[0.0, 0.25, 0.75, 1.0], trajectory=True)
    assert report.status.tolist() == [DONE, NOT_FINITE]
    assert states[:, 0, 0].tolist() == pytest.approx([1.0, 1.25, 1.75, 2.0])
    assert states[:, 1, 0].tolist() == pytest.approx([4.0, 4.25, 4.5, 4.5])


def test_a_step_that_becomes_too_small() -> None:
    """In float32 a jump of the field of 1e4 cannot be stepped over: its error is 1e4 times the step."""
    generator = flow_of(lambda x, t: torch.where((x > 3) & (t > 0.5), 1e6 * torch.ones_like(x), -x * 0))
    x = torch.tensor([[1.0], [4.0]])
    states, report = run(generator, x)
    assert report.status.tolist() == [DONE, TOO_SMALL]
    assert states.flatten().tolist() == [1.0, 4.0]
    with pytest.raises(UnfinishedError, match="the step became too small"):
        gm.sample(generator, x, solver=Dopri5())


def test_all_samples_may_fail() -> None:
    states, report = run(flow_of(lambda x, t: x * math.nan), torch.ones(2, 1), times=[0.0, 0.5, 1.0])
    assert report.status.tolist() == [NOT_FINITE] * 2
    assert states.tolist() == [[1.0], [1.0]]


# The controller


def test_the_factor_is_that_of_the_equation() -> None:
    p, i, d, safety = 0.4, 0.3, 0.1, 0.8
    error, before, earlier = (torch.tensor([v], dtype=DOUBLE) for v in (0.5, 0.2, 0.7))
    free = torch.zeros(1, dtype=torch.bool)
    factor = Controller(p, i, d, safety).factor(error, before, earlier, free)
    expected = safety * 0.5 ** (-(p + i + d) / 5) * 0.2 ** ((p + 2 * d) / 5) * 0.7 ** (-d / 5)
    assert factor.item() == pytest.approx(expected, rel=1e-6)
    classical = Controller(0, 1, 0, 0.9)
    errors = torch.tensor([1e-12, 1e-3, 32.0, 1e9, math.inf, math.nan], dtype=DOUBLE)
    one, held = torch.ones(6, dtype=DOUBLE), torch.ones(6, dtype=torch.bool)
    assert classical.factor(errors, one, one, ~held).tolist() == pytest.approx([5, 0.9 * 1e3**0.2, 0.45, 0.2, 0.2, 0.2])
    assert classical.factor(errors, one, one, held).tolist() == pytest.approx([1, 1, 0.45, 0.2, 0.2, 0.2])


def test_the_size_is_the_root_mean_square_and_the_same_in_every_batch() -> None:
    x = gm.Draws(0, 37).normal((37, 3, 5, 7))
    scale = 0.5 + x.abs()
    found = size(x, scale)
    assert torch.allclose(found, (x.double() / scale).square().mean((1, 2, 3)).sqrt(), rtol=1e-6)
    assert all(torch.equal(size(x[i : i + 1], scale[i : i + 1]), found[i : i + 1]) for i in range(37))


def test_the_first_step_shrinks_with_the_curvature() -> None:
    tried = torch.full((3,), 1e-3, dtype=DOUBLE)
    slope, change = torch.tensor([1.0, 1.0, 0.0]).double(), torch.tensor([1e-3, 1.0, 0.0]).double()
    lengths = first_step(slope, change, tried)
    assert lengths.tolist() == pytest.approx([0.1, (0.01 / 1e3) ** 0.2, 1e-6], rel=1e-6)  # at most 100 times as tried


def test_a_proportional_gain_saves_rejected_steps_on_a_stiff_schedule() -> None:
    generator = gm.Flow(MIXTURE.predictor(gm.GaussianPath(gm.schedules.VP())))
    x = gm.Draws(0, 32).normal((32, 2), DOUBLE)
    reports = [run(generator, x, solver=Dopri5(1e-6, 1e-6, pid=pid))[1] for pid in (CLASSICAL, (0.4, 0.3, 0.0))]
    classical, both = (report.rejected.double().mean().item() for report in reports)
    assert both < 0.6 * classical
    assert reports[1].evaluations.double().mean() < 1.1 * reports[0].evaluations.double().mean()


# Gradients


def test_gradients_agree_with_finite_differences_of_the_same_steps() -> None:
    """With the closed form: d x_1 / d x_0 of the Gaussian world, and of a parameter."""
    scale = torch.tensor(3.0, dtype=DOUBLE, requires_grad=True)
    generator = flow_of(lambda x, t: torch.cos(scale * t) * x)
    x = torch.tensor([[0.5], [2.0]], dtype=DOUBLE, requires_grad=True)
    end = gm.sample(generator, x, solver=Dopri5(1e-9, 1e-9), grad=True)
    grad_x, grad_scale = torch.autograd.grad(end.sum(), (x, scale))
    factor = math.exp(math.sin(3) / 3)
    assert (grad_x - factor).abs().max() < 1e-7
    assert grad_scale.item() == pytest.approx(2.5 * factor * (math.cos(3) / 3 - math.sin(3) / 9), abs=1e-6)


def test_rejected_steps_that_are_not_finite_leave_the_gradient_alone() -> None:
    """Trying too long a step leads to the root of a negative number, whose derivative is nan."""
    generator = flow_of(lambda x, t: -torch.sqrt(x))
    x = torch.tensor([[0.3], [4.0]], dtype=DOUBLE, requires_grad=True)
    solver = Dopri5(first_step=1.0)
    end, report = run(generator, x, solver=solver, grad=True, stop=0.9)
    (gradient,) = torch.autograd.grad(end.sum(), x)
    assert report.rejected[0] > 0
    assert (end - (x.sqrt() - 0.45) ** 2).abs().max() < 1e-4
    assert (gradient - (1 - 0.45 / x.sqrt())).abs().max() < 1e-3


# What is refused


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"rtol": -1.0}, "rtol must be"),
        ({"atol": math.nan}, "atol must be"),
        ({"rtol": 0.0, "atol": 0.0}, r"rtol \+ atol must be above 0"),
        ({"max_evaluations": 15}, "max_evaluations must be at least 16"),
        ({"safety": 1.0}, "safety must be in"),
        ({"first_step": 0.0}, "first_step must be in"),
        ({"pid": (1.0, 2.0)}, "pid must be three numbers"),
        ({"pid": (0.4, 0.0, 0.0)}, "the integral gain must be positive"),
    ],
)
def test_wrong_options(options: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Dopri5(**options)


def test_a_cap_that_is_no_integer() -> None:
    with pytest.raises(TypeError, match="max_evaluations must be an integer"):
        Dopri5(max_evaluations=1e4)  # type: ignore[arg-type]


def test_generators_that_it_cannot_move() -> None:
    schedule = gm.schedules.Cosine()
    model = law("data", schedule).model
    with pytest.raises(
        ValueError, match=r"Dopri5 cannot move variance: it handles drift. Use gm.solvers.Exponential\(\), Heun\(\)"
    ):
        gm.sample(gm.Diffusion(model, gm.diffusivity.EndpointSafe()), (2, 1), solver=Dopri5(), start=0.0)
    tokens = gm.CTMC(gm.predict.Tokens(nn.Identity(), gm.MixturePath(3, mask=3)))
    with pytest.raises(ValueError, match="Dopri5 cannot move rates"):
        gm.sample(tokens, (2, 4), solver=Dopri5())
    sphere = gm.GeodesicPath(gm.spaces.Sphere())
    flow = gm.Flow(gm.predict.TangentVelocity(Rate(lambda x, t: x.flip(-1)), sphere))
    with pytest.raises(ValueError, match="Dopri5 is for Euclidean states"):
        gm.sample(flow, (2, 3), solver=Dopri5())


def test_a_tolerance_below_the_rounding_of_the_states() -> None:
    generator = law("velocity", gm.schedules.CondOT())
    with pytest.raises(ValueError, match=r"below the rounding of torch.float32 states: ask for 5e-07 or more"):
        gm.sample(generator, torch.zeros(1, 1), solver=Dopri5(1e-9, 1e-9))
    assert isinstance(Field(generator, torch.zeros(1, 1)).space, Euclidean)


def test_ends_at_which_no_flow_on_a_gaussian_path_is_infinite() -> None:
    class Twice(gm.Generator):
        """The flow, not said to be one."""

        def triplet(self, x, t, prediction):
            return gm.Triplet(drift=prediction.velocity)

    generator = Twice(law("data", gm.schedules.CondOT()).model)
    x = torch.zeros(1, 1, dtype=DOUBLE)
    with pytest.raises(ValueError, match=r"not finite at t = 1, .*Twice is not semilinear"):
        gm.sample(generator, x, solver=Dopri5())
    with pytest.raises(ValueError, match=r"cannot start at t = 1"):
        gm.sample(generator, x, solver=Dopri5(), start=1.0, stop=0.0)
    end = gm.sample(generator, x, solver=Dopri5(), stop=0.99)
    assert (end - line.flow_map(gm.schedules.CondOT(), x, 0.0, 0.99)).abs().max() < 1e-4


def test_the_names_are_there() -> None:
    assert module.__all__ == ["Dopri5"]
    assert repr(Dopri5(1e-3, 1e-4)) == "Dopri5(rtol=0.001, atol=0.0001)"
    assert (Dopri5.order, Dopri5.default_steps) == (5, 1)


def test_without_an_absolute_tolerance_zeros_that_stay_are_no_error() -> None:
    class Decay(nn.Module):
        def forward(self, x, t):
            return -x

    flow = gm.Flow(gm.predict.Velocity(Decay(), gm.GaussianPath()))
    x, report = gm.sample(flow, torch.tensor([[1.0, 0.0]]), solver=Dopri5(1e-5, 0.0), report=True)
    assert report.status.tolist() == [0]
    torch.testing.assert_close(x, torch.tensor([[math.exp(-1), 0.0]]), atol=1e-4, rtol=0)


def test_a_noise_network_at_the_noise_of_a_polynomial_schedule() -> None:
    """Its velocity there is 0 by host numbers, and 0 / 0 by those of each sample."""
    schedule = gm.schedules.Polynomial(2.0)
    flow = gm.Flow(line.predictor(schedule, "noise"))
    for start in (-2.0, 0.3):  # one by one: this network has one time for all of its batch
        x = torch.tensor([[start]], dtype=torch.float64)
        found = gm.sample(flow, x, solver=Dopri5(1e-6, 1e-6))
        torch.testing.assert_close(found, line.flow_map(schedule, x, 0.0, 1.0), atol=1e-3, rtol=0)
