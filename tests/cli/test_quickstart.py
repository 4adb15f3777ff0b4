"""What `natc quickstart` keeps: a tuned kernel that is faster than the default, else nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.builder_double import Builder
from support.command_line import Natc
from support.search_events import finish
from support.written_files import facts

import natc.tune as natc_tune
from natc.bench.problem import BenchProblem
from natc.bench.results import Results, Row
from natc.cli.verbs import quickstart
from natc.cli.views import kept
from natc.cli.views.kept import SavedSchedule, Speedup
from natc.errors import NatcError
from natc.host.detect import detect_host_cpu
from natc.spec import KernelSpec
from natc.store import workspace
from natc.tune.events import SearchFinished

pytestmark = pytest.mark.quick

SPEC = KernelSpec.make(7, rpb=True)
PROBLEMS = [BenchProblem.make(SPEC, shape) for shape in ((1, 56, 56, 2), (1, 7, 7, 16))]
# How long the tuned kernel takes, in times of the default, with the bounds; one for each shape.
Ratios = Sequence[tuple[float, float, float]]
SLOWER = ((1.16, 1.12, 1.2), (1.29, 1.25, 1.33))
FASTER = ((0.8, 0.75, 0.85), (0.9, 0.85, 0.95))
AS_FAST = ((0.95, 0.9, 1.0), (1.02, 0.99, 1.05))


def results(ratios: Ratios, **changes: Any) -> Results:
    """Return the times that a run would find, in which the default kernel takes 1 ms."""
    rows = []
    for problem, (ratio, low, high) in zip(PROBLEMS, ratios, strict=True):
        times: dict[str, Any] = {"problem": problem, "quartile_seconds": (1e-4, 1e-2)}
        rows.append(Row(contestant=kept.DEFAULT, median_seconds=1e-3, **times))
        fields = {"ratio_to_first": ratio, "ratio_interval": (low, high), **times, **changes}
        rows.append(Row(contestant=kept.TUNED, **{"median_seconds": ratio * 1e-3, **fields}))
    return Results(device="cpu", environment=facts(), rows=rows)


@pytest.fixture
def run(
    natc: Natc, builder: Builder, place: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    """Return a function that runs the quickstart, and returns its document.

    The search's result and the times that are measured afterwards are injected.
    """
    builder.untuned_code = b"default"

    def start(finished: SearchFinished, written: str | None, ratios: Ratios) -> dict[str, Any]:
        def search(*_: Any, **__: Any) -> SearchFinished:
            if written is not None:
                path = schedule_file()
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(written)
            return finished

        def measured(spec: Any, target: Any, kernels: dict[str, Any]) -> Results:
            timed.append(list(kernels))
            return results(ratios)

        timed: list[list[str]] = []
        monkeypatch.setitem(vars(natc_tune), "tune", search)
        monkeypatch.setattr(quickstart, "_time", measured)
        monkeypatch.setattr(quickstart, "_contestant", lambda *_: None)
        monkeypatch.setattr(quickstart, "run_network", lambda *_, **__: {"picture": place})
        words = ["quickstart", "--minutes", "0.75", "--output", str(place / "shown"), "--json"]
        code, out, err = natc(*words)
        assert code == 0, err
        document = json.loads(out)
        assert document["kept"]["message"] in err
        return {**document, "timed": timed, "err": err}

    return start


def schedule_file() -> Path:
    return workspace.schedule_path(SPEC, detect_host_cpu())


def test_a_slower_schedule_is_not_kept_whatever_the_search_says(
    run: Callable[..., dict[str, Any]], builder: Builder
) -> None:
    # The search says 3.9 times as fast; in the table the kernel is 16 and 29 % slower.
    document = run(finish(), "{}", SLOWER)
    assert document["kept"]["kernel"] == "default kernel"
    assert "the default is faster, nothing was saved" in document["kept"]["message"]
    assert document["kept"]["comparison"]["median"] == pytest.approx((1.16 * 1.29) ** -0.5)
    assert not schedule_file().exists()
    assert document["timed"] == [["default kernel", "tuned kernel"]]
    # Two to compare; then what programs will run, with a bias and without.
    assert builder.untuned == [True, False, True, True]


def test_a_faster_schedule_is_kept(run: Callable[..., dict[str, Any]], builder: Builder) -> None:
    document = run(finish(), "{}", FASTER)
    assert document["kept"]["kernel"] == "tuned kernel"
    assert "1.18 times as fast, 1.11 to 1.25: kept" in document["kept"]["message"]
    assert schedule_file().read_text() == "{}"
    assert builder.untuned == [True, False, False, False]


@pytest.mark.parametrize("before", ["[]", None], ids=["tuned before", "never tuned"])
def test_what_is_as_fast_is_not_saved(
    run: Callable[..., dict[str, Any]], before: str | None
) -> None:
    if before is not None:
        schedule_file().parent.mkdir(parents=True)
        schedule_file().write_text(before)
    document = run(finish(), "{}", AS_FAST)
    assert "the default is as fast, nothing was saved" in document["kept"]["message"]
    assert (schedule_file().read_text() if schedule_file().exists() else None) == before


NOTHING = SearchFinished(
    "unmeasured", "no candidate was measured in that time", None, Path("/w/x.jsonl"), None,
    4e-3, 0, 0, 12.0,
)  # fmt: skip


@pytest.mark.parametrize("ratios", [SLOWER, AS_FAST], ids=["slower", "as fast"])
def test_an_earlier_schedule_goes_only_if_it_is_slower(
    run: Callable[..., dict[str, Any]], ratios: Ratios
) -> None:
    schedule_file().parent.mkdir(parents=True)
    schedule_file().write_text("{}")
    document = run(NOTHING, None, ratios)
    assert "For more time: natc quickstart --minutes 1.5" in document["err"].splitlines()
    assert schedule_file().exists() == (ratios is AS_FAST)
    removed = f"the default is faster, {schedule_file()} was removed"
    assert (removed in document["kept"]["message"]) == (ratios is SLOWER)


def test_the_default_is_not_compared_with_itself(
    run: Callable[..., dict[str, Any]], builder: Builder
) -> None:
    builder.untuned_code = b"no code"
    document = run(finish(), "{}", AS_FAST)
    assert document["timed"] == [["default kernel"]] and not schedule_file().exists()
    assert document["kept"] == {
        "kernel": "default kernel",
        "message": "the tuned kernel is the default: nothing was saved",
        "comparison": None,
    }


def test_bounds_of_several_shapes_hold_their_mean() -> None:
    assert kept.compare(results(SLOWER)) == pytest.approx(
        ((1.16 * 1.29) ** -0.5, (1.2 * 1.33) ** -0.5, (1.12 * 1.25) ** -0.5)
    )


def test_a_wrong_kernel_is_an_error() -> None:
    with pytest.raises(NatcError, match="wrong result"):
        kept.compare(results(FASTER, median_seconds=None, note="wrong result"))


def test_few_samples_decide_nothing(tmp_path: Path) -> None:
    speedup = kept.compare(results(FASTER, ratio_interval=None))
    assert speedup.low == 0 and speedup.median > 1
    outcome = kept.keep(speedup, SavedSchedule(tmp_path / "x.json"), saved=True)
    # The search compared the two for longer.
    assert outcome.kernel == kept.TUNED and "too few samples" in outcome.message


def test_a_shipped_schedule_is_left_alone(tmp_path: Path) -> None:
    absent = SavedSchedule(tmp_path / "x.json")
    slower = Speedup(0.8, 0.7, 0.9)
    assert kept.keep(slower, absent, saved=False).kernel == kept.DEFAULT
