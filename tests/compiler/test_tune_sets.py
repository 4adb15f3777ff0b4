"""A set of kernels in one command: its unfinished searches, and the table of gains."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import pytest
from support.search_events import GAIN, finish

import natc.tune as natc_tune
from natc.cli.main import main
from natc.compiler.space import all_decisions, space_for
from natc.errors import NatcError, TuneError
from natc.host import environment
from natc.host.detect import detect_host_cpu
from natc.spec import KernelSpec
from natc.store import schedules, workspace
from natc.store.records import Environment, SearchEnd, SpaceVersion, Trial, append
from natc.targets import Target
from natc.tune import sets
from natc.tune.measure.workload import default_shapes, keys_of
from natc.tune.search.set_plan import SetPlan
from natc.tune.sets import Tuned

HOST = detect_host_cpu()
SPEC = KernelSpec.parse("na2d_k3_d8_float32")
SEARCHES = [Tuned(SPEC, name) for name in ("forward", "d_query", "d_key")]
HERE = environment.collect()
SHAPES = keys_of(default_shapes(SPEC, HOST), SPEC)


def space_of(search: Tuned) -> SpaceVersion:
    space = space_for(HOST, search.operation, search.spec)
    return SpaceVersion(space.name, space.version)


def log_of(search: Tuned, machine: Environment = HERE) -> Any:
    """Return the log of a search, which names a machine."""
    log = workspace.log_path(search.spec, HOST, search.operation)
    append(log, machine)
    return log


def end(search: Tuned, machine: Environment = HERE, **changes: Any) -> None:
    """Write to the log of a search that it ended after its 30 seconds."""
    record = SearchEnd(
        spec=search.spec.name,
        target=HOST.name,
        operation=search.operation,
        space=space_of(search),
        shapes=SHAPES,
        outcome="not faster",
        seconds=30.0,
        limit=30.0,
        used_up=False,
        environment=machine.id,
        timestamp=environment.now(),
    )
    append(log_of(search, machine), msgspec.structs.replace(record, **changes))


def plan(minutes: float = 0.5) -> SetPlan:
    return SetPlan(SEARCHES, HOST, minutes, HERE)


def test_each_search_of_a_new_set_has_its_time() -> None:
    new = plan()
    assert new.unfinished() == SEARCHES
    assert new.minutes_for_next() == pytest.approx(0.5)
    assert [(row.outcome, row.candidates, row.path) for row in new.rows()] == [("", 0, None)] * 3


def test_a_search_that_ended_early_is_not_repeated() -> None:
    first = plan()
    end(SEARCHES[0], used_up=True, seconds=6.0)
    end(SEARCHES[1], seconds=7.0)  # of 30: it gave up
    first.ended(SEARCHES[0])
    assert first.unfinished() == SEARCHES[1:] and plan().unfinished() == SEARCHES[2:]
    assert first.minutes_for_next() == pytest.approx(0.5)


def test_a_new_run_goes_on_where_the_last_one_was_stopped_or_killed() -> None:
    end(SEARCHES[0], seconds=31.0)
    end(SEARCHES[1], outcome="interrupted", seconds=10.0)
    assert plan().unfinished() == SEARCHES[1:]
    assert plan().minutes_for_next() == pytest.approx((30 - 10) / 60)
    # With more time, a search that had its share goes on; a search that tried everything does not.
    end(SEARCHES[2], used_up=True, seconds=30.0)
    assert plan(1.0).unfinished() == SEARCHES[:2]
    assert plan(1.0).minutes_for_next() == pytest.approx((60 - 30) / 60)


@pytest.mark.parametrize(
    ("machine", "changes"),
    [
        (HERE, {"shapes": ["1x9x9x1x8"]}),
        (HERE, {"space": SpaceVersion(space_of(SEARCHES[0]).name, 999)}),
        (msgspec.structs.replace(HERE, id="other", cpu="another processor"), {}),
    ],
    ids=["shapes", "space", "machine"],
)
def test_a_search_that_measured_something_else_does_not_count(
    machine: Environment, changes: dict[str, Any]
) -> None:
    end(SEARCHES[0], machine, **changes)
    assert plan().unfinished() == SEARCHES


class Finished(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def natc(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the command line in this process, with SEARCHES as the set `nat`."""

    def run(*words: str, searches: list[Tuned] = SEARCHES) -> Finished:
        monkeypatch.setattr(sys, "argv", ["natc", *words])
        monkeypatch.setattr(sets, "searches", lambda name, kind: searches)
        with pytest.raises(SystemExit) as stop:
            main()
        code = stop.value.code
        return Finished(code if isinstance(code, int) else 0, *capsys.readouterr())

    return run


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[str, float]]]:
    """Put a function of the operation in the search's place; return its calls."""

    def install(answer: Callable[[Tuned], Any]) -> list[tuple[str, float]]:
        calls: list[tuple[str, float]] = []

        def tune(spec: KernelSpec, _: Any, *, operation: str, minutes: float, **__: Any) -> Any:
            calls.append((operation, minutes))
            return answer(Tuned(spec, operation))

        monkeypatch.setitem(vars(natc_tune), "tune", tune)
        return calls

    return install


def saved(search: Tuned) -> Any:
    """Write the files of a search that saved a schedule, and return its last event."""
    times = dict.fromkeys(SHAPES, 1e-3)
    schedule = schedules.Schedule(
        spec=search.spec.name,
        target=HOST.name,
        operation=search.operation,
        space=space_of(search),
        decisions={"lanes": 8},
        measured=schedules.Measurement(
            seconds=times, baseline_seconds=times, score=1e-3, objective="", trials=1, gain=GAIN
        ),
        environment=schedules.measured_on(HERE),
        created=environment.now(),
    )
    schedules.save_schedule(schedule)
    trial = Trial(
        spec=search.spec.name,
        target=HOST.name,
        operation=search.operation,
        space=space_of(search),
        decisions={"lanes": 8},
        seconds=times,
        error=None,
        environment=HERE.id,
        timestamp=environment.now(),
        trial=0,
    )
    append(log_of(search), trial)
    end(search, outcome="saved")
    return finish()


def slower(search: Tuned) -> Any:
    """Write the log of a search without a faster candidate, and return its last event."""
    end(search)
    return finish()


def test_the_table_says_what_was_gained_and_a_finished_set_is_not_searched_again(
    natc: Any, search: Callable[..., list[tuple[str, float]]]
) -> None:
    calls = search(lambda each: (saved if each == SEARCHES[0] else slower)(each))
    words = ("tune", "--set", "nat", "--minutes", "0.5", "--quiet")
    done = natc(*words)
    assert (done.code, done.err) == (0, "")
    assert [operation for operation, _ in calls] == ["forward", "d_query", "d_key"]
    assert [minutes for _, minutes in calls] == pytest.approx([0.5] * 3)
    title, header, *rows = [line.split("  ") for line in done.out.splitlines()]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    schedule = workspace.schedule_path(SPEC, HOST)
    assert cells[0] == [SPEC.name, "forward", "1", "3.90 (3.85 to 3.97)", str(schedule)]
    log = workspace.log_path(SPEC, HOST, "d_query")
    assert cells[1] == [SPEC.name, "d_query", "0", "default", str(log)]

    again = natc(*words, "--json")
    document = json.loads(again.out)
    assert (again.code, len(calls), document["set"]) == (0, 3, "nat")
    assert document["searches"][0]["gain"] == {
        "speedup": 3.9,
        "low": 3.85,
        "high": 3.97,
        "pairs": 64,
    }
    assert [row["outcome"] for row in document["searches"]] == ["saved"] + ["not faster"] * 2


@pytest.mark.parametrize("during", ["search", "preparation"])
def test_ctrl_c_ends_with_the_table_so_far(
    natc: Any, search: Callable[..., list[tuple[str, float]]], during: str
) -> None:
    def answer(each: Tuned) -> Any:
        if each == SEARCHES[0]:
            return saved(each)
        if during == "preparation":
            raise KeyboardInterrupt
        end(each, outcome="interrupted", seconds=7.0)
        return finish(interrupted=True)

    calls = search(answer)
    words = ("tune", "--set", "nat", "--minutes", "0.5", "--quiet")
    done = natc(*words)
    assert (done.code, len(calls)) == (130, 2)
    assert "3.90 (3.85 to 3.97)" in done.out and "not searched yet" in done.out
    assert done.err == (
        "natc: stopped. Everything measured is kept; go on with: natc tune --set nat "
        "--minutes 0.5 --quiet\n"
    )
    natc(*words)
    assert [operation for operation, _ in calls] == ["forward", "d_query", "d_query"]


def test_a_kernel_that_fails_does_not_keep_the_others_from_their_search(
    natc: Any, search: Callable[..., list[tuple[str, float]]]
) -> None:
    def answer(each: Tuned) -> Any:
        if each == SEARCHES[0]:
            raise TuneError("the default failed")
        return slower(each)

    calls = search(answer)
    done = natc("tune", "--set", "nat", "--minutes", "0.5", "--quiet")
    assert (done.code, len(calls)) == (1, 3)
    assert done.err == "problem: the default failed\n"
    assert "failed" in done.out and "default" in done.out


def test_an_error_of_the_machine_ends_the_set_after_its_table(
    natc: Any, search: Callable[..., list[tuple[str, float]]]
) -> None:
    def answer(each: Tuned) -> Any:
        if each == SEARCHES[1]:
            raise NatcError("the disk is full")
        return saved(each)

    calls = search(answer)
    done = natc("tune", "--set", "nat", "--minutes", "0.5", "--quiet")
    assert (done.code, len(calls)) == (1, 2)
    assert "3.90 (3.85 to 3.97)" in done.out
    assert done.err == "natc: error: the disk is full\n"


def test_searches_without_times_are_a_failure(
    natc: Any, search: Callable[..., list[tuple[str, float]]]
) -> None:
    def answer(each: Tuned) -> Any:
        end(each, outcome="unmeasured")
        return finish()

    search(answer)
    done = natc("tune", "--set", "nat", "--minutes", "0.5", "--quiet")
    assert done.code == 1 and "default (unmeasured)" in done.out
    assert "in 3 of 3 searches" in done.err and "larger --minutes" in done.err


def test_schedules_for_other_cpus_are_predicted_from_trials_on_this_one(natc: Any) -> None:
    spec = KernelSpec.make(3, head_dim=16, rpb=True)
    trained, target = Target.parse("llvm-x86-64-v3"), Target.parse("llvm-aarch64")
    space = space_for(trained, "forward", spec)
    log = workspace.log_path(spec, trained, "forward")
    append(log, HERE)
    for number, decisions in enumerate(all_decisions(spec, trained, "forward")[:60]):
        ratio = 0.8 if decisions["unroll"] == 4 else 1.0
        trial = Trial(
            spec=spec.name,
            target=trained.name,
            operation="forward",
            space=SpaceVersion(space.name, space.version),
            decisions=decisions,
            seconds={"1x8x8x1x16": ratio},
            error=None,
            ratio=ratio,
            environment=HERE.id,
            timestamp=environment.now(),
            trial=number,
        )
        append(log, trial)
    searches = [Tuned(spec, name) for name in ("forward", "gradients")]
    done = natc("tune", "--set", "nat", "--target", "llvm-aarch64", "--json", searches=searches)
    assert done.code == 0, done.err
    forward, gradients = json.loads(done.out)["searches"]
    assert forward["predicted"] and 1.15 < forward["speedup"] < 1.3
    schedule = schedules.load_schedule(spec, target)
    assert schedule is not None and schedule.decisions["unroll"] == 4
    assert schedule.predicted is not None and "60 trials" in schedule.predicted.model
    # Nothing is known of its gradients.
    assert (gradients["predicted"], gradients["path"]) == (False, None)
