"""Runs everything that needs a GPU, on a machine that is rented for minutes:

    python benchmarks/gpu_session.py LOGS --libraries lib --rounds rounds

The steps are tests, compute-sanitizer if it is installed, times, memory, and candidates of
searches. They need torch, tvm-ffi and natc's checkout, but no compiler: libraries (`natc package`
or `natc build --output`) and rounds (`natc tune --export`) come from another machine. Each step
has a time limit and a log in LOGS; the next step runs even if it fails, and results that it wrote
before its limit stay. `summary.json` says how each step ended. Exits with 1 if a step failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = Path(__file__).resolve().parent
# Shares of the time, which add up to 1. Later steps share the time that a step leaves.
SHARES = {
    "tests": 0.25,
    "sanitizer": 0.15,
    "attention": 0.15,
    "backward": 0.1,
    "curve": 0.07,
    "memory": 0.05,
    "measure": 0.23,
}
PASSED, FAILED, LATE, SKIPPED = "passed", "failed", "late", "skipped"
# A program is told to stop this many seconds before its limit, so that it writes its results.
_MARGIN = 10.0


@dataclass(frozen=True)
class Step:
    """One program: its name, its words, and a reason to skip it, or "".

    output: the file in the logs' directory for its stdout; by default its log.
    """

    name: str
    command: Sequence[str]
    skip: str = ""
    output: str = ""


@dataclass(frozen=True)
class Ended:
    """How a step ended: `passed`, `failed`, `late` or `skipped`; and its last line."""

    name: str
    state: str
    seconds: float
    last_line: str
    log: str


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("logs", type=Path, help="directory for logs and results")
    parser.add_argument("--libraries", type=Path, help="libraries for this GPU (NATC_LIB_PATH)")
    parser.add_argument("--rounds", type=Path, help="directory of natc tune --export")
    parser.add_argument("--minutes", type=float, default=10.0, help="for all steps together")
    parser.add_argument("--only", help=f"some of {', '.join(SHARES)}, separated by commas")
    options = parser.parse_args()
    only = options.only.split(",") if options.only else list(SHARES)
    for name in only:
        if name not in SHARES:
            parser.error(f"--only has {name!r}; allowed are {', '.join(SHARES)}")
    if not options.minutes > 0:
        parser.error(f"--minutes is {options.minutes}; it must be above 0")
    for option, path in (("--libraries", options.libraries), ("--rounds", options.rounds)):
        if path is not None and not path.is_dir():
            parser.error(f"{option} is {path}, which is not a directory")
    if options.libraries is not None:
        os.environ["NATC_LIB_PATH"] = str(options.libraries.absolute())
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))
    )
    logs = options.logs.absolute()
    chosen = [
        step for step in steps(logs, options.rounds, 60 * options.minutes) if step.name in only
    ]
    return run(chosen, logs, 60 * options.minutes)


def steps(logs: Path, rounds: Path | None, seconds: float) -> list[Step]:
    """Return the steps in order. seconds: for all together."""
    python = sys.executable
    sanitizer = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path="/usr/local/cuda/bin"
    )
    attention = [python, str(BENCHMARKS / "attention.py"), "--device", "cuda"]

    def minutes(name: str) -> str:
        return f"{max(0.1, (SHARES[name] * seconds - _MARGIN) / 60):.2f}"

    return [
        Step("tests", [python, "-m", "pytest", "-q", str(ROOT / "tests" / "gpu")]),
        Step(
            "sanitizer",
            [
                *(sanitizer or "compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "1"),
                *(python, str(ROOT / "tests" / "gpu" / "sanitize.py")),
            ],
            skip="" if sanitizer else "compute-sanitizer is not installed",
        ),
        Step(
            "attention",
            [*attention, "--minutes", minutes("attention"), "--output", str(logs / "nat.json")],
        ),
        Step(
            "backward",
            [
                *(*attention, "--backward", "--minutes", minutes("backward")),
                *("--output", str(logs / "backward.json")),
            ],
        ),
        Step(
            "curve",
            [
                *(*attention, "--suite", "curve", "--peers", "sdpa"),
                *("--minutes", minutes("curve"), "--output", str(logs / "curve.json")),
            ],
        ),
        Step(
            "memory",
            [python, str(BENCHMARKS / "memory.py"), "--device", "cuda", "--json"],
            output="memory.json",
        ),
        Step(
            "measure",
            [
                *(python, "-m", "natc", "measure", str(rounds)),
                *("--minutes", minutes("measure"), "--json"),
            ],
            skip="" if rounds else "there is no --rounds",
            output="measure.json",
        ),
    ]


def run(chosen: Sequence[Step], logs: Path, seconds: float) -> int:
    """Run steps one after the other; return 1 if any failed or was late, else 0.

    seconds: for all together, divided by `SHARES`.
    """
    logs.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    ended: list[Ended] = []
    for number, step in enumerate(chosen):
        # The remaining steps share the time that earlier ones did not need.
        shares = sum(SHARES.get(later.name, 1.0) for later in chosen[number:])
        remaining = start + seconds - time.monotonic()
        end = _run(step, logs, number, remaining * SHARES.get(step.name, 1.0) / shares)
        ended.append(end)
        (logs / "summary.json").write_text(json.dumps(list(map(asdict, ended)), indent=2) + "\n")
        print(f"{end.name}: {end.state} in {end.seconds:.0f} s; {end.last_line}", flush=True)
    bad = [end.name for end in ended if end.state in (FAILED, LATE)]
    print(f"{len(ended)} steps in {time.monotonic() - start:.0f} s; ", end="")
    print(f"not well: {', '.join(bad)}; logs in {logs}" if bad else f"all well; logs in {logs}")
    return 1 if bad else 0


def _run(step: Step, logs: Path, number: int, limit: float) -> Ended:
    log = logs / f"{number}_{step.name}.log"
    if step.skip:
        return Ended(step.name, SKIPPED, 0.0, step.skip, "")
    start = time.monotonic()
    with contextlib.ExitStack() as files:
        errors = files.enter_context(open(log, "wb"))
        stdout = files.enter_context(open(logs / step.output, "wb")) if step.output else errors
        try:
            process = subprocess.Popen(
                step.command, cwd=ROOT, stdout=stdout, stderr=errors, start_new_session=True
            )
        except OSError as error:
            return Ended(step.name, FAILED, 0.0, str(error), log.name)
        try:
            status = process.wait(max(limit, 0.0))
            state = PASSED if status == 0 else FAILED
        except subprocess.TimeoutExpired:
            state = LATE
        except BaseException:
            _end(process)
            raise
        # Programs that it started and did not end would hold the GPU.
        _end(process)
    return Ended(step.name, state, time.monotonic() - start, _last_line(log), log.name)


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else ""


if __name__ == "__main__":
    sys.exit(main())
