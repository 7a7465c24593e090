"""The study: data, two models trained alike, and everything that is measured on them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from .. import data as datasets
from .. import metrics, predict, schedules
from ..data import Labelled
from ..generators import Diffusion, Flow, Operator
from ..nn import UNet
from ..paths import GaussianPath
from ..random import Draws
from ..sampling import sample
from ..solvers import DDIM, DDPM, RK4, Euler, Exponential, Field, Solver
from ..training import Fit, fit
from .classifier import Classifier, train_classifier
from .report import write_report

__all__ = ["STEPS", "Settings", "run"]

STEPS = (1, 2, 5, 10, 20, 50, 100)
EQUAL = (4, 8, 20, 40, 100)  # evaluations at which Euler meets RK4
TRACED = 100  # samples whose trajectories are kept


@dataclass(frozen=True)
class Settings:
    """What the demonstration does.

    Attributes
    ----------
    data
        ``"digits"`` (scikit-learn's, 8 x 8), ``"mnist"`` or ``"cifar10"``.
    root
        Folder of the data, for the last two.
    size
        Side of the images, for MNIST: 28 or 32.
    steps, batch_size, lr
        Training of either model.
    samples
        Images made by every sampler; by default as many as the test set has, 1000 at most.
    seed, out, device, progress
        The seed of everything, the folder of the results, where to run, whether to show bars.
    download
        Whether to fetch MNIST if the folder lacks it.
    long
        Whether ancestral sampling also runs with 1000 steps.
    """

    data: str = "digits"
    root: str | None = None
    size: int = 28
    steps: int = 3000
    batch_size: int = 64
    lr: float = 2e-3
    samples: int | None = None
    seed: int = 0
    out: Path = Path("runs/demo")
    device: str | None = None
    progress: bool = True
    long: bool = True
    download: bool = False

    def __post_init__(self) -> None:
        if self.data not in ("digits", "mnist", "cifar10"):
            raise ValueError(f"data must be digits, mnist or cifar10, got {self.data!r}")
        if self.size != Settings.size and self.data != "mnist":
            raise ValueError(f"size is for MNIST; the images of {self.data} have one size")
        if self.download and self.data != "mnist":
            raise ValueError(f"download is for MNIST; {self.data} is not fetched")
        for name in ("steps", "batch_size", "samples"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be a positive integer, got {value!r}")


class Models(NamedTuple):
    """The two trained predictors, and how their training went."""

    flow: predict.Velocity
    diffusion: predict.Noise
    fits: dict[str, Fit]


class Arm(NamedTuple):
    """One way of sampling: which generator, by which solver, at which numbers of steps."""

    model: str
    sampler: str
    generator: Operator
    solver: Solver
    steps: tuple[int, ...]


def run(settings: Settings) -> dict[str, Any]:
    """Train, sample, measure, and write ``results.json``, ``report.html`` and the figures; returns the results."""
    begin = time.perf_counter()
    say = print if settings.progress else lambda *_: None
    train, test = _load(settings)
    say(f"{settings.data}: {len(train.images)} training and {len(test.images)} test images")
    classifier = train_classifier(train, steps=600, seed=settings.seed, progress=settings.progress)
    accuracy = classifier.accuracy(test)
    reference = metrics.Moments.of(train.images, classifier.features)
    count = settings.samples or min(len(test.images), 1000)
    if count > len(test.images):
        raise ValueError(f"samples must be at most the {len(test.images)} test images, the floor, got {count}")
    floor = metrics.frechet(test.images[:count], reference, classifier.features).value
    say(f"classifier: {accuracy:.1%} of the test labels right; Frechet distance of test from train images {floor:.3f}")

    models = _train(settings, train)
    parameters = sum(p.numel() for p in models.flow.parameters())
    scale = Scale(classifier, reference, count, tuple(train.images.shape[1:]), settings)
    records, images, curvatures = _measure(models, scale)
    results = {
        "data": settings.data,
        "train_steps": settings.steps,
        "parameters": parameters,
        "seconds": round(time.perf_counter() - begin, 1),
        "accuracy": accuracy,
        "floor": floor,
        "samples": count,
        "train_seconds": {name: fitted.seconds for name, fitted in models.fits.items()},
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(settings).items()},
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "records": records,
    }
    settings.out.mkdir(parents=True, exist_ok=True)
    (settings.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    losses = {name: fitted.losses for name, fitted in models.fits.items()}
    page = write_report(settings.out, results, test.images[:count], images, curvatures, losses)
    say(f"{results['seconds']:.0f} s in all; see {page}")
    return results


def _load(settings: Settings) -> tuple[Labelled, Labelled]:
    readers: dict[str, Callable[[str], Labelled]] = {
        "digits": datasets.digits,
        "mnist": lambda split: datasets.mnist(
            settings.root, split, settings.size, download=settings.download, progress=settings.progress
        ),
        "cifar10": lambda split: datasets.cifar10(settings.root, split, progress=settings.progress),
    }
    device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    parts = (readers[settings.data](split) for split in ("train", "test"))
    train, test = (Labelled(p.images.to(device), p.labels.to(device), p.classes) for p in parts)
    return train, test


def _network(settings: Settings, images: Tensor, time_scale: float) -> UNet:
    """The same network, from the same seed, for either model."""
    torch.manual_seed(settings.seed)
    channels = images.shape[1]
    if settings.data == "digits":
        network = UNet(channels, width=32, multipliers=(1, 2), blocks=(1, 2), attention=(), time_scale=time_scale)
    else:
        network = UNet(channels, time_scale=time_scale, attention=(1,))
    return network.to(images.device)


def _train(settings: Settings, train: Labelled) -> Models:
    flow = predict.Velocity(_network(settings, train.images, 1000.0), GaussianPath(schedules.CondOT()))
    # The chain's index 0 .. 999 is fed as it is.
    diffusion = predict.Noise(_network(settings, train.images, 1.0), GaussianPath(schedules.DDPM()))
    fits = {}
    for name, model in (("flow", flow), ("diffusion", diffusion)):
        if settings.progress:
            print(f"training the {name}: {settings.steps} steps")
        fits[name] = fit(
            model,
            train.images,
            settings.steps,
            batch_size=settings.batch_size,
            lr=settings.lr,
            warmup=min(100, settings.steps // 10),
            schedule="cosine",
            ema=0.999,
            seed=settings.seed,
            progress=settings.progress,
        )
        _keep_average(fits[name])
        model.eval()
    return Models(flow, diffusion, fits)


def _keep_average(fitted: Fit) -> None:
    """Leave the averaged weights in the model."""
    with fitted.ema.applied():  # type: ignore[union-attr]
        averaged = {name: value.clone() for name, value in fitted.model.state_dict().items()}
    fitted.model.load_state_dict(averaged)


def _arms(models: Models, long: bool) -> list[Arm]:
    flow, diffusion = Flow(models.flow), Flow(models.diffusion)
    hybrid = 0.5 * flow + 0.5 * Diffusion(models.flow)
    euler = tuple(sorted({*STEPS, *EQUAL}))
    return [
        Arm("flow", "Euler", flow, Euler(), euler),
        Arm("flow", "RK4", flow, RK4(), tuple(n // 4 for n in EQUAL)),
        Arm("flow", "Exponential", flow, Exponential(), STEPS),
        Arm("diffusion", "DDIM", diffusion, DDIM(), STEPS),
        Arm("diffusion", "Exponential", diffusion, Exponential(), STEPS),
        Arm("diffusion", "DDPM", diffusion, DDPM(), (*STEPS, 1000) if long else STEPS),
        Arm("hybrid", "Exponential", hybrid, Exponential(order=1), STEPS),
    ]


class Scale(NamedTuple):
    """What samples are measured by, and how many of them there are."""

    classifier: Classifier
    reference: metrics.Moments
    images: int
    shape: tuple[int, ...]
    settings: Settings

    def measure(self, arm: Arm, steps: int) -> tuple[dict[str, Any], Tensor, Tensor]:
        """A record, the first images, and the curvature of each traced sample."""
        device = self.reference.mean.device
        noise = Draws(self.settings.seed, self.images, device=device).normal((self.images, *self.shape))
        states = [noise[:TRACED]]
        begin = time.perf_counter()
        images = sample(
            arm.generator,
            noise,
            steps=steps,
            solver=arm.solver,
            seed=self.settings.seed,
            callback=lambda i, t, x: states.append(x[:TRACED].clone()),  # a view would keep every whole state
        )
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - begin
        bent = metrics.curvature(torch.stack(states))
        plan = arm.solver.plan(Field(arm.generator, noise), torch.linspace(0, 1, steps + 1, dtype=torch.float64))
        record = {
            "model": arm.model,
            "sampler": arm.sampler,
            "steps": steps,
            "evaluations": arm.solver.evaluations(plan),
            "frechet": metrics.frechet(images, self.reference, self.classifier.features).value,
            "curvature": bent.median,
            "ms_per_image": 1000 * seconds / self.images,
        }
        return record, images[:TRACED], bent.values


def _measure(models: Models, scale: Scale) -> tuple[list[dict[str, Any]], dict, dict]:
    arms = _arms(models, scale.settings.long)
    scale.measure(arms[0], 2)  # the first call pays for what is set up once
    records, images, curvatures = [], {}, {}
    total = sum(sum(arm.steps) * (4 if isinstance(arm.solver, RK4) else 1) for arm in arms)
    with tqdm(total=total, disable=not scale.settings.progress, unit="evaluation", desc="sampling") as bar:
        for arm in arms:
            for steps in arm.steps:
                record, images[arm.model, arm.sampler, steps], bent = scale.measure(arm, steps)
                curvatures[arm.model, arm.sampler, steps] = bent
                records.append(record)
                bar.update(record["evaluations"])
    return records, images, curvatures
