"""The launches of host code for a GPU, read without a GPU."""

from __future__ import annotations

import math
import struct

import pytest
import torch

from natc.checks.operations import tensor_shape
from natc.compiler.build.cuda import split
from natc.compiler.build.lower import entry_module
from natc.compiler.gpu_model.candidates import call_values
from natc.compiler.gpu_model.launches import launches
from natc.dispatch.fused_backward import chunks
from natc.operations import OPERATIONS, operations_of
from natc.spec import KernelSpec
from natc.targets import Target

SPEC, SHAPE = KernelSpec.make(3, head_dim=16, dtype="float16", rpb=True), (2, 14, 13, 3)


@pytest.mark.parametrize("operation", operations_of(SPEC, kind="cuda"))
def test_a_launch_has_the_tensors_of_a_call(operation: str) -> None:
    module = entry_module(SPEC, Target("cuda", "sm_90"), {}, {operation: "entry"})
    host, _ = split(module, Target("cuda", "sm_90"))
    (only,) = launches(module["entry"], host, call_values(SPEC, SHAPE))
    # The map of the logits is what sum_rpb reads: 9 taps of each query.
    row = 9 if operation == "sum_rpb" else SPEC.head_dim
    query = torch.empty(1, dtype=torch.float16).expand(*SHAPE, row)
    number = chunks(query, 3 * 5 * 5 * 4)
    assert number == 2 * 14 * 13 // 32
    tensors = [
        tensor_shape(SPEC, operation, name, SHAPE, number)
        for name in OPERATIONS[operation].tensors_of(rpb=True)
    ]
    assert only.tensor_bytes == sum(math.prod(size) * dtype.itemsize for size, dtype in tensors)
    assert len(only.tensors) == len(tensors)
    is_summed = operation in ("d_rpb", "sum_rpb")
    assert (struct.pack("<i", number) in only.launch.parameters) == is_summed
