"""Which design space schedules which kernel, and the definition that it schedules."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx
from tvm.s_tir import Schedule

from natc.operations import FORWARD, OPERATIONS
from natc.space import cuda_gather, cuda_simt, cuda_streamed, llvm_direct, llvm_gather
from natc.space.decisions import Candidates, Decisions
from natc.spec import KernelSpec
from natc.targets import Target
from natc.te import definitions, streamed
from natc.te.exponential import Exponential, base_two, polynomial

# A thread of a GPU keeps a logit of each tap of its query up to this many.
MOST_LOGITS = 256


@dataclass(frozen=True)
class Space:
    """A design space: its name and version, and the definition of its kernels.

    structure(spec, target): the choices of structure. apply(sch, spec, target, decisions):
    schedules a function. A version changes when old decisions would mean another kernel.
    exponential, definition: what the functions that it schedules are made with and by.
    """

    name: str
    version: int
    structure: Callable[[KernelSpec, Target], Candidates]
    apply: Callable[[Schedule, KernelSpec, Target, Decisions], None]
    exponential: Exponential
    definition: Callable[[str, KernelSpec, Exponential], tirx.PrimFunc] = definitions.definition


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
_STREAMED = Space(
    cuda_streamed.NAME,
    cuda_streamed.VERSION,
    cuda_streamed.structure,
    cuda_streamed.apply,
    base_two,
    streamed.definition,
)


def space_for(target: Target, operation: str = FORWARD, spec: KernelSpec | None = None) -> Space:
    """Return the design space of an operation on a target.

    That of the forward is searched, except over large windows on a GPU, which have one of their
    own. spec: the kernel; None is one with a small window.
    """
    is_forward = OPERATIONS[operation].family == "forward"
    taps = 1 if spec is None else math.prod(spec.kernel_size)
    if is_forward and target.kind == "cuda" and taps > MOST_LOGITS:
        return _STREAMED
    return _SPACES[target.kind, is_forward]
