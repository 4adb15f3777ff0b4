"""A small sweep of the CUDA kernels in NATC_LIB_PATH, to be run under compute-sanitizer:

    compute-sanitizer --tool memcheck --error-exitcode 1 python tests/gpu/sanitize.py
    compute-sanitizer --tool racecheck --error-exitcode 1 python tests/gpu/sanitize.py

Results and gradients of the public functions are compared with brute force as well. Every tensor
is an allocation of its own, so that memcheck sees accesses beside it. Arguments: names of kernels;
by default all that run on this GPU.
"""

from __future__ import annotations

import dataclasses
import os
import sys

# Before torch is imported.
os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
os.environ["NATC_STRICT"] = "1"

import torch
from support.calls import Call, check_av, check_fused, check_qk

import natc
from natc import functional, runtime
from natc.operations import operations_of
from natc.spec import KernelSpec

MAPS = {1: ((37,), (2,)), 2: ((9, 7), (2, 5)), 3: ((3, 4, 5), (2, 1, 3))}


def has(spec: KernelSpec, families: tuple[str, ...]) -> bool:
    """Return whether libraries for this GPU hold these operations of a kernel."""
    return all(
        runtime.explain(spec, "cuda", operation=operation).choice is not None
        for operation in operations_of(spec, families)
    )


def calls_of(spec: KernelSpec) -> list[Call]:
    """Return calls with and without dilation, strides, causal axes and shared heads."""
    ones, flags = (1,) * spec.rank, (False,) * spec.rank
    large, small = MAPS[spec.rank]
    steps = tuple(min(2, k) for k in spec.kernel_size)
    return [
        Call(spec, large, ones, ones, flags, batch=2, heads=2, heads_kv=2),
        Call(spec, large, (2,) * spec.rank, steps, flags, heads=4, heads_kv=2),
        Call(spec, large, ones, ones, (True, *flags[1:]), heads=3, heads_kv=1, tokens=2),
        Call(spec, small, ones, ones, flags, heads=1, heads_kv=1),
    ]


def main(names: list[str]) -> int:
    """Run the sweep and return the exit status: 0 where something was run."""
    specs = {KernelSpec.parse(name) for name in names} or {
        library.spec for library in runtime.kernels()
    }
    done = 0
    for spec in sorted(specs, key=str):
        if not has(spec, ("forward", "backward")):
            print(f"passed over: {spec} lacks operations for this GPU", flush=True)
            continue
        plain = dataclasses.replace(spec, rpb=False)
        operators = spec.head_dim == spec.value_dim and has(spec, ("unfused",))
        operators = operators and (not spec.rpb or has(plain, ("unfused",)))
        for call in calls_of(spec):
            check_fused(call, natc.neighborhood_attention, "cuda")
            if operators:
                check_qk(call, getattr(functional, f"na{spec.rank}d_qk"), "cuda")
                check_av(call, getattr(functional, f"na{spec.rank}d_av"), "cuda")
            done += 1
        torch.cuda.synchronize()
        print(f"checked: {spec}{'' if operators else ', without its operators'}", flush=True)
    if not done:
        print("no kernel for this GPU was found; set NATC_LIB_PATH", file=sys.stderr)
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
