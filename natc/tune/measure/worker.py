"""Times candidates, in a separate process: a candidate may crash or hang.

Arguments and results are plain values. Nothing here imports the compiler.
"""

from __future__ import annotations

import functools
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from natc.operations import FORWARD
from natc.spec import KernelSpec
from natc.store.manifest import function_name
from natc.targets import Target

# One time is the median of so many calls in a row, more of them for kernels that take little:
# they take turns often enough that `_TURN` seconds of each count for nothing.
_FEWEST, _MOST, _TURN = 3, 15, 1e-3
_LONG = 0.02  # of a kernel that takes this many seconds, one call is enough
# The calls and seconds that a CUDA graph holds at most.
_CALLS, _GRAPH_SECONDS = 10, 2e-3


def measure(
    spec_name: str,
    target_name: str,
    libraries: Sequence[str],
    shapes: Sequence[tuple[int, ...]],
    operation: str = FORWARD,
    turns: int = 1,
) -> list[list[list[float]]]:
    """Return the seconds of one call for each turn, library and shape.

    In each turn the libraries take turns in an order that chance decides. Before a library is
    timed for the first time in this process, its results are compared with the reference.

    Raises TuneError if the results are wrong.
    """
    # First, so that libraries find PyTorch's threads when they are loaded.
    import torch  # noqa: F401

    from natc.tune.measure import problems

    spec, target = KernelSpec.parse(spec_name), Target.parse(target_name)
    device = "cpu" if target.kind == "llvm" else "cuda"
    clock = _cpu_clock if target.kind == "llvm" else _cuda_clock
    try:
        kernels = [_checked(library, spec, target, operation, device) for library in libraries]
        clocks = []  # for each shape, one for each library
        for shape in map(tuple, shapes):
            arguments = problems.arguments(spec, operation, shape, device)
            calls = [functools.partial(kernel, *arguments) for kernel in kernels]
            for call in calls:
                call()
            repeats = _repeats(_seconds(calls[0]))
            clocks.append([clock(call, repeats) for call in calls])
        return [_turn(clocks, len(kernels)) for _ in range(turns)]
    except Exception:
        # The candidate may have overwritten them; the next one gets new tensors.
        problems.arguments.cache_clear()
        raise


def _turn(clocks: Sequence[Sequence[Callable[[], float]]], count: int) -> list[list[float]]:
    """Return the seconds of each library for each shape, once."""
    seconds: list[list[float]] = [[] for _ in range(count)]
    order = random.sample(range(count), count)
    for of_shape in clocks:
        for library in order:
            seconds[library].append(of_shape[library]())
    return seconds


def is_well(target_name: str) -> bool:
    """Return True; raise if the GPU no longer works in this process, as after a bad access."""
    import torch

    if Target.parse(target_name).kind == "cuda":
        torch.cuda.synchronize()
        torch.ones(1, device="cuda").add_(1).item()
    return True


# Never closed: a GPU driver may still refer to the library's kernels. Failures are not kept.
@functools.cache
def _checked(library: str, spec: KernelSpec, target: Target, operation: str, device: str) -> Any:
    """Return an operation's kernel in a library, after comparing it with the reference."""
    import tvm_ffi

    from natc.tune.measure import problems

    kernel = tvm_ffi.load_module(library)[function_name(spec, operation, target)]
    problems.check(kernel, spec, operation, device)
    return kernel


def _repeats(seconds: float) -> int:
    if seconds >= _LONG:
        return 1
    return max(_FEWEST, min(_MOST, int(_TURN / max(seconds, 1e-6))))


def _cpu_clock(call: Callable[[], None], repeats: int) -> Callable[[], float]:
    return lambda: statistics.median(_seconds(call) for _ in range(repeats))


def _seconds(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _cuda_clock(call: Callable[[], None], repeats: int) -> Callable[[], float]:
    """Return a clock for one call on the device: it replays a CUDA graph."""
    import torch

    def timed(work: Callable[[], None]) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) * 1e-3

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        calls = max(1, min(_CALLS, int(_GRAPH_SECONDS / max(timed(call), 1e-6))))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(calls):
                call()
        graph.replay()

    def clock() -> float:
        with torch.cuda.stream(stream):
            return statistics.median(timed(graph.replay) / calls for _ in range(_FEWEST))

    return clock
