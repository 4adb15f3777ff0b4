"""Timing contestants side by side: each is checked first, and none can break the table."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from torch import Tensor

from natc import functional
from natc.bench import times
from natc.bench.peers import (
    flex_contestant,
    from_function,
    from_kernel,
    reference_contestant,
    sdpa_contestant,
    torch_peers,
)
from natc.bench.times import (
    MIN_SAMPLES,
    NAT_LEVELS,
    BenchProblem,
    Prepared,
    ResultRow,
    Unavailable,
    interleave,
    time_attention,
)
from natc.errors import NatcError
from natc.reference import neighborhood_attention

pytestmark = pytest.mark.filterwarnings("ignore::natc.ops.NatcFallbackWarning")

SHAPES = [(2, 5, 9, 2, 8), (1, 8, 7, 1, 4)]


def by_name(rows: list[ResultRow]) -> dict[tuple[str, tuple[int, ...]], ResultRow]:
    return {(row.contestant, row.shape): row for row in rows}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "problem",
    [
        {"kernel_size": 3},
        {"kernel_size": (4, 7), "rpb": False},
        {"kernel_size": 3, "dilation": (1, 2)},
    ],
    ids=str,
)
def test_masked_sdpa_is_right(problem: dict[str, Any], dtype: torch.dtype) -> None:
    rows = time_attention(
        SHAPES,
        dtype,
        {"reference": reference_contestant, "SDPA": sdpa_contestant},
        seconds=0.01,
        **problem,
    )
    assert [(row.contestant, row.shape) for row in rows] == [
        (name, shape) for shape in SHAPES for name in ("reference", "SDPA")
    ]
    for row in rows:
        assert row.median_seconds is not None and row.median_seconds > 0, row
        assert row.quartile_seconds is not None
        assert row.quartile_seconds[0] <= row.median_seconds <= row.quartile_seconds[1]
        assert row.max_error is not None
    assert rows[0].ratio_to_first == 1.0
    assert rows[1].median_seconds is not None and rows[0].median_seconds is not None
    assert rows[1].ratio_to_first == rows[1].median_seconds / rows[0].median_seconds


def test_flex_attention_runs_uncompiled_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    true_compile = torch.compile

    def no_compiler(function: Any, **options: Any) -> Any:
        # FlexAttention traces itself with the backend "eager", which needs no compiler.
        if options.get("backend"):
            return true_compile(function, **options)
        raise RuntimeError("no working C++ compiler found")

    monkeypatch.setattr(torch, "compile", no_compiler)
    rows = time_attention(
        SHAPES[:1],
        torch.float32,
        {"Flex": flex_contestant},
        kernel_size=3,
        dilation=(1, 2),
        seconds=0.01,
    )
    assert rows[0].median_seconds is not None
    assert rows[0].note == (
        "not compiled, because torch.compile failed (RuntimeError: no working C++ compiler found)"
    )


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_flex_attention_compiles_for_cpu() -> None:
    rows = time_attention(
        [(1, 8, 9, 2, 16)], torch.float32, {"Flex": flex_contestant}, kernel_size=3, seconds=0.01
    )
    assert rows[0].note == "compiled"
    assert rows[0].median_seconds is not None


def test_wrong_result_is_reported_and_not_timed() -> None:
    def wrong(*arguments: Any, **options: Any) -> Tensor:
        output = neighborhood_attention(*arguments, **options)
        assert isinstance(output, Tensor)
        output[0, 0, 0, 0, 0] += 0.01
        return output

    def not_a_number(inputs: BenchProblem) -> Prepared:
        return Prepared(lambda: torch.full_like(inputs.query, torch.nan))

    contestants = {
        "right": from_function(functional.na2d),
        "wrong": from_function(wrong),
        "nan": not_a_number,
    }
    rows = by_name(
        time_attention(SHAPES[:1], torch.float32, contestants, kernel_size=3, seconds=0)
    )
    assert rows["right", SHAPES[0]].median_seconds is not None
    for name in ("wrong", "nan"):
        row = rows[name, SHAPES[0]]
        assert row.median_seconds is row.ratio_to_first is row.quartile_seconds is None
        assert row.note.startswith("wrong result (allowed error")


def test_unavailable_contestant_keeps_its_row_and_its_reason() -> None:
    def absent(inputs: BenchProblem) -> Prepared:
        raise Unavailable("not on this machine")

    rows = time_attention(
        SHAPES[:1],
        torch.float32,
        {"absent": absent, "reference": reference_contestant},
        kernel_size=3,
        seconds=0,
    )
    assert rows[0] == ResultRow("absent", SHAPES[0], None, None, None, None, "not on this machine")
    # The first contestant was not timed, so nothing can be a multiple of it.
    assert rows[1].median_seconds is not None and rows[1].ratio_to_first is None


def test_mask_that_would_not_fit_is_refused() -> None:
    query = torch.zeros(1, 1, 1, 1, 1).expand(1, 256, 256, 4, 1)
    inputs = BenchProblem(query, query, query, None, (3, 3), (1, 1))
    with pytest.raises(Unavailable, match="4 x 65536 x 65536 takes more than 2 GiB"):
        sdpa_contestant(inputs)


def test_kernel_is_called_by_its_convention() -> None:
    calls = []

    def kernel(*arguments: Any) -> None:
        calls.append(arguments)
        query, key, value, rpb, output, scale, dilation_h, dilation_w, *rest = arguments
        assert rest == [1, 1, 0, 0, 1]  # stride, is_causal and group
        assert output.is_contiguous() and output.shape == query.shape
        options = {"dilation": (dilation_h, dilation_w), "scale": scale, "rpb": rpb}
        output.copy_(neighborhood_attention(query, key, value, 3, **options))

    def kernel_without_rpb(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> None:
        kernel(query, key, value, None, *rest)

    for rpb, function in ((True, kernel), (False, kernel_without_rpb)):
        rows = time_attention(
            SHAPES,
            torch.float32,
            {"kernel": from_kernel(function, "tuned")},
            kernel_size=3,
            dilation=(1, 2),
            rpb=rpb,
            seconds=0,
        )
        assert all(row.median_seconds is not None and row.note == "tuned" for row in rows)
    assert all(call[5:8] == (pytest.approx(call[0].shape[-1] ** -0.5), 1, 2) for call in calls)


def test_samples_are_interleaved_and_measure_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    now = [0.0]
    # A clock of its own: a real one would make the outcome depend on what else runs here.
    monkeypatch.setattr(times.time, "perf_counter", lambda: now[0])

    def sleeper(name: str, seconds: float) -> Any:
        def call() -> None:
            order.append(name)
            now[0] += seconds

        return call

    samples = interleave({"short": sleeper("s", 0.0002), "long": sleeper("l", 0.004)}, 0.0)
    assert samples == {
        "short": pytest.approx([0.0002] * MIN_SAMPLES),
        "long": pytest.approx([0.004] * MIN_SAMPLES),
    }
    # Short calls are repeated within a sample to fill 2 ms, and turns alternate; one untimed call
    # comes before each sample and each estimate.
    assert order.count("s") == 2 + MIN_SAMPLES * (1 + 10)
    assert order.count("l") == 2 + MIN_SAMPLES * (1 + 1)
    turns = [name for name, before in zip(order[1:], order, strict=False) if name != before]
    assert len(turns) >= MIN_SAMPLES


def test_nothing_to_time() -> None:
    assert interleave({}, 1.0) == {}
    assert time_attention([], torch.float32, torch_peers()) == []
    assert time_attention(SHAPES, torch.float32, {}) == []


def test_progress_names_each_step() -> None:
    said: list[str] = []
    contestants = {"reference": reference_contestant}
    time_attention(
        SHAPES[:1], torch.float32, contestants, kernel_size=3, seconds=0, progress=said.append
    )
    assert said == ["2x5x9x2x8: preparing and checking reference", "2x5x9x2x8: timing reference"]


@pytest.mark.parametrize("shape", [(1, 5, 5, 8), (1, 0, 5, 1, 8)], ids=str)
def test_bad_shape_is_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(NatcError, match="shapes must hold five positive ints each"):
        time_attention([shape], torch.float32, torch_peers())


def test_bad_dtype_is_named() -> None:
    with pytest.raises(NatcError, match=r"dtype must be one of .*, not torch.int64"):
        time_attention(SHAPES, torch.int64, torch_peers())


def test_levels_are_those_of_nat() -> None:
    from natc.models import nat_mini
    from natc.nn import NeighborhoodAttention2D

    with torch.device("meta"):
        model = nat_mini()
    layers = [m for m in model.modules() if isinstance(m, NeighborhoodAttention2D)]
    found = {(layer.num_heads, layer.head_dim) for layer in layers}
    assert found == {shape[3:] for shape in NAT_LEVELS}
