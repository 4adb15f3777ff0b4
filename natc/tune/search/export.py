"""Exports a round: chooses candidates, compiles them, drops hopeless ones."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from natc.compiler.space import space_for
from natc.errors import ArgumentError, ScheduleError, TuneError
from natc.host import detect, environment
from natc.host.toolchain import check_compilers
from natc.operations import FORWARD
from natc.spec import KernelSpec
from natc.store import workspace
from natc.store.files import make_directory
from natc.store.manifest import file_sha256
from natc.store.records import Environment, SpaceVersion, Trial, read_log
from natc.store.temporary import temporary_directory
from natc.targets import Target
from natc.tune.events import CandidatesBuilt, Event, Note
from natc.tune.history import History, Key, key_of
from natc.tune.measure import rounds
from natc.tune.measure.measuring import score
from natc.tune.measure.processes import Processes, why
from natc.tune.measure.rounds import Candidate, Dropped, Round
from natc.tune.measure.workload import Shape, default_shapes, keys_of
from natc.tune.search import builder
from natc.tune.search.engine import check_problem, present_schedule
from natc.tune.search.ranking import Ranking

_BUILD_LIMIT = 600
_BATCH = 64


def export(
    spec: KernelSpec,
    target: Target,
    directory: Path,
    *,
    operation: str = FORWARD,
    shapes: Sequence[Shape] | None = None,
    candidates: int = 64,
    seed: int = 0,
    on_event: Callable[[Event], None] | None = None,
) -> Round:
    """Compile candidates into a round, a new directory below `directory`; return the round.

    A model trained on the tuning log chooses most candidates, chance the others. A candidate is
    dropped if it spills registers, if no block of it fits on the GPU, or if its code equals
    another's; the untuned kernel and the existing schedule may spill. candidates: how many to
    compile, the untuned kernel included; there may be fewer. `natc.tune.tune` describes the other
    arguments and the errors; but neither the target's CPU nor a GPU is needed here.
    """
    tell = on_event or (lambda event: None)
    chosen = [tuple(shape) for shape in shapes or default_shapes(spec, target)]
    check_problem(spec, operation, chosen)
    if candidates < 2:
        raise ArgumentError(f"candidates is {candidates}; a round has 2 or more.")
    check_compilers(target)
    design = space_for(target, operation, spec)
    space = SpaceVersion(design.name, design.version)
    present = present_schedule(spec, target, operation, space)
    place = directory / target.name / workspace.tuned_name(spec, operation)
    if place.exists():
        raise TuneError(
            f"directory {place} exists already. Import its measurements (natc tune "
            f"--import {directory}) and export to another directory."
        )
    ranking = Ranking(spec, target, operation, batch=_BATCH, seed=seed)
    _teach(ranking, spec, target, operation, space, chosen, tell)

    make_directory(place)
    try:
        with _Builders(spec, target, operation, place) as builders:
            first = [ranking.untuned]
            if present is not None and key_of(present.decisions) != key_of(ranking.untuned):
                with contextlib.suppress(ScheduleError):
                    first.append(ranking.candidate(present.decisions))
            # The kernels to beat may spill: they run today.
            builders.build(first, may_spill=True)
            if not builders.made or builders.made[0].decisions != ranking.untuned:
                why_not = builders.dropped[0].error if builders.dropped else "no library"
                raise TuneError(
                    f"the untuned kernel {spec.name} for {target.name} cannot be measured, so "
                    f"there is nothing to compare with: {why_not}"
                )
            kept = len(builders.made)
            while len(builders.made) < candidates:
                ranking.pass_over(first)
                first = ranking.propose()[: candidates - len(builders.made)]
                if not first:
                    break
                builders.build(first)
                tell(CandidatesBuilt(len(builders.made), candidates, len(builders.dropped)))
        round_ = Round(
            natc=environment.versions()["natc"] or "",
            spec=spec.name,
            target=target.name,
            operation=operation,
            space=space,
            shapes=chosen,
            candidates=builders.made,
            present=kept > 1,
            dropped=builders.dropped,
            seed=seed,
            exported_on=environment.collect(seed),
        )
        rounds.write(place, round_)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    return round_


def _teach(
    ranking: Ranking,
    spec: KernelSpec,
    target: Target,
    operation: str,
    space: SpaceVersion,
    shapes: Sequence[Shape],
    tell: Callable[[Event], None],
) -> None:
    """Train a model on the log: on failures, and on times of the machine that measured last."""
    log = workspace.log_path(spec, target, operation)
    records, _ = read_log(log)
    trials = [record for record in records if isinstance(record, Trial)]
    last = max((t for t in trials if t.seconds), key=lambda t: t.timestamp, default=None)
    machines = {record.id: record for record in records if isinstance(record, Environment)}
    keys = keys_of(shapes, spec)
    scores: dict[Key, float | None] = {
        # A candidate that did not compile, or that spilled, does so on every machine.
        key_of(trial.decisions): None
        for trial in trials
        if trial.error and (trial.operation, trial.space) == (operation, space)
    }
    if last is not None and last.environment in machines:
        history = History(log, spec, space, keys, machines[last.environment], operation)
        for note in history.notes:
            tell(Note(note))
        scores |= {key_of(trial.decisions): score(trial, keys) for trial in history.all()}
    usable: dict[Key, float | None] = {}
    for key, seconds in scores.items():
        with contextlib.suppress(ScheduleError):
            usable[key_of(ranking.candidate(dict(key)))] = seconds
    ranking.learn([dict(key) for key in usable], list(usable.values()))


class _Builders:
    """Compiles candidates in separate processes.

    made: candidates to measure, in the order in which `build` got them. dropped: the others.
    """

    def __init__(self, spec: KernelSpec, target: Target, operation: str, place: Path) -> None:
        self._arguments = (spec.name, target.name)
        self._operation, self._place = operation, place
        self.made: list[Candidate] = []
        self.dropped: list[Dropped] = []
        self._codes: set[str] = set()
        self._stack = ExitStack()
        self._scratch = self._stack.enter_context(temporary_directory("export"))
        self._processes = Processes(max(1, detect.cores()), _BUILD_LIMIT, self._scratch)

    def __enter__(self) -> _Builders:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._processes.close()
        finally:
            self._stack.close()

    def build(self, wanted: Sequence[Mapping[str, int]], *, may_spill: bool = False) -> None:
        """Compile candidates and add each to `made` or to `dropped`."""
        start = len(self.made) + len(self.dropped) + len(self._codes)
        jobs = []
        for number, decisions in enumerate(wanted, start):
            path = self._place / f"candidate_{number:04}.so"
            names = (*self._arguments, dict(decisions), str(path), self._operation)
            # Portable: the measuring machine may have an older system.
            job = self._processes.submit(builder.build, *names, may_spill, True)
            jobs.append((dict(decisions), path, job))
        for decisions, path, job in jobs:
            try:
                useless, features = job.result()
            except Exception as error:
                useless, features = why(error, "to build"), {}
            if useless is None:
                code = file_sha256(path)
                if code not in self._codes:
                    self._codes.add(code)
                    self.made.append(
                        Candidate(
                            decisions=decisions, library=path.name, sha256=code, features=features
                        )
                    )
                    continue
                useless = "has the code of another candidate"
            path.unlink(missing_ok=True)
            self.dropped.append(Dropped(decisions=decisions, error=useless))
