"""Median times of several ways to compute the same neighborhood attention, side by side.

A contestant is a function that takes a `Case` and returns a `Prepared` call. Its preparations
(layouts, masks, compilation) are not timed. Every contestant is compared with the reference in
float64 before it is timed, and samples of all contestants are taken in turn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from msgspec.structs import replace
from torch import Tensor

from natc.bench import clocks
from natc.bench.problem import BenchProblem, Case, Oracle
from natc.bench.results import Row
from natc.checks.tolerance import ELEMENT_FACTOR, RELATIVE_TOLERANCE
from natc.errors import NatcError
from natc.store.records import shape_key
from natc.tune.measure.pairs import interval

# The chance that the interval of a ratio does not hold the true median.
_LEVEL = 0.01


class Unavailable(NatcError):
    """A contestant that cannot run here; its row shows the message."""


@dataclass(frozen=True)
class Prepared:
    """A contestant that is ready to be timed.

    attend() returns the output in the contestant's layout; `leaves` are its query, key, value
    and bias in that layout, and d_output is the gradient of the output, None without a backward.
    to_natc brings a tensor of the contestant into `[batch, *spatial, heads, channels]`.
    error: returns the largest relative error of results, for a contestant that computes
    something else than neighborhood attention.
    """

    attend: Callable[[], Tensor]
    leaves: Sequence[Tensor] = ()
    d_output: Tensor | None = None
    to_natc: Callable[[Tensor], Tensor] = lambda tensor: tensor
    note: str = ""
    error: Callable[[Sequence[Tensor]], float] | None = None

    def call(self) -> list[Tensor]:
        """Return the output and, with d_output, the leaves' gradients; this call is timed."""
        output = self.attend()
        if self.d_output is None:
            return [output]
        return [output, *torch.autograd.grad(output, self.leaves, self.d_output)]

    def results(self) -> list[Tensor]:
        """Return the results of a call in natc's layout; a bias's gradient has one layout."""
        results = self.call()
        return [*map(self.to_natc, results[:4]), *results[4:]]


Contestant = Callable[[Case], Prepared]


def first_line(error: Exception) -> str:
    """Return the type of an error and the beginning of its message."""
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:160]


def time_problems(
    problems: Sequence[BenchProblem],
    contestants: Mapping[str, Contestant],
    *,
    device: str = "cpu",
    seconds: float = 3.0,
    progress: Callable[[str], None] | None = None,
) -> list[Row]:
    """Check and time every contestant on every problem; return the rows, problem by problem.

    A problem's backward is timed together with its forward. contestants: by name; ratios are to
    the first one. seconds: to spend on the samples of one problem, all contestants together; each
    gets at least 5 samples, however long that takes. progress: called with a sentence before each
    slow step.
    """
    rows: list[Row] = []
    for problem in problems:
        # A forward is timed as inference does it.
        with torch.inference_mode(not problem.backward), torch.set_grad_enabled(problem.backward):
            case = Case.make(problem, device)
            rows += _time(case, contestants, seconds, progress or (lambda _: None))
    return rows


def _time(
    case: Case,
    contestants: Mapping[str, Contestant],
    seconds: float,
    progress: Callable[[str], None],
) -> list[Row]:
    size = shape_key(case.problem.shape)
    rows = {name: Row(problem=case.problem, contestant=name) for name in contestants}
    calls: dict[str, Callable[[], object]] = {}
    oracle = Oracle(case)
    for name, contestant in contestants.items():
        progress(f"{size}: preparing and checking {name}")
        try:
            prepared = contestant(case)
            error = (prepared.error or oracle.error)(prepared.results())
        except Unavailable as reason:
            rows[name] = replace(rows[name], note=str(reason))
            continue
        except torch.OutOfMemoryError:
            rows[name] = replace(rows[name], note="out of memory")
            continue
        except Exception as failure:  # torch refuses a problem with many types
            rows[name] = replace(rows[name], note=f"failed: {first_line(failure)}")
            continue
        rows[name] = replace(rows[name], max_error=error, note=prepared.note)
        tolerance = ELEMENT_FACTOR * RELATIVE_TOLERANCE[case.problem.dtype]
        if error <= tolerance:
            calls[name] = prepared.call
        else:
            wrong = f"wrong result (allowed error {tolerance:g}), not timed"
            rows[name] = replace(rows[name], note=wrong)
    progress(f"{size}: timing {', '.join(calls)}")
    samples = clocks.interleave(calls, seconds)
    first = samples.get(next(iter(contestants), ""))
    for name, call in calls.items():
        low, median, high = clocks.quartiles(samples[name])
        rows[name] = replace(
            rows[name],
            median_seconds=median,
            quartile_seconds=(low, high),
        )
        if first is not None:
            ratio, bounds = _ratio(samples[name], first)
            rows[name] = replace(rows[name], ratio_to_first=ratio, ratio_interval=bounds)
        if case.inputs.query.is_cuda:
            rows[name] = _with_device_time(rows[name], call)
    return list(rows.values())


def _ratio(
    times: Sequence[float], first: Sequence[float]
) -> tuple[float, tuple[float, float] | None]:
    """Return the median ratio of times that were taken in the same turns, and its bounds."""
    ratios = [time / base for time, base in zip(times, first, strict=True)]
    around = interval(ratios, _LEVEL)
    return around.median, (around.low, around.high) if math.isfinite(around.low) else None


def _with_device_time(row: Row, call: Callable[[], object]) -> Row:
    try:
        return replace(row, device_seconds=clocks.device_seconds(call))
    except RuntimeError as error:
        torch.cuda.synchronize()
        note = f"{row.note} no CUDA graph: {first_line(error)}".strip()
        return replace(row, note=note)
