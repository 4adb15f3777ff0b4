"""Timing contestants side by side: each is checked first, and none can break the table."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from torch import Tensor

from natc import functional
from natc.bench import clocks, peers
from natc.bench import problem as problem_module
from natc.bench.clocks import MIN_SAMPLES, interleave
from natc.bench.peers import PEERS, from_function, from_kernel
from natc.bench.problem import BenchProblem, Case, Oracle
from natc.bench.results import Row
from natc.bench.times import Prepared, Unavailable, time_problems
from natc.errors import ArgumentError
from natc.reference import neighborhood_attention
from natc.spec import KernelSpec

pytestmark = pytest.mark.filterwarnings("ignore::natc.ops.NatcFallbackWarning")

SHAPE = (2, 5, 9, 2)


def problem(
    kernel_size: Any = 3, shape: tuple[int, ...] = SHAPE, *, head_dim: int = 8, **options: Any
) -> BenchProblem:
    """Return a problem; options of the spec and of the call by name."""
    of_spec = {
        name: options.pop(name) for name in ("dtype", "rpb", "value_dim") if name in options
    }
    spec = KernelSpec.make(kernel_size, rank=len(shape) - 2, head_dim=head_dim, **of_spec)
    return BenchProblem.make(spec, shape, **options)


PROBLEMS = [
    problem(rpb=True),
    problem((4, 7), dtype="float16"),
    problem(dilation=(1, 2), rpb=True, dtype="bfloat16"),
    problem(5, (2, 11, 3), rpb=True, stride=2, is_causal=True),
    problem(
        (2, 3, 4),
        (1, 4, 5, 6, 4),
        heads_kv=2,
        stride=(1, 2, 1),
        is_causal=(True, False, False),
    ),
    problem((2, 3, 4), (1, 4, 5, 6, 2), rpb=True, dilation=(2, 1, 1), value_dim=4),
]


@pytest.mark.parametrize("case", PROBLEMS, ids=lambda p: f"{p.spec} {' '.join(p.facts[1:])}")
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_masked_sdpa_is_right(case: BenchProblem, backward: bool) -> None:
    contestants = {name: PEERS[name] for name in ("reference", "torch SDPA")}
    plain, sdpa = time_problems([replace(case, backward=backward)], contestants, seconds=0.01)
    assert plain.ratio_to_first == 1.0
    if backward and case.kernel.rpb:
        assert sdpa.median_seconds is None and "bias" in sdpa.note
        return
    for row in (plain, sdpa):
        assert row.median_seconds is not None and row.quartile_seconds is not None, row
        assert 0 < row.quartile_seconds[0] <= row.median_seconds <= row.quartile_seconds[1]
    assert sdpa.ratio_to_first is not None and sdpa.ratio_to_first > 0


def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Break torch.compile, except where FlexAttention traces itself, which needs no compiler."""
    true_compile = torch.compile

    def no_compiler(function: Any, **options: Any) -> Any:
        if options.get("backend"):
            return true_compile(function, **options)
        raise RuntimeError("no working C++ compiler found")

    monkeypatch.setattr(torch, "compile", no_compiler)


@pytest.mark.parametrize("case", PROBLEMS[2:5], ids=lambda p: p.spec)
def test_flex_attention_runs_uncompiled_and_says_why(
    case: BenchProblem, monkeypatch: pytest.MonkeyPatch
) -> None:
    uncompiled(monkeypatch)
    case = replace(case, spec=case.spec.replace("bfloat16", "float32"))
    (row,) = time_problems([case], {"Flex": peers.flex}, seconds=0.01)
    assert row.median_seconds is not None
    assert row.note.startswith("not compiled") and "no working C++ compiler found" in row.note


def test_flex_attention_says_what_it_cannot_do(monkeypatch: pytest.MonkeyPatch) -> None:
    uncompiled(monkeypatch)
    rows = time_problems(
        [problem(backward=True), problem(backward=True, rpb=True)], {"Flex": peers.flex}
    )
    assert [row.median_seconds for row in rows] == [None, None]
    assert "backward on CPU" in rows[0].note and "bias" in rows[1].note


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_flex_attention_compiles_for_cpu() -> None:
    case = problem(shape=(1, 8, 9, 2), head_dim=16, rpb=True)
    # Without this, torch builds trial programs and starts processes to see if vectors work here.
    with torch._inductor.config.patch("cpp.vec_isa_ok", True):
        (row,) = time_problems([case], {"Flex": peers.flex}, seconds=0.01)
    assert row.note == "compiled" and row.median_seconds is not None


def spoil(position: int) -> Any:
    """Return a contestant with one wrong element in its result at this position."""

    def prepare(case: Case) -> Prepared:
        right = from_function(functional.neighborhood_attention)(case)

        class Wrong(Prepared):
            def call(self) -> list[Tensor]:
                results = super().call()
                results[position] = results[position].clone()
                results[position].view(-1)[0] += 0.1 * results[position].abs().max()
                return results

        return Wrong(right.attend, right.leaves, right.d_output)

    return prepare


def test_wrong_results_are_reported_and_not_timed() -> None:
    contestants = {
        "right": from_function(functional.neighborhood_attention),
        **{name: spoil(number) for number, name in enumerate(("output", "dq", "dk", "dv", "db"))},
        "nan": lambda case: Prepared(lambda: torch.full_like(case.inputs.query, torch.nan)),
    }
    for backward in (False, True):
        case = problem(rpb=True, backward=backward)
        names = ["right", "output"] + (["dq", "dk", "dv", "db"] if backward else ["nan"])
        right, *wrong = time_problems(
            [case], {name: contestants[name] for name in names}, seconds=0
        )
        assert right.median_seconds is not None
        for row in wrong:
            assert row.median_seconds is row.ratio_to_first is row.quartile_seconds is None
            assert row.note.startswith("wrong result")


@pytest.mark.parametrize("options", [
    {"rpb": True},
    {"heads_kv": 2, "stride": 2, "is_causal": (True, False)},
    {"dilation": (1, 2), "heads_kv": 1},
], ids=str)  # fmt: skip
def test_a_corner_has_the_results_of_the_whole_map(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    case = Case.make(problem(3, (2, 40, 41, 4), backward=True, **options))
    results = from_function(neighborhood_attention)(case).results()
    monkeypatch.setattr(problem_module, "_REFERENCE_BYTES", 0)
    assert Oracle(case).error(results) < 1e-5
    for number in range(4):
        spoiled = [tensor.clone() for tensor in results]
        # The last position of the corner, and beyond it.
        spoiled[number][0, 7, 7, 0] += 1
        assert Oracle(case).error(spoiled) > 1e-2
    spoiled = [tensor.clone() for tensor in results]
    spoiled[0][0, 8, 0, 0] += 1
    assert Oracle(case).error(spoiled) < 1e-5


def test_a_contestant_that_is_unavailable_keeps_its_row_and_its_reason() -> None:
    def absent(case: Case) -> Prepared:
        raise Unavailable("not on this machine")

    def hungry(case: Case) -> Prepared:
        raise torch.OutOfMemoryError("2 TiB")

    def picky(case: Case) -> Prepared:
        return Prepared(lambda: torch.zeros(2).view(3))

    contestants = {
        "absent": absent,
        "hungry": hungry,
        "picky": picky,
        "reference": peers.plain,
    }
    rows = time_problems([problem()], contestants, seconds=0)
    assert rows[0] == Row(problem=problem(), contestant="absent", note="not on this machine")
    assert rows[1] == Row(problem=problem(), contestant="hungry", note="out of memory")
    # The first contestant was not timed, so there is nothing to be a multiple of.
    assert rows[2].note.startswith("failed: RuntimeError: ") and rows[2].median_seconds is None
    assert rows[3].median_seconds is not None and rows[3].ratio_to_first is None


def test_what_would_not_fit_is_refused() -> None:
    large = problem(shape=(1, 256, 256, 4), head_dim=1)
    query = torch.zeros(1, 1, 1, 1, 1).expand(large.shape)
    case = Case(large, problem_module.Inputs(query, query, query, None), None)
    with pytest.raises(Unavailable, match="4 x 65536 x 65536"):
        peers.masked_sdpa(case)
    with pytest.raises(Unavailable, match="GiB"):
        peers.plain(Case(problem(63, (64, 256, 256, 4)), case.inputs, None))


def test_kernel_is_called_by_its_convention() -> None:
    calls = []

    def kernel(*arguments: Any) -> None:
        calls.append(arguments)
        query, key, value, rpb, output, scale, dilation_h, dilation_w, *tail = arguments
        assert tail == [1, 1, 0, 1, 2]  # stride, is_causal and group
        assert output.is_contiguous() and output.shape == query.shape
        options = {"dilation": (dilation_h, dilation_w), "scale": scale, "rpb": rpb}
        output.copy_(
            neighborhood_attention(query, key, value, 3, is_causal=(False, True), **options)
        )

    def kernel_without_rpb(query: Tensor, key: Tensor, value: Tensor, *tail: Any) -> None:
        kernel(query, key, value, None, *tail)

    for rpb, function in ((True, kernel), (False, kernel_without_rpb)):
        case = problem(dilation=(1, 2), is_causal=(False, True), heads_kv=1, rpb=rpb)
        (row,) = time_problems([case], {"kernel": from_kernel(function, "tuned")}, seconds=0)
        assert row.median_seconds is not None and row.note == "tuned"
    assert all(call[5:8] == (pytest.approx(8**-0.5), 1, 2) for call in calls)


def test_without_a_kernel_natc_is_not_timed_on_the_reference(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("NATC_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("NATC_LIB_PATH", raising=False)
    for strict in ("0", "1"):
        monkeypatch.setenv("NATC_STRICT", strict)
        # A kernel size that nobody builds; its warning may have been given before.
        case = problem((61, 2), backward=True)
        if strict == "0":
            from_function(functional.neighborhood_attention)(Case.make(case)).call()
        (row,) = time_problems([case], {"natc": peers.natc_kernels}, seconds=0)
        assert row.median_seconds is row.max_error is None
        assert "natc build --kernel 61x2 --head-dim 8" in row.note


def test_ratios_are_of_times_in_the_same_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    # The machine is twice as slow in every other turn; the second one takes 1.2 times as long.
    slow = [1.0, 2.0] * 20
    taken = {"first": slow, "second": [1.2 * seconds for seconds in slow]}
    monkeypatch.setattr(clocks, "interleave", lambda calls, seconds: taken)
    contestant = from_function(functional.neighborhood_attention)
    first, second = time_problems([problem()], {"first": contestant, "second": contestant})
    assert first.ratio_to_first == 1.0 and first.ratio_interval == (1.0, 1.0)
    assert second.ratio_to_first == pytest.approx(1.2)
    assert second.ratio_interval == pytest.approx((1.2, 1.2))
    taken = {name: samples[:5] for name, samples in taken.items()}
    first, second = time_problems([problem()], {"first": contestant, "second": contestant})
    assert second.ratio_to_first == pytest.approx(1.2) and second.ratio_interval is None


def test_samples_are_interleaved_and_measure_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    now = [0.0]
    # A clock of its own: a real one would make the outcome depend on other programs.
    monkeypatch.setattr(clocks.time, "perf_counter", lambda: now[0])

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
    # Each turn begins with the call that ended the one before, so that the pairs melt together.
    turns = [name for name, before in zip(order[4:], order[3:], strict=False) if name != before]
    assert turns == ["s", "l", "s", "l", "s", "l"][: len(turns)] and len(turns) >= MIN_SAMPLES


def test_nothing_to_time() -> None:
    assert interleave({}, 1.0) == {}
    assert time_problems([], PEERS) == []
    assert time_problems(PROBLEMS[:1], {}) == []


def test_progress_names_each_step() -> None:
    sentences: list[str] = []
    contestants = {"reference": peers.plain}
    time_problems([problem()], contestants, seconds=0, progress=sentences.append)
    assert sentences == [
        "2x5x9x2x8: preparing and checking reference",
        "2x5x9x2x8: timing reference",
    ]


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"shape": (1, 5, 5, 8)}, ("shape", "[1, 5, 5, 8]", "5 positive")),
        ({"shape": (1, 0, 5, 1, 8)}, ("shape", "[1, 0, 5, 1, 8]")),
        ({"shape": (1, 5, 5, 2, 9)}, ("shape", "must be 8")),
        ({"heads_kv": 3}, ("heads_kv is 3", "2 heads")),
        ({"dilation": (1,)}, ("dilation", "2, one for each axis")),
        ({"dilation": (0, 1)}, ("dilation is [0, 1]", "1 or more")),
        ({"stride": (4, 1)}, ("stride is [4, 1]", "kernel size, 3")),
    ],
    ids=str,
)
def test_wrong_problems_are_named(changes: dict[str, Any], parts: tuple[str, ...]) -> None:
    with pytest.raises(ArgumentError) as error:
        replace(problem(), **changes)
    assert all(part in str(error.value) for part in parts)
