"""How errors of many kinds pass through flows and diffusions: ``python -m benchmarks.robustness --help``."""
