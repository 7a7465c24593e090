"""Solvers: pure steps over a plan of host numbers."""

from .adams import AdamsBashforth
from .adaptive import Dopri5
from .churn import Churn
from .deis import DEIS, IPNDM
from .dpm import DPMSolver
from .end_point import EndPoint
from .exponential import DDIM, DDPM, Exponential
from .field import Field
from .first_hitting import FirstHitting
from .jump_thinning import JumpThinning
from .laws import CategoricalLaw, GaussianLaw, PointLaw, ProductLaw, TransitionLaw
from .optimised_grid import optimise_grid
from .report import Report, UnfinishedError
from .runge_kutta import RK4, BogackiShampine, DormandPrince, Euler, Heun, Midpoint, Ralston, RungeKutta
from .sampler import Sampler
from .single_step import DPMSolverSingle
from .solver import Solver
from .stochastic import SRA, SRI
from .strang import Strang
from .thinning import Thinning
from .torchdiffeq import TorchDiffEq
from .transition_law import StepLaw, find_law, step_law
from .two_event import TwoEvent
from .unipc import UniPC
from .unmasking import Confidence, Remasking

__all__ = [
    "DDIM",
    "DDPM",
    "DEIS",
    "IPNDM",
    "RK4",
    "SRA",
    "SRI",
    "AdamsBashforth",
    "BogackiShampine",
    "CategoricalLaw",
    "Churn",
    "Confidence",
    "DPMSolver",
    "DPMSolverSingle",
    "Dopri5",
    "DormandPrince",
    "EndPoint",
    "Euler",
    "Exponential",
    "Field",
    "FirstHitting",
    "GaussianLaw",
    "Heun",
    "JumpThinning",
    "Midpoint",
    "PointLaw",
    "ProductLaw",
    "Ralston",
    "Remasking",
    "Report",
    "RungeKutta",
    "Sampler",
    "Solver",
    "StepLaw",
    "Strang",
    "Thinning",
    "TorchDiffEq",
    "TransitionLaw",
    "TwoEvent",
    "UnfinishedError",
    "UniPC",
    "find_law",
    "optimise_grid",
    "step_law",
]
