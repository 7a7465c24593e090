"""Other libraries' samplers on the same network, grid and noise: docs/agreement.md has the table.

An optional test: each part runs where its library is installed. Both sides start from the same state, call the same
network, and take the same normals; agreement is to the rounding of the poorer of the two (some schedulers of diffusers
compute in float32 whatever they are given). Where a sampler of theirs is not what it says, its order is measured here
beside ours, so that this file fails, and the page is mended, when it is.
"""

from __future__ import annotations

import importlib
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gaussian_line as line
import pytest
import torch
from torch import Tensor, nn

import genmatch as gm
from genmatch.solvers import (
    DDIM,
    DDPM,
    DEIS,
    IPNDM,
    DPMSolver,
    DPMSolverSingle,
    Euler,
    Exponential,
    Field,
    Heun,
    Solver,
    UniPC,
)

DOUBLE = {"rtol": 1e-11, "atol": 1e-11}
MULTISTEP = "DPMSolverMultistepScheduler"
SINGLE = {"rtol": 2e-6, "atol": 2e-6}  # of schedulers that compute in float32


class Bent(nn.Module):
    """A network that is nonlinear in state and time."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        mixed = x @ torch.tensor([[0.9, -0.4], [0.3, 0.7]], dtype=x.dtype)
        return torch.tanh(mixed + torch.sin(3 * t)[:, None]) + 0.3 * torch.cos(x) * t[:, None]


def states(scale: float = 1.0) -> Tensor:
    return scale * gm.Draws(3, 6).normal((6, 2), torch.float64)


def normals(count: int) -> list[Tensor]:
    return [gm.Draws(10 + i, 6).normal((6, 2), torch.float64) for i in range(count)]


def given(noise: list[Tensor]) -> list[Any]:
    return [line.Given(z) for z in noise]


def waves(steps: int, start: float, stop: float) -> Tensor:
    """A grid whose steps differ."""
    u = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    return start + (stop - start) * (u + torch.sin(3 * torch.pi * u) / (6 * torch.pi))


# diffusers


@pytest.fixture(scope="module")
def diffusers() -> Any:
    return pytest.importorskip("diffusers")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def scheduler_on(library: Any, name: str, schedule: gm.Schedule, times: Tensor, **options: Any) -> Any:
    """A scheduler whose grid is ours: what it calls sigmas are sigma / alpha, or sigma itself for a flow."""
    flow = isinstance(schedule, gm.schedules.CondOT)
    options = {"lower_order_final": False, "use_flow_sigmas": flow, **options}
    if name == MULTISTEP or "Singlestep" in name:
        options["final_sigmas_type"] = "sigma_min"
    scheduler = getattr(library, name)(**options)
    scheduler.set_timesteps(len(times) - 1)
    alpha, sigma = schedule(times)
    scheduler.sigmas = sigma if flow else sigma / alpha
    scheduler.timesteps = torch.arange(len(times) - 1, 0, -1)
    scheduler.set_begin_index(0)
    return scheduler


def run(scheduler: Any, network: nn.Module, times: Tensor, x: Tensor, noise: list[Tensor] | None = None) -> Tensor:
    for i, (t, name) in enumerate(zip(times[:-1], scheduler.timesteps, strict=True)):
        extra = {} if noise is None else {"variance_noise": noise[i]}
        x = scheduler.step(network(x, t.expand(len(x))), name, x, **extra).prev_sample
    return x


def both(
    library: Any, name: str, solver: Solver, schedule: gm.Schedule, options: dict[str, Any], steps: int = 9, noisy=False
) -> tuple[Tensor, Tensor]:
    """Their end state and ours, of a data network."""
    path, times, x = gm.GaussianPath(schedule), waves(steps, 0.04, 0.97), states()
    model = gm.predict.Data(Bent(), path, time=gm.predict.clocks.t)
    noise = normals(steps)
    scheduler = scheduler_on(library, name, schedule, times, prediction_type="sample", **options)
    theirs = run(scheduler, Bent(), times, x, noise if noisy else None)
    generator = gm.Diffusion(model) if noisy else gm.Flow(model)
    return theirs, line.walk(generator, solver, times, x, draws=given(noise))


VP_AND_FLOW = pytest.mark.parametrize(
    "schedule", [gm.schedules.Cosine(), gm.schedules.CondOT()], ids=lambda s: type(s).__name__
)


@VP_AND_FLOW
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("form", ["data", "noise"])
def test_diffusers_dpm_solver_multistep(diffusers, schedule, order, form) -> None:
    algorithm = {"data": "dpmsolver++", "noise": "dpmsolver"}[form]
    options = {"algorithm_type": algorithm, "solver_order": order}
    torch.testing.assert_close(*both(diffusers, MULTISTEP, DPMSolver(order, form), schedule, options), **SINGLE)


@VP_AND_FLOW
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("form", ["data", "noise"])
def test_diffusers_dpm_solver_multistep_with_noise(diffusers, schedule, order, form) -> None:
    algorithm = {"data": "sde-dpmsolver++", "noise": "sde-dpmsolver"}[form]
    options = {"algorithm_type": algorithm, "solver_order": order}
    theirs, ours = both(diffusers, MULTISTEP, DPMSolver(order, form), schedule, options, noisy=True)
    torch.testing.assert_close(theirs, ours, rtol=2e-5, atol=2e-5)


@VP_AND_FLOW
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("form", ["data", "noise"])
@pytest.mark.parametrize("corrector", [True, False])
def test_diffusers_unipc(diffusers, schedule, variant, order, form, corrector) -> None:
    """In float64 throughout."""
    options = {
        "solver_type": variant,
        "solver_order": order,
        "predict_x0": form == "data",
        "disable_corrector": [] if corrector else list(range(9)),
    }
    solver = UniPC(order, variant, form, corrector, start="lower")
    torch.testing.assert_close(*both(diffusers, "UniPCMultistepScheduler", solver, schedule, options), **DOUBLE)


@VP_AND_FLOW
def test_diffusers_deis_of_order_one(diffusers, schedule) -> None:
    compared = both(diffusers, "DEISMultistepScheduler", DPMSolver(1, "noise"), schedule, {"solver_order": 1})
    torch.testing.assert_close(*compared, **DOUBLE)


class Clock(nn.Module):
    """A noise prediction of time alone."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.sin(4 * t)[:, None] + 0 * x


def test_diffusers_deis_extrapolates_in_log_snr(diffusers) -> None:
    """What is called DEIS there is polynomial in log rho: from the third step on it is DPM-Solver's order 3.

    Its second step is the exact integral of a line, where DPM-Solver takes the midpoint rule. For a prediction of time
    alone the change of x / alpha over a step knows nothing of the steps before.
    """
    schedule, times = gm.schedules.Cosine(), waves(9, 0.04, 0.97)
    x = torch.zeros(1, 1, dtype=torch.float64)
    model = gm.predict.Noise(Clock(), gm.GaussianPath(schedule), time=gm.predict.clocks.t)
    ours = trajectory(DPMSolver(3, "noise", start="lower"), gm.Flow(model), times, x)
    options = {"solver_order": 3, "prediction_type": "epsilon"}
    scheduler = scheduler_on(diffusers, "DEISMultistepScheduler", schedule, times, **options)
    theirs = [x]
    for t, name in zip(times[:-1], scheduler.timesteps, strict=True):
        theirs.append(scheduler.step(Clock()(x, t.expand(1)), name, theirs[-1]).prev_sample)
    alpha = schedule(times)[0]
    a, b = ((torch.cat(found).flatten() / alpha).diff() for found in (theirs, ours))
    torch.testing.assert_close(a[2:], b[2:], **DOUBLE)
    assert (a[1] - b[1]).abs() > 1e-3


@pytest.mark.parametrize(("form", "algorithm"), [("data", "dpmsolver++"), ("noise", "dpmsolver")])
def test_diffusers_single_steps(diffusers, form, algorithm) -> None:
    """Its grid holds the stages, too. (Its order 3 takes another rule for the second stage: it is not compared.)"""
    schedule, times, x, network = gm.schedules.Cosine(), waves(4, 0.04, 0.97), states(), Bent()
    levels = schedule.log_snr(times)
    fine = torch.stack([levels[:-1], (levels[:-1] + levels[1:]) / 2], 1).flatten()
    grid = torch.cat([schedule.inverse_log_snr(fine), times[-1:]])
    options = {"solver_order": 2, "algorithm_type": algorithm, "prediction_type": "sample"}
    scheduler = scheduler_on(diffusers, "DPMSolverSinglestepScheduler", schedule, grid, **options)
    model = gm.predict.Data(network, gm.GaussianPath(schedule), time=gm.predict.clocks.t)
    ours = line.walk(gm.Flow(model), DPMSolverSingle(2, form), times, x)
    torch.testing.assert_close(run(scheduler, network, grid, x), ours, **DOUBLE)


def ddpm_chain(diffusers: Any, name: str) -> tuple[Any, Tensor]:
    """A scheduler of the 1000-step chain in float64, and the same ten steps of ours."""
    scheduler = getattr(diffusers, name)(timestep_spacing="trailing", clip_sample=False, prediction_type="epsilon")
    scheduler.set_timesteps(10)
    betas = torch.tensor(gm.schedules.DDPM().betas, dtype=torch.float64)
    scheduler.alphas_cumprod = torch.cumprod(1 - betas, 0)
    if hasattr(scheduler, "final_alpha_cumprod"):
        scheduler.final_alpha_cumprod = torch.ones((), dtype=torch.float64)
    if hasattr(scheduler, "one"):
        scheduler.one = torch.ones((), dtype=torch.float64)
    return scheduler, torch.linspace(0, 1, 11, dtype=torch.float64)


class Indexed(nn.Module):
    """The bent network, told the chain's index."""

    def forward(self, x: Tensor, n: Tensor) -> Tensor:
        return Bent()(x, n / 1000)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_diffusers_ddim(diffusers, eta) -> None:
    scheduler, times = ddpm_chain(diffusers, "DDIMScheduler")
    x, noise = states(), normals(10)
    model = gm.predict.Noise(Indexed(), gm.GaussianPath(gm.schedules.DDPM()))
    ours = line.walk(gm.Flow(model), DDIM(eta), times, x, draws=given(noise))
    for n, z in zip(scheduler.timesteps, noise, strict=True):
        output = Indexed()(x, n.double().expand(len(x)))
        x = scheduler.step(output, n, x, eta=eta, variance_noise=z).prev_sample
    torch.testing.assert_close(x, ours, **DOUBLE)


def test_diffusers_ddpm(diffusers, monkeypatch) -> None:
    """Its variance is held above 1e-20, so that its last step adds noise of 1e-10."""
    scheduler, times = ddpm_chain(diffusers, "DDPMScheduler")
    x, noise = states(), normals(10)
    left = list(noise)
    module = importlib.import_module("diffusers.schedulers.scheduling_ddpm")
    monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: left.pop(0))
    model = gm.predict.Noise(Indexed(), gm.GaussianPath(gm.schedules.DDPM()))
    ours = line.walk(gm.Flow(model), DDPM(), times, x, draws=given(noise))
    for n in scheduler.timesteps:
        x = scheduler.step(Indexed()(x, n.double().expand(len(x))), n, x).prev_sample
    torch.testing.assert_close(x, ours, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("name", "solver"), [("Euler", Euler()), ("Heun", Heun())], ids=["Euler", "Heun"])
def test_diffusers_flow_matching(diffusers, name, solver) -> None:
    """Its velocity points from data to noise, and its time is the noise level times 1000."""
    scheduler = getattr(diffusers, f"FlowMatch{name}DiscreteScheduler")()
    scheduler.set_timesteps(10)
    x, network = states(), Bent()
    levels = scheduler.sigmas.double()
    times = 1 - (torch.unique(levels).flip(0) if name == "Heun" else levels)
    ours = line.walk(gm.Flow(gm.predict.Velocity(network, gm.GaussianPath())), solver, times, x)
    for t in scheduler.timesteps:
        x = scheduler.step(-network(x, 1 - t.double().expand(len(x)) / 1000), t, x).prev_sample
    torch.testing.assert_close(x, ours, rtol=1e-5, atol=1e-5)


@dataclass(frozen=True)
class Quarter(gm.Schedule):
    r"""What diffusers' IPNDM runs on: sigma = sin^2(pi/2 (1 - t))."""

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        sigma = torch.sin(torch.pi / 2 * (1 - t)) ** 2
        return torch.sqrt(1 - sigma**2), sigma


def test_diffusers_ipndm(diffusers) -> None:
    """Inside (0, 1): at alpha = 0 it takes the data prediction for 0 whatever the network says."""
    schedule, times, x, network = Quarter(), waves(9, 0.04, 0.97), states(), Bent()
    scheduler = diffusers.IPNDMScheduler()
    scheduler.set_timesteps(9)
    scheduler.alphas, scheduler.betas = schedule(times)
    model = gm.predict.V(network, gm.GaussianPath(schedule), time=gm.predict.clocks.t)
    ours = line.walk(gm.Flow(model), IPNDM(4), times, x)
    torch.testing.assert_close(run(scheduler, network, times, x), ours, **DOUBLE)


# Theirs is wrong: the third order of DPM-Solver++ (multistep), in diffusers and in k-diffusion.


class Parabola(nn.Module):
    """A data prediction of log-SNR alone, which a method of order 3 integrates exactly."""

    def __init__(self, schedule: gm.Schedule) -> None:
        super().__init__()
        self.schedule = schedule

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return (self.schedule.log_snr(t) ** 2 / 4)[:, None] + 0 * x


def defects(states: list[Tensor], schedule: gm.Schedule, times: Tensor, rate: float) -> float:
    r"""The worst local error from the third step on, r = 1 for the flow and 2 for memoryless noise (at its mean).

    It is the change over a step of :math:`x\,e^{(r-1)\lambda}/\sigma - \int r e^{r\lambda}\lambda^2 d\lambda`.
    """
    level, sigma = schedule.log_snr(times) / 2, schedule(times)[1]
    integral = torch.exp(rate * level) * (level**2 - 2 * level / rate + 2 / rate**2)
    values = torch.stack([x.flatten()[0] for x in states]) * torch.exp((rate - 1) * level) / sigma - integral
    return values.diff()[2:].abs().max().item()


def trajectory(solver: Solver, generator: gm.Generator, times: Tensor, x: Tensor) -> list[Tensor]:
    field, carry, found = Field(generator, x), None, [x]
    for c in solver.plan(field, times):
        x, carry = solver.step(field, x, c, given([torch.zeros_like(x)])[0], carry)
        found.append(x)
    return found


@pytest.mark.parametrize(
    ("algorithm", "rate", "local"),
    [("dpmsolver++", 1.0, 3), ("sde-dpmsolver++", 2.0, 2)],
)
def test_diffusers_third_order_is_of_order_two_and_with_noise_of_order_one(diffusers, algorithm, rate, local) -> None:
    """Its coefficient of the second derivative is half of what it must be, and with noise it has a wrong sign, too.

    A local error of h^3 makes order 2, one of h^2 order 1; ours has none.
    """
    schedule, x = gm.schedules.Cosine(), torch.zeros(1, 1, dtype=torch.float64)
    model = gm.predict.Data(Parabola(schedule), gm.GaussianPath(schedule), time=gm.predict.clocks.t)
    theirs = []
    for steps in (8, 16, 32):
        times = waves(steps, 0.1, 0.9)
        options = {"solver_order": 3, "algorithm_type": algorithm, "prediction_type": "sample"}
        scheduler = scheduler_on(diffusers, MULTISTEP, schedule, times, **options)
        found = [x]
        for t, name in zip(times[:-1], scheduler.timesteps, strict=True):
            extra = {"variance_noise": torch.zeros_like(x)} if rate == 2 else {}
            output = Parabola(schedule)(found[-1], t.expand(1))
            found.append(scheduler.step(output, name, found[-1], **extra).prev_sample)
        theirs.append(defects(found, schedule, times, rate))
        generator = gm.Diffusion(model) if rate == 2 else gm.Flow(model)
        ours = trajectory(DPMSolver(3, start="lower"), generator, times, x)
        assert defects(ours, schedule, times, rate) < 1e-12
    assert theirs[0] > 0.1
    assert abs(line.order((8, 16, 32), theirs) - local) < 0.2


def test_k_diffusion_third_order_is_of_order_two(k_diffusion) -> None:
    """The same coefficient in dpmpp_3m_sde, here without noise."""
    schedule, x = gm.schedules.VE(0.1, 10.0), torch.zeros(1, 1, dtype=torch.float64)
    theirs = []
    for steps in (8, 16, 32):
        times = waves(steps, 0.0, 1.0)
        found: list[Tensor] = []

        def keep(state: dict[str, Any], found=found) -> None:
            found.append(state["x"])

        end = k_diffusion.sample_dpmpp_3m_sde(
            lambda x, sigma: (sigma.log() ** 2)[:, None] + 0 * x,
            x,
            schedule(times)[1],
            callback=keep,
            disable=True,
            eta=0.0,
            noise_sampler=lambda *_: None,
        )
        theirs.append(defects([*found, end], schedule, times, 1.0))
    assert abs(line.order((8, 16, 32), theirs) - 3) < 0.2


def test_diffusers_ddim_by_linspace_takes_the_state_to_other_times_than_it_says(diffusers) -> None:
    """Each step ends T // n below its time, which is where the next one begins for other spacings alone."""
    for spacing, right in (("trailing", True), ("linspace", False)):
        scheduler = diffusers.DDIMScheduler(timestep_spacing=spacing)
        scheduler.set_timesteps(10)
        ends = scheduler.timesteps - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
        assert bool((ends[:-1] == scheduler.timesteps[1:]).all()) == right
    assert (scheduler.timesteps[:2].diff().item(), (ends - scheduler.timesteps)[0].item()) == (-111, -100)


# k-diffusion


@pytest.fixture(scope="module")
def k_diffusion() -> Any:
    """Its samplers alone: the package's own import pulls in torchvision, which they do not need."""
    found = next((p for p in sys.path if (Path(p) / "k_diffusion").is_dir()), None)
    if found is None:
        pytest.skip("k-diffusion is not installed")
    package = types.ModuleType("k_diffusion")
    package.__path__ = [str(Path(found) / "k_diffusion")]
    sys.modules.setdefault("k_diffusion", package)
    for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
        sys.modules.setdefault(name, types.ModuleType(name))
    if not hasattr(sys.modules["torchvision.transforms"], "functional"):
        sys.modules["torchvision.transforms"].functional = None  # type: ignore[attr-defined]
    return importlib.import_module("k_diffusion.sampling")


class Falling(gm.Schedule):
    """Noise that falls linearly from 5 to 0 on unscaled data: t is linear in sigma."""

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), 5 - 5 * t


def denoise(x: Tensor, sigma: Tensor) -> Tensor:
    return Bent()(x, torch.log1p(sigma))


class Denoiser(nn.Module):
    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return denoise(x, sigma)


def karras(schedule: gm.Schedule) -> gm.Predictor:
    return gm.predict.Data(Denoiser(), gm.GaussianPath(schedule), time=lambda instant: instant.sigma)


def compare(theirs: Callable[..., Tensor], solver: Solver, schedule: gm.Schedule, stop=1.0, eta=None, **options):
    """Their end state and ours."""
    times = waves(9, 0.02, stop)
    sigmas = schedule(times)[1]
    x, noise = states(float(sigmas[0])), normals(9)
    model, left = karras(schedule), list(noise)
    if eta is not None:
        options |= {"eta": eta, "noise_sampler": lambda *_: left.pop(0)}
    generator = gm.Diffusion(model, gm.diffusivity.Memoryless(eta)) if eta else gm.Flow(model)
    ours = line.walk(generator, solver, times, x, draws=given(noise))
    return theirs(denoise, x, sigmas, disable=True, **options), ours


EDM_OR_ZERO = pytest.mark.parametrize(
    "schedule", [gm.schedules.EDM(), gm.schedules.VE(), Falling()], ids=lambda s: type(s).__name__
)


@EDM_OR_ZERO
def test_k_diffusion_euler_is_ddim(k_diffusion, schedule) -> None:
    torch.testing.assert_close(*compare(k_diffusion.sample_euler, Exponential(1), schedule), **DOUBLE)


@EDM_OR_ZERO
def test_k_diffusion_dpmpp_2m(k_diffusion, schedule) -> None:
    """Its last step to sigma = 0, too, is the data prediction."""
    torch.testing.assert_close(*compare(k_diffusion.sample_dpmpp_2m, DPMSolver(2), schedule), **DOUBLE)


@EDM_OR_ZERO
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_k_diffusion_dpmpp_2m_sde(k_diffusion, schedule, eta) -> None:
    """Its eta is the gamma of memoryless noise."""
    compared = compare(k_diffusion.sample_dpmpp_2m_sde, DPMSolver(2), schedule, eta=eta)
    torch.testing.assert_close(*compared, **DOUBLE)


def test_k_diffusion_heun_where_t_is_linear_in_sigma(k_diffusion) -> None:
    torch.testing.assert_close(*compare(k_diffusion.sample_heun, Heun(), Falling()), **DOUBLE)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_k_diffusion_lms_where_t_is_linear_in_sigma(k_diffusion, order) -> None:
    compared = compare(k_diffusion.sample_lms, DEIS(order, start="lower"), Falling(), order=order)
    torch.testing.assert_close(*compared, **DOUBLE)


@EDM_OR_ZERO
def test_k_diffusion_dpm_2_is_a_single_step(k_diffusion, schedule) -> None:
    """Inside: its steps to sigma = 0 are Euler's, as ours are."""
    compared = compare(k_diffusion.sample_dpm_2, DPMSolverSingle(2, "noise"), schedule)
    torch.testing.assert_close(*compared, **DOUBLE)


@EDM_OR_ZERO
def test_k_diffusion_dpmpp_2s(k_diffusion, schedule) -> None:
    compared = compare(k_diffusion.sample_dpmpp_2s_ancestral, DPMSolverSingle(2, "data"), schedule, eta=0.0)
    torch.testing.assert_close(*compared, **DOUBLE)


@pytest.mark.parametrize("order", [2, 3])
def test_k_diffusion_dpm_solver_steps(k_diffusion, order) -> None:
    times, schedule = waves(6, 0.02, 1.0), gm.schedules.VE()
    sigmas = schedule(times)[1]
    x = states(float(sigmas[0]))
    ours = line.walk(gm.Flow(karras(schedule)), DPMSolverSingle(order, "noise"), times, x)
    step = getattr(k_diffusion.DPMSolver(denoise), f"dpm_solver_{order}_step")
    for a, b in zip(-sigmas[:-1].log(), -sigmas[1:].log(), strict=True):
        x = step(x, a, b)[0]
    torch.testing.assert_close(x, ours, **DOUBLE)


@EDM_OR_ZERO
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_k_diffusion_euler_ancestral_is_ddim_with_noise(k_diffusion, schedule, eta) -> None:
    times = waves(9, 0.02, 1.0)
    sigmas = schedule(times)[1]
    x, noise = states(float(sigmas[0])), normals(9)
    left = list(noise)
    ours = line.walk(gm.Flow(karras(schedule)), DDIM(eta), times, x, draws=given(noise))
    theirs = k_diffusion.sample_euler_ancestral(
        denoise, x, sigmas, disable=True, eta=eta, noise_sampler=lambda *_: left.pop(0)
    )
    torch.testing.assert_close(theirs, ours, **DOUBLE)
