"""Clocks: samples of several calls taken in turn, and a GPU's own time by a CUDA graph."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

MIN_SAMPLES = 5
MIN_SAMPLE_SECONDS = 2e-3
_GRAPH_SAMPLES = 20
_MOST_CALLS_IN_A_GRAPH = 50


def quartiles(samples: Sequence[float]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile."""
    low, median, high = statistics.quantiles(samples, n=4)
    return low, median, high


def interleave(
    calls: Mapping[str, Callable[[], object]], seconds: float
) -> dict[str, list[float]]:
    """Return samples of each call, in seconds: taken in turn, at least 5 of each.

    A slow moment of the machine so falls on every call. A short call is repeated within a sample
    until the sample lasts about 2 ms. One untimed call comes before each sample: it refills
    caches, and meanwhile the threads of the call before, which may still spin, go to sleep.
    seconds: begin no further turn after this time.
    """
    repeats = {}
    for name, call in calls.items():
        once = _sample(call, 1)
        repeats[name] = max(1, min(1000, round(MIN_SAMPLE_SECONDS / max(once, 1e-7))))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    start = time.perf_counter()
    while calls and (
        len(samples[names[0]]) < MIN_SAMPLES or time.perf_counter() - start < seconds
    ):
        for name in names:
            samples[name].append(_sample(calls[name], repeats[name]))
        # The next turn begins with another call, so that none always follows the same neighbor.
        names.append(names.pop(0))
    return samples


def device_seconds(call: Callable[[], object]) -> float:
    """Return the median time that the GPU takes for a call: replays of a CUDA graph of it.

    Raises RuntimeError if the call cannot be captured.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
        once = _between_events(call)
        number = max(1, min(_MOST_CALLS_IN_A_GRAPH, round(MIN_SAMPLE_SECONDS / max(once, 1e-7))))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(number):
                call()
        for _ in range(3):
            graph.replay()
        samples = [_between_events(graph.replay) / number for _ in range(_GRAPH_SAMPLES)]
    return statistics.median(samples)


def _sample(call: Callable[[], object], repeats: int) -> float:
    call()
    _synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    _synchronize()
    return (time.perf_counter() - start) / repeats


def _between_events(call: Callable[[], object]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) * 1e-3


def _synchronize() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
