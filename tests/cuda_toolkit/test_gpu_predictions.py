"""Predicted times of compiled kernels: what their machine code executes, without a GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from natc.compiler.build.chosen import choose
from natc.compiler.gpu_model import candidates as candidates_module
from natc.compiler.gpu_model.candidates import compile_candidate
from natc.errors import CompilerNotFound, ModelError, NatcError, TargetError
from natc.host import toolchain
from natc.spec import KernelSpec
from natc.store.schedules import Measurement, read_schedule, save_schedule
from natc.targets import Target
from natc.tune.events import Event, Note
from natc.tune.search import predicting

try:
    toolchain.find_nvcc()
except CompilerNotFound as error:
    pytest.skip(str(error), allow_module_level=True)

H100 = Target("cuda", "sm_90")
SPEC = KernelSpec.parse("na2d_k7_d32_float16_rpb")
SHAPE = (128, 56, 56, 2)


def test_a_warp_of_tensor_cores_takes_its_fast_path_once(tmp_path: Path) -> None:
    """16 queries and 128 keys of 32 channels are 32 products for scores and 32 for values."""
    compiled = compile_candidate(SPEC, H100, "forward", {}, [SHAPE], tmp_path)
    (work,) = compiled.work(SHAPE)
    (launch,) = compiled.launches[SHAPE]
    warps = work.threads / 32
    assert work.blocks * warps == 128 * 2 * 4 * 49
    assert work.counts["product"] / warps == pytest.approx(64)
    # A lane has 64 logits; those of keys that no window reaches need no exponential.
    assert 56 <= work.counts["mufu"] / warps <= 72
    assert 800 < sum(work.counts.values()) / warps < 1300
    # Every query's output is written once, in whole sectors.
    assert work.blocks * work.written_sectors * 32 == pytest.approx(128 * 56 * 56 * 2 * 32 * 2)
    bias_bytes = 2 * 13 * 13 * 4
    assert work.bytes == launch.tensor_bytes == 4 * 128 * 56 * 56 * 2 * 64 + bias_bytes
    assert work.local_bytes == compiled.spilled_bytes == 0


def test_cuda_cores_load_each_key_and_value_of_the_window(tmp_path: Path) -> None:
    decisions = {"tensor_cores": 0, "lanes": 4, "tile_h": 4, "tile_w": 4, "unroll": 64}
    compiled = compile_candidate(SPEC, H100, "forward", decisions, [SHAPE], tmp_path)
    (work,) = compiled.work(SHAPE)
    (launch,) = compiled.launches[SHAPE]
    assert launch.launch.block == (4, 16, 1) and launch.launch.grid == (256, 14, 14)
    # Each lane converts 8 of the 32 channels of 49 keys and values; the block has two warps.
    assert work.counts["half"] / 2 == pytest.approx(49 * 16, rel=0.05)
    assert work.waits["l1"] > 49


@pytest.mark.parametrize("arch", ["sm_80", "sm_120"])
def test_machine_code_of_other_architectures_is_known(tmp_path: Path, arch: str) -> None:
    spec, shape = KernelSpec.parse("na2d_k3_d16_float16"), (2, 16, 16, 2)
    compiled = compile_candidate(spec, Target("cuda", arch), "forward", {}, [shape], tmp_path)
    (work,) = compiled.work(shape)
    assert work.counts["product"] > 0
    assert work.blocks * work.written_sectors * 32 == pytest.approx(2 * 16 * 16 * 2 * 16 * 2)


def test_candidates_are_ranked_and_labelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predicting, "NVCC", "1.0")
    spec, notes = KernelSpec.parse("na2d_k3_d8_float32"), list[Event]()
    ranking = predicting.rank(
        spec, H100, shapes=[(2, 14, 14, 2)], candidates=2, on_event=notes.append
    )
    assert (ranking.evidence, len(ranking.candidates)) == ("predicted", 2)
    scores = [each.score for each in ranking.candidates]
    assert all(score is not None and 1e-6 < score < 1e-3 for score in scores)
    assert scores == sorted(score for score in scores if score is not None)
    warning = notes[0]
    assert isinstance(warning, Note) and "nvcc 1.0" in warning.message
    check_saved(ranking, spec)


def check_saved(ranking: predicting.Ranking, spec: KernelSpec) -> None:
    """Builds take a saved prediction, and it stays a prediction beside measured times."""
    best = ranking.candidates[0]
    saved = predicting.save_best(ranking)
    assert saved.path is not None and saved.reason is None
    schedule = read_schedule(saved.path)
    assert schedule.predicted is not None and schedule.measured is None
    assert schedule.decisions == best.decisions
    assert schedule.evidence.startswith("predicted by model of a GPU, version")
    assert schedule.predicted.seconds == pytest.approx(best.seconds, rel=1e-3)
    assert ranking.default_score is not None and best.score is not None
    assert schedule.speedup == pytest.approx(ranking.default_score / best.score, rel=1e-3)
    assert choose(spec, H100, operations=["forward"]).origin == "predicted"
    for times, is_kept in ((1.9, True), (2.1, False)):
        seconds = {shape: times * value for shape, value in best.seconds.items()}
        measured = Measurement(
            seconds=seconds, baseline_seconds=seconds, score=1.0, objective="seconds", trials=1
        )
        save_schedule(msgspec.structs.replace(schedule, predicted=None, measured=measured))
        again = predicting.save_best(ranking)
        assert (again.path is None) == is_kept
        assert again.reason is None or "not below half" in again.reason
    unknown = predicting.save_best(replace(ranking, default_score=None))
    assert unknown.path is None and "no prediction" in str(unknown.reason)


def test_a_cubin_without_the_kernel_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates_module, "disassemble", lambda path: {"another": []})
    spec = KernelSpec.parse("na2d_k3_d8_float32")
    with pytest.raises(ModelError, match="no kernel natc_forward"):
        compile_candidate(spec, H100, "forward", {}, [(2, 9, 9, 1)], tmp_path)


@pytest.mark.parametrize(
    ("target", "error", "words"),
    [
        (Target("llvm", "x86-64-v3"), TargetError, "llvm-x86-64-v3"),
        (Target("cuda", "sm_87"), ModelError, "sm_87"),
    ],
)
def test_a_target_without_figures_is_refused(
    target: Target, error: type[NatcError], words: str
) -> None:
    with pytest.raises(error, match=words):
        predicting.rank(SPEC, target)
