"""Every schedule: derivatives, log-SNR, end points; the discrete chain against its cumulative product."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from closed_forms import F64, SCHEDULES, name, subclasses
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from genmatch.schedules import DDPM, EDM, VE, VP, CondOT, Cosine, Instant, Polynomial, Schedule, Shifted, ZeroTerminal

every = pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
T0 = torch.tensor(0.0, dtype=F64)
T1 = torch.tensor(1.0, dtype=F64)


def test_every_schedule_is_covered():
    assert {type(s) for s in SCHEDULES} == set(subclasses(Schedule))


def innermost(schedule: Schedule) -> Schedule:
    """The schedule that others are made of."""
    while isinstance(schedule, Shifted | ZeroTerminal):
        schedule = schedule.schedule
    return schedule


def inner_times(schedule: Schedule) -> torch.Tensor:
    """Times inside (0, 1) that are no knots of a chain, where the derivative jumps."""
    inner = innermost(schedule)
    if isinstance(inner, DDPM):
        knots = torch.arange(inner.length, dtype=F64)
        return ((knots + 0.37) / inner.length)[:: max(1, inner.length // 50)]
    return torch.linspace(0.02, 0.98, 49, dtype=F64)


@every
def test_derivatives_are_those_of_the_values(schedule: Schedule):
    t, h = inner_times(schedule), 1e-6
    instant = schedule.at(t)
    assert torch.equal(torch.stack(schedule(t)), torch.stack([instant.alpha, instant.sigma]))
    for i, slope in enumerate((instant.alpha_dot, instant.sigma_dot)):
        difference = (schedule(t + h)[i] - schedule(t - h)[i]) / (2 * h)
        scale = 1e-7 * (1 + schedule(t)[i].abs() + difference.abs())
        assert bool(((slope - difference).abs() < scale).all())
        wrong = slope + 1e-3 * (1 + slope.abs())
        assert not bool(((wrong - difference).abs() < scale).any())


@every
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_written_derivatives_are_those_of_the_forward_pass(schedule: Schedule, dtype: torch.dtype):
    t = inner_times(schedule).to(dtype)
    written, passed = schedule.derivatives(t), torch.func.jvp(schedule, (t,), (torch.ones_like(t),))[1]
    for own, other in zip(written, passed, strict=True):
        assert (own.dtype, own.shape) == (dtype, t.shape)
        torch.testing.assert_close(own, other, rtol=64 * torch.finfo(dtype).eps, atol=64 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("schedule", [s for s in SCHEDULES if not math.isfinite(s.at(T1).sigma_dot)], ids=name)
def test_infinite_derivatives_are_infinite_with_their_sign(schedule: Schedule):
    assert schedule.at(T1).sigma_dot == -math.inf


def test_a_chain_first_asked_within_a_transform_can_be_copied():
    t = torch.tensor([0.25])
    chain = DDPM([0.1] * 10)
    torch.func.jvp(chain, (t,), (torch.ones(1),))
    again = pickle.loads(pickle.dumps(copy.deepcopy(chain)))
    assert torch.equal(torch.stack(again(t)), torch.stack(DDPM([0.1] * 10)(t)))


def test_derivatives_written_for_other_values_are_not_inherited():
    class Slower(CondOT):
        def __call__(self, t):
            return t**2, 1 - t**2

    class Renamed(CondOT):
        pass

    t = torch.tensor([0.25], dtype=F64)
    assert Slower().at(t).alpha_dot.item() == 0.5
    assert Slower().at(t).sigma_dot.item() == -0.5
    assert Renamed.closed_derivatives is CondOT.closed_derivatives

    class Mixin:
        def __call__(self, t):
            return t**2, 1 - t**2

    class Mixed(Mixin, CondOT):
        pass

    class Further(Mixed):
        pass

    for cls in (Mixed, Further):
        assert cls().at(t).alpha_dot.item() == 0.5


@pytest.mark.parametrize("cls", [CondOT, Polynomial, Cosine, VP, VE, EDM])
def test_formulas_have_closed_derivatives(cls: type[Schedule]):
    assert cls.closed_derivatives is not None


def test_a_chain_first_asked_in_a_graph_or_a_fake_mode():
    torch._dynamo.reset()
    t, chain = torch.tensor([0.25]), DDPM([0.1] * 10)
    expected = torch.stack(DDPM([0.1] * 10)(t))
    compiled = torch.compile(lambda t: torch.stack(chain(t)), backend="eager", fullgraph=True)
    assert torch.equal(compiled(t), expected)
    fresh = DDPM([0.1] * 10)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fresh(mode.from_tensor(t))
    assert torch.equal(torch.stack(fresh(t)), expected)


@pytest.mark.parametrize(
    ("schedule", "alpha_dot", "sigma_dot"),
    [
        (CondOT(), lambda t: 1.0, lambda t: -1.0),
        (CondOT(0.1), lambda t: 1.0, lambda t: -0.9),
        (Polynomial(3.0), lambda t: 3 * t**2, lambda t: -3 * t**2),
        (
            Cosine(),
            lambda t: math.pi / 2 * math.cos(math.pi * t / 2),
            lambda t: -math.pi / 2 * math.sin(math.pi * t / 2),
        ),
        (VE(0.1, 10.0), lambda t: 0.0, lambda t: -math.log(100) * 10 * 0.01**t),
        (EDM(1.0, 8.0, 3.0), lambda t: 0.0, lambda t: -3 * (2 - t) ** 2),
    ],
    ids=name,
)
@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_derivatives_in_closed_form(schedule, alpha_dot, sigma_dot, t):
    (instant,) = schedule.at(torch.tensor([t], dtype=F64)).rows()
    assert instant.alpha_dot == pytest.approx(alpha_dot(t), abs=1e-12)
    assert instant.sigma_dot == pytest.approx(sigma_dot(t), abs=1e-12)
    assert all(isinstance(field, float) for field in instant)


@pytest.mark.parametrize(
    ("schedule", "wronskian"),
    [(CondOT(), lambda t: 1.0), (Cosine(), lambda t: math.pi / 2), (Polynomial(2.0), lambda t: 2 * t)],
    ids=name,
)
def test_wronskian(schedule, wronskian):
    for instant in schedule.at(torch.linspace(0, 1, 5, dtype=F64)).rows():
        assert instant.wronskian == pytest.approx(wronskian(instant.t), abs=1e-12)


@pytest.mark.parametrize(("low", "high"), [(0.1, 20.0), (1.0, 4.0), (3.0, 3.0)])
def test_vp_is_the_continuous_diffusion_of_song(low: float, high: float):
    # d log alpha / dt = beta / 2 with beta linear in r = 1 - t, and alpha^2 + sigma^2 = 1: the law of
    # dx = -beta x / 2 dr + sqrt(beta) dw.
    t = torch.linspace(0, 0.999, 31, dtype=F64)
    instant = VP(low, high).at(t)
    beta = low + (high - low) * (1 - t)
    torch.testing.assert_close(instant.alpha_dot / instant.alpha, beta / 2, rtol=1e-12, atol=0)
    torch.testing.assert_close(instant.alpha**2 + instant.sigma**2, torch.ones_like(t), rtol=1e-14, atol=0)
    torch.testing.assert_close(instant.sigma * instant.wronskian / instant.alpha, beta / 2, rtol=1e-9, atol=0)


# Log signal-to-noise ratio


@every
def test_log_snr(schedule: Schedule):
    t = torch.linspace(0, 1, 1001, dtype=F64)
    log_snr = schedule.log_snr(t)
    assert bool((log_snr.diff() > 0).all())
    alpha, sigma = schedule(t[1:-1])
    torch.testing.assert_close(log_snr[1:-1].exp(), (alpha / sigma) ** 2, rtol=1e-9, atol=0)
    instant = schedule.at(t[1:-1])
    assert bool((instant.wronskian > 0).all())
    # W = alpha sigma d/dt log(alpha / sigma), which is half the slope of the log-SNR.
    slope = torch.func.jvp(schedule.log_snr, (t[1:-1],), (torch.ones_like(t[1:-1]),))[1]
    torch.testing.assert_close(instant.wronskian, alpha * sigma * slope / 2, rtol=1e-9, atol=0)


@every
def test_inverse_log_snr(schedule: Schedule):
    low, high = (float(schedule.log_snr(t)) for t in (T0, T1))
    values = torch.linspace(max(low, -25.0), min(high, 25.0), 203, dtype=F64)[1:-1]
    t = schedule.inverse_log_snr(values)
    assert bool((t.diff() > 0).all())
    slope = torch.func.jvp(schedule.log_snr, (t,), (torch.ones_like(t),))[1]
    rounding = 1e-15 * slope.abs()  # of t, of which 1 - t has lost some digits near the data
    assert bool(((schedule.log_snr(t) - values).abs() < 1e-10 + rounding).all())
    back = schedule.inverse_log_snr(schedule.log_snr(inner_times(schedule)))
    torch.testing.assert_close(back, inner_times(schedule), rtol=0, atol=1e-11)
    # Below and above its reach there are only the ends.
    ends = schedule.inverse_log_snr(torch.tensor([-math.inf, low - 1, low, high, high + 1, math.inf], dtype=F64))
    assert ends.tolist() == [0, 0, 0, 1, 1, 1]
    assert bool(schedule.inverse_log_snr(torch.tensor(math.nan)).isnan())


def test_small_times_keep_their_relative_accuracy():
    t = torch.tensor([1e-12, 1e-9, 1e-5], dtype=F64)
    torch.testing.assert_close(CondOT().inverse_log_snr(CondOT().log_snr(t)), t, rtol=1e-12, atol=0)
    torch.testing.assert_close(Cosine().inverse_log_snr(Cosine().log_snr(t)), t, rtol=1e-12, atol=0)


@given(st.floats(-30, 30), st.sampled_from([CondOT(), Cosine(), Polynomial(2.0)]))
def test_closed_inverses(log_snr: float, schedule: Schedule):
    ratio = math.exp(log_snr / 2)  # alpha / sigma
    expected = {
        CondOT(): ratio / (1 + ratio),
        Cosine(): 2 / math.pi * math.atan(ratio),
        Polynomial(2.0): (ratio / (1 + ratio)) ** 0.5,
    }[schedule]
    assert float(schedule.inverse_log_snr(torch.tensor(log_snr))) == pytest.approx(expected, rel=1e-5, abs=1e-9)


# End points


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@every
def test_end_points(schedule: Schedule, dtype: torch.dtype):
    alpha, sigma = schedule(torch.tensor([0.0, 1.0], dtype=dtype))
    assert alpha.dtype == sigma.dtype == dtype
    inner = innermost(schedule)
    if isinstance(inner, VE | EDM):
        assert alpha.tolist() == [1, 1]
        ends = [inner.sigma_max, inner.sigma_min]
        assert sigma.tolist() == pytest.approx([getattr(schedule, "shift", 1) * end for end in ends], rel=1e-5)
        return
    assert alpha[1] == 1
    assert float(sigma[1]) == pytest.approx(getattr(schedule, "sigma_min", 0), rel=1e-5, abs=0)
    assert not bool(sigma[1].signbit())  # 1 / -0 would turn infinities around
    if isinstance(inner, VP | DDPM):
        assert (alpha[0] == 0) if isinstance(schedule, ZeroTerminal) else (alpha[0] > 0)
        assert float(alpha[0] ** 2 + sigma[0] ** 2) == pytest.approx(1)
    else:
        assert (alpha[0], sigma[0]) == (0, 1)


def test_the_naive_cosine_does_not_end_at_zero():
    assert math.cos(math.pi / 2) != 0
    assert float(Cosine()(T1)[1]) == 0


def test_infinite_derivatives_are_where_the_docs_say():
    for schedule in (VP(), DDPM(), DDPM([0.3])):
        (instant,) = schedule.at(T1[None]).rows()
        assert instant.sigma_dot == -math.inf
        assert math.isfinite(instant.alpha_dot)
    for schedule in SCHEDULES:
        ends = schedule.at(torch.tensor([0.0, 1.0], dtype=F64))
        assert bool(ends.alpha_dot.isfinite().all())
        assert bool(ends.sigma_dot[0].isfinite())
        assert bool(ends.sigma_dot[1].isfinite()) == (not isinstance(innermost(schedule), VP | DDPM))


def test_snr_is_infinite_at_the_data():
    for t in (torch.tensor([0.5, 1.0], dtype=F64), torch.tensor([0.5, 1.0])):
        assert [row.snr for row in CondOT().at(t).rows()] == [1.0, math.inf]
        assert CondOT().at(t).snr.tolist() == [1.0, math.inf]


# The discrete chain

CHAINS = {
    "1000 steps": [1e-4 + (0.02 - 1e-4) * i / 999 for i in range(1000)],
    "textbook": [0.1] * 10,
    "one step": [0.3],
    "two steps": [0.2, 0.7],
}


@pytest.mark.parametrize("betas", CHAINS.values(), ids=CHAINS)
def test_ddpm_is_the_cumulative_product_at_every_knot(betas: list[float]):
    schedule, length = DDPM(betas), len(betas)
    bars = [math.prod(1 - b for b in betas[: n + 1]) for n in range(length)]
    t = torch.tensor([1 - (n + 1) / length for n in range(length)], dtype=F64)
    alpha, sigma = schedule(t)
    torch.testing.assert_close(alpha, torch.tensor(bars, dtype=F64).sqrt(), rtol=1e-11, atol=0)
    torch.testing.assert_close(sigma, (1 - torch.tensor(bars, dtype=F64)).sqrt(), rtol=1e-11, atol=0)
    # The grid of T equal steps visits the knots, noise first, and then the data.
    grid = torch.linspace(0, 1, length + 1, dtype=F64)
    torch.testing.assert_close(schedule(grid)[0][:-1].flip(0) ** 2, torch.tensor(bars, dtype=F64), rtol=1e-10, atol=0)
    if length > 1:  # off by one would be seen
        assert abs(float(schedule(t)[0][0]) ** 2 - bars[1]) > 1e-5


def test_the_default_chain_is_the_linear_one():
    assert DDPM().betas == pytest.approx(CHAINS["1000 steps"], rel=1e-12)
    assert float(DDPM()(T0)[0]) ** 2 == pytest.approx(4.0358e-5, rel=1e-4)


def test_the_textbook_chain_is_far_from_noise():
    alpha, sigma = DDPM([0.1] * 10)(T0)
    assert float(alpha) == pytest.approx(0.9**5, rel=1e-14)
    assert float(alpha) == pytest.approx(0.59049)
    assert float(sigma) == pytest.approx((1 - 0.9**10) ** 0.5)


def test_log_snr_is_linear_between_the_knots():
    schedule = DDPM([0.1] * 10)
    t = torch.linspace(0.2, 0.3, 7, dtype=F64)
    log_snr = schedule.log_snr(t)
    torch.testing.assert_close(log_snr, torch.linspace(float(log_snr[0]), float(log_snr[-1]), 7, dtype=F64))
    # Linear in alpha would be another curve.
    alpha = schedule(t)[0]
    assert float((alpha - torch.linspace(float(alpha[0]), float(alpha[-1]), 7, dtype=F64)).abs().max()) > 1e-4


def test_the_variance_falls_linearly_behind_the_last_knot():
    for betas in ([0.1] * 10, [0.3]):
        t = torch.linspace(1 - 1 / len(betas), 1, 6, dtype=F64)
        torch.testing.assert_close(
            DDPM(betas)(t)[1] ** 2, betas[0] * torch.linspace(1, 0, 6, dtype=F64), rtol=1e-12, atol=1e-15
        )


@given(st.lists(st.floats(1e-4, 0.99), min_size=1, max_size=30))
def test_any_chain_gains_signal(betas: list[float]):
    schedule = DDPM(betas)
    t = torch.linspace(0, 1, 4 * len(betas) + 1, dtype=F64)
    alpha, sigma = schedule(t)
    assert bool((alpha.diff() > 0).all())
    assert bool((sigma.diff() <= 0).all())
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("length", [1, 7, 10, 1000])
def test_the_index_is_an_integer_at_the_knots(length: int, dtype: torch.dtype):
    schedule = DDPM([0.01] * length)
    expected = list(range(length - 1, -1, -1))
    grid = torch.linspace(0, 1, length + 1, dtype=F64)[:-1]
    assert schedule.index(grid.to(dtype)).tolist() == expected
    assert [schedule.index(t) for t in grid.tolist()] == expected
    by_knot = [1 - (n + 1) / length for n in range(length)]
    assert schedule.index(torch.tensor(by_knot, dtype=dtype)).long().tolist() == list(range(length))
    # Behind the last knot and in it the network is told the cleanest step.
    assert schedule.index(1.0) == 0
    assert float(schedule.index(torch.tensor(1.0, dtype=dtype))) == 0


def test_the_index_is_real_between_the_knots():
    schedule = DDPM([0.1] * 10)
    assert schedule.index(0.25) == pytest.approx(6.5)
    assert float(schedule.index(torch.tensor(0.25))) == pytest.approx(6.5)
    for t in (0.25, 0.3):  # also at a knot its derivative is -T
        slope = torch.func.jvp(schedule.index, (torch.tensor(t),), (torch.tensor(1.0),))[1]
        assert float(slope) == pytest.approx(-10)


# Values as keys


@every
def test_equal_schedules_are_equal(schedule: Schedule):
    twin = copy.deepcopy(schedule)
    assert twin == schedule
    assert hash(twin) == hash(schedule)
    assert len({*SCHEDULES, twin}) == len(SCHEDULES)
    schedule(T0), schedule(T0.float())  # a schedule that was used is the same schedule
    assert twin == schedule
    assert hash(twin) == hash(schedule)


def test_parameters_tell_schedules_apart():
    assert VP() != VP(0.1, 19.0)
    assert CondOT() != CondOT(0.1)
    assert DDPM([0.1, 0.2]) != DDPM([0.1, 0.3])
    assert DDPM(torch.tensor([0.1, 0.2], dtype=F64)) == DDPM((0.1, 0.2))
    assert VE(0.1, 1.0) != EDM(0.1, 1.0)


def test_a_subclass_writes_only_the_values():
    class Quadratic(Schedule):
        def __call__(self, t):
            return t**2, (1 - t**2) ** 2

    t = torch.linspace(0.1, 0.9, 5, dtype=F64)
    instant = Quadratic().at(t)
    torch.testing.assert_close(instant.alpha_dot, 2 * t)
    torch.testing.assert_close(instant.sigma_dot, -4 * t * (1 - t**2))
    torch.testing.assert_close(Quadratic().inverse_log_snr(Quadratic().log_snr(t)), t)
    with pytest.raises(TypeError, match="abstract"):
        Schedule()  # type: ignore[abstract]


# Instants


def test_instants_broadcast_along_the_batch():
    x = torch.zeros(3, 2, 3)
    instant = CondOT().at(torch.tensor([0.1, 0.2, 0.3], dtype=F64)).broadcast(x)
    assert all(field.shape == (3, 1, 1) and field.dtype == x.dtype for field in instant)
    assert instant.alpha[1, 0, 0] == torch.tensor(0.2)
    tokens = CondOT().at(torch.tensor([0.1, 0.2, 0.3], dtype=F64)).broadcast(torch.zeros(3, 5, dtype=torch.int64))
    assert tokens.alpha.dtype == F64  # fractions of a time are no token ids
    host = Instant(0.5, 0.5, 0.5, 1.0, -1.0)
    assert tuple(host.broadcast(x)) == tuple(host)


# Bad input


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: CondOT(-0.1), ValueError, "sigma_min must be at least 0 and finite, got -0.1"),
        (lambda: CondOT(1.0), ValueError, "sigma_min must be below 1, got 1.0: noise must shrink"),
        (lambda: CondOT("0"), TypeError, "sigma_min must be a number, got str"),
        (
            lambda: Polynomial(0.5),
            ValueError,
            "n must be at least 1, got 0.5: below 1 the velocity at t = 0 is infinite",
        ),
        (lambda: Polynomial(math.nan), ValueError, "n must be above 0 and finite, got nan"),
        (lambda: VP(beta_min=0), ValueError, "beta_min must be above 0 and finite, got 0"),
        (lambda: VP(beta_max=math.inf), ValueError, "beta_max must be above 0 and finite, got inf"),
        (lambda: VP(beta_min=True), TypeError, "beta_min must be a number, got bool"),
        (lambda: VE(1.0, 0.5), ValueError, "sigma_min must be below sigma_max, got 1.0 and 0.5"),
        (lambda: VE(0.0, 0.5), ValueError, "sigma_min must be above 0"),
        (lambda: EDM(2.0, 2.0), ValueError, "sigma_min must be below sigma_max"),
        (lambda: EDM(rho=0.0), ValueError, "rho must be above 0"),
        (lambda: DDPM([]), ValueError, r"betas must be a sequence of T >= 1 numbers, got shape \(0,\)"),
        (lambda: DDPM(0.1), ValueError, r"betas must be a sequence of T >= 1 numbers, got shape \(\)"),
        (lambda: DDPM([[0.1]]), ValueError, "betas must be a sequence"),
        (lambda: DDPM([0.1, 1.0]), ValueError, r"every beta must be in \(0, 1\), got 0.1 to 1"),
        (lambda: DDPM([0.0, 0.1]), ValueError, "every beta must be in"),
        (lambda: DDPM([math.nan]), ValueError, "every beta must be in"),
        (lambda: CondOT(sigma=0.1), TypeError, "sigma"),
    ],
)
def test_bad_parameters(call, error, message):
    with pytest.raises(error, match=message):
        call()
