"""The benchmarks of attention and of networks, at small sizes on this CPU."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import msgspec
import pytest
import torch
from support.benchmark_script import ROOT, benchmark
from support.built_kernels import build_part

from natc.bench import plots, shares
from natc.bench.results import Results, Row
from natc.bench.shares import Shares
from natc.errors import TargetError
from natc.host import detect
from natc.host.detect import detect_host_cpu
from natc.spec import KernelSpec
from natc.targets import Target

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
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Return a function that imports a script of benchmarks/ for this test."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setenv("NATC_JIT", "off")
    monkeypatch.setenv("NATC_STRICT", "0")

    def load(name: str) -> ModuleType:
        module = importlib.import_module(name)
        monkeypatch.delitem(sys.modules, name)
        return module

    return load


@pytest.fixture
def attention(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("attention")


def test_every_suite_has_problems_that_kernels_take(attention: ModuleType) -> None:
    for suite in attention.SUITES.values():
        for problem in suite("float16"):
            spec = problem.kernel
            spatial = problem.shape[1:-2]
            assert all(k <= s for k, s in zip(spec.kernel_size, spatial, strict=True))


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
        ("cpu.py", ("--section", "speed"), "--section: invalid choice: 'speed'"),
    ],
    ids=["attention", "models", "batch", "cpu"],
)
def test_bad_options_are_named(
    tmp_path: Path, script: str, words: tuple[str, ...], part: str
) -> None:
    done = benchmark(script, *(() if script == "cpu.py" else CPU), *words, libraries=tmp_path)
    assert (done.returncode, done.stdout) == (2, "") and part in done.stderr


def test_networks_say_what_they_lack(tmp_path: Path) -> None:
    words = ("--models", "nat_mini", "--modes", "eager", "--size", "32", "--seconds", "0.01")
    done = benchmark("models.py", *CPU, *words, "--no-peers", "--json", libraries=tmp_path)
    assert done.returncode == 1 and "no NAT was timed" in done.stderr
    assert "Traceback" not in done.stderr
    (row,) = json.loads(done.stdout)["rows"]
    assert row["network"] == "nat_mini" and row["images_per_second"] is None
    assert "natc build --kernel 7" in row["note"]


@pytest.fixture(scope="module")
def nat_forward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with the forward of NAT's kernel alone."""
    directory = tmp_path_factory.mktemp("nat")
    build_part(KernelSpec.make(7, rpb=True), ["forward"], directory)
    return directory


def test_networks_are_timed_and_profiled(nat_forward: Path) -> None:
    words = ("--models", "nat_mini", "--modes", "eager", "--size", "64", "--seconds", "0.01")
    done = benchmark(
        "models.py", *CPU, *words, "--no-peers", "--profile", "--json", libraries=nat_forward
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    (row,) = document["rows"]
    assert row["images_per_second"] == pytest.approx(1 / row["quartile_seconds"][1])
    parts = document["profiles"]["nat_mini"]
    assert {"attention", "linear", "convolution", "normalization"} <= set(parts)
    assert sum(parts.values()) == pytest.approx(1.0) and min(parts.values()) >= 0


def test_networks_are_compared_round_by_round(script: Callable[[str], ModuleType]) -> None:
    # The machine is twice as slow in every other round, for both.
    peer = [1.0, 2.0] * 20
    own = [0.9 * seconds for seconds in peer]
    assert script("models").ratios(own, peer) == pytest.approx((0.9,) * 3)


def test_a_step_of_training_changes_every_weight(script: Callable[[str], ModuleType]) -> None:
    network = torch.nn.Linear(4, 3)
    before = [weight.clone() for weight in network.parameters()]
    step = script("models").training_step(network, torch.randn(2, 4))
    first, second = step(), step()
    assert second < first
    pairs = zip(network.parameters(), before, strict=True)
    assert all(bool((weight != old).all()) for weight, old in pairs)


def test_shares_of_the_peak_are_measured(nat_forward: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    words = ("--section", "alone", "--section", "forward", "--seconds", "0.01")
    done = benchmark(
        "cpu.py", *words, "--libraries", str(nat_forward), "--output", str(file), "--json",
        libraries=nat_forward,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = msgspec.json.decode(done.stdout, type=Shares)
    assert shares.read(file).rows == document.rows
    assert document.target == detect_host_cpu().name and not document.missing
    rows = {row.call: [each for each in document.rows if each.call == row.call]
            for row in document.rows}  # fmt: skip
    assert {call: len(each) for call, each in rows.items()} == dict.fromkeys(
        ("forward kernel", "gradient kernels", "forward"), 4
    )
    for row in (*rows["forward kernel"], *rows["forward"]):
        assert row.threads == 1 and row.max_error is not None and row.max_error < 1e-5
        assert row.share_of_peak is not None and row.share_of_peak > 0
        assert row.quartile_seconds is not None and row.floor_seconds is not None
    assert all("natc build --kernel 7" in row.note for row in rows["gradient kernels"])


def test_sections_share_the_turns_of_a_problem(script: Callable[[str], ModuleType]) -> None:
    cpu = script("cpu")
    plans = cpu.plan(["alone", "forward", "backward", "threads", "peers"])
    assert len({(plan.problem, plan.with_peers) for plan in plans}) == len(plans) == 4 + 1 + 8
    large = plans[0]
    assert large.problem.shape == (1, 56, 56, 2, 32) and large.calls == {
        "forward kernel": ["alone"],
        "gradient kernels": ["alone"],
        "forward": ["forward", "threads"],
        "gradients": ["backward", "threads"],
    }
    assert {problem.kernel.rank for problem, _ in cpu.shapes()} == {1, 2, 3}
    for problem, _ in cpu.shapes():
        spatial = problem.shape[1:-2]
        assert all(k <= s for k, s in zip(problem.kernel.kernel_size, spatial, strict=True))


def test_a_missing_network_is_told(
    script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu, models = script("cpu"), script("models")
    row = {
        "network": "swin", "mode": "eager", "batch": 1, "size": 224, "dtype": "float32",
        "images_per_second": None, "quartile_seconds": None, "largest_difference": None,
        "ratio_to": {}, "note": "timm is not installed",
    }  # fmt: skip
    monkeypatch.setattr(models, "time_group", lambda *_: [row])
    monkeypatch.setitem(sys.modules, "models", models)
    missing: list[str] = []
    (network,) = cpu.time_networks("eager", 1, missing)
    assert network.quartile_seconds is None
    assert missing == ["swin, eager: timm is not installed"]


def test_torch_runs_the_code_of_the_target(
    script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = script("cpu")
    monkeypatch.setattr(detect, "detect_host_cpu", lambda: Target("llvm", "x86-64-v4"))
    for name in cpu.AVX2:
        monkeypatch.setenv(name, "")
    assert cpu.begin(None).arch == "x86-64-v4" and not os.environ["ATEN_CPU_CAPABILITY"]
    assert cpu.begin("x86-64-v3").arch == "x86-64-v3"
    assert {name: os.environ[name] for name in cpu.AVX2} == cpu.AVX2
    with pytest.raises(TargetError, match="llvm-aarch64"):
        cpu.begin("aarch64")


def test_the_page_has_the_saved_results(
    script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = script("cpu")
    written: dict[Path, str] = {}
    monkeypatch.setattr(cpu, "write_atomically", written.__setitem__)
    cpu.update_readme()
    ((page, text),) = written.items()
    assert page.read_text(encoding="utf-8") == text, "run: python benchmarks/cpu.py --readme"


def test_searches_are_replayed_over_a_log(tmp_path: Path) -> None:
    results = ROOT / "benchmarks" / "results"
    log, log_of_9x9 = (str(results / f"search_k{size}_d12.jsonl") for size in (7, 9))
    words = ("search.py", log, "--taught", log_of_9x9, "--budget", "4", "--seeds", "1", "--json")
    done = benchmark(*words, libraries=tmp_path)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["candidates"] == 48
    assert set(document["strategies"]) == {"model", "model, taught", "random", "MetaSchedule"}
    for strategy in document["strategies"].values():
        (curve,) = strategy["curves"]
        # A curve never falls back to a slower candidate, and the default is not among them.
        assert len(curve) == 4 and curve == sorted(curve, reverse=True) and curve[-1] >= 1
    part = tmp_path / "part.jsonl"
    part.write_text("".join(Path(log).read_text().splitlines(keepends=True)[:1]))
    failed = benchmark("search.py", str(part), libraries=tmp_path)
    assert failed.returncode == 1 and "candidates of one kernel" in failed.stderr


def test_a_table_of_a_search_goes_on_where_it_stopped(tmp_path: Path) -> None:
    log = tmp_path / "table.jsonl"
    for count in (2, 3):
        words = ("search_table.py", str(log), "--kernel", "3", "--head-dim", "16")
        done = benchmark(*words, "--candidates", str(count), libraries=tmp_path)
        assert done.returncode == 0, done.stderr
        records = map(json.loads, log.read_text().splitlines())
        trials = [record for record in records if record["type"] == "trial"]
        assert [trial["trial"] for trial in trials] == list(range(count))
        assert trials[0]["ratio"] == 1.0 and all(trial["ratio"] > 0 for trial in trials)
        # Each differs from the default in one decision.
        default = trials[0]["decisions"].items()
        assert {len(trial["decisions"].items() - default) for trial in trials[1:]} == {1}
