r"""The predictor of products: one network that sees the whole state and predicts for each of its factors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from torch import Tensor, nn

from ..paths import Path
from ..paths.product import ProductInstant, ProductPath
from ..schedules import check_positive
from ..spaces.states import State, same_factors
from .predictor import Condition, Learned, Predictor, spread

__all__ = ["Product", "ProductPrediction"]


class ProductPrediction:
    """The factors' predictions, by name."""

    __slots__ = ("factors", "instant")

    def __init__(self, factors: Mapping[str, Any], instant: ProductInstant) -> None:
        self.factors, self.instant = factors, instant

    def __getitem__(self, name: str) -> Any:
        return self.factors[name]

    @property
    def strict(self) -> bool:
        """Whether readings that are not finite are refused."""
        return all(getattr(factor, "strict", False) for factor in self.factors.values())

    @strict.setter
    def strict(self, strict: bool) -> None:
        for factor in self.factors.values():
            if hasattr(factor, "strict"):
                factor.strict = strict


class Product(Predictor):
    r"""A network that is called with the whole state, a dict, and returns a dict of outputs.

    Parameters
    ----------
    network
        Called as ``network(x, t, **condition)``: x a dict of factors ``(B, *S)``, t a dict of their times ``(B,)``, as
        each factor's predictor feeds them; returns a dict of what each factor's predictor asks of a network.
    factors
        What is predicted of each factor, by name: predictor classes such as ``gm.predict.Velocity``, or functions
        ``(network, path) -> predictor`` to pass them options.
    path
        A :class:`~genmatch.ProductPath`.
    weights
        What each factor's loss is multiplied by in the sum; 1 by default.

    Examples
    --------
    >>> import genmatch as gm, torch
    >>> path = gm.ProductPath({"label": gm.MixturePath(3), "point": gm.GaussianPath()})
    >>> class Joint(torch.nn.Module):
    ...     def forward(self, x, t):
    ...         return {"label": torch.zeros(len(x["label"]), 3), "point": -x["point"]}
    >>> model = gm.predict.Product(Joint(), {"label": gm.predict.Tokens, "point": gm.predict.Velocity}, path)
    >>> x = gm.sample(gm.Product(model, {"label": gm.CTMC, "point": gm.Flow}),
    ...               {"label": (4,), "point": (4, 2)}, steps=3, seed=0)
    >>> x["point"].shape
    torch.Size([4, 2])
    """

    kind = "product"
    readings = frozenset({"factors"})
    path: ProductPath

    def __init__(
        self,
        network: nn.Module,
        factors: Mapping[str, Callable[[nn.Module, Any], Predictor]],
        path: ProductPath,
        *,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(path, ProductPath):
            raise TypeError(f"Product needs a ProductPath, got {type(path).__name__}")
        if not isinstance(network, nn.Module):
            raise TypeError(f"the network must be a torch.nn.Module, got {type(network).__name__}")
        same_factors("factors", factors, path.factors)
        weights = dict.fromkeys(path.factors, 1.0) if weights is None else weights
        same_factors("weights", weights, path.factors)
        self.network, self.path, self.weights = network, path, dict(weights)
        for name, weight in self.weights.items():
            check_positive(f"the weight of {name!r}", weight, zero=True)
        self._models = {name: _make(name, factors[name], own) for name, own in path.factors.items()}
        self.factors = nn.ModuleDict(named(self._models))

    @property
    def models(self) -> dict[str, Learned]:
        """The factors' predictors; their networks are this one's."""
        return dict(self._models)

    def at(self, t: Tensor, until: Tensor | None = None) -> ProductInstant:
        """Every factor's numbers."""
        return self.path.gather(self.models, t, until)

    def each(self, t: Mapping[str, Any], x: State) -> ProductInstant:
        """The numbers at times given factor by factor."""
        return self.path.separate(self.models, t, x)

    def native(self, x: State, instant: ProductInstant, condition: Condition = None) -> State:
        """The network's dict of outputs; a wrong name or shape raises."""
        asked = self.models.items()
        inputs = {name: model.inputs(x[name], instant.factors[name]) for name, model in asked}
        times = {name: spread(model.time(instant.factors[name]), x[name]) for name, model in asked}
        outputs = self.network(inputs, times, **condition) if condition else self.network(inputs, times)
        same_factors("what the network returns", outputs, self.path.factors)
        return {name: model.checked(outputs[name], x[name]) for name, model in asked}

    def prediction(self, x: State, instant: ProductInstant, native: State) -> ProductPrediction:
        """The factors' predictions."""
        factors = {n: m.prediction(x[n], instant.factors[n], native[n]) for n, m in self.models.items()}
        return ProductPrediction(factors, instant)

    def blank(self, x: State) -> State:
        """Every factor's made-up output."""
        return {name: model.blank(x[name]) for name, model in self.models.items()}

    def error(self, native: State, x: State, x0: State, x1: State, instant: ProductInstant) -> State:
        """Every factor's, by name."""
        return {
            name: model.error(native[name], x[name], x0[name], x1[name], instant.factors[name])
            for name, model in self.models.items()
        }

    def scored(self, x: State, x1: State) -> NoReturn:
        self._ask_factors()

    def per_data(self, instant: Any) -> NoReturn:
        self._ask_factors()

    def _ask_factors(self) -> NoReturn:
        raise TypeError("a product has no loss of its own: its factors' losses add")

    def reads(self, instant: ProductInstant) -> bool:
        """Whether every factor reads."""
        return all(model.reads(instant.factors[name]) for name, model in self.models.items())

    def extra_repr(self) -> str:
        return f"path={self.path!r}"


def named(modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Modules under names that no attribute of a module has: a factor may be called "type"."""
    return {f"{name}_": module for name, module in modules.items()}


def _make(name: str, make: Any, path: Path) -> Learned:
    """A factor's predictor, on the factor's path and on no network of its own."""
    if isinstance(make, nn.Module):
        raise TypeError(
            f"the factor {name!r} needs a predictor class such as gm.predict.Velocity, or a function (network, path) "
            f"-> predictor, got a {type(make).__name__} that is made already"
        )
    joint = _Joint()
    try:
        model = make(joint, path)
    except (TypeError, ValueError) as error:
        raise type(error)(f"the factor {name!r}: {error}") from error
    if not isinstance(model, Learned):
        raise TypeError(
            f"the factor {name!r} needs a predictor that trains a network such as gm.predict.Velocity, "
            f"got {type(model).__name__}"
        )
    if model.network is not joint or model.path != path:
        raise ValueError(
            f"the predictor of the factor {name!r} must be made of the network and the path it is given: "
            f"lambda network, path: {type(model).__name__}(network, path, ...)"
        )
    return model


class _Joint(nn.Module):
    """Stands where a factor's predictor keeps its network: the product's is called for all of them."""

    def forward(self, *inputs: Any, **condition: Any) -> NoReturn:
        raise TypeError("this factor's network is the product's: call the product's predictor")
