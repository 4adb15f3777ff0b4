"""Sorts instructions into the classes that share a pipe of a multiprocessor."""

from __future__ import annotations

from natc.compiler.gpu_model.disassembly import Instruction

# Names of instructions by class (CUDA Binary Utilities, "Instruction Set Reference").
_NAMES = {
    "fma": ("FFMA", "FADD", "FMUL", "IMAD", "FFMA2", "FADD2", "FMUL2"),
    "alu": (
        "IADD3", "IADD", "VIADD", "LOP3", "SHF", "ISETP", "FSETP", "SEL", "FSEL", "FMNMX",
        "FMNMX3", "PRMT", "LEA", "VIMNMX", "VIMNMX3", "IMNMX", "VIADDMNMX", "MOV", "PLOP3", "IABS",
        "P2R", "R2P", "FCHK", "VOTE", "CS2R", "F2FP", "I2FP", "UMOV",
        "HMNMX2", "VHMNMX",
    ),
    "half": ("HADD2", "HFMA2", "HMUL2"),
    "mufu": ("MUFU", "I2F", "F2I", "F2F", "FRND", "POPC", "FLO"),
    "shuffle": ("SHFL",),
    "product": ("HMMA",),
    "load": (
        "LDG", "LD", "STG", "ST", "LDL", "STL", "LDS", "STS", "LDSM", "LDGSTS", "RED", "REDG",
    ),
    "constant": ("LDC", "ULDC", "LDCU", "S2R", "S2UR", "R2UR"),
    "branch": (
        "BRA", "CALL", "RET", "EXIT", "BSSY", "BSYNC", "BREAK", "BAR", "WARPSYNC", "YIELD", "NOP",
        "BMOV", "DEPBAR", "LDGDEPBAR",
    ),
}  # fmt: skip
CLASSES = (*_NAMES, "uniform")
_CLASS_OF = {name: kind for kind, names in _NAMES.items() for name in names}


def class_of(instruction: Instruction) -> str:
    """Return the class of an instruction; those on uniform registers have a pipe of their own."""
    return _CLASS_OF.get(instruction.name, "uniform")
