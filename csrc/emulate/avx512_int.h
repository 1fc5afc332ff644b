// Integer arithmetic and logic.
#pragma once
#include "avx512_types.h"

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
namespace lepton_emulate {

// Narrow To saturates: VPACK*, VPADDS*, VPMOVS* and the rest share this.
template <class To, class From>
static inline To saturate(From x) {
  constexpr auto low = static_cast<std::int64_t>(
      static_cast<To>(To(-1) < To(0) ? std::int64_t{1} << (8 * sizeof(To) - 1) : 0));
  constexpr auto high = To(-1) < To(0)
                            ? -(low + 1)
                            : static_cast<std::int64_t>((std::uint64_t{1} << (8 * sizeof(To))) - 1);
  return static_cast<To>(x < low ? low : x > high ? high : x);
}

// Wrapping arithmetic is done on unsigned lanes.
LEPTON_EMULATE_BINARY(mm512, add_epi8, m512i, std::uint8_t, a + b)
LEPTON_EMULATE_BINARY(mm512, add_epi16, m512i, std::uint16_t, a + b)
LEPTON_EMULATE_BINARY(mm512, add_epi32, m512i, std::uint32_t, a + b)
LEPTON_EMULATE_BINARY(mm512, add_epi64, m512i, std::uint64_t, a + b)
LEPTON_EMULATE_BINARY(mm512, sub_epi8, m512i, std::uint8_t, a - b)
LEPTON_EMULATE_BINARY(mm512, sub_epi16, m512i, std::uint16_t, a - b)
LEPTON_EMULATE_BINARY(mm512, sub_epi32, m512i, std::uint32_t, a - b)
LEPTON_EMULATE_BINARY(mm512, sub_epi64, m512i, std::uint64_t, a - b)
#define _mm512_add_epi8 lepton_emulate::mm512_add_epi8
#define _mm512_add_epi16 lepton_emulate::mm512_add_epi16
#define _mm512_add_epi32 lepton_emulate::mm512_add_epi32
#define _mm512_add_epi64 lepton_emulate::mm512_add_epi64
#define _mm512_sub_epi8 lepton_emulate::mm512_sub_epi8
#define _mm512_sub_epi16 lepton_emulate::mm512_sub_epi16
#define _mm512_sub_epi32 lepton_emulate::mm512_sub_epi32
#define _mm512_sub_epi64 lepton_emulate::mm512_sub_epi64
#define _mm512_mask_add_epi8 lepton_emulate::mm512_mask_add_epi8
#define _mm512_mask_add_epi16 lepton_emulate::mm512_mask_add_epi16
#define _mm512_mask_add_epi32 lepton_emulate::mm512_mask_add_epi32
#define _mm512_mask_add_epi64 lepton_emulate::mm512_mask_add_epi64
#define _mm512_mask_sub_epi8 lepton_emulate::mm512_mask_sub_epi8
#define _mm512_mask_sub_epi16 lepton_emulate::mm512_mask_sub_epi16
#define _mm512_mask_sub_epi32 lepton_emulate::mm512_mask_sub_epi32
#define _mm512_mask_sub_epi64 lepton_emulate::mm512_mask_sub_epi64
#define _mm512_maskz_add_epi8 lepton_emulate::mm512_maskz_add_epi8
#define _mm512_maskz_add_epi16 lepton_emulate::mm512_maskz_add_epi16
#define _mm512_maskz_add_epi32 lepton_emulate::mm512_maskz_add_epi32
#define _mm512_maskz_add_epi64 lepton_emulate::mm512_maskz_add_epi64
#define _mm512_maskz_sub_epi8 lepton_emulate::mm512_maskz_sub_epi8
#define _mm512_maskz_sub_epi16 lepton_emulate::mm512_maskz_sub_epi16
#define _mm512_maskz_sub_epi32 lepton_emulate::mm512_maskz_sub_epi32
#define _mm512_maskz_sub_epi64 lepton_emulate::mm512_maskz_sub_epi64
LEPTON_EMULATE_BINARY(mm512, adds_epi8, m512i, std::int8_t, saturate<std::int8_t>(a + b))
LEPTON_EMULATE_BINARY(mm512, adds_epu8, m512i, std::uint8_t, saturate<std::uint8_t>(a + b))
LEPTON_EMULATE_BINARY(mm512, adds_epi16, m512i, std::int16_t, saturate<std::int16_t>(a + b))
LEPTON_EMULATE_BINARY(mm512, adds_epu16, m512i, std::uint16_t, saturate<std::uint16_t>(a + b))
LEPTON_EMULATE_BINARY(mm512, subs_epi8, m512i, std::int8_t, saturate<std::int8_t>(a - b))
LEPTON_EMULATE_BINARY(mm512, subs_epu8, m512i, std::uint8_t, saturate<std::uint8_t>(a - b))
LEPTON_EMULATE_BINARY(mm512, subs_epi16, m512i, std::int16_t, saturate<std::int16_t>(a - b))
LEPTON_EMULATE_BINARY(mm512, subs_epu16, m512i, std::uint16_t, saturate<std::uint16_t>(a - b))
#define _mm512_adds_epi8 lepton_emulate::mm512_adds_epi8
#define _mm512_adds_epu8 lepton_emulate::mm512_adds_epu8
#define _mm512_adds_epi16 lepton_emulate::mm512_adds_epi16
#define _mm512_adds_epu16 lepton_emulate::mm512_adds_epu16
#define _mm512_subs_epi8 lepton_emulate::mm512_subs_epi8
#define _mm512_subs_epu8 lepton_emulate::mm512_subs_epu8
#define _mm512_subs_epi16 lepton_emulate::mm512_subs_epi16
#define _mm512_subs_epu16 lepton_emulate::mm512_subs_epu16
#define _mm512_mask_adds_epi8 lepton_emulate::mm512_mask_adds_epi8
#define _mm512_mask_adds_epu8 lepton_emulate::mm512_mask_adds_epu8
#define _mm512_mask_adds_epi16 lepton_emulate::mm512_mask_adds_epi16
#define _mm512_mask_adds_epu16 lepton_emulate::mm512_mask_adds_epu16
#define _mm512_mask_subs_epi8 lepton_emulate::mm512_mask_subs_epi8
#define _mm512_mask_subs_epu8 lepton_emulate::mm512_mask_subs_epu8
#define _mm512_mask_subs_epi16 lepton_emulate::mm512_mask_subs_epi16
#define _mm512_mask_subs_epu16 lepton_emulate::mm512_mask_subs_epu16
#define _mm512_maskz_adds_epi8 lepton_emulate::mm512_maskz_adds_epi8
#define _mm512_maskz_adds_epu8 lepton_emulate::mm512_maskz_adds_epu8
#define _mm512_maskz_adds_epi16 lepton_emulate::mm512_maskz_adds_epi16
#define _mm512_maskz_adds_epu16 lepton_emulate::mm512_maskz_adds_epu16
#define _mm512_maskz_subs_epi8 lepton_emulate::mm512_maskz_subs_epi8
#define _mm512_maskz_subs_epu8 lepton_emulate::mm512_maskz_subs_epu8
#define _mm512_maskz_subs_epi16 lepton_emulate::mm512_maskz_subs_epi16
#define _mm512_maskz_subs_epu16 lepton_emulate::mm512_maskz_subs_epu16

LEPTON_EMULATE_BINARY(mm512, mullo_epi16, m512i, std::uint16_t, std::uint32_t{a} * b)
LEPTON_EMULATE_BINARY(mm512, mullo_epi32, m512i, std::uint32_t, a* b)
LEPTON_EMULATE_BINARY(mm512, mullo_epi64, m512i, std::uint64_t, a* b)
LEPTON_EMULATE_BINARY(mm512, mulhi_epi16, m512i, std::int16_t, (a * b) >> 16)
LEPTON_EMULATE_BINARY(mm512, mulhi_epu16, m512i, std::uint16_t, (std::uint32_t{a} * b) >> 16)
LEPTON_EMULATE_BINARY(mm512, mulhrs_epi16, m512i, std::int16_t, (((a * b) >> 14) + 1) >> 1)
#define _mm512_mullo_epi16 lepton_emulate::mm512_mullo_epi16
#define _mm512_mullo_epi32 lepton_emulate::mm512_mullo_epi32
#define _mm512_mullo_epi64 lepton_emulate::mm512_mullo_epi64
#define _mm512_mulhi_epi16 lepton_emulate::mm512_mulhi_epi16
#define _mm512_mulhi_epu16 lepton_emulate::mm512_mulhi_epu16
#define _mm512_mulhrs_epi16 lepton_emulate::mm512_mulhrs_epi16
#define _mm512_mask_mullo_epi16 lepton_emulate::mm512_mask_mullo_epi16
#define _mm512_mask_mullo_epi32 lepton_emulate::mm512_mask_mullo_epi32
#define _mm512_mask_mullo_epi64 lepton_emulate::mm512_mask_mullo_epi64
#define _mm512_mask_mulhi_epi16 lepton_emulate::mm512_mask_mulhi_epi16
#define _mm512_mask_mulhi_epu16 lepton_emulate::mm512_mask_mulhi_epu16
#define _mm512_mask_mulhrs_epi16 lepton_emulate::mm512_mask_mulhrs_epi16
#define _mm512_maskz_mullo_epi16 lepton_emulate::mm512_maskz_mullo_epi16
#define _mm512_maskz_mullo_epi32 lepton_emulate::mm512_maskz_mullo_epi32
#define _mm512_maskz_mullo_epi64 lepton_emulate::mm512_maskz_mullo_epi64
#define _mm512_maskz_mulhi_epi16 lepton_emulate::mm512_maskz_mulhi_epi16
#define _mm512_maskz_mulhi_epu16 lepton_emulate::mm512_maskz_mulhi_epu16
#define _mm512_maskz_mulhrs_epi16 lepton_emulate::mm512_maskz_mulhrs_epi16
// The low half of each 64-bit lane.
LEPTON_EMULATE_BINARY(mm512, mul_epi32, m512i, std::int64_t,
                      std::int64_t{static_cast<std::int32_t>(a)} * static_cast<std::int32_t>(b))
LEPTON_EMULATE_BINARY(mm512, mul_epu32, m512i, std::uint64_t,
                      std::uint64_t{static_cast<std::uint32_t>(a)} * static_cast<std::uint32_t>(b))
#define _mm512_mul_epi32 lepton_emulate::mm512_mul_epi32
#define _mm512_mul_epu32 lepton_emulate::mm512_mul_epu32
#define _mm512_mask_mul_epi32 lepton_emulate::mm512_mask_mul_epi32
#define _mm512_mask_mul_epu32 lepton_emulate::mm512_mask_mul_epu32
#define _mm512_maskz_mul_epi32 lepton_emulate::mm512_maskz_mul_epi32
#define _mm512_maskz_mul_epu32 lepton_emulate::mm512_maskz_mul_epu32

LEPTON_EMULATE_BINARY(mm512, min_epi8, m512i, std::int8_t, a < b ? a : b)
LEPTON_EMULATE_BINARY(mm512, min_epu8, m512i, std::uint8_t, a < b ? a : b)
LEPTON_EMULATE_BINARY(mm512, min_epi16, m512i, std::int16_t, a < b ? a : b)
LEPTON_EMULATE_BINARY(mm512, min_epu16, m512i, std::uint16_t, a < b ? a : b)
LEPTON_EMULATE_BINARY(mm512, min_epi32, m512i, std::int32_t, a < b ? a : b)
LEPTON_EMULATE_BINARY(mm512, min_epu32, m512i, std::uint32_t, a < b ? a : b)
LEPTON_EMULATE_BINARY(mm512, min_epi64, m512i, std::int64_t, a < b ? a : b)
LEPTON_EMULATE_BINARY(mm512, max_epi8, m512i, std::int8_t, a > b ? a : b)
LEPTON_EMULATE_BINARY(mm512, max_epu8, m512i, std::uint8_t, a > b ? a : b)
LEPTON_EMULATE_BINARY(mm512, max_epi16, m512i, std::int16_t, a > b ? a : b)
LEPTON_EMULATE_BINARY(mm512, max_epu16, m512i, std::uint16_t, a > b ? a : b)
LEPTON_EMULATE_BINARY(mm512, max_epi32, m512i, std::int32_t, a > b ? a : b)
LEPTON_EMULATE_BINARY(mm512, max_epu32, m512i, std::uint32_t, a > b ? a : b)
LEPTON_EMULATE_BINARY(mm512, max_epi64, m512i, std::int64_t, a > b ? a : b)
#define _mm512_min_epi8 lepton_emulate::mm512_min_epi8
#define _mm512_min_epu8 lepton_emulate::mm512_min_epu8
#define _mm512_min_epi16 lepton_emulate::mm512_min_epi16
#define _mm512_min_epu16 lepton_emulate::mm512_min_epu16
#define _mm512_min_epi32 lepton_emulate::mm512_min_epi32
#define _mm512_min_epu32 lepton_emulate::mm512_min_epu32
#define _mm512_min_epi64 lepton_emulate::mm512_min_epi64
#define _mm512_max_epi8 lepton_emulate::mm512_max_epi8
#define _mm512_max_epu8 lepton_emulate::mm512_max_epu8
#define _mm512_max_epi16 lepton_emulate::mm512_max_epi16
#define _mm512_max_epu16 lepton_emulate::mm512_max_epu16
#define _mm512_max_epi32 lepton_emulate::mm512_max_epi32
#define _mm512_max_epu32 lepton_emulate::mm512_max_epu32
#define _mm512_max_epi64 lepton_emulate::mm512_max_epi64
#define _mm512_mask_min_epi8 lepton_emulate::mm512_mask_min_epi8
#define _mm512_mask_min_epu8 lepton_emulate::mm512_mask_min_epu8
#define _mm512_mask_min_epi16 lepton_emulate::mm512_mask_min_epi16
#define _mm512_mask_min_epu16 lepton_emulate::mm512_mask_min_epu16
#define _mm512_mask_min_epi32 lepton_emulate::mm512_mask_min_epi32
#define _mm512_mask_min_epu32 lepton_emulate::mm512_mask_min_epu32
#define _mm512_mask_min_epi64 lepton_emulate::mm512_mask_min_epi64
#define _mm512_mask_max_epi8 lepton_emulate::mm512_mask_max_epi8
#define _mm512_mask_max_epu8 lepton_emulate::mm512_mask_max_epu8
#define _mm512_mask_max_epi16 lepton_emulate::mm512_mask_max_epi16
#define _mm512_mask_max_epu16 lepton_emulate::mm512_mask_max_epu16
#define _mm512_mask_max_epi32 lepton_emulate::mm512_mask_max_epi32
#define _mm512_mask_max_epu32 lepton_emulate::mm512_mask_max_epu32
#define _mm512_mask_max_epi64 lepton_emulate::mm512_mask_max_epi64
#define _mm512_maskz_min_epi8 lepton_emulate::mm512_maskz_min_epi8
#define _mm512_maskz_min_epu8 lepton_emulate::mm512_maskz_min_epu8
#define _mm512_maskz_min_epi16 lepton_emulate::mm512_maskz_min_epi16
#define _mm512_maskz_min_epu16 lepton_emulate::mm512_maskz_min_epu16
#define _mm512_maskz_min_epi32 lepton_emulate::mm512_maskz_min_epi32
#define _mm512_maskz_min_epu32 lepton_emulate::mm512_maskz_min_epu32
#define _mm512_maskz_min_epi64 lepton_emulate::mm512_maskz_min_epi64
#define _mm512_maskz_max_epi8 lepton_emulate::mm512_maskz_max_epi8
#define _mm512_maskz_max_epu8 lepton_emulate::mm512_maskz_max_epu8
#define _mm512_maskz_max_epi16 lepton_emulate::mm512_maskz_max_epi16
#define _mm512_maskz_max_epu16 lepton_emulate::mm512_maskz_max_epu16
#define _mm512_maskz_max_epi32 lepton_emulate::mm512_maskz_max_epi32
#define _mm512_maskz_max_epu32 lepton_emulate::mm512_maskz_max_epu32
#define _mm512_maskz_max_epi64 lepton_emulate::mm512_maskz_max_epi64

// |lowest| wraps to itself.
LEPTON_EMULATE_UNARY(mm512, abs_epi8, m512i, std::int8_t, a < 0 ? -a : a)
LEPTON_EMULATE_UNARY(mm512, abs_epi16, m512i, std::int16_t, a < 0 ? -a : a)
LEPTON_EMULATE_UNARY(mm512, abs_epi32, m512i, std::uint32_t,
                     static_cast<std::int32_t>(a) < 0 ? 0u - a : a)
LEPTON_EMULATE_UNARY(mm512, abs_epi64, m512i, std::uint64_t,
                     static_cast<std::int64_t>(a) < 0 ? std::uint64_t{0} - a : a)
#define _mm512_abs_epi8 lepton_emulate::mm512_abs_epi8
#define _mm512_abs_epi16 lepton_emulate::mm512_abs_epi16
#define _mm512_abs_epi32 lepton_emulate::mm512_abs_epi32
#define _mm512_abs_epi64 lepton_emulate::mm512_abs_epi64
#define _mm512_mask_abs_epi8 lepton_emulate::mm512_mask_abs_epi8
#define _mm512_mask_abs_epi16 lepton_emulate::mm512_mask_abs_epi16
#define _mm512_mask_abs_epi32 lepton_emulate::mm512_mask_abs_epi32
#define _mm512_mask_abs_epi64 lepton_emulate::mm512_mask_abs_epi64
#define _mm512_maskz_abs_epi8 lepton_emulate::mm512_maskz_abs_epi8
#define _mm512_maskz_abs_epi16 lepton_emulate::mm512_maskz_abs_epi16
#define _mm512_maskz_abs_epi32 lepton_emulate::mm512_maskz_abs_epi32
#define _mm512_maskz_abs_epi64 lepton_emulate::mm512_maskz_abs_epi64
LEPTON_EMULATE_BINARY(mm512, avg_epu8, m512i, std::uint8_t, (a + b + 1) >> 1)
LEPTON_EMULATE_BINARY(mm512, avg_epu16, m512i, std::uint16_t, (a + b + 1) >> 1)
#define _mm512_avg_epu8 lepton_emulate::mm512_avg_epu8
#define _mm512_avg_epu16 lepton_emulate::mm512_avg_epu16
#define _mm512_mask_avg_epu8 lepton_emulate::mm512_mask_avg_epu8
#define _mm512_mask_avg_epu16 lepton_emulate::mm512_mask_avg_epu16
#define _mm512_maskz_avg_epu8 lepton_emulate::mm512_maskz_avg_epu8
#define _mm512_maskz_avg_epu16 lepton_emulate::mm512_maskz_avg_epu16

// Logic.
LEPTON_EMULATE_BINARY(mm512, and_epi32, m512i, std::uint32_t, a& b)
LEPTON_EMULATE_BINARY(mm512, andnot_epi32, m512i, std::uint32_t, ~a& b)
LEPTON_EMULATE_BINARY(mm512, or_epi32, m512i, std::uint32_t, a | b)
LEPTON_EMULATE_BINARY(mm512, xor_epi32, m512i, std::uint32_t, a ^ b)
LEPTON_EMULATE_BINARY(mm512, and_epi64, m512i, std::uint64_t, a& b)
LEPTON_EMULATE_BINARY(mm512, andnot_epi64, m512i, std::uint64_t, ~a& b)
LEPTON_EMULATE_BINARY(mm512, or_epi64, m512i, std::uint64_t, a | b)
LEPTON_EMULATE_BINARY(mm512, xor_epi64, m512i, std::uint64_t, a ^ b)
#define _mm512_and_epi32 lepton_emulate::mm512_and_epi32
#define _mm512_and_epi64 lepton_emulate::mm512_and_epi64
#define _mm512_andnot_epi32 lepton_emulate::mm512_andnot_epi32
#define _mm512_andnot_epi64 lepton_emulate::mm512_andnot_epi64
#define _mm512_or_epi32 lepton_emulate::mm512_or_epi32
#define _mm512_or_epi64 lepton_emulate::mm512_or_epi64
#define _mm512_xor_epi32 lepton_emulate::mm512_xor_epi32
#define _mm512_xor_epi64 lepton_emulate::mm512_xor_epi64
#define _mm512_mask_and_epi32 lepton_emulate::mm512_mask_and_epi32
#define _mm512_mask_and_epi64 lepton_emulate::mm512_mask_and_epi64
#define _mm512_mask_andnot_epi32 lepton_emulate::mm512_mask_andnot_epi32
#define _mm512_mask_andnot_epi64 lepton_emulate::mm512_mask_andnot_epi64
#define _mm512_mask_or_epi32 lepton_emulate::mm512_mask_or_epi32
#define _mm512_mask_or_epi64 lepton_emulate::mm512_mask_or_epi64
#define _mm512_mask_xor_epi32 lepton_emulate::mm512_mask_xor_epi32
#define _mm512_mask_xor_epi64 lepton_emulate::mm512_mask_xor_epi64
#define _mm512_maskz_and_epi32 lepton_emulate::mm512_maskz_and_epi32
#define _mm512_maskz_and_epi64 lepton_emulate::mm512_maskz_and_epi64
#define _mm512_maskz_andnot_epi32 lepton_emulate::mm512_maskz_andnot_epi32
#define _mm512_maskz_andnot_epi64 lepton_emulate::mm512_maskz_andnot_epi64
#define _mm512_maskz_or_epi32 lepton_emulate::mm512_maskz_or_epi32
#define _mm512_maskz_or_epi64 lepton_emulate::mm512_maskz_or_epi64
#define _mm512_maskz_xor_epi32 lepton_emulate::mm512_maskz_xor_epi32
#define _mm512_maskz_xor_epi64 lepton_emulate::mm512_maskz_xor_epi64
static inline m512i mm512_and_si512(const m512i& a, const m512i& b) {
  return mm512_and_epi64(a, b);
}
static inline m512i mm512_andnot_si512(const m512i& a, const m512i& b) {
  return mm512_andnot_epi64(a, b);
}
static inline m512i mm512_or_si512(const m512i& a, const m512i& b) { return mm512_or_epi64(a, b); }
static inline m512i mm512_xor_si512(const m512i& a, const m512i& b) {
  return mm512_xor_epi64(a, b);
}
#define _mm512_and_si512 lepton_emulate::mm512_and_si512
#define _mm512_andnot_si512 lepton_emulate::mm512_andnot_si512
#define _mm512_or_si512 lepton_emulate::mm512_or_si512
#define _mm512_xor_si512 lepton_emulate::mm512_xor_si512

// VPTERNLOG: bit (a << 2 | b << 1 | c) of the immediate, for every bit position.
static inline m512i mm512_ternarylogic_epi32(const m512i& a_, const m512i& b_, const m512i& c_,
                                             int imm) {
  const auto a = lanes<std::uint64_t>(a_), b = lanes<std::uint64_t>(b_),
             c = lanes<std::uint64_t>(c_);
  Pack<std::uint64_t, 8> r;
  for (int i = 0; i < 8; ++i) {
    r.at[i] = 0;
    for (int row = 0; row < 8; ++row)
      if ((imm >> row) & 1)
        r.at[i] |= (row & 4 ? a.at[i] : ~a.at[i]) & (row & 2 ? b.at[i] : ~b.at[i]) &
                   (row & 1 ? c.at[i] : ~c.at[i]);
  }
  return join<m512i>(r);
}
static inline m512i mm512_ternarylogic_epi64(const m512i& a, const m512i& b, const m512i& c,
                                             int imm) {
  return mm512_ternarylogic_epi32(a, b, c, imm);
}
static inline m512i mm512_mask_ternarylogic_epi32(const m512i& a, __mmask16 k, const m512i& b,
                                                  const m512i& c, int imm) {
  return select<std::int32_t>(k, mm512_ternarylogic_epi32(a, b, c, imm), a);
}
#undef _mm512_ternarylogic_epi32
#define _mm512_ternarylogic_epi32 lepton_emulate::mm512_ternarylogic_epi32
#undef _mm512_ternarylogic_epi64
#define _mm512_ternarylogic_epi64 lepton_emulate::mm512_ternarylogic_epi64
#undef _mm512_mask_ternarylogic_epi32
#define _mm512_mask_ternarylogic_epi32 lepton_emulate::mm512_mask_ternarylogic_epi32

// Counting bits (VPOPCNTDQ, BITALG, CD).
LEPTON_EMULATE_UNARY(mm512, popcnt_epi8, m512i, std::uint8_t, __builtin_popcount(a))
LEPTON_EMULATE_UNARY(mm512, popcnt_epi16, m512i, std::uint16_t, __builtin_popcount(a))
LEPTON_EMULATE_UNARY(mm512, popcnt_epi32, m512i, std::uint32_t, __builtin_popcount(a))
LEPTON_EMULATE_UNARY(mm512, popcnt_epi64, m512i, std::uint64_t, __builtin_popcountll(a))
#define _mm512_popcnt_epi8 lepton_emulate::mm512_popcnt_epi8
#define _mm512_popcnt_epi16 lepton_emulate::mm512_popcnt_epi16
#define _mm512_popcnt_epi32 lepton_emulate::mm512_popcnt_epi32
#define _mm512_popcnt_epi64 lepton_emulate::mm512_popcnt_epi64
#define _mm512_mask_popcnt_epi8 lepton_emulate::mm512_mask_popcnt_epi8
#define _mm512_mask_popcnt_epi16 lepton_emulate::mm512_mask_popcnt_epi16
#define _mm512_mask_popcnt_epi32 lepton_emulate::mm512_mask_popcnt_epi32
#define _mm512_mask_popcnt_epi64 lepton_emulate::mm512_mask_popcnt_epi64
#define _mm512_maskz_popcnt_epi8 lepton_emulate::mm512_maskz_popcnt_epi8
#define _mm512_maskz_popcnt_epi16 lepton_emulate::mm512_maskz_popcnt_epi16
#define _mm512_maskz_popcnt_epi32 lepton_emulate::mm512_maskz_popcnt_epi32
#define _mm512_maskz_popcnt_epi64 lepton_emulate::mm512_maskz_popcnt_epi64
LEPTON_EMULATE_UNARY(mm512, lzcnt_epi32, m512i, std::uint32_t, a ? __builtin_clz(a) : 32)
LEPTON_EMULATE_UNARY(mm512, lzcnt_epi64, m512i, std::uint64_t, a ? __builtin_clzll(a) : 64)
#define _mm512_lzcnt_epi32 lepton_emulate::mm512_lzcnt_epi32
#define _mm512_lzcnt_epi64 lepton_emulate::mm512_lzcnt_epi64
#define _mm512_mask_lzcnt_epi32 lepton_emulate::mm512_mask_lzcnt_epi32
#define _mm512_mask_lzcnt_epi64 lepton_emulate::mm512_mask_lzcnt_epi64
#define _mm512_maskz_lzcnt_epi32 lepton_emulate::mm512_maskz_lzcnt_epi32
#define _mm512_maskz_lzcnt_epi64 lepton_emulate::mm512_maskz_lzcnt_epi64

// VPSADBW: sums of absolute differences over groups of eight bytes.
static inline m512i mm512_sad_epu8(const m512i& a, const m512i& b) {
  const auto x = lanes<std::uint8_t>(a), y = lanes<std::uint8_t>(b);
  Pack<std::uint64_t, 8> r = {};
  for (int i = 0; i < 64; ++i)
    r.at[i / 8] += static_cast<unsigned>(x.at[i] > y.at[i] ? x.at[i] - y.at[i] : y.at[i] - x.at[i]);
  return join<m512i>(r);
}
#define _mm512_sad_epu8 lepton_emulate::mm512_sad_epu8

// VPMULTISHIFTQB (VBMI): eight unaligned bytes out of each quadword; the first operand holds the
// bit offsets.
static inline m512i mm512_multishift_epi64_epi8(const m512i& offsets, const m512i& data) {
  const auto o = lanes<std::uint8_t>(offsets);
  const auto d = lanes<std::uint64_t>(data);
  Pack<std::uint8_t, 64> r;
  for (int i = 0; i < 64; ++i) {
    const unsigned n = o.at[i] & 63;
    const std::uint64_t q = d.at[i / 8];
    r.at[i] = static_cast<std::uint8_t>(q >> n | q << ((64 - n) & 63));
  }
  return join<m512i>(r);
}
#define _mm512_multishift_epi64_epi8 lepton_emulate::mm512_multishift_epi64_epi8

}  // namespace lepton_emulate
#pragma GCC pop_options
