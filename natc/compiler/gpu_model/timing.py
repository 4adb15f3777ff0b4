"""Turns the work of a launch into a predicted time, and names what limits it.

Each pipe of a multiprocessor needs some clocks for its share of the blocks. So do warps that
wait for their loads: the waits of a warp, divided by the warps that a multiprocessor holds. A
launch takes as long as the slowest of them, and somewhat longer, because they do not overlap
perfectly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from natc.compiler.gpu_model.architectures import SCHEDULERS, Architecture
from natc.compiler.gpu_model.machine import WARP
from natc.compiler.gpu_model.work import LaunchWork, resident_blocks

# A prediction names it. It changes whenever the same work gets another time.
VERSION = 1
_SECTOR = 32


@dataclass(frozen=True)
class Coefficients:
    """Figures that no data sheet has; `benchmarks/gpu_model.py` fits them to measured times.

    wavefront: clocks of the L1 cache for a pass. load_wait, shuffle_wait: the clocks that a load
    and a shuffle take beyond those on an idle multiprocessor. overlap: the exponent of the norm
    that combines the parts: 1 adds them up, infinity takes the largest. launch: seconds.
    """

    wavefront: float = 1.0
    load_wait: float = 280.0
    shuffle_wait: float = 20.0
    overlap: float = 4.0
    launch: float = 3e-6


class PredictedTime(NamedTuple):
    """A predicted time, what limits it, and the seconds that each part alone would take."""

    seconds: float
    limiter: str
    parts: Mapping[str, float]


# The limiter that a part of the time stands for.
_LIMITERS = {
    "memory": "memory", "l2": "memory", "issue": "issue", "fma": "issue", "alu": "issue",
    "half": "issue", "shuffle": "issue", "mufu": "MUFU", "product": "products", "l1": "L1",
    "latency": "latency",
}  # fmt: skip
LIMITERS = tuple(dict.fromkeys(_LIMITERS.values()))


def predict(work: LaunchWork, chip: Architecture, coefficients: Coefficients) -> PredictedTime:
    """Return the predicted time of a launch."""
    resident = resident_blocks(work, chip)
    blocks = work.blocks / chip.multiprocessors
    clocks = {name: value * blocks for name, value in _pipes(work, chip, coefficients).items()}
    waits = {"l1": coefficients.load_wait, "shuffle": coefficients.shuffle_wait}
    alone = work.chain + sum(wait * work.waits.get(name, 0.0) for name, wait in waits.items())
    clocks["latency"] = alone * max(1.0, blocks / resident)
    parts = {name: value / chip.clock for name, value in clocks.items()}
    parts["memory"] = work.bytes / chip.memory
    traffic = work.blocks * (work.read_sectors + work.written_sectors) * _SECTOR
    parts["l2"] = traffic / (chip.l2 * chip.clock)
    power = coefficients.overlap
    total = sum(value**power for value in parts.values()) ** (1 / power)
    longest = max(parts, key=lambda name: parts[name])
    return PredictedTime(total + coefficients.launch, _LIMITERS[longest], parts)


def _pipes(work: LaunchWork, chip: Architecture, coefficients: Coefficients) -> dict[str, float]:
    """Return the clocks that each pipe of a multiprocessor needs for a block."""
    clocks = {"issue": sum(work.counts.values()) / SCHEDULERS}
    for kind in ("fma", "alu", "half", "mufu", "shuffle", "product"):
        clocks[kind] = work.counts.get(kind, 0.0) * WARP / chip.lanes(kind)
    passes = work.wavefronts + work.local_wavefronts
    clocks["l1"] = coefficients.wavefront * passes
    return clocks
