// Compress and expand (AVX512F for 32 and 64 bits, VBMI2 for 8 and 16).
#pragma once
#include "avx512_memory.h"

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
namespace lepton_emulate {

// The next lane of a goes where the mask has a one.
template <class T, class V>
static inline V expand(const V& src, std::uint64_t k, const V& a) {
  const auto x = lanes<T>(a);
  auto r = lanes<T>(src);
  int next = 0;
  for (int i = 0; i < r.size; ++i)
    if (bit(k, i)) r.at[i] = x.at[next++];
  return join<V>(r);
}
// From memory: reads as many elements as the mask has ones, and not one more.
template <class T, class V>
static inline V expand_load(const V& src, std::uint64_t k, const void* p) {
  auto r = lanes<T>(src);
  int next = 0;
  for (int i = 0; i < r.size; ++i)
    if (bit(k, i)) std::memcpy(&r.at[i], static_cast<const T*>(p) + next++, sizeof(T));
  return join<V>(r);
}
// The chosen lanes move together at the bottom; the lanes above them come from src.
template <class T, class V>
static inline V compress(const V& src, std::uint64_t k, const V& a) {
  const auto x = lanes<T>(a);
  auto r = lanes<T>(src);
  int next = 0;
  for (int i = 0; i < r.size; ++i)
    if (bit(k, i)) r.at[next++] = x.at[i];
  return join<V>(r);
}
template <class T, class V>
static inline void compress_store(void* p, std::uint64_t k, const V& a) {
  const auto x = lanes<T>(a);
  int next = 0;
  for (int i = 0; i < x.size; ++i)
    if (bit(k, i)) std::memcpy(static_cast<T*>(p) + next++, &x.at[i], sizeof(T));
}
#define LEPTON_EMULATE_EXPAND(W, SUFFIX, V, T)                                                   \
  static inline V W##_mask_expand_##SUFFIX(const V& src, mask_t<T, sizeof(V)> k, const V& a) {   \
    return expand<T>(src, k, a);                                                                 \
  }                                                                                              \
  static inline V W##_maskz_expand_##SUFFIX(mask_t<T, sizeof(V)> k, const V& a) {                \
    return expand<T>(zero<V>(), k, a);                                                           \
  }                                                                                              \
  static inline V W##_mask_expandloadu_##SUFFIX(const V& src, mask_t<T, sizeof(V)> k,            \
                                                const void* p) {                                 \
    return expand_load<T>(src, k, p);                                                            \
  }                                                                                              \
  static inline V W##_maskz_expandloadu_##SUFFIX(mask_t<T, sizeof(V)> k, const void* p) {        \
    return expand_load<T>(zero<V>(), k, p);                                                      \
  }                                                                                              \
  static inline V W##_mask_compress_##SUFFIX(const V& src, mask_t<T, sizeof(V)> k, const V& a) { \
    return compress<T>(src, k, a);                                                               \
  }                                                                                              \
  static inline V W##_maskz_compress_##SUFFIX(mask_t<T, sizeof(V)> k, const V& a) {              \
    return compress<T>(zero<V>(), k, a);                                                         \
  }                                                                                              \
  static inline void W##_mask_compressstoreu_##SUFFIX(void* p, mask_t<T, sizeof(V)> k,           \
                                                      const V& a) {                              \
    compress_store<T>(p, k, a);                                                                  \
  }
LEPTON_EMULATE_EXPAND(mm512, epi8, m512i, std::int8_t)
LEPTON_EMULATE_EXPAND(mm512, epi16, m512i, std::int16_t)
LEPTON_EMULATE_EXPAND(mm512, epi32, m512i, std::int32_t)
LEPTON_EMULATE_EXPAND(mm512, epi64, m512i, std::int64_t)
LEPTON_EMULATE_EXPAND(mm512, ps, m512, float)
LEPTON_EMULATE_EXPAND(mm512, pd, m512d, double)
#define _mm512_mask_expand_epi8 lepton_emulate::mm512_mask_expand_epi8
#define _mm512_mask_expand_epi16 lepton_emulate::mm512_mask_expand_epi16
#define _mm512_mask_expand_epi32 lepton_emulate::mm512_mask_expand_epi32
#define _mm512_mask_expand_epi64 lepton_emulate::mm512_mask_expand_epi64
#define _mm512_mask_expand_ps lepton_emulate::mm512_mask_expand_ps
#define _mm512_mask_expand_pd lepton_emulate::mm512_mask_expand_pd
#define _mm512_mask_expandloadu_epi8 lepton_emulate::mm512_mask_expandloadu_epi8
#define _mm512_mask_expandloadu_epi16 lepton_emulate::mm512_mask_expandloadu_epi16
#define _mm512_mask_expandloadu_epi32 lepton_emulate::mm512_mask_expandloadu_epi32
#define _mm512_mask_expandloadu_epi64 lepton_emulate::mm512_mask_expandloadu_epi64
#define _mm512_mask_expandloadu_ps lepton_emulate::mm512_mask_expandloadu_ps
#define _mm512_mask_expandloadu_pd lepton_emulate::mm512_mask_expandloadu_pd
#define _mm512_mask_compress_epi8 lepton_emulate::mm512_mask_compress_epi8
#define _mm512_mask_compress_epi16 lepton_emulate::mm512_mask_compress_epi16
#define _mm512_mask_compress_epi32 lepton_emulate::mm512_mask_compress_epi32
#define _mm512_mask_compress_epi64 lepton_emulate::mm512_mask_compress_epi64
#define _mm512_mask_compress_ps lepton_emulate::mm512_mask_compress_ps
#define _mm512_mask_compress_pd lepton_emulate::mm512_mask_compress_pd
#define _mm512_maskz_expand_epi8 lepton_emulate::mm512_maskz_expand_epi8
#define _mm512_maskz_expand_epi16 lepton_emulate::mm512_maskz_expand_epi16
#define _mm512_maskz_expand_epi32 lepton_emulate::mm512_maskz_expand_epi32
#define _mm512_maskz_expand_epi64 lepton_emulate::mm512_maskz_expand_epi64
#define _mm512_maskz_expand_ps lepton_emulate::mm512_maskz_expand_ps
#define _mm512_maskz_expand_pd lepton_emulate::mm512_maskz_expand_pd
#define _mm512_maskz_expandloadu_epi8 lepton_emulate::mm512_maskz_expandloadu_epi8
#define _mm512_maskz_expandloadu_epi16 lepton_emulate::mm512_maskz_expandloadu_epi16
#define _mm512_maskz_expandloadu_epi32 lepton_emulate::mm512_maskz_expandloadu_epi32
#define _mm512_maskz_expandloadu_epi64 lepton_emulate::mm512_maskz_expandloadu_epi64
#define _mm512_maskz_expandloadu_ps lepton_emulate::mm512_maskz_expandloadu_ps
#define _mm512_maskz_expandloadu_pd lepton_emulate::mm512_maskz_expandloadu_pd
#define _mm512_maskz_compress_epi8 lepton_emulate::mm512_maskz_compress_epi8
#define _mm512_maskz_compress_epi16 lepton_emulate::mm512_maskz_compress_epi16
#define _mm512_maskz_compress_epi32 lepton_emulate::mm512_maskz_compress_epi32
#define _mm512_maskz_compress_epi64 lepton_emulate::mm512_maskz_compress_epi64
#define _mm512_maskz_compress_ps lepton_emulate::mm512_maskz_compress_ps
#define _mm512_maskz_compress_pd lepton_emulate::mm512_maskz_compress_pd
#define _mm512_mask_compressstoreu_epi8 lepton_emulate::mm512_mask_compressstoreu_epi8
#define _mm512_mask_compressstoreu_epi16 lepton_emulate::mm512_mask_compressstoreu_epi16
#define _mm512_mask_compressstoreu_epi32 lepton_emulate::mm512_mask_compressstoreu_epi32
#define _mm512_mask_compressstoreu_epi64 lepton_emulate::mm512_mask_compressstoreu_epi64
#define _mm512_mask_compressstoreu_ps lepton_emulate::mm512_mask_compressstoreu_ps
#define _mm512_mask_compressstoreu_pd lepton_emulate::mm512_mask_compressstoreu_pd
LEPTON_EMULATE_EXPAND(mm256, epi8, __m256i, std::int8_t)
LEPTON_EMULATE_EXPAND(mm256, epi16, __m256i, std::int16_t)
LEPTON_EMULATE_EXPAND(mm256, epi32, __m256i, std::int32_t)
LEPTON_EMULATE_EXPAND(mm256, ps, __m256, float)
LEPTON_EMULATE_EXPAND(mm, epi8, __m128i, std::int8_t)
LEPTON_EMULATE_EXPAND(mm, epi16, __m128i, std::int16_t)
#define _mm256_mask_expand_epi8 lepton_emulate::mm256_mask_expand_epi8
#define _mm256_mask_expand_epi16 lepton_emulate::mm256_mask_expand_epi16
#define _mm256_mask_expand_epi32 lepton_emulate::mm256_mask_expand_epi32
#define _mm256_mask_expand_ps lepton_emulate::mm256_mask_expand_ps
#define _mm256_mask_expandloadu_epi8 lepton_emulate::mm256_mask_expandloadu_epi8
#define _mm256_mask_expandloadu_epi16 lepton_emulate::mm256_mask_expandloadu_epi16
#define _mm256_mask_expandloadu_epi32 lepton_emulate::mm256_mask_expandloadu_epi32
#define _mm256_mask_expandloadu_ps lepton_emulate::mm256_mask_expandloadu_ps
#define _mm256_mask_compress_epi8 lepton_emulate::mm256_mask_compress_epi8
#define _mm256_mask_compress_epi16 lepton_emulate::mm256_mask_compress_epi16
#define _mm256_mask_compress_epi32 lepton_emulate::mm256_mask_compress_epi32
#define _mm256_mask_compress_ps lepton_emulate::mm256_mask_compress_ps
#define _mm256_maskz_expand_epi8 lepton_emulate::mm256_maskz_expand_epi8
#define _mm256_maskz_expand_epi16 lepton_emulate::mm256_maskz_expand_epi16
#define _mm256_maskz_expand_epi32 lepton_emulate::mm256_maskz_expand_epi32
#define _mm256_maskz_expand_ps lepton_emulate::mm256_maskz_expand_ps
#define _mm256_maskz_expandloadu_epi8 lepton_emulate::mm256_maskz_expandloadu_epi8
#define _mm256_maskz_expandloadu_epi16 lepton_emulate::mm256_maskz_expandloadu_epi16
#define _mm256_maskz_expandloadu_epi32 lepton_emulate::mm256_maskz_expandloadu_epi32
#define _mm256_maskz_expandloadu_ps lepton_emulate::mm256_maskz_expandloadu_ps
#define _mm256_maskz_compress_epi8 lepton_emulate::mm256_maskz_compress_epi8
#define _mm256_maskz_compress_epi16 lepton_emulate::mm256_maskz_compress_epi16
#define _mm256_maskz_compress_epi32 lepton_emulate::mm256_maskz_compress_epi32
#define _mm256_maskz_compress_ps lepton_emulate::mm256_maskz_compress_ps
#define _mm256_mask_compressstoreu_epi8 lepton_emulate::mm256_mask_compressstoreu_epi8
#define _mm256_mask_compressstoreu_epi16 lepton_emulate::mm256_mask_compressstoreu_epi16
#define _mm256_mask_compressstoreu_epi32 lepton_emulate::mm256_mask_compressstoreu_epi32
#define _mm256_mask_compressstoreu_ps lepton_emulate::mm256_mask_compressstoreu_ps
#define _mm_mask_expand_epi8 lepton_emulate::mm_mask_expand_epi8
#define _mm_mask_expand_epi16 lepton_emulate::mm_mask_expand_epi16
#define _mm_mask_expandloadu_epi8 lepton_emulate::mm_mask_expandloadu_epi8
#define _mm_mask_expandloadu_epi16 lepton_emulate::mm_mask_expandloadu_epi16
#define _mm_mask_compress_epi8 lepton_emulate::mm_mask_compress_epi8
#define _mm_mask_compress_epi16 lepton_emulate::mm_mask_compress_epi16
#define _mm_maskz_expand_epi8 lepton_emulate::mm_maskz_expand_epi8
#define _mm_maskz_expand_epi16 lepton_emulate::mm_maskz_expand_epi16
#define _mm_maskz_expandloadu_epi8 lepton_emulate::mm_maskz_expandloadu_epi8
#define _mm_maskz_expandloadu_epi16 lepton_emulate::mm_maskz_expandloadu_epi16
#define _mm_maskz_compress_epi8 lepton_emulate::mm_maskz_compress_epi8
#define _mm_maskz_compress_epi16 lepton_emulate::mm_maskz_compress_epi16
#define _mm_mask_compressstoreu_epi8 lepton_emulate::mm_mask_compressstoreu_epi8
#define _mm_mask_compressstoreu_epi16 lepton_emulate::mm_mask_compressstoreu_epi16

}  // namespace lepton_emulate
#pragma GCC pop_options
