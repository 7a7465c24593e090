r"""Power-function averages over time: their widths, inner products, and one profile as a sum of others.

The profile :math:`p_{\gamma, t}(\tau) = (\gamma + 1) \tau^\gamma / t^{\gamma + 1}` on ``[0, t]`` weighs the weights of
time :math:`\tau` in an average that is read at time t.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["admission", "gamma_of", "inner_product", "mix_profiles", "sigma_rel_of"]

WIDEST = 12**-0.5  # gamma = 0: all of the training weighs the same


def sigma_rel_of(gamma: float) -> float:
    r"""Standard deviation of the profile over t, :math:`\sqrt{\gamma + 1} / ((\gamma + 2) \sqrt{\gamma + 3})`.

    Raises ``ValueError`` if gamma is negative. Equation 3 of Karras et al. (2023).
    """
    if not 0 <= gamma < math.inf:
        raise ValueError(f"gamma must be a number >= 0, got {gamma}")
    return math.sqrt(gamma + 1) / ((gamma + 2) * math.sqrt(gamma + 3))


def gamma_of(sigma_rel: float) -> float:
    r"""The exponent of the profile of a relative width in ``(0, 1 / sqrt(12)]``.

    With :math:`s = \sigma_{rel}^{-2}` it is the largest root of
    :math:`(\gamma + 2)^2 (\gamma + 3) = s (\gamma + 1)`. In :math:`y = \gamma + 7/3` the cubic is
    :math:`y^3 - (s + 1/3) y + 4 s / 3 + 2 / 27`, which has three real roots for s >= 12: Viete's cosine gives it.

    Raises ``ValueError`` if the width is outside of that interval, ``TypeError`` if it is not a number.
    """
    if isinstance(sigma_rel, bool) or not isinstance(sigma_rel, int | float):
        raise TypeError(f"sigma_rel must be a number, got {sigma_rel!r}")
    if not 0 < sigma_rel <= WIDEST:
        raise ValueError(f"sigma_rel must be in (0, 12**-0.5 = {WIDEST:.4f}], got {sigma_rel}: 0.05 to 0.2 are usual")
    s = float(sigma_rel) ** -2
    radius = math.sqrt((s + 1 / 3) / 3)
    cosine = -(4 * s / 3 + 2 / 27) / (2 * radius**3)
    return max(0.0, 2 * radius * math.cos(math.acos(cosine) / 3) - 7 / 3)


def admission(gamma: float, update: int) -> float:
    r"""How much of the weights update n = 1, 2, ... takes in, :math:`1 - \beta_n = 1 - (1 - 1/n)^{\gamma + 1}`.

    So the weights of update i have the share :math:`(i^{\gamma+1} - (i-1)^{\gamma+1}) / n^{\gamma+1}` after n updates:
    the integral of the profile of t = n over ``[i - 1, i]``, without an error of discretisation.
    """
    return 1.0 if update == 1 else -math.expm1((gamma + 1) * math.log1p(-1 / update))


def inner_product(gamma_a: float, t_a: float, gamma_b: float, t_b: float) -> float:
    r"""The integral of the product of two profiles,

    .. math:: \int p_a p_b \, d\tau =
        \frac{(\gamma_a + 1)(\gamma_b + 1)}{\gamma_a + \gamma_b + 1} \frac{1}{t_b} (t_a / t_b)^{\gamma_b}
        \quad (t_a \le t_b).
    """
    if t_a > t_b:
        gamma_a, t_a, gamma_b, t_b = gamma_b, t_b, gamma_a, t_a
    return (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) / t_b * (t_a / t_b) ** gamma_b


def mix_profiles(profiles: Sequence[tuple[float, float]], target: tuple[float, float]) -> tuple[Tensor, float]:
    r"""The sum of profiles that is nearest to another one, among those whose coefficients sum to 1.

    Minimises :math:`\| \sum_i c_i p_i - p \|^2` subject to :math:`\sum_i c_i = 1`, in float64. The constraint, which
    Karras et al. do not have, keeps weights that never move as they are; where the profiles span the target well it
    changes nothing.

    Parameters
    ----------
    profiles
        ``(gamma, t)`` of each, n in all, no two the same.
    target
        ``(gamma, t)`` of the one to be approached.

    Returns
    -------
    The coefficients ``(n,)`` in float64 on the CPU, and the distance :math:`\| \sum_i c_i p_i - p \| / \| p \|`.
    """
    products = torch.tensor([[inner_product(*a, *b) for b in profiles] for a in profiles], dtype=torch.float64)
    wanted = torch.tensor([inner_product(*a, *target) for a in profiles], dtype=torch.float64)
    # Profiles of unit norm: those of early times are narrow and high.
    norms = products.diagonal().sqrt()
    gram = products / norms / norms[:, None]
    border = (1 / norms) / torch.linalg.vector_norm(1 / norms)
    system = torch.zeros(len(profiles) + 1, len(profiles) + 1, dtype=torch.float64)
    system[:-1, :-1], system[:-1, -1], system[-1, :-1] = gram, border, border
    right = torch.cat([wanted / norms, (1 / torch.linalg.vector_norm(1 / norms)).reshape(1)])
    # The smallest solution, where profiles are so near to each other that they are one in float64.
    solution = torch.linalg.lstsq(system, right[:, None], driver="gelsd").solution[:-1, 0]
    coefficients = solution / norms
    square = inner_product(*target, *target)
    left = square - 2 * coefficients @ wanted + coefficients @ products @ coefficients
    return coefficients, math.sqrt(max(0.0, float(left) / square))
