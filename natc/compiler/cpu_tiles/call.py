"""A call of a kernel: its sizes, the unit of work at hand, and where its tokens are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tvm import tirx

from natc.compiler.cpu_tiles.vectors import load_float
from natc.compiler.statements import Statements
from natc.spec import KernelSpec

_PACKED = {"query": 0, "key": 1, "value": 2}


class ForwardCall:
    """The parameters of a forward on three axes: frames, rows and columns.

    An axis that the spec lacks has one position. With dilation, the members of a dilation group
    are a map of their own: `position` tells where a member is.
    """

    def __init__(self, s: Statements, p: Mapping[str, Any], spec: KernelSpec) -> None:
        self.s, self.p, self.spec = s, p, spec
        self.is_packed = "qkv" in p
        shape = p["qkv" if self.is_packed else "query"].ty.shape
        self.batch, self.heads = shape[0], shape[-2]
        missing = 3 - spec.rank
        self.sizes = [*[tirx.const(1, "int32")] * missing, *shape[1 : 1 + spec.rank]]
        dilation = [p[f"dilation_{axis}"] for axis in range(spec.rank)]
        self.dilation = [*[tirx.const(1, "int32")] * missing, *dilation]

    def locate(self, batch: Any, head: Any, groups: Sequence[Any]) -> None:
        """Set the entry of the batch, the head and the dilation group of the unit at hand."""
        s = self.s
        self.b, self.h = batch, head
        self.groups = groups
        self.kv_head = s.let("kv_head", tirx.truncdiv(head, self.p["group"]))
        # How many members the group has on each axis.
        self.members = [
            s.let("members", tirx.truncdiv(size - 1 - group, dilation) + 1)
            for size, group, dilation in zip(self.sizes, groups, self.dilation)
        ]

    def index(self, name: str, members: Sequence[Any], *channel: Any) -> tuple[Any, list[Any]]:
        """Return a tensor and the index in it of a token, which members of each axis name."""
        positions = [
            member * dilation + group
            for member, dilation, group in zip(members, self.dilation, self.groups)
        ][-self.spec.rank :]
        if self.is_packed and name in _PACKED:
            head = [_PACKED[name], self.h]
            return self.p["qkv"], [self.b, *positions, *head, *channel]
        head = [self.kv_head if name in ("key", "value") else self.h]
        return self.p[name], [self.b, *positions, *head, *channel]

    def vector(self, name: str, members: Sequence[Any], channel: Any, lanes: int) -> Any:
        """Return adjacent channels of a token as float32."""
        tensor, index = self.index(name, members, channel)
        return load_float(tensor, index, lanes)


def window_start(member: Any, members: Any, kernel_size: int) -> Any:
    """Return the first member of a query's window, in a group of at least `kernel_size`."""
    if kernel_size == 1:
        return member
    return tirx.max(tirx.min(member - kernel_size // 2, members - kernel_size), 0)
