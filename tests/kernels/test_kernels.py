"""The kernels against their references: in Triton's interpreter, on a GPU where there is one, and cross-compiled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import genmatch as gm
from genmatch import kernels
from genmatch.kernels import launch, reference
from genmatch.kernels.reference import Address

pytest.importorskip("triton", reason="the kernels need the package triton: pip install genmatch[kernels]")

DEVICES = [
    pytest.param("cpu", id="interpreter", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")),
    pytest.param("cuda", id="gpu", marks=pytest.mark.gpu),
]
each_device = pytest.mark.parametrize("device", DEVICES)
SEEDS = (0, 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
ROUNDING = {"atol": 2e-6, "rtol": 2e-5}  # of log, cos and sin


@pytest.fixture(autouse=True)
def _gpu(request: pytest.FixtureRequest) -> None:
    if "gpu" in request.keywords and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


def normals(shape: tuple[int, ...], device: str, seed: int = 3) -> Tensor:
    return gm.Draws(seed, shape[0]).normal(shape).to(device).contiguous()


# Normals


@each_device
@pytest.mark.parametrize("seed", SEEDS)
def test_normals_are_those_of_draws(seed: int, device: str) -> None:
    like, address = torch.empty(2, 1031, device=device), Address(seed, 7, 3, 513)
    torch.testing.assert_close(launch.normal(like, address), reference.normal(like, address), **ROUNDING)


@each_device
@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (1, 4096), (2, 4097), (5, 3, 2, 2), (4,), (0, 4), (2, 0)])
def test_odd_sizes(shape: tuple[int, ...], device: str) -> None:
    like, address = torch.empty(shape, device=device), Address(5, 0, 0, 1)
    got = launch.normal(like, address)
    assert got.shape == shape
    torch.testing.assert_close(got, reference.normal(like, address), **ROUNDING)


@each_device
def test_every_part_of_the_address_tells(device: str) -> None:
    like = torch.empty(2, 8, device=device)
    first = launch.normal(like, Address(1, 2, 3, 4))
    for other in (Address(9, 2, 3, 4), Address(1, 9, 3, 4), Address(1, 2, 9, 4), Address(1, 2, 3, 9)):
        assert (launch.normal(like, other) - first).abs().max() > 0.1
    shifted = launch.normal(torch.empty(1, 8, device=device), Address(1, 3, 3, 4))
    assert torch.equal(first[1:], shifted)  # a sample's numbers do not depend on its batch


@each_device
def test_indices_beyond_two_to_the_thirty_first(device: str) -> None:
    """A program far along the grid: its row and its block in 64 bits. Its own stretch is all that is written."""
    from genmatch.kernels.programs import normal_program

    if device == "cuda":
        pytest.skip("would need nine gigabytes: index arithmetic is the interpreter's test")
    size = (1 << 31) + 1024
    blocks = size // 1024
    out = torch.empty(size, dtype=torch.float32)  # its pages are not touched
    normal_program[(1,)](out, 11, 0, 0, 1, size, blocks, blocks - 1, BLOCK=256)
    counters = torch.arange(size // 4 - 256, size // 4)
    zero = torch.zeros_like(counters)
    w = gm.random.philox((counters, zero, zero, zero + 1), (11, 0))
    radius = (-2 * torch.log((w[0] + 1).float() * 2.0**-32)).sqrt()
    expected = radius * torch.cos((w[1] >> 8).float() * 2.0**-24 * 2 * torch.pi)
    torch.testing.assert_close(out[-1024::4], expected, **ROUNDING)
    many = 3_000_000  # rows, of 1024 elements: row 2_999_999 begins at 3.07e9
    wide = torch.empty(many * 1024, dtype=torch.float32)
    normal_program[(1,)](wide, 11, 0, 0, 1, 1024, 1, many - 1, BLOCK=256)
    row = reference.normal(torch.empty(1, 1024), Address(11, many - 1, 0, 1))
    torch.testing.assert_close(wide[-1024:], row[0], **ROUNDING)


# The step


@each_device
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_step(guided: bool, dtype: torch.dtype, device: str) -> None:
    x = normals((3, 5, 77), device)
    y, other = normals((3, 5, 77), device, 4).to(dtype), normals((3, 5, 77), device, 5).to(dtype) if guided else None
    numbers = (0.3, -0.7, 2.5, 0.4, Address(1, 2, 3, 4))
    got, want = launch.step(x, y, other, *numbers), reference.step(x, y, other, *numbers)
    torch.testing.assert_close(got, want, atol=5e-6, rtol=2e-5)
    native = y.float() if other is None else other.float() + 2.5 * (y.float() - other.float())
    by_hand = (
        0.3 * x - 0.7 * native + 0.4 * gm.Draws(1, 3, first_index=2, step=3, stream=4, device=device).normal(x.shape)
    )
    torch.testing.assert_close(want, by_hand, atol=5e-6, rtol=2e-5)


@each_device
def test_states_in_half_precision_are_rounded_once(device: str) -> None:
    x, y = (normals((2, 64), device, seed).bfloat16() for seed in (1, 2))
    numbers = (0.3, -0.7, 1.0, 0.4, Address(1, 2, 3, 4))
    got, want = launch.step(x, y, None, *numbers), reference.step(x, y, None, *numbers)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), want.float(), atol=1e-6, rtol=2**-7)  # the interpreter truncates


def test_gradients_of_the_step() -> None:
    x, y, other = (normals((2, 6), "cpu", seed).double().requires_grad_() for seed in (1, 2, 3))
    draws = gm.Draws(0, 2)
    out = kernels.step(x, y, 0.3, -0.7, 0.4, draws, other=other, guidance=2.5)
    weight = torch.arange(12.0, dtype=torch.float64).reshape(2, 6)
    found = torch.autograd.grad((out * weight).sum(), (x, y, other))
    for gradient, factor in zip(found, (0.3, -0.7 * 2.5, 0.7 * 1.5), strict=True):
        torch.testing.assert_close(gradient, factor * weight)


# Jumps


@each_device
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("values", [1, 2, 63, 64, 65, 1000, 5000, 16384, 40000])
def test_jumps_are_those_of_the_reference(values: int, dtype: torch.dtype, device: str) -> None:
    logits = (normals((2, 3, values), device) * 3).to(dtype)
    x = torch.arange(6, device=device).reshape(2, 3) % values
    chance = torch.tensor([[0.0, 0.5, 1.0], [0.9, 0.1, 1.0]], device=device)
    address = Address(17, 5, 2, 2)
    assert torch.equal(launch.jump(x, logits, chance, address, 3), reference.jump(x, logits, chance, address, 3))


@each_device
def test_values_of_probability_zero_and_logits_that_are_no_numbers(device: str) -> None:
    logits = torch.full((1, 4, 5000), float("-inf"), device=device)
    logits[0, 0, 4999] = 0.0
    logits[0, 1, 0] = 0.0
    logits[0, 2] = float("nan")
    x, chance = torch.zeros(1, 4, dtype=torch.int64, device=device), torch.ones(1, 4, device=device)
    for seed in range(5):
        address = Address(seed, 0, 0, 2)
        got = launch.jump(x, logits, chance, address, 3)
        assert got.tolist() == [[4999, 0, -1, -1]]
        assert torch.equal(got, reference.jump(x, logits, chance, address, 3))
    chance = torch.tensor([[float("nan"), 0.0, 1.0, float("nan")]], device=device)  # what is wrong is told, jump or not
    got = launch.jump(x, logits, chance, address, 3)
    assert got.tolist() == [[-1, 0, -1, -1]]
    assert torch.equal(got, reference.jump(x, logits, chance, address, 3))


@each_device
def test_a_position_that_does_not_jump_reads_no_logits(device: str) -> None:
    logits = torch.full((2, 2, 100), float("nan"), device=device)
    x = torch.arange(4, device=device).reshape(2, 2)
    assert torch.equal(launch.jump(x, logits, torch.zeros(2, 2, device=device), Address(0, 0, 0, 2), 3), x)


def test_the_reference_is_the_leap_of_rates() -> None:
    logits, total = normals((3, 4, 50), "cpu"), torch.full((3, 4), 0.8)
    x, draws = torch.zeros(3, 4, dtype=torch.int64), gm.Draws(8, 3, step=2)
    chance = -torch.expm1(-0.7 * total)
    got = kernels.jump(x, logits, chance, draws.fork(2), draws.fork(3))
    assert torch.equal(got, gm.Rates((total, logits)).leap(x, 0.7, draws))


# Operators


def test_operators_are_registered_whole() -> None:
    x = normals((2, 9), "cpu")
    y = x.sin().requires_grad_()
    tokens, logits, chance = torch.zeros(2, 3, dtype=torch.int64), normals((2, 3, 7), "cpu"), torch.full((2, 3), 0.5)
    torch.library.opcheck(torch.ops.genmatch.normal.default, (x, 1, 0, 0, 1))
    torch.library.opcheck(torch.ops.genmatch.step.default, (x, y, None, 0.1, 0.2, 1.0, 0.3, 1, 0, 0, 1))
    torch.library.opcheck(torch.ops.genmatch.step.default, (x, y, x.cos(), 0.1, 0.2, 1.5, 0.3, 1, 0, 0, 1))
    torch.library.opcheck(torch.ops.genmatch.jump.default, (tokens, logits, chance, 1, 0, 0, 2, 3))


def test_operators_compile_as_one_graph() -> None:
    draws = gm.Draws(0, 2)

    def step(x: Tensor, y: Tensor) -> Tensor:
        return kernels.step(x, y.tanh(), 0.3, 0.7, 0.1, draws).cos() + kernels.normal(x, draws.fork(5))

    x, y = normals((2, 9), "cpu"), normals((2, 9), "cpu", 4)
    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, y), step(x, y))


def test_bad_input_raises_at_the_call() -> None:
    x, draws = torch.zeros(2, 3), gm.Draws(0, 2)
    tokens = torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"draws for 2 samples need a tensor \(B, \*S\) with as many, got \(3, 3\)"):
        kernels.normal(torch.zeros(3, 3), draws)
    with pytest.raises(ValueError, match=r"y must have the shape \(2, 3\) of x, got \(2, 4\)"):
        kernels.step(x, torch.zeros(2, 4), 1.0, 1.0, 1.0, draws)
    with pytest.raises(ValueError, match=r"other must have the shape \(2, 3\) of x, got \(3,\)"):
        kernels.step(x, x, 1.0, 1.0, 1.0, draws, other=torch.zeros(3))
    with pytest.raises(TypeError, match="must be floating point"):
        kernels.step(x, tokens, 1.0, 1.0, 1.0, draws)
    with pytest.raises(TypeError, match=r"tokens are integers of 8 to 64 bits, signed or uint8, got torch.float32"):
        kernels.jump(x, torch.zeros(2, 3, 4), x, draws.fork(1), draws.fork(2))
    with pytest.raises(ValueError, match=r"logits must be floating point of shape \(2, 3, 'V'\)"):
        kernels.jump(tokens, torch.zeros(2, 4, 4), x, draws.fork(1), draws.fork(2))
    with pytest.raises(ValueError, match=r"chance must be floating point of the shape \(2, 3\)"):
        kernels.jump(tokens, torch.zeros(2, 3, 4), torch.zeros(2), draws.fork(1), draws.fork(2))
    with pytest.raises(ValueError, match="draws of one seed, step and first index"):
        kernels.jump(tokens, torch.zeros(2, 3, 4), x, draws.fork(1), draws.at(3).fork(2))


def test_what_the_programs_do_not_take_is_left_to_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Doubles, strides, other devices: the launcher is not asked."""
    monkeypatch.setattr(launch, "usable", lambda device=None: True)
    plain = torch.zeros(2, 4)
    assert launch.supported(plain, None, plain.half())
    assert not launch.supported(plain.double())
    assert not launch.supported(torch.zeros(4, 2).T)
    assert not launch.supported(plain, torch.zeros(2, 4, device="meta"))
    monkeypatch.undo()
    assert not launch.usable("cpu")
    assert not kernels.usable("meta")


# Other targets


@pytest.mark.slow
def test_they_compile_for_gpus_without_spilling() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("cross_compile.py")
    said = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment, check=False)
    assert said.returncode == 0, said.stderr
    found = json.loads(said.stdout.splitlines()[-1])
    assert {(kernel["name"], kernel["capability"]) for kernel in found} == {
        (name, capability) for name in ("normal_program", "step_program", "jump_program") for capability in (80, 90)
    }
    for kernel in found:
        assert kernel["spilled"] == 0, kernel
        assert kernel["registers"] < 200, kernel
        assert kernel["cubin"] > 0


# What a review found


@each_device
@pytest.mark.parametrize(
    "address", [Address(1, 0, (1 << 32) - 1, 5), Address(1, 0, 0, (200 << 24) + 7)], ids=["step", "stream"]
)
def test_words_of_32_bits(address: Address, device: str) -> None:
    like = torch.empty(2, 40, device=device)
    torch.testing.assert_close(launch.normal(like, address), reference.normal(like, address), **ROUNDING)


@each_device
def test_rounding_never_leads_to_a_value_of_probability_zero(device: str) -> None:
    """The first value of every chunk has none; a level at the edge between two chunks must not land there."""
    logits = torch.zeros(1, 400, 16384, device=device)
    logits[..., ::4096] = float("-inf")
    x, chance = torch.ones(1, 400, dtype=torch.int64, device=device), torch.ones(1, 400, device=device)
    got = launch.jump(x, logits, chance, Address(5, 0, 0, 2), 3)
    assert bool((got % 4096 != 0).all())


def test_forward_derivatives_of_the_step() -> None:
    x, y = normals((2, 6), "cpu"), normals((2, 6), "cpu", 4)
    draws = gm.Draws(0, 2)
    tangent = torch.func.jvp(lambda x: kernels.step(x, y, 0.3, -0.7, 0.4, draws), (x,), (x,))[1]
    torch.testing.assert_close(tangent, 0.3 * x)
    gradient = torch.func.grad(lambda y: kernels.step(x, y, 0.3, -0.7, 0.4, draws).sum())(y)
    torch.testing.assert_close(gradient, torch.full_like(y, -0.7))


def test_other_layouts_are_copied_and_not_left_to_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(launch, "usable", lambda device=None: True)
    monkeypatch.setattr(launch, "step", lambda x, y, *rest: asked.append(y.is_contiguous()) or x.clone())
    x = normals((2, 3, 4, 4), "cpu")
    kernels.step(x, x.to(memory_format=torch.channels_last), 0.3, 0.7, 0.1, gm.Draws(0, 2))
    assert asked == [True]


def test_without_a_gpu_nothing_asks_for_kernels() -> None:
    from genmatch.random import fusible

    assert not fusible(torch.zeros(2, 3), gm.Draws(0, 2))
