from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from support import written_files
from support.written_files import SPEC, TARGET

from natc.errors import NatcError, ScheduleError
from natc.spec import KernelSpec
from natc.store import schedules, workspace
from natc.store.records import SpaceVersion
from natc.store.schedules import (
    Gain,
    Measurement,
    Prediction,
    Schedule,
    list_schedules,
    load_schedule,
    save_schedule,
)

SECONDS = {"1x7x7x16x32": 2.0e-05, "1x56x56x2x32": 1.23456789e-3}
MEASURED = Measurement(
    seconds=SECONDS,
    baseline_seconds={shape: 3 * value for shape, value in SECONDS.items()},
    score=1.2545678e-3,
    objective="sum of seconds",
    trials=40,
)


def make_schedule() -> Schedule:
    return written_files.make_schedule(decisions={"unroll": 3, "tile_h": 4}, measured=MEASURED)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NATC_WORKSPACE", str(tmp_path))
    for name in ("PACKAGED_DATA", "SHIPPED"):
        monkeypatch.setattr(workspace, name, tmp_path / "shipped")
    return tmp_path


def test_a_saved_schedule_is_loaded(place: Path) -> None:
    path = save_schedule(make_schedule())
    assert path == place / "schedules" / TARGET.name / f"{SPEC.name}.json"
    loaded = load_schedule(SPEC, TARGET)
    assert loaded is not None
    assert loaded.decisions == {"unroll": 3, "tile_h": 4}
    assert loaded.measured.seconds["1x56x56x2x32"] == 1.235e-3
    assert loaded.space == SpaceVersion("cpu", 1)
    saved = path.read_bytes()
    save_schedule(loaded)
    assert path.read_bytes() == saved


def test_the_gain_is_kept_and_is_the_speedup() -> None:
    assert MEASURED.speedup == pytest.approx(3)
    gain = Gain(speedup=1.34, low=1.31, high=1.37, pairs=64)
    schedule = make_schedule()
    measured = msgspec.structs.replace(schedule.measured, gain=gain)
    save_schedule(msgspec.structs.replace(schedule, measured=measured))
    loaded = load_schedule(SPEC, TARGET)
    assert loaded is not None and loaded.measured.gain == gain and loaded.measured.speedup == 1.34


PREDICTED = Prediction(speedup=1.2, model="a model, version 3")


def predicted_schedule() -> Schedule:
    return written_files.make_schedule(measured=None, predicted=PREDICTED)


def test_a_predicted_schedule_names_its_model() -> None:
    path = save_schedule(predicted_schedule())
    assert "measured" not in json.loads(path.read_text())
    loaded = load_schedule(SPEC, TARGET)
    assert loaded is not None and loaded.predicted == PREDICTED and loaded.measured is None
    assert (loaded.speedup, loaded.evidence) == (1.2, "predicted by a model, version 3")
    assert make_schedule().evidence == "measured"


def test_a_schedule_has_one_kind_of_evidence() -> None:
    for evidence in ({"measured": None}, {"predicted": PREDICTED}):
        with pytest.raises(ScheduleError, match="measured.*predicted"):
            written_files.make_schedule(**evidence)


def test_a_prediction_never_replaces_times(place: Path) -> None:
    path = save_schedule(make_schedule())
    assert save_schedule(predicted_schedule()) == path
    loaded = load_schedule(SPEC, TARGET)
    assert loaded is not None and loaded.predicted is None
    # Times of another design space say nothing about these decisions.
    newer = msgspec.structs.replace(predicted_schedule(), space=SpaceVersion("cpu", 2))
    save_schedule(newer)
    assert (loaded := load_schedule(SPEC, TARGET)) is not None and loaded.predicted == PREDICTED
    # Times replace a prediction.
    save_schedule(make_schedule())
    assert (loaded := load_schedule(SPEC, TARGET)) is not None and loaded.measured is not None


@pytest.mark.parametrize(
    ("share", "shapes", "replaces"),
    [(0.49, 2, True), (0.51, 2, False), (0.49, 1, True), (0.01, 0, False)],
)
def test_a_prediction_far_below_replaces_times(share: float, shapes: int, replaces: bool) -> None:
    """Below half of the measured time, over the shapes that both have."""
    save_schedule(make_schedule())
    seconds = {key: share * value for key, value in list(SECONDS.items())[:shapes]}
    seconds["1x9x9x1x32"] = 1e-9
    prediction = Prediction(speedup=1.0, model="a model", seconds=seconds)
    save_schedule(written_files.make_schedule(measured=None, predicted=prediction))
    loaded = load_schedule(SPEC, TARGET)
    assert loaded is not None and (loaded.predicted is not None) == replaces
    if replaces:
        assert loaded.predicted.seconds == pytest.approx(seconds, rel=1e-3)


def test_a_file_can_be_passed_over(place: Path) -> None:
    """With `but`, the search for a schedule ignores that file."""
    own = save_schedule(make_schedule())
    assert load_schedule(SPEC, TARGET, but=own) is None
    shipped = place / "shipped" / own.relative_to(place)
    shipped.parent.mkdir(parents=True)
    shipped.write_bytes(own.read_bytes())
    assert workspace.find_schedule(SPEC, TARGET) == own
    assert workspace.find_schedule(SPEC, TARGET, but=own) == shipped


def test_no_schedule_is_none() -> None:
    assert load_schedule(SPEC, TARGET) is None
    assert list_schedules() == []


def test_the_order_of_entries_changes_no_byte() -> None:
    schedule = make_schedule()
    measured = schedule.measured
    turned = msgspec.structs.replace(
        schedule,
        decisions=dict(reversed(schedule.decisions.items())),
        measured=msgspec.structs.replace(
            measured, seconds=dict(reversed(measured.seconds.items())), score=1.2546e-3
        ),
    )
    assert schedules.dump(schedule) == schedules.dump(turned)
    read = json.loads(schedules.dump(schedule))
    assert list(read["measured"]["seconds"]) == ["1x56x56x2x32", "1x7x7x16x32"]
    assert schedules.dump(schedule).endswith("}\n")


def test_a_newer_schedule_says_upgrade_and_is_kept() -> None:
    path = save_schedule(make_schedule())
    newer = json.dumps({"schema_version": 2, "everything": "else"})
    path.write_text(newer)
    with pytest.raises(ScheduleError, match=r"version 2, written by a newer natc.*[Uu]pgrade"):
        load_schedule(SPEC, TARGET)
    assert path.read_text() == newer


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"\xff\xfe",
        lambda data: b"[]",
        lambda data: data.replace(b'"tile_h": 4', b'"tile_h": 5'),
        lambda data: data.replace(b'"decisions"', b'"choices"'),
        lambda data: data.replace(b"llvm-x86-64-v3", b"llvm-x86-64-v9"),
        lambda data: data.replace(b"na2d_k7_", b"na2d_k1_"),
    ],
)
def test_a_damaged_schedule_is_named_and_kept(damage: object) -> None:
    path = save_schedule(make_schedule())
    damaged = damage(path.read_bytes())  # type: ignore[operator]
    path.write_bytes(damaged)
    with pytest.raises(ScheduleError) as caught:
        load_schedule(SPEC, TARGET)
    assert str(path) in str(caught.value)
    assert "damaged" in str(caught.value)
    assert path.read_bytes() == damaged


def test_a_schedule_under_another_name_is_refused() -> None:
    path = save_schedule(make_schedule())
    renamed = path.with_name("na2d_k5_d32_float32.json")
    path.rename(renamed)
    with pytest.raises(ScheduleError, match="na2d_k7_d32_float32_rpb"):
        load_schedule(KernelSpec.make(5), TARGET)


def test_the_list_holds_the_good_and_the_bad() -> None:
    good = save_schedule(make_schedule())
    bad = good.with_name("na2d_k5_d32_float32.json")
    bad.write_text("{")
    (unusable, usable) = list_schedules()
    assert (usable.path, usable.problem) == (good, None)
    assert usable.schedule is not None
    assert (unusable.path, unusable.schedule) == (bad, None)
    assert unusable.problem is not None and str(bad) in unusable.problem


def test_an_unwritable_workspace_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "file").touch()
    monkeypatch.setenv("NATC_WORKSPACE", str(place / "file"))
    with pytest.raises(NatcError) as caught:
        save_schedule(make_schedule())
    assert str(place / "file" / "schedules" / TARGET.name) in str(caught.value)


def test_every_schedule_that_ships_is_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parent.parent.parent
    for path in sorted((root / "schedules").glob("*/*.json")):
        assert schedules.dump(schedules.read_schedule(path)) == path.read_text(encoding="utf-8")
