"""One colour per model, in every figure, and one marker and dash per sampler.

The colours are those of M. Okabe and K. Ito (2008), which people with any of the common colour deficiencies tell apart;
markers and dashes say the same again to those who see none.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["COLOURS", "DASHES", "GRID", "INK", "LEADER", "MARKERS", "MUTED", "OTHERS", "colours"]

COLOURS = {"flow": "#0072B2", "diffusion": "#D55E00", "hybrid": "#009E73"}
OTHERS = ("#CC79A7", "#56B4E9", "#E69F00", "#000000")
INK, MUTED, LEADER, GRID = "#222222", "#6B6B6B", "#B5B5B5", "#E4E4E4"

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", ":", (0, (10, 2)), (0, (6, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (3, 4)))


def colours(names: Iterable[str]) -> dict[str, str]:
    """The colour of each name: that of the model it is or begins with, and else the next of the rest.

    ``"flow"``, ``"Flow, 20 steps"`` and ``"flow (RK4)"`` are all in the colour of the flow.
    """
    chosen: dict[str, str] = {}
    spare = 0
    for name in dict.fromkeys(names):
        model = next((model for model in COLOURS if name.lower().startswith(model)), None)
        chosen[name] = COLOURS[model] if model else OTHERS[spare % len(OTHERS)]
        spare += model is None
    return chosen
