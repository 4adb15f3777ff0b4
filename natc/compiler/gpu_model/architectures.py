"""One table: the throughputs of a multiprocessor of each architecture, and its chip's memory.

Sources, by field. lanes of fma, alu, mufu, shuffle: CUDA C++ programming guide, table
"Throughput of Native Arithmetic Instructions". warps, blocks, shared_bytes, l1_bytes: same
guide, table "Technical Specifications per Compute Capability", and the tuning guides. chip,
multiprocessors, clock, memory: NVIDIA's data sheets of the chip named; memory of the H100: a
device-to-device copy, measured. product: multiply-adds of tensor cores in a clock, from the
white papers of each architecture; what mma.sync reaches of it on sm_90 is 63 % (arXiv 2402.13499
and 2501.12084), and is taken as all elsewhere. l2: 4472 bytes a clock on the H100 (arXiv
2501.12084); elsewhere 34 a multiprocessor as there. clock is the highest: under load of the
tensor cores an H100 falls to 1.75-1.83 GHz. Only sm_90 has been
compared with measured times; the figures of the others were not checked again in these documents.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from natc.compiler.gpu_model.disassembly import Instruction
from natc.errors import ModelError

SCHEDULERS = 4  # of a multiprocessor: each issues an instruction of a warp in a clock


@dataclass(frozen=True)
class Latencies:
    """Clocks until a result can be used, of instructions whose latency is not fixed."""

    l1: float = 33.0
    shared: float = 29.0
    mufu: float = 19.0
    shuffle: float = 23.0
    product: float = 33.0
    other: float = 14.0

    def each_longer(self, clocks: float) -> list[tuple[str, Latencies]]:
        """Return a copy for each latency, with that one longer, and its name."""
        return [
            (each.name, replace(self, **{each.name: getattr(self, each.name) + clocks}))
            for each in fields(self)
        ]

    def of(self, instruction: Instruction) -> float:
        """Return the latency of an instruction that finds its data in the L1 cache."""
        name = instruction.name
        if name.startswith(("LDS", "STS")):
            return self.shared
        if name.startswith(("LD", "ST", "RED")) and not name.startswith("LDC"):
            return self.l1
        table = {"MUFU": self.mufu, "SHFL": self.shuffle, "HMMA": self.product}
        return table.get(name, self.other)


@dataclass(frozen=True)
class Architecture:
    """A chip: the throughputs of one multiprocessor, and how many multiprocessors there are.

    lanes: results of a class in a clock, for a whole multiprocessor (`classes.CLASSES`). product:
    multiply-adds of tensor cores in a clock. l1_bytes: the L1 cache with shared memory. memory:
    bytes a second of DRAM; l2: bytes a clock of the chip's L2 cache. clock: in Hz.
    """

    chip: str
    multiprocessors: int
    clock: float
    memory: float
    l2: float
    warps: int
    blocks: int
    shared_bytes: int
    l1_bytes: int
    fma: int
    half: int
    product: int
    alu: int = 64
    mufu: int = 16
    shuffle: int = 32
    registers: int = 65536
    latencies: Latencies = Latencies()

    def lanes(self, kind: str) -> float:
        """Return how many lanes of a class's instructions are served in a clock."""
        if kind in ("fma", "half", "alu", "mufu", "shuffle"):
            return float(getattr(self, kind))
        # An m16n8k16 product has 2048 multiply-adds for 32 lanes.
        return self.product / 2048 * 32 if kind == "product" else 128.0


def _chip(chip: str, **facts: Any) -> Architecture:
    facts.setdefault("l2", 34.0 * facts["multiprocessors"])
    return Architecture(chip, **facts)


_KIB = 1024
ARCHITECTURES = {
    "sm_80": _chip(
        "A100 SXM 80 GB", multiprocessors=108, clock=1.41e9, memory=1.80e12, warps=64, blocks=32,
        shared_bytes=164 * _KIB, l1_bytes=192 * _KIB, fma=64, half=128, product=1024,
    ),
    "sm_86": _chip(
        "GeForce RTX 3090", multiprocessors=82, clock=1.695e9, memory=0.84e12, warps=48, blocks=16,
        shared_bytes=100 * _KIB, l1_bytes=128 * _KIB, fma=128, half=64, product=256,
    ),
    "sm_89": _chip(
        "GeForce RTX 4090", multiprocessors=128, clock=2.52e9, memory=0.91e12, warps=48, blocks=24,
        shared_bytes=100 * _KIB, l1_bytes=128 * _KIB, fma=128, half=64, product=256,
    ),
    "sm_90": _chip(
        "H100 SXM 80 GB", multiprocessors=132, clock=1.98e9, memory=2.97e12, l2=4472.0, warps=64,
        blocks=32, shared_bytes=228 * _KIB, l1_bytes=256 * _KIB, fma=128, half=128, product=1290,
    ),
    "sm_100": _chip(
        "B200", multiprocessors=148, clock=1.965e9, memory=7.2e12, warps=64, blocks=32,
        shared_bytes=228 * _KIB, l1_bytes=256 * _KIB, fma=128, half=128, product=1024,
    ),
    "sm_120": _chip(
        "GeForce RTX 5090", multiprocessors=170, clock=2.407e9, memory=1.61e12, warps=48,
        blocks=24, shared_bytes=100 * _KIB, l1_bytes=128 * _KIB, fma=128, half=64, product=256,
    ),
}  # fmt: skip


def architecture(name: str) -> Architecture:
    """Return the figures of an architecture such as sm_90; raise ModelError for any other."""
    if name not in ARCHITECTURES:
        raise ModelError(
            f"architecture {name} has no figures in the model of a GPU; it has those of "
            f"{', '.join(ARCHITECTURES)}."
        )
    return ARCHITECTURES[name]
