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
        self.batch, height, width, self.heads, _ = p["query"].ty.shape
        self.sizes = (height, width)
        self.dilation = (p["dilation_0"], p["dilation_1"])
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
        self.strides[name] = tensor.ty.strides
        data = tirx.buffer_data(tensor)
        self.flat[name] = tirx.decl_buffer((size,), tensor.ty.dtype, f"{name}_flat", data=data)
        self.s.add(tirx.DeclBuffer(self.flat[name], data=data))

    def locate(self, batch: Any, group: Any, head: Any) -> None:
        """Set the entry of the batch, the dilation group and the head of the unit at hand."""
        s, (height, width) = self.s, self.sizes
        self.entry, self.head = batch, head
        groups = tirx.truncdiv(group, self.dilation[1]), tirx.truncmod(group, self.dilation[1])
        self.groups = [s.name("group_of_axis", number) for number in groups]
        self.kv_head = s.name("kv_head", tirx.truncdiv(head, self.p["group"]))
        # How many members the dilation group has on each axis.
        self.rows, self.columns = (
            s.name("members", tirx.truncdiv(size - 1 - number, dilation) + 1)
            for size, number, dilation in zip((height, width), self.groups, self.dilation)
        )

    def first_row(self, row: Any) -> Expr:
        """Return the first row of the window of a query's row."""
        return least(most(row - self.form.rows // 2, 0), self.rows - self.form.rows)

    def first_column(self, column: Any) -> Expr:
        """Return the first column of the window of a query's column."""
        return least(most(column - self.form.columns // 2, 0), self.columns - self.form.columns)

    def places(self, name: str, row: Any) -> Callable[[Any], At]:
        """Return a function of a column: where that token of a row is in a tensor.

        Rows and columns are counted in the dilation group. A token is its channels, or one number.
        """
        head = self.kv_head if name in ("key", "value") else self.head
        strides = self.strides[name]
        begin = self.entry * strides[0] + head * strides[3] + self.groups[1] * strides[2]
        row = row * self.dilation[0] + self.groups[0]
        begin = self.s.let("begin", begin + row * strides[1])
        step = self.s.let("step", self.dilation[1] * strides[2])
        return lambda column: At(self.flat[name], begin + column * step)

    def place(self, name: str, row: Any, column: Any) -> At:
        """Return where one token is in a tensor (`places`)."""
        at = self.places(name, row)(column)
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

    def slot(self, row: Any) -> Expr:
        """Return the number of a row of keys in the panels."""
        ring = self.form.ring
        if ring & (ring - 1) == 0:
            return tirx.bitwise_and(row, ring - 1)
        return tirx.truncmod(row, ring)
