"""The memory that a piece of work really took on this CPU, as PyTorch's allocator saw it."""

from collections.abc import Callable, Iterator
from typing import Any

from torch._C._profiler import _EventType
from torch.autograd.profiler import profile


def measure_peak(work: Callable[[], object]) -> int:
    """Return by how many bytes the tensors in memory grew at most while `work` ran.

    From the profiler's record of every allocation, inside operators too. The resident size of the process would also
    count what the C library keeps of freed memory and what oneDNN packs, which differ from machine to machine; what a
    GPU reports (`max_memory_allocated`) is of this kind as well.
    """
    recorded: Any = profile(profile_memory=True, use_cpu=True)
    with recorded:
        work()
    results = recorded.kineto_results
    sizes = sorted(_allocations(results.experimental_event_tree()))
    live = peak = 0
    for _, size in sizes:
        live += size
        peak = max(peak, live)
    return peak


def _allocations(events: Any) -> Iterator[tuple[int, int]]:
    """Yield (time, bytes, negative where freed) of all allocations below `events`."""
    waiting = list(events)
    while waiting:
        event = waiting.pop()
        kind, fields = event.typed
        if kind == _EventType.Allocation:
            yield event.start_time_ns, fields.alloc_size
        waiting.extend(event.children)
