"""The logit of a query and a key, and its probability, in kernels for tensor cores.

Logits are to the base of two here: log2(e) times the formula of `natc.compiler.te.logits`, so that
an exponential is one instruction.
"""

from __future__ import annotations

from typing import Any

from natc.compiler.tensor_cores.statements import call


def logit_of(score: Any, scale: Any, added: Any | None = None) -> Any:
    """Return scale * score + added.

    scale: the call's scale times log2(e). added: the pair's bias or mask, to the base of two, or
    in gradients the bias less the logsumexp; None for 0.
    """
    return score * scale if added is None else score * scale + added


def probability_of(score: Any, scale: Any, added: Any, most: Any) -> Any:
    """Return 2^(scale * score + added), and 2^most if the exponent is larger.

    A recomputed logit may exceed the logsumexp by a rounding error, as in `te.logits`.
    """
    exponent = call("float32", "natc_min", logit_of(score, scale, added), most)
    return call("float32", "natc_exp2", exponent)
