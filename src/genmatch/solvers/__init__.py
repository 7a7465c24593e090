"""Solvers: pure steps over a plan of host numbers."""

from .end_point import EndPoint
from .exponential import DDIM, DDPM, Exponential
from .field import Field
from .first_hitting import FirstHitting
from .jump_thinning import JumpThinning
from .report import Report, UnfinishedError
from .runge_kutta import RK4, Euler, Heun, Midpoint, RungeKutta
from .solver import Solver
from .strang import Strang
from .thinning import Thinning
from .two_event import TwoEvent
from .unmasking import Confidence, Remasking

__all__ = [
    "DDIM",
    "DDPM",
    "RK4",
    "Confidence",
    "EndPoint",
    "Euler",
    "Exponential",
    "Field",
    "FirstHitting",
    "Heun",
    "JumpThinning",
    "Midpoint",
    "Remasking",
    "Report",
    "RungeKutta",
    "Solver",
    "Strang",
    "Thinning",
    "TwoEvent",
    "UnfinishedError",
]
