"""The same seed gives the same samples: whatever the batch, the shard, and what else is asked for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import genmatch as gm
from genmatch.solvers import DDIM, DDPM, RK4, Euler, Exponential, Heun, Midpoint, Solver

COUNT = 64


class Elementwise(nn.Module):
    """Its arithmetic on a sample does not depend on the batch."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(1.1 * x) * (0.5 + t.reshape(-1, *[1] * (x.ndim - 1)))


class ByTable(nn.Module):
    """Logits of a token by its own table; no reduction over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.linspace(-1, 1, 35).reshape(7, 5) ** 3 * 4)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.table[x] * (1 + t[:, None, None])


class Mixing(nn.Module):
    """A small MLP: matrix products, which are not batch-invariant to the bit."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 32), nn.SiLU(), nn.Linear(32, 3))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.layers(torch.cat([x, t[:, None]], 1))


PATH = gm.GaussianPath(gm.schedules.Cosine())
FLOW = gm.Flow(gm.predict.V(Elementwise(), PATH))
SDE = gm.Diffusion(FLOW.model)
SAFE = gm.Diffusion(FLOW.model, gm.diffusivity.EndpointSafe())
TOKENS = gm.CTMC(gm.predict.Tokens(ByTable(), gm.MixturePath(5)))
MASKED = gm.CTMC(gm.predict.Tokens(ByTable(), gm.MixturePath(5, mask=5)))

RUNS: dict[str, tuple[gm.Generator, Solver, tuple[int, ...]]] = {
    **{f"flow {solver!r}": (FLOW, solver, (3, 2)) for solver in (Euler(), Midpoint(), Heun(), RK4())},
    **{
        f"flow {solver!r}": (FLOW, solver, (3, 2))
        for solver in (Exponential(1), Exponential(2), DDIM(), DDIM(0.5), DDPM())
    },
    **{f"sde {solver!r}": (SDE, solver, (7,)) for solver in (Exponential(1), Exponential(2))},
    **{f"safe {solver!r}": (SAFE, solver, (3, 2)) for solver in (Euler(), Heun(), Exponential(2))},
    "hybrid": (0.7 * FLOW + 0.3 * SDE, Exponential(), (5,)),
    "tokens": (TOKENS, Euler(), (6,)),
    "masked": (MASKED, Euler(), (6,)),
}
CASES = pytest.mark.parametrize("name", RUNS)


def draw(name: str, count: int = COUNT, **options) -> Tensor:
    generator, solver, shape = RUNS[name]
    options = {"steps": 6, "seed": 11, **options}
    return gm.sample(generator, (count, *shape), solver=solver, **options)


@CASES
def test_batches_and_shards_give_the_same_bits(name: str) -> None:
    whole = draw(name)
    assert torch.equal(draw(name), whole)
    for batch_size in (1, 7, 63, 64, 1000):
        assert torch.equal(draw(name, batch_size=batch_size), whole), batch_size
    assert torch.equal(draw(name, 1, first_index=17), whole[17:18])
    for cut in (1, 7, 40):
        parts = [draw(name, cut), draw(name, COUNT - cut, first_index=cut, batch_size=5)]
        assert torch.equal(torch.cat(parts), whole), cut


@CASES
def test_what_else_is_asked_for_does_not_change_the_samples(name: str, capsys) -> None:
    whole = draw(name)
    calls: list[tuple[int, float]] = []
    states = draw(name, trajectory=True)
    assert states.shape == (7, *whole.shape)
    assert torch.equal(states[-1], whole)
    assert torch.equal(draw(name, trajectory=True, batch_size=5), states)
    assert torch.equal(draw(name, check=True), whole)
    assert torch.equal(draw(name, progress=True), whole)
    assert torch.equal(draw(name, callback=lambda i, t, x: calls.append((i, t))), whole)
    assert [i for i, _ in calls] == [1, 2, 3, 4, 5, 6]
    assert calls[-1][1] == 1.0
    assert [t for _, t in calls] == sorted(t for _, t in calls)
    assert "/6 [" in capsys.readouterr().err


@CASES
def test_the_global_generator_is_touched_only_without_a_seed(name: str) -> None:
    before = torch.get_rng_state()
    whole = draw(name)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(draw(name, seed=12), whole)
    first, second = draw(name, seed=None), draw(name, seed=None)
    assert not torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(first, second)
    torch.set_rng_state(before)
    assert torch.equal(draw(name, seed=None), first)
    # Without a seed, too, one seed serves all batches: shards of one call are not copies of one another.
    torch.set_rng_state(before)
    assert torch.equal(draw(name, seed=None, batch_size=7), first)


@pytest.mark.parametrize("build", [gm.Flow, gm.Diffusion])
def test_a_network_of_matrix_products_agrees_to_rounding(build: Callable[[gm.Predictor], gm.Generator]) -> None:
    generator = build(gm.predict.V(Mixing(), PATH))
    whole = gm.sample(generator, (COUNT, 3), steps=8, seed=0)
    for batch_size in (1, 7):
        torch.testing.assert_close(
            gm.sample(generator, (COUNT, 3), steps=8, seed=0, batch_size=batch_size), whole, rtol=1e-4, atol=1e-5
        )


def test_samples_and_steps_have_noise_of_their_own() -> None:
    """No two rows alike, and no step's noise used twice."""
    whole = draw("sde Exponential(order=1)")
    assert len(whole.unique(dim=0)) == COUNT
    seen: list[Tensor] = []
    generator, solver, shape = RUNS["safe Euler()"]
    space = type(generator.path.space)
    original = space.brownian
    try:
        space.brownian = lambda self, x, draws: seen.append(original(self, x, draws)) or seen[-1]
        gm.sample(generator, (4, *shape), steps=5, seed=0, solver=solver)
    finally:
        space.brownian = original
    noise = torch.stack(seen).flatten(1)
    assert len(noise) == 5
    assert (torch.corrcoef(noise) - torch.eye(len(noise))).abs().max() < 0.95
    assert len(noise.unique()) == noise.numel()


def test_states_of_other_precision_get_the_same_noise() -> None:
    single, double = (draw("sde Exponential(order=2)", dtype=dtype) for dtype in (torch.float32, torch.float64))
    torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-4)


def test_conditions_follow_their_samples_into_batches_and_shards() -> None:
    class Labelled(nn.Module):
        def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
            return torch.tanh(x) * label[:, None]

    flow = gm.Flow(gm.predict.V(Labelled(), PATH))
    label = torch.arange(20.0)
    whole = gm.sample(flow, (20, 2), steps=4, seed=0, condition={"label": label})
    batches = gm.sample(flow, (20, 2), steps=4, seed=0, condition={"label": label}, batch_size=6)
    shard = gm.sample(flow, (8, 2), steps=4, seed=0, condition={"label": label[12:]}, first_index=12)
    assert torch.equal(batches, whole)
    assert torch.equal(shard, whole[12:])
    assert not torch.equal(gm.sample(flow, (20, 2), steps=4, seed=0, condition={"label": label.flip(0)}), whole)


def test_prompts_stay_and_follow_their_samples_into_batches() -> None:
    tokens = torch.full((9, 6), 5)
    tokens[:, :2] = torch.arange(18).reshape(9, 2) % 5
    fixed = tokens != 5
    whole = gm.sample(MASKED, tokens, steps=5, seed=0, fixed=fixed)
    assert torch.equal(whole[:, :2], tokens[:, :2])
    assert bool((whole < 5).all())
    assert torch.equal(gm.sample(MASKED, tokens, steps=5, seed=0, fixed=fixed, batch_size=2), whole)
    # On a uniform path a prompt would be resampled but for the mask of fixed positions.
    start = torch.zeros(9, 6, dtype=torch.int64)
    held = gm.sample(TOKENS, start, steps=5, seed=0, fixed=fixed)
    assert bool((held[:, :2] == 0).all())
    assert not bool((gm.sample(TOKENS, start, steps=5, seed=0)[:, :2] == 0).all())
