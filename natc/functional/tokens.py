"""Additional tokens, to which every query attends besides its window."""

from __future__ import annotations

import math

from torch import Tensor

from natc.dispatch.call import Options
from natc.errors import ArgumentError
from natc.functional import arguments
from natc.reference.attention import logits_of
from natc.reference.layout import accumulator, without_autocast


def both(keys: Tensor | None, values: Tensor | None) -> list[tuple[str, Tensor]]:
    """Return additional keys and values with their names; ArgumentError if either is None."""
    if keys is None:
        raise ArgumentError("additional_keys is None; it must be given with additional_values.")
    if values is None:
        raise ArgumentError("additional_values is None; it must be given with additional_keys.")
    return [("additional_keys", keys), ("additional_values", values)]


def check(key: Tensor, value: Tensor, keys: Tensor, values: Tensor) -> None:
    """Raise ArgumentError unless additional keys and values fit key and value.

    key: `[B, *S, heads_kv, head_dim]`. keys, values: `[B, tokens, heads_kv, channels]`.
    """
    batch, heads_kv, head_dim = key.shape[0], key.shape[-2], key.shape[-1]
    because = f"as key has shape {list(key.shape)}"
    arguments.shape("additional_keys", keys, (batch, "tokens", heads_kv, head_dim), because)
    expected = (*keys.shape[:3], value.shape[-1])
    because = f"as value has shape {list(value.shape)} and additional_keys {list(keys.shape)}"
    arguments.shape("additional_values", values, expected, because)


def attend(query: Tensor, keys: Tensor, values: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """Return the attention of every query to the tokens, and its logsumexp; no tokens: 0, -inf.

    query: `[B, *S, heads, head_dim]`. keys, values: `[B, tokens, heads_kv, channels]`. Heads that
    share a key become rows of one product, so that keys are not copied.
    """
    batch, *spatial, heads, head_dim = query.shape
    heads_kv = keys.shape[2]
    group = heads // max(heads_kv, 1)
    positions = math.prod(spatial)
    compute = accumulator(query.dtype)
    with without_autocast(query.device):
        rows = query.to(compute) * options.scale
        rows = rows.reshape(batch, positions, heads_kv, group, head_dim)
        rows = rows.transpose(1, 2).reshape(batch, heads_kv, positions * group, head_dim)
        logits = logits_of(rows @ keys.to(compute).permute(0, 2, 3, 1), **options.terms())
        output = logits.softmax(-1) @ values.to(compute).transpose(1, 2)
    lse = logits.logsumexp(-1)

    def heads_last(result: Tensor, *channels: int) -> Tensor:
        """Return `[B, heads_kv, rows, *channels]` as `[B, *S, heads, *channels]`."""
        result = result.reshape(batch, heads_kv, positions, group, *channels).transpose(1, 2)
        return result.reshape(batch, *spatial, heads, *channels)

    return heads_last(output, values.shape[-1]), heads_last(lse)
