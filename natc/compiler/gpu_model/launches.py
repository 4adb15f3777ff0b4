"""Finds how host code launches the kernels of an operation for a shape, without a GPU."""

from __future__ import annotations

import math
import operator
import re
import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import tvm

from natc.compiler.gpu_model.machine import Launch
from natc.errors import ModelError
from natc.operations import chunks_of

_AXES = tuple(f"{kind}Idx.{axis}" for kind in ("block", "thread") for axis in "xyz")
# Tensors lie further apart than any tensor is long.
_DISTANCE = 1 << 36
_FORMATS = {"int32": "i", "int64": "q", "float32": "f", "float64": "d"}
_LAUNCH = "tirx.call_ffi_kernel"
_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "Add": operator.add, "Sub": operator.sub, "Mul": operator.mul, "Min": min, "Max": max,
    # Sizes are not negative, so all roundings of a quotient are the same.
    "Div": operator.floordiv, "FloorDiv": operator.floordiv,
    "Mod": operator.mod, "FloorMod": operator.mod,
    "EQ": operator.eq, "NE": operator.ne, "LT": operator.lt, "LE": operator.le, "GT": operator.gt,
    "GE": operator.ge, "And": lambda a, b: a and b, "Or": lambda a, b: a or b,
}  # fmt: skip


class KernelLaunch(NamedTuple):
    """The launch of a kernel: its name, grid, block, parameters and tensors.

    tensor_bytes: of all its tensors together.
    """

    kernel: str
    launch: Launch
    tensors: tuple[str, ...]
    tensor_bytes: int


def launches(
    entry: tvm.tirx.PrimFunc, host: tvm.IRModule, values: Mapping[str, float]
) -> list[KernelLaunch]:
    """Return the launches that host code makes in one call.

    entry: the function of an operation, before it is split. host: its functions for the host,
    before their calls are lowered. values: the sizes and scalars of the call by name, such as
    batch, size_0, heads, dilation_0, scale. If a result has an axis of chunks, their number is
    the one that calls choose. Raises ModelError for host code whose launches depend on more.
    """
    walk = _Walk(values)
    walk.read_tensors(entry)
    for function in host.functions.values():
        walk.visit(function.body)
    if not walk.launches:
        raise ModelError("the host code makes no launch that the model can find.")
    return walk.launches


class _Walk:
    """Goes through statements in order and evaluates the variables that they bind."""

    def __init__(self, values: Mapping[str, float]) -> None:
        self._values: dict[str, Any] = dict(values)
        self._tensor_bytes: dict[str, int] = {}
        self.launches: list[KernelLaunch] = []

    def read_tensors(self, entry: tvm.tirx.PrimFunc) -> None:
        """Learn the sizes of the tensors that are a function's parameters."""
        for parameter in filter(tvm.tirx.is_buffer_var, entry.params):
            name, shape = str(parameter.name), list(parameter.ty.shape)
            item_bytes = tvm.DataType(str(parameter.ty.dtype).removeprefix("T.")).itemsize
            if str(shape[0]) == "chunks":
                chunk_bytes = item_bytes * math.prod(int(self._known(n)) for n in shape[1:])
                # The first parameter has an entry for each query.
                query_bytes = next(iter(self._tensor_bytes.values()))
                sites = ("batch", *(n for n in self._values if n.startswith("size_")))
                queries = math.prod(int(self._values[n]) for n in sites)
                self._values["chunks"] = chunks_of("cuda", queries, query_bytes, chunk_bytes)
            sizes = [int(self._known(n)) for n in shape]
            self._tensor_bytes[name] = item_bytes * math.prod(sizes)

    def visit(self, node: Any) -> None:
        """Visit a statement and the statements inside of it."""
        kind = type(node).__name__
        if kind == "SeqStmt":
            for each in node.seq:
                self.visit(each)
        elif kind == "Bind":
            name = str(node.var.name)
            number = self.number(node.value)
            if name not in self._values and number is not None:
                self._values[name] = number
        elif kind == "IfThenElse":
            holds = self.number(node.condition)
            if holds is None or holds:
                self.visit(node.then_case)
            if not holds and node.else_case is not None:
                self.visit(node.else_case)
        elif (
            kind == "Evaluate" and getattr(getattr(node.value, "op", None), "name", "") == _LAUNCH
        ):
            self._launch(node.value)
        elif getattr(node, "body", None) is not None:
            self.visit(node.body)

    def number(self, node: Any) -> Any:
        """Return the value of an expression, or None if a variable in it has no value."""
        kind = type(node).__name__
        if kind in ("IntImm", "FloatImm"):
            return node.value
        if kind == "Var":
            return self._values.get(str(node.name))
        if kind == "Cast":
            return self.number(node.value)
        if kind == "Not":
            value = self.number(node.a)
            return None if value is None else not value
        if kind == "Select":
            condition = self.number(node.condition)
            if condition is None:
                return None
            return self.number(node.true_value if condition else node.false_value)
        if kind in _BINARY:
            a, b = self.number(node.a), self.number(node.b)
            return None if a is None or b is None else _BINARY[kind](a, b)
        return None

    def _launch(self, call: Any) -> None:
        name, *arguments = call.args
        axes = [str(axis) for axis in call.attrs.launch_params]
        extents = dict.fromkeys(_AXES, 1)
        for axis, node in zip(axes, arguments[len(arguments) - len(axes) :]):
            extents[axis] = int(self._known(node))
        data, tensors = b"", []
        for index, node in enumerate(arguments[: len(arguments) - len(axes)], 1):
            is_tensor = str(node).endswith(".data")
            if is_tensor:
                # A view of a parameter has its name and a number.
                tensors.append(re.sub(r"_\d+$", "", str(node).removesuffix(".data")))
            layout = "Q" if is_tensor else _FORMATS[str(node.ty).removeprefix("T.")]
            data += bytes(-len(data) % struct.calcsize(layout))
            data += struct.pack(
                f"<{layout}", index * _DISTANCE if is_tensor else self._known(node)
            )
        sizes = [extents[axis] for axis in _AXES]
        grid, block = (sizes[0], sizes[1], sizes[2]), (sizes[3], sizes[4], sizes[5])
        self.launches.append(
            KernelLaunch(
                str(name.value),
                Launch(data, grid, block),
                tuple(tensors),
                sum(self._tensor_bytes[each] for each in set(tensors)),
            )
        )

    def _known(self, node: Any) -> Any:
        value = self.number(node)
        if value is None:
            raise ModelError(f"a launch depends on {node}, which the model does not know.")
        return value
