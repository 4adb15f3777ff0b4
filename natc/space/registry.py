"""Which design space schedules which kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm.s_tir import Schedule

from natc.space import cuda_simt, llvm_direct
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
    "llvm": Space(
        llvm_direct.NAME, llvm_direct.VERSION, llvm_direct.structure, llvm_direct.apply, polynomial
    ),
    "cuda": Space(
        cuda_simt.NAME, cuda_simt.VERSION, cuda_simt.structure, cuda_simt.apply, base_two
    ),
}


def space_for(target: Target) -> Space:
    """Return the design space that is searched for a target."""
    return _SPACES[target.kind]
