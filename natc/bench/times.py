"""Median times of several ways to compute the same neighborhood attention, side by side.

A contestant is a function that takes a `BenchProblem` and returns a `Prepared` call. What it does
before it returns (layouts, masks, compilation) is not timed. Every contestant is checked against
the reference in float64 before it is timed, and samples of all contestants are interleaved, so
that a machine that slows down for a while slows all of them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from natc import reference
from natc.bench.results import ResultRow
from natc.checks.inputs import make_inputs
from natc.checks.tolerance import ELEMENT_FACTOR, RELATIVE_TOLERANCE, relative_errors
from natc.errors import NatcError

# NAT-Mini and NAT-Tiny at 224 x 224: [batch, height, width, heads, head_dim] of each level.
NAT_LEVELS = ((1, 56, 56, 2, 32), (1, 28, 28, 4, 32), (1, 14, 14, 8, 32), (1, 7, 7, 16, 32))

MIN_SAMPLES = 5
MIN_SAMPLE_SECONDS = 2e-3


class Unavailable(NatcError):
    """A contestant that cannot run here; the message says why and ends up in its row."""


@dataclass(frozen=True)
class BenchProblem:
    """One problem: `query`, `key`, `value` `[B, H, W, heads, head_dim]` and its settings.

    `rpb` is None or float32 `[heads, 2*K0-1, 2*K1-1]`; the scale is `head_dim ** -0.5`.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    rpb: Tensor | None
    kernel_size: tuple[int, int]
    dilation: tuple[int, int]


@dataclass(frozen=True)
class Prepared:
    """A call that is ready to be timed; it returns `[B, H, W, heads, head_dim]`."""

    call: Callable[[], Tensor]
    note: str = ""


Contestant = Callable[[BenchProblem], Prepared]


def time_attention(
    shapes: Sequence[Sequence[int]],
    dtype: torch.dtype,
    contestants: Mapping[str, Contestant],
    *,
    kernel_size: int | tuple[int, int] = 7,
    dilation: int | tuple[int, int] = 1,
    rpb: bool = True,
    device: str | torch.device = "cpu",
    seconds: float = 3.0,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> list[ResultRow]:
    """Check and time every contestant on every shape; return rows, shape by shape.

    Args:
        shapes: problems `(batch, height, width, heads, head_dim)`, such as `NAT_LEVELS`.
        dtype: of query, key and value: float32, float16, bfloat16 or float64.
        contestants: by name; ratios are to the first one.
        kernel_size: window size of all problems; one int or a pair.
        dilation: dilation of all problems; one int or a pair.
        rpb: whether the problems have a relative positional bias.
        device: where to run.
        seconds: time to spend on the samples of one shape, all contestants together; each
            gets at least 5 samples, however long that takes.
        seed: of the random inputs.
        progress: called with a sentence before each slow step.

    Raises:
        NatcError: a shape or dtype that is not allowed.
    """
    if dtype not in RELATIVE_TOLERANCE:
        allowed = ", ".join(str(known) for known in RELATIVE_TOLERANCE)
        raise NatcError(f"dtype must be one of {allowed}, not {dtype}.")
    say = progress or (lambda _: None)
    rows: list[ResultRow] = []
    for shape in shapes:
        if len(shape) != 5 or min(shape) < 1:
            raise NatcError(
                "shapes must hold five positive ints each (batch, height, width, heads, "
                f"head_dim), not {tuple(shape)}."
            )
        sizes = _pair(kernel_size)
        tensors = make_inputs(
            shape, kernel_size=sizes if rpb else None, dtype=dtype, device=device, seed=seed
        )
        inputs = BenchProblem(*tensors, kernel_size=sizes, dilation=_pair(dilation))
        rows += _time_shape(inputs, contestants, seconds, say)
    return rows


def _time_shape(
    inputs: BenchProblem,
    contestants: Mapping[str, Contestant],
    seconds: float,
    say: Callable[[str], None],
) -> list[ResultRow]:
    shape = tuple(inputs.query.shape)
    size = "x".join(str(n) for n in shape)
    calls: dict[str, Callable[[], Tensor]] = {}
    errors: dict[str, float] = {}
    notes: dict[str, str] = {}
    tolerance = ELEMENT_FACTOR * RELATIVE_TOLERANCE[inputs.query.dtype]
    with torch.inference_mode():
        expected = _reference64(inputs)
        for name, contestant in contestants.items():
            say(f"{size}: preparing and checking {name}")
            try:
                prepared = contestant(inputs)
                errors[name] = relative_errors(prepared.call(), expected).largest
            except Unavailable as error:
                notes[name] = str(error)
                continue
            notes[name] = prepared.note
            if errors[name] <= tolerance:
                calls[name] = prepared.call
            else:
                notes[name] = f"wrong result (allowed error {tolerance:g}), not timed"
        say(f"{size}: timing {', '.join(calls)}")
        samples = interleave(calls, seconds)

    first = next(iter(contestants), None)
    rows = []
    for name in contestants:
        taken = samples.get(name)
        median = statistics.median(taken) if taken else None
        base = statistics.median(samples[first]) if first in samples else None
        quartiles = statistics.quantiles(taken, n=4) if taken else None
        rows.append(
            ResultRow(
                contestant=name,
                shape=shape,
                median_seconds=median,
                ratio_to_first=median / base if median and base else None,
                max_error=errors.get(name),
                quartile_seconds=(quartiles[0], quartiles[2]) if quartiles else None,
                note=notes[name],
            )
        )
    return rows


def interleave(
    calls: Mapping[str, Callable[[], object]], seconds: float
) -> dict[str, list[float]]:
    """Return samples in seconds a call, taken in turn, at least 5 of each call.

    Short calls are repeated within a sample until it lasts about 2 ms. One untimed call comes
    before each sample: it refills caches, and threads that the previous contestant left spinning
    go to sleep meanwhile.

    Args:
        calls: what to time, by name.
        seconds: when to stop, counted from the start; the round under way is finished.
    """
    repeats = {}
    for name, call in calls.items():
        once = _sample(call, 1)
        repeats[name] = max(1, min(1000, round(MIN_SAMPLE_SECONDS / max(once, 1e-7))))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    start = time.perf_counter()
    turn = 0
    while calls and (turn < MIN_SAMPLES or time.perf_counter() - start < seconds):
        # Another one goes first each time, so that no one always follows the same neighbor.
        for index in range(len(names)):
            name = names[(index + turn) % len(names)]
            samples[name].append(_sample(calls[name], repeats[name]))
        turn += 1
    return samples


def _sample(call: Callable[[], object], repeats: int) -> float:
    call()
    _synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    _synchronize()
    return (time.perf_counter() - start) / repeats


def _synchronize() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _reference64(inputs: BenchProblem) -> Tensor:
    output: Any = reference.neighborhood_attention(
        inputs.query.double(),
        inputs.key.double(),
        inputs.value.double(),
        inputs.kernel_size,
        dilation=inputs.dilation,
        rpb=None if inputs.rpb is None else inputs.rpb.double(),
    )
    return cast(Tensor, output)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
