"""Power-function averages: the profile they have, and other profiles made of stored ones."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load, save, save_file
from scipy.integrate import quad
from torch import nn

import genmatch as gm
from genmatch.nn import PowerEMA, Snapshot, power_profile, reconstruct
from genmatch.nn.power_profile import WIDEST, admission, gamma_of, inner_product, mix_profiles, sigma_rel_of
from genmatch.nn.snapshots import list_snapshots


class Point(nn.Module):
    """A module that is one vector."""

    def __init__(self, size: int, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(size, dtype=dtype))


def follow(path: torch.Tensor, **options) -> PowerEMA:
    """The averages of a module that was at the rows of ``path``."""
    module = Point(path.shape[1], path.dtype)
    ema = PowerEMA(module, **options)
    for row in path:
        with torch.no_grad():
            module.w.copy_(row)
        ema.update()
    return ema


def shares(gamma: float, steps: int) -> torch.Tensor:
    """The integral of the normalised profile over each step, by quadrature."""
    norm = quad(lambda s: s**gamma, 0, steps, epsabs=0, epsrel=1e-12)[0]
    return torch.tensor(
        [quad(lambda s: s**gamma / norm, i - 1, i, epsabs=0)[0] for i in range(1, steps + 1)], dtype=torch.float64
    )


def walk(steps: int, size: int = 64) -> torch.Tensor:
    draws = torch.randn(steps, size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return 5 + draws.cumsum(0) / steps**0.5


def error(state: dict[str, torch.Tensor], path: torch.Tensor, sigma_rel: float) -> float:
    """Distance to the average that was tracked directly, over that average's own distance to the last weights."""
    direct = follow(path, sigma_rel=sigma_rel).copy().w.detach()
    return float((state["w"] - direct).norm() / (path[-1] - direct).norm())


# The profile


@pytest.mark.parametrize("gamma", [0.0, 0.4, 1.0, 6.94, 16.97, 500.0])
def test_width_is_the_standard_deviation_of_the_profile(gamma):
    def moment(k):
        return quad(
            lambda s: (gamma + 1) * s ** (gamma + k), 0, 1, epsabs=0, epsrel=1e-11, points=[1 - 1 / (1 + gamma)]
        )[0]

    assert moment(0) == pytest.approx(1)
    assert sigma_rel_of(gamma) == pytest.approx(math.sqrt(moment(2) - moment(1) ** 2), rel=1e-6)


@pytest.mark.parametrize("sigma_rel", [1e-4, 0.01, 0.05, 0.1, 0.2, 0.28, WIDEST])
def test_gamma_inverts_the_width(sigma_rel):
    assert sigma_rel_of(gamma_of(sigma_rel)) == pytest.approx(sigma_rel, rel=1e-12, abs=0)


def test_uniform_average_is_the_widest():
    assert gamma_of(WIDEST) == pytest.approx(0, abs=1e-12)
    path = walk(7)
    torch.testing.assert_close(follow(path, sigma_rel=WIDEST).copy().w.detach(), path.mean(0))


@pytest.mark.parametrize("sigma_rel", [0.03, 0.1, 0.25])
def test_shares_of_all_past_weights_are_the_integrals_of_the_profile(sigma_rel):
    steps, gamma = 60, gamma_of(sigma_rel)
    path = torch.eye(steps, dtype=torch.float64)  # so the average is the list of shares
    got = follow(path, sigma_rel=sigma_rel).copy().w.detach()
    torch.testing.assert_close(got, shares(gamma, steps), rtol=1e-8, atol=1e-14)
    # Neither the exponent without its 1 nor another width has these shares.
    assert (got - shares(gamma - 0.9, steps)).abs().max() > 1e-3
    assert (got - shares(gamma_of(sigma_rel * 1.05), steps)).abs().max() > 1e-4


def test_weights_of_before_the_first_update_have_no_share():
    module = Point(3)
    nn.init.constant_(module.w, 1e6)
    ema = PowerEMA(module)
    nn.init.constant_(module.w, 2.0)
    ema.update()
    assert ema.copy().w.tolist() == [2.0] * 3


def test_admission_is_exact_late_in_a_training():
    n, gamma = 10**9, gamma_of(0.05)
    # The binomial series of 1 - (1 - 1/n)^(gamma + 1); a difference of floats keeps 8 digits of it.
    series = (gamma + 1) / n - (gamma + 1) * gamma / 2 / n**2
    assert admission(gamma, n) == pytest.approx(series, rel=1e-13, abs=0)


# Other profiles, from snapshots


@pytest.mark.parametrize(
    ("a", "b"), [((6.94, 5.0), (16.97, 8.0)), ((6.94, 8.0), (16.97, 5.0)), ((0.0, 2.0), (0.5, 2.0))]
)
def test_inner_product_is_the_integral(a, b):
    def profile(gamma, t, s):
        return (gamma + 1) * s**gamma / t ** (gamma + 1)

    end = min(a[1], b[1])
    expected = quad(lambda s: profile(*a, s) * profile(*b, s), 0, end, epsabs=0, epsrel=1e-11)[0]
    assert inner_product(*a, *b) == pytest.approx(expected, rel=1e-9, abs=0)
    assert inner_product(*b, *a) == pytest.approx(expected, rel=1e-9, abs=0)


def test_mixture_is_the_constrained_minimum():
    profiles = [(gamma_of(s), t) for t in (2.0, 3.0, 4.0) for s in (0.05, 0.1)]
    target = (gamma_of(0.07), 4.0)
    coefficients, distance = mix_profiles(profiles, target)
    assert float(coefficients.sum()) == pytest.approx(1, abs=1e-12)

    def square(c):
        """The relative squared distance on a grid, not by inner products."""
        s = (torch.arange(40000, dtype=torch.float64) + 0.5) * (4.0 / 40000)
        rows = [(g + 1) * s**g / t ** (g + 1) * (s < t) for g, t in [*profiles, target]]
        difference = sum(x * row for x, row in zip(c, rows, strict=False)) - rows[-1]
        return float(difference.square().sum() / rows[-1].square().sum())

    least = square(coefficients)
    assert distance == pytest.approx(math.sqrt(least), rel=1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        aside = torch.randn(6, generator=generator, dtype=torch.float64)
        aside = 0.05 * (aside - aside.mean())  # other coefficients that sum to 1
        assert square(coefficients + aside) > least


def test_a_stored_profile_is_found_as_it_is():
    path = walk(40)
    ema = follow(path, sigma_rel=(0.05, 0.1), every=10)
    state = reconstruct(ema.snapshots, 0.1, step=30)
    stored = next(s for s in ema.snapshots if s.step == 30 and s.sigma_rel == 0.1)
    torch.testing.assert_close(state["w"], stored.averaged["w"], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sigma_rel", [0.07, 0.15])
def test_another_width_is_reconstructed_better_with_more_snapshots(sigma_rel):
    path = walk(512)
    errors = []
    for count in (1, 4, 16, 64):
        ema = follow(path, sigma_rel=(0.05, 0.1), every=512 // count)
        errors.append(error(reconstruct(ema.snapshots, sigma_rel, tolerance=1.0), path, sigma_rel))
    assert errors[0] > 0.02  # snapshots of the last step alone do not do
    assert errors[1] < errors[0] / 1.5
    assert errors[2] < errors[1] / 10
    assert errors[3] < errors[2] / 10
    assert errors[3] < 1e-4


def test_an_earlier_step_is_reconstructed():
    path = walk(400)
    ema = follow(path, sigma_rel=(0.05, 0.1), every=10)
    state = reconstruct(ema.snapshots, 0.08, step=290)
    assert error(state, path[:290], 0.08) < 0.01
    assert error(state, path, 0.08) > 0.2
    # Between snapshots the end of the profile is not met.
    with pytest.raises(
        ValueError, match=r"at step 295 with a relative error of 0\.\d+, .*: choose the step of a snapshot"
    ):
        reconstruct(ema.snapshots, 0.08, step=295)


def test_one_snapshot_is_refused_or_far_off():
    path = walk(256)
    ema = follow(path, sigma_rel=0.05, every=256)
    with pytest.raises(ValueError, match=r"1 snapshots give .* relative error of 0\.\d+, above tolerance=0\.1: choose"):
        reconstruct(ema.snapshots, 0.1)
    assert error(reconstruct(ema.snapshots, 0.1, tolerance=1.0), path, 0.1) > 0.2


def test_a_wrong_inner_product_does_not_reconstruct(monkeypatch):
    path = walk(256)
    ema = follow(path, sigma_rel=(0.05, 0.1), every=16)
    right = error(reconstruct(ema.snapshots, 0.07, tolerance=math.inf), path, 0.07)

    def wrong(gamma_a, t_a, gamma_b, t_b):
        if t_a > t_b:
            gamma_a, t_a, gamma_b, t_b = gamma_b, t_b, gamma_a, t_a
        return (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) / t_b * (t_a / t_b) ** gamma_a

    monkeypatch.setattr(power_profile, "inner_product", wrong)
    assert error(reconstruct(ema.snapshots, 0.07, tolerance=math.inf), path, 0.07) > 20 * right


def test_weights_that_do_not_move_are_kept():
    path = torch.full((64, 3), 1.7, dtype=torch.float64)
    state = reconstruct(follow(path, every=32).snapshots, 0.2, tolerance=1.0)
    torch.testing.assert_close(state["w"], path[0], rtol=1e-12, atol=0)


def test_snapshots_of_two_almost_equal_profiles_do_no_harm():
    path = walk(256)
    ema = follow(path, sigma_rel=(0.1, 0.1 + 1e-9), every=16)
    state = reconstruct(ema.snapshots, 0.1, step=256)
    assert error(state, path, 0.1) < 1e-5


# What of a module is averaged, copied and stored


class Mixed(nn.Module):
    """Shared weights, buffers that stay and that do not, an integer and a frozen parameter, complex and bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.tied = self.inner
        self.low = nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
        self.phase = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.index = nn.Parameter(torch.arange(2), requires_grad=False)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)


def change(module: Mixed, amount: float) -> None:
    with torch.no_grad():
        module.inner.weight += amount
        module.low += amount
        module.phase += amount * 1j
        module.index += 1
        module.count += 7
        module.mean += amount
        module.scratch += amount


def trained(folder=None, every: int | None = 5) -> PowerEMA:
    module = Mixed()
    ema = PowerEMA(module, every=every, folder=folder)
    for _ in range(20):
        change(module, 1.0)
        ema.update()
    return ema


def test_buffers_and_integers_are_copied_the_rest_averaged():
    ema = trained()
    mean = float(torch.arange(1.0, 21.0, dtype=torch.float64) @ shares(gamma_of(0.1), 20))
    averaged = ema.copy(0.1)
    assert averaged.tied is averaged.inner
    assert averaged.low.tolist() == pytest.approx([mean] * 3, rel=2**-8)
    torch.testing.assert_close(averaged.phase.detach(), torch.full((2,), mean * 1j))
    assert averaged.frozen.tolist() == [1.0, 1.0]
    assert averaged.index.tolist() == [20, 21]
    assert averaged.count == 140
    assert averaged.mean.tolist() == [20.0, 20.0]
    assert not any(p.requires_grad for p in averaged.parameters())
    assert not any("scratch" in name or "tied" in name for name in ema.state_dict())
    assert not any(value.requires_grad for value in ema.state_dict().values())


@pytest.mark.parametrize("stored", [False, True])
def test_reconstruction_is_a_state_of_the_module(stored, tmp_path):
    ema = trained(tmp_path if stored else None)
    state = reconstruct(tmp_path if stored else ema.snapshots, 0.1, step=13, tolerance=1.0)
    # The snapshot of step 15 is the nearest one: the buffers are its own.
    assert int(state["count"]) == 105
    assert state["count"].dtype == torch.int64
    assert state["low"].dtype == torch.float32
    assert state["phase"].dtype == torch.complex64
    module = Mixed()
    module.load_state_dict(state)
    assert module.tied is module.inner
    assert torch.equal(module.inner.weight, state["tied.weight"])
    assert module.index.tolist() == [15, 16]
    assert not any(value.requires_grad for value in state.values())


def test_folder_and_memory_give_the_same(tmp_path):
    torch.manual_seed(0)
    there = trained(tmp_path / "new" / "folder")
    torch.manual_seed(0)
    here = trained()
    assert len(there.snapshots) == len(here.snapshots) == 8
    assert there.snapshots[3].sigma_rel == here.snapshots[3].sigma_rel == 0.1
    assert there.snapshots[3].step == here.snapshots[3].step == 10
    from_files = reconstruct(tmp_path / "new" / "folder", 0.07)
    from_memory = reconstruct(here.snapshots, 0.07)
    assert from_files.keys() == from_memory.keys()
    assert all(torch.equal(from_files[name], value) for name, value in from_memory.items())


def test_a_compiled_module_has_the_names_of_the_plain_one():
    module = Mixed()
    ema = PowerEMA(torch.compile(module), every=1)
    ema.update()
    assert reconstruct(ema.snapshots, 0.05).keys() == module.state_dict().keys()


@pytest.mark.gpu
def test_an_update_does_not_wait_for_the_device():
    module = Mixed().cuda()
    ema = PowerEMA(module)
    ema.update()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            ema.update()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    assert all(value.device.type == "cpu" for each in ema.snapshot() for value in each.averaged.values())


def test_applied_restores_exactly_even_after_an_error():
    ema = trained()
    module = ema.module
    before = {name: value.clone() for name, value in module.state_dict().items()}
    places = {name: value.data_ptr() for name, value in module.state_dict().items()}
    average = ema.copy(0.1)

    def evaluate() -> None:
        with ema.applied(0.1) as applied:
            assert applied is module
            torch.testing.assert_close(dict(module.state_dict()), dict(average.state_dict()))
            nn.init.zeros_(module.inner.weight)
            raise KeyError("within")

    assert not torch.equal(average.low, ema.copy(0.05).low)
    with pytest.raises(KeyError, match="within"):
        evaluate()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert {name: value.data_ptr() for name, value in module.state_dict().items()} == places
    with ema.applied():  # the first width
        assert torch.equal(module.low, ema.state_dict()["averaged.low"].bfloat16())
    with ema.applied(), pytest.raises(RuntimeError, match=r"update\(\) within applied"):
        ema.update()
    with ema.applied(), pytest.raises(RuntimeError, match=r"applied\(\) within applied"), ema.applied():
        pass
    with ema.applied(), pytest.raises(RuntimeError, match=r"copy\(\) within applied"):
        ema.copy()


def test_state_goes_through_safetensors_and_on():
    first, second = trained(), PowerEMA(Mixed())
    second.load_state_dict(load(save(first.state_dict())))
    second.module.load_state_dict(first.module.state_dict())
    for ema in (first, second):
        change(ema.module, 0.3)
        ema.update()
    assert second.updates == 21
    for a, b in zip(first.state_dict().items(), second.state_dict().items(), strict=True):
        assert a[0] == b[0]
        assert torch.equal(a[1], b[1])


def test_a_state_of_something_else_is_refused():
    ema = PowerEMA(nn.Linear(2, 1), sigma_rel=(0.05, 0.1))
    before = {name: value.clone() for name, value in ema.state_dict().items()}
    with pytest.raises(ValueError, match=r"sigma_rel=\(0\.05, 0\.2\), this object of \(0\.05, 0\.1\)"):
        ema.load_state_dict(PowerEMA(nn.Linear(2, 1), sigma_rel=(0.05, 0.2)).state_dict())
    with pytest.raises(ValueError, match=r"not one of a PowerEMA of 2 widths of this Linear: missing \['averaged_1"):
        ema.load_state_dict(PowerEMA(nn.Linear(2, 1), sigma_rel=0.05).state_dict())
    with pytest.raises(ValueError, match=r"averaged\.weight has shape \(1, 3\), the module's is \(1, 2\)"):
        ema.load_state_dict(PowerEMA(nn.Linear(3, 1)).state_dict())
    assert all(torch.equal(value, before[name]) for name, value in ema.state_dict().items())


# In training


def train(model: nn.Module, steps: int, ema: PowerEMA, checkpoint=None) -> None:
    def loss(model, x1, condition, draws):
        return (model(x1 + draws.normal(x1.shape)) - x1).square().mean()

    x = torch.linspace(-1, 1, 64).reshape(32, 2)
    options = {"loss": loss, "batch_size": 8, "lr": 0.01, "progress": False}
    gm.training.fit(model, x, steps, ema=ema, checkpoint=checkpoint, **options)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(2, 2)


def test_fit_resumes_the_averages_and_their_snapshots(tmp_path):
    straight = network()
    train(straight, 40, PowerEMA(straight, every=4, folder=tmp_path / "a"))
    for steps in (24, 40):  # stopped, and gone on from its checkpoint
        model = network()
        ema = PowerEMA(model, every=4, folder=tmp_path / "b")
        train(model, steps, ema, tmp_path / "run")
    a, b = reconstruct(tmp_path / "a", 0.08), reconstruct(tmp_path / "b", 0.08)
    assert len(list_snapshots(tmp_path / "b")) == 20
    assert all(torch.equal(value, b[name]) for name, value in a.items())
    stored = network()
    gm.training.load(tmp_path / "run" / "checkpoint.safetensors", stored, ema=True)
    assert torch.equal(stored.weight, ema.copy(0.05).weight)  # the first width


def test_fit_refuses_an_average_of_another_module_or_width(tmp_path):
    model = network()
    with pytest.raises(ValueError, match="averages another Linear"):
        train(model, 1, PowerEMA(nn.Linear(2, 2)))
    train(model, 2, PowerEMA(model), tmp_path)
    with pytest.raises(ValueError, match="sigma_rel"):
        train(model, 4, PowerEMA(model, sigma_rel=(0.05, 0.2)), tmp_path)


# Bad input


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"sigma_rel": 0.3}, ValueError, r"in \(0, 12\*\*-0\.5 = 0\.2887\], got 0\.3: 0\.05 to 0\.2 are usual"),
        ({"sigma_rel": 0}, ValueError, "got 0"),
        ({"sigma_rel": float("nan")}, ValueError, "got nan"),
        ({"sigma_rel": ()}, ValueError, "one or several different widths"),
        ({"sigma_rel": (0.1, 0.1)}, ValueError, "one or several different widths"),
        ({"sigma_rel": ("0.1",)}, TypeError, "sigma_rel must be a number, got '0.1'"),
        ({"every": 0}, ValueError, "every must be at least 1, got 0"),
        ({"every": 2.0}, TypeError, "every must be an integer or None, got 2.0"),
        ({"folder": "somewhere"}, ValueError, "needs every="),
    ],
)
def test_bad_options(options, kind, message):
    with pytest.raises(kind, match=message):
        PowerEMA(nn.Linear(1, 1), **options)


def test_bad_modules():
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, got str"):
        PowerEMA("network")
    with pytest.raises(ValueError, match="ReLU has no parameters to average"):
        PowerEMA(nn.ReLU())
    module = nn.Sequential(nn.Linear(1, 1))
    ema = PowerEMA(module)
    with pytest.raises(RuntimeError, match="before the first update"):
        ema.snapshot()
    with pytest.raises(ValueError, match=r"sigma_rel=0\.07 is not tracked \(\(0\.05, 0\.1\)\): reconstruct it"):
        ema.copy(0.07)
    module.append(nn.Linear(1, 1))
    with pytest.raises(ValueError, match="parameters came or went"):
        ema.update()
    assert ema.updates == 0


def test_bad_snapshots(tmp_path):
    ema = follow(walk(8), every=4)
    snapshots = ema.snapshots
    with pytest.raises(ValueError, match=r"snapshots is empty: PowerEMA\(\.\.\., every=n\)"):
        reconstruct([], 0.1)
    with pytest.raises(TypeError, match="got a dict"):
        reconstruct([snapshots[0].averaged], 0.1)
    with pytest.raises(ValueError, match="two snapshots have the same sigma_rel and step"):
        reconstruct([*snapshots, snapshots[0]], 0.1)
    with pytest.raises(ValueError, match="step must be from 1 to 8, that of the last snapshot, got 9"):
        reconstruct(snapshots, 0.1, step=9)
    with pytest.raises(TypeError, match=r"step must be an integer, got 8\.0"):
        reconstruct(snapshots, 0.1, step=8.0)
    with pytest.raises(ValueError, match="tolerance must be positive, got nan"):
        reconstruct(snapshots, 0.1, tolerance=math.nan)
    with pytest.raises(ValueError, match=r"sigma_rel must be in .* got -1"):
        reconstruct(snapshots, -1)
    other = Snapshot(0.2, 8, {"w": torch.zeros(2)}, {}, {})
    with pytest.raises(ValueError, match="of different modules: that of step 8 has other tensors"):
        reconstruct([*snapshots, other], 0.1, tolerance=1.0)
    with pytest.raises(ValueError, match="gamma must be a number >= 0, got -1"):
        sigma_rel_of(-1)


def test_bad_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="no snapshot of a PowerEMA in"):
        reconstruct(tmp_path / "none", 0.1)
    follow(walk(4), every=2, folder=tmp_path / "used")
    with pytest.raises(FileExistsError, match="snapshots of another training: give another folder"):
        follow(walk(4), every=2, folder=tmp_path / "used")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        Snapshot.load(tmp_path / "no.safetensors")
    path = list_snapshots(tmp_path / "used")[0]
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match="is damaged or not a safetensors file"):
        reconstruct(tmp_path / "used", 0.1)
    save_file({"w": torch.zeros(1)}, str(path))
    with pytest.raises(ValueError, match="is no snapshot of a PowerEMA"):
        reconstruct(tmp_path / "used", 0.1)
