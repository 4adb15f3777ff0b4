"""Times of neighborhood attention beside its peers: `python benchmarks/attention.py`.

Suites of problems for `natc.bench`, with NATTEN and attention of all tokens as further peers. The
result is a document that `natc bench --from` shows, draws and reports. Only compiled kernels are
timed: a problem without a library has a row that says which command builds one; with NATC_JIT=on,
the script builds it.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

# Before natc is imported: by default, a call runs on a library that is there.
os.environ.setdefault("NATC_JIT", "off")

import torch
from msgspec.structs import replace
from rivals import full_sdpa, natten

from natc.bench import ceilings, peers, results, times
from natc.bench.problem import BenchProblem
from natc.cli.views import times_table
from natc.spec import KernelSpec
from natc.store.files import write_atomically

CONTESTANTS: dict[str, times.Contestant] = {
    "natc": peers.natc_kernels,
    "natten": natten,
    "flex": peers.flex,
    "sdpa": full_sdpa,
    "sdpa-masked": peers.masked_sdpa,
    "reference": peers.plain,
}
LEVELS = ((56, 2), (28, 4), (14, 8), (7, 16))


def two_d(
    batch: int,
    side: int,
    heads: int,
    head_dim: int,
    kernel: int,
    dtype: str,
    **options: bool | int,
) -> BenchProblem:
    """Return a problem on a square map."""
    rpb = bool(options.pop("rpb", False))
    spec = KernelSpec.make(kernel, head_dim=head_dim, dtype=dtype, rpb=rpb)
    return BenchProblem.make(spec, (batch, side, side, heads), **options)


def nat(dtype: str) -> list[BenchProblem]:
    """Return NAT's levels at batch 128, a level of DiNAT, and shapes of image generators."""
    levels = [two_d(128, side, heads, 32, 7, dtype) for side, heads in LEVELS]
    return [
        *levels,
        *(two_d(128, side, heads, 32, 7, dtype, rpb=True) for side, heads in LEVELS),
        two_d(32, 56, 4, 32, 7, dtype, dilation=8),
        two_d(8, 128, 8, 64, 13, dtype),
        two_d(2, 256, 8, 64, 21, dtype),
        two_d(1, 64, 16, 128, 25, dtype),
    ]


def curve(dtype: str) -> list[BenchProblem]:
    """Return maps of 7x7 to 256x256 with about as many tokens together."""
    sides = (7, 10, 14, 20, 28, 40, 56, 80, 112, 160, 224, 256)
    return [two_d(max(1, 128 * 28**2 // side**2), side, 4, 32, 7, dtype) for side in sides]


def small(dtype: str) -> list[BenchProblem]:
    """Return two problems that show in seconds that the script works."""
    return [
        two_d(2, 9, 2, 8, 3, dtype),
        two_d(1, 12, 1, 8, 3, dtype, dilation=2, rpb=True),
    ]


SUITES = {"nat": nat, "curve": curve, "small": small}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", choices=tuple(SUITES), default="nat")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument(
        "--peers",
        default=",".join(list(CONTESTANTS)[1:]),
        help="separated by commas, or none; by default all",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="of all problems; by default float16, on a CPU float32",
    )
    parser.add_argument("--backward", action="store_true", help="forward and backward together")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each problem")
    parser.add_argument("--minutes", type=float, help="begin no further problem after this time")
    parser.add_argument("--output", type=Path, help="write the document here, problem by problem")
    parser.add_argument("--json", action="store_true", help="print the document")
    options = parser.parse_args()
    names = [] if options.peers == "none" else options.peers.split(",")
    for name in names:
        if name not in CONTESTANTS:
            parser.error(f"--peers has {name!r}; allowed are {', '.join(list(CONTESTANTS)[1:])}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device is cuda, but torch sees no GPU on this machine; use cpu")
    dtype = options.dtype or ("float16" if options.device == "cuda" else "float32")
    problems = SUITES[options.suite](dtype)
    if options.backward:
        problems = [replace(problem, backward=True) for problem in problems]
    contestants = {name: CONTESTANTS[name] for name in ("natc", *names)}
    end = time.monotonic() + 60 * (options.minutes or float("inf"))
    load = results.load_average()
    rates = [ceilings.measure(options.device, dtype)]
    rows: list[results.Row] = []
    for number, problem in enumerate(problems):
        if rows and time.monotonic() >= end:
            print(f"the time was up: {len(problems) - number} problems not timed", file=sys.stderr)
            break
        rows += times.time_problems(
            [problem],
            contestants,
            device=options.device,
            seconds=options.seconds,
            progress=lambda sentence: print(sentence, file=sys.stderr, flush=True),
        )
        rates.append(ceilings.measure(options.device, dtype))
        document = results.collect(
            rows,
            options.device,
            ceilings=rates,
            load_average=load,
            command=" ".join(["python", "benchmarks/attention.py", *sys.argv[1:]]),
        )
        if options.output:  # problem by problem: a run that is cut short leaves its results
            write_atomically(options.output, results.write(document))
    if options.json:
        print(results.write(document), end="")
    else:
        times_table.show(document)
    own = [row for row in rows if row.contestant == "natc"]
    if not any(row.median_seconds for row in own):
        raise SystemExit(f"natc was not timed: {own[0].note}")


if __name__ == "__main__":
    main()
