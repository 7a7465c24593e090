"""A run from start to end: steps, rows, checkpoints, interruption."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from os import PathLike
from typing import Any, NamedTuple

import torch
from torch import nn
from tqdm import tqdm

from .checkpoint import Checkpoint, Resume, Saved, check_settings
from .interrupt import DeferredInterrupt
from .log import Log
from .meter import Meter, Moment
from .report import Fit, Report
from .seeds import keep_generators
from .trainer import Trainer

__all__ = ["Cadence", "run"]


class Cadence(NamedTuple):
    """How many steps there are, and how many lie between two rows and two checkpoints."""

    steps: int
    log_every: int
    checkpoint_every: int


def run(
    trainer: Trainer,
    cadence: Cadence,
    settings: dict[str, Any],
    checkpoint: str | PathLike[str] | None,
    resume: Resume,
    log: str | PathLike[str] | None,
    progress: bool,
    callback: Callable[[Fit], object] | None,
    compile_network: bool,
) -> Fit:
    """Do the steps that a checkpoint does not have yet; see :func:`genmatch.training.fit`."""
    store = None if checkpoint is None else Checkpoint(checkpoint)
    if store is None and resume == "previous":
        raise ValueError("resume='previous' goes on from a checkpoint: give checkpoint=")
    fit = Fit(trainer.model, trainer.ema)
    with ExitStack() as stack:
        stack.enter_context(keep_generators(trainer.device))
        stack.enter_context(_training(trainer.model))
        stack.callback(trainer.prefetch.close)
        stack.callback(trainer.rate.restore)
        stack.callback(trainer.optimizer.zero_grad, set_to_none=True)
        saved = None if store is None else store.open(resume)
        if saved is not None:
            _restore(trainer, fit, saved, settings, cadence.steps)
        if compile_network:
            _compile(getattr(trainer.model, "network", trainer.model))
        table = None if log is None else Log(log, fit.step)
        if table is not None:
            stack.callback(table.close)
        bar = stack.enter_context(
            tqdm(total=cadence.steps, initial=fit.step, disable=not progress, unit="step", dynamic_ncols=True)
        )
        interval = torch.empty(0, 2) if saved is None else saved.state["interval"]
        report = Report(fit, table, bar, interval)
        interrupt = DeferredInterrupt()
        if store is not None:  # without one there is nothing to do but stop
            stack.enter_context(interrupt)
        _loop(trainer, cadence, settings, store, fit, report, interrupt, callback)
    return fit


def _compile(network: Any) -> None:
    """Compile a network in place, unless its user has: with a backend and options of their own, perhaps."""
    if network._compiled_call_impl is None and not hasattr(network, "_orig_mod"):
        network.compile()


def _restore(trainer: Trainer, fit: Fit, saved: Saved, settings: dict[str, Any], steps: int) -> None:
    check_settings(saved, settings)
    if saved.step > steps:
        raise ValueError(
            f"{saved.path} is at step {saved.step}, beyond steps={steps}, which counts from the very start: ask for "
            "more, or load its weights by genmatch.training.load"
        )
    trainer.restore(saved)
    fit.start = fit.step = saved.step
    fit.seconds = saved.state["seconds"]


def _loop(
    trainer: Trainer,
    cadence: Cadence,
    settings: dict[str, Any],
    store: Checkpoint | None,
    fit: Fit,
    report: Report,
    interrupt: DeferredInterrupt,
    callback: Callable[[Fit], object] | None,
) -> None:
    meter = Meter()
    began = time.perf_counter() - fit.seconds
    for step in range(fit.start, cadence.steps):
        try:
            meter.add(*trainer.advance(step))
        except Exception as error:
            if interrupt.requested:  # Ctrl-C ends a loader's worker processes as well, and the loader complains
                raise KeyboardInterrupt from error
            raise
        fit.step = step + 1
        report.bar.update()
        last = fit.step == cadence.steps
        logged = last or fit.step % cadence.log_every == 0
        interrupted = interrupt.requested  # read once: Ctrl-C can come between any two lines
        stored = last or interrupted or fit.step % cadence.checkpoint_every == 0
        stop = False
        if logged or (stored and store is not None):
            fit.seconds = time.perf_counter() - began
            meter.launch(Moment(fit.step, trainer.lr, fit.seconds, trainer.samples, logged))
        report.take(meter.arrived(wait=last or (logged and callback is not None)))
        if logged and callback is not None:
            try:
                stop = callback(fit) is True
            except KeyboardInterrupt:
                interrupted = True
            trainer.model.train()
        if store is not None and (stored or stop or interrupted):
            report.take(meter.arrived(wait=True))
            trainer.check_weights()
            fit.seconds = time.perf_counter() - began
            state = {**trainer.state(), "interval": report.interval(), "seconds": fit.seconds}
            store.write(fit.step, settings, trainer.aliases(), state)
        if interrupted:
            raise KeyboardInterrupt
        if stop:
            break
    report.take(meter.arrived(wait=True))


@contextmanager
def _training(model: nn.Module) -> Iterator[None]:
    """Train mode, and afterwards the mode that each submodule had."""
    modes = {module: module.training for module in model.modules()}
    model.train()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
