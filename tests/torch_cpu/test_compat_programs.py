"""Import lines and calls of published projects: each works, and computes the right numbers.

The snippets make the same imports, version checks and calls as the projects, in our own code.
A release of None is the default, the union of all releases. The numbers of functions and
modules that are only imported here are tested with the functions and modules of their releases.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.compat_releases import draw, installed
from torch import Tensor

from natc.reference import neighborhood_attention

pytestmark = pytest.mark.filterwarnings("ignore::natc.ops.NatcFallbackWarning")


@pytest.fixture
def natten() -> Iterator[Any]:
    with installed() as module:
        yield module


MODULE_AND_COUNTER = """
from natten import NeighborhoodAttention2D as NeighborhoodAttention
from natten.flops import add_natten_handle
import natten
extra = {"rel_pos_bias": True} if hasattr(natten, "context") else {"bias": True}
module = NeighborhoodAttention(24, kernel_size=3, dilation=2, num_heads=3, qkv_bias=True,
                               qk_scale=None, attn_drop=0.0, proj_drop=0.0, **extra)
assert module.rpb is not None
"""
PROGRAMS = {
    "DiNAT and OneFormer in transformers": ([None], """
import importlib.metadata, importlib.util
assert importlib.util.find_spec("natten") is not None
assert importlib.metadata.version("natten") == "0.17.4"
from natten.functional import natten2dav, natten2dqkrpb
"""),
    "the official models, MedViTV2": (["0.14.6", "0.15.1", "0.17.1", None], MODULE_AND_COUNTER),
    "OneFormer, whose modules have a bias without asking for it": (["0.14.4"], """
from natten import NeighborhoodAttention2D
module = NeighborhoodAttention2D(24, kernel_size=3, dilation=2, num_heads=3, qkv_bias=True,
                                 qk_scale=None, attn_drop=0.0, proj_drop=0.0)
assert module.rpb.shape == (3, 5, 5)
"""),
    "StyleNAT": ([None], """
import natten
from natten import use_autotuner, use_fused_na
from natten.functional import na2d_av, na2d_qk
use_fused_na(True)
use_autotuner(True)
assert natten.is_fused_na_enabled() and natten.is_autotuner_enabled()
"""),
    "k-diffusion, PMRF": ([None], """
import natten
assert natten.has_fused_na() is True
natten.functional.na2d, natten.functional.na2d_qk, natten.functional.na2d_av
"""),
    "All-In-One": ([None], """
from natten.functional import natten1dav, natten1dqkrpb, natten2dav, natten2dqkrpb
"""),
    "DAT": (["0.14.6", None], """
from natten.functional import NATTEN2DAVFunction, NATTEN2DQKRPBFunction
"""),
    "AgileFormer": (["0.15.1", None], """
from natten.functional import na2d_av, na2d_qk_with_bias
"""),
    "SegMAN": ([None], """
import natten
from natten import NeighborhoodAttention2D, use_fused_na, use_gemm_na
from natten.flops import add_natten_handle, av_2d_flop, qk_2d_rpb_flop
from natten.functional import na2d, na2d_av, na2d_qk, natten2dav, natten2dqkrpb
use_gemm_na(True)
use_fused_na(True)
assert natten.is_gemm_na_enabled()
"""),
}  # fmt: skip


@pytest.mark.parametrize(
    ("version", "lines"),
    [
        pytest.param(version, lines, id=f"{name}, {version or 'default'}")
        for name, (versions, lines) in PROGRAMS.items()
        for version in versions
    ],
)
def test_the_lines_that_a_program_begins_with(version: str | None, lines: str) -> None:
    with installed(version):
        exec(lines, {})


@pytest.mark.parametrize("version", ["0.21.7", None])
def test_physicsnemo(version: str | None) -> None:
    """Windows of rank 1 to 3, options by name."""
    with installed(version):
        from natten.functional import na1d, na2d, na3d

        for na, spatial in ((na1d, (9,)), (na2d, (9, 8)), (na3d, (4, 5, 6))):
            query, key, value = (draw(1, *spatial, 2, 8, seed=s) for s in (1, 2, 3))
            dilation = (2,) + (1,) * (len(spatial) - 1)
            kernel_size = (3,) * len(spatial) if len(spatial) < 3 else (2, 3, 3)
            out = na(query, key, value, kernel_size, dilation=dilation)
            expected = neighborhood_attention(query, key, value, kernel_size, dilation=dilation)
            torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("version", ["0.21.0", None])
def test_cosmos_predict(version: str | None) -> None:
    """Video: switches at import, attention of any rank with windows that stride."""
    with installed(version) as natten:
        from natten.functional import neighborhood_attention_generic

        natten.use_kv_parallelism_in_fused_na(True)
        natten.set_memory_usage_preference("unrestricted")
        assert natten.is_kv_parallelism_in_fused_na_enabled()
        assert natten.is_memory_usage_unrestricted()
        query, key, value = (draw(1, 4, 6, 8, 2, 8, seed=s) for s in (1, 2, 3))
        where = {"kernel_size": (4, 4, 6), "stride": (1, 2, 6), "dilation": (1, 1, 1)}
        out = neighborhood_attention_generic(
            query, key, value, **where, is_causal=(False, False, False), backend="hopper-fna"
        )
    kernel_size = where.pop("kernel_size")
    expected = neighborhood_attention(query, key, value, kernel_size, **where)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("version", ["0.21.5", None])
def test_projects_with_a_module_rewritten_from_021(version: str | None) -> None:
    """Such a project imports the types of 0.21 and checks its options with its helpers."""
    with installed(version):
        from natten.functional import neighborhood_attention_generic
        from natten.types import CausalArgTypeOrDed, DimensionTypeOrDed
        from natten.utils.checks import check_all_args

        def attend(x: Tensor, size: DimensionTypeOrDed, is_causal: CausalArgTypeOrDed) -> Tensor:
            kernel_size, stride, dilation, causal = check_all_args(2, size, 1, 2, is_causal)
            return neighborhood_attention_generic(
                x, x, x, kernel_size, stride, dilation, is_causal=causal
            )

        x = draw(1, 9, 8, 2, 8)
        expected = neighborhood_attention(x, x, x, (4, 3), dilation=2, is_causal=(True, False))
        torch.testing.assert_close(attend(x, (4, 3), (True, False)), expected)


def test_projects_with_a_module_rewritten_from_017(natten: Any) -> None:
    """Such a project imports the helpers and types of 0.17."""
    from natten.context import is_fna_enabled
    from natten.types import CausalArg3DTypeOrDed, Dimension3DTypeOrDed
    from natten.utils import check_all_args, log

    def window(kernel_size: Dimension3DTypeOrDed, is_causal: CausalArg3DTypeOrDed) -> Any:
        return check_all_args(3, kernel_size, None, is_causal)

    assert window(3, False) == ((3, 3, 3), (1, 1, 1), (False, False, False))
    assert window([3, 5, 7], (True, False, False))[0] == (3, 5, 7)
    with pytest.raises(ValueError, match="is_causal"):
        window(3, "no")
    assert log.get_logger("a").name == "a" and not is_fna_enabled()


def test_switches_have_the_initial_values_of_the_release() -> None:
    with installed("0.17.4") as natten:
        assert not natten.is_kv_parallelism_in_fused_na_enabled()
        assert natten.is_tiled_na_enabled() and natten.is_tf32_in_gemm_na_enabled()
        assert natten.get_memory_usage_preference().name == "Default"
        natten.use_fused_na()
        assert natten.is_kv_parallelism_in_fused_na_enabled()
        assert natten.disable_tiled_na() is False and not natten.is_tiled_na_enabled()
        natten.use_autotuner(True, None, thorough_mode_backward=True)
        assert natten.is_autotuner_enabled_for_forward()
        assert not natten.is_autotuner_enabled_for_backward()
        assert natten.is_autotuner_thorough_for_backward()
        natten.disable_autotuner()
        assert not natten.is_autotuner_enabled()
        for wrong in ({"forward_pass": "often"}, {"backward_pass": 1}, {"steps_forward": 1.5},
                      {"thorough_mode_forward": 0}, {"warmup_steps_backward": "5"}):  # fmt: skip
            with pytest.raises(ValueError, match="use_autotuner"):
                natten.use_autotuner(**wrong)
        natten.use_autotuner(True, steps_forward=3, warmup_steps_backward=None)
        natten.use_autotuner(False, False, steps_forward="not checked by the release either")
        assert not natten.is_autotuner_enabled()
        torch.use_deterministic_algorithms(True)
        try:
            with pytest.warns(UserWarning, match="autotuner stays off"):
                natten.use_autotuner(True)
        finally:
            torch.use_deterministic_algorithms(False)
        assert not natten.is_autotuner_enabled()
        with pytest.raises(ValueError, match="'none'"):
            natten.set_memory_usage_preference("none")
        natten.set_memory_usage_preference("strict")
        assert natten.is_memory_usage_strict() and not natten.is_memory_usage_default()
        natten.use_deterministic_algorithms(True)
        for forbidden in (natten.use_kv_parallelism_in_fused_na, natten.use_autotuner):
            with pytest.raises(RuntimeError, match="deterministic"):
                forbidden(True)
        natten.use_fused_na(False)
        assert not natten.is_fna_enabled()
    with installed("0.21") as natten:
        assert not natten.are_deterministic_algorithms_enabled()
        assert natten.is_kv_parallelism_in_fused_na_enabled()
        natten.allow_flex_compile(True, backprop=True)
        assert natten.is_flex_compile_backprop_allowed()
        natten.disable_flex_compile_backprop()
        assert natten.is_flex_compile_allowed() and not natten.is_flex_compile_backprop_allowed()
        natten.disable_flex_compile()
        assert not natten.is_flex_compile_allowed()


def test_has_functions_describe_the_gpu() -> None:
    with installed("0.17.4") as natten:
        present = torch.cuda.is_available()
        assert natten.has_cuda() is present
        major, minor = torch.cuda.get_device_capability() if present else (0, 0)
        assert natten.has_half() is (present and major >= 5)
        assert natten.has_gemm() is (present and major >= 7)
        for name in ("has_bfloat", "has_tf32_gemm", "has_fp32_gemm", "has_fp64_gemm"):
            assert getattr(natten, name)(None) is (present and major >= 8)
        assert natten.has_fna() is natten.has_fused_na(0) is True
