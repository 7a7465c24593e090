"""Attention: its formula on both of its ways, its derivatives, and its symmetry."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
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


@pytest.mark.parametrize(
    ("dtype", "gradients", "largest", "device", "keys", "fused"),
    [
        (torch.bfloat16, True, 40, "cpu", 5, False),
        (torch.bfloat16, True, 39, "cpu", 5, True),
        (torch.bfloat16, False, 40, "cpu", 5, True),
        (torch.float32, True, 40, "cpu", 5, True),
        (torch.bfloat16, True, 40, "meta", 5, True),
        (torch.bfloat16, True, 10**6, "cpu", 256, False),
        (torch.bfloat16, True, 10**6, "cpu", 257, True),
    ],
)
def test_gradients_in_bfloat16_on_a_cpu_take_the_formula(monkeypatch, dtype, gradients, largest, device, keys, fused):
    # Weights of 2 samples, 1 head, 4 queries and 5 keys: 40. More than 256 keys are left to the kernel.
    used = []

    def kernel(query, key, value, attn_mask=None):
        used.append("fused")
        return value[..., :1, :].expand_as(query)

    monkeypatch.setattr(F, "scaled_dot_product_attention", kernel)
    monkeypatch.setattr("genmatch.nn.attention.LARGEST", largest)
    query, key = (draw(2, 1, length, 3).to(device, dtype) for length in (4, keys))
    attend(query.requires_grad_(gradients), key, key)
    assert bool(used) == fused


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("scale", [1, 30, 300])
def test_large_logits_in_bfloat16_are_not_rounded(scale, autocast):
    query, key, value = (
        each.to(torch.bfloat16) for each in (scale * draw(2, 2, 16, 8), draw(2, 2, 16, 8), draw(2, 2, 16, 8))
    )
    weights = torch.softmax(query.double() @ key.double().mT / 8**0.5, -1)  # the plain formula would overflow
    expected = weights @ value.double()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = attend(query.requires_grad_(), key, value)
    assert found.dtype == torch.bfloat16
    assert (found.double() - expected).norm() / expected.norm() < 0.006  # rounded products would make it .04 at 300


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_in_bfloat16_are_close(masked):
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, 2, 16, 8, generator=generator) for _ in range(3)]
    mask = (torch.arange(16) % 3 != 1).expand(2, 1, 1, 16) if masked else None
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        cast = [each.to(dtype).requires_grad_() for each in inputs]
        output = attend(cast[0], cast[1], cast[2], mask)
        found.append([output, *torch.autograd.grad(output.float().sin().sum(), cast)])
    for expected, value in zip(*found, strict=True):
        assert value.dtype == torch.bfloat16
        assert 1e-4 < (value.float() - expected).norm() / expected.norm() < 0.02


def test_an_exported_attention_is_the_fused_operator():
    class Attention(torch.nn.Module):
        def forward(self, query: torch.Tensor) -> torch.Tensor:
            return attend(query, query, query)

    query = draw(2, 1, 4, 8).to(torch.bfloat16).requires_grad_()
    program = torch.export.export(Attention(), (query,))
    assert "scaled_dot_product_attention" in str(program.graph)
    assert "softmax" not in str(program.graph)


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
