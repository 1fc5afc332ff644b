// Conversions between float and 16 bits: fp16, bf16.
#pragma once
#include "avx512_convert.h"

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
namespace lepton_emulate {

// The lower and the upper half of a register, as the real type of half the width.
template <class H, class V>
static inline H half(const V& v, int which) {
  H r;
  std::memcpy(static_cast<void*>(&r), reinterpret_cast<const char*>(&v) + (which & 1) * sizeof(H),
              sizeof(H));
  return r;
}
template <class V, class H>
static inline V halves(const H& low, const H& high) {
  V r;
  std::memcpy(static_cast<void*>(&r), &low, sizeof(H));
  std::memcpy(reinterpret_cast<char*>(&r) + sizeof(H), &high, sizeof(H));
  return r;
}

// fp16. The host's F16C does each half; DAZ does not apply to fp16, FTZ does not either.
static inline m512 mm512_cvtph_ps(const __m256i& a) {
  return halves<m512>(_mm256_cvtph_ps(half<__m128i>(a, 0)), _mm256_cvtph_ps(half<__m128i>(a, 1)));
}
static inline m512 mm512_mask_cvtph_ps(const m512& src, __mmask16 k, const __m256i& a) {
  return select<float>(k, mm512_cvtph_ps(a), src);
}
static inline m512 mm512_maskz_cvtph_ps(__mmask16 k, const __m256i& a) {
  return select<float>(k, mm512_cvtph_ps(a), zero<m512>());
}
static inline m512 mm512_cvt_roundph_ps(const __m256i& a, int) { return mm512_cvtph_ps(a); }
static inline __m128i narrow_to_fp16(const __m256& a, int rounding) {
  switch (rounding & 4 ? 4 : rounding & 3) {
    case 0: return _mm256_cvtps_ph(a, 0);
    case 1: return _mm256_cvtps_ph(a, 1);
    case 2: return _mm256_cvtps_ph(a, 2);
    case 3: return _mm256_cvtps_ph(a, 3);
    default: return _mm256_cvtps_ph(a, 4);
  }
}
static inline __m256i mm512_cvtps_ph(const m512& a, int rounding) {
  return halves<__m256i>(narrow_to_fp16(half<__m256>(a, 0), rounding),
                         narrow_to_fp16(half<__m256>(a, 1), rounding));
}
static inline __m256i mm512_mask_cvtps_ph(const __m256i& src, __mmask16 k, const m512& a,
                                          int rounding) {
  return select<std::int16_t>(k, mm512_cvtps_ph(a, rounding), src);
}
static inline __m256i mm512_maskz_cvtps_ph(__mmask16 k, const m512& a, int rounding) {
  return select<std::int16_t>(k, mm512_cvtps_ph(a, rounding), zero<__m256i>());
}
static inline __m256i mm512_cvt_roundps_ph(const m512& a, int rounding) {
  return mm512_cvtps_ph(a, rounding);
}
#define _mm512_cvtph_ps lepton_emulate::mm512_cvtph_ps
#undef _mm512_cvtps_ph
#define _mm512_cvtps_ph lepton_emulate::mm512_cvtps_ph
#define _mm512_mask_cvtph_ps lepton_emulate::mm512_mask_cvtph_ps
#undef _mm512_mask_cvtps_ph
#define _mm512_mask_cvtps_ph lepton_emulate::mm512_mask_cvtps_ph
#define _mm512_maskz_cvtph_ps lepton_emulate::mm512_maskz_cvtph_ps
#undef _mm512_maskz_cvtps_ph
#define _mm512_maskz_cvtps_ph lepton_emulate::mm512_maskz_cvtps_ph
#undef _mm512_cvt_roundph_ps
#define _mm512_cvt_roundph_ps lepton_emulate::mm512_cvt_roundph_ps
#undef _mm512_cvt_roundps_ph
#define _mm512_cvt_roundps_ph lepton_emulate::mm512_cvt_roundps_ph

// bf16, VCVTNEPS2BF16: to nearest even, whatever MXCSR says; denormals become zeros; NaNs become
// quiet.
static inline std::uint16_t to_bf16(std::uint32_t u) {
  const std::uint32_t magnitude = u & 0x7FFFFFFFu;
  if (magnitude < 0x00800000u) return static_cast<std::uint16_t>((u >> 16) & 0x8000u);
  if (magnitude > 0x7F800000u) return static_cast<std::uint16_t>((u >> 16) | 0x0040u);
  return static_cast<std::uint16_t>((u + 0x7FFFu + ((u >> 16) & 1)) >>
                                    16);  // infinity stays: no carry into it
}
LEPTON_EMULATE_CONVERT(mm512, cvtneps_pbh, __m256bh, std::uint16_t, m512, std::uint32_t, to_bf16(a))
LEPTON_EMULATE_CONVERT(mm256, cvtneps_pbh, __m128bh, std::uint16_t, __m256, std::uint32_t,
                       to_bf16(a))
#define _mm512_cvtneps_pbh lepton_emulate::mm512_cvtneps_pbh
#define _mm512_mask_cvtneps_pbh lepton_emulate::mm512_mask_cvtneps_pbh
#define _mm512_maskz_cvtneps_pbh lepton_emulate::mm512_maskz_cvtneps_pbh
#define _mm256_cvtneps_pbh lepton_emulate::mm256_cvtneps_pbh
#define _mm256_mask_cvtneps_pbh lepton_emulate::mm256_mask_cvtneps_pbh
#define _mm256_maskz_cvtneps_pbh lepton_emulate::mm256_maskz_cvtneps_pbh
// Two registers into one: the second operand fills the lower half.
static inline m512bh mm512_cvtne2ps_pbh(const m512& high, const m512& low) {
  return halves<m512bh>(mm512_cvtneps_pbh(low), mm512_cvtneps_pbh(high));
}
static inline m512bh mm512_mask_cvtne2ps_pbh(const m512bh& src, __mmask32 k, const m512& high,
                                             const m512& low) {
  return select<std::uint16_t>(k, mm512_cvtne2ps_pbh(high, low), src);
}
static inline m512bh mm512_maskz_cvtne2ps_pbh(__mmask32 k, const m512& high, const m512& low) {
  return select<std::uint16_t>(k, mm512_cvtne2ps_pbh(high, low), zero<m512bh>());
}
#define _mm512_cvtne2ps_pbh lepton_emulate::mm512_cvtne2ps_pbh
#define _mm512_mask_cvtne2ps_pbh lepton_emulate::mm512_mask_cvtne2ps_pbh
#define _mm512_maskz_cvtne2ps_pbh lepton_emulate::mm512_maskz_cvtne2ps_pbh
// bf16 to float is a shift; denormals survive it.
LEPTON_EMULATE_CONVERT(mm512, cvtpbh_ps, m512, std::uint32_t, __m256bh, std::uint16_t,
                       std::uint32_t{a} << 16)
#define _mm512_cvtpbh_ps lepton_emulate::mm512_cvtpbh_ps
#define _mm512_mask_cvtpbh_ps lepton_emulate::mm512_mask_cvtpbh_ps
#define _mm512_maskz_cvtpbh_ps lepton_emulate::mm512_maskz_cvtpbh_ps

}  // namespace lepton_emulate
#pragma GCC pop_options
