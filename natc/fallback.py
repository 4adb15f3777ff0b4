"""What happens when no kernel covers a call: the reference runs, with one warning, or it may not.

`NATC_STRICT=1` turns the warning into an error; `force_reference` asks for the reference.
"""

from __future__ import annotations

import contextlib
import sys
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
from natc.runtime.search import Rejection
from natc.spec import DTYPES, KernelSpec

_OURS = ("natc.", "torch.")


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


def reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rpb: Tensor | None,
    options: Options,
    *,
    return_lse: bool,
) -> tuple[Tensor, ...]:
    """Return (output,) or (output, lse) of the reference, compact; autocast does not reach it."""
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
    results = result if isinstance(result, tuple) else (result,)
    return tuple(tensor.contiguous() for tensor in results)


def report(
    operation: str,
    query: Tensor,
    rpb: bool,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    is_causal: Sequence[bool],
) -> None:
    """Give the one warning that a call runs on the reference; arguments as in `natc.launch.run`.

    rpb: whether the call has one. Raises NotCoveredError where NATC_STRICT forbids it.
    """
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
        warnings.warn(message, NatcFallbackWarning, stacklevel=_users_level())
        # After the warning, so that one that was turned into an error is given again.
        registry.warned.add(key)


def _users_level() -> int:
    """Return the stack level, for `warnings.warn` in the caller, of the first code of the user.

    natc and torch call each other on the way to a kernel, so that depth is no constant.
    """
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_OURS):
        level, frame = level + 1, frame.f_back
    return level
