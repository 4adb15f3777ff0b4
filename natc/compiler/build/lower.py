"""Scheduled functions and TVM targets, with which every build and every trial begins."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import tvm
from tvm import tirx
from tvm.s_tir import Schedule, transform
from tvm.target import Target as CompilerTarget

from natc.compiler.cpu_tiles.placement import plan_of, with_tiles
from natc.compiler.cpu_tiles.shared_function import TILES, shared_function
from natc.compiler.space import Decisions, space_for
from natc.compiler.space.skip import apply_skips
from natc.compiler.space.threads import apply_threads
from natc.compiler.tensor_cores import apply_tiles
from natc.host.detect import host_machine
from natc.operations import FORWARD
from natc.spec import KernelSpec
from natc.store.schedules import own_decisions
from natc.targets import Target

# Sums may be reordered, or no reduction would use vector registers; infinities and NaN keep
# their meaning.
_FLOAT_OPTIONS = {"fast-math-reassoc": True, "fast-math-contract": True, "fast-math-nsz": True}
# TVM's first passes over a scheduled function (tvm.s_tir.pipeline): afterwards it has only loops
# and memory, no stages or blocks.
_WITHOUT_BLOCKS = tvm.transform.Sequential(
    [
        transform.CanonicalizeLoop(),
        transform.LowerInitBlock(),
        transform.PlanAndUpdateBufferAllocationLocation(),
        transform.ConvertBlocksToOpaque(),
        transform.CompactBufferAllocation(),
        transform.LowerMatchBuffer(),
        transform.StmtSimplify(),
        transform.LowerOpaqueBlock(),
    ]
)
# The same passes of functions for GPUs, up to the sizes of stages. Their blocks stay.
_SIZED = tvm.transform.Sequential(
    [
        transform.CanonicalizeLoop(),
        transform.LowerCrossThreadReduction(),
        transform.LowerInitBlock(),
        transform.PlanAndUpdateBufferAllocationLocation(),
        transform.ConvertBlocksToOpaque(),
        transform.LiftThreadBinding(),
        transform.CompactBufferAllocation(),
    ]
)


# An attribute of functions that are written, not scheduled.
WRITTEN = "natc.written"


@functools.cache
def compiler_target(target: Target) -> CompilerTarget:
    """Return `target` as a TVM target; needs neither that CPU nor a GPU."""
    arch = target.properties
    if target.kind == "llvm":
        options: dict[str, Any] = {"kind": "llvm", **_FLOAT_OPTIONS}
        if arch.features:
            options["mattr"] = list(arch.features)
        if arch.name != arch.processor:
            options["mcpu"] = arch.name
        if arch.name == arch.processor or host_machine() != arch.processor:
            options["mtriple"] = f"{arch.processor}-linux-gnu"
        return CompilerTarget(options)
    cuda = {
        "kind": "cuda",
        "arch": target.arch,
        "max_shared_memory_per_block": most_shared_bytes(target),
        "max_threads_per_block": 1024,
        "thread_warp_size": 32,
    }
    return CompilerTarget(cuda, host=CompilerTarget({"kind": "llvm"}))


def most_shared_bytes(target: Target) -> int:
    """Return the bytes of shared memory that one block may have on a GPU."""
    return target.properties.shared_kib * 1024


def entry_module(
    spec: KernelSpec, target: Target, decisions: Mapping[str, int], names: Mapping[str, str]
) -> tvm.IRModule:
    """Return a module with the function of each operation; names: operation -> its name.

    decisions: for all operations, under the names of `natc.store.schedules.joined`.
    """
    module = tvm.IRModule({})
    for operation, name in names.items():
        own = own_decisions(decisions, operation)
        module.update(scheduled(spec, target, own, operation=operation, name=name))
    return module


def scheduled(
    spec: KernelSpec,
    target: Target,
    decisions: Mapping[str, int],
    *,
    operation: str = FORWARD,
    name: str = "main",
) -> tvm.IRModule:
    """Return a module with the scheduled function of an operation, `name`, for any shape.

    decisions: for the operation's design space; a missing one takes the untuned default. Raises
    ScheduleError for a decision that the space does not have.
    """
    space = space_for(target, operation, spec)
    if space.write is not None:
        function = space.write(spec, target, Decisions(decisions, space.name))
        function = function.with_attr({"global_symbol": name, WRITTEN: True})
        return tvm.IRModule({name: function})
    defined = space.definition(operation, spec, space.exponential)
    sch = Schedule(tvm.IRModule({name: defined.with_attr("global_symbol", name)}))
    sch.work_on(name)
    space.apply(sch, spec, target, Decisions(decisions, space.name))
    return finished(sch.mod[name], spec, target, operation, name=name)


def finished(
    function: tirx.PrimFunc,
    spec: KernelSpec,
    target: Target,
    operation: str = FORWARD,
    *,
    name: str = "main",
) -> tvm.IRModule:
    """Return a module with a scheduled function after the steps that no primitive can do.

    They skip taps, spread loops over threads, and add kernels for tensor cores. If the schedule
    has a kernel of tiles, the module holds it, too.
    """
    plan = plan_of(function, spec) if target.kind == "llvm" else None
    # TVM infers the sizes of stages here, before loops are spread over threads: once indices are
    # quotients, or there is a kernel for tensor cores, that takes longer than all other lowering.
    passes = _WITHOUT_BLOCKS if target.kind == "llvm" else _SIZED
    (function,) = passes(tvm.IRModule({"main": apply_skips(function)})).functions.values()
    function = apply_tiles(apply_threads(function), spec, operation)
    if plan is None:
        return tvm.IRModule({name: function})
    tiles = shared_function(plan).with_attr(WRITTEN, True)
    return tvm.IRModule({name: with_tiles(function, plan), TILES: tiles})


# Passes that remove statements without effect, and move conditions out of loops.
_LEFT_TO_LLVM = ("tirx.RemoveNoOp", "s_tir.HoistIfThenElse")


@tvm.ir.instrument.pass_instrument
class StageSizesKnown:
    """Keeps TVM from inferring the sizes of stages again, which `finished` did.

    For CPUs it also leaves out passes that find nothing that LLVM would not find. They take up to
    a third of a build, and without them the machine code is the same.
    """

    def should_run(self, module: tvm.IRModule, info: tvm.transform.PassInfo) -> bool:
        """Return whether to run a pass."""
        if info.name in _LEFT_TO_LLVM:
            targets = (function.attrs.get("target") for function in module.functions.values())
            return not all(target is not None and target.kind.name == "llvm" for target in targets)
        return info.name != "s_tir.CompactBufferAllocation"
