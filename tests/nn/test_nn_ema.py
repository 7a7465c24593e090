"""The moving average: the weighted sum it is, and that nothing of the module is lost by it."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from genmatch.nn import EMA


def walk(module: nn.Module, steps: int) -> list[list[torch.Tensor]]:
    """Weights of ``steps`` made-up training steps."""
    generator = torch.Generator().manual_seed(0)
    return [
        [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in module.parameters()] for _ in range(steps)
    ]


def put(module: nn.Module, weights: list[torch.Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), weights, strict=True):
            parameter.copy_(value)


@pytest.mark.parametrize(("decay", "warmup"), [(0.9, False), (0.5, True), (0.9999, True), (0.0, True), (0.0, False)])
def test_average_is_the_weighted_sum(decay, warmup):
    module = nn.Linear(3, 2).double()
    visited = [[p.detach().clone() for p in module.parameters()], *walk(module, 30)]
    ema = EMA(module, decay, warmup)
    for weights in visited[1:]:
        put(module, weights)
        ema.update()

    def weighted(decays):
        # w_0 has the product of all decays, w_n what its own update let in times the decays after it.
        shares = []
        for n in range(31):
            share = 1 - decays[n - 1] if n else 1.0
            for later in decays[n:]:
                share *= later
            shares.append(share)
        assert sum(shares) == pytest.approx(1)
        return [sum(s * w for s, w in zip(shares, each, strict=True)) for each in zip(*visited, strict=True)]

    rule = [min(decay, (1 + n) / (10 + n)) if warmup else decay for n in range(1, 31)]
    averaged = [p.detach() for p in ema.copy().parameters()]
    torch.testing.assert_close(averaged, weighted(rule), rtol=1e-12, atol=1e-12)
    if warmup and decay > 0:
        without = weighted([decay] * 30)
        assert max((a - b).abs().max() for a, b in zip(averaged, without, strict=True)) > 0.01 * (decay > 0.9)


def test_warmup_counts_updates():
    ema = EMA(nn.Linear(1, 1), decay=0.5)
    decays = []
    for _ in range(12):
        ema.update()
        decays.append(ema.effective_decay)
    assert decays[:3] == [2 / 11, 3 / 12, 4 / 13]
    assert decays[7:] == [0.5] * 5  # (1 + n) / (10 + n) is 1/2 at n = 8


class Mixed(nn.Module):
    """Shared weights, buffers that stay and that do not, an integer parameter, and bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.tied = self.inner
        self.low = nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
        self.index = nn.Parameter(torch.arange(2), requires_grad=False)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)


def change(module: Mixed, amount: float) -> None:
    with torch.no_grad():
        module.inner.weight += amount
        module.low += amount
        module.index += 1
        module.count += 7
        module.scratch += amount


def test_buffers_and_integers_are_copied_and_shared_weights_averaged_once():
    module = Mixed()
    start = module.inner.weight.detach().clone()
    ema = EMA(module, decay=0.5, warmup=False)
    change(module, 1.0)
    ema.update()
    change(module, 1.0)
    ema.update()
    averaged = ema.copy()
    torch.testing.assert_close(averaged.inner.weight, start + 1.25)  # 0 / 4 + 1 / 4 + 2 / 2
    assert averaged.tied is averaged.inner
    assert averaged.count == 14
    assert averaged.index.tolist() == [2, 3]
    assert averaged.low.dtype == torch.bfloat16
    assert averaged.low.tolist() == [1.25] * 3
    names = ema.state_dict().keys()
    assert sum("weight" in name for name in names) == 1
    assert not any("scratch" in name for name in names)


def test_small_steps_are_not_lost_to_bfloat16():
    module = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    nn.init.zeros_(module.weight)
    ema = EMA(module, decay=0.999, warmup=False)
    nn.init.ones_(module.weight)
    plain = torch.zeros((), dtype=torch.bfloat16)
    for _ in range(2000):
        ema.update()
        plain = plain.lerp(torch.ones((), dtype=torch.bfloat16), 0.001)
    assert float(ema.copy().weight) == pytest.approx(1 - 0.999**2000, abs=1 / 256)
    assert plain < 0.6  # what an average kept in bfloat16 comes to


def test_applied_restores_exactly_even_after_an_error():
    module = Mixed()
    ema = EMA(module, decay=0.5, warmup=False)
    change(module, 3.0)
    ema.update()
    change(module, 0.1)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    places = {name: value.data_ptr() for name, value in module.state_dict().items()}

    def evaluate() -> None:
        with ema.applied() as applied:
            assert applied is module
            torch.testing.assert_close(dict(module.state_dict()), _averaged(ema, module))
            assert module.inner.weight.requires_grad
            nn.init.zeros_(module.inner.weight)  # and whatever happens to it here
            module.count += 100
            raise KeyError("within")

    with pytest.raises(KeyError, match="within"):
        evaluate()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert {name: value.data_ptr() for name, value in module.state_dict().items()} == places
    with ema.applied():  # the average was not touched
        torch.testing.assert_close(module.inner.weight.detach(), before["inner.weight"] - 1.6)


def test_what_moved_while_applied_is_restored_where_it_went():
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ema = EMA(module, decay=0.5, warmup=False)
    put(module, walk(module, 1)[0])
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with ema.applied():
        module.double()  # this gives the module new buffers
        module[1].running_mean += 1
    assert module[1].running_mean.dtype == torch.float64
    assert all(torch.equal(value, before[name].to(value.dtype)) for name, value in module.state_dict().items())


def _averaged(ema: EMA, module: nn.Module) -> dict[str, torch.Tensor]:
    state = {name.split(".", 1)[1]: value for name, value in ema.state_dict().items() if "." in name}
    state |= {name.replace("inner", "tied"): value for name, value in state.items() if "inner" in name}
    return {name: state[name].to(value.dtype) for name, value in module.state_dict().items()}


def test_training_goes_on_as_if_the_average_had_never_been_applied():
    def train(peek: bool) -> torch.Tensor:
        torch.manual_seed(0)
        module = nn.Linear(3, 1)
        ema, optimiser = EMA(module, 0.9), torch.optim.Adam(module.parameters())
        for step in range(6):
            module(torch.full((2, 3), float(step))).square().mean().backward()
            optimiser.step()
            optimiser.zero_grad()
            ema.update()
            if peek:
                with ema.applied():
                    module(torch.ones(1, 3))
        return torch.cat([module.weight.detach(), ema.copy().weight])

    assert torch.equal(train(True), train(False))


def test_copy_is_independent():
    module = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    ema = EMA(module, 0.5)
    averaged = ema.copy()
    expected = averaged[0].weight.clone()
    put(module, walk(module, 1)[0])
    ema.update()
    assert torch.equal(averaged[0].weight, expected)
    nn.init.zeros_(averaged[0].weight)
    assert ema.copy()[0].weight.any()
    assert not averaged.training
    assert not any(p.requires_grad for p in averaged.parameters())
    assert module.training
    assert module[0].weight.requires_grad


def test_state_round_trip_through_safetensors():
    def make(seed: int) -> tuple[nn.Module, EMA]:
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        return module, EMA(module, 0.99)

    (module, ema), (other_module, other) = make(0), make(1)
    visited = walk(module, 8)
    for weights in visited[:4]:
        put(module, weights)
        module(torch.randn(5, 3))
        ema.update()
    other.load_state_dict(load(save(ema.state_dict())))
    assert other.updates == 4
    other_module.load_state_dict(module.state_dict())
    for weights in visited[4:]:
        for each, average in ((module, ema), (other_module, other)):
            put(each, weights)
            average.update()
    assert [*other.state_dict()] == [*ema.state_dict()]
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in ema.state_dict().items())


def test_the_average_follows_the_module_to_another_device():
    module = Mixed()
    ema = EMA(module, 0.5)
    module.to("meta")
    ema.update()
    devices = {name: value.device.type for name, value in ema.state_dict().items()}
    assert devices.pop("updates") == "cpu"
    assert set(devices.values()) == {"meta"}


@pytest.mark.gpu
def test_the_average_is_right_on_a_gpu():
    module, twin = nn.Linear(3, 2), nn.Linear(3, 2)
    twin.load_state_dict(module.state_dict())
    ema, expected = EMA(module, 0.9), EMA(twin, 0.9)
    module.to("cuda")
    for weights in walk(twin, 5):
        put(twin, weights)
        put(module, [w.cuda() for w in weights])
        ema.update()
        expected.update()
    assert ema.copy().weight.device.type == "cuda"
    torch.testing.assert_close(ema.copy().weight.cpu(), expected.copy().weight)
    with ema.applied():
        torch.testing.assert_close(module.weight.detach().cpu(), expected.copy().weight)


def test_a_compiled_module_has_the_names_of_the_plain_one():
    module = nn.Linear(2, 2)
    assert EMA(torch.compile(module)).state_dict().keys() == EMA(module).state_dict().keys()


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
def test_decay_is_below_one(decay):
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\), got"):
        EMA(nn.Linear(1, 1), decay)


def test_what_cannot_be_averaged():
    with pytest.raises(TypeError, match=r"module must be a torch\.nn\.Module, got dict"):
        EMA({})  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="SiLU has no parameters to average"):
        EMA(nn.SiLU())


def test_nothing_while_applied():
    ema = EMA(nn.Linear(1, 1))
    with ema.applied():
        for action, message in (
            (ema.update, r"update\(\) within applied\(\)"),
            (ema.copy, r"copy\(\) within applied\(\)"),
            (ema.applied().__enter__, r"applied\(\) within applied\(\)"),
        ):
            with pytest.raises(RuntimeError, match=message):
                action()
    ema.update()


def test_a_module_whose_parameters_changed():
    module = nn.Sequential(nn.Linear(1, 1))
    ema = EMA(module)
    module.append(nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"parameters came or went .*1\.bias.*begin a new EMA"):
        ema.update()


def test_a_state_of_another_module():
    ema = EMA(nn.Linear(2, 2))
    before = {name: value.clone() for name, value in ema.state_dict().items()}
    with pytest.raises(ValueError, match=r"missing \['averaged.bias'\] \(1\), unknown \[\] \(0\)"):
        ema.load_state_dict(EMA(nn.Linear(2, 2, bias=False)).state_dict())
    other = EMA(nn.Linear(3, 2))
    other.update()
    with pytest.raises(ValueError, match=r"averaged.weight has shape \(2, 3\), the module's is \(2, 2\)"):
        ema.load_state_dict(other.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in ema.state_dict().items())
