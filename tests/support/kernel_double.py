"""Kernels that are there for every call: each operation in plain PyTorch, called as a kernel is.

They refuse arguments that would crash a compiled kernel, and note their calls.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from natc.operations import GRADIENTS, HEADS_FIRST, OPERATIONS, operations_of
from natc.reference import (
    attended_sum,
    neighborhood_attention,
    neighborhood_gradients,
    neighborhood_logits,
    neighborhood_sum,
    rpb_sum,
)
from natc.runtime.load import Kernel
from natc.runtime.registry import KernelKey

ALIGNMENT = 64


@dataclass
class Doubles(dict[Any, Any]):
    """Takes the place of `natc.runtime.registry.resolved`.

    missing: operations that there are no kernels for; without_rpb: whether there are kernels
    without a bias. calls: operation and shapes of the tensors of each call.
    """

    missing: set[str] = field(default_factory=set)
    without_rpb: bool = True
    calls: list[tuple[str, dict[str, tuple[int, ...]]]] = field(default_factory=list)

    def __missing__(self, key: KernelKey) -> Kernel | None:
        operation, kernel_size, rpb = key.operation, key.kernel_size, key.rpb
        either = "rpb" not in OPERATIONS[operation].tensors
        if operation == GRADIENTS and GRADIENTS not in operations_of(key.spec(), kind="llvm"):
            return None
        if operation in self.missing or not (rpb or either or self.without_rpb):
            return None
        assert key.device == torch.device("cpu")
        assert not OPERATIONS[operation].needs_rpb or rpb
        assert not OPERATIONS[operation].one_head_dim or key.head_dim == key.value_dim

        def function(*arguments: Any) -> None:
            double = _Call(operation, kernel_size, key.dtype, rpb, arguments)
            self.calls.append((operation, {n: tuple(t.shape) for n, t in double.tensors.items()}))
            double.check(key.head_dim, key.value_dim)
            # A compiled kernel is unknown to autograd.
            with torch._C._AutoDispatchBelowAutograd():
                results = getattr(double, operation)()
                for name, tensor in zip(
                    OPERATIONS[operation].results_of(rpb), results, strict=True
                ):
                    assert double.tensors[name].shape == tensor.shape, (operation, name)
                    double.tensors[name].copy_(tensor)

        # A new one each time: nothing is kept, so that `missing` may change.
        return Kernel(function, ALIGNMENT, None)  # type: ignore[arg-type]

    @property
    def operations(self) -> list[str]:
        return [operation for operation, _ in self.calls]


class _Call:
    def __init__(
        self,
        operation: str,
        kernel_size: tuple[int, ...],
        dtype: torch.dtype,
        rpb: bool,
        arguments: tuple[Any, ...],
    ) -> None:
        self.operation, self.kernel_size, self.dtype = OPERATIONS[operation], kernel_size, dtype
        self.acc = torch.float64 if dtype == torch.float64 else torch.float32
        names = self.operation.tensors_of(rpb)
        self.tensors: dict[str, Tensor] = dict(zip(names, arguments[: len(names)], strict=True))
        rank = len(kernel_size)
        scale, *integers = arguments[len(names) :]
        self.fill = integers.pop() if operation == "qk" else None
        assert type(scale) is float and all(isinstance(value, int) for value in integers)
        assert all(-(2**31) <= value < 2**31 for value in integers)
        self.scale, self.group = scale, integers.pop()
        dilation, stride, causal = (integers[i * rank : (i + 1) * rank] for i in range(3))
        assert len(integers) == 3 * rank and set(causal) <= {0, 1}
        self.where = {
            "dilation": dilation, "stride": stride, "is_causal": [bool(flag) for flag in causal],
        }  # fmt: skip

    def check(self, head_dim: int, value_dim: int) -> None:
        """Check the promises that a compiled kernel relies on."""
        acc = {"rpb", "lse", "d_lse", "delta", "correction", "partial", "d_rpb"}
        for name, tensor in self.tensors.items():
            assert tensor.dtype == (self.acc if name in acc else self.dtype), name
            assert tensor.data_ptr() % ALIGNMENT == 0, name
            if self.operation.name == GRADIENTS and name not in ("rpb", "d_rpb"):
                assert name == "d_lse" or tensor.stride(-1) == 1, name
            else:
                assert tensor.is_contiguous(), name
            assert tensor.numel() > 0, name
        first = self.tensors[self.operation.tensors[0]]
        heads_first = self.operation.layout == HEADS_FIRST
        batch, heads = first.shape[0], first.shape[1 if heads_first else -2]
        sizes = first.shape[2:-1] if heads_first else first.shape[1 : 1 + len(self.kernel_size)]
        assert all(d <= size for d, size in zip(self.where["dilation"], sizes, strict=True))
        channels = {"attn": math.prod(self.kernel_size), "d_attn": math.prod(self.kernel_size)}
        channels |= dict.fromkeys(("value", "output", "d_output", "d_value"), value_dim)
        for name, tensor in self.tensors.items():
            if name in ("rpb", "partial", "d_rpb"):
                offsets = [2 * size - 1 for size in self.kernel_size]
                assert list(tensor.shape[-len(offsets) - 1 :]) == [heads, *offsets], name
                continue
            number = heads // self.group if name in ("key", "value") else heads
            shape = [batch, number, *sizes] if heads_first else [batch, *sizes, number]
            if name == "qkv":
                shape.insert(-1, 3)
            if name not in ("lse", "d_lse", "delta", "correction"):
                shape.append(channels.get(name, head_dim))
            assert list(tensor.shape) == shape, name

    def last(self, *names: str) -> list[Tensor]:
        """Tensors heads-last, in the accumulator's dtype."""
        tensors = [self.tensors[name].to(self.acc) for name in names]
        heads_first = self.operation.layout == HEADS_FIRST
        return [t.movedim(1, -2) for t in tensors] if heads_first else tensors

    def logits(self, fill: float = -math.inf) -> Tensor:
        return neighborhood_logits(
            *self.last("query", "key"), self.kernel_size, scale=self.scale, fill=fill,
            rpb=self.tensors.get("rpb"), **self.where,
        )  # fmt: skip

    def forward(self) -> list[Tensor]:
        return self.forward_lse()[:1]

    def forward_lse(self) -> list[Tensor]:
        return list(
            neighborhood_attention(
                *self.last("query", "key", "value"), self.kernel_size, scale=self.scale,
                rpb=self.tensors.get("rpb"), return_lse=True, **self.where,
            )
        )  # fmt: skip

    def forward_packed(self) -> list[Tensor]:
        return self.forward_lse_packed()[:1]

    def forward_lse_packed(self) -> list[Tensor]:
        names = ("query", "key", "value")
        self.tensors |= dict(zip(names, self.tensors["qkv"].unbind(-3), strict=True))
        assert self.group == 1
        return self.forward_lse()

    def delta(self) -> list[Tensor]:
        d_output, output = self.last("d_output", "output")
        lse = self.tensors["lse"]
        correction = (self.logits() - lse[..., None]).logsumexp(-1)
        return [(d_output * output).sum(-1), correction.masked_fill(~lse.isfinite(), 0)]

    def weights(self) -> Tensor:
        lse, correction = self.tensors["lse"], self.tensors["correction"]
        return (self.logits() - lse[..., None] - correction[..., None]).exp()

    def d_logits(self) -> Tensor:
        d_weights = neighborhood_logits(
            *self.last("d_output", "value"), self.kernel_size, scale=1.0, fill=0.0, **self.where
        )
        return self.weights() * (d_weights - self.tensors["delta"][..., None])

    def d_query(self) -> list[Tensor]:
        (key,) = self.last("key")
        return [
            neighborhood_sum(self.scale * self.d_logits(), key, self.kernel_size, **self.where)
        ]

    def d_key(self) -> list[Tensor]:
        (query,) = self.last("query")
        return [attended_sum(self.scale * self.d_logits(), query, self.kernel_size, **self.where)]

    def d_value(self) -> list[Tensor]:
        (d_output,) = self.last("d_output")
        return [attended_sum(self.weights(), d_output, self.kernel_size, **self.where)]

    def d_rpb(self) -> list[Tensor]:
        return [self.chunked(self.d_logits())]

    def chunked(self, d_logits: Tensor) -> Tensor:
        """Partial sums: of the entries of the batch, dealt out to the chunks."""
        chunks = self.tensors["partial"].shape[0]
        partial = torch.zeros(self.tensors["partial"].shape, dtype=self.acc)
        for index, entry in enumerate(d_logits):
            partial[index % chunks] += rpb_sum(entry[None], self.kernel_size, **self.where)
        return partial

    def gradients(self) -> list[Tensor]:
        query, key, value, d_output = self.last("query", "key", "value", "d_output")
        for dilation, stride, size, flag, length in zip(
            *(self.where["dilation"], self.where["stride"], self.kernel_size),
            *(self.where["is_causal"], query.shape[1:-2]),
            strict=True,
        ):
            assert stride == 1 and not flag and dilation * size <= length
        rpb = self.tensors.get("rpb")
        gradients = neighborhood_gradients(
            *(query, *(t.repeat_interleave(self.group, -2) for t in (key, value))),
            self.kernel_size, d_output=d_output, d_lse=self.tensors["d_lse"], rpb=rpb,
            wanted=(True, True, True, rpb is not None), scale=self.scale, **self.where,
        )  # fmt: skip
        return [gradient for gradient in gradients if gradient is not None]

    def qk(self) -> list[Tensor]:
        assert self.fill is not None
        return [self.logits(self.fill).movedim(-2, 1)]

    def av(self) -> list[Tensor]:
        output = neighborhood_sum(*self.last("attn", "value"), self.kernel_size, **self.where)
        return [output.movedim(-2, 1)]

    def inverse_av(self) -> list[Tensor]:
        output = attended_sum(*self.last("attn", "vector"), self.kernel_size, **self.where)
        return [output.movedim(-2, 1)]

    def sum_rpb(self) -> list[Tensor]:
        (d_attn,) = self.last("d_attn")
        return [self.chunked(d_attn)]
