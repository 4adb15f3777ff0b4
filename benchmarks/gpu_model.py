"""How well the model of a GPU predicts measured times: `python benchmarks/gpu_model.py`.

Compares predictions with the trials in tuning_logs/cuda-sm_90, which an H100 measured. The work
of each candidate is in benchmarks/results/gpu_model_work.jsonl, so that this needs neither nvcc
nor a GPU; `--collect` counts the work of trials that the file lacks, which needs nvcc and goes
on where it was stopped. Coefficients are calibrated on some kernels and judged on others.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import least_squares
from scipy.stats import spearmanr

from natc.cli import output
from natc.compiler.gpu_model.architectures import architecture
from natc.compiler.gpu_model.calibrated import COEFFICIENTS, NVCC
from natc.compiler.gpu_model.timing import VERSION, Coefficients, predict
from natc.compiler.gpu_model.work import LaunchWork
from natc.errors import NatcError
from natc.store.records import Trial, read_log

ROOT = Path(__file__).parents[1]
WORK = ROOT / "benchmarks" / "results" / "gpu_model_work.jsonl"
RESULT = ROOT / "benchmarks" / "results" / "gpu_model_sm_90.json"
LOGS = ROOT / "tuning_logs" / "cuda-sm_90"
# The bounds between which coefficients are sought. The time of a launch is not: all are long.
BOUNDS = {
    "wavefront": (0.9, 1.2),
    "load_wait": (150.0, 500.0),
    "overlap": (1.0, 12.0),
    "shuffle_wait": (0.0, 60.0),
}
TOP = 8


@dataclass(frozen=True)
class Sample:
    """A measured candidate with its work. code: candidates with equal machine code share it."""

    spec: str
    decisions: Mapping[str, int]
    shape: str
    work: LaunchWork
    seconds: float

    @property
    def group(self) -> str:
        """Candidates that differ in unrolling alone: mostly the same machine code."""
        tile = {k: v for k, v in sorted(self.decisions.items()) if k != "unroll"}
        return f"{self.spec} {tile}"


def samples(work: Path = WORK, logs: Path = LOGS) -> list[Sample]:
    """Return the measured candidates whose work is known."""
    rows = {}
    for line in work.read_text().splitlines():
        row = json.loads(line)
        rows[_key(row["spec"], row["decisions"], row["shape"])] = LaunchWork(**row["work"])
    measured = []
    for trial in _trials(logs):
        for shape, seconds in (trial.seconds or {}).items():
            counted = rows.get(_key(trial.spec, trial.decisions, shape))
            if counted is not None:
                measured.append(Sample(trial.spec, trial.decisions, shape, counted, seconds))
    return measured


def _key(spec: str, decisions: Mapping[str, int], shape: str) -> str:
    return json.dumps([spec, sorted(decisions.items()), shape])


def _trials(logs: Path) -> list[Trial]:
    trials = []
    for path in sorted(logs.glob("*.jsonl")):
        records, _ = read_log(path)
        trials += [each for each in records if isinstance(each, Trial) and each.seconds]
    return trials


def predicted(sample: Sample, coefficients: Coefficients) -> float:
    """Return the predicted seconds of a candidate."""
    return predict(sample.work, architecture("sm_90"), coefficients).seconds


def calibrate(measured: Sequence[Sample]) -> Coefficients:
    """Return the coefficients with the smallest errors of the logarithm of the time.

    Groups count alike, however many of their candidates were measured.
    """
    names = list(BOUNDS)
    sizes: dict[str, int] = {}
    for sample in measured:
        sizes[sample.group] = sizes.get(sample.group, 0) + 1
    weights = np.array([sizes[sample.group] ** -0.5 for sample in measured])
    units = np.array([BOUNDS[name][1] for name in names])

    def errors(values: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        chosen = Coefficients(**dict(zip(names, (values * units).tolist())))
        ratios = [math.log(predicted(each, chosen) / each.seconds) for each in measured]
        return np.array(ratios) * weights

    start = np.array([getattr(Coefficients(), name) for name in names]) / units
    low = np.array([BOUNDS[name][0] for name in names]) / units
    fit = least_squares(errors, start, bounds=(low, 1.0), loss="soft_l1", f_scale=0.1)
    return Coefficients(**dict(zip(names, (fit.x * units).tolist())))


def judge(pairs: Iterable[tuple[Sample, float]]) -> dict[str, Any]:
    """Return the rank correlation and the errors of (candidate, predicted seconds)."""
    listed = list(pairs)
    errors = [abs(seconds / sample.seconds - 1) for sample, seconds in listed]
    correlation = spearmanr(
        [sample.seconds for sample, _ in listed], [seconds for _, seconds in listed]
    ).statistic
    return {
        "candidates": len(listed),
        "rank_correlation": round(float(correlation), 3),
        "median_error": round(statistics.median(errors), 3),
        "largest_error": round(max(errors), 3),
    }


def best_in_top(pairs: Sequence[tuple[Sample, float]]) -> dict[str, Any]:
    """Return the predicted place of the fastest candidate, and times as multiples of its time."""
    order = sorted(pairs, key=lambda pair: pair[1])
    best = min(sample.seconds for sample, _ in pairs)
    place = next(n for n, (sample, _) in enumerate(order, 1) if sample.seconds == best)
    in_top = min(sample.seconds for sample, _ in order[:TOP])
    return {
        "place_of_the_best": place,
        "time_of_the_best_in_the_top": round(in_top / best, 4),
        "time_of_the_predicted_best": round(order[0][0].seconds / best, 4),
    }


def left_out(
    measured: Sequence[Sample], part: Callable[[Sample], str]
) -> list[tuple[Sample, float]]:
    """Return predictions for each part by coefficients calibrated on all other parts."""
    pairs = []
    for name in sorted({part(sample) for sample in measured}):
        coefficients = calibrate([each for each in measured if part(each) != name])
        pairs += [(each, predicted(each, coefficients)) for each in measured if part(each) == name]
    return pairs


def evaluate(measured: Sequence[Sample]) -> dict[str, Any]:
    """Return how well each kernel and each tile is predicted by a calibration without it."""
    tiles = left_out(measured, lambda sample: sample.group)
    kernels = left_out(measured, lambda sample: sample.spec) if _several(measured) else []
    result: dict[str, Any] = {
        "evidence": "predicted beside measured (H100 80GB HBM3)",
        "model": VERSION,
        "nvcc": NVCC,
        "trials": len(_trials(LOGS)),
        "coefficients": asdict(calibrate(measured)),
        "in_use": asdict(COEFFICIENTS),
        "left_out_tiles": {},
        "left_out_kernels": {},
    }
    for name, pairs in (("left_out_tiles", tiles), ("left_out_kernels", kernels)):
        for spec in sorted({sample.spec for sample, _ in pairs}):
            for shape in sorted({sample.shape for sample, _ in pairs}):
                own = [pair for pair in pairs if (pair[0].spec, pair[0].shape) == (spec, shape)]
                if len(own) > 2:
                    result[name][f"{spec} {shape}"] = {**judge(own), **best_in_top(own)}
        if pairs:
            result[name]["all"] = judge(pairs)
    result["points"] = [
        {
            "spec": sample.spec,
            "shape": sample.shape,
            "measured_us": round(sample.seconds * 1e6, 1),
            "predicted_us": round(seconds * 1e6, 1),
            "limiter": predict(sample.work, architecture("sm_90"), COEFFICIENTS).limiter,
        }
        for sample, seconds in tiles
    ]
    return result


def _several(measured: Sequence[Sample]) -> bool:
    return len({sample.spec for sample in measured}) > 1


def collect(shapes: Sequence[str], work: Path = WORK) -> int:
    """Count the work of trials that the file lacks, and append it; return how many were added."""
    from natc.compiler.import_tvm import import_tvm_alone

    import_tvm_alone("cuda")
    from natc.compiler.gpu_model.candidates import compile_candidate
    from natc.spec import KernelSpec
    from natc.store.temporary import temporary_directory
    from natc.targets import Target

    lines = work.read_text().splitlines() if work.exists() else []
    known = {_key(r["spec"], r["decisions"], r["shape"]) for r in map(json.loads, lines)}
    added = 0
    for trial in _trials(LOGS):
        missing = [s for s in shapes if _key(trial.spec, trial.decisions, s) not in known]
        if not missing:
            continue
        sizes = {shape: tuple(map(int, shape.split("x")[:-1])) for shape in missing}
        with temporary_directory("gpu_model") as directory:
            candidate = compile_candidate(
                KernelSpec.parse(trial.spec), Target("cuda", "sm_90"), trial.operation,
                trial.decisions, list(sizes.values()), directory,
            )  # fmt: skip
        for shape, size in sizes.items():
            (counted,) = candidate.work(size)
            row = {"spec": trial.spec, "decisions": trial.decisions, "shape": shape}
            with work.open("a") as file:
                file.write(json.dumps({**row, "work": rounded(counted)}) + "\n")
            added += 1
    return added


def rounded(work: LaunchWork) -> dict[str, Any]:
    """Return a candidate's work as JSON values of few digits."""

    def short(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: short(each) for name, each in value.items()}
        return round(value, 2) if isinstance(value, float) else value

    return {name: short(value) for name, value in asdict(work).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}, for the plot")
    parser.add_argument(
        "--collect", nargs="+", metavar="SHAPE", help="count missing work, e.g. 128x56x56x2x32"
    )
    options = parser.parse_args()
    try:
        if options.collect:
            print(f"added {collect(options.collect)} lines to {WORK}")
            return
        result = evaluate(samples())
    except NatcError as error:
        raise SystemExit(f"{error}") from None
    if options.write:
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
    if options.json:
        output.print_json(result)
        return
    for name in ("left_out_tiles", "left_out_kernels"):
        print(name.replace("_", " "))
        for what, figures in result[name].items():
            print(f"  {what}: {', '.join(f'{key} {value}' for key, value in figures.items())}")
    print("calibrated:", result["coefficients"])


if __name__ == "__main__":
    main()
