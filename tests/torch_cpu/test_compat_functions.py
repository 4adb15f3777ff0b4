"""Functions of each release of NATTEN: its numbers, and its refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.compat_releases import draw, installed, unfused_av, unfused_qk
from support.golden import GoldenCase, golden_cases
from torch import Tensor

from natc.checks.tolerance import check_close
from natc.reference import neighborhood_attention

pytestmark = [
    pytest.mark.quick,
    pytest.mark.filterwarnings("ignore::natc.ops.NatcFallbackWarning"),
]

Tensors = dict[str, Tensor]

CASES = golden_cases(Path(__file__).parents[1] / "data" / "golden")
UNFUSED = [case for case in CASES if case.kind != "fused"]
FUSED = [case for case in CASES if case.kind == "fused"]
FUSED_RESULTS = ("out", "logsumexp")


def fits(case: GoldenCase, version: str) -> bool:
    """Return whether a release has the options that a case of the unfused operators needs."""
    options = case.options
    if version >= "0.17":
        return True
    plain = not case.params["num_additional"] and not any(options["is_causal"])
    one_size = len(set(options["kernel_size"])) == len(set(options["dilation"])) == 1
    if version == "0.15.1":
        # Rank 3 has a depth of its own.
        square = all(len(set(options[name][-2:])) == 1 for name in ("kernel_size", "dilation"))
        return not any(options["is_causal"]) and (
            square if len(options["dilation"]) == 3 else one_size
        )
    has_bias = case.params["has_rpb"] or case.kind == "unfused_av"
    return plain and one_size and case.params["ndim"] < 3 and (version > "0.14.5" or has_bias)


UNFUSED_BY_RELEASE = [
    pytest.param(version, case, id=f"{version}-{case.name}")
    for version in ("0.14.4", "0.14.5", "0.14.6", "0.15.1", "0.17.1", "0.17.5", None)
    for case in UNFUSED
    if fits(case, version or "0.17.4")
]


def check_case(case: GoldenCase, compute: Callable[[Tensors], Tensors]) -> None:
    """Compare results by their names in the file, and gradients of all inputs, with the file's."""
    stored = case.arrays(torch.float64)
    names = ("q", "k", "v", "rpb", "additional_k", "additional_v", "attn")
    inputs = {name: stored.pop(name).requires_grad_() for name in names if name in stored}
    results = compute(inputs)
    upstream = "logits" if case.kind == "unfused_qk" else "out"
    grads = torch.autograd.grad(
        results[upstream], list(inputs.values()), stored.pop(f"d_{upstream}")
    )
    results |= {f"d_{name}": grad for name, grad in zip(inputs, grads, strict=True)}
    # Not every function returns the logsumexp.
    assert set(stored) - {"logsumexp"} <= set(results)
    for name, values in results.items():
        check_close(values, stored[name], torch.float32, name)


@pytest.mark.parametrize(("version", "case"), UNFUSED_BY_RELEASE)
def test_unfused_functions_match_the_vectors(version: str | None, case: GoldenCase) -> None:
    def compute(inputs: Tensors) -> Tensors:
        results = {}
        if case.kind != "unfused_av":
            query, more = inputs["q"] * case.params["scale"], inputs.get("additional_k")
            results["logits"] = unfused_qk(
                natten, query, inputs["k"], case.options, inputs.get("rpb"), more
            )
        if case.kind != "unfused_qk":
            attn = inputs["attn"] if "attn" in inputs else results["logits"].softmax(-1)
            more = inputs.get("additional_v")
            results["out"] = unfused_av(natten, attn, inputs["v"], case.options, more)
        return results

    with installed(version) as natten:
        check_case(case, compute)


@pytest.mark.parametrize("version", ["0.20.0", "0.21.0", "0.21.7", None])
@pytest.mark.parametrize("case", FUSED, ids=lambda case: case.name)
def test_fused_functions_match_the_vectors(version: str | None, case: GoldenCase) -> None:
    def compute(inputs: Tensors) -> Tensors:
        options = case.options
        name = f"na{case.params['ndim']}d"
        if case.name.endswith("hd16"):
            name = "neighborhood_attention_generic"
        results = getattr(natten.functional, name)(
            *(inputs[name] for name in "qkv"),
            *(options[name] for name in ("kernel_size", "stride", "dilation", "is_causal")),
            case.params["scale"],
            inputs.get("additional_k"),
            inputs.get("additional_v"),
            **({"return_lse": True} if version in ("0.21.7", None) else {}),
        )
        return (
            {"out": results} if isinstance(results, Tensor) else dict(zip(FUSED_RESULTS, results))
        )

    with installed(version) as natten:
        check_case(case, compute)


def qkv(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
    return draw(*shape, seed=1), draw(*shape, seed=2), draw(*shape, seed=3)


@pytest.mark.parametrize("version", ["0.17.0", "0.17.4", "0.17.5", None])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_fused_functions_of_017(version: str | None, rank: int) -> None:
    spatial = (9, 8, 7)[:rank]
    query, key, value = qkv(2, *spatial, 3, 4)
    rpb = draw(3, *(5,) * rank)
    steps = (2, 1, 1)[:rank]
    with installed(version) as natten:
        na = getattr(natten.functional, f"na{rank}d")
        # The fifth argument is the dilation.
        output = na(query, key, value, 3, steps, False, rpb, 0.3)
        expected = neighborhood_attention(query, key, value, 3, dilation=steps, scale=0.3, rpb=rpb)
        torch.testing.assert_close(output, expected)
        output = na(query, key, value, [3] * rank, dilation=None, is_causal=None, scale=0)
        torch.testing.assert_close(output, neighborhood_attention(query, key, value, 3))
        output = na(query, key, value, 3, is_causal=True)
        expected = neighborhood_attention(query, key, value, 3, is_causal=True)
        torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("where", ["functional", "experimental"])
def test_fused_functions_of_0174_take_additional_tokens(where: str) -> None:
    query, key, value = qkv(1, 6, 7, 2, 4)
    more = {"additional_keys": draw(1, 3, 2, 4), "additional_values": draw(1, 3, 2, 4, seed=9)}
    expected = neighborhood_attention(query, key, value, 3, **more)
    with installed() as natten:
        import natten.experimental

        na2d = getattr(natten, where).na2d
        torch.testing.assert_close(na2d(query, key, value, 3, **more), expected)
        kwargs = {"op": None, "p": 0.0}
        output = na2d(query, key, value, 3, xformers_kwargs=kwargs, **more)
        torch.testing.assert_close(output, expected)
        with pytest.raises(ValueError, match="p=0.5"):
            na2d(query, key, value, 3, xformers_kwargs={"p": 0.5}, **more)
        with pytest.raises(ValueError, match="additional_values is None"):
            na2d(query, key, value, 3, additional_keys=more["additional_keys"])


OF_014, OF_015 = "NATTEN2D{}Function", "NeighborhoodAttention2D{}AutogradFunction"
UNFUSED_NAMES = [
    # release, names of query key^T and of the weighted sum, arguments before the kernel size, and
    # after the dilation
    (None, "natten1dqkrpb", "natten1dav", (), ()),
    ("0.14.6", "natten2dqkrpb", "natten2dav", (), ()),
    (None, "natten2dqkrpb", "natten2dav", (), ()),
    (None, "natten3dqkrpb", "natten3dav", (), ()),
    (None, "na2d_qk_with_bias", "na2d_av", (), ()),
    ("0.14.6", OF_014.format("QKRPB"), OF_014.format("AV"), (), ()),
    (None, OF_014.format("QKRPB"), OF_014.format("AV"), (), ()),
    ("0.15.1", OF_015.format("QK"), OF_015.format("AV"), (None,), ()),
    ("0.17.5", OF_015.format("QK"), OF_015.format("AV"), (None,), (False,)),
    (None, OF_015.format("QK"), OF_015.format("AV"), (None,), (False,)),
]


@pytest.mark.parametrize(("version", "qk", "av", "before", "after"), UNFUSED_NAMES)
def test_older_names_and_classes_apply(
    version: str | None, qk: str, av: str, before: tuple[Any, ...], after: tuple[Any, ...]
) -> None:
    rank = next(int(character) for character in qk if character.isdigit())
    kernel_size, dilation, where = (3,) * rank, (2,) * rank, (3, 2)
    if rank == 3:
        # The depth has its own, which come first.
        kernel_size, dilation, where = (5, 3, 3), (1, 2, 2), (5, 3, 1, 2)
    where = (*before, *where, *after)
    rpb = draw(3, *(2 * size - 1 for size in kernel_size))
    inputs = [t.requires_grad_() for t in (*qkv(2, 3, *(8, 7, 6)[:rank], 4), rpb)]
    query, key, value, rpb = inputs
    with installed(version) as natten:
        first, second = (getattr(natten.functional, name) for name in (qk, av))
        # The classes are called as autograd functions are.
        first, second = (getattr(each, "apply", each) for each in (first, second))
        output = second(first(query, key, rpb, *where).softmax(-1), value, *where)
    last = (tensor.movedim(1, -2) for tensor in inputs[:3])
    options = {"dilation": dilation, "scale": 1.0, "rpb": rpb}
    expected = neighborhood_attention(*last, kernel_size, **options).movedim(-2, 1)
    torch.testing.assert_close(output, expected)
    d_output = draw(*output.shape, seed=4)
    torch.testing.assert_close(
        torch.autograd.grad(output, inputs, d_output),
        torch.autograd.grad(expected, inputs, d_output),
    )


@pytest.mark.parametrize("version", ["0.17.5", None])
def test_the_fused_class_applies(version: str | None) -> None:
    query, key, value = qkv(2, 8, 7, 3, 4)
    rpb = draw(3, 5, 5)
    with installed(version) as natten:
        arguments = (query, key, value, rpb, (3, 3), (2, 2), (False, False), 0.5, None, None)
        results = natten.functional.FusedNeighborhoodAttention2D.apply(*arguments)
    expected = neighborhood_attention(
        query, key, value, 3, dilation=2, scale=0.5, rpb=rpb, return_lse=True
    )
    torch.testing.assert_close(results, expected)


@pytest.mark.parametrize("version", ["0.14.4", "0.14.6", "0.15.1", "0.17.1", "0.17.5", None])
def test_a_map_smaller_than_the_window_is_a_runtime_error(version: str | None) -> None:
    query, key, value = qkv(1, 1, 6, 5, 4)
    attn = draw(1, 1, 6, 5, 9)
    with installed(version) as natten:
        f = natten.functional
        calls: list[tuple[Any, ...]]
        if natten.__version__ <= "0.14.4":
            rpb = draw(1, 5, 5)
            calls = [(f.natten2dqkrpb, query, key, rpb, 2), (f.natten2dav, attn, value, 2)]
        elif natten.__version__ < "0.15":
            calls = [(f.natten2dqk, query, key, 3, 2), (f.natten2dav, attn, value, 3, 2)]
        else:
            calls = [(f.na2d_qk, query, key, 3, 2), (f.na2d_av, attn, value, 3, 2)]
        if natten.__version__ >= "0.17":
            calls.append((f.na2d, *(each.movedim(1, -2) for each in (query, key, value)), 3, 2))
        for function, *arguments, dilation in calls:
            with pytest.raises(RuntimeError, match=r"kernel_size \* dilation"):
                function(*arguments, dilation=dilation)


def test_a_map_smaller_than_the_window_is_a_value_error_since_020() -> None:
    query, key, value = qkv(1, 6, 5, 1, 4)
    with installed("0.21") as natten:
        with pytest.raises(ValueError, match=r"kernel_size \* dilation") as caught:
            natten.na2d(query, key, value, 3, dilation=2)
        assert not isinstance(caught.value, RuntimeError)
        with pytest.raises(ValueError, match="stride"):
            natten.na2d(query, key, value, 3, 4)


@pytest.mark.parametrize("version", ["0.14.6", "0.17.4"])
@pytest.mark.parametrize("kernel_size", [1, 2, 4])
def test_unfused_functions_refuse_even_windows(version: str, kernel_size: int) -> None:
    query, key, _ = qkv(1, 1, 6, 4)
    with installed(version) as natten, pytest.raises(RuntimeError, match="odd"):
        natten.functional.natten1dqk(query, key, kernel_size, 1)


@pytest.mark.parametrize("version", ["0.17.3", "0.17.4", "0.17.5", "0.21", None])
def test_fused_functions_take_even_windows_since_0175(version: str | None) -> None:
    query, key, value = qkv(1, 7, 8, 2, 4)
    rpb = draw(2, 7, 3)
    with installed(version) as natten:
        na2d, number = natten.functional.na2d, natten.__version__
        if version in ("0.17.3", "0.17.4"):
            with pytest.raises(RuntimeError, match=r"kernel_size is \[4, 2\]"):
                na2d(query, key, value, (4, 2))
            return
        output = na2d(query, key, value, (4, 2), dilation=(1, 3))
        expected = neighborhood_attention(query, key, value, (4, 2), dilation=(1, 3))
        torch.testing.assert_close(output, expected)
        if number < "0.20":
            with pytest.raises(RuntimeError, match=r"kernel_size is \[4, 2\]"):
                na2d(query, key, value, (4, 2), rpb=rpb)
            with pytest.raises(RuntimeError, match=r"kernel_size is \[4, 2\]"):
                natten.functional.na2d_qk(query, key, (4, 2))


def test_windows_of_one_are_taken_by_the_default_only() -> None:
    query, key, value = qkv(1, 3, 7, 8, 2, 4)
    expected = neighborhood_attention(query, key, value, (1, 3, 4))
    with installed() as natten:
        generic = natten.functional.neighborhood_attention_generic
        for na in (natten.na3d, generic):
            torch.testing.assert_close(na(query, key, value, (1, 3, 4)), expected)
        module = natten.NeighborhoodAttention2D(8, 2, (1, 3))
        assert module(torch.zeros(1, 5, 5, 8)).shape == (1, 5, 5, 8)
    for version, error in (("0.17.5", RuntimeError), ("0.21.7", ValueError)):
        with installed(version) as natten, pytest.raises(error, match="kernel_size"):
            natten.functional.na3d(query, key, value, (1, 3, 4))


def test_the_default_tells_the_generations_apart() -> None:
    query, key, value = qkv(1, 9, 8, 2, 4)
    rpb = draw(2, 5, 5)
    with installed() as natten:
        from natten.na2d import NeighborhoodAttention2D

        na2d = natten.na2d
        assert na2d.NeighborhoodAttention2D is NeighborhoodAttention2D
        for calls, options in (
            ([na2d(query, key, value, 3, 2, False, rpb, 0.3),
              na2d(query, key, value, 3, dilation=2, rpb=rpb, scale=0.3)],
             {"dilation": 2, "rpb": rpb, "scale": 0.3}),
            ([na2d(query, key, value, 3, 2, (True, False)),
              na2d(query, key, value, 3, 1, 2, (True, False))],
             {"dilation": 2, "is_causal": (True, False)}),
            ([na2d(query, key, value, 4, (2, 1), (1, 2), False, 0.3),
              na2d(query, key, value, 4, stride=(2, 1), dilation=(1, 2), scale=0.3,
                   backend="cutlass-fna", torch_compile=True)],
             {"stride": (2, 1), "dilation": (1, 2), "scale": 0.3}),
            ([na2d(query, key, value, 3, 1), na2d(query, key, value, 3, (1, 1))], {}),
        ):  # fmt: skip
            size = 4 if "stride" in options else 3
            if isinstance(options.get("is_causal"), tuple):
                options = options | {"dilation": 2}
            expected = neighborhood_attention(query, key, value, size, **options)
            for output in calls:
                torch.testing.assert_close(output, expected)
        for ambiguous in ((2,), ((1, 2),), (2, None)):
            with pytest.raises(TypeError, match=r"install\('0.17'\) or .*install\('0.21'\)"):
                na2d(query, key, value, 3, *ambiguous)
        with pytest.raises(TypeError, match="dilation"):
            na2d(query, key, value, 3, 2, False, dilation=2)
        with pytest.raises(TypeError, match=r"rpb.* up to 0\.17, and stride"):
            na2d(query, key, value, 3, stride=2, rpb=rpb)
        output, lse = na2d(query, key, value, 3, return_lse=True)
        assert lse.shape == query.shape[:-1]


def test_the_default_names_the_releases_that_a_call_fits() -> None:
    query, key, value = qkv(1, 2, 9, 8, 4)
    with installed() as natten:
        f = natten.functional
        with pytest.raises(TypeError, match=r"'dilation'.*: natc.compat.install\('0.14.4'\)\.$"):
            f.natten2dqkrpb(query, key, draw(2, 5, 5), 2)
        with pytest.raises(
            TypeError, match=r"kernel_size_d.*: natc.compat.install\('0.15.1'\)\.$"
        ):
            natten.NeighborhoodAttention3D(8, 2, 3, kernel_size_d=5)
        with pytest.raises(ValueError, match=r"num_heads, 3.*install\('0.14.4'\)"):
            natten.NeighborhoodAttention2D(8, 3, 2)
        with pytest.raises(TypeError) as caught:
            f.na2d_qk(query, key, 3, window=3)
        assert "install" not in str(caught.value)


def test_causal_with_a_bias_is_not_implemented_in_017() -> None:
    query, key, value = qkv(1, 1, 6, 4)
    rpb = draw(1, 5)
    with installed() as natten:
        f = natten.functional
        with pytest.raises(NotImplementedError, match="bias"):
            f.na1d_qk(query, key, 3, is_causal=True, rpb=rpb)
        with pytest.raises(NotImplementedError, match="bias"):
            f.na1d(*(each.transpose(1, 2) for each in (query, key, value)), 3, 1, True, rpb)
        with pytest.raises(NotImplementedError, match="bias"):
            natten.NeighborhoodAttention1D(8, 2, 3, is_causal=True, rel_pos_bias=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_size": (3, 3)}, "kernel_size"),
        ({"kernel_size": 3.0}, "kernel_size"),
        ({"kernel_size": 3, "dilation": (1, 1)}, "dilation"),
        ({"kernel_size": 3, "dilation": "auto"}, "dilation"),
        ({"kernel_size": 3, "is_causal": 1}, "is_causal"),
        ({"kernel_size": 3, "dilation": 0}, "dilation"),
    ],
)
def test_options_of_another_type_are_a_value_error(options: Any, message: str) -> None:
    query, key, value = qkv(1, 9, 1, 4)
    for version in ("0.17", "0.21"):
        with installed(version) as natten, pytest.raises(ValueError, match=message):
            natten.functional.na1d(query, key, value, **options)


def test_weights_that_are_no_window_are_refused() -> None:
    with installed("0.14.4") as natten, pytest.raises(ValueError, match="10 entries"):
        natten.functional.natten2dav(draw(1, 1, 6, 6, 10), draw(1, 1, 6, 6, 4), 1)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_refused() -> None:
    nested = torch.nested.nested_tensor([torch.zeros(1, 5, 4), torch.zeros(1, 6, 4)])
    with installed("0.17") as natten, pytest.raises(NotImplementedError, match="Nested"):
        natten.functional.na1d_qk(nested, nested, 3)


@pytest.mark.parametrize("backend", ["cutlass-fna", "hopper-fna", "blackwell-fna", "flex-fna"])
def test_arguments_that_choose_kernels_are_ignored(backend: str) -> None:
    query, key, value = qkv(1, 8, 8, 2, 4)
    with installed("0.21") as natten:
        expected = natten.na2d(query, key, value, 3)
        output = natten.na2d(
            query,
            key,
            value,
            3,
            backend=backend,
            q_tile_shape=(8, 8),
            kv_tile_shape=(8, 8),
            backward_kv_splits=(1, 1),
            run_persistent_kernel=False,
            kernel_schedule="coop",
            torch_compile=True,
            attention_kwargs={"backend": "cutlass-fmha", "q_tile_size": 64},
        )
        torch.testing.assert_close(output, expected, rtol=0, atol=0)
        assert natten.get_configs_for_cutlass_fna(query, key, value) == []


def test_what_would_change_the_result_is_refused() -> None:
    query, key, value = qkv(1, 8, 2, 4)
    with installed("0.21") as natten:
        with pytest.raises(NotImplementedError, match="'fna'"):
            natten.na1d(query, key, value, 3, backend="fna")
        with pytest.raises(NotImplementedError, match="'fmha'"):
            natten.attention(query, key, value, backend="fmha")
        with pytest.raises(NotImplementedError, match="'flash'"):
            natten.na1d(query, key, value, 3, attention_kwargs={"backend": "flash"})
        with pytest.raises(ValueError, match="scale"):
            natten.na1d(query, key, value, 3, attention_kwargs={"scale": 2.0})
        with pytest.raises(ValueError, match="axes"):
            natten.na2d(query, key, value, 3)
        with pytest.raises(ValueError, match="axes"):
            natten.functional.neighborhood_attention_generic(query[0], key[0], value[0], 3)


def plain_attention(
    query: Tensor, key: Tensor, value: Tensor, is_causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    group = query.shape[2] // key.shape[2]
    key, value = (each.repeat_interleave(group, dim=2) for each in (key, value))
    logits = scale * torch.einsum("bqhd,bkhd->bhqk", query, key)
    if is_causal:
        rows, columns = logits.shape[-2:]
        hidden = torch.arange(columns)[None] > torch.arange(rows)[:, None]
        logits = logits.masked_fill(hidden, -torch.inf)
    return torch.einsum("bhqk,bkhd->bqhd", logits.softmax(-1), value), logits.logsumexp(-1).mT


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("heads_kv", [1, 2, 4])
def test_attention(heads_kv: int, is_causal: bool) -> None:
    query = draw(2, 5, 4, 8).requires_grad_()
    key = draw(2, 7, heads_kv, 8, seed=1).requires_grad_()
    value = draw(2, 7, heads_kv, 6, seed=2).requires_grad_()
    expected = plain_attention(query, key, value, is_causal, 0.3)
    with installed("0.21") as natten:
        with_lse = natten.attention(query, key, value, is_causal, 0.3, return_lse=True)
        torch.testing.assert_close(with_lse, expected)
        output = natten.attention(query, key, value, is_causal, 0.3)
        torch.testing.assert_close(output, expected[0])
        d_output = draw(2, 5, 4, 6, seed=3)
        for each in (with_lse[0], output):
            grads = torch.autograd.grad(each, (query, key, value), d_output, retain_graph=True)
            of_expected = torch.autograd.grad(
                expected[0], (query, key, value), d_output, retain_graph=True
            )
            torch.testing.assert_close(grads, of_expected)
    if not is_causal:
        with installed("0.20") as natten:
            output = natten.attention(query, key, value, 0.3, return_lse=True)
            torch.testing.assert_close(output, expected)


def test_attention_of_packed_sequences() -> None:
    query, key, value = draw(1, 9, 2, 4), draw(1, 11, 2, 4, seed=1), draw(1, 11, 2, 4, seed=2)
    of_query, of_key = [4, 2, 3], [5, 5, 1]
    parts = zip(
        *(t.split(n, dim=1) for t, n in ((query, of_query), (key, of_key), (value, of_key)))
    )
    by_sequence = [plain_attention(*part, False, 0.5) for part in parts]
    expected = tuple(torch.cat(each, dim=1) for each in zip(*by_sequence))
    with installed("0.21") as natten:
        lengths = {"seqlens_Q": torch.tensor(of_query), "seqlens_KV": torch.tensor(of_key)}
        output = natten.attention(query, key, value, **lengths, return_lse=True)
        torch.testing.assert_close(output, expected)
        cumulative = {
            "cumulative_seqlen_Q": torch.tensor([0, 4, 6, 9]),
            "cumulative_seqlen_KV": torch.tensor([0, 5, 10, 11]),
        }
        longest = {"max_seqlen_Q": 4, "max_seqlen_KV": 5}
        output = natten.attention(query, key, value, **cumulative, **longest)
        torch.testing.assert_close(output, expected[0])
        with pytest.raises(ValueError, match="packed sequences need"):
            natten.attention(query, key, value, **cumulative)
        with pytest.raises(ValueError, match="as many"):
            natten.attention(query, key, value, **lengths | {"seqlens_KV": torch.tensor([11])})
        with pytest.raises(ValueError, match="batch 1"):
            natten.attention(*(t.repeat(2, 1, 1, 1) for t in (query, key, value)), **lengths)


@pytest.mark.parametrize("version", ["0.20.1", "0.21.7"])
def test_merged_attention_is_attention_to_all_keys(version: str) -> None:
    query = draw(2, 5, 2, 4).requires_grad_()
    key, value = draw(2, 9, 2, 4, seed=1), draw(2, 9, 2, 4, seed=2)
    expected = plain_attention(query, key, value, False, 0.5)
    with installed(version) as natten:
        parts = [
            natten.attention(query, key[:, part], value[:, part], scale=0.5, return_lse=True)
            for part in (slice(0, 2), slice(2, 6), slice(6, 9))
        ]
        outputs, lses = (list(each) for each in zip(*parts))
        merged = natten.merge_attentions(outputs, lses, torch_compile=False)
        output = merged if version < "0.21.5" else merged[0]
        torch.testing.assert_close(output, expected[0])
        if version >= "0.21.5":
            torch.testing.assert_close(merged[1], expected[1])
        d_output = draw(2, 5, 2, 4, seed=3)
        torch.testing.assert_close(
            torch.autograd.grad(output, query, d_output),
            torch.autograd.grad(expected[0], query, d_output),
        )
        with pytest.raises(ValueError, match="at least two"):
            natten.merge_attentions(outputs[:1], lses[:1])
        with pytest.raises(ValueError, match="value_dim"):
            natten.merge_attentions([o[0] for o in outputs], [lse[0] for lse in lses])


def test_functions_compile_whole() -> None:
    query, key, value = (each.float() for each in qkv(1, 2, 9, 8, 4))

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        attn = natten.functional.natten2dqkrpb(query, key, None, 3, 2)
        out = natten.functional.na2d_av(attn.softmax(-1), value, 3, 2)
        last = (each.movedim(1, -2) for each in (query, key, out))
        return natten.functional.na2d(*last, 3)

    with installed() as natten:
        compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(query, key, value), attend(query, key, value))
