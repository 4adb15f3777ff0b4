"""`natc.nn` against the modules of released NATTEN versions, with gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.golden import GoldenCase, golden_cases, module_cases

from natc.checks.tolerance import check_close
from natc.nn import (
    NeighborhoodAttention1D,
    NeighborhoodAttention2D,
    NeighborhoodAttention3D,
)

pytestmark = pytest.mark.filterwarnings("ignore::natc.ops.NatcFallbackWarning")

ROOT = Path(__file__).parents[2]
WHOLE = ROOT.parent / "shared" / "golden"

MODULES = {1: NeighborhoodAttention1D, 2: NeighborhoodAttention2D, 3: NeighborhoodAttention3D}


CASES = module_cases(ROOT)


def test_every_case_is_tested() -> None:
    assert len(CASES) == 8
    if not WHOLE.is_dir():
        return  # the copies are all that this machine has, and the line above counts them
    names = {case.name for case in golden_cases(WHOLE) if case.kind == "module"}
    assert names == {case.name for case in CASES}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_module_matches_released_versions(case: GoldenCase, dtype: torch.dtype) -> None:
    params = case.params
    stored = case.arrays(torch.float64)
    module = MODULES[len(params["kernel_size"])](
        params["dim"],
        params["heads"],
        tuple(params["kernel_size"]),
        dilation=tuple(params["dilation"]),
        stride=tuple(params.get("stride", (1,) * len(params["kernel_size"]))),
        is_causal=tuple(params["is_causal"]),
        rel_pos_bias=params["has_rpb"],
        qkv_bias=params["qkv_bias"],
        pad_small_maps=params["pads_small_maps"],
    ).to(dtype)
    prefix = "param."
    module.load_state_dict(
        {name[len(prefix) :]: t for name, t in stored.items() if name.startswith(prefix)}
    )
    x = stored["x"].to(dtype).requires_grad_()
    output = module(x)
    results = {"out": output}
    if "d_out" in stored:  # 0.21.7 computes no gradients on a CPU
        output.backward(stored["d_out"].to(dtype))
        results |= {"d_x": x.grad}
        results |= {f"d_param.{name}": p.grad for name, p in module.named_parameters()}
    expected = {n for n in stored if n not in ("x", "d_out") and not n.startswith(prefix)}
    assert set(results) == expected
    for name, result in results.items():
        assert result is not None, name
        errors = check_close(result, stored[name], torch.float32, name)
        if dtype == torch.float64:
            # The files are rounded to float32; 0.21.7 computed in it.
            limit = 1e-7 if params["compute_dtype"] == "float64" else 3e-7
            assert errors.relative < limit, name
