// Parts of registers: casts, extracts, inserts, broadcasts.
#pragma once
#include "avx512_types.h"

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
namespace lepton_emulate {

// Casts between types of one width keep the bits.
static inline m512i mm512_castps_si512(const m512& a) { return bits<m512i>(a); }
static inline m512d mm512_castps_pd(const m512& a) { return bits<m512d>(a); }
static inline m512 mm512_castsi512_ps(const m512i& a) { return bits<m512>(a); }
static inline m512d mm512_castsi512_pd(const m512i& a) { return bits<m512d>(a); }
static inline m512i mm512_castpd_si512(const m512d& a) { return bits<m512i>(a); }
static inline m512 mm512_castpd_ps(const m512d& a) { return bits<m512>(a); }
#define _mm512_castps_si512 lepton_emulate::mm512_castps_si512
#define _mm512_castps_pd lepton_emulate::mm512_castps_pd
#define _mm512_castsi512_ps lepton_emulate::mm512_castsi512_ps
#define _mm512_castsi512_pd lepton_emulate::mm512_castsi512_pd
#define _mm512_castpd_si512 lepton_emulate::mm512_castpd_si512
#define _mm512_castpd_ps lepton_emulate::mm512_castpd_ps
static inline __m256i mm512_castsi512_si256(const m512i& a) { return bits<__m256i>(a); }
static inline __m128i mm512_castsi512_si128(const m512i& a) { return bits<__m128i>(a); }
static inline __m256 mm512_castps512_ps256(const m512& a) { return bits<__m256>(a); }
static inline __m128 mm512_castps512_ps128(const m512& a) { return bits<__m128>(a); }
static inline __m256d mm512_castpd512_pd256(const m512d& a) { return bits<__m256d>(a); }
#define _mm512_castsi512_si256 lepton_emulate::mm512_castsi512_si256
#define _mm512_castsi512_si128 lepton_emulate::mm512_castsi512_si128
#define _mm512_castps512_ps256 lepton_emulate::mm512_castps512_ps256
#define _mm512_castps512_ps128 lepton_emulate::mm512_castps512_ps128
#define _mm512_castpd512_pd256 lepton_emulate::mm512_castpd512_pd256
// Casts to a wider type leave the upper part undefined (here: poisoned); zext clears it.
template <class V, class P>
static inline V widen(const P& part, V rest) {
  std::memcpy(static_cast<void*>(&rest), &part, sizeof(P));
  return rest;
}
static inline m512i mm512_castsi256_si512(const __m256i& a) { return widen(a, undefined<m512i>()); }
static inline m512i mm512_castsi128_si512(const __m128i& a) { return widen(a, undefined<m512i>()); }
static inline m512 mm512_castps256_ps512(const __m256& a) { return widen(a, undefined<m512>()); }
static inline m512 mm512_castps128_ps512(const __m128& a) { return widen(a, undefined<m512>()); }
static inline m512d mm512_castpd256_pd512(const __m256d& a) { return widen(a, undefined<m512d>()); }
#define _mm512_castsi256_si512 lepton_emulate::mm512_castsi256_si512
#define _mm512_castsi128_si512 lepton_emulate::mm512_castsi128_si512
#define _mm512_castps256_ps512 lepton_emulate::mm512_castps256_ps512
#define _mm512_castps128_ps512 lepton_emulate::mm512_castps128_ps512
#define _mm512_castpd256_pd512 lepton_emulate::mm512_castpd256_pd512
static inline m512i mm512_zextsi256_si512(const __m256i& a) { return widen(a, zero<m512i>()); }
static inline m512i mm512_zextsi128_si512(const __m128i& a) { return widen(a, zero<m512i>()); }
static inline m512 mm512_zextps256_ps512(const __m256& a) { return widen(a, zero<m512>()); }
static inline m512 mm512_zextps128_ps512(const __m128& a) { return widen(a, zero<m512>()); }
#define _mm512_zextsi256_si512 lepton_emulate::mm512_zextsi256_si512
#define _mm512_zextsi128_si512 lepton_emulate::mm512_zextsi128_si512
#define _mm512_zextps256_ps512 lepton_emulate::mm512_zextps256_ps512
#define _mm512_zextps128_ps512 lepton_emulate::mm512_zextps128_ps512

// Extract and insert a part; the immediate counts parts.
template <class P, class V>
static inline P extract(const V& v, int which) {
  P r;
  const int n = which & (sizeof(V) / sizeof(P) - 1);
  std::memcpy(static_cast<void*>(&r), reinterpret_cast<const char*>(&v) + n * sizeof(P), sizeof(P));
  return r;
}
template <class V, class P>
static inline V insert(V v, const P& part, int which) {
  const int n = which & (sizeof(V) / sizeof(P) - 1);
  std::memcpy(reinterpret_cast<char*>(&v) + n * sizeof(P), &part, sizeof(P));
  return v;
}
#define LEPTON_EMULATE_PART(SUFFIX, NAME, V, P)                                                  \
  static inline P mm512_extract##NAME##_##SUFFIX(const V& a, int n) { return extract<P>(a, n); } \
  static inline V mm512_insert##NAME(const V& a, const P& b, int n) { return insert(a, b, n); }
LEPTON_EMULATE_PART(epi32, i32x4, m512i, __m128i)
LEPTON_EMULATE_PART(epi32, i32x8, m512i, __m256i)
LEPTON_EMULATE_PART(epi64, i64x2, m512i, __m128i)
LEPTON_EMULATE_PART(epi64, i64x4, m512i, __m256i)
LEPTON_EMULATE_PART(ps, f32x4, m512, __m128)
LEPTON_EMULATE_PART(ps, f32x8, m512, __m256)
LEPTON_EMULATE_PART(pd, f64x4, m512d, __m256d)
#undef _mm512_extracti32x4_epi32
#define _mm512_extracti32x4_epi32 lepton_emulate::mm512_extracti32x4_epi32
#undef _mm512_extracti32x8_epi32
#define _mm512_extracti32x8_epi32 lepton_emulate::mm512_extracti32x8_epi32
#undef _mm512_extracti64x2_epi64
#define _mm512_extracti64x2_epi64 lepton_emulate::mm512_extracti64x2_epi64
#undef _mm512_extracti64x4_epi64
#define _mm512_extracti64x4_epi64 lepton_emulate::mm512_extracti64x4_epi64
#undef _mm512_extractf32x4_ps
#define _mm512_extractf32x4_ps lepton_emulate::mm512_extractf32x4_ps
#undef _mm512_extractf32x8_ps
#define _mm512_extractf32x8_ps lepton_emulate::mm512_extractf32x8_ps
#undef _mm512_extractf64x4_pd
#define _mm512_extractf64x4_pd lepton_emulate::mm512_extractf64x4_pd
#undef _mm512_inserti32x4
#define _mm512_inserti32x4 lepton_emulate::mm512_inserti32x4
#undef _mm512_inserti32x8
#define _mm512_inserti32x8 lepton_emulate::mm512_inserti32x8
#undef _mm512_inserti64x2
#define _mm512_inserti64x2 lepton_emulate::mm512_inserti64x2
#undef _mm512_inserti64x4
#define _mm512_inserti64x4 lepton_emulate::mm512_inserti64x4
#undef _mm512_insertf32x4
#define _mm512_insertf32x4 lepton_emulate::mm512_insertf32x4
#undef _mm512_insertf32x8
#define _mm512_insertf32x8 lepton_emulate::mm512_insertf32x8
#undef _mm512_insertf64x4
#define _mm512_insertf64x4 lepton_emulate::mm512_insertf64x4

// Broadcasts of the lowest element (x.at[0]) or of a whole part.
template <class V, class P>
static inline V repeat(const P& part) {
  V r;
  for (std::size_t i = 0; i < sizeof(V); i += sizeof(P))
    std::memcpy(reinterpret_cast<char*>(&r) + i, &part, sizeof(P));
  return r;
}
#define LEPTON_EMULATE_BROADCAST(NAME, V, T, IN, PART)                                   \
  static inline V mm512_##NAME(const IN& a) { return repeat<V>(bits<PART>(a)); }         \
  static inline V mm512_mask_##NAME(const V& src, mask_t<T, sizeof(V)> k, const IN& a) { \
    return select<T>(k, mm512_##NAME(a), src);                                           \
  }                                                                                      \
  static inline V mm512_maskz_##NAME(mask_t<T, sizeof(V)> k, const IN& a) {              \
    return select<T>(k, mm512_##NAME(a), zero<V>());                                     \
  }
LEPTON_EMULATE_BROADCAST(broadcastb_epi8, m512i, std::int8_t, __m128i, std::int8_t)
LEPTON_EMULATE_BROADCAST(broadcastw_epi16, m512i, std::int16_t, __m128i, std::int16_t)
LEPTON_EMULATE_BROADCAST(broadcastd_epi32, m512i, std::int32_t, __m128i, std::int32_t)
LEPTON_EMULATE_BROADCAST(broadcastq_epi64, m512i, std::int64_t, __m128i, std::int64_t)
LEPTON_EMULATE_BROADCAST(broadcastss_ps, m512, float, __m128, float)
LEPTON_EMULATE_BROADCAST(broadcastsd_pd, m512d, double, __m128d, double)
LEPTON_EMULATE_BROADCAST(broadcast_i32x4, m512i, std::int32_t, __m128i, __m128i)
LEPTON_EMULATE_BROADCAST(broadcast_i32x8, m512i, std::int32_t, __m256i, __m256i)
LEPTON_EMULATE_BROADCAST(broadcast_i64x4, m512i, std::int64_t, __m256i, __m256i)
LEPTON_EMULATE_BROADCAST(broadcast_f32x4, m512, float, __m128, __m128)
LEPTON_EMULATE_BROADCAST(broadcast_f32x8, m512, float, __m256, __m256)
#define _mm512_broadcastb_epi8 lepton_emulate::mm512_broadcastb_epi8
#define _mm512_broadcastw_epi16 lepton_emulate::mm512_broadcastw_epi16
#define _mm512_broadcastd_epi32 lepton_emulate::mm512_broadcastd_epi32
#define _mm512_broadcastq_epi64 lepton_emulate::mm512_broadcastq_epi64
#define _mm512_broadcastss_ps lepton_emulate::mm512_broadcastss_ps
#define _mm512_broadcastsd_pd lepton_emulate::mm512_broadcastsd_pd
#define _mm512_mask_broadcastb_epi8 lepton_emulate::mm512_mask_broadcastb_epi8
#define _mm512_mask_broadcastw_epi16 lepton_emulate::mm512_mask_broadcastw_epi16
#define _mm512_mask_broadcastd_epi32 lepton_emulate::mm512_mask_broadcastd_epi32
#define _mm512_mask_broadcastq_epi64 lepton_emulate::mm512_mask_broadcastq_epi64
#define _mm512_mask_broadcastss_ps lepton_emulate::mm512_mask_broadcastss_ps
#define _mm512_mask_broadcastsd_pd lepton_emulate::mm512_mask_broadcastsd_pd
#define _mm512_maskz_broadcastb_epi8 lepton_emulate::mm512_maskz_broadcastb_epi8
#define _mm512_maskz_broadcastw_epi16 lepton_emulate::mm512_maskz_broadcastw_epi16
#define _mm512_maskz_broadcastd_epi32 lepton_emulate::mm512_maskz_broadcastd_epi32
#define _mm512_maskz_broadcastq_epi64 lepton_emulate::mm512_maskz_broadcastq_epi64
#define _mm512_maskz_broadcastss_ps lepton_emulate::mm512_maskz_broadcastss_ps
#define _mm512_maskz_broadcastsd_pd lepton_emulate::mm512_maskz_broadcastsd_pd
#define _mm512_broadcast_i32x4 lepton_emulate::mm512_broadcast_i32x4
#define _mm512_broadcast_i32x8 lepton_emulate::mm512_broadcast_i32x8
#define _mm512_broadcast_i64x4 lepton_emulate::mm512_broadcast_i64x4
#define _mm512_broadcast_f32x4 lepton_emulate::mm512_broadcast_f32x4
#define _mm512_broadcast_f32x8 lepton_emulate::mm512_broadcast_f32x8
#define _mm512_mask_broadcast_i32x4 lepton_emulate::mm512_mask_broadcast_i32x4
#define _mm512_mask_broadcast_i32x8 lepton_emulate::mm512_mask_broadcast_i32x8
#define _mm512_mask_broadcast_i64x4 lepton_emulate::mm512_mask_broadcast_i64x4
#define _mm512_mask_broadcast_f32x4 lepton_emulate::mm512_mask_broadcast_f32x4
#define _mm512_mask_broadcast_f32x8 lepton_emulate::mm512_mask_broadcast_f32x8
#define _mm512_maskz_broadcast_i32x4 lepton_emulate::mm512_maskz_broadcast_i32x4
#define _mm512_maskz_broadcast_i32x8 lepton_emulate::mm512_maskz_broadcast_i32x8
#define _mm512_maskz_broadcast_i64x4 lepton_emulate::mm512_maskz_broadcast_i64x4
#define _mm512_maskz_broadcast_f32x4 lepton_emulate::mm512_maskz_broadcast_f32x4
#define _mm512_maskz_broadcast_f32x8 lepton_emulate::mm512_maskz_broadcast_f32x8

}  // namespace lepton_emulate
#pragma GCC pop_options
