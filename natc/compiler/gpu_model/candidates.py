"""Compiles a candidate of a design space for the model of a GPU: machine code, and its launches.

Needs nvcc and cuobjdump, and no GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from natc.compiler.build.cuda import copy_header, cuda_source, split
from natc.compiler.build.lower import entry_module
from natc.compiler.build.resources import Resources, resources
from natc.compiler.gpu_model.architectures import architecture
from natc.compiler.gpu_model.classes import class_of
from natc.compiler.gpu_model.disassembly import Instruction, disassemble
from natc.compiler.gpu_model.launches import KernelLaunch, launches
from natc.compiler.gpu_model.work import LaunchWork, count
from natc.errors import ModelError
from natc.host.c_compiler import run
from natc.host.toolchain import find_nvcc
from natc.spec import KernelSpec
from natc.store.schedules import joined
from natc.targets import Target


@dataclass(frozen=True)
class CompiledCandidate:
    """A compiled candidate: the instructions and resources of its kernels, and their launches.

    launches: of a call of each shape (batch, *sizes, heads).
    """

    spec: KernelSpec
    target: Target
    code: Mapping[str, Sequence[Instruction]]
    resources: Mapping[str, Resources]
    launches: Mapping[tuple[int, ...], Sequence[KernelLaunch]]

    @property
    def spilled_bytes(self) -> int:
        """The bytes of registers that did not fit, of the kernels that calls launch."""
        names = {each.kernel for calls in self.launches.values() for each in calls}
        return sum(self.resources[name].spilled_bytes for name in names)

    def work(
        self, shape: tuple[int, ...], kind_of: Callable[[Instruction], str] = class_of
    ) -> list[LaunchWork]:
        """Return the work of each launch of a call; raises ModelError for unknown code.

        kind_of: see `natc.compiler.gpu_model.work.count`.
        """
        chip = architecture(self.target.arch)
        major, minor = self.target.compute_capability
        works = []
        for each in self.launches[shape]:
            kernel = self.resources[each.kernel]
            works.append(
                count(
                    self.code[each.kernel],
                    each.launch,
                    10 * major + minor,
                    chip.latencies,
                    registers=kernel.registers,
                    shared_bytes=kernel.shared_bytes,
                    local_bytes=kernel.stack_bytes,
                    tensor_bytes=each.tensor_bytes,
                    kind_of=kind_of,
                )
            )
        return works


def compile_candidate(
    spec: KernelSpec,
    target: Target,
    operation: str,
    decisions: Mapping[str, int],
    shapes: Sequence[tuple[int, ...]],
    directory: Path,
) -> CompiledCandidate:
    """Compile an operation with some decisions; files go into `directory`.

    Raises BuildError, CompilerNotFound, or ModelError for launches that the model cannot find.
    """
    name = f"natc_{operation}"
    module = entry_module(spec, target, joined(decisions, operation), {operation: name})
    host, device = split(module, target)
    calls = {
        tuple(shape): launches(module[name], host, call_values(spec, shape)) for shape in shapes
    }
    copy_header(directory)
    source, cubin = directory / "candidate.cu", directory / "candidate.cubin"
    source.write_text(cuda_source(device, target))
    options = [f"-arch={target.arch}", "-Xptxas=-v", "-O3", "-cubin", "-w"]
    report = run(
        [find_nvcc(), *options, "-o", str(cubin), str(source)],
        f"compiling CUDA code for {target.arch}",
    )
    needed = {each.kernel: each for each in resources(report, source.read_text())}
    code = disassemble(cubin)
    for each in (launch for call in calls.values() for launch in call):
        if each.kernel not in code or each.kernel not in needed:
            raise ModelError(f"{cubin} has no kernel {each.kernel}, which the host code launches.")
    return CompiledCandidate(spec, target, code, needed, calls)


def call_values(spec: KernelSpec, shape: Sequence[int]) -> dict[str, float]:
    """Return the sizes and scalars of a plain call: no dilation, stride, or causal axis."""
    batch, *sizes, heads = shape
    values: dict[str, float] = {
        "batch": batch, "heads": heads, "heads_kv": heads, "group": 1,
        "scale": spec.head_dim**-0.5, "fill": -math.inf,
    }  # fmt: skip
    for axis, size in enumerate(sizes):
        values |= {
            f"size_{axis}": size, f"dilation_{axis}": 1, f"stride_{axis}": 1,
            f"is_causal_{axis}": 0,
        }  # fmt: skip
    return values | dict.fromkeys(spec.terms, 1.0)
