"""A damaged schedule, tuning log or round gives the same decisions, or an error that names it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.mutations import demand, fuzz
from support.written_files import make_schedule, write_schedule_and_log

from natc.errors import NatcError
from natc.host import environment
from natc.store import schedules
from natc.store.records import SpaceVersion, read_log
from natc.tune.measure import rounds

pytestmark = pytest.mark.quick

Record = Callable[[str, object], None]
ROUND = rounds.Round(
    natc="0.1.0",
    spec="na2d_k3_d8_float32",
    target="llvm-x86-64-v3",
    operation="d_key",
    space=SpaceVersion("cpu", 1),
    shapes=[(1, 8, 8, 2), (1, 4, 4, 4)],
    candidates=[
        rounds.Candidate(decisions={"lanes": n, "tile": 4}, library=f"{n}.so", sha256=str(n) * 64)
        for n in range(4)
    ],
    present=True,
    dropped=[rounds.Dropped(decisions={"lanes": 9, "tile": 9}, error="spills")],
    seed=3,
    exported_on=environment.collect(seed=3),
)


def reads_as(path: Path, read: Callable[[], object], expected: object) -> Callable[[], str]:
    """Return a check: reading gives the expected value, or an error that names the file."""

    def check() -> str:
        try:
            value = read()
        except NatcError as error:
            demand(str(path) in str(error), f"the error does not name it: {error}")
            return "refused"
        demand(value == expected, f"it reads as {value}")
        return "unchanged"

    return check


def test_a_damaged_schedule_has_the_same_decisions_or_is_named(record_property: Record) -> None:
    schedule = make_schedule(decisions={"lanes": 8, "tile": 16, "unroll": 0})
    path = schedules.save_schedule(schedule)
    check = reads_as(path, lambda: schedules.read_schedule(path), schedules.read_schedule(path))
    record_property("mutations", ("schedule", fuzz(path, check, seed=2, count=300)))


def test_a_damaged_round_is_the_same_or_is_named(place: Path, record_property: Record) -> None:
    rounds.write(place, ROUND)
    path = place / rounds.NAME
    check = reads_as(path, lambda: rounds.read(place), ROUND)
    demand(check() == "unchanged", "the round that is read is not the round that was written")
    record_property("mutations", ("round", fuzz(path, check, seed=3, count=200)))


def test_each_damaged_line_of_a_log_is_reported_and_skipped(record_property: Record) -> None:
    _, path = write_schedule_and_log()
    expected, _ = read_log(path)

    def check() -> str:
        records, problems = read_log(path)
        demand(all(record in expected for record in records), f"it reads as {records}")
        lines = [number for number, line in enumerate(path.read_bytes().split(b"\n"), 1)
                 if line.strip()]  # fmt: skip
        demand(len(records) + len(problems) == len(lines), "a line is neither read nor reported")
        for problem in problems:
            demand(problem.line in lines, f"line {problem.line} is empty")
            demand(str(problem).startswith(f"{path}:{problem.line}: "), str(problem))
        return "skipped and reported" if problems else "unchanged or without its last lines"

    record_property("mutations", ("log", fuzz(path, check, seed=4, count=300)))
