// Floating-point arithmetic. Every operation is the scalar IEEE one, rounded as MXCSR says, like
// the hardware's.
#pragma once
#include "avx512_types.h"

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
namespace lepton_emulate {

LEPTON_EMULATE_BINARY(mm512, add_ps, m512, float, a + b)
LEPTON_EMULATE_BINARY(mm512, sub_ps, m512, float, a - b)
LEPTON_EMULATE_BINARY(mm512, mul_ps, m512, float, a* b)
LEPTON_EMULATE_BINARY(mm512, div_ps, m512, float, a / b)
// MINPS and MAXPS: the second operand where either is NaN or both are zeros.
LEPTON_EMULATE_BINARY(mm512, min_ps, m512, float, a < b ? a : b)
LEPTON_EMULATE_BINARY(mm512, max_ps, m512, float, a > b ? a : b)
#define _mm512_add_ps lepton_emulate::mm512_add_ps
#define _mm512_sub_ps lepton_emulate::mm512_sub_ps
#define _mm512_mul_ps lepton_emulate::mm512_mul_ps
#define _mm512_div_ps lepton_emulate::mm512_div_ps
#define _mm512_min_ps lepton_emulate::mm512_min_ps
#define _mm512_max_ps lepton_emulate::mm512_max_ps
#define _mm512_mask_add_ps lepton_emulate::mm512_mask_add_ps
#define _mm512_mask_sub_ps lepton_emulate::mm512_mask_sub_ps
#define _mm512_mask_mul_ps lepton_emulate::mm512_mask_mul_ps
#define _mm512_mask_div_ps lepton_emulate::mm512_mask_div_ps
#define _mm512_mask_min_ps lepton_emulate::mm512_mask_min_ps
#define _mm512_mask_max_ps lepton_emulate::mm512_mask_max_ps
#define _mm512_maskz_add_ps lepton_emulate::mm512_maskz_add_ps
#define _mm512_maskz_sub_ps lepton_emulate::mm512_maskz_sub_ps
#define _mm512_maskz_mul_ps lepton_emulate::mm512_maskz_mul_ps
#define _mm512_maskz_div_ps lepton_emulate::mm512_maskz_div_ps
#define _mm512_maskz_min_ps lepton_emulate::mm512_maskz_min_ps
#define _mm512_maskz_max_ps lepton_emulate::mm512_maskz_max_ps
LEPTON_EMULATE_BINARY(mm512, add_pd, m512d, double, a + b)
LEPTON_EMULATE_BINARY(mm512, sub_pd, m512d, double, a - b)
LEPTON_EMULATE_BINARY(mm512, mul_pd, m512d, double, a* b)
LEPTON_EMULATE_BINARY(mm512, div_pd, m512d, double, a / b)
LEPTON_EMULATE_BINARY(mm512, min_pd, m512d, double, a < b ? a : b)
LEPTON_EMULATE_BINARY(mm512, max_pd, m512d, double, a > b ? a : b)
#define _mm512_add_pd lepton_emulate::mm512_add_pd
#define _mm512_sub_pd lepton_emulate::mm512_sub_pd
#define _mm512_mul_pd lepton_emulate::mm512_mul_pd
#define _mm512_div_pd lepton_emulate::mm512_div_pd
#define _mm512_min_pd lepton_emulate::mm512_min_pd
#define _mm512_max_pd lepton_emulate::mm512_max_pd
#define _mm512_mask_add_pd lepton_emulate::mm512_mask_add_pd
#define _mm512_mask_sub_pd lepton_emulate::mm512_mask_sub_pd
#define _mm512_mask_mul_pd lepton_emulate::mm512_mask_mul_pd
#define _mm512_mask_div_pd lepton_emulate::mm512_mask_div_pd
#define _mm512_mask_min_pd lepton_emulate::mm512_mask_min_pd
#define _mm512_mask_max_pd lepton_emulate::mm512_mask_max_pd
#define _mm512_maskz_add_pd lepton_emulate::mm512_maskz_add_pd
#define _mm512_maskz_sub_pd lepton_emulate::mm512_maskz_sub_pd
#define _mm512_maskz_mul_pd lepton_emulate::mm512_maskz_mul_pd
#define _mm512_maskz_div_pd lepton_emulate::mm512_maskz_div_pd
#define _mm512_maskz_min_pd lepton_emulate::mm512_maskz_min_pd
#define _mm512_maskz_max_pd lepton_emulate::mm512_maskz_max_pd
LEPTON_EMULATE_UNARY(mm512, sqrt_ps, m512, float, _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(a))))
LEPTON_EMULATE_UNARY(mm512, sqrt_pd, m512d, double,
                     _mm_cvtsd_f64(_mm_sqrt_sd(_mm_setzero_pd(), _mm_set_sd(a))))
#define _mm512_sqrt_ps lepton_emulate::mm512_sqrt_ps
#define _mm512_sqrt_pd lepton_emulate::mm512_sqrt_pd
#define _mm512_mask_sqrt_ps lepton_emulate::mm512_mask_sqrt_ps
#define _mm512_mask_sqrt_pd lepton_emulate::mm512_mask_sqrt_pd
#define _mm512_maskz_sqrt_ps lepton_emulate::mm512_maskz_sqrt_ps
#define _mm512_maskz_sqrt_pd lepton_emulate::mm512_maskz_sqrt_pd

// Fused multiply-add: one rounding.
#define LEPTON_EMULATE_FMA(W, NAME, V, T, EXPR)                                                  \
  static inline V W##_##NAME(const V& a_, const V& b_, const V& c_) {                            \
    const auto x = lanes<T>(a_), y = lanes<T>(b_), z = lanes<T>(c_);                             \
    Pack<T, sizeof(V) / sizeof(T)> r;                                                            \
    for (int i = 0; i < r.size; ++i) {                                                           \
      const T a = x.at[i], b = y.at[i], c = z.at[i];                                             \
      r.at[i] = EXPR;                                                                            \
    }                                                                                            \
    return join<V>(r);                                                                           \
  }                                                                                              \
  static inline V W##_mask_##NAME(const V& a, mask_t<T, sizeof(V)> k, const V& b, const V& c) {  \
    return select<T>(k, W##_##NAME(a, b, c), a);                                                 \
  }                                                                                              \
  static inline V W##_mask3_##NAME(const V& a, const V& b, const V& c, mask_t<T, sizeof(V)> k) { \
    return select<T>(k, W##_##NAME(a, b, c), c);                                                 \
  }                                                                                              \
  static inline V W##_maskz_##NAME(mask_t<T, sizeof(V)> k, const V& a, const V& b, const V& c) { \
    return select<T>(k, W##_##NAME(a, b, c), zero<V>());                                         \
  }
LEPTON_EMULATE_FMA(mm512, fmadd_ps, m512, float, __builtin_fmaf(a, b, c))
LEPTON_EMULATE_FMA(mm512, fmsub_ps, m512, float, __builtin_fmaf(a, b, -c))
LEPTON_EMULATE_FMA(mm512, fnmadd_ps, m512, float, __builtin_fmaf(-a, b, c))
LEPTON_EMULATE_FMA(mm512, fnmsub_ps, m512, float, __builtin_fmaf(-a, b, -c))
LEPTON_EMULATE_FMA(mm512, fmadd_pd, m512d, double, __builtin_fma(a, b, c))
LEPTON_EMULATE_FMA(mm512, fmsub_pd, m512d, double, __builtin_fma(a, b, -c))
LEPTON_EMULATE_FMA(mm512, fnmadd_pd, m512d, double, __builtin_fma(-a, b, c))
LEPTON_EMULATE_FMA(mm512, fnmsub_pd, m512d, double, __builtin_fma(-a, b, -c))
#define _mm512_fmadd_ps lepton_emulate::mm512_fmadd_ps
#define _mm512_fmadd_pd lepton_emulate::mm512_fmadd_pd
#define _mm512_fmsub_ps lepton_emulate::mm512_fmsub_ps
#define _mm512_fmsub_pd lepton_emulate::mm512_fmsub_pd
#define _mm512_fnmadd_ps lepton_emulate::mm512_fnmadd_ps
#define _mm512_fnmadd_pd lepton_emulate::mm512_fnmadd_pd
#define _mm512_fnmsub_ps lepton_emulate::mm512_fnmsub_ps
#define _mm512_fnmsub_pd lepton_emulate::mm512_fnmsub_pd
#define _mm512_mask_fmadd_ps lepton_emulate::mm512_mask_fmadd_ps
#define _mm512_mask_fmadd_pd lepton_emulate::mm512_mask_fmadd_pd
#define _mm512_mask_fmsub_ps lepton_emulate::mm512_mask_fmsub_ps
#define _mm512_mask_fmsub_pd lepton_emulate::mm512_mask_fmsub_pd
#define _mm512_mask_fnmadd_ps lepton_emulate::mm512_mask_fnmadd_ps
#define _mm512_mask_fnmadd_pd lepton_emulate::mm512_mask_fnmadd_pd
#define _mm512_mask_fnmsub_ps lepton_emulate::mm512_mask_fnmsub_ps
#define _mm512_mask_fnmsub_pd lepton_emulate::mm512_mask_fnmsub_pd
#define _mm512_mask3_fmadd_ps lepton_emulate::mm512_mask3_fmadd_ps
#define _mm512_mask3_fmadd_pd lepton_emulate::mm512_mask3_fmadd_pd
#define _mm512_mask3_fmsub_ps lepton_emulate::mm512_mask3_fmsub_ps
#define _mm512_mask3_fmsub_pd lepton_emulate::mm512_mask3_fmsub_pd
#define _mm512_mask3_fnmadd_ps lepton_emulate::mm512_mask3_fnmadd_ps
#define _mm512_mask3_fnmadd_pd lepton_emulate::mm512_mask3_fnmadd_pd
#define _mm512_mask3_fnmsub_ps lepton_emulate::mm512_mask3_fnmsub_ps
#define _mm512_mask3_fnmsub_pd lepton_emulate::mm512_mask3_fnmsub_pd
#define _mm512_maskz_fmadd_ps lepton_emulate::mm512_maskz_fmadd_ps
#define _mm512_maskz_fmadd_pd lepton_emulate::mm512_maskz_fmadd_pd
#define _mm512_maskz_fmsub_ps lepton_emulate::mm512_maskz_fmsub_ps
#define _mm512_maskz_fmsub_pd lepton_emulate::mm512_maskz_fmsub_pd
#define _mm512_maskz_fnmadd_ps lepton_emulate::mm512_maskz_fnmadd_ps
#define _mm512_maskz_fnmadd_pd lepton_emulate::mm512_maskz_fnmadd_pd
#define _mm512_maskz_fnmsub_ps lepton_emulate::mm512_maskz_fnmsub_ps
#define _mm512_maskz_fnmsub_pd lepton_emulate::mm512_maskz_fnmsub_pd

// Explicit rounding: to nearest and "as MXCSR says" only; the kernels have no use for the others.
static inline void check_nearest(int rounding, const char* what) {
  const int mode = rounding & 7;
  if (mode != _MM_FROUND_TO_NEAREST_INT && mode != _MM_FROUND_CUR_DIRECTION)
    fail(what, "only rounding to nearest is emulated");
}
static inline m512 mm512_add_round_ps(const m512& a, const m512& b, int rounding) {
  check_nearest(rounding, "_mm512_add_round_ps");
  return mm512_add_ps(a, b);
}
static inline m512 mm512_sub_round_ps(const m512& a, const m512& b, int rounding) {
  check_nearest(rounding, "_mm512_sub_round_ps");
  return mm512_sub_ps(a, b);
}
static inline m512 mm512_mul_round_ps(const m512& a, const m512& b, int rounding) {
  check_nearest(rounding, "_mm512_mul_round_ps");
  return mm512_mul_ps(a, b);
}
static inline m512 mm512_fmadd_round_ps(const m512& a, const m512& b, const m512& c, int rounding) {
  check_nearest(rounding, "_mm512_fmadd_round_ps");
  return mm512_fmadd_ps(a, b, c);
}
#undef _mm512_add_round_ps
#define _mm512_add_round_ps lepton_emulate::mm512_add_round_ps
#undef _mm512_sub_round_ps
#define _mm512_sub_round_ps lepton_emulate::mm512_sub_round_ps
#undef _mm512_mul_round_ps
#define _mm512_mul_round_ps lepton_emulate::mm512_mul_round_ps
#undef _mm512_fmadd_round_ps
#define _mm512_fmadd_round_ps lepton_emulate::mm512_fmadd_round_ps

// Bitwise on the float's bits (AVX512DQ).
static inline float float_of(std::uint32_t u) { return bits<float>(u); }
static inline std::uint32_t bits_of(float f) { return bits<std::uint32_t>(f); }
LEPTON_EMULATE_UNARY(mm512, abs_ps, m512, float, float_of(bits_of(a) & 0x7FFFFFFFu))
LEPTON_EMULATE_BINARY(mm512, and_ps, m512, std::uint32_t, a& b)
LEPTON_EMULATE_BINARY(mm512, andnot_ps, m512, std::uint32_t, ~a& b)
LEPTON_EMULATE_BINARY(mm512, or_ps, m512, std::uint32_t, a | b)
LEPTON_EMULATE_BINARY(mm512, xor_ps, m512, std::uint32_t, a ^ b)
#define _mm512_abs_ps lepton_emulate::mm512_abs_ps
#define _mm512_mask_abs_ps lepton_emulate::mm512_mask_abs_ps
#define _mm512_and_ps lepton_emulate::mm512_and_ps
#define _mm512_andnot_ps lepton_emulate::mm512_andnot_ps
#define _mm512_or_ps lepton_emulate::mm512_or_ps
#define _mm512_xor_ps lepton_emulate::mm512_xor_ps
#define _mm512_mask_and_ps lepton_emulate::mm512_mask_and_ps
#define _mm512_mask_andnot_ps lepton_emulate::mm512_mask_andnot_ps
#define _mm512_mask_or_ps lepton_emulate::mm512_mask_or_ps
#define _mm512_mask_xor_ps lepton_emulate::mm512_mask_xor_ps
#define _mm512_maskz_and_ps lepton_emulate::mm512_maskz_and_ps
#define _mm512_maskz_andnot_ps lepton_emulate::mm512_maskz_andnot_ps
#define _mm512_maskz_or_ps lepton_emulate::mm512_maskz_or_ps
#define _mm512_maskz_xor_ps lepton_emulate::mm512_maskz_xor_ps

// Rounds to an integer: mode 0 nearest even, 1 down, 2 up, 3 to zero; bit 2: as MXCSR says.
static inline double round_with(double x, int mode) {
  const __m128d v = _mm_set_sd(x);
  switch (mode & 4 ? 4 : mode & 3) {
    case 0: return _mm_cvtsd_f64(_mm_round_sd(v, v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    case 1: return _mm_cvtsd_f64(_mm_round_sd(v, v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC));
    case 2: return _mm_cvtsd_f64(_mm_round_sd(v, v, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC));
    case 3: return _mm_cvtsd_f64(_mm_round_sd(v, v, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC));
    default: return _mm_cvtsd_f64(_mm_round_sd(v, v, _MM_FROUND_CUR_DIRECTION | _MM_FROUND_NO_EXC));
  }
}
// A signalling NaN becomes quiet in every arithmetic instruction.
static inline float quiet(float x) { return float_of(bits_of(x) | 0x00400000u); }
// 2^e for -1022 <= e <= 1023.
static inline double power_of_two(int e) {
  return bits<double>(static_cast<std::uint64_t>(e + 1023) << 52);
}

// VRNDSCALEPS: to a multiple of 2^-(imm >> 4). In double every step is exact.
static inline float round_scale(float x, int imm) {
  if (x != x) return quiet(x);
  const int places = (imm >> 4) & 15;
  return static_cast<float>(round_with(double{x} * power_of_two(places), imm) *
                            power_of_two(-places));
}
LEPTON_EMULATE_IMMEDIATE(mm512, roundscale_ps, m512, float, round_scale(a, static_cast<int>(n)))
#undef _mm512_roundscale_ps
#define _mm512_roundscale_ps lepton_emulate::mm512_roundscale_ps
#undef _mm512_mask_roundscale_ps
#define _mm512_mask_roundscale_ps lepton_emulate::mm512_mask_roundscale_ps
#undef _mm512_maskz_roundscale_ps
#define _mm512_maskz_roundscale_ps lepton_emulate::mm512_maskz_roundscale_ps
static inline m512 mm512_floor_ps(const m512& a) { return mm512_roundscale_ps(a, 1); }
static inline m512 mm512_ceil_ps(const m512& a) { return mm512_roundscale_ps(a, 2); }
#define _mm512_floor_ps lepton_emulate::mm512_floor_ps
#define _mm512_ceil_ps lepton_emulate::mm512_ceil_ps

// VREDUCEPS: what round_scale takes away. Infinity gives +0; a zero result is negative only when
// rounding down.
static inline float reduce_one(float x, int imm) {
  if (x != x) return quiet(x);
  if (std::isinf(x)) return 0.0f;
  const float r = x - round_scale(x, imm);
  const bool down = imm & 4 ? (_mm_getcsr() & 0x6000) == 0x2000 : (imm & 3) == 1;
  return r == 0 ? (down ? -0.0f : 0.0f) : r;
}
LEPTON_EMULATE_IMMEDIATE(mm512, reduce_ps, m512, float, reduce_one(a, static_cast<int>(n)))
#undef _mm512_reduce_ps
#define _mm512_reduce_ps lepton_emulate::mm512_reduce_ps
#undef _mm512_mask_reduce_ps
#define _mm512_mask_reduce_ps lepton_emulate::mm512_mask_reduce_ps
#undef _mm512_maskz_reduce_ps
#define _mm512_maskz_reduce_ps lepton_emulate::mm512_maskz_reduce_ps

// VSCALEFPS: a * 2^floor(b), rounded once.
static inline float scale_one(float a, float b) {
  const float indefinite = float_of(0xFFC00000u);
  if (b != b) return a != a ? quiet(a) : quiet(b);
  if (std::isinf(b)) {
    const bool a_is_quiet_nan = a != a && (bits_of(a) & 0x00400000u);
    if (a_is_quiet_nan) return b > 0 ? b : 0.0f;
    if (a != a) return quiet(a);
    if (b > 0) return a == 0 ? indefinite : std::copysign(b, a);
    return std::isinf(a) ? indefinite : std::copysign(0.0f, a);
  }
  if (a != a) return quiet(a);
  const double exponent = round_with(double{b}, 1);
  // Beyond +-400 the result has overflowed or vanished already; inside, the product in double is
  // exact.
  const int e = exponent > 400 ? 400 : exponent < -400 ? -400 : static_cast<int>(exponent);
  return static_cast<float>(double{a} * power_of_two(e));
}
LEPTON_EMULATE_BINARY(mm512, scalef_ps, m512, float, scale_one(a, b))
#define _mm512_scalef_ps lepton_emulate::mm512_scalef_ps
#define _mm512_mask_scalef_ps lepton_emulate::mm512_mask_scalef_ps
#define _mm512_maskz_scalef_ps lepton_emulate::mm512_maskz_scalef_ps

// VGETEXPPS: floor(log2 |x|) as a float.
static inline float exponent_one(float x) {
  if (x != x) return quiet(x);
  if (std::isinf(x)) return HUGE_VALF;
  if (x == 0) return -HUGE_VALF;
  return static_cast<float>(static_cast<int>((bits<std::uint64_t>(double{x}) >> 52) & 2047) - 1023);
}
LEPTON_EMULATE_UNARY(mm512, getexp_ps, m512, float, exponent_one(a))
#undef _mm512_getexp_ps
#define _mm512_getexp_ps lepton_emulate::mm512_getexp_ps
#undef _mm512_mask_getexp_ps
#define _mm512_mask_getexp_ps lepton_emulate::mm512_mask_getexp_ps
#undef _mm512_maskz_getexp_ps
#define _mm512_maskz_getexp_ps lepton_emulate::mm512_maskz_getexp_ps

// VGETMANTPS: the significand in [1,2), [1/2,2), [1/2,1) or [3/4,3/2); sign control: source, plus,
// NaN if negative.
static inline float significand_one(float x, int interval, int sign_control) {
  if (x != x) return quiet(x);
  const bool negative = bits_of(x) >> 31;
  const std::uint32_t sign = negative && !(sign_control & 1) ? 0x80000000u : 0u;
  if (x == 0) return float_of(sign | 0x3F800000u);
  if (negative && (sign_control & 2)) return float_of(0xFFC00000u);
  if (std::isinf(x)) return float_of(sign | 0x3F800000u);
  const std::uint64_t d = bits<std::uint64_t>(double{x});  // a denormal float is normal here
  const std::uint32_t fraction = static_cast<std::uint32_t>(d >> 29) & 0x7FFFFFu;
  const bool odd = !((d >> 52) & 1);  // of the unbiased exponent: the bias 1023 is odd
  bool halve = false;
  switch (interval & 3) {
    case 0: break;
    case 1: halve = odd; break;
    case 2: halve = true; break;
    default: halve = fraction >> 22;
  }
  return float_of(sign | (halve ? 0x3F000000u : 0x3F800000u) | fraction);
}
static inline m512 mm512_getmant_ps(const m512& a, int interval, int sign_control) {
  m512 r;
  for (int i = 0; i < 16; ++i) r.lane[i] = significand_one(a.lane[i], interval, sign_control);
  return r;
}
static inline m512 mm512_mask_getmant_ps(const m512& src, __mmask16 k, const m512& a, int interval,
                                         int sign_control) {
  return select<float>(k, mm512_getmant_ps(a, interval, sign_control), src);
}
static inline m512 mm512_maskz_getmant_ps(__mmask16 k, const m512& a, int interval,
                                          int sign_control) {
  return select<float>(k, mm512_getmant_ps(a, interval, sign_control), zero<m512>());
}
#undef _mm512_getmant_ps
#define _mm512_getmant_ps lepton_emulate::mm512_getmant_ps
#undef _mm512_mask_getmant_ps
#define _mm512_mask_getmant_ps lepton_emulate::mm512_mask_getmant_ps
#undef _mm512_maskz_getmant_ps
#define _mm512_maskz_getmant_ps lepton_emulate::mm512_maskz_getmant_ps

// Sums over a register, in the order in which gcc's header writes them: the upper half onto the
// lower one down to four lanes; then lane i with lane i + 2; then the last two. min and max take
// their operands in that order too.
template <class T, int N, class Op>
static inline T fold(Pack<T, N> p, Op op) {
  constexpr int four = N == 16 ? 4 : 2;  // lanes of a 128-bit register
  int width = N / 2;
  for (; width >= four; width /= 2)
    for (int i = 0; i < width; ++i) p.at[i] = op(p.at[i + width], p.at[i]);
  for (; width >= 1; width /= 2)
    for (int i = 0; i < width; ++i) p.at[i] = op(p.at[i], p.at[i + width]);
  return p.at[0];
}
#define LEPTON_EMULATE_FOLD(NAME, V, T, NEUTRAL, EXPR)                           \
  static inline T mm512_reduce_##NAME(const V& v) {                              \
    return fold(lanes<T>(v), [](T a, T b) { return static_cast<T>(EXPR); });     \
  }                                                                              \
  static inline T mm512_mask_reduce_##NAME(mask_t<T, sizeof(V)> k, const V& v) { \
    Pack<T, sizeof(V) / sizeof(T)> p;                                            \
    for (int i = 0; i < p.size; ++i) p.at[i] = NEUTRAL;                          \
    return mm512_reduce_##NAME(select<T>(k, v, join<V>(p)));                     \
  }
LEPTON_EMULATE_FOLD(add_ps, m512, float, 0.0f, a + b)
LEPTON_EMULATE_FOLD(mul_ps, m512, float, 1.0f, a* b)
LEPTON_EMULATE_FOLD(min_ps, m512, float, HUGE_VALF, a < b ? a : b)
LEPTON_EMULATE_FOLD(max_ps, m512, float, -HUGE_VALF, a > b ? a : b)
LEPTON_EMULATE_FOLD(add_pd, m512d, double, 0.0, a + b)
LEPTON_EMULATE_FOLD(min_pd, m512d, double, HUGE_VAL, a < b ? a : b)
LEPTON_EMULATE_FOLD(max_pd, m512d, double, -HUGE_VAL, a > b ? a : b)
LEPTON_EMULATE_FOLD(add_epi32, m512i, int, 0, static_cast<unsigned>(a) + static_cast<unsigned>(b))
LEPTON_EMULATE_FOLD(min_epi32, m512i, int, INT32_MAX, a < b ? a : b)
LEPTON_EMULATE_FOLD(max_epi32, m512i, int, INT32_MIN, a > b ? a : b)
LEPTON_EMULATE_FOLD(or_epi32, m512i, int, 0, a | b)
LEPTON_EMULATE_FOLD(and_epi32, m512i, int, -1, a& b)
LEPTON_EMULATE_FOLD(min_epu32, m512i, unsigned, UINT32_MAX, a < b ? a : b)
LEPTON_EMULATE_FOLD(max_epu32, m512i, unsigned, 0, a > b ? a : b)
LEPTON_EMULATE_FOLD(add_epi64, m512i, long long, 0,
                    static_cast<unsigned long long>(a) + static_cast<unsigned long long>(b))
#define _mm512_reduce_add_ps lepton_emulate::mm512_reduce_add_ps
#define _mm512_reduce_mul_ps lepton_emulate::mm512_reduce_mul_ps
#define _mm512_reduce_min_ps lepton_emulate::mm512_reduce_min_ps
#define _mm512_reduce_max_ps lepton_emulate::mm512_reduce_max_ps
#define _mm512_mask_reduce_add_ps lepton_emulate::mm512_mask_reduce_add_ps
#define _mm512_mask_reduce_mul_ps lepton_emulate::mm512_mask_reduce_mul_ps
#define _mm512_mask_reduce_min_ps lepton_emulate::mm512_mask_reduce_min_ps
#define _mm512_mask_reduce_max_ps lepton_emulate::mm512_mask_reduce_max_ps
#define _mm512_reduce_add_pd lepton_emulate::mm512_reduce_add_pd
#define _mm512_reduce_min_pd lepton_emulate::mm512_reduce_min_pd
#define _mm512_reduce_max_pd lepton_emulate::mm512_reduce_max_pd
#define _mm512_mask_reduce_add_pd lepton_emulate::mm512_mask_reduce_add_pd
#define _mm512_mask_reduce_min_pd lepton_emulate::mm512_mask_reduce_min_pd
#define _mm512_mask_reduce_max_pd lepton_emulate::mm512_mask_reduce_max_pd
#define _mm512_reduce_add_epi32 lepton_emulate::mm512_reduce_add_epi32
#define _mm512_reduce_min_epi32 lepton_emulate::mm512_reduce_min_epi32
#define _mm512_reduce_max_epi32 lepton_emulate::mm512_reduce_max_epi32
#define _mm512_reduce_or_epi32 lepton_emulate::mm512_reduce_or_epi32
#define _mm512_reduce_and_epi32 lepton_emulate::mm512_reduce_and_epi32
#define _mm512_mask_reduce_add_epi32 lepton_emulate::mm512_mask_reduce_add_epi32
#define _mm512_mask_reduce_min_epi32 lepton_emulate::mm512_mask_reduce_min_epi32
#define _mm512_mask_reduce_max_epi32 lepton_emulate::mm512_mask_reduce_max_epi32
#define _mm512_mask_reduce_or_epi32 lepton_emulate::mm512_mask_reduce_or_epi32
#define _mm512_mask_reduce_and_epi32 lepton_emulate::mm512_mask_reduce_and_epi32
#define _mm512_reduce_min_epu32 lepton_emulate::mm512_reduce_min_epu32
#define _mm512_reduce_max_epu32 lepton_emulate::mm512_reduce_max_epu32
#define _mm512_mask_reduce_min_epu32 lepton_emulate::mm512_mask_reduce_min_epu32
#define _mm512_mask_reduce_max_epu32 lepton_emulate::mm512_mask_reduce_max_epu32
#define _mm512_reduce_add_epi64 lepton_emulate::mm512_reduce_add_epi64
#define _mm512_mask_reduce_add_epi64 lepton_emulate::mm512_mask_reduce_add_epi64

}  // namespace lepton_emulate
#pragma GCC pop_options
