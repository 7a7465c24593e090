"""Predictors: a network, the path it was trained on, and every reading of what it predicts."""

from . import clocks
from .affine import Affine, Data, Karras, Noise, Prediction, Row, Score, V, Velocity
from .bridge import BridgeData, BridgePrediction
from .density import Density, DensityInstant, DensityPrediction
from .motion import Motion, MovingPrediction
from .predictor import Learned, Predictor
from .product import Product, ProductPrediction
from .rates import Rates, RatesPrediction
from .reschedule import Reschedule
from .survival import Survival, SurvivalPrediction
from .tangent import TangentPrediction, TangentVelocity
from .tokens import TokenPrediction, Tokens
from .variance import Variance, VariancePrediction

__all__ = [
    "Affine",
    "BridgeData",
    "BridgePrediction",
    "Data",
    "Density",
    "DensityInstant",
    "DensityPrediction",
    "Karras",
    "Learned",
    "Motion",
    "MovingPrediction",
    "Noise",
    "Prediction",
    "Predictor",
    "Product",
    "ProductPrediction",
    "Rates",
    "RatesPrediction",
    "Reschedule",
    "Row",
    "Score",
    "Survival",
    "SurvivalPrediction",
    "TangentPrediction",
    "TangentVelocity",
    "TokenPrediction",
    "Tokens",
    "V",
    "Variance",
    "VariancePrediction",
    "Velocity",
    "clocks",
]
