"""Solvers: pure steps over a plan of host numbers."""

from .exponential import DDIM, DDPM, Exponential
from .field import Field
from .runge_kutta import RK4, Euler, Heun, Midpoint, RungeKutta
from .solver import Solver

__all__ = ["DDIM", "DDPM", "RK4", "Euler", "Exponential", "Field", "Heun", "Midpoint", "RungeKutta", "Solver"]
