// clang-format off: it finds no fixed point for the tables of macros in this file.
// Self-test of csrc/emulate: every emulated intrinsic against a plain computation written here, or against the real
// AVX2 instruction with the same meaning per lane. Build and run: see csrc/emulate/README.md.
#include <immintrin.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <vector>

#include "emulate/amx.h"
#include "emulate/avx512.h"

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")

namespace {

int passed = 0, failed = 0;
void check(bool ok, const char* what) {
  if (ok) {
    ++passed;
  } else if (++failed <= 50) {
    std::printf("FAILED %s\n", what);
  }
}

std::uint64_t state = 0x9E3779B97F4A7C15ull;
std::uint64_t next() {
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state * 0x2545F4914F6CDD1Dull;
}

// A register's worth of lanes that is easy to fill and to read.
template <class T>
struct Lanes {
  alignas(64) T at[64 / sizeof(T)];
  static constexpr int n = 64 / sizeof(T);
  Lanes() = default;
  template <class V>
  explicit Lanes(const V& v) {
    std::memset(at, 0, sizeof at);
    std::memcpy(at, &v, sizeof v < 64 ? sizeof v : 64);
  }
  operator __m512i() const { return _mm512_loadu_si512(at); }
  operator __m512() const { return _mm512_loadu_ps(at); }
  operator __m512d() const { return _mm512_loadu_pd(at); }
  __m256i low() const { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)); }
  __m256i high() const { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at) + 1); }
  __m256 low_ps() const { return _mm256_castsi256_ps(low()); }
  __m256 high_ps() const { return _mm256_castsi256_ps(high()); }
  __m128i lowest() const { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at)); }
};
template <class A, class B>
bool same(const A& a, const B& b) {
  static_assert(sizeof(A) == sizeof(B), "");
  return std::memcmp(&a, &b, sizeof(A)) == 0;
}
// Two halves against a 512-bit result, bit for bit.
template <class V, class H>
bool halves_are(const V& v, const H& low, const H& high) {
  return std::memcmp(&v, &low, 32) == 0 && std::memcmp(reinterpret_cast<const char*>(&v) + 32, &high, 32) == 0;
}

// Integers: random, with the extremes often.
template <class T>
Lanes<T> integers() {
  Lanes<T> r;
  for (T& x : r.at) switch (next() % 8) {
      case 0: x = std::numeric_limits<T>::min(); break;
      case 1: x = std::numeric_limits<T>::max(); break;
      case 2: x = static_cast<T>(next() % 5) ; break;
      default: x = static_cast<T>(next() >> 7);
    }
  return r;
}
float any_float() {
  static const float special[] = {0.0f, -0.0f, 1.0f, -1.0f, 0.5f, 1.5f, 2.5f, -2.5f, 1e-40f, -1e-45f, 3e38f, -3e38f,
                                  HUGE_VALF, -HUGE_VALF, NAN, 2147483648.0f, -2147483648.0f, 2147483520.0f, 4294967296.0f,
                                  4294967040.0f, 65504.0f, 65520.0f, 6e-8f, 1.17549435e-38f};
  const std::uint64_t r = next();
  if (r % 3 == 0) return special[(r >> 8) % (sizeof special / sizeof *special)];
  if (r % 3 == 1) return static_cast<float>(static_cast<std::int64_t>(r >> 8) % 20001 - 10000) / 64.0f;
  const std::uint32_t u = static_cast<std::uint32_t>(r >> 16);
  float f;
  std::memcpy(&f, &u, 4);
  if (std::isnan(f)) f = NAN;
  return f;
}
Lanes<float> floats() {
  Lanes<float> r;
  for (float& x : r.at) x = any_float();
  return r;
}
Lanes<double> doubles() {
  Lanes<double> r;
  for (double& x : r.at) x = any_float();
  return r;
}
bool equal_or_nan(float a, float b) { return (a != a && b != b) || same(a, b); }

constexpr int rounds = 300;

// NAME, NAME with merge and with zero mask against EXPR per lane.
#define BINARY(NAME, T, EXPR)                                                          \
  for (int round = 0; round < rounds; ++round) {                                       \
    const Lanes<T> x = integers<T>(), y = integers<T>(), s = integers<T>();            \
    const std::uint64_t k = next();                                                    \
    const Lanes<T> r(_mm512_##NAME(x, y)), rm(_mm512_mask_##NAME(s, k, x, y)),         \
        rz(_mm512_maskz_##NAME(k, x, y));                                              \
    bool ok = true;                                                                    \
    for (int i = 0; i < x.n; ++i) {                                                    \
      const T a = x.at[i], b = y.at[i];                                                \
      const T want = static_cast<T>(EXPR);                                             \
      const bool on = (k >> i) & 1;                                                    \
      ok = ok && r.at[i] == want && rm.at[i] == (on ? want : s.at[i]) && rz.at[i] == (on ? want : 0); \
    }                                                                                  \
    check(ok, #NAME);                                                                  \
  }
#define UNARY(NAME, T, EXPR)                                                           \
  for (int round = 0; round < rounds; ++round) {                                       \
    const Lanes<T> x = integers<T>(), s = integers<T>();                               \
    const std::uint64_t k = next();                                                    \
    const Lanes<T> r(_mm512_##NAME(x)), rm(_mm512_mask_##NAME(s, k, x)), rz(_mm512_maskz_##NAME(k, x)); \
    bool ok = true;                                                                    \
    for (int i = 0; i < x.n; ++i) {                                                    \
      const T a = x.at[i];                                                             \
      const T want = static_cast<T>(EXPR);                                             \
      const bool on = (k >> i) & 1;                                                    \
      ok = ok && r.at[i] == want && rm.at[i] == (on ? want : s.at[i]) && rz.at[i] == (on ? want : 0); \
    }                                                                                  \
    check(ok, #NAME);                                                                  \
  }
#define SHIFT(NAME, T, EXPR)                                                           \
  for (int n = 0; n < 80; ++n) {                                                       \
    const Lanes<T> x = integers<T>(), s = integers<T>();                               \
    const std::uint64_t k = next();                                                    \
    const Lanes<T> r(_mm512_##NAME(x, n)), rm(_mm512_mask_##NAME(s, k, x, n)), rz(_mm512_maskz_##NAME(k, x, n)); \
    bool ok = true;                                                                    \
    for (int i = 0; i < x.n; ++i) {                                                    \
      const T a = x.at[i];                                                             \
      const int w = 8 * sizeof(T);                                                     \
      const T want = static_cast<T>(EXPR);                                             \
      const bool on = (k >> i) & 1;                                                    \
      ok = ok && r.at[i] == want && rm.at[i] == (on ? want : s.at[i]) && rz.at[i] == (on ? want : 0); \
    }                                                                                  \
    check(ok, #NAME);                                                                  \
  }
#define COMPARE(NAME, T, EXPR)                                                         \
  for (int round = 0; round < rounds; ++round) {                                       \
    const Lanes<T> x = integers<T>(), y = next() % 2 ? integers<T>() : x;              \
    const std::uint64_t k = next();                                                    \
    std::uint64_t want = 0;                                                            \
    for (int i = 0; i < x.n; ++i) {                                                    \
      const T a = x.at[i], b = y.at[i];                                                \
      if (EXPR) want |= std::uint64_t{1} << i;                                         \
    }                                                                                  \
    check(_mm512_##NAME##_mask(x, y) == want, #NAME);                                  \
    check(_mm512_mask_##NAME##_mask(k, x, y) == (want & k), #NAME " masked");          \
  }
#define COMPARES(SUFFIX, T)                                                            \
  COMPARE(cmpeq_##SUFFIX, T, a == b)                                                   \
  COMPARE(cmpneq_##SUFFIX, T, a != b)                                                  \
  COMPARE(cmplt_##SUFFIX, T, a < b)                                                    \
  COMPARE(cmple_##SUFFIX, T, a <= b)                                                   \
  COMPARE(cmpgt_##SUFFIX, T, a > b)                                                    \
  COMPARE(cmpge_##SUFFIX, T, a >= b)                                                   \
  for (int round = 0; round < rounds; ++round) {                                       \
    const Lanes<T> x = integers<T>(), y = next() % 2 ? integers<T>() : x;              \
    const std::uint64_t all = x.n == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << x.n % 64) - 1; \
    check(_mm512_cmp_##SUFFIX##_mask(x, y, _MM_CMPINT_EQ) == _mm512_cmpeq_##SUFFIX##_mask(x, y), "cmp eq " #SUFFIX); \
    check(_mm512_cmp_##SUFFIX##_mask(x, y, _MM_CMPINT_LT) == _mm512_cmplt_##SUFFIX##_mask(x, y), "cmp lt " #SUFFIX); \
    check(_mm512_cmp_##SUFFIX##_mask(x, y, _MM_CMPINT_LE) == _mm512_cmple_##SUFFIX##_mask(x, y), "cmp le " #SUFFIX); \
    check(_mm512_cmp_##SUFFIX##_mask(x, y, 3) == 0, "cmp false " #SUFFIX);             \
    check(_mm512_cmp_##SUFFIX##_mask(x, y, _MM_CMPINT_NE) == _mm512_cmpneq_##SUFFIX##_mask(x, y), "cmp ne " #SUFFIX); \
    check(_mm512_cmp_##SUFFIX##_mask(x, y, _MM_CMPINT_NLT) == _mm512_cmpge_##SUFFIX##_mask(x, y), "cmp nlt " #SUFFIX); \
    check(_mm512_cmp_##SUFFIX##_mask(x, y, _MM_CMPINT_NLE) == _mm512_cmpgt_##SUFFIX##_mask(x, y), "cmp nle " #SUFFIX); \
    check(_mm512_cmp_##SUFFIX##_mask(x, y, 7) == all, "cmp true " #SUFFIX);            \
  }
// Against the AVX2 instruction on both halves.
#define AVX2_BINARY(NAME, T)                                                           \
  for (int round = 0; round < rounds; ++round) {                                       \
    const Lanes<T> x = integers<T>(), y = integers<T>();                               \
    const __m512i r = _mm512_##NAME(x, y);                                             \
    check(halves_are(r, _mm256_##NAME(x.low(), y.low()), _mm256_##NAME(x.high(), y.high())), #NAME " avx2"); \
  }
#define AVX2_UNARY(NAME, T)                                                            \
  for (int round = 0; round < rounds; ++round) {                                       \
    const Lanes<T> x = integers<T>();                                                  \
    const __m512i r = _mm512_##NAME(x);                                                \
    check(halves_are(r, _mm256_##NAME(x.low()), _mm256_##NAME(x.high())), #NAME " avx2"); \
  }
#define AVX2_IMMEDIATE(NAME, T, N)                                                     \
  {                                                                                    \
    const Lanes<T> x = integers<T>();                                                  \
    const __m512i r = _mm512_##NAME(x, N);                                             \
    check(halves_are(r, _mm256_##NAME(x.low(), N), _mm256_##NAME(x.high(), N)), #NAME " avx2"); \
  }
// Floats: bit for bit with the instruction, NaN payloads included.
#define AVX2_FLOAT2(NAME)                                                              \
  for (int round = 0; round < 20 * rounds; ++round) {                                  \
    const Lanes<float> x = floats(), y = floats(), s = floats();                       \
    const __mmask16 k = static_cast<__mmask16>(next());                                \
    const __m512 r = _mm512_##NAME(x, y);                                              \
    check(halves_are(r, _mm256_##NAME(x.low_ps(), y.low_ps()), _mm256_##NAME(x.high_ps(), y.high_ps())), #NAME " avx2"); \
    check(same(_mm512_mask_##NAME(s, k, x, y), _mm512_mask_blend_ps(k, s, r)), #NAME " merge"); \
    check(same(_mm512_maskz_##NAME(k, x, y), _mm512_mask_blend_ps(k, _mm512_setzero_ps(), r)), #NAME " zero"); \
  }
#define AVX2_FMA(NAME)                                                                 \
  for (int round = 0; round < 20 * rounds; ++round) {                                  \
    const Lanes<float> x = floats(), y = floats(), z = floats();                       \
    const __mmask16 k = static_cast<__mmask16>(next());                                \
    const Lanes<float> r(_mm512_##NAME(x, y, z));                                      \
    const __m256 l = _mm256_##NAME(x.low_ps(), y.low_ps(), z.low_ps()), h = _mm256_##NAME(x.high_ps(), y.high_ps(), z.high_ps()); \
    bool ok = true;                                                                    \
    for (int i = 0; i < 16; ++i) ok = ok && equal_or_nan(r.at[i], i < 8 ? l[i] : h[i - 8]); \
    check(ok, #NAME " avx2");                                                          \
    check(same(_mm512_mask_##NAME(x, k, y, z), _mm512_mask_blend_ps(k, x, r)), #NAME " merge"); \
    check(same(_mm512_mask3_##NAME(x, y, z, k), _mm512_mask_blend_ps(k, z, r)), #NAME " merge3"); \
    check(same(_mm512_maskz_##NAME(k, x, y, z), _mm512_mask_blend_ps(k, _mm512_setzero_ps(), r)), #NAME " zero"); \
  }

template <class T>
T clamp_to(std::int64_t x) {
  if (x < std::numeric_limits<T>::min()) return std::numeric_limits<T>::min();
  if (x > std::numeric_limits<T>::max()) return std::numeric_limits<T>::max();
  return static_cast<T>(x);
}

using i8 = std::int8_t; using u8 = std::uint8_t; using i16 = std::int16_t; using u16 = std::uint16_t;
using i32 = std::int32_t; using u32 = std::uint32_t; using i64 = std::int64_t; using u64 = std::uint64_t;
using wide = __int128;

void integer_arithmetic() {
  BINARY(add_epi8, u8, a + b) BINARY(add_epi16, u16, a + b) BINARY(add_epi32, u32, a + b) BINARY(add_epi64, u64, a + b)
  BINARY(sub_epi8, u8, a - b) BINARY(sub_epi16, u16, a - b) BINARY(sub_epi32, u32, a - b) BINARY(sub_epi64, u64, a - b)
  BINARY(adds_epi8, i8, clamp_to<i8>(a + b)) BINARY(adds_epu8, u8, clamp_to<u8>(a + b))
  BINARY(adds_epi16, i16, clamp_to<i16>(a + b)) BINARY(adds_epu16, u16, clamp_to<u16>(a + b))
  BINARY(subs_epi8, i8, clamp_to<i8>(a - b)) BINARY(subs_epu8, u8, clamp_to<u8>(a - b))
  BINARY(subs_epi16, i16, clamp_to<i16>(a - b)) BINARY(subs_epu16, u16, clamp_to<u16>(a - b))
  BINARY(mullo_epi16, i16, i64{a} * b) BINARY(mullo_epi32, i32, i64{a} * b) BINARY(mullo_epi64, i64, wide{a} * b)
  BINARY(mulhi_epi16, i16, (i64{a} * b) >> 16) BINARY(mulhi_epu16, u16, (i64{a} * b) >> 16)
  BINARY(mul_epi32, i64, i64{static_cast<i32>(a)} * i64{static_cast<i32>(b)})
  BINARY(mul_epu32, u64, u64{static_cast<u32>(a)} * u64{static_cast<u32>(b)})
  BINARY(min_epi8, i8, std::min(a, b)) BINARY(min_epu8, u8, std::min(a, b)) BINARY(min_epi16, i16, std::min(a, b))
  BINARY(min_epu16, u16, std::min(a, b)) BINARY(min_epi32, i32, std::min(a, b)) BINARY(min_epu32, u32, std::min(a, b))
  BINARY(min_epi64, i64, std::min(a, b)) BINARY(max_epi8, i8, std::max(a, b)) BINARY(max_epu8, u8, std::max(a, b))
  BINARY(max_epi16, i16, std::max(a, b)) BINARY(max_epu16, u16, std::max(a, b)) BINARY(max_epi32, i32, std::max(a, b))
  BINARY(max_epu32, u32, std::max(a, b)) BINARY(max_epi64, i64, std::max(a, b))
  BINARY(avg_epu8, u8, (a + b + 1) / 2) BINARY(avg_epu16, u16, (a + b + 1) / 2)
  BINARY(and_epi32, u32, a & b) BINARY(or_epi32, u32, a | b) BINARY(xor_epi32, u32, a ^ b) BINARY(andnot_epi32, u32, ~a & b)
  BINARY(and_epi64, u64, a & b) BINARY(or_epi64, u64, a | b) BINARY(xor_epi64, u64, a ^ b) BINARY(andnot_epi64, u64, ~a & b)
  UNARY(abs_epi8, i8, std::abs(int{a})) UNARY(abs_epi16, i16, std::abs(int{a})) UNARY(abs_epi32, i32, std::abs(i64{a}))
  UNARY(abs_epi64, i64, a < 0 ? u64{0} - static_cast<u64>(a) : static_cast<u64>(a))
  UNARY(popcnt_epi8, u8, __builtin_popcountll(a)) UNARY(popcnt_epi16, u16, __builtin_popcountll(a))
  UNARY(popcnt_epi32, u32, __builtin_popcountll(a)) UNARY(popcnt_epi64, u64, __builtin_popcountll(a))
  UNARY(lzcnt_epi32, u32, a ? __builtin_clz(a) : 32) UNARY(lzcnt_epi64, u64, a ? __builtin_clzll(a) : 64)
  AVX2_BINARY(mulhrs_epi16, i16) AVX2_BINARY(adds_epi8, i8) AVX2_BINARY(subs_epu16, u16) AVX2_BINARY(mul_epi32, i32)
  AVX2_BINARY(mul_epu32, i32) AVX2_BINARY(sad_epu8, u8) AVX2_BINARY(avg_epu8, u8) AVX2_UNARY(abs_epi8, i8) AVX2_UNARY(abs_epi32, i32)
  AVX2_BINARY(mulhi_epi16, i16) AVX2_BINARY(mulhi_epu16, i16) AVX2_BINARY(mullo_epi32, i32)
  for (int round = 0; round < rounds; ++round) {
    const Lanes<u64> x = integers<u64>(), y = integers<u64>(), z = integers<u64>();
    check(same(_mm512_and_si512(x, y), _mm512_and_epi64(x, y)) && same(_mm512_or_si512(x, y), _mm512_or_epi64(x, y)) &&
              same(_mm512_xor_si512(x, y), _mm512_xor_epi64(x, y)) && same(_mm512_andnot_si512(x, y), _mm512_andnot_epi64(x, y)),
          "si512 logic");
    const int imm = static_cast<int>(next() & 255);
    const Lanes<u64> r(_mm512_ternarylogic_epi32(x, y, z, imm));
    bool ok = true;
    for (int i = 0; i < 8; ++i)
      for (int p = 0; p < 64; ++p) {
        const int row = static_cast<int>((x.at[i] >> p & 1) << 2 | (y.at[i] >> p & 1) << 1 | (z.at[i] >> p & 1));
        ok = ok && static_cast<int>(r.at[i] >> p & 1) == (imm >> row & 1);
      }
    check(ok && same(r, Lanes<u64>(_mm512_ternarylogic_epi64(x, y, z, imm))), "ternarylogic");
    const Lanes<u8> o = integers<u8>(), m(_mm512_multishift_epi64_epi8(o, x));
    ok = true;
    for (int i = 0; i < 64; ++i) {
      u8 want = 0;
      for (int p = 0; p < 8; ++p) want = static_cast<u8>(want | (x.at[i / 8] >> ((o.at[i] + p) % 64) & 1) << p);
      ok = ok && m.at[i] == want;
    }
    check(ok, "multishift");
  }
}

void shifts() {
  SHIFT(slli_epi16, u16, n < w ? u64{a} << n : 0) SHIFT(slli_epi32, u32, n < w ? u64{a} << n : 0) SHIFT(slli_epi64, u64, n < w ? a << n : 0)
  SHIFT(srli_epi16, u16, n < w ? u64{a} >> n : 0) SHIFT(srli_epi32, u32, n < w ? u64{a} >> n : 0) SHIFT(srli_epi64, u64, n < w ? a >> n : 0)
  SHIFT(srai_epi16, i16, i64{a} >> std::min(n, w - 1)) SHIFT(srai_epi32, i32, i64{a} >> std::min(n, w - 1))
  SHIFT(srai_epi64, i64, a >> std::min(n, w - 1))
  BINARY(sllv_epi16, u16, b < 16 ? u64{a} << b : 0) BINARY(sllv_epi32, u32, b < 32 ? u64{a} << b : 0) BINARY(sllv_epi64, u64, b < 64 ? a << b : 0)
  BINARY(srlv_epi16, u16, b < 16 ? u64{a} >> b : 0) BINARY(srlv_epi32, u32, b < 32 ? u64{a} >> b : 0) BINARY(srlv_epi64, u64, b < 64 ? a >> b : 0)
  BINARY(srav_epi16, i16, i64{a} >> std::min<u64>(static_cast<u16>(b), 15)) BINARY(srav_epi32, i32, i64{a} >> std::min<u64>(static_cast<u32>(b), 31))
  BINARY(srav_epi64, i64, a >> std::min<u64>(static_cast<u64>(b), 63))
  AVX2_BINARY(sllv_epi32, i32) AVX2_BINARY(srlv_epi32, i32) AVX2_BINARY(srav_epi32, i32) AVX2_BINARY(sllv_epi64, i64)
  for (int n = 0; n < 64; ++n) {
    const Lanes<u32> x = integers<u32>(), r(_mm512_rol_epi32(x, n)), q(_mm512_ror_epi32(x, n));
    const Lanes<u64> y = integers<u64>(), s(_mm512_rol_epi64(y, n)), t(_mm512_ror_epi64(y, n));
    const __m128i count = _mm_cvtsi32_si128(n);
    bool ok = true;
    for (int i = 0; i < 16; ++i) ok = ok && r.at[i] == static_cast<u32>((u64{x.at[i]} << n % 32) | (u64{x.at[i]} << n % 32 >> 32)) && q.at[i] == static_cast<u32>(((u64{x.at[i]} << 32) | x.at[i]) >> n % 32);
    for (int i = 0; i < 8; ++i) ok = ok && s.at[i] == (n ? y.at[i] << n | y.at[i] >> (64 - n) : y.at[i]) && t.at[i] == (n ? y.at[i] >> n | y.at[i] << (64 - n) : y.at[i]);
    check(ok, "rotations");
    check(halves_are(_mm512_sll_epi32(x, count), _mm256_sll_epi32(x.low(), count), _mm256_sll_epi32(x.high(), count)) &&
              halves_are(_mm512_srl_epi32(x, count), _mm256_srl_epi32(x.low(), count), _mm256_srl_epi32(x.high(), count)) &&
              halves_are(_mm512_sra_epi32(x, count), _mm256_sra_epi32(x.low(), count), _mm256_sra_epi32(x.high(), count)) &&
              halves_are(_mm512_sll_epi64(y, count), _mm256_sll_epi64(y.low(), count), _mm256_sll_epi64(y.high(), count)) &&
              halves_are(_mm512_srl_epi64(y, count), _mm256_srl_epi64(y.low(), count), _mm256_srl_epi64(y.high(), count)),
          "shift by xmm");
  }
}

void comparisons_and_masks() {
  COMPARES(epi8, i8) COMPARES(epu8, u8) COMPARES(epi16, i16) COMPARES(epu16, u16) COMPARES(epi32, i32) COMPARES(epu32, u32) COMPARES(epi64, i64)
  COMPARE(test_epi8, u8, a & b) COMPARE(test_epi16, u16, a & b) COMPARE(test_epi32, u32, a & b) COMPARE(test_epi64, u64, a & b)
  COMPARE(testn_epi8, u8, !(a & b)) COMPARE(testn_epi16, u16, !(a & b)) COMPARE(testn_epi32, u32, !(a & b)) COMPARE(testn_epi64, u64, !(a & b))
#define PREDICATE(P)                                                                                                   \
  for (int round = 0; round < rounds; ++round) {                                                                       \
    const Lanes<float> x = floats(), y = next() % 3 ? floats() : x;                                                    \
    const unsigned want = static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(x.low_ps(), y.low_ps(), P))) |        \
                          static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(x.high_ps(), y.high_ps(), P))) << 8;  \
    check(_mm512_cmp_ps_mask(x, y, P) == want, "cmp_ps " #P);                                                          \
    check(_mm512_mask_cmp_ps_mask(0x0FF0, x, y, P) == (want & 0x0FF0), "mask cmp_ps " #P);                             \
    check(_mm256_cmp_ps_mask(x.low_ps(), y.low_ps(), P) == (want & 255), "256 cmp_ps " #P);                            \
  }
  PREDICATE(0) PREDICATE(1) PREDICATE(2) PREDICATE(3) PREDICATE(4) PREDICATE(5) PREDICATE(6) PREDICATE(7) PREDICATE(8)
  PREDICATE(9) PREDICATE(10) PREDICATE(11) PREDICATE(12) PREDICATE(13) PREDICATE(14) PREDICATE(15) PREDICATE(16)
  PREDICATE(17) PREDICATE(18) PREDICATE(19) PREDICATE(20) PREDICATE(21) PREDICATE(22) PREDICATE(23) PREDICATE(24)
  PREDICATE(25) PREDICATE(26) PREDICATE(27) PREDICATE(28) PREDICATE(29) PREDICATE(30) PREDICATE(31)
  for (int round = 0; round < rounds; ++round) {
    const Lanes<float> x = floats(), y = floats();
    check(_mm512_cmpeq_ps_mask(x, y) == _mm512_cmp_ps_mask(x, y, _CMP_EQ_OQ) && _mm512_cmpneq_ps_mask(x, y) == _mm512_cmp_ps_mask(x, y, _CMP_NEQ_UQ) &&
              _mm512_cmplt_ps_mask(x, y) == _mm512_cmp_ps_mask(x, y, _CMP_LT_OS) && _mm512_cmple_ps_mask(x, y) == _mm512_cmp_ps_mask(x, y, _CMP_LE_OS) &&
              _mm512_cmpnlt_ps_mask(x, y) == _mm512_cmp_ps_mask(x, y, _CMP_NLT_US) && _mm512_cmpnle_ps_mask(x, y) == _mm512_cmp_ps_mask(x, y, _CMP_NLE_US) &&
              _mm512_cmpord_ps_mask(x, y) == _mm512_cmp_ps_mask(x, y, _CMP_ORD_Q) && _mm512_cmpunord_ps_mask(x, y) == _mm512_cmp_ps_mask(x, y, _CMP_UNORD_Q),
          "named cmp_ps");
    unsigned infinite = 0, nan = 0;
    for (int i = 0; i < 16; ++i) infinite |= unsigned(std::isinf(x.at[i])) << i, nan |= unsigned(std::isnan(x.at[i])) << i;
    check(_mm512_fpclass_ps_mask(x, 0x18) == infinite && _mm512_fpclass_ps_mask(x, 0x81) == nan, "fpclass");

    const u64 a = next(), b = next();
    const auto a16 = static_cast<__mmask16>(a), b16 = static_cast<__mmask16>(b);
    check(_kand_mask16(a16, b16) == (a16 & b16) && _kor_mask64(a, b) == (a | b) && _kxor_mask8(u8(a), u8(b)) == u8(a ^ b) &&
              _kxnor_mask32(u32(a), u32(b)) == ~u32(a ^ b) && _kandn_mask64(a, b) == (~a & b) && _knot_mask16(a16) == u16(~a16) &&
              _kadd_mask8(u8(a), u8(b)) == u8(a + b) && _kshiftli_mask16(a16, 3) == u16(a16 << 3) && _kshiftri_mask64(a, 63) == a >> 63 &&
              _kshiftli_mask64(a, 64) == 0 && _kortestz_mask16_u8(0, 0) == 1 && _kortestz_mask16_u8(0, 4) == 0 &&
              _kortestc_mask8_u8(0xF0, 0x0F) == 1 && _kortestc_mask64_u8(a, ~a) == 1 && _ktestz_mask32_u8(5, 10) == 1 && _ktestc_mask32_u8(7, 5) == 1 &&
              _cvtmask16_u32(_cvtu32_mask16(0x12345)) == 0x2345 && _cvtmask64_u64(_cvtu64_mask64(a)) == a &&
              _mm512_kunpackb(0x12, 0x34) == 0x1234 && _mm512_kunpackd(1, 2) == 0x100000002ull && _mm512_kunpackw(1, 2) == 0x10002,
          "mask registers");
    __mmask64 memory = 0;
    _store_mask64(&memory, a);
    check(memory == a && _load_mask64(&memory) == a && _load_mask16(&memory) == a16, "mask memory");
    const Lanes<i8> m(_mm512_movm_epi8(a));
    bool ok = _mm512_movepi8_mask(m) == a;
    for (int i = 0; i < 64; ++i) ok = ok && m.at[i] == (a >> i & 1 ? -1 : 0);
    check(ok && _mm512_movepi32_mask(_mm512_movm_epi32(a16)) == a16 && _mm256_movepi8_mask(m.low()) == static_cast<u32>(a), "movm, movepi");
    check(_mm256_movepi8_mask(x.low()) == static_cast<u32>(_mm256_movemask_epi8(x.low())), "movepi8 avx2");
  }
}

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

void memory() {
  for (int round = 0; round < rounds; ++round) {
    const Lanes<u8> x = integers<u8>();
    const u64 k = next();
    u8 buffer[130];
    std::memset(buffer, 0xEE, sizeof buffer);
    _mm512_mask_storeu_epi8(buffer + 1, k, x);
    bool ok = buffer[0] == 0xEE && buffer[65] == 0xEE;
    for (int i = 0; i < 64; ++i) ok = ok && buffer[1 + i] == (k >> i & 1 ? x.at[i] : 0xEE);
    const Lanes<u8> z(_mm512_maskz_loadu_epi8(k, buffer + 1)), m(_mm512_mask_loadu_epi8(_mm512_set1_epi8(7), k, buffer + 1));
    for (int i = 0; i < 64; ++i) ok = ok && z.at[i] == (k >> i & 1 ? x.at[i] : 0) && m.at[i] == (k >> i & 1 ? x.at[i] : 7);
    check(ok, "masked bytes");
    _mm256_mask_storeu_epi8(buffer, u32(k), x.low());
    _mm_mask_storeu_epi8(buffer + 40, u16(k), x.lowest());
    const Lanes<u8> z2(_mm256_maskz_loadu_epi8(u32(k), buffer)), z3(_mm_maskz_loadu_epi8(u16(k), buffer + 40));
    ok = true;
    for (int i = 0; i < 32; ++i) ok = ok && z2.at[i] == (k >> i & 1 ? x.at[i] : 0) && (i >= 16 || z3.at[i] == z2.at[i]);
    check(ok, "masked bytes, 256 and 128");
    Lanes<u16> words(x);
    const Lanes<u16> w(_mm256_maskz_loadu_epi16(u16(k), words.at));
    Lanes<float> f = floats(), g;
    std::memset(g.at, 0, sizeof g.at);
    _mm512_mask_storeu_ps(g.at, u16(k), f);
    const Lanes<float> h(_mm512_maskz_loadu_ps(u16(k), f.at));
    ok = same(g, h);
    for (int i = 0; i < 16; ++i) ok = ok && w.at[i] == (k >> i & 1 ? words.at[i] : 0) && (k >> i & 1 ? same(h.at[i], f.at[i]) : h.at[i] == 0);
    check(ok, "masked words and floats");
    alignas(64) u8 aligned[64];
    _mm512_store_si512(aligned, x);
    _mm512_stream_si512(reinterpret_cast<__m512i*>(aligned), _mm512_load_si512(aligned));
    check(std::memcmp(aligned, x.at, 64) == 0 && same(*reinterpret_cast<const __m512i*>(aligned), x), "aligned");

    float table[256];
    for (int i = 0; i < 256; ++i) table[i] = static_cast<float>(i);
    Lanes<i32> index;
    for (int i = 0; i < 16; ++i) index.at[i] = static_cast<i32>(x.at[i]) - 128;
    const Lanes<float> gathered(_mm512_i32gather_ps(index, table + 128, 4)), some(_mm512_mask_i32gather_ps(f, u16(k), index, table + 128, 4));
    ok = true;
    for (int i = 0; i < 16; ++i) ok = ok && gathered.at[i] == x.at[i] && (k >> i & 1 ? some.at[i] == x.at[i] : same(some.at[i], f.at[i]));
    _mm512_i32scatter_ps(table + 128, index, _mm512_set1_ps(-1), 4);
    for (int i = 0; i < 16; ++i) ok = ok && table[x.at[i]] == -1;
    check(ok, "gather, scatter");
  }
  const Lanes<i32> s(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0)), t(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)),
      four(_mm512_set4_epi32(3, 2, 1, 0)), masked(_mm512_maskz_set1_epi32(6, 9));
  bool ok = same(s, t) && masked.at[0] == 0 && masked.at[2] == 9;
  for (int i = 0; i < 16; ++i) ok = ok && s.at[i] == i && four.at[i] == i % 4;
  check(ok, "set");
}

// EXPR: the value of lane i, from x, y (the operands) and k.
#define LANES_ARE(WHAT, T, RESULT, EXPR)                                     \
  {                                                                          \
    const Lanes<T> r_(RESULT);                                               \
    bool ok_ = true;                                                         \
    for (int i = 0; i < r_.n; ++i) ok_ = ok_ && r_.at[i] == static_cast<T>(EXPR); \
    check(ok_, WHAT);                                                        \
  }

template <class T> struct PermuteOf;
#define PERMUTE_OF(T, SUFFIX)                                                                                             \
  template <> struct PermuteOf<T> {                                                                                       \
    static __m512i one(__m512i i, __m512i a) { return _mm512_permutexvar_##SUFFIX(i, a); }                                \
    static __m512i two(__m512i a, __m512i i, __m512i b) { return _mm512_permutex2var_##SUFFIX(a, i, b); }                 \
    static __m512i zeroed(u64 k, __m512i a, __m512i i, __m512i b) { return _mm512_maskz_permutex2var_##SUFFIX(k, a, i, b); } \
    static __m512i kept(__m512i a, u64 k, __m512i i, __m512i b) { return _mm512_mask_permutex2var_##SUFFIX(a, k, i, b); }  \
    static __m512i indices(__m512i a, __m512i i, u64 k, __m512i b) { return _mm512_mask2_permutex2var_##SUFFIX(a, i, k, b); } \
    static __m512i expanded(__m512i s, u64 k, __m512i a) { return _mm512_mask_expand_##SUFFIX(s, k, a); }                 \
    static __m512i expanded_zero(u64 k, __m512i a) { return _mm512_maskz_expand_##SUFFIX(k, a); }                         \
    static __m512i expanded_load(u64 k, const void* p) { return _mm512_maskz_expandloadu_##SUFFIX(k, p); }                \
    static __m512i compressed(__m512i s, u64 k, __m512i a) { return _mm512_mask_compress_##SUFFIX(s, k, a); }             \
    static void compressed_store(void* p, u64 k, __m512i a) { _mm512_mask_compressstoreu_##SUFFIX(p, k, a); }             \
    static __m512i low(__m512i a, __m512i b) { return _mm512_unpacklo_##SUFFIX(a, b); }                                   \
    static __m512i high(__m512i a, __m512i b) { return _mm512_unpackhi_##SUFFIX(a, b); }                                  \
  };
PERMUTE_OF(u8, epi8) PERMUTE_OF(u16, epi16) PERMUTE_OF(u32, epi32) PERMUTE_OF(u64, epi64)

template <class T>
void permutes_of() {
  using P = PermuteOf<T>;
  constexpr int n = 64 / sizeof(T), per = 16 / sizeof(T);
  for (int round = 0; round < rounds; ++round) {
    const Lanes<T> x = integers<T>(), y = integers<T>(), s = integers<T>(), index = integers<T>();
    const u64 k = next();
    const auto on = [&](int i) { return (k >> i & 1) != 0; };
    const auto pick = [&](int i) { return index.at[i] % (2 * n) < n ? x.at[index.at[i] % n] : y.at[index.at[i] % n]; };
    LANES_ARE("permutexvar", T, P::one(index, x), x.at[index.at[i] % n])
    LANES_ARE("permutex2var", T, P::two(x, index, y), pick(i))
    LANES_ARE("maskz permutex2var", T, P::zeroed(k, x, index, y), on(i) ? pick(i) : 0)
    LANES_ARE("mask permutex2var", T, P::kept(x, k, index, y), on(i) ? pick(i) : x.at[i])
    LANES_ARE("mask2 permutex2var", T, P::indices(x, index, k, y), on(i) ? pick(i) : index.at[i])
    const u64 valid = n == 64 ? ~u64{0} : (u64{1} << n % 64) - 1;
    const auto before = [&](int i) { return __builtin_popcountll(k & ((u64{1} << i) - 1)); };
    const int count = __builtin_popcountll(k & valid);
    LANES_ARE("expand", T, P::expanded(s, k, x), on(i) ? x.at[before(i)] : s.at[i])
    LANES_ARE("maskz expand", T, P::expanded_zero(k, x), on(i) ? x.at[before(i)] : 0)
    std::vector<T> exact(x.at, x.at + count);  // AddressSanitizer sees one element too many
    LANES_ARE("expandloadu", T, P::expanded_load(k, exact.data()), on(i) ? x.at[before(i)] : 0)
    std::vector<T> packed;
    for (int i = 0; i < n; ++i) if (on(i)) packed.push_back(x.at[i]);
    LANES_ARE("compress", T, P::compressed(s, k, x), i < count ? packed[static_cast<std::size_t>(i)] : s.at[i])
    P::compressed_store(exact.data(), k, x);
    check(exact == packed, "compressstoreu");
    LANES_ARE("unpacklo", T, P::low(x, y), (i % 2 ? y : x).at[i / per * per + i % per / 2])
    LANES_ARE("unpackhi", T, P::high(x, y), (i % 2 ? y : x).at[i / per * per + per / 2 + i % per / 2])
  }
}

void lane_moves() {
  permutes_of<u8>();
  permutes_of<u16>();
  permutes_of<u32>();
  permutes_of<u64>();
  AVX2_BINARY(shuffle_epi8, u8) AVX2_BINARY(unpacklo_epi8, u8) AVX2_BINARY(unpackhi_epi16, u16) AVX2_BINARY(unpacklo_epi32, u32) AVX2_BINARY(unpackhi_epi64, u64)
  AVX2_BINARY(packs_epi16, i16) AVX2_BINARY(packus_epi16, i16) AVX2_BINARY(packs_epi32, i32) AVX2_BINARY(packus_epi32, i32)
#define EVERY_IMMEDIATE(DO) DO(0) DO(1) DO(27) DO(0x4E) DO(0x93) DO(0xB1) DO(0xD8) DO(0xE4) DO(255)
// _MM_PERM_ENUM is what the real _mm512_shuffle_epi32 takes.
#define SHUFFLE32(N) { const Lanes<u32> x = integers<u32>(); check(halves_are(_mm512_shuffle_epi32(x, static_cast<_MM_PERM_ENUM>(N)), _mm256_shuffle_epi32(x.low(), N), _mm256_shuffle_epi32(x.high(), N)), "shuffle_epi32"); }
#define OTHER_SHUFFLES(N) AVX2_IMMEDIATE(shufflelo_epi16, u16, N) AVX2_IMMEDIATE(shufflehi_epi16, u16, N)                                        \
  { const Lanes<u64> x = integers<u64>(); check(halves_are(_mm512_permutex_epi64(x, N), _mm256_permute4x64_epi64(x.low(), N), _mm256_permute4x64_epi64(x.high(), N)), "permutex_epi64"); } \
  { const Lanes<float> x = floats(), y = floats();                                                                                              \
    check(halves_are(_mm512_permute_ps(x, N), _mm256_permute_ps(x.low_ps(), N), _mm256_permute_ps(x.high_ps(), N)), "permute_ps");               \
    check(halves_are(_mm512_shuffle_ps(x, y, N), _mm256_shuffle_ps(x.low_ps(), y.low_ps(), N), _mm256_shuffle_ps(x.high_ps(), y.high_ps(), N)), "shuffle_ps"); \
    check(halves_are(_mm512_moveldup_ps(x), _mm256_moveldup_ps(x.low_ps()), _mm256_moveldup_ps(x.high_ps())) && halves_are(_mm512_movehdup_ps(x), _mm256_movehdup_ps(x.low_ps()), _mm256_movehdup_ps(x.high_ps())), "movedup"); \
    const Lanes<i32> control = integers<i32>();                                                                                                 \
    check(halves_are(_mm512_permutevar_ps(x, control), _mm256_permutevar_ps(x.low_ps(), control.low()), _mm256_permutevar_ps(x.high_ps(), control.high())), "permutevar_ps"); \
    const __m128* p = reinterpret_cast<const __m128*>(x.at); const __m128* q = reinterpret_cast<const __m128*>(y.at);                            \
    const __m512 r = _mm512_shuffle_f32x4(x, y, N); const __m128* o = reinterpret_cast<const __m128*>(&r);                                       \
    check(same(o[0], p[N & 3]) && same(o[1], p[(N >> 2) & 3]) && same(o[2], q[(N >> 4) & 3]) && same(o[3], q[(N >> 6) & 3]), "shuffle_f32x4"); }
  EVERY_IMMEDIATE(SHUFFLE32)
  EVERY_IMMEDIATE(OTHER_SHUFFLES)
#define BYTES(N)                                                                                                                 \
  { const Lanes<u8> x = integers<u8>(), y = integers<u8>();                                                                      \
    check(halves_are(_mm512_alignr_epi8(x, y, N), _mm256_alignr_epi8(x.low(), y.low(), N), _mm256_alignr_epi8(x.high(), y.high(), N)), "alignr_epi8"); \
    check(halves_are(_mm512_bsrli_epi128(x, N), _mm256_bsrli_epi128(x.low(), N), _mm256_bsrli_epi128(x.high(), N)), "bsrli");     \
    check(halves_are(_mm512_bslli_epi128(x, N), _mm256_bslli_epi128(x.low(), N), _mm256_bslli_epi128(x.high(), N)), "bslli"); }
  BYTES(0) BYTES(1) BYTES(7) BYTES(8) BYTES(15) BYTES(16)
#define ALIGN_BYTES(N) { const Lanes<u8> x = integers<u8>(), y = integers<u8>(); check(halves_are(_mm512_alignr_epi8(x, y, N), _mm256_alignr_epi8(x.low(), y.low(), N), _mm256_alignr_epi8(x.high(), y.high(), N)), "alignr_epi8 long"); }
  ALIGN_BYTES(17) ALIGN_BYTES(31) ALIGN_BYTES(32)
  for (int n = 0; n < 16; ++n) {
    const Lanes<u32> x = integers<u32>(), y = integers<u32>();
    LANES_ARE("alignr_epi32", u32, _mm512_alignr_epi32(x, y, n), i + n < 16 ? y.at[i + n] : x.at[i + n - 16])
    const Lanes<u64> p(x), q(y);
    LANES_ARE("alignr_epi64", u64, _mm512_alignr_epi64(x, y, n), i + n % 8 < 8 ? q.at[i + n % 8] : p.at[i + n % 8 - 8])
    const __m128i part = _mm512_extracti32x4_epi32(x, n % 4);
    check(std::memcmp(&part, x.at + n % 4 * 4, 16) == 0, "extracti32x4");
    LANES_ARE("inserti32x4", u32, _mm512_inserti32x4(x, y.lowest(), n % 4), i / 4 == n % 4 ? y.at[i % 4] : x.at[i])
    const __m256i half = _mm512_extracti64x4_epi64(x, n % 2), eight = _mm512_extracti32x8_epi32(x, n % 2);
    check(same(half, n % 2 ? x.high() : x.low()) && same(eight, half), "extract halves");
    LANES_ARE("inserti64x4", u32, _mm512_inserti64x4(x, y.low(), n % 2), i / 8 == n % 2 ? y.at[i % 8] : x.at[i])
    LANES_ARE("broadcastd", u32, _mm512_broadcastd_epi32(x.lowest()), x.at[0] + 0 * u32(i))
    LANES_ARE("broadcast_i32x4", u32, _mm512_broadcast_i32x4(x.lowest()), x.at[i % 4])
    LANES_ARE("broadcast_i64x4", u32, _mm512_broadcast_i64x4(x.low()), x.at[i % 8])
    LANES_ARE("maskz broadcastd", u32, _mm512_maskz_broadcastd_epi32(0xA5A5, x.lowest()), 0xA5A5 >> i & 1 ? x.at[0] : 0)
    LANES_ARE("zext", u32, _mm512_zextsi256_si512(x.low()), i < 8 ? x.at[i] : 0)
    check(same(_mm512_castsi512_si256(x), x.low()) && same(_mm512_castps_si512(_mm512_castsi512_ps(x)), x), "casts");
    const Lanes<float> cast(_mm512_castsi256_si512(x.low())), cast_ps(_mm512_castps256_ps512(x.low_ps())), cast4(_mm512_castsi128_si512(x.lowest()));
    check(std::memcmp(cast.at, x.at, 32) == 0 && std::isnan(cast.at[8]) && std::isnan(cast.at[15]) && std::memcmp(cast_ps.at, x.at, 32) == 0 &&
              std::isnan(cast_ps.at[8]) && std::memcmp(cast4.at, x.at, 16) == 0 && std::isnan(cast4.at[4]), "poison above a widening cast");
    const __m256i mix = _mm256_permutex2var_epi32(x.low(), y.low(), x.high());
    const Lanes<u32> m(mix);
    bool ok = true;
    for (int i = 0; i < 8; ++i) ok = ok && m.at[i] == x.at[y.at[i] % 16];
    check(ok, "256 permutex2var");
  }
}

// ---- AMX ----------------------------------------------------------------------------------------------------------

struct Config {  // the test's own idea of the 64 bytes
  u8 bytes[64] = {};
  void tile(int t, int rows, int colsb) {
    bytes[0] = 1;
    bytes[16 + 2 * t] = static_cast<u8>(colsb & 255);
    bytes[17 + 2 * t] = static_cast<u8>(colsb >> 8);
    bytes[48 + t] = static_cast<u8>(rows);
  }
};
// The barrier that the kernels need as well.
void load_config(const Config& c) {
  __asm__ volatile("" ::: "memory");
  _tile_loadconfig(c.bytes);
}

template <class A, class B>
void amx_int8(void (*multiply)(), const char* what) {
  for (int round = 0; round < rounds; ++round) {
    const int m = 1 + int(next() % 16), k = 1 + int(next() % 16), n = 1 + int(next() % 16);
    Config c;
    c.tile(0, m, 4 * n);
    c.tile(1, m, 4 * k);
    c.tile(2, k, 4 * n);
    A a[16][70];
    B b[16][70];
    i32 out[16][18], want[16][18];
    for (auto& row : a) for (A& x : row) x = next() % 4 ? static_cast<A>(next()) : std::numeric_limits<A>::min();
    for (auto& row : b) for (B& x : row) x = next() % 4 ? static_cast<B>(next()) : std::numeric_limits<B>::max();
    for (auto& row : out) for (i32& x : row) x = static_cast<i32>(next());
    std::memcpy(want, out, sizeof want);
    for (int i = 0; i < m; ++i)
      for (int j = 0; j < n; ++j) {
        u32 sum = static_cast<u32>(out[i][j]);
        for (int l = 0; l < 4 * k; ++l) sum += static_cast<u32>(i32{a[i][l]} * i32{b[l / 4][4 * j + l % 4]});
        want[i][j] = static_cast<i32>(sum);
      }
    load_config(c);
    __asm__ volatile("" ::: "memory");
    _tile_loadd(0, out, sizeof out[0]);
    _tile_stream_loadd(1, a, sizeof a[0]);
    _tile_loadd(2, b, sizeof b[0]);
    multiply();
    _tile_stored(0, out, sizeof out[0]);
    check(std::memcmp(out, want, sizeof out) == 0, what);
    _tile_release();
  }
}

void amx_floats(bool half) {
  const auto flush = [](float f) { return std::fabs(f) < 1.17549435e-38f ? std::copysign(0.0f, f) : f; };
  for (int round = 0; round < rounds; ++round) {
    const int m = 1 + int(next() % 16), k = 1 + int(next() % 16), n = 1 + int(next() % 16);
    Config c;
    c.tile(5, m, 4 * n);
    c.tile(6, m, 4 * k);
    c.tile(7, k, 4 * n);
    u16 a[16][32], b[16][32];
    float out[16][16], want[16][16];
    const auto value = [&]() -> u16 {
      const u64 r = next();
      if (half) return static_cast<u16>(r % 5 ? r & 0xBFFF : r & 0x83FF);                       // denormal fp16 too
      return static_cast<u16>((r & 0x8000) | (r % 6 == 0 ? r >> 20 & 0x7F : (60 + (r >> 20) % 70) << 7 | (r >> 30 & 0x7F)));
    };
    const auto read = [&](u16 v) {
      if (half) return _mm_cvtss_f32(_mm_cvtph_ps(_mm_set1_epi16(static_cast<short>(v))));
      const u32 u = u32{v} << 16;
      float f;
      std::memcpy(&f, &u, 4);
      return flush(f);
    };
    for (auto& row : a) for (u16& x : row) x = value();
    for (auto& row : b) for (u16& x : row) x = value();
    for (auto& row : out) for (float& x : row) x = next() % 4 ? static_cast<float>(static_cast<i32>(next())) * 1e-9f : 1e-40f;
    std::memcpy(want, out, sizeof want);
    for (int i = 0; i < m; ++i)
      for (int j = 0; j < n; ++j) {
        float even = 0, odd = 0;
        for (int l = 0; l < k; ++l) {
          even = flush(std::fma(read(a[i][2 * l]), read(b[l][2 * j]), even));
          odd = flush(std::fma(read(a[i][2 * l + 1]), read(b[l][2 * j + 1]), odd));
        }
        want[i][j] = flush(flush(out[i][j]) + flush(even + odd));
      }
    load_config(c);
    __asm__ volatile("" ::: "memory");
    _tile_loadd(5, out, 64);
    _tile_loadd(6, a, 64);
    _tile_loadd(7, b, 64);
    const unsigned mxcsr = _mm_getcsr();
    if (half) {
      _tile_dpfp16ps(5, 6, 7);
    } else {
      _tile_dpbf16ps(5, 6, 7);
    }
    check(_mm_getcsr() == mxcsr, "mxcsr unchanged");
    _tile_stored(5, out, 64);
    check(std::memcmp(out, want, sizeof out) == 0, half ? "tdpfp16ps" : "tdpbf16ps");
    _tile_release();
  }
}

// Runs f in a child: does it abort?
template <class F>
void aborts(const char* what, F&& f) {
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    const rlimit no_core = {0, 0};
    setrlimit(RLIMIT_CORE, &no_core);
    if (!std::freopen("/dev/null", "w", stderr)) _exit(2);
    f();
    _exit(0);
  }
  int status = 0;
  check(child > 0 && waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT, what);
}

void strictness() {
  static u8 data[64 * 16 + 64];
  Config good;
  for (int t = 0; t < 8; ++t) good.tile(t, 16, 64);
  aborts("load before loadconfig", [] { _tile_loadd(0, data, 64); });
  aborts("zero before loadconfig", [] { _tile_zero(0); });
  aborts("use after release", [&] { load_config(good); _tile_release(); _tile_zero(0); });
  aborts("tdp after release", [&] { load_config(good); _tile_release(); _tile_dpbssd(0, 1, 2); });
  aborts("palette 0", [&] { Config c = good; c.bytes[0] = 0; load_config(c); });
  aborts("palette 2", [&] { Config c = good; c.bytes[0] = 2; load_config(c); });
  aborts("start_row", [&] { Config c = good; c.bytes[1] = 1; load_config(c); });
  aborts("reserved", [&] { Config c = good; c.bytes[5] = 1; load_config(c); });
  aborts("reserved colsb", [&] { Config c = good; c.bytes[33] = 1; load_config(c); });
  aborts("reserved rows", [&] { Config c = good; c.bytes[60] = 1; load_config(c); });
  aborts("17 rows", [&] { Config c = good; c.tile(3, 17, 64); load_config(c); });
  aborts("68 bytes", [&] { Config c = good; c.tile(3, 16, 68); load_config(c); });
  aborts("320 bytes", [&] { Config c = good; c.tile(3, 16, 320); load_config(c); });
  aborts("62 bytes", [&] { Config c = good; c.tile(3, 16, 62); load_config(c); });
  aborts("rows without columns", [&] { Config c = good; c.tile(3, 16, 0); load_config(c); });
  aborts("tile without rows", [&] { Config c = good; c.tile(3, 0, 0); load_config(c); _tile_zero(3); });
  aborts("tile 8", [&] { load_config(good); _tile_zero(8); });
  aborts("A rows", [&] { Config c = good; c.tile(1, 15, 64); load_config(c); _tile_dpbssd(0, 1, 2); });
  aborts("B rows", [&] { Config c = good; c.tile(2, 15, 64); load_config(c); _tile_dpbssd(0, 1, 2); });
  aborts("B width", [&] { Config c = good; c.tile(2, 16, 60); load_config(c); _tile_dpbf16ps(0, 1, 2); });
  aborts("same tile twice", [&] { load_config(good); _tile_dpbssd(0, 1, 1); });
  aborts("unaligned load", [] { (void)_mm512_load_si512(data + 1); });
  aborts("unaligned store", [] { _mm512_store_ps(data + 1 + 63 * (reinterpret_cast<std::uintptr_t>(data) % 64 == 63), _mm512_setzero_ps()); });
  aborts("unaligned stream", [] { _mm512_stream_si512(reinterpret_cast<__m512i*>(data + 4), _mm512_setzero_si512()); });
  aborts("rounding mode", [] { (void)_mm512_add_round_ps(_mm512_setzero_ps(), _mm512_setzero_ps(), _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC); });

  check(!lepton_emulate::tiles_are_configured(), "not configured at first");
  load_config(good);
  check(lepton_emulate::tiles_are_configured(), "configured");
  Config stored;
  _tile_storeconfig(stored.bytes);
  check(same(stored, good), "storeconfig");
  _tile_release();
  check(!lepton_emulate::tiles_are_configured(), "released");
  _tile_storeconfig(stored.bytes);
  check(same(stored, Config()), "storeconfig after release");
}

}  // namespace

int main() {
  integer_arithmetic();
  shifts();
  comparisons_and_masks();
  float_arithmetic();
  conversions();
  dot_products();
  memory();
  lane_moves();
  amx_int8<i8, i8>([] { _tile_dpbssd(0, 1, 2); }, "tdpbssd");
  amx_int8<i8, u8>([] { _tile_dpbsud(0, 1, 2); }, "tdpbsud");
  amx_int8<u8, i8>([] { _tile_dpbusd(0, 1, 2); }, "tdpbusd");
  amx_int8<u8, u8>([] { _tile_dpbuud(0, 1, 2); }, "tdpbuud");
  amx_floats(false);
  amx_floats(true);
  strictness();
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed != 0;
}

#pragma GCC pop_options
