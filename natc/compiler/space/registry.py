"""The design space of each operation on each target, and the definition that it schedules."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import ModuleType

from tvm import tirx
from tvm.s_tir import Schedule

from natc.compiler import tensor_cores
from natc.compiler.space.cpu import rows, rows_gather, sweep, taps, taps_gather, tile_facts, tiles
from natc.compiler.space.cuda import gather, simt
from natc.compiler.space.cuda import streamed as cuda_streamed
from natc.compiler.space.decisions import Candidates, Decisions
from natc.compiler.te import definitions, streamed
from natc.compiler.te.exponential import Exponential, base_two, polynomial
from natc.operations import FORWARD, GRADIENTS, OPERATIONS
from natc.spec import KernelSpec
from natc.targets import Target

# The most that a thread of a GPU keeps: logits (one for each tap), and channels of a vector.
MOST_LOGITS, MOST_CHANNELS = 256, 96


@dataclass(frozen=True)
class DesignSpace:
    """A design space: its name and version, and the definition of its kernels.

    structure(spec, target): the choices of structure. apply(sch, spec, target, decisions):
    schedules a function. A version changes when old decisions would mean another kernel.
    definition: returns the functions to schedule, which compute `exponential`. In a search it is
    called with `example` as well (`natc.compiler.te.problem`). candidates(spec, target): the
    decisions of all candidates, the default ones first; None: `all_decisions` applies schedules
    to find them. facts(spec, target, decisions): numbers for a search's model, by name, that
    follow from decisions only together with the spec. write(spec, target, decisions): returns the
    function, where nothing is scheduled.
    """

    name: str
    version: int
    structure: Callable[[KernelSpec, Target], Candidates]
    apply: Callable[[Schedule, KernelSpec, Target, Decisions], None]
    exponential: Exponential
    definition: Callable[..., tirx.PrimFunc]
    candidates: Callable[[KernelSpec, Target], list[dict[str, int]]] | None = None
    facts: Callable[[KernelSpec, Target, Mapping[str, int]], dict[str, float]] | None = None
    write: Callable[[KernelSpec, Target, Decisions], tirx.PrimFunc] | None = None


@functools.cache
def _or_tensor_cores(space: DesignSpace, operation: str) -> DesignSpace:
    """Return the design space with the choice of tensor cores, for kernels that can use them.

    Decisions that do not name the choice mean the same as before it existed, so the version stays.
    """
    base = space.structure, space.apply
    return replace(
        space,
        structure=functools.partial(tensor_cores.structure, space.structure, operation),
        apply=functools.partial(tensor_cores.apply, base, operation),
    )


def _space(
    rule: ModuleType,
    exponential: Exponential,
    definition: Callable[..., tirx.PrimFunc] = definitions.definition,
) -> DesignSpace:
    """Return the design space of a module."""
    return DesignSpace(
        rule.NAME, rule.VERSION, rule.structure, rule.apply, exponential, definition
    )


# The spaces of the forward and of other operations, and a forward's over large windows.
_SPACES = {
    ("llvm", True): _space(taps, polynomial),
    ("llvm", False): _space(taps_gather, polynomial),
    ("cuda", True): _space(simt, base_two),
    ("cuda", False): _space(gather, base_two),
}
_STREAMED = _space(cuda_streamed, base_two, streamed.definition)


def space_for(
    target: Target, operation: str = FORWARD, spec: KernelSpec | None = None
) -> DesignSpace:
    """Return the design space of an operation on a target.

    On a CPU, it depends on the head dim, and for gradients also on the window. On a GPU, a forward
    whose threads would need too many registers has a space of its own. spec: None stands for a
    small kernel.
    """
    if operation == GRADIENTS:
        return _sweep(target)
    is_forward = OPERATIONS[operation].family == "forward"
    if target.kind == "cuda":
        large = is_forward and spec is not None and _keeps_much(spec, target)
        return _or_tensor_cores(_STREAMED if large else _SPACES["cuda", is_forward], operation)
    if is_forward and spec is not None and tiles.covers(spec, target):
        space = _for_target(tiles, target)
        return replace(space, candidates=tiles.candidates, facts=tile_facts.facts)
    if is_forward and spec is not None and rows.covers(spec):
        return _for_target(rows, target)
    if spec is not None and rows_gather.covers(spec, operation):
        return _for_target(rows_gather, target)
    return _SPACES["llvm", is_forward]


@functools.cache
def _for_target(rule: ModuleType, target: Target) -> DesignSpace:
    """Return the design space of a module whose definition depends on the target."""
    return _space(rule, polynomial, functools.partial(rule.definition, target=target))


@functools.cache
def _sweep(target: Target) -> DesignSpace:
    """Return the design space of all gradients at once."""
    space = _for_target(sweep, target)
    return replace(space, candidates=sweep.candidates, write=sweep.write)


def _keeps_much(spec: KernelSpec, target: Target) -> bool:
    """Return whether threads that keep logits would need more registers than there are."""
    lanes = simt.structure(spec, target)["lanes"][0]
    channels = max(spec.head_dim, spec.value_dim) // lanes
    return math.prod(spec.kernel_size) > MOST_LOGITS or channels > MOST_CHANNELS
