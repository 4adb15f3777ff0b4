"""The public functions composed from a kernel's own operations, each called between guards.

For `support.calls`: what natc's launch code adds is left out, so that a wrong write of a
kernel is seen where it happens. Additional tokens are not among the operations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from natc.checks.guarded import call_guarded
from natc.dispatch.call import Options

_Function = Callable[..., Any]
_Open = Callable[[str, bool], _Function]


class GuardedKernel:
    """A kernel's operations as differentiable functions of the public signatures.

    open_operation: returns the packed function of an operation, by its name and by whether it is
    to be of the kernel with a bias. chunks: of the partial sums of the gradient of rpb.
    """

    def __init__(self, open_operation: _Open, *, chunks: int = 3) -> None:
        self._open = open_operation
        self._chunks = chunks

    def attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kernel_size: tuple[int, ...],
        *,
        scale: float | None,
        rpb: Tensor | None = None,
        return_lse: bool,
        **where: Any,
    ) -> Any:
        """Return what `natc.neighborhood_attention` does."""
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        options = Options(kernel_size, scale=scale, **where)
        tail = (*options.scalars(query.shape[1:-2]), query.shape[-2] // key.shape[-2])
        inputs = [query, key, value, rpb]
        if not return_lse and not any(t is not None and t.requires_grad for t in inputs):
            results = self.run(
                "forward", inputs, [_output(query, value)], tail, with_rpb=rpb is not None
            )
            return results[0]
        output, lse = _Attention.apply(self, query, key, value, rpb, tail)
        return (output, lse) if return_lse else output

    def qk(
        self,
        query: Tensor,
        key: Tensor,
        kernel_size: tuple[int, ...],
        *,
        rpb: Tensor | None = None,
        **where: Any,
    ) -> Tensor:
        """Return what `natc.functional.na2d_qk` does."""
        options = Options(kernel_size, **where)
        tail = (*options.scalars(query.shape[2:-1]), query.shape[1] // key.shape[1])
        return _QK.apply(self, query, key, rpb, tail, math.prod(kernel_size))

    def av(
        self, attn: Tensor, value: Tensor, kernel_size: tuple[int, ...], **where: Any
    ) -> Tensor:
        """Return what `natc.functional.na2d_av` does."""
        options = Options(kernel_size, **where)
        tail = (*options.scalars(attn.shape[2:-1]), attn.shape[1] // value.shape[1])
        return _AV.apply(self, attn, value, tail)

    def run(
        self,
        operation: str,
        inputs: list[Tensor | None],
        shapes: list[tuple[tuple[int, ...], torch.dtype]],
        tail: tuple[Any, ...],
        *,
        with_rpb: bool = False,
    ) -> list[Tensor]:
        """Return the results of an operation, of these shapes and dtypes.

        Raises CheckError if it wrote beside its results or changed an input.
        """
        return call_guarded(self._open(operation, with_rpb), operation, inputs, shapes, tail)

    def partial(
        self, operation: str, inputs: list[Tensor | None], rpb: Tensor, tail: tuple[Any, ...]
    ) -> Tensor:
        """Return the gradient of rpb from `d_rpb` or `sum_rpb`."""
        if not all(tensor.numel() for tensor in inputs if tensor is not None):
            return torch.zeros_like(rpb)
        shape = ((self._chunks, *rpb.shape), rpb.dtype)
        (chunks,) = self.run(operation, inputs, [shape], tail, with_rpb=True)
        return chunks.sum(0)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernel: GuardedKernel, *arguments: Any) -> tuple[Tensor, ...]:
        query, key, value, rpb, tail = arguments
        lse_of = (query.shape[:-1], torch.promote_types(query.dtype, torch.float32))
        output, lse = kernel.run(
            "forward_lse",
            [query, key, value, rpb],
            [_output(query, value), lse_of],
            tail,
            with_rpb=rpb is not None,
        )
        ctx.kernel, ctx.tail = kernel, tail
        ctx.save_for_backward(query, key, value, rpb, output, lse)
        return output, lse

    @staticmethod
    def backward(ctx: Any, d_output: Tensor, d_lse: Tensor) -> tuple[Any, ...]:
        query, key, value, rpb, output, lse = ctx.saved_tensors
        kernel, tail, (batch, *spatial, heads, channels) = ctx.kernel, ctx.tail, query.shape
        heads_last = (batch, *spatial, heads)
        with_rpb = rpb is not None
        delta, correction = kernel.run(
            "delta",
            [query, key, rpb, d_output, output, lse],
            [(heads_last, lse.dtype)] * 2,
            tail,
            with_rpb=with_rpb,
        )
        inputs = [query, key, value, rpb, d_output, lse, correction, delta - d_lse]
        of_query = [((*heads_last, channels), query.dtype)]
        (d_query,) = kernel.run("d_query", inputs, of_query, tail, with_rpb=with_rpb)
        (d_key,) = kernel.run("d_key", inputs, of_query, tail, with_rpb=with_rpb)
        (d_value,) = kernel.run(
            "d_value",
            [query, key, rpb, d_output, lse, correction],
            [_output(query, value)],
            tail,
            with_rpb=with_rpb,
        )
        d_rpb = None if rpb is None else kernel.partial("d_rpb", inputs, rpb, tail)
        group = tail[-1]
        return (
            None, d_query, _of_groups(d_key, -2, group), _of_groups(d_value, -2, group), d_rpb,
            None,
        )  # fmt: skip


class _QK(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernel: GuardedKernel, *arguments: Any) -> Tensor:
        query, key, rpb, tail, taps = arguments
        ctx.kernel, ctx.tail = kernel, tail
        ctx.save_for_backward(query, key, rpb)
        shape = ((*query.shape[:-1], taps), query.dtype)
        filled = (*tail, -math.inf)
        return kernel.run("qk", [query, key, rpb], [shape], filled, with_rpb=rpb is not None)[0]

    @staticmethod
    def backward(ctx: Any, d_attn: Tensor) -> tuple[Any, ...]:
        query, key, rpb = ctx.saved_tensors
        kernel, tail, like = ctx.kernel, ctx.tail, [(query.shape, query.dtype)]
        (d_query,) = kernel.run("av", [d_attn, key], like, tail)
        (d_key,) = kernel.run("inverse_av", [d_attn, query], like, tail)
        d_rpb = None if rpb is None else kernel.partial("sum_rpb", [d_attn], rpb, tail)
        return None, d_query, _of_groups(d_key, 1, tail[-1]), d_rpb, None, None


class _AV(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernel: GuardedKernel, *arguments: Any) -> Tensor:
        attn, value, tail = arguments
        ctx.kernel, ctx.tail = kernel, tail
        ctx.save_for_backward(attn, value)
        shape = ((*attn.shape[:-1], value.shape[-1]), value.dtype)
        return kernel.run("av", [attn, value], [shape], tail)[0]

    @staticmethod
    def backward(ctx: Any, d_output: Tensor) -> tuple[Any, ...]:
        attn, value = ctx.saved_tensors
        kernel, tail = ctx.kernel, ctx.tail
        (d_attn,) = kernel.run("qk", [d_output, value], [(attn.shape, attn.dtype)], (*tail, 0.0))
        (d_value,) = kernel.run(
            "inverse_av", [attn, d_output], [(d_output.shape, value.dtype)], tail
        )
        return None, d_attn, _of_groups(d_value, 1, tail[-1]), None


def _output(query: Tensor, value: Tensor) -> tuple[tuple[int, ...], torch.dtype]:
    return (*query.shape[:-1], value.shape[-1]), query.dtype


def _of_groups(per_head: Tensor, axis: int, group: int) -> Tensor:
    shared = per_head.unflatten(axis, (per_head.shape[axis] // group, group))
    return shared.sum(axis if axis < 0 else axis + 1)
