// Shifts and rotations of integer lanes.
#pragma once
#include "avx512_types.h"

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
namespace lepton_emulate {

// Shifts by an immediate. A count of the lane's width or more gives zero, or all sign bits.
LEPTON_EMULATE_IMMEDIATE(mm512, slli_epi16, m512i, std::uint16_t,
                         n > 15 ? 0u : std::uint32_t{a} << n)
LEPTON_EMULATE_IMMEDIATE(mm512, slli_epi32, m512i, std::uint32_t, n > 31 ? 0u : a << n)
LEPTON_EMULATE_IMMEDIATE(mm512, slli_epi64, m512i, std::uint64_t, n > 63 ? 0u : a << n)
LEPTON_EMULATE_IMMEDIATE(mm512, srli_epi16, m512i, std::uint16_t, n > 15 ? 0 : a >> n)
LEPTON_EMULATE_IMMEDIATE(mm512, srli_epi32, m512i, std::uint32_t, n > 31 ? 0u : a >> n)
LEPTON_EMULATE_IMMEDIATE(mm512, srli_epi64, m512i, std::uint64_t, n > 63 ? 0u : a >> n)
LEPTON_EMULATE_IMMEDIATE(mm512, srai_epi16, m512i, std::int16_t, a >> (n > 15 ? 15 : n))
LEPTON_EMULATE_IMMEDIATE(mm512, srai_epi32, m512i, std::int32_t, a >> (n > 31 ? 31 : n))
LEPTON_EMULATE_IMMEDIATE(mm512, srai_epi64, m512i, std::int64_t, a >> (n > 63 ? 63 : n))
#undef _mm512_slli_epi16
#define _mm512_slli_epi16 lepton_emulate::mm512_slli_epi16
#undef _mm512_slli_epi32
#define _mm512_slli_epi32 lepton_emulate::mm512_slli_epi32
#undef _mm512_slli_epi64
#define _mm512_slli_epi64 lepton_emulate::mm512_slli_epi64
#undef _mm512_srli_epi16
#define _mm512_srli_epi16 lepton_emulate::mm512_srli_epi16
#undef _mm512_srli_epi32
#define _mm512_srli_epi32 lepton_emulate::mm512_srli_epi32
#undef _mm512_srli_epi64
#define _mm512_srli_epi64 lepton_emulate::mm512_srli_epi64
#undef _mm512_srai_epi16
#define _mm512_srai_epi16 lepton_emulate::mm512_srai_epi16
#undef _mm512_srai_epi32
#define _mm512_srai_epi32 lepton_emulate::mm512_srai_epi32
#undef _mm512_srai_epi64
#define _mm512_srai_epi64 lepton_emulate::mm512_srai_epi64
#undef _mm512_mask_slli_epi16
#define _mm512_mask_slli_epi16 lepton_emulate::mm512_mask_slli_epi16
#undef _mm512_mask_slli_epi32
#define _mm512_mask_slli_epi32 lepton_emulate::mm512_mask_slli_epi32
#undef _mm512_mask_slli_epi64
#define _mm512_mask_slli_epi64 lepton_emulate::mm512_mask_slli_epi64
#undef _mm512_mask_srli_epi16
#define _mm512_mask_srli_epi16 lepton_emulate::mm512_mask_srli_epi16
#undef _mm512_mask_srli_epi32
#define _mm512_mask_srli_epi32 lepton_emulate::mm512_mask_srli_epi32
#undef _mm512_mask_srli_epi64
#define _mm512_mask_srli_epi64 lepton_emulate::mm512_mask_srli_epi64
#undef _mm512_mask_srai_epi16
#define _mm512_mask_srai_epi16 lepton_emulate::mm512_mask_srai_epi16
#undef _mm512_mask_srai_epi32
#define _mm512_mask_srai_epi32 lepton_emulate::mm512_mask_srai_epi32
#undef _mm512_mask_srai_epi64
#define _mm512_mask_srai_epi64 lepton_emulate::mm512_mask_srai_epi64
#undef _mm512_maskz_slli_epi16
#define _mm512_maskz_slli_epi16 lepton_emulate::mm512_maskz_slli_epi16
#undef _mm512_maskz_slli_epi32
#define _mm512_maskz_slli_epi32 lepton_emulate::mm512_maskz_slli_epi32
#undef _mm512_maskz_slli_epi64
#define _mm512_maskz_slli_epi64 lepton_emulate::mm512_maskz_slli_epi64
#undef _mm512_maskz_srli_epi16
#define _mm512_maskz_srli_epi16 lepton_emulate::mm512_maskz_srli_epi16
#undef _mm512_maskz_srli_epi32
#define _mm512_maskz_srli_epi32 lepton_emulate::mm512_maskz_srli_epi32
#undef _mm512_maskz_srli_epi64
#define _mm512_maskz_srli_epi64 lepton_emulate::mm512_maskz_srli_epi64
#undef _mm512_maskz_srai_epi16
#define _mm512_maskz_srai_epi16 lepton_emulate::mm512_maskz_srai_epi16
#undef _mm512_maskz_srai_epi32
#define _mm512_maskz_srai_epi32 lepton_emulate::mm512_maskz_srai_epi32
#undef _mm512_maskz_srai_epi64
#define _mm512_maskz_srai_epi64 lepton_emulate::mm512_maskz_srai_epi64
// Shifts by a count per lane.
LEPTON_EMULATE_BINARY(mm512, sllv_epi16, m512i, std::uint16_t, b > 15 ? 0u : std::uint32_t{a} << b)
LEPTON_EMULATE_BINARY(mm512, sllv_epi32, m512i, std::uint32_t, b > 31 ? 0u : a << b)
LEPTON_EMULATE_BINARY(mm512, sllv_epi64, m512i, std::uint64_t, b > 63 ? 0u : a << b)
LEPTON_EMULATE_BINARY(mm512, srlv_epi16, m512i, std::uint16_t, b > 15 ? 0 : a >> b)
LEPTON_EMULATE_BINARY(mm512, srlv_epi32, m512i, std::uint32_t, b > 31 ? 0u : a >> b)
LEPTON_EMULATE_BINARY(mm512, srlv_epi64, m512i, std::uint64_t, b > 63 ? 0u : a >> b)
LEPTON_EMULATE_BINARY(mm512, srav_epi16, m512i, std::int16_t, a >> (b < 0 || b > 15 ? 15 : b))
LEPTON_EMULATE_BINARY(mm512, srav_epi32, m512i, std::int32_t, a >> (b < 0 || b > 31 ? 31 : b))
LEPTON_EMULATE_BINARY(mm512, srav_epi64, m512i, std::int64_t, a >> (b < 0 || b > 63 ? 63 : b))
#define _mm512_sllv_epi16 lepton_emulate::mm512_sllv_epi16
#define _mm512_sllv_epi32 lepton_emulate::mm512_sllv_epi32
#define _mm512_sllv_epi64 lepton_emulate::mm512_sllv_epi64
#define _mm512_srlv_epi16 lepton_emulate::mm512_srlv_epi16
#define _mm512_srlv_epi32 lepton_emulate::mm512_srlv_epi32
#define _mm512_srlv_epi64 lepton_emulate::mm512_srlv_epi64
#define _mm512_srav_epi16 lepton_emulate::mm512_srav_epi16
#define _mm512_srav_epi32 lepton_emulate::mm512_srav_epi32
#define _mm512_srav_epi64 lepton_emulate::mm512_srav_epi64
#define _mm512_mask_sllv_epi16 lepton_emulate::mm512_mask_sllv_epi16
#define _mm512_mask_sllv_epi32 lepton_emulate::mm512_mask_sllv_epi32
#define _mm512_mask_sllv_epi64 lepton_emulate::mm512_mask_sllv_epi64
#define _mm512_mask_srlv_epi16 lepton_emulate::mm512_mask_srlv_epi16
#define _mm512_mask_srlv_epi32 lepton_emulate::mm512_mask_srlv_epi32
#define _mm512_mask_srlv_epi64 lepton_emulate::mm512_mask_srlv_epi64
#define _mm512_mask_srav_epi16 lepton_emulate::mm512_mask_srav_epi16
#define _mm512_mask_srav_epi32 lepton_emulate::mm512_mask_srav_epi32
#define _mm512_mask_srav_epi64 lepton_emulate::mm512_mask_srav_epi64
#define _mm512_maskz_sllv_epi16 lepton_emulate::mm512_maskz_sllv_epi16
#define _mm512_maskz_sllv_epi32 lepton_emulate::mm512_maskz_sllv_epi32
#define _mm512_maskz_sllv_epi64 lepton_emulate::mm512_maskz_sllv_epi64
#define _mm512_maskz_srlv_epi16 lepton_emulate::mm512_maskz_srlv_epi16
#define _mm512_maskz_srlv_epi32 lepton_emulate::mm512_maskz_srlv_epi32
#define _mm512_maskz_srlv_epi64 lepton_emulate::mm512_maskz_srlv_epi64
#define _mm512_maskz_srav_epi16 lepton_emulate::mm512_maskz_srav_epi16
#define _mm512_maskz_srav_epi32 lepton_emulate::mm512_maskz_srav_epi32
#define _mm512_maskz_srav_epi64 lepton_emulate::mm512_maskz_srav_epi64
// Shifts by the low 64 bits of an xmm register.
static inline int shift_count(const __m128i& n) {
  const auto count = lanes<std::uint64_t>(n).at[0];
  return count > 64 ? 64 : static_cast<int>(count);
}
static inline m512i mm512_sll_epi32(const m512i& a, const __m128i& n) {
  return mm512_slli_epi32(a, shift_count(n));
}
static inline m512i mm512_srl_epi32(const m512i& a, const __m128i& n) {
  return mm512_srli_epi32(a, shift_count(n));
}
static inline m512i mm512_sra_epi32(const m512i& a, const __m128i& n) {
  return mm512_srai_epi32(a, shift_count(n));
}
static inline m512i mm512_sll_epi64(const m512i& a, const __m128i& n) {
  return mm512_slli_epi64(a, shift_count(n));
}
static inline m512i mm512_srl_epi64(const m512i& a, const __m128i& n) {
  return mm512_srli_epi64(a, shift_count(n));
}
#define _mm512_sll_epi32 lepton_emulate::mm512_sll_epi32
#define _mm512_srl_epi32 lepton_emulate::mm512_srl_epi32
#define _mm512_sra_epi32 lepton_emulate::mm512_sra_epi32
#define _mm512_sll_epi64 lepton_emulate::mm512_sll_epi64
#define _mm512_srl_epi64 lepton_emulate::mm512_srl_epi64
// Rotations.
LEPTON_EMULATE_IMMEDIATE(mm512, rol_epi32, m512i, std::uint32_t,
                         a << (n & 31) | a >> ((32 - n) & 31))
LEPTON_EMULATE_IMMEDIATE(mm512, ror_epi32, m512i, std::uint32_t,
                         a >> (n & 31) | a << ((32 - n) & 31))
LEPTON_EMULATE_IMMEDIATE(mm512, rol_epi64, m512i, std::uint64_t,
                         a << (n & 63) | a >> ((64 - n) & 63))
LEPTON_EMULATE_IMMEDIATE(mm512, ror_epi64, m512i, std::uint64_t,
                         a >> (n & 63) | a << ((64 - n) & 63))
#undef _mm512_rol_epi32
#define _mm512_rol_epi32 lepton_emulate::mm512_rol_epi32
#undef _mm512_rol_epi64
#define _mm512_rol_epi64 lepton_emulate::mm512_rol_epi64
#undef _mm512_ror_epi32
#define _mm512_ror_epi32 lepton_emulate::mm512_ror_epi32
#undef _mm512_ror_epi64
#define _mm512_ror_epi64 lepton_emulate::mm512_ror_epi64

}  // namespace lepton_emulate
#pragma GCC pop_options
