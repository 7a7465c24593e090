"""Predictors: a network, the path it was trained on, and every reading of what it predicts."""

from . import clocks
from .affine import Affine, Data, Karras, Noise, Prediction, Row, Score, V, Velocity
from .predictor import Predictor
from .product import Product, ProductPrediction
from .reschedule import Reschedule
from .tokens import TokenPrediction, Tokens

__all__ = [
    "Affine",
    "Data",
    "Karras",
    "Noise",
    "Prediction",
    "Predictor",
    "Product",
    "ProductPrediction",
    "Reschedule",
    "Row",
    "Score",
    "TokenPrediction",
    "Tokens",
    "V",
    "Velocity",
    "clocks",
]
