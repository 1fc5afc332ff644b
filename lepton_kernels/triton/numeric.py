"""Scalar building blocks of the kernels: exact products, rounding, activations, bit counts.

The arithmetic of the int8 family is a fixed sequence of IEEE operations, so that every backend
gives the same bits. A compiler may contract `a * b + c` into one rounding; `multiply` prevents that
wherever a product feeds a sum, without a compiler option (which `torch.compile` would drop).
"""

from __future__ import annotations

import triton
import triton.language as tl

from lepton_kernels.triton.launch import INTERPRETED

_INTERPRETED = tl.constexpr(INTERPRETED)


@triton.jit
def fused(a, b, c):
    """a * b + c, rounded once (in the interpreter, whose fma rounds twice, nearly always)."""
    if _INTERPRETED:
        wide = a.to(tl.float64) * b + c
        result = wide.to(tl.float32)
    else:
        result = tl.fma(a, b, c)
    return result


@triton.jit
def multiply(a, b):
    """a * b, rounded by itself: never contracted into a fused multiply-add with a later sum."""
    # Adding +0 changes -0 to +0 only, so no compiler may drop it.
    return tl.fma(a, b, 0.0)


@triton.jit
def round_even(x):
    """Nearest integer, ties to even, for |x| < 2^22: the sum with 1.5 * 2^23 does the rounding."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def to_level(x, inverse):
    """round(x * inverse), limited to +-1024 before rounding, where every int8 result saturates."""
    scaled = multiply(x, inverse)
    scaled = tl.where(scaled > 1024.0, 1024.0, scaled)
    return round_even(tl.where(scaled < -1024.0, -1024.0, scaled))


@triton.jit
def divide(a, b):
    """a / b to the nearest, for normal b, 1 / b and a / b: div.rn without its slow path.

    Newton steps from the approximate quotient, as in Markstein, "IA-64 and Elementary Functions".
    """
    reciprocal = 1.0 / b
    reciprocal = fused(fused(-b, reciprocal, 1.0), reciprocal, reciprocal)
    quotient = multiply(a, reciprocal)
    quotient = fused(fused(-b, quotient, a), reciprocal, quotient)
    return fused(fused(-b, quotient, a), reciprocal, quotient)


@triton.jit
def is_finite(x):
    """Neither NaN nor infinite."""
    return tl.abs(x) < float("inf")


@triton.jit
def count_bits(words):
    """Number of one bits of each non-negative int32 below 2^31 or int64 of up to 64 bits."""
    # Bits summed in fields of 2, 4, 8 bits; the last product adds the bytes up.
    if words.dtype == tl.int64:
        words = words - ((words >> 1) & 0x5555555555555555)
        words = (words & 0x3333333333333333) + ((words >> 2) & 0x3333333333333333)
        words = (words + (words >> 4)) & 0x0F0F0F0F0F0F0F0F
        words += words >> 8
        words += words >> 16
        words += words >> 32
        count = (words & 0x7F).to(tl.int32)
    else:
        words = words - ((words >> 1) & 0x55555555)
        words = (words & 0x33333333) + ((words >> 2) & 0x33333333)
        words = (words + (words >> 4)) & 0x0F0F0F0F
        words += words >> 8
        words += words >> 16
        count = words & 0x3F
    return count


# The activations are those of csrc/cpu/activation.h, operation by operation; their derivation and
# error bounds are there.


@triton.jit
def _nearest_exponent(y, bias: tl.constexpr):
    """n = y / ln 2 to the nearest integer, and an int32 whose low bits hold n + bias."""
    shift: tl.constexpr = 12582912.0 + bias
    shifted = fused(y, 1.4426950216293335, shift)
    return shifted - shift, shifted.to(tl.int32, bitcast=True)


@triton.jit
def _minus_ln2_high(n, y):
    return fused(n, -0.693359375, y)


@triton.jit
def _power_of_two(biased):
    return (biased << 23).to(tl.float32, bitcast=True)


@triton.jit
def _expm1(r):
    """exp(r) - 1 for |r| <= ln(2) / 2."""
    p = fused(r, 0.0013863780768588185, 0.008367476053535938)
    p = fused(p, r, 0.041667237877845764)
    p = fused(p, r, 0.16666534543037415)
    p = fused(p, r, 0.5)
    p = fused(p, r, 1.0)
    return multiply(p, r)


@triton.jit
def _magnitude_up_to(x, limit: tl.constexpr):
    a = tl.abs(x)
    return tl.where(a > limit, limit, a)


@triton.jit
def _relu(x):
    return tl.where(x < 0.0, 0.0, x)


@triton.jit
def _logistic_tail(a, high, excess):
    """a / (1 + exp(high - excess)) for 0 <= high <= 110."""
    n, biased = _nearest_exponent(high, 87)
    r = _minus_ln2_high(n, high) - fused(n, -2.12194440e-4, excess)
    two_n = _power_of_two(biased)
    one: tl.constexpr = 9.094947017729282e-13  # 2^-40
    total = two_n + one
    lost = one - (total - two_n)
    denominator = total + fused(two_n, _expm1(r), lost)
    return multiply(divide(a, denominator), one)


@triton.jit
def _silu(x):
    a = _magnitude_up_to(x, 110.0)
    return _relu(x) - _logistic_tail(a, a, 0.0)


@triton.jit
def _gelu_tanh(x):
    k0: tl.constexpr = 1.59576416015625
    k1: tl.constexpr = 0.07135481387376785
    a = _magnitude_up_to(x, 10.8)
    square = multiply(a, a)
    square_excess = fused(-a, a, square)
    total = fused(square, k1, k0)
    rounded_off = fused(square, k1, k0 - total)
    k_low = fused(square, 2.3988324659995897e-09, 4.961449576512678e-06)
    total_low = fused(square_excess, -k1, rounded_off + k_low)
    high = multiply(a, total)
    excess = fused(-a, total_low, fused(-a, total, high))
    return _relu(x) - _logistic_tail(a, high, excess)


@triton.jit
def _gelu(x):
    h: tl.constexpr = 0.4166666567325592
    a = _magnitude_up_to(x, 14.5)
    half = a * 0.5
    power = fused(-half, a, 0.0)
    total = fused(a, h, 1.0)
    lost = fused(a, h, 1.0 - total)
    b = divide(half, total)
    fade = 1.0 - b
    excess = fused(multiply(lost, fade), fade, fused(half, a, power))
    p = fused(b, 0.029122719541192055, -0.13963937759399414)
    p = fused(p, b, 0.2573328912258148)
    p = fused(p, b, -0.24661895632743835)
    p = fused(p, b, 0.1711769700050354)
    p = fused(p, b, -0.07458928227424622)
    p = fused(p, b, -0.020304463803768158)
    p = fused(p, b, -0.0639347955584526)
    p = fused(p, b, -0.005026747938245535)
    p = fused(p, b, 0.2558113634586334)
    p = fused(p, b, 0.762436032295227)
    n, biased = _nearest_exponent(fused(-b, p, power), 167)
    tail = fused(b, p, fused(n, -2.12194440e-4, excess))
    r = _minus_ln2_high(n, power) - tail
    scaled = multiply(fused(b, _expm1(r), b), _power_of_two(biased))
    return fused(-scaled, 9.094947017729282e-13, _relu(x))


@triton.jit
def activate(y, ACTIVATION: tl.constexpr):
    """Activation by its number in `reference.int8_linear.ACTIVATIONS`, for float32."""
    if ACTIVATION == 1:
        y = _relu(y)
    elif ACTIVATION == 2:
        y = _gelu(y)
    elif ACTIVATION == 3:
        y = _gelu_tanh(y)
    elif ACTIVATION == 4:
        y = _silu(y)
    return y
