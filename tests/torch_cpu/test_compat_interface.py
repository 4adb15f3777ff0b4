"""Names, signatures and defaults of each release of NATTEN, written down as programs see them."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from typing import Any

import pytest
import torch
from support.compat_releases import installed

import natc.compat
from natc.compat.natten.interface import interface
from natc.compat.natten.releases import RELEASES, release
from natc.reference import neighborhood_attention

NA_017 = "query, key, value, kernel_size, dilation=1, is_causal=False, rpb=None, scale=None"
NA_0174 = f"{NA_017}, additional_keys=None, additional_values=None, xformers_kwargs=None"
NA_021 = (
    "query, key, value, kernel_size, stride=1, dilation=1, is_causal=False, scale=None, "
    "additional_keys=None, additional_values=None, attention_kwargs=None, backend=None, "
    "q_tile_shape=None, kv_tile_shape=None, backward_q_tile_shape=None, "
    "backward_kv_tile_shape=None, backward_kv_splits=None, backward_use_pt_reduction=False, "
    "run_persistent_kernel=True, kernel_schedule=None, torch_compile=False"
)
TILES = (
    "backend=None, q_tile_size=None, kv_tile_size=None, backward_q_tile_size=None, "
    "backward_kv_tile_size=None, backward_kv_splits=None, backward_use_pt_reduction=False, "
    "run_persistent_kernel=True, kernel_schedule=None, torch_compile=False, return_lse=False"
)
VARLEN = (
    "seqlens_Q=None, seqlens_KV=None, cumulative_seqlen_Q=None, cumulative_seqlen_KV=None, "
    "max_seqlen_Q=None, max_seqlen_KV=None"
)
WHERE_3D = "kernel_size_d, kernel_size, dilation_d, dilation"
QK_017 = "query, key, kernel_size, dilation=1, additional_keys=None, is_causal=False, rpb=None"
AV_017 = "attn, value, kernel_size, dilation{}, additional_values=None, is_causal=False"
EARLY_MODULE = (
    "self, dim, kernel_size, num_heads, qkv_bias=True, qk_scale=None, attn_drop=0.0, "
    "proj_drop=0.0, dilation=None"
)
MODULE_014 = (
    "self, dim, num_heads, kernel_size, dilation=1, bias=True, qkv_bias=True, qk_scale=None, "
    "attn_drop=0.0, proj_drop=0.0"
)
MODULE_015_3D = (
    "self, dim, num_heads, kernel_size, kernel_size_d=None, dilation=1, dilation_d=None, "
    "bias=True, qkv_bias=True, qk_scale=None, attn_drop=0.0, proj_drop=0.0"
)
MODULE_017 = (
    "self, dim, num_heads, kernel_size, dilation=1, is_causal=False, rel_pos_bias=False, "
    "qkv_bias=True, qk_scale=None, attn_drop=0.0, proj_drop=0.0"
)
MODULE_0174 = f"{MODULE_017}, use_experimental_ops=False"
MODULE_021 = (
    "self, {}, num_heads, kernel_size, stride=1, dilation=1, is_causal=False, qkv_bias=True, "
    "qk_scale=None, proj_drop=0.0"
)

UP_TO_0144 = {
    "natten1dqkrpb": "query, key, rpb, dilation",
    "natten1dav": "attn, value, dilation",
    "natten2dqkrpb": "query, key, rpb, dilation",
    "natten2dav": "attn, value, dilation",
}
OF_0145 = {
    **UP_TO_0144,
    "natten1dqkrpb": "query, key, rpb, kernel_size, dilation",
    "natten2dqkrpb": "query, key, rpb, kernel_size, dilation",
}
OF_0146 = {
    **OF_0145,
    "natten1dqk": "query, key, kernel_size, dilation",
    "natten1dav": "attn, value, kernel_size, dilation",
    "natten2dqk": "query, key, kernel_size, dilation",
    "natten2dav": "attn, value, kernel_size, dilation",
}
OF_015: dict[str, str] = {}
OF_017: dict[str, str] = {}
for _rank, _where in ((1, "kernel_size, dilation"), (2, "kernel_size, dilation"), (3, WHERE_3D)):
    _qk, _av = f"{_where}, additional_keys=None", f"{_where}, additional_values=None"
    OF_015 |= {
        f"na{_rank}d_qk": f"query, key, {_qk}",
        f"na{_rank}d_qk_with_bias": f"query, key, bias, {_qk}",
        f"na{_rank}d_av": f"attn, value, {_av}",
        f"natten{_rank}dqk": f"query, key, {_qk}",
        f"natten{_rank}dav": f"attn, value, {_av}",
        f"natten{_rank}dqkrpb": f"query, key, rpb, {_where}",
    }
    OF_017 |= {
        f"na{_rank}d_qk": QK_017,
        f"na{_rank}d_av": AV_017.format("=1" if _rank < 3 else ""),
        f"natten{_rank}dqk": f"query, key, {_where}",
        f"natten{_rank}dav": f"attn, value, {_where}",
        f"natten{_rank}dqkrpb": f"query, key, rpb, {_where}",
    }
SINCE_0175 = {name: of for name, of in OF_017.items() if not name.startswith("natten")}

FUSED = ("na1d", "na2d", "na3d")
GENERIC = (*FUSED, "neighborhood_attention_generic")
EARLY_020 = {
    "attention": f"query, key, value, scale=None, {TILES}",
    "merge_attentions": "outputs, lse_tensors, torch_compile=True",
}
SINCE_0215 = {
    **dict.fromkeys(GENERIC, f"{NA_021}, return_lse=False"),
    "attention": f"query, key, value, is_causal=False, scale=None, {VARLEN}, {TILES}",
    "merge_attentions": "outputs, lse_tensors, torch_compile=True, use_autograd_fix=True",
}
OF_020 = {**dict.fromkeys(GENERIC, f"{NA_021}, try_fuse_additional_kv=False"), **EARLY_020}
OF_021 = {**dict.fromkeys(GENERIC, NA_021), **EARLY_020}

# Functions of natten.functional, by release.
FUNCTIONS: dict[str, dict[str, str]] = {
    **dict.fromkeys(("0.14.1", "0.14.2", "0.14.4"), UP_TO_0144),
    "0.14.5": OF_0145,
    "0.14.6": OF_0146,
    **dict.fromkeys(("0.15.0", "0.15.1"), OF_015),
    **dict.fromkeys(("0.17.0", "0.17.1", "0.17.3"), OF_017 | dict.fromkeys(FUSED, NA_017)),
    "0.17.4": OF_017 | dict.fromkeys(FUSED, NA_0174),
    "0.17.5": SINCE_0175 | dict.fromkeys(FUSED, NA_0174),
    **dict.fromkeys(("0.20.0", "0.20.1"), OF_020),
    **dict.fromkeys(("0.21.0", "0.21.1"), OF_021),
    **dict.fromkeys(("0.21.5", "0.21.6", "0.21.7"), SINCE_0215),
}

MODULES: dict[str, dict[int, str]] = {
    **dict.fromkeys(("0.14.1", "0.14.2", "0.14.4"), dict.fromkeys((1, 2), EARLY_MODULE)),
    **dict.fromkeys(("0.14.5", "0.14.6"), dict.fromkeys((1, 2), MODULE_014)),
    **dict.fromkeys(("0.15.0", "0.15.1"), {1: MODULE_014, 2: MODULE_014, 3: MODULE_015_3D}),
    **dict.fromkeys(("0.17.0", "0.17.1", "0.17.3"), dict.fromkeys((1, 2, 3), MODULE_017)),
    **dict.fromkeys(("0.17.4", "0.17.5"), dict.fromkeys((1, 2, 3), MODULE_0174)),
    "0.20.0": dict.fromkeys((1, 2, 3), MODULE_021.format("dim")),
    **dict.fromkeys(
        ("0.20.1", "0.21.0", "0.21.1", "0.21.5", "0.21.6", "0.21.7"),
        dict.fromkeys((1, 2, 3), MODULE_021.format("embed_dim")),
    ),
}

MEMORY = [
    "set_memory_usage_preference", "get_memory_usage_preference", "is_memory_usage_default",
    "is_memory_usage_strict", "is_memory_usage_unrestricted", "use_deterministic_algorithms",
    "are_deterministic_algorithms_enabled", "use_kv_parallelism_in_fused_na",
    "is_kv_parallelism_in_fused_na_enabled",
]  # fmt: skip
MODULE_NAMES = [f"NeighborhoodAttention{rank}D" for rank in (1, 2, 3)]
GPU = [
    "has_cuda", "has_half", "has_bfloat", "has_gemm", "has_tf32_gemm", "has_fp32_gemm",
    "has_fp64_gemm",
]  # fmt: skip
SWITCHES = [
    "enable_tf32", "disable_tf32", "enable_gemm_na", "disable_gemm_na", "enable_tiled_na",
    "disable_tiled_na",
]  # fmt: skip
ALL_0174 = {
    *MEMORY, *MODULE_NAMES, *GPU, *SWITCHES, "has_fna", "has_fused_na", "use_fna",
    "is_fna_enabled", "use_fused_na", "is_fused_na_enabled", "use_autotuner",
    "disable_autotuner", "is_autotuner_enabled", "is_autotuner_enabled_for_forward",
    "is_autotuner_enabled_for_backward", "is_autotuner_thorough_for_forward",
    "is_autotuner_thorough_for_backward", "use_tf32_in_gemm_na", "use_tiled_na", "use_gemm_na",
    "is_tf32_in_gemm_na_enabled", "is_tiled_na_enabled", "is_gemm_na_enabled",
}  # fmt: skip
ALL_020 = {
    *MEMORY, *MODULE_NAMES, "__version__", "HAS_LIBNATTEN", "na1d", "na2d", "na3d", "attention",
    "merge_attentions", "is_flex_compile_allowed", "is_flex_compile_backprop_allowed",
    "allow_flex_compile", "allow_flex_compile_backprop", "disable_flex_compile",
    "disable_flex_compile_backprop", "get_configs_for_cutlass_fmha", "get_configs_for_cutlass_fna",
    "get_configs_for_cutlass_hopper_fmha", "get_configs_for_cutlass_hopper_fna",
    "get_configs_for_cutlass_blackwell_fmha", "get_configs_for_cutlass_blackwell_fna",
    "get_configs_for_flex_fmha", "get_configs_for_flex_fna", "get_bwd_configs_for_cutlass_fmha",
    "get_bwd_configs_for_cutlass_fna",
}  # fmt: skip
ALL = {
    "0.15.1": {*MODULE_NAMES, *GPU, *SWITCHES},
    "0.17.4": ALL_0174,
    "0.17.5": {*ALL_0174, "use_flex_attention", "force_flex_attention"},
    "0.20.1": ALL_020,
    "0.21.7": ALL_020
    | {
        f"get_bwd_configs_for_cutlass_{backend}_{kind}"
        for backend in ("hopper", "blackwell")
        for kind in ("fmha", "fna")
    },
}

OPERATORS_014 = {f"NATTEN{rank}D{kind}Function" for rank in (1, 2) for kind in ("QKRPB", "AV")}
OPERATORS_015 = {
    f"NeighborhoodAttention{rank}D{kind}AutogradFunction"
    for rank in (1, 2, 3)
    for kind in ("QK", "AV")
}
OPERATORS_017 = OPERATORS_015 | {f"FusedNeighborhoodAttention{rank}D" for rank in (1, 2, 3)}


def written(function: Any) -> str:
    """Return a signature without annotations."""
    parameters = inspect.signature(function).parameters.values()
    return ", ".join(str(each.replace(annotation=inspect.Parameter.empty)) for each in parameters)


def public(module: Any) -> set[str]:
    return {name for name in vars(module) if not name.startswith("_")}


def test_every_release_is_written_down() -> None:
    assert set(FUNCTIONS) == set(MODULES) == set(RELEASES)


@pytest.mark.parametrize("version", RELEASES)
def test_functions_and_modules_have_the_signatures_of_the_release(version: str) -> None:
    with installed(version) as natten:
        operators = OPERATORS_014 if version < "0.15" else OPERATORS_015
        operators = OPERATORS_017 if "0.17" <= version < "0.20" else operators
        functions = FUNCTIONS[version]
        gpu = {*GPU, *SWITCHES} if version.startswith("0.15") else set()
        own = set(functions) if version >= "0.20" else {*functions, *operators, *gpu}
        assert public(natten.functional) == own
        for name, signature in functions.items():
            function = getattr(natten.functional, name)
            assert written(function) == signature, name
            assert function.__name__ == name or name.startswith("natten")
        for rank, signature in MODULES[version].items():
            module = getattr(natten, f"NeighborhoodAttention{rank}D")
            assert written(module.__init__) == signature
            assert module.__name__ == f"NeighborhoodAttention{rank}D"
        assert hasattr(natten, "NeighborhoodAttention3D") == (version >= "0.15")


@pytest.mark.parametrize("version", ALL)
def test_a_star_import_gives_what_the_release_gave(version: str) -> None:
    with installed(version) as natten:
        assert set(natten.__all__) == ALL[version]
        namespace: dict[str, Any] = {}
        exec("from natten import *", namespace)
        assert ALL[version] <= set(namespace)


@pytest.mark.parametrize("version", RELEASES)
def test_version_sniffing_finds_the_generation(version: str) -> None:
    with installed(version) as natten:
        assert hasattr(natten, "context") == (version >= "0.17")
        assert hasattr(natten, "has_fused_na") == ("0.17" <= version < "0.20")
        assert hasattr(natten, "use_gemm_na") == ("0.17" <= version < "0.20")
        assert hasattr(natten, "has_cuda") == ("0.15" <= version < "0.20")
        assert hasattr(natten, "HAS_LIBNATTEN") == (version >= "0.20")
        assert hasattr(natten, "NeighborhoodAttention") == (version < "0.14.5")
        # A submodule in 0.17, a function since.
        assert inspect.ismodule(getattr(natten, "na2d", None)) == ("0.17" <= version < "0.20")
        assert inspect.isfunction(getattr(natten, "na2d", None)) == (version >= "0.20")


SUBMODULES = {
    "0.14.4": {"functional", "flops", "natten1d", "natten2d"},
    "0.15.1": {"functional", "flops", "natten1d", "natten2d", "natten3d"},
    "0.17.4": {
        "functional", "context", "flops", "experimental", "types", "utils", "utils.checks",
        "utils.log", "utils.misc", "na1d", "na2d", "na3d", "natten1d", "natten2d", "natten3d",
    },
    "0.21.7": {
        "functional", "context", "modules", "types", "utils", "utils.checks", "utils.log",
        "utils.tuples", "utils.device",
    },
}  # fmt: skip


@pytest.mark.parametrize("version", SUBMODULES)
def test_submodules_are_those_of_the_release(version: str) -> None:
    every = set().union(*SUBMODULES.values())
    with installed(version) as natten:
        for name in every:
            if name in SUBMODULES[version]:
                assert importlib.import_module(f"natten.{name}").__name__ == f"natten.{name}"
            else:
                with pytest.raises(ModuleNotFoundError):
                    importlib.import_module(f"natten.{name}")
        rank_2 = importlib.import_module(
            "natten.modules" if version == "0.21.7" else "natten.natten2d"
        )
        assert rank_2.NeighborhoodAttention2D is natten.NeighborhoodAttention2D


FLOPS = {
    "0.14.6": {"qk_rpb_flop", "av_flop", "qk_1d_rpb_flop", "av_1d_flop"},
    "0.15.1": {f"{name}_{rank}d_{end}" for rank in (1, 2, 3)
               for name, end in (("qk", "rpb_flop"), ("av", "flop"))},
    "0.17.4": {"fna_flop_count", "na_qk_flop_count", "na_av_flop_count"},
}  # fmt: skip
FLOPS["0.17.3"] = FLOPS["0.15.1"] | {"fna_generic_flops"}


@pytest.mark.parametrize("version", FLOPS)
def test_counters_have_the_names_of_the_release(version: str) -> None:
    with installed(version):
        flops = importlib.import_module("natten.flops")
        assert public(flops) == FLOPS[version] | {"add_natten_handle", "get_flops"}
        assert written(flops.get_flops) == "model, input, disable_warnings=False"


def contents(version: str | None) -> dict[str, dict[str, Any]]:
    """Return the public names of every module of a release; None: of the default."""
    return {
        module: {name: value for name, value in names.items() if not name.startswith("_")}
        for module, names in interface(release(version)).items()
    }


@pytest.mark.parametrize("version", RELEASES)
def test_the_default_has_the_names_of_every_release(version: str) -> None:
    union = contents(None)
    for module, names in contents(version).items():
        # An alias of NeighborhoodAttention2D with the padding of its release.
        assert set(names) - {"NeighborhoodAttention"} <= set(union[module]), module
    with installed() as natten:
        submodules = {"functional", "context", "modules", "types", "utils"}
        assert set(natten.__all__) == public(natten) - submodules


def test_the_default_keeps_signatures_that_did_not_change() -> None:
    with installed() as natten:
        functional = natten.functional
        for name, signature in FUNCTIONS["0.17.4"].items():
            if name not in FUSED:
                assert written(getattr(functional, name)) == signature
        for name in ("na1d_qk_with_bias", "na2d_qk_with_bias", "na3d_qk_with_bias"):
            assert written(getattr(functional, name)) == OF_015[name]
        for name in ("neighborhood_attention_generic", "attention", "merge_attentions"):
            assert written(getattr(functional, name)) == SINCE_0215[name]


def parameters(signature: str) -> set[str]:
    return {each.partition("=")[0] for each in signature.split(", ")}


def test_the_default_has_the_arguments_of_both_generations() -> None:
    with installed() as natten:
        both = parameters(NA_0174) | parameters(SINCE_0215["na2d"]) | {"*where"}
        for name in FUSED:
            assert parameters(written(getattr(natten.functional, name))) == both
        both = parameters(MODULE_0174) | {"stride", "*where"}
        assert parameters(written(natten.NeighborhoodAttention2D.__init__)) == both


@pytest.mark.parametrize("version", ["0.17.4", "0.20.1", "0.21.7"])
def test_types_and_checks_that_programs_import(version: str) -> None:
    late = version >= "0.20"
    with installed(version):
        types = importlib.import_module("natten.types")
        checks = importlib.import_module("natten.utils.checks")
        assert hasattr(types, "DimensionTypeOrDed") is hasattr(types, "CausalArgTypeOrDed") is late
        assert types.Dimension2DTypeOrDed == int | tuple[int, int]
        if late:
            assert types.CausalArgTypeOrDed == bool | types.CausalArgType
            assert checks.check_all_args(2, 3, None, (1, 2), True) == (
                (3, 3), (1, 1), (1, 2), (True, True),
            )  # fmt: skip
            query = torch.zeros(1, 6, 5, 2, 4)
            checks.check_args_against_input(query, (3, 3), (3, 1), (2, 1), (False, False))
            with pytest.raises(ValueError, match="stride"):
                checks.check_args_against_input(query, (3, 3), (4, 1), (1, 1), (False, False))
            with pytest.raises(ValueError, match="kernel_size"):
                checks.check_kernel_size_arg(2, 1)
        else:
            assert checks.check_all_args(2, 3, None, True) == ((3, 3), (1, 1), (True, True))
        for wrong in (None, 3.0, (3,)):
            with pytest.raises(ValueError, match="kernel_size"):
                checks.check_kernel_size_arg(2, wrong)


def test_the_default_checks_options_of_both_generations() -> None:
    with installed():
        from natten.types import CausalArgTypeOrDed, DimensionTypeOrDed  # noqa: F401
        from natten.utils import check_all_args, log
        from natten.utils.checks import check_all_args as checked_020

        assert check_all_args(1, 3, 2, False) == ((3,), (2,), (False,))
        assert checked_020(1, 3, 2, dilation=1, is_causal=None) == ((3,), (2,), (1,), (False,))
        assert log.get_logger("a").name == "a"


@pytest.mark.filterwarnings("ignore::natc.ops.NatcFallbackWarning")
def test_the_hub_module_is_the_newest_release() -> None:
    natten = natc.compat.get_kernel("shi-labs/natten", version=1)
    assert natten.__version__ == RELEASES[-1]
    assert ALL["0.21.7"] <= set(vars(natten))
    assert written(natten.na3d) == SINCE_0215["na3d"]
    assert natten.functional.na3d is natten.na3d
    query = torch.randn(1, 3, 7, 8, 2, 8, dtype=torch.float64)
    # The call of diffusers' LTX-2 decoder.
    output = natten.na3d(query, query, query, kernel_size=(3, 7, 7), scale=1.0, backend=None)
    expected = neighborhood_attention(query, query, query, (3, 7, 7), scale=1.0)
    torch.testing.assert_close(output, expected)
    assert importlib.util.find_spec("natten") is None
    with pytest.raises(ValueError, match="'shi-labs/other'"):
        natc.compat.get_kernel("shi-labs/other")
