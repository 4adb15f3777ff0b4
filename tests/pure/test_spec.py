from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natc.errors import SpecError
from natc.spec import DTYPES, KernelSpec, parse_kernel_size

specs = st.integers(1, 3).flatmap(
    lambda rank: st.builds(
        KernelSpec,
        st.just(rank),
        st.tuples(*[st.integers(2, 63)] * rank),
        st.integers(1, 256),
        st.sampled_from(DTYPES),
        st.booleans(),
        st.integers(1, 256),
    )
)


@given(specs)
def test_every_name_parses_back(spec: KernelSpec) -> None:
    assert KernelSpec.parse(spec.name) == spec


@given(specs, specs)
def test_different_specs_have_different_names(first: KernelSpec, second: KernelSpec) -> None:
    assert (first.name == second.name) == (first == second)


def test_names_read_as_documented() -> None:
    assert KernelSpec.make(7, rpb=True).name == "na2d_k7_d32_float32_rpb"
    assert KernelSpec.make((7, 5), dtype="float16").name == "na2d_k7x5_d32_float16"
    assert str(KernelSpec.make(13, rank=1, head_dim=64)) == "na1d_k13_d64_float32"
    values = KernelSpec.make((7, 5, 3), rank=3, value_dim=64, dtype="float64", rpb=True)
    assert values.name == "na3d_k7x5x3_d32v64_float64_rpb"


def test_a_value_has_as_many_channels_as_a_key_unless_it_says_otherwise() -> None:
    assert KernelSpec(2, (7, 7), 24, "float32").value_dim == 24
    assert KernelSpec.make(7, head_dim=24) == KernelSpec.make(7, head_dim=24, value_dim=24)
    assert KernelSpec.make(7, value_dim=64).value_dim == 64


def test_sums_are_wider_than_sixteen_bits() -> None:
    assert {dtype: KernelSpec.make(7, dtype=dtype).accumulator for dtype in DTYPES} == {
        "float16": "float32",
        "bfloat16": "float32",
        "float32": "float32",
        "float64": "float64",
    }


@pytest.mark.parametrize(
    "name",
    [
        "",
        "na2d",
        "na2d_k7x7_d32_float32",  # the same kernel is na2d_k7_…
        "na2d_k07_d32_float32",
        "na2d_k7_d032_float32",
        "na2d_kx_d32_float32",
        "na2d_k7x_d32_float32",
        "na2d_k7x5x3_d32_float32",
        "na4d_k7_d32_float32",
        "na2d_k0_d32_float32",
        "na2d_k64_d32_float32",
        "na2d_k7_d0_float32",
        "na2d_k7_d9999_float32",
        "na2d_k7_d32v32_float32",  # the same kernel is na2d_k7_d32_…
        "na2d_k7_d32v0_float32",
        "na2d_k7_d32v_float32",
        "na2d_k7_d32_float8",
        "na2d_k7_d32_float32_rpb_rpb",
        "na2d_k7_d32_float32\n",
        "na2d_k\u0667_d32_float32",  # a digit, but not an ASCII digit
        "../na2d_k7_d32_float32",
    ],
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(SpecError):
        KernelSpec.parse(name)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kernel_size": 0}, ["kernel_size 0", "1 to 63"]),
        ({"kernel_size": 64}, ["kernel_size 64", "1 to 63"]),
        ({"kernel_size": (7, 5, 3)}, ["kernel_size", "(7, 5, 3)", "2 integers"]),
        ({"kernel_size": 7, "rank": 4}, ["rank is 4", "1, 2 or 3"]),
        ({"kernel_size": 7, "rank": 0}, ["rank is 0"]),
        ({"kernel_size": 7, "head_dim": 0}, ["head_dim is 0", "1 to 256"]),
        ({"kernel_size": 7, "head_dim": 257}, ["head_dim is 257"]),
        ({"kernel_size": 7, "value_dim": 0}, ["value_dim is 0", "1 to 256"]),
        ({"kernel_size": 7, "value_dim": 8.0}, ["value_dim is 8.0"]),
        ({"kernel_size": 7, "dtype": "int8"}, ["'int8'", "float32, float16, bfloat16, float64"]),
        ({"kernel_size": 7, "rpb": 1}, ["rpb is 1"]),
        ({"kernel_size": (7.0, 7)}, ["kernel_size", "7.0"]),
    ],
)
def test_refusals_name_field_value_allowed(fields: dict[str, object], words: list[str]) -> None:
    with pytest.raises(SpecError) as caught:
        KernelSpec.make(**fields)  # type: ignore[arg-type]
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "x", "7x", "x7", "7 x 5", "-7", "7.0", "seven", "7X5", "99999"]
)
def test_malformed_kernel_sizes_are_refused(text: str) -> None:
    with pytest.raises(SpecError, match="kernel size"):
        parse_kernel_size(text)


def test_kernel_sizes_parse() -> None:
    assert parse_kernel_size("7") == (7,)
    assert parse_kernel_size("7x5x3") == (7, 5, 3)
