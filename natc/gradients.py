"""The gradients of neighborhood attention: exact, recomputed through the reference.

There is no backward kernel yet. Nothing but the inputs is kept from forward to backward.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from natc import env
from natc.errors import NotCoveredError
from natc.fallback import Options, reference, reference_is_forced, warn_once


def backward(
    grads: tuple[Tensor, ...],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rpb: Tensor | None,
    options: Options,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of query, key, value and rpb (None without rpb).

    grads: gradient of the output, `[B, H, W, heads, head_dim]`, and of the logsumexp,
        `[B, H, W, heads]`, where the forward returned it.
    """
    _allow(query.device)
    with _autograd_included():
        inputs = [
            None if t is None else t.detach().requires_grad_() for t in (query, key, value, rpb)
        ]
        return _through_reference(grads, inputs, options, create_graph=False)


def differentiable_backward(
    grads: tuple[Tensor, ...],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rpb: Tensor | None,
    options: Options,
) -> tuple[Tensor | None, ...]:
    """Return what `backward` does, with a graph, for gradients of gradients of any order.

    None stands for an input that requires no gradient.
    """
    _allow(query.device)
    # One tensor may be query, key and value at once; each needs a gradient of its own.
    inputs = [None if t is None else t.view_as(t) for t in (query, key, value, rpb)]
    return _through_reference(grads, inputs, options, create_graph=True)


def _through_reference(
    grads: tuple[Tensor, ...],
    inputs: list[Tensor | None],
    options: Options,
    *,
    create_graph: bool,
) -> tuple[Tensor | None, ...]:
    query, key, value, rpb = inputs
    assert query is not None and key is not None and value is not None
    if query.numel() == 0:
        return tuple(None if t is None else torch.zeros_like(t).detach() for t in inputs)
    with torch.enable_grad():
        results = reference(query, key, value, rpb, options, return_lse=len(grads) > 1)
        wanted = [t for t in inputs if t is not None and t.requires_grad]
        found = iter(torch.autograd.grad(results, wanted, grads, create_graph=create_graph))
    return tuple(next(found) if t is not None and t.requires_grad else None for t in inputs)


@contextlib.contextmanager
def _autograd_included() -> Iterator[None]:
    """Let operators record a graph even inside an operator.

    The dispatcher leaves autograd out below a mode such as a FLOP counter or a tracer.
    """
    with torch._C._PreserveDispatchKeyGuard():
        autograd = torch._C.DispatchKey.AutogradFunctionality
        torch._C._dispatch_tls_set_dispatch_key_excluded(autograd, False)
        yield


def _allow(device: torch.device) -> None:
    if reference_is_forced():
        return
    text = f"natc has no backward kernel on {device.type} yet"
    if env.NATC_STRICT.flag():
        raise NotCoveredError(
            f"{text}. NATC_STRICT forbids the slow reference; unset it to compute gradients."
        )
    warn_once(
        f"{text}; gradients are exact but are computed by the plain PyTorch reference, which is "
        "much slower.",
        key=text,
    )
