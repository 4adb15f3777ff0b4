"""Searches in three steps: candidates compiled ahead, measured without a compiler, taken in."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.fresh_process import NO_COMPILER, with_natc
from support.library_files import edit_json
from support.round_jobs import crash_hang_or_err, refuse, spill

from natc.compiler.build.chosen import choose
from natc.compiler.space import all_decisions, space_for
from natc.errors import ArgumentError, SpecError, TargetError, TuneError
from natc.host import environment
from natc.host.detect import detect_host_cpu
from natc.host.toolchain import PORTABLE_GLIBC
from natc.spec import KernelSpec
from natc.store import elf, schedules, workspace
from natc.store.manifest import file_sha256
from natc.store.records import Environment, SpaceVersion, Trial, read_log
from natc.tune.events import Event, Note
from natc.tune.measure import confirm, measurer, measuring, rounds, worker
from natc.tune.measure.confirm import Verdict
from natc.tune.measure.measurer import BuiltLibrary, Times
from natc.tune.measure.processes import JobError
from natc.tune.measure.race import Race
from natc.tune.measure.rounds import Candidate, Round
from natc.tune.search import builder
from natc.tune.search.export import export
from natc.tune.search.importing import import_round

HOST = detect_host_cpu()
SPEC = KernelSpec.parse("na2d_k3_d8_float32")
OPERATION = "d_query"
SHAPE, KEY = (1, 8, 8, 1), "1x8x8x1x8"
about = pytest.approx


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NATC_WORKSPACE", str(directory / "workspace"))
        export(SPEC, HOST, directory / "round", operation=OPERATION, shapes=[SHAPE], candidates=2)
        yield directory / "round"


@pytest.fixture
def copied(exported: Path, tmp_path: Path) -> Path:
    """Copy the round, as to another machine."""
    return Path(shutil.copytree(exported, tmp_path / "moved"))


def place_in(directory: Path) -> Path:
    (place,) = rounds.find(directory)
    return place


def natc(*words: str) -> subprocess.CompletedProcess[str]:
    """Run `natc` where the compiler might as well not be installed."""
    program = (
        f"{NO_COMPILER}sys.argv = {['natc', *words]!r}\nfrom natc.cli.main import main\nmain()\n"
    )
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        # The process that measures is another one, which must find it, too.
        env=with_natc(),
    )


def test_a_search_from_end_to_end(copied: Path, place: Path) -> None:
    round_ = rounds.read(place_in(copied))
    assert (round_.spec, round_.operation, round_.present) == (SPEC.name, OPERATION, False)
    done = natc("measure", str(copied), "--json", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    (summary,) = json.loads(done.stdout)["searches"]
    assert summary["complete"] and summary["failures"] == 0
    assert summary["candidates"] == len(round_.candidates) == 2
    assert summary["untuned"] > 0 and summary["speedup"] >= 1 and summary["message"]

    again = natc("measure", str(copied))
    assert again.returncode == 0 and ": 0 of 2 candidates measured" in again.stdout
    assert f"natc tune --import {copied}" in again.stdout

    imported = import_round(place_in(copied))
    assert imported.problem == "" and imported.untuned > 0
    # Noise decides which one is faster; the verdict and the files agree.
    path = workspace.schedule_path(SPEC, HOST, OPERATION)
    assert imported.schedule_path == (path if imported.gain else None)
    assert path.exists() == (imported.gain is not None)
    assert schedules.load_schedule(SPEC, HOST) is None

    records, problems = read_log(imported.log_path)
    trials = [record for record in records if isinstance(record, Trial)]
    assert problems == [] and len(trials) == imported.trials
    assert [trial.trial for trial in trials] == list(range(len(trials)))
    assert {trial.operation for trial in trials} == {OPERATION}
    machines = {record.id for record in records if isinstance(record, Environment)}
    assert {trial.environment for trial in trials} <= machines
    # Every candidate is there: measured, or dropped and why.
    failed = [trial for trial in trials if trial.error]
    assert len(failed) == len(round_.dropped)

    before = imported.log_path.read_bytes()
    assert import_round(place_in(copied)).trials == 0
    assert imported.log_path.read_bytes() == before


def test_a_winner_is_what_builds_take(copied: Path, place: Path) -> None:
    measuring.measure(place_in(copied), with_=Fixed(4, 2))
    imported = import_round(place_in(copied))
    assert imported.schedule_path == workspace.schedule_path(SPEC, HOST, OPERATION)
    saved = schedules.load_schedule(SPEC, HOST, OPERATION)
    assert saved is not None and saved.operation == OPERATION
    assert (
        saved.measured.gain == imported.gain == schedules.Gain(speedup=2, low=2, high=2, pairs=64)
    )
    assert saved.measured.score == about(2e-3) and saved.measured.trials == imported.trials
    assert saved.decisions == rounds.read(place_in(copied)).candidates[1].decisions
    chosen = choose(SPEC, HOST, operations=(OPERATION,))
    assert chosen.origin == "untuned"
    assert [item.operation for item in chosen.other_schedules] == [OPERATION]
    assert chosen.decisions == {f"{OPERATION}.{n}": v for n, v in saved.decisions.items()}
    assert f"{OPERATION}: its tuned schedule" in chosen.note
    assert chosen.record()["others"][OPERATION]["of"] == SPEC.name


def test_an_impossible_export_is_refused_first(exported: Path, tmp_path: Path) -> None:
    directory = tmp_path / "other"
    with pytest.raises(SpecError, match="operation is 'd_rpb'; .* forward, delta, d_q"):
        export(SPEC, HOST, directory, operation="d_rpb")
    with pytest.raises(ArgumentError, match=r"shapes has \(1, 8, 1\); .* height, width"):
        export(SPEC, HOST, directory, shapes=[(1, 8, 1)])
    with pytest.raises(ArgumentError, match="candidates is 1; a round has 2 or more"):
        export(SPEC, HOST, directory, candidates=1)
    assert not directory.exists()
    with pytest.raises(TuneError, match="exists already. Import its measurements"):
        export(SPEC, HOST, exported, operation=OPERATION)
    with pytest.raises(ArgumentError, match=r"holds no candidates \(no round.json"):
        rounds.find(tmp_path)


def test_an_export_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder, "build", refuse)
    with pytest.raises(TuneError, match="the default of .* 2048"):
        export(SPEC, HOST, tmp_path / "round", shapes=[SHAPE])
    assert not list((tmp_path / "round").rglob("*.*"))


def test_candidates_run_on_older_systems_than_this_one(exported: Path) -> None:
    libraries = sorted(exported.rglob("*.so"))
    assert len(libraries) == 2
    for library in libraries:
        assert elf.read(library.read_bytes()).glibc <= PORTABLE_GLIBC


def test_the_default_and_the_schedule_may_spill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder, "build", spill)
    round_ = export(SPEC, HOST, tmp_path / "round", shapes=[SHAPE], candidates=4)
    assert len(round_.candidates) == 1 and not round_.present
    assert round_.candidates[0].features == {"spills": 2.0}
    assert {candidate.error for candidate in round_.dropped} == {"spills 8 bytes of registers"}


# --- rounds of made-up candidates, whose times are looked up ---


SPACE = SpaceVersion("some", 1)


def decided(number: int) -> dict[str, int]:
    return {"number": number}


def write_round(directory: Path, count: int, **changes: Any) -> Round:
    """Write a round of candidates, each a file of its own; number 0 is the untuned one."""
    directory.mkdir(exist_ok=True)
    candidates = []
    for number in range(count):
        path = directory / f"candidate_{number}.so"
        path.write_text(f"code {number}")
        candidates.append(
            Candidate(decisions=decided(number), library=path.name, sha256=file_sha256(path))
        )
    fields: dict[str, Any] = {
        "natc": "1",
        "spec": SPEC.name,
        "target": HOST.name,
        "operation": "forward",
        "space": SPACE,
        "shapes": [SHAPE],
        "candidates": candidates,
        "present": False,
        "dropped": [],
        "seed": 0,
        "exported_on": environment.collect(0),
    }
    round_ = Round(**{**fields, **changes})
    rounds.write(directory, round_)
    return round_


class Table:
    """Stands for a device: candidate N takes |N - fastest| + 1 ms; counts turns."""

    def __init__(self, fastest: int = 40) -> None:
        self.fastest = fastest
        self.turns: Counter[int] = Counter()
        self.calls: list[list[int]] = []
        self.before: Callable[[int], None] = lambda number: None

    def __call__(self, libraries: Sequence[BuiltLibrary], turns: int) -> Times:
        numbers = [int(library.path.stem.partition("_")[2]) for library in libraries]
        self.calls.append(numbers)
        for number in numbers:
            self.before(number)
            self.turns[number] += turns
        return [[[1e-3 * (1 + abs(n - self.fastest))] for n in numbers] for _ in range(turns)]


class Fixed:
    """Stands for a device on which candidate N takes so many milliseconds."""

    def __init__(self, *milliseconds: float) -> None:
        self.milliseconds = milliseconds

    def __call__(self, libraries: Sequence[BuiltLibrary], turns: int) -> Times:
        numbers = [int(library.path.stem.partition("_")[2]) for library in libraries]
        return [[[1e-3 * self.milliseconds[number]] for number in numbers]] * turns


def trials(directory: Path) -> list[Trial]:
    return rounds.measured(directory).trials


def test_slow_candidates_get_few_turns(tmp_path: Path) -> None:
    write_round(tmp_path, 64)
    table = Table(fastest=10)  # the default takes 11 ms
    summary = measuring.measure(tmp_path, with_=table)
    assert summary.complete and summary.untuned == about(11e-3)
    assert summary.speedup == about(11) and "11.00 times as fast" in summary.message
    assert table.calls[0] == [0]  # without the default, nothing else is worth anything
    assert {table.turns[number] for number in range(21, 64)} == {4}
    assert {table.turns[number] for number in range(1, 8)} == {16}
    # The finalists, in turn with the default.
    assert set(table.calls[-1]) == {0, 9, 10, 11, 8} or set(table.calls[-1]) == {0, 9, 10, 11, 12}
    assert table.turns[10] == 16 + 64
    assert all(trial.samples and trial.ratio for trial in trials(tmp_path))
    assert {each.pairs for each in rounds.measured(tmp_path).comparisons} == {64}


def test_the_present_schedule_is_compared_with_the_finalists(copied: Path, place: Path) -> None:
    """A candidate that beats the default alone is not taken."""
    write_round(copied, 5, present=True, space=SPACE)
    measuring.measure(copied, with_=Fixed(4, 2, 3, 3, 3))
    compared = rounds.measured(copied).comparisons
    assert {each.decisions["number"] for each in compared} == {2, 3, 4}
    bases = [decided(0), decided(1)]
    default, present = ([c for c in compared if c.base == base] for base in bases)
    assert all(each.faster for each in default) and not any(each.faster for each in present)
    assert len(default) == len(present) == 3
    summary = measuring.measure(copied, with_=Fixed())
    assert summary.measured == 0 and "0.67 times as fast as the schedule in use" in summary.message


@pytest.mark.parametrize("after", [0, 1, 30, 66, 80, 100])
def test_a_kill_costs_what_was_being_measured(tmp_path: Path, after: int) -> None:
    write_round(tmp_path, 64)
    table = Table()

    class Killed(BaseException):
        pass

    def kill(number: int) -> None:
        if len(table.calls) == after + 1:
            raise Killed

    table.before = kill
    with pytest.raises(Killed):
        measuring.measure(tmp_path, with_=table)
    log = tmp_path / rounds.MEASURED
    log.write_bytes(log.read_bytes() + b'{"type":"tri')  # it was killed in mid-line
    measured = {trial.decisions["number"] for trial in trials(tmp_path)}
    resumed = Table()
    notes: list[Event] = []
    summary = measuring.measure(tmp_path, with_=resumed, on_event=notes.append)
    assert summary.complete and "41.00 times as fast" in summary.message
    assert any("damaged record was skipped" in n.message for n in notes if isinstance(n, Note))
    finalists = set(resumed.calls[-1])
    assert finalists == {0, 39, 40, 41, 38} or finalists == {0, 39, 40, 41, 42}
    # Measured again: the default, and the finalists when they are compared.
    assert set(resumed.turns) & measured <= finalists
    assert set(resumed.turns) | measured == set(range(64))
    numbers = [trial.decisions["number"] for trial in trials(tmp_path)]
    assert Counter(numbers)[0] == 1 + (0 in measured) and max(Counter(numbers[1:]).values()) <= 2


def test_time_ends_it_and_the_next_call_goes_on(tmp_path: Path) -> None:
    write_round(tmp_path, 8)
    nothing = measuring.measure(tmp_path, until=time.monotonic() - 1, with_=Table())
    assert (nothing.measured, nothing.complete, nothing.speedup) == (0, False, None)
    assert measuring.measure(tmp_path, with_=Table()).complete


def test_time_that_ends_before_the_comparison_leaves_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_round(tmp_path, 8)
    real, passed = time.monotonic, [0.0]

    def conclude(race: Race, rival: object, until: float | None) -> Verdict:
        passed[0] += 3600
        return confirm.conclude(race, rival=None, until=until)

    with monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: real() + passed[0])
        patch.setattr(measuring, "conclude", conclude)
        until = time.monotonic() + 600
        cut_short = measuring.measure(tmp_path, until=until, with_=Table(fastest=3))
    assert cut_short.measured == 7 and not cut_short.complete
    assert "no time to compare" in cut_short.message
    again = measuring.measure(tmp_path, with_=Table(fastest=3))
    assert again.complete and again.measured == 0 and "4.00 times as fast" in again.message


def test_failures_are_recorded_and_not_tried_again(tmp_path: Path) -> None:
    write_round(tmp_path, 16)
    table = Table(fastest=8)

    def fail(number: int) -> None:
        if number == 7:
            raise ChildProcessError("the process was ended by SIGSEGV")
        if number == 8:
            raise TimeoutError("it took longer than 30 s")
        if number == 9:
            raise JobError("wrong result: forward: output: 3 of 9 elements are NaN")

    table.before = fail
    summary = measuring.measure(tmp_path, with_=table)
    assert summary.complete and summary.failures == 3 and summary.speedup == about(3)
    errors = {t.decisions["number"]: t.error for t in trials(tmp_path) if t.error}
    assert errors == {
        7: "crashed: the process was ended by SIGSEGV",
        8: "took too long to run: it took longer than 30 s",
        9: "wrong result: forward: output: 3 of 9 elements are NaN",
    }
    assert measuring.measure(tmp_path, with_=table).measured == 0


def test_a_finalist_that_fails_beside_others_is_found_and_left_out(tmp_path: Path) -> None:
    write_round(tmp_path, 16)
    table = Table(fastest=8)

    def fail(number: int) -> None:
        if number == 8 and table.turns[8] >= 16:
            raise ChildProcessError("the process was ended by SIGSEGV")

    table.before = fail
    summary = measuring.measure(tmp_path, with_=table)
    assert summary.complete and "4.50 times as fast" in summary.message
    assert trials(tmp_path)[-1].error == "crashed: the process was ended by SIGSEGV"


def test_trials_of_another_machine_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_round(tmp_path, 4)
    here = environment.collect()
    another = msgspec.structs.replace(here, id="other", cpu="another CPU")
    monkeypatch.setattr(environment, "collect", lambda seed=None: another)
    measuring.measure(tmp_path, with_=Table())
    monkeypatch.setattr(environment, "collect", lambda seed=None: here)
    summary = measuring.measure(tmp_path, with_=Table())
    assert summary.measured == 3
    assert "were measured on another machine" in summary.notes[0]


# --- rounds that are not measured or taken in ---


def edit(directory: Path, **changes: Any) -> None:
    edit_json(directory / rounds.NAME, **changes)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"schema_version": 2}, "with version 2 of rounds"),
        ({"abi": rounds.ABI - 1, "natc": "0.0.9"}, "written by natc 0.0.9"),
        ({"spec": "na2d_k64_d8_float32"}, "is damaged: kernel_size 64"),
        ({"operation": "sideways"}, "is damaged: operation 'sideways' is unknown"),
        ({"shapes": [[1, 8, 1]]}, r"is damaged: shape \(1, 8, 1\)"),
        ({"candidates": []}, "is damaged: a round has at least one candidate"),
        (
            {"candidates": [{"decisions": {}, "library": "../x.so", "sha256": "0"}]},
            "is damaged: library '../x.so' must be a file name",
        ),
    ],
    ids=["schema", "abi", "spec", "operation", "shapes", "none", "elsewhere"],
)
def test_rounds_of_another_natc_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    write_round(tmp_path, 2)
    edit(tmp_path, **changes)
    table = Table()
    with pytest.raises(TuneError, match=message) as raised:
        measuring.measure(tmp_path, with_=table)
    assert str(tmp_path / rounds.NAME) in str(raised.value)
    assert "natc tune --export" in str(raised.value) and not table.calls


def test_files_that_the_round_does_not_list_are_not_run(tmp_path: Path) -> None:
    write_round(tmp_path, 3)
    path = tmp_path / "candidate_1.so"
    path.write_text("something else")
    table = Table()
    with pytest.raises(TuneError, match="candidate_1.so .* round.json"):
        measuring.measure(tmp_path, with_=table)
    path.unlink()
    with pytest.raises(TuneError, match="candidate_1.so cannot be read"):
        measuring.measure(tmp_path, with_=table)
    write_round(tmp_path, 3)
    path.chmod(0o666)
    with pytest.raises(TuneError, match="candidate_1.so is not loaded: "):
        measuring.measure(tmp_path, with_=table)
    path.chmod(0o644)
    tmp_path.chmod(0o777)
    with pytest.raises(TuneError, match=r"libraries in .* are not loaded: "):
        measuring.measure(tmp_path, with_=table)
    tmp_path.chmod(0o755)
    assert table.calls == [] and measuring.measure(tmp_path, with_=table).complete


def test_a_round_for_another_machine_is_refused(tmp_path: Path) -> None:
    arch = "llvm-aarch64" if HOST.arch != "aarch64" else "llvm-x86-64-v2"
    write_round(tmp_path, 2, target=arch)
    with pytest.raises(TargetError, match=f"{arch} does not run on this machine"):
        measuring.measure(tmp_path, with_=Table())
    write_round(tmp_path, 2, target="cuda-sm_90")
    with pytest.raises(TargetError, match=r"no NVIDIA GPU|does not run on this machine"):
        measuring.measure(tmp_path, with_=Table())


def test_a_missing_or_stale_round_is_not_imported(copied: Path) -> None:
    place = place_in(copied)
    with pytest.raises(TuneError, match="was not measured yet: natc measure"):
        import_round(place)
    round_ = rounds.read(place)
    old = msgspec.structs.replace(
        round_, space=SpaceVersion(round_.space.name, round_.space.version + 1)
    )
    rounds.write(place, old)
    version = round_.space.version
    with pytest.raises(TuneError, match=f"version {version + 1}.* {version}:"):
        import_round(place)
    rounds.write(place, round_)

    def fail(libraries: Sequence[BuiltLibrary], turns: int) -> Times:
        raise JobError("no GPU any more")

    with pytest.raises(TuneError, match="the default of .* failed.*: no GPU any more"):
        measuring.measure(place, with_=fail)
    with pytest.raises(TuneError, match="was not measured yet"):
        import_round(place)
    assert not workspace.schedule_path(SPEC, HOST, OPERATION).exists()


def only_the_first(then: BaseException) -> measuring.TimeLibraries:
    """Time the default alone; for every candidate, raise."""

    def measure(libraries: Sequence[BuiltLibrary], turns: int) -> Times:
        if len(libraries) > 1:
            raise then
        return [[[4e-3]]] * turns

    return measure


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize(
    ("then", "message"),
    [
        (KeyboardInterrupt(), "not every candidate was measured yet; go on with: natc measure "),
        (JobError("wrong result"), "1 of 1 candidates failed (wrong result)"),
    ],
    ids=["cut short", "failed"],
)
def test_the_default_alone_does_not_become_a_schedule(
    copied: Path, then: BaseException, message: str, there: bool
) -> None:
    place = place_in(copied)
    round_ = rounds.read(place)
    path, before = workspace.schedule_path(SPEC, HOST, OPERATION), None
    if there:
        schedules.save_schedule(schedule_of(SPEC, OPERATION, round_.candidates[0].decisions))
        before = path.read_text()
    with contextlib.suppress(KeyboardInterrupt):
        measuring.measure(place, with_=only_the_first(then))
    imported = import_round(place)
    assert message in imported.problem and imported.schedule_path is None
    assert imported.untuned == about(4e-3)
    assert before == (path.read_text() if path.exists() else None)
    # Later runs know what this one measured.
    logged = [record for record in read_log(imported.log_path)[0] if isinstance(record, Trial)]
    assert imported.trials == len(logged) > len(round_.dropped)
    assert import_round(place).trials == 0

    measuring.measure(place, with_=Fixed(4, 2))
    again = import_round(place)
    # What failed is not tried again.
    written = isinstance(then, KeyboardInterrupt)
    assert (again.schedule_path is not None) == (not again.problem) == written


def test_a_round_of_one_candidate_writes_nothing(copied: Path) -> None:
    place = place_in(copied)
    round_ = rounds.read(place)
    rounds.write(place, msgspec.structs.replace(round_, candidates=round_.candidates[:1]))
    measuring.measure(place, with_=Fixed(4))
    imported = import_round(place)
    assert imported.schedule_path is None and not imported.problem
    assert imported.message == "no candidate was faster than the default"
    assert schedules.load_schedule(SPEC, HOST, OPERATION) is None


def test_a_schedule_that_was_not_compared_stays(copied: Path) -> None:
    """It was written after the export."""
    place = place_in(copied)
    measuring.measure(place, with_=Fixed(4, 2))
    round_ = rounds.read(place)
    exported_decisions = [each.decisions for each in round_.candidates]
    newer = next(
        decisions
        for decisions in all_decisions(SPEC, HOST, OPERATION)
        if decisions not in exported_decisions
    )
    path = schedules.save_schedule(schedule_of(SPEC, OPERATION, newer))
    before = path.read_text()
    imported = import_round(place)
    assert imported.schedule_path is None and "export them again" in imported.message
    assert path.read_text() == before
    path.unlink()
    assert import_round(place).schedule_path == path
    # It is in use now, and does not beat itself.
    imported = import_round(place)
    assert imported.schedule_path is None
    assert imported.message == "the best candidate is the schedule in use"


# --- processes ---


def test_a_process_is_restarted_only_after_a_crash_or_a_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "measure", crash_hang_or_err)
    monkeypatch.setattr(measurer, "_MEASURE_LIMIT", 5.0)
    libraries = [BuiltLibrary(tmp_path / f"candidate_{n}.so", str(n), {}) for n in range(5)]
    with measurer.Timer(SPEC.name, HOST.name, [SHAPE], "forward") as timer:
        ids: list[Any] = []
        for number in (0, 3, 4, 1, 0, 2, 4):
            try:
                ids.append(timer.measure([libraries[number]], 3)[0])
            except (JobError, ChildProcessError, TimeoutError) as error:
                ids.append(type(error).__name__)
        first, wrong, same, crashed, second, hung, third = ids
        assert (wrong, crashed, hung) == ("JobError", "ChildProcessError", "TimeoutError")
        assert first == same and len({first, second, third}) == 3
        assert timer.restarts == 2


# --- what builds take ---


def test_a_build_takes_the_nearest_schedule_that_fits(place: Path) -> None:
    spec, near_one = KernelSpec.make(7, head_dim=8), KernelSpec.make(9, head_dim=8)
    saved = schedules.save_schedule(schedule_of(near_one, OPERATION, {"lanes": 8, "lane_sum": 0}))
    chosen = choose(spec, HOST, operations=(OPERATION,))
    assert chosen.decisions == {f"{OPERATION}.lanes": 8, f"{OPERATION}.lane_sum": 0}
    assert f"(tuned for {near_one.name};" in chosen.note and chosen.origin == "untuned"
    assert choose(spec, HOST, operations=("d_key",)).decisions == {}
    assert choose(spec, HOST, untuned=True).decisions == {}
    # The nearest schedule that fits is taken.
    wrong = schedule_of(KernelSpec.make(8, head_dim=8), OPERATION, {"warps": 3})
    schedules.save_schedule(wrong)
    assert choose(spec, HOST, operations=(OPERATION,)) == chosen
    saved.unlink()
    assert choose(spec, HOST, operations=(OPERATION,)).decisions == {}


def schedule_of(spec: KernelSpec, operation: str, decisions: dict[str, int]) -> schedules.Schedule:
    space = space_for(HOST, operation, spec)
    return schedules.Schedule(
        spec=spec.name,
        target=HOST.name,
        operation=operation,
        space=SpaceVersion(space.name, space.version),
        decisions=decisions,
        measured=schedules.Measurement(
            seconds={KEY: 1e-3}, baseline_seconds={KEY: 2e-3}, score=1e-3, objective="", trials=1
        ),
        environment=schedules.measured_on(environment.collect()),
        created=environment.now(),
    )
