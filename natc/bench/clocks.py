"""Clocks: samples of several calls taken in turn, and a GPU's own time by a CUDA graph."""

from __future__ import annotations

import contextlib
import functools
import os
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch

from natc.errors import NatcError

MIN_SAMPLES = 5
MIN_SAMPLE_SECONDS = 2e-3
_GRAPH_SAMPLES = 20
_MOST_CALLS_IN_A_GRAPH = 50

_Name = TypeVar("_Name", bound=Hashable)


def quartiles(samples: Sequence[float]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile."""
    low, median, high = statistics.quantiles(samples, n=4)
    return low, median, high


def interleave(
    calls: Mapping[str, Callable[[], object]], seconds: float
) -> dict[str, list[float]]:
    """Return samples of each call, in seconds: taken in turn, at least 5 of each.

    seconds: begin no further turn after this time.
    """
    return in_turn({name: sampler(call) for name, call in calls.items()}, seconds)


def sampler(call: Callable[[], object]) -> Callable[[], float]:
    """Return a function that returns the seconds of a call, one sample each time.

    A short call is repeated within a sample until the sample lasts about 2 ms. One untimed call
    comes before each sample: it refills caches, and meanwhile the threads of the call before,
    which may still spin, go to sleep.
    """
    once = _sample(call, 1)
    repeats = max(1, min(1000, round(MIN_SAMPLE_SECONDS / max(once, 1e-7))))
    return functools.partial(_sample, call, repeats)


def in_turn(
    samplers: Mapping[_Name, Callable[[], float]], seconds: float
) -> dict[_Name, list[float]]:
    """Return the numbers that each function returned: called in turn, at least 5 times each.

    So a slow moment of the machine falls on all of them. seconds: begin no further turn after
    this time.
    """
    samples: dict[_Name, list[float]] = {name: [] for name in samplers}
    names = list(samplers)
    start = time.perf_counter()
    while samplers and (
        len(samples[names[0]]) < MIN_SAMPLES or time.perf_counter() - start < seconds
    ):
        for name in names:
            samples[name].append(samplers[name]())
        # The next turn begins with another call, so that none always follows the same neighbor.
        names.append(names.pop(0))
    return samples


@contextlib.contextmanager
def real_time(wanted: bool = True) -> Iterator[None]:
    """Let this process's threads run before all other programs, if wanted.

    Raises NatcError if the system does not allow it.
    """
    if not wanted:
        yield
        return
    try:
        _schedule(os.SCHED_FIFO, 1)
    except (AttributeError, OSError) as error:
        raise NatcError(
            "this process may not run with real-time priority: that takes Linux, and root or the "
            f"capability CAP_SYS_NICE ({error})."
        ) from error
    try:
        yield
    finally:
        _schedule(os.SCHED_OTHER, 0)


def _schedule(policy: int, priority: int) -> None:
    """Give a scheduling policy to all threads of this process."""
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):
            os.sched_setscheduler(int(thread), policy, os.sched_param(priority))


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
