"""A kernel without a schedule uses a near kernel's if its decisions made near kernels faster."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from support.written_files import facts, make_schedule

from natc.spec import KernelSpec
from natc.store import schedules, workspace
from natc.store.nearest import KernelGain, expected_speedup, usable_schedules
from natc.store.records import SpaceVersion, Trial, append
from natc.targets import Target

pytestmark = pytest.mark.quick

CPU = Target.parse("llvm-x86-64-v3")
K5, K7, K9, K11 = (KernelSpec.make(size) for size in (5, 7, 9, 11))
SPACE = SpaceVersion("cpu", 1)
WIDE, NARROW = {"tile": 8}, {"tile": 1}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NATC_WORKSPACE", str(tmp_path))
    monkeypatch.setattr(workspace, "SHIPPED", tmp_path / "shipped")
    return tmp_path


def save(spec: KernelSpec, decisions: Mapping[str, int], speedup: float) -> None:
    shape = f"1x56x56x2x{spec.head_dim}"
    measured = schedules.Measurement(
        seconds={shape: 1.0},
        baseline_seconds={shape: speedup},
        score=1.0,
        objective="",
        trials=1,
    )
    schedules.save_schedule(
        make_schedule(
            spec=spec.name,
            target=CPU.name,
            space=SPACE,
            decisions=dict(decisions),
            measured=measured,
        )
    )


def log(spec: KernelSpec, decisions: Mapping[str, int], ratio: float) -> None:
    machine = facts()
    path = workspace.log_path(spec, CPU)
    append(path, machine)
    trial = Trial(
        spec=spec.name,
        target=CPU.name,
        space=SPACE,
        decisions=dict(decisions),
        seconds={"1x56x56x2x32": ratio},
        error=None,
        ratio=ratio,
        environment=machine.id,
        timestamp="2026-01-02T03:04:05+00:00",
        trial=0,
    )
    append(path, trial)


def choice(spec: KernelSpec) -> tuple[KernelSpec, float]:
    best = usable_schedules(spec, CPU, "forward", SPACE)[0][0]
    assert best.speedup is not None
    return best.kernel, best.speedup


def test_nearer_kernels_count_more_and_doubt_remains() -> None:
    def expected(*gains: tuple[KernelSpec, float]) -> float:
        return expected_speedup(
            K7, WIDE, [KernelGain(spec, WIDE, speedup) for spec, speedup in gains]
        )

    assert expected() == 1.0
    assert 1.0 < expected((K11, 1.5)) < expected((K9, 1.5)) < expected((K7, 1.5)) < 1.5
    assert expected((K9, 1.5), (K5, 1.5)) > expected((K9, 1.5))
    # Slower on the nearer kernel, faster on the farther one.
    assert expected((K9, 0.8), (K11, 1.2)) < 1.0 < expected((K9, 1.2), (K11, 0.8))
    assert expected_speedup(K7, NARROW, [KernelGain(K7, WIDE, 2.0)]) == 1.0
    with_bias = KernelSpec.make(7, rpb=True)
    assert 1.0 < expected((with_bias, 1.5)) < expected((K7, 1.5))


def test_the_schedule_that_is_expected_to_gain_most_comes_first() -> None:
    save(K9, NARROW, 1.1)
    save(K11, WIDE, 1.5)
    assert choice(K7)[0] == K11
    save(K5, NARROW, 2.0)
    assert choice(K7)[0] in (K5, K9)  # both have these decisions


def test_what_a_log_says_about_the_decisions_counts() -> None:
    save(K9, WIDE, 1.3)
    kernel, alone = choice(K7)
    assert kernel == K9 and 1.15 < alone < 1.3
    log(K5, WIDE, ratio=1.0)
    assert 1.0 < choice(K7)[1] < alone
    # A measurement on the kernel itself counts most.
    log(K7, WIDE, ratio=1.2)
    assert choice(K7)[1] < 0.97


def test_an_own_schedule_is_used_whatever_others_gain() -> None:
    save(K9, WIDE, 3.0)
    save(K7, NARROW, 1.1)
    ((schedule, kernel, speedup),), outdated = usable_schedules(K7, CPU, "forward", SPACE)
    assert (kernel, schedule.decisions, outdated) == (K7, NARROW, [])
    assert speedup == pytest.approx(1.1)


def test_schedules_of_another_space_are_outdated() -> None:
    save(K7, NARROW, 1.1)
    usable, outdated = usable_schedules(K7, CPU, "forward", SpaceVersion("cpu", 2))
    assert usable == [] and [schedule.spec for schedule in outdated] == [K7.name]
    assert usable_schedules(KernelSpec.make(7, head_dim=64), CPU, "forward") == ([], [])
