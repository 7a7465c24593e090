"""Products: a label and a point, jointly, against the law that is known in closed form."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import genmatch as gm
from genmatch.couplings import OT, Given
from genmatch.random import Draws

F64 = torch.float64
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=F64)
MEANS = torch.tensor([1.5, -0.5, -2.0], dtype=F64)
SPREADS = torch.tensor([0.3, 0.6, 0.4], dtype=F64)


def product_path(clocks=None, **schedules) -> gm.ProductPath:
    label = gm.MixturePath(3, schedule=schedules.get("label"))
    return gm.ProductPath({"label": label, "point": gm.GaussianPath(schedules.get("point"))}, clocks=clocks)


class Exact(nn.Module):
    """What a perfect network returns: posterior of the label and velocity of the point, each given both."""

    def __init__(self, path: gm.ProductPath, *, blind: bool = False) -> None:
        super().__init__()
        self.path, self.blind = path, blind

    def joint(self, x: dict[str, Tensor], t: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """log p_t(x, c) for every class c, ``(B, 3)``, and mean and slope of the velocity given it."""
        kappa = self.path.factors["label"].schedule(t["label"].double())[0]  # type: ignore[attr-defined]
        at = self.path.factors["point"].at(t["point"].double())
        alpha, sigma = at.alpha[:, None], at.sigma[:, None]
        variance = alpha**2 * SPREADS**2 + sigma**2
        centred = x["point"].double().reshape(-1, 1) - alpha * MEANS
        normal = -(centred**2) / (2 * variance) - variance.log() / 2
        shown = (1 - kappa)[:, None] / 3 + kappa[:, None] * (x["label"].reshape(-1, 1) == torch.arange(3))
        if self.blind:
            shown = torch.ones_like(shown)
        slope = (alpha * at.alpha_dot[:, None] * SPREADS**2 + sigma * at.sigma_dot[:, None]) / variance
        return WEIGHTS.log() + normal + shown.log(), at.alpha_dot[:, None] * MEANS + slope * centred, variance

    def forward(self, x: dict[str, Tensor], t: dict[str, Tensor]) -> dict[str, Tensor]:
        joint, velocity, _ = self.joint(x, t)
        point = (joint.softmax(-1) * velocity).sum(-1)
        return {"label": joint, "point": point.to(x["point"].dtype).reshape(x["point"].shape)}


def model_on(path: gm.ProductPath, **options) -> gm.predict.Product:
    factors = {"label": gm.predict.Tokens, "point": gm.predict.Velocity}
    return gm.predict.Product(Exact(path, **options), factors, path)


def generator_on(path: gm.ProductPath, **options) -> gm.Product:
    return gm.Product(model_on(path, **options), {"label": gm.CTMC, "point": gm.Flow})


def density(path: gm.ProductPath, label: Tensor, point: Tensor, t: Tensor) -> Tensor:
    """p_t(label, point), by the definition of the path, differentiable in t."""
    clocks = {name: path.clocks.get(name, lambda s: s)(t) for name in path.factors}
    kappa = path.factors["label"].schedule(clocks["label"])[0]  # type: ignore[attr-defined]
    alpha, sigma = path.factors["point"].schedule(clocks["point"])  # type: ignore[attr-defined]
    variance = alpha**2 * SPREADS**2 + sigma**2
    shown = (1 - kappa) / 3 + kappa * (label[:, None] == torch.arange(3))
    normal = torch.exp(-((point[:, None] - alpha * MEANS) ** 2) / (2 * variance)) / (2 * math.pi * variance).sqrt()
    return (WEIGHTS * shown * normal).sum(-1)


def observable(x: Any) -> Tensor:
    """A function of label and point that no function of either alone is near to."""
    phase = x["label"].to(F64).reshape(-1)
    return torch.sin(1.1 * x["point"].reshape(-1) + 1.7 * phase) + 0.3 * phase * x["point"].reshape(-1)


def residual(generator: gm.Generator, path: gm.ProductPath, time: float) -> float:
    """|<p_t, L f> - d/dt <p_t, f>| by quadrature over the point and summation over the label."""
    grid = torch.linspace(-14, 14, 4001, dtype=F64)
    label, point = torch.arange(3).repeat_interleave(len(grid)), grid.repeat(3)
    x = {"label": label, "point": point[:, None]}
    step = float(grid[1] - grid[0])
    t = torch.tensor(time, dtype=F64)
    rate = torch.func.jvp(lambda s: density(path, label, point, s), (t,), (torch.ones_like(t),))[1]  # type: ignore[index]
    left = float((rate * observable(x)).sum()) * step
    triplets = generator(x, time)
    right = float((density(path, label, point, t) * triplets.apply(observable, x, path.space)).sum()) * step
    return abs(left - right)


PATHS = {
    "plain": product_path(),
    "schedules": product_path(label=gm.schedules.Polynomial(2.0), point=gm.schedules.Cosine()),
    "clocks": product_path({"label": lambda t: 1 - (1 - t) ** 3, "point": lambda t: t**2}),
}
every = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


@every
@pytest.mark.parametrize("time", [0.2, 0.55, 0.9])
def test_the_forward_equation_holds(path: gm.ProductPath, time: float):
    assert residual(generator_on(path), path, time) < 1e-6


@every
def test_fields_that_do_not_see_the_other_factor_break_it(path: gm.ProductPath):
    assert residual(generator_on(path, blind=True), path, 0.55) > 1e-2


def test_noise_in_one_factor_keeps_it():
    path = PATHS["schedules"]
    noisy = gm.Product(
        model_on(path),
        {"label": gm.CTMC, "point": lambda m: 0.4 * gm.Flow(m) + 0.6 * gm.Diffusion(m, gm.diffusivity.Constant(0.7))},
    )
    assert residual(noisy, path, 0.5) < 1e-6
    constant = gm.diffusivity.Constant(1.0)
    rising = gm.Product(
        model_on(path),
        {
            "label": lambda m: (lambda t: 1 + t) * gm.CTMC(m) + (lambda t: t) * gm.ReverseCTMC(m),
            "point": lambda m: (lambda t: t) * gm.Flow(m) + (lambda t: 1 - t) * gm.Diffusion(m, constant),
        },
    )
    assert residual(rising, path, 0.5) < 1e-6


def test_clocks_without_their_speed_break_it():
    path, bare = PATHS["clocks"], PATHS["plain"]

    class Unclocked(gm.Generator):
        def triplet(self, x, t, prediction):
            still = dict.fromkeys(path.factors, 1.0)
            instant = type(prediction.instant)(prediction.instant.t, prediction.instant.factors, still)
            return right.triplet(x, t, type(prediction)(prediction.factors, instant))

    right = generator_on(path)
    assert residual(Unclocked(right.model), path, 0.55) > 1e-3
    assert residual(generator_on(bare), bare, 0.55) < 1e-6


@pytest.mark.parametrize("steps", [100])
@every
def test_the_sampler_reproduces_the_joint_law(path: gm.ProductPath, steps: int):
    count = 6000
    x = gm.sample(generator_on(path), {"label": (count,), "point": (count, 1)}, steps=steps, seed=1, dtype=F64)
    frequency = torch.bincount(x["label"], minlength=3).double() / count
    assert (
        float(((frequency - WEIGHTS) ** 2 / WEIGHTS).sum()) * count < 20
    )  # chi-square of 2: 5e-5, and the grid's error
    for c in range(3):
        own = x["point"][x["label"] == c, 0]
        tolerance = 4 / math.sqrt(len(own))
        assert abs(float(own.mean()) - float(MEANS[c])) < tolerance * float(SPREADS[c]) + 0.03
        assert abs(float(own.std()) / float(SPREADS[c]) - 1) < tolerance + 0.05


def test_batches_and_shards_give_the_same_samples():
    generator, shapes = generator_on(PATHS["plain"]), {"label": (12,), "point": (12, 1)}
    whole = gm.sample(generator, shapes, steps=8, seed=3, dtype=F64)
    split = gm.sample(generator, shapes, steps=8, seed=3, dtype=F64, batch_size=5)
    shard = gm.sample(generator, {"label": (4,), "point": (4, 1)}, steps=8, seed=3, dtype=F64, first_index=8)
    for name in shapes:
        torch.testing.assert_close(whole[name], split[name])
        torch.testing.assert_close(whole[name][8:], shard[name])


def test_trajectories_and_given_states():
    generator = generator_on(PATHS["plain"])
    start = {"label": torch.tensor([0, 1]), "point": torch.zeros(2, 1, dtype=F64)}
    states = gm.sample(generator, start, steps=5, seed=0, trajectory=True)
    assert states["label"].shape == (6, 2)
    assert states["point"].shape == (6, 2, 1)
    assert torch.equal(states["label"][0], start["label"])
    held = gm.sample(generator, start, steps=5, seed=0, fixed={"label": torch.tensor([True, True])})
    assert torch.equal(held["label"], start["label"])


def test_a_clock_that_stands_at_one_is_for_a_given_factor():
    given = product_path({"label": torch.ones_like})
    count = 4000
    x = {"label": torch.full((count,), 1), "point": Draws(0, count).normal((count, 1), F64)}
    end = gm.sample(generator_on(given), x, steps=100, seed=0)
    assert torch.equal(end["label"], x["label"])
    assert abs(float(end["point"].mean()) - float(MEANS[1])) < 0.05
    assert abs(float(end["point"].std()) / float(SPREADS[1]) - 1) < 0.1


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(3, 8)
        self.net = nn.Sequential(nn.Linear(11, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 4))

    def forward(self, x, t):
        times = torch.stack([t["label"], t["point"]], 1)
        out = self.net(torch.cat([x["point"], self.table(x["label"]), times], 1))
        return {"label": out[:, :3], "point": out[:, 3:]}


def small_model(path: gm.ProductPath | None = None) -> gm.predict.Product:
    torch.manual_seed(0)
    factors = {"label": gm.predict.Tokens, "point": gm.predict.Velocity}
    return gm.predict.Product(Small(), factors, PATHS["plain"] if path is None else path)


def data(count: int, seed: int) -> dict[str, Tensor]:
    draws = Draws(seed, count)
    label = torch.searchsorted(WEIGHTS.cumsum(0), draws.uniform((count,), F64), right=True).clamp(max=2)
    point = MEANS[label] + SPREADS[label] * draws.fork(1).normal((count,), F64)
    return {"label": label, "point": point[:, None].float()}


def test_the_loss_is_the_sum_of_the_factors():
    model, x1 = small_model(), data(16, 0)
    t = torch.linspace(0.1, 0.9, 16)
    loss = gm.matching_loss(model, x1, t=t, seed=5, reduction="none")
    draws = Draws(5, 16)
    x0 = model.path.draw_source({"label": (16,), "point": (16, 1)}, draws)
    x = model.path.between(x0, x1, model.path.instant(t, x1), draws.fork(6))
    out = model.network(x, {"label": t, "point": t})
    expected = nn.functional.cross_entropy(out["label"], x1["label"], reduction="none")
    expected = expected + (out["point"] - (x1["point"] - x0["point"])).square()[:, 0]
    torch.testing.assert_close(loss, expected)
    heavy = gm.predict.Product(model.network, {"label": gm.predict.Tokens, "point": gm.predict.Velocity}, model.path,
                               weights={"label": 2.0, "point": 0.5})  # fmt: skip
    double = gm.matching_loss(heavy, x1, t=t, seed=5, reduction="none")
    ce = nn.functional.cross_entropy(out["label"], x1["label"], reduction="none")
    torch.testing.assert_close(double, 2 * ce + 0.5 * (expected - ce))


def test_factors_have_times_of_their_own():
    model, x1 = small_model(), data(4096, 0)
    seen: dict[str, Tensor] = {}

    class Spy(Small):
        def forward(self, x, t):
            seen.update(t)
            return super().forward(x, t)

    spy = gm.predict.Product(Spy(), {"label": gm.predict.Tokens, "point": gm.predict.Velocity}, model.path)
    gm.matching_loss(spy, x1, seed=0)
    assert torch.equal(seen["label"], seen["point"])
    law = gm.times.Uniform(stratified=False)
    gm.matching_loss(spy, x1, seed=0, time={"label": law, "point": law})
    assert abs(float(torch.corrcoef(torch.stack([seen["label"], seen["point"]]))[0, 1])) < 0.07
    gm.matching_loss(spy, x1, seed=0, t={"label": 1.0, "point": torch.full((4096,), 0.25)})
    assert set(seen["label"].tolist()) == {1.0}
    assert set(seen["point"].tolist()) == {0.25}


@pytest.mark.slow
def test_training_finds_the_joint_law():
    model = small_model()
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for i in range(1500):
        loss = gm.matching_loss(model, data(256, i), seed=i)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    count = 6000
    generator = gm.Product(model, {"label": gm.CTMC, "point": gm.Flow})
    x = gm.sample(generator, {"label": (count,), "point": (count, 1)}, steps=50, seed=0)
    frequency = torch.bincount(x["label"], minlength=3).double() / count
    assert float((frequency - WEIGHTS).abs().max()) < 0.05
    for c in range(3):
        own = x["point"][x["label"] == c, 0].double()
        truth = data(200_000, 9)
        other = truth["point"][truth["label"] == c, 0].double()
        apart = float(gm.metrics.energy_distance(own[:1500, None], other[:1500, None]))
        assert apart < 0.02, (c, apart)


def test_fit_trains_products():
    def run(**more):
        model = small_model()
        options = {"batch_size": 64, **more}
        fitted = gm.training.fit(model, data(512, 0), steps=6, seed=0, progress=False, **options)
        return model, fitted

    model, fitted = run()
    assert len(fitted.losses) == 6
    again, _ = run()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    split, _ = run(batch_size=32, accumulate=2)
    for a, b in zip(model.parameters(), split.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    seen = []

    def loss(model, x1, condition, draws):
        seen.append((set(x1), None if condition is None else set(condition)))
        return gm.matching_loss(model, x1, draws=draws)

    labelled = (data(128, 0), {"colour": torch.zeros(128)})
    gm.training.fit(small_model(), labelled, steps=1, batch_size=64, seed=0, progress=False, loss=loss)
    assert seen == [({"label", "point"}, {"colour"})]


def test_weights_of_a_sum_of_products_run_along_the_batch():
    model = model_on(PATHS["plain"])
    flow = gm.Product(model, {"label": gm.CTMC, "point": gm.Flow})
    noisy = gm.Product(model, {"label": gm.CTMC, "point": lambda m: gm.Diffusion(m, gm.diffusivity.Constant(0.5))})
    total = (lambda t: t) * flow + (lambda t: 1 - t) * noisy
    x = {"label": torch.tensor([0, 1, 2]), "point": torch.tensor([[0.3], [-0.2], [1.0]], dtype=F64)}
    times = torch.tensor([0.2, 0.5, 0.8], dtype=F64)
    together = total(x, times)
    for i in range(3):
        alone = total({name: part[i : i + 1] for name, part in x.items()}, float(times[i]))
        torch.testing.assert_close(together["point"].drift[i : i + 1], alone["point"].drift)
        torch.testing.assert_close(
            together["point"].variance[i].squeeze(), torch.tensor(alone["point"].variance).to(F64)
        )
        torch.testing.assert_close(together["label"].rates.total()[i : i + 1], alone["label"].rates.total())
    assert residual(total, PATHS["plain"], 0.6) < 1e-6
    with pytest.raises(TypeError, match="a weight is a function of one time, and every factor was given its own"):
        total(x, {"label": 0.5, "point": 0.6})


def test_a_given_factor_stands_still_at_times_of_all_kinds():
    generator = generator_on(product_path({"label": torch.ones_like}))
    x = {"label": torch.tensor([0, 1]), "point": torch.zeros(2, 1, dtype=F64)}
    for t in (0.5, torch.tensor([0.5, 0.7], dtype=F64)):
        assert generator(x, t)["label"].parts == frozenset()
        assert bool(generator(x, t)["point"].drift.isfinite().all())


def test_a_clock_that_stands_for_a_while_moves_nothing():
    path = product_path({"label": lambda t: (2 * t).clamp(max=1)})
    generator = generator_on(path)
    triplet = generator({"label": torch.tensor([0]), "point": torch.zeros(1, 1, dtype=F64)}, 0.75)
    assert float(triplet["label"].rates.total()) == 0
    x = gm.sample(generator, {"label": (2000,), "point": (2000, 1)}, steps=60, seed=0, dtype=F64)
    assert abs(float((x["label"] == 0).double().mean()) - 0.5) < 0.05
    late = product_path({"label": lambda t: t**2})  # stands at the start
    with pytest.raises(ValueError, match="Heun cannot move rates"):
        gm.sample(generator_on(late), {"label": (4,), "point": (4, 1)}, solver=gm.solvers.Heun())


# Bad input


def test_what_is_no_generator_of_the_path_is_refused():
    model, shapes = model_on(PATHS["plain"]), {"label": (4,), "point": (4, 1)}
    typo = gm.Product(
        model,
        {"label": gm.CTMC, "point": lambda q: (lambda t: t) * gm.Flow(q) + (lambda t: 0.25 + t / 2) * gm.Flow(q)},
    )
    with pytest.raises(ValueError, match=r"at speed .* not 1, at t = 0"):
        gm.sample(typo, shapes, dtype=F64)
    negative = gm.Product(model, {"label": lambda q: 0.5 * gm.CTMC(q) - 0.5 * gm.ReverseCTMC(q), "point": gm.Flow})
    with pytest.raises(ValueError, match="make a jump rate negative"):
        gm.sample(negative, shapes, dtype=F64)
    factors = {"label": gm.predict.Tokens, "point": gm.predict.Velocity}
    other = {**factors, "point": lambda n, p: gm.predict.Velocity(n, gm.GaussianPath(gm.schedules.Cosine()))}
    own = {**factors, "point": lambda n, p: gm.predict.Velocity(nn.Linear(1, 1), p)}
    for wrong in (other, own):
        with pytest.raises(ValueError, match="must be made of the network and the path it is given"):
            gm.predict.Product(Small(), wrong, PATHS["plain"])
    with pytest.raises(TypeError, match="got a Velocity that is made already"):
        gm.predict.Product(
            Small(), {**factors, "point": gm.predict.Velocity(nn.Identity(), gm.GaussianPath())}, PATHS["plain"]
        )
    with pytest.raises(TypeError, match="got a Flow that is made already"):
        gm.Product(model, {"label": gm.CTMC, "point": gm.Flow(model.models["point"])})
    for weight in (-1.0, math.nan):
        with pytest.raises(ValueError, match="the weight of 'label'"):
            gm.predict.Product(Small(), factors, PATHS["plain"], weights={"label": weight, "point": 1.0})
    with pytest.raises(TypeError, match="does not wrap a product"):
        gm.guidance.ClassifierFree(model, 2.0, null={"label": 0})


def test_what_a_generator_of_products_returns_is_read():
    class Typo(gm.Generator):
        def triplet(self, x, t, prediction):
            right = generator_on(PATHS["plain"]).triplet(x, t, prediction)
            return type(right)({"label": right["label"], "pont": right["point"]})

    class Plain(gm.Generator):
        def triplet(self, x, t, prediction):
            return gm.Triplet(drift=x["point"])

    for kind, message in ((Typo, "got 'label', 'pont'"), (Plain, "got a Triplet")):
        with pytest.raises(ValueError, match=f"a generator returns Triplets with factors among .*{message}"):
            gm.sample(kind(model_on(PATHS["plain"])), {"label": (4,), "point": (4, 1)}, steps=2, dtype=F64)


def test_bad_clocks_and_names():
    with pytest.raises(ValueError, match="runs infinitely fast at t = 0"):
        product_path({"label": torch.sqrt})
    with pytest.raises(ValueError, match="without detach"):
        product_path({"label": lambda t: (t**2).detach()})
    for name in ("", "a.b"):
        with pytest.raises(ValueError, match="a factor's name is a string without dots"):
            gm.ProductPath({name: gm.GaussianPath()})
    for name in ("type", "values", "half"):  # attributes of modules, and good names
        path = gm.ProductPath({name: gm.GaussianPath()})
        gm.Product(gm.predict.Product(Small(), {name: gm.predict.Velocity}, path), {name: gm.Flow})
    given = generator_on(product_path({"label": torch.ones_like}))
    with pytest.raises(ValueError, match="label is given, its clock stands at 1: pass its values"):
        gm.sample(given, {"label": (4,), "point": (4, 1)}, dtype=F64)


def test_what_is_not_finite_is_seen():
    class Broken(nn.Module):
        def forward(self, x, t):
            return {"label": torch.full((len(x["label"]), 3), math.nan), "point": -x["point"]}

    factors = {"label": gm.predict.Tokens, "point": gm.predict.Velocity}
    model = gm.predict.Product(Broken(), factors, PATHS["plain"])
    with pytest.raises(FloatingPointError, match=r"tokens are none.*Are the network's logits finite"):
        gm.sample(gm.Product(model, {"label": gm.CTMC, "point": gm.Flow}), {"label": (4,), "point": (4, 1)}, steps=5)


class Half(nn.Module):
    def forward(self, x, t):
        return {"label": torch.zeros(len(x["label"]), 3)}


def test_bad_paths():
    with pytest.raises(TypeError, match="factors must be a dict of paths by name, got list"):
        gm.ProductPath([gm.GaussianPath()])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="the factor 'a' must be a genmatch Path, got CondOT"):
        gm.ProductPath({"a": gm.schedules.CondOT()})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=r"the factor 'a' pairs source and data by OT.* tear the factors"):
        gm.ProductPath({"a": gm.GaussianPath(coupling=OT())})
    with pytest.raises(ValueError, match="a product needs at least one factor"):
        gm.ProductPath({})
    with pytest.raises(TypeError, match="the factor 'a' is a product itself"):
        gm.ProductPath({"a": PATHS["plain"]})
    with pytest.raises(ValueError, match="there is a clock for 'z', which is no factor: they are label, point"):
        product_path({"z": lambda t: t})
    with pytest.raises(ValueError, match="must increase from 0 to 1, it runs from 0 to 2"):
        product_path({"label": lambda t: 2 * t})
    with pytest.raises(ValueError, match="and falls on the way"):
        product_path({"label": lambda t: t + torch.sin(6.2831853071795865 * t)})
    with pytest.raises(TypeError, match="the clock of 'label' must be a function of t, got float"):
        product_path({"label": 0.5})
    assert isinstance(gm.ProductPath({"a": gm.GaussianPath(coupling=Given())}).coupling, Given)


def test_bad_models_and_generators():
    path, network = PATHS["plain"], Small()
    both = {"label": gm.predict.Tokens, "point": gm.predict.Velocity}
    with pytest.raises(TypeError, match="Product needs a ProductPath, got GaussianPath"):
        gm.predict.Product(network, both, gm.GaussianPath())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="factors must have the factors 'label', 'point', got 'label'"):
        gm.predict.Product(network, {"label": gm.predict.Tokens}, path)
    with pytest.raises(TypeError, match="needs a predictor that trains a network"):
        gm.predict.Product(network, {"label": lambda n, p: Small(), "point": gm.predict.Velocity}, path)
    model = gm.predict.Product(network, both, path)
    with pytest.raises(TypeError, match=r"Product needs a gm\.predict\.Product, got Velocity"):
        gm.Product(gm.predict.Velocity(nn.Identity(), gm.GaussianPath()), {})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the factors must have one speed, got"):
        gm.Product(model, {"label": gm.CTMC, "point": lambda m: gm.Flow(m) + 1.0 * gm.Flow(m)})
    with pytest.raises(ValueError, match="must read the predictor that it is given"):
        gm.Product(model, {"label": gm.CTMC, "point": lambda m: gm.Flow(gm.predict.Velocity(nn.Identity(), m.path))})
    with pytest.raises(TypeError, match="this factor's network is the product's"):
        model.models["point"](torch.zeros(1, 1), 0.5)
    with pytest.raises(TypeError, match="Flow needs a model"):
        gm.Flow(model)


def test_bad_states():
    model, generator = small_model(), gm.Product(small_model(), {"label": gm.CTMC, "point": gm.Flow})
    x1 = data(4, 0)
    with pytest.raises(TypeError, match="must be a dict with the factors 'label', 'point', got Tensor"):
        gm.matching_loss(model, x1["point"])
    with pytest.raises(ValueError, match="must have the factors 'label', 'point', got 'label'"):
        gm.matching_loss(model, {"label": x1["label"]})
    with pytest.raises(ValueError, match=r"the factors must have one batch size, got \{'label': 4, 'point': 3\}"):
        gm.matching_loss(model, {"label": x1["label"], "point": x1["point"][:3]})
    with pytest.raises(ValueError, match="tokens must be in"):
        gm.matching_loss(model, {**x1, "label": x1["label"] + 5})
    with pytest.raises(TypeError, match="weighted factor by factor"):
        gm.matching_loss(model, x1, weight=gm.weights.MinSNR())
    with pytest.raises(TypeError, match="a dict of times is for a product path"):
        gm.matching_loss(gm.predict.Velocity(nn.Identity(), gm.GaussianPath()), x1["point"], t={"point": 0.5})
    velocity = gm.predict.Velocity(nn.Identity(), gm.GaussianPath())
    with pytest.raises(TypeError, match="a dict of time laws is for a product path"):
        gm.matching_loss(velocity, x1["point"], time={"point": gm.times.Uniform()})
    with pytest.raises(TypeError, match="must be a dict with the factors"):
        gm.sample(generator, (4, 1))
    with pytest.raises(ValueError, match="the factors must have one batch size"):
        gm.sample(generator, {"label": (4,), "point": (3, 1)})
    with pytest.raises(ValueError, match=r"give states of all factors or shapes of all: \['point'\] are shapes"):
        gm.sample(generator, {"label": x1["label"], "point": (4, 1)})
    both = {"label": gm.predict.Tokens, "point": gm.predict.Velocity}
    half = gm.predict.Product(Half(), both, PATHS["plain"])
    with pytest.raises(ValueError, match="what the network returns must have the factors 'label', 'point', got"):
        gm.matching_loss(half, x1)
    with pytest.raises(ValueError, match="Heun cannot move rates"):
        gm.sample(generator, {"label": (4,), "point": (4, 1)}, solver=gm.solvers.Heun())


def test_the_state_dict_holds_the_network_once():
    model = small_model()
    generator = gm.Product(model, {"label": gm.CTMC, "point": gm.Flow})
    names = list(generator.state_dict())
    assert len(names) == len(list(model.network.parameters()))
    other = gm.Product(small_model(), {"label": gm.CTMC, "point": gm.Flow})
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    other.load_state_dict(generator.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(generator.parameters(), other.parameters(), strict=True))
