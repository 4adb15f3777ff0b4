"""A call of a kernel: its sizes, the unit of work at hand, and where its tokens are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tvm import tirx
from tvm.ir import Expr

from natc.compiler.cpu_tiles.vectors import load_float
from natc.compiler.statements import Statements
from natc.spec import KernelSpec


class ForwardCall:
    """The parameters of a forward on three axes: frames, rows and columns.

    p: the parameters of `natc.compiler.cpu_tiles.shared_function`, by name. An axis that the spec
    lacks has one position. With dilation, the members of a dilation group are a map of their own:
    `index` tells where a member is.
    """

    def __init__(self, s: Statements, p: Mapping[str, Any], spec: KernelSpec) -> None:
        self.s, self.p, self.spec = s, p, spec
        self.batch, self.heads = p["batch"], p["heads"]
        missing = [tirx.const(1, "int32")] * (3 - spec.rank)
        self.sizes = [*missing, *(p[f"size_{axis}"] for axis in range(spec.rank))]
        self.dilation = [*missing, *(p[f"dilation_{axis}"] for axis in range(spec.rank))]

    def locate(self, batch: Any, head: Any, groups: Sequence[Any]) -> None:
        """Set the entry of the batch, the head and the dilation group of the unit at hand."""
        s, p = self.s, self.p
        self.b, self.h = batch, head
        self.groups = groups
        kv_head = tirx.truncdiv(head, p["group"])
        key_head = s.let("key_head", p["first_key"] + kv_head)
        value_head = s.let("value_head", p["first_value"] + kv_head)
        head_dim, value_dim = self.spec.head_dim, self.spec.value_dim
        # For each tensor: the heads of a token, the head at hand, and the numbers of a head.
        self._heads = {
            "query": (p["query_heads"], head, head_dim),
            "key": (p["key_heads"], key_head, head_dim),
            "value": (p["key_heads"], value_head, value_dim),
            "output": (self.heads, head, value_dim),
            "lse": (self.heads, head, 1),
        }
        # How many members the group has on each axis.
        self.members = [
            s.let("members", tirx.truncdiv(size - 1 - group, dilation) + 1)
            for size, group, dilation in zip(self.sizes, groups, self.dilation)
        ]

    def index(self, name: str, members: Sequence[Any], channel: Any = 0) -> tuple[Any, Any]:
        """Return a tensor and the index in it of a token's channel.

        members: the token's member of the dilation group on each axis.
        """
        site = self.b
        for size, member, dilation, group in zip(
            self.sizes, members, self.dilation, self.groups, strict=True
        ):
            site = site * size + (member * dilation + group)
        heads, head, numbers = self._heads[name]
        return self.p[name], (site * heads + head) * numbers + channel

    def vector(self, name: str, members: Sequence[Any], channel: Any, lanes: int) -> Any:
        """Return adjacent channels of a token as float32."""
        tensor, index = self.index(name, members, channel)
        return load_float(tensor, index, lanes)

    def bias(self, offsets: Sequence[Any]) -> Expr:
        """Return the bias of the head at hand; offsets: its index on each axis."""
        index = self.h
        missing = 3 - self.spec.rank
        for offset, kernel_size in zip(offsets[missing:], self.spec.kernel_size, strict=True):
            index = index * (2 * kernel_size - 1) + offset
        return self.p["rpb"][index]


def window_start(member: Any, members: Any, kernel_size: int) -> Any:
    """Return the first member of a query's window, in a group of at least `kernel_size`."""
    if kernel_size == 1:
        return member
    return tirx.max(tirx.min(member - kernel_size // 2, members - kernel_size), 0)
