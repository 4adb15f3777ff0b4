"""Import lines and calls of published projects: each works, and computes the right numbers.

The snippets make the same imports, version checks and calls as the projects, in our own code.
Tests without a release use the default, the union of all releases.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.compat_releases import installed
from torch import Tensor, nn

from natc.reference import neighborhood_attention

pytestmark = pytest.mark.filterwarnings("ignore::natc.ops.NatcFallbackWarning")


@pytest.fixture
def natten() -> Iterator[Any]:
    with installed() as module:
        yield module


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def heads_last(*tensors: Tensor) -> list[Tensor]:
    return [tensor.movedim(1, -2) for tensor in tensors]


def attend(query: Tensor, key: Tensor, value: Tensor, *where: Any, **options: Any) -> Tensor:
    """Return the attention of heads-first tensors by the reference, heads-first."""
    return neighborhood_attention(*heads_last(query, key, value), *where, **options).movedim(-2, 1)


def test_transformers_dinat(natten: Any) -> None:
    """DiNAT, and OneFormer with it: availability by metadata, unfused operators, own padding."""
    import importlib.metadata
    import importlib.util

    assert importlib.util.find_spec("natten") is not None
    assert importlib.metadata.version("natten") == "0.17.4"
    from natten.functional import natten2dav, natten2dqkrpb

    hidden, dilation, kernel_size = draw(2, 10, 13, 24), 4, 3
    missing = kernel_size * dilation - hidden.shape[1]
    padded = nn.functional.pad(hidden, (0, 0, 0, 0, 0, missing))
    query, key, value = (
        nn.functional.linear(padded, draw(24, 24, seed=s) / 5)
        .unflatten(-1, (3, 8))
        .permute(0, 3, 1, 2, 4)
        for s in (1, 2, 3)
    )
    rpb = draw(3, 5, 5)
    scores = natten2dqkrpb(query / 8**0.5, key, rpb, kernel_size, dilation)
    context = natten2dav(nn.functional.softmax(scores, dim=-1), value, kernel_size, dilation)
    expected = attend(query, key, value, 3, dilation=4, rpb=rpb)
    torch.testing.assert_close(context, expected)


@pytest.mark.parametrize("version", ["0.14.6", "0.15.1", "0.17.1", None])
def test_the_official_models_and_medvit(version: str | None) -> None:
    """NAT's repository and MedViTV2: `context` decides how the bias is called."""
    with installed(version) as natten:
        from natten import NeighborhoodAttention2D as NeighborhoodAttention
        from natten.flops import add_natten_handle

        is_natten_post_017 = hasattr(natten, "context")
        assert is_natten_post_017 == (version in ("0.17.1", None))
        extra = {"rel_pos_bias": True} if is_natten_post_017 else {"bias": True}
        attn = NeighborhoodAttention(
            24,
            kernel_size=3,
            dilation=2,
            num_heads=3,
            qkv_bias=True,
            qk_scale=None,
            attn_drop=0.0,
            proj_drop=0.0,
            **extra,
        ).double()
        assert callable(add_natten_handle)
    x = draw(2, 9, 7, 24)
    query, key, value = attn.qkv(x).unflatten(-1, (3, 3, 8)).unbind(-3)
    expected = neighborhood_attention(query, key, value, 3, dilation=2, rpb=attn.rpb)
    torch.testing.assert_close(attn(x), attn.proj(expected.flatten(-2)))


def test_oneformer_has_a_bias_that_it_does_not_ask_for() -> None:
    """Its pinned release; on 0.17 the weights of the bias would find no place."""
    arguments = {"kernel_size": 3, "dilation": 2, "num_heads": 3, "qkv_bias": True,
                 "qk_scale": None, "attn_drop": 0.0, "proj_drop": 0.0}  # fmt: skip
    with installed("0.14.4"):
        from natten import NeighborhoodAttention2D

        attn = NeighborhoodAttention2D(24, **arguments)
    assert attn.rpb.shape == (3, 5, 5)
    with installed():
        from natten import NeighborhoodAttention2D

        with pytest.raises(RuntimeError, match="rpb"):
            NeighborhoodAttention2D(24, **arguments).load_state_dict(attn.state_dict())


def test_stylenat(natten: Any) -> None:
    """Switches at import, and heads split over windows of different dilation."""
    from natten import use_autotuner, use_fused_na
    from natten.functional import na2d_av, na2d_qk

    use_fused_na(True)
    use_autotuner(True)
    assert natten.is_fused_na_enabled() and natten.is_autotuner_enabled()
    query, key, value = (draw(2, 4, 9, 8, 8, seed=s) for s in (1, 2, 3))
    rpbs = [draw(2, 5, 5, seed=s) for s in (4, 5)]
    parts = []
    for dilation, rpb, q, k, v in zip(
        (1, 2), rpbs, *(each.chunk(2, dim=1) for each in (query, key, value)), strict=True
    ):
        attn = na2d_qk(q * 8**-0.5, k, kernel_size=3, dilation=dilation, rpb=rpb)
        parts.append(na2d_av(attn.softmax(dim=-1), v, kernel_size=3, dilation=dilation))
    expected = [
        attend(query[:, :2], key[:, :2], value[:, :2], 3, rpb=rpbs[0]),
        attend(query[:, 2:], key[:, 2:], value[:, 2:], 3, dilation=2, rpb=rpbs[1]),
    ]
    torch.testing.assert_close(torch.cat(parts, dim=1), torch.cat(expected, dim=1))


def test_k_diffusion_and_pmrf(natten: Any) -> None:
    """HDiT asks for fused attention, with a scale of its own; both of its ways agree."""
    query, key, value = (draw(2, 9, 8, 4, 8, seed=s) for s in (1, 2, 3))
    query, key = (nn.functional.normalize(each, dim=-1) * 10**0.5 for each in (query, key))
    assert natten.has_fused_na() is True
    fused = natten.functional.na2d(query, key, value, 7, scale=1.0)
    first = [each.movedim(-2, 1) for each in (query, key, value)]
    qk = natten.functional.na2d_qk(*first[:2], 7)
    a = torch.softmax(qk, dim=-1).to(value.dtype)
    unfused = natten.functional.na2d_av(a, first[2], 7).movedim(1, -2)
    expected = neighborhood_attention(query, key, value, 7, scale=1.0)
    torch.testing.assert_close(fused, expected)
    torch.testing.assert_close(unfused, expected)


def test_all_in_one(natten: Any) -> None:
    """Beats of songs: rank 1 over time and rank 2 over instruments, with heads of 12 channels."""
    from natten.functional import natten1dav, natten1dqkrpb, natten2dav, natten2dqkrpb

    query, key, value = (draw(2, 2, 38, 12, seed=s) for s in (1, 2, 3))
    rpb = draw(2, 9)
    scores = natten1dqkrpb(query / 12**0.5, key, rpb, 5, 4)
    context = natten1dav(scores.softmax(dim=-1), value, 5, 4)
    torch.testing.assert_close(context, attend(query, key, value, 5, dilation=4, rpb=rpb))

    query, key, value = (draw(1, 2, 5, 20, 12, seed=s) for s in (1, 2, 3))
    rpb = draw(2, 9, 9)
    scores = natten2dqkrpb(query / 12**0.5, key, rpb, 5, 1)
    context = natten2dav(scores.softmax(dim=-1), value, 5, 1)
    torch.testing.assert_close(context, attend(query, key, value, 5, rpb=rpb))


@pytest.mark.parametrize("version", ["0.14.6", None])
def test_dat(version: str | None) -> None:
    """DAT, and those who followed it, call the autograd functions."""
    with installed(version):
        from natten.functional import NATTEN2DAVFunction, NATTEN2DQKRPBFunction

        query, key, value = (draw(2, 3, 9, 8, 8, seed=s).requires_grad_() for s in (1, 2, 3))
        rpb = nn.Parameter(draw(3, 13, 13))
        attn = NATTEN2DQKRPBFunction.apply(query * 8**-0.5, key, rpb, 7, 1)
        out = NATTEN2DAVFunction.apply(attn.softmax(dim=-1), value, 7, 1)
    expected = attend(query, key, value, 7, rpb=rpb)
    torch.testing.assert_close(out, expected)
    inputs, d_out = (query, key, value, rpb), draw(2, 3, 9, 8, 8, seed=4)
    torch.testing.assert_close(
        torch.autograd.grad(out, inputs, d_out), torch.autograd.grad(expected, inputs, d_out)
    )


@pytest.mark.parametrize("version", ["0.15.1", None])
def test_agileformer(version: str | None) -> None:
    """Cross attention with the functions of 0.15; others give it additional tokens."""
    with installed(version):
        from natten.functional import na2d_av, na2d_qk_with_bias

        query, key, value = (draw(2, 3, 9, 8, 8, seed=s) for s in (1, 2, 3))
        rpb = draw(3, 5, 5)
        attn = na2d_qk_with_bias(query * 8**-0.5, key, rpb, 3, 2)
        out = na2d_av(attn.softmax(dim=-1), value, 3, 2)
        torch.testing.assert_close(out, attend(query, key, value, 3, dilation=2, rpb=rpb))

        keys, values = draw(2, 3, 4, 8, seed=5), draw(2, 3, 4, 8, seed=6)
        attn = na2d_qk_with_bias(query * 8**-0.5, key, rpb, 3, 2, additional_keys=keys)
        out = na2d_av(attn.softmax(dim=-1), value, 3, 2, additional_values=values)
    tokens = {"additional_keys": keys.transpose(1, 2), "additional_values": values.transpose(1, 2)}
    expected = attend(query, key, value, 3, dilation=2, rpb=rpb, **tokens)
    torch.testing.assert_close(out, expected)


def test_overlock(natten: Any) -> None:
    """Weights of its own making, applied by the second half of attention."""
    from natten.functional import na2d_av

    value = draw(2, 4, 9, 8, 8)
    attn = draw(2, 4, 9, 8, 25, seed=1).softmax(dim=-1)
    out = na2d_av(attn, value, kernel_size=5)
    # At the centre, the window is the 5x5 around.
    row, column = 4, 4
    window = value[:, :, row - 2 : row + 3, column - 2 : column + 3].flatten(2, 3)
    expected = torch.einsum("bht,bhtc->bhc", attn[:, :, row, column], window)
    torch.testing.assert_close(out[:, :, row, column], expected)
    # At the corner it has shifted inwards.
    corner = value[:, :, :5, :5].flatten(2, 3)
    expected = torch.einsum("bht,bhtc->bhc", attn[:, :, 0, 0], corner)
    torch.testing.assert_close(out[:, :, 0, 0], expected)


def test_segman(natten: Any) -> None:
    """Every import line of it at once, and the counter it registers."""
    from natten import NeighborhoodAttention2D, use_fused_na, use_gemm_na
    from natten.flops import add_natten_handle, av_2d_flop, qk_2d_rpb_flop
    from natten.functional import na2d, na2d_av, na2d_qk, natten2dav, natten2dqkrpb

    use_gemm_na(True)
    use_fused_na(True)
    assert natten.is_gemm_na_enabled()
    query, key, value = (draw(2, 3, 9, 8, 8, seed=s) for s in (1, 2, 3))
    rpb = draw(3, 5, 5)
    attn = na2d_qk(query * 8**-0.5, key, kernel_size=3, dilation=1, rpb=rpb)
    torch.testing.assert_close(attn, natten2dqkrpb(query * 8**-0.5, key, rpb, 3, 1))
    weights = attn.softmax(dim=-1)
    out = na2d_av(weights, value, kernel_size=3, dilation=1)
    torch.testing.assert_close(out, natten2dav(weights, value, 3, 1))
    expected = attend(query, key, value, 3, rpb=rpb)
    torch.testing.assert_close(out, expected)
    fused = na2d(*heads_last(query, key, value), kernel_size=3, rpb=rpb)
    torch.testing.assert_close(fused.movedim(-2, 1), expected)
    products = 2 * 3 * 72 * 9 * 8
    assert qk_2d_rpb_flop([query, key], [attn]) == av_2d_flop([attn, value], [out]) == products
    assert callable(add_natten_handle) and NeighborhoodAttention2D.rank == 2


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
