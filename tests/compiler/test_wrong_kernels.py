"""A kernel with wrong results never wins a search, whatever `python -O` does to asserts.

Expectations here are raised or left to `pytest.raises`, so that they hold under `-O` as well:
PYTHONOPTIMIZE=1 pytest -m quick tests/compiler
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.fresh_process import run_fresh
from support.kernel_double import Doubles
from torch import Tensor

from natc.errors import TuneError
from natc.operations import OPERATIONS, operations_of
from natc.runtime.registry import KernelKey
from natc.spec import KernelSpec
from natc.tune.measure.problems import check

pytestmark = pytest.mark.quick

SPEC = KernelSpec.parse("na2d_k3_d8_float32_rpb")
Kernel = Callable[..., None]


def right(operation: str) -> Kernel:
    """Return a kernel that computes an operation in plain PyTorch."""
    key = KernelKey(
        operation,
        kernel_size=SPEC.kernel_size,
        head_dim=SPEC.head_dim,
        dtype=torch.float32,
        rpb=True,
        value_dim=SPEC.value_dim,
        device=torch.device("cpu"),
    )
    kernel = Doubles()[key]
    if kernel is None:
        raise KeyError(operation)
    return kernel.function


def tensors(arguments: tuple[Any, ...]) -> list[Tensor]:
    return [argument for argument in arguments if isinstance(argument, Tensor)]


def writes_nothing(operation: str) -> Kernel:
    return lambda *arguments: None


def writes_zeros(operation: str) -> Kernel:
    def kernel(*arguments: Any) -> None:
        for result in tensors(arguments)[-len(OPERATIONS[operation].results) :]:
            result.zero_()

    return kernel


def after_right(operation: str, mistake: Callable[[list[Tensor]], object]) -> Kernel:
    def kernel(*arguments: Any) -> None:
        right(operation)(*arguments)
        mistake(tensors(arguments))

    return kernel


def overwrites_an_input(operation: str) -> Kernel:
    return after_right(operation, lambda passed: passed[0].view(-1)[0].mul_(2))


def writes_past_the_end(operation: str) -> Kernel:
    def mistake(passed: list[Tensor]) -> None:
        result = passed[-1]
        result.as_strided((1,), (1,), result.storage_offset() + result.numel()).zero_()

    return after_right(operation, mistake)


def has_a_wrong_element(operation: str) -> Kernel:
    return after_right(operation, lambda passed: passed[-1].view(-1)[-1].add_(1))


MISTAKES = [
    writes_nothing,
    writes_zeros,
    overwrites_an_input,
    writes_past_the_end,
    has_a_wrong_element,
]


@pytest.mark.parametrize("operation", operations_of(SPEC))
def test_a_right_kernel_passes(operation: str) -> None:
    check(right(operation), SPEC, operation, "cpu")


@pytest.mark.parametrize("operation", operations_of(SPEC))
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_kernel_loses(mistake: Callable[[str], Kernel], operation: str) -> None:
    with pytest.raises(TuneError, match="^wrong result: "):
        check(mistake(operation), SPEC, operation, "cpu")


def test_a_wrong_kernel_loses_in_a_process_without_asserts() -> None:
    program = f"""
from natc.errors import TuneError
from natc.spec import KernelSpec
from natc.tune.measure.problems import check

assert False, "asserts are on"
for name in ("forward", "d_query"):
    kernels = {{
        "writes nothing": lambda *arguments: None,
        "writes zeros": lambda *arguments: arguments[{{"forward": 4, "d_query": 7}}[name]].zero_(),
        "overwrites an input": lambda *arguments: arguments[0].zero_(),
    }}
    for mistake, kernel in kernels.items():
        try:
            check(kernel, KernelSpec.parse("{SPEC.name}"), name, "cpu")
        except TuneError as error:
            print(name, mistake, error)
        else:
            raise SystemExit(f"{{name}}: a kernel that {{mistake}} passed")
"""
    refusals = run_fresh(program, PYTHONOPTIMIZE="1").splitlines()
    if len(refusals) != 6:
        pytest.fail(str(refusals))
