"""Layouts of tensors in memory: the same values, with NaN in the gaps between them."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from natc.checks.guarded import guarded
from natc.checks.inputs import poisoned


def noncontiguous(tensor: Tensor) -> Tensor:
    """Return the same values as a leaf of stride 2 in the last axis, with NaN in every gap."""
    wide = poisoned((*tensor.shape[:-1], 2 * tensor.shape[-1]), tensor.dtype, tensor.device)
    view = wide[..., ::2]
    view.copy_(tensor.detach())
    return view.requires_grad_(tensor.requires_grad)


def misaligned(tensor: Tensor, alignment: int = 64) -> Tensor:
    """Return the same values, contiguous, one element past an address of that alignment.

    Args:
        tensor: any shape.
        alignment: in bytes, a multiple of the element's size.
    """
    size = tensor.element_size()
    spare = alignment // size + 1
    buffer = poisoned((tensor.numel() + spare,), tensor.dtype, tensor.device)
    to_aligned = -buffer.data_ptr() % alignment // size
    view = buffer[to_aligned + 1 :][: tensor.numel()].view(tensor.shape)
    view.copy_(tensor.detach())
    return view.requires_grad_(tensor.requires_grad)


def expanded(tensor: Tensor, axis: int) -> Tensor:
    """Return a leaf that repeats the first entry of an axis without a copy: stride 0 there."""
    first = tensor.detach().narrow(axis, 0, 1).clone() if tensor.shape[axis] else tensor.detach()
    return first.expand(tensor.shape).requires_grad_(tensor.requires_grad)


def one_of_three(tensor: Tensor) -> Tensor:
    """Return the same values as a slice of a buffer of three, NaN in the others.

    As query is in the result of one linear layer for query, key and value: [..., 3, channels].
    """
    buffer = poisoned((*tensor.shape[:-1], 3, tensor.shape[-1]), tensor.dtype, tensor.device)
    view = buffer[..., 1, :]
    view.copy_(tensor.detach())
    return view.requires_grad_(tensor.requires_grad)


def reversed_axes(tensor: Tensor) -> Tensor:
    """Return the same values in memory that runs through the axes in reverse."""
    order = tuple(reversed(range(tensor.ndim)))
    view = tensor.detach().permute(order).contiguous().permute(order)
    return view.requires_grad_(tensor.requires_grad)


_LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "surrounded": lambda tensor: guarded(tensor).requires_grad_(tensor.requires_grad),
    "misaligned": misaligned,
    "noncontiguous": noncontiguous,
    "one of three": one_of_three,
    "reversed axes": reversed_axes,
    "expanded batch": lambda tensor: expanded(tensor, 0),
    "expanded channels": lambda tensor: expanded(tensor, -1),
    "expanded inside": lambda tensor: expanded(tensor, 1),
}
LAYOUTS = tuple(_LAYOUTS)


def in_layout(tensor: Tensor, layout: str) -> Tensor:
    """Return a leaf in a layout of `LAYOUTS`: the same values, or repeated ones if expanded."""
    return _LAYOUTS[layout](tensor)
