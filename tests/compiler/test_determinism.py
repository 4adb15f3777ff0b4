"""The same call gives the same bits: results and every gradient, on any number of threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from support.built_kernels import BuiltKernels
from support.calls import Call, draw_av, draw_fused, draw_qk, poisoned_results
from torch import Tensor

import natc
from natc import functional
from natc.spec import KernelSpec

# Maps large enough for several threads to have work, and for several partial sums of d_rpb.
CALLS = [
    Call(
        KernelSpec.parse("na1d_k16_d12v5_float16_rpb"),
        (1500,), (2,), (3,), (False,), batch=2, heads=4, heads_kv=2, tokens=3,
    ),
    Call(
        KernelSpec.parse("na2d_k7_d32_float32_rpb"),
        (29, 31), (2, 1), (1, 1), (False, False), batch=2, heads=3, heads_kv=3,
    ),
    Call(
        KernelSpec.parse("na2d_k4x5_d24_bfloat16"),
        (23, 40), (1, 3), (2, 1), (True, False), batch=3, heads=4, heads_kv=1,
    ),
    Call(
        KernelSpec.parse("na3d_k2x3x4_d8_bfloat16_rpb"),
        (9, 8, 11), (1, 2, 1), (1, 1, 2), (False, False, True), batch=2, heads=2, heads_kv=1,
    ),
]  # fmt: skip
WITH_OPERATORS = [call for call in CALLS if call.spec.head_dim == call.spec.value_dim]


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def name_of(call: Call) -> str:
    return call.spec.name


def attention(call: Call) -> dict[str, Tensor]:
    inputs, upstream = draw_fused(call)
    results = natc.neighborhood_attention(**inputs, **call.options, return_lse=True)
    return named(inputs, results, list(upstream.values()))


def operators(call: Call) -> dict[str, Tensor]:
    results = {}
    for draw, name in ((draw_qk, "qk"), (draw_av, "av")):
        inputs, upstream = draw(call)
        function = getattr(functional, f"na{call.spec.rank}d_{name}")
        result = function(**inputs, **call.options)
        of_this = named(inputs, (result,), list(upstream.values()))
        results |= {f"{name}: {key}": tensor for key, tensor in of_this.items()}
    return results


def named(
    inputs: dict[str, Tensor], results: tuple[Tensor, ...], upstream: list[Tensor]
) -> dict[str, Tensor]:
    gradients = torch.autograd.grad(results, list(inputs.values()), upstream)
    tensors = {str(index): result.detach() for index, result in enumerate(results)}
    return tensors | {f"d_{name}": x for name, x in zip(inputs, gradients, strict=True)}


def assert_same_bits(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert set(first) == set(second)
    for name, tensor in first.items():
        assert torch.equal(bits(tensor), bits(second[name])), name


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)


def check(compute: Callable[[Call], dict[str, Tensor]], call: Call, threads: Any) -> None:
    threads(1)
    once = compute(call)
    assert len(once) >= 4
    for _ in range(3):
        assert_same_bits(compute(call), once)
    for number in (2, 3, 8):
        threads(number)
        assert_same_bits(compute(call), once)
        # No operator refuses this mode, and the NaN that fills memory reaches no result.
        with poisoned_results():
            assert_same_bits(compute(call), once)


@pytest.mark.parametrize("call", CALLS, ids=name_of)
def test_attention_and_its_gradients_are_the_same_bits(
    built: BuiltKernels, threads: Any, call: Call
) -> None:
    built.need_attention(call.spec)
    check(attention, call, threads)


@pytest.mark.parametrize("call", WITH_OPERATORS, ids=name_of)
def test_operators_and_their_gradients_are_the_same_bits(
    built: BuiltKernels, threads: Any, call: Call
) -> None:
    built.need_operators(call.spec)
    check(operators, call, threads)


@pytest.mark.parametrize("call", CALLS, ids=name_of)
def test_gradients_of_a_batch_equal_the_gradients_of_its_entries(
    built: BuiltKernels, call: Call
) -> None:
    """What shares a call changes no bit of query, key and value; rpb's gradient is their sum."""
    built.need_attention(call.spec)
    inputs, upstream = draw_fused(call)

    def run(part: slice) -> dict[str, Tensor]:
        own = {
            name: (x if name == "rpb" else x[part]).detach().requires_grad_()
            for name, x in inputs.items()
        }
        results = natc.neighborhood_attention(**own, **call.options, return_lse=True)
        return named(own, results, [x[part] for x in upstream.values()])

    whole = run(slice(None))
    parts = [run(slice(i, i + 1)) for i in range(call.batch)]
    for name, tensor in whole.items():
        if name == "d_rpb":
            torch.testing.assert_close(
                tensor, sum(part[name] for part in parts), rtol=1e-4, atol=1e-4
            )
        elif name in ("0", "1", "d_query", "d_key", "d_value") and not call.tokens:
            assert torch.equal(bits(tensor), bits(torch.cat([part[name] for part in parts]))), name
