"""Times: of a device, by replay of a CUDA graph; of a call, host work included; of the host."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

SAMPLES = 50
# A sample lasts this long at least, so that what reads the clock does not count.
_SECONDS = 2e-4
# More launches than this would wait for the device, which is not the host's time.
_QUEUED = 100


def summary(samples: list[float]) -> dict[str, Any]:
    """Return median and quartiles in microseconds, and how many samples they are of."""
    low, median, high = statistics.quantiles(samples, n=4)
    return {
        "median_us": 1e6 * median,
        "quartiles_us": [1e6 * low, 1e6 * high],
        "samples": len(samples),
    }


def device_time(call: Callable[[], object], samples: int = SAMPLES) -> dict[str, Any]:
    """Return the time that a GPU takes for a call, by replay of a graph of it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
        stream.synchronize()
        once = _between_events(call)
        number = max(1, min(50, round(_SECONDS / max(once, 1e-7))))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(number):
                call()
        for _ in range(3):
            graph.replay()
        stream.synchronize()
        taken = [_between_events(graph.replay) / number for _ in range(samples)]
    return summary(taken)


def call_time(call: Callable[[], object], device: str, samples: int = SAMPLES) -> dict[str, Any]:
    """Return the time of an ordinary call, between two events or, on a CPU, by the clock."""
    for _ in range(3):
        call()
    if device == "cuda":
        torch.cuda.synchronize()
        return summary([_between_events(call) for _ in range(samples)])
    once = _by_clock(call, 1)
    number = max(1, min(1000, round(_SECONDS / max(once, 1e-7))))
    return summary([_by_clock(call, number) for _ in range(samples)])


def host_time(call: Callable[[], object], device: str, samples: int = SAMPLES) -> dict[str, Any]:
    """Return the time until a call returns, whatever the device has left to do."""
    for _ in range(10):
        call()
    taken = []
    for _ in range(samples):
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(_by_clock(call, _QUEUED if device == "cuda" else 20))
    return summary(taken)


def _between_events(call: Callable[[], object]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) * 1e-3


def _by_clock(call: Callable[[], object], number: int) -> float:
    start = time.perf_counter()
    for _ in range(number):
        call()
    return (time.perf_counter() - start) / number
