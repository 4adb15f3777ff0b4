"""Instructions for each logit of kernels for tensor cores: `benchmarks/gpu_instructions.py`.

Prints the counts in benchmarks/results/gpu_instructions_sm_90.jsonl. `--collect` counts operations
that the file lacks, in the machine code that nvcc compiles here. It goes on where it was stopped,
and needs no GPU. After a change of the kernels, delete their lines first.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from natc.cli import output
from natc.compiler.gpu_model.architectures import architecture
from natc.compiler.gpu_model.calibrated import COEFFICIENTS
from natc.compiler.gpu_model.disassembly import Instruction
from natc.compiler.gpu_model.machine import WARP
from natc.compiler.gpu_model.timing import VERSION, predict
from natc.compiler.gpu_model.work import LaunchWork
from natc.errors import NatcError
from natc.host.c_compiler import cuda_version
from natc.spec import KernelSpec
from natc.targets import Target

RESULT = Path(__file__).parent / "results" / "gpu_instructions_sm_90.jsonl"
TARGET = Target("cuda", "sm_90")
SPECS = tuple(f"na2d_k{k}_d{d}_float16_rpb" for k in (7, 13) for d in (32, 64))
OPERATIONS = ("forward", "delta", "d_query", "d_key", "d_value", "d_rpb")
SHAPE = (128, 56, 56, 2)  # the first level of NAT

# The purpose of instructions, by name. All others compute integers, addresses and predicates.
_PURPOSES = {
    "products": ("HMMA",),
    "float": (
        "FADD", "FMUL", "FFMA", "FMNMX", "FMNMX3", "FSEL", "FSETP", "FCHK", "FADD2", "FMUL2",
        "FFMA2", "HADD2", "HMUL2", "HFMA2", "HMNMX2", "VHMNMX",
    ),
    "MUFU": ("MUFU",),
    "conversions": ("F2FP", "F2F", "I2F", "F2I", "I2FP", "FRND"),
    "shuffles": ("SHFL",),
    "loads": ("LDG", "LD", "LDL", "LDS", "LDSM", "LDGSTS"),
    "stores": ("STG", "ST", "STL", "STS", "RED", "REDG"),
    "constants": ("LDC", "ULDC", "LDCU", "S2R", "S2UR", "CS2R"),
    "barriers": ("BAR", "WARPSYNC", "DEPBAR", "LDGDEPBAR"),
    "branches": (
        "BRA", "CALL", "RET", "EXIT", "BSSY", "BSYNC", "BREAK", "BMOV", "YIELD", "NOP",
    ),
}  # fmt: skip
_INTEGER = "integer"
PURPOSES = (*_PURPOSES, _INTEGER)
_PURPOSE_OF = {name: purpose for purpose, names in _PURPOSES.items() for name in names}


def purpose_of(instruction: Instruction) -> str:
    """Return the purpose of an instruction, one of PURPOSES."""
    if instruction.name == "HADD2" and "F32" in instruction.modifiers:
        return "conversions"  # of a float16 to float32
    # The compiler writes integer constants as products of float16, too.
    if instruction.name == "HFMA2" and "RZ" in "".join(instruction.operands[1:3]):
        return _INTEGER
    return _PURPOSE_OF.get(instruction.name, _INTEGER)


def per_logit(work: Sequence[LaunchWork], spec: KernelSpec) -> dict[str, float]:
    """Return the instructions of a lane for each logit of a call of SHAPE, by purpose.

    Logits are the pairs of a query and a key of its window; pairs that a tile computes besides
    are no logits.
    """
    logits = math.prod(SHAPE) * math.prod(spec.kernel_size)
    totals: dict[str, float] = dict.fromkeys(PURPOSES, 0.0)
    for launch in work:
        for purpose, warps in launch.counts.items():
            totals[purpose] += warps * launch.blocks * WARP
    return {purpose: round(total / logits, 3) for purpose, total in totals.items()}


def rows(path: Path = RESULT) -> list[dict[str, Any]]:
    """Return the counts in a file."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def collect(specs: Iterable[str], path: Path = RESULT) -> int:
    """Count the operations that the file lacks, and append them; return how many were added."""
    from natc.compiler.import_tvm import import_tvm_alone

    import_tvm_alone("cuda")
    counted = {(row["spec"], row["operation"]) for row in rows(path)}
    added = 0
    for name in specs:
        for operation in OPERATIONS:
            if (name, operation) not in counted:
                line = json.dumps(_counted(KernelSpec.parse(name), operation))
                with path.open("a") as file:
                    file.write(f"{line}\n")
                added += 1
    return added


def _counted(spec: KernelSpec, operation: str) -> dict[str, Any]:
    """Compile an operation with its default decisions, and return its counts and time."""
    from natc.compiler.gpu_model.candidates import compile_candidate
    from natc.store.temporary import temporary_directory

    with temporary_directory("gpu_instructions") as directory:
        candidate = compile_candidate(spec, TARGET, operation, {}, [SHAPE], directory)
    chip = architecture(TARGET.arch)
    times = [predict(work, chip, COEFFICIENTS) for work in candidate.work(SHAPE)]
    launched = {each.kernel for each in candidate.launches[SHAPE]}
    return {
        "spec": spec.name,
        "operation": operation,
        "shape": list(SHAPE),
        "nvcc": ".".join(map(str, cuda_version())),
        "registers": max(candidate.resources[name].registers for name in launched),
        "spilled_bytes": candidate.spilled_bytes,
        "per_logit": per_logit(candidate.work(SHAPE, purpose_of), spec),
        "evidence": "predicted",
        "model": VERSION,
        "predicted_us": round(sum(each.seconds for each in times) * 1e6, 1),
        "limiter": max(times, key=lambda each: each.seconds).limiter,
        "parts_us": {
            name: round(sum(each.parts[name] for each in times) * 1e6, 1)
            for name in times[0].parts
        },
    }


def show(listed: Sequence[Mapping[str, Any]]) -> None:
    """Print the counts on stdout."""
    counts = (*PURPOSES, "all")
    table = output.table(
        "Instructions of a lane for each logit (tensor cores, sm_90)",
        "kernel", "operation", *counts, "predicted us", "limited by",
        right=(*counts, "predicted us"),
    )  # fmt: skip
    for row in listed:
        numbers = [row["per_logit"][purpose] for purpose in PURPOSES]
        table.add_row(
            row["spec"], row["operation"], *(f"{number:.2f}" for number in numbers),
            f"{sum(numbers):.1f}", f"{row['predicted_us']:.0f}", row["limiter"],
        )  # fmt: skip
    output.print_table(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument(
        "--collect",
        nargs="*",
        metavar="SPEC",
        help="count the operations that the file lacks; default: of all kernels",
    )
    options = parser.parse_args()
    if options.collect is not None:
        try:
            print(f"added {collect(options.collect or SPECS)} lines to {RESULT}")
        except NatcError as error:
            raise SystemExit(f"{error}") from None
        return
    if options.json:
        output.print_json({"instructions": rows()})
    else:
        show(rows())


if __name__ == "__main__":
    main()
