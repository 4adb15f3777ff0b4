"""The benchmarks of attention and of networks, at small sizes on this CPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import msgspec
import pytest
from support.benchmark_script import ROOT, benchmark
from support.built_kernels import build_part

from natc.bench import plots
from natc.bench.results import Results, Row
from natc.spec import KernelSpec

CPU = ("--device", "cpu")
PEERS = ("natten", "sdpa", "sdpa-masked", "reference")


def run_small(directory: Path, *words: str) -> Results:
    """Run the small suite with the libraries of a directory."""
    file = directory / "x.json"
    words = ("--suite", "small", "--seconds", "0.01", "--peers", ",".join(PEERS), *words)
    done = benchmark(
        "attention.py", *CPU, *words, "--json", "--output", str(file), libraries=directory
    )
    assert done.returncode == 0, done.stderr
    document = msgspec.json.decode(done.stdout, type=Results)
    assert msgspec.json.decode(file.read_bytes(), type=Results) == document
    return document


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> list[Results]:
    """Return the results of the forward, and of forward and backward together."""
    directory = tmp_path_factory.mktemp("lib")
    # A library for the first problem's forward, and none for the second problem or gradients.
    build_part(KernelSpec.make(3, head_dim=8), ["forward"], directory)
    forward = run_small(directory)
    build_part(
        KernelSpec.make(3, head_dim=8, rpb=True),
        ["forward", "forward_lse", "delta", "d_query", "d_key", "d_value", "d_rpb"],
        directory,
    )
    return [forward, run_small(directory, "--backward")]


def test_every_contestant_has_a_row(documents: list[Results]) -> None:
    for document in documents:
        assert document.ceilings is not None and document.command is not None
        assert len(document.problems) == 2
        for problem in document.problems:
            rows = document.of(problem)
            assert list(rows) == ["natc", *PEERS]
            for row in rows.values():
                # Either it was compared and timed, or the row says why not.
                if row.median_seconds is None:
                    assert row.note and row.max_error is None
                    continue
                assert row.max_error is not None and 0 < row.max_error < 1e-5
                assert row.floor_seconds and row.share_of_peak


def timed(document: Results) -> list[list[str]]:
    """Return who was timed, for each problem."""
    rows = map(document.of, document.problems)
    return [[name for name, row in each.items() if row.median_seconds] for each in rows]


def test_who_was_timed(documents: list[Results]) -> None:
    forward, backward = documents
    assert timed(forward) == [
        ["natc", "sdpa", "sdpa-masked", "reference"],
        ["sdpa-masked", "reference"],
    ]
    assert timed(backward) == [["sdpa", "sdpa-masked", "reference"], ["natc", "reference"]]
    plain, biased = (
        {name: row.note for name, row in forward.of(p).items()} for p in forward.problems
    )
    assert "natc build --kernel 3" in biased["natc"] and "no bias" in biased["sdpa"]
    assert "is not installed" in plain["natten"]
    assert "gradient" in backward.of(backward.problems[1])["sdpa-masked"].note


def test_a_document_can_be_drawn(documents: list[Results]) -> None:
    pytest.importorskip("matplotlib")
    assert plots.draw(documents[1], "png").startswith(b"\x89PNG")


@pytest.fixture
def attention(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setenv("NATC_JIT", "off")
    import attention

    monkeypatch.delitem(sys.modules, "attention")
    return attention


def test_every_suite_has_problems_that_kernels_take(attention: ModuleType) -> None:
    for suite in attention.SUITES.values():
        for problem in suite("float16"):
            spec = problem.kernel
            spatial = problem.shape[1:-2]
            assert all(k <= s for k, s in zip(spec.kernel_size, spatial, strict=True))
    assert {problem.kernel.rank for problem in attention.cpu("float32")} == {1, 2, 3}


def test_full_attention_is_compared_with_its_own_result(attention: ModuleType) -> None:
    from natc.bench.times import time_problems

    for problem in (
        attention.two_d(2, 9, 4, 8, 3, "float32", heads_kv=2, backward=b) for b in (False, True)
    ):
        (row,) = time_problems([problem], {"sdpa": attention.full_sdpa}, seconds=0)
        assert isinstance(row, Row) and row.max_error is not None and row.max_error < 1e-5
        assert row.median_seconds


@pytest.mark.parametrize(
    "script, words, part",
    [
        ("attention.py", ("--peers", "natten,rival"), "--peers has 'rival'; allowed are natten"),
        ("models.py", ("--models", "nat_huge"), "--models has 'nat_huge'; allowed are nat_mini"),
        ("models.py", ("--batch", "0"), "--batch is 0; it must be 1 or more"),
    ],
    ids=["attention", "models", "batch"],
)
def test_bad_options_are_named(
    tmp_path: Path, script: str, words: tuple[str, ...], part: str
) -> None:
    done = benchmark(script, *CPU, *words, libraries=tmp_path)
    assert (done.returncode, done.stdout) == (2, "") and part in done.stderr


def test_networks_say_what_they_lack(tmp_path: Path) -> None:
    words = ("--models", "nat_mini", "--modes", "eager", "--size", "32", "--seconds", "0.01")
    done = benchmark("models.py", *CPU, *words, "--no-peers", "--json", libraries=tmp_path)
    assert done.returncode == 1 and "no NAT was timed" in done.stderr
    assert "Traceback" not in done.stderr
    (row,) = json.loads(done.stdout)["rows"]
    assert row["network"] == "nat_mini" and row["images_per_second"] is None
    assert "natc build --kernel 7" in row["note"]


def test_networks_are_timed_and_profiled(tmp_path: Path) -> None:
    build_part(KernelSpec.make(7, rpb=True), ["forward"], tmp_path)
    words = ("--models", "nat_mini", "--modes", "eager", "--size", "64", "--seconds", "0.01")
    done = benchmark(
        "models.py", *CPU, *words, "--no-peers", "--profile", "--json", libraries=tmp_path
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    (row,) = document["rows"]
    assert row["images_per_second"] == pytest.approx(1 / row["quartile_seconds"][1])
    parts = document["profiles"]["nat_mini"]
    assert {"attention", "linear", "convolution", "normalization"} <= set(parts)
    assert sum(parts.values()) == pytest.approx(1.0) and min(parts.values()) >= 0


def test_networks_are_compared_round_by_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import models

    monkeypatch.delitem(sys.modules, "models")
    # The machine is twice as slow in every other round, for both.
    peer = [1.0, 2.0] * 20
    assert models.ratios([0.9 * seconds for seconds in peer], peer) == pytest.approx((0.9,) * 3)
