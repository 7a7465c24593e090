"""Mistakes that a newcomer makes, and what the library says to them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import genmatch as gm


class Exchanged(gm.Schedule):
    def __call__(self, t):
        return 1 - t, t


class Short(gm.Schedule):
    def __call__(self, t):
        return 0.5 * t, 1 - t


def test_states_and_weights_of_two_precisions():
    model = gm.predict.Velocity(gm.nn.MLP(2), gm.GaussianPath())
    for use in (
        lambda: gm.matching_loss(model, torch.zeros(4, 2, dtype=torch.float64)),
        lambda: gm.sample(gm.Flow(model), (4, 2), steps=2, dtype=torch.float64),
    ):
        with pytest.raises(TypeError, match=r"the state is torch\.float64 and the network's weights are"):
            use()


def test_noise_and_data_exchanged():
    with pytest.raises(ValueError, match=r"must increase from noise \(t = 0\) to data \(t = 1\)"):
        gm.GaussianPath(Exchanged())


def test_a_path_that_does_not_reach_the_data():
    world = gm.worlds.GaussianMixture(torch.tensor([[3.0, 0.0]]), 0.01)
    with pytest.warns(UserWarning, match="does not end in the data: at t = 1 alpha = 0.5"):
        gm.sample(gm.Flow(world.predictor(gm.GaussianPath(Short()))), (4, 2), steps=2, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for schedule in (gm.schedules.CondOT(), gm.schedules.VP(), gm.schedules.EDM(), gm.schedules.Cosine()):
            gm.sample(gm.Flow(world.predictor(gm.GaussianPath(schedule))), (4, 2), steps=2, seed=0)


def test_a_coupling_that_does_not_say_what_it_does():
    class Mine(gm.Coupling):
        def __call__(self, x0, x1, condition, draws):
            return x0, x1, condition

    with pytest.raises(TypeError, match="Mine must say whether source and data are independent under it"):
        gm.GaussianPath(coupling=Mine())


def test_the_predictor_of_rates_has_another_name():
    with pytest.raises(TypeError, match=r"the predictor of rates is gm\.predict\.Rates"):
        gm.Rates(nn.Identity(), gm.GaussianPath(), torch.linspace(-2, 2, 9))  # type: ignore[arg-type]


def test_a_continuous_state_cannot_be_fixed():
    model = gm.predict.Velocity(gm.nn.MLP(2), gm.GaussianPath())
    with pytest.raises(ValueError, match="only tokens can be fixed"):
        gm.sample(gm.Flow(model), torch.zeros(4, 2), fixed=torch.ones(4, 2, dtype=torch.bool))


def test_products_are_reversed_factor_by_factor():
    path = gm.ProductPath({"label": gm.MixturePath(3), "point": gm.GaussianPath()})

    class Joint(nn.Module):
        def forward(self, x, t):
            return {"label": torch.zeros(len(x["label"]), 3), "point": -x["point"]}

    model = gm.predict.Product(Joint(), {"label": gm.predict.Tokens, "point": gm.predict.Velocity}, path)
    reverse = gm.Reverse(gm.Product(model, {"label": gm.CTMC, "point": gm.Flow}))
    assert reverse.speed_at(0.5) == -1
    x = {"label": torch.tensor([0, 1]), "point": torch.ones(2, 2)}
    triplet = reverse(x, 0.5)
    torch.testing.assert_close(triplet["point"].drift, x["point"])
    expected = gm.ReverseCTMC(model.models["label"]).triplet(
        x["label"], 0.5, model.models["label"].prediction(x["label"], path.factors["label"].instant(0.5, x["label"]),
                                                          torch.zeros(2, 3)))  # fmt: skip
    torch.testing.assert_close(triplet["label"].rates.total(), expected.rates.total())
    noised = gm.sample(reverse, x, start=1.0, stop=0.0, steps=5, seed=0)
    assert noised["point"].shape == (2, 2)


def test_errors_in_a_factor_name_it():
    path = gm.ProductPath({"label": gm.MixturePath(3), "point": gm.GaussianPath()})
    with pytest.raises(TypeError, match="the factor 'label': Velocity needs a GaussianPath"):
        gm.predict.Product(nn.Identity(), {"label": gm.predict.Velocity, "point": gm.predict.Velocity}, path)


class Cast(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x, t):
        return x.to(self.dtype)


@pytest.mark.parametrize(
    "solver", [gm.solvers.Euler(), gm.solvers.Exponential(), gm.solvers.AdamsBashforth()], ids=repr
)
def test_a_network_of_another_precision_leaves_the_states_in_theirs(solver):
    flow = gm.Flow(gm.predict.Velocity(Cast(torch.float64), gm.GaussianPath()))
    assert gm.sample(flow, torch.zeros(2, 2), steps=3, solver=solver).dtype == torch.float32
    with pytest.raises(TypeError, match=r"output is torch\.complex64, and states are real"):
        gm.sample(
            gm.Flow(gm.predict.Velocity(Cast(torch.complex64), gm.GaussianPath())), (2, 2), steps=3, solver=solver
        )


def test_a_schedule_that_can_change():
    @dataclass
    class Mutable(gm.Schedule):
        n: float = 1.0

        def __call__(self, t):
            return t**self.n, 1 - t**self.n

    with pytest.raises(TypeError, match=r"Mutable can change: make it @dataclass\(frozen=True\)"):
        gm.GaussianPath(Mutable())


@pytest.mark.parametrize("wrong", [True, 3, gm.BrownianTree])
def test_a_tree_that_is_none(wrong):
    flow = gm.Flow(gm.predict.Velocity(gm.nn.MLP(2), gm.GaussianPath()))
    for more in ({}, {"log_prob": True}):
        with pytest.raises(TypeError, match=r"brownian must be a gm\.BrownianTree\(\) or None"):
            gm.sample(flow, (2, 2), steps=2, brownian=wrong, **more)


@pytest.mark.parametrize(
    "make",
    [
        *(gm.solvers.Exponential, gm.solvers.AdamsBashforth, gm.solvers.DPMSolver, gm.solvers.UniPC, gm.solvers.DEIS),
        *(gm.solvers.IPNDM, gm.solvers.DPMSolverSingle, lambda order: gm.solvers.Churn(order=order)),
    ],
)
@pytest.mark.parametrize("order", [True, 2.0, "2", None, -1])
def test_orders_are_integers(make, order):
    with pytest.raises(ValueError, match=r"order must be .*, got"):
        make(order)


def test_a_solver_that_cannot_move_noise_says_so_wherever_it_starts():
    sde = gm.Diffusion(gm.predict.Velocity(gm.nn.MLP(2), gm.GaussianPath()))
    for solver in (gm.solvers.AdamsBashforth(), gm.solvers.Ralston(), gm.solvers.Midpoint()):
        with pytest.raises(ValueError, match="cannot move variance"):
            gm.sample(sde, (2, 2), steps=3, solver=solver)


@pytest.mark.parametrize("which", [torch.tensor([True, False]), [0.5], [True], ["a"], [[1]], 3, [float("nan")]])
def test_steps_that_are_none(which):
    sde = gm.Diffusion(gm.predict.Data(gm.nn.MLP(2), gm.GaussianPath()))
    states = gm.sample(sde, (4, 2), steps=2, seed=0, trajectory=True)
    with pytest.raises(TypeError, match="which is a list of step numbers"):
        gm.transition_log_prob(sde, states, steps=2, which=which)


class Handmade(gm.Solver):
    parts = frozenset({"drift"})
    order = 1
    short = 0

    def defined(self, field, t):
        return True

    def plan(self, field, times):
        rows = list(zip(times.diff().tolist(), field.at(times[:-1]), strict=True))
        return rows[: len(rows) - self.short]

    def evaluations(self, plan):
        return len(plan)

    def step(self, field, x, c, draws, carry):
        return x + c[0] * field(x, c[1]).drift, None


def test_a_solver_of_ones_own_that_does_not_look():
    model = gm.predict.Velocity(gm.nn.MLP(2), gm.GaussianPath())
    with pytest.raises(ValueError, match="Handmade cannot move variance"):
        gm.sample(gm.Diffusion(model, gm.diffusivity.Constant(1.0)), (2, 2), steps=3, start=0.0, solver=Handmade())
    short = Handmade()
    short.short = 1
    with pytest.raises(ValueError, match="planned 2 steps between 4 times"):
        gm.sample(gm.Flow(model), (2, 2), steps=3, solver=short)
    with pytest.raises(TypeError, match=r"parts must be a frozenset of 'drift'"):
        type("Wrong", (Handmade,), {"parts": frozenset({"velocity"})})


def test_classes_where_objects_are_wanted():
    model = gm.predict.Velocity(gm.nn.MLP(2), gm.GaussianPath())
    with pytest.raises(TypeError, match="the class CondOT: call it"):
        gm.GaussianPath(gm.schedules.CondOT)
    with pytest.raises(TypeError, match="the class Memoryless: call it"):
        gm.Diffusion(model, gm.diffusivity.Memoryless)
    with pytest.raises(TypeError, match=r"by an instance such as gm\.solvers\.Heun\(\)"):
        gm.sample(gm.Flow(model), (2, 2), solver="heun")
