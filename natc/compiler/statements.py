"""Statements: builds the body of a kernel as TIR, one statement after the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tvm import tirx
from tvm.ir import Expr, Range

_THREAD_INDEX = 1  # tvm.tirx.IterVar.ThreadIndex


class Statements:
    """The statements of a kernel in order; a `with` adds its block as one statement.

    scope: TVM's scope of arrays in registers. On a CPU it is "global": LLVM keeps a small array in
    registers, whereas each use of an array in the scope "local" asks the runtime for memory.
    """

    def __init__(self, scope: str = "local") -> None:
        self._scope = scope
        self._open: list[list[tirx.Stmt]] = [[]]

    def add(self, statement: tirx.Stmt) -> None:
        """Add a statement to the innermost open block."""
        self._open[-1].append(statement)

    def name(self, name: str, value: Any) -> Any:
        """Return a variable bound to `value`; lowering may replace it by the value."""
        value = tirx.convert(value)
        variable = tirx.Var(name, _dtype(value))
        self.add(tirx.Bind(variable, value))
        return variable

    def let(self, name: str, value: Any) -> Any:
        """Store `value` in a register and return the expression that reads it.

        Lowering does not substitute a register's value, as it does a variable's. Numbers that
        depend on each other would otherwise become expressions that grow without end.
        """
        value = tirx.convert(value)
        register = self.registers(name, 1, _dtype(value))
        self.store(register, 0, value)
        return register[0]

    def registers(self, name: str, count: int, dtype: str = "float32") -> tirx.Buffer:
        """Return an array of the lane's own; once loops are unrolled it lies in registers."""
        array = tirx.decl_buffer((count,), dtype, name, scope=self._scope)
        self.add(tirx.AllocBuffer(array))
        return array

    def store(self, array: tirx.Buffer, number: Any, value: Any) -> None:
        """Write element `number` of an array in registers, or of a tensor in memory."""
        self.add(tirx.BufferStore(array, tirx.convert(value), flat_index(array, number)))

    def fill(self, array: tirx.Buffer, value: float) -> None:
        """Write `value` to every element of a float32 array in registers."""
        with self.unrolled("i", int(array.shape[0])) as i:
            self.store(array, i, tirx.const(value, "float32"))

    def zeros(self, name: str, count: int) -> tirx.Buffer:
        """Return a float32 array in registers whose elements are 0."""
        array = self.registers(name, count)
        self.fill(array, 0.0)
        return array

    def call(self, function: str, *arguments: Any) -> None:
        """Call a device function that returns nothing."""
        self.add(tirx.Evaluate(tirx.call_extern("int32", function, *arguments)))

    @contextmanager
    def unrolled(self, name: str, extent: int) -> Iterator[Any]:
        """Repeat the block for 0 .. extent-1, each written out by CUDA's compiler."""
        variable = tirx.Var(name, "int32")
        with self._block() as body:
            yield variable
        loop = tirx.For(variable, 0, extent, tirx.ForKind.UNROLLED, body())
        # Left to CUDA's compiler: written out here, lowering would take minutes.
        self.add(tirx.AttrStmt(variable, "pragma_unroll_explicit", tirx.const(0), loop))

    @contextmanager
    def loop(self, name: str, extent: Any) -> Iterator[Any]:
        """Repeat the block for 0 .. extent-1."""
        variable = tirx.Var(name, "int32")
        with self._block() as body:
            yield variable
        self.add(tirx.For(variable, 0, extent, tirx.ForKind.SERIAL, body()))

    @contextmanager
    def repeat_while(self, condition: Expr) -> Iterator[None]:
        """Repeat the block as long as `condition`, which reads registers, holds."""
        with self._block() as body:
            yield
        self.add(tirx.While(condition, body()))

    @contextmanager
    def parallel(self, name: str, extent: Any) -> Iterator[Any]:
        """Run the block for 0 .. extent-1, divided among a CPU's threads."""
        variable = tirx.Var(name, "int32")
        with self._block() as body:
            yield variable
        self.add(tirx.For(variable, 0, extent, tirx.ForKind.PARALLEL, body()))

    @contextmanager
    def when(self, condition: Expr) -> Iterator[None]:
        """Run the block only if `condition` holds."""
        with self._block() as body:
            yield
        self.add(tirx.IfThenElse(condition, body(), None))

    @contextmanager
    def threads(self, tag: str, extent: Any) -> Iterator[Any]:
        """Run the block in each thread of an axis of the grid (or of a block of threads)."""
        variable = tirx.Var(tag.replace(".", "_"), "int32")
        with self._block() as body:
            yield variable
        axis = tirx.IterVar(Range(0, extent), variable, _THREAD_INDEX, tag)
        self.add(
            tirx.For(variable, tirx.const(0), extent, tirx.ForKind.THREAD_BINDING, body(), axis)
        )

    @contextmanager
    def attribute(self, key: str, value: int) -> Iterator[None]:
        """Give the block an attribute, such as launch bounds."""
        with self._block() as body:
            yield
        self.add(tirx.AttrStmt(tirx.const(0), key, tirx.const(value), body()))

    def statement(self) -> tirx.Stmt:
        """Return all that was added as one statement."""
        (statements,) = self._open
        return tirx.stmt_seq(*statements)

    @contextmanager
    def _block(self) -> Iterator[Any]:
        inside: list[tirx.Stmt] = []
        self._open.append(inside)
        yield lambda: tirx.stmt_seq(*inside)
        if self._open.pop() is not inside:
            raise RuntimeError(
                "blocks must be closed in the reverse of the order they were opened"
            )


def _dtype(value: Expr) -> str:
    return str(value.ty).removeprefix("T.")


def flat_index(array: tirx.Buffer, number: Any) -> list[Any]:
    """Return the index of element `number`, counted over all axes."""
    return [*[0] * (len(array.ty.shape) - 1), tirx.convert(number)]


def call(dtype: str, function: str, *arguments: Any) -> Expr:
    """Return a call of a device function that has no side effects."""
    return tirx.call_pure_extern(dtype, function, *arguments)


def at(array: tirx.Buffer, index: Any) -> Expr:
    """Return the address of an element of an array in registers."""
    return tirx.address_of(array[index])
