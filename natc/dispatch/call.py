"""The checked options of a call as one value for all below the public functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from natc.runtime.registry import KernelKey
from natc.spec import TERMS


class Options(NamedTuple):
    """The options of a call, with one entry for each spatial axis, in the order of `natc.na2d`.

    An operator of torch takes them one by one: `natc.ops.library.OPTIONS` lists the same fields.
    scale has a default because the unfused operators do not scale. After it come the numbers of
    `natc.spec.TERMS`, in this order; 0 stands for a term that the call does not have.
    """

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    is_causal: tuple[bool, ...]
    scale: float = 1.0
    softcap: float = 0.0

    def kernel_key(
        self, operation: str, tensor: Tensor, head_dim: int, value_dim: int, rpb: bool
    ) -> KernelKey:
        """Return the key of an operation's kernel for the dtype and device of `tensor`."""
        fields = (
            operation, self.kernel_size, head_dim, value_dim, tensor.dtype, rpb, tensor.device,
            ("softcap",) if self.softcap else (),
        )  # fmt: skip
        # As KernelKey(*fields), in a third of the time: every call comes through here.
        return tuple.__new__(KernelKey, fields)

    def window(self) -> dict[str, Any]:
        """Return the options that say where the keys of a query are, by name."""
        return dict(zip(self._fields, self[:4]))

    def terms(self) -> dict[str, Any]:
        """Return the numbers of `natc.spec.TERMS` by name."""
        return {term: getattr(self, term) for term in TERMS}

    def scalars(self, spatial: Sequence[int]) -> tuple[Any, ...]:
        """Return the scalars that a compiled function takes, but the last (`operations.SCALARS`).

        is_causal stays True or False, which compiled functions take for 1 and 0. spatial: size of
        each axis of the map.
        """
        _, stride, dilation, is_causal, scale, softcap = self
        # Kernels count in 32 bits; beyond the map, one dilation is as good as another.
        steps = map(min, dilation, spatial) if max(dilation) > 1 else dilation
        if softcap:
            return (scale, softcap, *steps, *stride, *is_causal)
        return (scale, *steps, *stride, *is_causal)

    def within(self, spatial: Sequence[int], *, rpb: Tensor | None) -> Options:
        """Return options that attend to the same keys, none of them larger than the map.

        Larger ones may not fit into memory, or into 64 bits. A bias keeps its kernel_size.
        """
        sizes, strides, dilations = (
            tuple(map(min, entries, spatial))
            for entries in (self.kernel_size, self.stride, self.dilation)
        )
        kernel_size = sizes if rpb is None else self.kernel_size
        return self._replace(kernel_size=kernel_size, stride=strides, dilation=dilations)
