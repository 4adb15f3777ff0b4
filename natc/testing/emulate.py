"""Running CUDA kernels on the CPU: the same loops, with what each thread does in its turn.

Threads that share nothing compute the same in any order. So where a kernel has no shared memory
and nothing that works across threads, this is its result, but for the last bits: it is the same
scheduled function, with the same exponential, compiled for another machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.s_tir import SBlock, SBlockRealize
from tvm.tirx import IntImm

from natc.build.lower import compiler_target, scheduled
from natc.spec import KernelSpec
from natc.targets import Target, detect_host_cpu

_REDUCTION = 2  # tvm.tirx.IterVar.CommReduce


def emulated(
    spec: KernelSpec, operation: str, target: Target, decisions: Mapping[str, int] | None = None
) -> Callable[..., Any]:
    """Return an operation's CUDA kernel for a target as a function of CPU tensors.

    decisions: of the operation's design space; None is the untuned kernel. Raises AssertionError
    for a kernel whose threads work together.
    """
    module = scheduled(spec, target, decisions or {}, operation=operation)
    module = tvm.IRModule({var: in_turn(found) for var, found in module.functions.items()})
    function: Callable[..., Any] = tvm.compile(module, target=compiler_target(detect_host_cpu()))[
        "main"
    ]
    return function


def in_turn(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Return a scheduled function with its threads one after the other.

    Raises AssertionError where that may compute something else.
    """
    threads: dict[str, tirx.Var] = {}

    def serial(loop: tirx.For) -> tirx.For:
        if loop.kind != tirx.ForKind.THREAD_BINDING:
            return loop
        alone = isinstance(loop.extent, IntImm) and loop.extent.value == 1
        tag = str(loop.thread_binding.thread_tag)
        # A second loop over the same threads would see what others of them left behind.
        assert alone or tag not in threads, f"loops over {tag} follow each other"
        if not alone:
            threads[tag] = loop.loop_var
        kept = {k: v for k, v in loop.annotations.items() if not k.startswith("pragma")}
        return tirx.For(
            loop.loop_var, loop.min, loop.extent, tirx.ForKind.SERIAL, loop.body, None, kept
        )

    def private(block: SBlock) -> None:
        for buffer in block.alloc_buffers:
            assert buffer.scope() == "local", f"{buffer.name} is in {buffer.scope()} memory"

    def own(realize: SBlockRealize) -> None:
        for axis, value in zip(realize.block.iter_vars, realize.iter_values):
            if axis.iter_type == _REDUCTION:
                assert not _uses(value, threads), f"{realize.block.name_hint} sums up over threads"

    body = tvm_ffi.structural_map(function.body, (tirx.For, serial))
    assert "blockIdx.x" in threads, "the kernel has no threads"
    tvm_ffi.structural_walk(function.body, (SBlock, private))
    tvm_ffi.structural_walk(function.body, (SBlockRealize, own))
    return function.with_body(body)


def _uses(value: Any, threads: Mapping[str, tirx.Var]) -> bool:
    def is_thread(var: tirx.Var) -> tvm_ffi.VisitInterrupt | None:
        found = any(var.same_as(thread) for thread in threads.values())
        return tvm_ffi.VisitInterrupt(var) if found else None

    return tvm_ffi.structural_walk(value, (tirx.Var, is_thread)) is not None
