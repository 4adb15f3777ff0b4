"""Times some candidates of a design space, for `benchmarks/search.py`.

`python benchmarks/search_table.py --kernel 7 --candidates 200 LOG` appends trials to LOG: of the
default, of the candidates that differ from it in one decision, and of others that chance chooses.
Run it again to continue. Candidates are timed on one thread in alternation with the default; with
--priority nobody else runs on that core meanwhile (Linux, root), so a busy machine matters little.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from natc.compiler.space import all_decisions, space_for
from natc.errors import NatcError
from natc.host import detect, environment
from natc.operations import FORWARD
from natc.spec import KernelSpec
from natc.store.records import SpaceVersion, Trial, append
from natc.store.temporary import temporary_directory
from natc.targets import Target
from natc.tune.history import History, key_of
from natc.tune.measure import worker
from natc.tune.measure.measurer import BuiltLibrary, Times
from natc.tune.measure.pairs import log_ratios
from natc.tune.measure.processes import JobError, Process, why
from natc.tune.measure.workload import Shape, default_shapes, keys_of
from natc.tune.search.measurer import Builders

_TOGETHER = 8  # candidates that are timed in alternation, beside the default
_TURNS = 24
_PRIORITY = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("log", type=Path)
    parser.add_argument("--kernel", type=int, default=7)
    parser.add_argument("--head-dim", type=int, default=32)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--target", default="llvm")
    parser.add_argument("--operation", default=FORWARD)
    parser.add_argument("--candidates", type=int, default=200, help="in the table, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--priority", action="store_true", help="time with real-time priority")
    options = parser.parse_args()
    spec = KernelSpec.make(
        options.kernel, head_dim=options.head_dim, dtype=options.dtype, rpb=True
    )
    try:
        collect(
            options.log,
            spec,
            detect.parse_target(options.target, None),
            options.operation,
            options.candidates,
            options.seed,
            with_priority=options.priority,
        )
    except NatcError as error:
        raise SystemExit(f"{error}") from None


def collect(
    log: Path,
    spec: KernelSpec,
    target: Target,
    operation: str,
    count: int,
    seed: int,
    *,
    with_priority: bool,
) -> None:
    """Append trials to a log until it has `count` candidates of a kernel's operation."""
    import search_table  # a process that times can import this module, not `__main__`

    design = space_for(target, operation, spec)
    space = SpaceVersion(design.name, design.version)
    shapes = default_shapes(spec, target)
    keys, machine = keys_of(shapes, spec), environment.collect(seed)
    history = History(log, spec, space, keys, machine, operation)
    append(log, machine)
    candidates = choose(all_decisions(spec, target, operation), count, seed)
    default = candidates[0]
    waiting = [each for each in candidates if history.get(each) is None or each == default]
    record = partial(
        Trial,
        spec=spec.name,
        target=target.name,
        operation=operation,
        space=space,
        environment=machine.id,
    )
    with temporary_directory("table") as scratch, Builders(spec, target, operation) as builders:
        process = Process(scratch)
        try:
            pending = [(each, builders.build(each, may_spill=True)) for each in waiting]
            library_of_default = pending.pop(0)[1].result()
            while pending:
                part, pending = pending[:_TOGETHER], pending[_TOGETHER:]
                libraries, kept = [library_of_default], [default]
                for decisions, build in part:
                    try:
                        libraries.append(build.result())
                        kept.append(decisions)
                    except (JobError, TimeoutError, ChildProcessError) as error:
                        text = why(error, "to build")
                        trial = record(
                            decisions=decisions,
                            seconds=None,
                            error=text,
                            timestamp=environment.now(),
                            trial=history.next_trial,
                        )
                        append(log, trial)
                        history.next_trial += 1
                turns: Times = process.run(
                    search_table.time_alone,
                    (spec.name, target.name, _paths(libraries), shapes, operation, with_priority),
                    600,
                )
                is_first = history.get(default) is None
                for number, decisions in enumerate(kept):
                    if number == 0 and not is_first:
                        continue
                    ratios = log_ratios(turns, number, 0)
                    trial = record(
                        decisions=decisions,
                        seconds=_seconds(turns, number, keys),
                        error=None,
                        ratio=math.exp(statistics.median(ratios)),
                        samples=len(turns),
                        features=libraries[number].features or None,
                        timestamp=environment.now(),
                        trial=history.next_trial,
                    )
                    append(log, trial)
                    history.add(trial)
                    history.next_trial += 1
        finally:
            process.close()


def choose(candidates: Sequence[dict[str, int]], count: int, seed: int) -> list[dict[str, int]]:
    """Return the default, the candidates that differ in one decision, and others by chance."""
    default = candidates[0]

    def differences(candidate: dict[str, int]) -> int:
        return sum(value != default[name] for name, value in candidate.items())

    near = [each for each in candidates if differences(each) == 1]
    far = sorted((each for each in candidates if differences(each) > 1), key=key_of)
    random.Random(seed).shuffle(far)
    return [default, *near, *far][:count]


def time_alone(
    spec_name: str,
    target_name: str,
    paths: Sequence[str],
    shapes: Sequence[Shape],
    operation: str,
    with_priority: bool,
) -> Times:
    """Return turns of libraries on one thread; with_priority: nobody interrupts them."""
    import torch

    torch.set_num_threads(1)
    arguments = spec_name, target_name, paths, shapes, operation
    worker.measure(*arguments, 1)  # compares the results with the reference
    if not with_priority:
        return worker.measure(*arguments, _TURNS)
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_PRIORITY))
    try:
        return worker.measure(*arguments, _TURNS)
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def _paths(libraries: Sequence[BuiltLibrary]) -> list[str]:
    return [str(library.path) for library in libraries]


def _seconds(turns: Times, library: int, keys: Sequence[str]) -> dict[str, float]:
    """Return shape -> the lower quartile of its seconds over turns."""
    columns = zip(*(turn[library] for turn in turns), strict=True)
    return {key: statistics.quantiles(each, n=4)[0] for key, each in zip(keys, columns)}


if __name__ == "__main__":
    main()
