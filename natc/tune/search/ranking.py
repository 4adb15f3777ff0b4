"""Proposes candidates from a list of all of them, ranked by a model of their decisions.

For operations whose kernels MetaSchedule's cost model cannot read, since it needs constant sizes.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import xgboost

from natc.compiler.space import all_decisions
from natc.errors import ScheduleError
from natc.spec import KernelSpec
from natc.store.records import Trial
from natc.targets import Target
from natc.tune.history import Key, key_of

# With fewer measurements, the model would not generalize.
_FEWEST = 12
# The share of each round that is chosen by chance, to try candidates unlike the known ones.
_EXPLORED = 0.2
# The model sees a failed candidate as this many times slower than the slowest one.
_FAILED = 2.0
_MODEL = {"objective": "reg:squarederror", "eta": 0.1, "max_depth": 4, "nthread": 1, "seed": 1}
_TREES = 100


class Ranking:
    """Proposes the candidates of an operation, the most promising ones first."""

    def __init__(
        self, spec: KernelSpec, target: Target, operation: str, *, batch: int, seed: int
    ) -> None:
        """batch: candidates to propose at once; seed: makes the proposals repeatable."""
        self._batch = batch
        self._chance = random.Random(seed)
        self._left = all_decisions(spec, target, operation)
        self.untuned = self._left[0]
        self._names = list(self.untuned)
        self._known = {key_of(candidate) for candidate in self._left}
        self._seen: dict[Key, float | None] = {}
        self._passed: set[Key] = set()

    def candidate(self, decisions: Mapping[str, int]) -> dict[str, int]:
        """Return decisions completed with defaults; ScheduleError if the space lacks them."""
        whole = {**self.untuned, **decisions}
        if key_of(whole) not in self._known:
            raise ScheduleError(f"the space has no candidate {dict(decisions)}.")
        return whole

    def propose(self) -> list[dict[str, int]]:
        """Return the next candidates, most promising first; none when all were proposed."""
        gone = self._seen.keys() | self._passed
        candidates = [candidate for candidate in self._left if key_of(candidate) not in gone]
        self._chance.shuffle(candidates)
        taught = {key: score for key, score in self._seen.items() if score is not None}
        if len(taught) >= _FEWEST:
            guesses = self._guesses(candidates)
            best = sorted(range(len(candidates)), key=lambda index: guesses[index])
            by_chance = math.floor(_EXPLORED * self._batch)
            order = best[: self._batch - by_chance]
            order += [i for i in range(len(candidates)) if i not in set(order)]
            candidates = [candidates[i] for i in order]
        return candidates[: self._batch]

    def learn(self, trials: Iterable[Trial]) -> None:
        """Keep the trials' ratios for the model; trials that the space lacks are passed over."""
        for trial in trials:
            with contextlib.suppress(ScheduleError):
                self._seen[key_of(self.candidate(trial.decisions))] = trial.ratio

    def pass_over(self, candidates: Sequence[Mapping[str, int]]) -> None:
        """Never propose these candidates, although they have no time."""
        self._passed |= {key_of(candidate) for candidate in candidates}

    def _guesses(self, candidates: Sequence[dict[str, int]]) -> list[float]:
        if not candidates:
            return []
        slowest = max(score for score in self._seen.values() if score is not None)
        scores = [_FAILED * slowest if s is None else s for s in self._seen.values()]
        examples = xgboost.DMatrix(
            self._features([dict(key) for key in self._seen]), label=np.log(scores)
        )
        model = xgboost.train(_MODEL, examples, num_boost_round=_TREES)
        return [float(x) for x in model.predict(xgboost.DMatrix(self._features(candidates)))]

    def _features(self, candidates: Sequence[Mapping[str, int]]) -> np.ndarray:
        rows = [[candidate.get(name, 0) for name in self._names] for candidate in candidates]
        return np.array(rows, dtype=float)
