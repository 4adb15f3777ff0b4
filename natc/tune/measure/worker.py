"""Measures one candidate, in a separate process: a candidate may crash or hang.

Arguments and results are plain values. Nothing here imports the compiler.
"""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from natc.operations import FORWARD
from natc.spec import KernelSpec
from natc.store.manifest import function_name
from natc.targets import Target

# Seconds of one sampling, and the fewest and most calls in it.
_SECONDS, _FEWEST, _MOST = 0.08, 8, 400
# Samples whose quartiles differ by a larger factor were disturbed; the most samplings.
_STEADY, _ATTEMPTS = 1.5, 4
# On a GPU: samples of one sampling, and the calls and seconds that a graph holds at most.
_REPLAYS, _CALLS, _GRAPH_SECONDS = 9, 10, 2e-3


def measure(
    spec_name: str,
    target_name: str,
    library: str,
    shapes: Sequence[tuple[int, ...]],
    operation: str = FORWARD,
    samples: int | None = None,
    checked: bool = False,
) -> list[float]:
    """Return the seconds of one call of a candidate for each shape: the lower quartile of samples.

    Other load on the machine only adds to a time, so low samples are nearer the truth.

    samples: how many; None takes as many as a quiet result needs. checked: whether the candidate's
    results were compared with the reference before; if not, this happens first.

    Raises TuneError if the results are wrong.
    """
    # First, so that the library finds PyTorch's threads when it is loaded.
    import torch  # noqa: F401

    from natc.tune.measure import problems

    spec, target = KernelSpec.parse(spec_name), Target.parse(target_name)
    kernel = _module(library)[function_name(spec, operation, target)]
    device = "cpu" if target.kind == "llvm" else "cuda"
    try:
        if not checked:
            problems.check(kernel, spec, operation, device)
        clock = _cpu_seconds if target.kind == "llvm" else _cuda_seconds
        return [
            clock(
                functools.partial(kernel, *problems.arguments(spec, operation, shape, device)),
                samples,
            )
            for shape in map(tuple, shapes)
        ]
    except Exception:
        # The candidate may have overwritten them; the next one gets new tensors.
        problems.arguments.cache_clear()
        raise


def is_well(target_name: str) -> bool:
    """Return True; raise if the GPU no longer works in this process, as after a bad access."""
    if Target.parse(target_name).kind == "cuda":
        import torch

        torch.cuda.synchronize()
        torch.ones(1, device="cuda").add_(1).item()
    return True


# Never closed: a GPU driver may still refer to the library's kernels.
@functools.cache
def _module(library: str) -> Any:
    import tvm_ffi

    return tvm_ffi.load_module(library)


def _cpu_seconds(call: Callable[[], None], samples: int | None = None) -> float:
    call()
    if samples is not None:
        return _lower_quartile([_seconds(call) for _ in range(samples)])
    best = math.inf
    for _ in range(_ATTEMPTS):
        times: list[float] = []
        begin = time.perf_counter()
        while len(times) < _FEWEST or (
            len(times) < _MOST and time.perf_counter() - begin < _SECONDS
        ):
            times.append(_seconds(call))
        low, _, high = statistics.quantiles(times, n=4)
        best = min(best, low)
        if high <= _STEADY * low:
            break
    return best


def _seconds(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _lower_quartile(samples: list[float]) -> float:
    return statistics.quantiles(samples, n=4)[0] if len(samples) > 3 else min(samples)


def _cuda_seconds(call: Callable[[], None], samples: int | None = None) -> float:
    """Return the seconds of one call on the device, from replays of a CUDA graph."""
    import torch

    def timed(work: Callable[[], None]) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) * 1e-3

    call()
    calls = max(1, min(_CALLS, int(_GRAPH_SECONDS / max(timed(call), 1e-6))))
    stream = torch.cuda.Stream()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        call()
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(calls):
                call()
        graph.replay()
        return _lower_quartile([timed(graph.replay) / calls for _ in range(samples or _REPLAYS)])
