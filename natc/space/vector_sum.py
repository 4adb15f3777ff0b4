"""A tensor intrinsic: the sum of a vector register's lanes, as one LLVM instruction."""

from __future__ import annotations

import functools

from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T


@functools.cache
def vector_sum_intrinsic(lanes: int) -> str:
    """Register the intrinsic that adds `lanes` adjacent float32 to one; return its name.

    Left to itself, LLVM takes the vector apart one lane at a time.
    """
    lanes_type = f"float32x{lanes}"

    @T.prim_func(s_tir=True)
    def description(vector: T.handle, total: T.handle) -> None:
        V = T.match_buffer(vector, (lanes,), "float32", offset_factor=1)
        S = T.match_buffer(total, (1,), "float32", offset_factor=1)
        with T.sblock("root"):
            T.reads(S[0], V[0:lanes])
            T.writes(S[0])
            for lane in range(lanes):
                with T.sblock("sum"):
                    at = T.axis.reduce(lanes, lane)
                    S[0] = S[0] + V[at]

    @T.prim_func(s_tir=True)
    def implementation(vector: T.handle, total: T.handle) -> None:
        V = T.match_buffer(vector, (lanes,), "float32", offset_factor=1)
        S = T.match_buffer(total, (1,), "float32", offset_factor=1)
        with T.sblock("root"):
            T.reads(S[0], V[0:lanes])
            T.writes(S[0])
            S[0] = S[0] + T.call_llvm_pure_intrin(
                "float32", "llvm.vector.reduce.fadd", T.float32(0), V.vload([0], lanes_type)
            )

    name = f"natc.vector_sum_{lanes}"
    TensorIntrin.register(name, description, implementation, override=True)
    return name
