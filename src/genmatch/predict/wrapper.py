"""A predictor around a predictor: guidance, or a change of schedule, of a trained model."""

from __future__ import annotations

from typing import Any, NoReturn

from torch import Tensor

from .predictor import Predictor

__all__ = ["Wrapper"]


class Wrapper(Predictor):
    """A trained predictor, used in another way; it is not trained itself."""

    def __init__(self, model: Predictor) -> None:
        super().__init__()
        if not isinstance(model, Predictor):
            raise TypeError(
                f"{type(self).__name__} wraps a predictor such as gm.predict.Velocity, got {type(model).__name__}"
            )
        if model.kind == "product":
            raise TypeError(f"{type(self).__name__} does not wrap a product: wrap the predictors of its factors")
        self.model, self.divergence, self.readings = model, model.divergence, model.readings

    def blank(self, x: Tensor) -> Tensor:
        """As the model's."""
        return self.model.blank(x)

    def error(self, native: Tensor, x: Tensor, x0: Tensor, x1: Tensor, instant: Any) -> NoReturn:
        self._refuse()

    def scored(self, x: Tensor, x1: Tensor) -> NoReturn:
        self._refuse()

    def per_data(self, instant: Any) -> NoReturn:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} predictor is not trained: train the predictor it wraps, .model")

    def extra_repr(self) -> str:
        return f"path={self.path!r}"
