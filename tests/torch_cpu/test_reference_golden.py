"""natc.reference against vectors computed by released NATTEN versions.

tests/data/golden holds a part of them, which is always tested. The whole set is tested if
shared/golden lies beside the checkout.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.golden import GoldenCase, golden_cases, golden_directories
from torch import Tensor

from natc.checks.tolerance import check_close
from natc.reference import neighborhood_attention, neighborhood_logits, neighborhood_sum

ROOT = Path(__file__).parents[2]
COPIED = ROOT / "tests" / "data" / "golden"
WHOLE = ROOT.parent / "shared" / "golden"

TESTED_HERE = {"fused", "unfused", "unfused_qk", "unfused_av"}
TESTED_AS_MODULES = {"module", "model"}  # by the tests of natc.nn and natc.models

DIRECTORIES = golden_directories(ROOT)

CASES = [
    pytest.param(case, id=f"{'copied' if directory == COPIED else 'whole'}-{case.name}")
    for directory in DIRECTORIES
    for case in golden_cases(directory)
    if case.kind in TESTED_HERE
]


@pytest.mark.parametrize("directory", DIRECTORIES, ids=lambda directory: directory.parent.name)
def test_no_case_is_left_out(directory: Path) -> None:
    cases = golden_cases(directory)
    assert {case.kind for case in cases} <= TESTED_HERE | TESTED_AS_MODULES
    assert {case.kind for case in cases} >= TESTED_HERE
    unlisted = {path.name for path in directory.glob("[fu]0*.npz")}
    assert unlisted == {case.path.name for case in cases if case.kind in TESTED_HERE}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_reference_matches_released_versions(case: GoldenCase, dtype: torch.dtype) -> None:
    heads_last = case.kind == "fused"
    stored = case.arrays(torch.float64)
    inputs = {
        name: to_heads_last(stored[name], heads_last).to(dtype).requires_grad_()
        for name in ("q", "k", "v", "additional_k", "additional_v", "attn")
        if name in stored
    }
    if "rpb" in stored:
        inputs["rpb"] = stored["rpb"].to(dtype).requires_grad_()

    results = compute(case, inputs)
    upstream = "logits" if case.kind == "unfused_qk" else "out"
    gradient = to_heads_last(stored[f"d_{upstream}"], heads_last).to(dtype)
    gradients = torch.autograd.grad(results[upstream], list(inputs.values()), gradient)
    results |= {f"d_{name}": d_input for name, d_input in zip(inputs, gradients, strict=True)}

    expected = {
        name: values
        for name, values in stored.items()
        if name not in inputs and name != f"d_{upstream}"
    }
    assert set(expected) <= set(results)  # everything that the file holds is compared
    for name, values in expected.items():
        if name not in ("rpb", "d_rpb"):
            values = to_heads_last(values, heads_last, channels=name != "logsumexp")
        errors = check_close(results[name], values, torch.float32, name)
        if dtype == torch.float64:
            # The files cause these errors: float32 values, and a 0.21.7 forward in float32.
            assert errors.relative < 3e-7, name


def compute(case: GoldenCase, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    params = case.params
    where = {
        "dilation": params["dilation"],
        "stride": params.get("stride", 1),
        "is_causal": params["is_causal"],
    }
    kernel_size = params["kernel_size"]
    if case.kind == "unfused_av":
        return {"out": neighborhood_sum(inputs["attn"], inputs["v"], kernel_size, **where)}
    logits = neighborhood_logits(
        inputs["q"],
        inputs["k"],
        kernel_size,
        **where,
        scale=params["scale"],
        rpb=inputs.get("rpb"),
        additional_keys=inputs.get("additional_k"),
    )
    if case.kind == "unfused_qk":
        return {"logits": logits}
    out, lse = neighborhood_attention(
        inputs["q"],
        inputs["k"],
        inputs["v"],
        kernel_size,
        **where,
        scale=params["scale"],
        rpb=inputs.get("rpb"),
        additional_keys=inputs.get("additional_k"),
        additional_values=inputs.get("additional_v"),
        return_lse=True,
    )
    return {"out": out, "logsumexp": lse, "logits": logits}


def to_heads_last(tensor: Tensor, already: bool, *, channels: bool = True) -> Tensor:
    """[batch, heads, ..., channels] -> [batch, ..., heads, channels]; lse has no channels."""
    return tensor if already else tensor.movedim(1, -2 if channels else -1)
