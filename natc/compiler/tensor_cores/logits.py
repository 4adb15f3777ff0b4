"""The logit of a query and a key, and its probability, in kernels for tensor cores.

Logits are to the base of two here: log2(e) times the formula of `natc.compiler.te.logits`, so that
an exponential is one instruction.
"""

from __future__ import annotations

import math
from typing import Any

from tvm import tirx

from natc.compiler.statements import call

LOG2_E = 1 / math.log(2.0)


def logit_of(score: Any, scale: Any, added: Any | None = None) -> Any:
    """Return scale * score + added.

    scale: the call's scale times log2(e). added: the pair's bias or mask, to the base of two;
    None for 0.
    """
    return score * scale if added is None else score * scale + added


def exponent_of(score: Any, scale: Any, minus_lse: Any, bias: Any | None = None) -> Any:
    """Return scale * score + bias - lse, with the same bits in every kernel.

    minus_lse: -lse by `fmaf`, as in `natc_minus_lse`. bias: from `rpb_at`; None for 0. So both are
    as is this: CUDA's compiler would fuse a product and a sum in some kernels and not in others.
    """
    added = minus_lse if bias is None else bias + minus_lse
    return call("float32", "fmaf", score, scale, added)


def shift_of(correction: Any, most: Any) -> Any:
    """Return `most`, the logarithm to the base of two of a factor, less a query's correction."""
    return most - correction * tirx.const(LOG2_E, "float32")


def probability_of(exponent: Any, shift: Any, most: Any) -> Any:
    """Return 2^(exponent + shift), and 2^most if that is larger: see `te.logits`."""
    exponent = call("float32", "natc_min", exponent + shift, most)
    return call("float32", "natc_exp2", exponent)
