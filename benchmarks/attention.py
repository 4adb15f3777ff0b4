"""Times of neighborhood attention beside its peers: `python benchmarks/attention.py`.

For each problem, pass (forward; forward and backward) and contestant: the device's time by replay
of a CUDA graph, the time of an ordinary call with the host's work in it, the largest error against
float64 on a corner of the results, and the floor: each tensor moved once, as fast as this machine
copies. What is timed is what ships: natc's libraries, found as any program finds them.

Every row says why where a contestant was not timed. On a CPU there is no device time.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

# A call runs on a library that is there, or fails; before natc is imported.
os.environ.update({"NATC_STRICT": "1", "NATC_JIT": "off"})

import clocks
import documents
import torch
from contestants import CONTESTANTS, FULL, Way
from problems import RESULTS, SUITES, Problem, expected, largest_error, tensors_of, variants

from natc.bench.times import Unavailable
from natc.checks.tolerance import ELEMENT_FACTOR, RELATIVE_TOLERANCE
from natc.cli import output
from natc.host import environment

SCHEMA_VERSION = 1
PASSES = ("forward", "forward_backward")
# Of the curve: whether neighborhood attention pays at all, which is a question of two.
CURVE = ("natc", "sdpa")
# Ways of one contestant are compared by few samples; the fastest is timed.
_SEARCHED = 5
_COPY_BYTES = {"cuda": 512 * 2**20, "cpu": 64 * 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", choices=tuple(SUITES), default="nat")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument(
        "--peers",
        default="all",
        help=f"all, none, or some of {', '.join(list(CONTESTANTS)[1:])}, separated by commas",
    )
    parser.add_argument(
        "--dtype", default=None, help="of all problems; by default float16, on a CPU float32"
    )
    parser.add_argument("--passes", default=",".join(PASSES), help="some of these")
    parser.add_argument("--samples", type=int, default=clocks.SAMPLES, help="of each time")
    parser.add_argument(
        "--minutes", type=float, default=None, help="begin no further row after so many minutes"
    )
    parser.add_argument("--output", type=Path, help="write the JSON document to this file, too")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    given = parser.parse_args()
    names, passes, problems = _chosen(parser, given)
    end = None if given.minutes is None else time.monotonic() + 60 * given.minutes

    rate = copy_rate(given.device)
    document: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "suite": given.suite,
        "device": given.device,
        "copy_bytes_per_second": rate,
        "command": " ".join(["python", "benchmarks/attention.py", *sys.argv[1:]]),
        "environment": environment.collect(),
        "rows": [],
        "host": [],
    }
    for problem in problems:
        for row in rows(problem, given.device, names, passes, given.samples, rate, end):
            document["rows"].append(row)
            print(line(row), file=sys.stderr, flush=True)
            if given.output:  # whatever ends the run, what was measured is there
                documents.write(given.output, document)
    document["host"] = host(given.device, names, given.samples)
    if given.output:
        documents.write(given.output, document)
    if given.json:
        output.print_json(document)
    else:
        show(document)
    natc = [row for row in document["rows"] if row["contestant"] == "natc"]
    if natc and not any(row["call"] for row in natc):
        raise SystemExit(f"natc was not timed: {natc[0]['note']}")


def _chosen(
    parser: argparse.ArgumentParser, given: argparse.Namespace
) -> tuple[list[str], list[str], list[Problem]]:
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device is cuda, but torch sees no GPU on this machine; use cpu")
    peers = {"all": list(CONTESTANTS)[1:], "none": []}.get(given.peers, given.peers.split(","))
    if given.suite == "curve":
        peers = [name for name in peers if name in CURVE]
    passes = given.passes.split(",")
    for option, found, allowed in (
        ("--peers", peers, list(CONTESTANTS)[1:]),
        ("--passes", passes, PASSES),
        ("--dtype", [given.dtype or "float16"], ("float32", "float16", "bfloat16")),
    ):
        wrong = [name for name in found if name not in allowed]
        if wrong:
            parser.error(f"{option} has {wrong[0]!r}; allowed are {', '.join(allowed)}")
    if given.samples < 2:
        parser.error(f"--samples is {given.samples}; quartiles take 2 or more")
    dtype = given.dtype or ("float16" if given.device == "cuda" else "float32")
    problems = [Problem(**{**vars(problem), "dtype": dtype}) for problem in SUITES[given.suite]]
    return ["natc", *peers], passes, problems


def rows(
    problem: Problem,
    device: str,
    names: Sequence[str],
    passes: Sequence[str],
    samples: int,
    rate: float,
    end: float | None,
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a problem; natc also has those of its variants."""
    cases = [(problem, list(names))]
    if problem in [Problem(**{**vars(p), "dtype": problem.dtype}) for p in SUITES["nat"]]:
        cases += [(variant, ["natc"]) for variant in variants(problem)]
    for case, contestants in cases:
        tensors = tensors_of(case, device)
        exact: dict[bool, Any] = {}
        for pass_ in passes:
            for name in contestants:
                row: dict[str, Any] = {
                    **vars(case),
                    "contestant": name,
                    "pass": pass_,
                    "device": None,
                    "call": None,
                    "error": None,
                    "floor_us": 1e6 * case.floor_bytes(backward=pass_ != PASSES[0]) / rate,
                    "note": "",
                }
                if end is not None and time.monotonic() >= end:
                    yield {**row, "note": "not timed: the time was up"}
                    continue
                full = name in FULL
                try:
                    if full not in exact:
                        exact[full] = expected(case, tensors, full=full)
                    ways = CONTESTANTS[name](case, tensors, pass_ != PASSES[0])
                    row |= _timed(case, device, ways, pass_, samples, exact[full])
                except Unavailable as error:
                    row["note"] = str(error)
                except torch.OutOfMemoryError:
                    row["note"] = "out of memory"
                yield row


def _timed(
    problem: Problem,
    device: str,
    ways: Iterator[Way],
    pass_: str,
    samples: int,
    exact: dict[str, torch.Tensor],
) -> dict[str, Any]:
    """Return error, times and note of the fastest way; raise Unavailable where there is none."""
    found: list[tuple[float, Way]] = []
    failed = "has no way for it"
    for way in ways:
        found.append((0.0, way))
    if len(found) > 1:
        quick = []
        for _, way in found:
            try:
                seconds = _clock(device)(_call(way, pass_), _SEARCHED)["median_us"]
            except Exception as error:  # refused with several types, by the peer's own checks
                failed = f"{type(error).__name__}: {error}"
                continue
            quick.append((seconds, way))
        found = quick
    if not found:
        raise Unavailable(failed)
    _, best = min(found, key=lambda pair: pair[0])
    error = _error(problem, best, pass_, exact)
    tolerance = ELEMENT_FACTOR * RELATIVE_TOLERANCE[getattr(torch, problem.dtype)]
    many = f" (best of {len(found)})" if len(found) > 1 else ""
    if not error <= tolerance:
        note = f"wrong result (allowed error {tolerance:g}), not timed{many}"
        return {"error": error, "note": note}
    call = _call(best, pass_)
    note = best.note + many
    timed: dict[str, Any] = {"device": None}
    if device == "cuda":
        try:
            timed["device"] = clocks.device_time(call, samples)
        except RuntimeError as reason:
            # Some work cannot be captured.
            torch.cuda.synchronize()
            note += f" no graph: {str(reason).splitlines()[0][:100]}"
    timed["call"] = clocks.call_time(call, device, samples)
    return {**timed, "error": error, "note": note}


def _clock(device: str) -> Callable[..., dict[str, Any]]:
    if device == "cuda":
        return clocks.device_time
    return lambda call, samples: clocks.call_time(call, device, samples)


def _call(way: Way, pass_: str) -> Callable[[], object]:
    if pass_ != PASSES[0]:
        return way.with_gradients

    def forward() -> object:
        with torch.no_grad():
            return way.call()

    return forward


def _error(problem: Problem, way: Way, pass_: str, exact: dict[str, torch.Tensor]) -> float:
    if pass_ == PASSES[0]:
        with torch.no_grad():
            results = [way.call()]
    else:
        results = way.with_gradients()[:4]
    found = {name: way.last(tensor) for name, tensor in zip(RESULTS, results)}
    return largest_error(problem, found, exact)


def host(device: str, names: Sequence[str], samples: int) -> list[dict[str, Any]]:
    """Return the microseconds until a call of a small problem returns, by contestant."""
    dtype = "float16" if device == "cuda" else "float32"
    problem = Problem(1, 7, 7, 1, 32, 7, 1, dtype)
    if device == "cpu":
        problem = Problem(1, 3, 3, 1, 8, 3, 1, dtype)  # a kernel of next to nothing
    tensors = tensors_of(problem, device)
    found: list[dict[str, Any]] = []
    for name in names:
        if name not in ("natc", "natten", "sdpa"):
            continue
        for gradient in (False, True):
            row: dict[str, Any] = {"contestant": name, "gradient": gradient, "note": ""}
            try:
                way = next(iter(CONTESTANTS[name](problem, tensors, gradient)), None)
                if way is None:
                    raise Unavailable("has no way for it")
                # The forward that keeps what a gradient needs; the backward is torch's thread's.
                call = way.call if gradient else _call(way, PASSES[0])
                row |= clocks.host_time(call, device, samples)
            except Unavailable as error:
                row["note"] = str(error)
            found.append(row)
    return found


def copy_rate(device: str) -> float:
    """Return the bytes read and written a second by a large copy."""
    source = torch.zeros(_COPY_BYTES[device], dtype=torch.uint8, device=device)
    to = torch.empty_like(source)
    median = _clock(device)(lambda: to.copy_(source), 20)["median_us"]
    return 2e6 * source.numel() / median


def line(row: dict[str, Any]) -> str:
    """Return a row as a line of text."""
    problem = Problem(**{name: row[name] for name in Problem.__dataclass_fields__})
    times = [f"{kind} {row[kind]['median_us']:.4g} us" for kind in ("device", "call") if row[kind]]
    error = "" if row["error"] is None else f", error {row['error']:.2g}"
    text = ", ".join(times) + error if times else row["note"]
    return (
        f"{problem}, {row['pass']}, {row['contestant']}: {text} (floor {row['floor_us']:.4g} us)"
    )


def show(document: dict[str, Any]) -> None:
    """Print the rows as a table."""
    columns = (
        "problem",
        "pass",
        "contestant",
        "device us",
        "call us",
        "floor us",
        "error",
        "note",
    )
    right = columns[3:7]
    table = output.table(f"attention, suite {document['suite']}", *columns, right=right)
    for row in document["rows"]:
        problem = Problem(**{name: row[name] for name in Problem.__dataclass_fields__})
        times = (f"{row[k]['median_us']:.4g}" if row[k] else "-" for k in ("device", "call"))
        error = "-" if row["error"] is None else f"{row['error']:.1e}"
        floor = f"{row['floor_us']:.4g}"
        table.add_row(
            str(problem), row["pass"], row["contestant"], *times, floor, error, row["note"][:60]
        )
    console = output.stdout()
    console.print(table)
    for row in document["host"]:
        what = "with a gradient" if row["gradient"] else "without a gradient"
        text = row["note"] or f"{row['median_us']:.3g} us"
        console.print(f"host time of a call {what}, {row['contestant']}: {text}")


if __name__ == "__main__":
    main()
