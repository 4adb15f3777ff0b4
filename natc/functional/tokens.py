"""Additional tokens, which every query attends to beside its window."""

from __future__ import annotations

import math

from torch import Tensor

from natc.errors import ArgumentError
from natc.functional import arguments
from natc.reference.layout import accumulator, without_autocast


def both(keys: Tensor | None, values: Tensor | None) -> list[tuple[str, Tensor]]:
    """Return the tokens with their names; raises ArgumentError where one of two is missing."""
    named = [("additional_keys", keys), ("additional_values", values)]
    for (name, given), (other, _) in zip(named, reversed(named)):
        if given is None:
            raise ArgumentError(f"{name} is None; it must be given with {other}.")
    return named  # type: ignore[return-value]


def check(key: Tensor, value: Tensor, keys: Tensor, values: Tensor) -> None:
    """Check the shapes of tokens for key `[B, *S, heads_kv, head_dim]` and its value."""
    batch, heads_kv, head_dim = key.shape[0], key.shape[-2], key.shape[-1]
    because = f"as key has shape {list(key.shape)}"
    arguments.shape("additional_keys", keys, (batch, "tokens", heads_kv, head_dim), because)
    expected = (*keys.shape[:3], value.shape[-1])
    because = f"as value has shape {list(value.shape)} and additional_keys {list(keys.shape)}"
    arguments.shape("additional_values", values, expected, because)


def attend(query: Tensor, keys: Tensor, values: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return attention of every query to the same tokens, and its logsumexp; no tokens: 0, -inf.

    query `[B, *S, heads, head_dim]`, keys and values `[B, tokens, heads_kv, channels]`. Heads that
    share a key become rows of one product, so that keys are not copied.
    """
    batch, *spatial, heads, head_dim = query.shape
    heads_kv = keys.shape[2]
    group = heads // max(heads_kv, 1)
    positions = math.prod(spatial)
    compute = accumulator(query.dtype)
    with without_autocast(query.device):
        rows = (query.to(compute) * scale).reshape(batch, positions, heads_kv, group, head_dim)
        rows = rows.transpose(1, 2).reshape(batch, heads_kv, positions * group, head_dim)
        logits = rows @ keys.to(compute).permute(0, 2, 3, 1)
        output = logits.softmax(-1) @ values.to(compute).transpose(1, 2)
    lse = logits.logsumexp(-1)

    def heads_last(result: Tensor, *channels: int) -> Tensor:
        result = result.reshape(batch, heads_kv, positions, group, *channels).transpose(1, 2)
        return result.reshape(batch, *spatial, heads, *channels)

    return heads_last(output, values.shape[-1]), heads_last(lse)
