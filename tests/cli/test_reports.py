"""`natc list`, `natc doctor` and `natc bench` on machines with much, little and damage."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace
from support.command_line import Natc
from support.written_files import (
    SPEC,
    TARGET,
    make_schedule,
    write_library,
    write_schedule_and_log,
)

from natc.checks import support
from natc.checks.support import Cell
from natc.host import environment, gpu
from natc.store import schedules
from natc.store.schedules import Gain

pytestmark = pytest.mark.quick


def test_a_new_machine_has_nothing(natc: Natc) -> None:
    assert natc.json("list") == {"schedules": [], "libraries": [], "logs": []}
    assert natc("list").out.splitlines() == ["no schedules", "no libraries", "no logs"]
    machine = natc.json("doctor")
    assert machine["problems"] == []
    assert machine["machine"]["gpus"] == []
    assert "no problems found" in natc("doctor").out


@pytest.fixture(autouse=True)
def no_default(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the specs whose schedules are the default, as the compiler would say it."""
    defaults: list[str] = []
    module: Any = ModuleType("natc.tune.search.recheck")
    module.is_default = lambda schedule: schedule.spec in defaults
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return defaults


def test_gains_are_shown_as_they_were_proven(
    natc: Natc, no_default: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = replace(make_schedule().measured, gain=None)
    schedules.save_schedule(make_schedule(measured=measured))
    (row,) = natc.json("list")["schedules"]
    assert (row["default"], row["gain"], row["speedup"]) == (False, None, pytest.approx(2.0))
    assert "2.00x (not proven)" in natc("list").out
    no_default.append(SPEC.name)
    (row,) = natc.json("list")["schedules"]
    assert (row["default"], row["speedup"]) == (True, None)
    out = natc("list").out
    assert "default" in out and "2.00x" not in out
    # Without the compiler nobody can tell.
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert natc.json("list")["schedules"][0]["default"] is None
    gain = Gain(speedup=1.21, low=1.15, high=1.27, pairs=64)
    measured = replace(measured, gain=gain)
    schedules.save_schedule(make_schedule(measured=measured))
    (row,) = natc.json("list")["schedules"]
    assert row["default"] is False and row["gain"] == {
        "speedup": 1.21, "low": 1.15, "high": 1.27, "pairs": 64,
    }  # fmt: skip
    assert "1.21x (1.15..1.27)" in natc("list").out


def test_schedules_and_libraries_are_listed(natc: Natc) -> None:
    schedule, log = write_schedule_and_log()
    library, _ = write_library()
    listing = natc.json("list")
    (row,) = listing["schedules"]
    assert (row["spec"], row["target"], row["path"]) == (SPEC.name, TARGET.name, str(schedule))
    assert row["speedup"] == pytest.approx(2.0)  # of 4 and 1
    (row,) = listing["logs"]
    assert (row["path"], row["sessions"], row["trials"], row["failures"]) == (str(log), 1, 2, 1)
    (row,) = listing["libraries"]
    assert (row["spec"], row["path"]) == (SPEC.name, str(library))
    assert row["from"] == "cache"
    assert row["operations"] == ["forward"]
    text = natc("list").out
    assert f"libraries in {library.parent} (cache)" in text and library.name in text
    assert f"schedules in {schedule.parent.parent}" in text and "2.00x" in text


def test_damage_hides_no_other_file(natc: Natc) -> None:
    schedule, log = write_schedule_and_log()
    library, manifest_path = write_library()
    unreadable = manifest_path.with_name("na2d_k5_d32_float32.llvm-aarch64.json")
    unreadable.write_text('{"schema_version": 99}')
    with log.open("a") as file:
        file.write('{"type": "trial", "schema')
    newer = schedule.with_name("na2d_k5_d32_float32.json")
    newer.write_text('{"schema_version": 99}')
    before = {path: path.read_bytes() for path in (log, schedule, newer, unreadable, library)}

    code, out, err = natc("list")
    assert code == 0
    assert SPEC.name in out and "2.00x" in out
    assert f"problem: {log}:4: damaged record was skipped" in err
    assert f"problem: schedule {newer} has schema version 99" in err
    assert str(unreadable) in err

    report = natc.json("doctor", code=1)
    assert len(report["problems"]) == 3
    assert report["libraries"] == [
        {
            "path": str(library),
            "from": "cache",
            "spec": SPEC.name,
            "operations": ["forward"],
            "ok": True,
        }
    ]
    assert {path: path.read_bytes() for path in before} == before


def test_a_library_that_was_changed_is_found_by_the_doctor(natc: Natc) -> None:
    library, _ = write_library()
    library.write_bytes(b"other code")
    code, out, _ = natc("doctor")
    assert code == 1
    assert f"{library}: DAMAGED" in out
    assert "is not the file that its manifest vouches for" in out and "natc build" in out


def test_a_library_without_its_file_is_listed_as_missing(natc: Natc) -> None:
    library, _ = write_library()
    library.unlink()
    assert f"problem: {library} is missing" in natc("list").err


def test_unwritable_directories(natc: Natc, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "file").touch()
    monkeypatch.setenv("NATC_WORKSPACE", str(place / "file"))
    monkeypatch.setenv("NATC_CACHE_DIR", str(place / "file" / "cache"))
    report = natc.json("doctor", code=1)
    assert any("workspace" in text and str(place / "file") in text for text in report["problems"])
    assert any("cache" in text and "not writable" in text for text in report["problems"])


def test_a_missing_compiler_is_named(natc: Natc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATC_CC", "no-such-compiler -O2")
    report = natc.json("doctor", code=1)
    assert any("no-such-compiler" in text for text in report["problems"])
    assert report["environment"]["NATC_CC"] == "no-such-compiler -O2"


def test_crashing_versions_are_a_problem(natc: Natc, monkeypatch: pytest.MonkeyPatch) -> None:
    real = environment.version_of
    wrong = {"apache-tvm": "0.27.0", "apache-tvm-ffi": "0.1.15.post1"}
    monkeypatch.setattr(environment, "version_of", lambda name: wrong.get(name) or real(name))
    report = natc.json("doctor", code=1)
    assert any("apache-tvm-ffi 0.1.15.post1" in text for text in report["problems"])


def test_coverage_has_a_line_for_each_feature(natc: Natc, monkeypatch: pytest.MonkeyPatch) -> None:
    library, _ = write_library()
    places = [(rank, target) for rank in (1, 2, 3) for target in ("llvm", "cuda")]
    alike = [Cell(name, *place, "composition", ()) for name in support.ROWS for place in places]
    monkeypatch.setattr(support, "table", lambda: alike)
    lines = natc("doctor", "--coverage").out.splitlines()
    assert max(len(line) for line in lines if str(library) not in line) <= 100
    for name in support.ROWS:
        assert [*name.split(), "composition", "composition", "-", "-"] in map(str.split, lines)
    assert "for llvm: 1 library" in lines and f"  {library}: forward" in lines
    assert "for cuda: none" in lines

    mixed = [
        Cell("dance", rank, target, "reference" if rank == 3 else "kernel", (), target == "llvm")
        for rank, target in places
    ]
    monkeypatch.setattr(support, "table", lambda: mixed)
    dance = ["1-D", "kernel,", "2-D", "kernel,", "3-D", "reference"]
    lines = natc("doctor", "--coverage").out.splitlines()
    assert ["dance", *dance, *dance, "1-D", "2-D", "3-D", "-"] in [line.split() for line in lines]
    document = natc.json("doctor", "--coverage")
    assert msgspec.convert(document["coverage"], list[Cell]) == mixed
    row = {"path": str(library), "spec": SPEC.name, "operations": ["forward"]}
    assert document["libraries"] == {"llvm": [row], "cuda": []}


def test_bench_names_the_missing_kernel(natc: Natc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("natc.cli.verbs.bench._CEILING_SECONDS", 0.01)
    words = ["bench", "--kernel", "3", "--head-dim", "8", "--shape", "1x6x5x2"]
    # FlexAttention would be compiled for minutes on a slow machine.
    words += ["--seconds", "0.01", "--peers", "reference,sdpa"]
    report = natc.json(*words, code=1)
    rows = {row["contestant"]: row for row in report["rows"]}
    assert rows["natc kernel"]["problem"]["spec"] == "na2d_k3_d8_float32_rpb"
    assert rows["natc kernel"]["median_seconds"] is None
    assert "natc build --kernel 3 --head-dim 8 --target llvm" in rows["natc kernel"]["note"]
    for name in ("reference", "torch SDPA"):
        assert rows[name]["median_seconds"] > 0
        assert rows[name]["max_error"] < 1e-5
    text = natc(*words).out
    assert "1x6x5x2x8" in text and "natc build --kernel 3" in text


@pytest.mark.parametrize("seen", [False, True])
def test_a_gpu_unseen_by_torch(natc: Natc, monkeypatch: pytest.MonkeyPatch, seen: bool) -> None:
    import torch

    card = gpu.Gpu("Card", (9, 0), 1 << 30)
    monkeypatch.setattr(gpu, "driver", lambda: gpu.Driver("12.8", (card,)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: seen)
    report = natc.json("doctor", code=0 if seen else 1)
    assert report["machine"]["gpus"] == ["Card, compute capability 9.0"]
    problems = [text for text in report["problems"] if "does not see" in text]
    assert len(problems) == (not seen)
    assert seen or ("(Card, compute" in problems[0] and "12.8 or older" in problems[0])
