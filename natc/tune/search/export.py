"""Exports a round: chooses candidates, compiles them, drops hopeless ones."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from natc.compiler.space import space_for
from natc.errors import ArgumentError, TuneError
from natc.host import environment
from natc.host.toolchain import check_compilers
from natc.operations import FORWARD
from natc.spec import KernelSpec
from natc.store import workspace
from natc.store.files import make_directory
from natc.store.records import Environment, SpaceVersion, Trial, read_log
from natc.targets import Target
from natc.tune.events import CandidatesBuilt, Event, Note
from natc.tune.history import History, trials_of_other_kernels
from natc.tune.measure import rounds
from natc.tune.measure.processes import why
from natc.tune.measure.rounds import Candidate, Dropped, Round
from natc.tune.measure.workload import Shape, default_shapes, keys_of
from natc.tune.search.engine import check_problem, check_workspace, rival_of
from natc.tune.search.measurer import Builders
from natc.tune.search.model import Model

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
    another's; the default and the schedule in use may spill. candidates: how many to compile, the
    default included; there may be fewer. `natc.tune.tune` describes the other
    arguments and the errors; but neither the target's CPU nor a GPU is needed here.
    """
    tell = on_event or (lambda event: None)
    chosen = [tuple(shape) for shape in shapes or default_shapes(spec, target)]
    check_problem(spec, target, operation, chosen)
    if candidates < 2:
        raise ArgumentError(f"candidates is {candidates}; a round has 2 or more.")
    check_compilers(target)
    design = space_for(target, operation, spec)
    space = SpaceVersion(design.name, design.version)
    check_workspace(spec, target, operation, space)
    place = directory / target.name / workspace.tuned_name(spec, operation)
    if place.exists():
        raise TuneError(
            f"directory {place} exists already. Import its measurements (natc tune "
            f"--import {directory}) and export to another directory."
        )
    proposer = Model(spec, target, operation, batch=_BATCH, seed=seed)
    proposer.learn(_trials(spec, target, operation, space, chosen, tell))
    rival = rival_of(spec, target, operation, proposer, tell)

    make_directory(place)
    try:
        with Builders(spec, target, operation, place, portable=True) as builders:
            batch = _Compiled(builders)
            # The kernels to beat may spill: they run today.
            first = [proposer.untuned] + ([rival] if rival is not None else [])
            batch.add(first, may_spill=True)
            if not batch.candidates or batch.candidates[0].decisions != proposer.untuned:
                why_not = batch.dropped[0].error if batch.dropped else "no library"
                raise TuneError(
                    f"the default of {spec.name} {operation} for {target.name} cannot be "
                    f"measured, so there is nothing to compare with: {why_not}"
                )
            kept = len(batch.candidates)
            while len(batch.candidates) < candidates:
                proposer.pass_over(first)
                first = proposer.propose()[: candidates - len(batch.candidates)]
                if not first:
                    break
                batch.add(first)
                tell(CandidatesBuilt(len(batch.candidates), candidates, len(batch.dropped)))
        round_ = Round(
            natc=environment.versions()["natc"] or "",
            spec=spec.name,
            target=target.name,
            operation=operation,
            space=space,
            shapes=chosen,
            candidates=batch.candidates,
            present=kept > 1,
            dropped=batch.dropped,
            seed=seed,
            exported_on=environment.collect(seed),
        )
        rounds.write(place, round_)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    return round_


def _trials(
    spec: KernelSpec,
    target: Target,
    operation: str,
    space: SpaceVersion,
    shapes: Sequence[Shape],
    tell: Callable[[Event], None],
) -> list[Trial]:
    """Return the failures in the log, and the trials of the machine that measured last.

    Trials of other kernels in the same design space are included.
    """
    log = workspace.log_path(spec, target, operation)
    records, _ = read_log(log)
    trials = [record for record in records if isinstance(record, Trial)]
    last = max((t for t in trials if t.seconds), key=lambda t: t.timestamp, default=None)
    machines = {record.id: record for record in records if isinstance(record, Environment)}
    # A candidate that did not compile, or that spilled, does so on every machine.
    useful = [t for t in trials if t.error and (t.operation, t.space) == (operation, space)]
    if last is not None and last.environment in machines:
        keys = keys_of(shapes, spec)
        history = History(log, spec, space, keys, machines[last.environment], operation)
        for note in history.notes:
            tell(Note(note))
        machine = machines[last.environment]
        useful += trials_of_other_kernels(spec, target, operation, space, machine)
        useful += history.all()
    return useful


class _Compiled:
    """Candidates of a round that are compiled, in order: those to measure, and the others."""

    def __init__(self, builders: Builders) -> None:
        self._builders = builders
        self._codes: set[str] = set()
        self.candidates: list[Candidate] = []
        self.dropped: list[Dropped] = []

    def add(self, wanted: Sequence[Mapping[str, int]], *, may_spill: bool = False) -> None:
        """Compile candidates, several at once."""
        builds = [self._builders.build(decisions, may_spill=may_spill) for decisions in wanted]
        for decisions, build in zip(wanted, builds, strict=True):
            try:
                library = build.result()
            except Exception as error:
                self._drop(decisions, build.path, why(error, "to build"))
                continue
            if library.sha256 in self._codes:
                self._drop(decisions, build.path, "has the code of another candidate")
                continue
            self._codes.add(library.sha256)
            self.candidates.append(
                Candidate(
                    decisions=dict(decisions),
                    library=library.path.name,
                    sha256=library.sha256,
                    features=library.features,
                )
            )

    def _drop(self, decisions: Mapping[str, int], path: Path, error: str) -> None:
        path.unlink(missing_ok=True)
        self.dropped.append(Dropped(decisions=dict(decisions), error=error))
