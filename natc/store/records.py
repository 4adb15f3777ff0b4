"""Tuning logs: files of JSON lines, a line for each measurement; damaged lines are skipped."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple, TypeAlias

import msgspec

from natc.errors import RecordError
from natc.operations import FORWARD
from natc.store.files import append_line, reason
from natc.store.json_object import OtherVersion, parse, with_checksum

SCHEMA_VERSION = 1
# A candidate that is surely faster by this factor is worth a schedule; two digits show it.
LEAST_GAIN = 1.005


class SpaceVersion(msgspec.Struct, frozen=True):
    """The design space that decisions belong to; their meaning differs in another version."""

    name: str
    version: int


class GpuFacts(msgspec.Struct, frozen=True):
    """A GPU that took part in a measurement: product name, capability `9.0`, memory in bytes."""

    name: str
    capability: str
    memory: int


class Git(msgspec.Struct, frozen=True):
    """The commit that natc ran from, and whether its code differed from that commit."""

    commit: str
    dirty: bool


class Environment(msgspec.Struct, frozen=True, kw_only=True, tag="environment"):
    """The machine and software of a session: its first record, which its trials refer to by id.

    id: unique text; versions: distribution -> version, or None if it is not installed.
    cores: logical CPUs this process may use; driver: newest CUDA version the driver runs.
    timestamp: ISO 8601 in UTC; seed: the search's seed.
    """

    id: str
    schema_version: int = SCHEMA_VERSION
    versions: dict[str, str | None]
    os: str
    cpu: str
    cores: int
    target: str | None = None
    gpu: GpuFacts | None = None
    driver: str | None = None
    git: Git | None = None
    timestamp: str
    seed: int | None = None


class Trial(msgspec.Struct, frozen=True, kw_only=True, tag="trial"):
    """A candidate: its decisions, and its times or the error that ended it.

    seconds: shape `BxHxWxheadsxhead_dim` -> seconds of one call, positive; None with
    an error. ratio: these times over the times of the default decisions, measured in the same
    turns; geometric mean over the shapes, median over the turns. samples: number of turns; 0
    if another candidate has the same code, whose times these are. features: numbers about the
    candidate's machine code, from which later searches learn; None if it was not built.
    environment: id of an Environment. trial: its number in the log, from 0. operation: the
    measured operation.
    Raises RecordError if both or none of seconds and error are None, or if a time is not positive.
    """

    spec: str
    target: str
    space: SpaceVersion
    decisions: dict[str, int]
    seconds: dict[str, float] | None
    error: str | None
    environment: str
    timestamp: str
    trial: int
    operation: str = FORWARD
    ratio: float | None = None
    samples: int | None = None
    features: dict[str, float] | None = None
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if (self.seconds is None) == (self.error is None):
            raise RecordError("a trial has either seconds or an error.")
        if self.seconds is not None:
            _check_seconds(self.seconds)
        if self.ratio is not None and not (math.isfinite(self.ratio) and self.ratio > 0):
            raise RecordError(f"ratio is {self.ratio}; it must be positive.")
        for name, value in (self.features or {}).items():
            if not math.isfinite(value):
                raise RecordError(f"feature {name} is {value}; it must be finite.")


class Comparison(msgspec.Struct, frozen=True, kw_only=True, tag="comparison"):
    """Two candidates of one kernel, timed in alternation until their order was certain.

    decisions, base: of both. seconds, base_seconds: shape -> seconds of one call of each.
    speedup: how many times as fast as `base` the candidate is, the median over `pairs` turns;
    low, high: bounds that hold the true number with near certainty. A Trial has the other fields,
    too.
    """

    spec: str
    target: str
    space: SpaceVersion
    decisions: dict[str, int]
    base: dict[str, int]
    seconds: dict[str, float]
    base_seconds: dict[str, float]
    speedup: float
    low: float
    high: float
    pairs: int
    environment: str
    timestamp: str
    operation: str = FORWARD
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        _check_seconds(self.seconds)
        _check_seconds(self.base_seconds)
        if not 0 < self.low <= self.speedup <= self.high < math.inf:
            raise RecordError(f"speedup {self.speedup} must lie in {self.low} to {self.high}.")

    @property
    def faster(self) -> bool:
        """Whether the candidate is faster than `base`, beyond the noise, by a gain that counts."""
        return self.low > LEAST_GAIN


class SearchEnd(msgspec.Struct, frozen=True, kw_only=True, tag="search_end"):
    """The end of a search for one kernel's operation. A later run does not repeat the search.

    shapes: keys of the measured inputs. outcome: as in `natc.tune.events.SearchFinished`.
    seconds: how long it took; limit: the time after which it had to end, or None if it could end
    for another reason. used_up: whether every candidate of its space was tried. The other fields
    are as in a Trial.
    """

    spec: str
    target: str
    operation: str
    space: SpaceVersion
    shapes: list[str]
    outcome: str
    seconds: float
    limit: float | None
    used_up: bool
    environment: str
    timestamp: str
    schema_version: int = SCHEMA_VERSION


Record: TypeAlias = Environment | Trial | Comparison | SearchEnd


def _check_seconds(seconds: dict[str, float]) -> None:
    if not seconds:
        raise RecordError("seconds is empty; it must hold at least one shape.")
    # Checked here, because JSON has no infinity and would turn it into null.
    for shape, value in seconds.items():
        if not (math.isfinite(value) and value > 0):
            raise RecordError(f"seconds of shape {shape} is {value}; it must be positive.")


class UnreadableLine(NamedTuple):
    """A line of a log that cannot be read: the file, the line's number from 1, and the reason."""

    path: Path
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


def shape_key(shape: tuple[int, ...]) -> str:
    """Return the text of an input shape: (1, 56, 56, 2, 32) is `1x56x56x2x32`."""
    return "x".join(map(str, shape))


def dump(record: Record) -> str:
    """Return a record as its line in a log, without the newline."""
    return msgspec.json.encode(with_checksum(msgspec.to_builtins(record))).decode()


def append(path: Path, record: Record) -> None:
    """Append a record to a log, on disk when this returns; creates the log.

    Raises NatcError naming the file when it cannot be written.
    """
    append_line(path, dump(record))


def read_log(path: Path) -> tuple[list[Record], list[UnreadableLine]]:
    """Return the records of a log in order, and an UnreadableLine for each other line.

    Such a line is damaged, cut short, or a record of a newer natc. A log that does not exist is
    empty. Raises RecordError when the file cannot be read.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], []
    except OSError as error:
        raise RecordError(f"tuning log {path} cannot be read: {reason(error)}.") from error
    records: list[Record] = []
    problems: list[UnreadableLine] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            records.append(_decode(line))
        except RecordError as error:
            problems.append(UnreadableLine(path, number, str(error)))
    return records, problems


def _decode(line: bytes) -> Record:
    try:
        record: Record = msgspec.convert(parse(line, SCHEMA_VERSION), Record)
        return record
    except OtherVersion as error:
        raise RecordError(
            f"record has schema version {error.version}, written by a newer natc; this one reads "
            f"{SCHEMA_VERSION}. It was skipped."
        ) from error
    # ValueError covers msgspec's own errors and text that is not UTF-8.
    except (ValueError, RecordError) as error:
        raise RecordError(
            f"damaged record was skipped: {str(error).rstrip('.')}. Restore the line from a copy, "
            "or leave it: a search measures the candidate again."
        ) from error
