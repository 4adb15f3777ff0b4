"""The function of tiles that all forwards of a library call.

A forward with the logsumexp passes an address for it, and a forward without it passes none. If
query, key and value are one tensor, all three addresses are the same; a token then has three times
as many heads: first the query's, then the key's, then the value's.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from tvm import tirx
from tvm.ir import Call, GlobalVar, PointerType, PrimType

from natc.compiler.cpu_tiles.plan import QUERIES, Plan
from natc.compiler.cpu_tiles.query_lanes import QueryLanes
from natc.compiler.cpu_tiles.tiled_forward import Forward
from natc.compiler.statements import Statements
from natc.spec import KernelSpec

# The function's name in a module. Forwards refer to it by this very object.
TILES = GlobalVar("tiles_of_queries")


@functools.lru_cache(maxsize=1)
def shared_function(plan: Plan) -> tirx.PrimFunc:
    """Return the function, whose result is 0 unless memory or threads were lacking."""
    spec = plan.spec
    s = Statements("global")
    addresses = {
        name: tirx.Var(f"{name}_address", PointerType(PrimType(dtype)))
        for name, dtype in _tensors(spec).items()
    }
    numbers = {name: tirx.Var(name, dtype) for name, dtype in _numbers(spec).items()}
    p: dict[str, Any] = dict(numbers)
    for name, address in addresses.items():
        # Indexed as one row of numbers, whose length nobody asks for.
        dtype = _tensors(spec)[name]
        p[name] = tirx.decl_buffer((1,), dtype, name, data=address)
        s.add(tirx.DeclBuffer(p[name], data=address))
    kernel = QueryLanes if plan.lanes_of == QUERIES else Forward
    kernel(s, p, plan, keeps_lse=tirx.Not(tirx.isnullptr(addresses["lse"]))).all_units()
    parameters = [*addresses.values(), *numbers.values()]
    return tirx.PrimFunc(parameters, s.statement(), ret_type=PrimType("int32"))


def call_of(p: Mapping[str, Any], spec: KernelSpec) -> tirx.Stmt:
    """Return the statement that calls the function; p: the parameters of a forward by name."""
    s = Statements("global")
    packed = "qkv" in p
    batch, *sizes = p["qkv" if packed else "query"].ty.shape[: 1 + spec.rank]
    heads = p["output"].ty.shape[-2]
    of_keys = heads * 3 if packed else p["key"].ty.shape[-2]
    numbers = {
        "batch": batch,
        **{f"size_{axis}": size for axis, size in enumerate(sizes)},
        "heads": heads,
        "query_heads": of_keys if packed else heads,
        "key_heads": of_keys,
        "first_key": heads if packed else tirx.const(0, "int32"),
        "first_value": heads * 2 if packed else tirx.const(0, "int32"),
    }
    arguments = []
    for name in _tensors(spec):
        tensor = p.get("qkv" if packed and name in ("query", "key", "value") else name)
        if tensor is None:
            arguments.append(tirx.reinterpret("handle", tirx.const(0, "uint64")))
        else:
            arguments.append(tirx.buffer_data(tensor))
    arguments += [numbers[name] if name in numbers else p[name] for name in _numbers(spec)]
    failed = Call(TILES, arguments, ret_ty=PrimType("int32")) != tirx.const(0, "int32")
    with s.when(failed):
        s.add(tirx.Evaluate(Call("tirx.tvm_throw_last_error", [], ret_ty=PrimType("int32"))))
    return s.statement()


def _tensors(spec: KernelSpec) -> dict[str, str]:
    """Return the dtype of each tensor of the function, in order."""
    names = ("query", "key", "value", *(("rpb",) if spec.rpb else ()), "output", "lse")
    return {name: "float32" if name in ("rpb", "lse") else spec.dtype for name in names}


def _numbers(spec: KernelSpec) -> dict[str, str]:
    """Return the dtype of each number that the function takes behind the tensors, in order.

    query_heads, key_heads: heads of a token where queries, or keys and values, lie. first_key,
    first_value: which of them is the first head of keys, and of values.
    """
    axes = range(spec.rank)
    return {
        "scale": "float32",
        **dict.fromkeys(
            (
                "batch", *(f"size_{axis}" for axis in axes), "heads",
                "query_heads", "key_heads", "first_key", "first_value",
                *(f"dilation_{axis}" for axis in axes), "group",
            ),
            "int32",
        ),
    }  # fmt: skip
