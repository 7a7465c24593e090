"""Where a class is put to a proof that asks for worlds or spaces of its own, so that a file of its own does it."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parent

FORWARD_EQUATION = {
    "Bridge": "noise/test_bridge_path.py::test_the_bridge_carries_its_path",
    "Multiplicative": "noise/test_state_noise.py::test_the_law_is_left_alone",
    "Reverse": "noise/test_time_reversal.py::test_the_reverse_runs_the_path_back",
    "ReverseDiffusion": "noise/test_time_reversal.py::test_another_triplet_is_another_generator",
    "Jump": "jumps/test_jump_sampling.py::test_the_forward_equation_to_the_width_of_the_bins",
    "MinimalJump": "jumps/test_minimal_jump.py::test_the_forward_equation_on_points",
    "MixtureJump": "jumps/test_mixture_jump.py::test_the_forward_equation",
    "Product": "products/test_products.py::test_the_forward_equation_holds",
    "ReverseCTMC": "tokens/test_token_chains.py::test_the_forward_equation_holds",
    "TokenChurn": "tokens/test_token_chains.py::test_the_forward_equation_holds",
    "PureDiffusion": "jumps/test_interval.py::test_the_marginal_forward_equation",
}
ORDER: dict[str, str] = {
    "Dopri5": "solvers/test_adaptive.py::test_a_step_has_order_five_and_the_states_within_it_order_four",
    "DEIS": "solvers/test_published.py::test_the_order_on_a_gaussian",
    "DPMSolver": "solvers/test_published.py::test_the_order_on_a_gaussian",
    "DPMSolverSingle": "solvers/test_published.py::test_the_order_on_a_gaussian",
    "IPNDM": "solvers/test_published.py::test_the_order_on_a_gaussian",
    "UniPC": "solvers/test_published.py::test_the_order_on_a_gaussian",
    "Churn": "solvers/test_churn.py::test_weak_order_on_the_levels_of_the_paper",
    "Confidence": "tokens/test_token_samplers.py::test_confidence_does_not_sample_the_law",
    "FirstHitting": "tokens/test_token_samplers.py::test_first_hitting_samples_the_law_with_one_evaluation_a_position",
    "Remasking": "tokens/test_token_samplers.py::test_remasking_by_a_churn_has_order_one",
    "SRA": "solvers/test_srk.py::test_sra_has_weak_order_two",
    "SRI": "solvers/test_srk.py::test_weak_order_for_noise_of_the_state",
    "Thinning": "tokens/test_token_samplers.py::test_thinning_samples_the_law_in_one_step",
    "EndPoint": "noise/test_end_point.py::test_the_law_is_reached_at_order_one",
    "JumpThinning": "jumps/test_jump_thinning.py::test_one_step_has_the_exact_law",
    "Strang": "jumps/test_splitting.py::test_strang_is_of_order_two_and_lie_of_order_one",
    "TwoEvent": "jumps/test_splitting.py::test_two_events_are_of_order_two_and_a_leap_of_order_one",
    "TorchDiffEq": "solvers/test_torchdiffeq.py::test_fixed_methods_have_their_order",
}
PATHS = {
    "BridgePath": "noise/test_bridge_path.py::test_states_between_have_the_law",
    "ContinuousMixturePath": "jumps/test_mixture_jump.py::test_samples_have_the_marginal_law",
    "GeodesicPath": "manifolds/test_geodesic_path.py::test_the_forward_equation_on_the_sphere",
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
