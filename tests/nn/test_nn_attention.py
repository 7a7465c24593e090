"""Attention: its formula on both of its ways, its derivatives, and its symmetry."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from genmatch.nn import SelfAttention
from genmatch.nn.attention import attend


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def formula(query, key, value):
    out = torch.empty_like(value)
    for b, h, i in torch.cartesian_prod(*map(torch.arange, query.shape[:3])).tolist():
        scores = torch.stack([query[b, h, i].dot(k) for k in key[b, h]]).div(query.shape[-1] ** 0.5).exp()
        out[b, h, i] = sum(s * v for s, v in zip(scores, value[b, h], strict=True)) / scores.sum()
    return out


def test_both_ways_are_the_formula():
    query, key, value = draw(2, 2, 4, 3), draw(2, 2, 4, 3) ** 2, draw(2, 2, 4, 3).flip(0)
    expected = formula(query, key, value)
    torch.testing.assert_close(attend(query, key, value), expected)
    primal, _ = torch.func.jvp(lambda q: attend(q, key, value), (query,), (query,))
    torch.testing.assert_close(primal, expected)


@pytest.mark.parametrize("moving", [0, 1, 2])
def test_jvp_is_the_derivative(moving):
    inputs = [draw(2, 1, 5, 4), draw(2, 1, 5, 4).sin(), draw(2, 1, 5, 4).cos()]
    direction = draw(2, 1, 5, 4).flip(2)

    def along(value):
        return attend(*(value if i == moving else each for i, each in enumerate(inputs)))

    _, tangent = torch.func.jvp(along, (inputs[moving],), (direction,))
    h = 1e-5
    difference = (along(inputs[moving] + h * direction) - along(inputs[moving] - h * direction)) / (2 * h)
    torch.testing.assert_close(tangent, difference, atol=1e-8, rtol=1e-6)


def test_the_fused_kernel_alone_has_no_jvp_on_a_cpu():
    # If this ever passes, the formula of `attend` has become needless.
    query = draw(1, 1, 4, 4)
    with pytest.raises(NotImplementedError, match="forward AD"):
        torch.func.jvp(lambda q: torch.nn.functional.scaled_dot_product_attention(q, q, q), (query,), (query,))


def test_second_derivatives_within_the_math_kernel():
    query, direction = draw(1, 1, 4, 4), draw(1, 1, 4, 4).flip(3)

    def energy(q):
        return attend(q, q.sin(), q.cos()).square().sum()

    gradient = torch.func.grad(energy)
    with sdpa_kernel(SDPBackend.MATH):
        _, forward = torch.func.jvp(gradient, (query,), (direction,))
        reverse = torch.func.grad(lambda q: (gradient(q) * direction).sum())(query)
    h = 1e-5
    difference = (gradient(query + h * direction) - gradient(query - h * direction)) / (2 * h)
    torch.testing.assert_close(forward, difference, atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(reverse, difference, atol=1e-7, rtol=1e-6)


def test_tokens_in_another_order_come_out_in_that_order():
    layer = SelfAttention(12, heads=3).double()
    x, order = draw(2, 6, 12), torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(layer(x[:, order]), layer(x)[:, order])


def test_heads_do_not_see_each_other():
    layer = SelfAttention(8, heads=2).double()
    with torch.no_grad():
        layer.output.weight.copy_(torch.eye(8))
        x = draw(1, 5, 8)
        before = layer(x)
        layer.input.weight[4:8] += 1  # the second head's queries
        after = layer(x)
    torch.testing.assert_close(after[..., :4], before[..., :4], rtol=0, atol=0)
    assert (after[..., 4:] - before[..., 4:]).abs().max() > 1e-3


@pytest.mark.parametrize("heads", [0, 3])
def test_heads_divide_the_width(heads):
    with pytest.raises(ValueError, match=f"heads must divide the width: got heads={heads} and width 8"):
        SelfAttention(8, heads=heads)
