"""Adams-Bashforth: weights on any grid, start-up, cost, and what it refuses. Orders are measured in test_order too."""

from __future__ import annotations

import gaussian_line as line
import pytest
import torch
from torch import Tensor, nn

import genmatch as gm
from genmatch.solvers import AdamsBashforth, BogackiShampine, Euler, Field, Midpoint, adams
from genmatch.solvers.adams import Slopes, adams_weights

ORDERS = [2, 3, 4]
STEPS = (40, 80, 160, 320)
F64 = torch.float64


def zigzag(steps: int) -> Tensor:
    """Short and long steps by turns, 1 : 2: no map of a uniform grid is smooth enough to make them."""
    h = torch.tensor([1.0, 2.0], dtype=F64).repeat(steps // 2 + 1)[:steps]
    return torch.cat([torch.zeros(1, dtype=F64), h.cumsum(0) / h.sum()])


GRIDS = {"uniform": lambda n: torch.linspace(0, 1, n + 1, dtype=F64), "zigzag": zigzag}


# The weights.


@pytest.mark.parametrize(
    ("order", "row"),
    [(2, [3 / 2, -1 / 2]), (3, [23 / 12, -16 / 12, 5 / 12]), (4, [55 / 24, -59 / 24, 37 / 24, -9 / 24])],
)
def test_equal_steps_have_the_textbook_weights(order: int, row: list[float]) -> None:
    for times in (GRIDS["uniform"](10), GRIDS["uniform"](10).flip(0)):
        h = (times[1] - times[0]).item()
        for weights in adams_weights(times, order)[order - 1 :]:
            assert (weights / h).tolist() == pytest.approx(row, abs=1e-12)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("back", [False, True])
def test_polynomials_are_integrated_exactly_on_any_grid(order: int, back: bool) -> None:
    times = gm.Draws(3, 1).uniform((1, 12), F64).flatten().sort().values
    times = times.flip(0) if back else times
    rows, missed = adams_weights(times, order), []
    assert [len(row) for row in rows] == [min(i + 1, order) for i in range(11)]
    for i, row in enumerate(rows):
        knots = times[max(0, i + 1 - order) : i + 1].flip(0)
        for m in range(len(row)):
            exact = (times[i + 1] ** (m + 1) - times[i] ** (m + 1)) / (m + 1)
            torch.testing.assert_close(row @ knots**m, exact, rtol=1e-10, atol=1e-12)
        beyond = (times[i + 1] ** (len(row) + 1) - times[i] ** (len(row) + 1)) / (len(row) + 1)
        missed.append(abs(row @ knots ** len(row) - beyond).item())
    assert max(missed) > 1e-5  # and the next one is not


# Orders, and what would lose them.


class Warped(nn.Module):
    """x' = cos(3 t) sin(x) + t: nothing that a method could be exact for by chance."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.cos(3 * t)[:, None] * torch.sin(2 * x) + t[:, None]


WARPED = gm.Flow(gm.predict.Velocity(Warped(), gm.GaussianPath()))
X = torch.linspace(-2, 2, 7, dtype=F64)[:, None]


def measure(solver: AdamsBashforth, grid, start: float = 0.0, stop: float = 1.0) -> float:
    truth = gm.sample(WARPED, X, solver=gm.solvers.DormandPrince(), start=start, stop=stop, steps=400)
    errors = [
        (line.walk(WARPED, solver, start + (stop - start) * grid(n), X) - truth).abs().max().item() for n in STEPS
    ]
    return line.order(STEPS, errors)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("span", [(0.0, 1.0), (1.0, 0.0), (0.3, 0.9)], ids=str)
def test_the_order_is_kept_on_every_grid_in_both_directions(order: int, grid: str, span: tuple[float, float]) -> None:
    assert abs(measure(AdamsBashforth(order), GRIDS[grid], *span) - order) < 0.2


@pytest.mark.parametrize("order", ORDERS)
def test_weights_of_equal_steps_lose_it_on_unequal_ones(order: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def equal(times: Tensor, order: int) -> list[Tensor]:
        rows = adams_weights(torch.arange(len(times), dtype=F64), order)
        return [row * h for row, h in zip(rows, times.diff(), strict=True)]

    monkeypatch.setattr(adams, "adams_weights", equal)
    assert measure(AdamsBashforth(order), GRIDS["zigzag"]) < 1.3
    assert measure(AdamsBashforth(order), GRIDS["uniform"]) > order - 0.2


@pytest.mark.parametrize(("order", "kept"), [(3, 2), (4, 2)])
def test_euler_steps_at_the_start_lose_it(order: int, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(adams.STARTS, order, Euler())
    assert abs(measure(AdamsBashforth(order), GRIDS["uniform"]) - kept) < 0.2


def test_the_first_steps_are_what_the_docstring_says() -> None:
    """Runge-Kutta of order 3 twice, then a step by three slopes, then by four."""
    times = zigzag(6)
    field = Field(WARPED, X)
    plan = AdamsBashforth(4).plan(field, times)
    assert [len(c.weights) if isinstance(c, Slopes) else 0 for c in plan] == [0, 0, 3, 4, 4, 4]
    middle = line.walk(WARPED, BogackiShampine(), times[:3], X)
    states = gm.sample(WARPED, X, times=times, solver=AdamsBashforth(4), trajectory=True)
    torch.testing.assert_close(states[2], middle, rtol=1e-14, atol=1e-14)
    slopes = [Warped()(x, t.expand(7)) for x, t in zip(states[:4], times, strict=False)]
    row = adams_weights(times, 4)[3]
    by_hand = states[3] + sum(w * u for w, u in zip(row, reversed(slopes), strict=True))
    torch.testing.assert_close(states[4], by_hand, rtol=1e-14, atol=1e-14)


# What it costs.


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("kind", ["velocity", "data"])
def test_evaluations_are_the_calls_of_the_network(order: int, steps: int, kind: str) -> None:
    flow, solver = gm.Flow(line.predictor(gm.schedules.Cosine(), kind)), AdamsBashforth(order)
    _, report = gm.sample(flow, (3, 1), steps=steps, solver=solver, seed=0, report=True)
    assert report.evaluations.tolist() == [flow.model.network.calls] * 3
    if steps >= order:
        assert flow.model.network.calls == steps + (order - 2) ** 2


def test_no_more_slopes_are_kept_than_needed() -> None:
    for order in ORDERS:
        solver, field = AdamsBashforth(order), Field(WARPED, X)
        carry = solver.start(field, X)
        for c in solver.plan(field, zigzag(7)):
            _, carry = solver.step(field, X, c, gm.Draws(0, 7), carry)
            assert len(carry) == order - 1


# Ends.


@pytest.mark.parametrize("order", ORDERS)
def test_points_are_reached_clean_in_few_steps(order: int) -> None:
    """Near points the field is stiff; the last step is the data prediction."""
    points = torch.tensor([[-1.5, 0.2], [1.0, 1.2], [0.6, -1.0]])
    world = gm.worlds.GaussianMixture(points, 1e-4)
    flow = gm.Flow(world.predictor(gm.GaussianPath()))
    for steps in (10, 20):
        x = gm.sample(flow, (64, 2), steps=steps, solver=AdamsBashforth(order), seed=0)
        assert torch.cdist(x, points).min(1).values.max() < 0.06  # a few standard deviations of 0.01


def test_a_step_of_the_method_itself_would_not_get_there() -> None:
    """The control, and why the last step is another."""

    class Own(AdamsBashforth):
        def plan(self, field, times):
            return super().plan(field, torch.cat([times[:-1], times[-1:] - 1e-9]))

    points = torch.tensor([[-1.5, 0.2], [1.0, 1.2], [0.6, -1.0]])
    flow = gm.Flow(gm.worlds.GaussianMixture(points, 1e-4).predictor(gm.GaussianPath()))
    x = gm.sample(flow, (64, 2), steps=10, solver=Own(4), seed=0)
    assert torch.cdist(x, points).min(1).values.max() > 0.2


@pytest.mark.parametrize("order", ORDERS)
def test_a_finite_field_has_no_special_last_step(order: int) -> None:
    plan = AdamsBashforth(order).plan(Field(WARPED, X), zigzag(8))
    assert isinstance(plan[-1], Slopes)
    assert len(plan[-1].weights) == order


# States that are not one tensor, generators that run back, gradients.


class Pair(nn.Module):
    """A network of a product whose factors do not know of one another."""

    def forward(self, x: dict[str, Tensor], t: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: Warped()(value, t[name]) * (1 + (name == "b")) for name, value in x.items()}


class Twice(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return 2 * Warped()(x, t)


@pytest.mark.parametrize("order", ORDERS)
def test_a_product_moves_as_its_factors_do(order: int) -> None:
    path = gm.ProductPath({"a": gm.GaussianPath(), "b": gm.GaussianPath()})
    model = gm.predict.Product(Pair(), dict.fromkeys("ab", gm.predict.Velocity), path)
    product = gm.Product(model, dict.fromkeys("ab", gm.Flow))
    x = {"a": X, "b": X.flip(0).repeat(1, 3)}
    both = gm.sample(product, x, steps=9, solver=AdamsBashforth(order))
    for name, network in (("a", Warped()), ("b", Twice())):
        flow = gm.Flow(gm.predict.Velocity(network, gm.GaussianPath()))
        alone = gm.sample(flow, x[name], steps=9, solver=AdamsBashforth(order))
        torch.testing.assert_close(both[name], alone, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("order", ORDERS)
def test_a_reversed_flow_runs_as_the_flow_does_with_times_that_fall(order: int) -> None:
    reverse = gm.Reverse(WARPED)
    back = gm.sample(reverse, X, steps=9, start=0.9, stop=0.1, solver=AdamsBashforth(order))
    same = gm.sample(WARPED, X, steps=9, start=0.9, stop=0.1, solver=AdamsBashforth(order))
    torch.testing.assert_close(back, same, rtol=1e-13, atol=1e-13)


def test_gradients_are_those_of_the_steps() -> None:
    def end(x: Tensor) -> Tensor:
        return gm.sample(WARPED, x, steps=6, solver=AdamsBashforth(4), grad=True)

    torch.autograd.gradcheck(end, (X.clone().requires_grad_(),))


# What it refuses.


@pytest.mark.parametrize("order", [0, 1, 5, 2.5, "2"])
def test_orders_are_two_to_four(order) -> None:
    with pytest.raises(ValueError, match=r"order must be 2, 3 or 4, got .*: order 1 is gm\.solvers\.Euler\(\)"):
        AdamsBashforth(order)


def test_noise_and_jumps_and_curved_spaces_are_refused_by_name() -> None:
    with pytest.raises(
        ValueError, match=r"AdamsBashforth cannot move variance: it handles drift\. Use gm\.solvers\.Exp"
    ):
        gm.sample(gm.Diffusion(WARPED.model), X, start=0.1, solver=AdamsBashforth())
    tokens = gm.CTMC(gm.predict.Tokens(Table(), gm.MixturePath(5)))
    with pytest.raises(ValueError, match=r"AdamsBashforth adds drifts at several states, .* not on Tokens.*Euler\(\)$"):
        gm.sample(tokens, (3, 4), solver=AdamsBashforth())
    sphere = gm.Flow(gm.predict.TangentVelocity(Tangent(), gm.GeodesicPath(gm.spaces.Sphere(3))))
    with pytest.raises(ValueError, match=r"in R\^d alone and not on Sphere.*Euler\(\) or Heun\(\)"):
        gm.sample(sphere, (3, 3), solver=AdamsBashforth())


class Table(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.zeros(*x.shape, 5)


class Tangent(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.zeros_like(x)


class Wide(gm.Generator):
    """A drift of the wrong shape, which a sum would broadcast."""

    def triplet(self, x, t, prediction):
        return gm.Triplet(drift=prediction.velocity[:, :1])


def test_a_drift_of_another_shape_is_refused() -> None:
    wide = Wide(WARPED.model)
    for solver in (AdamsBashforth(2), AdamsBashforth(4)):
        with pytest.raises(ValueError, match=r"a drift has the shape \(3, 2\) of the state, got \(3, 1\)"):
            gm.sample(wide, (3, 2), solver=solver, seed=0)


def test_order_two_beats_the_midpoint_rule_for_the_same_cost() -> None:
    """What it is for, on a curved field: one evaluation a step."""
    truth = gm.sample(WARPED, X, steps=400, solver=gm.solvers.RK4())
    adams_error = (gm.sample(WARPED, X, steps=80, solver=AdamsBashforth(4)) - truth).abs().max()
    midpoint = (gm.sample(WARPED, X, steps=42, solver=Midpoint()) - truth).abs().max()
    assert adams_error < midpoint / 10


def test_reprs_say_the_order() -> None:
    assert repr(AdamsBashforth(3)) == "AdamsBashforth(order=3)"
