"""Peak memory of a call: what torch's allocator holds at most above what it held before.

On a CPU the allocations and releases that the profiler saw, added up in the order of time; on a GPU the caching
allocator's own mark. The high-water mark of the process would count what was freed but not given back, and
``tracemalloc`` counts Python's objects, of which tensors are none. A ``TorchDispatchMode`` sees outputs of operators,
but neither what an operator takes for itself while it runs nor what autograd keeps after Python has let go of it.
Memory that a library takes past torch's allocator (oneDNN's scratch pads) is in none of these.
"""

from __future__ import annotations

import os
from collections.abc import Callable

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # before torch is there: no line for every start of the profiler

import torch
from torch.profiler import ProfilerActivity, profile

__all__ = ["peak_bytes"]


def peak_bytes(run: Callable[[], object]) -> int:
    """Most bytes that one call holds at a time above what was held before it.

    What was there before and is freed in the call is not taken off: a training step is charged with its new gradients.
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        if torch.cuda.max_memory_allocated() > before:
            return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    results = profiler.profiler.kineto_results  # type: ignore[union-attr]
    events = [event for event in results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most
