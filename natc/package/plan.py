"""The kernels of a package: lists of sizes and dtypes, and named sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from natc.errors import SpecError
from natc.spec import DTYPES, KernelSpec, parse_kernel_size


@dataclass(frozen=True, slots=True)
class KernelSet:
    """The kernels of every combination of some lists."""

    kernels: tuple[str, ...]
    head_dims: tuple[int, ...]
    dtypes: tuple[str, ...]
    families: tuple[str, ...]


# The kernels of the networks in "Neighborhood Attention Transformer" and "Dilated Neighborhood
# Attention Transformer", and near kernels: heads of 32 and 64, windows up to 13.
SETS = {
    "nat": KernelSet(
        ("3", "5", "7", "9", "11", "13"),
        (32, 64),
        ("float16", "bfloat16", "float32"),
        ("forward", "backward"),
    )
}


def specs(
    kernels: Sequence[str],
    head_dims: Sequence[int],
    dtypes: Sequence[str],
    biases: Sequence[bool],
    *,
    rank: int | None = None,
) -> list[KernelSpec]:
    """Return the specs of every combination, each once, in the order of the lists.

    kernels: window sizes, `7` or `7x5`. biases: with a relative positional bias or without.
    rank: by default 2, or the count of a size's numbers. Raises SpecError for a value that is not
    allowed.
    """
    combinations = []
    for kernel, head_dim, dtype, rpb in product(kernels, head_dims, dtypes, biases):
        sizes = parse_kernel_size(kernel)
        axes = rank or (len(sizes) if len(sizes) > 1 else 2)
        combinations.append(
            KernelSpec.make(
                sizes[0] if len(sizes) == 1 else sizes,
                rank=axes,
                head_dim=head_dim,
                dtype=dtype,
                rpb=rpb,
            )
        )
    return list(dict.fromkeys(combinations))


def parse_list(text: str, what: str) -> tuple[str, ...]:
    """Return the parts of a text such as `3,5,7`; raises SpecError naming `what` without any."""
    parts = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not parts:
        raise SpecError(f"{what} is {text!r}; write at least one, separated by commas.")
    return parts


def parse_head_dims(text: str) -> tuple[int, ...]:
    """Return the integers in `32,64`; raises SpecError for another text."""
    parts = parse_list(text, "head_dim")
    if not all(part.isascii() and part.isdigit() and len(part) < 5 for part in parts):
        raise SpecError(f"head_dim is {text!r}; write numbers separated by commas.")
    return tuple(int(part) for part in parts)


def parse_dtypes(text: str) -> tuple[str, ...]:
    """Return the dtypes in `float16,float32`; raises SpecError for another text."""
    parts = parse_list(text, "dtype")
    wrong = [part for part in parts if part not in DTYPES]
    if wrong:
        raise SpecError(f"dtype {wrong[0]!r} is unknown; it must be one of {', '.join(DTYPES)}.")
    return parts
