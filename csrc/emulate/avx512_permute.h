// Moving lanes: full permutes, shuffles within 128 bits, unpacks, packs, byte and lane shifts.
#pragma once
#include "avx512_int.h"
#include "avx512_part.h"

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
namespace lepton_emulate {

// Full permutes: of one register by index, of two (the index's next bit picks the second one).
template <class T, class V, class I>
static inline V permute(const I& index, const V& a) {
  const auto x = lanes<T>(a);
  const auto n = lanes<index_t<T>>(index);
  Pack<T, x.size> r;
  for (int i = 0; i < r.size; ++i) r.at[i] = x.at[static_cast<std::size_t>(n.at[i]) & (r.size - 1)];
  return join<V>(r);
}
template <class T, class V, class I>
static inline V permute2(const V& a, const I& index, const V& b) {
  const auto n = lanes<index_t<T>>(index);
  T both[2 * n.size];
  std::memcpy(both, &a, sizeof(V));
  std::memcpy(both + n.size, &b, sizeof(V));
  Pack<T, n.size> r;
  for (int i = 0; i < r.size; ++i)
    r.at[i] = both[static_cast<std::size_t>(n.at[i]) & (2 * r.size - 1)];
  return join<V>(r);
}
#define LEPTON_EMULATE_PERMUTE(W, SUFFIX, V, I, T)                                      \
  static inline V W##_permutexvar_##SUFFIX(const I& index, const V& a) {                \
    return permute<T>(index, a);                                                        \
  }                                                                                     \
  LEPTON_EMULATE_MASKED2(W, permutexvar_##SUFFIX, V, T, const I&, const V&)             \
  static inline V W##_permutex2var_##SUFFIX(const V& a, const I& index, const V& b) {   \
    return permute2<T>(a, index, b);                                                    \
  }                                                                                     \
  static inline V W##_mask_permutex2var_##SUFFIX(const V& a, mask_t<T, sizeof(V)> k,    \
                                                 const I& index, const V& b) {          \
    return select<T>(k, permute2<T>(a, index, b), a);                                   \
  }                                                                                     \
  static inline V W##_mask2_permutex2var_##SUFFIX(const V& a, const I& index,           \
                                                  mask_t<T, sizeof(V)> k, const V& b) { \
    return select<T>(k, permute2<T>(a, index, b), bits<V>(index));                      \
  }                                                                                     \
  static inline V W##_maskz_permutex2var_##SUFFIX(mask_t<T, sizeof(V)> k, const V& a,   \
                                                  const I& index, const V& b) {         \
    return select<T>(k, permute2<T>(a, index, b), zero<V>());                           \
  }
LEPTON_EMULATE_PERMUTE(mm512, epi8, m512i, m512i, std::uint8_t)
LEPTON_EMULATE_PERMUTE(mm512, epi16, m512i, m512i, std::uint16_t)
LEPTON_EMULATE_PERMUTE(mm512, epi32, m512i, m512i, std::uint32_t)
LEPTON_EMULATE_PERMUTE(mm512, epi64, m512i, m512i, std::uint64_t)
LEPTON_EMULATE_PERMUTE(mm512, ps, m512, m512i, float)
LEPTON_EMULATE_PERMUTE(mm512, pd, m512d, m512i, double)
#define _mm512_permutexvar_epi8 lepton_emulate::mm512_permutexvar_epi8
#define _mm512_permutexvar_epi16 lepton_emulate::mm512_permutexvar_epi16
#define _mm512_permutexvar_epi32 lepton_emulate::mm512_permutexvar_epi32
#define _mm512_permutexvar_epi64 lepton_emulate::mm512_permutexvar_epi64
#define _mm512_permutexvar_ps lepton_emulate::mm512_permutexvar_ps
#define _mm512_permutexvar_pd lepton_emulate::mm512_permutexvar_pd
#define _mm512_mask_permutexvar_epi8 lepton_emulate::mm512_mask_permutexvar_epi8
#define _mm512_mask_permutexvar_epi16 lepton_emulate::mm512_mask_permutexvar_epi16
#define _mm512_mask_permutexvar_epi32 lepton_emulate::mm512_mask_permutexvar_epi32
#define _mm512_mask_permutexvar_epi64 lepton_emulate::mm512_mask_permutexvar_epi64
#define _mm512_mask_permutexvar_ps lepton_emulate::mm512_mask_permutexvar_ps
#define _mm512_mask_permutexvar_pd lepton_emulate::mm512_mask_permutexvar_pd
#define _mm512_maskz_permutexvar_epi8 lepton_emulate::mm512_maskz_permutexvar_epi8
#define _mm512_maskz_permutexvar_epi16 lepton_emulate::mm512_maskz_permutexvar_epi16
#define _mm512_maskz_permutexvar_epi32 lepton_emulate::mm512_maskz_permutexvar_epi32
#define _mm512_maskz_permutexvar_epi64 lepton_emulate::mm512_maskz_permutexvar_epi64
#define _mm512_maskz_permutexvar_ps lepton_emulate::mm512_maskz_permutexvar_ps
#define _mm512_maskz_permutexvar_pd lepton_emulate::mm512_maskz_permutexvar_pd
#define _mm512_permutex2var_epi8 lepton_emulate::mm512_permutex2var_epi8
#define _mm512_permutex2var_epi16 lepton_emulate::mm512_permutex2var_epi16
#define _mm512_permutex2var_epi32 lepton_emulate::mm512_permutex2var_epi32
#define _mm512_permutex2var_epi64 lepton_emulate::mm512_permutex2var_epi64
#define _mm512_permutex2var_ps lepton_emulate::mm512_permutex2var_ps
#define _mm512_permutex2var_pd lepton_emulate::mm512_permutex2var_pd
#define _mm512_mask_permutex2var_epi8 lepton_emulate::mm512_mask_permutex2var_epi8
#define _mm512_mask_permutex2var_epi16 lepton_emulate::mm512_mask_permutex2var_epi16
#define _mm512_mask_permutex2var_epi32 lepton_emulate::mm512_mask_permutex2var_epi32
#define _mm512_mask_permutex2var_epi64 lepton_emulate::mm512_mask_permutex2var_epi64
#define _mm512_mask_permutex2var_ps lepton_emulate::mm512_mask_permutex2var_ps
#define _mm512_mask_permutex2var_pd lepton_emulate::mm512_mask_permutex2var_pd
#define _mm512_mask2_permutex2var_epi8 lepton_emulate::mm512_mask2_permutex2var_epi8
#define _mm512_mask2_permutex2var_epi16 lepton_emulate::mm512_mask2_permutex2var_epi16
#define _mm512_mask2_permutex2var_epi32 lepton_emulate::mm512_mask2_permutex2var_epi32
#define _mm512_mask2_permutex2var_epi64 lepton_emulate::mm512_mask2_permutex2var_epi64
#define _mm512_mask2_permutex2var_ps lepton_emulate::mm512_mask2_permutex2var_ps
#define _mm512_mask2_permutex2var_pd lepton_emulate::mm512_mask2_permutex2var_pd
#define _mm512_maskz_permutex2var_epi8 lepton_emulate::mm512_maskz_permutex2var_epi8
#define _mm512_maskz_permutex2var_epi16 lepton_emulate::mm512_maskz_permutex2var_epi16
#define _mm512_maskz_permutex2var_epi32 lepton_emulate::mm512_maskz_permutex2var_epi32
#define _mm512_maskz_permutex2var_epi64 lepton_emulate::mm512_maskz_permutex2var_epi64
#define _mm512_maskz_permutex2var_ps lepton_emulate::mm512_maskz_permutex2var_ps
#define _mm512_maskz_permutex2var_pd lepton_emulate::mm512_maskz_permutex2var_pd
LEPTON_EMULATE_PERMUTE(mm256, epi8, __m256i, __m256i, std::uint8_t)
LEPTON_EMULATE_PERMUTE(mm256, epi16, __m256i, __m256i, std::uint16_t)
LEPTON_EMULATE_PERMUTE(mm256, epi32, __m256i, __m256i, std::uint32_t)
#define _mm256_permutexvar_epi8 lepton_emulate::mm256_permutexvar_epi8
#define _mm256_permutexvar_epi16 lepton_emulate::mm256_permutexvar_epi16
#define _mm256_permutexvar_epi32 lepton_emulate::mm256_permutexvar_epi32
#define _mm256_mask_permutexvar_epi8 lepton_emulate::mm256_mask_permutexvar_epi8
#define _mm256_mask_permutexvar_epi16 lepton_emulate::mm256_mask_permutexvar_epi16
#define _mm256_mask_permutexvar_epi32 lepton_emulate::mm256_mask_permutexvar_epi32
#define _mm256_maskz_permutexvar_epi8 lepton_emulate::mm256_maskz_permutexvar_epi8
#define _mm256_maskz_permutexvar_epi16 lepton_emulate::mm256_maskz_permutexvar_epi16
#define _mm256_maskz_permutexvar_epi32 lepton_emulate::mm256_maskz_permutexvar_epi32
#define _mm256_permutex2var_epi8 lepton_emulate::mm256_permutex2var_epi8
#define _mm256_permutex2var_epi16 lepton_emulate::mm256_permutex2var_epi16
#define _mm256_permutex2var_epi32 lepton_emulate::mm256_permutex2var_epi32
#define _mm256_mask_permutex2var_epi8 lepton_emulate::mm256_mask_permutex2var_epi8
#define _mm256_mask_permutex2var_epi16 lepton_emulate::mm256_mask_permutex2var_epi16
#define _mm256_mask_permutex2var_epi32 lepton_emulate::mm256_mask_permutex2var_epi32
#define _mm256_mask2_permutex2var_epi8 lepton_emulate::mm256_mask2_permutex2var_epi8
#define _mm256_mask2_permutex2var_epi16 lepton_emulate::mm256_mask2_permutex2var_epi16
#define _mm256_mask2_permutex2var_epi32 lepton_emulate::mm256_mask2_permutex2var_epi32
#define _mm256_maskz_permutex2var_epi8 lepton_emulate::mm256_maskz_permutex2var_epi8
#define _mm256_maskz_permutex2var_epi16 lepton_emulate::mm256_maskz_permutex2var_epi16
#define _mm256_maskz_permutex2var_epi32 lepton_emulate::mm256_maskz_permutex2var_epi32
LEPTON_EMULATE_PERMUTE(mm, epi8, __m128i, __m128i, std::uint8_t)
#define _mm_permutexvar_epi8 lepton_emulate::mm_permutexvar_epi8
#define _mm_mask_permutexvar_epi8 lepton_emulate::mm_mask_permutexvar_epi8
#define _mm_maskz_permutexvar_epi8 lepton_emulate::mm_maskz_permutexvar_epi8
#define _mm_permutex2var_epi8 lepton_emulate::mm_permutex2var_epi8
#define _mm_mask_permutex2var_epi8 lepton_emulate::mm_mask_permutex2var_epi8
#define _mm_mask2_permutex2var_epi8 lepton_emulate::mm_mask2_permutex2var_epi8
#define _mm_maskz_permutex2var_epi8 lepton_emulate::mm_maskz_permutex2var_epi8

// Whole 128-bit parts by an immediate: two from a, then two from b.
template <class V>
static inline V shuffle_parts(const V& a, const V& b, int imm) {
  V r = insert(a, extract<__m128i>(a, imm), 0);
  r = insert(r, extract<__m128i>(a, imm >> 2), 1);
  r = insert(r, extract<__m128i>(b, imm >> 4), 2);
  return insert(r, extract<__m128i>(b, imm >> 6), 3);
}
static inline m512i mm512_shuffle_i32x4(const m512i& a, const m512i& b, int imm) {
  return shuffle_parts(a, b, imm);
}
static inline m512i mm512_shuffle_i64x2(const m512i& a, const m512i& b, int imm) {
  return shuffle_parts(a, b, imm);
}
static inline m512 mm512_shuffle_f32x4(const m512& a, const m512& b, int imm) {
  return shuffle_parts(a, b, imm);
}
static inline m512d mm512_shuffle_f64x2(const m512d& a, const m512d& b, int imm) {
  return shuffle_parts(a, b, imm);
}
#undef _mm512_shuffle_i32x4
#define _mm512_shuffle_i32x4 lepton_emulate::mm512_shuffle_i32x4
#undef _mm512_shuffle_i64x2
#define _mm512_shuffle_i64x2 lepton_emulate::mm512_shuffle_i64x2
#undef _mm512_shuffle_f32x4
#define _mm512_shuffle_f32x4 lepton_emulate::mm512_shuffle_f32x4
#undef _mm512_shuffle_f64x2
#define _mm512_shuffle_f64x2 lepton_emulate::mm512_shuffle_f64x2

// Within each part of P lanes: SOURCE is the lane, j its place in the part, base the part's first
// lane.
#define LEPTON_EMULATE_INLANE(NAME, V, T, P, SOURCE)   \
  static inline V mm512_##NAME(const V& a_, int imm) { \
    const auto a = lanes<T>(a_);                       \
    Pack<T, a.size> r;                                 \
    for (int i = 0; i < r.size; ++i) {                 \
      const int j = i % (P), base = i - j;             \
      r.at[i] = a.at[base + (SOURCE)];                 \
    }                                                  \
    return join<V>(r);                                 \
  }                                                    \
  LEPTON_EMULATE_MASKED2(mm512, NAME, V, T, const V&, int)
LEPTON_EMULATE_INLANE(shuffle_epi32, m512i, std::int32_t, 4, (imm >> (2 * j)) & 3)
LEPTON_EMULATE_INLANE(permute_ps, m512, float, 4, (imm >> (2 * j)) & 3)
LEPTON_EMULATE_INLANE(permutex_epi64, m512i, std::int64_t, 4, (imm >> (2 * j)) & 3)
LEPTON_EMULATE_INLANE(permutex_pd, m512d, double, 4, (imm >> (2 * j)) & 3)
LEPTON_EMULATE_INLANE(shufflelo_epi16, m512i, std::int16_t, 8, j < 4 ? (imm >> (2 * j)) & 3 : j)
LEPTON_EMULATE_INLANE(shufflehi_epi16, m512i, std::int16_t, 8,
                      j < 4 ? j : 4 + ((imm >> (2 * (j - 4))) & 3))
#undef _mm512_shuffle_epi32
#define _mm512_shuffle_epi32 lepton_emulate::mm512_shuffle_epi32
#undef _mm512_permute_ps
#define _mm512_permute_ps lepton_emulate::mm512_permute_ps
#undef _mm512_permutex_epi64
#define _mm512_permutex_epi64 lepton_emulate::mm512_permutex_epi64
#undef _mm512_permutex_pd
#define _mm512_permutex_pd lepton_emulate::mm512_permutex_pd
#undef _mm512_shufflelo_epi16
#define _mm512_shufflelo_epi16 lepton_emulate::mm512_shufflelo_epi16
#undef _mm512_shufflehi_epi16
#define _mm512_shufflehi_epi16 lepton_emulate::mm512_shufflehi_epi16
#undef _mm512_mask_shuffle_epi32
#define _mm512_mask_shuffle_epi32 lepton_emulate::mm512_mask_shuffle_epi32
#undef _mm512_mask_permute_ps
#define _mm512_mask_permute_ps lepton_emulate::mm512_mask_permute_ps
#undef _mm512_mask_permutex_epi64
#define _mm512_mask_permutex_epi64 lepton_emulate::mm512_mask_permutex_epi64
#undef _mm512_mask_permutex_pd
#define _mm512_mask_permutex_pd lepton_emulate::mm512_mask_permutex_pd
#undef _mm512_mask_shufflelo_epi16
#define _mm512_mask_shufflelo_epi16 lepton_emulate::mm512_mask_shufflelo_epi16
#undef _mm512_mask_shufflehi_epi16
#define _mm512_mask_shufflehi_epi16 lepton_emulate::mm512_mask_shufflehi_epi16
#undef _mm512_maskz_shuffle_epi32
#define _mm512_maskz_shuffle_epi32 lepton_emulate::mm512_maskz_shuffle_epi32
#undef _mm512_maskz_permute_ps
#define _mm512_maskz_permute_ps lepton_emulate::mm512_maskz_permute_ps
#undef _mm512_maskz_permutex_epi64
#define _mm512_maskz_permutex_epi64 lepton_emulate::mm512_maskz_permutex_epi64
#undef _mm512_maskz_permutex_pd
#define _mm512_maskz_permutex_pd lepton_emulate::mm512_maskz_permutex_pd
#undef _mm512_maskz_shufflelo_epi16
#define _mm512_maskz_shufflelo_epi16 lepton_emulate::mm512_maskz_shufflelo_epi16
#undef _mm512_maskz_shufflehi_epi16
#define _mm512_maskz_shufflehi_epi16 lepton_emulate::mm512_maskz_shufflehi_epi16

static inline m512i mm512_shuffle_epi8(const m512i& a_, const m512i& index) {
  const auto a = lanes<std::uint8_t>(a_), n = lanes<std::uint8_t>(index);
  Pack<std::uint8_t, 64> r;
  for (int i = 0; i < 64; ++i)
    r.at[i] = n.at[i] & 0x80 ? std::uint8_t(0) : a.at[(i & ~15) + (n.at[i] & 15)];
  return join<m512i>(r);
}
LEPTON_EMULATE_MASKED2(mm512, shuffle_epi8, m512i, std::uint8_t, const m512i&, const m512i&)
#define _mm512_shuffle_epi8 lepton_emulate::mm512_shuffle_epi8
#define _mm512_mask_shuffle_epi8 lepton_emulate::mm512_mask_shuffle_epi8
#define _mm512_maskz_shuffle_epi8 lepton_emulate::mm512_maskz_shuffle_epi8
// Unpack: lanes of a and b in turn, out of the lower or the upper half of every part.
#define LEPTON_EMULATE_UNPACK_HALF(NAME, V, T, START)      \
  static inline V mm512_##NAME(const V& a_, const V& b_) { \
    const auto a = lanes<T>(a_), b = lanes<T>(b_);         \
    constexpr int per = int(16 / sizeof(T));               \
    Pack<T, a.size> r;                                     \
    for (int base = 0; base < a.size; base += per)         \
      for (int j = 0; j < per / 2; ++j) {                  \
        r.at[base + 2 * j] = a.at[base + (START) + j];     \
        r.at[base + 2 * j + 1] = b.at[base + (START) + j]; \
      }                                                    \
    return join<V>(r);                                     \
  }                                                        \
  LEPTON_EMULATE_MASKED2(mm512, NAME, V, T, const V&, const V&)
#define LEPTON_EMULATE_UNPACK(SUFFIX, V, T)              \
  LEPTON_EMULATE_UNPACK_HALF(unpacklo_##SUFFIX, V, T, 0) \
  LEPTON_EMULATE_UNPACK_HALF(unpackhi_##SUFFIX, V, T, per / 2)
LEPTON_EMULATE_UNPACK(epi8, m512i, std::int8_t)
LEPTON_EMULATE_UNPACK(epi16, m512i, std::int16_t)
LEPTON_EMULATE_UNPACK(epi32, m512i, std::int32_t)
LEPTON_EMULATE_UNPACK(epi64, m512i, std::int64_t)
LEPTON_EMULATE_UNPACK(ps, m512, float)
LEPTON_EMULATE_UNPACK(pd, m512d, double)
#define _mm512_unpacklo_epi8 lepton_emulate::mm512_unpacklo_epi8
#define _mm512_unpacklo_epi16 lepton_emulate::mm512_unpacklo_epi16
#define _mm512_unpacklo_epi32 lepton_emulate::mm512_unpacklo_epi32
#define _mm512_unpacklo_epi64 lepton_emulate::mm512_unpacklo_epi64
#define _mm512_unpacklo_ps lepton_emulate::mm512_unpacklo_ps
#define _mm512_unpacklo_pd lepton_emulate::mm512_unpacklo_pd
#define _mm512_unpackhi_epi8 lepton_emulate::mm512_unpackhi_epi8
#define _mm512_unpackhi_epi16 lepton_emulate::mm512_unpackhi_epi16
#define _mm512_unpackhi_epi32 lepton_emulate::mm512_unpackhi_epi32
#define _mm512_unpackhi_epi64 lepton_emulate::mm512_unpackhi_epi64
#define _mm512_unpackhi_ps lepton_emulate::mm512_unpackhi_ps
#define _mm512_unpackhi_pd lepton_emulate::mm512_unpackhi_pd
#define _mm512_mask_unpacklo_epi8 lepton_emulate::mm512_mask_unpacklo_epi8
#define _mm512_mask_unpacklo_epi16 lepton_emulate::mm512_mask_unpacklo_epi16
#define _mm512_mask_unpacklo_epi32 lepton_emulate::mm512_mask_unpacklo_epi32
#define _mm512_mask_unpacklo_epi64 lepton_emulate::mm512_mask_unpacklo_epi64
#define _mm512_mask_unpacklo_ps lepton_emulate::mm512_mask_unpacklo_ps
#define _mm512_mask_unpacklo_pd lepton_emulate::mm512_mask_unpacklo_pd
#define _mm512_mask_unpackhi_epi8 lepton_emulate::mm512_mask_unpackhi_epi8
#define _mm512_mask_unpackhi_epi16 lepton_emulate::mm512_mask_unpackhi_epi16
#define _mm512_mask_unpackhi_epi32 lepton_emulate::mm512_mask_unpackhi_epi32
#define _mm512_mask_unpackhi_epi64 lepton_emulate::mm512_mask_unpackhi_epi64
#define _mm512_mask_unpackhi_ps lepton_emulate::mm512_mask_unpackhi_ps
#define _mm512_mask_unpackhi_pd lepton_emulate::mm512_mask_unpackhi_pd
#define _mm512_maskz_unpacklo_epi8 lepton_emulate::mm512_maskz_unpacklo_epi8
#define _mm512_maskz_unpacklo_epi16 lepton_emulate::mm512_maskz_unpacklo_epi16
#define _mm512_maskz_unpacklo_epi32 lepton_emulate::mm512_maskz_unpacklo_epi32
#define _mm512_maskz_unpacklo_epi64 lepton_emulate::mm512_maskz_unpacklo_epi64
#define _mm512_maskz_unpacklo_ps lepton_emulate::mm512_maskz_unpacklo_ps
#define _mm512_maskz_unpacklo_pd lepton_emulate::mm512_maskz_unpacklo_pd
#define _mm512_maskz_unpackhi_epi8 lepton_emulate::mm512_maskz_unpackhi_epi8
#define _mm512_maskz_unpackhi_epi16 lepton_emulate::mm512_maskz_unpackhi_epi16
#define _mm512_maskz_unpackhi_epi32 lepton_emulate::mm512_maskz_unpackhi_epi32
#define _mm512_maskz_unpackhi_epi64 lepton_emulate::mm512_maskz_unpackhi_epi64
#define _mm512_maskz_unpackhi_ps lepton_emulate::mm512_maskz_unpackhi_ps
#define _mm512_maskz_unpackhi_pd lepton_emulate::mm512_maskz_unpackhi_pd
static inline m512 mm512_moveldup_ps(const m512& a) { return mm512_permute_ps(a, 0xA0); }
static inline m512 mm512_movehdup_ps(const m512& a) { return mm512_permute_ps(a, 0xF5); }
#define _mm512_moveldup_ps lepton_emulate::mm512_moveldup_ps
#define _mm512_movehdup_ps lepton_emulate::mm512_movehdup_ps
static inline m512 mm512_permutevar_ps(const m512& a, const m512i& control) {
  m512 r;
  for (int i = 0; i < 16; ++i) r.lane[i] = a.lane[(i & ~3) + (control.lane[i] & 3)];
  return r;
}
#define _mm512_permutevar_ps lepton_emulate::mm512_permutevar_ps
static inline m512 mm512_shuffle_ps(const m512& a, const m512& b, int imm) {
  m512 r;
  for (int base = 0; base < 16; base += 4)
    for (int j = 0; j < 2; ++j) {
      r.lane[base + j] = a.lane[base + ((imm >> (2 * j)) & 3)];
      r.lane[base + 2 + j] = b.lane[base + ((imm >> (4 + 2 * j)) & 3)];
    }
  return r;
}
#undef _mm512_shuffle_ps
#define _mm512_shuffle_ps lepton_emulate::mm512_shuffle_ps

// Saturating packs, part by part: lanes of a, then lanes of b.
#define LEPTON_EMULATE_PACK(NAME, WIDE, NARROWED)                      \
  static inline m512i mm512_##NAME(const m512i& a_, const m512i& b_) { \
    const auto a = lanes<WIDE>(a_), b = lanes<WIDE>(b_);               \
    Pack<NARROWED, 2 * a.size> r;                                      \
    constexpr int n = int(16 / sizeof(WIDE));                          \
    for (int i = 0; i < a.size; ++i) {                                 \
      r.at[i / n * 2 * n + i % n] = saturate<NARROWED>(a.at[i]);       \
      r.at[i / n * 2 * n + n + i % n] = saturate<NARROWED>(b.at[i]);   \
    }                                                                  \
    return join<m512i>(r);                                             \
  }
LEPTON_EMULATE_PACK(packs_epi16, std::int16_t, std::int8_t)
LEPTON_EMULATE_PACK(packus_epi16, std::int16_t, std::uint8_t)
LEPTON_EMULATE_PACK(packs_epi32, std::int32_t, std::int16_t)
LEPTON_EMULATE_PACK(packus_epi32, std::int32_t, std::uint16_t)
#define _mm512_packs_epi16 lepton_emulate::mm512_packs_epi16
#define _mm512_packs_epi32 lepton_emulate::mm512_packs_epi32
#define _mm512_packus_epi16 lepton_emulate::mm512_packus_epi16
#define _mm512_packus_epi32 lepton_emulate::mm512_packus_epi32

// Bytes shifted through each part; VPALIGNR reads a above b.
static inline m512i mm512_alignr_epi8(const m512i& a_, const m512i& b_, int count) {
  const auto a = lanes<std::uint8_t>(a_), b = lanes<std::uint8_t>(b_);
  const int n = (count & 255) > 32 ? 32 : count & 255;
  Pack<std::uint8_t, 64> r;
  for (int base = 0; base < 64; base += 16) {
    std::uint8_t bytes[48] = {};
    std::memcpy(bytes, b.at + base, 16);
    std::memcpy(bytes + 16, a.at + base, 16);
    std::memcpy(r.at + base, bytes + n, 16);
  }
  return join<m512i>(r);
}
static inline m512i mm512_bsrli_epi128(const m512i& a, int n) {
  return mm512_alignr_epi8(zero<m512i>(), a, n & 255);
}
static inline m512i mm512_bslli_epi128(const m512i& a, int n) {
  return (n & 255) > 15 ? zero<m512i>() : mm512_alignr_epi8(a, zero<m512i>(), 16 - (n & 15));
}
#undef _mm512_alignr_epi8
#define _mm512_alignr_epi8 lepton_emulate::mm512_alignr_epi8
#undef _mm512_bsrli_epi128
#define _mm512_bsrli_epi128 lepton_emulate::mm512_bsrli_epi128
#undef _mm512_bslli_epi128
#define _mm512_bslli_epi128 lepton_emulate::mm512_bslli_epi128
// VALIGND and VALIGNQ shift whole lanes through the register.
template <class T>
static inline m512i align_lanes(const m512i& a_, const m512i& b_, int count) {
  constexpr int size = int(64 / sizeof(T));
  T both[2 * size];
  std::memcpy(both, &b_, 64);
  std::memcpy(both + size, &a_, 64);
  m512i r;
  std::memcpy(&r, both + (count & (size - 1)), 64);
  return r;
}
static inline m512i mm512_alignr_epi32(const m512i& a, const m512i& b, int n) {
  return align_lanes<std::int32_t>(a, b, n);
}
static inline m512i mm512_alignr_epi64(const m512i& a, const m512i& b, int n) {
  return align_lanes<std::int64_t>(a, b, n);
}
#undef _mm512_alignr_epi32
#define _mm512_alignr_epi32 lepton_emulate::mm512_alignr_epi32
#undef _mm512_alignr_epi64
#define _mm512_alignr_epi64 lepton_emulate::mm512_alignr_epi64

}  // namespace lepton_emulate
#pragma GCC pop_options
