"""Shares of the peak: arithmetic of a row, calls that are not timed, document and plot."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from support.written_files import facts

from natc import functional, reference
from natc.bench import clocks, peers, share_plots, share_times, shares
from natc.bench.peak import Probe
from natc.bench.peers import from_function
from natc.bench.problem import BenchProblem, Case, Work
from natc.bench.shares import ShareRow, Shares
from natc.bench.times import Prepared, Unavailable
from natc.errors import ArgumentError, NatcError
from natc.spec import KernelSpec
from natc.targets import Target

pytestmark = [
    pytest.mark.quick,
    pytest.mark.filterwarnings("ignore::natc.ops.NatcFallbackWarning"),
]

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
# Every query attends to 9 keys: 225 pairs, of 2 * 8 channels.
PROBLEM = BenchProblem.make(KernelSpec.make(3, head_dim=8), (1, 5, 5, 1))
TARGET = Target("llvm", "x86-64-v3")
PROBE = Probe(lambda threads: 1e9 * threads, lambda threads: 1e9, "by hand", False)
MACHINE = share_times.Machine(TARGET, (1, 2), PROBE, {1: 1e12, 2: 1e12})


@pytest.fixture(autouse=True)
def natc_for_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the reference stand for a kernel that was compiled for TARGET."""

    def prepared(case: Case) -> Prepared:
        ready = from_function(functional.neighborhood_attention)(case)
        return Prepared(**{**vars(ready), "note": TARGET.name})

    monkeypatch.setattr(peers, "natc_kernels", prepared)


@pytest.fixture
def samples(monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[Any, list[float]]], None]:
    """Let each sampler of a name return numbers; check that it runs."""

    def install(numbers: Mapping[Any, list[float]]) -> None:
        def in_turn(samplers: Mapping[Any, Callable[[], float]], seconds: float) -> Any:
            assert all(sampler() > 0 for sampler in samplers.values())
            return {name: numbers[name] for name in samplers}

        monkeypatch.setattr(clocks, "in_turn", in_turn)

    return install


def timed(calls: Mapping[str, list[str]], **contestants: Any) -> list[ShareRow]:
    return share_times.time_problem(PROBLEM, calls, MACHINE, seconds=0.0, contestants=contestants)


def test_a_share_is_of_the_peak_in_the_same_turns(samples: Callable[..., None]) -> None:
    samples(
        {
            # The upper quartile of the rates; others were disturbed.
            ("", 1): [1e9, 2e9, 2e9, 2e9, 1e9],
            ("", 2): [4e9] * 5,
            ("forward", 1): [8e-5, 4e-5, 4e-5, 9e-5, 4e-5],
            ("forward", 2): [4e-5, 2e-5, 2e-5, 4.5e-5, 2e-5],
            ("gradients", 1): [1e-4] * 5,
            ("gradients", 2): [1e-4] * 5,
            ("peer", 1): [16e-5, 8e-5, 8e-5, 18e-5, 8e-5],
            ("peer", 2): [2e-5] * 5,
        }
    )
    before = torch.get_num_threads()
    rows = timed(
        {"forward": ["a", "b"], "gradients": ["b"], "peer": ["c"]},
        peer=from_function(reference.neighborhood_attention),
    )
    assert torch.get_num_threads() == before
    by_call = {(row.call, row.threads): row for row in rows}
    single, double = by_call["forward", 1], by_call["forward", 2]
    assert single.work == Work(7200, 3200) and single.peak == 2e9 and single.samples == 5
    assert single.quartile_seconds is not None and single.quartile_seconds[:2] == (4e-5, 4e-5)
    assert single.share_of_peak == pytest.approx(7200 / 4e-5 / 2e9)
    assert single.floor_seconds == pytest.approx(7200 / 2e9)
    assert single.sections == ["a", "b"] and single.ratio is None and single.speedup is None
    assert double.share_of_peak == pytest.approx(7200 / 2e-5 / 4e9)
    # In each turn: a slow turn slows both.
    assert double.speedup == pytest.approx((2.0, 2.0, 2.0))
    gradients = by_call["gradients", 1]
    assert gradients.work == Work(18000, 6400)
    assert gradients.share_of_peak == pytest.approx(18000 / 1e-4 / 2e9)
    assert by_call["peer", 1].ratio == pytest.approx((2.0, 2.0, 2.0))
    assert all(row.max_error is not None and row.max_error < 1e-5 for row in rows)


def test_copies_make_the_floor_where_there_is_little_to_compute() -> None:
    row = ShareRow(
        sections=["a"], problem=PROBLEM, call="forward", threads=1, peak=1e12,
        quartile_seconds=(1e-3, 2e-3, 3e-3),
    )  # fmt: skip
    assert shares.complete(row, 1e6).floor_seconds == pytest.approx(3200 / 1e6)


def test_what_cannot_be_timed_says_why(samples: Callable[..., None]) -> None:
    numbers = {("", threads): [1e9] * 5 for threads in (1, 2)}
    samples(numbers | {("forward", threads): [1e-4] * 5 for threads in (1, 2)})

    def absent(case: Case) -> Prepared:
        raise Unavailable("is not installed")

    def broken(case: Case) -> Prepared:
        raise RuntimeError("bad shape")

    def wrong(*arguments: Any, **options: Any) -> torch.Tensor:
        return -functional.neighborhood_attention(*arguments, **options)

    peers_of = {"absent": absent, "broken": broken, "wrong": from_function(wrong)}
    rows = timed({name: ["a"] for name in ("forward", *peers_of)}, **peers_of)
    assert [row.quartile_seconds is not None for row in rows] == [True] * 2 + [False] * 6
    notes = {row.call: row.note for row in rows}
    assert notes["absent"] == "is not installed"
    assert notes["broken"] == "failed: RuntimeError: bad shape"
    assert notes["wrong"].startswith("wrong result")


def test_a_kernel_for_another_target_is_not_timed(samples: Callable[..., None]) -> None:
    samples({("", threads): [1e9] * 5 for threads in (1, 2)})
    machine = share_times.Machine(Target("llvm", "x86-64-v4"), (1, 2), PROBE, {1: 1.0, 2: 1.0})
    rows = share_times.time_problem(PROBLEM, {"forward": ["a"]}, machine, seconds=0.0)
    assert {row.note for row in rows} == {
        "its kernel is for llvm-x86-64-v3, not for llvm-x86-64-v4"
    }


def test_samples_are_taken_with_their_number_of_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads: dict[str, set[int]] = {"forward": set(), "gradients": set()}
    attend = functional.neighborhood_attention

    def recorded(*arguments: Any, **options: Any) -> torch.Tensor:
        name = "forward" if torch.is_inference_mode_enabled() else "gradients"
        threads[name].add(torch.get_num_threads())
        return attend(*arguments, **options)

    monkeypatch.setattr(functional, "neighborhood_attention", recorded)
    rows = timed({"forward": ["a"], "gradients": ["a"]})
    assert threads == {"forward": {1, 2}, "gradients": {2}}
    assert all(row.samples == clocks.MIN_SAMPLES for row in rows)


def test_other_programs_wait_while_samples_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    policies: list[tuple[int, int]] = []

    def set_policy(thread: int, policy: int, priority: os.sched_param) -> None:
        policies.append((policy, priority.sched_priority))

    monkeypatch.setattr(os, "sched_setscheduler", set_policy)
    with clocks.real_time(False):
        assert not policies
    with pytest.raises(RuntimeError), clocks.real_time():
        assert set(policies) == {(os.SCHED_FIFO, 1)}
        policies.clear()
        raise RuntimeError
    assert set(policies) == {(os.SCHED_OTHER, 0)}

    def refuse(*_: Any) -> None:
        raise PermissionError("not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    with pytest.raises(NatcError, match="CAP_SYS_NICE"), clocks.real_time():
        pass


def document(**changes: Any) -> Shares:
    quartiles = {"quartile_seconds": (1e-3, 1.1e-3, 1.2e-3), "peak": 1e9, "max_error": 1e-7}
    rows = [
        ShareRow(sections=["a"], problem=PROBLEM, call=call, threads=threads, **quartiles)
        for call in ("forward", "gradients", "forward kernel")
        for threads in (1, 2)
    ]
    fields = {
        "target": TARGET.name,
        "environment": facts(),
        "peak_method": "by hand",
        "peak_is_lower_bound": False,
        "bytes_per_second": {1: 1e9, 2: 2e9},
        "load_average": 0.1,
        "command": "python benchmarks/cpu.py --json",
        "seconds": 3.0,
        "rows": [shares.complete(row, 1e9) for row in rows],
    }
    return Shares(**{**fields, **changes})


def test_documents_are_read_back(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text(shares.write(document()))
    assert shares.read(file) == document()


def saved() -> Iterator[Path]:
    yield from sorted(RESULTS.glob("cpu_*.json"))


def test_saved_results_are_valid() -> None:
    assert list(saved())
    for file in saved():
        results = shares.read(file)
        sections = {section for row in results.rows for section in row.sections}
        assert {"alone", "forward", "backward", "shapes", "threads", "peers"} <= sections
        for row in results.rows:
            assert (row.share_of_peak is None) == (row.quartile_seconds is None)
            if row.share_of_peak is not None:
                assert 0 < row.share_of_peak < 1.05 and row.floor_seconds


@pytest.mark.parametrize("text", ['{"rows": []}', "{", None], ids=["incomplete", "cut", "absent"])
def test_damaged_documents_are_named(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "x.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ArgumentError, match=str(file)):
        shares.read(file)


def test_a_document_without_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="rows"):
        document(rows=[])


def test_doubtful_times_are_told() -> None:
    rows = document().rows
    assert shares.doubts(rows, 0.1, 2) == []
    apart = [replace(rows[0], quartile_seconds=(1e-3, 2e-3, 3e-3)), *rows[1:]]
    load, spread = shares.doubts(apart, 1.9, 2)
    low = [replace(rows[0], peak=0.7e9), *rows[1:]]
    assert "the peak of 1 of 6 rows" in shares.doubts(low, 0.1, 2)[0]
    assert "1.9 on 2 cores" in load
    assert "1 of" in spread and "forward at 5x5, K=3, D=8, 1 head, no bias on 1" in spread


def test_a_plot_is_drawn_the_same_each_time() -> None:
    pytest.importorskip("matplotlib")
    first = share_plots.draw(document(), "svg")
    assert first == share_plots.draw(document(), "svg")
    assert share_plots.draw(document(), "png").startswith(b"\x89PNG")
    # Two bars, each with its share: 7200 and 18000 operations in 1 ms at 1e9 a second.
    forwards = document(rows=[row for row in document().rows if row.call == "forward"])
    assert share_plots.draw(forwards, "svg") != first
