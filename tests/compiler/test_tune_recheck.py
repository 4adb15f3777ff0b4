"""Saved schedules that are measured again; candidates and times come from tables."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest
from support.written_files import make_host_schedule

from natc.compiler.space import space_for
from natc.host.detect import detect_host_cpu
from natc.spec import KernelSpec
from natc.store import schedules, workspace
from natc.store.records import Comparison, SpaceVersion, read_log
from natc.tune.measure.measurer import BuiltLibrary, Times
from natc.tune.measure.processes import JobError
from natc.tune.search import recheck as rechecking
from natc.tune.search.recheck import (
    Rechecked,
    is_default,
    recheck,
    schedules_to_recheck,
)

HOST = detect_host_cpu()
SMALL = KernelSpec.parse("na2d_k3_d1_float32")
MEASURED_ELSEWHERE = schedules.Measurement(
    seconds={"large": 1.0}, baseline_seconds={"large": 1.0}, score=1.0, objective="", trials=1
)
FAST, OTHER = {"maximum": 1}, {"parallel": 1}
Seconds = Callable[[Mapping[str, int]], float]


class Table:
    """A double of the measurer; `seconds` raises for a candidate that fails."""

    builders, overlap = 2, False
    seconds: Seconds

    def __init__(self, *_: object) -> None:
        pass

    def __enter__(self) -> Table:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def build(
        self, decisions: Mapping[str, int], *, may_spill: bool = False
    ) -> Future[BuiltLibrary]:
        done: Future[BuiltLibrary] = Future()
        text = json.dumps(dict(sorted(decisions.items())))
        done.set_result(BuiltLibrary(Path(text), text, {}))
        return done

    def measure(self, libraries: Sequence[BuiltLibrary], turns: int) -> Times:
        decided = [json.loads(library.sha256) for library in libraries]
        return [[[Table.seconds(decisions)] for decisions in decided] for _ in range(turns)]


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rechecking, "LocalMeasurer", Table)
    monkeypatch.setattr(rechecking, "load_note", lambda: [])


def check(seconds: Seconds, kernel: KernelSpec = SMALL) -> Rechecked:
    Table.seconds = staticmethod(seconds)  # type: ignore[assignment]
    (item,) = schedules_to_recheck([(kernel.name, "forward")], HOST)
    return recheck(item, None)


def times(fast: float, parallel: float = 3e-3) -> Seconds:
    """Return a clock: the default takes 3 ms."""
    return lambda decisions: (
        fast if decisions["maximum"] else parallel if decisions["parallel"] else 3e-3
    )


def test_a_schedule_that_wins_stays(place: Path) -> None:
    path = schedules.save_schedule(make_host_schedule(SMALL, decisions=FAST))
    before = path.read_text()
    outcome = check(times(2e-3))
    assert (outcome.path, outcome.name, outcome.outcome) == (path, SMALL.name, "faster")
    assert outcome.message == "it is 1.50 times as fast as the default, 1.50 to 1.50"
    assert outcome.gain is not None and path.read_text() == before
    # The log keeps the measurements.
    records, _ = read_log(workspace.log_path(SMALL, HOST))
    (proof,) = [record for record in records if isinstance(record, Comparison)]
    assert (proof.speedup, proof.pairs) == (pytest.approx(1.5), 64)


def test_the_default_is_recognized_by_its_decisions(place: Path) -> None:
    default = make_host_schedule(SMALL, decisions={"maximum": 0})
    assert is_default(default)
    assert not is_default(make_host_schedule(SMALL, decisions=FAST))
    # These decisions mean something else, or nothing, in this natc's design space.
    older = SpaceVersion(default.space.name, 0)
    assert not is_default(make_host_schedule(SMALL, decisions={"maximum": 0}, space=older))
    assert not is_default(make_host_schedule(SMALL, decisions={"unknown": 1}))


def test_a_schedule_that_is_slower_is_removed(place: Path) -> None:
    path = schedules.save_schedule(make_host_schedule(SMALL, decisions=FAST))
    outcome = check(times(3.3e-3))
    assert outcome.outcome == "removed" and "0.91 times as fast as the default" in outcome.message
    assert not path.exists()


def test_a_schedule_that_equals_the_default_is_removed(place: Path) -> None:
    path = schedules.save_schedule(make_host_schedule(SMALL, decisions={"maximum": 0}))
    outcome = check(times(1e-3))
    assert (outcome.outcome, outcome.message) == ("removed", "its decisions are the default")
    assert not path.exists()


def test_a_schedule_with_the_code_of_the_default_is_removed(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = Table.build

    def without_unroll(table: Table, decisions: Mapping[str, int], **options: bool) -> object:
        return build(table, {**decisions, "unroll_taps": 0}, **options)

    monkeypatch.setattr(Table, "build", without_unroll)
    path = schedules.save_schedule(make_host_schedule(SMALL, decisions={"unroll_taps": 3}))
    outcome = check(times(1e-3))
    assert outcome.outcome == "removed" and "its code is the default's" in outcome.message
    assert not path.exists()


def test_a_schedule_that_fails_is_removed(place: Path) -> None:
    path = schedules.save_schedule(make_host_schedule(SMALL, decisions=FAST))

    def fails(decisions: Mapping[str, int]) -> float:
        if decisions["maximum"]:
            raise JobError("wrong result")
        return 1e-3

    outcome = check(fails)
    assert (outcome.outcome, outcome.message) == ("removed", "it fails: wrong result")
    assert not path.exists()


def test_a_schedule_that_hides_a_better_one_is_removed(place: Path) -> None:
    """Without it, a build would use the schedule that comes with natc, or a near kernel's."""
    schedules.save_schedule(make_host_schedule(replace(SMALL, rpb=True), decisions=OTHER))
    path = schedules.save_schedule(make_host_schedule(SMALL, decisions=FAST))
    outcome = check(times(2e-3, parallel=1e-3))
    assert outcome.outcome == "removed" and not path.exists()
    assert "0.50 times as fast as the schedule that it hides" in outcome.message


def test_what_comes_with_natc_is_reported_and_stays(place: Path) -> None:
    path = schedules.save_schedule(make_host_schedule(SMALL, decisions=FAST))
    shipped = workspace.SHIPPED / path.relative_to(workspace.workspace())
    shipped.parent.mkdir(parents=True)
    path.rename(shipped)
    outcome = check(times(3.3e-3))
    assert (outcome.path, outcome.outcome) == (shipped, "shipped") and shipped.exists()


def test_noise_removes_nothing(place: Path) -> None:
    path = schedules.save_schedule(make_host_schedule(SMALL, decisions=FAST))
    chance = random.Random(0)
    outcome = check(lambda decisions: chance.uniform(1e-3, 9e-3))
    assert outcome.outcome == "undecided" and "too noisy to decide" in outcome.message
    assert path.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"space": SpaceVersion("llvm_direct", 99)}, "version 99"),
        ({"decisions": {"warps": 3}}, "warps"),
        ({"measured": MEASURED_ELSEWHERE}, "its shapes large are not shapes of na2d"),
    ],
)
def test_what_builds_do_not_use_is_reported_and_stays(
    place: Path, change: dict[str, object], message: str
) -> None:
    path = schedules.save_schedule(make_host_schedule(SMALL, **{"decisions": FAST, **change}))
    outcome = check(times(1e-3))
    assert outcome.outcome == "unusable" and message in outcome.message and path.exists()


def test_without_a_kernel_every_schedule_of_the_target_is_checked(place: Path) -> None:
    wide = KernelSpec.parse("na2d_k5_d1_float32")
    paths = {schedules.save_schedule(make_host_schedule(spec)) for spec in (SMALL, wide)}
    damaged = workspace.schedule_path(KernelSpec.parse("na2d_k7_d1_float32"), HOST)
    damaged.write_text("{")
    elsewhere = damaged.parent.with_name("cuda-sm_90") / damaged.name
    elsewhere.parent.mkdir()
    elsewhere.write_text("{")
    items = schedules_to_recheck(None, HOST)
    assert {item.path for item in items} == paths | {damaged}
    (broken,) = [item for item in items if item.path == damaged]
    outcome = recheck(broken, None)
    assert outcome.outcome == "unusable" and "is damaged" in outcome.message and damaged.exists()
    assert space_for(HOST, "forward", SMALL).name == "llvm_direct"
