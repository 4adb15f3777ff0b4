"""`attention` and `merge_attentions` of NATTEN 0.20 and 0.21: full attention, and merging it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from natc.compat.natten.operators import named, variant
from natc.compat.natten.releases import Release
from natc.errors import ArgumentError
from natc.functional import arguments
from natc.functional.merge import merge_attentions as merge
from natc.reference.layout import accumulator, without_autocast

BACKENDS = ("blackwell-fmha", "hopper-fmha", "cutlass-fmha", "flex-fmha")

_Tensor = Tensor | None
_OF_PACKED = ("seqlens_Q", "seqlens_KV", "cumulative_seqlen_Q", "cumulative_seqlen_KV",
              "max_seqlen_Q", "max_seqlen_KV")  # fmt: skip


def functions(release: Release) -> dict[str, Callable[..., Any]]:
    """Return `attention` and `merge_attentions` of a release.

    From 0.21.5 on the one takes is_causal and packed sequences, and the other returns the
    logsumexp, too.
    """
    if release.number >= (0, 21, 5):
        return {"attention": attention, "merge_attentions": merge_attentions}
    absent = {"is_causal": False, **dict.fromkeys(_OF_PACKED)}

    def merge_outputs(
        outputs: list[Tensor], lse_tensors: list[Tensor], torch_compile: bool = True
    ) -> Tensor:
        return merge_attentions(outputs, lse_tensors)[0]

    return {
        "attention": variant(attention, fixed=absent),
        "merge_attentions": named(merge_outputs, "merge_attentions"),
    }


def check_backend(text: str, backend: Any, backends: Sequence[str]) -> None:
    """Raise NotImplementedError unless a backend is None or in `backends`; text: begins it."""
    if backend is not None and backend not in backends:
        raise NotImplementedError(
            f"{text}{backend!r}; it must be None or in {', '.join(backends)}."
        )


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    is_causal: bool = False,
    scale: float | None = None,
    seqlens_Q: _Tensor = None,
    seqlens_KV: _Tensor = None,
    cumulative_seqlen_Q: _Tensor = None,
    cumulative_seqlen_KV: _Tensor = None,
    max_seqlen_Q: int | None = None,
    max_seqlen_KV: int | None = None,
    backend: str | None = None,
    q_tile_size: int | None = None,
    kv_tile_size: int | None = None,
    backward_q_tile_size: int | None = None,
    backward_kv_tile_size: int | None = None,
    backward_kv_splits: int | None = None,
    backward_use_pt_reduction: bool = False,
    run_persistent_kernel: bool = True,
    kernel_schedule: Any = None,
    torch_compile: bool = False,
    return_lse: bool = False,
) -> Any:
    """Return full attention: query `[B, L, heads, head_dim]`, key and value `[B, L_kv, ...]`.

    PyTorch computes it, not a kernel of natc. return_lse=True needs memory for L * L_kv logits.
    Packed sequences (batch 1) take one call each; on a GPU this waits for the lengths to arrive.

    Raises:
        ArgumentError: shapes or sequence lengths that do not fit together.
        NotImplementedError: a backend that no release has.
    """
    ends = _ends(
        (seqlens_Q, seqlens_KV),
        (cumulative_seqlen_Q, cumulative_seqlen_KV),
        (max_seqlen_Q, max_seqlen_KV),
    )
    if ends is None:
        return _attention(query, key, value, is_causal, scale, backend, return_lse)
    if query.shape[0] != 1:
        raise ArgumentError(
            f"query has shape {list(query.shape)}; packed sequences must have batch 1."
        )
    parts = [
        _attention(
            query[:, q0:q1], key[:, k0:k1], value[:, k0:k1], is_causal, scale, backend, True
        )
        for (q0, q1), (k0, k1) in zip(*map(itertools.pairwise, ends))
    ]
    output, lse = (torch.cat(each, dim=1) for each in zip(*parts))
    return (output, lse) if return_lse else output


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    is_causal: bool,
    scale: float | None,
    backend: str | None,
    return_lse: bool,
) -> Any:
    check_backend("backend is ", backend, BACKENDS)
    query, key, value = arguments.tensors(("query", query), ("key", key), ("value", value))
    arguments.axes("query", query, 1, "[batch, {}, heads, head_dim]")
    batch, length, heads, head_dim = query.shape
    because = f"as query has shape {list(query.shape)}"
    arguments.shape("key", key, (batch, "length_kv", "heads_kv", head_dim), because)
    heads_kv = key.shape[2]
    arguments.divides("key", heads_kv, heads)
    because = f"as key has shape {list(key.shape)}"
    arguments.shape("value", value, (*key.shape[:3], "value_dim"), because)
    scale = arguments.scale_of(scale or None, head_dim)
    # [batch, heads_kv, heads per key head, length, channels]
    query = query.unflatten(2, (heads_kv, -1)).permute(0, 2, 3, 1, 4)
    key, value = (each.transpose(1, 2)[:, :, None] for each in (key, value))
    if not return_lse:
        key, value = (each.expand(-1, -1, query.shape[2], -1, -1) for each in (key, value))
        output = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=is_causal, scale=scale
        )
        return output.permute(0, 3, 1, 2, 4).flatten(2, 3)
    compute = accumulator(query.dtype)
    with without_autocast(query.device):
        logits = (query.to(compute) * scale) @ key.to(compute).transpose(-1, -2)
        if is_causal:
            hidden = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).triu(1)
            logits = logits.masked_fill(hidden, -torch.inf)
        output = (logits.softmax(-1) @ value.to(compute)).to(query.dtype)
    lse = logits.logsumexp(-1)
    return output.permute(0, 3, 1, 2, 4).flatten(2, 3), lse.permute(0, 3, 1, 2).flatten(2, 3)


def _ends(
    lengths: tuple[_Tensor, _Tensor],
    cumulative: tuple[_Tensor, _Tensor],
    longest: tuple[int | None, int | None],
) -> list[list[int]] | None:
    """Return the ends of the packed query and key sequences, from 0 on; None if not packed."""
    if all(each is None for each in (*lengths, *cumulative)) and not any(longest):
        return None
    if lengths[0] is not None and lengths[1] is not None:
        ends = [[0, *itertools.accumulate(each.tolist())] for each in lengths if each is not None]
    elif cumulative[0] is not None and cumulative[1] is not None and all(longest):
        ends = [each.tolist() for each in cumulative if each is not None]
    else:
        raise ArgumentError(
            "packed sequences need seqlens_Q and seqlens_KV, or cumulative_seqlen_Q, "
            "cumulative_seqlen_KV, max_seqlen_Q and max_seqlen_KV."
        )
    if len(ends[0]) != len(ends[1]):
        raise ArgumentError(
            f"there are {len(ends[0]) - 1} sequences of queries and {len(ends[1]) - 1} of keys; "
            "they must be as many."
        )
    return ends


def merge_attentions(
    outputs: list[Tensor],
    lse_tensors: list[Tensor],
    torch_compile: bool = True,
    use_autograd_fix: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return attention to all keys and its logsumexp: `natc.merge_attentions`.

    Outputs are `[B, L, heads, value_dim]`. The flags are ignored: gradients are always right.

    Raises:
        ArgumentError: fewer than two outputs, or shapes that do not fit.
    """
    if len(outputs) < 2:
        raise ArgumentError(f"outputs has {len(outputs)} entries; it must have at least two.")
    for index, output in enumerate(outputs):
        if output.ndim != 4:
            raise ArgumentError(
                f"outputs[{index}] has shape {list(output.shape)}; it must be "
                "[batch, length, heads, value_dim]."
            )
    return merge(outputs, lse_tensors)
