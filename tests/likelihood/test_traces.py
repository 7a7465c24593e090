"""Divergences: exact ones, and estimators whose mean and variance are known."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from gaussian_data import Linear
from torch import Tensor, nn

import genmatch as gm
from genmatch.likelihood import Exact, Hutchinson

F64 = torch.float64


class Curved(nn.Module):
    """A smooth map of states of any shape, each sample on its own."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(size, 7), nn.Linear(7, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.inner(x.reshape(len(x), -1)))).reshape(x.shape)


def by_jacobian(function, x: Tensor) -> Tensor:
    """The trace of each sample's Jacobian, by autograd."""
    size = x[0].numel()
    return torch.stack(
        [
            torch.autograd.functional.jacobian(function, row[None]).reshape(size, size).trace()  # type: ignore[union-attr]
            for row in x
        ]
    )


@pytest.mark.parametrize("shape", [(1,), (5,), (2, 3, 2), ()])
@pytest.mark.parametrize("chunk", [None, 1, 2, 100])
@pytest.mark.parametrize("reverse", [False, True])
def test_the_exact_divergence(shape: tuple[int, ...], chunk: int | None, reverse: bool):
    x = torch.randn(4, *shape, dtype=F64)
    function = Curved(x[0].numel()).double()
    value, divergence = Exact(chunk)(function, x, reverse=reverse)
    torch.testing.assert_close(value, function(x))
    torch.testing.assert_close(divergence, by_jacobian(function, x))
    assert Exact(chunk).passes(x) == x[0].numel()


@pytest.mark.parametrize("reverse", [False, True])
def test_all_sign_vectors_have_the_trace_as_their_mean_and_the_known_variance(reverse: bool):
    matrix, x = torch.randn(4, 4, dtype=F64), torch.randn(1, 4, dtype=F64)
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=4)), dtype=F64)[:, None, :]
    _, mean = Hutchinson(16)(lambda y: y @ matrix.T, x, signs, reverse=reverse)
    torch.testing.assert_close(mean[0], matrix.trace())
    values = torch.stack([Hutchinson(1)(lambda y: y @ matrix.T, x, z[None])[1][0] for z in signs])
    symmetric = (matrix + matrix.T) / 2
    off = symmetric - torch.diag(symmetric.diagonal())
    torch.testing.assert_close(values.var(correction=0), 2 * off.square().sum())


def test_normals_have_a_larger_variance_and_signs_are_exact_where_the_jacobian_is_diagonal():
    count, matrix = 40_000, torch.diag(torch.tensor([1.0, -2.0, 3.0], dtype=F64))
    x, draws = torch.zeros(count, 3, dtype=F64), gm.Draws(0, count)
    normal, signs = Hutchinson(1, "normal"), Hutchinson(1)
    values = normal(lambda y: y @ matrix, x, normal.probes(x, draws))[1]
    assert abs(values.mean() - 2) < 4 * values.std() / count**0.5
    assert abs(values.var() / 28 - 1) < 0.05  # 2 (1 + 4 + 9)
    torch.testing.assert_close(signs(lambda y: y @ matrix, x, signs.probes(x, draws))[1], x[:, 0] + 2)
    several = Hutchinson(4, "normal")
    values = several(lambda y: y @ matrix, x, several.probes(x, draws))[1]
    assert abs(values.var() / 7 - 1) < 0.05


def test_probes_belong_to_samples():
    whole = Hutchinson(3).probes(torch.empty(8, 2, 5), gm.Draws(1, 8))
    part = Hutchinson(3).probes(torch.empty(3, 2, 5), gm.Draws(1, 3, first_index=5))
    assert torch.equal(whole[:, 5:], part)
    assert whole.shape == (3, 8, 2, 5)
    assert set(whole.unique().tolist()) == {-1.0, 1.0}
    assert abs(whole.mean()) < 0.3
    assert not torch.equal(whole[0], whole[1])


class Attending(nn.Module):
    """A velocity with the fused attention of torch, which has no forward derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 12)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        query, key, value = self.mix(x).chunk(3, -1)
        return nn.functional.scaled_dot_product_attention(query, key, value)


class OneWay(torch.autograd.Function):
    """A cube that knows its backward pass alone."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        return 3 * ctx.saved_tensors[0] ** 2 * gradient


class Cubed(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return -0.1 * OneWay.apply(x)


class Constant(nn.Module):
    """A velocity that does not look at the state."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.ones_like(x)


def test_fused_attention_has_its_forward_mode():
    network, x = Attending().double(), torch.randn(2, 3, 4, dtype=F64)
    function = lambda y: network(y, None)  # noqa: E731
    torch.testing.assert_close(Exact()(function, x)[1], by_jacobian(function, x))


@pytest.mark.parametrize("divergence", [Exact(), Hutchinson(2)], ids=repr)
@pytest.mark.parametrize("shape", [(2,), (3, 3)])  # few directions, and so many that the forward mode is tried first
def test_a_network_without_a_forward_mode_is_differentiated_backwards(divergence, shape: tuple[int, ...]):
    flow = gm.Flow(gm.predict.Velocity(Cubed(), gm.GaussianPath()))
    x = torch.rand(3, *shape, dtype=F64)
    with pytest.raises(RuntimeError):
        gm.log_prob(flow, x, divergence=Exact(mode="forward"))
    value = gm.log_prob(flow, x, divergence=divergence, solver=gm.solvers.RK4(), seed=0)
    # dx/dt = -x^3 / 10 from x0: 1/x1^2 = 1/x0^2 + 1/5, and dx0/dx1 = (x0/x1)^3; signs are exact, the map is diagonal.
    x0 = (x**-2 - 0.2) ** -0.5
    exact = (torch.distributions.Normal(0, 1).log_prob(x0) + 3 * (x0 / x).log()).flatten(1).sum(1)
    torch.testing.assert_close(value, exact, rtol=0, atol=1e-6)


def test_a_velocity_that_ignores_the_state_has_no_divergence():
    flow = gm.Flow(gm.predict.Velocity(Constant(), gm.GaussianPath()))
    x = torch.randn(3, 2, dtype=F64)
    value = gm.log_prob(flow, x, solver=gm.solvers.RK4(), steps=2)
    torch.testing.assert_close(value, torch.distributions.Normal(0.0, 1.0).log_prob(x - 1).sum(1))
    assert Exact()(torch.ones_like, x, reverse=True)[1].tolist() == [0, 0, 0]


class Unseen(nn.Module):
    """A velocity computed without gradients."""

    @torch.no_grad()
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x**2


def test_a_network_without_gradients_is_not_taken_for_one_without_divergence():
    x = torch.randn(3, 2, dtype=F64)
    for divergence in (Exact(), Exact(mode="forward"), Exact(mode="reverse")):
        torch.testing.assert_close(divergence(lambda y: Unseen()(y, None), x)[1], 2 * x.sum(1))


def test_the_network_runs_once_for_all_directions():
    network, x = Linear(torch.randn(6, 6)), torch.randn(3, 6)
    Exact()(lambda y: network(y, None), x)
    Hutchinson(4)(lambda y: network(y, None), x, Hutchinson(4).probes(x, gm.Draws(0, 3)))
    assert network.calls == 2
    Exact(mode="forward")(lambda y: network(y, None), x)
    assert network.calls == 3


def test_what_is_no_estimator():
    for wrong in (0, -1):
        with pytest.raises(ValueError, match=f"at least 1, got {wrong}"):
            Exact(wrong)
        with pytest.raises(ValueError, match=f"at least 1, got {wrong}"):
            Hutchinson(wrong)
    with pytest.raises(TypeError, match="integer, got float"):
        Hutchinson(1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'rademacher' or 'normal', got 'cauchy'"):
        Hutchinson(distribution="cauchy")
    for make in (Exact, Hutchinson):
        with pytest.raises(ValueError, match="one of auto, forward, reverse, got 'backward'"):
            make(mode="backward")
    with pytest.raises(ValueError, match="needs its probes"):
        Hutchinson()(lambda y: y, torch.zeros(1, 1), None)


class Fused(torch.nn.Module):
    """Attention of a shape that the fused kernels take."""

    def forward(self, x):
        q = x.reshape(len(x), 1, 3, 4)
        return F.scaled_dot_product_attention(q, q, q.sin()).reshape(x.shape)


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_attention_that_is_fused_on_a_cpu(mode: str):
    network, x = Fused(), torch.randn(2, 3, 4)
    with torch.enable_grad():  # a second derivative, as for training on densities
        x.requires_grad_()
        found = Exact(mode=mode)(network, x)[1]
        (gradient,) = torch.autograd.grad(found.sum(), x)
    torch.testing.assert_close(found, by_jacobian(network, x.detach()), atol=1e-4, rtol=1e-4)
    assert gradient.abs().max() > 0.01


def test_probes_have_numbers_of_their_own():
    draws, x = gm.Draws(3, 4000), torch.zeros(4000, 2)
    probes = Hutchinson(1, "normal").probes(x, draws)[0]
    for other in (draws.normal((4000, 2)), draws.fork(1).normal((4000, 2)), draws.fork(2).normal((4000, 2))):
        assert (probes * other).mean().abs() < 0.1  # 1 if they were the source's
