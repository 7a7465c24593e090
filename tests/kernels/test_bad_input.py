"""What the kernels are not made for: it is left to the reference or refused, and never gives wrong numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import genmatch as gm
from genmatch import kernels
from genmatch.kernels import launch, operators, reference
from genmatch.kernels.reference import Address

pytest.importorskip("triton", reason="the kernels need the package triton: pip install genmatch[kernels]")

DRAWS = gm.Draws(7, 3, first_index=2, step=5, stream=1)
ROUNDING = {"atol": 2e-6, "rtol": 2e-5}


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the machine had a GPU: what the programs take goes through Triton's interpreter."""
    monkeypatch.setattr(
        launch, "usable", lambda device=None: torch.device("cpu" if device is None else device).type == "cpu"
    )


def numbers(*shape: int, seed: int = 3) -> Tensor:
    return gm.Draws(seed, shape[0]).normal(shape).contiguous()


def by_hand(x: Tensor, y: Tensor) -> Tensor:
    return 0.3 * x.double() - 0.7 * y.double() + 0.4 * DRAWS.normal(x.shape).double()


# Layouts

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(1, 3).contiguous().transpose(1, 3),
    "strided": lambda x: torch.stack([x, x + 1], -1)[..., 0],
    "flipped": lambda x: x.flip(3).flip(3),
    "offset": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
    "expanded": lambda x: x[:, :1].expand_as(x),
}


@pytest.mark.usefixtures("programs")
@pytest.mark.parametrize(
    ("of_x", "of_y"),
    [
        *((name, "channels_last") for name in LAYOUTS),
        *(("contiguous", name) for name in LAYOUTS if name != "channels_last"),
    ],
)
def test_every_layout_gives_the_same_step(of_x: str, of_y: str) -> None:
    x, y = LAYOUTS[of_x](numbers(3, 4, 5, 6)), LAYOUTS[of_y](numbers(3, 4, 5, 6, seed=4))
    got = kernels.step(x, y, 0.3, -0.7, 0.4, DRAWS)
    torch.testing.assert_close(got.double(), by_hand(x, y), **ROUNDING)
    assert got.is_contiguous()
    torch.testing.assert_close(kernels.normal(x, DRAWS), DRAWS.normal(x.shape), **ROUNDING)


@pytest.mark.usefixtures("programs")
@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded"])
def test_every_layout_gives_the_same_jumps(layout: str) -> None:
    logits = LAYOUTS[layout](numbers(3, 4, 5, 6))
    x = torch.arange(20).reshape(4, 5).T.contiguous().T.expand(3, 4, 5) % 6
    chance = torch.linspace(0, 1, 15).reshape(3, 5)[:, None].expand(3, 4, 5)
    got = kernels.jump(x, logits, chance, DRAWS, DRAWS.at(5).fork(3).at(5))
    own, where = Address.of(DRAWS), DRAWS.fork(3).stream
    expected = reference.jump(x.contiguous(), logits.contiguous(), chance.contiguous(), own, where)
    assert torch.equal(got, expected)
    assert not torch.equal(got, x)


# Dtypes


@pytest.mark.usefixtures("programs")
@pytest.mark.parametrize("of_y", [torch.float64, torch.float16, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("of_x", [torch.float64, torch.float32, torch.bfloat16, torch.float8_e5m2], ids=str)
def test_every_floating_dtype_gives_the_same_step(of_x: torch.dtype, of_y: torch.dtype) -> None:
    x, y = numbers(3, 7).to(of_x), numbers(3, 7, seed=4).to(of_y)
    got = kernels.step(x, y, 0.3, -0.7, 0.4, DRAWS)
    assert got.dtype == of_x
    # One rounding to the dtype of x, of a result in float32; the interpreter truncates to bfloat16.
    torch.testing.assert_close(got.double(), by_hand(x, y), atol=5e-6, rtol=max(2e-5, torch.finfo(of_x).eps))


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64], ids=str)
def test_a_step_of_other_dtypes_is_refused(dtype: torch.dtype) -> None:
    x, odd = torch.zeros(3, 2), torch.zeros(3, 2, dtype=dtype)
    for name, given in (("x", (odd, x)), ("y", (x, odd)), ("other", (x, x))):
        with pytest.raises(TypeError, match=f"{name} must be floating point, got {dtype}"):
            kernels.step(*given, 0.3, 0.7, 0.4, DRAWS, other=odd if name == "other" else None)


@pytest.mark.usefixtures("programs")
@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.float8_e4m3fn, torch.bool], ids=str)
def test_normals_do_not_ask_for_the_dtype(dtype: torch.dtype) -> None:
    got = kernels.normal(torch.zeros(3, 5).to(dtype), DRAWS)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, DRAWS.normal((3, 5)), **ROUNDING)


@pytest.mark.usefixtures("programs")
@pytest.mark.parametrize("of_x", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8], ids=str)
@pytest.mark.parametrize("of_logits", [torch.float64, torch.bfloat16], ids=str)
def test_every_dtype_of_tokens_gives_the_same_jumps(of_x: torch.dtype, of_logits: torch.dtype) -> None:
    logits, chance = numbers(3, 3, 40).to(of_logits), torch.linspace(0, 1, 9).reshape(3, 3)
    x = torch.arange(9).reshape(3, 3)
    own, where = Address.of(DRAWS), DRAWS.fork(3).stream
    expected = reference.jump(x, logits.float(), chance, own, where)
    for given in (chance, chance.double()):
        got = torch.ops.genmatch.jump(x.to(of_x), logits, given, 7, 2, 5, own.stream, where)
        assert got.dtype == of_x
        assert torch.equal(got.long(), expected)


def test_tokens_of_other_dtypes_are_refused() -> None:
    logits, chance = numbers(3, 2, 300), torch.ones(3, 2)

    def jump(x: Tensor, logits: Tensor = logits, chance: Tensor = chance) -> Tensor:
        return kernels.jump(x, logits, chance, DRAWS, DRAWS.fork(3))

    tokens = torch.zeros(3, 2, dtype=torch.int64)
    for dtype in (torch.bool, torch.float32, torch.complex64, torch.uint16, torch.uint32):
        with pytest.raises(TypeError, match=f"tokens are integers of 8 to 64 bits, signed or uint8, got {dtype}"):
            jump(tokens.to(dtype))
    for dtype in (torch.int8, torch.uint8):
        with pytest.raises(ValueError, match=f"{dtype} cannot hold the token 299: call .long\\(\\) on the tokens"):
            jump(tokens.to(dtype))
    for dtype in (torch.int64, torch.complex64):
        with pytest.raises(ValueError, match=f"logits must be floating point of shape .*, got {dtype}"):
            jump(tokens, logits.to(dtype))
        with pytest.raises(ValueError, match=r"chance must be floating point of the shape \(3, 2\) of the tokens, got"):
            jump(tokens, chance=chance.to(dtype))


# Devices and kinds of tensors


def test_mixed_devices_are_refused() -> None:
    x, far = torch.zeros(3, 2), torch.zeros(3, 2, device="meta")
    tokens, logits = torch.zeros(3, 2, dtype=torch.int64), torch.zeros(3, 2, 4)
    with pytest.raises(ValueError, match="y must be on the device of x, cpu, got meta"):
        kernels.step(x, far, 0.3, 0.7, 0.4, DRAWS)
    with pytest.raises(ValueError, match="other must be on the device of x, cpu, got meta"):
        kernels.step(x, x, 0.3, 0.7, 0.4, DRAWS, other=far)
    with pytest.raises(ValueError, match="logits must be on the device of x, cpu, got meta"):
        kernels.jump(tokens, logits.to("meta"), x, DRAWS, DRAWS.fork(3))
    with pytest.raises(ValueError, match="whether and where must be of two streams"):
        kernels.jump(tokens, logits, x, DRAWS, DRAWS)
    with pytest.raises(ValueError, match="chance must be on the device of x, cpu, got meta"):
        kernels.jump(tokens, logits, far, DRAWS, DRAWS.fork(3))


def test_on_the_meta_device_shapes_come_out() -> None:
    x, tokens = torch.zeros(3, 2, device="meta"), torch.zeros(3, 2, dtype=torch.int32, device="meta")
    assert kernels.normal(x, DRAWS).shape == (3, 2)
    assert kernels.step(x.bfloat16(), x, 0.3, 0.7, 0.4, DRAWS).dtype == torch.bfloat16
    got = kernels.jump(tokens, torch.zeros(3, 2, 4, device="meta"), x, DRAWS, DRAWS.fork(3))
    assert (got.dtype, got.device.type) == (torch.int32, "meta")


def test_sparse_tensors_are_refused() -> None:
    x, sparse = torch.zeros(3, 2), torch.eye(3, 2).to_sparse()
    tokens = torch.zeros(3, 2, dtype=torch.int64)
    for given in ((sparse, x), (x, sparse)):
        with pytest.raises(TypeError, match=r"[xy] must be a dense tensor, got torch.sparse_\w+: call .to_dense\(\)"):
            kernels.step(*given, 0.3, 0.7, 0.4, DRAWS)
    with pytest.raises(TypeError, match=r"chance must be a dense tensor, got torch.sparse_coo"):
        kernels.jump(tokens, torch.zeros(3, 2, 4), sparse, DRAWS, DRAWS.fork(3))
    with pytest.raises(TypeError, match=r"like must be a dense tensor, got torch.sparse_coo"):
        kernels.normal(sparse, DRAWS)


def test_draws_of_a_tree_are_refused() -> None:
    """Their seed is that of plain draws, and their noise another."""
    (own,) = gm.BrownianTree().along(gm.Draws(0, 3), [0.0, 1.0])
    x = torch.zeros(3, 2)
    for call in (lambda: kernels.normal(x, own), lambda: kernels.step(x, x, 0.3, 0.7, 0.4, own)):
        with pytest.raises(
            TypeError, match=r"the numbers of plain gm.Draws, got TreeDraws, whose noise they would pass"
        ):
            call()


# The operators themselves, past the functions around them


@pytest.mark.usefixtures("programs")
def test_operators_check_what_they_are_called_with() -> None:
    """A program that was handed a smaller tensor would read past its end."""
    x, own = torch.zeros(3, 4), (7, 0, 0, 1)
    step, jump, normal = (getattr(torch.ops.genmatch, name) for name in ("step", "jump", "normal"))
    with pytest.raises(ValueError, match=r"y must have the shape \(3, 4\) of x, got \(3, 1\)"):
        step(x, x[:, :1], None, 0.3, 0.7, 1.0, 0.4, *own)
    with pytest.raises(ValueError, match=r"other must have the shape \(3, 4\) of x, got \(4,\)"):
        step(x, x, x[0], 0.3, 0.7, 1.0, 0.4, *own)
    with pytest.raises(TypeError, match=r"y must be floating point, got torch.int64"):
        step(x, x.long(), None, 0.3, 0.7, 1.0, 0.4, *own)
    with pytest.raises(ValueError, match=r"logits must be floating point of shape \(3, 4, 'V'\)"):
        jump(x.long(), torch.zeros(3, 3, 5), x, *own, 3)
    with pytest.raises(ValueError, match=r"chance must be floating point of the shape \(3, 4\)"):
        jump(x.long(), torch.zeros(3, 4, 5), x[:, :1], *own, 3)
    with pytest.raises(TypeError, match="like must be a dense tensor"):
        normal(x.to_sparse(), *own)


# Sizes


@pytest.mark.usefixtures("programs")
@pytest.mark.parametrize(
    "shape", [(0,), (0, 3), (2, 0), (2, 0, 3), (1,), (1, 1), (3, 1023), (3, 1025), (2, 3, 5, 7)], ids=str
)
def test_sizes_of_zero_and_odd_tails(shape: tuple[int, ...]) -> None:
    draws = gm.Draws(7, shape[0])
    x, y = torch.ones(shape), torch.full(shape, 2.0)
    got = kernels.step(x, y, 0.3, -0.7, 0.4, draws)
    assert got.shape == shape
    torch.testing.assert_close(got, 0.3 * x - 0.7 * y + 0.4 * draws.normal(shape), **ROUNDING)
    if x.numel() < 20:  # the interpreter runs one program for each position
        tokens, logits = torch.zeros(shape, dtype=torch.int64), torch.zeros(*shape, 3)
        assert kernels.jump(tokens, logits, x, draws, draws.fork(3)).shape == shape


def test_no_values_and_too_many_elements_are_refused() -> None:
    x = torch.zeros(3, 2)
    with pytest.raises(ValueError, match="logits must be floating point of shape"):
        kernels.jump(x.long(), torch.zeros(3, 2, 0), x, DRAWS, DRAWS.fork(3))
    large = torch.zeros(1).expand(3, (1 << 34) + 1)
    with pytest.raises(ValueError, match=r"one sample has at most 2\*\*34 elements, got 17179869185"):
        kernels.normal(large, DRAWS)
    with pytest.raises(ValueError, match=r"one sample has at most 2\*\*34 elements"):
        kernels.step(large, large, 0.3, 0.7, 0.4, DRAWS)


@pytest.mark.usefixtures("programs")
@pytest.mark.parametrize("values", [1, launch.LARGEST_VOCABULARY + 1])
def test_a_vocabulary_too_large_is_left_to_the_reference(values: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(launch, "jump", lambda x, logits, *rest: asked.append(logits.shape[-1]) or x.clone())
    tokens = torch.zeros(1, 1, dtype=torch.int64)
    draws = gm.Draws(7, 1)
    kernels.jump(tokens, torch.zeros(1, 1, values), torch.ones(1, 1), draws, draws.fork(3))
    assert asked == ([1] if values == 1 else [])


def test_more_positions_than_a_launch_has_programs_are_left_to_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(launch, "supported", lambda *tensors: True)
    monkeypatch.setattr(launch, "jump", lambda x, *rest: asked.append(x.numel()) or x.clone())
    for most, expected in ((6, [6]), (5, [])):
        asked.clear()
        monkeypatch.setattr(launch, "MOST_PROGRAMS", most)
        kernels.jump(torch.zeros(3, 2, dtype=torch.int64), torch.zeros(3, 2, 4), torch.ones(3, 2), DRAWS, DRAWS.fork(3))
        assert asked == expected


def test_step_and_jump_beyond_two_to_the_thirty_first() -> None:
    """The last row of very many: only its own pages, and those that it reads, are touched."""
    from genmatch.kernels.programs import jump_program, step_program

    rows = (1 << 21) + 3
    x, y, out = (torch.empty(rows, 1024) for _ in range(3))
    x[-1], y[-1] = numbers(1, 1024)[0], numbers(1, 1024, seed=4)[0]
    own = (11, 0, 0, 1)
    step_program[(1,)](out, x, y, y, 0.3, -0.7, 1.0, 0.4, *own, 1024, 1, rows - 1, GUIDED=False, BLOCK=256)
    expected = reference.step(x[-1:], y[-1:], None, 0.3, -0.7, 1.0, 0.4, Address(11, rows - 1, 0, 1))
    torch.testing.assert_close(out[-1:], expected, **ROUNDING)
    logits = torch.empty(rows, 1, 1024)
    logits[-1] = 3 * numbers(1, 1024)
    tokens, chance, landed = (
        torch.zeros(rows, 1, dtype=torch.int64),
        torch.ones(rows, 1),
        torch.zeros(rows, 1, dtype=torch.int64),
    )
    jump_program[(1,)](landed, tokens, logits, chance, *own, 3, 1, 1024, rows - 1, CHUNKS=1, CHUNK=1024)
    assert rows * 1024 > 1 << 31
    assert torch.equal(
        landed[-1:], reference.jump(tokens[-1:], logits[-1:], chance[-1:], Address(11, rows - 1, 0, 1), 3)
    )


# GPUs that cannot


def card(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] = (9, 0), **changes: Any) -> None:
    """A machine whose torch says that there is a GPU."""
    launch._agrees.cache_clear()
    monkeypatch.setattr(launch, "_TRIED", set())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: changes.get("capturing", False))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr(launch, "_same", changes.get("same", lambda device: True))


@pytest.fixture(autouse=True)
def _forget() -> Any:
    yield
    launch._agrees.cache_clear()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_too_old_a_missing_package_and_a_failed_run(monkeypatch: pytest.MonkeyPatch) -> None:
    card(monkeypatch)
    assert launch.usable("cuda")
    card(monkeypatch, capability=(7, 5))
    assert not launch.usable("cuda")
    card(monkeypatch, same=lambda device: False)
    assert not launch.usable("cuda")
    card(monkeypatch, capturing=True)
    assert not launch.usable("cuda")  # the run that finds out cannot be part of a graph
    card(monkeypatch)
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: None)
    assert not launch.usable("cuda")
    monkeypatch.undo()
    card(monkeypatch)
    monkeypatch.setattr(torch.version, "hip", "6.0")
    assert not launch.usable("cuda")


def test_the_small_run_agrees_and_finds_programs_that_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    home = torch.device("cpu")
    assert launch._same(home)
    for name in ("normal", "step", "jump"):
        right = getattr(launch, name)
        monkeypatch.setattr(launch, name, lambda *given, right=right: right(*given) * 1.0001 + 0.001)
        with pytest.warns(UserWarning, match="Triton kernels give wrong numbers on cpu"):
            agrees = launch._same(home)
        assert not agrees

        def fail(*given: Any) -> Tensor:
            raise RuntimeError("no such instruction")

        monkeypatch.setattr(launch, name, fail)
        with pytest.warns(UserWarning, match=r"do not run on cpu.*no such instruction"):
            agrees = launch._same(home)
        assert not agrees
        monkeypatch.setattr(launch, name, right)


def test_where_they_are_not_usable_the_reference_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any) -> Tensor:
        raise AssertionError("a program was launched")

    for name in ("normal", "step", "jump"):
        monkeypatch.setattr(operators.launch, name, refuse)
    x = numbers(3, 5)
    assert torch.equal(kernels.normal(x, DRAWS), DRAWS.normal((3, 5)))
    torch.testing.assert_close(
        kernels.step(x, x.sin(), 0.3, -0.7, 0.4, DRAWS).double(), by_hand(x, x.sin()), **ROUNDING
    )
    kernels.jump(torch.zeros(3, 5, dtype=torch.int64), torch.zeros(3, 5, 4), torch.ones(3, 5), DRAWS, DRAWS.fork(3))
