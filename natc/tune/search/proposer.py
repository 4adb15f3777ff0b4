"""Proposes candidates with MetaSchedule's evolutionary search and its cost model."""

from __future__ import annotations

import contextlib
import logging
import random
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import tvm
from tvm.ir.utils import derived_object
from tvm.s_tir import Schedule
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.meta_schedule.cost_model.xgb_model import XGBConfig
from tvm.s_tir.meta_schedule.mutator import PyMutator
from tvm.s_tir.schedule import Trace

from natc.compiler.build.lower import compiler_target
from natc.compiler.space import Decisions, combinations, read_decisions, space_for
from natc.errors import ScheduleError
from natc.operations import FORWARD
from natc.spec import KernelSpec
from natc.store.records import Trial
from natc.targets import Target
from natc.tune.history import Key, key_of
from natc.tune.measure.workload import Shape

Candidate: TypeAlias = ms.MeasureCandidate
# decisions -> the trace of a schedule that follows them, None where they exclude each other
Scheduler = Callable[[Mapping[str, int]], Trace | None]

# The search stops by time or trials of its own; MetaSchedule needs a number all the same.
_UNLIMITED = 1_000_000
# A population that a fresh cost model can rank in well under a second.
_POPULATION, _GENERATIONS = 32, 2
# What MetaSchedule's database holds as the time of a candidate that failed.
_FAILED = 1e10
# After this many rounds without a new candidate, the space is used up.
_IDLE_ROUNDS = 4
_MODULE = "tvm.s_tir.tensor_intrin"
# MetaSchedule's model adds up a score for each store of a kernel, and each learns the error of
# the whole sum: at its own rate of 0.2, ten stores already overshoot and the sum diverges.
_LEARNING_RATE = 0.02


class Proposer:
    """Proposes candidates and learns from their trials, as `natc.tune.search.model.Model` does.

    The cost model ranks kernels for one example shape, since it needs constant sizes. The kernels
    that are built and measured serve any shape; they follow the same decisions.
    """

    def __init__(
        self, spec: KernelSpec, target: Target, example: Shape, *, batch: int, seed: int
    ) -> None:
        """batch: candidates to propose at once; seed: makes the proposals repeatable."""
        self._spec, self._target = spec, target
        self._space = space_for(target, spec=spec)
        make = self._space.definition
        function = make(FORWARD, spec, self._space.exponential, example=example)
        self._module = tvm.IRModule({"main": function})
        self._seed = seed + 1  # to MetaSchedule, 0 and below mean another seed every time
        self._chance = np.random.RandomState(seed).get_state()
        self.candidates: dict[str, list[int]] = {}
        designs = []
        for choices in combinations(self._space.structure(spec, target)):
            # Some choices exclude each other.
            with contextlib.suppress(ScheduleError):
                designs.append(self._schedule(choices, default_rest=False))
        # The last candidates, the results of all measured ones, and those not to propose.
        self._round: dict[Key, Candidate] = {}
        self._results: dict[Key, Any] = {}
        self._passed: set[Key] = set()
        self._database = ms.database.MemoryDatabase()
        self._model = ms.cost_model.XGBModel(
            # On so few samples, threads wait for each other longer than they compute.
            config=XGBConfig(eta=_LEARNING_RATE, nthread=1),
            num_warmup_samples=2 * batch,
        )
        rng = random.Random(seed)
        self._traces: dict[Key, Trace | None] = {}
        mutator = MutateDecision(self.candidates, self._trace, rng)
        logger = logging.getLogger("natc.tune")
        logger.propagate = False
        logger.addHandler(logging.NullHandler())
        with _without_intrinsics():
            self._context = ms.TuneContext(
                self._module,
                target=compiler_target(target),
                space_generator=ms.space_generator.ScheduleFn(
                    lambda sch: designs,
                    sch_rules=[],
                    postprocs=[],  # the spaces make nothing that would need completing
                    mutator_probs={mutator: 1.0},
                ),
                search_strategy=ms.search_strategy.EvolutionarySearch(
                    population_size=_POPULATION,
                    init_min_unmeasured=min(_POPULATION // 2, 4 * batch),
                    genetic_num_iters=_GENERATIONS,
                ),
                rand_state=self._seed,
                num_threads=1,  # the mutator runs Python
                logger=logger,
            )
        self._context.pre_tuning(_UNLIMITED, batch, designs, self._database, self._model)

    def candidate(self, decisions: Mapping[str, int]) -> dict[str, int]:
        """Return decisions completed with defaults; ScheduleError if the space lacks them."""
        return _decisions_of(self._candidate(decisions))

    def propose(self) -> list[dict[str, int]]:
        """Return the next candidates, most promising first; none when the space is used up."""
        for _ in range(_IDLE_ROUNDS):
            self._finish_round()
            with self._own_chance():
                candidates = list(self._context.generate_measure_candidates() or [])
            self._round = {key_of(_decisions_of(each)): each for each in candidates}
            proposed = [dict(key) for key in self._round if key not in self._passed]
            if proposed:
                return proposed
        return []

    def pass_over(self, candidates: Iterable[Mapping[str, int]]) -> None:
        """Never propose these candidates."""
        self._passed |= {key_of(candidate) for candidate in candidates}

    def learn(self, trials: Iterable[Trial]) -> None:
        """Train the cost model on trials of this kernel; trials of other kernels are ignored.

        A time without a ratio to the default's time teaches nothing.
        """
        candidates, results = [], []
        for trial in trials:
            key = key_of(trial.decisions)
            if trial.spec != self._spec.name or (trial.ratio is None and trial.error is None):
                continue
            # The log may hold decisions that the space lacks, recorded as failures.
            with contextlib.suppress(ScheduleError):
                candidates.append(self._round.get(key) or self._candidate(trial.decisions))
                seconds = _FAILED if trial.ratio is None else trial.ratio
                results.append(ms.runner.RunnerResult([seconds], None))
                self._results[key] = results[-1]
                self._passed.add(key)
        if not candidates:
            return
        workload = self._database.commit_workload(self._module)
        for candidate, result in zip(candidates, results, strict=True):
            record = ms.database.TuningRecord(
                candidate.sch.trace,
                workload,
                result.run_secs,
                compiler_target(self._target),
                candidate.args_info,
            )
            self._database.commit_tuning_record(record)
        self._model.update(self._context, candidates, results)

    def _candidate(self, decisions: Mapping[str, int]) -> Candidate:
        sch = self._schedule(decisions)
        return ms.MeasureCandidate(sch, ms.arg_info.ArgInfo.from_entry_func(sch.mod, False))

    def _finish_round(self) -> None:
        """Tell the search strategy the results of the last candidates, which it waits for."""
        measured = [key for key in self._round if key in self._results]
        if self._round:
            candidates = [self._round[key] for key in measured]
            self._context.notify_runner_results(candidates, [self._results[k] for k in measured])
        self._round = {}

    @contextlib.contextmanager
    def _own_chance(self) -> Iterator[None]:
        """Use a random state of our own: an untrained cost model draws from NumPy's global one."""
        theirs = np.random.get_state()
        np.random.set_state(self._chance)
        try:
            yield
        finally:
            self._chance = np.random.get_state()
            np.random.set_state(theirs)

    def _trace(self, decisions: Mapping[str, int]) -> Trace | None:
        """Return the trace of a schedule, or None for decisions that exclude each other."""
        key = key_of(decisions)
        if key not in self._traces:
            try:
                self._traces[key] = self._schedule(decisions).trace
            except ScheduleError:
                self._traces[key] = None
        return self._traces[key]

    def _schedule(self, decisions: Mapping[str, int], *, default_rest: bool = True) -> Schedule:
        answers = Decisions(decisions, self._space.name, default_rest=default_rest)
        sch = Schedule(self._module, seed=self._seed, debug_mask="none")
        self._space.apply(sch, self._spec, self._target, answers)
        for name, values in answers.candidates.items():
            allowed = self.candidates.setdefault(name, values)
            allowed.extend(value for value in values if value not in allowed)
        return sch


@derived_object
class MutateDecision(PyMutator):
    """Changes one decision of a trace, a choice of structure or a sampled number.

    MetaSchedule's own mutators change an argument of one instruction. A choice of structure
    changes which instructions follow, so the whole trace is recomputed from its decisions.
    """

    def __init__(
        self, candidates: Mapping[str, list[int]], schedule: Scheduler, rng: random.Random
    ) -> None:
        """candidates: decision -> values it may take; rng: the search's source of chance."""
        super().__init__()
        self.candidates, self.schedule, self.rng = candidates, schedule, rng

    def _initialize_with_tune_context(self, context: object) -> None:
        pass

    def apply(self, trace: Trace, _: object) -> Trace | None:
        """Return the trace with one decision changed, or None where nothing can change."""
        decisions = read_decisions(trace)
        free = [name for name in decisions if len(self.candidates[name]) > 1]
        if not free:
            return None
        name = self.rng.choice(free)
        alternatives = [value for value in self.candidates[name] if value != decisions[name]]
        return self.schedule({**decisions, name: self.rng.choice(alternatives)})

    def clone(self) -> MutateDecision:
        """Return a mutator for another thread."""
        return MutateDecision(self.candidates, self.schedule, self.rng)


def _decisions_of(candidate: Candidate) -> dict[str, int]:
    """Return the decisions of a proposed candidate; raises ScheduleError when it has none."""
    trace: Trace | None = candidate.sch.trace
    if trace is None:
        raise ScheduleError("a proposed candidate has no trace to read decisions from.")
    return read_decisions(trace)


@contextlib.contextmanager
def _without_intrinsics() -> Iterator[None]:
    """Keep MetaSchedule from importing all tensor intrinsics: a minute, and natc uses none."""
    absent = _MODULE not in sys.modules
    if absent:
        sys.modules[_MODULE] = types.ModuleType(_MODULE)
    try:
        yield
    finally:
        if absent:
            del sys.modules[_MODULE]
