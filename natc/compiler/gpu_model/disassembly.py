"""Reads the machine code of CUDA kernels (SASS) from the output of `cuobjdump -sass`."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from natc.errors import CompilerNotFound
from natc.host.c_compiler import run

_FUNCTION = re.compile(r"^\s*Function : (\S+)")
_TARGET = re.compile(r"EF_CUDA_SM(\d+)|^arch = sm_(\w+)|\.target\s+sm_(\w+)", re.M)
_LINE = re.compile(
    r"^\s*/\*(?P<pc>[0-9a-f]{4,})\*/\s+(?:@(?P<guard>!?U?P\w+)\s+)?(?P<opcode>[A-Z][\w.]*)"
    r"\s*(?P<operands>[^;]*);\s*/\* 0x(?P<low>[0-9a-f]{16}) \*/"
)
_SECOND = re.compile(r"^\s*/\* 0x(?P<high>[0-9a-f]{16}) \*/")
INSTRUCTION_BYTES = 16


@dataclass(frozen=True)
class Instruction:
    """One instruction of a kernel.

    guard: the predicate that must hold, such as `!P0`, or "". high: the upper half of its
    encoding; it holds stalls and barriers for the scheduler (Jia et al., arXiv 1804.06826,
    section 2.1).
    """

    pc: int
    guard: str
    opcode: str
    operands: tuple[str, ...]
    high: int

    @cached_property
    def name(self) -> str:
        """The opcode without its modifiers."""
        return self.opcode.partition(".")[0]

    @cached_property
    def modifiers(self) -> tuple[str, ...]:
        """The opcode's modifiers, in order."""
        return tuple(self.opcode.split(".")[1:])

    @property
    def stall(self) -> int:
        """Clocks until the warp may issue its next instruction."""
        return self.high >> 41 & 15

    @property
    def barriers_set(self) -> tuple[int, ...]:
        """The barriers that end when the instruction has read its operands or has its result."""
        return tuple(n for shift in (46, 49) if (n := self.high >> shift & 7) != 7)

    @property
    def barriers_awaited(self) -> tuple[int, ...]:
        """The barriers that must have ended before the instruction is issued."""
        mask = self.high >> 52 & 63
        return tuple(n for n in range(6) if mask >> n & 1)


def find_cuobjdump() -> str:
    """Return the path of cuobjdump, from its Python package or PATH; raise CompilerNotFound."""
    try:
        files = importlib.metadata.files("nvidia-cuda-cuobjdump") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    programs = [str(file.locate()) for file in files if file.name == "cuobjdump"]
    path = programs[0] if programs else shutil.which("cuobjdump")
    if path is None:
        raise CompilerNotFound(
            "cuobjdump was not found, which reads the machine code of GPU kernels; "
            "pip install nvidia-cuda-cuobjdump."
        )
    return path


def disassemble(path: Path, arch: str | None = None) -> dict[str, list[Instruction]]:
    """Return the instructions of each kernel in a cubin, fatbin or library, by kernel.

    arch: of the kernels; None takes those of all architectures.
    """
    chosen = ["-arch", arch] if arch else []
    return parse(
        run([find_cuobjdump(), *chosen, "-sass", str(path)], f"reading the machine code of {path}")
    )


def parse(text: str) -> dict[str, list[Instruction]]:
    """Return the instructions of each function in the output of `cuobjdump -sass`."""
    functions: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    pending: re.Match[str] | None = None
    for line in text.splitlines():
        if function := _FUNCTION.match(line):
            current = functions.setdefault(function[1], [])
        elif match := _LINE.match(line):
            pending = match
        elif (second := _SECOND.match(line)) and pending is not None:
            operands = tuple(o.strip() for o in _split(pending["operands"]) if o.strip())
            current.append(
                Instruction(
                    int(pending["pc"], 16),
                    pending["guard"] or "",
                    pending["opcode"],
                    operands,
                    int(second["high"], 16),
                )
            )
            pending = None
    return functions


def _split(operands: str) -> list[str]:
    """Split operands at commas outside brackets."""
    return re.split(r",\s*(?![^\[]*\])", operands)
