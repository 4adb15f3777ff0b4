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

from natc.compiler.build import build_library
from natc.host.c_compiler import link_library
from natc.host.detect import detect_host_cpu
from natc.operations import FORWARD
from natc.spec import KernelSpec
from natc.store import schedules, workspace
from natc.store.manifest import function_name
from natc.store.records import Trial, read_log
from natc.targets import Target
from natc.tune.events import Event
from natc.tune.measure import worker
from natc.tune.search import builder, engine, measurer
from natc.tune.search.measurer import Measurer
from natc.tune.search.proposer import Proposer

HOST = detect_host_cpu()
SPEC = KernelSpec.parse("na2d_k3_d8_float32")
SHAPE = (1, 8, 8, 1)
GOOD, SLOW = {"lanes": 8}, {"lanes": 1}
_build, _measure = builder.build, worker.measure


def build_nothing(
    spec_name: str, target_name: str, decisions: Mapping[str, int], output: str, operation: str
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
    spec_name: str, target_name: str, library: str, shapes: Any, operation: str
) -> list[float]:
    if (Path(tempfile.gettempdir()) / "die").exists():
        os.abort()
    return _measure(spec_name, target_name, library, shapes)


def measure_or_hang(
    spec_name: str, target_name: str, library: str, shapes: Any, operation: str
) -> list[float]:
    if (Path(tempfile.gettempdir()) / "hang").exists():
        time.sleep(600)
    return _measure(spec_name, target_name, library, shapes)


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
def measuring(scratch: Path, disk_full: Path) -> Iterator[Measurer]:
    """Processes that start once: each imports TVM and torch."""
    compiler = disk_full.with_name("cc")
    compiler.write_text(
        "#!/bin/sh\n"
        f"if [ -e {disk_full} ]; then echo 'ld: the disk is full' >&2; exit 1; fi\n"
        f'exec {shutil.which("cc")} "$@"\n'
    )
    compiler.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NATC_CC", str(compiler))
        with Measurer(SPEC, HOST, [SHAPE]) as measurer:
            yield measurer


def test_a_search_from_end_to_end(scratch: Path, place: Path) -> None:
    events: list[Event] = []
    finished = engine.tune(SPEC, HOST, shapes=[SHAPE], trials=3, on_event=events.append)
    assert (finished.trials, finished.failures) == (3, 0)
    assert events[-1] == finished
    assert 0 < finished.best <= finished.baseline

    saved = schedules.read_schedule(workspace.schedule_path(SPEC, HOST))
    records, problems = read_log(finished.log_path)
    trials = [record for record in records if isinstance(record, Trial)]
    assert problems == [] and saved.measured.trials == len(trials)
    logged = [
        t.seconds["1x8x8x1x8"] for t in trials if t.decisions == saved.decisions and t.seconds
    ]
    assert any(saved.measured.score == pytest.approx(seconds, rel=1e-3) for seconds in logged)
    candidates = Proposer(SPEC, HOST, SHAPE, batch=6, seed=0).candidates
    for trial in trials:
        assert all(value in candidates[name] for name, value in trial.decisions.items())

    notes: list[str] = []
    build_library(SPEC, HOST, place / "lib", families=("forward",), on_note=notes.append)
    assert len(notes) == 1 and "its tuned schedule" in notes[0]


def test_a_candidate_is_built_once_and_measured_when_nothing_is_built(
    measuring: Measurer,
) -> None:
    first_build, two = measuring.build(GOOD), measuring.build(SLOW)
    assert measuring.build(dict(GOOD)) == first_build
    first = measuring.measure(first_build)
    assert two.done.done()
    assert first.error is None and first.seconds is not None and 0 < first.seconds[0] < 1
    assert measuring.measure(two).error is None


def test_a_failure_is_reported_and_the_next_candidate_is_measured(
    measuring: Measurer, disk_full: Path
) -> None:
    disk_full.touch()
    error = measuring.measure(measuring.build({"lanes": 4})).error
    assert error == "linking the library failed: cc ended with 1. ld: the disk is full"
    disk_full.unlink()
    assert measuring.measure(measuring.build({"lanes": 4, "chains": 1})).error is None
    error = measuring.measure(measuring.build({"lanes": 5})).error
    assert error is not None and error.startswith("decision lanes is 5; space")


def test_a_wrong_kernel_is_refused(measuring: Measurer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "build", build_nothing)
    assert measuring.measure(measuring.build(GOOD)).error is None
    # The right results of the one before lie where this one writes nothing.
    outcome = measuring.measure(measuring.build({**GOOD, "maximum": 1}))
    assert outcome.seconds is None and outcome.error is not None
    assert (
        outcome.error.startswith("wrong result: forward: output: ") and "are NaN" in outcome.error
    )


@pytest.mark.parametrize(
    "marker, function, limit, message",
    [
        ("die", measure_or_die, 60, "crashed: the process was ended by SIGABRT"),
        ("hang", measure_or_hang, 4, "took too long to run: it took longer than 4 s"),
    ],
)
def test_a_kernel_that_crashes_or_hangs_costs_only_itself(
    measuring: Measurer,
    monkeypatch: pytest.MonkeyPatch,
    marker: str,
    function: Callable[..., Any],
    limit: float,
    message: str,
) -> None:
    monkeypatch.setattr(worker, "measure", function)
    assert measuring._measure._limit == measurer._MEASURE_LIMIT
    monkeypatch.setattr(measuring._measure, "_limit", limit)
    built = measuring.build(GOOD)
    flag = built.path.parent / marker
    flag.touch()
    assert measuring.measure(built).error == message
    flag.unlink()
    monkeypatch.setattr(measuring._measure, "_limit", measurer._MEASURE_LIMIT)
    assert measuring.measure(built).error is None


def test_leaving_ends_builds_that_run(scratch: Path) -> None:
    start = time.monotonic()
    with Measurer(SPEC, HOST, [SHAPE]) as measuring:
        for lanes in (1, 4, 8):
            for maximum in (0, 1):
                measuring.build({"lanes": lanes, "maximum": maximum})
        time.sleep(0.5)
    assert time.monotonic() - start < 30
