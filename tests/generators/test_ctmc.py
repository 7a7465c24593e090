"""The token generator against tables: rate matrices, transition matrices, and what must never move."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import genmatch as gm
from genmatch.solvers import Euler, Field
from token_worlds import VOCABULARY, TokenWorld

PATHS = {
    "uniform": gm.MixturePath(3),
    "mask": gm.MixturePath(3, mask=3),
    "uniform cosine": gm.MixturePath(3, schedule=gm.schedules.Cosine()),
    "mask cosine": gm.MixturePath(3, mask=3, schedule=gm.schedules.Cosine()),
    "uniform quadratic": gm.MixturePath(3, schedule=gm.schedules.Polynomial(2.0)),
    "mask cubic": gm.MixturePath(3, mask=3, schedule=gm.schedules.Polynomial(3.0)),
}


def rate_matrix(world: TokenWorld, operator, t: float) -> Tensor:
    """Q[x, y], rows summing to 0: each jump changes one position."""
    table = operator(world.states, t).rates.table()
    count = len(world.states)
    q = torch.zeros(count, count, dtype=torch.float64)
    for position in range(2):
        for token in range(VOCABULARY):
            landed = world.states.clone()
            landed[:, position] = token
            rows = torch.arange(count)
            q.index_put_((rows, world.index(landed)), table[:, position, token].double(), accumulate=True)
            q.index_put_((rows, rows), -table[:, position, token].double(), accumulate=True)
    return q


@pytest.mark.parametrize("name", PATHS)
def test_the_joint_law_obeys_the_forward_equation(name: str):
    world = TokenWorld(PATHS[name])
    ctmc = gm.CTMC(world.model())
    for t in (0.0625, 0.5, 0.90625):
        time = torch.tensor(t, dtype=torch.float64)
        p, rate = torch.func.jvp(world.density, (time,), (torch.ones_like(time),))
        q = rate_matrix(world, ctmc, t)
        assert q.sum(1).abs().max() < 1e-12
        assert (q - torch.diag(q.diagonal()) >= 0).all()
        torch.testing.assert_close(p @ q, rate, rtol=0, atol=1e-10)


def test_a_posterior_that_looks_at_one_position_alone_does_not():
    """The product of the marginals' posteriors is a wrong generator for a correlated law."""
    path = PATHS["uniform"]
    world, product = TokenWorld(path), TokenWorld(path)
    joint = product.law.reshape(3, 3)
    product.law = (joint.sum(1)[:, None] * joint.sum(0)[None]).flatten()
    time = torch.tensor(0.5, dtype=torch.float64)
    p, rate = torch.func.jvp(world.density, (time,), (torch.ones_like(time),))
    assert (p @ rate_matrix(world, gm.CTMC(product.model()), 0.5) - rate).abs().max() > 0.02


@pytest.mark.parametrize("name", ["uniform", "mask", "mask cosine"])
def test_the_transition_matrix_carries_the_source_to_the_path(name: str):
    """dP/dt = P Q from P = 1, by Runge-Kutta of order 4 in steps of 1/64, exact to 1e-7."""
    world = TokenWorld(PATHS[name])
    ctmc = gm.CTMC(world.model())
    at = {k / 128: rate_matrix(world, ctmc, k / 128) for k in range(105)}
    transition, h = torch.eye(len(world.states), dtype=torch.float64), 1 / 64
    for k in range(52):
        t = k * h
        first = transition @ at[t]
        second = (transition + h / 2 * first) @ at[t + h / 2]
        third = (transition + h / 2 * second) @ at[t + h / 2]
        fourth = (transition + h * third) @ at[t + h]
        transition = transition + h / 6 * (first + 2 * second + 2 * third + fourth)
    exact = world.density(torch.tensor(0.8125, dtype=torch.float64))
    torch.testing.assert_close(world.start() @ transition, exact, rtol=0, atol=1e-6)
    assert (transition > -1e-9).all()


def test_rates_at_per_sample_times():
    """A row's rates are those of its own time, also where B is the number of positions."""
    world = TokenWorld(PATHS["mask cosine"])
    network = gm.predict.Tokens(Constant([0.2, 0.3, 0.5]), world.path)
    x, t = torch.tensor([[3, 3], [0, 3]]), torch.tensor([0.25, 0.75], dtype=torch.float64)
    table = gm.CTMC(network)(x, t).rates.table()
    for i in range(2):
        alone = gm.CTMC(network)(x[i : i + 1], t[i].item()).rates.table()
        torch.testing.assert_close(table[i : i + 1].double(), alone.double(), rtol=1e-6, atol=0)
    assert table[1, 0].abs().sum() == 0, "a token that shows does not jump"


class Constant(nn.Module):
    """The same distribution everywhere."""

    def __init__(self, probabilities, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(probabilities).log().to(dtype), requires_grad=False)

    def forward(self, x: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return self.logits.expand(*x.shape, -1)


def test_a_guided_model_jumps_to_the_guided_posterior():
    """Extrapolated logits: p_y^w p_0^(1 - w), normalised."""

    class Labelled(nn.Module):
        def forward(self, x, t, label):
            table = torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1], [1 / 3, 1 / 3, 1 / 3]]).log()
            return table[label][:, None].expand(*x.shape, 3)

    model = gm.predict.Tokens(Labelled(), gm.MixturePath(3, mask=3))
    guided = gm.guidance.ClassifierFree(model, 2.0, null={"label": 1})
    x, label = torch.full((4000, 1), 3), torch.zeros(4000, dtype=torch.long)
    table = gm.CTMC(guided)(x[:1], 0.5, {"label": label[:1]}).rates.table()
    expected = torch.tensor([0.2**2 / 0.6, 0.3**2 / 0.3, 0.5**2 / 0.1])
    torch.testing.assert_close(table[0, 0], 2 * expected / expected.sum())
    ends = gm.sample(gm.CTMC(guided), x, steps=2, seed=0, condition={"label": label})
    share = torch.bincount(ends.flatten(), minlength=3) / 4000
    torch.testing.assert_close(share, expected / expected.sum(), rtol=0, atol=4 * 0.5 / 4000**0.5)


# What must not move


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize(
    "schedule", [gm.schedules.CondOT(), gm.schedules.Cosine(), gm.schedules.Polynomial(3.0)], ids=repr
)
def test_the_last_step_leaves_no_mask(schedule: gm.Schedule, steps: int):
    model = gm.predict.Tokens(Constant([0.2, 0.3, 0.5]), gm.MixturePath(3, mask=7, schedule=schedule))
    tokens = gm.sample(gm.CTMC(model), (500, 6), steps=steps, seed=0)
    assert tokens.dtype == torch.int64
    assert ((tokens >= 0) & (tokens < 3)).all()
    # All positions are draws of the distribution: three standard deviations of 3,000 draws.
    share = torch.bincount(tokens.flatten(), minlength=3) / tokens.numel()
    torch.testing.assert_close(share, torch.tensor([0.2, 0.3, 0.5]), rtol=0, atol=3 * 0.5 / 3000**0.5)


def test_on_a_masked_path_a_token_that_shows_stays():
    model = gm.predict.Tokens(Constant([0.2, 0.3, 0.5]), gm.MixturePath(3, mask=3))
    states = gm.sample(gm.CTMC(model), (200, 5), steps=9, seed=1, trajectory=True)
    for now, then in itertools.pairwise(states):
        assert ((now == 3) | (now == then)).all()
    masks = (states == 3).float().mean((1, 2))
    torch.testing.assert_close(masks, 1 - torch.arange(10) / 9, rtol=0, atol=3 * 0.5 / 1000**0.5)


@pytest.mark.parametrize("mask", [None, 3])
def test_padding_and_prompts_never_move(mask: int | None):
    model = gm.predict.Tokens(Constant([0.2, 0.3, 0.5]), gm.MixturePath(3, mask=mask, padding=9))
    generator = torch.Generator().manual_seed(0)
    start = torch.randint(0, 3, (300, 6), generator=generator) if mask is None else torch.full((300, 6), mask)
    start[:, 4:] = 9
    start[:, :2] = torch.randint(0, 3, (300, 2), generator=generator)
    fixed = torch.zeros(300, 6, dtype=torch.bool)
    fixed[:, :2] = True
    states = gm.sample(gm.CTMC(model), start, steps=6, seed=2, fixed=fixed, trajectory=True)
    assert (states[:, :, 4:] == 9).all()
    assert (states[:, :, :2] == start[:, :2]).all()
    assert (states[-1, :, 2:4] < 3).all()
    assert (states[-1, :, 2:4] != start[:, 2:4]).any()
    if mask is None:  # and without a prompt the same positions do move
        free = gm.sample(gm.CTMC(model), start, steps=6, seed=2)
        assert (free[:, :2] != start[:, :2]).any()


def test_a_prompt_changes_what_follows():
    """The network sees the prompt: the law of the second token is the conditional one."""
    world = TokenWorld(PATHS["mask"])
    start, fixed = torch.full((6000, 2), 3), torch.zeros(6000, 2, dtype=torch.bool)
    start[:, 0], fixed[:, 0] = 1, True
    ends = gm.sample(gm.CTMC(world.model()), start, steps=1, seed=0, fixed=fixed)
    exact = world.law.reshape(3, 3)[1] / world.law.reshape(3, 3)[1].sum()
    share = torch.bincount(ends[:, 1], minlength=3).double() / 6000
    torch.testing.assert_close(share, exact, rtol=0, atol=4 * 0.5 / 6000**0.5)


@pytest.mark.parametrize("name", ["uniform", "mask"])
def test_samples_are_the_same_in_any_batch(name: str):
    """The network is a table, so even its rounding does not depend on the batch."""
    ctmc = gm.CTMC(gm.predict.Tokens(Constant([0.2, 0.3, 0.5]), PATHS[name]))
    whole = gm.sample(ctmc, (64, 5), steps=6, seed=4)
    for size in (1, 7, 64):
        assert torch.equal(gm.sample(ctmc, (64, 5), steps=6, seed=4, batch_size=size), whole)
    parts = [gm.sample(ctmc, (n, 5), steps=6, seed=4, first_index=i) for i, n in ((0, 10), (10, 54))]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(gm.sample(ctmc, (64, 5), steps=6, seed=5), whole)
    states = gm.sample(ctmc, (64, 5), steps=6, seed=4, trajectory=True, batch_size=7)
    assert states.shape == (7, 64, 5)
    assert torch.equal(states[-1], whole)


def test_prompts_and_conditions_travel_with_their_rows():
    path = PATHS["mask"]

    class Shift(nn.Module):
        def forward(self, x, t, token):
            return nn.functional.one_hot(token, 3)[:, None].expand(*x.shape, 3) * 60.0

    start, fixed = torch.full((9, 4), 3), torch.zeros(9, 4, dtype=torch.bool)
    start[torch.arange(9), torch.arange(9) % 4] = 2
    fixed[torch.arange(9), torch.arange(9) % 4] = True
    token = torch.arange(9) % 2
    model = gm.predict.Tokens(Shift(), path)
    ends = gm.sample(gm.CTMC(model), start, steps=3, seed=0, batch_size=2, fixed=fixed, condition={"token": token})
    assert torch.equal(ends, torch.where(fixed, 2, token[:, None]))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8], ids=str)
def test_every_integer_that_holds_the_ids_is_a_state(dtype: torch.dtype):
    ctmc = gm.CTMC(gm.predict.Tokens(Constant([0.2, 0.3, 0.5]), PATHS["mask"]))
    ends = gm.sample(ctmc, torch.full((6, 4), 3, dtype=dtype), steps=3, seed=0)
    assert ends.dtype == dtype
    assert torch.equal(ends.long(), gm.sample(ctmc, (6, 4), steps=3, seed=0))


# Size


class Largest(TorchDispatchMode):
    """The operations that make a tensor of at least ``size`` elements of their own."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.made = size, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        inputs = {id(a) for a in args}
        views = function._schema.returns and any(r.alias_info is not None for r in function._schema.returns)
        if isinstance(result, Tensor) and result.numel() >= self.size and id(result) not in inputs and not views:
            self.made.append(str(function))
        return result


def test_a_large_vocabulary_makes_no_table_of_rates():
    vocabulary, shape = 16_384, (2, 8)
    model = gm.predict.Tokens(Linear(vocabulary), gm.MixturePath(vocabulary, mask=vocabulary))
    ctmc, other = gm.CTMC(model), gm.CTMC(model)
    hybrid = 0.4 * ctmc + 0.6 * other  # one network: one term
    x = torch.full(shape, vocabulary)
    prediction = model(x, 0.25)
    with Largest(x.numel() * vocabulary) as seen:
        triplet = ctmc.triplet(x, 0.25, prediction)
        total = (0.4 * triplet + 0.6 * ctmc.triplet(x, 0.25, prediction)).rates
    assert seen.made == []
    assert len(total.terms) == 1

    field, solver = Field(hybrid, x), Euler()
    (step,) = solver.plan(field, torch.tensor([0.25, 0.5], dtype=torch.float64))
    with Largest(x.numel() * vocabulary) as seen:
        moved, _ = solver.step(field, x, step, gm.Draws(0, 2), None)
    assert ((moved == vocabulary) | (moved < vocabulary)).all()
    # The network's logits alone: rows that stay need no probabilities.
    network = [name for name in seen.made if "addmm" in name or "add" in name or "mul" in name or "expand" in name]
    assert set(seen.made) == set(network)


class Linear(nn.Module):
    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.linspace(-1, 1, vocabulary))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.bias + x[..., None] / 16_384


# Bad input


def test_a_continuous_model_is_refused():
    model = gm.worlds.GaussianMixture(torch.zeros(1, 2), 1.0).predictor(gm.GaussianPath())
    with pytest.raises(TypeError, match=r"CTMC needs a model on a MixturePath .*Tokens, got one on GaussianPath"):
        gm.CTMC(model)


def test_a_token_model_is_no_flow():
    model = TokenWorld(PATHS["mask"]).model()
    for make in (gm.Flow, gm.Langevin, gm.Diffusion):
        with pytest.raises(TypeError, match=r"needs a model on a GaussianPath, got one on MixturePath\(3, mask=3\)"):
            make(model)


def test_a_network_is_refused_with_a_hint():
    with pytest.raises(
        TypeError, match=r"CTMC needs a predictor such as gm\.predict\.Velocity\(network, path\), got Constant"
    ):
        gm.CTMC(Constant([0.5, 0.5]))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (torch.tensor([[0, 4]]), r"tokens must be in \[0, 3\) or 3, got 4"),
        (torch.tensor([[0, -1]]), r"tokens must be in \[0, 3\) or 3, got -1"),
        (torch.tensor([[0.0, 1.0]]), r"tokens must be integers, got torch\.float32"),
    ],
)
def test_wrong_states_are_refused(state: Tensor, message: str):
    ctmc = gm.CTMC(TokenWorld(PATHS["mask"]).model())
    with pytest.raises((ValueError, TypeError), match=message):
        ctmc(state, 0.5)
    with pytest.raises((ValueError, TypeError), match=message):
        gm.sample(ctmc, state, steps=2)


def test_other_solvers_are_refused_by_name():
    ctmc = gm.CTMC(TokenWorld(PATHS["mask"]).model())
    for solver in (gm.solvers.Heun(), gm.solvers.RK4(), gm.solvers.Midpoint()):
        with pytest.raises(ValueError, match=r"cannot move rates.*Use gm\.solvers\.Euler\(\)"):
            gm.sample(ctmc, (4, 2), steps=2, solver=solver)
    with pytest.raises(ValueError, match="CTMC is not semilinear"):
        gm.sample(ctmc, (4, 2), steps=2, solver=gm.solvers.Exponential())
