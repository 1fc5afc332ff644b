// Activation functions over the vocabulary of simd_*.h. Read after one of them, in the
// same target region. Every step is one IEEE operation (division and fma included, no
// approximate reciprocal, no table), so every ISA gives the same bits.
//
// Error: at most 2 ULP of the exact value for every finite argument; the table of
// measured maxima is in tests/cpp/activation_check.cpp. Results below the smallest normal
// number are within 2 of their last places, as long as the processor does not flush
// denormals. Coefficients: tools/fit_activation.py.
namespace {

// exp(-y) = (1 + rho) 2^n. `biased` has n + 167 in its low bits: the exponent field of
// 2^(n + 40), see scale().
struct ExpParts {
  F32 rho;
  I32 biased;
};

// For 0 <= y <= 110. y = high - low, where |low| is a rounding error of high.
// n = nearest integer to -y / ln 2, found by adding and subtracting 1.5 * 2^23; ln 2 is
// split in two so that n times the first part is exact (Cody and Waite; the split is that
// of Cephes expf).
inline ExpParts exp_minus(F32 high, F32 low) {
  const F32 shift = f32_set(12582912.0f + 167.0f);
  const F32 shifted = f32_fnma(high, f32_set(0x1.715476p+0f), shift);
  const F32 n = f32_sub(shifted, shift);
  const F32 tail = f32_fma(n, f32_set(2.12194440e-4f), low);
  const F32 r = f32_sub(f32_fma(n, f32_set(0.693359375f), high), tail);
  F32 p = f32_set(0x1.65a622p-10f);
  p = f32_fma(p, r, f32_set(-0x1.1231d8p-7f));
  p = f32_fma(p, r, f32_set(0x1.555b4ep-5f));
  p = f32_fma(p, r, f32_set(-0x1.5554a4p-3f));
  p = f32_fma(p, r, f32_set(0.5f));
  p = f32_fma(p, r, f32_set(-1.0f));
  return {f32_mul(p, r), f32_bits(shifted)};
}

// 2^(n + 40): normal for the whole range of n, while 2^n is not.
inline F32 scale_up(I32 biased) { return f32_from_bits(i32_shl<23>(biased)); }
inline F32 unscale() { return f32_set(0x1p-40f); }

// |x|, no larger than `limit`.
inline F32 magnitude_up_to(F32 limit, F32 x) { return f32_min(f32_abs(x), limit); }

inline F32 relu_f32(F32 x) { return f32_max(f32_zero(), x); }

// silu, gelu_tanh and gelu are relu(x) - q(|x|) with q even, positive and small: the
// negative tail is q itself, infinities and -0 come out right, and NaN passes by relu.

// a / (1 + exp(y)) for y >= 0.
inline F32 logistic_tail(F32 a, ExpParts e) {
  const F32 up = scale_up(e.biased);
  const F32 big = f32_fma(up, e.rho, up);
  const F32 scaled = f32_mul(a, up);
  const F32 numerator = f32_fma(scaled, e.rho, scaled);
  const F32 q = f32_div(numerator, f32_fma(big, unscale(), f32_set(1.0f)));
  return f32_mul(q, unscale());
}

inline F32 silu_f32(F32 x) {
  const F32 a = magnitude_up_to(f32_set(110.0f), x);
  return f32_sub(relu_f32(x), logistic_tail(a, exp_minus(a, f32_zero())));
}

// x * Phi(x) = relu(x) - a * Phi(-a), a = |x|. Phi(-a) = exp(-a^2/2) M(a), and
// 2 (a + c) M(a) is a polynomial in t = c / (a + c) = 1 - a / (a + c). The rounding error
// of g = a / (a + c) hardly matters, as it cancels in g * polynomial(1 - g).
inline F32 gelu_f32(F32 x) {
  const F32 a = magnitude_up_to(f32_set(14.5f), x);
  const F32 half = f32_mul(a, f32_set(0.5f));
  const F32 square = f32_mul(half, a);
  const ExpParts e = exp_minus(square, f32_fnma(half, a, square));
  const F32 g = f32_div(a, f32_add(a, f32_set(MILLS_C)));
  const F32 t = f32_fma(f32_set(-2.0f), g, f32_set(1.0f));
  F32 m = f32_set(MILLS[MILLS_D]);
  for (int k = MILLS_D - 1; k >= 0; --k) m = f32_fma(m, t, f32_set(MILLS[k]));
  // (1 + m)(1 + rho) - 1, so that only the last operation rounds at full size.
  const F32 both = f32_fma(m, e.rho, f32_add(m, e.rho));
  const F32 q = f32_fma(g, both, g);
  return f32_sub(relu_f32(x), f32_mul(f32_mul(q, scale_up(e.biased)), f32_set(0x1p-40f)));
}

}  // namespace
