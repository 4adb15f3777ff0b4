"""A thread's part of the work: its sizes, where its tokens are, and its scratch memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tvm import tirx
from tvm.ir import Expr

from natc.compiler.cpu_tiles.products import At
from natc.compiler.cpu_tiles.sweep.form import Form
from natc.compiler.cpu_tiles.vectors import load, load_float, save, vector_type
from natc.compiler.statements import Statements


def least(a: Any, b: Any) -> Expr:
    """Return the smaller of two integers; each may be an expression or a Python int."""
    return tirx.min(tirx.convert(a), tirx.convert(b))


def most(a: Any, b: Any) -> Expr:
    """Return the larger of two integers; each may be an expression or a Python int."""
    return tirx.max(tirx.convert(a), tirx.convert(b))


def window_begin(position: Any, size: Any, window: int) -> Expr:
    """Return the first position of a query's window; that of the nearest query beside the map."""
    return least(most(position - window // 2, 0), size - window)


def zero() -> Expr:
    """Return the integer 0."""
    return tirx.const(0, "int32")


class Unit:
    """The state that all parts of a sweep share; `locate` adds the variables of a unit of work.

    p: the function's parameters by name.
    """

    def __init__(self, s: Statements, p: Mapping[str, Any], form: Form) -> None:
        self.s, self.p, self.form = s, p, form
        self.parts = form.layout()
        self.scratch: Any = None  # set by the sweep, for each unit
        self.batch, *sizes, self.heads, _ = p["query"].ty.shape
        # Every map has planes, rows and columns; an axis that it lacks has the length 1.
        self._lacking = 3 - form.spec.rank
        lacking = [tirx.const(1, "int32")] * self._lacking
        self.sizes = [*lacking, *sizes]
        self.dilation = [*lacking, *(p[f"dilation_{axis}"] for axis in range(form.spec.rank))]
        self.flat: dict[str, tirx.Buffer] = {}
        self.strides: dict[str, Any] = {}
        for name, tensor in p.items():
            if tirx.is_buffer_var(tensor):
                self._flatten(name, tensor)

    def _flatten(self, name: str, tensor: tirx.Buffer) -> None:
        """Declare a tensor as one row of numbers, so that a token's place is one number."""
        size = tensor.ty.shape[0]
        for length in tensor.ty.shape[1:]:
            size = size * length
        if tensor.ty.strides:
            batch, *strides = tensor.ty.strides
            self.strides[name] = [batch, *[zero()] * self._lacking, *strides]
        data = tirx.buffer_data(tensor)
        self.flat[name] = tirx.decl_buffer((size,), tensor.ty.dtype, f"{name}_flat", data=data)
        self.s.add(tirx.DeclBuffer(self.flat[name], data=data))

    def locate(self, batch: Any, group: Any, head: Any) -> None:
        """Set the entry of the batch, the dilation group and the head of the unit at hand."""
        s = self.s
        self.entry, self.head = batch, head
        groups = []
        for dilation in reversed(self.dilation[self._lacking :]):
            groups.append(tirx.truncmod(group, dilation))
            group = s.name("group", tirx.truncdiv(group, dilation))
        groups = [*[zero()] * self._lacking, *reversed(groups)]
        self.groups = [s.name("group_of_axis", number) for number in groups]
        self.kv_head = s.name("kv_head", tirx.truncdiv(head, self.p["group"]))
        # How many members the dilation group has on each axis.
        self.planes, self.rows, self.columns = (
            s.name("members", tirx.truncdiv(size - 1 - number, dilation) + 1)
            for size, number, dilation in zip(self.sizes, self.groups, self.dilation)
        )

    def set_plane(self, plane: Any) -> None:
        """Set the plane of the queries at hand."""
        self.plane = self.s.let("query_plane", plane)
        self.first_plane = self.s.let("first_plane", self.first_plane_of(plane))

    def first_plane_of(self, plane: Any) -> Expr:
        """Return the first plane of the window of a query's plane."""
        return window_begin(plane, self.planes, self.form.planes)

    def first_row(self, row: Any) -> Expr:
        """Return the first row of the window of a query's row."""
        return window_begin(row, self.rows, self.form.rows)

    def first_column(self, column: Any) -> Expr:
        """Return the first column of the window of a query's column."""
        return window_begin(column, self.columns, self.form.columns)

    def places(self, name: str, plane: Any, row: Any) -> Callable[[Any], At]:
        """Return a function of a column: where that token of a row is in a tensor.

        Planes, rows and columns are counted in the dilation group. A token is its channels, or one
        number.
        """
        head = self.kv_head if name in ("key", "value") else self.head
        strides = self.strides[name]
        begin = self.entry * strides[0] + head * strides[4] + self.groups[2] * strides[3]
        for axis, number in enumerate((plane, row)):
            begin += (number * self.dilation[axis] + self.groups[axis]) * strides[1 + axis]
        begin = self.s.let("begin", begin)
        step = self.s.let("step", self.dilation[2] * strides[3])
        return lambda column: At(self.flat[name], begin + column * step)

    def place(self, name: str, row: Any, column: Any) -> At:
        """Return where a query of the plane at hand is in a tensor (`places`)."""
        at = self.places(name, self.plane, row)(column)
        return At(at.buffer, self.s.let("place", at.offset))

    def floats(self, at: At, channel: Any) -> Expr:
        """Return a vector of a tensor's channels as float32."""
        return load_float(at.buffer, at.offset + channel, self.form.lanes)

    def write(self, at: At, channel: Any, value: Expr) -> None:
        """Write a vector of float32 to a tensor's channels, in the tensor's dtype."""
        dtype = str(at.buffer.ty.dtype).removeprefix("T.")
        if dtype != "float32":
            value = value.astype(vector_type(self.form.lanes, dtype))
        save(self.s, at.buffer, at.offset + channel, value, self.form.lanes)

    def at(self, part: str, offset: Any = 0) -> At:
        """Return a place in a part of the scratch memory."""
        return At(self.scratch, self.parts[part] + offset)

    def read(self, at: At, offset: Any = 0) -> Expr:
        """Return a vector of the scratch memory."""
        return load(at.buffer, at.offset + offset, self.form.lanes)

    def store(self, at: At, offset: Any, value: Expr) -> None:
        """Write a vector of the scratch memory."""
        save(self.s, at.buffer, at.offset + offset, value, self.form.lanes)

    def slot(self, window_plane: Any, row: Any) -> Expr:
        """Return the number of a row of keys in the panels.

        window_plane: the number of its plane in the windows at hand.
        """
        ring = self.form.ring
        slot = tirx.truncmod(row, ring)
        if ring & (ring - 1) == 0:
            slot = tirx.bitwise_and(row, ring - 1)
        return window_plane * ring + slot
