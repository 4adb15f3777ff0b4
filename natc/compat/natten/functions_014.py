"""`natten.functional` of 0.14: unfused operators of rank 1 and 2, kernel size and dilation ints.

Up to 0.14.4 the kernel size is read off the bias or the weights; 0.14.5 takes it for the bias,
0.14.6 for both.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from natc.compat.natten.operators import Operator, av, named, operator, qk
from natc.compat.natten.releases import Release
from natc.errors import ArgumentError


def functions(release: Release) -> dict[str, Any]:
    """Return the contents of `natten.functional` in a release of 0.14."""
    names: dict[str, Any] = {}
    for rank in (1, 2):
        names |= operators(rank)
        qkrpb_class = names[f"NATTEN{rank}DQKRPBFunction"]
        av_class = names[f"NATTEN{rank}DAVFunction"]
        prefix = f"natten{rank}d"
        by_suffix = _functions(qkrpb_class, av_class, release.number)
        names |= {f"{prefix}{end}": named(f, f"{prefix}{end}") for end, f in by_suffix.items()}
    return names


def operators(rank: int) -> dict[str, type[Operator]]:
    """Return the autograd functions of `rank`; `where` is kernel_size, dilation or dilation alone.

    Without a kernel size it is read off the bias or the weights, as up to 0.14.4.
    """

    def of_qk(query: Tensor, key: Tensor, rpb: Any, *where: int) -> Tensor:
        kernel_size = where[0] if len(where) == 2 else (rpb.shape[-1] + 1) // 2
        return qk(rank, query, key, rpb, None, kernel_size, where[-1])

    def of_av(attn: Tensor, value: Tensor, *where: int) -> Tensor:
        kernel_size = where[0] if len(where) == 2 else _side(attn.shape[-1], rank)
        return av(rank, attn, value, None, kernel_size, where[-1])

    qkrpb_name, av_name = f"NATTEN{rank}DQKRPBFunction", f"NATTEN{rank}DAVFunction"
    return {qkrpb_name: operator(qkrpb_name, of_qk), av_name: operator(av_name, of_av)}


def _functions(
    qkrpb_class: type[Operator], av_class: type[Operator], number: tuple[int, int, int]
) -> dict[str, Any]:
    # Without annotations, as in the releases: programs may inspect these signatures.
    def early_qkrpb(query, key, rpb, dilation):  # type: ignore[no-untyped-def]
        return qkrpb_class.apply(query, key, rpb, dilation)

    def qkrpb(query, key, rpb, kernel_size, dilation):  # type: ignore[no-untyped-def]
        return qkrpb_class.apply(query, key, rpb, kernel_size, dilation)

    def only_qk(query, key, kernel_size, dilation):  # type: ignore[no-untyped-def]
        return qkrpb_class.apply(query, key, None, kernel_size, dilation)

    def early_av(attn, value, dilation):  # type: ignore[no-untyped-def]
        return av_class.apply(attn, value, dilation)

    def with_size_av(attn, value, kernel_size, dilation):  # type: ignore[no-untyped-def]
        return av_class.apply(attn, value, kernel_size, dilation)

    if number < (0, 14, 5):
        return {"qkrpb": early_qkrpb, "av": early_av}
    if number < (0, 14, 6):
        return {"qkrpb": qkrpb, "av": early_av}
    return {"qkrpb": qkrpb, "qk": only_qk, "av": with_size_av}


def _side(taps: int, rank: int) -> int:
    """Return the kernel size whose windows have `taps` entries over `rank` axes."""
    side = round(taps ** (1 / rank))
    if side**rank != taps:
        raise ArgumentError(f"attn has {taps} entries for each query; it must be a whole window.")
    return side
