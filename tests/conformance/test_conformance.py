"""Every generator of the package passes the suite; each check of the suite fails what it is there to fail."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import genmatch as gm
from conformance.subjects import SUBJECTS, Swirl, label_and_point, plane, tokens
from generators.test_forward_equation import classes_of_the_package
from genmatch.testing import Check, ConformanceError, Report, check_generator
from genmatch.testing.conformance import CHECKS

CASES = [(cls, make) for cls, makes in SUBJECTS.items() for make in makes]


@pytest.mark.parametrize("cls", classes_of_the_package(), ids=lambda cls: cls.__name__)
def test_every_class_has_a_subject(cls: type):
    assert cls in SUBJECTS, f"add a line for {cls.__name__} to SUBJECTS in tests/conformance/subjects.py"


@pytest.mark.parametrize(("cls", "make"), CASES, ids=[f"{cls.__name__}{i}" for i, (cls, _) in enumerate(CASES)])
def test_it_conforms(cls: type, make):
    subject = make()
    assert isinstance(subject.generator, cls)
    report = check_generator(subject.generator, data=subject.data, **subject.options)
    for name in ("forward equation", "speed", "move"):
        assert report[name].verdict == "passed"


# One mistake for each check. All are generators of speed 1 that follow the path, but for the last ones.


class Mistaken(gm.Generator):
    def __init__(self, model: gm.Predictor, mistake: str) -> None:
        super().__init__(model)
        self.mistake, self.calls = mistake, 0
        self.hidden = [torch.ones(())]
        self.gain = nn.Parameter(torch.ones(()))

    def triplet(self, x, t, prediction):
        u = prediction.velocity
        match self.mistake:
            case "none":
                return gm.Triplet(u * self.gain)
            case "shapes: drift":
                return gm.Triplet(u[:, :1])
            case "shapes: variance":
                return gm.Triplet(u, torch.ones(len(x)))
            case "shapes: negative":
                return gm.Triplet(u, -torch.ones_like(x))
            case "shapes: nan":
                return gm.Triplet(u * math.nan)
            case "shapes: type":
                return [gm.Triplet(u)]
            case "dtype":
                return gm.Triplet(u.double() if u.dtype == torch.float32 else u)
            case "purity: random":
                return gm.Triplet(u + 1e-6 * torch.randn_like(u))
            case "purity: counts":
                self.calls += 1
                return gm.Triplet(u * (1 + 1e-5 * self.calls))
            case "purity: in place":
                value = gm.Triplet(u)
                x.mul_(0.5)
                return value
            case "batch":
                return gm.Triplet(u - u.mean(0, keepdim=True))
            case "batch: order":
                return gm.Triplet(u * torch.linspace(0.9, 1.1, len(x))[:, None])
            case "times":
                time = t.flatten().expand(2) if isinstance(t, torch.Tensor) else torch.tensor([t, t])
                return gm.Triplet(u * (1 + time.to(x)))  # along the features
            case "ends":
                return gm.Triplet(u / t if isinstance(t, torch.Tensor) or t > 0 else u * math.inf)
            case "additive":
                return gm.Triplet(u, 0.1 + x**2)
            case "semilinear":
                return gm.Triplet(u, 0.1)
            case "affine":
                return gm.Triplet(u * u.norm(dim=1, keepdim=True))
            case "forward equation":
                return gm.Triplet(u + 0.2 * x)
            case "speed":
                return gm.Triplet(0.9 * u)
            case "compile":
                return gm.Triplet(u * (1.0 if x.sum().item() > -1e9 else 2.0))
        raise AssertionError(self.mistake)


class Semilinear(Mistaken):
    semilinear = True


MISTAKES = (
    "shapes: drift", "shapes: variance", "shapes: negative", "shapes: nan", "shapes: type", "dtype", "purity: random",
    "purity: counts", "purity: in place", "batch", "batch: order", "times", "ends", "additive", "semilinear", "affine",
    "forward equation", "speed",
)  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_fails_its_check(mistake: str):
    model, data = plane()
    check = mistake.split(":")[0]
    made = Semilinear if check == "semilinear" else Mistaken
    assert check_generator(made(model, "none"), data=data, only=[check]).passed
    with pytest.raises(ConformanceError, match=f"1 of 1 checks failed \\({check}\\)"):
        check_generator(made(model, mistake), data=data, only=[check])


def test_another_dtype_than_that_of_the_data_may_be_refused_but_not_be_changed():
    class Turned(gm.Generator):
        """Written with a constant in float32."""

        turn = torch.eye(2)

        def __init__(self, model: gm.Predictor, changes: bool) -> None:
            super().__init__(model)
            self.changes = changes

        def triplet(self, x, t, prediction):
            return gm.Triplet((prediction.velocity.float() if self.changes else prediction.velocity) @ self.turn)

    model, data = plane()
    refused = check_generator(Turned(model, False), data=data, only=["dtype"])["dtype"].detail
    assert refused.startswith("float32, float64 is refused (")
    with pytest.raises(ConformanceError, match=r"the drift is torch.float32 for a state in torch.float64"):
        check_generator(Turned(model, True), data=data, only=["dtype"])
    with pytest.raises(ConformanceError, match="dtype"):
        check_generator(Turned(model, False), data=data.double(), only=["dtype"])


def test_a_forgotten_parameter_fails_the_state_dict():
    class Forgetful(gm.Generator):
        def __init__(self, model: gm.Predictor, registered: bool) -> None:
            super().__init__(model)
            self.scale = nn.Parameter(torch.ones(()))
            if registered:
                self.offset = nn.Parameter(torch.zeros(2))
            self.hidden = [self.scale]

        def triplet(self, x, t, prediction):
            return gm.Triplet(prediction.velocity * self.scale)

        def __deepcopy__(self, memo):
            twin = type(self)(self.model, True)
            if not hasattr(self, "offset"):
                del twin.offset
                twin.scale.requires_grad_(False)
                twin.__dict__["factor"] = 2.0
            return twin

    class Unregistered(Forgetful):
        def triplet(self, x, t, prediction):
            return gm.Triplet(prediction.velocity * self.__dict__.get("factor", 1.0) * self.scale)

    model, data = plane()
    assert check_generator(Forgetful(model, True), data=data, only=["state dict"]).passed
    with pytest.raises(ConformanceError, match="something is not registered"):
        check_generator(Unregistered(model, False), data=data, only=["state dict"])


class Labelled(nn.Module):
    """The mean of a label's component: the exact posterior mean of a law N(+-1, 0.3) given its label; or of both."""

    def __init__(self, ignores: bool) -> None:
        super().__init__()
        both = gm.worlds.GaussianMixture(torch.tensor([[-1.0], [1.0]]), 0.3)
        parts = [gm.worlds.GaussianMixture(torch.tensor([[m]]), 0.3) for m in (-1.0, 1.0)]
        self.both, self.parts, self.ignores = both, parts, ignores

    def forward(self, x, t, label):
        a, s = t, 1 - t
        if self.ignores:
            return self.both.posterior_mean(x, a, s)
        means = torch.stack([part.posterior_mean(x, a, s) for part in self.parts])
        return means.gather(0, label.reshape(1, -1, 1)).squeeze(0)


def labelled() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    label = gm.Draws(3, 4096).integers((4096,), 2)
    return gm.Draws(4, 4096).normal((4096, 1)) * 0.3**0.5 + 2.0 * label[:, None] - 1, {"label": label}


def test_a_condition_must_be_used_and_used_rightly():
    data, condition = labelled()
    right, ignorant = (
        gm.Flow(gm.predict.Data(Labelled(i), gm.GaussianPath(), time=gm.predict.clocks.t)) for i in (False, True)
    )
    assert check_generator(right, data=data, condition=condition)["condition"].detail == "label"
    with pytest.raises(ConformanceError) as caught:
        check_generator(ignorant, data=data, condition=condition)
    assert {check.name for check in caught.value.report.failed} == {"condition", "forward equation", "speed"}
    # It follows the path of all data together: only functions of the condition show that it is the wrong one.
    residual = gm.metrics.kfe_residual(ignorant, data=data, condition=condition)
    wrong = (residual.excess() > 1).any(0)
    assert not any(bad for bad, name in zip(wrong, residual.functions, strict=True) if "condition" not in name)
    assert any(bad for bad, name in zip(wrong, residual.functions, strict=True) if "condition" in name)


class Shaky(gm.spaces.Euclidean):
    """A space that takes the variance for a standard deviation."""

    def brownian(self, x, draws):
        return super().brownian(x, draws)

    def move(self, x, triplet, h, draws, noise=None):
        noise = self.brownian(x, draws) if noise is None else noise
        return x + h * triplet.drift + math.sqrt(h) * triplet.variance * noise


def test_a_space_that_moves_by_the_standard_deviation_is_seen():
    world = gm.worlds.GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 1.0]]), 0.3)
    path = gm.GaussianPath()
    langevin = gm.Langevin(world.predictor(path), gm.diffusivity.Constant(0.3))
    data = world.sample(2000, seed=1)
    assert check_generator(langevin, data=data, only=["move"]).passed
    path.space = Shaky()
    assert check_generator(langevin, data=data, only=["forward equation"]).passed
    with pytest.raises(ConformanceError, match=r"is space\.move given a variance"):
        check_generator(langevin, data=data, only=["move"])


def test_tokens_that_jump_too_rarely_are_seen():
    class Slow(gm.spaces.Tokens):
        def move(self, x, triplet, h, draws, noise=None):
            return triplet.rates.leap(x, 0.5 * h, draws)

    path = gm.MixturePath(3)
    model, data = tokens()
    data = data[:1500]
    twin = gm.predict.Tokens(model.network, path)
    assert check_generator(gm.CTMC(twin), data=data, only=["move"]).passed
    path.space = Slow(3)
    with pytest.raises(ConformanceError, match="move"):
        check_generator(gm.CTMC(twin), data=data, only=["move"])


class Sharpened(gm.CTMC):
    """A chain whose posterior is squared."""

    def triplet(self, x, t, prediction):
        prediction = self.model.prediction(x, prediction.instant, 2 * prediction.native)
        return super().triplet(x, t, prediction)


def test_a_product_is_affine_factor_by_factor():
    model, data = label_and_point()

    def check(**factors):
        return check_generator(
            gm.Product(model, {"label": gm.CTMC, "point": gm.Flow} | factors), data=data, only=["affine"]
        )

    assert check()["affine"] == Check("affine", "passed", "Product")
    assert check(point=lambda m: Mistaken(m, "none")).passed
    with pytest.raises(ConformanceError, match=r"the point: drift of Product is not\s+affine"):
        check(point=lambda m: Mistaken(m, "affine"))
    with pytest.raises(ConformanceError, match=r"the label: rates of Product is not\s+affine"):
        check(label=Sharpened)


def test_outputs_that_cannot_be_averaged_are_skipped_and_the_report_says_so():
    class Pairs(gm.predict.Data):
        def native(self, x, instant, condition=None):
            value = super().native(x, instant, condition)
            return value, value

        def prediction(self, x, instant, native):
            return super().prediction(x, instant, native[0])

    model, data = plane()
    pairs = Pairs(model.network, gm.GaussianPath(), time=model.time)
    found = check_generator(gm.Flow(pairs), data=data, only=["affine"])["affine"]
    assert found == Check("affine", "skipped", "the network's output is no tensor but a tuple")


class Wrong(gm.spaces.Sphere):
    """A sphere with one mistake in the geometry."""

    mistake = ""

    def noise(self, x, z):
        if self.mistake == "scale":
            return 1.5 * super().noise(x, z)
        if self.mistake == "direction":  # the right mean square, but all along one tangent vector
            first = super().noise(x, torch.ones_like(x))
            return 2**0.5 * (z * first).sum(-1, keepdim=True) * first / first.square().sum(-1, keepdim=True)
        return super().noise(x, z)

    def exp(self, x, v):
        if self.mistake == "exp":
            return self.retract(x, v)
        return super().exp(x, 2 * v if self.mistake == "twice" else v)

    def retract(self, x, v):
        return x + v if self.mistake == "off" else super().retract(x, v)

    def log(self, x, y):
        return (2 if self.mistake == "log" else 1) * super().log(x, y)

    def distance(self, x, y):
        return (x - y).norm(dim=-1) * 1.01 if self.mistake == "distance" else super().distance(x, y)


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("scale", r"the mean square of Sphere\(2\)'s noise in the metric is 4.5, not its\s+dimension 2"),
        ("direction", "the variance of noise along a tangent vector"),
        ("exp", r"the speed of a geodesic"),
        ("twice", r"the derivative of exp\(x, s v\) at s = 0"),
        ("off", r"retract leads off Sphere\(2\)"),
        ("log", r"log\(x, exp\(x, v\)\) - v"),
        ("distance", "the distance of x and exp"),
    ],
)
def test_a_manifold_that_is_none_is_seen(mistake: str, message: str):
    class Still(nn.Module):
        def forward(self, x, t):
            return torch.zeros_like(x)

    space = Wrong(2)
    data = space.project(gm.Draws(0, 64).normal((64, 3)))
    alone = gm.Flow(gm.predict.TangentVelocity(Still(), gm.paths.GeodesicPath(space)))
    assert check_generator(alone, data=data, only=["space"])["space"] == Check("space", "passed", "Sphere(2)")
    path = gm.ProductPath({"label": gm.MixturePath(3), "point": alone.path})

    class Both(nn.Module):
        def forward(self, x, t):
            return {"label": torch.zeros(len(x["label"]), 3), "point": torch.zeros_like(x["point"])}

    factors = {"label": gm.predict.Tokens, "point": gm.predict.TangentVelocity}
    product = gm.Product(gm.predict.Product(Both(), factors, path), {"label": gm.CTMC, "point": gm.Flow})
    both = {"label": torch.zeros(64, dtype=torch.int64), "point": data}
    object.__setattr__(space, "mistake", mistake)
    with pytest.raises(ConformanceError, match=message):
        check_generator(alone, data=data, only=["space"])
    with pytest.raises(ConformanceError, match="point: " + message):
        check_generator(product, data=both, only=["space"])


@pytest.mark.slow
def test_a_generator_that_reads_to_the_host_does_not_compile():
    model, data = plane()
    assert check_generator(Mistaken(model, "none"), data=data, only=["compile"]).passed
    with pytest.raises(ConformanceError, match="does not compile as one graph"):
        check_generator(Mistaken(model, "compile"), data=data, only=["compile"])


def test_a_generator_that_raises_is_a_finding_and_the_other_checks_go_on():
    class Broken(gm.Generator):
        def triplet(self, x, t, prediction):
            if isinstance(t, torch.Tensor):
                raise RuntimeError("one time only")
            return gm.Triplet(prediction.velocity)

    model, data = plane()
    with pytest.raises(ConformanceError) as caught:
        check_generator(Broken(model), data=data)
    report = caught.value.report
    assert [check.name for check in report.failed] == ["times"]
    assert report["times"].detail == "RuntimeError: one time only"
    assert report["forward equation"].verdict == "passed"


def test_the_report_is_a_table():
    model, data = plane()
    report = check_generator(gm.Flow(model), data=data, skip=["move"], compiled=False)
    assert [check.name for check in report.checks] == [name for name in CHECKS if name not in ("move", "compile")]
    assert report["condition"] == Check("condition", "skipped", "there is no condition")
    assert "passed   forward equation" in repr(report)
    with pytest.raises(KeyError, match="no check 'move' ran"):
        report["move"]
    long = Report("it", (Check("speed", "failed", "word " * 60),))
    assert max(map(len, repr(long).splitlines())) <= 130
    assert not long.passed


def test_modes_and_the_global_generator_are_left_alone():
    model = gm.predict.Velocity(gm.nn.MLP(2), gm.GaussianPath()).train()
    model.network.eval()
    before = torch.get_rng_state()
    check_generator(gm.Flow(model), data=torch.randn(64, 2, generator=torch.Generator()), only=["shapes", "move"])
    assert model.training
    assert not model.network.training
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (TypeError, "a generator or a sum of generators is checked", {"generator": 3}),
        (TypeError, "make one, generator = MyGenerator", {"generator": Swirl}),
        (TypeError, "data must be a tensor", {"data": [1.0]}),
        (ValueError, "data has 3 rows: give at least 8", {"data": torch.zeros(3, 2)}),
        (TypeError, "must be floating point", {"data": torch.zeros(8, 2, dtype=torch.int64)}),
        (ValueError, r"inside \(0, 1\)", {"t": [0.0, 0.5]}),
        (ValueError, r"inside \(0, 1\)", {"t": []}),
        (ValueError, "tolerance is a relative residual", {"tolerance": -1.0}),
        (ValueError, "false_alarm is a probability", {"false_alarm": 0.0}),
        (ValueError, "there is no check 'sped'", {"only": ["sped"]}),
        (ValueError, "there is no check 'sped'", {"skip": ["sped"]}),
        (TypeError, "got the string 'speed'", {"only": "speed"}),
        (ValueError, "no check is left", {"only": ["speed"], "skip": ["speed"]}),
        (ValueError, "needs one row for each sample", {"condition": {"label": torch.zeros(2)}}),
        (ValueError, "seed must be in", {"seed": -1}),
    ],
)
def test_bad_arguments(error: type[Exception], message: str, change: dict):
    model, data = plane()
    arguments = {"generator": gm.Flow(model), "data": data, **change}
    generator = arguments.pop("generator")
    with pytest.raises(error, match=message) as caught:
        check_generator(generator, **arguments)
    assert not isinstance(caught.value, ConformanceError)
