"""Shares of a CPU's peak, call by call: the JSON document of `benchmarks/cpu.py`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec.structs import replace

from natc.bench.problem import BenchProblem, Work, forward_work, gradients_work
from natc.bench.results import BUSY_LOAD, DISAGREEMENT
from natc.errors import ArgumentError, NatcError
from natc.store.files import reason
from natc.store.records import Environment, shape_key

Quartiles = tuple[float, float, float]

# The calls of natc. Contestants have names of their own, and their work is a forward's.
FORWARD_KERNEL, FORWARD = "forward kernel", "forward"
GRADIENT_KERNELS, GRADIENTS = "gradient kernels", "gradients"
_GRADIENTS = (GRADIENT_KERNELS, GRADIENTS)


class ShareRow(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of call of one problem, with a number of threads.

    sections: the benchmark's sections that show the row. quartile_seconds: quartiles of a call's
    time; None if it was not timed, and `note` says why. samples: number of timed samples.
    max_error: largest error, relative to the largest value in float64. peak: operations a
    second that the threads reached in registers, in the same turns. share_of_peak: the rate of the
    call's useful operations, by the lower quartile of its time, divided by the peak.
    floor_seconds: the least time that the peak and the rate of copies allow. ratio: quartiles of
    this time over natc's forward in the same turn, for a contestant. speedup: quartiles of one
    thread's time over this time in the same turn, for several threads.
    """

    sections: list[str]
    problem: BenchProblem
    call: str
    threads: int
    quartile_seconds: Quartiles | None = None
    samples: int = 0
    max_error: float | None = None
    peak: float | None = None
    share_of_peak: float | None = None
    floor_seconds: float | None = None
    ratio: Quartiles | None = None
    speedup: Quartiles | None = None
    note: str = ""

    @property
    def work(self) -> Work:
        """The useful operations and bytes of a call."""
        count = gradients_work if self.call in _GRADIENTS else forward_work
        return count(self.problem)


class NetworkRow(msgspec.Struct, frozen=True, kw_only=True):
    """One network in one mode, as `benchmarks/models.py` times it.

    mode: eager, compiled or training. quartile_seconds: None if it was not timed, and `note` says
    why. ratio_to: for each network in the same turns, quartiles of this time over its time.
    largest_difference: between logits in this mode and eager ones, relative to the largest logit;
    None for a step of training.
    """

    network: str
    mode: str
    batch: int
    size: int
    dtype: str
    images_per_second: float | None
    quartile_seconds: Quartiles | None
    largest_difference: float | None
    ratio_to: dict[str, Quartiles]
    note: str


class Shares(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that one run measured.

    target: whose code ran, such as `llvm-x86-64-v3`. peak_method: how the peak was measured;
    peak_is_lower_bound: whether the CPU may do more. bytes_per_second: copied by a number of
    threads, reads and writes together. missing: what could not be measured, in sentences.
    busy: sentences that say why times cannot be trusted. seconds: of the whole run.
    """

    target: str
    environment: Environment
    peak_method: str
    peak_is_lower_bound: bool
    bytes_per_second: dict[int, float]
    load_average: float | None
    command: str
    seconds: float
    rows: list[ShareRow]
    networks: list[NetworkRow] = []
    missing: list[str] = []
    busy: list[str] = []

    def __post_init__(self) -> None:
        if not self.rows and not self.networks:
            raise ValueError("it must have rows")
        times = [row.quartile_seconds for row in self.rows]
        times += [row.quartile_seconds for row in self.networks]
        if any(quartiles and min(quartiles) <= 0 for quartiles in times):
            raise ValueError("times must be positive")


def label(problem: BenchProblem) -> str:
    """Return a problem in words: `56x56, K=7, D=32, 2 heads`."""
    spec = problem.kernel
    batch, *sizes, heads, head_dim = problem.shape
    facts = [f"{batch} x {shape_key(tuple(sizes))}" if batch > 1 else shape_key(tuple(sizes))]
    facts += [f"K={spec.kernel_text}", f"D={head_dim}", f"{heads} head{'s' * (heads > 1)}"]
    facts += [spec.dtype] if spec.dtype != "float32" else []
    facts += [f"dilation {max(problem.dilation)}"] if max(problem.dilation) > 1 else []
    facts += [] if spec.rpb else ["no bias"]
    return ", ".join(facts)


def by_problem(rows: Sequence[ShareRow]) -> dict[BenchProblem, dict[str, list[ShareRow]]]:
    """Return the rows of natc's calls that were timed: problem -> call -> by number of threads.

    Rows of the section `peers` repeat them beside slower calls, and are left out.
    """
    groups: dict[BenchProblem, dict[str, list[ShareRow]]] = {}
    for row in rows:
        if row.call in (FORWARD, GRADIENTS) and row.sections != ["peers"] and row.share_of_peak:
            groups.setdefault(row.problem, {}).setdefault(row.call, []).append(row)
    return groups


def complete(row: ShareRow, bytes_per_second: float) -> ShareRow:
    """Return a row with its share of the peak and its floor."""
    if row.quartile_seconds is None or row.peak is None:
        return row
    work = row.work
    return replace(
        row,
        share_of_peak=work.operations / row.quartile_seconds[0] / row.peak,
        floor_seconds=max(work.operations / row.peak, work.bytes / bytes_per_second),
    )


def doubts(rows: Sequence[ShareRow], load: float | None, cores: int) -> list[str]:
    """Return sentences that say why the times cannot be trusted.

    load: the load average of the last minute, before anything was timed.
    """
    sentences = []
    if load is not None and load > BUSY_LOAD * cores:
        sentences.append(
            f"the load average was {load:.1f} on {cores} cores before anything was timed: other "
            "programs were running."
        )
    timed = {row.quartile_seconds: row for row in rows if row.quartile_seconds}
    apart = [row for quartiles, row in timed.items() if _spread(quartiles) > DISAGREEMENT]
    if apart:
        worst = max(apart, key=lambda row: _spread(row.quartile_seconds or (1.0, 1.0, 1.0)))
        sentences.append(
            f"samples of {len(apart)} of {len(timed)} times disagree; the worst is {worst.call} "
            f"at {label(worst.problem)} on {worst.threads} threads."
        )
    if disturbed := _disturbed(rows):
        sentences.append(
            f"the peak of {disturbed} of {len(rows)} rows is below 0.8 of the highest one, so "
            "their shares are too large."
        )
    return sentences


def _disturbed(rows: Sequence[ShareRow]) -> int:
    """Return how many rows have a peak far below the highest of as many threads."""
    highest: dict[int, float] = {}
    for row in rows:
        highest[row.threads] = max(highest.get(row.threads, 0.0), row.peak or 0.0)
    return sum(row.peak is not None and row.peak < 0.8 * highest[row.threads] for row in rows)


def _spread(quartiles: Quartiles) -> float:
    return quartiles[2] / quartiles[0]


def write(shares: Shares) -> str:
    """Return the JSON document, indented."""
    return msgspec.json.format(msgspec.json.encode(shares), indent=2).decode() + "\n"


def read(path: Path) -> Shares:
    """Read what `benchmarks/cpu.py --json` printed; raises ArgumentError naming the file."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Shares)
    except OSError as error:
        raise ArgumentError(f"results {path} cannot be read: {reason(error)}.") from error
    # ValueError covers msgspec's own errors and text that is not UTF-8.
    except (ValueError, NatcError) as error:
        raise ArgumentError(
            f"file {path} is not what benchmarks/cpu.py --json prints: {str(error).rstrip('.')}."
        ) from error
