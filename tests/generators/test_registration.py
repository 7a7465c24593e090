"""What a sum owns: every tensor once in its state dict, each with its gradient, its dtype and its mode."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import genmatch as gm


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.drop = nn.Linear(2, 2), nn.Dropout(0.5)
        self.register_buffer("mean", torch.zeros(2))

    def forward(self, x: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        return self.drop(self.layer(x - self.mean)) + t[:, None]


class Growth(nn.Module):
    """A learned variance, positive at every t."""

    def __init__(self) -> None:
        super().__init__()
        self.log_rate = nn.Parameter(torch.tensor(-1.0))

    def forward(self, t):
        return torch.exp(self.log_rate + t)


class Learned(gm.Generator):
    """Langevin noise of a learned variance, with a parameter, buffers and a submodule of its own."""

    speed = 0.0

    def __init__(self, model: gm.Predictor, growth: Growth | None = None) -> None:
        super().__init__(model)
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.growth = Growth() if growth is None else growth
        self.register_buffer("offset", torch.tensor(0.25))
        self.register_buffer("scratch", torch.tensor(1.0), persistent=False)

    def triplet(self, x, t, prediction):
        variance = (self.scale**2 + self.offset) * self.scratch * self.growth(torch.as_tensor(t))
        if self.training:
            variance = variance * 2
        return gm.Triplet(variance / 2 * prediction.score, variance.reshape(1, 1))


def build() -> tuple[gm.Superposition, gm.predict.Velocity, gm.predict.Noise]:
    path = gm.GaussianPath()
    one, two = gm.predict.Velocity(Net(), path), gm.predict.Noise(Net(), path)
    total = 0.6 * gm.Flow(one) + 0.4 * gm.Diffusion(two) + 0.5 * gm.Langevin(one) + Learned(one) + 2 * Learned(two)
    return total, one, two


X = torch.randn(4, 2, generator=torch.Generator().manual_seed(1))


def value(operator: gm.Superposition, x: Tensor = X, t: float = 0.4) -> Tensor:
    triplet = operator(x, t)
    return torch.cat([triplet.drift.flatten(), torch.as_tensor(triplet.variance).flatten().to(x.dtype)])


def storages(state: dict[str, Tensor]) -> list[int]:
    return [tensor.untyped_storage().data_ptr() for tensor in state.values()]


def test_every_tensor_is_registered_once():
    total, one, two = build()
    parameters = list(total.named_parameters())
    assert len({id(p) for _, p in parameters}) == len(parameters) == 4 + 2 * 2
    assert len(list(total.named_parameters(remove_duplicate=False))) == len(parameters)
    state = total.state_dict()
    assert len(set(storages(state))) == len(state)
    assert sorted(name for name in state if name.startswith("own")) == [
        "own.4.growth.log_rate",
        "own.4.offset",
        "own.4.scale",
        "own.5.growth.log_rate",
        "own.5.offset",
        "own.5.scale",
    ], "a buffer that is not persistent is not saved"
    assert {id(p) for p in [*one.parameters(), *two.parameters()]} < {id(p) for p in total.parameters()}


def test_a_state_dict_loads_into_a_fresh_sum(tmp_path):
    total, *_ = build()
    total.eval()
    with torch.no_grad():
        for parameter in total.parameters():
            parameter.add_(torch.randn_like(parameter))
        for buffer in total.buffers():
            buffer.add_(0.5)
        for _, generator in total.terms:
            if isinstance(generator, Learned):
                generator.scratch.fill_(1.0)  # not part of the state
    save_file(total.state_dict(), tmp_path / "sum.safetensors")  # refuses shared tensors
    fresh, *_ = build()
    fresh.eval()
    assert not torch.allclose(value(fresh), value(total))
    fresh.load_state_dict(load_file(tmp_path / "sum.safetensors"), strict=True)
    torch.testing.assert_close(value(fresh), value(total), rtol=0, atol=0)
    assigned, *_ = build()
    assigned.eval().load_state_dict(load_file(tmp_path / "sum.safetensors"), strict=True, assign=True)
    torch.testing.assert_close(value(assigned), value(total), rtol=0, atol=0)


def test_a_wrong_state_dict_is_refused():
    total, *_ = build()
    state = total.state_dict()
    first = next(iter(state))
    missing = {name: tensor for name, tensor in state.items() if name != first}
    with pytest.raises(RuntimeError, match="Missing key"):
        total.load_state_dict(missing)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        total.load_state_dict({**state, "own.0.nothing": torch.zeros(1)})


def test_a_network_in_two_predictors_is_saved_once(tmp_path):
    """Two predictors of one network, a guided one beside the plain one: each runs, but the tensors are the same."""
    path, net, growth = gm.GaussianPath(), Net(), Growth()
    first, second = gm.predict.Velocity(net, path), gm.predict.Velocity(net, gm.GaussianPath())
    guided = gm.guidance.ClassifierFree(first, 2.0, null={"label": 0})
    total = (
        0.5 * gm.Flow(first)
        + 0.3 * gm.Flow(second)
        + 0.2 * gm.Flow(guided)
        + Learned(first, growth)
        + Learned(second, growth)
    )
    state = total.state_dict()
    assert len(set(storages(state))) == len(state)
    assert sum("layer.weight" in name for name in state) == 1
    assert sum("log_rate" in name for name in state) == 1
    save_file(state, tmp_path / "sum.safetensors")
    expected = net.layer.weight.clone()
    with torch.no_grad():
        net.layer.weight.zero_()
    total.load_state_dict(load_file(tmp_path / "sum.safetensors"), strict=True)
    torch.testing.assert_close(net.layer.weight, expected, rtol=0, atol=0)
    # The full names are names all the same: a state dict of a predictor finds its place.
    total.load_state_dict({**state, "models.1.network.layer.weight": expected}, strict=True)
    # And inside another module.
    outer = nn.ModuleDict({"hybrid": total})
    assert len(set(storages(outer.state_dict()))) == len(outer.state_dict())
    outer.load_state_dict(outer.state_dict(), strict=True)


def test_dtype_and_gradients_reach_every_part():
    total, one, _ = build()
    total.eval().double()
    assert {p.dtype for p in total.parameters()} == {b.dtype for b in total.buffers()} == {torch.float64}
    learned = [generator for _, generator in total.terms if isinstance(generator, Learned)]
    assert all(g.scale.dtype == g.offset.dtype == g.scratch.dtype == torch.float64 for g in learned)
    value(total, X.double()).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in total.parameters())
    torch.optim.SGD(total.parameters(), lr=0.1).step()
    assert learned[0].scale.item() != 0.5
    total.zero_grad()
    total.requires_grad_(False)
    assert not any(p.requires_grad for p in [*one.parameters(), learned[0].scale])


def test_modes_reach_every_part():
    total, one, two = build()
    learned = [generator for _, generator in total.terms if isinstance(generator, Learned)]
    total.eval()
    assert not any(module.training for module in [one, two, one.network.drop, *learned, learned[0].growth])
    quiet = total(X, 0.4).variance
    total.train()
    assert all(module.training for module in [one, two, one.network.drop, *learned, learned[0].growth])
    assert (total(X, 0.4).variance > quiet).all()
    # The sampler evaluates, and gives every part its own mode back.
    learned[1].eval()
    modes = []

    class Spy(nn.Module):
        def forward(self, t):
            modes.extend(g.training for g in learned)
            return torch.exp(t)

    learned[0].growth = Spy()
    gm.sample(total, X, times=[0.3, 0.6, 0.9], seed=0, solver=gm.solvers.Euler())
    assert modes
    assert not any(modes)
    assert (learned[0].training, learned[1].training, one.training) == (True, False, True)


def test_a_function_with_parameters_is_a_diffusivity():
    """A module given as the function of t: its parameters are the generator's."""
    model = gm.predict.Velocity(Net().eval(), gm.GaussianPath())
    growth = Growth()
    total = gm.Flow(model) + gm.Langevin(model, growth)
    assert any(p is growth.log_rate for p in total.parameters())
    assert len(set(storages(total.state_dict()))) == len(total.state_dict())
    total(X, 0.4).drift.sum().backward()
    assert growth.log_rate.grad.abs() > 0
    twin = copy.deepcopy(total)
    with torch.no_grad():
        next(p for n, p in twin.named_parameters() if "log_rate" in n).add_(2.0)
    assert twin(X, 0.4).variance.item() == pytest.approx(total(X, 0.4).variance.item() * 7.389056, rel=1e-5)


def test_a_sum_of_sums_registers_what_its_parts_do():
    _, one, two = build()
    inner = gm.Flow(one) + Learned(one)
    outer = 0.5 * inner + 0.5 * gm.Flow(two)
    assert {id(p) for p in outer.parameters()} == {id(p) for p in [*inner.parameters(), *two.parameters()]}


@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda total: pickle.loads(pickle.dumps(total))], ids=["copy", "pickle"]
)
def test_a_copy_stands_alone(clone):
    """Copies carry tensors of their own, still each once; pickling is how worker processes are given a model."""
    total, *_ = build()
    total.eval()
    twin = clone(total)
    torch.testing.assert_close(value(twin), value(total), rtol=0, atol=0)
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in total.parameters()}
    learned = next(generator for _, generator in twin.terms if isinstance(generator, Learned))
    assert any(p is learned.scale for p in twin.parameters())
    before = value(total)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1.0)
    torch.testing.assert_close(value(total), before, rtol=0, atol=0)
    assert not torch.allclose(value(twin), before)
    twin.double()
    assert learned.scale.dtype == torch.float64
    fresh, *_ = build()
    fresh.load_state_dict(twin.float().state_dict(), strict=True)


def test_a_generator_loads_what_its_sum_of_one_saved():
    _, one, _ = build()
    flow = gm.Flow(one)
    state = (1.0 * flow).state_dict()
    flow.load_state_dict(state, strict=True)
    assert list(state) == list(flow.state_dict())


def test_functional_calls_go_through():
    total, one, _ = build()
    total.eval()
    parameters = {name: torch.zeros_like(p) for name, p in total.named_parameters()}
    triplet = torch.func.functional_call(
        gm.Flow(one), {n: p for n, p in parameters.items() if n.startswith("models.0")}, (X, 0.4)
    )
    torch.testing.assert_close(triplet.drift, torch.full_like(X, 0.4))
