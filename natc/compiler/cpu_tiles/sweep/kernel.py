"""The function of a sweep: its parameters, and the order in which a thread goes over its part."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.ir import Expr

from natc.compiler.cpu_tiles.sweep.form import Form
from natc.compiler.cpu_tiles.sweep.probabilities import Softmax
from natc.compiler.cpu_tiles.sweep.query_tiles import Tiles
from natc.compiler.cpu_tiles.sweep.ring import GRADIENTS as OPEN
from natc.compiler.cpu_tiles.sweep.ring import Ring, kept_numbers
from natc.compiler.cpu_tiles.sweep.sums import into_open, of_queries
from natc.compiler.cpu_tiles.sweep.unit import Unit, least, most, zero
from natc.compiler.cpu_tiles.vectors import broadcast, load, save
from natc.compiler.statements import Statements
from natc.operations import GRADIENTS, OPERATIONS
from natc.spec import KernelSpec

# If all heads and dilation groups of a batch are fewer than _PARTS, rows are divided into bands:
# _PARTS parts keep the threads of most machines busy. A band is at least _WINDOWS_OF_A_BAND
# windows high, because its first rows of keys are copied, and their gradients added, once more.
_PARTS, _WINDOWS_OF_A_BAND = 16, 4
_LINE_BYTES = 64
# Into the second cache: the first one is full of panels.
_SECOND_CACHE = 2


def gradients(form: Form) -> tirx.PrimFunc:
    """Return the function of the operation `gradients`."""
    spec = form.spec
    tensors = _tensors(spec)
    axes = range(spec.rank)
    scalars = [
        tirx.Var("scale", "float32"),
        *(
            tirx.Var(f"{n}_{a}", "int32")
            for n in ("dilation", "stride", "is_causal")
            for a in axes
        ),
        tirx.Var("group", "int32"),
    ]
    parameters = {**tensors, **{variable.name: variable for variable in scalars}}
    s = Statements("global")
    _Sweep(s, parameters, form).all_units()
    return tirx.PrimFunc([*tensors.values(), *scalars], s.statement())


def _tensors(spec: KernelSpec) -> dict[str, tirx.Buffer]:
    """Return the function's tensors by name, in order."""
    batch, heads, heads_kv = (tirx.Var(n, "int32") for n in ("batch", "heads", "heads_kv"))
    sites = (batch, *(tirx.Var(f"size_{axis}", "int32") for axis in range(spec.rank)))
    offsets = [2 * k - 1 for k in spec.kernel_size]
    shapes = {
        **dict.fromkeys(("key", "value"), (*sites, heads_kv, spec.head_dim)),
        **dict.fromkeys(("rpb", "d_rpb"), (heads, *offsets)),
        "d_lse": (*sites, heads),
    }
    floats = ("rpb", "d_rpb", "d_lse")
    return {
        name: tirx.decl_buffer(
            shape := shapes.get(name, (*sites, heads, spec.head_dim)),
            "float32" if name in floats else spec.dtype,
            name,
            strides=_strides(name, len(shape)),
        )
        for name in OPERATIONS[GRADIENTS].tensors_of(spec.rpb)
    }


def _strides(name: str, axes: int) -> list[Any] | None:
    """Return the strides of a tensor, or None if it is compact.

    Only the channels of a token must be adjacent: parts of one tensor are read and written in
    place.
    """
    if name in ("rpb", "d_rpb"):
        return None
    strides = [tirx.Var(f"{name}_stride_{axis}", "int32") for axis in range(axes)]
    return strides if name == "d_lse" else [*strides[:-1], tirx.const(1, "int32")]


class _Sweep:
    """The statements of a sweep, added to `s` step by step."""

    def __init__(self, s: Statements, p: dict[str, Any], form: Form) -> None:
        self.s, self.form = s, form
        self.unit = Unit(s, p, form)

    def all_units(self) -> None:
        """Compute everything, divided among threads."""
        s, form, unit = self.s, self.form, self.unit
        groups = s.name("groups", self._groups())
        shortest = tirx.truncdiv(unit.sizes[1], unit.dilation[1])
        self.planes, longest, columns = (
            tirx.truncdiv(size - 1, dilation) + 1
            for size, dilation in zip(unit.sizes, unit.dilation)
        )
        maps = s.name("maps", unit.batch * groups)
        wanted = tirx.truncdiv(_PARTS - 1, maps * unit.heads) + 1
        bands = least(tirx.truncdiv(shortest, _WINDOWS_OF_A_BAND * form.rows), wanted)
        self.bands = s.name("bands", most(bands, 1))
        tall = tirx.truncdiv(longest + self.bands - 1, self.bands)
        self.tall = s.name("band_rows", tirx.truncdiv(tall + 1, 2) * 2)
        self.row_numbers = s.name("row_numbers", columns * form.channels)
        units = s.name("units", maps * self.bands * unit.heads)
        shared_rows = self._sides() * len(OPEN) * self.planes * (form.rows - 1)
        shared = units * shared_rows * self.row_numbers
        self.shared = self._scratch("shared", shared)
        self.sums = self._scratch("bias_sums", units * form.bias) if form.spec.rpb else None
        with s.parallel("unit", units) as number:
            self._unit(number)
        with (
            s.when(self.bands > 1),
            s.parallel("border", maps * (self.bands - 1) * unit.heads) as n,
        ):
            self._border(n)
        if form.spec.rpb:
            with s.parallel("head", unit.heads) as head:
                self._d_rpb(head, maps * self.bands)

    def _groups(self) -> Expr:
        """Return the number of dilation groups."""
        planes, rows, columns = self.unit.dilation
        return planes * rows * columns

    def _sides(self) -> Expr:
        """Return how many sides a band may share rows at: none if it is the only one."""
        return tirx.Select(self.bands > 1, 2, 0)

    def _scratch(self, name: str, size: Any) -> tirx.Buffer:
        # Never empty, so that memory is allocated in any case.
        buffer = tirx.decl_buffer((most(size, 16),), "float32", name)
        self.s.add(tirx.AllocBuffer(buffer))
        return buffer

    def _locate(self, number: Any, bands: Any) -> tuple[Expr, Expr]:
        """Locate the unit; return the numbers of its map (entry and dilation group) and band."""
        s, unit = self.s, self.unit
        head = s.name("head", tirx.truncmod(number, unit.heads))
        quotient = s.name("quotient", tirx.truncdiv(number, unit.heads))
        band = s.name("band", tirx.truncmod(quotient, bands))
        whole = s.name("map", tirx.truncdiv(quotient, bands))
        groups = self._groups()
        entry = s.name("entry", tirx.truncdiv(whole, groups))
        unit.locate(entry, tirx.truncmod(whole, groups), head)
        return whole, band

    def _unit(self, number: Any) -> None:
        s, form, unit = self.s, self.form, self.unit
        _, band = self._locate(number, self.bands)
        kept = s.name("kept_rows", least(self.tall + form.rows, unit.rows))
        unit.scratch = self._scratch("scratch", unit.parts["end"] + kept_numbers(unit, kept))
        first = s.name("first_query_row", band * self.tall)
        end = s.name("end_query_row", least(first + self.tall, unit.rows))
        if form.spec.rpb:
            self._copy_bias()
        with s.when(first < end):
            begin = s.name("first_row", unit.first_row(first))
            # The previous band reaches no row from `own` on; the next band reaches no row before
            # `own_end`.
            own = unit.first_row(first - 1) + form.rows
            own = s.name("own", tirx.Select(band > 0, own, zero()))
            own_end = tirx.Select(end < unit.rows, unit.first_row(end), unit.rows)
            own_end = s.name("own_end", own_end)

            def side(which: int, plane: Any, row: Any, column: Any) -> Expr:
                below = row >= own_end
                place = plane, tirx.Select(below, row - own_end, row - begin)
                return self._shared_at(number, below.astype("int32"), which, place, column)

            self.ring = Ring(unit, self.shared, side)
            self.ring.set_band(begin, kept, (own, own_end))
            self.tiles = Tiles(unit)
            self.softmax = Softmax(self.tiles)
            column, seen = (s.registers(name, 1, "int32") for name in ("next_column", "seen"))
            with s.loop("plane", unit.planes) as plane:
                unit.set_plane(plane)
                s.store(column, 0, zero())
                s.store(seen, 0, zero())
                with s.repeat_while(column[0] < unit.columns):
                    self._strip(column, seen)
                    self._rows(first, end, begin)
        if form.spec.rpb:
            self._keep_bias(number)

    def _shared_at(
        self, unit: Any, below: Any, which: int, place: tuple[Any, Any], column: Any
    ) -> Expr:
        """Return where a token of a row that two bands share is in `shared`.

        place: the row's plane, and its number among the rows that the bands share.
        """
        plane = ((unit * 2 + below) * len(OPEN) + which) * self.planes + place[0]
        row = plane * (self.form.rows - 1) + place[1]
        return row * self.row_numbers + column * self.form.channels

    def _strip(self, column: tirx.Buffer, seen: tirx.Buffer) -> None:
        """Set the next strip, and advance `column` and `seen` past it.

        column: its first column of queries. seen: the end of the previous strips' columns of keys.
        """
        s, form, unit = self.s, self.form, self.unit
        first = s.let("first_column", column[0])
        first_key = s.let("first_key", unit.first_column(first))
        # The last column at which the windows of a pair of queries may begin.
        last = first_key + (form.strip - form.padded)
        pairs = tirx.truncdiv(last + form.columns // 2 - first, 2) + 1
        reaches_all = unit.columns - form.columns <= last
        end = tirx.Select(reaches_all, unit.columns, least(first + pairs * 2, unit.columns))
        end = s.let("end_column", end)
        count = s.let("key_columns", least(unit.columns - first_key, form.strip))
        after = tirx.Select(end < unit.columns, unit.first_column(end) - first_key, count)
        after = s.let("after", after)
        before = s.let("before", most(seen[0] - first_key, 0))
        self.ring.set_strip(first_key, count, before, after)
        self.tiles.set_strip(first_key, first, end)
        s.store(seen, 0, first_key + count)
        s.store(column, 0, end)

    def _rows(self, first: Any, end: Any, begin: Any) -> None:
        """Go down the rows of a strip; begin: the first row of keys."""
        s, form, unit, ring, tiles = self.s, self.form, self.unit, self.ring, self.tiles
        tall = form.tile_rows
        with s.loop("tile_row", tirx.truncdiv(end - first + (tall - 1), tall)) as number:
            row = s.let("query_row", first + number * tall)
            tiles.set_rows(row, end)
            there = unit.first_row(row - 1) + form.rows
            there = s.let("there", tirx.Select(number > 0, there, begin))
            new_rows = s.let("new_rows", tiles.starts[1] + form.rows - there)
            with s.loop("new_row", new_rows) as new:
                key_row = s.let("key_row", there + new)
                if form.prefetch:
                    with s.when(new + 1 < new_rows):
                        self._fetch(("key", "value"), key_row + 1, self._keys())
                with s.when(key_row >= begin + form.ring):
                    ring.leave(s.let("done_row", key_row - form.ring))
                ring.enter(key_row)
            with tiles.each_pair() as (plane, pair):
                if form.prefetch:
                    self._fetch_inputs(pair)
                if form.copies_queries:
                    with s.when(plane == 0):
                        tiles.copy_queries(pair)
                tiles.products(pair)
            self.softmax.compute()
            of_queries(tiles)
            with tiles.each_pair() as (_, pair):
                if form.prefetch:
                    self._fetch_results(pair)
                into_open(tiles, pair)
        all_rows = unit.first_row(end - 1) + form.rows
        first_left = s.let("first_left", most(all_rows - form.ring, begin))
        with s.loop("left_row", all_rows - first_left) as number:
            done_row = s.let("done_row", first_left + number)
            if form.prefetch:
                next_row = s.let("next", least(done_row + 1, all_rows - 1))
                self._fetch(OPEN, next_row, self._keys(), is_write=1)
            ring.leave(done_row)

    def _fetch_inputs(self, pair: Any) -> None:
        """Bring a pair's share of the next two rows' inputs into the cache.

        A processor keeps some 20 requests to memory at a time. A request for all rows at once
        would make it wait for them.
        """
        s, form, unit, tiles = self.s, self.form, self.unit, self.tiles
        for number in range(2):
            row = s.let("next", least(tiles.starts[1] + form.rows + number, unit.rows - 1))
            self._fetch(("key", "value"), row, self._keys(), pair)
            row = s.let("next", least(tiles.rows[0] + 2 + number, unit.rows - 1))
            self._fetch(("query", "d_output"), row, self._queries(), pair)

    def _fetch_results(self, pair: Any) -> None:
        """Bring a pair's share of the next two rows' results into the cache."""
        s, unit, tiles = self.s, self.unit, self.tiles
        for number in range(2):
            row = s.let("next", least(tiles.rows[0] + 2 + number, unit.rows - 1))
            self._fetch(("d_query",), row, self._queries(), pair, 1)
            self._fetch(OPEN, s.let("next", tiles.starts[0] + number), self._keys(), pair, 1)

    def _keys(self) -> tuple[Expr, Expr]:
        """Return the strip's first column of keys and their number."""
        return self.ring.first_column, self.ring.count

    def _queries(self) -> tuple[Expr, Expr]:
        """Return the strip's first column of queries and their number."""
        return self.tiles.first, self.tiles.end - self.tiles.first

    def _fetch(
        self,
        names: tuple[str, ...],
        row: Any,
        columns: tuple[Expr, Expr],
        pair: Any = None,
        is_write: int = 0,
    ) -> None:
        """Fetch the columns of a row, (first, number); only a pair's share if there is a pair."""
        s, form, unit = self.s, self.form, self.unit
        begin, count = columns
        if pair is not None:
            pairs = self.tiles.pairs
            share = s.let("share", tirx.truncdiv(count + pairs - 1, pairs))
            first = s.let("first", pair * share)
            begin, count = begin + first, s.let("count", least(share, count - first))
        width = 4 if form.spec.dtype == "float32" else 2
        places = [unit.places(name, unit.plane, row) for name in names]
        with s.loop("column", count) as column:
            for place in places:
                at = place(begin + column)
                start = s.let("fetched", at.offset)
                for channel in range(0, form.channels, _LINE_BYTES // width):
                    address = tirx.address_of(at.buffer[start + channel])
                    numbers = (tirx.const(n, "int32") for n in (is_write, _SECOND_CACHE, 1))
                    s.add(
                        tirx.Evaluate(
                            tirx.call_llvm_intrin("void", "llvm.prefetch", address, *numbers)
                        )
                    )

    def _border(self, number: Any) -> None:
        """Add the two parts of each row that a band and the next one share."""
        s, form, unit = self.s, self.form, self.unit
        whole, band = self._locate(number, self.bands - 1)
        row = s.let("query_row", (band + 1) * self.tall)
        upper = s.let("upper", (whole * self.bands + band) * unit.heads + unit.head)
        with s.when(row < unit.rows):
            begin = s.let("begin", unit.first_row(row))
            ring = Ring(unit, self.shared, lambda which, plane, row, column: zero())
            count = unit.first_row(row - 1) + form.rows - begin
            for which in range(len(OPEN)):
                with s.loop("plane", unit.planes) as plane, s.loop("row", count) as n:
                    above = self._shared_at(upper, 1, which, (plane, n), 0)
                    below = self._shared_at(upper + unit.heads, 0, which, (plane, n), 0)
                    parts = s.let("above", above), s.let("below", below)
                    ring.add_shared(which, plane, begin + n, *parts)

    def _copy_bias(self) -> None:
        """Copy the head's bias, with room around each row, and clear the sums of its gradient."""
        s, form, unit = self.s, self.form, self.unit
        for part, size in (("bias", form.bias), ("d_bias", 2 * form.bias)):
            with s.loop("vector", size // form.lanes) as n:
                unit.store(unit.at(part), n * form.lanes, broadcast(0.0, form.lanes))
        rows = self._bias_rows()
        with s.loop("r", rows) as r, s.loop("c", 2 * form.columns - 1) as c:
            at = unit.at("bias", r * form.bias_row + 1 + c)
            index = (unit.head * rows + r) * (2 * form.columns - 1) + c
            save(s, at.buffer, at.offset, unit.flat["rpb"][index], 1)

    def _bias_rows(self) -> int:
        """Return the rows of a head's bias."""
        return (2 * self.form.planes - 1) * (2 * self.form.rows - 1)

    def _keep_bias(self, number: Any) -> None:
        """Keep a unit's sums of the bias's gradient."""
        s, form, unit = self.s, self.form, self.unit
        with s.loop("vector", form.bias // form.lanes) as n:
            even, odd = (
                unit.read(unit.at("d_bias", table * form.bias), n * form.lanes)
                for table in range(2)
            )
            save(s, self.sums, number * form.bias + n * form.lanes, even + odd, form.lanes)

    def _d_rpb(self, head: Any, parts: Any) -> None:
        """Add up the sums of a head's units, in their order."""
        s, form, unit = self.s, self.form, self.unit
        with s.loop("part", parts - 1) as part, s.loop("vector", form.bias // form.lanes) as n:
            to = s.let("to", head * form.bias + n * form.lanes)
            start = ((part + 1) * unit.heads + head) * form.bias
            value = load(self.sums, start + n * form.lanes, form.lanes)
            value = load(self.sums, to, form.lanes) + value
            save(s, self.sums, to, value, form.lanes)
        rows = self._bias_rows()
        with s.loop("r", rows) as r, s.loop("c", 2 * form.columns - 1) as c:
            total = load(self.sums, head * form.bias + r * form.bias_row + 1 + c, 1)
            index = (head * rows + r) * (2 * form.columns - 1) + c
            save(s, unit.flat["d_rpb"], index, total, 1)
