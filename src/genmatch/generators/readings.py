"""What flow and noise read off a model, on a Gaussian path and elsewhere."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..diffusivity import Diffusivity
from ..paths import GaussianPath
from ..predict import Predictor
from ..schedules import Number
from .operator import Generator, check_reading

__all__ = ["check_affine", "half_noise"]


def check_affine(generator: Generator, model: Predictor, reading: str) -> None:
    """Raise unless the model has ``reading``, "velocity" or "score".

    A network on a Gaussian path has both by its class, and whether they may be read off it depends on the path.
    """
    path = model.path
    if not isinstance(path, GaussianPath) and reading not in model.readings:
        raise TypeError(
            f"{type(generator).__name__} needs a model on a GaussianPath, got one on {path!r} "
            f"that has no {reading} of its own" + (": tokens jump, by gm.CTMC(model)" if path.space.discrete else "")
        )
    check_reading(generator, model, reading)
    if not _is_affine(model):
        return
    if not path.readable and model.kind != reading:
        raise ValueError(
            f"on {path!r} noise is added to the state, so the {reading} cannot be read off a {model.kind} network"
        )
    if reading == "score" and not path.has_score:
        raise ValueError(
            f"{type(generator).__name__} needs the score, and there is none to be read on {path!r}: "
            f"{path.why_no_score()}. Use Flow, or an independent coupling with the standard normal source"
        )


def half_noise(prediction: Any, diffusivity: Diffusivity, variance: Number) -> Tensor:
    r""":math:`\tfrac12 g_t^2\nabla\log p_t`, by the noise prediction where there is one."""
    if not _is_affine(prediction.model):
        return variance / 2 * prediction.score
    if prediction.model.kind == "score":
        return variance / 2 * prediction.native
    # By the noise and not by the score: the quotient by sigma is taken where its limit is known.
    return prediction.combine(0.0, -0.5 * diffusivity.per_sigma(prediction.instant))


def _is_affine(model: Predictor) -> bool:
    """Whether data and noise can be read off it by two coefficients."""
    return isinstance(model.path, GaussianPath) and "noise" in model.readings
