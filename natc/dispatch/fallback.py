"""The fallback when no kernel covers a call: it runs on the reference, with one warning.

`NATC_STRICT=1` turns the warning into an error; `force_reference` asks for the reference.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator
from contextvars import ContextVar

import torch
from torch import Tensor

from natc import env
from natc.errors import NotCoveredError, SpecError
from natc.operations import OPERATIONS
from natc.runtime import jit, registry
from natc.runtime.load import Kernel
from natc.spec import compiles

# The package that natc is in, which has another name where another package carries natc.
_OURS = (__name__.removesuffix("dispatch.fallback"), "torch.")


class NatcFallbackWarning(RuntimeWarning):
    """No kernel covers a call: it runs on the slow reference. Once for each kind of call."""


_forced: ContextVar[bool] = ContextVar("natc_force_reference", default=False)
reference_is_forced = _forced.get


@contextlib.contextmanager
def force_reference() -> Iterator[None]:
    """Return a context in which every natc operator runs on the reference, without a warning.

    It affects the thread or task that enters it, and `NATC_STRICT` does not forbid it.
    """
    token = _forced.set(True)
    try:
        yield
    finally:
        _forced.reset(token)


def find(key: registry.KernelKey) -> Kernel | None:
    """Return the kernel for a key, or None if the reference is to run; `report` says why."""
    return None if _forced.get() else registry.resolved[key]


def as_new(result: Tensor) -> Tensor:
    """Return a result of the reference, contiguous and detached, as a kernel's result is.

    Detached, because a view that an autograd function returns cannot be changed in place.
    """
    return result.contiguous().detach()


def report(key: registry.KernelKey) -> None:
    """Warn, once for each kind of call, that the call with this key runs on the reference.

    There is no warning for float64 on CUDA, which the reference serves by design. Raises
    NotCoveredError if NATC_STRICT forbids the reference.
    """
    operation, device, name = key.operation, key.device, key.dtype_name
    if _forced.get() or (device.type == "cuda" and not compiles(name, "cuda")):
        return
    try:
        spec = key.spec()
    except SpecError as error:
        what = f"kernel_size {list(key.kernel_size)}, head_dim {key.head_dim}, {name}"
        return _fall_back(operation, what, device, str(error))
    explanation = registry.explain(spec, device, operation=operation)
    command, not_built = explanation.command, explanation.not_built
    remedy = f"build it: {command}" if command else explanation.facts.problem
    if command and not_built and jit.mode() == jit.ON:
        remedy += f". This call did not: {not_built}"
    passed_over = "".join(
        f"\n  passed over {item.path}: {item.reason}" for item in explanation.close_calls
    )
    _fall_back(operation, spec.name, device, f"{remedy}{passed_over}", str(explanation))


def _fall_back(
    operation: str, what: str, device: torch.device, remedy: str, trace: str | None = None
) -> None:
    """Warn that no kernel covers an operation of `what`; raise instead if NATC_STRICT is set.

    remedy: how to get a kernel. trace: text of the error; None if there is no explanation.
    """
    if env.NATC_STRICT.flag():
        text = trace or f"no kernel covers {operation} of {what} on {device}: {remedy}"
        raise NotCoveredError(f"{text}\nNATC_STRICT forbids the slow reference; unset it to run.")
    key = f"{what} {device.type} {'' if trace else remedy}"
    family = OPERATIONS[operation].family
    if family == "backward" and key in registry.warned:
        return  # The forward, which needs the same kernel, has warned.
    if family != "forward":
        key = f"{operation if family == 'unfused' else family} of {key}"
        what = f"{operation} of {what}"
    if key in registry.warned:
        return
    warnings.warn(
        f"no kernel covers {what} on {device.type}; it runs on the plain PyTorch reference, "
        f"which is much slower. {remedy[:1].upper()}{remedy[1:]}",
        NatcFallbackWarning,
        stacklevel=_users_level(),
    )
    # After the warning: if a filter turned it into an error, the next call warns again.
    registry.warned.add(key)


def _users_level() -> int:
    """Return the stacklevel with which the caller's `warnings.warn` names the user's own code.

    It differs between calls: natc and torch call each other on the way to a kernel.
    """
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_OURS):
        level, frame = level + 1, frame.f_back
    return level
