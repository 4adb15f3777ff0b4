"""The search itself, its log and its limits; candidates and times come from tables."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.library_files import edit_json
from support.written_files import make_host_schedule

from natc.compiler.space import space_for
from natc.errors import (
    ArgumentError,
    CompilerNotFound,
    NatcError,
    ScheduleError,
    SpecError,
    TargetError,
    TuneError,
)
from natc.host import environment, gpu
from natc.host.detect import detect_host_cpu
from natc.spec import KernelSpec
from natc.store import records, schedules, workspace
from natc.store.json_object import with_checksum
from natc.store.records import SpaceVersion
from natc.targets import Target
from natc.tune.events import Event, Note, SearchFinished, Started, TrialMeasured
from natc.tune.history import key_of
from natc.tune.search import engine
from natc.tune.search.measurer import CandidateResult, PendingLibrary

HOST = detect_host_cpu()
about = pytest.approx
# 16 candidates in all: four questions with two answers each.
SMALL = KernelSpec.parse("na2d_k3_d1_float32")
SHAPE = (1, 8, 8, 1)
KEY = "1x8x8x1x1"
UNTUNED = {"lanes": 1, "lane_sum": 0, "maximum": 0, "chains": 0, "parallel": 0, "unroll_taps": 0}
QUESTIONS = ("maximum", "chains", "parallel", "unroll_taps")
FASTEST = {**UNTUNED, "maximum": 1, "parallel": 1}


def seconds(decisions: Mapping[str, int]) -> float:
    """Stand for a measurement: the fastest candidate takes 1 ms, the untuned one 3 ms."""
    wrong = sum(decisions[name] != value for name, value in FASTEST.items())
    return 1e-3 * (1 + wrong)


class Table:
    """A double of the measurer: looks times up, and counts builds and measurements."""

    builders = 2

    def __init__(self) -> None:
        self.built: list[dict[str, int]] = []
        self.measured: list[dict[str, int]] = []
        self.fails: Callable[[Mapping[str, int]], str | None] = lambda decisions: None
        self.before: Callable[[int], None] = lambda count: None
        self.left = 0

    def __call__(self, *_: object) -> Table:
        return self

    def __enter__(self) -> Table:
        return self

    def __exit__(self, *_: object) -> None:
        self.left += 1

    def build(self, decisions: Mapping[str, int]) -> PendingLibrary:
        self.built.append(dict(decisions))
        done: Future[None] = Future()
        return PendingLibrary(Path(json.dumps(decisions)), done)

    def measure(self, built: PendingLibrary) -> CandidateResult:
        decisions = json.loads(str(built.path))
        self.before(len(self.measured))
        self.measured.append(decisions)
        error = self.fails(decisions)
        return (
            CandidateResult(None, error) if error else CandidateResult([seconds(decisions)], None)
        )

    @property
    def candidates(self) -> set[Any]:
        """The measured candidates, without the untuned kernel."""
        return {key_of(decisions) for decisions in self.measured} - {key_of(UNTUNED)}


class Listing:
    """Stands for the proposer: every candidate once, in an order that the seed decides."""

    def __init__(self, *_: object, batch: int, seed: int) -> None:
        order = [
            {**UNTUNED, **dict(zip(QUESTIONS, answers, strict=True))}
            for answers in itertools.product((0, 1), (0, 1), (0, 1), (0, 3))
        ]
        random.Random(seed).shuffle(order)
        self.left, self.batch = order, batch
        self.learnt: list[tuple[dict[str, int], float | None]] = []

    def candidate(self, decisions: Mapping[str, int]) -> dict[str, int]:
        if not decisions.keys() <= UNTUNED.keys():
            raise ScheduleError("no such decision")
        return {**UNTUNED, **decisions}

    def propose(self) -> list[dict[str, int]]:
        return self.left[: self.batch]

    def learn(self, candidates: Sequence[dict[str, int]], scores: Sequence[float | None]) -> None:
        self.learnt += zip(candidates, scores, strict=True)

    def finish_round(
        self, candidates: Sequence[dict[str, int]], scores: Sequence[float | None]
    ) -> None:
        self.learn(candidates, scores)
        self.left = [candidate for candidate in self.left if candidate not in candidates]


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Table:
    double = Table()
    monkeypatch.setattr(engine, "Measurer", double)
    monkeypatch.setattr(engine, "Proposer", Listing)
    monkeypatch.setattr(engine, "decisions_of", lambda candidate: candidate)
    return double


class Search:
    """Runs searches of one kernel and keeps their events."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.log = workspace.log_path(SMALL, HOST)
        self.schedule = workspace.schedule_path(SMALL, HOST)

    def __call__(
        self, spec: KernelSpec = SMALL, target: Target = HOST, **options: Any
    ) -> SearchFinished:
        self.events = []
        return engine.tune(
            spec, target, **{"shapes": [SHAPE], **options}, on_event=self.events.append
        )

    def told(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def notes(self) -> str:
        return "\n".join(note.message for note in self.told(Note))

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@pytest.fixture
def search(place: Path, table: Table) -> Iterator[Search]:
    yield Search()


def test_a_search_finds_the_fastest_and_ends_when_nothing_is_left(
    search: Search, table: Table
) -> None:
    finished = search()
    assert (finished.trials, finished.failures, finished.interrupted) == (15, 0, False)
    assert (finished.best, finished.baseline) == (about(1e-3), about(3e-3))
    assert len(table.candidates) == 15 and table.left == 1
    saved = schedules.read_schedule(finished.schedule_path)
    assert finished.schedule_path == search.schedule
    assert saved.decisions == FASTEST
    assert saved.measured.seconds == {KEY: 1e-3}
    assert saved.measured.baseline_seconds == {KEY: 3e-3}
    assert saved.measured.score == about(1e-3)
    assert saved.space == SpaceVersion(space_for(HOST).name, space_for(HOST).version)


def test_the_events_describe_the_search(search: Search) -> None:
    finished = search(trials=5, minutes=2)
    first, *trials, last = search.events
    assert first == Started(
        spec=SMALL.name,
        target=HOST.name,
        shapes=(KEY,),
        baseline=about(3e-3),
        best=about(3e-3),
        resumed_trials=0,
        planned=5,
        minutes=2,
    )
    assert all(isinstance(event, TrialMeasured) for event in trials)
    assert [event.index for event in trials] == [1, 2, 3, 4, 5]
    bests = [event.best for event in trials]
    assert bests == sorted(bests, reverse=True)
    assert bests[-1] == min(first.baseline, *(event.score for event in trials))
    assert finished.best == about(bests[-1])
    assert last == finished


def test_the_log_holds_the_machine_and_every_trial(search: Search) -> None:
    finished = search(trials=4, seed=7)
    machine, *trials = search.lines()
    assert machine["type"] == "environment" and machine["seed"] == 7
    assert finished.log_path == search.log
    # The untuned kernel, four candidates, then at most three finalists and the untuned again.
    assert 1 + 4 + 2 <= len(trials) <= 1 + 4 + 4
    assert trials[0]["decisions"] == UNTUNED
    for number, trial in enumerate(trials):
        assert trial["type"] == "trial" and trial["trial"] == number
        assert trial["environment"] == machine["id"]
        assert trial["seconds"] == {KEY: seconds(trial["decisions"])}
    saved = schedules.read_schedule(search.schedule)
    assert saved.measured.trials == len(trials)
    assert saved.environment.id == machine["id"]
    assert saved.decisions in [trial["decisions"] for trial in trials]
    assert saved.measured.score == about(min(trial["seconds"][KEY] for trial in trials))


@pytest.mark.parametrize("trials", [1, 6, 7])
def test_the_number_of_trials_is_kept_exactly(search: Search, table: Table, trials: int) -> None:
    assert search(trials=trials).trials == trials
    assert len(table.candidates) == trials
    # Nor is anything built that will not be measured.
    assert len({key_of(decisions) for decisions in table.built}) == trials + 1


def test_the_time_limit_leaves_room_for_the_confirmation(
    search: Search, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, passed = time.monotonic, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: real() + passed[0])

    def take_two_seconds(_: int) -> None:
        passed[0] += 2

    table.before = take_two_seconds
    # The untuned kernel takes 2 measurements and the end 12, so 22 of 50 s are left to search.
    finished = search(minutes=50 / 60)
    assert 10 <= finished.trials <= 11
    assert finished.seconds < 50 + 2
    assert len(table.candidates) == finished.trials
    assert finished.best == about(min(map(seconds, table.measured)))


def test_a_second_run_measures_only_what_is_new(search: Search, table: Table) -> None:
    first = search(trials=6)
    before = table.candidates
    numbers = [line["trial"] for line in search.lines()[1:]]
    table.measured.clear()
    second = search(trials=20)
    assert search.told(Started)[0].resumed_trials == 7
    assert search.told(Started)[0].best == about(first.best)
    new = {key_of(trial["decisions"]) for trial in search.lines()[1 + len(numbers) + 2 :]} - before
    assert second.trials == 9 and len(new - {key_of(UNTUNED)}) == 9
    # The finalists are measured again, next to the untuned kernel.
    assert len(table.candidates & before) <= 3
    assert second.best == about(1e-3)
    numbers_now = [line["trial"] for line in search.lines() if line["type"] == "trial"]
    assert numbers_now == list(range(len(numbers_now)))


def test_a_third_run_has_nothing_left_to_try(search: Search) -> None:
    search()
    saved = search.schedule.read_text()
    finished = search()
    assert finished.trials == 0 and finished.best == about(1e-3)
    assert search.told(Started)[0].resumed_trials == 16
    assert json.loads(search.schedule.read_text())["decisions"] == json.loads(saved)["decisions"]


@pytest.mark.parametrize("damage", ["cut", "noise"])
def test_a_damaged_line_is_named_and_costs_only_itself(search: Search, damage: str) -> None:
    search(trials=6)
    lines = search.log.read_bytes().splitlines(keepends=True)
    if damage == "cut":  # the last write did not finish
        number, lines[-1] = len(lines), lines[-1][:40]
    else:
        number, lines[3] = 4, b'\xff{"type":\n'
    search.log.write_bytes(b"".join(lines))
    search(trials=1)
    assert f"{search.log}:{number}: damaged record was skipped" in search.notes()
    assert len(search.told(Note)) == 1
    after = search.log.read_bytes()
    assert after.startswith(b"".join(lines))
    read, problems = records.read_log(search.log)
    assert [problem.line for problem in problems] == [number]
    numbers = [record.trial for record in read if isinstance(record, records.Trial)]
    assert len(numbers) == len(set(numbers))


def edited(search: Search, change: Callable[[dict[str, Any]], None]) -> None:
    lines = search.lines()
    for line in lines:
        change(line)
    search.log.write_text("".join(json.dumps(with_checksum(line)) + "\n" for line in lines))
    search.schedule.unlink()


def test_trials_of_another_machine_are_not_used(search: Search, table: Table) -> None:
    search(trials=6)

    def another(line: dict[str, Any]) -> None:
        if line["type"] == "environment":
            line["cpu"] = "another CPU"

    edited(search, another)
    count = len(search.lines()) - 1
    finished = search()
    assert search.told(Started)[0].resumed_trials == 0
    assert f"{count} trials were measured on another machine" in search.notes()
    assert finished.trials == 15


def test_trials_of_an_older_space_are_not_used(search: Search) -> None:
    search(trials=6)

    def older(line: dict[str, Any]) -> None:
        if line["type"] == "trial":
            line["space"]["version"] = 0

    edited(search, older)
    assert search().trials == 15
    name, version = space_for(HOST).name, space_for(HOST).version
    expected = f"come from design space {name} version 0, now {name} version {version}"
    assert expected in search.notes()


def test_trials_of_other_inputs_are_not_used(search: Search) -> None:
    search(trials=6)
    search.schedule.unlink()
    assert search(shapes=[(1, 9, 9, 1)]).trials == 15
    assert "measured other inputs" in search.notes()


def test_unknown_decisions_in_a_log_are_passed_over(search: Search) -> None:
    search(trials=2)

    def nonsense(line: dict[str, Any]) -> None:
        if line["type"] == "trial" and line["trial"] == 1:
            line |= {"decisions": {"warps": 3}, "seconds": None, "error": "no such decision"}

    edited(search, nonsense)
    assert search().best == about(1e-3)


def test_failures_are_counted_logged_and_not_tried_again(search: Search, table: Table) -> None:
    table.fails = lambda decisions: "crashed: SIGSEGV" if decisions["chains"] else None
    finished = search()
    assert (finished.trials, finished.failures) == (15, 8)
    assert finished.best == about(1e-3)
    failed = [event for event in search.told(TrialMeasured) if event.error]
    assert len(failed) == 8 and all(event.score is None for event in failed)
    assert search.told(TrialMeasured)[-1].failures == 8
    logged = [line for line in search.lines() if line["type"] == "trial" and line["error"]]
    assert [line["error"] for line in logged] == ["crashed: SIGSEGV"] * 8
    assert all(line["seconds"] is None and line["decisions"]["chains"] for line in logged)
    assert search().trials == 0


def test_when_every_candidate_fails_the_untuned_kernel_wins(search: Search, table: Table) -> None:
    table.fails = lambda decisions: None if decisions == UNTUNED else "wrong result"
    finished = search()
    assert finished.failures == 15 and finished.best == finished.baseline == about(3e-3)
    assert schedules.read_schedule(search.schedule).decisions == UNTUNED


def test_a_finalist_that_fails_when_measured_again_does_not_win(
    search: Search, table: Table
) -> None:
    seen: list[Any] = []

    def fails(decisions: Mapping[str, int]) -> str | None:
        seen.append(key_of(decisions))
        return "crashed" if decisions == FASTEST and seen.count(key_of(decisions)) > 1 else None

    table.fails = fails
    finished = search()
    assert finished.best == about(2e-3)
    assert schedules.read_schedule(search.schedule).decisions != FASTEST


def test_without_an_untuned_kernel_there_is_no_search(search: Search, table: Table) -> None:
    table.fails = lambda decisions: "linking the library failed"
    with pytest.raises(TuneError, match="na2d_k3_d1_float32 .* linking"):
        search()
    assert table.left == 1 and not search.schedule.exists()


def test_an_existing_schedule_is_kept_unless_it_is_beaten(search: Search, table: Table) -> None:
    # Tuned on this machine or another; there is no log of it.
    there = make_host_schedule(SMALL, decisions=FASTEST)
    schedules.save_schedule(there)
    finished = search(trials=1, seed=3)
    assert search.told(Started)[0].best == about(1e-3)
    assert finished.trials == 1 and finished.best == about(1e-3)
    assert schedules.read_schedule(search.schedule).decisions == FASTEST


def test_an_existing_schedule_that_fails_is_reported(search: Search, table: Table) -> None:
    schedules.save_schedule(make_host_schedule(SMALL, decisions=FASTEST))
    table.fails = lambda decisions: "crashed" if decisions == FASTEST else None
    search(trials=1)
    assert "the schedule of 2026-01-02T03:04:05Z failed: crashed" in search.notes()
    assert schedules.read_schedule(search.schedule).decisions != FASTEST


# --- a search that ends before its first candidate was measured ---


class Clock:
    """Real time, and what tests let pass."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passed, real = 0.0, time.monotonic
        monkeypatch.setattr(time, "monotonic", lambda: real() + self.passed)

    def let_an_hour_pass(self, *_: object) -> None:
        self.passed += 3600


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


# A schedule faster than the untuned kernel, which takes 3 ms, and a slower schedule.
THERE = [FASTEST, {**UNTUNED, "chains": 1}]


@pytest.mark.parametrize("decisions", [None, *THERE], ids=["none", "faster", "slower"])
@pytest.mark.parametrize("end", ["time", "ctrl-c"])
def test_without_a_candidate_no_schedule_is_written(
    search: Search,
    table: Table,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    end: str,
    decisions: dict[str, int] | None,
) -> None:
    before = None
    if decisions is not None:
        schedules.save_schedule(make_host_schedule(SMALL, decisions=decisions))
        before = search.schedule.read_text()
    if end == "time":
        table.before = clock.let_an_hour_pass
    else:

        def stop(_: object) -> list[dict[str, int]]:
            raise KeyboardInterrupt

        monkeypatch.setattr(Listing, "propose", stop)
    trials = 1 if decisions is None else 2
    # The second run may not save a schedule from the measurements of the first either.
    for _ in range(2):
        finished = search(minutes=1)
        assert (finished.schedule_path, finished.trials) == (None, 0)
        assert finished.interrupted == (end == "ctrl-c") and finished == search.events[-1]
        assert finished.baseline == about(3e-3)
        assert finished.best == about(min(3e-3, seconds(decisions or UNTUNED)))
        assert before == (search.schedule.read_text() if search.schedule.exists() else None)
    measured = [line["decisions"] for line in search.lines() if line["type"] == "trial"]
    assert {key_of(tried) for tried in measured} == {key_of(UNTUNED), key_of(decisions or UNTUNED)}
    assert len(measured) == trials + 1, "the untuned kernel, once for each run"


def test_a_candidate_of_an_earlier_run_can_win(search: Search, table: Table, clock: Clock) -> None:
    class Killed(BaseException):
        pass

    def kill(measured: int) -> None:
        if measured == 5:  # the untuned kernel twice, then three candidates
            raise Killed

    table.before = kill
    with pytest.raises(Killed):
        search()
    assert not search.schedule.exists()
    best = min(seconds(line["decisions"]) for line in search.lines() if line["type"] == "trial")
    table.measured.clear()
    table.before = clock.let_an_hour_pass
    finished = search(minutes=1)
    assert finished.trials == 0 and finished.best == about(best)
    assert finished.schedule_path == search.schedule
    assert seconds(schedules.read_schedule(search.schedule).decisions) == about(best)


@pytest.mark.parametrize("there", [False, True])
def test_without_a_working_candidate_no_schedule_is_written(
    search: Search, table: Table, there: bool
) -> None:
    works, before = [UNTUNED], None
    if there:
        works.append(THERE[1])
        schedules.save_schedule(make_host_schedule(SMALL, decisions=works[1]))
        before = search.schedule.read_text()
    table.fails = lambda decisions: None if decisions in works else "crashed"
    finished = search(trials=3)
    assert (finished.trials, finished.failures, finished.schedule_path) == (3, 3, None)
    assert before == (search.schedule.read_text() if search.schedule.exists() else None)


def test_in_a_space_of_one_candidate_the_untuned_kernel_wins(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Listing, "propose", lambda _: [])
    finished = search()
    assert finished.trials == 0 and finished.schedule_path == search.schedule
    assert schedules.read_schedule(search.schedule).decisions == UNTUNED


def test_a_space_is_not_used_up_when_time_ends_the_search(
    search: Search, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    listings = []

    def propose(listing: Listing) -> list[dict[str, int]]:
        listings.append(listing)
        if len(listings) < engine._IDLE_ROUNDS:
            return []
        clock.let_an_hour_pass()
        return listing.left[: listing.batch]

    monkeypatch.setattr(Listing, "propose", propose)
    assert search(minutes=1).schedule_path is None
    assert len(listings) == engine._IDLE_ROUNDS and not search.schedule.exists()


def replaced(there: schedules.Schedule, **changes: Any) -> schedules.Schedule:
    return msgspec.structs.replace(there, **changes)


def test_a_schedule_of_an_older_space_is_replaced(search: Search) -> None:
    old = SpaceVersion(space_for(HOST).name, 0)
    schedules.save_schedule(make_host_schedule(SMALL, space=old, decisions={"gone": 1}))
    search(trials=1)
    assert schedules.read_schedule(search.schedule).space.version == space_for(HOST).version


@pytest.mark.parametrize(
    "change, message",
    [
        ({"schema_version": 99}, "newer natc"),
        (
            {"space": {"name": "llvm_direct", "version": 99}},
            "version 99, which a newer natc wrote",
        ),
        ({"decisions": "none"}, "is damaged"),
    ],
)
def test_a_schedule_of_a_newer_natc_is_not_replaced(
    search: Search, table: Table, change: dict[str, Any], message: str
) -> None:
    path = schedules.save_schedule(make_host_schedule(SMALL))
    edit_json(path, **change)
    text = path.read_text()
    with pytest.raises(ScheduleError, match=message) as caught:
        search()
    assert str(path) in str(caught.value)
    assert path.read_text() == text
    assert table.built == [] and not search.log.exists()


@pytest.mark.parametrize("count", [0, 1, 2])
def test_ctrl_c_before_the_first_candidate_keeps_the_schedule(
    search: Search, table: Table, count: int
) -> None:
    schedules.save_schedule(make_host_schedule(SMALL, decisions=FASTEST))
    before = search.schedule.read_text()

    def stop(measured: int) -> None:
        if measured == count:
            raise KeyboardInterrupt

    table.before = stop
    with pytest.raises(KeyboardInterrupt):
        search()
    assert search.schedule.read_text() == before and table.left == 1


@pytest.mark.parametrize("count", [3, 9, 17, 20])
def test_ctrl_c_keeps_everything_and_the_next_run_goes_on(
    search: Search, table: Table, count: int
) -> None:
    def stop(measured: int) -> None:
        if measured == count:
            raise KeyboardInterrupt

    table.before = stop
    finished = search()
    assert finished.interrupted and finished.trials == min(count - 2, 15)
    assert finished == search.events[-1] and table.left == 1
    trials = [line for line in search.lines() if line["type"] == "trial"]
    best = min(trials, key=lambda line: line["seconds"][KEY])
    assert finished.best == about(best["seconds"][KEY])
    assert schedules.read_schedule(search.schedule).measured.score == about(finished.best)
    table.before = lambda measured: None
    again = search()
    assert again.trials == 15 - finished.trials and again.best == about(1e-3)


def test_impossible_searches_are_refused_before_measuring(
    search: Search, table: Table, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SpecError, match="operation is 'd_rpb'; .*na2d_k3_d1_float32"):
        search(operation="d_rpb")  # it has no bias
    with pytest.raises(SpecError, match="64"):
        search(replace(SMALL, kernel_size=(64, 64)))
    for shape in [(1, 8, 8), (0, 8, 8, 1), (1, 8, 8, -1)]:
        with pytest.raises(ArgumentError, match="shapes has .* all at least 1"):
            search(shapes=[shape])
    for limit in ({"trials": 0}, {"minutes": 0.0}, {"minutes": float("nan")}):
        with pytest.raises(ArgumentError, match=f"{next(iter(limit))} is .* above 0"):
            search(**limit)
    monkeypatch.setattr(gpu, "driver", lambda: gpu.Driver(None, ()))
    with pytest.raises(TargetError, match="no NVIDIA GPU"):
        search(target=Target.parse("cuda-sm_90"))
    with pytest.raises(TargetError, match="llvm-aarch64 does not run on this machine"):
        search(target=Target.parse("llvm-aarch64"))
    monkeypatch.setenv("NATC_CC", "no-such-compiler")
    with pytest.raises(CompilerNotFound, match="no-such-compiler"):
        search()
    assert table.built == [] and not (place / "workspace").exists()


@pytest.mark.parametrize("name", ["schedules", "tuning_logs"])
def test_a_workspace_that_cannot_be_written_is_named_first(
    search: Search, table: Table, place: Path, name: str
) -> None:
    # A file where a directory is needed stops even the superuser.
    (place / "workspace").mkdir()
    (place / "workspace" / name).write_text("")
    with pytest.raises(NatcError, match=f"workspace/{name}"):
        search()
    assert table.built == []


def test_the_logged_environment_describes_this_machine(search: Search) -> None:
    search(trials=1)
    (machine,) = [line for line in search.lines() if line["type"] == "environment"]
    assert (machine["cpu"], machine["cores"]) == (environment.cpu_model(), environment.cores())


def test_a_workspace_that_cannot_be_written_comes_with_the_variable_for_another(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "file").write_text("")
    monkeypatch.setenv("NATC_WORKSPACE", str(place / "file"))
    spec = KernelSpec.parse("na2d_k3_d8_float32")
    with pytest.raises(NatcError, match="is not writable; set NATC_WORKSPACE"):
        engine.present_schedule(spec, HOST, "forward", SpaceVersion("llvm_direct", 1))
