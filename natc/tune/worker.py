"""What runs in processes of its own: building one candidate, and measuring one.

A candidate may crash or hang; the search must not. Arguments and results are plain values.
"""

from __future__ import annotations

import functools
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from natc.errors import TuneError
from natc.spec import KernelSpec
from natc.targets import Target

# One sampling goes on for this long, but for at least and at most so many calls.
_SECONDS, _FEWEST, _MOST = 0.08, 8, 400
# Samples whose quartiles differ by more were disturbed; so often is sampling repeated.
_STEADY, _ATTEMPTS = 1.5, 4
_CHECKED_SHAPE = (2, 9, 11, 2)  # odd, with borders on every side and an interior for small kernels
_TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}


def build(spec_name: str, target_name: str, decisions: Mapping[str, int], output: str) -> None:
    """Compile a candidate's `forward` into the library `output`; raises what the build raises."""
    from natc.build.cuda import build_cuda
    from natc.build.llvm import build_llvm
    from natc.operations import FORWARD

    spec, target = KernelSpec.parse(spec_name), Target.parse(target_name)
    with tempfile.TemporaryDirectory(prefix="natc-candidate-") as scratch:
        if target.kind == "llvm":
            build_llvm(spec, target, decisions, Path(output), Path(scratch), entries=[FORWARD])
        else:
            build_cuda(spec, {target: decisions}, Path(output), Path(scratch), entries=[FORWARD])


def measure(
    spec_name: str, target_name: str, library: str, shapes: Sequence[tuple[int, int, int, int]]
) -> list[float]:
    """Return the seconds of one call of a candidate for each shape, the lower quartile of many.

    Whatever else runs on the machine only ever adds to a time, so the low ones are the true ones.

    Raises TuneError when the candidate computes something else than the reference.
    """
    # First, so that the library finds PyTorch's threads when it is loaded.
    import torch  # noqa: F401
    import tvm_ffi

    spec, target = KernelSpec.parse(spec_name), Target.parse(target_name)
    module = tvm_ffi.load_module(library)
    name = f"{spec.name}_forward" + ("" if target.kind == "llvm" else f"_{target.arch}")
    kernel = module[name]
    _check(spec, target, kernel)
    clock = _cpu_seconds if target.kind == "llvm" else _cuda_seconds
    found = []
    for shape in shapes:
        arguments, _ = _inputs(spec, target.kind, shape)
        found.append(clock(functools.partial(kernel, *arguments)))
    return found


def _check(spec: KernelSpec, target: Target, kernel: Callable[..., None]) -> None:
    import torch

    from natc.reference import neighborhood_attention
    from natc.testing.tolerance import relative_errors

    arguments, inputs = _inputs(spec, target.kind, _CHECKED_SHAPE)
    output = arguments[4 if spec.rpb else 3]
    output.fill_(math.nan)  # or what an earlier candidate wrote would vouch for this one
    kernel(*arguments)
    query, key, value = (tensor.double() for tensor in inputs[:3])
    rpb = None if inputs[3] is None else inputs[3].double()
    expected = neighborhood_attention(query, key, value, spec.kernel_size, rpb=rpb)
    assert isinstance(expected, torch.Tensor)
    error = relative_errors(output, expected).relative
    if not error <= _TOLERANCE[spec.dtype]:
        raise TuneError(f"wrong result: relative error {error:.2g} against the reference")


@functools.lru_cache(maxsize=8)
def _inputs(
    spec: KernelSpec, kind: str, shape: tuple[int, int, int, int]
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    import torch

    from natc.testing.direct import scalars
    from natc.testing.inputs import make_inputs, poisoned

    device = "cpu" if kind == "llvm" else "cuda"
    dtype = getattr(torch, spec.dtype)
    made = make_inputs(
        (*shape, spec.head_dim),
        kernel_size=spec.kernel_size if spec.rpb else None,
        dtype=dtype,
        device=device,
        seed=0,
    )
    output = poisoned(made.query.shape, dtype, device)
    tensors = [made.query, made.key, made.value, *([made.rpb] if spec.rpb else []), output]
    return (*tensors, *scalars(made, spec.head_dim**-0.5)), tuple(made)


def _cpu_seconds(call: Callable[[], None]) -> float:
    call()
    best = math.inf
    for _ in range(_ATTEMPTS):
        samples: list[float] = []
        begin = time.perf_counter()
        while len(samples) < _FEWEST or (
            len(samples) < _MOST and time.perf_counter() - begin < _SECONDS
        ):
            start = time.perf_counter()
            call()
            samples.append(time.perf_counter() - start)
        low, _, high = statistics.quantiles(samples, n=4)
        best = min(best, low)
        if high <= _STEADY * low:
            break
    return best


def _cuda_seconds(call: Callable[[], None]) -> float:
    """Return the seconds the device takes, by replay of a graph: no host work is in it."""
    import torch

    calls = 10
    call()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        call()
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(calls):
                call()
        graph.replay()
        samples = []
        for _ in range(9):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            samples.append(begin.elapsed_time(end) * 1e-3 / calls)
    return statistics.quantiles(samples, n=4)[0]
