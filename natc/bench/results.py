"""The results of a benchmark: the JSON document that `natc bench --json` prints and reads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec.structs import replace

from natc.bench.problem import BenchProblem, Work, work
from natc.errors import ArgumentError, NatcError
from natc.host import environment
from natc.store.files import reason
from natc.store.records import Environment, shape_key

# A machine is called busy above this load average per core, and a call's samples disagree if
# their quartiles are further apart than this factor.
BUSY_LOAD = 0.5
DISAGREEMENT = 1.5


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One contestant on one problem.

    median_seconds, quartile_seconds: of a call, host work included; None if the contestant was
    not timed, and `note` says why. device_seconds: the GPU's own time, by a CUDA graph.
    max_error: relative to the largest value of the float64 reference; None if it never ran.
    ratio_to_first: how many times as long as the first contestant, the median over the turns;
    ratio_interval: bounds that hold the true median with a chance of 99 %, None if samples were
    too few.
    floor_seconds: the least time that the ceilings allow; share_of_peak: useful operations a
    second as a share of the first ceiling. Both are None without ceilings.
    """

    problem: BenchProblem
    contestant: str
    median_seconds: float | None = None
    quartile_seconds: tuple[float, float] | None = None
    device_seconds: float | None = None
    max_error: float | None = None
    ratio_to_first: float | None = None
    ratio_interval: tuple[float, float] | None = None
    floor_seconds: float | None = None
    share_of_peak: float | None = None
    note: str = ""

    @property
    def seconds(self) -> float | None:
        """The GPU's own time if there is one, else the median."""
        return self.device_seconds or self.median_seconds

    @property
    def spread(self) -> float:
        """How many times as long as the lower quartile the upper one is; 1 if not timed."""
        low, high = self.quartile_seconds or (1.0, 1.0)
        return high / low


class Ceilings(msgspec.Struct, frozen=True, kw_only=True):
    """The largest rates of the machine, measured in the same run.

    bytes_per_second: read and written together, beyond the caches. operations_per_second: by the
    kind of work; a multiply-add is two operations. Floors and shares are relative to the first.
    method: how they were measured. lower_bound: whether the machine may do more operations.
    """

    bytes_per_second: float
    operations_per_second: dict[str, float]
    method: str
    lower_bound: bool = False

    @property
    def peak(self) -> float | None:
        """Operations a second of the first kind."""
        return next(iter(self.operations_per_second.values()), None)

    def lines(self) -> list[str]:
        """Return a line of text for each rate."""
        at_least = "at least " if self.lower_bound else ""
        return [
            f"{self.bytes_per_second / 1e9:.3g} GB/s, memory, read and written",
            *(
                f"{at_least}{rate / 1e9:.3g} GFLOP/s, {name}"
                for name, rate in self.operations_per_second.items()
            ),
        ]


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """A benchmark: rows problem by problem, the machine, and the command that measured it.

    device: a torch device's name. load_average: of the last minute, before anything was timed.
    busy: sentences that say why the times cannot be trusted; empty if nothing was noticed.
    """

    device: str
    environment: Environment
    rows: list[Row]
    ceilings: Ceilings | None = None
    load_average: float | None = None
    busy: list[str] = []
    command: str | None = None

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError("it must have rows")
        if any(row.median_seconds is not None and row.median_seconds <= 0 for row in self.rows):
            raise ValueError("times must be positive")

    @property
    def problems(self) -> list[BenchProblem]:
        """The problems, in their order."""
        return list(dict.fromkeys(row.problem for row in self.rows))

    @property
    def machine(self) -> str:
        """The processor that was timed, for people."""
        gpu = self.environment.gpu
        if self.device != "cpu" and gpu is not None:
            return gpu.name
        return f"{self.environment.cpu}, {self.environment.cores} cores"

    @property
    def title(self) -> str:
        """One line: the facts that all problems share, and the machine."""
        shared = [facts[0] for facts in self._facts() if len(set(facts)) == 1 and facts[0]]
        return f"{', '.join(shared or ['attention'])}, on {self.machine}"

    def label(self, problem: BenchProblem) -> str:
        """Return a problem's shape and the facts that distinguish it from other problems here."""
        differ = [len(set(facts)) > 1 for facts in self._facts()]
        facts = [fact for fact, flag in zip(problem.facts, differ, strict=True) if flag and fact]
        return " ".join([shape_key(problem.shape), *facts])

    def _facts(self) -> list[tuple[str, ...]]:
        return list(zip(*(problem.facts for problem in self.problems), strict=True))

    def of(self, problem: BenchProblem) -> dict[str, Row]:
        """Return the rows of a problem, by contestant."""
        return {row.contestant: row for row in self.rows if row.problem == problem}


def collect(
    rows: Sequence[Row],
    device: str,
    *,
    ceilings: Sequence[Ceilings] = (),
    load_average: float | None = None,
    command: str | None = None,
) -> Results:
    """Return the results of a run on this machine.

    ceilings: as measured before and after the rows; the larger rates count, because processors
    change their clock. load_average: as `load_average()` returned before the run.
    """
    results = Results(
        device=device,
        environment=environment.collect(),
        rows=list(rows),
        ceilings=_larger(ceilings) if ceilings else None,
        load_average=load_average,
        command=command,
    )
    return complete(results)


def complete(results: Results) -> Results:
    """Return results with floors, shares of the peak, and what makes their times doubtful."""
    rows = results.rows
    if (ceilings := results.ceilings) is not None:
        rows = [
            replace(
                row,
                floor_seconds=floor(work(row.problem), ceilings),
                share_of_peak=_share(row, ceilings),
            )
            for row in rows
        ]
    results = replace(results, rows=rows)
    return replace(results, busy=doubts(results))


def load_average() -> float | None:
    """Return the load average of the last minute, or None on a system that has none."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def doubts(results: Results) -> list[str]:
    """Return sentences that say why the times cannot be trusted, worst first."""
    sentences = []
    load, cores = results.load_average, results.environment.cores
    if load is not None and load > BUSY_LOAD * cores:
        sentences.append(
            f"the load average was {load:.1f} on {cores} cores before anything was timed: other "
            "programs were running."
        )
    apart = [row for row in results.rows if row.spread > DISAGREEMENT]
    if apart:
        worst = max(apart, key=lambda row: row.spread)
        timed = sum(row.quartile_seconds is not None for row in results.rows)
        sentences.append(
            f"samples of {len(apart)} of {timed} times disagree. {worst.contestant} at "
            f"{results.label(worst.problem)} is the worst: its upper quartile is "
            f"{worst.spread:.1f} times the lower one."
        )
    return sentences


def floor(work: Work, ceilings: Ceilings) -> float:
    """Return the least seconds for work: at the ceilings' rate of bytes, or of operations.

    Tensors that are in the caches already may be read faster.
    """
    seconds = work.bytes / ceilings.bytes_per_second
    return max(seconds, work.operations / ceilings.peak) if ceilings.peak else seconds


def _share(row: Row, ceilings: Ceilings) -> float | None:
    if row.seconds is None or ceilings.peak is None:
        return None
    return work(row.problem).operations / row.seconds / ceilings.peak


def _larger(ceilings: Sequence[Ceilings]) -> Ceilings:
    return replace(
        ceilings[0],
        bytes_per_second=max(c.bytes_per_second for c in ceilings),
        operations_per_second={
            name: max(c.operations_per_second[name] for c in ceilings)
            for name in ceilings[0].operations_per_second
        },
    )


def write(results: Results) -> str:
    """Return the JSON document, indented."""
    return msgspec.json.format(msgspec.json.encode(results), indent=2).decode() + "\n"


def read(path: Path) -> Results:
    """Read what `natc bench --json` printed; raises ArgumentError naming the file otherwise."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArgumentError(f"results {path} cannot be read: {reason(error)}.") from error
    try:
        return complete(msgspec.json.decode(data, type=Results))
    # ValueError covers msgspec's own errors and text that is not UTF-8.
    except (ValueError, NatcError) as error:
        raise ArgumentError(
            f"file {path} is not what natc bench --json prints: {str(error).rstrip('.')}."
        ) from error
