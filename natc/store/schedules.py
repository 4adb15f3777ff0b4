"""Schedules: the winner of a search for one kernel on one target, as a small readable file."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from natc.errors import NatcError, ScheduleError
from natc.operations import FORWARD, OPERATIONS, tuned_as
from natc.spec import MAX_KERNEL_SIZE, MIN_KERNEL_SIZE, KernelSpec
from natc.store import workspace
from natc.store.files import reason, write_atomically
from natc.store.json_object import OtherVersion, parse, with_checksum
from natc.store.records import Environment, SpaceVersion
from natc.targets import Target

SCHEMA_VERSION = 1

# Timings repeat to about 1 %: more digits would only be noise in a diff.
_SIGNIFICANT_DIGITS = 4
_HALVES = {"float16": "bfloat16", "bfloat16": "float16"}
# A prediction replaces a measured schedule if its times are below this share of the measured ones.
_REPLACES = 0.5
# A kernel may use the schedule of another whose window is at most this much longer or shorter.
_NEAR = 4


class Gain(msgspec.Struct, frozen=True, kw_only=True):
    """How much faster a schedule is than the default decisions, timed in alternation.

    speedup: how many times as fast it is, the median over `pairs` turns; low, high: bounds that
    hold the true number with near certainty.
    """

    speedup: float
    low: float
    high: float
    pairs: int


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """The times of the winner.

    seconds, baseline_seconds: shape `BxHxWxheadsxhead_dim` -> seconds of a call, of the winner
    and of the untuned kernel in the same run.
    score: the winner's time, in seconds; objective: its meaning, in words.
    trials: how many candidates were measured. gain: the proof that the winner is faster; None if
    the two were not timed in alternation.
    """

    seconds: dict[str, float]
    baseline_seconds: dict[str, float]
    score: float
    objective: str
    trials: int
    gain: Gain | None = None

    @property
    def speedup(self) -> float | None:
        """How many times as fast as the default the winner is; None without shapes.

        The gain's, or else the ratio of times, geometric mean over the shapes.
        """
        if self.gain is not None:
            return self.gain.speedup
        ratios = [
            untuned / self.seconds[shape]
            for shape, untuned in self.baseline_seconds.items()
            if shape in self.seconds
        ]
        return statistics.geometric_mean(ratios) if ratios else None


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """The speedup that a model expects of decisions that no machine has timed.

    speedup: how many times as fast as the default decisions. model: the model's name and version.
    seconds: as in `Measurement`, if the model predicts times.
    """

    speedup: float
    model: str
    seconds: dict[str, float] | None = None

    def replaces(self, measured: Measurement) -> bool:
        """Return whether the predicted times are below half of measured ones.

        Models err, measured times do not. It is the geometric mean over the shapes that both have.
        """
        ratios = [
            seconds / measured.seconds[shape]
            for shape, seconds in (self.seconds or {}).items()
            if shape in measured.seconds
        ]
        return bool(ratios) and statistics.geometric_mean(ratios) < _REPLACES


class MeasuredOn(msgspec.Struct, frozen=True, kw_only=True):
    """The machine that measured or predicted, in short.

    A tuning log holds the whole record of a machine that measured, by its id.
    """

    id: str
    cpu: str
    cores: int
    gpu: str | None = None
    versions: dict[str, str | None] = {}


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """The fastest decisions for an operation of a kernel on a target, and the evidence for them.

    spec, target: names; decisions: name of a step of the space -> chosen index or value.
    measured, predicted: the evidence; one is set, the other is None.
    operation: an operation of the spec; every forward takes the schedule of `forward`.
    created: time, ISO 8601 in UTC. Raises NatcError for an unknown spec, target or operation,
    and ScheduleError without evidence, or with both kinds of it.
    """

    schema_version: int = SCHEMA_VERSION
    spec: str
    target: str
    space: SpaceVersion
    decisions: dict[str, int]
    measured: Measurement | None = None
    predicted: Prediction | None = None
    environment: MeasuredOn
    created: str
    operation: str = FORWARD

    def __post_init__(self) -> None:
        KernelSpec.parse(self.spec)
        Target.parse(self.target)
        if self.operation not in OPERATIONS:
            raise ScheduleError(f"operation {self.operation!r} is unknown")
        if (self.measured is None) == (self.predicted is None):
            raise ScheduleError("it must have either times (measured) or a prediction (predicted)")

    @property
    def evidence(self) -> str:
        """`measured`, or `predicted by` the model."""
        return f"predicted by {self.predicted.model}" if self.predicted else "measured"

    @property
    def origin(self) -> str:
        """`tuned`, or `predicted` if nothing was timed."""
        return "predicted" if self.predicted else "tuned"

    @property
    def speedup(self) -> float | None:
        """How many times as fast as the default it is, or is expected to be; None if unknown."""
        if self.predicted is not None:
            return self.predicted.speedup
        return self.measured.speedup if self.measured else None

    @property
    def name(self) -> str:
        """The name of its file, without the ending."""
        return workspace.tuned_name(KernelSpec.parse(self.spec), self.operation)


class Listed(NamedTuple):
    """A schedule file, with its schedule or the reason why it cannot be used."""

    path: Path
    schedule: Schedule | None
    problem: str | None


def measured_on(environment: Environment) -> MeasuredOn:
    """Return the short form of an environment that a schedule holds."""
    return MeasuredOn(
        id=environment.id,
        cpu=environment.cpu,
        cores=environment.cores,
        gpu=environment.gpu.name if environment.gpu else None,
        versions=environment.versions,
    )


def dump(schedule: Schedule) -> str:
    """Return a schedule as the text of its file: stable order, rounded numbers, a newline."""
    builtins = _rounded(msgspec.to_builtins(schedule))
    del builtins["measured" if schedule.measured is None else "predicted"]
    evidence = builtins["measured" if schedule.measured else "predicted"]
    for field in ("gain", "seconds"):
        if field in evidence and evidence[field] is None:
            del evidence[field]
    # Sorted, because their order has no meaning and another run should change few lines.
    for field in ("seconds", "baseline_seconds"):
        if field in evidence:
            evidence[field] = dict(sorted(evidence[field].items(), key=_largest_first))
    builtins["decisions"] = dict(sorted(builtins["decisions"].items()))
    if schedule.operation == FORWARD:
        del builtins["operation"]  # the default
    builtins["environment"]["versions"] = dict(sorted(builtins["environment"]["versions"].items()))
    text = msgspec.json.encode(with_checksum(builtins))
    return msgspec.json.format(text, indent=2).decode() + "\n"


def save_schedule(schedule: Schedule) -> Path:
    """Write a schedule to its place in the workspace, atomically; return the file.

    A prediction is written only where builds would take no measured schedule of the same space,
    or if its times replace the measured ones: else returns the measured schedule's file. Raises
    NatcError naming the directory when it is not writable, and ScheduleError if a prediction
    would replace a schedule that cannot be read.
    """
    spec, target = KernelSpec.parse(schedule.spec), Target.parse(schedule.target)
    path = workspace.schedule_path(spec, target, schedule.operation)
    if schedule.predicted is not None:
        measured_path = workspace.find_schedule(spec, target, schedule.operation)
        earlier = read_schedule(measured_path) if measured_path else None
        if (
            measured_path
            and earlier
            and earlier.measured
            and earlier.space == schedule.space
            and not schedule.predicted.replaces(earlier.measured)
        ):
            return measured_path
    write_atomically(path, dump(schedule))
    return path


def load_schedule(
    spec: KernelSpec, target: Target, operation: str = FORWARD, *, but: Path | None = None
) -> Schedule | None:
    """Return the schedule of an operation from the workspace or else the package, or None.

    but: a file to pass over. Raises ScheduleError as `read_schedule` does.
    """
    path = workspace.find_schedule(spec, target, operation, but=but)
    return None if path is None else read_schedule(path)


def near(spec: KernelSpec) -> Iterator[KernelSpec]:
    """Yield a kernel and the kernels whose schedules it may use, the nearest first.

    Near kernels have or lack a bias, lack the terms of the logits, have the other 16-bit dtype, or
    have a window that is up to 4 longer or shorter on every axis.
    """
    for step in sorted(range(-_NEAR, _NEAR + 1), key=lambda step: (abs(step), step)):
        sizes = tuple(size + step for size in spec.kernel_size)
        if not MIN_KERNEL_SIZE <= min(sizes) <= max(sizes) <= MAX_KERNEL_SIZE:
            continue
        for dtype in dict.fromkeys((spec.dtype, _HALVES.get(spec.dtype, spec.dtype))):
            for rpb in (spec.rpb, not spec.rpb):
                for terms in dict.fromkeys((spec.terms, ())):
                    yield replace(spec, kernel_size=sizes, dtype=dtype, rpb=rpb, terms=terms)


def read_schedule(path: Path) -> Schedule:
    """Read a schedule file.

    Raises ScheduleError naming the file when it cannot be read, is damaged, lies under another
    kernel's name, or was written by a newer natc.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ScheduleError(f"schedule {path} cannot be read: {reason(error)}.") from error
    try:
        schedule = msgspec.convert(parse(data, SCHEMA_VERSION), Schedule)
    except OtherVersion as error:
        raise ScheduleError(
            f"schedule {path} has schema version {error.version}, written by a newer natc; this "
            f"one reads {SCHEMA_VERSION}. Upgrade natc: install a newer checkout of it."
        ) from error
    # ValueError covers msgspec's own errors and text that is not UTF-8.
    except (ValueError, NatcError) as error:
        raise ScheduleError(
            f"schedule {path} is damaged: {str(error).rstrip('.')}. Restore it, or delete it and "
            "run natc tune again (the tuning log still has every measurement)."
        ) from error
    if (path.parent.name, path.stem) != (schedule.target, schedule.name):
        raise ScheduleError(
            f"schedule {path} is the schedule of {schedule.name} for {schedule.target}; "
            "its file must have that name."
        )
    return schedule


def list_schedules() -> list[Listed]:
    """Return every schedule file that natc would use, and the reason for each unusable file."""
    listed = []
    for path in workspace.schedule_files():
        try:
            listed.append(Listed(path, read_schedule(path), None))
        except ScheduleError as error:
            listed.append(Listed(path, None, str(error)))
    return listed


def _largest_first(item: tuple[str, Any]) -> tuple[int, str]:
    return (-math.prod(int(n) for n in item[0].split("x") if n.isdigit()), item[0])


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_SIGNIFICANT_DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return value


def joined(decisions: Mapping[str, int], operation: str) -> dict[str, int]:
    """Return an operation's decisions under the names that they have among a kernel's.

    Decisions of the forward keep their names; for another operation, its name and a dot precede.
    """
    if tuned_as(operation) == FORWARD:
        return dict(decisions)
    return {f"{operation}.{name}": value for name, value in decisions.items()}


def own_decisions(decisions: Mapping[str, int], operation: str) -> dict[str, int]:
    """Return the decisions of an operation out of a kernel's; undoes `joined`."""
    owner = tuned_as(operation)
    if owner == FORWARD:
        return {name: value for name, value in decisions.items() if "." not in name}
    start = f"{owner}."
    return {
        name.removeprefix(start): value
        for name, value in decisions.items()
        if name.startswith(start)
    }
