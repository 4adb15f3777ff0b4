"""Running CUDA kernels on the CPU: the same loops, with what each thread does in its turn.

Threads that share nothing compute the same in any order. So where a kernel has no shared memory
and nothing that works across threads, this is its result, whatever the GPU adds to it: it is the
same scheduled function, with the same exponential, compiled for another machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx

from natc.build.lower import compiler_target, scheduled
from natc.spec import KernelSpec
from natc.targets import Target, detect_host_cpu

_THREAD_BINDING = tirx.ForKind.THREAD_BINDING


def emulated(
    spec: KernelSpec, operation: str, target: Target, decisions: Mapping[str, int] | None = None
) -> Callable[..., Any]:
    """Return an operation's CUDA kernel for a target as a function of CPU tensors.

    decisions: of the operation's design space; by default the untuned kernel. Raises
    AssertionError for a kernel whose threads work together.
    """
    module = scheduled(spec, target, decisions or {}, operation=operation)
    module = tvm.IRModule({var: _serial(found) for var, found in module.functions.items()})
    return tvm.compile(module, target=compiler_target(detect_host_cpu()))["main"]


def _serial(function: tirx.PrimFunc) -> tirx.PrimFunc:
    seen: list[str] = []

    def in_turn(loop: tirx.For) -> tirx.For:
        if loop.kind != _THREAD_BINDING:
            return loop
        seen.append(str(loop.thread_binding.thread_tag))
        annotations = {k: v for k, v in loop.annotations.items() if not k.startswith("pragma")}
        return tirx.For(
            loop.loop_var, loop.min, loop.extent, tirx.ForKind.SERIAL, loop.body, None, annotations
        )

    body = tvm_ffi.structural_map(function.body, (tirx.For, in_turn))
    assert seen, "the kernel has no threads"
    # A second loop over the same threads would see what others of them left behind.
    assert len(seen) == len(set(seen)), f"loops over threads follow each other: {seen}"
    return function.with_body(body)
