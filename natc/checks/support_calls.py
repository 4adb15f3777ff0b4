"""The calls that `natc.checks.support` makes: one small call, or a few, for each feature."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from natc import functional
from natc.spec import DTYPES, MAX_HEAD_DIM, MAX_KERNEL_SIZE, MIN_KERNEL_SIZE, KernelSpec

# Makes its calls for a rank; calls its second argument right before the step that counts.
Call = Callable[[int, Callable[[], None]], None]

_BATCH, _MAP, _HEADS, _TOKENS = 1, 5, 2, 3


def _inputs(
    shape: Sequence[int], head_dim: int, value_dim: int, heads_kv: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Return query, key and value, heads-last; shape: the axes before heads."""
    return (
        torch.zeros(*shape, _HEADS, head_dim, dtype=dtype, requires_grad=True),
        torch.zeros(*shape, heads_kv, head_dim, dtype=dtype, requires_grad=True),
        torch.zeros(*shape, heads_kv, value_dim, dtype=dtype, requires_grad=True),
    )


def _fused(
    rank: int,
    begin: Callable[[], None],
    *,
    order: int = 1,
    kernel_size: int = 3,
    head_dim: int = 8,
    value_dim: int | None = None,
    heads_kv: int = _HEADS,
    dtype: torch.dtype = torch.float32,
    rpb: bool = False,
    tokens: int = 0,
    return_lse: bool = False,
    **options: Any,
) -> None:
    """Call the fused function; order 0: the forward, 1: gradients too, 2: their gradients too.

    The last of these steps counts.
    """
    # One long axis tests as much as three, with fewer taps.
    sizes = (kernel_size, *[min(kernel_size, 3)] * (rank - 1))
    value_dim = value_dim or head_dim
    make = partial(_inputs, head_dim=head_dim, value_dim=value_dim, heads_kv=heads_kv, dtype=dtype)
    tensors = list(make((_BATCH, *[_MAP] * rank)))
    if rpb:
        options["rpb"] = torch.zeros(_HEADS, *(2 * k - 1 for k in sizes), requires_grad=True)
        tensors.append(options["rpb"])
    if tokens:
        _, keys, values = make((_BATCH, tokens))
        options.update(additional_keys=keys, additional_values=values)
        tensors += [keys, values]
    function: Any = getattr(functional, f"na{rank}d")
    with torch.set_grad_enabled(order > 0):
        result = function(*tensors[:3], sizes, return_lse=return_lse, **options)
    results = result if return_lse else (result,)
    _differentiate(results, tensors, order, begin)


def _qk(
    rank: int,
    begin: Callable[[], None],
    *,
    order: int = 1,
    head_dim: int = 8,
    heads_kv: int = _HEADS,
    dtype: torch.dtype = torch.float32,
    rpb: bool = False,
    tokens: int = 0,
    **options: Any,
) -> None:
    """Call the unfused operator; order as for `_fused`."""
    query, key = _heads_first(rank, head_dim, heads_kv, dtype)
    tensors = [query, key]
    if rpb:
        options["rpb"] = torch.zeros(_HEADS, *[5] * rank, requires_grad=True)
        tensors.append(options["rpb"])
    if tokens:
        options["additional_keys"] = key.detach().flatten(2, -2)[:, :, :tokens]
    with torch.set_grad_enabled(order > 0):
        attn = getattr(functional, f"na{rank}d_qk")(query, key, 3, **options)
    _differentiate((attn,), tensors, order, begin)


def _av(
    rank: int,
    begin: Callable[[], None],
    *,
    order: int = 1,
    head_dim: int = 8,
    heads_kv: int = _HEADS,
    dtype: torch.dtype = torch.float32,
    tokens: int = 0,
    **options: Any,
) -> None:
    """Call the unfused operator; order as for `_fused`."""
    query, value = _heads_first(rank, head_dim, heads_kv, dtype)
    taps = 3**rank + tokens
    attn = torch.zeros(*query.shape[:-1], taps, dtype=dtype, requires_grad=True)
    if tokens:
        options["additional_values"] = value.detach().flatten(2, -2)[:, :, :tokens]
    with torch.set_grad_enabled(order > 0):
        output = getattr(functional, f"na{rank}d_av")(attn, value, 3, **options)
    _differentiate((output,), [attn, value], order, begin)


def _heads_first(
    rank: int, head_dim: int, heads_kv: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    space = [_MAP] * rank
    return (
        torch.zeros(_BATCH, _HEADS, *space, head_dim, dtype=dtype, requires_grad=True),
        torch.zeros(_BATCH, heads_kv, *space, head_dim, dtype=dtype, requires_grad=True),
    )


def _differentiate(
    results: Sequence[Tensor], inputs: Sequence[Tensor], order: int, begin: Callable[[], None]
) -> None:
    for step in range(order):
        begin()
        gradients = torch.autograd.grad(
            results,
            inputs,
            [torch.ones_like(result, requires_grad=True) for result in results],
            create_graph=step + 1 < order,
            allow_unused=True,
        )
        results = [gradient for gradient in gradients if gradient is not None]


def _forward_mode(rank: int, begin: Callable[[], None]) -> None:
    with forward_ad.dual_level():
        tensors = _inputs((_BATCH, *[_MAP] * rank), 8, 8, _HEADS, torch.float32)
        query, key, value = (forward_ad.make_dual(t, torch.ones_like(t)) for t in tensors)
        getattr(functional, f"na{rank}d")(query, key, value, 3)


def _unfused_forward_mode(rank: int, begin: Callable[[], None]) -> None:
    with forward_ad.dual_level():
        tensors = _heads_first(rank, 8, _HEADS, torch.float32)
        query, key = (forward_ad.make_dual(t, torch.ones_like(t)) for t in tensors)
        attn = getattr(functional, f"na{rank}d_qk")(query, key, 3)
        getattr(functional, f"na{rank}d_av")(attn, key, 3)


def _each(name: str, values: Sequence[Any], **options: Any) -> Call:
    """Return the calls of the fused function, with gradients, for each value of an option."""

    def call(rank: int, begin: Callable[[], None]) -> None:
        for value in values:
            # All of these calls count, so none may clear the notes of the calls before it.
            _fused(rank, lambda: None, **{name: value}, **options)

    return call


def _option(**options: Any) -> Call:
    """Return the calls with an option, with gradients, without and with a bias."""
    return _each("rpb", (False, True), **options)


def _unfused(**options: Any) -> Call:
    """Return the calls of the unfused operators with options, with gradients."""

    def call(rank: int, begin: Callable[[], None]) -> None:
        _qk(rank, lambda: None, **options)
        _qk(rank, lambda: None, rpb=True, **options)
        _av(rank, lambda: None, **options)

    return call


_ODD = (MIN_KERNEL_SIZE, 7, MAX_KERNEL_SIZE)
_EVEN = (MIN_KERNEL_SIZE + 1, 8, MAX_KERNEL_SIZE - 1)
_ODD_ROW = f"kernel_size odd, {MIN_KERNEL_SIZE} to {MAX_KERNEL_SIZE}"
_EVEN_ROW = "kernel_size even"


def _has_dtype(dtype: str, spec: KernelSpec) -> bool:
    return spec.dtype == dtype


ROWS: dict[str, Call] = {
    "fused forward": partial(_fused, order=0),
    "fused forward, rpb": partial(_fused, order=0, rpb=True),
    "fused backward": _fused,
    "fused backward, rpb": partial(_fused, rpb=True),
    "logsumexp": partial(_fused, order=0, return_lse=True),
    "logsumexp, backward": partial(_fused, return_lse=True),
    "unfused qk": partial(_qk, order=0),
    "unfused qk, rpb": partial(_qk, order=0, rpb=True),
    "unfused qk, backward": partial(_qk, order=1),
    "unfused qk, rpb, backward": partial(_qk, order=1, rpb=True),
    "unfused av": partial(_av, order=0),
    "unfused av, backward": partial(_av, order=1),
    # From here on: forward and backward.
    _ODD_ROW: _each("kernel_size", _ODD),
    _EVEN_ROW: _each("kernel_size", _EVEN),
    "kernel_size even, rpb": _each("kernel_size", _EVEN, rpb=True),
    "dilation": _option(dilation=2),
    "stride": _option(stride=2),
    "is_causal": _option(is_causal=True),
    "is_causal and stride": _option(is_causal=True, stride=2),
    "window larger than the map": _option(kernel_size=_MAP + 2),
    f"head_dim 1 to {MAX_HEAD_DIM}": _each("head_dim", (1, 12, 20, 24, 32, MAX_HEAD_DIM)),
    "value_dim other than head_dim": _option(value_dim=12),
    "fewer key and value heads": _option(heads_kv=1),
    "additional tokens": _option(tokens=_TOKENS),
    **{name: _option(dtype=getattr(torch, name)) for name in DTYPES},
    "unfused, dilation, stride, is_causal": _unfused(dilation=2, stride=2, is_causal=True),
    "unfused, fewer key and value heads": _unfused(heads_kv=1),
    "unfused, additional tokens": _unfused(tokens=_TOKENS),
    **{f"unfused, {name}": _unfused(dtype=getattr(torch, name)) for name in DTYPES},
    "double backward": partial(_fused, order=2),
    "double backward, rpb": partial(_fused, order=2, rpb=True),
    "forward-mode derivative": _forward_mode,
    "unfused qk, double backward": partial(_qk, order=2),
    "unfused av, double backward": partial(_av, order=2),
    "unfused, forward-mode derivative": _unfused_forward_mode,
}

# For rows that are about some kernels only: whether a spec is one. Other rows are about all.
KINDS: dict[str, Callable[[KernelSpec], bool]] = {
    **{
        name: lambda spec: not spec.rpb
        for name in ("fused forward", "fused backward", "unfused qk", "unfused qk, backward")
    },
    **{name: lambda spec: spec.rpb for name in ROWS if ", rpb" in name},
    _ODD_ROW: lambda spec: all(size % 2 for size in spec.kernel_size),
    _EVEN_ROW: lambda spec: not any(size % 2 for size in spec.kernel_size),
    "kernel_size even, rpb": lambda spec: spec.rpb and not any(k % 2 for k in spec.kernel_size),
    "value_dim other than head_dim": lambda spec: spec.value_dim != spec.head_dim,
    **{
        f"{prefix}{name}": partial(_has_dtype, name)
        for name in DTYPES
        for prefix in ("", "unfused, ")
    },
}
