"""A round: compiled candidates of one search, in a directory that another machine can measure.

The directory holds `round.json`, a library for each candidate, and after measuring
`measured.jsonl`, in the format of `tuning_logs/`. It refers to no file outside itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec

from natc import env
from natc.errors import ArgumentError, NatcError, TargetError, TuneError
from natc.host import gpu
from natc.host.detect import require_runs_here
from natc.operations import OPERATIONS
from natc.runtime.trust import distrust
from natc.spec import KernelSpec
from natc.store import manifest
from natc.store.files import reason, write_atomically
from natc.store.json_object import OtherVersion, parse, with_checksum
from natc.store.manifest import file_sha256
from natc.store.records import Comparison, Environment, Record, SpaceVersion, Trial, read_log
from natc.store.schedules import Gain
from natc.targets import Target

SCHEMA_VERSION = 1
NAME, MEASURED = "round.json", "measured.jsonl"
# The version of the calling convention, as in manifests.
ABI = manifest.SCHEMA_VERSION


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One candidate: its decisions, its library in the round's directory, and that file's hash.

    features: numbers about its machine code.
    """

    decisions: dict[str, int]
    library: str
    sha256: str
    features: dict[str, float] | None = None

    def __post_init__(self) -> None:
        # A round must not lead to a file elsewhere.
        if not self.library or Path(self.library).name != self.library:
            raise ValueError(f"library {self.library!r} must be a file name without a directory")


class Dropped(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate that is not worth measuring, and why."""

    decisions: dict[str, int]
    error: str


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """The content of `round.json`.

    spec, target: names. shapes: inputs (batch, sizes, heads) to measure. candidates: the first is
    the untuned kernel; if `present`, the second is the schedule to beat. exported_on: the machine
    that compiled them; seed: for the choice of candidates.
    """

    schema_version: int = SCHEMA_VERSION
    abi: int = ABI
    natc: str
    spec: str
    target: str
    operation: str
    space: SpaceVersion
    shapes: list[tuple[int, ...]]
    candidates: list[Candidate]
    present: bool
    dropped: list[Dropped]
    seed: int
    exported_on: Environment

    def __post_init__(self) -> None:
        rank = KernelSpec.parse(self.spec).rank
        Target.parse(self.target)
        if self.operation not in OPERATIONS:
            raise ValueError(f"operation {self.operation!r} is unknown")
        if not self.candidates or not self.shapes:
            raise ValueError("a round has at least one candidate and one shape")
        for shape in self.shapes:
            if len(shape) != rank + 2 or min(shape) < 1:
                raise ValueError(f"shape {shape} is not (batch, size of each axis, heads)")

    @property
    def name(self) -> str:
        """The name to show: kernel, operation and target."""
        return f"{self.spec} {self.operation} for {self.target}"


class RoundLog(NamedTuple):
    """The content of a round's log: its records in order, and a sentence on each damaged line."""

    records: list[Record]
    problems: list[str]

    @property
    def trials(self) -> list[Trial]:
        """The trials, in order."""
        return [record for record in self.records if isinstance(record, Trial)]

    @property
    def comparisons(self) -> list[Comparison]:
        """The comparisons, in order."""
        return [record for record in self.records if isinstance(record, Comparison)]


@dataclass(frozen=True)
class Imported:
    """The outcome of importing a round.

    schedule_path: the schedule that was written, with its gain, or None. message: the verdict in
    words. untuned: seconds of the default. trials: number of trials new to the log. problem: why
    there is no verdict, or "".
    """

    name: str
    schedule_path: Path | None
    log_path: Path
    gain: Gain | None
    untuned: float
    trials: int
    message: str
    problem: str


def find(directory: Path) -> list[Path]:
    """Return the rounds below a directory, sorted; raises ArgumentError if there is none."""
    directories = sorted(path.parent for path in directory.rglob(NAME))
    if not directories:
        raise ArgumentError(
            f"directory {directory} holds no candidates (no {NAME} in it or below it); make some: "
            f"natc tune --kernel 7 --target cuda --arch sm_90 --export {directory}"
        )
    return directories


def write(directory: Path, round_: Round) -> None:
    """Write `round.json` atomically; the libraries that it names must exist already."""
    text = msgspec.json.encode(with_checksum(msgspec.to_builtins(round_)))
    write_atomically(directory / NAME, msgspec.json.format(text, indent=2).decode() + "\n")


def read(directory: Path) -> Round:
    """Read a round; raises TuneError naming the file if it is damaged or has another version."""
    path = directory / NAME
    again = "Export it again with this natc: natc tune --export."
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TuneError(f"{path} cannot be read: {reason(error)}.") from error
    try:
        content = parse(data, SCHEMA_VERSION)
        if content.get("abi") != ABI:
            raise OtherVersion(SCHEMA_VERSION, content)
        return msgspec.convert(content, Round)
    except OtherVersion as error:
        raise TuneError(
            f"{path} was written by natc {error.content.get('natc')}, with version "
            f"{error.version} of rounds and {error.content.get('abi')} of the calling convention; "
            f"this natc has {SCHEMA_VERSION} and {ABI}. {again}"
        ) from error
    # ValueError covers msgspec's own errors and text that is not UTF-8.
    except (ValueError, NatcError) as error:
        raise TuneError(f"{path} is damaged: {str(error).rstrip('.')}. {again}") from error


def measured(directory: Path) -> RoundLog:
    """Return the log of a round measured so far; a damaged line is skipped and reported."""
    records, problems = read_log(directory / MEASURED)
    return RoundLog(records, [str(problem) for problem in problems])


def check(directory: Path, round_: Round) -> None:
    """Raise TuneError or TargetError unless this machine can and may measure a round."""
    if env.NATC_TRUSTED_KEYS.get():
        raise TuneError(
            f"libraries in {directory} are not loaded: {env.NATC_TRUSTED_KEYS.name} is set, and "
            "candidates of a search are not signed; unset it if you trust who exported them."
        )
    target = Target.parse(round_.target)
    if target.kind == "cuda" and not gpu.driver().gpus:
        raise TargetError(
            f"this machine has no NVIDIA GPU (or its driver does not answer); measure {directory} "
            f"on a machine with a GPU that runs code for {target.arch}."
        )
    require_runs_here(target, f"measure {directory} on a machine that it runs on")
    danger = distrust(directory)
    if danger:
        raise TuneError(f"libraries in {directory} are not loaded: {danger}.")
    for library in libraries(directory, round_):
        danger = distrust(library)
        if danger:
            raise TuneError(f"library {library} is not loaded: {danger}.")


def libraries(directory: Path, round_: Round) -> Iterator[Path]:
    """Yield the paths of a round's libraries, after checking each file's hash.

    Raises TuneError if a library is missing or has another hash.
    """
    for candidate in round_.candidates:
        path = directory / candidate.library
        try:
            actual = file_sha256(path)
        except OSError as error:
            raise TuneError(f"library {path} cannot be read: {reason(error)}.") from error
        if actual != candidate.sha256:
            raise TuneError(
                f"library {path} is not the file that {NAME} vouches for: expected sha256 "
                f"{candidate.sha256}, found {actual}. Copy the directory again."
            )
        yield path
