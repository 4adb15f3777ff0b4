"""The gradient of the bias on tensor cores: a warp sums up the gradients of logits of a chunk.

A chunk is a number of tiles of queries, one after the other. What belongs to one offset from query
to key lies on a diagonal of a tile's products: a row of keys at a time, diagonals are summed up
through shared memory, and added to the chunk's sums, which are the warp's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tvm import tirx

from natc.compiler.tensor_cores.d_scores import LogitGradients
from natc.compiler.tensor_cores.halo import Part
from natc.compiler.tensor_cores.kernel import RESIDENT, ROWS, WARPS_1
from natc.compiler.tensor_cores.place import LANES, WarpTile
from natc.compiler.tensor_cores.scores import each_part
from natc.compiler.tensor_cores.statements import Statements, at, call
from natc.compiler.tensor_cores.tile import HALF, Tile
from natc.spec import KernelSpec

_MANY = 16  # warps of a multiprocessor


def numbers(spec: KernelSpec) -> dict[str, Sequence[int]]:
    """Return the candidates of each sampled number, the untuned kernel's first.

    Warps of a block, each of which has a chunk; rows of keys that are taken at once; warps of a
    multiprocessor for whose registers there must be room.
    """
    found: dict[str, Sequence[int]] = {WARPS_1: (4, 2, 1)}
    if spec.rank > 1:
        found[ROWS] = (1, 2)
    # The first are those with which compilers need no memory for registers.
    wide, columns = max(spec.head_dim, spec.value_dim), Tile(spec, 1, 1, 0).columns
    few = (wide <= 32 and columns <= 3) or (wide <= 64 and columns <= 2)
    return {**found, RESIDENT: (_MANY, 12, 8) if few else (8, 12, _MANY)}


def launch(p: Mapping[str, Any], spec: KernelSpec, numbers: Mapping[str, int]) -> tirx.Stmt:
    """Return the statement that launches the kernel of `d_rpb`.

    p: the function's parameters by name. numbers: those of `numbers`, one for each name.
    """
    tile = Tile(spec, 1, 1, 0)
    tile = replace(tile, most_products=numbers.get(ROWS, 1) * tile.columns)
    place = WarpTile(Statements(), p, tile)
    s, warps = place.s, numbers[WARPS_1]
    chunks = p["output"].ty.shape[0]
    every = s.name("tiles", place.tiles)
    place.prepare("tiles", every)
    total = s.name("total", every * place.batch_size)
    length = s.name("chunk_length", tirx.truncdiv(total + (chunks - 1), chunks))
    blocks = tirx.truncdiv(chunks + (warps - 1), warps)
    resident = max(1, numbers[RESIDENT] // warps)
    with (
        s.threads("blockIdx.x", blocks) as block,
        s.threads("blockIdx.y", place.heads) as head,
        s.threads("threadIdx.y", warps) as warp,
        s.threads("threadIdx.x", LANES) as lane,
        s.attribute("tirx.launch_bounds_min_blocks_per_sm", resident),
    ):
        chunk = s.let("chunk", block * warps + call("int32", "natc_uniform", warp))
        with s.when(chunk < chunks):
            sums = _Sums(place, s.let("slice", chunk * place.heads + head), lane, numbers)
            first = s.let("first_tile", chunk * length)
            with s.loop("tile", tirx.max(tirx.min(length, total - first), 0)) as number:
                tile_number = s.let("tile_number", first + number)
                batch = s.let("batch", place.divided(tile_number, "tiles"))
                place.find(tile_number - batch * every, head, batch, tirx.const(0), lane)
                with s.when(place.is_there):
                    place.attend()
                    sums.add_tile()
    return s.statement()


class _Sums:
    """The sums of a chunk, for each offset: `partial` of one chunk and head, in memory.

    number: of these among all. numbers: the sampled ones.
    """

    def __init__(
        self, place: WarpTile, number: Any, lane: Any, numbers: Mapping[str, int]
    ) -> None:
        self.place, self.lane, self.warps = place, lane, numbers[WARPS_1]
        # With many warps there are few registers.
        self.shuffled = place.tile.in_parts and numbers[RESIDENT] < _MANY
        self.sizes = [2 * k - 1 for k in place.spec.kernel_size]
        self.result = place.p["output"]
        s, every = place.s, 1
        for size in self.sizes:
            every *= size
        self.first = s.let("first_sum", number * every)
        with s.loop("clear", -(-every // LANES)) as i:
            index = i * LANES + lane
            with s.when(index < every):
                self._set(self.first + index, tirx.const(0.0, "float32"))
        # Other lanes add to what this one cleared.
        s.call("natc_sync_warp")

    def add_tile(self) -> None:
        """Add the gradients of a tile's logits."""
        place, tile = self.place, self.place.tile
        s, columns = place.s, tile.columns
        logits = LogitGradients(place, rounded=False, shuffled=self.shuffled)
        exists = []
        for half in range(2):
            every, none = (tirx.const(bits, "uint32") for bits in (0xFFFFFFFF, 0))
            own = tirx.Select(place.has_query(half), every, none)
            exists.append(s.let("exists", own))
        # With rows, the second half's row of keys has the offsets that the first half's before it
        # has: they are added up first.
        before = s.registers("before", 2 * columns)
        following = s.registers("following_row", 1, "int32")

        def begin() -> None:
            with s.unrolled("i", 2 * columns) as i:
                s.store(before, i, tirx.const(0.0, "float32"))

        def run(part: Part) -> None:
            found = s.registers("d_logits", tile.products * 4)
            with logits.steps(part) as step:
                step.keep(found, exists)
            if not tile.has_rows:
                values = s.registers("values", 4 * columns)
                for half in range(2):
                    with s.unrolled("u", columns) as u, s.unrolled("e", 2) as e:
                        index = (half * columns + u) * 2 + e
                        s.store(values, index, found[u * 4 + 2 * half + e])
                self._add_diagonals(values, [])
                return
            with s.unrolled("k", tile.chunk_rows) as k:
                values = s.registers("values", 2 * columns)
                with s.unrolled("u", columns) as u, s.unrolled("e", 2) as e:
                    index = (k * columns + u) * 4 + e
                    s.store(values, u * 2 + e, before[u * 2 + e] + found[index + 2])
                    s.store(before, u * 2 + e, found[index])
                self._add_row(values, part.plane, part.first_row + k)
            s.store(following, 0, part.first_row + tile.chunk_rows)

        def end(plane: Any | None) -> None:
            self._add_row(before, plane, following[0])

        if tile.has_rows:
            each_part(place, run, begin, end)
        else:
            each_part(place, run)

    def _add_row(self, values: Any, plane: Any | None, row: Any) -> None:
        """Add a row: of keys for the second half, and of the one before it for the first."""
        place, taps = self.place, self.place.spec.kernel_size
        offsets = [] if plane is None else [plane - place.axes[0].start + (taps[0] - 1)]
        offsets.append(row - place.axes[-2].start + (taps[-2] - 2))
        self._add_diagonals(values, offsets)

    def _add_diagonals(self, values: Any, offsets: Sequence[Any]) -> None:
        """Add what lies on diagonals to the sums of offsets, of all but the last axis."""
        place, tile = self.place, self.place.tile
        s, last = place.s, self.sizes[-1]
        number = -(-last // LANES)
        found = s.registers("diagonals", number)
        # A lane has an offset, or every 32nd: which key has it from the first query.
        taps = place.spec.kernel_size[-1]
        key = place.axes[-1].start - place.axes[-1].first_key - (taps - 1) + self.lane
        rows = HALF if tile.has_rows else 2 * HALF
        name = f"natc_diagonals<{self.warps}, {rows}, {tile.columns}, {number}>"
        s.call(name, at(found, 0), at(values, 0), key)
        line: Any = tirx.const(0)
        is_one = tirx.const(True, "bool")
        for offset, size in zip(offsets, self.sizes):
            line = line * size + offset
            # Nobody attends to a row beside these, but a tile may have one.
            is_one = tirx.And(is_one, tirx.And(offset >= 0, offset < size))
        for i in range(number):
            column = i * LANES + self.lane
            with s.when(tirx.And(is_one, column < last)):
                element = s.let("sum_at", self.first + line * last + column)
                self._set(element, self._at(element) + found[i])

    def _index(self, element: Any) -> tuple[Any, ...]:
        return (*[0] * (len(self.result.ty.shape) - 1), element)

    def _at(self, element: Any) -> Any:
        return self.result[self._index(element)]

    def _set(self, element: Any, value: Any) -> None:
        self.place.s.add(tirx.BufferStore(self.result, value, list(self._index(element))))
