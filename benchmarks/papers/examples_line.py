"""The worked example: a normal law becomes a mixture of Gaussians, by a diffusion of constant rate and by the line."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import genmatch as gm
from genmatch.schedules import Schedule
from genmatch.solvers import Solver

from ..robustness.record import interval
from .examples_world import Mixture, kl, normal, steps_for, to_law, wasserstein
from .scale import Scale

__all__ = ["BETA", "CASES", "LAW", "LENGTH", "Case", "line"]

LAW = Mixture((0.3, 0.7), (-2.0, 2.0), (0.5, 0.5))
BETA, LENGTH = 0.1, 10
FINE = 100  # steps that leave no error to speak of
RATE = 2e-3
SHOWN = 24  # particles of the pictures


class Case(NamedTuple):
    """A process: its schedule, what a network learns on it, and how it is solved."""

    schedule: Schedule
    predict: type[gm.Predictor]
    solver: Solver
    steps: int
    noisy: bool = False  # solved as a diffusion, not as a flow


CHAIN = gm.schedules.DDPM(betas=(BETA,) * LENGTH)
CONSTANT = gm.schedules.VP(BETA * LENGTH, BETA * LENGTH)
CASES = {
    "chain of 10, ancestral": Case(CHAIN, gm.predict.Noise, gm.solvers.DDPM(), LENGTH),
    "chain of 10, DDIM": Case(CHAIN, gm.predict.Noise, gm.solvers.DDIM(), LENGTH),
    "constant rate, with noise": Case(CONSTANT, gm.predict.Noise, gm.solvers.Exponential(), FINE, noisy=True),
    "constant rate, without noise": Case(CONSTANT, gm.predict.Noise, gm.solvers.Exponential(), FINE),
    "linear path, 10 steps": Case(gm.schedules.CondOT(), gm.predict.Velocity, gm.solvers.Euler(), 10),
    "linear path, 100 steps": Case(gm.schedules.CondOT(), gm.predict.Velocity, gm.solvers.Euler(), FINE),
}


def line(scale: Scale) -> dict[str, Any]:
    """The mismatch of the starts, and what every process makes of them with the exact field and with trained ones."""
    world = gm.worlds.GaussianMixture(
        torch.tensor(LAW.means)[:, None],
        torch.tensor([[[c * c]] for c in LAW.deviations]),
        torch.tensor(LAW.weights),
    )
    count, seeds = scale.pick(400, 5000, 20000), scale.pick(2, 3, 3)
    rows: list[dict[str, Any]] = []
    particles: dict[str, list[list[float]]] = {}
    made: dict[str, list[float]] = {}
    learned: dict[Schedule, list[gm.Predictor]] = {}
    for name, case in scale.bar(CASES.items(), "on a line"):
        if case.schedule not in learned:
            learned[case.schedule] = [_train(case, world, seed, scale) for seed in range(seeds)]
        exact = world.predictor(gm.GaussianPath(case.schedule))
        models: dict[str, list[gm.Predictor]] = {"exact": [exact], "trained": learned[case.schedule]}
        for start in ("p_0", "N(0, 1)") if _kept(case.schedule)[0] > 0 else ("N(0, 1)",):
            for field, members in models.items():
                values = []
                for seed in range(seeds):
                    x = _sample(case, members[seed % len(members)], start, world, count, 20 + seed, scale)
                    values.append(to_law(x[-1].double().cpu().numpy()[:, 0], LAW))
                    if seed == 0:
                        particles[f"{name}, {start}, {field}"] = (
                            x[:, :SHOWN, 0].T.cpu().double().round(decimals=3).tolist()
                        )
                        made[f"{name}, {start}, {field}"] = _histogram(x[-1].cpu().numpy()[:, 0])
                found = {"least": min(values), "greatest": max(values), **interval(values)._asdict()}
                rows.append({"case": name, "start": start, "field": field, "steps": case.steps, **found})
    floor = [to_law(world.sample(count, seed=40 + seed).numpy()[:, 0], LAW) for seed in range(seeds)]
    return {
        "law": LAW._asdict(),
        "starts": starts(),
        "rows": rows,
        "floor": interval(floor)._asdict(),
        "samples": count,
        "particles": particles,
        "histograms": {"edges": EDGES.tolist(), "densities": made},
    }


EDGES = np.linspace(-4.5, 4.5, 91)


def _histogram(x: np.ndarray) -> list[float]:
    """Share of samples over the width of a bin; samples outside of the edges count in the whole."""
    return (np.histogram(x, EDGES)[0] / len(x) / np.diff(EDGES)).round(4).tolist()


def _kept(schedule: Schedule) -> tuple[float, float]:
    """Alpha and sigma at the noise end."""
    alpha, sigma = schedule(torch.zeros((), dtype=torch.float64))
    return float(alpha), float(sigma)


def starts() -> dict[str, Any]:
    """How far p_0 is from N(0, 1), where the process begins and, carried by the exact flow, where it ends."""
    found: dict[str, Any] = {}
    for name, schedule in (("chain", CHAIN), ("constant rate", CONSTANT)):
        alpha, sigma = _kept(schedule)
        begin = LAW.noised(alpha, sigma)
        # Both starts go through one rising map: W1 at the data is the mean distance of quantiles.
        u = (np.arange(20000) + 0.5) / 20000
        wrong = LAW.quantile(begin.below(normal().quantile(u)))
        found[name] = {
            "alpha": alpha,
            "sigma": sigma,
            "W1 at the start": wasserstein(begin, normal()),
            "W1 at the data": float(np.abs(wrong - LAW.quantile(u)).mean()),
            "KL(p_0 | N)": kl(begin, normal()),
            "KL(N | p_0)": kl(normal(), begin),
            "length for KL 0.001": steps_for(LAW, BETA, 1e-3, chain=name == "chain"),
        }
    return found


def _train(case: Case, world: gm.worlds.GaussianMixture, seed: int, scale: Scale) -> gm.Predictor:
    torch.manual_seed(seed)
    network = gm.nn.MLP(
        1, width=64, depth=3, time_scale=1.0 if isinstance(case.schedule, gm.schedules.DDPM) else 1000.0
    )
    model = case.predict(network, gm.GaussianPath(case.schedule)).to(scale.device)
    data = world.sample(scale.pick(256, 50000, 50000), seed=seed).float().to(scale.device)
    steps = scale.pick(5, 1500, 20000)
    fitted = gm.training.fit(
        model, data, steps, batch_size=256, lr=RATE, schedule="cosine", ema=0.99, seed=seed, progress=False
    )
    with fitted.ema.applied():  # type: ignore[union-attr]
        averaged = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(averaged)
    return model.eval()


def _sample(case: Case, model: gm.Predictor, start: str, world: Any, count: int, seed: int, scale: Scale) -> Tensor:
    noise = gm.Draws(seed, count, device=scale.device).normal((count, 1))
    if start == "p_0":
        alpha, sigma = _kept(case.schedule)
        noise = alpha * world.sample(count, seed=seed).float().to(scale.device) + sigma * noise
    generator = gm.Diffusion(model) if case.noisy else gm.Flow(model)
    return gm.sample(generator, noise, steps=case.steps, solver=case.solver, seed=seed, trajectory=True)
