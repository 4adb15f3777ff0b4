"""What a benchmark found, as the JSON document that `natc bench --json` prints and reads back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from natc.errors import ArgumentError, NatcError
from natc.spec import KernelSpec
from natc.store.files import reason
from natc.store.records import Environment
from natc.window import window

_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class ResultRow:
    """One contestant on one shape.

    `median_seconds`, `quartile_seconds` (25th and 75th percentile) and `ratio_to_first` (how
    many times as long as the first contestant) are None if it was not timed; `note` says why.
    `max_error` is relative to the largest value of the float64 reference; None if it never ran.
    `floor_seconds` is the least that the machine could take (`floor`); None if it is not known.
    """

    contestant: str
    shape: tuple[int, ...]
    median_seconds: float | None
    ratio_to_first: float | None
    max_error: float | None
    quartile_seconds: tuple[float, float] | None = None
    note: str = ""
    floor_seconds: float | None = None


class Ceilings(msgspec.Struct, frozen=True, kw_only=True):
    """What the machine did at most, measured in the same run.

    bytes_per_second: read and written together, beyond the caches. operations_per_second: by what
    was measured; a multiply-add is two; the first is what floors are made of. method: in words.
    lower_bound: whether operations could be more than that.
    """

    bytes_per_second: float
    operations_per_second: dict[str, float]
    method: str
    lower_bound: bool = False


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """A benchmark: what was timed, on what, by which command.

    device: a torch device's name; ceilings and command are None in results of older releases.
    """

    spec: str
    device: str
    dilation: int
    environment: Environment
    rows: list[ResultRow]
    ceilings: Ceilings | None = None
    command: str | None = None

    def __post_init__(self) -> None:
        if KernelSpec.parse(self.spec).rank != 2 or not self.rows or self.dilation < 1:
            raise ValueError("it must have rows, of a kernel of rank 2, and a dilation")
        if any(len(row.shape) != 5 or min(row.shape) < 1 for row in self.rows):
            raise ValueError("a shape must be five positive numbers")
        if any(row.median_seconds is not None and row.median_seconds <= 0 for row in self.rows):
            raise ValueError("times must be positive")

    @property
    def machine(self) -> str:
        """The processor that it ran on, for people."""
        gpu = self.environment.gpu
        if self.device != "cpu" and gpu is not None:
            return gpu.name
        return f"{self.environment.cpu}, {self.environment.cores} cores"

    @property
    def title(self) -> str:
        """One line on what was timed, and where."""
        return f"{self.spec}, dilation {self.dilation}, on {self.machine}"


@dataclass(frozen=True)
class Work:
    """What neighborhood attention cannot do without, for one problem.

    operations: of the dot products with keys and the sums of values; a multiply-add is two.
    bytes: query, key, value, bias and output, each once.
    """

    operations: int
    bytes: int


def work(spec: KernelSpec, shape: tuple[int, ...], dilation: int = 1) -> Work:
    """Return the work of a forward on query `[batch, height, width, heads, head_dim]`."""
    batch, *sizes, heads, head_dim = shape
    pairs = batch * heads
    for size, kernel_size in zip(sizes, spec.kernel_size, strict=True):
        pairs *= sum(window(i, size, kernel_size, dilation).count for i in range(size))
    tokens = batch * heads
    for size in sizes:
        tokens *= size
    bias = 4 * heads if spec.rpb else 0
    for kernel_size in spec.kernel_size:
        bias *= 2 * kernel_size - 1
    return Work(4 * pairs * head_dim, 4 * tokens * head_dim * _BYTES[spec.dtype] + bias)


def floor(work: Work, ceilings: Ceilings) -> float:
    """Return the seconds below which no kernel gets that reads memory once: the longer of both.

    Tensors that are in the caches already may be read faster than that.
    """
    operations = next(iter(ceilings.operations_per_second.values()), None)
    seconds = work.bytes / ceilings.bytes_per_second
    return seconds if operations is None else max(seconds, work.operations / operations)


def larger(one: Ceilings, other: Ceilings) -> Ceilings:
    """Return the larger of each ceiling: what was measured before and after the times."""
    return Ceilings(
        bytes_per_second=max(one.bytes_per_second, other.bytes_per_second),
        operations_per_second={
            name: max(rate, other.operations_per_second.get(name, 0.0))
            for name, rate in one.operations_per_second.items()
        },
        method=one.method,
        lower_bound=one.lower_bound or other.lower_bound,
    )


def with_floors(results: Results) -> Results:
    """Return results whose rows have floors, where there are ceilings."""
    if results.ceilings is None:
        return results
    spec = KernelSpec.parse(results.spec)
    rows = [
        replace(
            row, floor_seconds=floor(work(spec, row.shape, results.dilation), results.ceilings)
        )
        for row in results.rows
    ]
    return msgspec.structs.replace(results, rows=rows)


def read(path: Path) -> Results:
    """Read what `natc bench --json` printed; raises ArgumentError naming the file otherwise."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArgumentError(f"results {path} cannot be read: {reason(error)}.") from error
    try:
        return msgspec.json.decode(data, type=Results)
    # ValueError covers msgspec's own errors and text that is not UTF-8.
    except (ValueError, NatcError) as error:
        raise ArgumentError(
            f"file {path} is not what natc bench --json prints: {str(error).rstrip('.')}."
        ) from error


def by_shape(results: Results) -> dict[tuple[int, ...], dict[str, ResultRow]]:
    """Return the rows by shape and contestant, in their order."""
    found: dict[tuple[int, ...], dict[str, ResultRow]] = {}
    for row in results.rows:
        found.setdefault(row.shape, {})[row.contestant] = row
    return found
