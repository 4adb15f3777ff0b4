"""The benchmarks of attention and of networks, at small sizes on this CPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from support.benchmark_script import ROOT, benchmark
from support.built_kernels import build_part

from natc.spec import KernelSpec

CPU = ("--device", "cpu")
PEERS = ("natten", "sdpa", "sdpa-masked", "reference")


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("lib")
    # A library for the first problem's forward, and none for the rest.
    build_part(KernelSpec.make(3, head_dim=8), ["forward"], directory)
    words = ("--suite", "small", "--samples", "3", "--peers", ",".join(PEERS), "--json")
    done = benchmark(
        "attention.py", *CPU, *words, "--output", str(directory / "x.json"), libraries=directory
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert json.loads((directory / "x.json").read_text()) == found
    return dict(found)


def test_every_contestant_has_a_row_with_its_error_and_floor(document: dict[str, Any]) -> None:
    assert document["schema_version"] == 1 and document["copy_bytes_per_second"] > 1e8
    rows = document["rows"]
    named = [(row["contestant"], row["pass"], row["rpb"]) for row in rows]
    assert len(named) == len(set(named)) == 2 * 2 * (1 + len(PEERS))
    for row in rows:
        tokens = row["batch"] * row["height"] * row["width"] * row["heads"] * row["head_dim"]
        tensors, bias = (4, 1) if row["pass"] == "forward" else (12, 3)
        least = 4 * tokens * tensors + (4 * bias * row["heads"] * 25 if row["rpb"] else 0)
        assert row["floor_us"] == pytest.approx(1e6 * least / document["copy_bytes_per_second"])
        assert row["device"] is None
        # Either it was compared and timed, or the row says why not.
        if row["call"] is None:
            assert row["note"] and row["error"] is None
            continue
        assert 0 < row["error"] < 1e-5
        low, high = row["call"]["quartiles_us"]
        assert 0 < low <= row["call"]["median_us"] <= high and row["call"]["samples"] == 3


def test_who_was_timed(document: dict[str, Any]) -> None:
    timed = {
        (row["contestant"], row["pass"], row["rpb"]) for row in document["rows"] if row["call"]
    }
    both = ("forward", "forward_backward")
    assert timed == {
        ("natc", "forward", False),
        *(("sdpa", pass_, False) for pass_ in both),
        *(("sdpa-masked", pass_, False) for pass_ in both),
        ("sdpa-masked", "forward", True),
        *(("reference", pass_, rpb) for pass_ in both for rpb in (False, True)),
    }
    notes = {(row["contestant"], row["pass"], row["rpb"]): row["note"] for row in document["rows"]}
    assert "natc build --kernel 3" in notes["natc", "forward", True]
    assert "is not installed" in notes["natten", "forward", False]
    assert "no bias" in notes["sdpa", "forward", True]
    host = {(row["contestant"], row["gradient"]): row for row in document["host"]}
    assert host["natc", False]["median_us"] > 0 and "natc build" in host["natc", True]["note"]


@pytest.mark.parametrize(
    "script, words, said",
    [
        ("attention.py", ("--peers", "natten,rival"), "--peers has 'rival'; allowed are natten"),
        ("models.py", ("--models", "nat_huge"), "--models has 'nat_huge'; allowed are nat_mini"),
    ],
    ids=["attention", "models"],
)
def test_wrong_words_are_named(
    tmp_path: Path, script: str, words: tuple[str, ...], said: str
) -> None:
    done = benchmark(script, *CPU, *words, libraries=tmp_path)
    assert (done.returncode, done.stdout) == (2, "") and said in done.stderr


def test_networks_say_what_they_lack(tmp_path: Path) -> None:
    words = ("--models", "nat_mini", "--modes", "eager", "--size", "32", "--samples", "2")
    done = benchmark("models.py", *CPU, *words, "--no-peers", "--json", libraries=tmp_path)
    assert done.returncode == 1 and "no NAT was timed" in done.stderr
    assert "Traceback" not in done.stderr
    (row,) = json.loads(done.stdout)["rows"]
    assert row["network"] == "nat_mini" and row["images_per_second"] is None
    assert "natc build --kernel 7" in row["note"]


def test_networks_are_timed_and_profiled(tmp_path: Path) -> None:
    build_part(KernelSpec.make(7, rpb=True), ["forward"], tmp_path)
    words = ("--models", "nat_mini", "--modes", "eager", "--size", "64", "--samples", "2")
    done = benchmark(
        "models.py", *CPU, *words, "--no-peers", "--profile", "--json", libraries=tmp_path
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    (row,) = document["rows"]
    assert row["images_per_second"] == pytest.approx(1e6 / row["time"]["median_us"])
    parts = document["profiles"]["nat_mini"]
    assert {"attention", "linear", "convolution", "normalization"} <= set(parts)
    assert sum(parts.values()) == pytest.approx(1.0) and min(parts.values()) >= 0


@pytest.mark.parametrize("suite", ["small", "curve"])
def test_plots_are_drawn_from_results(
    document: dict[str, Any], tmp_path: Path, suite: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import plot

    monkeypatch.delitem(sys.modules, "plot")
    drawn = {**document, "suite": suite}
    for name in ("one.svg", "two.svg", "one.png"):
        plot.draw(drawn, tmp_path / name)
    text = (tmp_path / "one.svg").read_text()
    assert text == (tmp_path / "two.svg").read_text() and "</svg>" in text
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
    rows = [row for row in document["rows"] if row["pass"] == "forward" and row["call"]]
    found = plot.ratios(rows)
    assert set(found) == {"natc", "sdpa", "sdpa-masked", "reference"}
    (one,) = [row for row in rows if row["contestant"] == "natc"]
    assert list(found["natc"].values()) == [
        pytest.approx(one["call"]["median_us"] / one["floor_us"])
    ]
