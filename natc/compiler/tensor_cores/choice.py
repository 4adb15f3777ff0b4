"""The choice between tensor cores and the design space for CUDA cores.

A function that uses tensor cores has a kernel for CUDA cores as well, and launches whichever fits
the call. CUDA cores serve strides, and more heads or batches than a grid's axis has blocks.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm.s_tir import Schedule

from natc.compiler.space.cuda.registers import REGISTERS
from natc.compiler.space.decisions import Candidates, Decisions, Untuned
from natc.compiler.space.loops import has_block
from natc.compiler.tensor_cores import d_key, d_query, d_rpb, d_value, delta, forward, inverse
from natc.compiler.tensor_cores.kernel import TensorCoreKernel
from natc.operations import OPERATIONS
from natc.spec import KernelSpec
from natc.targets import Target

_FORWARD = TensorCoreKernel(forward.numbers, forward.launch)
# The operations that have a kernel for tensor cores.
KERNELS: dict[str, TensorCoreKernel] = {
    **{name: _FORWARD for name, entry in OPERATIONS.items() if entry.family == "forward"},
    "delta": TensorCoreKernel(delta.numbers, delta.launch),
    "d_key": TensorCoreKernel(inverse.numbers, d_key.launch),
    "d_value": TensorCoreKernel(inverse.numbers, d_value.launch),
    "d_query": TensorCoreKernel(d_query.numbers, d_query.launch),
    "d_rpb": TensorCoreKernel(d_rpb.numbers, d_rpb.launch),
}
TENSOR_CORES = "tensor_cores"
# Without a schedule: tensor cores, though no GPU has measured them yet.
_ORDER = (1, 0)
# A sampled number is annotated on the block `output` under this prefix and its name.
ANNOTATION = "natc.tile."

_MOST_DIM = 128
_STEP = 16  # channels of a product

Structure = Callable[[KernelSpec, Target], Candidates]
Apply = Callable[[Schedule, KernelSpec, Target, Decisions], None]


def serves(spec: KernelSpec, operation: str) -> bool:
    """Return whether an operation of a kernel can use tensor cores."""
    dims = (spec.head_dim, spec.value_dim)
    return (
        operation in KERNELS
        and not spec.terms
        and spec.dtype in ("float16", "bfloat16")
        and all(dim % _STEP == 0 and dim <= _MOST_DIM for dim in dims)
    )


def structure(base: Structure, operation: str, spec: KernelSpec, target: Target) -> Candidates:
    """Return the choices of structure of the space `base`, with the choice of tensor cores."""
    choices = base(spec, target)
    return {TENSOR_CORES: _ORDER, **choices} if serves(spec, operation) else choices


def apply(
    base: tuple[Structure, Apply],
    operation: str,
    sch: Schedule,
    spec: KernelSpec,
    target: Target,
    decisions: Decisions,
) -> None:
    """Schedule an operation; raises ScheduleError for a decision out of bounds.

    The untuned schedule uses tensor cores. Decisions that do not name the choice are from before
    it existed, and mean CUDA cores.
    """
    base_structure, base_apply = base
    if not serves(spec, operation):
        return base_apply(sch, spec, target, decisions)
    order = _ORDER if decisions.is_untuned else (0, 1)
    if not decisions.choose(TENSOR_CORES, order):
        return base_apply(sch, spec, target, decisions)
    for name, values in base_structure(spec, target).items():
        # The kernel for CUDA cores takes its untuned schedule.
        decisions.choose(name, values[:1])
    base_apply(sch, spec, target, Untuned())
    # A space that keeps `output` in registers leaves a block that copies them to memory.
    output = sch.get_sblock("output" if has_block(sch, "output") else f"output_{REGISTERS}")
    for name, candidates in KERNELS[operation].numbers(spec).items():
        sch.annotate(output, ANNOTATION + name, decisions.sample(sch, name, candidates))
    decisions.annotate(sch, output)
