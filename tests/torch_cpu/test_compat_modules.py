"""Modules of each release of NATTEN: numbers of that release, state dicts, padding, dropout."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from support.compat_releases import draw, installed, unfused_av, unfused_qk
from support.golden import GoldenCase, module_cases
from torch import Tensor

from natc.checks.tolerance import check_close
from natc.compat.natten.releases import RELEASES
from natc.reference import neighborhood_attention

pytestmark = pytest.mark.filterwarnings("ignore::natc.ops.NatcFallbackWarning")

# Every case: tests/torch_cpu/test_nn_golden.py counts them.
CASES = module_cases(Path(__file__).parents[2])

# Releases with the module of a case, and how they are told that there is a bias.
SAME_AS = {
    "0.14.6": ["0.14.4", "0.14.5", "0.14.6", "0.15.1"],
    "0.17.4": ["0.17.0", "0.17.4", "0.17.5", None],
    "0.21.7": ["0.20.0", "0.20.1", "0.21.0", "0.21.7", None],
}
BY_RELEASE = [
    pytest.param(version, case, id=f"{version}-{case.name}")
    for case in CASES
    for version in SAME_AS[case.params["natten_version"]]
]


def build(natten: Any, case: GoldenCase) -> torch.nn.Module:
    params, options = case.params, case.options
    module = getattr(natten, f"NeighborhoodAttention{params['ndim']}D")
    shape = params["dim"], params["heads"]
    number = natten.__version__
    qkv_bias = params["qkv_bias"]
    if number < "0.17":
        (size, *_), (step, *_) = options["kernel_size"], options["dilation"]
        if number <= "0.14.4":
            return module(shape[0], size, shape[1], qkv_bias, dilation=step)
        return module(*shape, size, step, params["has_rpb"], qkv_bias)
    where = options["kernel_size"], options["dilation"], options["is_causal"]
    if number < "0.20" and set(options["stride"]) == {1}:
        return module(*shape, *where, params["has_rpb"], qkv_bias)
    return module(*shape, where[0], options["stride"], *where[1:], qkv_bias)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("version", "case"), BY_RELEASE)
def test_modules_match_the_vectors(version: str | None, case: GoldenCase, training: bool) -> None:
    stored = case.arrays(torch.float64)
    with installed(version) as natten:
        module = build(natten, case).double().train(training)
    state = {n.removeprefix("param."): t for n, t in stored.items() if n.startswith("param.")}
    assert list(module.state_dict()) == [n for n in module.state_dict() if n in state]
    module.load_state_dict(state)
    x = stored["x"].requires_grad_()
    results = {"out": module(x)}
    if "d_out" in stored:
        results["out"].backward(stored["d_out"])
        assert x.grad is not None
        results["d_x"] = x.grad
        results |= {f"d_param.{n}": p.grad for n, p in module.named_parameters()}  # type: ignore
    assert set(results) == {n for n in stored if n not in ("x", "d_out") and n[:6] != "param."}
    for name, values in results.items():
        check_close(values, stored[name], torch.float32, name)


def make(natten: Any, rank: int = 2, **arguments: Any) -> torch.nn.Module:
    """Build a module of 12 channels in 3 heads with kernel_size 3, which every release has."""
    first = "embed_dim" if natten.__version__ >= "0.20.1" else "dim"
    module = getattr(natten, f"NeighborhoodAttention{rank}D")
    return module(**{first: 12}, num_heads=3, **{"kernel_size": 3} | arguments).double()


def expected(module: torch.nn.Module, x: Tensor, kernel_size: Any, **options: Any) -> Tensor:
    """Return the output of a module without dropout, computed by the reference."""
    state = module.state_dict()
    qkv = torch.nn.functional.linear(x, state["qkv.weight"], state.get("qkv.bias"))
    query, key, value = qkv.unflatten(-1, (3, 3, 4)).unbind(-3)
    out = neighborhood_attention(query, key, value, kernel_size, rpb=state.get("rpb"), **options)
    return torch.nn.functional.linear(out.flatten(-2), state["proj.weight"], state["proj.bias"])


@pytest.mark.parametrize("version", RELEASES)
def test_state_dicts_have_the_keys_and_shapes_of_the_release(version: str) -> None:
    with installed(version) as natten:
        biased = version < "0.17"
        for rank in (1, 2, 3) if version >= "0.15" else (1, 2):
            shapes = {name: tuple(t.shape) for name, t in make(natten, rank).state_dict().items()}
            assert shapes == {
                **({"rpb": (3, *(5,) * rank)} if biased else {}),
                "qkv.weight": (36, 12),
                "qkv.bias": (36,),
                "proj.weight": (12, 12),
                "proj.bias": (12,),
            }
        assert "qkv.bias" not in make(natten, qkv_bias=False).state_dict()


@pytest.mark.parametrize("version", ["0.14.4", "0.14.6", "0.17.4", "0.21.7"])
def test_a_seed_gives_the_weights_it_gave(version: str) -> None:
    # The order in which the releases drew them.
    torch.manual_seed(5)
    qkv = torch.nn.Linear(12, 36)
    rpb = torch.nn.init.trunc_normal_(torch.zeros(3, 5, 5), std=0.02, mean=0.0, a=-2.0, b=2.0)
    proj = torch.nn.Linear(12, 12)
    torch.manual_seed(5)
    with installed(version) as natten:
        if version < "0.20":
            more = {"rel_pos_bias": True} if version == "0.17.4" else {}
            state = make(natten, **more).float().state_dict()
            torch.testing.assert_close(state["rpb"], rpb)
            torch.testing.assert_close(state["proj.weight"], proj.weight)
        else:
            state = make(natten).float().state_dict()
    torch.testing.assert_close(state["qkv.weight"], qkv.weight)


@pytest.mark.parametrize(
    ("version", "attributes"),
    [
        ("0.14.4", {"kernel_size": 3, "dilation": 1, "window_size": 3}),
        ("0.14.6", {"kernel_size": 3, "dilation": 1, "window_size": 3}),
        ("0.15.1", {"kernel_size": 3, "dilation": 1, "window_size": 3}),
        ("0.17.5", {"kernel_size": (3, 3), "dilation": (1, 1), "is_causal": (False, False),
                    "attn_drop_rate": 0.0, "use_experimental_ops": False, "rpb": None}),
        ("0.21.7", {"kernel_size": (3, 3), "dilation": (1, 1), "is_causal": (False, False),
                    "stride": (1, 1), "na_dim": 2, "embed_dim": 12}),
    ],
)  # fmt: skip
def test_attributes_are_those_of_the_release(version: str, attributes: dict[str, Any]) -> None:
    with installed(version) as natten:
        module = make(natten)
    shared = {"num_heads": 3, "head_dim": 4, "scale": 0.5}
    assert {name: getattr(module, name) for name in attributes | shared} == attributes | shared
    assert isinstance(module.proj_drop, torch.nn.Dropout)
    assert hasattr(module, "attn_drop") == (version < "0.20")
    assert "head_dim=4" in repr(module)


@pytest.mark.parametrize("version", ["0.14.6", "0.17.4", "0.21"])
def test_a_scale_of_zero_is_the_default(version: str) -> None:
    with installed(version) as natten:
        assert make(natten, qk_scale=0.0).scale == 0.5
        assert make(natten, qk_scale=0.25).scale == 0.25


@pytest.mark.parametrize("dilation", ["auto", "anything"])
def test_a_string_is_the_largest_dilation_up_to_0144(dilation: str) -> None:
    with installed("0.14.4") as natten:
        module = make(natten, dilation=dilation)
        assert module.dilation is None
        x = draw(1, 11, 16, 12)
        torch.testing.assert_close(module(x), expected(module, x, 3, dilation=3))
        # Too small for any: padded for a dilation of 1.
        small = draw(1, 2, 16, 12)
        padded = torch.nn.functional.pad(small, (0, 0, 0, 0, 0, 1))
        torch.testing.assert_close(module(small), expected(module, padded, 3)[:, :2])
        with pytest.raises(TypeError):
            make(natten, 1, dilation=dilation)
    with installed("0.14.6") as natten, pytest.raises(TypeError):
        make(natten, dilation=dilation)


def test_volumes_of_015_have_a_depth_of_their_own() -> None:
    with installed("0.15.1") as natten:
        module = make(natten, 3, kernel_size_d=5, dilation=2)
        assert (module.kernel_size_d, module.dilation_d) == (5, 2)
        assert (module.window_size_d, module.window_size) == (10, 6)
        x = draw(1, 10, 5, 6, 12)
        padded = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, 1))
        wanted = expected(module, padded, (5, 3, 3), dilation=2)[:, :, :5]
        torch.testing.assert_close(module(x), wanted)
        # The depth was not padded.
        with pytest.raises(RuntimeError, match=r"kernel_size \* dilation"):
            module(x[:, :9])
        module = make(natten, 3, dilation_d=2, bias=False)
        x = draw(1, 6, 3, 4, 12)
        torch.testing.assert_close(module(x), expected(module, x, 3, dilation=(2, 1, 1)))


@pytest.mark.parametrize(("version", "error"), [("0.17.5", RuntimeError), ("0.21", ValueError)])
def test_small_maps_are_refused_since_017(version: str, error: type[Exception]) -> None:
    with installed(version) as natten, pytest.raises(error, match=r"kernel_size \* dilation"):
        make(natten, dilation=2)(draw(1, 6, 5, 12))


@pytest.mark.parametrize(
    ("version", "arguments", "error"),
    [
        ("0.14.4", {"bias": True}, TypeError),
        ("0.14.6", {"rel_pos_bias": True}, TypeError),
        ("0.17.4", {"bias": True}, TypeError),
        ("0.17.1", {"use_experimental_ops": True}, TypeError),
        ("0.21", {"dim": 12}, TypeError),
        ("0.21", {"attn_drop": 0.0}, TypeError),
        ("0.21", {"rel_pos_bias": False}, TypeError),
        ("0.21", {"bias": False}, TypeError),
        ("0.14.6", {"kernel_size": 4}, AssertionError),
        ("0.15.1", {"kernel_size": 1}, AssertionError),
        ("0.14.6", {"dilation": 0}, AssertionError),
        ("0.17.4", {"kernel_size": (3, 3, 3)}, ValueError),
        ("0.21", {"kernel_size": 1}, ValueError),
        ("0.21", {"num_heads": 5}, ValueError),
    ],
)
def test_arguments_that_a_release_refuses(
    version: str, arguments: dict[str, Any], error: type[Exception]
) -> None:
    with installed(version) as natten, pytest.raises(error):
        first = "embed_dim" if version == "0.21" else "dim"
        natten.NeighborhoodAttention2D(**{first: 12, "num_heads": 3, "kernel_size": 3} | arguments)


@pytest.mark.parametrize("version", ["0.14.6", "0.17.4", "0.21"])
def test_an_input_of_another_rank_is_refused(version: str) -> None:
    with installed(version) as natten:
        module = make(natten)
    for x in (draw(8, 8, 12), draw(1, 8, 8, 8, 12)):
        with pytest.raises(ValueError, match="shape"):
            module(x)


@pytest.mark.parametrize("version", ["0.14.4", "0.14.6", "0.15.1", "0.17.1", "0.17.5", None])
def test_weights_are_dropped_out_in_training(version: str | None) -> None:
    with installed(version) as natten:
        module = make(natten, attn_drop=0.5)
        x = draw(2, 7, 6, 12)
        torch.testing.assert_close(module.eval()(x), expected(module, x, 3))
        torch.manual_seed(3)
        output = module.train()(x)
        torch.manual_seed(3)
        state = module.state_dict()
        query, key, value = module.qkv(x).unflatten(-1, (3, 3, 4)).permute(3, 0, 4, 1, 2, 5)
        # The steps of the release, by its functions.
        options = {"kernel_size": (3, 3), "dilation": (1, 1), "is_causal": (False, False)}
        attn = unfused_qk(natten, query * 0.5, key, options, state.get("rpb")).softmax(-1)
        attn = torch.nn.functional.dropout(attn, 0.5)
        out = unfused_av(natten, attn, value, options).permute(0, 2, 3, 1, 4).flatten(-2)
        torch.testing.assert_close(output, module.proj(out))
        assert (output - module.eval()(x)).abs().max() > 1e-3


def test_fused_attention_of_017_leaves_dropout_of_weights_out() -> None:
    with installed("0.17.4") as natten:
        module = make(natten, attn_drop=0.5, use_experimental_ops=True)
        x = draw(2, 7, 6, 12)
        with pytest.raises(NotImplementedError, match="use_fused_na"):
            module(x)
        natten.use_fused_na(True)
        assert natten.is_fna_enabled()
        torch.testing.assert_close(module(x), expected(module, x, 3))
        natten.use_fna(False)
        module.use_experimental_ops = False
        assert (module(x) - expected(module, x, 3)).abs().max() > 1e-3


@pytest.mark.parametrize("version", ["0.14.6", "0.17.4", "0.21"])
def test_outputs_are_dropped_out_in_training(version: str) -> None:
    with installed(version) as natten:
        module = make(natten, proj_drop=0.25)
    x = draw(2, 7, 6, 12)
    torch.manual_seed(3)
    output = module(x)
    torch.manual_seed(3)
    wanted = torch.nn.functional.dropout(expected(module, x, 3), 0.25)
    torch.testing.assert_close(output, wanted)
    torch.testing.assert_close(module.eval()(x), expected(module, x, 3))


@pytest.mark.parametrize("is_causal", [True, (False, True)])
@pytest.mark.parametrize("version", ["0.17.1", "0.21"])
def test_causal_modules(version: str, is_causal: Any) -> None:
    with installed(version) as natten:
        module = make(natten, is_causal=is_causal, dilation=(1, 2))
    x = draw(1, 7, 8, 12)
    wanted = expected(module, x, 3, dilation=(1, 2), is_causal=is_causal)
    torch.testing.assert_close(module(x), wanted)


@pytest.mark.parametrize("version", ["0.17.4", "0.17.5", None])
def test_modules_take_even_windows_where_attention_is_fused(version: str | None) -> None:
    x = draw(1, 7, 8, 12)
    with installed(version) as natten:
        module = make(natten, kernel_size=(4, 2))
        wanted = expected(module, x, (4, 2))
        if version is not None:
            with pytest.raises(RuntimeError, match=r"kernel_size is \[4, 2\]"):
                module(x)
            natten.use_fused_na(True)
        if version == "0.17.4":
            with pytest.raises(RuntimeError, match=r"kernel_size is \[4, 2\]"):
                module(x)
        else:
            torch.testing.assert_close(module(x), wanted)
        biased = make(natten, kernel_size=(4, 2), rel_pos_bias=True)
        with pytest.raises(RuntimeError, match=r"kernel_size is \[4, 2\]"):
            biased(x)


def test_the_default_builds_modules_of_both_generations() -> None:
    x = draw(1, 7, 8, 12)
    with installed() as natten:
        build = natten.NeighborhoodAttention2D
        for module in (
            build(embed_dim=12, num_heads=3, kernel_size=4, stride=2),
            build(12, 3, 4, 2, 1, False, True, None, 0.0),
        ):
            assert (module.stride, module.embed_dim, module.na_dim) == ((2, 2), 12, 2)
            wanted = expected(module.double(), x, 4, stride=2)
            torch.testing.assert_close(module(x), wanted)
        module = build(12, 3, 3, 2, True, False, True, None, 0.5)
        assert (module.dilation, module.is_causal, module.attn_drop.p) == (
            (2, 2),
            (True, True),
            0.5,
        )
        with pytest.raises(TypeError, match=r"install\('0.17'\)"):
            build(12, 3, 3, 2)
        with pytest.raises(ValueError, match=r"stride is \(2, 2\)"):
            build(12, 3, 4, stride=2, attn_drop=0.5)(x.float())


def test_bias_has_two_names_by_default() -> None:
    with installed() as natten:
        for name in ("bias", "rel_pos_bias"):
            assert make(natten, **{name: True}).rpb is not None
            assert make(natten, **{name: False}).rpb is None
        assert make(natten).rpb is None


def test_the_older_name_warns() -> None:
    with installed("0.14.2") as natten:
        with pytest.warns(DeprecationWarning, match="NeighborhoodAttention2D"):
            module = natten.NeighborhoodAttention(12, 3, 3)
        assert isinstance(module, natten.NeighborhoodAttention2D)


@pytest.mark.parametrize("version", RELEASES)
def test_modules_can_be_pickled_and_copied(version: str) -> None:
    with installed(version) as natten:
        module = make(natten)
    x = draw(1, 5, 6, 12)
    # Also where no stand-in is installed.
    for twin in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
        torch.testing.assert_close(twin(x), module(x), rtol=0, atol=0)


@pytest.mark.parametrize("version", ["0.14.6", "0.17.4", "0.21"])
def test_modules_compile_whole(version: str) -> None:
    with installed(version) as natten:
        module = make(natten, dilation=2).float()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for shape in ((2, 9, 8), (3, 9, 8)):
        x = draw(*shape, 12).float()
        torch.testing.assert_close(compiled(x), module(x))
