"""Predicts the times of a CUDA library's operations from its machine code, without nvcc.

`cuobjdump` reads the machine code. How calls launch it is read from host code that is generated
again, with the decisions that the library was built with.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from natc.compiler.build.cuda import split
from natc.compiler.build.lower import entry_module
from natc.compiler.build.resources import Resources
from natc.compiler.gpu_model.architectures import architecture
from natc.compiler.gpu_model.calibrated import COEFFICIENTS
from natc.compiler.gpu_model.candidates import CompiledCandidate, call_values
from natc.compiler.gpu_model.disassembly import disassemble, find_cuobjdump
from natc.compiler.gpu_model.launches import launches
from natc.compiler.gpu_model.machine import parameters_at
from natc.compiler.gpu_model.timing import predict
from natc.errors import ModelError, ScheduleError
from natc.host.c_compiler import run
from natc.spec import KernelSpec
from natc.targets import Target

_USAGE = re.compile(
    r"Function (?P<kernel>\w+):\s+REG:(?P<registers>\d+) STACK:(?P<stack_bytes>\d+) "
    r"SHARED:(?P<shared_bytes>\d+).* CONSTANT\[0\]:(?P<constant_bytes>\d+)"
)


@dataclass(frozen=True)
class PredictedOperation:
    """The predicted seconds of a call of an operation, and what limits its longest launch.

    problem: why there is no prediction.
    """

    operation: str
    seconds: float | None = None
    limiter: str | None = None
    problem: str | None = None


def predict_library(
    path: Path,
    spec: KernelSpec,
    target: Target,
    decisions: Mapping[str, int],
    functions: Mapping[str, str],
    shape: tuple[int, ...],
) -> Iterator[PredictedOperation]:
    """Yield the predicted time of each operation of a library on one of its targets.

    decisions: the library was built with them. functions: operation -> its function in the
    library. shape: (batch, size of each axis, heads). Raises CompilerNotFound without cuobjdump,
    BuildError for a file that it cannot read, and ModelError for an architecture without figures.
    """
    chip = architecture(target.arch)
    code = disassemble(path, target.arch)
    usage, constant_bytes = _usage(path, target.arch)
    for operation, name in functions.items():
        try:
            module = entry_module(spec, target, decisions, {operation: name})
            host, _ = split(module, target)
            calls = launches(module[name], host, call_values(spec, shape))
            for each in calls:
                if each.kernel not in code or each.kernel not in usage:
                    raise ModelError(f"the library has no machine code of {each.kernel}.")
                parameter_bytes = constant_bytes[each.kernel] - parameters_at(
                    target.compute_capability
                )
                if parameter_bytes != len(each.launch.parameters):
                    raise ModelError(
                        f"{each.kernel} takes {parameter_bytes} bytes of parameters, and this "
                        f"natc's takes {len(each.launch.parameters)}: another natc built it."
                    )
            works = CompiledCandidate(spec, target, code, usage, {shape: calls}).work(shape)
        except (ModelError, ScheduleError) as error:
            yield PredictedOperation(operation, problem=str(error))
            continue
        times = [predict(work, chip, COEFFICIENTS) for work in works]
        longest = max(times, key=lambda each: each.seconds)
        yield PredictedOperation(operation, sum(each.seconds for each in times), longest.limiter)


def _usage(path: Path, arch: str) -> tuple[dict[str, Resources], dict[str, int]]:
    """Return the resources of each kernel of a library, and the bytes of its constant bank 0."""
    text = run(
        [find_cuobjdump(), "-arch", arch, "-res-usage", str(path)],
        f"reading the resources of the kernels in {path}",
    )
    usage, constant_bytes = {}, {}
    for match in _USAGE.finditer(text):
        numbers = {name: int(text) for name, text in match.groupdict().items() if name != "kernel"}
        constant_bytes[match["kernel"]] = numbers.pop("constant_bytes")
        usage[match["kernel"]] = Resources(kernel=match["kernel"], **numbers)
    return usage, constant_bytes
