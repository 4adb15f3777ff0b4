"""Panels: rows of keys and values in the order and the type in which products read them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.ir import Expr

from natc.compiler.cpu_tiles.products import At
from natc.compiler.cpu_tiles.vectors import save, transposed
from natc.compiler.statements import Statements

# Returns `lanes` adjacent channels of a token as float32: (token, first channel) -> vector.
Source = Callable[[Any, Any], Expr]


def pack_channels(
    s: Statements,
    source: Source,
    target: At,
    *,
    tokens: Any,
    channels: int,
    width: int,
    lanes: int,
) -> None:
    """Write a row of tokens channel by channel, `width` numbers for each channel.

    tokens: their number. Copies of the last token fill the row up to a multiple of `lanes`.
    """
    with s.loop("token_block", tirx.truncdiv(tokens + (lanes - 1), lanes)) as block:
        first = s.let("first", block * lanes)
        token = [
            s.let("token", tirx.min(first + t, tokens - 1)) if t else first for t in range(lanes)
        ]
        with s.loop("channel_block", channels // lanes) as channel_block:
            channel = s.let("channel", channel_block * lanes)
            columns = transposed(s, [source(t, channel) for t in token])
            for c, column in enumerate(columns):
                at = target.offset + (channel + c) * width + first
                save(s, target.buffer, at, column, lanes)


def pack_tokens(
    s: Statements, source: Source, target: At, *, tokens: Any, channels: int, lanes: int
) -> None:
    """Write a row of tokens one after the other."""
    with s.loop("token", tokens) as token:
        for channel in range(0, channels, lanes):
            at = target.offset + token * channels + channel
            save(s, target.buffer, at, source(token, channel), lanes)
