"""Tensors of the CPU that say they are in a GPU's memory."""

from __future__ import annotations

import ctypes
from typing import Any

import tvm_ffi
from torch import Tensor

_CUDA = 2  # kDLCUDA
_pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_of.restype, _pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


def on_gpu(value: Any, index: int = 0) -> Any:
    """Return a tensor's memory as a tensor of GPU `index`; return other values unchanged."""
    return tvm_ffi.from_dlpack(_OnGpu(value, index)) if isinstance(value, Tensor) else value


class _OnGpu:
    def __init__(self, tensor: Tensor, index: int) -> None:
        self._tensor, self._index = tensor, index

    def __dlpack_device__(self) -> tuple[int, int]:
        return _CUDA, self._index

    def __dlpack__(self, **_: Any) -> Any:
        capsule = self._tensor.detach().__dlpack__()
        address = _pointer_of(capsule, b"dltensor")
        # A DLTensor begins with a pointer to its data, the type of its device and its index.
        device = (ctypes.c_int32 * 2).from_address(address + ctypes.sizeof(ctypes.c_void_p))
        device[:] = _CUDA, self._index
        return capsule
