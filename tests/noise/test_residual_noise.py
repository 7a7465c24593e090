"""Noise learned from held-out residuals, on worlds where the best noise is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import genmatch as gm
from genmatch.generators.residual import Residual, fit_residual

PATH = gm.GaussianPath()
WORLD = gm.worlds.GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), 0.25)
EXACT = WORLD.predictor(PATH)


def size_u(x: Tensor) -> Tensor:
    """How far the velocity's noise prediction is off: more on the right."""
    return 0.4 + 0.3 * torch.tanh(x[:, :1])


def size_s(x: Tensor) -> Tensor:
    """How far the score's is."""
    return 0.4 - 0.2 * torch.tanh(x[:, :1])


class Off(nn.Module):
    """The exact noise prediction, off by a known amount along one axis."""

    def __init__(self, size, axis: int) -> None:
        super().__init__()
        self.size, self.axis = size, axis

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        error = torch.zeros_like(x)
        error[:, self.axis] = self.size(x)[:, 0]
        return EXACT(x, t).noise + error


VELOCITY, SCORE = gm.predict.Noise(Off(size_u, 0), PATH), gm.predict.Noise(Off(size_s, 1), PATH)


def error_of(noise: Residual, t: float) -> float:
    """Largest relative error of the fitted ratio where the law has its mass."""
    x = torch.cartesian_prod(torch.linspace(-1.2, 1.2, 7) * t, torch.tensor([-0.4, 0.0, 0.4]))
    truth = size_u(x) / size_s(x)
    return (noise.ratio(x, t) / truth - 1).abs().max().item()


def test_with_a_reference_the_known_noise_is_found():
    noise = fit_residual(VELOCITY, SCORE, WORLD.sample(6000, seed=1), reference=EXACT, width=0.15, centres=400, seed=0)
    assert max(error_of(noise, t) for t in (0.4, 0.6, 0.8)) < 0.12
    coarse = fit_residual(VELOCITY, SCORE, WORLD.sample(6000, seed=1), reference=EXACT, width=0.4, centres=400, seed=0)
    assert max(error_of(coarse, t) for t in (0.4, 0.6, 0.8)) > 0.2
    x = torch.tensor([[0.5, 0.0]])
    variance = gm.generators.Multiplicative(SCORE, noise)(x, 0.6).variance
    known = 2 * (1 - 0.6) / 0.6 * size_u(x) / size_s(x)  # 2 |du| / |ds| with |du| = b sigma |dE0|, |ds| = |dE0| / sigma
    torch.testing.assert_close(variance, known, rtol=0.1, atol=0)


def test_from_held_out_data_alone_too():
    """The errors are orthogonal here, so the spread of the noise drops out; without that step it would not."""
    data = WORLD.sample(60000, seed=1)
    noise = fit_residual(VELOCITY, SCORE, data, width=0.25, centres=200, time_width=0.5, seed=0)
    assert max(error_of(noise, t) for t in (0.4, 0.6, 0.8)) < 0.3
    right, left = (noise.ratio(torch.tensor([[x, 0.0]]), 0.6).item() for x in (0.8, -0.8))
    truth = [(size_u(x) / size_s(x)).item() for x in (torch.tensor([[0.8, 0.0]]), torch.tensor([[-0.8, 0.0]]))]
    assert right / left == pytest.approx(truth[0] / truth[1], rel=0.35)
    assert truth[0] / truth[1] > 3


def test_errors_that_are_multiples_of_one_another_want_memoryless_noise():
    """A network's errors read twice: the ratio is 1 everywhere, whatever they are."""
    twin = gm.predict.Noise(Off(size_u, 1), PATH)
    noise = fit_residual(VELOCITY, twin, WORLD.sample(500, seed=1), reference=EXACT, seed=0)
    x = gm.Draws(0, 9).normal((9, 2))
    torch.testing.assert_close(noise.ratio(x, 0.5), torch.ones(9, 1), rtol=1e-4, atol=0)
    with pytest.raises(ValueError, match=r"are one network, .* known: gm.diffusivity.Memoryless\(\)"):
        fit_residual(VELOCITY, VELOCITY, WORLD.sample(500, seed=1), seed=0)


def test_the_fitted_noise_lowers_the_bound():
    """1/2 int E |du + A ds / 2|^2 / A dt for independent directions is 1/2 int E (du^2 / A + A ds^2 / 4) dt."""
    noise = fit_residual(VELOCITY, SCORE, WORLD.sample(6000, seed=1), reference=EXACT, width=0.3, centres=200, seed=0)
    x1 = WORLD.sample(20000, seed=5)
    x0 = gm.Draws(6, len(x1)).normal(x1.shape)
    totals = {"fitted": 0.0, "memoryless": 0.0}
    for t in (0.3, 0.5, 0.7, 0.9):
        x = PATH.sample(x0, x1, t)
        b = (1 - t) / t
        du, ds = b / (1 - t) * size_u(x), size_s(x) / (1 - t)
        for name, ratio in (("fitted", noise.ratio(x, t)), ("memoryless", torch.ones(len(x), 1))):
            variance = 2 * b * ratio
            totals[name] += 0.5 * (du**2 / variance + variance * ds**2 / 4).mean().item()
    assert totals["fitted"] < 0.97 * totals["memoryless"]


def test_it_leaves_the_law_alone():
    """Whatever was fitted: with exact networks samples keep the moments of the data."""
    noise = fit_residual(VELOCITY, SCORE, WORLD.sample(2000, seed=1), reference=EXACT, centres=30, seed=0)
    sde = gm.Diffusion(EXACT, noise)
    for solver in (gm.solvers.Euler(), gm.solvers.EndPoint()):
        x = gm.sample(sde, (8000, 2), steps=100, seed=0, start=0.02, solver=solver)
        torch.testing.assert_close(x.var(0), torch.tensor([1.25, 0.25]), rtol=0.1, atol=0)


def test_it_is_saved_and_loaded():
    noise = fit_residual(VELOCITY, SCORE, WORLD.sample(300, seed=1), reference=EXACT, centres=5, seed=0)
    generator = gm.generators.Multiplicative(SCORE, noise)
    names = [name for name in generator.state_dict() if name.startswith("function.")]
    assert sorted(names) == ["function.centres", "function.lower", "function.times", "function.upper"]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: fit_residual(VELOCITY.network, SCORE, x), TypeError, "velocity must be a predictor.*got Off"),
        (
            lambda x: fit_residual(VELOCITY, gm.predict.Noise(Off(size_s, 1), gm.GaussianPath(gm.schedules.VP())), x),
            ValueError,
            "must share one path",
        ),
        (
            lambda x: fit_residual(
                *[gm.predict.Noise(Off(size_s, 1), gm.GaussianPath(coupling=gm.couplings.OT())) for _ in range(2)], x
            ),
            ValueError,
            "there is no score",
        ),
        (lambda x: fit_residual(VELOCITY, SCORE, x, centres=1000), ValueError, "from 1 to the number of data, 200"),
        (lambda x: fit_residual(VELOCITY, SCORE, x, width=0.0), ValueError, "widths must be above 0"),
        (lambda x: fit_residual(VELOCITY, SCORE, x * math.nan), ValueError, "non-finite"),
        (
            lambda x: fit_residual(gm.predict.Data(EXACT.network, PATH), SCORE, x, reference=EXACT, seed=0),
            ValueError,
            "cannot be told from 0",
        ),
        (
            lambda x: Residual(x, x[:, 0], x[:, 0], x[:, 0], width=1.0, time_width=1.0),
            ValueError,
            "must be above 0 and finite",
        ),
        (
            lambda x: Residual(x, x[:5, 0], x[:, 0], x[:, 0], width=1.0, time_width=1.0),
            ValueError,
            r"centres must be \(M, d\) and times",
        ),
    ],
)
def test_bad_input_is_refused(call, error, message: str):
    with pytest.raises(error, match=message):
        call(WORLD.sample(200, seed=0))


def test_states_of_another_size_are_refused():
    noise = fit_residual(VELOCITY, SCORE, WORLD.sample(300, seed=1), reference=EXACT, centres=5, seed=0)
    with pytest.raises(ValueError, match="fitted to states of 2 values, got 3"):
        noise.ratio(torch.zeros(4, 3), 0.5)
