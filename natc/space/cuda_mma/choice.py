"""The choice between tensor cores and a design space for CUDA cores, which stays beside them.

What a tile cannot do (strides, and more heads or batches than a grid's axis has blocks), the
kernel for CUDA cores does: the function has both, and launches the one that fits the call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import SBlockRV

from natc.space.decisions import Candidates, Decisions
from natc.spec import KernelSpec
from natc.targets import Target

TENSOR_CORES = "tensor_cores"
# Names of the sampled numbers, and of their annotations on the block `output`.
WARPS_0, WARPS_1, PRODUCTS, RESIDENT = "warps_0", "warps_1", "products", "resident_warps"
ANNOTATION = "natc.tile."

_MOST_DIM = 128
_STEP = 16  # channels of a product

Structure = Callable[[KernelSpec, Target], Candidates]
Apply = Callable[[Schedule, KernelSpec, Target, Decisions], None]


def serves(spec: KernelSpec) -> bool:
    """Return whether the forward of a kernel can use tensor cores."""
    dims = (spec.head_dim, spec.value_dim)
    return spec.dtype in ("float16", "bfloat16") and all(
        dim % _STEP == 0 and dim <= _MOST_DIM for dim in dims
    )


def structure(base: Structure, spec: KernelSpec, target: Target) -> Candidates:
    """Return the choices of structure of the space `base`, and that of tensor cores."""
    found = base(spec, target)
    return {TENSOR_CORES: (1, 0), **found} if serves(spec) else found


def apply(
    base: tuple[Structure, Apply],
    sch: Schedule,
    spec: KernelSpec,
    target: Target,
    decisions: Decisions,
) -> None:
    """Schedule a forward; ScheduleError for a decision out of bounds.

    Without a decision it uses tensor cores. A schedule that has decisions, and none of this, was
    made before there was a choice.
    """
    base_structure, base_apply = base
    if not serves(spec):
        return base_apply(sch, spec, target, decisions)
    first = (1, 0) if decisions.is_untuned else (0, 1)
    if not decisions.choose(TENSOR_CORES, first):
        return base_apply(sch, spec, target, decisions)
    for name, values in base_structure(spec, target).items():
        # The other kernel is there as it is by default.
        decisions.choose(name, values[:1])
    base_apply(sch, spec, target, _Default())
    output = sch.get_sblock("output")
    for name, candidates in _numbers(spec).items():
        sch.annotate(output, ANNOTATION + name, decisions.sample(sch, name, candidates))
    decisions.annotate(sch, output)


def _numbers(spec: KernelSpec) -> dict[str, Sequence[int]]:
    """Return the candidates of each sampled number, the untuned kernel's first.

    Warps of a block side by side, which share keys and values through the cache; products whose
    scores a lane keeps at once; warps of a multiprocessor for whose registers there must be room.
    """
    small = max(spec.head_dim, spec.value_dim) <= 32 and all(k <= 7 for k in spec.kernel_size)
    numbers: dict[str, Sequence[int]] = {} if spec.rank == 1 else {WARPS_0: (4, 2, 1)}
    numbers[WARPS_1] = (4, 2, 8, 1) if spec.rank == 1 else (1, 2, 4)
    # The first are those with which compilers need no memory for registers, as far as there are.
    if small and spec.rank == 2:
        return {**numbers, PRODUCTS: (16, 8, 12), RESIDENT: (8, 12, 16)}
    return {**numbers, PRODUCTS: (8, 16, 12), RESIDENT: (8, 12, 16)}


class _Default(Decisions):
    """Every first candidate, as numbers that no search may change and no schedule names."""

    def __init__(self) -> None:
        super().__init__({}, "")

    def sample(self, sch: Schedule, name: str, candidates: Sequence[int]) -> int:
        return candidates[0]

    def annotate(self, sch: Schedule, block: SBlockRV) -> None:
        pass
