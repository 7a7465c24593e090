"""Divergences against their definition; the best prediction is the posterior mean, and for which it is not."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from closed_forms import F64, subclasses
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from genmatch.divergences import CrossEntropy, Divergence, GeneralisedKL, ItakuraSaito, PseudoHuber, Squared

# phi of every Bregman divergence on numbers; the cross-entropy is one on the simplex, see below.
PHI: dict[Divergence, Callable[[Tensor], Tensor]] = {
    Squared(): lambda a: a**2,
    GeneralisedKL(): lambda a: a * a.log(),
    ItakuraSaito(): lambda a: -a.log(),
}
bregman = pytest.mark.parametrize("divergence", PHI, ids=repr)


def test_every_divergence_is_covered():
    known = {type(d): d.bregman for d in (*PHI, CrossEntropy(), PseudoHuber())}
    assert set(known) == set(subclasses(Divergence))
    assert [cls for cls, is_bregman in known.items() if not is_bregman] == [PseudoHuber]


@bregman
@given(a=st.floats(0.05, 20), b=st.floats(0.05, 20))
@settings(max_examples=50)
def test_the_definition(divergence, a, b):
    target, prediction = torch.tensor(a, dtype=F64), torch.tensor(b, dtype=F64, requires_grad=True)
    phi = PHI[divergence]
    slope = torch.autograd.grad(phi(prediction), prediction)[0]
    expected = phi(target) - phi(prediction.detach()) - (target - prediction.detach()) * slope
    got = divergence(target, prediction.detach())
    assert float(got) == pytest.approx(float(expected), rel=1e-8, abs=1e-11)
    assert float(got) >= -1e-12
    assert float(divergence(target, target)) == pytest.approx(0, abs=1e-12)


def gamma_sample() -> Tensor:
    """Gamma(2) by its quantiles: mean 2, harmonic mean 1, geometric mean exp(1 - 0.5772) = 1.526."""
    u = (torch.arange(20_000, dtype=F64) + 0.5) / 20_000
    return torch.from_numpy(stats.gamma.ppf(u.numpy(), 2))


def minimiser(expected: Callable[[Tensor], Tensor]) -> float:
    """The point in (0, 10) at which the slope of a unimodal function changes sign."""
    low, high = 0.01, 10.0
    for _ in range(60):
        b = torch.tensor((low + high) / 2, dtype=F64, requires_grad=True)
        middle, slope = b.item(), torch.autograd.grad(expected(b), b)[0].item()
        low, high = (low, middle) if slope > 0 else (middle, high)
    return low


@bregman
def test_the_best_prediction_is_the_mean(divergence):
    a = gamma_sample()
    assert minimiser(lambda b: divergence(a, b).mean()) == pytest.approx(float(a.mean()), rel=1e-9)


def test_with_the_arguments_swapped_it_is_not():
    a = gamma_sample()
    harmonic, geometric = float(1 / (1 / a).mean()), float(a.log().mean().exp())
    assert (harmonic, geometric) == pytest.approx((1.0, math.exp(1 - 0.5772157)), rel=5e-3)
    assert minimiser(lambda b: ItakuraSaito()(b, a).mean()) == pytest.approx(harmonic, rel=1e-9)
    assert minimiser(lambda b: GeneralisedKL()(b, a).mean()) == pytest.approx(geometric, rel=1e-9)
    assert minimiser(lambda b: Squared()(b, a).mean()) == pytest.approx(float(a.mean()), rel=1e-9)  # symmetric


def test_pseudo_huber_leans_to_the_median():
    a = gamma_sample()
    assert not PseudoHuber().bregman
    best = minimiser(lambda b: PseudoHuber(0.1)(a, b).mean())
    assert abs(best - float(a.mean())) > 0.2
    assert best == pytest.approx(float(a.median()), abs=0.02)
    # Large c: the square again, and with it the mean.
    assert minimiser(lambda b: PseudoHuber(100.0)(a, b).mean()) == pytest.approx(float(a.mean()), rel=1e-3)


@given(st.floats(-1e3, 1e3))
@settings(max_examples=40)
def test_pseudo_huber_is_square_then_linear(error):
    c = 0.1
    got = float(PseudoHuber(c)(torch.tensor(0.0, dtype=F64), torch.tensor(error, dtype=F64)))
    assert got == pytest.approx(2 * c * (math.hypot(error, c) - c), abs=1e-12)
    assert got <= error**2 + 1e-12
    if abs(error) < 1e-4:
        assert got == pytest.approx(error**2, abs=1e-11)


def test_itakura_saito_is_twice_a_kullback_leibler():
    a, b = torch.tensor([0.3, 2.0, 5.0], dtype=F64), torch.tensor([0.7, 2.0, 0.5], dtype=F64)
    zero = torch.zeros(3, dtype=F64)
    expected = 2 * kl_divergence(Normal(zero, a.sqrt()), Normal(zero, b.sqrt()))
    torch.testing.assert_close(ItakuraSaito()(a, b), expected)
    assert not torch.allclose(ItakuraSaito()(b, a), expected)


def test_generalised_kl_allows_rates_of_zero():
    a, b = torch.tensor([0.0, 0.0, 2.0]), torch.tensor([1.5, 1e-3, 2.0])
    assert GeneralisedKL()(a, b).tolist() == pytest.approx([1.5, 1e-3, 0.0])
    # On probabilities it is Kullback and Leibler's.
    p, q = torch.tensor([0.2, 0.3, 0.5], dtype=F64), torch.tensor([0.6, 0.3, 0.1], dtype=F64)
    assert float(GeneralisedKL()(p, q).sum()) == pytest.approx(stats.entropy(p.numpy(), q.numpy()))


# Cross-entropy


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 2, 3)])
def test_cross_entropy_is_minus_the_log_probability(shape: tuple[int, ...]):
    logits = torch.randn(*shape, 5, dtype=F64)
    target = torch.randint(0, 5, shape)
    got = CrossEntropy()(target, logits)
    assert got.shape == shape
    assert got.dtype == F64  # double stays double
    expected = -logits.log_softmax(-1).gather(-1, target[..., None])[..., 0]
    torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-13)
    # The divergence of phi(p) = sum p log p from a one-hot target.
    one_hot = torch.nn.functional.one_hot(target, 5).to(F64)
    q = logits.softmax(-1)
    entropy = torch.xlogy(one_hot, one_hot).sum(-1) - torch.xlogy(q, q).sum(-1)
    torch.testing.assert_close(got, entropy - ((one_hot - q) * (q.log() + 1)).sum(-1))


def test_cross_entropy_takes_half_precision_in_float32():
    logits = torch.randn(4, 5).bfloat16()
    got = CrossEntropy()(torch.tensor([0, 1, 2, 3]), logits)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, CrossEntropy()(torch.tensor([0, 1, 2, 3]), logits.float()))


def test_the_best_logits_are_the_frequencies():
    target = torch.tensor([0] * 5 + [1] * 3 + [2] * 2)
    frequencies = torch.tensor([0.5, 0.3, 0.2], dtype=F64)
    logits = frequencies.log().requires_grad_()
    CrossEntropy()(target, logits.expand(10, 3)).mean().backward()
    assert float(logits.grad.abs().max()) < 1e-15
    other = torch.zeros(3, dtype=F64, requires_grad=True)
    CrossEntropy()(target, other.expand(10, 3)).mean().backward()
    assert float(other.grad.abs().max()) > 0.1


@pytest.mark.parametrize("token", [5, -1, -100])  # -100 is what torch's own cross-entropy ignores without a word
def test_targets_outside_the_vocabulary(token: int):
    with pytest.raises(ValueError, match=rf"targets must be in \[0, 5\), got {token}: is the mask or the padding"):
        CrossEntropy()(torch.tensor([[0, token]]), torch.zeros(1, 2, 5))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: PseudoHuber(0.0), ValueError, "c must be above 0 and finite, got 0.0"),
        (lambda: PseudoHuber(math.nan), ValueError, "c must be above 0"),
        (lambda: PseudoHuber("1"), TypeError, "c must be a number, got str"),
    ],
)
def test_bad_parameters(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_values_not_identities():
    assert PseudoHuber(0.1) == PseudoHuber(0.1) != PseudoHuber(0.2)
    assert Squared() == Squared() != ItakuraSaito()
