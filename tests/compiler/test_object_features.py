"""The features of machine code for a search's model, beside counts by hand in a small function."""

from __future__ import annotations

from pathlib import Path

import pytest

from natc.compiler.build.object_features import object_features, useful_multiply_adds
from natc.spec import KernelSpec
from natc.tune.search import builder

# A loop of 4 iterations inside a loop of unknown length; the copy beside it has no multiply-add.
CODE = """
copy:
	movl	$8, %ecx
.LBB0_1:
	vmovups	(%rdi), %zmm0
	vmovups	%zmm0, (%rsi)
	decl	%ecx
	jne	.LBB0_1
	retq
kernel:
	pushq	%rbp
	.p2align	4
.LBB1_1:
	xorl	%eax, %eax
.LBB1_2:
	vmovups	(%rdi,%rax), %ymm0
	vbroadcastss	4(%rsi), %ymm1
	vfmadd231ps	%ymm0, %ymm1, %ymm2
	vfmadd231ps	(%rdi,%rax), %ymm1, %ymm3
	vfmadd231ps	(%rdi,%rax){1to8}, %ymm1, %ymm3
	vmovups	32(%rsp), %ymm4
	addq	$16, %rax
	cmpq	$64, %rax
	jne	.LBB1_2
	vshufps	$1, %ymm2, %ymm3, %ymm2
	vaddps	%ymm2, %ymm3, %ymm3
	vmovups	%ymm3, (%rdx)
	cmpq	%rdx, %rcx
	jne	.LBB1_1
	popq	%rbp
	retq
"""


def test_instructions_count_as_often_as_they_run() -> None:
    # In the loop over 4: 3 FMAs of 8 lanes. An unknown loop counts as 8 iterations.
    features = object_features(CODE, useful=48)
    groups = 8 * 4 * 3  # of 8 multiply-adds
    assert features == {
        "lanes": 8,
        "issued": 4 * 3 * 8 / 48,
        "code": 15,
        "loads": pytest.approx(8 * 4 * 3 / groups),
        "broadcasts": pytest.approx(8 * 4 * 2 / groups),
        "shuffles": pytest.approx(8 / groups),
        "stores": pytest.approx(8 / groups),
        "spills": pytest.approx(8 * 4 / groups),
        "arithmetic": pytest.approx(8 / groups),
        # 3 in the inner loop, 3 in the outer one; pushq, popq and retq.
        "scalar": pytest.approx((8 * 4 * 3 + 8 * 3 + 3) / groups),
    }


@pytest.mark.parametrize(
    "before, counter, trips",
    [
        ("movl	$12, %eax", "decl	%eax", 12),
        ("movq	$-64, %rax", "addq	$16, %rax", 4),
        ("xorl	%r9d, %r9d", "addq	$4, %r9\n	cmpq	$20, %r9", 5),
        ("xorl	%eax, %eax", "subq	$-128, %rax\n	cmpq	$1024, %rax", 8),
        ("movl	8(%rdi), %eax", "decl	%eax", 8),  # unknown
        ("xorl	%eax, %eax", "incl	%eax\n	cmpl	%ecx, %eax", 8),  # unknown
    ],
)
def test_constant_trip_counts_are_read_from_the_counter(
    before: str, counter: str, trips: int
) -> None:
    code = (
        f"f:\n	{before}\n.LBB0_1:\n	vaddps	%xmm0, %xmm0, %xmm0\n	{counter}\n	jne	.LBB0_1\n"
        "	vfmadd231ps	%zmm0, %zmm1, %zmm2\n	retq\n"
    )
    assert object_features(code, 1)["arithmetic"] == pytest.approx(trips * 8 / 16)


def test_code_without_multiply_adds_has_no_features() -> None:
    assert object_features("f:\n	xorl	%eax, %eax\n	retq\n", 1) == {}
    assert object_features("", 1) == {}


def test_a_built_candidate_has_the_features_of_its_code(tmp_path: Path) -> None:
    # Of a space with one kernel in a function: tiles do not cap logits.
    spec = KernelSpec.parse("na2d_k7_d32_float32_rpb_softcap")
    built = {
        chains: builder.build(
            spec.name, "llvm-x86-64-v3", {"chains": chains}, str(tmp_path / "candidate.so")
        ).features
        for chains in (0, 1)
    }
    assert useful_multiply_adds(spec, "forward") == 49 * 64
    # The sweep computes the products of query and key, of d_output and value, and three gradients.
    assert useful_multiply_adds(spec, "gradients") == 49 * 5 * 32
    # All multiply-adds use whole registers; exponentials add some to the useful ones.
    assert built[0]["lanes"] == 8 and 1 < built[0]["issued"] < 1.3
    # A sum for each column of the window needs more registers than AVX2 has.
    assert built[1]["spills"] > 2 * built[0]["spills"] > 0
