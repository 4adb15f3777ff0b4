"""The sets of kernels that `natc tune --set` searches, by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

from natc.errors import SpecError
from natc.operations import GRADIENTS, OPERATIONS, operations_of, tuned_as
from natc.spec import KernelSpec, compiles


class Tuned(NamedTuple):
    """One search of a set: a kernel, and the operation of it that is tuned."""

    spec: KernelSpec
    operation: str


class Kernels(NamedTuple):
    """The kernels of every combination of some lists, and the families of operations to tune.

    rank: number of spatial axes. sizes: window lengths, the same on each axis.
    """

    rank: int
    sizes: Sequence[int]
    head_dims: Sequence[int]
    dtypes: Sequence[str]
    families: tuple[str, ...] = ("forward", "backward")
    rpb: bool = True


# A kernel without bias takes the schedule of the kernel with bias, and float16 takes bfloat16's:
# see "nearest schedule" in docs/glossary.md.
_TWO = ("float32", "bfloat16")
_SETS: dict[str, dict[str, Sequence[Kernels]]] = {
    # The kernel of the networks NAT and DiNAT.
    "nat": {
        "llvm": [Kernels(2, [7], [32], ["float32"])],
        "cuda": [Kernels(2, [7], [32], ["float16", "bfloat16", "float32"])],
    },
    # Windows of other sizes and ranks, and the decoder of LTX-2, which has no bias.
    "windows": dict.fromkeys(
        ("llvm", "cuda"),
        [
            Kernels(2, [3, 5, 7, 9, 11, 13], [32, 64], _TWO),
            Kernels(1, [7, 21, 63], [32], _TWO),
            Kernels(3, [3, 5, 7], [32], _TWO),
            Kernels(3, [11], [64], _TWO, families=("forward",), rpb=False),
        ],
    ),
}
NAMES = tuple(_SETS)


def searches(name: str, kind: str) -> list[Tuned]:
    """Return the searches of a set on targets of a kind, llvm or cuda.

    Raises SpecError, which lists the sets, for an unknown name.
    """
    if name not in _SETS:
        raise SpecError(f"set is {name!r}; it must be {' or '.join(NAMES)}.")
    return list(dict.fromkeys(_searches(_SETS[name][kind], kind)))


def _searches(blocks: Sequence[Kernels], kind: str) -> Iterator[Tuned]:
    for block in blocks:
        for size, head_dim, dtype in product(block.sizes, block.head_dims, block.dtypes):
            if not compiles(dtype, kind):
                continue
            spec = KernelSpec.make(
                size, rank=block.rank, head_dim=head_dim, dtype=dtype, rpb=block.rpb
            )
            operations = operations_of(spec, block.families, kind)
            for operation in operations:
                # Training runs no other operation of the gradients, where a kernel has this one.
                is_needless = GRADIENTS in operations and operation != GRADIENTS
                if not (is_needless and OPERATIONS[operation].family == "backward"):
                    yield Tuned(spec, tuned_as(operation))
