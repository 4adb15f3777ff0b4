"""KernelSpec: the parameters and the name of one compiled kernel."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from natc.errors import SpecError

RANKS = (1, 2, 3)
MIN_KERNEL_SIZE = 1
MAX_KERNEL_SIZE = 63
MAX_HEAD_DIM = 256
DTYPES = ("float32", "float16", "bfloat16", "float64")
# On GPUs, natc.reference computes float64.
CUDA_DTYPES = ("float32", "float16", "bfloat16")

# Terms of a logit besides the scaled product and the bias. Each has a number, which a call may
# leave out: a kernel computes the terms that its name ends with.
TERMS: tuple[str, ...] = ("softcap",)

_NAME = re.compile(
    r"na(?P<rank>\d)d_k(?P<kernel>[\dx]+)_d(?P<head_dim>\d{1,4})(v(?P<value_dim>\d{1,4}))?"
    r"_(?P<dtype>[a-z]+\d+)(?P<rpb>_rpb)?" + "".join(f"(?P<{term}>_{term})?" for term in TERMS),
    flags=re.ASCII,
)


@dataclass(frozen=True, slots=True)
class KernelSpec:
    """One kernel: it serves any batch, heads, map size, dilation, stride and causal axes.

    rank: number of spatial axes, 1 to 3.
    kernel_size: window length of each axis, `rank` integers of 1 to 63.
    head_dim: channels of one head of query and key, 1 to 256.
    dtype: element type of query, key, value and output: float32, float16, bfloat16 or float64.
    rpb: whether the kernel takes a relative positional bias.
    value_dim: channels of one head of value and output, 1 to 256; None becomes head_dim.
    terms: of the logits, names of TERMS in its order.
    Raises SpecError for a field with any other value.
    """

    rank: int
    kernel_size: tuple[int, ...]
    head_dim: int
    dtype: str
    rpb: bool = False
    value_dim: int = None  # type: ignore[assignment]
    terms: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # bool is an int in Python; a spec of rank True is a mistake, not rank 1.
        if type(self.rank) is not int or self.rank not in RANKS:
            raise SpecError(f"rank is {self.rank!r}; it must be 1, 2 or 3.")
        if (
            not isinstance(self.kernel_size, tuple)
            or len(self.kernel_size) != self.rank
            or any(type(k) is not int for k in self.kernel_size)
        ):
            raise SpecError(
                f"kernel_size is {self.kernel_size!r}; it must be a tuple of {self.rank} "
                f"integers, one for each axis of rank {self.rank}."
            )
        for k in self.kernel_size:
            if not MIN_KERNEL_SIZE <= k <= MAX_KERNEL_SIZE:
                raise SpecError(
                    f"kernel_size {k} is not supported; "
                    f"it must be {MIN_KERNEL_SIZE} to {MAX_KERNEL_SIZE}."
                )
        if type(self.head_dim) is not int or not 1 <= self.head_dim <= MAX_HEAD_DIM:
            raise SpecError(f"head_dim is {self.head_dim!r}; it must be 1 to {MAX_HEAD_DIM}.")
        if self.value_dim is None:
            object.__setattr__(self, "value_dim", self.head_dim)
        if type(self.value_dim) is not int or not 1 <= self.value_dim <= MAX_HEAD_DIM:
            raise SpecError(f"value_dim is {self.value_dim!r}; it must be 1 to {MAX_HEAD_DIM}.")
        if self.dtype not in DTYPES:
            raise SpecError(f"dtype is {self.dtype!r}; it must be one of {', '.join(DTYPES)}.")
        if type(self.rpb) is not bool:
            raise SpecError(f"rpb is {self.rpb!r}; it must be True or False.")
        if self.terms and self.terms != tuple(term for term in TERMS if term in self.terms):
            raise SpecError(f"terms is {self.terms!r}; it must be some of {TERMS}, in this order.")

    @property
    def name(self) -> str:
        """The name used for files, such as `na2d_k7_d32_float32_rpb`."""
        suffix = "_rpb" if self.rpb else ""
        suffix += "".join(f"_{term}" for term in self.terms)
        channels = f"d{self.head_dim}"
        if self.value_dim != self.head_dim:
            channels += f"v{self.value_dim}"
        return f"na{self.rank}d_k{self.kernel_text}_{channels}_{self.dtype}{suffix}"

    @property
    def kernel_text(self) -> str:
        """The kernel size as the command line takes it: `7`, or `7x5` where axes differ."""
        sizes = self.kernel_size
        return str(sizes[0]) if len(set(sizes)) == 1 else "x".join(map(str, sizes))

    @property
    def accumulator(self) -> str:
        """The dtype of sums, scale, rpb and logsumexp: float32, or float64 in a float64 kernel."""
        return "float64" if self.dtype == "float64" else "float32"

    def __str__(self) -> str:
        return self.name

    @classmethod
    def make(
        cls,
        kernel_size: int | Iterable[int],
        *,
        rank: int = 2,
        head_dim: int = 32,
        dtype: str = "float32",
        rpb: bool = False,
        value_dim: int | None = None,
        terms: tuple[str, ...] = (),
    ) -> KernelSpec:
        """Build a spec from one kernel size for every axis, or from one for each axis.

        kernel_size: an integer, or `rank` integers; the rest as the fields of KernelSpec.
        Raises SpecError for a value that is not allowed.
        """
        if isinstance(kernel_size, int):
            # The rank is checked first: a wrong one must not repeat the tuple a wrong number
            # of times and blame kernel_size for it.
            if rank not in RANKS:
                raise SpecError(f"rank is {rank!r}; it must be 1, 2 or 3.")
            kernel_size = (kernel_size,) * rank
        value_dim = head_dim if value_dim is None else value_dim
        return cls(rank, tuple(kernel_size), head_dim, dtype, rpb, value_dim, terms)

    @classmethod
    def parse(cls, name: str) -> KernelSpec:
        """Return the spec that a name stands for; `KernelSpec.parse(spec.name) == spec`.

        Raises SpecError if the text is not exactly the name of its spec.
        """
        match = _NAME.fullmatch(name)
        if match is None:
            raise SpecError(
                f"{name!r} is not the name of a kernel; names look like na2d_k7_d32_float32_rpb."
            )
        sizes = parse_kernel_size(match["kernel"])
        spec = cls.make(
            sizes[0] if len(sizes) == 1 else sizes,
            rank=int(match["rank"]),
            head_dim=int(match["head_dim"]),
            dtype=match["dtype"],
            rpb=match["rpb"] is not None,
            value_dim=int(match["value_dim"] or match["head_dim"]),
            terms=tuple(term for term in TERMS if match[term]),
        )
        # Two names for one kernel (k7x7, d032) would become two files for one kernel.
        if spec.name != name:
            raise SpecError(f"{name!r} is not the name of a kernel; write {spec.name}.")
        return spec


def compiles(dtype: str, kind: str) -> bool:
    """Return whether natc compiles kernels of a dtype for a kind of target, `llvm` or `cuda`."""
    return dtype in (CUDA_DTYPES if kind == "cuda" else DTYPES)


def parse_kernel_size(text: str) -> tuple[int, ...]:
    """Return the integers in `7` or `7x5`; raises SpecError for any other text."""
    if not re.fullmatch(r"\d{1,4}(x\d{1,4})*", text, flags=re.ASCII):
        raise SpecError(
            f"kernel size {text!r} is not a number such as 7, nor one for each axis such as 7x5."
        )
    return tuple(int(part) for part in text.split("x"))
