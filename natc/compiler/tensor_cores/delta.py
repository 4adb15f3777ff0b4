"""The sums and corrections that gradients need, on tensor cores: each warp has a tile of queries.

A correction (`natc.compiler.te.backward`) is the logarithm of a sum of exponentials of the logits
that the other gradients compute on tensor cores, with the same bits. So this kernel computes them
on tensor cores, too. A tile whose queries need no correction skips that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tvm import tirx

from natc.compiler.statements import Statements, call, flat_index
from natc.compiler.tensor_cores.halo import Part
from natc.compiler.tensor_cores.kernel import RESIDENT, grid, warp_candidates, warps_of
from natc.compiler.tensor_cores.logits import LOG2_E
from natc.compiler.tensor_cores.scores import (
    each_part,
    finish,
    load_halves,
    load_queries,
    products,
)
from natc.compiler.tensor_cores.softmax import RunningSoftmax
from natc.compiler.tensor_cores.tile import Tile
from natc.compiler.tensor_cores.warp_tile import Tensor, WarpTile
from natc.operations import EXACT_BELOW
from natc.spec import KernelSpec


def numbers(spec: KernelSpec) -> dict[str, Sequence[int]]:
    """Return the candidates of each sampled number, the untuned kernel's first.

    Adjacent warps of a block; warps that one multiprocessor must be able to hold.
    """
    return {**warp_candidates(spec), RESIDENT: (12, 8, 16)}


def launch(p: Mapping[str, Any], spec: KernelSpec, numbers: Mapping[str, int]) -> tirx.Stmt:
    """Return the statement that launches the kernel of `delta` (`TensorCoreKernel`)."""
    # A part is a row of keys: the pass is rare, and should need few registers.
    tile = replace(Tile(spec, *warps_of(numbers), 0), most_products=1)
    warp = WarpTile(Statements(), p, tile)
    s = warp.s
    with grid(warp, numbers[RESIDENT]):
        warp.attend()
        tokens = [s.let("token", warp.token(warp.query_index[half])) for half in range(2)]
        dim = warp.spec.value_dim
        sums = _dots(warp, *(warp.query_tensor(n, dim) for n in ("d_output", "attention")))
        for half in range(2):
            _store(warp, "output", half, tokens[half], sums[half])
        lse = [s.let("lse", warp.scalar("lse", token)) for token in tokens]
        query = warp.query_tensor("query", warp.spec.head_dim)
        key = warp.kv_tensor("key", warp.spec.head_dim, warp.head_kv())
        terms = _dots(warp, query, key, absolute=True)
        scale = tirx.abs(p["scale"])
        needed = [s.let("needed", _needs_correction(x, y * scale)) for x, y in zip(lse, terms)]
        corrections = s.zeros("corrections", 2)
        either = tirx.Or(*needed).astype("int32")
        with s.when(call("int32", "natc_any", either) != 0):
            _correct(warp, query, key, lse, needed, corrections)
        for half in range(2):
            _store(warp, "correction", half, tokens[half], corrections[half])
    return s.statement()


def _dots(warp: WarpTile, first: Tensor, second: Tensor, *, absolute: bool = False) -> list[Any]:
    """Return the dot product of two vectors, or of their sizes, at the query of each half."""
    s, words = warp.s, first.dim // 8
    loaded = [load_halves(warp, "dot_words", tensor) for tensor in (first, second)]
    lane_sums = s.zeros("lane_sums", 2)
    for half in range(2):
        with s.unrolled("word", words) as word:
            for x, y in zip(*(_unpacked(warp, each[half * words + word]) for each in loaded)):
                product = tirx.abs(x * y) if absolute else x * y
                s.store(lane_sums, half, lane_sums[half] + product)
    return [s.let("dot", call("float32", "natc_row_sum", lane_sums[half])) for half in range(2)]


def _unpacked(warp: WarpTile, word: Any) -> tuple[Any, Any]:
    """Return the two numbers of a word, the lower half's first."""
    if warp.spec.dtype == "float16":
        low, high = (call("float32", "natc_low_f16", bits) for bits in (word, word >> 16))
        return low, high
    bits = (word << 16, word & tirx.const(0xFFFF0000, "uint32"))
    low, high = (tirx.reinterpret("float32", each) for each in bits)
    return low, high


def _needs_correction(lse: Any, terms: Any) -> Any:
    """As `needs_correction` of `natc.compiler.te.logits`."""
    size = tirx.abs(lse)
    least, infinite = (tirx.const(x, "float32") for x in (EXACT_BELOW, math.inf))
    return tirx.And(size < infinite, tirx.Or(size >= least, terms >= least))


def _correct(
    warp: WarpTile,
    query: Tensor,
    key: Tensor,
    lse: Sequence[Any],
    needed: Sequence[Any],
    corrections: Any,
) -> None:
    """Write the correction of each half's query that needs one."""
    s, p = warp.s, warp.p
    queries = load_queries(warp, query, shuffled=False)
    scale = s.let("scale_2", p["scale"] * tirx.const(LOG2_E, "float32"))
    minus_lse = [s.let("minus_lse", call("float32", "natc_minus_lse", x)) for x in lse]
    softmax = RunningSoftmax(warp)
    softmax.clear()

    def run(part: Part) -> None:
        scores = products(warp, part, queries, key)
        finish(warp, part, scores, p.get("rpb"), scale, exact=True, minus_lse=minus_lse)
        softmax.add(warp, scores)

    each_part(warp, run)
    for half in range(2):
        total = s.let("row_total", call("float32", "natc_row_sum", softmax.total[half]))
        log_2 = tirx.const(math.log(2.0), "float32")
        correction = softmax.largest[half] * log_2 + tirx.log(total)
        with s.when(needed[half]):
            s.store(corrections, half, correction)


def _store(warp: WarpTile, name: str, half: int, token: Any, value: Any) -> None:
    """Store a number for the query of a half, by the first lane that has it."""
    value = warp.s.let("stored", value)
    result = warp.p[name]
    index = flat_index(result, token * warp.heads + warp.head)
    with warp.s.when(tirx.And(warp.has_query(half), warp.column == 0)):
        warp.s.add(tirx.BufferStore(result, value, list(index)))
