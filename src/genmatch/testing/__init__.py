"""A conformance suite for generators: is it one, does it say the truth about itself, does it move its path?"""

from __future__ import annotations

from .conformance import check_generator
from .report import Check, ConformanceError, Report

__all__ = ["Check", "ConformanceError", "Report", "check_generator"]
