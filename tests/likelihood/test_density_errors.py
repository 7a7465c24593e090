"""What log_prob refuses, and how it says so."""

from __future__ import annotations

import pytest
import torch
from gaussian_data import World, linear_flow

import genmatch as gm

F64 = torch.float64
WORLD, SCHEDULE = World(), gm.schedules.CondOT()
X = torch.zeros(2, 3, dtype=F64)


def test_only_flows():
    model = WORLD.predictor(SCHEDULE)
    with pytest.raises(TypeError, match=r"a predictor becomes one by gm.Flow\(predictor\)"):
        gm.log_prob(model, X)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"this generator has variance: take the flow .* gm.likelihood.elbo"):
        gm.log_prob(gm.Diffusion(model), X, start=0.9)
    tokens = gm.predict.Tokens(gm.nn.Transformer(3, width=8, depth=1, heads=1, length=4), gm.MixturePath(3))
    with pytest.raises(TypeError, match="flows on R"):
        gm.log_prob(gm.CTMC(tokens), torch.zeros(2, 4, dtype=torch.int64))


def test_only_sources_with_a_density():
    flow = linear_flow(torch.zeros(3, 3, dtype=F64), torch.zeros(4, 3))
    with pytest.raises(TypeError, match=r"Empirical\(\(4, 3\)\) has none: use the standard normal"):
        gm.log_prob(flow, X)

    class Silent:
        def draw(self, shape, draws):
            return torch.zeros(shape)

        def log_prob(self, x):
            return x

    with pytest.raises(ValueError, match="must return"):
        gm.log_prob(linear_flow(torch.zeros(3, 3, dtype=F64), Silent()), X)


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ({"start": 0.2, "stop": 0.9}, "start is above stop"),
        ({"times": [0.1, 0.9]}, "times fall"),
        ({"times": [0.9, 0.0], "steps": 3}, "give times alone"),
        ({"stop": 0.5}, r"known of the source alone: .* is not noise at t = 0.5"),
        ({"solver": gm.solvers.DDIM()}, r"general drifts, and DDIM"),
        ({"batch_size": 0}, "at least 1, got 0"),
        ({"condition": {"shift": torch.zeros(3)}}, "3|one row for each sample"),
        ({"start": 1.5}, r"in \[0, 1\], got 1.5"),
    ],
)
def test_bad_values(known: dict, message: str):
    with pytest.raises(ValueError, match=message):
        gm.log_prob(WORLD.flow(SCHEDULE), X, **known)


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ({"solver": gm.solvers.RK4}, "call it"),
        ({"solver": "rk4"}, "must be a genmatch Solver"),
        ({"divergence": gm.likelihood.Hutchinson}, "got Hutchinson: call it"),
        ({"divergence": "exact"}, "must be gm.likelihood.Exact"),
        ({"seed": 0.5}, "seed must be an integer"),
    ],
)
def test_bad_types(known: dict, message: str):
    with pytest.raises(TypeError, match=message):
        gm.log_prob(WORLD.flow(SCHEDULE), X, **known)


def test_ends_that_are_infinite():
    with pytest.raises(ValueError, match=r"infinite at t = 1, .* run with start=0.99"):
        gm.log_prob(WORLD.flow(SCHEDULE, "data"), X, start=1.0)
    with pytest.raises(ValueError, match=r"infinite at t = 0, .* run with stop=0.00"):
        gm.log_prob(WORLD.flow(SCHEDULE, "noise"), X, stop=0.0)


def test_data_that_are_none():
    flow = WORLD.flow(SCHEDULE)
    with pytest.raises(TypeError, match=r"x1 must be a tensor of data \(B, \*S\), got tuple"):
        gm.log_prob(flow, (2, 3))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="floating point"):
        gm.log_prob(flow, torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="non-finite"):
        gm.log_prob(flow, X + torch.nan)
    with pytest.raises(ValueError, match="at least one sample"):
        gm.log_prob(flow, X[:0])


def test_an_unfinished_run_is_no_density():
    flow = WORLD.flow(SCHEDULE)
    short = gm.solvers.Dopri5(rtol=1e-9, atol=1e-9, max_evaluations=20)
    with pytest.raises(gm.solvers.UnfinishedError, match="2 of 2"):
        gm.log_prob(flow, X, solver=short)
    _, report = gm.log_prob(flow, X, solver=short, report=True)
    assert report.status.tolist() == [1, 1]


def test_a_path_that_does_not_start_in_its_source_is_told():
    schedule = gm.schedules.DDPM([0.1] * 10)
    with pytest.warns(UserWarning, match="is not noise at t = 0.*density is that of gm.sample's samples"):
        value = gm.log_prob(WORLD.flow(schedule), X, start=0.9, solver=gm.solvers.Heun(), steps=2)
    assert bool(value.isfinite().all())


def every_solver(kind: type[gm.Solver] = gm.Solver) -> set[type[gm.Solver]]:
    shipped = kind.__module__.startswith("genmatch.") and kind is not gm.solvers.RungeKutta  # without a tableau
    found = {kind} if shipped and not kind.__abstractmethods__ else set()
    return found.union(*(every_solver(child) for child in kind.__subclasses__()))


@pytest.mark.parametrize("kind", sorted(every_solver(), key=lambda kind: kind.__name__), ids=lambda kind: kind.__name__)
def test_a_solver_lifts_or_is_refused(kind: type[gm.Solver]) -> None:
    """A solver that looks at a network past the field would feed it the density too, and give a wrong one."""
    made = {"JumpThinning": lambda: gm.solvers.JumpThinning(1.0), "Remasking": lambda: gm.solvers.Remasking(churn=1.0)}
    solver = made.get(kind.__name__, kind)()
    flow = gm.Flow(WORLD.predictor(SCHEDULE))
    truth = gm.log_prob(flow, X, start=0.9)
    if kind.lifts:
        steps = None if solver.default_steps == 1 else 200
        found = gm.log_prob(flow, X, start=0.9, solver=solver, steps=steps)
        torch.testing.assert_close(found, truth, atol=0.05, rtol=0)
    else:
        with pytest.raises(
            ValueError, match=r"log_prob needs a solver of general drifts|cannot move|is for|needs|takes"
        ):
            gm.log_prob(flow, X, start=0.9, solver=solver)


def test_a_step_that_reads_the_network_itself_refuses_states_that_carry_more() -> None:
    flow = gm.Flow(WORLD.predictor(SCHEDULE))
    field = gm.solvers.Field(flow, X, lift=lambda triplet, state, instant: triplet(state, instant))
    (instant,) = field.at(torch.tensor([0.5], dtype=F64))
    with pytest.raises(ValueError, match="carry more than the operator moves"):
        field.native(X, instant)


class Hidden(torch.nn.Module):
    """The exact network of N(0, 1) data, run without gradients."""

    def __init__(self, mode=torch.no_grad) -> None:
        super().__init__()
        self.mode = mode

    def forward(self, x, t):
        with self.mode():
            alpha, sigma = (value[:, None] for value in gm.schedules.Cosine()(t))
            return alpha / (alpha**2 + sigma**2) * x


@pytest.mark.parametrize("divergence", [None, gm.likelihood.Hutchinson(8)], ids=["exact", "signs"])
def test_a_network_without_gradients_is_differentiated_forwards(divergence) -> None:
    """By backward passes it would look constant, and the density be wrong without a word."""
    flow = gm.Flow(gm.predict.Data(Hidden(), gm.GaussianPath(gm.schedules.Cosine())))
    x = torch.tensor([[0.0, 0.0], [1.0, -2.0]], dtype=F64)
    truth = torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(1)
    found = gm.log_prob(flow, x, divergence=divergence, seed=0)
    torch.testing.assert_close(found, truth, atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match=r"computes under torch\.no_grad"):
        gm.log_prob(flow, x, divergence=gm.likelihood.Exact(mode="reverse"))
    with pytest.raises(ValueError, match=r"computes under torch\.no_grad"):
        gm.log_prob(flow, x, grad=True)
    frozen = gm.Flow(gm.predict.Data(Hidden(torch.inference_mode), gm.GaussianPath(gm.schedules.Cosine())))
    with pytest.raises(ValueError, match="inference mode"):
        gm.log_prob(frozen, x)


class Broken(torch.nn.Module):
    def forward(self, x, t):
        return torch.where(x[:, :1] > 5, float("nan"), -x)


def test_the_density_of_a_sample_that_failed_is_nan() -> None:
    flow = gm.Flow(gm.predict.Velocity(Broken(), gm.GaussianPath()))
    x = torch.tensor([[0.0, 1.0], [9.0, 1.0]], dtype=F64)
    value, report = gm.log_prob(flow, x, report=True)
    assert report.status.tolist() == [0, 3]
    assert value.isnan().tolist() == [False, True]
    _, value, report = gm.sample(flow, x, log_prob=True, report=True)
    assert report.status.tolist()[1] == 3
    assert value.isnan().tolist() == [False, True]


@pytest.mark.parametrize("value", [gm.likelihood.Hutchinson(4), "exact", 1])
def test_log_prob_is_a_switch(value) -> None:
    flow = gm.Flow(gm.predict.Velocity(gm.nn.MLP(2), gm.GaussianPath()))
    with pytest.raises(TypeError, match="log_prob must be True or False"):
        gm.sample(flow, (2, 2), log_prob=value)


def test_times_are_numbers() -> None:
    flow = gm.Flow(gm.predict.Velocity(gm.nn.MLP(2), gm.GaussianPath()))
    for call in (lambda **k: gm.sample(flow, (2, 2), **k), lambda **k: gm.log_prob(flow, torch.zeros(2, 2), **k)):
        with pytest.raises(TypeError, match="start must be a time"):
            call(start="1")
        with pytest.raises(TypeError, match="first_index must be an integer"):
            call(first_index="a")
