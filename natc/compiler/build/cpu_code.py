"""Machine code for a CPU from a module of lowered functions."""

from __future__ import annotations

import tvm
from tvm import tirx

from natc.compiler.build.lower import compiler_target
from natc.targets import Target

_CPU, _FIRST = 1, 0  # DLPack's number for CPUs, and the device that scratch memory is for


def cpu_code(module: tvm.IRModule, target: Target) -> tvm.runtime.Executable:
    """Return the compiled module, as `tvm.compile` does for a module without private functions."""
    host = compiler_target(target)
    lower, finish, _ = tirx.get_tir_pipeline("default")
    module = lower(tirx.transform.BindTarget(host.with_host(host))(module))
    module = tvm.IRModule({var: _on_cpu(each) for var, each in module.functions.items()})
    code = tvm.get_global_func("target.build.llvm")(finish()(module), host)
    return tvm.runtime.Executable(code)


def _on_cpu(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Return a function that says for which device it allocates memory.

    Functions that a library exports say it already. It is said after TVM has moved allocations to
    the beginning of their functions.
    """
    if "calling_conv" in (function.attrs or {}):
        return function
    body = function.body
    for key, number in (("device_id", _FIRST), ("device_type", _CPU)):
        body = tirx.AttrStmt("default", key, tirx.const(number, "int32"), body)
    return function.with_body(body)
