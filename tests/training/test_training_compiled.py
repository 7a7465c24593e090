"""A step compiled as one graph: the losses of the eager one, one compilation for a run, and what it refuses."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from small_runs import CrashError, flow_loss, points, same, weights
from torch._dynamo.utils import counters
from torch.utils.data import DataLoader

import genmatch as gm
from genmatch.nn import MLP, PowerEMA, Transformer, UNet
from genmatch.training import fit, objective

EDGE = 4  # steps whose warm-up, decay and schedule all differ from one to the next


def flow(path=None, kind: str = "Velocity") -> gm.Predictor:
    torch.manual_seed(0)
    network = MLP(2, width=16, depth=2, embedding=8, classes=3, label_dropout=0.0)
    return getattr(gm.predict, kind)(network, gm.GaussianPath() if path is None else path)


def tokens() -> gm.predict.Tokens:
    torch.manual_seed(0)
    network = Transformer(5, inputs=6, width=16, depth=1, heads=2, length=8)
    return gm.predict.Tokens(network, gm.MixturePath(5, mask=5))


def images() -> gm.predict.Noise:
    torch.manual_seed(0)
    network = UNet(1, width=8, multipliers=(1, 2), blocks=1, groups=4, heads=2, classes=3)
    return gm.predict.Noise(network, gm.GaussianPath(gm.schedules.Cosine()))


def product() -> gm.predict.Product:
    torch.manual_seed(0)
    path = gm.ProductPath({"point": gm.GaussianPath(), "label": gm.MixturePath(3)})
    return gm.predict.Product(Both(), {"point": gm.predict.Velocity, "label": gm.predict.Tokens}, path)


class Both(torch.nn.Module):
    """A network of a point and a label."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Linear(5, 5)
        self.entry = torch.nn.Embedding(3, 2)

    def forward(self, x, t):
        h = torch.tanh(self.body(torch.cat([x["point"], self.entry(x["label"]), t["point"][:, None]], 1)))
        return {"point": h[:, :2], "label": h[:, 2:]}


def words() -> torch.Tensor:
    return torch.randint(5, (24, 8), generator=torch.Generator().manual_seed(0))


def mixed() -> dict[str, torch.Tensor]:
    x1, condition = points()
    return {"point": x1, **condition}


def pictures() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(24, 1, 8, 8, generator=generator), {"label": torch.randint(3, (24,), generator=generator)}


def run(model, data=None, steps: int = EDGE, **options):
    options = {"batch_size": 8, "lr": 1e-2, "ema": 0.9, "progress": False, "warmup": 3, "schedule": "cosine", **options}
    return fit(model, points() if data is None else data, steps, **options)


@pytest.fixture
def traced(monkeypatch):
    """Graphs run as they were traced, without code being generated: what is compiled, and when, is the same."""
    monkeypatch.setattr(objective, "BACKEND", "eager")
    torch._dynamo.reset()
    counters.clear()
    yield counters
    torch._dynamo.reset()


CASES = {
    "labels and pairing": (partial(flow, gm.GaussianPath(coupling=gm.couplings.OT())), points, {}),
    "a weight and a law of time": (
        partial(flow, gm.GaussianPath(gm.schedules.Cosine()), "Noise"),
        points,
        {"loss": partial(gm.matching_loss, weight=gm.weights.MinSNR(), time=gm.times.LogitNormal())},
    ),
    "bfloat16": (flow, points, {"autocast": "bf16"}),
    "accumulated": (flow, points, {"accumulate": 2}),
    "tokens, random between the ends": (tokens, words, {}),
    "noise between the ends": (partial(flow, gm.GaussianPath(noise=0.1)), points, {}),
    "a product": (product, mixed, {}),
    "power averages": (flow, points, {"ema": "power"}),
    "images": (images, pictures, {"channels_last": True}),
}


def both(make, data, options, **more):
    results = []
    for compile in (False, "step"):
        model = make()
        ema = {"ema": PowerEMA(model)} if options.get("ema") == "power" else {}
        results.append(run(model, data(), **{**options, **ema}, compile=compile, **more))
    return results


@pytest.mark.parametrize("case", CASES)
def test_one_graph_for_all_steps_with_the_losses_of_the_eager_step(case, traced):
    eager, compiled = both(*CASES[case])
    assert compiled.losses == pytest.approx(eager.losses, rel=1e-4)
    for name, value in weights(eager.model).items():
        torch.testing.assert_close(weights(compiled.model)[name], value, rtol=1e-3, atol=1e-4)
    assert traced["stats"]["unique_graphs"] == 1
    assert not traced["graph_break"]
    assert not traced["recompiles"]


def test_random_numbers_within_the_graph_would_be_compiled_for_each_step(traced):
    # What the count of graphs above would see.
    model, (x1, condition) = flow(gm.GaussianPath(noise=0.1)), points(8)
    evaluate = torch.compile(objective._evaluate, backend="eager")
    for step in range(3):
        given = {"condition": condition, "draws": gm.Draws(0, 8, step=step)}
        options = dict.fromkeys(("x0", "t", "time", "weight", "fixed", "seed"))
        task = objective.draw_task(model, x1, paired=False, **options, **given)
        evaluate(model, task, None, None)
    assert traced["stats"]["unique_graphs"] > 1


def test_a_smaller_last_batch_is_one_more_graph(traced):
    x1 = points(40)[0]
    loader = DataLoader(torch.utils.data.TensorDataset(x1), batch_size=16)  # 16, 16, 8, and again
    options = {"batch_size": None, "steps": 7}
    eager, compiled = (run(flow(), loader, compile=compile, **options) for compile in (False, "step"))
    assert compiled.losses == pytest.approx(eager.losses, rel=1e-4)
    assert traced["stats"]["unique_graphs"] == 2


@pytest.mark.slow
def test_many_models_are_all_compiled(traced):
    # More than torch keeps for one function.
    for i in range(10):
        run(flow(), steps=2, warmup=0, compile="step")
        assert traced["stats"]["unique_graphs"] == i + 1


def test_a_callback_that_evaluates_costs_no_compilation(traced):
    run(flow(), compile="step", log_every=1, callback=lambda state: state.model.eval() is None)
    assert traced["stats"]["unique_graphs"] == 1


def test_a_resumed_run_repeats_itself(traced, tmp_path):
    def crash(state):
        if state.step == 3:
            raise CrashError

    options = {"compile": "step", "steps": 5, "log_every": 1}
    with pytest.raises(CrashError):
        run(flow(), **options, checkpoint=tmp_path, checkpoint_every=2, callback=crash)
    resumed = run(flow(), **options, checkpoint=tmp_path)
    assert resumed.start == 2
    whole = run(flow(), **options)
    assert same(weights(resumed.model), weights(whole.model))
    assert resumed.losses == whole.losses[2:]


def test_an_error_of_the_network_is_its_own(traced):
    class Wrong(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 3)

        def forward(self, x, t):
            return self.layer(x)

    for compile in (False, "step"):
        with pytest.raises(ValueError, match=r"\(8, 3\)"):
            run(gm.predict.Velocity(Wrong(), gm.GaussianPath()), points()[0], compile=compile)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["labels and pairing", "bfloat16"])
def test_generated_code_has_the_losses_of_the_eager_step(case, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    eager, compiled = both(*CASES[case])
    bound = 2e-2 if case == "bfloat16" else 1e-4  # code that is fused rounds to bfloat16 less often
    assert compiled.losses == pytest.approx(eager.losses, rel=bound)


@pytest.mark.slow
def test_dropout_in_generated_code_is_a_function_of_the_step(tmp_path, monkeypatch):
    # Its numbers are not those of the eager step, but they follow from the seed, so that a run repeats itself.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))

    def losses(seed: int) -> list[float]:
        torch.manual_seed(0)
        network = MLP(2, width=16, depth=2, embedding=8, classes=3, label_dropout=0.5)
        torch.nn.init.normal_(network.output.weight)
        model = gm.predict.Velocity(network, gm.GaussianPath())
        torch.manual_seed(seed)
        return run(model, compile="step").losses

    assert losses(1) == losses(2)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (flow, {"compile": "all"}, "compile must be 'network' \\(or True\\), 'step' or False, got 'all'"),
        (flow, {"compile": "step", "loss": flow_loss}, r"compile='step' compiles gm\.matching_loss of a predictor"),
        (
            lambda: torch.nn.Linear(2, 2),
            {"compile": "step"},
            r"compile='step' compiles gm\.matching_loss of a predictor",
        ),
    ],
)
def test_what_cannot_be_compiled_is_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        run(model(), **options)
