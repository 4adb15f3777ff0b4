"""Best candidate found against candidates measured: `python benchmarks/search.py LOG`.

It replays searches over a log of candidates that were measured in alternation with the default: a
search asks for candidates of the log, and gets their times from it. So all strategies see the same
times, and chance is only in their proposals. They learn from the default, which does not count as
found. Strategies are natc's model, MetaSchedule's evolutionary search with its own XGBoost model,
where it can read the kernels, and plain random choice.

Such a log comes from `benchmarks/search_table.py`.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from natc.cli import output
from natc.errors import ArgumentError, NatcError
from natc.host import environment
from natc.spec import KernelSpec
from natc.store.records import Environment, Trial, read_log
from natc.targets import Target
from natc.tune.history import Key, key_of
from natc.tune.measure.workload import default_shapes
from natc.tune.search.model import Model
from natc.tune.search.proposer import Proposer

RESULTS = Path(__file__).parent / "results"
# MetaSchedule's cost model reads kernels of these spaces, for one example shape.
READABLE = ("llvm_blocked", "llvm_direct")
BATCH = 6
FAILED = 10.0  # the ratio that stands for a failure

Decisions = Mapping[str, int]


class Strategy(Protocol):
    """Proposes candidates and learns from trials, as in a search."""

    def propose(self) -> Sequence[Decisions]:
        """Return the next candidates; none if all were proposed."""
        ...

    def learn(self, trials: Iterable[Trial]) -> None:
        """Take in results."""
        ...


class Chance:
    """Proposes every candidate once, in an order that chance decides."""

    def __init__(self, candidates: Iterable[Decisions], seed: int) -> None:
        self.waiting = sorted(candidates, key=key_of)
        random.Random(seed).shuffle(self.waiting)

    def propose(self) -> Sequence[Decisions]:
        """Return the next candidates; none if all were proposed."""
        first, self.waiting = self.waiting[:BATCH], self.waiting[BATCH:]
        return first

    def learn(self, trials: Iterable[Trial]) -> None:
        """Learn nothing."""


class Table:
    """The trials of a log; the last trial of each candidate counts."""

    def __init__(self, path: Path) -> None:
        records, problems = read_log(path)
        trials = [record for record in records if isinstance(record, Trial)]
        usable = {key_of(trial.decisions): trial for trial in trials if trial.ratio or trial.error}
        kernels = {(trial.spec, trial.target, trial.operation, trial.space) for trial in trials}
        if problems or len(kernels) != 1 or not any(t.ratio == 1.0 for t in trials):
            raise ArgumentError(
                f"log {path} does not hold candidates of one kernel, and its default."
            )
        self.trials: dict[Key, Trial] = usable
        ((spec, target, self.operation, self.space),) = kernels
        self.spec, self.target = KernelSpec.parse(spec), Target.parse(target)
        self.default = next(trial for trial in trials if trial.ratio == 1.0)
        tuned = [trial for trial in usable.values() if trial.ratio != 1.0]
        self.best = min(trial.ratio or FAILED for trial in tuned)
        self.machines = [record for record in records if isinstance(record, Environment)]

    def replay(self, strategy: Strategy, budget: int) -> list[float]:
        """Return the best ratio after each measured candidate, over the best in the log."""
        strategy.learn([self.default])
        seen, ratios = {key_of(self.default.decisions)}, list[float]()
        while len(ratios) < budget:
            proposed = strategy.propose()
            if not proposed:
                break
            trials = [self.trials[key] for key in map(key_of, proposed) if key in self.trials]
            strategy.learn(trials)
            new = [trial for trial in trials if key_of(trial.decisions) not in seen]
            seen |= {key_of(trial.decisions) for trial in new}
            ratios += [trial.ratio or FAILED for trial in new]
        best = [min(ratios[: count + 1]) / self.best for count in range(len(ratios))]
        return (best + [best[-1]] * budget)[:budget]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("log", type=Path, help="a log of candidates of one kernel")
    parser.add_argument(
        "--taught", type=Path, nargs="*", default=[], help="logs of other kernels of the space"
    )
    parser.add_argument("--budget", type=int, default=36, help="candidates to measure")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    try:
        results = compare(options.log, options.taught, options.budget, options.seeds)
    except NatcError as error:
        raise SystemExit(f"{error}") from None
    if options.json:
        output.print_json(results)
        return
    for name, strategy in results["strategies"].items():
        figures = [mean(curve[n - 1] for curve in strategy["curves"]) for n in results["counts"]]
        print(f"{name:24}" + "".join(f"{figure:8.3f}" for figure in figures))


def compare(log: Path, taught_logs: Sequence[Path], budget: int, seeds: int) -> dict[str, Any]:
    """Return the curves of all strategies for each seed."""
    table = Table(log)
    taught = [trial for path in taught_logs for trial in Table(path).trials.values()]
    start: dict[str, Callable[[int], Strategy]] = {
        "model": lambda seed: _model(table, seed, []),
        "random": lambda seed: Chance((t.decisions for t in table.trials.values()), seed),
    }
    if taught:
        start["model, taught"] = lambda seed: _model(table, seed, taught)
    if table.space.name in READABLE:
        shape = default_shapes(table.spec, table.target)[0]
        start["MetaSchedule"] = lambda seed: Proposer(
            table.spec, table.target, shape, batch=BATCH, seed=seed
        )
    strategies = {}
    for name, strategy in start.items():
        begin = time.process_time()
        curves = [table.replay(strategy(seed), budget) for seed in range(seeds)]
        seconds = (time.process_time() - begin) / (seeds * budget)
        strategies[name] = {"curves": curves, "cpu_seconds_a_candidate": seconds}
    return {
        "environment": environment.collect(),
        "measured_on": table.machines,
        "spec": table.spec.name,
        "target": table.target.name,
        "operation": table.operation,
        "space": table.space,
        "candidates": len(table.trials),
        "best_ratio": table.best,
        "counts": [n for n in (1, 6, 12, 18, 24, 36, 48, 60) if n <= budget],
        "strategies": strategies,
    }


def _model(table: Table, seed: int, taught: Iterable[Trial]) -> Model:
    model = Model(table.spec, table.target, table.operation, batch=BATCH, seed=seed)
    model.pass_over(each for each in model.candidates if key_of(each) not in table.trials)
    model.learn(taught)
    return model


def mean(ratios: Iterable[float]) -> float:
    """Return a geometric mean."""
    return math.exp(statistics.fmean(map(math.log, ratios)))


if __name__ == "__main__":
    main()
