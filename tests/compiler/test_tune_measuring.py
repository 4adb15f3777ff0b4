"""Searches that build and measure: what becomes of candidates that fail, and of processes."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from natc.host.c_compiler import link_library
from natc.host.detect import detect_host_cpu
from natc.operations import FORWARD
from natc.spec import KernelSpec
from natc.store import schedules, workspace
from natc.store.manifest import function_name
from natc.store.records import Comparison, Trial, read_log
from natc.targets import Target
from natc.tune.events import Event
from natc.tune.measure import measurer, worker
from natc.tune.measure.measurer import Times
from natc.tune.measure.processes import JobError, why
from natc.tune.search import builder, engine
from natc.tune.search.measurer import LocalMeasurer
from natc.tune.search.model import Model

HOST = detect_host_cpu()
SPEC = KernelSpec.parse("na2d_k3_d8_float32")
SHAPE = (1, 8, 8, 1)
GOOD, SLOW = {"lanes": 8}, {"lanes": 1}
_build, _measure = builder.build, worker.measure


def build_nothing(
    spec_name: str, target_name: str, decisions: Mapping[str, int], output: str, *_: object
) -> builder.BuiltCandidate:
    """Make a library whose kernel writes nothing, or a right one for the untuned decisions."""
    if not decisions.get("maximum"):
        return _build(spec_name, target_name, decisions, output)
    directory = Path(output).parent
    source = directory / f"{Path(output).stem}.c"
    spec, target = KernelSpec.parse(spec_name), Target.parse(target_name)
    name = f"__tvm_ffi_{function_name(spec, FORWARD, target)}"
    source.write_text(
        f"int {name}(void *a, const void *b, int n, void *r) {{ return 0; }}\n"
        "void *__tvm_ffi__library_ctx;\n"
    )
    link_library(Path(output), [source], exported=[name], directory=directory)
    return builder.BuiltCandidate(None, {})


def measure_or_die(
    spec: str, target: str, libraries: list[str], shapes: Any, operation: str, rounds: int
) -> Times:
    if (Path(libraries[0]).parent / "die").exists():
        os.abort()
    return _measure(spec, target, libraries, shapes, operation, rounds)


def measure_or_hang(
    spec: str, target: str, libraries: list[str], shapes: Any, operation: str, rounds: int
) -> Times:
    if (Path(libraries[0]).parent / "hang").exists():
        time.sleep(600)
    return _measure(spec, target, libraries, shapes, operation, rounds)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where temporary directories are made; none is left after the tests."""
    directory = tmp_path_factory.mktemp("scratch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(directory))
        yield directory
    assert list(directory.iterdir()) == []


@pytest.fixture(scope="module")
def disk_full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiler of `measuring` fails as long as this file exists."""
    return tmp_path_factory.mktemp("compiler") / "full"


@pytest.fixture(scope="module")
def measuring(scratch: Path, disk_full: Path) -> Iterator[LocalMeasurer]:
    """Processes that start once: each imports TVM or torch."""
    compiler = disk_full.with_name("cc")
    compiler.write_text(
        "#!/bin/sh\n"
        f"if [ -e {disk_full} ]; then echo 'ld: the disk is full' >&2; exit 1; fi\n"
        f'exec {shutil.which("cc")} "$@"\n'
    )
    compiler.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NATC_CC", str(compiler))
        with LocalMeasurer(SPEC, HOST, [SHAPE]) as measurer:
            yield measurer


def test_a_search_from_end_to_end(scratch: Path, place: Path) -> None:
    events: list[Event] = []
    finished = engine.tune(SPEC, HOST, shapes=[SHAPE], trials=3, on_event=events.append)
    assert (finished.trials, finished.failures) == (3, 0)
    assert events[-1] == finished and finished.baseline > 0

    records, problems = read_log(finished.log_path)
    trials = [record for record in records if isinstance(record, Trial)]
    assert problems == [] and len(trials) == 4
    candidates = Model(SPEC, HOST, "forward", batch=6, seed=0)
    for trial in trials:
        assert candidates.candidate(trial.decisions) == trial.decisions
        assert trial.features and trial.ratio
    # Noise decides whether a candidate is faster; the schedule must follow from the log.
    path = workspace.schedule_path(SPEC, HOST)
    assert path.exists() == (finished.outcome == "saved")
    if finished.outcome == "saved":
        saved = schedules.read_schedule(path)
        proofs = [r for r in records if isinstance(r, Comparison) and r.faster]
        assert saved.decisions in [proof.decisions for proof in proofs]
        assert saved.measured.gain is not None and saved.measured.gain.low > 1


def test_libraries_are_timed_in_alternation(measuring: LocalMeasurer) -> None:
    libraries = [measuring.build(decisions).result() for decisions in (GOOD, SLOW, GOOD)]
    assert libraries[0] == libraries[2] != libraries[1]
    times = measuring.measure(libraries, 5)
    assert [len(round_) for round_ in times] == [3] * 5
    assert all(0 < seconds < 1 for round_ in times for (seconds,) in round_)


def test_a_failure_is_reported_and_the_next_candidate_is_measured(
    measuring: LocalMeasurer, disk_full: Path
) -> None:
    disk_full.touch()
    with pytest.raises(JobError) as raised:
        measuring.build({"lanes": 4}).result()
    assert why(raised.value, "to build") == (
        "linking the library failed: cc ended with 1. ld: the disk is full"
    )
    disk_full.unlink()
    library = measuring.build({"lanes": 4, "chains": 1}).result()
    assert measuring.measure([library], 1)
    with pytest.raises(JobError, match="^decision lanes is 5; space"):
        measuring.build({"lanes": 5}).result()


def test_a_wrong_kernel_is_refused(
    measuring: LocalMeasurer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder, "build", build_nothing)
    right = measuring.build(GOOD).result()
    assert measuring.measure([right], 1)
    # The right results of the one before lie where this one writes nothing.
    wrong = measuring.build({**GOOD, "maximum": 1}).result()
    with pytest.raises(JobError, match="^wrong result: forward: output: .*are NaN"):
        measuring.measure([right, wrong], 1)
    assert measuring.measure([right], 1)


@pytest.mark.parametrize(
    "marker, function, limit, message",
    [
        ("die", measure_or_die, 60, "crashed: the process was ended by SIGABRT"),
        ("hang", measure_or_hang, 4, "took too long to run: it took longer than 4 s"),
    ],
)
def test_a_kernel_that_crashes_or_hangs_costs_only_itself(
    measuring: LocalMeasurer,
    monkeypatch: pytest.MonkeyPatch,
    marker: str,
    function: Callable[..., Any],
    limit: float,
    message: str,
) -> None:
    library = measuring.build(GOOD).result()
    flag = library.path.parent / marker
    with monkeypatch.context() as patch:
        patch.setattr(worker, "measure", function)
        measuring.measure([library], 1)  # torch is loaded
        patch.setattr(measurer, "_MEASURE_LIMIT", limit)
        flag.touch()
        with pytest.raises((ChildProcessError, TimeoutError)) as raised:
            measuring.measure([library], 1)
        assert why(raised.value, "to run") == message
        flag.unlink()
    assert measuring.measure([library], 1)


def test_leaving_ends_builds_that_run(scratch: Path) -> None:
    start = time.monotonic()
    with LocalMeasurer(SPEC, HOST, [SHAPE]) as measuring:
        for lanes in (1, 4, 8):
            for maximum in (0, 1):
                measuring.build({"lanes": lanes, "maximum": maximum})
        time.sleep(0.5)
    assert time.monotonic() - start < 30
