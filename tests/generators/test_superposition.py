"""Sums of generators: what is added, what is merged, what is refused, and how often networks run."""

from __future__ import annotations

import copy
import math
from fractions import Fraction

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import genmatch as gm
from token_worlds import TokenWorld


class Counted(nn.Module):
    """A small network that counts its runs."""

    def __init__(self, scale: float = 0.5) -> None:
        super().__init__()
        self.scale, self.runs = nn.Parameter(torch.tensor(scale)), 0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.runs += 1
        return self.scale * x + t.reshape(-1, *[1] * (x.ndim - 1))


def velocity(path: gm.GaussianPath | None = None, scale: float = 0.5) -> gm.predict.Velocity:
    return gm.predict.Velocity(Counted(scale), gm.GaussianPath() if path is None else path)


MODEL = velocity()
FLOW, SDE = gm.Flow(MODEL), gm.Diffusion(MODEL, gm.diffusivity.EndpointSafe())
LANGEVIN = gm.Langevin(MODEL, gm.diffusivity.EndpointSafe())
X = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


def same(a: gm.Triplet, b: gm.Triplet) -> None:
    assert a.parts == b.parts
    torch.testing.assert_close(a.drift, b.drift)
    torch.testing.assert_close(torch.as_tensor(a.variance or 0.0), torch.as_tensor(b.variance or 0.0))


# What is added


def test_a_sum_is_the_sum_of_the_triplets():
    a, b = FLOW(X, 0.3), SDE(X, 0.3)
    same((0.7 * FLOW + 0.3 * SDE)(X, 0.3), 0.7 * a + 0.3 * b)
    same((SDE - 0.25 * LANGEVIN)(X, 0.3), b + -0.25 * LANGEVIN(X, 0.3))
    same((-FLOW)(X, 0.3), -1.0 * a)
    same(((FLOW + SDE) / 2)(X, 0.3), 0.5 * a + 0.5 * b)
    same(sum([0.5 * FLOW, 0.5 * SDE])(X, 0.3), 0.5 * a + 0.5 * b)
    same((FLOW * 2 - FLOW)(X, 0.3), a)


def test_sums_of_sums_are_flat_and_equal_generators_are_one_term():
    total = 0.5 * (0.5 * FLOW + 0.5 * SDE) + 0.5 * (FLOW + 2 * LANGEVIN)
    assert repr(total) == "0.75 * Flow + 0.25 * Flow + 0.25 * Langevin + 1 * Langevin"  # SDE has a flow of its own
    assert all(isinstance(generator, gm.Generator) for _, generator in total.terms)
    assert [weight for weight, generator in total.terms if generator is FLOW] == [0.75]
    assert [weight for weight, generator in total.terms if generator is LANGEVIN] == [1.0]
    assert len((FLOW - FLOW + FLOW).terms) == 1


def test_weights_in_time_multiply_and_add():
    inner = (lambda t: 1 - t) * FLOW + (lambda t: t) * FLOW
    assert len(inner.terms) == 1
    outer = 2 * ((lambda t: t**2) * ((lambda t: t) * inner))
    for t in (0.0, 0.3, 1.0):
        assert inner.speed_at(t) == pytest.approx(1.0)
        assert outer.speed_at(t) == pytest.approx(2 * t**3)
    same(outer(X, 0.3), 2 * 0.3**3 * FLOW(X, 0.3))


def test_a_term_of_weight_zero_is_not_there():
    assert (FLOW + 0 * LANGEVIN)(X, 0.3).parts == {"drift"}
    # The infinite noise at t = 0 is not multiplied by 0.
    assert (FLOW + 0 * gm.Langevin(MODEL))(X, 0.0).drift.isfinite().all()
    assert (FLOW - FLOW)(X, 0.3).drift is None


def test_the_sum_reads_well():
    assert repr(0.5 * FLOW + (lambda t: t) * LANGEVIN) == "0.5 * Flow + w(t) * Langevin"


@pytest.mark.parametrize(
    "weight", [0.5, np.float32(0.5), np.float64(0.5), Fraction(1, 2)], ids=lambda w: type(w).__name__
)
def test_any_real_number_is_a_weight(weight):
    for product in (weight * FLOW, FLOW * weight):
        assert isinstance(product, gm.Superposition)
        assert product.terms[0][0] == 0.5


def test_weights_see_host_floats_alone():
    """So no weight can depend on the state, and any function of math will do."""
    seen = []

    def weight(t):
        seen.append((type(t), t))
        return math.sin(t) if t < 0.9 else 1.0  # neither works on a batch of times

    total = FLOW + weight * LANGEVIN
    total(X, torch.linspace(0.1, 0.9, 5))
    total(X, torch.tensor(0.4))
    total(X, 0.4)
    gm.sample(total, (2, 3), steps=2, seed=0)
    gm.sample(total, (2, 3), steps=2, seed=0, solver=gm.solvers.Heun())
    assert {kind for kind, _ in seen} == {float}
    assert {round(t, 6) for _, t in seen} >= {0.1, 0.3, 0.5, 0.7, 0.9, 0.4}


LEAVES = (FLOW, LANGEVIN, SDE, gm.Flow(velocity(scale=-0.3)))
WEIGHTS = st.floats(-3, 3, width=16)
SUMS = st.recursive(
    st.sampled_from(range(len(LEAVES))),
    lambda inner: st.one_of(
        st.tuples(st.just("+"), inner, inner),
        st.tuples(st.just("-"), inner, inner),
        st.tuples(st.just("*"), WEIGHTS, inner),
        st.tuples(st.just("t"), WEIGHTS, inner),
    ),
    max_leaves=6,
)


def build(tree):
    """The operator of an expression, with a function that gives its value and speed at t from those of the leaves."""
    if isinstance(tree, int):
        leaf = LEAVES[tree]
        return leaf, lambda t: (leaf(X, t).drift, torch.as_tensor(leaf(X, t).variance or 0.0), leaf.speed_at(t))
    sign, first, second = tree
    right, value = build(second)
    if sign in "+-":
        (left, other), s = build(first), 1 if sign == "+" else -1
        total = left + right if sign == "+" else left - right
        return total, lambda t: tuple(a + s * b for a, b in zip(other(t), value(t), strict=True))
    if sign == "*":
        return first * right, lambda t: tuple(first * v for v in value(t))
    return (lambda t: first + t) * right, lambda t: tuple((first + t) * v for v in value(t))


@hypothesis.given(SUMS, st.sampled_from([0.125, 0.5, 0.875]))
@hypothesis.settings(max_examples=60)
def test_every_expression_is_linear(tree, t: float):
    operator, value = build(tree)
    drift, variance, speed = value(t)
    found = operator(X, t)
    scale = 1 + float(drift.detach().abs().max())
    torch.testing.assert_close(
        torch.zeros_like(X) if found.drift is None else found.drift, drift, rtol=1e-4, atol=1e-4 * scale
    )
    assert float(found.variance or 0.0) == pytest.approx(float(variance), rel=1e-5, abs=1e-4)
    assert operator.speed_at(t) == pytest.approx(speed, rel=1e-9, abs=1e-9)
    assert len(operator.models) <= 2


# How often networks run


def test_each_network_runs_once_per_evaluation():
    path = gm.GaussianPath()
    one, two = velocity(path), velocity(gm.GaussianPath(), scale=-1.0)  # paths that are equal by value
    total = (
        0.2 * gm.Flow(one) + 0.3 * gm.Diffusion(one) + 0.5 * gm.Flow(two) + 4.0 * gm.Langevin(two) + gm.Langevin(one)
    )
    total(X, 0.4)
    assert (one.network.runs, two.network.runs) == (1, 1)
    gm.sample(total, X, steps=4, seed=0, solver=gm.solvers.Euler(), start=0.2)
    assert (one.network.runs, two.network.runs) == (5, 5)
    assert len(total.models) == 2


def test_two_networks_are_read_each_by_its_own_terms():
    one, two = velocity(scale=0.5), velocity(scale=-2.0)
    total = 0.25 * gm.Flow(two) + 0.75 * gm.Flow(one)
    torch.testing.assert_close(total(X, 0.4).drift, 0.25 * (-2 * X + 0.4) + 0.75 * (0.5 * X + 0.4))


def test_conditions_reach_every_network():
    class Conditional(nn.Module):
        def forward(self, x, t, label):
            return x * label[:, None]

    one, two = (gm.predict.Velocity(Conditional(), gm.GaussianPath()) for _ in range(2))
    label = torch.arange(5.0)
    torch.testing.assert_close(
        (0.5 * gm.Flow(one) + 0.5 * gm.Flow(two))(X, 0.4, {"label": label}).drift, X * label[:, None]
    )


# The speed


@pytest.mark.parametrize(
    ("total", "speed"),
    [
        (0.5 * FLOW + 0.3 * SDE, "0.8"),
        (LANGEVIN, "0"),
        (FLOW + SDE, "2"),
        (-FLOW, "-1"),
        (0.0 * FLOW, "0"),
        ((lambda t: 1 - t) * FLOW, "0.5"),
    ],
    ids=repr,
)
def test_another_speed_than_one_is_refused(total, speed: str):
    with pytest.raises(ValueError, match=rf"carry the path at speed {speed}, not 1, at t = [\d.]+: .* must add to 1"):
        gm.sample(total, (2, 3), times=[0.5, 0.75, 1.0], seed=0)
    total(X, 0.5)  # its value may be asked for all the same


def test_the_speed_is_looked_at_at_every_time():
    jumpy = (lambda t: 1.0 if t < 0.7 else 1.1) * FLOW
    with pytest.raises(ValueError, match=r"speed 1.1, not 1, at t = 0.75"):
        gm.sample(jumpy, (2, 3), steps=4, seed=0)
    gm.sample(jumpy, (2, 3), times=[0.0, 0.25, 0.5], seed=0)


def test_the_speed_does_not_matter_outside_of_the_span():
    gm.sample((lambda t: 1.0 if t < 0.7 else 1.1) * FLOW, (2, 3), steps=2, stop=0.5, seed=0)


@pytest.mark.parametrize("solver", [gm.solvers.RK4(), gm.solvers.Midpoint()], ids=repr)
def test_noise_that_sets_in_later_is_noise(solver):
    with pytest.raises(ValueError, match="cannot move variance"):
        gm.sample(FLOW + (lambda t: 0.0 if t == 0 else 1.0) * LANGEVIN, (2, 3), steps=4, seed=0, solver=solver)


# What is refused

OTHER = gm.Flow(velocity(gm.GaussianPath(gm.schedules.Cosine())))


def test_other_paths_are_refused():
    with pytest.raises(
        ValueError,
        match=r"paths cannot be added, got GaussianPath\(CondOT.*GaussianPath\(Cosine\(\)\).*gm\.predict\.Reschedule",
    ):
        FLOW + OTHER
    ot = gm.Flow(velocity(gm.GaussianPath(coupling=gm.couplings.OT())))
    with pytest.raises(ValueError, match=r"different paths .*coupling=OT"):
        FLOW + ot
    ctmc = gm.CTMC(TokenWorld(gm.MixturePath(3)).model())
    with pytest.raises(ValueError, match=r"got GaussianPath\(.*\) and MixturePath\(3\)$"):  # and no hint: none helps
        FLOW + ctmc
    with pytest.raises(ValueError, match=r"MixturePath\(3\) and MixturePath\(3, mask=3\)$"):
        ctmc + gm.CTMC(TokenWorld(gm.MixturePath(3, mask=3)).model())


def test_the_hint_works():
    model = gm.predict.Reschedule(OTHER.model, gm.GaussianPath())
    assert (0.5 * FLOW + 0.5 * gm.Flow(model)).speed_at(0.5) == 1.0


@pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_weights_that_are_not_finite_are_refused(weight):
    with pytest.raises(ValueError, match=r"a weight must be a finite number or a function of t, got -?(nan|inf)"):
        weight * FLOW


@pytest.mark.parametrize(
    "weight",
    [
        "0.5",
        True,
        None,
        1j,
        torch.tensor(0.5),
        torch.rand(5, 1),
        np.array([0.5, 0.5]),
        OTHER,
        MODEL,
        nn.Linear(1, 1),
        float,
    ],
    ids=lambda w: type(w).__name__,
)
def test_weights_that_are_no_numbers_are_refused(weight):
    for multiply in (lambda: weight * FLOW, lambda: FLOW * weight, lambda: gm.Superposition([(weight, FLOW)])):
        with pytest.raises(TypeError, match=r"a weight is a number or a function of t, got|can't multiply sequence"):
            multiply()


@pytest.mark.parametrize(
    ("weight", "error", "message"),
    [
        (lambda t: math.nan, ValueError, r"a weight is not finite at t = 0: \(1.0, nan\)"),
        (lambda t: math.inf, ValueError, r"a weight is not finite at t = 0: \(1.0, inf\)"),
        (lambda t: None, TypeError, "a weight must return a number, got NoneType at t = 0"),
        (lambda t: "a", TypeError, "a weight must return a number, got str at t = 0"),
        (lambda t: torch.ones(2), TypeError, "a weight must return a number, got Tensor at t = 0"),
    ],
)
def test_functions_that_give_no_weight_are_refused(weight, error, message):
    with pytest.raises(error, match=message):
        gm.sample(FLOW + weight * LANGEVIN, (2, 3), steps=2, seed=0, solver=gm.solvers.Euler())


def test_other_operands_are_refused():
    with pytest.raises(TypeError, match="unsupported operand"):
        FLOW + 1  # type: ignore[operator]
    with pytest.raises(TypeError, match="unsupported operand"):
        1 + FLOW  # type: ignore[operator]
    with pytest.raises(TypeError, match="unsupported operand"):
        FLOW / FLOW  # type: ignore[operator]
    with pytest.raises(TypeError, match="unsupported operand"):
        FLOW - MODEL  # type: ignore[operator]
    with pytest.raises(TypeError, match="a superposition is of generators, got Velocity"):
        gm.Superposition([(1.0, MODEL)])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="at least one generator"):
        gm.Superposition([])


NOISY = gm.Diffusion(MODEL, gm.diffusivity.Constant(1.0))


@pytest.mark.parametrize("solver", [gm.solvers.Euler(), gm.solvers.Heun(), gm.solvers.Exponential()], ids=repr)
def test_a_negative_variance_is_refused(solver):
    more = gm.Langevin(MODEL, gm.diffusivity.Constant(1.5))
    with pytest.raises(ValueError, match=r"make the variance negative .*more noise than those added"):
        gm.sample(NOISY - more, (2, 3), steps=4, seed=0, solver=solver)
    gm.sample(NOISY - 0.5 * more, (2, 3), steps=4, seed=0, solver=solver)


@pytest.mark.parametrize("solver", [gm.solvers.Euler(), gm.solvers.Heun(), gm.solvers.Exponential()], ids=repr)
def test_a_variance_that_is_negative_at_one_grid_time_is_refused(solver):
    dip = FLOW + (lambda t: -0.1 if t == 0.5 else 1.0) * LANGEVIN
    with pytest.raises(ValueError, match=r"weights \(1.0, -0.1\) make the variance negative at t = 0.5"):
        gm.sample(dip, (2, 3), steps=4, seed=0, solver=solver)
    gm.sample(dip, (2, 3), steps=3, seed=0, solver=solver)


def test_a_variance_that_is_negative_at_an_inner_stage_alone_is_refused():
    class TwoThirds(gm.solvers.RungeKutta):
        a, b, c = ((), (2 / 3,)), (0.25, 0.75), (0.0, 2 / 3)
        order, parts = 2, frozenset({"drift", "variance"})

    dip = FLOW + (lambda t: -0.1 if abs(t - 0.25 * 2 / 3) < 1e-9 else 1.0) * LANGEVIN
    with pytest.raises(ValueError, match=r"make the variance negative at t = 0.166667"):
        gm.sample(dip, (2, 3), steps=4, seed=0, solver=TwoThirds())
    gm.sample(dip, (2, 3), steps=4, seed=0, solver=gm.solvers.Heun())


@pytest.mark.parametrize("value", [-1.0, math.nan])
def test_a_diffusivity_that_is_no_variance_is_refused(value: float):
    wrong = gm.Diffusion(MODEL, lambda t: value)
    with pytest.raises(ValueError, match=rf"the diffusivity is {value:g} at t = 0.5: it is a variance .* at least 0"):
        wrong(X, 0.5)
    with pytest.raises(ValueError, match=r"noise|variance|the diffusivity is"):
        gm.sample(wrong, (2, 3), steps=4, seed=0)
    with pytest.raises(ValueError, match=r"the diffusivity is"):
        gm.sample(wrong, (2, 3), steps=4, seed=0, solver=gm.solvers.Euler())


def test_a_number_is_no_diffusivity():
    with pytest.raises(TypeError, match=r"gm\.diffusivity\.Constant\(0\.5\) is a variance"):
        gm.Langevin(MODEL, 0.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a diffusivity is a Diffusivity or a function of t, got str"):
        gm.Langevin(MODEL, "constant")  # type: ignore[arg-type]


def test_a_score_that_is_not_there_is_refused():
    for path, why in (
        (gm.GaussianPath(coupling=gm.couplings.OT()), r"its coupling OT\(\) makes noise and data dependent"),
        (gm.GaussianPath(source=torch.randn(4, 3)), r"its source Empirical\(\(4, 3\)\) is not the standard normal"),
        (gm.GaussianPath(noise=0.1), r"noise"),
    ):
        gm.Flow(velocity(path))
        for make in (gm.Langevin, gm.Diffusion):
            with pytest.raises(ValueError, match=why):
                make(velocity(path))
    with pytest.raises(ValueError, match="the velocity cannot be read off a data network"):
        gm.Flow(gm.predict.Data(Counted(), gm.GaussianPath(noise=0.1)))


def test_what_is_no_predictor_is_refused():
    with pytest.raises(
        TypeError, match=r"Flow needs a predictor such as gm\.predict\.Velocity\(network, path\), got Counted"
    ):
        gm.Flow(Counted())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FLOW(X, 1.5), r"t must be in \[0, 1\], got 1.5"),
        (lambda: FLOW(X, torch.rand(3)), r"shape \(5,\).*got \(3,\)"),
        (lambda: FLOW(X.long(), 0.5), "floating point"),
        (lambda: FLOW(X * math.nan, 0.5), "15 non-finite values"),
        (lambda: FLOW(X, 0.5, {"label": torch.zeros(4)}), r"condition\['label'\] has shape \(4,\) for 5 samples"),
        (lambda: FLOW(X, 0.5, torch.zeros(5)), "condition must be a dict of tensors"),
    ],
)
def test_bad_states_times_and_conditions_are_refused(call, message: str):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_a_copy_is_another_sum_with_networks_of_its_own():
    total = 0.5 * FLOW + (lambda t: 0.5) * SDE
    twin = copy.deepcopy(total)
    same(twin(X, 0.3), total(X, 0.3))
    with torch.no_grad():
        twin.models[0].network.scale.fill_(7.0)
    assert MODEL.network.scale.item() == 0.5
    assert {id(generator.model) for _, generator in twin.terms} == {id(twin.models[0])}
    torch.testing.assert_close(
        twin(X, 0.3).drift - total(X, 0.3).drift, 6.5 * X * (1 + 0.3 * 0.5), rtol=1e-4, atol=1e-5
    )
