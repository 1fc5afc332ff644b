// Mask registers: plain unsigned integers, as in the real headers.
#pragma once
#include "avx512_types.h"

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
namespace lepton_emulate {

#define LEPTON_EMULATE_MASK(N, M, INTEGER)                                                     \
  static inline M kand_mask##N(M a, M b) { return static_cast<M>(a & b); }                     \
  static inline M kandn_mask##N(M a, M b) { return static_cast<M>(~a & b); }                   \
  static inline M kor_mask##N(M a, M b) { return static_cast<M>(a | b); }                      \
  static inline M kxor_mask##N(M a, M b) { return static_cast<M>(a ^ b); }                     \
  static inline M kxnor_mask##N(M a, M b) { return static_cast<M>(~(a ^ b)); }                 \
  static inline M knot_mask##N(M a) { return static_cast<M>(~a); }                             \
  static inline M kadd_mask##N(M a, M b) { return static_cast<M>(a + b); }                     \
  static inline M kshiftli_mask##N(M a, unsigned n) {                                          \
    return n >= N ? M(0) : static_cast<M>(a << n);                                             \
  }                                                                                            \
  static inline M kshiftri_mask##N(M a, unsigned n) {                                          \
    return n >= N ? M(0) : static_cast<M>(a >> n);                                             \
  }                                                                                            \
  static inline unsigned char kortestz_mask##N##_u8(M a, M b) { return M(a | b) == 0; }        \
  static inline unsigned char kortestc_mask##N##_u8(M a, M b) { return M(a | b) == M(~M(0)); } \
  static inline unsigned char ktestz_mask##N##_u8(M a, M b) { return M(a & b) == 0; }          \
  static inline unsigned char ktestc_mask##N##_u8(M a, M b) { return M(~a & b) == 0; }         \
  static inline M load_mask##N(const void* p) {                                                \
    M r;                                                                                       \
    std::memcpy(&r, p, sizeof(M));                                                             \
    return r;                                                                                  \
  }                                                                                            \
  static inline void store_mask##N(void* p, M a) { std::memcpy(p, &a, sizeof(M)); }            \
  static inline INTEGER cvtmask##N(M a) { return a; }                                          \
  static inline M cvtmask_from##N(INTEGER a) { return static_cast<M>(a); }
LEPTON_EMULATE_MASK(8, __mmask8, unsigned)
LEPTON_EMULATE_MASK(16, __mmask16, unsigned)
LEPTON_EMULATE_MASK(32, __mmask32, unsigned)
LEPTON_EMULATE_MASK(64, __mmask64, unsigned long long)
#define _kand_mask8 lepton_emulate::kand_mask8
#undef _kand_mask16
#define _kand_mask16 lepton_emulate::kand_mask16
#define _kand_mask32 lepton_emulate::kand_mask32
#define _kand_mask64 lepton_emulate::kand_mask64
#define _kandn_mask8 lepton_emulate::kandn_mask8
#undef _kandn_mask16
#define _kandn_mask16 lepton_emulate::kandn_mask16
#define _kandn_mask32 lepton_emulate::kandn_mask32
#define _kandn_mask64 lepton_emulate::kandn_mask64
#define _kor_mask8 lepton_emulate::kor_mask8
#undef _kor_mask16
#define _kor_mask16 lepton_emulate::kor_mask16
#define _kor_mask32 lepton_emulate::kor_mask32
#define _kor_mask64 lepton_emulate::kor_mask64
#define _kxor_mask8 lepton_emulate::kxor_mask8
#undef _kxor_mask16
#define _kxor_mask16 lepton_emulate::kxor_mask16
#define _kxor_mask32 lepton_emulate::kxor_mask32
#define _kxor_mask64 lepton_emulate::kxor_mask64
#define _kxnor_mask8 lepton_emulate::kxnor_mask8
#undef _kxnor_mask16
#define _kxnor_mask16 lepton_emulate::kxnor_mask16
#define _kxnor_mask32 lepton_emulate::kxnor_mask32
#define _kxnor_mask64 lepton_emulate::kxnor_mask64
#define _knot_mask8 lepton_emulate::knot_mask8
#undef _knot_mask16
#define _knot_mask16 lepton_emulate::knot_mask16
#define _knot_mask32 lepton_emulate::knot_mask32
#define _knot_mask64 lepton_emulate::knot_mask64
#define _kadd_mask8 lepton_emulate::kadd_mask8
#define _kadd_mask16 lepton_emulate::kadd_mask16
#define _kadd_mask32 lepton_emulate::kadd_mask32
#define _kadd_mask64 lepton_emulate::kadd_mask64
#undef _kshiftli_mask8
#define _kshiftli_mask8 lepton_emulate::kshiftli_mask8
#undef _kshiftli_mask16
#define _kshiftli_mask16 lepton_emulate::kshiftli_mask16
#undef _kshiftli_mask32
#define _kshiftli_mask32 lepton_emulate::kshiftli_mask32
#undef _kshiftli_mask64
#define _kshiftli_mask64 lepton_emulate::kshiftli_mask64
#undef _kshiftri_mask8
#define _kshiftri_mask8 lepton_emulate::kshiftri_mask8
#undef _kshiftri_mask16
#define _kshiftri_mask16 lepton_emulate::kshiftri_mask16
#undef _kshiftri_mask32
#define _kshiftri_mask32 lepton_emulate::kshiftri_mask32
#undef _kshiftri_mask64
#define _kshiftri_mask64 lepton_emulate::kshiftri_mask64
#define _kortestz_mask8_u8 lepton_emulate::kortestz_mask8_u8
#define _kortestz_mask16_u8 lepton_emulate::kortestz_mask16_u8
#define _kortestz_mask32_u8 lepton_emulate::kortestz_mask32_u8
#define _kortestz_mask64_u8 lepton_emulate::kortestz_mask64_u8
#define _kortestc_mask8_u8 lepton_emulate::kortestc_mask8_u8
#define _kortestc_mask16_u8 lepton_emulate::kortestc_mask16_u8
#define _kortestc_mask32_u8 lepton_emulate::kortestc_mask32_u8
#define _kortestc_mask64_u8 lepton_emulate::kortestc_mask64_u8
#define _ktestz_mask8_u8 lepton_emulate::ktestz_mask8_u8
#define _ktestz_mask16_u8 lepton_emulate::ktestz_mask16_u8
#define _ktestz_mask32_u8 lepton_emulate::ktestz_mask32_u8
#define _ktestz_mask64_u8 lepton_emulate::ktestz_mask64_u8
#define _ktestc_mask8_u8 lepton_emulate::ktestc_mask8_u8
#define _ktestc_mask16_u8 lepton_emulate::ktestc_mask16_u8
#define _ktestc_mask32_u8 lepton_emulate::ktestc_mask32_u8
#define _ktestc_mask64_u8 lepton_emulate::ktestc_mask64_u8
#define _load_mask8 lepton_emulate::load_mask8
#define _load_mask16 lepton_emulate::load_mask16
#define _load_mask32 lepton_emulate::load_mask32
#define _load_mask64 lepton_emulate::load_mask64
#define _store_mask8 lepton_emulate::store_mask8
#define _store_mask16 lepton_emulate::store_mask16
#define _store_mask32 lepton_emulate::store_mask32
#define _store_mask64 lepton_emulate::store_mask64
#define _cvtmask8_u32 lepton_emulate::cvtmask8
#define _cvtmask16_u32 lepton_emulate::cvtmask16
#define _cvtmask32_u32 lepton_emulate::cvtmask32
#define _cvtmask64_u64 lepton_emulate::cvtmask64
#define _cvtu32_mask8 lepton_emulate::cvtmask_from8
#define _cvtu32_mask16 lepton_emulate::cvtmask_from16
#define _cvtu32_mask32 lepton_emulate::cvtmask_from32
#define _cvtu64_mask64 lepton_emulate::cvtmask_from64

// The second argument is the low half.
static inline __mmask16 mm512_kunpackb(__mmask16 a, __mmask16 b) {
  return static_cast<__mmask16>((a << 8) | (b & 0xFF));
}
static inline __mmask32 mm512_kunpackw(__mmask32 a, __mmask32 b) {
  return (a << 16) | (b & 0xFFFF);
}
static inline __mmask64 mm512_kunpackd(__mmask64 a, __mmask64 b) {
  return (a << 32) | (b & 0xFFFFFFFF);
}
#define _mm512_kunpackb lepton_emulate::mm512_kunpackb
#define _mm512_kunpackw lepton_emulate::mm512_kunpackw
#define _mm512_kunpackd lepton_emulate::mm512_kunpackd

// Older names of the 16-bit forms.
static inline __mmask16 mm512_kand(__mmask16 a, __mmask16 b) { return kand_mask16(a, b); }
static inline __mmask16 mm512_kandn(__mmask16 a, __mmask16 b) { return kandn_mask16(a, b); }
static inline __mmask16 mm512_kor(__mmask16 a, __mmask16 b) { return kor_mask16(a, b); }
static inline __mmask16 mm512_kxor(__mmask16 a, __mmask16 b) { return kxor_mask16(a, b); }
static inline __mmask16 mm512_kxnor(__mmask16 a, __mmask16 b) { return kxnor_mask16(a, b); }
static inline __mmask16 mm512_knot(__mmask16 a) { return knot_mask16(a); }
static inline __mmask16 mm512_kmov(__mmask16 a) { return a; }
static inline int mm512_kortestz(__mmask16 a, __mmask16 b) { return kortestz_mask16_u8(a, b); }
static inline int mm512_kortestc(__mmask16 a, __mmask16 b) { return kortestc_mask16_u8(a, b); }
static inline int mm512_mask2int(__mmask16 a) { return a; }
static inline __mmask16 mm512_int2mask(int a) { return static_cast<__mmask16>(a); }
#define _mm512_kand lepton_emulate::mm512_kand
#define _mm512_kandn lepton_emulate::mm512_kandn
#define _mm512_kor lepton_emulate::mm512_kor
#define _mm512_kxor lepton_emulate::mm512_kxor
#define _mm512_kxnor lepton_emulate::mm512_kxnor
#define _mm512_knot lepton_emulate::mm512_knot
#define _mm512_kmov lepton_emulate::mm512_kmov
#define _mm512_kortestz lepton_emulate::mm512_kortestz
#define _mm512_kortestc lepton_emulate::mm512_kortestc
#define _mm512_mask2int lepton_emulate::mm512_mask2int
#define _mm512_int2mask lepton_emulate::mm512_int2mask

// Between masks and vectors: all bits of a lane from a mask bit; a mask bit from the sign of a
// lane.
template <class T, class V>
static inline V vector_from_mask(std::uint64_t k) {
  Pack<T, sizeof(V) / sizeof(T)> r;
  for (int i = 0; i < r.size; ++i) r.at[i] = static_cast<T>(bit(k, i) ? -1 : 0);
  return join<V>(r);
}
template <class T, class V>
static inline mask_t<T, sizeof(V)> mask_from_signs(const V& a) {
  const auto x = lanes<T>(a);
  std::uint64_t k = 0;
  for (int i = 0; i < x.size; ++i) k |= std::uint64_t{x.at[i] < 0} << i;
  return static_cast<mask_t<T, sizeof(V)>>(k);
}
#define LEPTON_EMULATE_MOVE_MASK(W, V, BITS)                                                \
  static inline V W##_movm_epi##BITS(mask_t<std::int##BITS##_t, sizeof(V)> k) {             \
    return vector_from_mask<std::int##BITS##_t, V>(k);                                      \
  }                                                                                         \
  static inline mask_t<std::int##BITS##_t, sizeof(V)> W##_movepi##BITS##_mask(const V& a) { \
    return mask_from_signs<std::int##BITS##_t>(a);                                          \
  }
LEPTON_EMULATE_MOVE_MASK(mm512, m512i, 8)
LEPTON_EMULATE_MOVE_MASK(mm512, m512i, 16)
LEPTON_EMULATE_MOVE_MASK(mm512, m512i, 32)
LEPTON_EMULATE_MOVE_MASK(mm512, m512i, 64)
LEPTON_EMULATE_MOVE_MASK(mm256, __m256i, 8)
LEPTON_EMULATE_MOVE_MASK(mm256, __m256i, 16)
LEPTON_EMULATE_MOVE_MASK(mm256, __m256i, 32)
LEPTON_EMULATE_MOVE_MASK(mm, __m128i, 8)
LEPTON_EMULATE_MOVE_MASK(mm, __m128i, 16)
LEPTON_EMULATE_MOVE_MASK(mm, __m128i, 32)
#define _mm512_movm_epi8 lepton_emulate::mm512_movm_epi8
#define _mm512_movm_epi16 lepton_emulate::mm512_movm_epi16
#define _mm512_movm_epi32 lepton_emulate::mm512_movm_epi32
#define _mm512_movm_epi64 lepton_emulate::mm512_movm_epi64
#define _mm512_movepi8_mask lepton_emulate::mm512_movepi8_mask
#define _mm512_movepi16_mask lepton_emulate::mm512_movepi16_mask
#define _mm512_movepi32_mask lepton_emulate::mm512_movepi32_mask
#define _mm512_movepi64_mask lepton_emulate::mm512_movepi64_mask
#define _mm256_movm_epi8 lepton_emulate::mm256_movm_epi8
#define _mm256_movm_epi16 lepton_emulate::mm256_movm_epi16
#define _mm256_movm_epi32 lepton_emulate::mm256_movm_epi32
#define _mm_movm_epi8 lepton_emulate::mm_movm_epi8
#define _mm_movm_epi16 lepton_emulate::mm_movm_epi16
#define _mm_movm_epi32 lepton_emulate::mm_movm_epi32
#define _mm256_movepi8_mask lepton_emulate::mm256_movepi8_mask
#define _mm256_movepi16_mask lepton_emulate::mm256_movepi16_mask
#define _mm256_movepi32_mask lepton_emulate::mm256_movepi32_mask
#define _mm_movepi8_mask lepton_emulate::mm_movepi8_mask
#define _mm_movepi16_mask lepton_emulate::mm_movepi16_mask
#define _mm_movepi32_mask lepton_emulate::mm_movepi32_mask

// Blends: (mask, no, yes); moves: (source, mask, yes).
#define LEPTON_EMULATE_BLEND(W, SUFFIX, V, T)                                                  \
  static inline V W##_mask_blend_##SUFFIX(mask_t<T, sizeof(V)> k, const V& no, const V& yes) { \
    return select<T>(k, yes, no);                                                              \
  }                                                                                            \
  static inline V W##_mask_mov_##SUFFIX(const V& src, mask_t<T, sizeof(V)> k, const V& a) {    \
    return select<T>(k, a, src);                                                               \
  }                                                                                            \
  static inline V W##_maskz_mov_##SUFFIX(mask_t<T, sizeof(V)> k, const V& a) {                 \
    return select<T>(k, a, zero<V>());                                                         \
  }
LEPTON_EMULATE_BLEND(mm512, ps, m512, float)
LEPTON_EMULATE_BLEND(mm512, pd, m512d, double)
LEPTON_EMULATE_BLEND(mm512, epi8, m512i, std::int8_t)
LEPTON_EMULATE_BLEND(mm512, epi16, m512i, std::int16_t)
LEPTON_EMULATE_BLEND(mm512, epi32, m512i, std::int32_t)
LEPTON_EMULATE_BLEND(mm512, epi64, m512i, std::int64_t)
#define _mm512_mask_blend_ps lepton_emulate::mm512_mask_blend_ps
#define _mm512_mask_blend_pd lepton_emulate::mm512_mask_blend_pd
#undef _mm512_mask_blend_epi8
#define _mm512_mask_blend_epi8 lepton_emulate::mm512_mask_blend_epi8
#undef _mm512_mask_blend_epi16
#define _mm512_mask_blend_epi16 lepton_emulate::mm512_mask_blend_epi16
#define _mm512_mask_blend_epi32 lepton_emulate::mm512_mask_blend_epi32
#define _mm512_mask_blend_epi64 lepton_emulate::mm512_mask_blend_epi64
#define _mm512_mask_mov_ps lepton_emulate::mm512_mask_mov_ps
#define _mm512_mask_mov_pd lepton_emulate::mm512_mask_mov_pd
#define _mm512_mask_mov_epi8 lepton_emulate::mm512_mask_mov_epi8
#define _mm512_mask_mov_epi16 lepton_emulate::mm512_mask_mov_epi16
#define _mm512_mask_mov_epi32 lepton_emulate::mm512_mask_mov_epi32
#define _mm512_mask_mov_epi64 lepton_emulate::mm512_mask_mov_epi64
#define _mm512_maskz_mov_ps lepton_emulate::mm512_maskz_mov_ps
#define _mm512_maskz_mov_pd lepton_emulate::mm512_maskz_mov_pd
#define _mm512_maskz_mov_epi8 lepton_emulate::mm512_maskz_mov_epi8
#define _mm512_maskz_mov_epi16 lepton_emulate::mm512_maskz_mov_epi16
#define _mm512_maskz_mov_epi32 lepton_emulate::mm512_maskz_mov_epi32
#define _mm512_maskz_mov_epi64 lepton_emulate::mm512_maskz_mov_epi64
LEPTON_EMULATE_BLEND(mm256, ps, __m256, float)
LEPTON_EMULATE_BLEND(mm256, epi8, __m256i, std::int8_t)
LEPTON_EMULATE_BLEND(mm256, epi16, __m256i, std::int16_t)
LEPTON_EMULATE_BLEND(mm256, epi32, __m256i, std::int32_t)
LEPTON_EMULATE_BLEND(mm, epi8, __m128i, std::int8_t)
#undef _mm256_mask_blend_ps
#define _mm256_mask_blend_ps lepton_emulate::mm256_mask_blend_ps
#undef _mm256_mask_blend_epi8
#define _mm256_mask_blend_epi8 lepton_emulate::mm256_mask_blend_epi8
#undef _mm256_mask_blend_epi16
#define _mm256_mask_blend_epi16 lepton_emulate::mm256_mask_blend_epi16
#undef _mm256_mask_blend_epi32
#define _mm256_mask_blend_epi32 lepton_emulate::mm256_mask_blend_epi32
#define _mm256_mask_mov_ps lepton_emulate::mm256_mask_mov_ps
#define _mm256_mask_mov_epi8 lepton_emulate::mm256_mask_mov_epi8
#define _mm256_mask_mov_epi16 lepton_emulate::mm256_mask_mov_epi16
#define _mm256_mask_mov_epi32 lepton_emulate::mm256_mask_mov_epi32
#define _mm256_maskz_mov_ps lepton_emulate::mm256_maskz_mov_ps
#define _mm256_maskz_mov_epi8 lepton_emulate::mm256_maskz_mov_epi8
#define _mm256_maskz_mov_epi16 lepton_emulate::mm256_maskz_mov_epi16
#define _mm256_maskz_mov_epi32 lepton_emulate::mm256_maskz_mov_epi32
#undef _mm_mask_blend_epi8
#define _mm_mask_blend_epi8 lepton_emulate::mm_mask_blend_epi8
#define _mm_mask_mov_epi8 lepton_emulate::mm_mask_mov_epi8
#define _mm_maskz_mov_epi8 lepton_emulate::mm_maskz_mov_epi8

}  // namespace lepton_emulate
#pragma GCC pop_options
