"""Design space of forwards on CPUs: tiles of queries (`natc.compiler.cpu_tiles`).

The function also has a kernel of another space, in its untuned schedule, for the calls that tiles
do not serve: with strides, causal axes, or windows larger than the map.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from tvm import tirx
from tvm.s_tir import Schedule

from natc.compiler.cpu_tiles.placement import ANNOTATION
from natc.compiler.cpu_tiles.plan import KEYS, QUERIES, plan_for
from natc.compiler.space.cpu import rows
from natc.compiler.space.decisions import Candidates, Decisions, Untuned
from natc.compiler.te.exponential import Exponential
from natc.errors import ScheduleError
from natc.spec import KernelSpec
from natc.targets import Target

NAME = "llvm_tiles"
VERSION = 2

# Rows of more taps fill vectors of keys well enough.
_FEW_TAPS = 6
# They can permute the lanes of 8 float32.
_PERMUTING = ("x86-64-v3", "x86-64-v4")
_MANY_REGISTERS = ("x86-64-v4", "aarch64")
# The most float32 of scratch memory of a thread: 4 MiB.
_MOST_SCRATCH = 1 << 20


def covers(spec: KernelSpec, target: Target) -> bool:
    """Return whether the space has schedules for a kernel.

    The other space must have them, too; value_dim must be whole vectors; logits have no further
    terms; and the scratch memory of a thread is at most _MOST_SCRATCH.
    """
    return (
        rows.covers(spec)
        and spec.value_dim % _lanes(target) == 0
        and not spec.terms
        and plan_for(spec, default(spec, target)).layout()["end"] <= _MOST_SCRATCH
    )


def default(spec: KernelSpec, target: Target) -> dict[str, int]:
    """Return the untuned decisions: the best that were measured for kernels of their kind."""
    few_taps = spec.kernel_size[-1] <= _FEW_TAPS or spec.rank == 1
    of_queries = few_taps and _allows_query_lanes(spec, target)
    return default_of(QUERIES if of_queries else KEYS, spec, target)


def default_of(lanes_of: int, spec: KernelSpec, target: Target) -> dict[str, int]:
    """Return the untuned decisions with keys or queries in lanes."""
    many, lanes = target.arch in _MANY_REGISTERS, _lanes(target)
    height, width = 2, 2
    if lanes_of == QUERIES:
        height, width = 1 if spec.rank == 1 else 2, 1
    elif spec.rank == 1:
        # No rows share keys: more columns do, at the price of lanes without a key of the window.
        height, width = 1, 6
    elif spec.kernel_size[-1] + 2 < lanes - 1:
        # There are lanes for one more column.
        width = 3
    keys = 10 if lanes_of == QUERIES else 3
    while not _fit(height * width, keys, many):
        keys -= 1
    while many and keys < 4 and _fit(height * width, keys + 1, many):
        keys += 1
    vectors = max(n for n in (4, 2, 1) if n * lanes <= spec.value_dim)
    queries = 6
    while not _fit(queries, vectors, many) or queries * vectors > 20:
        queries -= 1
    return {
        "lanes_of": lanes_of,
        "lanes": lanes,
        "tile_rows": height,
        "tile_columns": width,
        "key_vectors": keys,
        "sum_queries": queries,
        "sum_vectors": vectors,
        "strip": _values(lanes_of, spec)["strip"][0],
        "unroll": 2,
        "units": 16,
    }


def structure(spec: KernelSpec, target: Target) -> Candidates:
    """Return the values that each decision may take, the default one first.

    Not all of them go together: see `candidates`.
    """
    first = default(spec, target)
    forms = (KEYS, QUERIES) if _allows_query_lanes(spec, target) else (KEYS,)

    def of_forms(name: str) -> tuple[int, ...]:
        return tuple(value for form in forms for value in _values(form, spec)[name])

    values: dict[str, tuple[int, ...]] = {
        "lanes_of": forms,
        "lanes": (first["lanes"],),
        "tile_rows": (1,) if spec.rank == 1 else (2, 1),
        "tile_columns": of_forms("tile_columns"),
        "key_vectors": of_forms("key_vectors"),
        "sum_queries": (1, 2, 3, 4, 5, 6),
        "sum_vectors": (4, 2, 1),
        "strip": of_forms("strip"),
        "unroll": (2, 4),
        "units": (16, 64),
    }
    return {name: tuple(dict.fromkeys((first[name], *each))) for name, each in values.items()}


def candidates(spec: KernelSpec, target: Target) -> list[dict[str, int]]:
    """Return all decisions that go together, the default ones first."""
    values = structure(spec, target)
    every = (dict(zip(values, combination)) for combination in itertools.product(*values.values()))
    return [decisions for decisions in every if not objection(spec, target, decisions)]


def definition(
    operation: str, spec: KernelSpec, exponential: Exponential, *, target: Target
) -> tirx.PrimFunc:
    """Return the unscheduled function of the other space."""
    return rows.definition(operation, spec, exponential, target=target)


def apply(sch: Schedule, spec: KernelSpec, target: Target, decisions: Decisions) -> None:
    """Schedule the function of `definition`; ScheduleError for decisions out of bounds."""
    choices = decisions.choose_all(structure(spec, target))
    problem = objection(spec, target, choices)
    if problem:
        raise ScheduleError(problem)
    rows.apply(sch, spec, target, Untuned())
    output = sch.get_sblock("output")
    for name, value in choices.items():
        sch.annotate(output, ANNOTATION + name, value)
    decisions.annotate(sch, output)


def _lanes(target: Target) -> int:
    """Return the lanes of the default vectors: 8, which need no wider registers, or 4."""
    return min(target.vector_bytes // 4, 8)


def _strips(spec: KernelSpec) -> tuple[int, ...]:
    """Return the candidates of a panel's columns, in whole vectors."""
    if spec.rank == 1:
        # One row of a strip is small.
        least = -(-(spec.kernel_size[-1] + 56) // 8) * 8
        return least, least - 32, least + 32
    least = max(16, -(-(spec.kernel_size[-1] + 7) // 8) * 8)
    return least, least + 8, least + 16


def _values(lanes_of: int, spec: KernelSpec) -> dict[str, tuple[int, ...]]:
    """Return the candidates of decisions that differ between keys and queries in lanes.

    The first strip is the default.
    """
    if lanes_of == QUERIES:
        strips = (64, 32, 128) if spec.rank == 1 else (16, 24, 32)
        return {"tile_columns": (1,), "key_vectors": (4, 6, 7, 10), "strip": strips}
    return {
        "tile_columns": (1, 2, 3, 4, 6),
        "key_vectors": (1, 2, 3, 4, 5, 6, 7),
        "strip": _strips(spec),
    }


def _allows_query_lanes(spec: KernelSpec, target: Target) -> bool:
    """Return whether queries may be in lanes.

    Near borders, lanes are permuted, and lanes of the bias begin at up to `kernel_size` places.
    """
    return target.arch in _PERMUTING and spec.kernel_size[-1] <= 8 and spec.head_dim % 8 == 0


def objection(spec: KernelSpec, target: Target, decisions: Mapping[str, int]) -> str:
    """Return why decisions do not go together, or "" if they do."""
    plan = plan_for(spec, decisions)
    many = target.arch in _MANY_REGISTERS
    queries, keys = plan.tile_rows * plan.tile_columns, plan.key_vectors
    if not _fit(queries, keys, many):
        return f"decision key_vectors is {keys}; the CPU has no registers for {queries} queries."
    for name, values in _values(plan.lanes_of, spec).items():
        if decisions[name] not in values:
            return f"decision {name} is {decisions[name]}; for this lanes_of it may be {values}."
    sums, vectors = plan.sum_queries, plan.sum_vectors
    if not _fit(sums, vectors, many):
        return f"decision sum_vectors is {vectors}; the CPU has no registers for {sums} queries."
    # Multiply-adds to the same sum wait for each other: fewer leave the CPU idle.
    if queries * keys < 8 or sums * vectors < min(8, 6 * (spec.value_dim // plan.lanes)):
        return f"decision key_vectors is {keys}, sum_queries {sums}: too few sums at a time."
    if vectors * plan.lanes > spec.value_dim and vectors > 1:
        return f"decision sum_vectors is {vectors}; a value has {spec.value_dim} channels."
    if spec.head_dim % plan.unroll:
        return f"decision unroll is {plan.unroll}; it must divide the head dim."
    if plan.layout()["end"] > _MOST_SCRATCH:
        return f"decision strip is {plan.strip}; its panels need too much memory."
    return ""


def _fit(rows: int, columns: int, many_registers: bool) -> bool:
    """Return whether registers hold all sums of a product, its fewer factors, and one other."""
    registers = 32 if many_registers else 16
    return rows * columns + min(rows, columns) + 1 <= registers
