"""Ranks candidates for a GPU by predicted times; needs nvcc and cuobjdump, and no GPU.

The best may become a schedule, whose evidence is then a prediction.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from natc.compiler.gpu_model.architectures import architecture
from natc.compiler.gpu_model.calibrated import COEFFICIENTS, NVCC
from natc.compiler.gpu_model.candidates import CompiledCandidate, compile_candidate
from natc.compiler.gpu_model.timing import VERSION, predict
from natc.compiler.space import all_decisions, space_for
from natc.errors import BuildError, CompilerNotFound, ModelError, TargetError
from natc.host import environment
from natc.host.c_compiler import cuda_version
from natc.operations import FORWARD
from natc.spec import KernelSpec
from natc.store.records import SpaceVersion
from natc.store.schedules import (
    Prediction,
    Schedule,
    measured_on,
    read_schedule,
    save_schedule,
)
from natc.store.temporary import temporary_directory
from natc.targets import Target
from natc.tune.events import Event, Note
from natc.tune.measure.workload import Shape, default_shapes, keys_of


@dataclass(frozen=True)
class PredictedCandidate:
    """A candidate with predicted, not measured, times.

    seconds: predicted, by shape; score: their geometric mean. limiter: what limits the shape
    that takes longest, one of `natc.compiler.gpu_model.timing.LIMITERS`. error: why there is no
    prediction.
    """

    decisions: dict[str, int]
    seconds: dict[str, float]
    score: float | None
    limiter: str | None
    registers: int
    spilled_bytes: int
    error: str | None = None


@dataclass(frozen=True)
class Ranking:
    """Candidates of an operation, sorted by predicted time, the shortest first.

    model: the version of the model; nvcc: the compiler that compiled the candidates.
    candidates_in_space: how many the space has; `candidates` may be a part of them.
    """

    spec: str
    target: str
    operation: str
    space: SpaceVersion
    evidence: str
    model: int
    nvcc: str
    candidates_in_space: int
    default_score: float | None
    candidates: list[PredictedCandidate]


def rank(
    spec: KernelSpec,
    target: Target,
    *,
    operation: str = FORWARD,
    shapes: Sequence[Shape] | None = None,
    candidates: int = 64,
    seed: int = 0,
    on_event: Callable[[Event], None] | None = None,
) -> Ranking:
    """Compile candidates and return them ranked by predicted time; nothing is measured.

    candidates: how many to compile: the default, and others that chance chooses. shapes: as in
    `natc.tune.tune`. Raises TargetError for a CPU, CompilerNotFound without nvcc or cuobjdump, and
    ModelError for an architecture without figures, or if no candidate has a prediction.
    """
    if target.kind != "cuda":
        raise TargetError(f"target is {target.name}; only times on GPUs can be predicted.")
    architecture(target.arch)
    tell = on_event or (lambda event: None)
    version = ".".join(map(str, cuda_version()))
    if version != NVCC:
        tell(
            Note(
                f"the model was calibrated with code of nvcc {NVCC}; this is nvcc {version}, "
                "whose code may differ, and predictions with it."
            )
        )
    chosen = [tuple(shape) for shape in shapes or default_shapes(spec, target)]
    design = space_for(target, operation, spec)
    everything = all_decisions(spec, target, operation)
    tuned = everything[1:]
    random.Random(seed).shuffle(tuned)
    wanted = [everything[0], *tuned[: candidates - 1]]
    ranked = []
    for number, decisions in enumerate(wanted, 1):
        ranked.append(_predicted(spec, target, operation, decisions, chosen))
        tell(Note(f"{number} of {len(wanted)} candidates"))
    if all(each.score is None for each in ranked):
        raise ModelError(
            f"no candidate of {spec.name} {operation} has a prediction: {ranked[0].error}"
        )
    default_score = ranked[0].score
    ranked.sort(key=lambda each: (each.score is None, each.score or 0.0))
    return Ranking(
        spec=spec.name,
        target=target.name,
        operation=operation,
        space=SpaceVersion(design.name, design.version),
        evidence="predicted",
        model=VERSION,
        nvcc=version,
        candidates_in_space=len(everything),
        default_score=default_score,
        candidates=ranked,
    )


@dataclass(frozen=True)
class SavedPrediction:
    """The file of the schedule that a prediction became, or the reason why it became none."""

    path: Path | None
    reason: str | None = None


def save_best(ranking: Ranking) -> SavedPrediction:
    """Write the candidate with the shortest predicted time as a schedule, labelled predicted.

    Nothing is written if the default has no prediction to compare with, or over a measured
    schedule whose time is not more than twice the predicted one. Raises NatcError as
    `save_schedule` does.
    """
    best = ranking.candidates[0]
    if ranking.default_score is None or best.score is None:
        return SavedPrediction(None, "the default decisions have no prediction to compare with")
    prediction = Prediction(
        speedup=ranking.default_score / best.score,
        model=f"model of a GPU, version {ranking.model}, nvcc {ranking.nvcc}",
        seconds=best.seconds,
    )
    path = save_schedule(
        Schedule(
            spec=ranking.spec,
            target=ranking.target,
            operation=ranking.operation,
            space=ranking.space,
            decisions=best.decisions,
            predicted=prediction,
            environment=measured_on(environment.collect()),
            created=environment.now(),
        )
    )
    if read_schedule(path).measured is not None:
        return SavedPrediction(
            None, f"{path} was measured, and the predicted time is not below half of its time"
        )
    return SavedPrediction(path)


def _predicted(
    spec: KernelSpec,
    target: Target,
    operation: str,
    decisions: Mapping[str, int],
    shapes: Sequence[tuple[int, ...]],
) -> PredictedCandidate:
    try:
        with temporary_directory("predicted") as directory:
            compiled = compile_candidate(spec, target, operation, decisions, shapes, directory)
        seconds, limiters = times(compiled, shapes)
    except CompilerNotFound:
        raise
    except (BuildError, ModelError) as error:
        return PredictedCandidate(dict(decisions), {}, None, None, 0, 0, str(error))
    keys = keys_of(shapes, spec)
    longest = max(range(len(shapes)), key=lambda index: seconds[index])
    return PredictedCandidate(
        decisions=dict(decisions),
        seconds=dict(zip(keys, seconds, strict=True)),
        score=statistics.geometric_mean(seconds),
        limiter=limiters[longest],
        registers=max(each.registers for each in compiled.resources.values()),
        spilled_bytes=compiled.spilled_bytes,
    )


def times(
    candidate: CompiledCandidate, shapes: Sequence[tuple[int, ...]]
) -> tuple[list[float], list[str]]:
    """Return the predicted seconds of a call of each shape, and what limits its longest launch."""
    chip = architecture(candidate.target.arch)
    seconds, limiters = [], []
    for shape in shapes:
        launches = [predict(work, chip, COEFFICIENTS) for work in candidate.work(shape)]
        seconds.append(sum(each.seconds for each in launches))
        limiters.append(max(launches, key=lambda each: each.seconds).limiter)
    return seconds, limiters
