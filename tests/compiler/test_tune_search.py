"""The search itself, its log and its limits; candidates and times come from tables."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from natc.store.records import SpaceVersion, Trial
from natc.targets import Target
from natc.tune.events import Event, Note, SearchFinished, Started, TrialMeasured
from natc.tune.history import key_of
from natc.tune.measure.measurer import BuiltLibrary, Times
from natc.tune.measure.processes import JobError
from natc.tune.search import engine

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

    builders, overlap = 2, False

    def __init__(self) -> None:
        self.built: list[dict[str, int]] = []
        self.measured: list[dict[str, int]] = []  # the last library of each measurement
        self.fails: Callable[[Mapping[str, int]], str | None] = lambda decisions: None
        self.before: Callable[[int], None] = lambda count: None
        self.after: Callable[[int], None] = lambda runs: None
        self.seconds = seconds
        self.left = 0

    def __call__(self, *arguments: Any) -> Table:
        self.machine = environment.collect(arguments[4])
        return self

    def __enter__(self) -> Table:
        return self

    def __exit__(self, *_: object) -> None:
        self.left += 1

    def build(
        self, decisions: Mapping[str, int], *, may_spill: bool = False
    ) -> Future[BuiltLibrary]:
        self.built.append(dict(decisions))
        done: Future[BuiltLibrary] = Future()
        text = json.dumps(dict(sorted(decisions.items())))
        done.set_result(BuiltLibrary(Path(text), text, {}))
        return done

    def measure(self, libraries: Sequence[BuiltLibrary], turns: int) -> Times:
        self.before(len(self.measured))
        decided = [json.loads(library.sha256) for library in libraries]
        self.measured.append(decided[-1])
        for decisions in decided:
            error = self.fails(decisions)
            if error:
                raise JobError(error)
        self.after(turns * len(libraries))
        return [[[self.seconds(decisions)] for decisions in decided] for _ in range(turns)]

    @property
    def candidates(self) -> set[Any]:
        """The measured candidates, without the untuned kernel."""
        return {key_of(decisions) for decisions in self.measured} - {key_of(UNTUNED)}


class Listing:
    """Stands for the model: every candidate once, in an order that the seed decides."""

    untuned = UNTUNED
    best_expected: float | None = None

    def __init__(self, *_: object, batch: int, seed: int, thorough: bool = False) -> None:
        self.thorough = thorough
        order = [
            {**UNTUNED, **dict(zip(QUESTIONS, answers, strict=True))}
            for answers in itertools.product((0, 1), (0, 1), (0, 1), (0, 3))
        ]
        random.Random(seed).shuffle(order)
        self.waiting, self.batch = order, batch
        self.learnt: list[Trial] = []

    def candidate(self, decisions: Mapping[str, int]) -> dict[str, int]:
        if not decisions.keys() <= UNTUNED.keys():
            raise ScheduleError("no such decision")
        return {**UNTUNED, **decisions}

    def propose(self) -> list[dict[str, int]]:
        return self.waiting[:6]

    def learn(self, trials: Iterable[Trial]) -> None:
        self.learnt += trials

    def pass_over(self, candidates: Sequence[Mapping[str, int]]) -> None:
        self.waiting = [each for each in self.waiting if each not in candidates]

    def worth_measuring(self, built: Sequence[object]) -> list[bool]:
        return [True] * len(built)


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Table:
    double = Table()
    monkeypatch.setattr(engine, "LocalMeasurer", double)
    monkeypatch.setattr(engine, "Model", Listing)
    monkeypatch.setattr(engine, "load_note", lambda: [])
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

    def lines(self, kind: str | None = None) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [line for line in lines if kind in (None, line["type"])]

    def saved(self) -> dict[str, int]:
        return schedules.read_schedule(self.schedule).decisions


@pytest.fixture
def search(place: Path, table: Table) -> Iterator[Search]:
    yield Search()


@pytest.mark.parametrize(
    ("limits", "limit", "used_up"),
    [
        ({}, None, True),
        ({"trials": 3, "minutes": 5.0}, None, False),
        ({"minutes": 5.0}, 300.0, True),
    ],
    ids=["none", "trials", "minutes"],
)
def test_the_log_says_how_a_search_ended(
    search: Search, limits: dict[str, Any], limit: float | None, used_up: bool
) -> None:
    finished = search(**limits)
    (end,) = search.lines("search_end")
    assert search.lines()[-1] == end and end["environment"] == search.lines()[0]["id"]
    assert (end["limit"], end["used_up"], end["outcome"]) == (limit, used_up, finished.outcome)
    assert end["seconds"] == finished.seconds and end["shapes"] == ["1x8x8x1x1"]


@pytest.mark.parametrize(
    ("expected", "gives_up", "measured"),
    [(1.0, True, 6), (0.9, True, 15), (None, True, 15), (1.0, False, 15)],
    ids=["no gain expected", "gain expected", "nothing known", "not asked to"],
)
def test_a_search_gives_up_when_nothing_promises_a_gain(
    search: Search,
    table: Table,
    monkeypatch: pytest.MonkeyPatch,
    expected: float | None,
    gives_up: bool,
    measured: int,
) -> None:
    monkeypatch.setattr(engine, "_FIRST_LOOKS", 6)
    monkeypatch.setattr(Listing, "best_expected", expected)
    table.seconds = lambda decisions: 3e-3 if decisions == UNTUNED else 4e-3
    finished = search(minutes=5.0, gives_up=gives_up)
    assert (finished.trials, finished.outcome) == (measured, "not faster")


def test_a_search_that_sees_a_gain_does_not_give_up(
    search: Search, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_FIRST_LOOKS", 6)
    monkeypatch.setattr(Listing, "best_expected", 1.0)
    table.seconds = lambda decisions: 2e-3 if decisions != UNTUNED else 3e-3
    assert search(minutes=5.0, gives_up=True).trials == 15


def test_a_search_finds_the_fastest_and_ends_when_nothing_is_left(
    search: Search, table: Table
) -> None:
    finished = search()
    assert (finished.trials, finished.failures, finished.outcome) == (15, 0, "saved")
    assert finished.gain is not None and finished.baseline == about(3e-3)
    assert len(table.candidates) == 15 and table.left == 1
    saved = schedules.read_schedule(finished.schedule_path)
    assert finished.schedule_path == search.schedule
    assert saved.decisions == FASTEST
    assert saved.measured.seconds == {KEY: 1e-3}
    assert saved.measured.baseline_seconds == {KEY: 3e-3}
    assert saved.measured.score == about(1e-3)
    assert saved.measured.gain == schedules.Gain(speedup=3, low=3, high=3, pairs=64)
    assert saved.space == SpaceVersion(space_for(HOST).name, space_for(HOST).version)


def test_the_events_describe_the_search(search: Search) -> None:
    finished = search(trials=5, minutes=2)
    first, *trials, last = search.events
    assert first == Started(
        spec=SMALL.name,
        target=HOST.name,
        shapes=(KEY,),
        baseline=about(3e-3),
        best=1.0,
        resumed_trials=0,
        planned=5,
        minutes=2,
    )
    assert all(isinstance(event, TrialMeasured) for event in trials)
    assert [event.index for event in trials] == [1, 2, 3, 4, 5]
    bests = [event.best for event in trials]
    assert bests == sorted(bests)
    assert bests[-1] == about(max(1.0, *(event.speedup for event in trials)))
    assert last == finished


def test_the_log_holds_the_machine_every_trial_and_the_comparisons(search: Search) -> None:
    finished = search(trials=8, seed=7)
    machine = search.lines()[0]
    assert machine["type"] == "environment" and machine["seed"] == 7
    assert finished.log_path == search.log
    trials = search.lines("trial")
    assert len(trials) == 1 + 8
    assert trials[0]["decisions"] == UNTUNED
    for number, trial in enumerate(trials):
        assert trial["trial"] == number
        assert trial["environment"] == machine["id"]
        assert trial["seconds"] == {KEY: about(seconds(trial["decisions"]))}
        assert trial["ratio"] == about(seconds(trial["decisions"]) / 3e-3)
        # A candidate that is slower than the default gets few turns.
        assert trial["samples"] == (16 if number > 0 and trial["ratio"] <= 1 else 4)
    comparisons = search.lines("comparison")
    assert 1 <= len(comparisons) <= 4
    assert all(each["base"] == UNTUNED and each["pairs"] == 64 for each in comparisons)
    saved = schedules.read_schedule(search.schedule)
    assert saved.measured.trials == len(trials)
    assert saved.environment.id == machine["id"]
    best = max(comparisons, key=lambda each: each["speedup"])
    assert saved.decisions == best["decisions"]
    assert saved.measured.speedup == about(best["speedup"], rel=1e-3)


@pytest.mark.parametrize("trials", [1, 6, 7])
def test_the_number_of_trials_is_kept_exactly(search: Search, table: Table, trials: int) -> None:
    assert search(trials=trials).trials == trials
    assert len(table.candidates) == trials
    # Nor is anything built that will not be measured.
    assert len({key_of(decisions) for decisions in table.built}) == trials + 1


def test_the_time_limit_leaves_room_for_the_comparison(
    search: Search, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, passed = time.monotonic, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: real() + passed[0])

    def take_time(runs: int) -> None:
        passed[0] += 0.1 * runs

    table.after = take_time
    finished = search(minutes=0.5)
    # A candidate takes up to 3.2 s, and at most three tenths of the time are for the comparison.
    assert 3 <= finished.trials < 15 and 21 < finished.seconds < 60
    assert finished.outcome == "saved" and len(table.candidates) == finished.trials
    assert finished.gain is not None and 16 <= finished.gain.pairs < 64
    assert seconds(search.saved()) == about(min(map(seconds, table.measured)))


def test_a_second_run_measures_only_what_is_new(search: Search, table: Table) -> None:
    first = search(trials=6)
    before = table.candidates
    table.measured.clear()
    second = search(trials=20)
    started = search.told(Started)[0]
    assert started.resumed_trials == 7
    assert first.gain is None or started.best == about(first.gain.speedup)
    assert second.trials == 9
    new = [key_of(line["decisions"]) for line in search.lines("trial")[7:]]
    assert len(set(new) - {key_of(UNTUNED)}) == 9 and not set(new) & before
    assert search.saved() == FASTEST
    numbers = [line["trial"] for line in search.lines("trial")]
    assert numbers == list(range(len(numbers)))


def test_a_third_run_has_nothing_left_to_try(search: Search) -> None:
    search()
    saved = search.schedule.read_text()
    finished = search()
    # The schedule in use is the best candidate already, so no candidate is faster.
    assert finished.trials == 0 and finished.outcome == "not faster"
    assert search.told(Started)[0].resumed_trials == 16
    assert search.schedule.read_text() == saved


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
    search.schedule.unlink(missing_ok=True)


def test_trials_of_another_machine_are_not_used(search: Search, table: Table) -> None:
    search(trials=6)

    def another(line: dict[str, Any]) -> None:
        if line["type"] == "environment":
            line["cpu"] = "another CPU"

    edited(search, another)
    count = len(search.lines("trial"))
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
    search.schedule.unlink(missing_ok=True)
    assert search(shapes=[(1, 9, 9, 1)]).trials == 15
    assert "measured other inputs" in search.notes()


def test_trials_without_a_ratio_are_not_used(search: Search) -> None:
    """They were not measured beside the default, so their times do not compare."""
    search(trials=6)

    def without(line: dict[str, Any]) -> None:
        if line["type"] == "trial":
            line["ratio"] = None

    edited(search, without)
    assert search().trials == 15
    assert "7 trials were not measured beside the default" in search.notes()


def test_unknown_decisions_in_a_log_are_passed_over(search: Search) -> None:
    search(trials=2)

    def nonsense(line: dict[str, Any]) -> None:
        if line["type"] == "trial" and line["trial"] == 1:
            line |= {"decisions": {"warps": 3}, "seconds": None, "ratio": None}
            line["error"] = "no such decision"

    edited(search, nonsense)
    search()
    assert search.saved() == FASTEST


def test_failures_are_counted_logged_and_not_tried_again(search: Search, table: Table) -> None:
    table.fails = lambda decisions: "crashed: SIGSEGV" if decisions["chains"] else None
    finished = search()
    assert (finished.trials, finished.failures) == (15, 8)
    assert search.saved() == FASTEST
    failed = [event for event in search.told(TrialMeasured) if event.error]
    assert len(failed) == 8 and all(event.speedup is None for event in failed)
    assert search.told(TrialMeasured)[-1].failures == 8
    logged = [line for line in search.lines("trial") if line["error"]]
    assert [line["error"] for line in logged] == ["crashed: SIGSEGV"] * 8
    assert all(line["seconds"] is None and line["decisions"]["chains"] for line in logged)
    assert search().trials == 0


def test_when_every_candidate_fails_nothing_is_written(search: Search, table: Table) -> None:
    table.fails = lambda decisions: None if decisions == UNTUNED else "wrong result"
    finished = search()
    assert (finished.failures, finished.outcome, finished.schedule_path) == (15, "failed", None)
    assert finished.message == "15 of 15 candidates failed" and not search.schedule.exists()


def test_a_finalist_that_fails_when_measured_again_does_not_win(
    search: Search, table: Table
) -> None:
    table.fails = lambda decisions: (
        "crashed" if decisions == FASTEST and len(table.candidates) == 15 else None
    )
    finished = search()
    assert "failed when it was measured again: crashed" in search.notes()
    assert finished.outcome == "saved" and finished.gain is not None
    assert finished.gain.speedup == about(1.5) and search.saved() != FASTEST
    assert search().trials == 0


def test_candidates_with_the_code_of_another_are_not_timed(
    search: Search, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Table.build

    def build(
        double: Table, decisions: Mapping[str, int], **options: bool
    ) -> Future[BuiltLibrary]:
        # `chains` changes nothing.
        return real(double, {**decisions, "chains": 0}, **options)

    monkeypatch.setattr(Table, "build", build)
    finished = search()
    assert (finished.trials, finished.failures) == (15, 0) and len(table.candidates) == 7
    twins = [line for line in search.lines("trial") if line["samples"] == 0]
    assert len(twins) == 8
    for line in twins:
        same = {**line["decisions"], "chains": 0}
        assert line["seconds"] == {KEY: about(seconds(same))}
    assert {**search.saved(), "chains": 0} == FASTEST


def test_without_a_default_there_is_no_search(search: Search, table: Table) -> None:
    table.fails = lambda decisions: "linking the library failed"
    with pytest.raises(TuneError, match="na2d_k3_d1_float32 .* linking"):
        search()
    assert table.left == 1 and not search.schedule.exists()


def test_an_existing_schedule_is_kept_unless_it_is_beaten(search: Search, table: Table) -> None:
    # Tuned on this machine or another; there is no log of it.
    there = make_host_schedule(SMALL, decisions=FASTEST)
    path = schedules.save_schedule(there)
    before = path.read_text()
    finished = search(trials=8, seed=3)
    # Others are faster than the default, but not than this one.
    assert finished.trials == 8 and finished.outcome == "not faster"
    assert "as fast as the schedule in use" in finished.message
    assert path.read_text() == before


def test_the_nearest_schedule_must_be_beaten_too(search: Search) -> None:
    """A build takes it for this kernel."""
    near = replace(SMALL, rpb=True)
    schedules.save_schedule(make_host_schedule(near, decisions=FASTEST))
    assert search(trials=8, seed=3).outcome == "not faster" and not search.schedule.exists()


def test_a_schedule_in_use_that_fails_is_reported(search: Search, table: Table) -> None:
    schedules.save_schedule(make_host_schedule(SMALL, decisions=FASTEST))
    table.fails = lambda decisions: "crashed" if decisions == FASTEST else None
    search()
    assert "failed when it was measured again: crashed" in search.notes()
    assert search.saved() != FASTEST


def test_noise_is_reported_and_nothing_is_written(search: Search, table: Table) -> None:
    """Times of one kernel that differ by a factor of 3 hide a gain of a few percent."""
    chance = random.Random(0)

    def noisy(decisions: Mapping[str, int]) -> float:
        return (0.98 if decisions == FASTEST else 1.0) * chance.uniform(1e-3, 3e-3)

    table.seconds = noisy
    finished = search()
    assert finished.outcome in ("undecided", "not faster") and finished.schedule_path is None
    assert not search.schedule.exists()
    if finished.outcome == "undecided":
        assert "too noisy to decide" in finished.message and "machine is busy" in search.notes()


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
    for _ in range(2):
        finished = search(minutes=1)
        assert (finished.schedule_path, finished.trials) == (None, 0)
        assert finished.outcome == ("interrupted" if end == "ctrl-c" else "unmeasured")
        assert finished == search.events[-1] and finished.baseline == about(3e-3)
        assert before == (search.schedule.read_text() if search.schedule.exists() else None)
    measured = [line["decisions"] for line in search.lines("trial")]
    assert measured == [UNTUNED] * 2, "the untuned kernel, once for each run"


def test_a_candidate_of_an_earlier_run_can_win(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(engine, "conclude", kill)
        search()
    assert not search.schedule.exists() and len(search.lines("trial")) == 16
    finished = search(minutes=1)
    assert finished.trials == 0 and finished.outcome == "saved"
    assert search.saved() == FASTEST


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
    assert finished.outcome == "failed"
    assert before == (search.schedule.read_text() if search.schedule.exists() else None)


def test_in_a_space_of_one_candidate_nothing_is_written(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Listing, "propose", lambda _: [])
    finished = search()
    assert (finished.trials, finished.outcome) == (0, "not faster")
    assert finished.message == "no candidate was faster than the default"
    assert not search.schedule.exists()


def test_decisions_equal_to_the_default_are_never_written(
    search: Search, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if a proposer proposes them, and their times are lucky."""
    calls = itertools.count()
    table.seconds = lambda decisions: 3e-3 / (1 + next(calls))
    proposed = [[dict(UNTUNED)], []]
    monkeypatch.setattr(Listing, "propose", lambda _: proposed.pop(0))
    assert search().schedule_path is None and not search.schedule.exists()


def replaced(there: schedules.Schedule, **changes: Any) -> schedules.Schedule:
    return msgspec.structs.replace(there, **changes)


def test_a_schedule_of_an_older_space_is_replaced(search: Search) -> None:
    old = SpaceVersion(space_for(HOST).name, 0)
    schedules.save_schedule(make_host_schedule(SMALL, space=old, decisions={"gone": 1}))
    assert search().outcome == "saved"
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


def test_ctrl_c_before_the_search_begins_keeps_the_schedule(search: Search, table: Table) -> None:
    schedules.save_schedule(make_host_schedule(SMALL, decisions=FASTEST))
    before = search.schedule.read_text()

    def stop(measured: int) -> None:
        raise KeyboardInterrupt

    table.before = stop
    with pytest.raises(KeyboardInterrupt):
        search()
    assert search.schedule.read_text() == before and table.left == 1


@pytest.mark.parametrize("candidates", [1, 7, 15])
def test_ctrl_c_keeps_every_trial_and_the_next_run_goes_on(
    search: Search, table: Table, candidates: int
) -> None:
    def stop(measured: int) -> None:
        if len(table.candidates) == candidates:
            raise KeyboardInterrupt

    table.before = stop
    finished = search()
    # Nothing was compared, so nothing is proven.
    assert finished.interrupted and finished.schedule_path is None
    assert candidates - 1 <= finished.trials <= candidates
    assert finished == search.events[-1] and table.left == 1
    assert len(search.lines("trial")) == 1 + finished.trials
    table.before = lambda measured: None
    again = search()
    assert again.trials == 15 - finished.trials and search.saved() == FASTEST


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
        engine.check_workspace(spec, HOST, "forward", SpaceVersion("llvm_direct", 1))
