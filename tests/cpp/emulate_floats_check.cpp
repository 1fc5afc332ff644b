// clang-format off: it finds no fixed point for the tables of macros in this file.
// Self-test of csrc/emulate: floating-point arithmetic, conversions and dot products. Build and run: see csrc/emulate/README.md.
#include <algorithm>
#include <cmath>

#include "emulate_lanes.h"

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")

namespace {

void float_arithmetic() {
  AVX2_FLOAT2(add_ps) AVX2_FLOAT2(sub_ps) AVX2_FLOAT2(mul_ps) AVX2_FLOAT2(div_ps) AVX2_FLOAT2(min_ps) AVX2_FLOAT2(max_ps)
  AVX2_FLOAT2(and_ps) AVX2_FLOAT2(or_ps) AVX2_FLOAT2(xor_ps) AVX2_FLOAT2(andnot_ps) AVX2_FLOAT2(unpacklo_ps) AVX2_FLOAT2(unpackhi_ps)
  AVX2_FMA(fmadd_ps) AVX2_FMA(fmsub_ps) AVX2_FMA(fnmadd_ps) AVX2_FMA(fnmsub_ps)
  for (int round = 0; round < 20 * rounds; ++round) {
    const Lanes<float> x = floats(), y = floats();
    check(halves_are(_mm512_sqrt_ps(x), _mm256_sqrt_ps(x.low_ps()), _mm256_sqrt_ps(x.high_ps())), "sqrt_ps");
    check(halves_are(_mm512_roundscale_ps(x, 0), _mm256_round_ps(x.low_ps(), 0), _mm256_round_ps(x.high_ps(), 0)) &&
              halves_are(_mm512_roundscale_ps(x, 1), _mm256_round_ps(x.low_ps(), 1), _mm256_round_ps(x.high_ps(), 1)) &&
              halves_are(_mm512_roundscale_ps(x, 2), _mm256_round_ps(x.low_ps(), 2), _mm256_round_ps(x.high_ps(), 2)) &&
              halves_are(_mm512_roundscale_ps(x, 3), _mm256_round_ps(x.low_ps(), 3), _mm256_round_ps(x.high_ps(), 3)) &&
              halves_are(_mm512_roundscale_ps(x, 12), _mm256_round_ps(x.low_ps(), 12), _mm256_round_ps(x.high_ps(), 12)),
          "roundscale avx2");
    const Lanes<float> r(_mm512_roundscale_ps(x, 0x38)), reduced(_mm512_reduce_ps(x, 0x38)), e(_mm512_getexp_ps(x)),
        m(_mm512_getmant_ps(x, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src)), m2(_mm512_getmant_ps(x, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_zero)),
        m1(_mm512_getmant_ps(x, _MM_MANT_NORM_p5_2, _MM_MANT_SIGN_nan)), s(_mm512_scalef_ps(x, y)), absolute(_mm512_abs_ps(x));
    bool ok = true, scale_ok = true, parts_ok = true;
    for (int i = 0; i < 16; ++i) {
      const float a = x.at[i], b = y.at[i];
      const float want = a != a ? NAN : static_cast<float>(std::nearbyint(double{a} * 8) / 8);
      ok = ok && equal_or_nan(r.at[i], want);
      if (std::isfinite(a)) ok = ok && reduced.at[i] == a - want;
      ok = ok && equal_or_nan(absolute.at[i], std::fabs(a));
      if (std::isfinite(a) && std::isfinite(b)) {
        const double power = std::floor(double{b});
        scale_ok = scale_ok && equal_or_nan(s.at[i], static_cast<float>(std::ldexp(double{a}, static_cast<int>(std::fmax(-500.0, std::fmin(500.0, power))))));
      }
      if (std::isfinite(a) && a != 0) {
        int exponent;
        const double fraction = 2 * std::frexp(double{a}, &exponent);  // in [1,2)
        parts_ok = parts_ok && e.at[i] == exponent - 1 && m.at[i] == static_cast<float>(fraction);
        const float f = std::fabs(static_cast<float>(fraction));
        parts_ok = parts_ok && m2.at[i] == (f >= 1.5f ? f / 2 : f);
        parts_ok = parts_ok && (a < 0 ? std::isnan(m1.at[i]) : m1.at[i] == (exponent % 2 == 0 ? f / 2 : f));
      }
      if (std::isinf(a)) parts_ok = parts_ok && e.at[i] == HUGE_VALF && m.at[i] == std::copysign(1.0f, a);
      if (a == 0) parts_ok = parts_ok && e.at[i] == -HUGE_VALF && same(m.at[i], std::copysign(1.0f, a));
    }
    check(ok, "roundscale, reduce, abs");
    check(scale_ok, "scalef");
    check(parts_ok, "getexp, getmant");

    const Lanes<double> p = doubles(), q = doubles(), z = doubles();
    const Lanes<double> sum(_mm512_add_pd(p, q)), product(_mm512_mul_pd(p, q)), fused(_mm512_fmadd_pd(p, q, z)), quotient(_mm512_div_pd(p, q));
    ok = true;
    const auto agrees = [](double a, double b) { return a == b || (a != a && b != b); };
    for (int i = 0; i < 8; ++i)
      ok = ok && agrees(sum.at[i], p.at[i] + q.at[i]) && agrees(product.at[i], p.at[i] * q.at[i]) &&
           agrees(fused.at[i], std::fma(p.at[i], q.at[i], z.at[i])) && agrees(quotient.at[i], p.at[i] / q.at[i]);
    check(ok, "pd arithmetic");

    // gcc's order of the horizontal sum, written out.
    const float* t = x.at;
    float four[4];
    for (int i = 0; i < 4; ++i) four[i] = (t[i + 12] + t[i + 4]) + (t[i + 8] + t[i]);
    check(equal_or_nan(_mm512_reduce_add_ps(x), (four[0] + four[2]) + (four[1] + four[3])), "reduce_add_ps");
    // min and max, with NaNs and signed zeros: the same steps with real instructions.
    const __m128 t0 = _mm_loadu_ps(t), t1 = _mm_loadu_ps(t + 4), t2 = _mm_loadu_ps(t + 8), t3 = _mm_loadu_ps(t + 12);
    const __m128 smaller = _mm_min_ps(_mm_min_ps(t3, t1), _mm_min_ps(t2, t0)), larger = _mm_max_ps(_mm_max_ps(t3, t1), _mm_max_ps(t2, t0));
    const __m128 smaller2 = _mm_min_ps(smaller, _mm_movehl_ps(smaller, smaller)), larger2 = _mm_max_ps(larger, _mm_movehl_ps(larger, larger));
    const __m128 smallest = _mm_min_ss(smaller2, _mm_movehdup_ps(smaller2)), largest = _mm_max_ss(larger2, _mm_movehdup_ps(larger2));
    check(same(_mm512_reduce_min_ps(x), _mm_cvtss_f32(smallest)) && same(_mm512_reduce_max_ps(x), _mm_cvtss_f32(largest)), "order of reduce_min/max_ps");
    Lanes<float> finite = x;
    float low = HUGE_VALF, high = -HUGE_VALF;
    for (float& f : finite.at) {
      if (f != f) f = 1.0f;
      low = std::fmin(low, f);
      high = std::fmax(high, f);
    }
    check(_mm512_reduce_min_ps(finite) == low && _mm512_reduce_max_ps(finite) == high, "reduce_min/max_ps");
    const Lanes<i32> n = integers<i32>();
    u32 total = 0, some = 0;
    i32 most = INT32_MIN;
    for (int i = 0; i < 16; ++i) total += u32(n.at[i]), some += i < 5 ? u32(n.at[i]) : 0, most = std::max(most, n.at[i]);
    check(_mm512_reduce_add_epi32(n) == i32(total) && _mm512_mask_reduce_add_epi32(31, n) == i32(some) && _mm512_reduce_max_epi32(n) == most, "reduce epi32");
  }
  const float inf = HUGE_VALF;
  const auto scale = [](float a, float b) { return _mm512_cvtss_f32(_mm512_scalef_ps(_mm512_set1_ps(a), _mm512_set1_ps(b))); };
  check(scale(2, inf) == inf && scale(-2, inf) == -inf && std::isnan(scale(0, inf)) && same(scale(-2, -inf), -0.0f) &&
            std::isnan(scale(inf, -inf)) && scale(inf, -1e30f) == inf && std::isnan(scale(1, NAN)) && scale(1, -149) == 1.40129846e-45f,
        "scalef special values");
}

template <class T, class F>
void narrow_check(const char* what, F&& f) {
  for (int round = 0; round < rounds; ++round) check(f(integers<T>()), what);
}

void conversions() {
  for (int round = 0; round < 20 * rounds; ++round) {
    const Lanes<float> x = floats();
    const Lanes<i32> n = integers<i32>();
    check(halves_are(_mm512_cvtps_epi32(x), _mm256_cvtps_epi32(x.low_ps()), _mm256_cvtps_epi32(x.high_ps())), "cvtps_epi32");
    check(halves_are(_mm512_cvttps_epi32(x), _mm256_cvttps_epi32(x.low_ps()), _mm256_cvttps_epi32(x.high_ps())), "cvttps_epi32");
    check(halves_are(_mm512_cvtepi32_ps(n), _mm256_cvtepi32_ps(n.low()), _mm256_cvtepi32_ps(n.high())), "cvtepi32_ps");
    const Lanes<u32> u(_mm512_cvtps_epu32(x)), t(_mm512_cvttps_epu32(x));
    const Lanes<float> f(_mm512_cvtepu32_ps(n));
    const Lanes<i32> down(_mm512_cvt_roundps_epi32(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC));
    bool ok = true;
    for (int i = 0; i < 16; ++i) {
      const double r = std::nearbyint(double{x.at[i]}), z = std::trunc(double{x.at[i]}), d = std::floor(double{x.at[i]});
      ok = ok && u.at[i] == (r >= 0 && r < 4294967296.0 ? static_cast<u32>(r) : 0xFFFFFFFFu);
      ok = ok && t.at[i] == (z >= 0 && z < 4294967296.0 ? static_cast<u32>(z) : 0xFFFFFFFFu);
      ok = ok && down.at[i] == (std::fabs(d) < 2147483648.0 ? static_cast<i32>(d) : INT32_MIN);
      ok = ok && f.at[i] == static_cast<float>(static_cast<double>(static_cast<u32>(n.at[i])));
    }
    check(ok, "unsigned conversions, explicit rounding");
    const __m512 p = x;
    const Lanes<u16> b(_mm512_cvtne2ps_pbh(x, p));
    const Lanes<u16> single(_mm512_cvtneps_pbh(p));
    ok = std::memcmp(b.at, single.at, 32) == 0 && std::memcmp(b.at + 16, single.at, 32) == 0;
    for (int i = 0; i < 16; ++i) {
      const float a = x.at[i];
      u32 bits, want;
      std::memcpy(&bits, &a, 4);
      if (a != a) {
        want = bits >> 16 | 0x40;
      } else if (std::fabs(a) < 1.17549435e-38f) {
        want = std::signbit(a) ? 0x8000 : 0;
      } else {  // the nearer of the two neighbours; the even one on a tie
        const u32 below = bits >> 16, rest = bits & 0xFFFF;
        want = rest > 0x8000 || (rest == 0x8000 && (below & 1)) ? below + 1 : below;
      }
      ok = ok && single.at[i] == want;
    }
    check(ok, "cvtneps_pbh, cvtne2ps_pbh");
    const Lanes<u32> back(_mm512_cvtpbh_ps(_mm512_cvtneps_pbh(p)));
    for (int i = 0; i < 16; ++i) ok = ok && back.at[i] == u32{single.at[i]} << 16;
    check(ok, "cvtpbh_ps");
    const Lanes<u16> h(_mm512_cvtps_ph(x, 0)), hz(_mm512_cvtps_ph(x, _MM_FROUND_TO_ZERO)), cut(_mm512_maskz_cvtps_ph(0x00F0, x, 0));
    const __m128i l = _mm256_cvtps_ph(x.low_ps(), 0), g = _mm256_cvtps_ph(x.high_ps(), 0), lz = _mm256_cvtps_ph(x.low_ps(), 3);
    check(std::memcmp(h.at, &l, 16) == 0 && std::memcmp(h.at + 8, &g, 16) == 0 && std::memcmp(hz.at, &lz, 16) == 0 && cut.at[3] == 0 && cut.at[5] == h.at[5], "cvtps_ph");
    const Lanes<double> wide_half(_mm512_cvtps_pd(x.low_ps()));
    ok = true;
    for (int i = 0; i < 8; ++i) ok = ok && (x.at[i] != x.at[i] || wide_half.at[i] == x.at[i]);
    check(ok, "cvtps_pd");
  }
  for (u32 base = 0; base < 65536; base += 16) {  // every half, there and back
    Lanes<u16> h = {};
    for (u32 i = 0; i < 16; ++i) h.at[i] = static_cast<u16>(base + i);
    const Lanes<float> f(_mm512_cvtph_ps(h.low()));
    const Lanes<u16> back(_mm512_cvtps_ph(f, 0));
    bool ok = true;
    for (u32 i = 0; i < 16; ++i) {
      const u32 v = base + i, exponent = v >> 10 & 31, fraction = v & 1023;
      const float magnitude = exponent == 31 ? (fraction ? NAN : HUGE_VALF)
                              : exponent     ? std::ldexp(1024.0f + static_cast<float>(fraction), static_cast<int>(exponent) - 25)
                                             : std::ldexp(static_cast<float>(fraction), -24);
      const float want = v >> 15 ? -magnitude : magnitude;
      ok = ok && equal_or_nan(f.at[i], want);
      ok = ok && back.at[i] == (exponent == 31 && fraction ? (v | 0x200) : v);
    }
    check(ok, "cvtph_ps exhaustive");
  }
  for (int round = 0; round < rounds; ++round) {
    const Lanes<i8> x = integers<i8>();
    const Lanes<i32> a(_mm512_cvtepi8_epi32(x.lowest())), b(_mm512_cvtepu8_epi32(x.lowest())), c(_mm512_cvtepi16_epi32(x.low())), d(_mm512_cvtepu16_epi32(x.low()));
    const Lanes<i16> e(_mm512_cvtepi8_epi16(x.low())), f(_mm512_cvtepu8_epi16(x.low()));
    const Lanes<i64> g(_mm512_cvtepi8_epi64(x.lowest())), h(_mm512_cvtepi32_epi64(x.low())), j(_mm512_cvtepu32_epi64(x.low()));
    const Lanes<i16> words(x.low());
    const Lanes<i32> dwords(x.low());
    bool ok = true;
    for (int i = 0; i < 16; ++i) ok = ok && a.at[i] == x.at[i] && b.at[i] == u8(x.at[i]) && c.at[i] == words.at[i] && d.at[i] == u16(words.at[i]);
    for (int i = 0; i < 32; ++i) ok = ok && e.at[i] == x.at[i] && f.at[i] == u8(x.at[i]);
    for (int i = 0; i < 8; ++i) ok = ok && g.at[i] == x.at[i] && h.at[i] == dwords.at[i] && j.at[i] == i64{u32(dwords.at[i])};
    check(ok, "widening");
  }
#define NARROW(W, HALF, WIDE, BITS)                                                                                     \
  narrow_check<i##WIDE>("narrow " #WIDE " to " #BITS, [](const Lanes<i##WIDE>& x) {                                     \
    const Lanes<u##BITS> t(W##_cvtepi##WIDE##_epi##BITS(x HALF)), s(W##_cvtsepi##WIDE##_epi##BITS(x HALF)), u(W##_cvtusepi##WIDE##_epi##BITS(x HALF)); \
    const int n = int(sizeof(x HALF)) / int(sizeof(x.at[0]));                                                          \
    bool ok = true;                                                                                                    \
    for (int i = 0; i < n; ++i) {                                                                                      \
      ok = ok && t.at[i] == static_cast<u##BITS>(x.at[i]) && s.at[i] == static_cast<u##BITS>(clamp_to<i##BITS>(x.at[i])); \
      ok = ok && u.at[i] == std::min<u64>(static_cast<u##WIDE>(x.at[i]), static_cast<u##BITS>(-1));                     \
    }                                                                                                                  \
    u##BITS memory[66];                                                                                                \
    std::memset(memory, 0x5A, sizeof memory);                                                                          \
    const u64 k = next();                                                                                              \
    W##_mask_cvtsepi##WIDE##_storeu_epi##BITS(memory + 1, static_cast<__mmask32>(k), x HALF);                          \
    const u##BITS kept = static_cast<u##BITS>(0x5A5A5A5A);                                                             \
    for (int i = 0; i < n; ++i) ok = ok && memory[i + 1] == (k >> i & 1 ? s.at[i] : kept);                             \
    return ok && memory[0] == kept && memory[n + 1] == kept;                                                           \
  });
  NARROW(_mm512, , 16, 8) NARROW(_mm512, , 32, 8) NARROW(_mm512, , 32, 16) NARROW(_mm512, , 64, 8) NARROW(_mm512, , 64, 16) NARROW(_mm512, , 64, 32)
  NARROW(_mm256, .low(), 16, 8) NARROW(_mm256, .low(), 32, 8) NARROW(_mm256, .low(), 32, 16)
}

void dot_products() {
  AVX2_BINARY(madd_epi16, i16) AVX2_BINARY(maddubs_epi16, i8)
  for (int round = 0; round < 10 * rounds; ++round) {
    const Lanes<i32> c = integers<i32>();
    const Lanes<u8> a = integers<u8>();
    const Lanes<i8> b = integers<i8>();
    const Lanes<i16> d = integers<i16>(), e = integers<i16>();
    const __mmask16 k = static_cast<__mmask16>(next());
    const Lanes<i32> r(_mm512_dpbusd_epi32(c, a, b)), rs(_mm512_dpbusds_epi32(c, a, b)), w(_mm512_dpwssd_epi32(c, d, e)), ws(_mm512_dpwssds_epi32(c, d, e)),
        m(_mm512_mask_dpbusd_epi32(c, k, a, b)), z(_mm512_maskz_dpbusd_epi32(k, c, a, b)), half(_mm256_dpbusd_epi32(c.low(), a.low(), b.low()));
    bool ok = true;
    for (int i = 0; i < 16; ++i) {
      i64 bytes = c.at[i], words = c.at[i];
      for (int j = 0; j < 4; ++j) bytes += i64{a.at[4 * i + j]} * b.at[4 * i + j];
      for (int j = 0; j < 2; ++j) words += i64{d.at[2 * i + j]} * e.at[2 * i + j];
      ok = ok && r.at[i] == i32(bytes) && rs.at[i] == clamp_to<i32>(bytes) && w.at[i] == i32(words) && ws.at[i] == clamp_to<i32>(words);
      ok = ok && m.at[i] == (k >> i & 1 ? r.at[i] : c.at[i]) && z.at[i] == (k >> i & 1 ? r.at[i] : 0) && (i >= 8 || half.at[i] == r.at[i]);
    }
    check(ok, "vnni");

    // bf16: the pseudocode with flushing by hand. Products of ordinary size, so that flushing is the only subtlety.
    Lanes<u16> p, q;
    Lanes<float> s;
    const auto value = [] {
      const u64 r = next();
      return static_cast<u16>((r & 0x8000) | (r % 7 == 0 ? r >> 20 & 0x7F : (64 + (r >> 20) % 64) << 7 | (r >> 30 & 0x7F)));
    };
    for (int i = 0; i < 32; ++i) p.at[i] = value(), q.at[i] = value();
    for (float& f : s.at) f = next() % 5 == 0 ? 1e-39f : static_cast<float>(static_cast<i64>(next() >> 40)) * 1e-20f;
    const auto flush = [](float f) { return std::fabs(f) < 1.17549435e-38f ? std::copysign(0.0f, f) : f; };
    const auto read = [&](u16 v) {
      const u32 u = u32{v} << 16;
      float f;
      std::memcpy(&f, &u, 4);
      return flush(f);
    };
    const Lanes<float> out(_mm512_dpbf16_ps(s, static_cast<__m512bh>(static_cast<__m512i>(p)), (__m512bh) static_cast<__m512i>(q)));
    ok = true;
    for (int i = 0; i < 16; ++i) {
      float sum = flush(s.at[i]);
      for (int j = 1; j >= 0; --j) sum = flush(std::fma(read(p.at[2 * i + j]), read(q.at[2 * i + j]), sum));
      ok = ok && same(out.at[i], sum);
    }
    check(ok, "dpbf16_ps");
  }
}

}  // namespace

int main() {
  float_arithmetic();
  conversions();
  dot_products();
  return finish();
}

#pragma GCC pop_options
