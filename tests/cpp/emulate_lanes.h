// clang-format off: it finds no fixed point for the tables of macros in this file.
// What the self-tests of csrc/emulate share: lanes that are easy to fill and read, values that meet the special cases,
// and macros that check an emulated intrinsic against a plain expression for each lane, or against the real AVX2
// instruction with the same meaning for each lane.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>

#include "emulate/amx.h"
#include "emulate/avx512.h"

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")

inline int passed = 0, failed = 0;
inline void check(bool ok, const char* what) {
  if (ok) {
    ++passed;
  } else if (++failed <= 50) {
    std::printf("FAILED %s\n", what);
  }
}

inline std::uint64_t state = 0x9E3779B97F4A7C15ull;
inline std::uint64_t next() {
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
inline float any_float() {
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
inline Lanes<float> floats() {
  Lanes<float> r;
  for (float& x : r.at) x = any_float();
  return r;
}
inline Lanes<double> doubles() {
  Lanes<double> r;
  for (double& x : r.at) x = any_float();
  return r;
}
inline bool equal_or_nan(float a, float b) { return (a != a && b != b) || same(a, b); }

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

// EXPR: the value of lane i, from x, y (the operands) and k.
#define LANES_ARE(WHAT, T, RESULT, EXPR)                                     \
  {                                                                          \
    const Lanes<T> r_(RESULT);                                               \
    bool ok_ = true;                                                         \
    for (int i = 0; i < r_.n; ++i) ok_ = ok_ && r_.at[i] == static_cast<T>(EXPR); \
    check(ok_, WHAT);                                                        \
  }

// The verdict, as the program's exit status.
inline int finish() {
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed != 0;
}

#pragma GCC pop_options
