"""Exponential functions in tensor expressions, one for each kind of target."""

from __future__ import annotations

import math
from collections.abc import Callable

from tvm import te, tirx
from tvm.ir import Expr

Exponential = Callable[[Expr], Expr]

# exp(x) is 0 in float32 to within half a unit of the smallest normal number below this.
_UNDERFLOW = -87.0
# log(2) in two parts: the first has few bits, so that n * _LOG2_HIGH is exact.
_LOG2_HIGH = 0.693359375
_LOG2_LOW = math.log(2.0) - _LOG2_HIGH
_DEGREE = 7


def _float(value: float) -> Expr:
    return tirx.const(value, "float32")


def polynomial(x: Expr) -> Expr:
    """Return exp(x) of a float32 x <= 0 from additions and multiplications alone.

    A vectorized call of the C library's expf becomes one call for each lane; this stays in vector
    registers. exp(x) = 2^n exp(r) with n = round(x / log 2) and the Taylor series of exp(r),
    |r| <= log(2)/2, to degree 7 (remainder below 6e-9). 0 below -87, NaN for NaN.
    """
    argument, power, remainder = (te.var(name, "float32") for name in ("x", "n", "r"))
    series = _float(1 / math.factorial(_DEGREE))
    for degree in reversed(range(_DEGREE)):
        series = series * remainder + _float(1 / math.factorial(degree))
    two_to_n = tirx.reinterpret("float32", (power.astype("int32") + 127) << 23)
    result = tirx.Select(argument < _float(_UNDERFLOW), _float(0.0), series * two_to_n)
    result = tirx.Let(
        remainder, argument - power * _float(_LOG2_HIGH) - power * _float(_LOG2_LOW), result
    )
    # Clamped because the conversion to int32 must not see infinities or numbers out of range.
    clamped = tirx.Select(argument < _float(_UNDERFLOW), _float(_UNDERFLOW), argument)
    result = tirx.Let(power, te.floor(clamped * _float(1 / math.log(2.0)) + _float(0.5)), result)
    return tirx.Let(argument, x, result)


def fenced(x: Expr, dtype: str) -> Expr:
    """Return x, which LLVM then computes as it is written: not reordered with the sum it is in."""
    return tirx.call_llvm_pure_intrin(dtype, "llvm.arithmetic.fence", x)


def base_two(x: Expr) -> Expr:
    """Return exp(x) of a float32 x as 2^(x / log 2), which GPUs compute in one instruction."""
    return tirx.exp2(x * _float(1 / math.log(2.0)))
