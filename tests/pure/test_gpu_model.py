"""The model of a GPU without nvcc: instructions, what accesses cost, and predicted times."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from natc.compiler.gpu_model import work as work_module
from natc.compiler.gpu_model.architectures import ARCHITECTURES, Latencies, architecture
from natc.compiler.gpu_model.disassembly import Instruction, parse
from natc.compiler.gpu_model.machine import BlockState, Launch
from natc.compiler.gpu_model.timing import LIMITERS, Coefficients, predict
from natc.compiler.gpu_model.work import LaunchWork, chain, count, resident_blocks
from natc.errors import ModelError

# Stall of one clock, no barrier set, none awaited.
HIGH = 1 << 41 | 7 << 46 | 7 << 49
PARAMETERS = 0x210  # of sm_90


def program(text: str) -> list[Instruction]:
    """Return instructions, one of each line, 16 bytes apart; a guard may precede them."""
    code = []
    for number, line in enumerate(filter(None, map(str.strip, text.splitlines()))):
        guard = ""
        if line.startswith("@"):
            guard, _, line = line[1:].partition(" ")
        opcode, _, operands = line.partition(" ")
        parts = tuple(part.strip() for part in operands.split(", ") if part.strip())
        code.append(Instruction(16 * number, guard, opcode, parts, HIGH))
    return code


def run(text: str, *numbers: int, threads: int = 32) -> BlockState:
    """Execute a program; numbers: its parameters, 32 bits each. Return the machine at its end."""
    parameters = b"".join(struct.pack("<I", number & 0xFFFFFFFF) for number in numbers)
    launch = Launch(parameters, (8, 1, 1), (threads, 1, 1), (3, 0, 0))
    machine = BlockState(program(text), launch, 90)
    with np.errstate(all="ignore"):
        machine.run()
    return machine


@pytest.mark.parametrize(
    ("text", "numbers", "result"),
    [
        ("IADD3 R0, R1, -R2, 0x5", (9, 3), 11),
        ("IMAD R0, R1, R2, 0x1", (7, -3), -20),
        ("IMAD.HI.U32 R0, R1, R2, RZ", (1 << 31, 6), 3),
        ("LEA R0, R1, R2, 0x3", (5, 1), 41),
        ("LEA.HI.SX32 R0, R1, R2, 0x1f", (-10, 1), -4),
        ("SHF.R.S32.HI R0, RZ, 0x2, R1", (-9, 0), -3),
        ("SHF.R.U32.HI R0, RZ, 0x1c, R1", (-1, 0), 15),
        ("SHF.L.U32 R0, R1, 0x4, RZ", (3, 0), 48),
        ("LOP3.LUT R0, R1, R2, RZ, 0xc0, !PT", (0b1100, 0b1010), 0b1000),
        ("LOP3.LUT R0, R1, R2, RZ, 0x3c, !PT", (0b1100, 0b1010), 0b0110),
        ("VIMNMX R0, R1, R2, PT", (-4, 3), -4),
        ("VIMNMX.U32 R0, R1, R2, PT", (-4, 3), 3),
        ("VIADDMNMX.RELU R0, R1, 0xfffffffd, R2, PT", (1, 9), 0),
        ("VIADDMNMX R0, R1, 0xfffffffa, RZ, !PT", (4, 0), 0),
        ("PRMT R0, R1, 0x5410, R2", (0x11112222, 0x33334444), 0x44442222),
        ("IABS R0, R1", (-5, 0), 5),
        ("SEL R0, R1, R2, !PT", (1, 2), 2),
        ("HFMA2.MMA R0, -RZ, RZ, 0, 5.9604644775390625e-08", (0, 0), 1),
        ("F2FP.F16.F32.PACK_AB R0, R1, R2", (0x3F800000, 0x40000000), 0x3C004000),
    ],
)  # fmt: skip
def test_an_instruction_computes(text: str, numbers: tuple[int, int], result: int) -> None:
    load = f"LDC R1, c[0x0][{PARAMETERS:#x}]\nLDC R2, c[0x0][{PARAMETERS + 4:#x}]\n"
    machine = run(f"{load}{text}\nEXIT", *numbers)
    assert set(machine.registers[0].view(np.int32)) == {
        np.uint32(result & 0xFFFFFFFF).view(np.int32)
    }


def test_sums_carry_into_the_upper_word() -> None:
    machine = run(
        f"""
        LDC.64 R2, c[0x0][{PARAMETERS:#x}]
        IADD3 R4, P0, R2, 0x10, RZ
        IADD3.X R5, R3, RZ, RZ, P0, !PT
        IMAD.WIDE R6, R4, 0x4, R2
        EXIT
        """,
        0xFFFFFFF8, 1,
    )  # fmt: skip
    assert (machine.registers[5][0], machine.registers[4][0]) == (2, 8)
    whole = (1 << 32 | 0xFFFFFFF8) + 32
    assert int(machine.registers[7][0]) << 32 | int(machine.registers[6][0]) == whole


# How nvcc divides unsigned numbers: by a reciprocal that is a little too large.
DIVISION = f"""
LDC R8, c[0x0][{PARAMETERS + 4:#x}]
LDC R7, c[0x0][{PARAMETERS:#x}]
I2F.U32.RP R5, R8
MUFU.RCP R5, R5
IADD3 R2, R5, 0xffffffe, RZ
F2I.FTZ.U32.TRUNC.NTZ R3, R2
MOV R2, RZ
IADD3 R9, RZ, -R3, RZ
IMAD R9, R9, R8, RZ
IMAD.HI.U32 R3, R3, R9, R2
IMAD.HI.U32 R3, R3, R7, RZ
IADD3 R5, -R3, RZ, RZ
IMAD R5, R8, R5, R7
ISETP.GE.U32.AND P0, PT, R5, R8, PT
@P0 IADD3 R5, R5, -R8, RZ
@P0 IADD3 R3, R3, 0x1, RZ
ISETP.GE.U32.AND P1, PT, R5, R8, PT
@P1 IADD3 R3, R3, 0x1, RZ
EXIT
"""


@pytest.mark.parametrize("divisor", [1, 2, 3, 7, 13, 56, 1000, 65535])
def test_divisions_are_exact(divisor: int) -> None:
    for number in (0, 1, 6, 55, 56, 802815, 2**31 - 1):
        assert run(DIVISION, number, divisor).registers[3][0] == number // divisor, number


LOOP = """
S2R R1, SR_TID.X
LOP3.LUT R1, R1, 0x3, RZ, 0xc0, !PT
MOV R2, RZ
IADD3 R2, R2, 0x1, RZ
IADD3 R1, R1, -0x1, RZ
ISETP.GE.AND P0, PT, R1, RZ, PT
@P0 BRA 0x30
NOP
EXIT
"""


def test_lanes_that_part_meet_again() -> None:
    """Lanes go round 1 to 4 times; the warp issues the longest, then everything once."""
    machine = run(LOOP)
    assert machine.registers[2].tolist() == [1, 2, 3, 4] * 8
    issued = machine.execution.warps
    assert [issued[pc] for pc in (0x00, 0x30, 0x60, 0x70, 0x80)] == [1, 4, 4, 1, 1]
    assert len(machine.execution.trace) == 3 + 4 * 4 + 2


def test_warps_of_a_block_count_apart() -> None:
    """Only the first of two warps, the second with 8 threads, takes the branch."""
    text = """
        S2R R1, SR_TID.X
        ISETP.GE.AND P0, PT, R1, 0x20, PT
        @P0 BRA 0x40
        NOP
        EXIT
        """
    issued = run(text, threads=40).execution.warps
    assert issued == {0x00: 2, 0x10: 2, 0x20: 2, 0x30: 1, 0x40: 2}


def test_lanes_exchange_and_vote() -> None:
    machine = run(
        """
        S2R R1, SR_LANEID
        SHFL.DOWN PT, R2, R1, 0x2, 0x1f
        SHFL.BFLY PT, R3, R1, 0x1, 0x1f
        SHFL.IDX PT, R4, R1, 0x5, 0x1c1f
        ISETP.LT.AND P0, PT, R1, 0x3, PT
        VOTE.ANY R5, P1, P0
        VOTE.ALL P2, P0
        EXIT
        """
    )
    lanes = np.arange(32)
    assert machine.registers[2].tolist() == [*range(2, 32), 30, 31]
    assert machine.registers[3].tolist() == (lanes ^ 1).tolist()
    assert machine.registers[4].tolist() == (lanes // 4 * 4 + 1).tolist()
    assert set(machine.registers[5]) == {7}
    assert machine.predicates[1].all() and not machine.predicates[2].any()


def test_an_access_costs_what_it_touches() -> None:
    def cost(opcode: str, stride: int, name: str = "R2") -> tuple[int, int, int, int]:
        address = f"[{name}.64]" if opcode.startswith("LDG") else f"[{name}]"
        machine = run(
            f"""
            S2R R1, SR_LANEID
            IMAD R2, R1, {stride:#x}, RZ
            MOV R3, RZ
            {opcode} R4, {address}
            EXIT
            """
        )
        memory = machine.execution.memory[0x30]
        return memory.requests, memory.sectors, memory.lines, memory.wavefronts

    assert cost("LDG.E", 4) == (1, 4, 1, 1)
    assert cost("LDG.E", 128) == (1, 32, 32, 32)
    assert cost("LDG.E.128", 16) == (1, 16, 4, 4)
    # Two of the lanes' 16 bytes share a sector; eight lanes pass at once.
    assert cost("LDG.E.128", 64) == (1, 32, 16, 16)
    # Every lane's word lies in the same bank of shared memory; in another bank each.
    assert cost("LDS", 128)[3] == 32
    assert cost("LDS", 4)[3] == 1
    assert cost("LDS", 132)[3] == 1


def test_local_memory_keeps_words_of_each_thread() -> None:
    machine = run(
        """
        LDC R1, c[0x0][0x28]
        IADD3 R1, R1, -0x40, RZ
        S2R R2, SR_TID.X
        STL [R1+0x8], R2
        LDL R3, [R1+0x8]
        EXIT
        """
    )
    assert machine.registers[3].tolist() == list(range(32))
    assert machine.execution.memory[0x40].wavefronts == 1


def test_addresses_of_shared_memory_have_32_bits() -> None:
    """A base below zero, with an offset that brings the address into the memory."""
    machine = run(
        """
        S2R R1, SR_TID.X
        LEA R2, R1, RZ, 0x2
        IADD3 R2, R2, -0x4, RZ
        STS [R2+0x8], R1
        LDS R4, [R2+0x8]
        EXIT
        """
    )
    assert machine.registers[4].tolist() == list(range(32))
    assert machine.shared[1:33].tolist() == list(range(32))


@pytest.mark.parametrize(
    "instruction",
    ["VHMNMX R2, R1, RZ.H0_H0, R1, !PT", "HMNMX2 R2, R1, R1, !PT", "S2R R2, SR_CgaCtaId"],
)
def test_numbers_of_tensors_and_of_clusters_are_zero(instruction: str) -> None:
    machine = run(f"S2R R2, SR_TID.X\n{instruction}\nEXIT")
    assert set(machine.registers[2]) == {0}


def test_what_the_model_does_not_know_is_named() -> None:
    with pytest.raises(ModelError, match="WGMMA"):
        run("WGMMA R0, R1\nEXIT")
    with pytest.raises(ModelError, match=r"jumps to 0x70"):
        run("BRA 0x70\nEXIT")
    with pytest.raises(ModelError, match="SR_CLOCK"):
        run("S2R R0, SR_CLOCK\nEXIT")
    with pytest.raises(ModelError, match="sm_75.*sm_80"):
        architecture("sm_75")


def test_a_loop_without_an_end_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("natc.compiler.gpu_model.machine._MOST_STEPS", 50)
    with pytest.raises(ModelError, match="did not end within 50"):
        run("BRA 0x0\nEXIT")


SASS = """
		Function : kernel
	.headerflags	@"EF_CUDA_SM90"
        /*0000*/                   LDG.E R2, desc[UR4][R2.64+0x10] ;   /* 0x0000000402027981 */
                                                                       /* 0x000ea2000c1e1900 */
        /*0010*/              @!P0 FADD R0, R2, -R3 ;                  /* 0x8000000302000221 */
                                                                       /* 0x004fca0000000000 */
"""


def test_machine_code_is_read_with_its_barriers() -> None:
    (code,) = parse(SASS).values()
    load, add = code
    assert (load.opcode, load.name) == ("LDG.E", "LDG")
    assert load.operands == ("R2", "desc[UR4][R2.64+0x10]")
    assert load.barriers_set == (2,) and load.stall == 1 and load.barriers_awaited == ()
    assert add.guard == "!P0" and add.barriers_awaited == (2,) and add.stall == 5
    assert chain({each.pc: each for each in code}, [0, 16], Latencies(l1=33)) == 33 + 5


def work(**changes: object) -> LaunchWork:
    """Return the work of a launch that nothing limits much."""
    counts = {"fma": 100.0, "alu": 100.0, "mufu": 10.0, "load": 10.0}
    plain = LaunchWork(
        blocks=100_000, threads=128, registers=64, shared_bytes=0, counts=counts, requests=10,
        sectors=40, wavefronts=10, local_wavefronts=0, local_bytes=0, read_sectors=10,
        written_sectors=10, chain=100, waits={"l1": 1.0}, code_bytes=1000, bytes=1e6,
    )  # fmt: skip
    return replace(plain, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "limiter"),
    [
        ({"bytes": 1e10}, "memory"),
        ({"counts": {"fma": 1e5}}, "issue"),
        ({"counts": {"mufu": 1e5}}, "MUFU"),
        ({"counts": {"product": 1e5}}, "products"),
        ({"wavefronts": 1e5}, "L1"),
        ({"chain": 1e7}, "latency"),
        ({"waits": {"l1": 1e5}}, "latency"),
    ],
)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_limiter_is_named(changes: dict[str, object], limiter: str, arch: str) -> None:
    chip, coefficients = architecture(arch), Coefficients()
    prediction = predict(work(**changes), chip, coefficients)
    assert prediction.limiter == limiter in LIMITERS
    plain = predict(work(), chip, coefficients)
    assert prediction.seconds > plain.seconds > coefficients.launch
    assert max(prediction.parts.values()) <= prediction.seconds


def test_blocks_at_once_are_limited_by_each_resource() -> None:
    chip = architecture("sm_90")
    assert resident_blocks(work(threads=32, registers=16), chip) == 32
    assert resident_blocks(work(threads=1024, registers=32), chip) == 2
    # 33 registers take 40 of them: 65,536 / (40 x 32 x 4).
    assert resident_blocks(work(threads=128, registers=33), chip) == 12
    assert resident_blocks(work(shared_bytes=100 * 1024), chip) == 2


def test_fewer_resident_warps_wait_longer() -> None:
    chip, waiting = architecture("sm_90"), {"l1": 300.0}
    times = [
        predict(work(registers=n, waits=waiting), chip, Coefficients()).seconds
        for n in (32, 64, 128, 255)
    ]
    assert times == sorted(times) and times[-1] > 4 * times[0]


def test_blocks_at_the_border_count_with_their_share() -> None:
    """The last block of an axis does nothing: 3 of 4 blocks load."""
    code = program(
        """
        S2R R1, SR_CTAID.Y
        ISETP.GE.AND P0, PT, R1, 0x3, PT
        @P0 EXIT
        MOV R2, RZ
        MOV R3, RZ
        LDG.E R4, [R2.64]
        EXIT
        """
    )
    launch = Launch(b"", (100, 4, 1), (32, 1, 1))
    counted = count(
        code,
        launch,
        90,
        Latencies(),
        registers=32,
        shared_bytes=0,
        local_bytes=8,
        tensor_bytes=1e6,
    )
    assert counted.blocks == 400 and counted.requests == 0.75
    assert counted.counts["load"] == 0.75 and counted.local_bytes == 256


def test_two_blocks_of_an_axis_count_apart() -> None:
    code = program("S2R R1, SR_CTAID.Y\nISETP.GE.AND P0, PT, R1, 0x1, PT\n@P0 EXIT\nNOP\nEXIT")
    launch = Launch(b"", (1, 2, 1), (32, 1, 1))
    counted = count(
        code, launch, 90, Latencies(),
        registers=32, shared_bytes=0, local_bytes=0, tensor_bytes=1.0,
    )  # fmt: skip
    assert sum(counted.counts.values()) == (5 + 3) / 2


def test_no_module_of_the_model_but_two_needs_tvm() -> None:
    folder = Path(work_module.__file__).parent
    need = {path.stem for path in folder.glob("*.py") if "import tvm" in path.read_text()}
    assert need == {"launches"}
