"""Reads back what a schedule recorded for a kernel that is generated once it is complete."""

from __future__ import annotations

import tvm_ffi
from tvm import tirx
from tvm.s_tir import SBlock


def annotated_numbers(function: tirx.PrimFunc, prefix: str) -> dict[str, int]:
    """Return the numbers that a schedule annotated on blocks of `function`.

    prefix: of their annotations; the rest of each is the name of a number.
    """
    numbers: dict[str, int] = {}

    def read(block: SBlock) -> None:
        for key, value in block.annotations.items():
            if str(key).startswith(prefix):
                numbers[str(key).removeprefix(prefix)] = int(value)

    tvm_ffi.structural_walk(function.body, (SBlock, read))
    return numbers
