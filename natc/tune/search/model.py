"""Chooses the candidates to build and to measure, by a model that learns across kernels.

XGBoost trains the model on decisions, facts about the kernel, and counts of the instructions in
its machine code. The model predicts the logarithm of a candidate's time over the time of the
default decisions, for the same kernel on the same machine, so it learns from all kernels of a
design space.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import xgboost

from natc.compiler.space import all_decisions, space_for
from natc.errors import ScheduleError
from natc.spec import KernelSpec
from natc.store.records import Trial
from natc.targets import Target
from natc.tune.history import Key, key_of

# With fewer measurements, the model would not generalize.
_FEWEST = 6
# The share of candidates that chance chooses, to try some unlike the measured ones; and the share
# before the model has learned.
_EXPLORED, _FIRST_EXPLORED = 0.2, 0.5
# The model sees a failed candidate as this many times slower than the slowest one.
_FAILED = 2.0
# After so many measurements of a kernel, built candidates that are expected to take this many
# times as long as the best one are not measured.
_JUDGED, _HOPELESS = 24, 1.15
_OPTIONS = {"objective": "reg:squarederror", "eta": 0.1, "max_depth": 3, "nthread": 1, "seed": 1}
_TREES = 100
_ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


class Example(NamedTuple):
    """Decisions of a kernel, and numbers about its machine code: {} if it was not built."""

    spec: KernelSpec
    decisions: Mapping[str, int]
    features: Mapping[str, float]


class Model:
    """Proposes the candidates of an operation, the most promising ones first.

    candidates: all that the space has. untuned: the default decisions. best_expected: the lowest
    ratio that the model expected of a candidate when it last proposed some; None if it knew too
    little.
    """

    def __init__(
        self,
        spec: KernelSpec,
        target: Target,
        operation: str,
        *,
        batch: int,
        seed: int,
        thorough: bool = False,
    ) -> None:
        """batch: candidates to propose at once; seed: makes the proposals repeatable.

        thorough: every candidate that was built is worth measuring.
        """
        self._spec, self._target = spec, target
        self._batch, self._thorough = batch, thorough
        self._facts = space_for(target, operation, spec).facts
        # The inputs of the model without features: computing them takes longer than training it.
        self._rows: dict[tuple[str, Key], dict[str, float]] = {}
        self._chance = random.Random(seed)
        self.candidates = all_decisions(spec, target, operation)
        self.untuned = self.candidates[0]
        self._keys = {key_of(candidate) for candidate in self.candidates}
        self._proposed: set[Key] = set()
        self.best_expected: float | None = None
        # The ratio of each candidate, None for a failure.
        self._ratios: dict[tuple[str, Key], tuple[Example, float | None]] = {}

    def candidate(self, decisions: Mapping[str, int]) -> dict[str, int]:
        """Return decisions completed with defaults; ScheduleError if the space lacks them."""
        whole = {**self.untuned, **decisions}
        if key_of(whole) not in self._keys:
            raise ScheduleError(f"the space has no candidate {dict(decisions)}.")
        return whole

    def learn(self, trials: Iterable[Trial]) -> None:
        """Learn from trials of this kernel or of others of the space; a later trial counts.

        A time without a ratio to the default's time teaches nothing.
        """
        for trial in trials:
            key = key_of(trial.decisions)
            if trial.spec == self._spec.name:
                self._proposed.add(key)
            if trial.ratio is not None or trial.error is not None:
                spec = KernelSpec.parse(trial.spec)
                candidate = Example(spec, trial.decisions, trial.features or {})
                self._ratios[trial.spec, key] = candidate, trial.ratio

    def pass_over(self, candidates: Iterable[Mapping[str, int]]) -> None:
        """Never propose these candidates."""
        self._proposed |= {key_of(candidate) for candidate in candidates}

    def propose(self) -> list[dict[str, int]]:
        """Return the next candidates to build, the most promising first; [] at the end.

        Chance chooses some of them. As long as there is little to learn from, it chooses half, and
        the others are candidates that differ from the default in the fewest decisions.
        """
        remaining = [c for c in self.candidates if key_of(c) not in self._proposed]
        self._chance.shuffle(remaining)
        ratios = self.predict([(candidate, {}) for candidate in remaining])
        self.best_expected = min(ratios) if ratios else None
        ranks = ratios or [self._differences(candidate) for candidate in remaining]
        order = sorted(range(len(remaining)), key=lambda index: ranks[index])
        chosen = self._with_chance(order, _EXPLORED if ratios else _FIRST_EXPLORED)
        proposed = [remaining[index] for index in chosen]
        self.pass_over(proposed)
        return proposed

    def worth_measuring(
        self, built: Sequence[tuple[Mapping[str, int], Mapping[str, float]]]
    ) -> list[bool]:
        """Return for each built candidate whether to measure it; built: decisions and features.

        False if its machine code is expected to be much slower than the best candidate's. Chance
        lets some of these pass, and all pass as long as there is little to learn from.
        """
        measured = [ratio for candidate, ratio in self._own() if candidate.features and ratio]
        enough = len(measured) >= _JUDGED and not self._thorough
        ratios = self.predict(built) if enough else None
        if ratios is None:
            return [True] * len(built)
        most = _HOPELESS * min(measured)
        return [ratio <= most or self._chance.random() < _EXPLORED for ratio in ratios]

    def predict(
        self, candidates: Sequence[tuple[Mapping[str, int], Mapping[str, float]]]
    ) -> list[float] | None:
        """Return the expected ratio of each candidate, or None with too few examples.

        The model uses features if all candidates and enough examples have them.
        """
        for use_features in (True, False):
            examples = [
                (candidate, ratio)
                for candidate, ratio in self._ratios.values()
                if candidate.features or not use_features
            ]
            asked = [Example(self._spec, *each) for each in candidates]
            if use_features and not all(candidate.features for candidate in asked):
                continue
            if candidates and sum(ratio is not None for _, ratio in examples) >= _FEWEST:
                return self._expected(examples, asked, use_features)
        return None

    def _differences(self, candidate: Mapping[str, int]) -> int:
        """Return the number of decisions in which a candidate differs from the default."""
        return sum(self.untuned.get(name) != value for name, value in candidate.items())

    def _own(self) -> list[tuple[Example, float | None]]:
        """Return the examples of this kernel."""
        return [each for each in self._ratios.values() if each[0].spec == self._spec]

    def _with_chance(self, order: list[int], share: float) -> list[int]:
        """Return the first of an ordered list, one batch; chance replaces a share by others."""
        first: list[int] = []
        while order and len(first) < self._batch:
            by_chance = self._chance.random() < share
            first.append(order.pop(self._chance.randrange(len(order)) if by_chance else 0))
        return first

    def _expected(
        self,
        examples: Sequence[tuple[Example, float | None]],
        candidates: Sequence[Example],
        use_features: bool,
    ) -> list[float]:
        slowest = max(ratio for _, ratio in examples if ratio is not None)
        labels = [math.log(ratio or _FAILED * slowest) for _, ratio in examples]
        learned = [self._row(candidate, use_features) for candidate, _ in examples]
        asked = [self._row(candidate, use_features) for candidate in candidates]
        names = sorted({name for row in (*learned, *asked) for name in row})
        matrix = xgboost.DMatrix(_matrix(learned, names), label=labels)
        model = xgboost.train(_OPTIONS, matrix, num_boost_round=_TREES)
        return np.exp(model.predict(xgboost.DMatrix(_matrix(asked, names)))).tolist()

    def _row(self, candidate: Example, use_features: bool) -> dict[str, float]:
        """Return the model's inputs for a candidate, by name."""
        key = candidate.spec.name, key_of(candidate.decisions)
        if key not in self._rows:
            self._rows[key] = self._facts_about(candidate.spec, candidate.decisions)
        if not use_features:
            return self._rows[key]
        code = {f"code {name}": value for name, value in candidate.features.items()}
        return {**self._rows[key], **code}

    def _facts_about(self, spec: KernelSpec, decisions: Mapping[str, int]) -> dict[str, float]:
        """Return the model's inputs that follow from a kernel and decisions, by name."""
        facts = {} if self._facts is None else self._facts(spec, self._target, decisions)
        return {
            **{f"decision {name}": value for name, value in decisions.items()},
            **{f"fact {name}": value for name, value in facts.items()},
            **{f"kernel_size {axis}": size for axis, size in enumerate(spec.kernel_size[::-1])},
            "rank": spec.rank,
            "taps": math.prod(spec.kernel_size),
            "head_dim": spec.head_dim,
            "value_dim": spec.value_dim,
            "item_bytes": _ITEM_BYTES[spec.dtype],
            "rpb": spec.rpb,
        }


def _matrix(rows: Sequence[Mapping[str, float]], names: Sequence[str]) -> np.ndarray:
    """Return rows as an array with a column for each name; NaN if a row lacks the name."""
    return np.array([[row.get(name, math.nan) for name in names] for row in rows], dtype=float)
