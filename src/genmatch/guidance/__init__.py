"""Guidance: predictors around a trained predictor, for every generator and every solver.

A guided field generally carries no path of laws: with a guidance scale other than 0 and 1 the samples at time t do not
follow any :math:`p_t`, so what is proved of solvers and superpositions holds for the numbers, not for the law.
"""

from .classifier_free import ClassifierFree

__all__ = ["ClassifierFree"]
