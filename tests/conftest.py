"""What every test runs under: one thread, a fixed seed, and the markers ``slow`` and ``gpu``."""

from __future__ import annotations

import os
import re
import signal

# One thread for each process, set before torch is imported so that child processes inherit it: `make test` runs
# as many processes as there are cores, and the tensors of the tests are too small to share one among threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import torch

if not torch.cuda.is_available():  # kernels then run in Triton's interpreter, which is chosen when they are imported
    os.environ.setdefault("TRITON_INTERPRET", "1")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts its background jobs; tests of Ctrl-C need it
    signal.signal(signal.SIGINT, signal.default_int_handler)

IN_CI = os.environ.get("CI", "").lower() in {"1", "true"}

hypothesis.settings.register_profile(
    "genmatch",
    deadline=None,  # the first call of a torch function costs a thousand times the second
    derandomize=IN_CI,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],  # it measures the machine's load
    print_blob=True,
)
hypothesis.settings.load_profile("genmatch")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--runslow", action="store_true", help="run the tests marked slow (CI=true does too)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    warn_of_addresses(items)
    reasons = {}
    if not (IN_CI or config.getoption("--runslow")):
        reasons["slow"] = "slow: run with --runslow"
    if not torch.cuda.is_available():
        reasons["gpu"] = "needs a CUDA device"
    for item in items:
        for marker, reason in reasons.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


def warn_of_addresses(items: list[pytest.Item]) -> None:
    """`make test` runs several processes, which stop unless they agree on the names of all tests."""
    for item in items:
        if re.search(r" at 0x[0-9a-f]+", item.nodeid):
            item.warn(pytest.PytestCollectionWarning("its name holds an address: give its parameters ids of their own"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    # Before any fixture: networks start from the same weights whichever tests ran before, and in whichever process.
    torch.manual_seed(0)
