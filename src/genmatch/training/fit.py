"""Training: one function around a loss."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from os import PathLike
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..losses import matching_loss
from ..nn import EMA, PowerEMA
from ..random import Draws
from .checkpoint import Resume
from .data import make_batches
from .objective import Objective
from .optimizers import choose_optimizer, describe_optimizer
from .prefetch import Prefetch
from .rate import LearningRate, Schedule
from .report import Fit
from .run import Cadence, run
from .trainer import Average, Trainer

__all__ = ["fit"]


def fit(
    model: nn.Module,
    data: Any,
    steps: int,
    *,
    batch_size: int | None = None,
    condition: str | Sequence[str] | None = None,
    loss: Callable[..., Tensor] | None = None,
    optimizer: Optimizer | None = None,
    lr: float | None = None,
    warmup: int = 0,
    schedule: Schedule = "constant",
    accumulate: int = 1,
    clip: float | None = 1.0,
    ema: float | Average | None = 0.999,
    autocast: Literal["bf16"] | torch.dtype | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    channels_last: bool = False,
    compile: bool | Literal["network", "step"] = False,
    prefetch: bool = True,
    log: str | PathLike[str] | None = None,
    log_every: int = 50,
    checkpoint: str | PathLike[str] | None = None,
    checkpoint_every: int = 1000,
    resume: Resume = True,
    progress: bool = True,
    callback: Callable[[Fit], object] | None = None,
) -> Fit:
    r"""Train a model; go on from the last checkpoint if there is one.

    Step k = 0, 1, ... lowers the mean loss of G = ``batch_size * accumulate`` samples. All that is random in it is a
    function of (``seed``, k): which samples (each epoch is a permutation given by the seed and its number), the numbers
    the loss draws (``Draws(seed, ..., first_index=i, step=k)`` for samples from the i-th of the G), and the state of
    torch's global generators, which dropout uses; those are afterwards as they were before. So a run that is killed
    at any moment and resumed from its checkpoint ends in the same weights, bit for bit on a CPU, and wherever the
    device's kernels repeat themselves; and accumulation changes the result by rounding alone, for a loss whose draws
    and terms belong to single samples (not with optimal-transport pairing, stratified times, batch normalisation or
    dropout).

    Parameters
    ----------
    model
        A predictor such as :class:`genmatch.predict.Velocity`, or any module if ``loss`` is given. Trained in place.
    data
        A tensor ``(N, *S)``; a tuple ``(x1, {"label": y})`` of tensors with N rows; ``(x1, y)``, a ``TensorDataset``,
        or images of :mod:`genmatch.data`, with ``condition="label"``; or an iterable of batches in these forms, such
        as a DataLoader, which is iterated again at its end. On a product x1 is a dict of tensors. Tensors of up to
        2 GiB move to the device once.
    steps
        Optimisation steps in all, those of a resumed run included.
    batch_size
        Samples at once for data in memory, 128 by default; an iterable brings its own batches.
    condition
        What the tensors after x1 are called: one name or several.
    loss
        Called as ``loss(model, x1, condition=condition, draws=draws)``, returns a scalar; by default
        :func:`genmatch.matching_loss`; ``functools.partial(gm.matching_loss, time=...)`` sets its options.
    optimizer
        Over the model's parameters; by default AdamW with torch's settings, fused where possible.
    lr
        Learning rate of the default optimiser, 2e-4 by default.
    warmup
        Steps in which the learning rate rises linearly from 0.
    schedule
        Then ``"constant"``, ``"cosine"`` (to 0 at ``steps``), or a function of k that gives a factor;
        see :class:`genmatch.training.LearningRate`.
    accumulate
        Batches to a step, weighted by their sizes: a large batch in little memory.
    clip
        Largest norm of the whole gradient; ``None`` leaves it alone.
    ema
        Decay per step of a moving average of the weights (:class:`genmatch.nn.EMA`, with its warm-up), or such an
        object, or a :class:`genmatch.nn.PowerEMA`, or ``None``.
    autocast
        ``"bf16"`` computes the loss under ``torch.autocast`` in bfloat16. There is no float16: it needs loss scaling.
    seed
        In [0, 2**64).
    device
        Where to train; moves the model. By default where the model is.
    channels_last
        Images and convolutions in that memory layout.
    compile
        ``"network"`` or ``True`` compiles ``model.network`` in place (the model itself if it has none), unless it is
        compiled already. ``"step"`` compiles corruption, network and loss as one graph, for
        :func:`genmatch.matching_loss`, with ``functools.partial`` or without. The draws stay outside the graph.
    prefetch
        Pair source and data of the next step on a thread while this one runs, if the path's coupling says that it is
        ``costly``, as optimal transport is, and the loss is :func:`genmatch.matching_loss`. The run is the same bit for
        bit, as long as source and coupling take their random numbers from the draws that they are given. Batches of an
        iterable are copied then, as it may fill one buffer again and again.
    log
        A ``.csv`` or ``.jsonl`` file of :class:`genmatch.training.Row`. A resumed run drops the rows after its
        checkpoint and appends; another run overwrites the log.
    log_every
        Steps from row to row. The host reads losses only there and at checkpoints.
    checkpoint
        A folder, or a file ``NAME.safetensors``, for the state of the run; the one before is kept beside it. It is also
        written at the end, and on Ctrl-C before KeyboardInterrupt is raised (after the step; a second Ctrl-C raises at
        once).
    checkpoint_every
        Steps from checkpoint to checkpoint.
    resume
        ``True`` goes on from the checkpoint if there is one; ``False`` starts over, replacing it; ``"previous"`` takes
        the one before the last, for when the last is damaged.
    progress
        Show a bar.
    callback
        Called with the :class:`Fit` so far at every row, after the losses were read; ``True`` ends the training. What
        it draws, and whether it calls ``model.eval()``, does not change the run.

    Returns
    -------
    Fit
        Losses, rows, steps, seconds and the average. The model and its submodules are in train or eval mode as before.

    Raises
    ------
    ValueError, TypeError
        On arguments or data that make no sense, a damaged checkpoint, and a checkpoint of a run with other settings.
        What cannot be compared (the code of the network and of the loss, functions) is compared by name.
    FloatingPointError
        If a loss, a gradient or a weight is not finite: at the next row or checkpoint, which is not written then.

    Notes
    -----
    A resumed run draws the batches that an iterable has given in this epoch again, and drops them. It repeats itself if
    the iterable does under the same state of torch's global generator: a shuffling DataLoader does, with worker
    processes too; ``random``, numpy and persistent workers that draw do not. A ``RuntimeWarning`` tells of it.

    Given pairs (reflow) travel as a condition: ``data=(x1, {"x0": x0})`` with ``loss=lambda model, x1, condition,
    draws: gm.matching_loss(model, x1, x0=condition["x0"], draws=draws)``.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Linear(2, 2, bias=False)
    >>> def loss(model, x1, condition, draws):
    ...     return (model(draws.normal(x1.shape)) - x1).square().mean()
    >>> run = fit(model, torch.ones(64, 2), 5, loss=loss, batch_size=32, ema=None, progress=False)
    >>> run.step, len(run.losses)
    (5, 5)
    """
    _check_counts(1, steps=steps, accumulate=accumulate, log_every=log_every, checkpoint_every=checkpoint_every)
    _check_counts(0, warmup=warmup, seed=seed)
    if batch_size is not None:
        _check_counts(1, batch_size=batch_size)
    precision = _check_options(model, clip, autocast, ema, resume, compile)
    _check_functions(loss=loss, callback=callback)
    if not isinstance(prefetch, bool):
        raise TypeError(f"prefetch must be True or False, got {prefetch!r}")
    place = _move(model, device, channels_last)
    batches = make_batches(
        data,
        batch_size=batch_size,
        accumulate=accumulate,
        condition=condition,
        seed=Draws(seed).seed,
        device=place,
        channels_last=channels_last,
    )
    if loss is None:
        loss = matching_loss
    objective = Objective(
        model, loss, seed=seed, device=place, autocast=precision, compiled=compile == "step", steps=steps
    )
    chosen = choose_optimizer(model, optimizer, lr)
    rate = LearningRate(chosen, steps, warmup, schedule)
    average = _average(ema, model)
    settings = {
        "model": type(model).__name__,
        "path": re.sub(r" at 0x[0-9a-f]+", "", repr(getattr(model, "path", None))),
        "loss": _name(loss),
        "seed": seed,
        "clip": clip,
        "ema": _describe_average(average),
        "autocast": str(precision),
        "warmup": warmup,
        "schedule": schedule if isinstance(schedule, str) else _name(schedule),
        **({} if schedule == "constant" else {"steps": steps}),
        **describe_optimizer(chosen),
        **batches.settings(),
    }
    ahead = Prefetch(batches, objective.pair if prefetch and objective.pairs_ahead else None, steps, place)
    trainer = Trainer(model, batches, ahead, objective, chosen, rate, average, seed=seed, clip=clip, device=place)
    cadence = Cadence(steps, log_every, checkpoint_every)
    return run(trainer, cadence, settings, checkpoint, resume, log, progress, callback, compile in (True, "network"))


def _check_counts(least: int, /, **counts: int) -> None:
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int):
            raise TypeError(f"{name} must be an integer, got {count!r}")
        if count < least:
            raise ValueError(f"{name} must be at least {least}, got {count}")


def _check_functions(**functions: Any) -> None:
    for name, function in functions.items():
        if function is not None and not callable(function):
            raise TypeError(f"{name} must be a function, got {function!r}")


def _check_options(model: Any, clip: Any, autocast: Any, ema: Any, resume: Any, compile: Any) -> torch.dtype | None:
    """Raise on options that make no sense; returns the dtype of autocast."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch module such as gm.predict.Velocity(...), got {type(model).__name__}")
    if clip is not None and not (isinstance(clip, int | float) and not isinstance(clip, bool) and clip > 0):
        raise ValueError(f"clip must be a positive number or None, got {clip!r}")
    if autocast not in (None, "bf16", torch.bfloat16):
        raise ValueError(f"autocast must be 'bf16' or None, got {autocast!r}: float16 would need loss scaling")
    if isinstance(ema, int | float):
        if isinstance(ema, bool) or not 0 <= ema < 1:
            raise ValueError(f"ema must be a decay in [0, 1), got {ema}")
    elif ema is not None and not all(callable(getattr(ema, name, None)) for name in ("update", "state_dict")):
        raise TypeError(f"ema must be a decay such as 0.999, a genmatch.nn.EMA or None, got {ema!r}")
    if not isinstance(resume, bool) and resume != "previous":
        raise ValueError(f"resume must be True, False or 'previous', got {resume!r}")
    if not isinstance(compile, bool) and compile not in ("network", "step"):
        raise ValueError(f"compile must be 'network' (or True), 'step' or False, got {compile!r}")
    return None if autocast is None else torch.bfloat16


def _move(model: nn.Module, device: torch.device | str | None, channels_last: bool) -> torch.device:
    """Move the model where it is to be trained; returns the place, with its index on an accelerator."""
    if device is not None:
        model.to(device)
    if channels_last:
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    first = next(model.parameters(), None)
    if first is None:
        raise ValueError(f"{type(model).__name__} has no parameter to train")
    return first.device


def _average(ema: float | Average | None, model: nn.Module) -> Average | None:
    if isinstance(ema, int | float):
        return EMA(model, decay=ema)
    if isinstance(ema, EMA | PowerEMA) and not any(ema.module is module for module in model.modules()):
        raise ValueError(f"ema averages another {type(ema.module).__name__} than the one that is trained")
    return ema


def _describe_average(average: Average | None) -> str | None:
    if isinstance(average, EMA):
        return f"decay {average.decay!r}, {'with' if average.warmup else 'without'} warmup"
    if isinstance(average, PowerEMA):
        return f"power profiles of sigma_rel {average.sigma_rel}"
    return None if average is None else _name(average)


def _name(value: Any) -> str:
    """What stands for a function or an object among the settings."""
    if isinstance(value, partial):
        return f"partial({_name(value.func)})"
    return getattr(value, "__qualname__", type(value).__name__)
