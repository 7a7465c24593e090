r"""DPM-Solver and DPM-Solver++, multistep: extrapolation in log-SNR, for flows and for diffusions.

References
----------
.. [1] C. Lu et al., "DPM-Solver", arXiv 2206.00927, eq. 3.4 and Appendix B (noise prediction).
.. [2] C. Lu et al., "DPM-Solver++", arXiv 2211.01095, Algorithm 2 (2M), eq. 18 and Appendix B.6 (SDE-DPM-Solver++).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..schedules import Instant
from .exponential import Semilinear
from .exposure import exposure, noise_terms
from .field import Field
from .log_snr import (
    between,
    check_form,
    check_start,
    half_log_snr,
    moments,
    noisy_moments,
    of_changes,
    polynomial_gains,
    second_order_opening,
)
from .solver import read_order

__all__ = ["DPMSolver"]


class DPMSolver(Semilinear):
    r"""DPM-Solver++ (``form="data"``: 1M, 2M, 3M) and multistep DPM-Solver (``form="noise"``), one evaluation a step.

    In :math:`\lambda = \log(\alpha/\sigma)`, h the step in it and r the step before over this one, with X the data
    prediction and dashes for the steps before,

    .. math:: x_s = \tfrac{\sigma_s}{\sigma_t}\,x_t + \alpha_s(1 - e^{-h})\bigl[X + \tfrac{1}{2r}(X - X')\bigr]

    is order 2, and with noise of exposure G, that is of any :math:`g^2` and superposition,

    .. math:: x_s = \tfrac{\sigma_s}{\sigma_t}e^{-G}x_t + \alpha_s(1 - e^{-h-G})\bigl[X + \tfrac{1}{2r}(X - X')\bigr]
              + \sigma_s\sqrt{1-e^{-2G}}\;z ,

    which is SDE-DPM-Solver++(2M) where the noise is memoryless, G = h. Order 3 integrates the parabola through three
    predictions exactly. The form "noise" freezes the noise prediction instead, under noise too.

    Log-SNR is infinite where :math:`\alpha` or :math:`\sigma` is 0. A step that begins or ends there is of order 1, and
    so is the one after such a first step, which has no finite step to look back on. In a whole run from t = 0 to t = 1
    of CondOT, Cosine or VP orders 2 and 3 therefore fall to something between 1 and 2, whatever the form;
    :class:`Exponential` extrapolates in an angle, and keeps order 3 to both ends. Between finite log-SNRs (VE, EDM, or
    inside (0, 1)) the order is ``order``; with noise it is weak and at most 2.

    Parameters
    ----------
    order
        1, 2 or 3.
    form
        What is extrapolated: "data" or "noise".
    start
        How order 3 starts: "single" makes the first step twice, at one evaluation more, and is of order 3. "lower"
        makes one step of order 1 and one of order 2, as the papers' code does, and is of order 2. With order 1 and 2,
        with noise, or from infinite log-SNR they are the same.
    """

    guarded = False  # these are the published steps

    def __init__(self, order: int = 2, form: str = "data", start: str = "single") -> None:
        read_order(order, (1, 2, 3))
        self.predictions, self.form, self.opens = order, check_form(form), check_start(start) == "single"
        self.order = order if self.opens else min(order, 2)

    def damping(self, field: Field, t: Instant, s: Instant) -> tuple[Tensor, Tensor]:
        r""":math:`e^{-G}` and :math:`\sigma_s\sqrt{1-e^{-2G}}`; with frozen noise prediction :math:`1 - J_1` and
        :math:`\sigma_s\sqrt{J_2}`, but for steps of infinite log-SNR.
        """
        total = exposure(field, t, s)
        factor, std = torch.exp(-total), s.sigma * torch.sqrt(-torch.expm1(-2 * total))
        if self.form == "data" or not noise_terms(field):
            return factor, std
        _, first, second = noisy_moments(field, t, s, self.form, 0)
        inside = _finite(t, s)
        return torch.where(inside, 1 - first, factor), torch.where(inside, s.sigma * second.sqrt(), std)

    def gains(self, field: Field, times: Tensor, now: Instant) -> list[tuple[float, ...]]:
        """Order 2 by the midpoint rule of the papers, order 3 by the exact integral of a parabola."""
        t, s = between(now)
        h = half_log_snr(s.alpha, s.sigma) - half_log_snr(t.alpha, t.sigma)
        if self.predictions == 1 or len(h) == 1:
            return [()] * len(h)
        scale = s.alpha if self.form == "data" else s.sigma
        if noise_terms(field):
            moment, _, _ = noisy_moments(field, t, s, self.form, 2)
        else:
            moment = moments(h if self.form == "data" else -h, 2)
        parts, steps = (scale[:, None] * moment).tolist(), h.tolist()
        rows: list[tuple[float, ...]] = []
        behind = 0  # steps of finite length in log-SNR before this one
        for i, (part, inside) in enumerate(zip(parts, _finite(t, s).tolist(), strict=True)):
            reach = min(self.predictions - 1, behind)
            behind = behind + 1 if inside else 0
            if not inside or reach == 0:
                rows.append((0.0,) * reach)  # a last step to infinite log-SNR is compiled once, not with the one before
            elif reach == 1:
                rows.append((part[0] * steps[i] / (2 * steps[i - 1]),))
            else:
                last = -steps[i - 1] / steps[i]
                rows.append(of_changes(polynomial_gains((last, last - steps[i - 2] / steps[i]), part[1:])))
        return rows

    def opening(self, field: Field, now: Instant) -> float:
        """Order 3 makes its first step twice, unless it is told not to or the next is of order 1 anyway."""
        if self.predictions < 3 or not self.opens or len(now.t) < 3 or noise_terms(field):
            return 0.0
        if not bool(_finite(*between(now))[:2].all()):
            return 0.0
        return second_order_opening(now, self.form)

    def __repr__(self) -> str:
        start = "" if self.opens else ", start='lower'"
        return f"DPMSolver(order={self.predictions}, form={self.form!r}{start})"


def _finite(t: Instant, s: Instant) -> Tensor:
    """Whether log-SNR is finite at both ends of each step."""
    return (t.alpha > 0) & (t.sigma > 0) & (s.alpha > 0) & (s.sigma > 0)
