"""Machine code for a CPU from a module of scheduled and of written functions."""

from __future__ import annotations

import tvm
from tvm import tirx

from natc.compiler.build.lower import WRITTEN, StageSizesKnown, compiler_target
from natc.targets import Target

_CPU, _FIRST = 1, 0  # DLPack's number for CPUs, and the device that scratch memory is for

# TVM's passes for what written functions do not have, such as stages and arrays of several
# dimensions, and two that simplify what LLVM simplifies. They take as long as LLVM does.
_FOR_SCHEDULED = frozenset(
    (
        "s_tir.CompactBufferAllocation", "s_tir.HoistIfThenElse", "s_tir.InjectPermutedLayout",
        "s_tir.InjectVirtualThread", "s_tir.PlanAndUpdateBufferAllocationLocation",
        "s_tir.RenormalizeSplitPattern", "tirx.CommonSubexprElim",
        "tirx.FlattenBuffer", "tirx.NarrowDataType", "tirx.RemoveNoOp", "tirx.StmtSimplify",
        "tirx.StorageRewrite",
        # It looks for a module's only function, but the scheduled functions come later.
        "tirx.AnnotateEntryFunc",
    )
)  # fmt: skip


@tvm.ir.instrument.pass_instrument
class NothingScheduled:
    """Leaves out passes that written functions do not need."""

    def should_run(self, module: tvm.IRModule, info: tvm.transform.PassInfo) -> bool:
        """Return whether to run a pass."""
        return str(info.name) not in _FOR_SCHEDULED


def cpu_code(module: tvm.IRModule, target: Target) -> tvm.runtime.Executable:
    """Return the compiled module, as `tvm.compile` does for a module of scheduled functions."""
    host = compiler_target(target)
    module = tirx.transform.BindTarget(host.with_host(host))(module)
    lower, finish, _ = tirx.get_tir_pipeline("default")
    functions = dict(module.functions.items())
    written = {name: each for name, each in functions.items() if WRITTEN in each.attrs}
    scheduled = {name: each for name, each in functions.items() if name not in written}
    # Passes ask for the functions that a module calls, but not for what these do.
    nothing = tirx.Evaluate(tirx.const(0))
    called = {
        name: each.with_body(nothing)
        for name, each in written.items()
        if "global_symbol" not in each.attrs
    }
    lowered = tvm.IRModule({})
    for part, instrument in (
        ({**scheduled, **called} if scheduled else {}, StageSizesKnown()),
        (written, NothingScheduled()),  # also where it replaces a function that is called
    ):
        if part:
            with tvm.transform.PassContext(instruments=[instrument]):
                lowered.update(lower(tvm.IRModule(part)))
    lowered = tvm.IRModule({name: _on_cpu(each) for name, each in lowered.functions.items()})
    code = tvm.get_global_func("target.build.llvm")(finish()(lowered), host)
    return tvm.runtime.Executable(code)


def _on_cpu(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Return a function that says for which device it allocates memory.

    Functions that a library exports say it already. It is said after TVM has moved allocations to
    the beginning of their functions.
    """
    if "calling_conv" in function.attrs:
        return function
    body = function.body
    for key, number in (("device_id", _FIRST), ("device_type", _CPU)):
        body = tirx.AttrStmt("default", key, tirx.const(number, "int32"), body)
    return function.with_body(body)
