"""What `natc tune` shows and returns; the search itself is a script of events."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
from rich.console import Console
from support.command_line import Natc
from support.search_events import GAIN, START, TRIALS, finish

import natc.tune as natc_tune
from natc.cli.views import progress
from natc.errors import NatcError, TuneError
from natc.host import gpu
from natc.host.detect import detect_host_cpu
from natc.tune.events import Event, Note, SearchFinished
from natc.tune.measure.rounds import Imported

pytestmark = pytest.mark.quick

H100 = gpu.Gpu("NVIDIA H100", (9, 0), 80 << 30)


class Search:
    """Takes the place of the search: keeps its arguments and reports scripted events."""

    def __init__(self, script: list[Event | BaseException]) -> None:
        self.script = script
        self.asked: dict[str, Any] = {}

    def __call__(
        self, spec: Any, target: Any, *, on_event: Callable[[Event], None], **options: Any
    ) -> Event | BaseException:
        self.asked = {"spec": spec.name, "target": target.name, **options}
        for event in self.script:
            if isinstance(event, BaseException):
                raise event
            on_event(event)
        return self.script[-1]


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Search]:
    def install(*script: Event | BaseException) -> Search:
        double = Search(list(script))
        # Not setattr, which would load the search, and TVM with it, to put it back later.
        monkeypatch.setitem(vars(natc_tune), "tune", double)
        # The script needs no compiler.
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
        return double

    return install


DEFAULTS = {"operation": "forward", "shapes": None, "trials": None, "minutes": 4.0, "seed": 0,
            "measurer": None}  # fmt: skip
HOST = detect_host_cpu().name


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ("-k 7", {**DEFAULTS, "spec": "na2d_k7_d32_float32_rpb", "target": HOST}),
        (
            "-k 7 --target cuda",
            {**DEFAULTS, "spec": "na2d_k7_d32_float16_rpb", "target": "cuda-sm_90"},
        ),
        (
            "-k 7x5 --head-dim 16 --dtype bfloat16 --no-rpb --minutes 2 --trials 9 --seed 3 "
            "--target llvm --arch x86-64-v2 --shape 1x56x56x2 --shape 2x7x7x16",
            {
                "spec": "na2d_k7x5_d16_bfloat16",
                "target": "llvm-x86-64-v2",
                "operation": "forward",
                "shapes": [(1, 56, 56, 2), (2, 7, 7, 16)],
                "trials": 9,
                "minutes": 2.0,
                "seed": 3,
                "measurer": None,
            },
        ),
    ],
)
def test_the_options_reach_the_search(
    natc: Natc,
    search: Callable[..., Search],
    monkeypatch: pytest.MonkeyPatch,
    words: str,
    asked: dict[str, Any],
) -> None:
    monkeypatch.setattr(gpu, "driver", lambda: gpu.Driver("13.0", (H100,)))
    ran = search(START, finish())
    assert natc("tune", *words.split()).code == 0
    assert ran.asked == asked


def test_lines_for_a_pipe(natc: Natc, search: Callable[..., Search]) -> None:
    search(START, Note("line 3 was skipped"), *TRIALS, finish())
    code, out, err = natc("tune", "--kernel", "7")
    assert code == 0
    assert err.splitlines() == [
        "tuning na2d_k7_d32_float32_rpb for llvm-x86-64-v3 on 1x56x56x2x32: default 4 ms",
        "note: line 3 was skipped",
        "trial 1: about 1.33 times as fast as the default",
        "trial 4: about 4.00 times as fast as the default",
    ]
    assert out.splitlines() == [
        "done: 4 candidates in 12 s (1 failed); the best candidate is 3.90 times as fast as the "
        "default, 3.85 to 3.97",
        "schedule: /w/schedules/x.json",
        "log: /w/tuning_logs/x.jsonl",
        "To build it: natc build --kernel 7 --target llvm",
    ]
    code, quiet_out, err = natc("tune", "--kernel", "7", "--quiet")
    assert (code, quiet_out, err) == (0, out, "note: line 3 was skipped\n")


def test_who_tunes_for_the_cpu_beside_a_gpu_is_told(
    natc: Natc, search: Callable[..., Search], monkeypatch: pytest.MonkeyPatch
) -> None:
    note = "note: this searches for the CPU, "
    search(START, finish())
    assert note not in natc("tune", "--kernel", "9").err
    monkeypatch.setattr(gpu, "driver", lambda: gpu.Driver("13.0", (H100,)))
    err = natc("tune", "--kernel", "9").err
    assert note in err and "; for the GPU (NVIDIA H100): --target cuda\n" in err
    assert note not in natc("tune", "--kernel", "9", "--target", "llvm").err
    for_cuda = natc("tune", "--kernel", "9", "--target", "cuda")
    assert note not in for_cuda.err
    assert for_cuda.out.endswith("To build it: natc build --kernel 9 --target cuda --arch sm_90\n")


NO_GAIN = replace(finish(), outcome="not faster", schedule_path=None, gain=None)


@pytest.mark.parametrize(
    ("ended", "lines"),
    [
        (replace(NO_GAIN, message="no candidate was faster than the default"), []),
        (
            replace(NO_GAIN, outcome="undecided", message="the best is X: too noisy to decide"),
            ["On a quiet machine, or with more --minutes, go on with: natc tune --kernel 7"],
        ),
    ],
    ids=["slower", "noisy"],
)
def test_a_search_without_gain_says_so_and_has_not_failed(
    natc: Natc, search: Callable[..., Search], ended: SearchFinished, lines: list[str]
) -> None:
    search(START, *TRIALS, ended)
    code, out, _ = natc("tune", "--kernel", "7")
    assert code == 0
    assert out.splitlines() == [
        f"done: 4 candidates in 12 s (1 failed); {ended.message}. No schedule was written.",
        "log: /w/tuning_logs/x.jsonl",
        *lines,
    ]
    document = natc.json("tune", "--kernel", "7")
    assert (document["outcome"], document["gain"]) == (ended.outcome, None)


def test_json_is_one_document(natc: Natc, search: Callable[..., Search]) -> None:
    search(START, *TRIALS, finish())
    document = natc.json("tune", "--kernel", "7")
    assert document["spec"] == "na2d_k7_d32_float32_rpb"
    assert document["gain"] == {"speedup": 3.9, "low": 3.85, "high": 3.97, "pairs": 64}
    assert document["schedule_path"] == "/w/schedules/x.json"
    assert document["outcome"] == "saved"


def test_a_stopped_search_says_how_to_go_on(natc: Natc, search: Callable[..., Search]) -> None:
    search(START, *TRIALS, finish(interrupted=True))
    code, out, _ = natc("tune", "--kernel", "7", "--minutes", "2")
    assert code == 130
    assert out.startswith("stopped: 4 candidates") and "No schedule was written." in out
    assert "go on with: natc tune --kernel 7 --minutes 2" in out


def test_stopping_before_the_search_began(natc: Natc, search: Callable[..., Search]) -> None:
    search(KeyboardInterrupt())
    code, out, err = natc("tune", "--kernel", "7")
    assert (code, out) == (130, "")
    assert "go on with: natc tune --kernel 7" in err and "Traceback" not in err


NOTHING = replace(
    NO_GAIN, outcome="unmeasured", message="no candidate was measured in that time", trials=0
)


@pytest.mark.parametrize(
    ("ended", "message"),
    [
        (
            NOTHING,
            "natc: error: na2d_k7_d32_float32_rpb forward: no candidate was measured in that "
            "time, so no schedule was written. Run it again with a larger --minutes: it goes on "
            "from the log.\n",
        ),
        (
            replace(NOTHING, outcome="failed", message="3 of 3 candidates failed", trials=3),
            "natc: error: na2d_k7_d32_float32_rpb forward: 3 of 3 candidates failed, so no "
            "schedule was written. /w/tuning_logs/x.jsonl says why each one failed.\n",
        ),
    ],
    ids=["time", "failed"],
)
def test_a_search_without_a_candidate_fails(
    natc: Natc, search: Callable[..., Search], ended: SearchFinished, message: str
) -> None:
    search(START, ended)
    words = ["tune", "--kernel", "7", "--quiet"]
    assert natc(*words) == (1, "", message)
    with_json = natc(*words, "--json")
    document = json.loads(with_json.out)
    assert (with_json.code, document["schedule_path"]) == (1, None)
    assert (document["trials"], document["outcome"]) == (ended.trials, ended.outcome)
    assert with_json.err == message


def test_searches_go_on_after_a_failed_search(
    natc: Natc, search: Callable[..., Search], monkeypatch: pytest.MonkeyPatch
) -> None:
    search()
    asked = []

    def tune(spec: Any, target: Any, *, operation: str, **_: Any) -> SearchFinished:
        asked.append(operation)
        return NOTHING if operation == "delta" else finish()

    monkeypatch.setitem(vars(natc_tune), "tune", tune)
    words = ["tune", "--kernel", "7", "--operations", "forward,delta,d_query", "--quiet"]
    code, out, err = natc(*words)
    assert (code, asked) == (1, ["forward", "delta", "d_query"])
    assert out.count("schedule: /w/schedules/x.json") == 2
    assert err.count("no schedule was written") == 1 and "_rpb delta: no candidate" in err
    documents = natc.json(*words, code=1)["searches"]
    assert [row["schedule_path"] is None for row in documents] == [False, True, False]


IMPORTED = Imported(
    name="na2d_k7_d32_float32_rpb d_query for cuda-sm_90",
    schedule_path=Path("/w/schedules/x.json"),
    log_path=Path("/w/tuning_logs/x.jsonl"),
    gain=GAIN,
    untuned=4e-3,
    trials=9,
    message="the best candidate is 3.90 times as fast as the default, 3.85 to 3.97",
    problem="",
)


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Stand for a directory of rounds: what becomes of each."""

    def install(*outcomes: Imported | NatcError) -> None:
        def import_round(place: Path) -> Imported:
            outcome = outcomes[int(place.name)]
            if isinstance(outcome, NatcError):
                raise outcome
            return outcome

        module: Any = ModuleType("natc.tune.search.importing")
        module.import_round = import_round
        monkeypatch.setitem(sys.modules, module.__name__, module)
        places = [Path(str(number)) for number in range(len(outcomes))]
        monkeypatch.setattr("natc.tune.measure.rounds.find", lambda directory: places)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())

    return install


def test_importing_rounds_shows_each_problem(natc: Natc, rounds: Callable[..., None]) -> None:
    nothing = replace(IMPORTED, schedule_path=None, gain=None)
    unmeasured = replace(nothing, problem="no candidate was measured")
    slower = replace(nothing, message="no candidate was faster than the default")
    rounds(unmeasured, TuneError("b was not measured yet"), slower, IMPORTED)
    code, out, err = natc("tune", "--import", "all")
    assert code == 1
    assert err.splitlines() == [
        f"problem: {IMPORTED.name}: no candidate was measured",
        "problem: b was not measured yet",
    ]
    trials = f"{IMPORTED.name}: 9 new trials in /w/tuning_logs/x.jsonl"
    assert out.splitlines() == [
        trials,
        f"{trials}; no candidate was faster than the default. No schedule was written.",
        f"{trials}; {IMPORTED.message}",
        "schedule: /w/schedules/x.json",
    ]
    document = natc.json("tune", "--import", "all", code=1)
    assert len(document["problems"]) == 2
    paths = [row["schedule_path"] for row in document["searches"]]
    assert paths == [None, None, "/w/schedules/x.json"]


def test_importing_a_round(natc: Natc, rounds: Callable[..., None]) -> None:
    rounds(IMPORTED)
    assert natc("tune", "--import", "one").code == 0
    rounds(TuneError("it was not measured yet"))
    assert natc("tune", "--import", "one") == (1, "", "natc: error: it was not measured yet\n")


def test_the_live_line_shows_best_speedup_trials_failures_and_time_left() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=160, color_system=None)
    with progress._bar(console) as live:
        bar = progress.Bar(live)
        for event in (START, *TRIALS):
            bar(event)
        live.refresh()
        shown = screen.getvalue().splitlines()[-1]
        for part in ("best about 4.00x", "4 trials", "1 failed", "s left"):
            assert part in shown
        bar(finish())
        assert live.finished
    assert "default 4 ms" in screen.getvalue()


def test_a_resumed_search_names_its_start() -> None:
    text = progress.start_text(replace(START, resumed_trials=40, best=2.0))
    assert "best of 40 earlier trials about 2.00 times as fast as the default" in text


@pytest.fixture
def rechecked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Return a function that replaces the comparison of schedules and returns its calls."""

    def install(*outcomes: Rechecked) -> list[Any]:
        asked: list[Any] = []

        def wanted(kernels: Any, target: Any) -> list[Rechecked]:
            asked.append((kernels, target.name))
            return list(outcomes)

        module: Any = ModuleType("natc.tune.search.recheck")
        module.schedules_to_recheck = wanted
        module.recheck = lambda outcome, minutes, on_event: outcome
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
        return asked

    return install


class Rechecked(NamedTuple):
    path: Path
    name: str
    outcome: str
    message: str


def test_rechecking_says_what_became_of_each_schedule(
    natc: Natc, rechecked: Callable[..., list[Any]]
) -> None:
    asked = rechecked(
        Rechecked(Path("/w/a.json"), "a", "faster", "it is 1.3 times as fast"),
        Rechecked(Path("/w/b.json"), "b", "removed", "its decisions are the default"),
        Rechecked(Path("/natc/c.json"), "c", "shipped", "it is slower"),
        Rechecked(Path("/w/d.json"), "d", "undecided", "too noisy to decide"),
        Rechecked(Path("/w/e.json"), "e", "unusable", "it was made in another space"),
    )
    code, out, _ = natc("tune", "--recheck")
    assert code == 0 and asked == [(None, HOST)]
    assert out.splitlines()[::2] == [
        "a: kept: it is 1.3 times as fast",
        "b: removed: its decisions are the default",
        "c: does not win, but comes with natc and stays: it is slower",
        "d: kept, undecided: too noisy to decide",
        "e: not measured: it was made in another space",
    ]
    assert out.splitlines()[1] == "    /w/a.json"
    words = ("tune", "--recheck", "--kernel", "5", "--no-rpb", "--operations", "forward,delta")
    natc.json(*words)
    assert asked[-1] == (
        [("na2d_k5_d32_float32", "forward"), ("na2d_k5_d32_float32", "delta")],
        HOST,
    )


def test_rechecking_nothing_says_so(natc: Natc, rechecked: Callable[..., list[Any]]) -> None:
    rechecked()
    assert natc("tune", "--recheck").out == f"There is no schedule for {HOST} to compare.\n"
    refused = natc("tune", "--recheck", "--export", "x", "--kernel", "7")
    assert refused.code != 0 and "--recheck takes no --export" in refused.err


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (("--target", "llvm"), "llvm"),
        (("--export", "x"), "--predict takes no --export"),
        (("--minutes", "2"), "--predict takes no --minutes"),
        (("--recheck",), "--predict takes no --recheck"),
    ],
)
def test_a_prediction_refuses_what_measures(
    natc: Natc, words: tuple[str, ...], names: str
) -> None:
    refused = natc("tune", "--kernel", "7", "--predict", *words)
    assert refused.code == 2 and names in refused.err and "Traceback" not in refused.err


def test_only_a_prediction_is_saved_on_request(natc: Natc) -> None:
    refused = natc("tune", "--kernel", "7", "--save")
    assert refused.code == 2 and "--save goes with --predict" in refused.err


def test_a_prediction_needs_nvcc(natc: Natc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    words = ("--target", "cuda", "--arch", "9.0a", "--predict")
    refused = natc("tune", "--kernel", "7", *words)
    assert refused.code == 1 and "nvcc was not found" in refused.err
