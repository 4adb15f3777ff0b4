"""Chooses schedules for CPUs that no machine at hand is, by a model of trials on other CPUs."""

from __future__ import annotations

from natc.compiler.space import space_for
from natc.host import environment
from natc.spec import KernelSpec
from natc.store import workspace
from natc.store.nearest import WORTHWHILE
from natc.store.records import SpaceVersion, Trial, read_log
from natc.store.schedules import Prediction, Schedule, measured_on, save_schedule
from natc.targets import Target
from natc.tune.search.model import Model
from natc.version import __version__


def predict_schedule(spec: KernelSpec, target: Target, operation: str) -> Prediction | None:
    """Write the schedule that the model expects to be the fastest; return the expected speedup.

    The model learns from all trials of the operation's design space in the logs of CPUs. None, and
    nothing is written, if they are too few, or if no candidate is expected to gain 2 percent.
    """
    design = space_for(target, operation, spec)
    space = SpaceVersion(design.name, design.version)
    model = Model(spec, target, operation, batch=1, seed=0)
    trials = [
        record
        for path in workspace.log_files()
        if path.parent.name.startswith("llvm-")
        for record in read_log(path)[0]
        if isinstance(record, Trial) and (record.operation, record.space) == (operation, space)
    ]
    model.learn(trials)
    ratios = model.predict([(decisions, {}) for decisions in model.candidates])
    if ratios is None:
        return None
    best = min(range(len(ratios)), key=lambda index: ratios[index])
    # The default is the first candidate; its own prediction is not exactly 1.
    speedup = ratios[0] / ratios[best]
    if speedup < WORTHWHILE:
        return None
    machine = environment.collect()
    name = f"natc {__version__}, XGBoost {machine.versions['xgboost']}, {len(trials)} trials"
    prediction = Prediction(speedup=speedup, model=name)
    save_schedule(
        Schedule(
            spec=spec.name,
            target=target.name,
            operation=operation,
            space=space,
            decisions=model.candidates[best],
            predicted=prediction,
            environment=measured_on(machine),
            created=environment.now(),
        )
    )
    return prediction
