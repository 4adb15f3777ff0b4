"""Which design space schedules which kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm.s_tir import Schedule

from natc.operations import FORWARD, OPERATIONS
from natc.space import cuda_gather, cuda_simt, llvm_direct, llvm_gather
from natc.space.decisions import Candidates, Decisions
from natc.spec import KernelSpec
from natc.targets import Target
from natc.te.exponential import Exponential, base_two, polynomial


@dataclass(frozen=True)
class Space:
    """A design space: its name and version, and the exponential its kernels are defined with.

    structure(spec, target): the choices of structure. apply(sch, spec, target, decisions):
    schedules a function. A version changes when old decisions would mean another kernel.
    """

    name: str
    version: int
    structure: Callable[[KernelSpec, Target], Candidates]
    apply: Callable[[Schedule, KernelSpec, Target, Decisions], None]
    exponential: Exponential


_SPACES = {
    ("llvm", True): Space(
        llvm_direct.NAME, llvm_direct.VERSION, llvm_direct.structure, llvm_direct.apply, polynomial
    ),
    ("llvm", False): Space(
        llvm_gather.NAME, llvm_gather.VERSION, llvm_gather.structure, llvm_gather.apply, polynomial
    ),
    ("cuda", True): Space(
        cuda_simt.NAME, cuda_simt.VERSION, cuda_simt.structure, cuda_simt.apply, base_two
    ),
    ("cuda", False): Space(
        cuda_gather.NAME, cuda_gather.VERSION, cuda_gather.structure, cuda_gather.apply, base_two
    ),
}


def space_for(target: Target, operation: str = FORWARD) -> Space:
    """Return the design space of an operation on a target; that of the forward is searched."""
    return _SPACES[target.kind, OPERATIONS[operation].family == "forward"]
