from __future__ import annotations

from functools import partial

import pytest
import torch
from small_runs import CrashError, Plain, points, same, weights

import genmatch as gm
from genmatch.nn import EMA, MLP, Transformer, UNet
from genmatch.training import fit

COND = gm.GaussianPath(gm.schedules.CondOT())


def velocity(seed: int = 0) -> gm.predict.Velocity:
    torch.manual_seed(seed)
    return gm.predict.Velocity(MLP(2, width=16, depth=2, embedding=8, classes=3), COND)


def images(seed: int = 0, **options) -> gm.predict.Noise:
    torch.manual_seed(seed)
    options = {"width": 8, "multipliers": (1, 2), "blocks": 1, "groups": 4, "heads": 2, "classes": 3, **options}
    return gm.predict.Noise(UNet(1, **options), gm.GaussianPath(gm.schedules.Cosine()))


def tokens(seed: int = 0) -> gm.predict.Tokens:
    torch.manual_seed(seed)
    network = Transformer(5, inputs=6, width=16, depth=1, heads=2, length=8)
    return gm.predict.Tokens(network, gm.MixturePath(5, mask=5))


def pictures() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(24, 1, 8, 8, generator=generator), {"label": torch.randint(3, (24,), generator=generator)}


def words() -> torch.Tensor:
    return torch.randint(5, (24, 8), generator=torch.Generator().manual_seed(0))


def run(model, data, steps=9, **options):
    return fit(model, data, steps, **{"progress": False, "batch_size": 8, "lr": 1e-2, "ema": 0.9, **options})


CASES = {
    "velocity": (velocity, points, {}),
    "noise of images": (partial(images, dropout=0.2), pictures, {}),
    "noise of images, channels last, bfloat16": (images, pictures, {"channels_last": True, "autocast": "bf16"}),
    "tokens": (tokens, words, {}),
}


def outcome(result) -> dict[str, torch.Tensor]:
    average = {f"ema.{name}": value.clone() for name, value in result.ema.state_dict().items()}
    return {**weights(result.model), **average}


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_training_repeats_itself(case, tmp_path):
    make, data, options = CASES[case]
    options = {**options, "checkpoint_every": 3, "log_every": 1}

    def crash(state):
        if state.step == 7:
            raise CrashError

    with pytest.raises(CrashError):
        run(make(), data(), **options, callback=crash, checkpoint=tmp_path)
    resumed = run(make(seed=1), data(), **options, checkpoint=tmp_path)
    assert resumed.start == 6
    assert same(outcome(resumed), outcome(run(make(), data(), **options)))


def test_the_loss_is_the_matching_loss():
    ours, given, other = velocity(), velocity(), velocity()
    run(ours, points())
    run(given, points(), loss=gm.matching_loss)
    run(other, points(), loss=partial(gm.matching_loss, time=gm.times.LogitNormal()))
    assert same(weights(ours), weights(given))
    assert not same(weights(ours), weights(other))


def test_accumulation_is_a_large_batch():
    torch.manual_seed(0)
    whole = gm.predict.Velocity(Plain().double(), COND)
    torch.manual_seed(0)
    pieces = gm.predict.Velocity(Plain().double(), COND)
    x1 = points()[0].double()
    run(whole, x1, batch_size=32)
    run(pieces, x1, batch_size=8, accumulate=4)
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(pieces)[name], value, rtol=1e-9, atol=1e-11)


def test_given_pairs_are_a_condition():
    # Each x1 is its x0, moved by (1, 2): the velocity is that everywhere, which pairing at random would not give.
    x0 = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    pairs = (x0 + torch.tensor([1.0, 2.0]), {"x0": x0})

    def paired(model, x1, condition, draws):
        return gm.matching_loss(model, x1, x0=condition["x0"], draws=draws)

    torch.manual_seed(0)
    model = gm.predict.Velocity(Plain(16), COND)
    result = run(model, pairs, 300, batch_size=32, loss=paired, lr=2e-2)
    assert sum(result.losses[-20:]) / 20 < 0.05


def test_a_generator_is_refused_with_a_hint():
    with pytest.raises(TypeError, match=r"matching_loss takes a predictor .*train the network it reads"):
        run(gm.Flow(velocity()), points())


def test_a_network_alone_is_refused():
    with pytest.raises(TypeError, match=r"matching_loss takes a predictor .*, got MLP"):
        run(MLP(2, width=8, depth=1), points()[0])


def test_another_path_is_another_setting(tmp_path):
    run(velocity(), points(), checkpoint=tmp_path)
    torch.manual_seed(0)
    other = gm.predict.Velocity(
        MLP(2, width=16, depth=2, embedding=8, classes=3), gm.GaussianPath(gm.schedules.Cosine())
    )
    with pytest.raises(ValueError, match=r"path was GaussianPath\(CondOT.*, is GaussianPath\(Cosine"):
        run(other, points(), checkpoint=tmp_path)


def test_digits_from_the_library_are_data():
    pytest.importorskip("sklearn")
    result = run(images(classes=10), gm.data.digits(), 2, condition="label")
    assert result.rows[-1].samples == 16


def test_a_flow_learns_where_the_data_are():
    x1 = torch.tensor([[2.0, -1.0]]) + 0.1 * torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = gm.predict.Velocity(MLP(2, width=32, depth=2, embedding=8), COND)
    result = run(model, x1, 250, batch_size=64, warmup=20, schedule="cosine", ema=0.95)
    assert isinstance(result.ema, EMA)
    with result.ema.applied():
        samples = gm.sample(gm.Flow(model), (256, 2), steps=20, seed=1)
    # The source lies around 0 with standard deviation 1, at a distance of 2.2.
    torch.testing.assert_close(samples.mean(0), torch.tensor([2.0, -1.0]), atol=0.15, rtol=0)
    assert samples.std(0).max() < 0.4


@pytest.mark.slow
def test_compiled_training_is_training():
    # Without labels: their dropout draws other numbers when compiled.
    def model():
        torch.manual_seed(0)
        return gm.predict.Velocity(MLP(2, width=16, depth=2, embedding=8), COND)

    eager = run(model(), points()[0], 4)
    compiled = run(model(), points()[0], 4, compile=True)
    assert compiled.losses == pytest.approx(eager.losses, rel=1e-3)


@pytest.mark.slow
def test_a_compiled_training_repeats_itself(tmp_path):
    whole = run(velocity(), points(), 6, compile=True)
    run(velocity(), points(), 4, compile=True, checkpoint=tmp_path)
    resumed = run(velocity(seed=1), points(), 6, compile=True, checkpoint=tmp_path)
    assert resumed.start == 4
    assert same(outcome(resumed), outcome(whole))
