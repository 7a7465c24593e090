"""What a run tells: its losses, the rows of its log, its progress bar."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .log import Log, Row
from .meter import Reading
from .trainer import Average

__all__ = ["Fit", "Report"]


@dataclass(eq=False)
class Fit:
    """A training run: what :func:`fit` returns, and what it gives to a callback on the way.

    Attributes
    ----------
    model
        The model, trained in place.
    ema
        The moving average of its weights, or ``None``; ``with fit.ema.applied(): ...`` puts it into the model.
    start, step
        Steps done before this call (by a run that it resumed), and by now.
    seconds
        Training time in all, that of the resumed run included.
    losses
        The loss of each step of this call, as far as it was read from the device.
    rows
        The rows of the log that this call wrote, whether or not to a file.
    """

    model: nn.Module
    ema: Average | None
    start: int = 0
    step: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)

    def __repr__(self) -> str:
        loss = f", loss {self.rows[-1].loss:.4g}" if self.rows else ""
        return f"Fit({type(self.model).__name__}, step {self.step} from {self.start}{loss}, {self.seconds:.1f} s)"


class Report:
    """Takes readings, refuses broken ones, and writes rows."""

    def __init__(self, fit: Fit, log: Log | None, bar: tqdm, interval: Tensor) -> None:
        self.fit, self.log, self.bar = fit, log, bar
        self._losses, self._norms = interval.T.tolist() if len(interval) else ([], [])
        self._step = fit.start

    def take(self, readings: Iterable[Reading]) -> None:
        """Note what has arrived.

        Raises
        ------
        FloatingPointError
            If a loss or a gradient norm is not finite.
        """
        for moment, losses, norms in readings:
            for loss, norm in zip(losses, norms, strict=True):
                self._step += 1
                if not (math.isfinite(loss) and math.isfinite(norm)):
                    raise FloatingPointError(self._complain(loss, norm, moment.lr))
                self._losses.append(loss)
                self._norms.append(norm)
                self.fit.losses.append(loss)
            if moment.logged:
                self._write(
                    Row(moment.step, _mean(self._losses), moment.lr, _mean(self._norms), moment.seconds, moment.samples)
                )
                self._losses, self._norms = [], []

    def interval(self) -> Tensor:
        """Losses and norms since the last row, ``(n, 2)``: a resumed run averages over them too."""
        return torch.tensor([self._losses, self._norms], dtype=torch.float64).T.contiguous()

    def _write(self, row: Row) -> None:
        self.fit.rows.append(row)
        self.bar.set_postfix_str(f"loss {row.loss:.4g}", refresh=False)
        if self.log is not None:
            self.log.write(row)

    def _complain(self, loss: float, norm: float, lr: float) -> str:
        what = (
            f"the loss of step {self._step} is {loss}"
            if not math.isfinite(loss)
            else (f"the gradient of step {self._step} has norm {norm} (its loss is {loss:.4g})")
        )
        before = f", that of the step before was {self.fit.losses[-1]:.4g}" if self.fit.losses else ""
        return (
            f"{what}{before}: the weights are spoilt, and no checkpoint of them was written. Common causes: too high "
            f"a learning rate (lr={lr:.3g} here), no warmup=, clip=None, extreme values in the data, a loss that is "
            "infinite at an end of time"
        )


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)
