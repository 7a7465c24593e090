"""Mistakes that a newcomer makes, and what the library says to them."""

from __future__ import annotations

import warnings

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
