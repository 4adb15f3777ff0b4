from __future__ import annotations

import json
from multiprocessing import get_context
from pathlib import Path

import msgspec
import pytest

from natc.errors import NatcError, RecordError
from natc.host import detect, environment
from natc.spec import KernelSpec
from natc.store.json_object import with_checksum
from natc.store.records import (
    Comparison,
    Environment,
    Record,
    SpaceVersion,
    Trial,
    append,
    dump,
    read_log,
    shape_key,
)

Process = get_context("fork").Process
SPEC = KernelSpec.make(7, rpb=True)
SPACE = SpaceVersion("cpu", 1)


def make_trial(number: int, **changes: object) -> Trial:
    fields: dict[str, object] = {
        "spec": SPEC.name,
        "target": "llvm-x86-64-v3",
        "space": SPACE,
        "decisions": {"tile_h": 4, "unroll": number},
        "seconds": {"1x56x56x2x32": 1.5e-3},
        "error": None,
        "environment": "abc",
        "timestamp": "2026-01-02T03:04:05+00:00",
        "trial": number,
    }
    return Trial(**{**fields, **changes})  # type: ignore[arg-type]


def make_comparison(**changes: object) -> Comparison:
    fields: dict[str, object] = {
        "spec": SPEC.name,
        "target": "llvm-x86-64-v3",
        "space": SPACE,
        "decisions": {"unroll": 1},
        "base": {"unroll": 0},
        "seconds": {"1x56x56x2x32": 1e-3},
        "base_seconds": {"1x56x56x2x32": 1.34e-3},
        "speedup": 1.34,
        "low": 1.31,
        "high": 1.37,
        "pairs": 64,
        "environment": "abc",
        "timestamp": "2026-01-02T03:04:05+00:00",
    }
    return Comparison(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.fixture
def log(tmp_path: Path) -> tuple[Path, list[Record]]:
    path = tmp_path / "logs" / "log.jsonl"
    records: list[Record] = [
        environment.collect(seed=3),
        make_trial(0, features={"lanes": 8.0, "spills": 0.25}, ratio=0.75, samples=16),
        make_trial(1, seconds=None, error="did not compile: ü\nsecond line"),
        make_comparison(),
    ]
    for record in records:
        append(path, record)
    return path, records


def test_appended_records_are_read_back(log: tuple[Path, list[Record]]) -> None:
    path, records = log
    assert read_log(path) == (records, [])
    lines = [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]
    assert [line["type"] for line in lines] == ["environment", "trial", "trial", "comparison"]
    assert {line["schema_version"] for line in lines} == {1}
    assert lines[0]["seed"] == 3
    assert lines[1]["decisions"] == {"tile_h": 4, "unroll": 0}


def test_two_searches_write_one_log_at_once(tmp_path: Path) -> None:
    path, number = tmp_path / "log.jsonl", 20

    def write(first: int) -> None:
        # Lines longer than a page, which the system would write in parts.
        for trial in range(first, first + number):
            append(path, make_trial(trial, seconds=None, error="x" * 5000))

    searches = [Process(target=write, args=(first,)) for first in (0, number)]
    for search in searches:
        search.start()
    for search in searches:
        search.join()
    records, problems = read_log(path)
    trials = [record.trial for record in records if isinstance(record, Trial)]
    assert problems == [] and sorted(trials) == list(range(2 * number))
    # Each search's trials stand in their order, whatever lies between them.
    assert [trial for trial in trials if trial < number] == list(range(number))


def test_logs_that_are_absent_or_cannot_be_read_or_written(tmp_path: Path) -> None:
    assert read_log(tmp_path / "none.jsonl") == ([], [])
    with pytest.raises(RecordError, match="cannot be read"):
        read_log(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(NatcError, match="file"):
        append(tmp_path / "file" / "log.jsonl", make_trial(0))


GOOD = dump(make_trial(5)).encode()


def line(**changes: object) -> bytes:
    """The line of GOOD with other fields, and with their checksum."""
    return json.dumps(with_checksum(json.loads(GOOD) | changes)).encode()


BAD_LINES = {
    "cut short": GOOD[: len(GOOD) // 2],
    "no JSON": b"Segmentation fault",
    "not UTF-8": b'{"type": "trial\xff"}',
    "binary zeros": b"\0" * 100,
    "no version": b'{"type": "trial"}',
    "no object": b"[1, 2]",
    "unknown type": line(type="wish"),
    "missing fields": json.dumps(with_checksum({"type": "trial", "schema_version": 1})).encode(),
    "wrong type": line(decisions={"unroll": "five"}),
    "no time": line(seconds=None),
    "impossible time": line(seconds={"1x56x56x2x32": -1.0}),
    "another decision": GOOD.replace(b'"unroll":5', b'"unroll":4'),
    "no checksum": GOOD.replace(b'"checksum"', b'"checksun"'),
    "too deep": b"[" * 100_000,
    "newer": b'{"type": "trial", "schema_version": 2, "everything": "else"}',
}


@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_bad_line_is_reported_and_kept(log: tuple[Path, list[Record]], kind: str) -> None:
    path, records = log
    assert GOOD not in BAD_LINES.values()
    with path.open("ab") as file:
        file.write(BAD_LINES[kind])
    before = path.read_bytes()
    append(path, make_trial(9))
    read, problems = read_log(path)
    assert read == [*records, make_trial(9)]
    assert [(problem.path, problem.line) for problem in problems] == [(path, 5)]
    assert str(problems[0]).startswith(f"{path}:5: ")
    newer = "schema version 2, written by a newer natc"
    assert (newer if kind == "newer" else "damaged") in problems[0].message
    assert "skipped" in problems[0].message
    assert path.read_bytes().startswith(before)


def test_fields_that_are_not_known_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(line(added_later=1) + b"\n\n")
    assert read_log(path) == ([make_trial(5)], [])


@pytest.mark.parametrize(
    "changes",
    [
        {"seconds": None},
        {"error": "both"},
        {"seconds": {}},
        {"seconds": {"1x1x1x1x1": float("inf")}},
        {"seconds": {"1x1x1x1x1": float("nan")}},
        {"seconds": {"1x1x1x1x1": 0.0}},
        {"features": {"lanes": float("nan")}},
        {"ratio": 0.0},
        {"ratio": float("inf")},
    ],
)
def test_a_trial_needs_times_or_an_error(changes: dict[str, object]) -> None:
    with pytest.raises(RecordError):
        make_trial(0, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"low": 1.35},
        {"high": 1.3},
        {"low": 0.0},
        {"high": float("inf")},
        {"speedup": float("nan")},
        {"seconds": {}},
        {"base_seconds": {"1x56x56x2x32": 0.0}},
    ],
)
def test_a_comparison_has_a_speedup_between_its_bounds(changes: dict[str, object]) -> None:
    with pytest.raises(RecordError):
        make_comparison(**changes)


def test_a_comparison_is_faster_only_beyond_the_noise() -> None:
    assert make_comparison().faster
    assert make_comparison(low=1.006).faster
    assert not make_comparison(low=0.99).faster and not make_comparison(low=1.004).faster


def test_shapes_as_text() -> None:
    assert shape_key((1, 56, 56, 2, 32)) == "1x56x56x2x32"


def test_the_environment_says_where_it_was() -> None:
    first, second = environment.collect(seed=1), environment.collect(seed=1)
    assert isinstance(first, Environment)
    assert first.id != second.id
    assert first.cores >= 1
    assert first.cpu
    assert first.versions["natc"] and first.versions["python"]
    assert first.timestamp.endswith("+00:00")


def test_environment_of_an_unknown_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "run", lambda *command: None)
    monkeypatch.setattr(environment, "version_of", lambda distribution: None)
    monkeypatch.setattr("pathlib.Path.read_text", _unreadable)
    monkeypatch.setattr("platform.machine", lambda: "pdp11")
    monkeypatch.setattr("platform.processor", lambda: "")
    detect.detect_host_cpu.cache_clear()
    facts = environment.collect()
    detect.detect_host_cpu.cache_clear()
    assert (facts.cpu, facts.target, facts.git) == ("pdp11", None, None)
    assert facts.versions["tvm"] is None


def _unreadable(*_: object, **__: object) -> str:
    raise OSError("no such file")


@pytest.mark.parametrize(
    ("tvm", "ffi", "crashes"),
    [
        ("0.27.0.post1", "0.1.14.post1", False),
        ("0.27.0.post1", "0.1.15.post2", True),
        ("0.26.0", "0.1.15", True),
        ("0.28.0", "0.1.15", False),
        ("0.27.0.post1", None, False),
        (None, "0.1.15", False),
    ],
)
def test_versions_that_crash_together_are_known(
    monkeypatch: pytest.MonkeyPatch, tvm: str | None, ffi: str | None, crashes: bool
) -> None:
    versions = {"apache-tvm": tvm, "apache-tvm-ffi": ffi}
    monkeypatch.setattr(environment, "version_of", versions.get)
    problem = environment.compiler_problem()
    assert (problem is not None) == crashes
    if problem:
        assert "<0.1.15" in problem
