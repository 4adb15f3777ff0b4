"""natc.reference and support.brute_force against vectors computed by released NATTEN versions.

tests/data/golden holds a part of them, which is always tested. The whole set is tested if
shared/golden lies beside the checkout.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support import brute_force
from support.golden import (
    OPERATORS,
    GoldenCase,
    every_golden_case,
    golden_cases,
    golden_directories,
)
from torch import Tensor

from natc.checks.tolerance import check_close, relative_errors
from natc.reference import neighborhood_attention, neighborhood_logits, neighborhood_sum

ROOT = Path(__file__).parents[2]
TESTED_AS_MODULES = {"module", "model"}  # by the tests of natc.nn and natc.models
Tensors = dict[str, Tensor]

each_case = pytest.mark.parametrize("case", every_golden_case(ROOT), ids=lambda case: case.name)

# Arguments by the names that they have in the files.
ARGUMENTS = {
    "q": "query", "k": "key", "v": "value", "rpb": "rpb", "attn": "attn",
    "additional_k": "additional_keys", "additional_v": "additional_values",
}  # fmt: skip
# The name of each result of brute force, and the name of the same result in the files.
NAMES = {"attn": "logits", "output": "out", "lse": "logsumexp"}
NAMES |= {f"d_{name}": f"d_{short}" for short, name in ARGUMENTS.items()}


@pytest.mark.parametrize(
    "directory", golden_directories(ROOT), ids=lambda directory: directory.parent.name
)
def test_no_case_is_left_out(directory: Path) -> None:
    cases = golden_cases(directory)
    assert {case.kind for case in cases} <= {*OPERATORS} | TESTED_AS_MODULES
    assert {case.kind for case in cases} >= {*OPERATORS}
    unlisted = {path.name for path in directory.glob("[fu]0*.npz")}
    assert unlisted == {case.path.name for case in cases if case.kind in OPERATORS}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@each_case
def test_reference_matches_released_versions(case: GoldenCase, dtype: torch.dtype) -> None:
    inputs, upstream, expected = read(case)
    inputs = {name: tensor.to(dtype).requires_grad_() for name, tensor in inputs.items()}
    results = by_reference(case, inputs)
    result = results["logits" if case.kind == "unfused_qk" else "out"]
    gradients = torch.autograd.grad(result, list(inputs.values()), upstream.to(dtype))
    results |= {f"d_{name}": d_input for name, d_input in zip(inputs, gradients, strict=True)}
    assert set(expected) <= set(results)  # everything that the file holds is compared
    for name, values in expected.items():
        errors = check_close(results[name], values, torch.float32, name)
        if dtype == torch.float64:
            # The files cause these errors: float32 values, and a 0.21.7 forward in float32.
            assert errors.relative < 3e-7, name


@each_case
def test_brute_force_matches_released_versions(case: GoldenCase) -> None:
    inputs, upstream, expected = read(case)
    results = by_brute_force(case, inputs, upstream)
    assert set(expected) <= set(results)
    assert any(name.startswith("d_") for name in expected)
    for name, values in expected.items():
        errors = relative_errors(results[name], values)
        # As above.
        assert errors.relative < 3e-7, (name, errors)
        assert errors.largest < 2e-6, (name, errors)


def read(case: GoldenCase) -> tuple[Tensors, Tensor, Tensors]:
    """Return the inputs of a case, the upstream gradient, and the expected results.

    Heads come last, whatever the file has; names are taken from the file.
    """
    stored = case.arrays(torch.float64)
    if not case.heads_last:
        for name in set(stored) - {"rpb", "d_rpb"}:
            # The logsumexp has no channels.
            stored[name] = stored[name].movedim(1, -1 if name == "logsumexp" else -2)
    inputs = {name: stored.pop(name) for name in ARGUMENTS if name in stored}
    upstream = stored.pop("d_logits" if case.kind == "unfused_qk" else "d_out")
    return inputs, upstream, stored


def arguments(case: GoldenCase, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a function that computes the case, by name."""
    scale = {} if case.kind == "unfused_av" else {"scale": case.params["scale"]}
    named = {ARGUMENTS[name]: tensor for name, tensor in inputs.items()}
    return {**named, **case.options, **scale}


def of_logits(call: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that logits depend on."""
    return {n: value for n, value in call.items() if n not in ("value", "additional_values")}


def by_reference(case: GoldenCase, inputs: Tensors) -> Tensors:
    call = arguments(case, inputs)
    if case.kind == "unfused_av":
        return {"out": neighborhood_sum(**call)}
    logits = neighborhood_logits(**of_logits(call))
    if case.kind == "unfused_qk":
        return {"logits": logits}
    out, lse = neighborhood_attention(**call, return_lse=True)
    return {"out": out, "logsumexp": lse, "logits": logits}


def by_brute_force(case: GoldenCase, inputs: Tensors, upstream: Tensor) -> Tensors:
    arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
    d_result = upstream.numpy()
    results: dict[str, Any] = {}
    if case.kind in ("fused", "unfused"):
        results |= brute_force.attention(**arguments(case, arrays), d_output=d_result)
    if case.kind != "fused":
        # The operators of brute force take heads first.
        first = {n: a if n == "rpb" else brute_force.heads_first(a) for n, a in arrays.items()}
        call, d_result = arguments(case, first), brute_force.heads_first(d_result)
        if case.kind == "unfused":
            unfused = brute_force.qk(**of_logits(call))
        elif case.kind == "unfused_qk":
            unfused = brute_force.qk(**call, d_attn=d_result)
        else:
            unfused = brute_force.av(**call, d_output=d_result)
        results |= {
            n: a if n == "d_rpb" else brute_force.heads_last(a) for n, a in unfused.items()
        }
    return {NAMES[name]: torch.from_numpy(array) for name, array in results.items()}
