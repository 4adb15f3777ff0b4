"""Options that several verbs share, and functions that parse them."""

from __future__ import annotations

import contextlib
import importlib.util
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import typer

from natc.errors import NatcError, SpecError
from natc.host import environment
from natc.operations import FAMILIES, operations_of, tuned_as
from natc.spec import CUDA_DTYPES, DTYPES, TERMS, KernelSpec, compiles, parse_kernel_size
from natc.store import workspace
from natc.targets import ARCHS

# Defaults: NAT's head dim and precisions.
DEFAULT_HEAD_DIM = 32
DEFAULT_DTYPE = {"llvm": "float32", "cuda": "float16"}
NAT_KERNEL = "7"

# The same as `natc.spec.DTYPES`, as choices of an option.
Dtype = Literal["float32", "float16", "bfloat16", "float64"]


def complete(words: Callable[[], Sequence[str]]) -> Callable[[str], list[str]]:
    """Return a function that completes the last of an option's values, separated by commas.

    words: returns all values; called only when a shell completes.
    """

    def completed(incomplete: str) -> list[str]:
        before, comma, start = incomplete.rpartition(",")
        taken = before.split(",")
        ends = [word for word in words() if word.startswith(start) and word not in taken]
        return [f"{before}{comma}{word}" for word in ends]

    return completed


def _kernels() -> Sequence[str]:
    """Return the window sizes of NAT, and the sizes in schedules."""
    sizes = {str(size) for size in range(3, 15, 2)}
    for path in workspace.schedule_files():
        with contextlib.suppress(SpecError):
            sizes.add(KernelSpec.parse(path.stem).kernel_text)
    return sorted(sizes, key=parse_kernel_size)


def _targets() -> Sequence[str]:
    return [*ARCHS, *(f"{kind}-{arch}" for kind, archs in ARCHS.items() for arch in archs)]


def _archs() -> Sequence[str]:
    return [arch for archs in ARCHS.values() for arch in archs]


complete_kernel, complete_target, complete_arch = map(complete, (_kernels, _targets, _archs))
complete_dtype = complete(lambda: DTYPES)
complete_families = complete(lambda: FAMILIES)

_KERNEL = typer.Option(
    "--kernel",
    "-k",
    metavar="K",
    help="Window size: 7, or 7x5 or 7x5x3 by axis.",
    autocompletion=complete_kernel,
)
KernelOption = Annotated[str, _KERNEL]
OptionalKernelOption = Annotated[str | None, _KERNEL]
TargetOption = Annotated[
    str,
    typer.Option(
        "--target",
        "-t",
        metavar="TARGET",
        help="llvm (this CPU), cuda, or a full name such as cuda-sm_90.",
        autocompletion=complete_target,
    ),
]
ArchOption = Annotated[
    str | None,
    typer.Option(
        "--arch",
        metavar="ARCH",
        help="Architecture, such as sm_90 or x86-64-v3.",
        show_default="this machine's own",
        autocompletion=complete_arch,
    ),
]
ArchsOption = Annotated[
    str | None,
    typer.Option(
        "--arch",
        metavar="ARCH,ARCH",
        help="Architectures, such as sm_80,sm_90 or x86-64-v3.",
        show_default="this machine's own",
        autocompletion=complete_arch,
    ),
]
HeadDimOption = Annotated[
    int, typer.Option("--head-dim", help="Channels of one head of query and key.")
]
DtypeOption = Annotated[
    Dtype | None,
    typer.Option("--dtype", help="Element type.", show_default="float32 on llvm, float16 on cuda"),
]
RankOption = Annotated[
    int | None,
    typer.Option(
        "--rank", help="Number of spatial axes, 1 to 3.", show_default="2, or as --kernel has"
    ),
]
ValueDimOption = Annotated[
    int | None,
    typer.Option("--value-dim", help="Channels of one head of value.", show_default="--head-dim"),
]
RpbOption = Annotated[
    bool, typer.Option("--rpb/--no-rpb", help="With a relative positional bias.")
]
RpbVariantsOption = Annotated[
    bool | None,
    typer.Option("--rpb/--no-rpb", help="With a relative positional bias.", show_default="both"),
]
TermsOption = Annotated[
    str,
    typer.Option(
        "--terms",
        metavar="TERM,TERM",
        help=f"Terms of the logits, separated by commas: {', '.join(TERMS)}.",
        show_default="none",
        hidden=not TERMS,
    ),
]
ShapeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--shape",
        metavar="BxHxWxHEADS",
        help="Input to measure on, with as many sizes as the kernel has axes; may be repeated.",
        show_default="NAT's four levels",
    ),
]
WaitOption = Annotated[
    float | None,
    typer.Option(
        "--wait",
        metavar="SECONDS",
        min=0,
        help="How long to wait for a lock of another process.",
        show_default="until it is free",
    ),
]
VariantOption = Annotated[
    str | None,
    typer.Option(
        "--variant",
        help="The published network of the weights, such as dinat_tiny.",
        show_default="what their name and content say",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


def make_spec(
    kernel: str,
    *,
    kind: str,
    rank: int | None,
    head_dim: int,
    dtype: Dtype | None,
    rpb: bool,
    value_dim: int | None = None,
    terms: str = "",
) -> KernelSpec:
    """Return the spec that the options describe, for targets of a kind: llvm or cuda.

    Raises SpecError for a value that is not allowed or has no kernels.
    """
    sizes = parse_kernel_size(kernel)
    if rank is None:
        rank = len(sizes) if len(sizes) > 1 else 2
    spec = KernelSpec.make(
        sizes[0] if len(sizes) == 1 else sizes,
        rank=rank,
        head_dim=head_dim,
        dtype=dtype or DEFAULT_DTYPE[kind],
        rpb=rpb,
        value_dim=value_dim,
        terms=tuple(filter(None, terms.split(","))),
    )
    if not compiles(spec.dtype, kind):
        raise SpecError(
            f"dtype is {spec.dtype}; kernels for cuda are {', '.join(CUDA_DTYPES)}. On a GPU, "
            f"{spec.dtype} runs on natc.reference."
        )
    return spec


def parse_operations(text: str) -> tuple[str, ...]:
    """Return the families of operations in text such as forward,backward, in natc's order.

    Raises SpecError for any other text.
    """
    named = [part.strip() for part in text.split(",")]
    wrong = [name for name in named if name not in FAMILIES]
    if wrong:
        raise SpecError(
            f"operations has {wrong[0]!r}; it must be one or more of {', '.join(FAMILIES)}, "
            "separated by commas."
        )
    return tuple(family for family in FAMILIES if family in named)


def parse_tuned(text: str, spec: KernelSpec, kind: str) -> tuple[str, ...]:
    """Return the operations of a kernel that are named in text such as forward,d_query, each once.

    kind: of the target. A family names all of its operations. Raises SpecError for any other text.
    """
    every = operations_of(spec, kind=kind)
    operations: list[str] = []
    for part in (part.strip() for part in text.split(",")):
        names = operations_of(spec, (part,), kind) or (part,)
        if not set(names) <= set(every):
            raise SpecError(
                f"operations has {part!r}; it must be one or more of "
                f"{', '.join(dict.fromkeys((*FAMILIES, *every)))}, separated by "
                "commas."
            )
        operations += map(tuned_as, names)
    return tuple(dict.fromkeys(operations))


def parse_input(text: str, spec: KernelSpec) -> tuple[int, ...]:
    """Return (batch, size of each axis, heads) from text such as 1x56x56x2.

    Raises SpecError for any other text.
    """
    if not re.fullmatch(rf"[1-9]\d{{0,6}}(x[1-9]\d{{0,6}}){{{spec.rank + 1}}}", text, re.ASCII):
        sizes = {1: "length", 2: "height x width", 3: "depth x height x width"}[spec.rank]
        raise SpecError(f"shape {text!r} is not batch x {sizes} x heads, such as 1x56x56x2.")
    return tuple(int(part) for part in text.split("x"))


def parse_per_axis(name: str, text: str, rank: int) -> tuple[int, ...]:
    """Return one number for each axis from text such as 2 or 1x2x2.

    name: of the option, for the message. Raises SpecError for any other text.
    """
    numbers = text.split("x")
    if len(numbers) not in (1, rank) or not all(
        re.fullmatch(r"[1-9]\d{0,6}", number, re.ASCII) for number in numbers
    ):
        raise SpecError(
            f"{name} {text!r} is not a positive number, nor {rank} such numbers joined by x, one "
            "for each axis."
        )
    return tuple(map(int, numbers)) if len(numbers) == rank else (int(text),) * rank


def _missing(*modules: str) -> list[str]:
    """Return the modules that are not installed; imports none."""
    return [name for name in modules if importlib.util.find_spec(name) is None]


def require_vision(verb: str) -> None:
    """Raise NatcError, with the command that helps, unless the extra `vision` is installed."""
    missing = _missing("timm", "accelerate", "yaml", "matplotlib")
    if missing:
        raise NatcError(
            f"natc {verb} needs {', '.join(missing)}, which is not installed: "
            "pip install 'natc[vision]'."
        )


def require_compiler(verb: str) -> None:
    """Raise NatcError, with the command that helps, unless the compiler is installed.

    verb: for the message, such as `tune`. Imports neither TVM nor xgboost.
    """
    searching = (
        () if verb in ("build", "show") else ("xgboost", "cloudpickle", "psutil", "tornado")
    )
    missing = _missing("tvm", *searching)
    if missing:
        raise NatcError(
            f"natc {verb} needs the compiler, which is not installed (no {', '.join(missing)}): "
            "pip install 'natc[compiler]'."
        )
    # This pair of releases would not raise, but end the process.
    problem = environment.compiler_problem()
    if problem:
        raise NatcError(problem)
