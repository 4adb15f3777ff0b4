"""Running one call: on a compiled kernel where one covers it, else on the reference, and say so.

Everything here works on checked arguments; `natc.functional` checks them.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

from natc import env
from natc.errors import NotCoveredError, SpecError
from natc.reference import neighborhood_attention
from natc.runtime import registry
from natc.runtime.load import Kernel
from natc.runtime.search import Rejection
from natc.spec import DTYPES, KernelSpec


class NatcFallbackWarning(RuntimeWarning):
    """A call runs on the slow reference because no kernel covers it; given once for each kind."""


_forced: ContextVar[bool] = ContextVar("natc_force_reference", default=False)
reference_is_forced = _forced.get


@contextlib.contextmanager
def force_reference() -> Iterator[None]:
    """Run every natc operator in this context on the reference, with no warning.

    It holds for the thread or task that enters it, and `NATC_STRICT` does not forbid it.
    """
    token = _forced.set(True)
    try:
        yield
    finally:
        _forced.reset(token)


@dataclass(frozen=True, slots=True)
class Options:
    """What a call asks for beside its tensors; every field as in `natc.na2d`, one per axis."""

    kernel_size: Sequence[int]
    dilation: Sequence[int]
    stride: Sequence[int]
    is_causal: Sequence[bool]
    scale: float


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rpb: Tensor | None,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    stride: Sequence[int],
    is_causal: Sequence[bool],
    scale: float,
) -> Tensor:
    """Return the attention output, `[B, H, W, heads, head_dim]` in the dtype of query."""
    if query.numel() == 0:
        return _empty(query)
    kernel = _kernel("forward", query, rpb, kernel_size, stride, is_causal)
    if kernel is None:
        options = Options(kernel_size, dilation, stride, is_causal, scale)
        return _on_reference(query, key, value, rpb, options, return_lse=False)[0]
    alignment = kernel.alignment
    query = _ready(query, alignment)
    output = torch.empty_like(query)
    tensors = [query, _ready(key, alignment), _ready(value, alignment)]
    if rpb is not None:
        tensors.append(_ready(rpb, alignment))
    _call(kernel, query, (*tensors, output, scale, dilation[0], dilation[1]))
    return output


def forward_lse(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rpb: Tensor | None,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    stride: Sequence[int],
    is_causal: Sequence[bool],
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Return the attention output and the logsumexp, `[B, H, W, heads]`, as `natc.na2d` does."""
    if query.numel() == 0:
        return _empty(query), empty_lse(query)
    kernel = _kernel("forward_lse", query, rpb, kernel_size, stride, is_causal)
    if kernel is None:
        options = Options(kernel_size, dilation, stride, is_causal, scale)
        output, lse = _on_reference(query, key, value, rpb, options, return_lse=True)
        return output, lse
    alignment = kernel.alignment
    query = _ready(query, alignment)
    output, lse = torch.empty_like(query), empty_lse(query)
    tensors = [query, _ready(key, alignment), _ready(value, alignment)]
    if rpb is not None:
        tensors.append(_ready(rpb, alignment))
    _call(kernel, query, (*tensors, output, lse, scale, dilation[0], dilation[1]))
    return output, lse


def empty_lse(query: Tensor) -> Tensor:
    """Return an uninitialised logsumexp for a query: float32, or float64 for a float64 query."""
    return query.new_empty(query.shape[:-1], dtype=lse_dtype(query.dtype))


def lse_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the logsumexp of a query of some dtype."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def _empty(query: Tensor) -> Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)


def _kernel(
    operation: str,
    query: Tensor,
    rpb: Tensor | None,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    is_causal: Sequence[bool],
) -> Kernel | None:
    """Return the kernel for a call, or None after the one warning, or raise NotCoveredError."""
    if reference_is_forced():
        return None
    plain = stride[0] == 1 == stride[1] and not (is_causal[0] or is_causal[1])
    if plain:
        kernel = registry.resolved[
            operation,
            tuple(kernel_size),
            query.shape[-1],
            query.dtype,
            rpb is not None,
            query.device,
        ]
        if kernel is not None:
            return kernel
    _report(operation, query, rpb is not None, kernel_size, stride, is_causal)
    return None


def _ready(tensor: Tensor, alignment: int) -> Tensor:
    """Return a tensor as a kernel takes it, compact and aligned: itself, or else a copy."""
    if not tensor.is_contiguous():
        tensor = tensor.contiguous()
    # A kernel assumes the alignment in its loads; a pointer that breaks it ends the process.
    if tensor.data_ptr() % alignment:
        tensor = tensor.clone(memory_format=torch.contiguous_format)
    return tensor


def _call(kernel: Kernel, query: Tensor, arguments: tuple[object, ...]) -> None:
    if query.is_cuda and query.device.index != torch.cuda.current_device():
        # Launching makes the tensors' device current and would leave it so.
        with torch.cuda.device(query.device):
            kernel.function(*arguments)
    else:
        kernel.function(*arguments)


def _on_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rpb: Tensor | None,
    options: Options,
    *,
    return_lse: bool,
) -> tuple[Tensor, ...]:
    result = reference(query, key, value, rpb, options, return_lse=return_lse)
    return tuple(tensor.contiguous() for tensor in result)


def reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rpb: Tensor | None,
    options: Options,
    *,
    return_lse: bool,
) -> tuple[Tensor, ...]:
    """Return (output,) or (output, lse) of the reference, which autocast does not reach."""
    # Autocast would run the reference's products in 16 bits, in which it does not accumulate.
    with torch.autocast(query.device.type, enabled=False):
        result = neighborhood_attention(
            query,
            key,
            value,
            list(options.kernel_size),
            dilation=list(options.dilation),
            stride=list(options.stride),
            is_causal=list(options.is_causal),
            scale=options.scale,
            rpb=rpb,
            return_lse=return_lse,
        )
    return result if isinstance(result, tuple) else (result,)


def _report(
    operation: str,
    query: Tensor,
    rpb: bool,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    is_causal: Sequence[bool],
) -> None:
    dtype = str(query.dtype).removeprefix("torch.")
    what = f"kernel_size {list(kernel_size)}, head_dim {query.shape[-1]}, {dtype}"
    try:
        spec = KernelSpec(2, tuple(kernel_size), query.shape[-1], dtype, rpb)
    except SpecError as error:
        problem = f"{dtype} has no kernels, {', '.join(DTYPES)} have."
        return _fall_back(what, query.device, problem if dtype not in DTYPES else str(error))
    if max(stride) > 1:
        return _fall_back(what, query.device, f"no kernel takes stride {list(stride)} yet.")
    if any(is_causal):
        return _fall_back(what, query.device, f"no kernel takes is_causal {list(is_causal)} yet.")
    found = registry.explain(spec, query.device, operation=operation)
    remedy = f"build it: {found.command}" if found.command else found.facts.problem
    passed_over = "".join(_clause(item) for item in found.close_calls)
    return _fall_back(spec.name, query.device, f"{remedy}{passed_over}", str(found))


def _clause(item: Rejection) -> str:
    return f"\n  passed over {item.path}: {item.reason}"


def _fall_back(what: str, device: torch.device, remedy: str, trace: str | None = None) -> None:
    if env.NATC_STRICT.flag():
        text = trace or f"no kernel covers {what} on {device}: {remedy}"
        raise NotCoveredError(f"{text}\nNATC_STRICT forbids the slow reference; unset it to run.")
    warn_once(
        f"no kernel covers {what} on {device.type}; it runs on the plain PyTorch reference, "
        f"which is much slower. {remedy[:1].upper()}{remedy[1:]}",
        key=f"{what} {device.type} {'' if trace else remedy}",
    )


def warn_once(message: str, *, key: str) -> None:
    """Give a NatcFallbackWarning unless one was given for the same key."""
    if key not in registry.warned:
        warnings.warn(message, NatcFallbackWarning, stacklevel=2)
        # After the warning, so that one that was turned into an error is given again.
        registry.warned.add(key)
