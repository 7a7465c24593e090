"""Where a class is put to a proof that asks for worlds or spaces of its own, so that a file of its own does it."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parent

FORWARD_EQUATION = {"Product": "products/test_products.py::test_the_forward_equation_holds"}
ORDER: dict[str, str] = {}
PATHS = {"ProductPath": "products/test_products.py::test_the_sampler_reproduces_the_joint_law"}


def proved(where: dict[str, str]) -> set[str]:
    """The names whose proof is there: the file defines the test and mentions the class."""
    for name, node in where.items():
        file, test = node.split("::")
        source = (ROOT / file).read_text()
        if f"def {test}(" not in source or name not in source:
            raise LookupError(f"{node} does not test {name}")
    return set(where)
