// Activation functions over the vocabulary of simd_*.h. Read after one of them, in the
// same target region. Every step is one IEEE operation (division and fma included, no
// approximate reciprocal, no table), so every ISA gives the same bits.
//
// Error: below 2 ULP of the exact value for every finite argument, measured over all floats
// by tests/cpp/activation_check.cpp. Results below the smallest normal number are that good
// in units of the smallest denormal, unless the processor flushes denormals to zero. NaN
// gives NaN (payload unspecified), infinities give their limits.
// Coefficients: tools/fit_activation.py.
namespace {

// n = y / ln 2 to the nearest integer, found by adding and subtracting 1.5 * 2^23. The low
// bits of `biased` hold n + bias.
struct Exponent {
  F32 n;
  I32 biased;
};

template <int bias>
inline Exponent nearest_exponent(F32 y) {
  const F32 shift = f32_set(12582912.0f + bias);
  const F32 shifted = f32_fma(y, f32_set(0x1.715476p+0f), shift);
  return {f32_sub(shifted, shift), f32_bits(shifted)};
}

// r = y - n ln 2 in two steps, the first of them exact (Cody and Waite; the split of ln 2
// is that of Cephes expf).
inline F32 minus_ln2_high(F32 n, F32 y) { return f32_fnma(n, f32_set(0.693359375f), y); }
inline F32 ln2_low() { return f32_set(-2.12194440e-4f); }

// exp(r) - 1 for |r| <= ln(2) / 2. To multiply by exp(r), use fma(x, expm1, x): it rounds
// once, x * exp(r) twice.
inline F32 expm1_poly(F32 r) {
  F32 p = f32_set(0x1.6b6e42p-10f);
  p = f32_fma(p, r, f32_set(0x1.122f7ap-7f));
  p = f32_fma(p, r, f32_set(0x1.555688p-5f));
  p = f32_fma(p, r, f32_set(0x1.5554a4p-3f));
  p = f32_fma(p, r, f32_set(0.5f));
  p = f32_fma(p, r, f32_set(1.0f));
  return f32_mul(p, r);
}

// The float whose exponent field is the low byte of `biased`.
inline F32 power_of_two(I32 biased) { return f32_from_bits(i32_shl<23>(biased)); }

// |x|, no larger than `limit`; NaN stays.
inline F32 magnitude_up_to(float limit, F32 x) { return f32_min(f32_set(limit), f32_abs(x)); }

inline F32 exp_f32(F32 x) {
  const F32 y = f32_min(f32_set(89.0f), f32_max(f32_set(-104.0f), x));
  const Exponent e = nearest_exponent<254>(y);
  const F32 r = f32_fnma(e.n, ln2_low(), minus_ln2_high(e.n, y));
  // 2^n as two factors: n goes from -150 to 128, more than one exponent field holds.
  const I32 half = i32_sra<1>(e.biased);
  const F32 first = power_of_two(half);
  return f32_mul(f32_fma(first, expm1_poly(r), first), power_of_two(i32_sub(e.biased, half)));
}

// a / (1 + exp(high - excess)) for 0 <= high <= 110, |excess| a rounding error of high.
// The denominator is kept times 2^-40, where it cannot overflow. It is summed as
// (2^n + 1) + (2^n expm1(r) + what the first bracket lost), to round once at full size.
inline F32 logistic_tail(F32 a, F32 high, F32 excess) {
  const Exponent e = nearest_exponent<127 - 40>(high);
  const F32 r = f32_sub(minus_ln2_high(e.n, high), f32_fma(e.n, ln2_low(), excess));
  const F32 two_n = power_of_two(e.biased);
  const F32 one = f32_set(0x1p-40f);
  const F32 sum = f32_add(two_n, one);
  const F32 lost = f32_sub(one, f32_sub(sum, two_n));
  const F32 denominator = f32_add(sum, f32_fma(two_n, expm1_poly(r), lost));
  return f32_mul(f32_div(a, denominator), one);
}

inline F32 sigmoid_f32(F32 x) {
  const F32 s = logistic_tail(f32_set(1.0f), magnitude_up_to(110.0f, x), f32_zero());
  return f32_select_lt(x, f32_zero(), s, f32_sub(f32_set(1.0f), s));
}

inline F32 relu_f32(F32 x) { return f32_max(f32_zero(), x); }

// The rest are relu(x) - q(|x|) with q even, positive and vanishing at infinity: so the
// negative tail is q itself, and infinities, -0 and NaN need no care.

inline F32 silu_f32(F32 x) {
  const F32 a = magnitude_up_to(110.0f, x);
  return f32_sub(relu_f32(x), logistic_tail(a, a, f32_zero()));
}

// 0.5 x (1 + tanh(w)) = x / (1 + exp(-2w)), 2w = x (k0 + k1 x^2). 2w goes up to 100 and is
// needed to 2^-26, so it is carried in two parts. k0 is short, to make `k0 - sum` exact.
inline F32 gelu_tanh_f32(F32 x) {
  const F32 k0 = f32_set(0x1.9884p+0f);
  const F32 k1 = f32_set(0x1.2444f2p-4f);
  const F32 a = magnitude_up_to(10.8f, x);
  const F32 square = f32_mul(a, a);
  const F32 square_excess = f32_fnma(a, a, square);
  const F32 sum = f32_fma(square, k1, k0);
  const F32 rounded_off = f32_fma(square, k1, f32_sub(k0, sum));
  const F32 k_low = f32_fma(square, f32_set(0x1.49b16ap-29f), f32_set(0x1.4cf50ep-18f));
  const F32 sum_low = f32_fnma(square_excess, k1, f32_add(rounded_off, k_low));
  const F32 high = f32_mul(a, sum);
  const F32 excess = f32_fnma(a, sum_low, f32_fnma(a, sum, high));
  return f32_sub(relu_f32(x), logistic_tail(a, high, excess));
}

// x Phi(x) = relu(x) - a Phi(-a), a = |x|. With b = a/2 / (1 + h a),
//   a Phi(-a) = b exp(-a^2/2 - b L(b)),
// L a polynomial, b L(b) going from 0 to 1. The rounding errors of the two b add up to
// nothing for large a, but not for small a: so what 1 + h a lost by rounding goes into the
// exponent, times a factor that fades out as b goes to 1.
//
// Done for n vectors side by side, step by step: the chain of some 40 operations is far longer than
// what a processor can look ahead, so one vector after the other leaves its units idle.
#if defined(__CUDACC__)
#define LEPTON_EACH _Pragma("unroll") for (int i = 0; i < n; ++i)
#elif defined(__GNUC__) && !defined(__clang__)
#define LEPTON_EACH _Pragma("GCC unroll 4") for (int i = 0; i < n; ++i)
#else
#define LEPTON_EACH for (int i = 0; i < n; ++i)
#endif
template <int n>
inline void gelu_f32(F32 (&x)[n]) {
  const F32 one = f32_set(1.0f);
  const F32 h = f32_set(0x1.aaaaaap-2f);
  F32 a[n], half[n], power[n], sum[n], lost[n], b[n], fade[n], excess[n], p[n], r[n];
  Exponent e[n];
  LEPTON_EACH a[i] = magnitude_up_to(14.5f, x[i]);
  LEPTON_EACH half[i] = f32_mul(a[i], f32_set(0.5f));
  LEPTON_EACH power[i] = f32_fnma(half[i], a[i], f32_zero());
  LEPTON_EACH sum[i] = f32_fma(a[i], h, one);
  LEPTON_EACH b[i] = f32_div(half[i], sum[i]);
  LEPTON_EACH lost[i] = f32_fma(a[i], h, f32_sub(one, sum[i]));
  LEPTON_EACH excess[i] = f32_fma(half[i], a[i], power[i]);
  LEPTON_EACH fade[i] = f32_sub(one, b[i]);
  LEPTON_EACH lost[i] = f32_mul(lost[i], fade[i]);
  LEPTON_EACH excess[i] = f32_fma(lost[i], fade[i], excess[i]);
  LEPTON_EACH p[i] = f32_fma(f32_set(0x1.dd258ap-6f), b[i], f32_set(-0x1.1dfb4p-3f));
  LEPTON_EACH p[i] = f32_fma(p[i], b[i], f32_set(0x1.078246p-2f));
  LEPTON_EACH p[i] = f32_fma(p[i], b[i], f32_set(-0x1.f9135cp-3f));
  LEPTON_EACH p[i] = f32_fma(p[i], b[i], f32_set(0x1.5e9208p-3f));
  LEPTON_EACH p[i] = f32_fma(p[i], b[i], f32_set(-0x1.318488p-4f));
  LEPTON_EACH p[i] = f32_fma(p[i], b[i], f32_set(-0x1.4cab18p-6f));
  LEPTON_EACH p[i] = f32_fma(p[i], b[i], f32_set(-0x1.05e07ep-4f));
  LEPTON_EACH p[i] = f32_fma(p[i], b[i], f32_set(-0x1.496ed6p-8f));
  LEPTON_EACH p[i] = f32_fma(p[i], b[i], f32_set(0x1.05f36ap-2f));
  LEPTON_EACH p[i] = f32_fma(p[i], b[i], f32_set(0x1.865e04p-1f));
  LEPTON_EACH e[i] = nearest_exponent<127 + 40>(f32_fnma(b[i], p[i], power[i]));
  LEPTON_EACH r[i] = f32_fma(b[i], p[i], f32_fma(e[i].n, ln2_low(), excess[i]));
  LEPTON_EACH r[i] = f32_sub(minus_ln2_high(e[i].n, power[i]), r[i]);
  LEPTON_EACH p[i] = expm1_poly(r[i]);
  // 2^n is applied in two steps, as the result may be denormal.
  LEPTON_EACH p[i] = f32_mul(f32_fma(b[i], p[i], b[i]), power_of_two(e[i].biased));
  LEPTON_EACH x[i] = f32_fnma(p[i], f32_set(0x1p-40f), relu_f32(x[i]));
}
#undef LEPTON_EACH

inline F32 gelu_f32(F32 x) {
  F32 one[1] = {x};
  gelu_f32(one);
  return one[0];
}

}  // namespace
