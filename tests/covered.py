"""Where a class is put to a proof that asks for worlds or spaces of its own, so that a file of its own does it."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parent

FORWARD_EQUATION = {
    "Jump": "jumps/test_jump_sampling.py::test_the_forward_equation_to_the_width_of_the_bins",
    "MinimalJump": "jumps/test_minimal_jump.py::test_the_forward_equation_on_points",
    "MixtureJump": "jumps/test_mixture_jump.py::test_the_forward_equation",
    "Product": "products/test_products.py::test_the_forward_equation_holds",
    "PureDiffusion": "jumps/test_interval.py::test_the_marginal_forward_equation",
}
ORDER: dict[str, str] = {
    "Strang": "jumps/test_splitting.py::test_strang_is_of_order_two_and_lie_of_order_one",
    "TwoEvent": "jumps/test_splitting.py::test_two_events_are_of_order_two_and_a_leap_of_order_one",
}
PATHS = {
    "ContinuousMixturePath": "jumps/test_mixture_jump.py::test_samples_have_the_marginal_law",
    "IntervalPath": "jumps/test_interval.py::test_the_conditional_process_arrives_and_stays",
    "ProductPath": "products/test_products.py::test_the_sampler_reproduces_the_joint_law",
}


def proved(where: dict[str, str]) -> set[str]:
    """The names whose proof is there: the file defines the test and mentions the class."""
    for name, node in where.items():
        file, test = node.split("::")
        source = (ROOT / file).read_text()
        if f"def {test}(" not in source or name not in source:
            raise LookupError(f"{node} does not test {name}")
    return set(where)
