"""The one loop: what it returns, what it keeps, what it leaves alone, and what it refuses."""

from __future__ import annotations

import gc
import re
import weakref

import gaussian_line as line
import pytest
import torch
from torch import Tensor, nn

import genmatch as gm
from genmatch.solvers import DDIM, DDPM, RK4, Euler, Exponential, Field, Heun, Midpoint, Solver

PATH = gm.GaussianPath()


class Small(nn.Module):
    """A network with dropout, which counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.dropout = nn.Dropout(0.5)
        self.calls = 0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        return self.dropout(torch.tanh(self.layer(x))) * (1 + t[:, None])


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(4, 3)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.table(x)


def flow(kind: str = "Velocity", schedule: gm.Schedule | None = None) -> gm.Flow:
    return gm.Flow(getattr(gm.predict, kind)(Small(), gm.GaussianPath(schedule)))


def chain() -> gm.CTMC:
    return gm.CTMC(gm.predict.Tokens(Table(), gm.MixturePath(3, mask=3)))


def network(generator: gm.Generator) -> Small:
    return generator.models[0].network


# What comes back.


def test_the_trajectory_holds_every_state_from_the_start() -> None:
    generator = flow()
    states = gm.sample(generator, (5, 2), steps=7, seed=0, trajectory=True)
    assert states.shape == (8, 5, 2)
    assert torch.equal(states[0], PATH.draw_source((5, 2), gm.Draws(0, 5)))
    assert torch.equal(states[-1], gm.sample(generator, (5, 2), steps=7, seed=0))
    given = torch.randn(5, 2)
    assert torch.equal(gm.sample(generator, given, steps=3, trajectory=True)[0], given)


def test_the_callback_sees_every_step_of_every_batch() -> None:
    seen: list[tuple[int, float, Tensor]] = []
    times = [0.0, 0.3, 0.4, 1.0]
    states = gm.sample(
        flow(), (5, 2), times=times, seed=0, batch_size=2, trajectory=True, callback=lambda *now: seen.append(now)
    )
    assert [i for i, _, _ in seen] == [1, 2, 3] * 3
    assert [t for _, t, _ in seen] == [0.3, 0.4, 1.0] * 3
    assert torch.equal(torch.cat([x for i, _, x in seen if i == 2]), states[2])


def test_fifty_steps_of_the_exponential_solver_are_the_default() -> None:
    generator = flow()
    default = gm.sample(generator, (5, 2), seed=0)
    assert network(generator).calls == 50
    assert torch.equal(default, gm.sample(generator, (5, 2), seed=0, steps=50, solver=Exponential(2)))
    tokens = chain()
    assert torch.equal(gm.sample(tokens, (5, 2), seed=0), gm.sample(tokens, (5, 2), seed=0, steps=50, solver=Euler()))
    two = 0.5 * flow() + 0.5 * flow()  # two networks: not semilinear
    assert torch.equal(gm.sample(two, (5, 2), seed=0), gm.sample(two, (5, 2), seed=0, steps=50, solver=Euler()))


def test_dtype_of_states() -> None:
    generator = flow()
    assert gm.sample(generator, (5, 2), steps=2).dtype == torch.float32
    assert gm.sample(flow().double(), (5, 2), steps=2).dtype == torch.float64
    assert (
        gm.sample(gm.Flow(line.predictor(PATH.schedule)), (5, 1), steps=2, dtype=torch.float64).dtype == torch.float64
    )
    assert gm.sample(gm.Flow(line.predictor(PATH.schedule)), torch.zeros(5, 1).double(), steps=2).dtype == torch.float64
    assert gm.sample(chain(), (5, 2), steps=2).dtype == torch.int64
    assert gm.sample(chain(), (5, 2), steps=2, dtype=torch.int32).dtype == torch.int32


@pytest.mark.parametrize("solver", [None, Euler(), Heun(), Exponential(1)], ids=repr)
@pytest.mark.parametrize("kind", ["Data", "Velocity", "Noise"])
def test_a_network_under_autocast_moves_states_of_full_precision(kind: str, solver: Solver | None) -> None:
    """Also in a last step that is nothing but the network's output, which comes in bfloat16."""

    class Product(Small):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            output = self.layer(x)
            assert output.dtype == (torch.bfloat16 if torch.is_autocast_enabled("cpu") else torch.float32)
            return output

    generator = gm.Flow(getattr(gm.predict, kind)(Product(), PATH))
    full = gm.sample(generator, (16, 2), steps=8, seed=0, solver=solver)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = gm.sample(generator, (16, 2), steps=8, seed=0, solver=solver)
    assert x.dtype == torch.float32
    # A noise network is read near pure noise, where its errors count e^5 times in the data: bfloat16's are 2^-9.
    torch.testing.assert_close(x, full, rtol=0.1, atol=0.3 if kind == "Noise" else 0.1)


def test_the_network_of_half_precision_gets_states_of_full_precision() -> None:
    """Without autocast torch refuses the product, and the loop does not hide it by rounding the states."""
    with pytest.raises(TypeError, match=r"weights are torch\.bfloat16: .* run it under torch\.autocast"):
        gm.sample(flow().bfloat16(), (4, 2), steps=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert gm.sample(flow().bfloat16(), (4, 2), steps=2).dtype == torch.float32


# What it costs.


SPENT = {"Euler": 1, "Midpoint": 2, "Heun": 2, "RK4": 4, "Exponential": 1, "DDIM": 1, "DDPM": 1}


@pytest.mark.parametrize(
    "solver", [Euler(), Midpoint(), Heun(), RK4(), Exponential(1), Exponential(2), DDIM(0.5), DDPM()], ids=repr
)
@pytest.mark.parametrize("kind", ["Velocity", "Data"])
def test_evaluations_are_the_calls_of_the_network(solver: Solver, kind: str) -> None:
    generator = flow(kind)
    plan = solver.plan(Field(generator, torch.zeros(1, 2)), gm.grids.uniform(6))
    gm.sample(generator, (3, 2), steps=6, solver=solver, seed=0)
    assert network(generator).calls == solver.evaluations(plan)
    per_step = SPENT[type(solver).__name__]
    last = 1 if kind == "Data" else per_step  # a singular last step is one evaluation
    assert solver.evaluations(plan) == 5 * per_step + last


def test_a_network_runs_once_however_many_terms_read_it() -> None:
    generator = flow()
    model = generator.models[0]
    hybrid = 0.7 * generator + 0.3 * gm.Diffusion(model) + (lambda t: t) * gm.Langevin(model)
    for solver in (Exponential(), Euler()):
        network(generator).calls = 0
        gm.sample(hybrid, (3, 2), steps=6, solver=solver, seed=0, start=0.02)
        assert network(generator).calls == 6


def test_only_the_last_state_is_kept() -> None:
    alive: list[weakref.ref[Tensor]] = []
    counts: list[int] = []

    def watch(i: int, t: float, x: Tensor) -> None:
        alive.append(weakref.ref(x))
        del x
        counts.append(sum(r() is not None for r in alive))

    for solver in (Euler(), Heun(), Exponential(2)):
        alive.clear()
        counts.clear()
        gm.sample(flow(), (8, 2), steps=10, solver=solver, seed=0, callback=watch)
        assert max(counts) == 1, solver
    alive.clear()
    counts.clear()
    gm.sample(flow(), (8, 2), steps=10, seed=0, callback=watch, trajectory=True)
    assert counts == list(range(1, 11))


def test_the_first_state_is_let_go_too() -> None:
    born: list[weakref.ref[Tensor]] = []
    gone: list[bool] = []
    path = gm.GaussianPath(source=Watched(born))
    generator = gm.Flow(gm.predict.Velocity(Small(), path))
    gm.sample(generator, (8, 2), steps=4, seed=0, callback=lambda i, t, x: gone.append(born[0]() is None))
    assert gone[-1]


class Watched:
    """A source that remembers its tensor weakly."""

    def __init__(self, born: list[weakref.ref[Tensor]]) -> None:
        self.born = born

    def draw(self, shape, draws: gm.Draws) -> Tensor:
        x = draws.normal(shape)
        self.born.append(weakref.ref(x))
        return x


def test_no_graph_is_kept_without_grad() -> None:
    generator = flow()
    x = gm.sample(generator, torch.zeros(3, 2, requires_grad=True), steps=4)
    assert x.grad_fn is None
    assert not x.requires_grad
    # no_grad and not inference mode: a tensor that training may go on with.
    assert not x.is_inference()
    (x.requires_grad_() * 2).sum().backward()
    assert x.grad is not None


def test_nothing_stays_alive_after_a_run() -> None:
    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(o), Tensor) for o in gc.get_objects())

    generator = flow()
    gm.sample(generator, (8, 2), steps=4, seed=0, solver=Heun())
    before = tensors()
    for _ in range(3):
        gm.sample(generator, (8, 2), steps=4, seed=0, solver=Heun())
    assert tensors() <= before


# Gradients and modes.


@pytest.mark.parametrize("solver", [Euler(), Heun(), RK4(), Exponential(1), Exponential(2)], ids=repr)
def test_grad_differentiates_through_all_steps(solver: Solver) -> None:
    generator = flow().double().eval()
    x0 = torch.randn(3, 2, dtype=torch.float64)
    weight = network(generator).layer.weight

    def objective() -> Tensor:
        return gm.sample(generator, x0, steps=5, solver=solver, grad=True).pow(2).sum()

    x0.requires_grad_()
    objective().backward()
    for tensor in (x0, weight):
        gradient = tensor.grad.clone()
        with torch.no_grad():
            for index in [(0, 0), (1, 1)]:
                step, old = 1e-6, tensor[index].item()
                values = []
                for sign in (1, -1):
                    tensor[index] = old + sign * step
                    values.append(objective().item())
                tensor[index] = old
                assert gradient[index].item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5, abs=1e-8)


def test_grad_through_noise_reaches_the_network() -> None:
    generator = gm.Diffusion(flow().models[0])
    gm.sample(generator, (3, 2), steps=5, seed=0, grad=True).sum().backward()
    assert network(generator).layer.weight.grad.abs().sum() > 0


def test_networks_run_in_evaluation_mode_and_get_their_own_back() -> None:
    generator = flow()
    inner = network(generator)
    inner.train()
    inner.layer.eval()  # a mixed state, kept as it is
    a, b = (gm.sample(generator, (5, 2), steps=4, seed=0) for _ in range(2))
    assert torch.equal(a, b)  # no dropout
    assert inner.training
    assert inner.dropout.training
    assert not inner.layer.training
    noisy = gm.sample(generator, (5, 2), steps=4, seed=0, grad=True)  # the mode it is in
    assert not torch.equal(noisy, a)


def test_the_mode_comes_back_after_an_error_too() -> None:
    generator = flow()
    network(generator).train()

    def stop(i: int, t: float, x: Tensor) -> None:
        assert not network(generator).training
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gm.sample(generator, (5, 2), steps=4, seed=0, callback=stop)
    assert network(generator).training
    with pytest.raises(ValueError, match="steps"):
        gm.sample(generator, (5, 2), steps=0)
    assert network(generator).training
    assert torch.is_grad_enabled()


def test_states_that_blow_up_are_refused() -> None:
    class Blow(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return torch.where(t[:, None] > 0.45, torch.inf, x)

    generator = gm.Flow(gm.predict.Velocity(Blow(), PATH))
    with pytest.raises(FloatingPointError, match=r"5 of 5 states are not finite at the end; check=True tells"):
        gm.sample(generator, (5, 2), steps=10, seed=0)
    with pytest.raises(FloatingPointError, match=r"not finite after step 6 of 10, at t = 0.6"):
        gm.sample(generator, (5, 2), steps=10, seed=0, check=True)


# A solver of one's own.


class Leapfrog(Solver):
    """x_{i+1} = x_{i-1} + (t_{i+1} - t_{i-1}) u(x_i, t_i), after one Euler step: order 2 on a uniform grid."""

    parts = frozenset({"drift"})
    order = 2

    def defined(self, field, t):
        return field.finite(field.at(torch.tensor([t], dtype=torch.float64))[0])

    def plan(self, field, times):
        instants = field.at(times[:-1])
        steps = times.diff().tolist()
        field.settle(instants[0], instants)
        field.probe(instants[0])
        return list(zip(steps, instants, strict=True))

    def evaluations(self, plan):
        return len(plan)

    def step(self, field, x, c, draws, carry):
        h, instant = c
        drift = field(x, instant).drift
        return (x + h * drift if carry is None else carry + 2 * h * drift), x


def test_a_users_solver_runs_in_the_loop_at_its_order() -> None:
    schedule = gm.schedules.Cosine()
    generator = gm.Flow(line.predictor(schedule, "velocity"))
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
    truth = line.flow_map(schedule, x, 0.0, 1.0)
    steps = (20, 40, 80)
    errors = [(gm.sample(generator, x, steps=n, solver=Leapfrog()) - truth).abs().max().item() for n in steps]
    assert line.order(steps, errors) > 1.8
    assert gm.sample(generator, x, steps=4, solver=Leapfrog(), trajectory=True, batch_size=2).shape == (5, 5, 1)


# What solvers refuse.


def refused(error: type[Exception], message: str, *args, **options) -> None:
    with pytest.raises(error, match=message):
        gm.sample(*args, **options)


@pytest.mark.parametrize("solver", [DDPM(), DDIM(0.5), DDIM()], ids=repr)
def test_solvers_with_noise_of_their_own_take_drift_alone(solver: Solver) -> None:
    message = rf"{type(solver).__name__} adds noise of its own, and the generator has noise too: pass the flow alone"
    refused(ValueError, message, gm.Diffusion(flow().models[0]), (4, 2), solver=solver)
    tiny = flow()
    refused(ValueError, message, tiny + 0.01 * gm.Langevin(tiny.models[0]), (4, 2), solver=solver)
    # A weight of zero is no noise.
    gm.sample(tiny + 0.0 * gm.Langevin(tiny.models[0]), (4, 2), steps=2, solver=solver)


@pytest.mark.parametrize("solver", [DDPM(), DDIM(0.5)], ids=repr)
def test_ancestral_noise_needs_a_score_and_rising_times(solver: Solver) -> None:
    coupled = gm.Flow(gm.predict.Velocity(Small(), gm.GaussianPath(coupling=gm.couplings.OT())))
    message = r"ancestral noise needs a standard normal source independent of the data: .* Use DDIM\(eta=0\)"
    refused(ValueError, message, coupled, (4, 2), solver=solver)
    gm.sample(coupled, (4, 2), steps=2, solver=DDIM())
    backwards = r"ancestral noise runs from noise to data: with times that fall use DDIM\(eta=0\)"
    refused(ValueError, backwards, flow(), torch.zeros(4, 2), solver=solver, start=1.0, stop=0.0)


@pytest.mark.parametrize("solver", [Midpoint(), RK4()], ids=repr)
def test_methods_for_drift_alone_refuse_noise_and_name_those_that_serve(solver: Solver) -> None:
    generator = gm.Diffusion(flow().models[0], gm.diffusivity.EndpointSafe())
    name = type(solver).__name__
    message = rf"{name} cannot move variance: it handles drift. Use gm.solvers.Exponential\(\), Heun\(\) or Euler\(\)"
    refused(ValueError, message, generator, (4, 2), solver=solver)


@pytest.mark.parametrize("solver", [Midpoint(), Heun(), RK4()], ids=repr)
def test_only_euler_moves_rates(solver: Solver) -> None:
    message = rf"{type(solver).__name__} cannot move rates: .* Use gm.solvers.Euler\(\), which moves rates"
    refused(ValueError, message, chain(), (4, 2), solver=solver)


def test_the_exponential_solver_names_what_is_not_semilinear() -> None:
    class Swirl(gm.Generator):
        speed = 0.0

        def triplet(self, x, t, prediction):
            return gm.Triplet(drift=prediction.score.flip(-1) * x.new_tensor([1.0, -1.0]))

    class Hiss(gm.Generator):
        speed, semilinear = 0.0, True

        def triplet(self, x, t, prediction):
            return gm.Triplet(drift=0.5 * prediction.score, variance=1.0)

    serve = r"Use gm.solvers.Euler\(\), Heun\(\) or, without noise, Midpoint\(\) or RK4\(\)"
    one, other = flow(), flow()
    model = one.models[0]
    for generator, why in (
        (one + Swirl(model), "Swirl is not semilinear"),
        (one + Hiss(model), "Hiss has a variance and is no gm.Langevin"),
        (0.5 * one + 0.5 * other, "it reads 2 networks"),
        (gm.Flow(gm.predict.Velocity(Small(), gm.GaussianPath(noise=0.1))), "noise is added to the state"),
    ):
        refused(ValueError, rf"Exponential needs .*but .*{why}.*{serve}", generator, (4, 2), solver=Exponential())
        for solver in (DDIM(), DDPM()):
            refused(ValueError, why, generator, (4, 2), solver=solver)
        assert gm.sample(generator, (4, 2), steps=3, seed=0).shape == (4, 2)  # the default takes another solver
    jumps = r"but CTMC is not semilinear. Use gm.solvers.Euler\(\), which moves rates"
    refused(ValueError, jumps, chain(), (4, 2), solver=Exponential())


def test_a_subclass_with_a_triplet_of_its_own_is_not_taken_for_its_parent() -> None:
    """Flow is semilinear; a flow whose drift somebody changed is what they made it, by the default solver too."""

    class Pushed(gm.Flow):
        def triplet(self, x, t, prediction):
            return gm.Triplet(drift=prediction.velocity + 1.0)

    class Named(gm.Flow):
        """The same triplet under another name."""

    generator = flow()
    model = generator.models[0]
    pushed = gm.sample(Pushed(model), (4, 2), steps=5, seed=0)
    assert torch.equal(pushed, gm.sample(Pushed(model), (4, 2), steps=5, seed=0, solver=Euler()))
    assert (pushed - gm.sample(generator, (4, 2), steps=5, seed=0)).abs().min() > 0.1
    refused(ValueError, "Pushed is not semilinear", Pushed(model), (4, 2), solver=Exponential())
    assert torch.equal(gm.sample(Named(model), (4, 2), seed=0), gm.sample(generator, (4, 2), seed=0))


def test_noise_that_depends_on_the_state_is_for_end_point_free_methods_alone() -> None:
    class Multiplicative(gm.Generator):
        speed, additive = 0.0, False

        def triplet(self, x, t, prediction):
            return gm.Triplet(variance=0.1 * x**2)

    generator = flow() + Multiplicative(flow().models[0])
    refused(ValueError, r"Heun needs additive noise, .*Use gm.solvers.Euler\(\)", generator, (4, 2), solver=Heun())
    assert gm.sample(generator, (4, 2), steps=3, solver=Euler(), seed=0).isfinite().all()


def test_noise_and_jumps_run_forwards() -> None:
    model = flow().models[0]
    safe = gm.Diffusion(model, gm.diffusivity.EndpointSafe())
    options = {"start": 0.9, "stop": 0.1}
    for solver in (Euler(), Heun()):
        refused(ValueError, "noise and jumps run from noise to data: with times that fall use a flow", safe,
                torch.zeros(4, 2), solver=solver, **options)  # fmt: skip
    refused(ValueError, "noise runs from noise to data: with times that fall use a flow", safe,
            torch.zeros(4, 2), solver=Exponential(), **options)  # fmt: skip
    refused(
        ValueError, "noise and jumps run from noise to data", chain(), torch.zeros(4, 2, dtype=torch.int64), **options
    )


@pytest.mark.parametrize("solver", [Euler(), Heun()], ids=repr)
def test_infinite_noise_at_the_start_needs_the_exponential_solver(solver: Solver) -> None:
    message = (
        r"cannot start at t = 0, where a network's reading or the noise is infinite: start a little inside \(0, 1\), "
        r"by start=0.01 say, or use gm.solvers.Exponential\(\), which is exact where the noise is infinite"
    )
    refused(ValueError, message, gm.Diffusion(flow().models[0]), (4, 2), solver=solver)
    # A solver that would refuse the sum is not offered.
    two = gm.Flow(flow().models[0]) + gm.Langevin(flow().models[0])
    refused(ValueError, r"by start=0.01 say$", two, (4, 2), solver=solver)
    # The Noise network is blind there besides, and is not blamed for it.
    refused(ValueError, message, gm.Diffusion(flow("Noise").models[0]), (4, 2), solver=solver)


def test_a_denoiser_cannot_start_at_the_data() -> None:
    for solver in (Euler(), Exponential(), DDIM()):
        refused(ValueError, r"cannot start at t = 1, .* by start=0.99 say", flow("Data"), torch.zeros(4, 2),
                solver=solver, start=1.0, stop=0.0)  # fmt: skip
        assert gm.sample(flow("Data"), torch.zeros(4, 2), solver=solver, start=0.99, stop=0.0).isfinite().all()


def test_weights_that_make_the_variance_negative_are_refused_by_every_solver() -> None:
    model = flow().models[0]
    generator = gm.Flow(model) - 0.5 * gm.Langevin(model, gm.diffusivity.EndpointSafe())
    message = r"make the variance negative at t = 0: the diffusions subtracted carry more noise than those added"
    for solver in (Euler(), Heun(), Exponential()):
        refused(ValueError, message, generator, (4, 2), solver=solver)
    # Negative on a part of the way only.
    late = gm.Diffusion(model, gm.diffusivity.Constant(0.5)) + (lambda t: -t) * gm.Langevin(
        model, gm.diffusivity.Constant(1.0)
    )
    for solver in (Euler(), Heun(), Exponential()):
        refused(ValueError, r"make the variance negative at t = 0.5[12]", late, (4, 2), solver=solver, steps=50)
    # Subtracting less than there is is fine, also where both are infinite.
    less = gm.Diffusion(model) - 0.5 * gm.Langevin(model)
    same = gm.Flow(model) + 0.5 * gm.Langevin(model)
    torch.testing.assert_close(*(gm.sample(g, (4, 2), steps=5, seed=0) for g in (less, same)))
    mixed = gm.Diffusion(model) - 0.5 * gm.Langevin(model, gm.diffusivity.Memoryless(0.5))
    refused(ValueError, "infinite noise is both added and subtracted between t = 0 and 0.02", mixed, (4, 2))


# What the door refuses.


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"steps": -1}, ValueError, "steps must be at least 1, got -1"),
        ({"steps": 1.5}, TypeError, "steps must be an integer, got float"),
        ({"steps": True}, TypeError, "steps must be an integer, got bool"),
        ({"times": [0.0, 0.5, 0.4, 1.0]}, ValueError, "times must rise strictly .* or fall strictly"),
        ({"times": [0.0, 0.5, 0.5]}, ValueError, "times must rise strictly"),
        ({"times": [0.0, 1.5]}, ValueError, r"times must be in \[0, 1\], got 0 to 1.5"),
        ({"times": [-0.5, 1.0]}, ValueError, r"times must be in \[0, 1\], got -0.5 to 1"),
        ({"times": [0.0, float("nan"), 1.0]}, ValueError, r"times must be in \[0, 1\]"),
        ({"times": [0.0]}, ValueError, r"times must be at least two numbers in a row, got shape \(1,\)"),
        ({"times": []}, ValueError, "times must be at least two numbers in a row"),
        ({"times": [[0.0, 1.0]]}, ValueError, r"times must be at least two numbers in a row, got shape \(1, 2\)"),
        ({"times": [0.0, 1.0], "steps": 5}, ValueError, "give times alone, or steps with start and stop"),
        ({"times": [0.0, 1.0], "stop": 0.5}, ValueError, "give times alone, or steps with start and stop"),
        ({"start": 0.5, "stop": 0.5}, ValueError, "start and stop are both 0.5: there is nothing to integrate"),
        ({"start": 1.5}, ValueError, r"start must be in \[0, 1\], got 1.5: 0 is noise, 1 is data"),
        ({"stop": float("nan")}, ValueError, r"stop must be in \[0, 1\], got nan"),
        ({"solver": Heun}, TypeError, r"solver must be a genmatch Solver, got .*: call it, as in gm.solvers.Heun\(\)"),
        ({"solver": "heun"}, TypeError, "solver must be a genmatch Solver, got 'heun'"),
        ({"seed": 1.5}, TypeError, "seed must be an integer or None, got float"),
        ({"seed": -1}, ValueError, r"seed must be in \[0, 2\*\*64\), got -1"),
        ({"first_index": -1}, ValueError, "sample indices must be in"),
        ({"first_index": 2**32 - 2}, ValueError, "sample indices must be in"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"batch_size": 2.5}, TypeError, "batch_size must be an integer, got float"),
        ({"dtype": torch.bfloat16}, TypeError, "states are float32 or float64, got torch.bfloat16: .* torch.autocast"),
        ({"dtype": torch.int64}, TypeError, "states are float32 or float64, got torch.int64"),
        ({"device": "meta"}, ValueError, "the states are on meta and the network's parameters on cpu: move"),
        ({"callback": 3}, TypeError, r"callback must be a function of \(i, t, x\), got int"),
        ({"condition": torch.ones(4)}, TypeError, "condition must be a dict of tensors"),
        ({"condition": {"y": 3}}, TypeError, r"condition\['y'\] must be a tensor, got int"),
        ({"condition": {"y": torch.ones(3)}}, ValueError, r"condition\['y'\] has shape \(3,\) for 4 samples"),
        ({"fixed": torch.ones(4, 2, dtype=torch.bool)}, ValueError, "fixed positions need given token states"),
        ({"stepz": 3}, TypeError, "unexpected keyword argument 'stepz'"),
    ],
    ids=lambda value: re.sub(r"\W+", "-", str(value))[:40] if isinstance(value, dict) else "",
)
def test_bad_options(options: dict, error: type[Exception], message: str) -> None:
    refused(error, message, flow(), (4, 2), **options)


@pytest.mark.parametrize(
    ("states", "error", "message"),
    [
        ((), ValueError, r"at least one sample is needed: shape \(B, \*S\) with B >= 1, got \(\)"),
        ((0, 2), ValueError, r"at least one sample is needed: .* got \(0, 2\)"),
        ((4, -1), TypeError, r"give a shape \(B, \*S\) or a tensor of states, got \(4, -1\)"),
        ((4, 2.5), TypeError, r"give a shape \(B, \*S\) or a tensor of states, got \(4, 2.5\)"),
        (4, TypeError, r"give a shape \(B, \*S\) or a tensor of states, got 4"),
        (torch.tensor(1.0), ValueError, r"a state has shape \(B, \*S\), got a scalar"),
        (torch.zeros(0, 2), ValueError, "at least one sample is needed"),
        (torch.full((4, 2), torch.nan), ValueError, "the state has 8 non-finite values of 8: check the data for NaN"),
        (torch.zeros(4, 2, dtype=torch.int64), TypeError, "a continuous state must be floating point, got torch.int64"),
        (torch.zeros(4, 2, dtype=torch.bfloat16), TypeError, "states are float32 or float64, got torch.bfloat16"),
        (torch.zeros(4, 2, device="meta"), ValueError, "the states are on meta and the network's parameters on cpu"),
    ],
)
def test_bad_states(states, error: type[Exception], message: str) -> None:
    refused(error, message, flow(), states)


def test_bad_tokens() -> None:
    tokens = torch.tensor([[3, 1], [0, 2]])
    refused(TypeError, r"tokens must be integers, got torch.float32: call .long\(\)", chain(), tokens.float())
    refused(ValueError, r"tokens must be in \[0, 3\) or 3, got 8", chain(), tokens + 5)
    refused(
        TypeError, "tokens are integers, got dtype torch.float32: leave dtype out", chain(), (4, 2), dtype=torch.float32
    )
    refused(ValueError, r"fixed must be bool of the shape \(2, 2\) of the states, got torch.float32", chain(), tokens,
            fixed=torch.ones(2, 2))  # fmt: skip
    refused(ValueError, r"fixed must be bool of the shape \(2, 2\)", chain(), tokens, fixed=torch.ones(2, 3).bool())
    refused(ValueError, "fixed positions need given token states: pass the tokens with their prompt, not a shape",
            chain(), (2, 2), fixed=torch.ones(2, 2).bool())  # fmt: skip
    refused(ValueError, r"is not noise at t = 0.5, where kappa = 0.5: pass states drawn from its p_t", chain(), (2, 2),
            start=0.5)  # fmt: skip


def test_bad_generators() -> None:
    generator = flow()
    model = generator.models[0]
    refused(TypeError, r"sample takes a generator such as gm.Flow\(model\), got Velocity: a predictor becomes one by "
            r"gm.Flow\(predictor\)", model, (4, 2))  # fmt: skip
    refused(TypeError, "sample takes a generator such as .*, got str", "flow", (4, 2))
    speed = (
        "the weights carry the path at speed 0.8, not 1, at t = 0: weights of generators that follow the path must add"
    )
    for solver in (None, Euler(), Heun(), DDIM()):
        refused(ValueError, speed, 0.8 * generator, (4, 2), solver=solver)
        refused(ValueError, "at speed 1.5, not 1", generator + 0.5 * flow_on(generator), (4, 2), solver=solver)
        refused(
            ValueError,
            "at speed 0, not 1",
            gm.Langevin(model, gm.diffusivity.EndpointSafe()) * 1.0,
            (4, 2),
            solver=solver,
        )
    # Right at both ends, wrong in between.
    drifting = (lambda t: 1 + t * (1 - t)) * generator
    refused(ValueError, r"at speed 1.16, not 1, at t = 0.2", drifting, (4, 2), steps=5)


def flow_on(generator: gm.Flow) -> gm.Flow:
    return gm.Flow(generator.models[0])


def test_warnings_point_at_the_caller() -> None:
    with pytest.warns(UserWarning, match="is not noise at t = 0") as caught:
        gm.sample(flow("Noise", gm.schedules.DDPM([0.1] * 10)), (4, 2), steps=2, seed=0)
    assert caught[0].filename == __file__


def test_solvers_check_their_own_numbers() -> None:
    for order in (0, 4, 1.5, "2"):
        with pytest.raises(ValueError, match="order must be 1, 2 or 3"):
            Exponential(order)  # type: ignore[arg-type]
    for eta in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"eta must be in \[0, 1\]"):
            DDIM(eta)
