"""Design space of all gradients at once on CPUs (`natc.compiler.cpu_tiles.sweep`).

Its functions are written, not scheduled: every decision is a choice of structure.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx

from natc.compiler.cpu_tiles.sweep.form import Form, whole
from natc.compiler.cpu_tiles.sweep.kernel import gradients
from natc.compiler.space.decisions import Candidates, Decisions, combinations
from natc.operations import GRADIENTS
from natc.spec import KernelSpec
from natc.targets import Target

NAME = "llvm_sweep"
VERSION = 1

_TILE = 4  # queries of a tile of two rows
_MANY_REGISTERS = ("x86-64-v4", "aarch64")  # 32; other CPUs have 16


def structure(spec: KernelSpec, target: Target) -> Candidates:
    """Return the candidates of each decision; the first of each is the untuned kernel's."""
    many = target.arch in _MANY_REGISTERS
    lanes = min(8, target.vector_bytes // 4)
    padded = whole(spec.kernel_size[-1] + 1, lanes)
    most_rows, strips = 1, [n for n in (32, 64, 128) if n >= 2 * padded]
    if spec.rank > 1:
        # Sums that a tile holds in registers, beside rows of keys and an element of a query.
        held = (24 if many else 12) // (_TILE * (padded // lanes))
        most_rows = max(1, min(held, spec.kernel_size[-2] + 1))
        strips = [n for n in (16, 24, 32, 48) if n >= padded + 4]
    vectors = [n for n in (4, 2, 1) if spec.head_dim // lanes % n == 0]
    return {
        "lanes": [lanes],
        "strip": strips,
        "key_rows": [most_rows, *(n for n in (4, 3, 2, 1) if n < most_rows)],
        "sum_queries": [2, 3],
        "sum_vectors": vectors,
        "scatter_vectors": vectors if many else [n for n in vectors if n <= 2],
        "prefetch": [1, 0] if spec.rank == 2 else [0],
    }


def candidates(spec: KernelSpec, target: Target) -> list[dict[str, int]]:
    """Return the decisions of all candidates, the untuned ones first."""
    return list(combinations(structure(spec, target)))


def write(spec: KernelSpec, target: Target, decisions: Decisions) -> tirx.PrimFunc:
    """Return the function of `gradients`; raises ScheduleError for a decision out of bounds."""
    choices = decisions.choose_all(structure(spec, target))
    decisions.check_names()
    return gradients(Form(spec, **choices))


def definition(
    operation: str, spec: KernelSpec, exponential: Any, *, target: Target
) -> tirx.PrimFunc:
    """Return the untuned function, with which nothing is left to schedule."""
    if operation != GRADIENTS:
        raise ValueError(f"space {NAME} has no function of {operation}")
    return write(spec, target, Decisions({}, NAME))


def apply(*_: Any) -> None:
    """Schedule nothing."""
