"""The committed counts of instructions for each logit, and the purposes of instructions."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.loaded_file import load_file

from natc.compiler.gpu_model.disassembly import Instruction
from natc.spec import KernelSpec

SCRIPT = load_file(Path(__file__).parents[2] / "benchmarks" / "gpu_instructions.py")
ROWS = {(row["spec"], row["operation"]): row for row in SCRIPT.rows()}


def test_every_kernel_and_operation_is_counted() -> None:
    assert set(ROWS) == {(s, o) for s in SCRIPT.SPECS for o in SCRIPT.OPERATIONS}
    assert {row["evidence"] for row in ROWS.values()} == {"predicted"}


@pytest.mark.parametrize("spec", SCRIPT.SPECS)
def test_products_for_a_logit_are_those_of_whole_tiles(spec: str) -> None:
    """A product of 16 x 8 x 16 numbers takes one instruction of 32 lanes.

    The forward computes a product for a logit and one for the values, each of head_dim numbers.
    Tiles compute more pairs than there are logits, and no fewer.
    """
    kernel = KernelSpec.parse(spec)
    least = 32 * 2 * kernel.head_dim / (16 * 8 * 16)
    products = ROWS[spec, "forward"]["per_logit"]["products"]
    assert least < products < 4 * least
    # One exponential for each pair of a tile that may be a logit, and the query's reciprocal.
    assert 1 <= ROWS[spec, "forward"]["per_logit"]["MUFU"] < 4
    # d_query computes one product more, and d_value does not compute the values' gradient.
    assert ROWS[spec, "d_query"]["per_logit"]["products"] > products
    for operation in SCRIPT.OPERATIONS:
        assert set(ROWS[spec, operation]["per_logit"]) == set(SCRIPT.PURPOSES)


@pytest.mark.parametrize(
    ("opcode", "operands", "purpose"),
    [
        ("HMMA.16816.F32", "R0,R4,R8,R0", "products"),
        ("LDG.E.128", "R0,desc[UR4][R2.64]", "loads"),
        ("STG.E", "desc[UR4][R2.64],R0", "stores"),
        ("HADD2.F32", "R0,-RZ,R1.H0_H0", "conversions"),
        ("HADD2", "R0,R1,R2", "float"),
        ("HFMA2.MMA", "R0,-RZ,RZ,0,1", "integer"),
        ("IMAD.MOV.U32", "R0,RZ,RZ,R1", "integer"),
        ("BSSY", "B0,0x10", "branches"),
        ("BAR.SYNC.DEFER_BLOCKING", "0x0", "barriers"),
    ],
)
def test_an_instruction_has_a_purpose(opcode: str, operands: str, purpose: str) -> None:
    instruction = Instruction(0, "", opcode, tuple(operands.split(",")), 0)
    assert SCRIPT.purpose_of(instruction) == purpose
