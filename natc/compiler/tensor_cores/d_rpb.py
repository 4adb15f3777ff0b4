"""The gradient of the bias on tensor cores: each warp sums the gradients of logits of a chunk.

A chunk is a run of consecutive tiles of queries. Pairs with the same offset from query to key lie
on a diagonal of a tile's products. For each row of keys, the warp sums the diagonals through
shared memory and adds them to the chunk's sums, which belong to this warp alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tvm import tirx

from natc.compiler.statements import Statements, at, call
from natc.compiler.tensor_cores.d_scores import LogitGradients
from natc.compiler.tensor_cores.halo import Part
from natc.compiler.tensor_cores.kernel import RESIDENT, ROWS, WARPS_1
from natc.compiler.tensor_cores.scores import each_part
from natc.compiler.tensor_cores.tile import HALF, Tile
from natc.compiler.tensor_cores.warp_tile import LANES, WarpTile, element_of
from natc.spec import KernelSpec

_MANY_WARPS = 16  # of a multiprocessor


def numbers(spec: KernelSpec) -> dict[str, Sequence[int]]:
    """Return the candidates of each sampled number, the untuned kernel's first.

    Warps of a block, each with a chunk of its own; rows of keys in a part; warps that one
    multiprocessor must be able to hold.
    """
    candidates: dict[str, Sequence[int]] = {WARPS_1: (4, 2, 1)}
    if spec.rank > 1:
        candidates[ROWS] = (1, 2)
    # First the candidates with which the compiler spills no registers.
    wide, columns = max(spec.head_dim, spec.value_dim), Tile(spec, 1, 1, 0).columns
    is_small = (wide <= 32 and columns <= 3) or (wide <= 64 and columns <= 2)
    return {**candidates, RESIDENT: (_MANY_WARPS, 12, 8) if is_small else (8, 12, _MANY_WARPS)}


def launch(p: Mapping[str, Any], spec: KernelSpec, numbers: Mapping[str, int]) -> tirx.Stmt:
    """Return the statement that launches the kernel of `d_rpb` (`TensorCoreKernel`)."""
    tile = Tile(spec, 1, 1, 0)
    tile = replace(tile, most_products=numbers.get(ROWS, 1) * tile.columns)
    warp = WarpTile(Statements(), p, tile)
    s, warps = warp.s, numbers[WARPS_1]
    chunks = p["output"].ty.shape[0]
    every = s.name("tiles", warp.tiles)
    warp.prepare("tiles", every)
    total = s.name("total", every * warp.batch_size)
    length = s.name("chunk_length", tirx.truncdiv(total + (chunks - 1), chunks))
    blocks = tirx.truncdiv(chunks + (warps - 1), warps)
    resident = max(1, numbers[RESIDENT] // warps)
    with (
        s.threads("blockIdx.x", blocks) as block,
        s.threads("blockIdx.y", warp.heads) as head,
        s.threads("threadIdx.y", warps) as warp_index,
        s.threads("threadIdx.x", LANES) as lane,
        s.attribute("tirx.launch_bounds_min_blocks_per_sm", resident),
    ):
        chunk = s.let("chunk", block * warps + call("int32", "natc_uniform", warp_index))
        with s.when(chunk < chunks):
            sums = _Sums(warp, s.let("slice", chunk * warp.heads + head), lane, numbers)
            first = s.let("first_tile", chunk * length)
            with s.loop("tile", tirx.max(tirx.min(length, total - first), 0)) as number:
                tile_number = s.let("tile_number", first + number)
                batch = s.let("batch", warp.divided(tile_number, "tiles"))
                warp.locate(tile_number - batch * every, head, batch, tirx.const(0), lane)
                with s.when(warp.has_queries):
                    warp.attend()
                    sums.add_tile()
    return s.statement()


class _Sums:
    """The sums of a chunk and head, one for each offset, in memory: a slice of the result.

    number: of the slice, chunk * heads + head. numbers: the sampled number for each name.
    """

    def __init__(self, warp: WarpTile, number: Any, lane: Any, numbers: Mapping[str, int]) -> None:
        self.warp, self.lane, self.warps = warp, lane, numbers[WARPS_1]
        # With many warps a lane has too few registers to keep the queries in them.
        self.shuffled = warp.tile.in_parts and numbers[RESIDENT] < _MANY_WARPS
        self.sizes = [2 * k - 1 for k in warp.spec.kernel_size]
        self.result = warp.p["output"]
        s, every = warp.s, math.prod(self.sizes)
        self.first = s.let("first_sum", number * every)
        with s.loop("clear", -(-every // LANES)) as i:
            index = i * LANES + lane
            with s.when(index < every):
                s.store(self.result, self.first + index, tirx.const(0.0, "float32"))
        # Other lanes will add to the elements that this lane cleared.
        s.call("natc_sync_warp")

    def add_tile(self) -> None:
        """Add the gradients of a tile's logits."""
        warp, tile = self.warp, self.warp.tile
        s, columns = warp.s, tile.columns
        logits = LogitGradients(warp, rounded=False, shuffled=self.shuffled)
        exists = []
        for half in range(2):
            every, none = (tirx.const(bits, "uint32") for bits in (0xFFFFFFFF, 0))
            own = tirx.Select(warp.has_query(half), every, none)
            exists.append(s.let("exists", own))
        # With rows, a row of keys has the same offsets for the second half as the row before it
        # has for the first half: the two are added before diagonals are summed.
        before = s.registers("before", 2 * columns)
        following = s.registers("following_row", 1, "int32")

        def begin() -> None:
            s.fill(before, 0.0)

        def run(part: Part) -> None:
            d_logits = s.registers("d_logits", tile.products * 4)
            with logits.steps(part) as step:
                step.keep(d_logits, exists)
            if not tile.has_rows:
                values = s.registers("values", 4 * columns)
                for half in range(2):
                    with s.unrolled("u", columns) as u, s.unrolled("e", 2) as e:
                        index = (half * columns + u) * 2 + e
                        s.store(values, index, d_logits[u * 4 + 2 * half + e])
                self._add_diagonals(values, [])
                return
            with s.unrolled("k", tile.chunk_rows) as k:
                values = s.registers("values", 2 * columns)
                with s.unrolled("u", columns) as u, s.unrolled("e", 2) as e:
                    index = (k * columns + u) * 4 + e
                    s.store(values, u * 2 + e, before[u * 2 + e] + d_logits[index + 2])
                    s.store(before, u * 2 + e, d_logits[index])
                self._add_row(values, part.plane, part.first_row + k)
            s.store(following, 0, part.first_row + tile.chunk_rows)

        def end(plane: Any | None) -> None:
            self._add_row(before, plane, following[0])

        if tile.has_rows:
            each_part(warp, run, begin, end)
        else:
            each_part(warp, run)

    def _add_row(self, values: Any, plane: Any | None, row: Any) -> None:
        """Add the gradients of row `row` for the second half and of row - 1 for the first half."""
        warp, taps = self.warp, self.warp.spec.kernel_size
        offsets = [] if plane is None else [plane - warp.axes[0].start + (taps[0] - 1)]
        offsets.append(row - warp.axes[-2].start + (taps[-2] - 2))
        self._add_diagonals(values, offsets)

    def _add_diagonals(self, values: Any, offsets: Sequence[Any]) -> None:
        """Add each diagonal of `values` to the sum of its offset.

        offsets: on all axes but the last.
        """
        warp, tile = self.warp, self.warp.tile
        s, last = warp.s, self.sizes[-1]
        number = -(-last // LANES)
        diagonals = s.registers("diagonals", number)
        # A lane sums every 32nd offset. key: the key at the lane's first offset from query 0.
        taps = warp.spec.kernel_size[-1]
        key = warp.axes[-1].start - warp.axes[-1].first_key - (taps - 1) + self.lane
        rows = HALF if tile.has_rows else 2 * HALF
        name = f"natc_diagonals<{self.warps}, {rows}, {tile.columns}, {number}>"
        s.call(name, at(diagonals, 0), at(values, 0), key)
        line: Any = tirx.const(0)
        is_valid = tirx.const(True, "bool")
        for offset, size in zip(offsets, self.sizes):
            line = line * size + offset
            # A tile may have a row of keys that is outside every query's window.
            is_valid = tirx.And(is_valid, tirx.And(offset >= 0, offset < size))
        for i in range(number):
            column = i * LANES + self.lane
            with s.when(tirx.And(is_valid, column < last)):
                element = s.let("sum_at", self.first + line * last + column)
                s.store(self.result, element, element_of(self.result, element) + diagonals[i])
