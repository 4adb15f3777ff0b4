"""Which design space schedules which kernel, and the definition that it schedules."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType

from tvm import tirx
from tvm.s_tir import Schedule

from natc.operations import FORWARD, OPERATIONS
from natc.space import (
    cuda_gather,
    cuda_mma,
    cuda_simt,
    cuda_streamed,
    llvm_blocked,
    llvm_blocked_gather,
    llvm_direct,
    llvm_gather,
)
from natc.space.decisions import Candidates, Decisions
from natc.spec import KernelSpec
from natc.targets import Target
from natc.te import definitions, streamed
from natc.te.exponential import Exponential, base_two, polynomial

# What a thread of a GPU keeps at most: a logit of each tap, and channels of a query or a value.
MOST_LOGITS, MOST_CHANNELS = 256, 96


@dataclass(frozen=True)
class Space:
    """A design space: its name and version, and the definition of its kernels.

    structure(spec, target): the choices of structure. apply(sch, spec, target, decisions):
    schedules a function. A version changes when old decisions would mean another kernel.
    exponential, definition: what the functions that it schedules are made with and by; definition
    takes `example`, too, where it is searched (`natc.te.problem`).
    """

    name: str
    version: int
    structure: Callable[[KernelSpec, Target], Candidates]
    apply: Callable[[Schedule, KernelSpec, Target, Decisions], None]
    exponential: Exponential
    definition: Callable[..., tirx.PrimFunc] = definitions.definition


@functools.cache
def _or_tensor_cores(space: Space, operation: str) -> Space:
    """Return a GPU's design space of an operation with the choice of tensor cores in it.

    Kernels that they cannot serve have no choice. Decisions that do not name the choice mean what
    they meant without it, hence the same version.
    """
    base = space.structure, space.apply
    return replace(
        space,
        structure=functools.partial(cuda_mma.structure, space.structure, operation),
        apply=functools.partial(cuda_mma.apply, base, operation),
    )


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

    On a CPU, it depends on the head dim, and for gradients on the window; on a GPU, a forward that
    would have to keep too much has one of its own. spec: the kernel; None is one that has not.
    """
    is_forward = OPERATIONS[operation].family == "forward"
    if target.kind == "cuda":
        large = is_forward and spec is not None and _keeps_much(spec, target)
        return _or_tensor_cores(_STREAMED if large else _SPACES["cuda", is_forward], operation)
    if is_forward and spec is not None and llvm_blocked.covers(spec):
        return _for_target(llvm_blocked, target)
    if spec is not None and llvm_blocked_gather.covers(spec, operation):
        return _for_target(llvm_blocked_gather, target)
    return _SPACES["llvm", is_forward]


@functools.cache
def _for_target(rule: ModuleType, target: Target) -> Space:
    """Return the design space of a module whose definition depends on the target."""
    return Space(
        rule.NAME,
        rule.VERSION,
        rule.structure,
        rule.apply,
        polynomial,
        functools.partial(rule.definition, target=target),
    )


def _keeps_much(spec: KernelSpec, target: Target) -> bool:
    """Return whether threads that keep logits would need more registers than there are."""
    lanes = cuda_simt.structure(spec, target)["lanes"][0]
    channels = max(spec.head_dim, spec.value_dim) // lanes
    return math.prod(spec.kernel_size) > MOST_LOGITS or channels > MOST_CHANNELS
