"""Sources of tokens whose probabilities are known, so that the source of a position can be read off where it stands."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..random import Draws

__all__ = ["CategoricalTokens"]


class CategoricalTokens:
    r"""Each position a token 0 .. K - 1 of given probabilities, independent of all others.

    Parameters
    ----------
    probabilities
        K numbers, at least 0, that add to 1: the frequencies of the tokens in the data, say.

    Raises
    ------
    ValueError
        If they are not a probability vector.

    Examples
    --------
    >>> import genmatch as gm
    >>> path = gm.MixturePath(3, source=gm.paths.CategoricalTokens([0.5, 0.3, 0.2]))
    """

    def __init__(self, probabilities: Tensor | Sequence[float]) -> None:
        values = torch.as_tensor(probabilities, dtype=torch.float64).detach().cpu().clone()
        if values.ndim != 1 or len(values) < 2:
            raise ValueError(f"the probabilities of K >= 2 tokens are a vector, got shape {tuple(values.shape)}")
        if not bool((values.isfinite() & (values >= 0)).all()):
            raise ValueError(f"probabilities are finite and at least 0, got a least of {values.min().item():g}")
        if abs(values.sum().item() - 1) > 1e-6:
            raise ValueError(
                f"probabilities must add to 1, these add to {values.sum().item():g}: divide them by their sum"
            )
        self.probabilities = values / values.sum()
        self._edges = self.probabilities.cumsum(0)

    def draw(self, shape: Sequence[int], draws: Draws) -> Tensor:
        """Tokens of ``shape`` ``(B, *S)``, int64."""
        level = draws.uniform(shape, torch.float64)
        edges = self._edges.to(level.device)
        # Below the last edge, so that rounding never lands on a token of probability zero.
        level = (level * edges[-1]).clamp(max=torch.nextafter(edges[-1], torch.zeros_like(edges[-1])))
        return torch.searchsorted(edges, level, right=True)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CategoricalTokens) and torch.equal(other.probabilities, self.probabilities)

    def __hash__(self) -> int:
        return hash((CategoricalTokens, tuple(self.probabilities.tolist())))

    def __repr__(self) -> str:
        return f"CategoricalTokens({len(self.probabilities)} tokens)"
