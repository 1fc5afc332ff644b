// Loads, stores, gathers, scatters, constants.
#pragma once
#include "avx512_types.h"

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
namespace lepton_emulate {

template <class V>
static inline V load_any(const void* p) {
  V r;
  std::memcpy(static_cast<void*>(&r), p, sizeof(V));
  return r;
}
template <class V>
static inline V load_aligned(const void* p) {
  check_aligned(p, sizeof(V), "aligned load");
  return load_any<V>(p);
}
template <class V>
static inline void store_any(void* p, const V& v) {
  std::memcpy(p, &v, sizeof(V));
}
template <class V>
static inline void store_aligned(void* p, const V& v) {
  check_aligned(p, sizeof(V), "aligned store");
  store_any(p, v);
}

// Masked-off lanes are not touched: hardware suppresses their faults, and AddressSanitizer sees
// only the rest.
template <class T, class V>
static inline V load_masked(const V& src, std::uint64_t k, const void* p) {
  auto r = lanes<T>(src);
  for (int i = 0; i < r.size; ++i)
    if (bit(k, i)) std::memcpy(&r.at[i], static_cast<const T*>(p) + i, sizeof(T));
  return join<V>(r);
}
template <class T, class V>
static inline void store_masked(void* p, std::uint64_t k, const V& v) {
  const auto x = lanes<T>(v);
  for (int i = 0; i < x.size; ++i)
    if (bit(k, i)) std::memcpy(static_cast<T*>(p) + i, &x.at[i], sizeof(T));
}

#define LEPTON_EMULATE_LOADSTORE(W, SUFFIX, V)                                 \
  static inline V W##_loadu_##SUFFIX(const void* p) { return load_any<V>(p); } \
  static inline void W##_storeu_##SUFFIX(void* p, const V& v) { store_any(p, v); }
#define LEPTON_EMULATE_ALIGNED(W, SUFFIX, V)                                      \
  static inline V W##_load_##SUFFIX(const void* p) { return load_aligned<V>(p); } \
  static inline void W##_store_##SUFFIX(void* p, const V& v) { store_aligned(p, v); }
#define LEPTON_EMULATE_MASKED_LOADSTORE(W, SUFFIX, V, T)                                         \
  static inline V W##_mask_loadu_##SUFFIX(const V& src, mask_t<T, sizeof(V)> k, const void* p) { \
    return load_masked<T>(src, k, p);                                                            \
  }                                                                                              \
  static inline V W##_maskz_loadu_##SUFFIX(mask_t<T, sizeof(V)> k, const void* p) {              \
    return load_masked<T>(zero<V>(), k, p);                                                      \
  }                                                                                              \
  static inline void W##_mask_storeu_##SUFFIX(void* p, mask_t<T, sizeof(V)> k, const V& v) {     \
    store_masked<T>(p, k, v);                                                                    \
  }
#define LEPTON_EMULATE_MASKED_ALIGNED(W, SUFFIX, V, T)                                          \
  static inline V W##_mask_load_##SUFFIX(const V& src, mask_t<T, sizeof(V)> k, const void* p) { \
    check_aligned(p, sizeof(V), "aligned masked load");                                         \
    return load_masked<T>(src, k, p);                                                           \
  }                                                                                             \
  static inline V W##_maskz_load_##SUFFIX(mask_t<T, sizeof(V)> k, const void* p) {              \
    check_aligned(p, sizeof(V), "aligned masked load");                                         \
    return load_masked<T>(zero<V>(), k, p);                                                     \
  }                                                                                             \
  static inline void W##_mask_store_##SUFFIX(void* p, mask_t<T, sizeof(V)> k, const V& v) {     \
    check_aligned(p, sizeof(V), "aligned masked store");                                        \
    store_masked<T>(p, k, v);                                                                   \
  }

LEPTON_EMULATE_LOADSTORE(mm512, ps, m512)
LEPTON_EMULATE_LOADSTORE(mm512, pd, m512d)
LEPTON_EMULATE_LOADSTORE(mm512, si512, m512i)
LEPTON_EMULATE_LOADSTORE(mm512, epi8, m512i)
LEPTON_EMULATE_LOADSTORE(mm512, epi16, m512i)
LEPTON_EMULATE_LOADSTORE(mm512, epi32, m512i)
LEPTON_EMULATE_LOADSTORE(mm512, epi64, m512i)
#define _mm512_loadu_ps lepton_emulate::mm512_loadu_ps
#define _mm512_loadu_pd lepton_emulate::mm512_loadu_pd
#define _mm512_loadu_si512 lepton_emulate::mm512_loadu_si512
#define _mm512_loadu_epi8 lepton_emulate::mm512_loadu_epi8
#define _mm512_loadu_epi16 lepton_emulate::mm512_loadu_epi16
#define _mm512_loadu_epi32 lepton_emulate::mm512_loadu_epi32
#define _mm512_loadu_epi64 lepton_emulate::mm512_loadu_epi64
#define _mm512_storeu_ps lepton_emulate::mm512_storeu_ps
#define _mm512_storeu_pd lepton_emulate::mm512_storeu_pd
#define _mm512_storeu_si512 lepton_emulate::mm512_storeu_si512
#define _mm512_storeu_epi8 lepton_emulate::mm512_storeu_epi8
#define _mm512_storeu_epi16 lepton_emulate::mm512_storeu_epi16
#define _mm512_storeu_epi32 lepton_emulate::mm512_storeu_epi32
#define _mm512_storeu_epi64 lepton_emulate::mm512_storeu_epi64
LEPTON_EMULATE_ALIGNED(mm512, ps, m512)
LEPTON_EMULATE_ALIGNED(mm512, pd, m512d)
LEPTON_EMULATE_ALIGNED(mm512, si512, m512i)
LEPTON_EMULATE_ALIGNED(mm512, epi32, m512i)
LEPTON_EMULATE_ALIGNED(mm512, epi64, m512i)
#define _mm512_load_ps lepton_emulate::mm512_load_ps
#define _mm512_load_pd lepton_emulate::mm512_load_pd
#define _mm512_load_si512 lepton_emulate::mm512_load_si512
#define _mm512_load_epi32 lepton_emulate::mm512_load_epi32
#define _mm512_load_epi64 lepton_emulate::mm512_load_epi64
#define _mm512_store_ps lepton_emulate::mm512_store_ps
#define _mm512_store_pd lepton_emulate::mm512_store_pd
#define _mm512_store_si512 lepton_emulate::mm512_store_si512
#define _mm512_store_epi32 lepton_emulate::mm512_store_epi32
#define _mm512_store_epi64 lepton_emulate::mm512_store_epi64
LEPTON_EMULATE_MASKED_LOADSTORE(mm512, ps, m512, float)
LEPTON_EMULATE_MASKED_LOADSTORE(mm512, pd, m512d, double)
LEPTON_EMULATE_MASKED_LOADSTORE(mm512, epi8, m512i, std::int8_t)
LEPTON_EMULATE_MASKED_LOADSTORE(mm512, epi16, m512i, std::int16_t)
LEPTON_EMULATE_MASKED_LOADSTORE(mm512, epi32, m512i, std::int32_t)
LEPTON_EMULATE_MASKED_LOADSTORE(mm512, epi64, m512i, std::int64_t)
#define _mm512_mask_loadu_ps lepton_emulate::mm512_mask_loadu_ps
#define _mm512_mask_loadu_pd lepton_emulate::mm512_mask_loadu_pd
#define _mm512_mask_loadu_epi8 lepton_emulate::mm512_mask_loadu_epi8
#define _mm512_mask_loadu_epi16 lepton_emulate::mm512_mask_loadu_epi16
#define _mm512_mask_loadu_epi32 lepton_emulate::mm512_mask_loadu_epi32
#define _mm512_mask_loadu_epi64 lepton_emulate::mm512_mask_loadu_epi64
#define _mm512_maskz_loadu_ps lepton_emulate::mm512_maskz_loadu_ps
#define _mm512_maskz_loadu_pd lepton_emulate::mm512_maskz_loadu_pd
#define _mm512_maskz_loadu_epi8 lepton_emulate::mm512_maskz_loadu_epi8
#define _mm512_maskz_loadu_epi16 lepton_emulate::mm512_maskz_loadu_epi16
#define _mm512_maskz_loadu_epi32 lepton_emulate::mm512_maskz_loadu_epi32
#define _mm512_maskz_loadu_epi64 lepton_emulate::mm512_maskz_loadu_epi64
#define _mm512_mask_storeu_ps lepton_emulate::mm512_mask_storeu_ps
#define _mm512_mask_storeu_pd lepton_emulate::mm512_mask_storeu_pd
#define _mm512_mask_storeu_epi8 lepton_emulate::mm512_mask_storeu_epi8
#define _mm512_mask_storeu_epi16 lepton_emulate::mm512_mask_storeu_epi16
#define _mm512_mask_storeu_epi32 lepton_emulate::mm512_mask_storeu_epi32
#define _mm512_mask_storeu_epi64 lepton_emulate::mm512_mask_storeu_epi64
LEPTON_EMULATE_MASKED_ALIGNED(mm512, ps, m512, float)
LEPTON_EMULATE_MASKED_ALIGNED(mm512, epi32, m512i, std::int32_t)
LEPTON_EMULATE_MASKED_ALIGNED(mm512, epi64, m512i, std::int64_t)
#define _mm512_mask_load_ps lepton_emulate::mm512_mask_load_ps
#define _mm512_mask_load_epi32 lepton_emulate::mm512_mask_load_epi32
#define _mm512_mask_load_epi64 lepton_emulate::mm512_mask_load_epi64
#define _mm512_maskz_load_ps lepton_emulate::mm512_maskz_load_ps
#define _mm512_maskz_load_epi32 lepton_emulate::mm512_maskz_load_epi32
#define _mm512_maskz_load_epi64 lepton_emulate::mm512_maskz_load_epi64
#define _mm512_mask_store_ps lepton_emulate::mm512_mask_store_ps
#define _mm512_mask_store_epi32 lepton_emulate::mm512_mask_store_epi32
#define _mm512_mask_store_epi64 lepton_emulate::mm512_mask_store_epi64

// AVX-512VL and BW forms on the real 128- and 256-bit registers.
LEPTON_EMULATE_LOADSTORE(mm256, epi8, __m256i)
LEPTON_EMULATE_LOADSTORE(mm256, epi16, __m256i)
LEPTON_EMULATE_LOADSTORE(mm256, epi32, __m256i)
LEPTON_EMULATE_LOADSTORE(mm256, epi64, __m256i)
LEPTON_EMULATE_LOADSTORE(mm, epi8, __m128i)
LEPTON_EMULATE_LOADSTORE(mm, epi16, __m128i)
LEPTON_EMULATE_LOADSTORE(mm, epi32, __m128i)
LEPTON_EMULATE_LOADSTORE(mm, epi64, __m128i)
#define _mm256_loadu_epi8 lepton_emulate::mm256_loadu_epi8
#define _mm256_loadu_epi16 lepton_emulate::mm256_loadu_epi16
#define _mm256_loadu_epi32 lepton_emulate::mm256_loadu_epi32
#define _mm256_loadu_epi64 lepton_emulate::mm256_loadu_epi64
#define _mm256_storeu_epi8 lepton_emulate::mm256_storeu_epi8
#define _mm256_storeu_epi16 lepton_emulate::mm256_storeu_epi16
#define _mm256_storeu_epi32 lepton_emulate::mm256_storeu_epi32
#define _mm256_storeu_epi64 lepton_emulate::mm256_storeu_epi64
#define _mm_loadu_epi8 lepton_emulate::mm_loadu_epi8
#define _mm_loadu_epi16 lepton_emulate::mm_loadu_epi16
#define _mm_loadu_epi32 lepton_emulate::mm_loadu_epi32
#define _mm_loadu_epi64 lepton_emulate::mm_loadu_epi64
#define _mm_storeu_epi8 lepton_emulate::mm_storeu_epi8
#define _mm_storeu_epi16 lepton_emulate::mm_storeu_epi16
#define _mm_storeu_epi32 lepton_emulate::mm_storeu_epi32
#define _mm_storeu_epi64 lepton_emulate::mm_storeu_epi64
LEPTON_EMULATE_MASKED_LOADSTORE(mm256, ps, __m256, float)
LEPTON_EMULATE_MASKED_LOADSTORE(mm256, epi8, __m256i, std::int8_t)
LEPTON_EMULATE_MASKED_LOADSTORE(mm256, epi16, __m256i, std::int16_t)
LEPTON_EMULATE_MASKED_LOADSTORE(mm256, epi32, __m256i, std::int32_t)
LEPTON_EMULATE_MASKED_LOADSTORE(mm256, epi64, __m256i, std::int64_t)
LEPTON_EMULATE_MASKED_LOADSTORE(mm, ps, __m128, float)
LEPTON_EMULATE_MASKED_LOADSTORE(mm, epi8, __m128i, std::int8_t)
LEPTON_EMULATE_MASKED_LOADSTORE(mm, epi16, __m128i, std::int16_t)
LEPTON_EMULATE_MASKED_LOADSTORE(mm, epi32, __m128i, std::int32_t)
LEPTON_EMULATE_MASKED_LOADSTORE(mm, epi64, __m128i, std::int64_t)
#define _mm256_mask_loadu_ps lepton_emulate::mm256_mask_loadu_ps
#define _mm256_mask_loadu_epi8 lepton_emulate::mm256_mask_loadu_epi8
#define _mm256_mask_loadu_epi16 lepton_emulate::mm256_mask_loadu_epi16
#define _mm256_mask_loadu_epi32 lepton_emulate::mm256_mask_loadu_epi32
#define _mm256_mask_loadu_epi64 lepton_emulate::mm256_mask_loadu_epi64
#define _mm256_maskz_loadu_ps lepton_emulate::mm256_maskz_loadu_ps
#define _mm256_maskz_loadu_epi8 lepton_emulate::mm256_maskz_loadu_epi8
#define _mm256_maskz_loadu_epi16 lepton_emulate::mm256_maskz_loadu_epi16
#define _mm256_maskz_loadu_epi32 lepton_emulate::mm256_maskz_loadu_epi32
#define _mm256_maskz_loadu_epi64 lepton_emulate::mm256_maskz_loadu_epi64
#define _mm256_mask_storeu_ps lepton_emulate::mm256_mask_storeu_ps
#define _mm256_mask_storeu_epi8 lepton_emulate::mm256_mask_storeu_epi8
#define _mm256_mask_storeu_epi16 lepton_emulate::mm256_mask_storeu_epi16
#define _mm256_mask_storeu_epi32 lepton_emulate::mm256_mask_storeu_epi32
#define _mm256_mask_storeu_epi64 lepton_emulate::mm256_mask_storeu_epi64
#define _mm_mask_loadu_ps lepton_emulate::mm_mask_loadu_ps
#define _mm_mask_loadu_epi8 lepton_emulate::mm_mask_loadu_epi8
#define _mm_mask_loadu_epi16 lepton_emulate::mm_mask_loadu_epi16
#define _mm_mask_loadu_epi32 lepton_emulate::mm_mask_loadu_epi32
#define _mm_mask_loadu_epi64 lepton_emulate::mm_mask_loadu_epi64
#define _mm_maskz_loadu_ps lepton_emulate::mm_maskz_loadu_ps
#define _mm_maskz_loadu_epi8 lepton_emulate::mm_maskz_loadu_epi8
#define _mm_maskz_loadu_epi16 lepton_emulate::mm_maskz_loadu_epi16
#define _mm_maskz_loadu_epi32 lepton_emulate::mm_maskz_loadu_epi32
#define _mm_maskz_loadu_epi64 lepton_emulate::mm_maskz_loadu_epi64
#define _mm_mask_storeu_ps lepton_emulate::mm_mask_storeu_ps
#define _mm_mask_storeu_epi8 lepton_emulate::mm_mask_storeu_epi8
#define _mm_mask_storeu_epi16 lepton_emulate::mm_mask_storeu_epi16
#define _mm_mask_storeu_epi32 lepton_emulate::mm_mask_storeu_epi32
#define _mm_mask_storeu_epi64 lepton_emulate::mm_mask_storeu_epi64

// Non-temporal: the same bytes, and the same demand for alignment.
static inline void mm512_stream_si512(void* p, const m512i& v) { store_aligned(p, v); }
static inline void mm512_stream_ps(void* p, const m512& v) { store_aligned(p, v); }
static inline void mm512_stream_pd(void* p, const m512d& v) { store_aligned(p, v); }
static inline m512i mm512_stream_load_si512(const void* p) { return load_aligned<m512i>(p); }
#define _mm512_stream_si512 lepton_emulate::mm512_stream_si512
#define _mm512_stream_ps lepton_emulate::mm512_stream_ps
#define _mm512_stream_pd lepton_emulate::mm512_stream_pd
#define _mm512_stream_load_si512 lepton_emulate::mm512_stream_load_si512

// Gathers and scatters with 32-bit indices; masked-off lanes are not touched, a higher lane stores
// last.
template <class T, class V>
static inline V gather(const V& src, std::uint64_t k, const m512i& index, const void* base,
                       int scale) {
  auto r = lanes<T>(src);
  for (int i = 0; i < r.size; ++i)
    if (bit(k, i))
      std::memcpy(&r.at[i], static_cast<const char*>(base) + std::int64_t{index.lane[i]} * scale,
                  sizeof(T));
  return join<V>(r);
}
template <class T, class V>
static inline void scatter(void* base, std::uint64_t k, const m512i& index, const V& v, int scale) {
  const auto x = lanes<T>(v);
  for (int i = 0; i < x.size; ++i)
    if (bit(k, i))
      std::memcpy(static_cast<char*>(base) + std::int64_t{index.lane[i]} * scale, &x.at[i],
                  sizeof(T));
}
#define LEPTON_EMULATE_GATHER(SUFFIX, V, T)                                                      \
  static inline V mm512_i32gather_##SUFFIX(const m512i& i, const void* p, int scale) {           \
    return gather<T>(zero<V>(), 0xFFFF, i, p, scale);                                            \
  }                                                                                              \
  static inline V mm512_mask_i32gather_##SUFFIX(const V& src, __mmask16 k, const m512i& i,       \
                                                const void* p, int scale) {                      \
    return gather<T>(src, k, i, p, scale);                                                       \
  }                                                                                              \
  static inline void mm512_i32scatter_##SUFFIX(void* p, const m512i& i, const V& v, int scale) { \
    scatter<T>(p, 0xFFFF, i, v, scale);                                                          \
  }                                                                                              \
  static inline void mm512_mask_i32scatter_##SUFFIX(void* p, __mmask16 k, const m512i& i,        \
                                                    const V& v, int scale) {                     \
    scatter<T>(p, k, i, v, scale);                                                               \
  }
LEPTON_EMULATE_GATHER(ps, m512, float)
LEPTON_EMULATE_GATHER(epi32, m512i, std::int32_t)
#undef _mm512_i32gather_ps
#define _mm512_i32gather_ps lepton_emulate::mm512_i32gather_ps
#undef _mm512_i32gather_epi32
#define _mm512_i32gather_epi32 lepton_emulate::mm512_i32gather_epi32
#undef _mm512_mask_i32gather_ps
#define _mm512_mask_i32gather_ps lepton_emulate::mm512_mask_i32gather_ps
#undef _mm512_mask_i32gather_epi32
#define _mm512_mask_i32gather_epi32 lepton_emulate::mm512_mask_i32gather_epi32
#undef _mm512_i32scatter_ps
#define _mm512_i32scatter_ps lepton_emulate::mm512_i32scatter_ps
#undef _mm512_i32scatter_epi32
#define _mm512_i32scatter_epi32 lepton_emulate::mm512_i32scatter_epi32
#undef _mm512_mask_i32scatter_ps
#define _mm512_mask_i32scatter_ps lepton_emulate::mm512_mask_i32scatter_ps
#undef _mm512_mask_i32scatter_epi32
#define _mm512_mask_i32scatter_epi32 lepton_emulate::mm512_mask_i32scatter_epi32

// Constants.
static inline m512 mm512_setzero_ps() { return zero<m512>(); }
static inline m512 mm512_setzero() { return zero<m512>(); }
static inline m512d mm512_setzero_pd() { return zero<m512d>(); }
static inline m512i mm512_setzero_si512() { return zero<m512i>(); }
static inline m512i mm512_setzero_epi32() { return zero<m512i>(); }
#define _mm512_setzero lepton_emulate::mm512_setzero
#define _mm512_setzero_ps lepton_emulate::mm512_setzero_ps
#define _mm512_setzero_pd lepton_emulate::mm512_setzero_pd
#define _mm512_setzero_si512 lepton_emulate::mm512_setzero_si512
#define _mm512_setzero_epi32 lepton_emulate::mm512_setzero_epi32
static inline m512 mm512_undefined_ps() { return undefined<m512>(); }
static inline m512 mm512_undefined() { return undefined<m512>(); }
static inline m512d mm512_undefined_pd() { return undefined<m512d>(); }
static inline m512i mm512_undefined_epi32() { return undefined<m512i>(); }
#define _mm512_undefined_ps lepton_emulate::mm512_undefined_ps
#define _mm512_undefined_pd lepton_emulate::mm512_undefined_pd
#define _mm512_undefined_epi32 lepton_emulate::mm512_undefined_epi32

#define LEPTON_EMULATE_SET1(W, SUFFIX, V, T, ARGUMENT)                                       \
  static inline V W##_set1_##SUFFIX(ARGUMENT x) {                                            \
    Pack<T, sizeof(V) / sizeof(T)> r;                                                        \
    for (int i = 0; i < r.size; ++i) r.at[i] = static_cast<T>(x);                            \
    return join<V>(r);                                                                       \
  }                                                                                          \
  static inline V W##_mask_set1_##SUFFIX(const V& src, mask_t<T, sizeof(V)> k, ARGUMENT x) { \
    return select<T>(k, W##_set1_##SUFFIX(x), src);                                          \
  }                                                                                          \
  static inline V W##_maskz_set1_##SUFFIX(mask_t<T, sizeof(V)> k, ARGUMENT x) {              \
    return select<T>(k, W##_set1_##SUFFIX(x), zero<V>());                                    \
  }
LEPTON_EMULATE_SET1(mm512, ps, m512, float, float)
LEPTON_EMULATE_SET1(mm512, pd, m512d, double, double)
LEPTON_EMULATE_SET1(mm512, epi8, m512i, std::int8_t, char)
LEPTON_EMULATE_SET1(mm512, epi16, m512i, std::int16_t, short)
LEPTON_EMULATE_SET1(mm512, epi32, m512i, std::int32_t, int)
LEPTON_EMULATE_SET1(mm512, epi64, m512i, std::int64_t, long long)
#define _mm512_set1_ps lepton_emulate::mm512_set1_ps
#define _mm512_set1_pd lepton_emulate::mm512_set1_pd
#define _mm512_set1_epi8 lepton_emulate::mm512_set1_epi8
#define _mm512_set1_epi16 lepton_emulate::mm512_set1_epi16
#define _mm512_set1_epi32 lepton_emulate::mm512_set1_epi32
#define _mm512_set1_epi64 lepton_emulate::mm512_set1_epi64
#define _mm512_mask_set1_epi8 lepton_emulate::mm512_mask_set1_epi8
#define _mm512_mask_set1_epi16 lepton_emulate::mm512_mask_set1_epi16
#define _mm512_mask_set1_epi32 lepton_emulate::mm512_mask_set1_epi32
#define _mm512_mask_set1_epi64 lepton_emulate::mm512_mask_set1_epi64
#define _mm512_maskz_set1_epi8 lepton_emulate::mm512_maskz_set1_epi8
#define _mm512_maskz_set1_epi16 lepton_emulate::mm512_maskz_set1_epi16
#define _mm512_maskz_set1_epi32 lepton_emulate::mm512_maskz_set1_epi32
#define _mm512_maskz_set1_epi64 lepton_emulate::mm512_maskz_set1_epi64

// set: the first argument is the highest lane; setr: the lowest.
template <class V, class T, class... A>
static inline V set_low_first(A... a) {
  static_assert(sizeof...(A) == sizeof(V) / sizeof(T), "wrong number of lanes");
  const Pack<T, sizeof(V) / sizeof(T)> p = {{static_cast<T>(a)...}};
  return join<V>(p);
}
template <class V, class T, class... A>
static inline V set_high_first(A... a) {
  const auto p = lanes<T>(set_low_first<V, T>(a...));
  Pack<T, p.size> r;
  for (int i = 0; i < r.size; ++i) r.at[i] = p.at[r.size - 1 - i];
  return join<V>(r);
}
#define LEPTON_EMULATE_SET(SUFFIX, V, T)        \
  template <class... A>                         \
  static inline V mm512_set_##SUFFIX(A... a) {  \
    return set_high_first<V, T>(a...);          \
  }                                             \
  template <class... A>                         \
  static inline V mm512_setr_##SUFFIX(A... a) { \
    return set_low_first<V, T>(a...);           \
  }
LEPTON_EMULATE_SET(ps, m512, float)
LEPTON_EMULATE_SET(pd, m512d, double)
LEPTON_EMULATE_SET(epi8, m512i, std::int8_t)
LEPTON_EMULATE_SET(epi16, m512i, std::int16_t)
LEPTON_EMULATE_SET(epi32, m512i, std::int32_t)
LEPTON_EMULATE_SET(epi64, m512i, std::int64_t)
#define _mm512_set_ps lepton_emulate::mm512_set_ps
#define _mm512_set_pd lepton_emulate::mm512_set_pd
#define _mm512_set_epi32 lepton_emulate::mm512_set_epi32
#define _mm512_set_epi64 lepton_emulate::mm512_set_epi64
#undef _mm512_setr_ps
#define _mm512_setr_ps lepton_emulate::mm512_setr_ps
#undef _mm512_setr_pd
#define _mm512_setr_pd lepton_emulate::mm512_setr_pd
#undef _mm512_setr_epi32
#define _mm512_setr_epi32 lepton_emulate::mm512_setr_epi32
#undef _mm512_setr_epi64
#define _mm512_setr_epi64 lepton_emulate::mm512_setr_epi64
#define _mm512_set_epi8 lepton_emulate::mm512_set_epi8
#define _mm512_set_epi16 lepton_emulate::mm512_set_epi16
static inline m512i mm512_set4_epi32(int d, int c, int b, int a) {
  return mm512_set_epi32(d, c, b, a, d, c, b, a, d, c, b, a, d, c, b, a);
}
static inline m512i mm512_setr4_epi32(int a, int b, int c, int d) {
  return mm512_set4_epi32(d, c, b, a);
}
static inline m512 mm512_set4_ps(float d, float c, float b, float a) {
  return mm512_set_ps(d, c, b, a, d, c, b, a, d, c, b, a, d, c, b, a);
}
#define _mm512_set4_epi32 lepton_emulate::mm512_set4_epi32
#undef _mm512_setr4_epi32
#define _mm512_setr4_epi32 lepton_emulate::mm512_setr4_epi32
#define _mm512_set4_ps lepton_emulate::mm512_set4_ps

}  // namespace lepton_emulate
#pragma GCC pop_options
