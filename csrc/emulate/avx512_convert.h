// Conversions: between integers and floats, widening, narrowing (wrapping and saturating).
#pragma once
#include "avx512_float.h"
#include "avx512_int.h"
#include "avx512_memory.h"

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
namespace lepton_emulate {

// A conversion lane by lane from IN to OUT; masks count the lanes of OUT.
#define LEPTON_EMULATE_CONVERT(W, NAME, OUT, TO, IN, FROM, EXPR)                              \
  static inline OUT W##_##NAME(const IN& a_) {                                                \
    constexpr int n = sizeof(IN) / sizeof(FROM) < sizeof(OUT) / sizeof(TO)                    \
                          ? int(sizeof(IN) / sizeof(FROM))                                    \
                          : int(sizeof(OUT) / sizeof(TO));                                    \
    const auto x = lanes<FROM>(a_);                                                           \
    Pack<TO, n> r;                                                                            \
    for (int i = 0; i < n; ++i) {                                                             \
      const FROM a = x.at[i];                                                                 \
      r.at[i] = static_cast<TO>(EXPR);                                                        \
    }                                                                                         \
    return join<OUT>(r);                                                                      \
  }                                                                                           \
  static inline OUT W##_mask_##NAME(const OUT& src, mask_t<TO, sizeof(OUT)> k, const IN& a) { \
    return select<TO>(k, W##_##NAME(a), src);                                                 \
  }                                                                                           \
  static inline OUT W##_maskz_##NAME(mask_t<TO, sizeof(OUT)> k, const IN& a) {                \
    return select<TO>(k, W##_##NAME(a), zero<OUT>());                                         \
  }

// Integers to floats. The compiler's conversion is CVTDQ2PS, rounded as MXCSR says.
LEPTON_EMULATE_CONVERT(mm512, cvtepi32_ps, m512, float, m512i, std::int32_t, a)
LEPTON_EMULATE_CONVERT(mm512, cvtepu32_ps, m512, float, m512i, std::uint32_t, std::int64_t{a})
LEPTON_EMULATE_CONVERT(mm512, cvtepi32_pd, m512d, double, __m256i, std::int32_t, a)
#define _mm512_cvtepi32_ps lepton_emulate::mm512_cvtepi32_ps
#define _mm512_cvtepu32_ps lepton_emulate::mm512_cvtepu32_ps
#define _mm512_cvtepi32_pd lepton_emulate::mm512_cvtepi32_pd
#define _mm512_mask_cvtepi32_ps lepton_emulate::mm512_mask_cvtepi32_ps
#define _mm512_mask_cvtepu32_ps lepton_emulate::mm512_mask_cvtepu32_ps
#define _mm512_mask_cvtepi32_pd lepton_emulate::mm512_mask_cvtepi32_pd
#define _mm512_maskz_cvtepi32_ps lepton_emulate::mm512_maskz_cvtepi32_ps
#define _mm512_maskz_cvtepu32_ps lepton_emulate::mm512_maskz_cvtepu32_ps
#define _mm512_maskz_cvtepi32_pd lepton_emulate::mm512_maskz_cvtepi32_pd
// Floats to integers; what does not fit becomes 0x80000000, or all ones for unsigned.
static inline std::uint32_t to_unsigned(double rounded) {
  return rounded >= 0 && rounded <= 4294967295.0
             ? static_cast<std::uint32_t>(static_cast<std::int64_t>(rounded))
             : 0xFFFFFFFFu;
}
LEPTON_EMULATE_CONVERT(mm512, cvtps_epi32, m512i, std::int32_t, m512, float,
                       _mm_cvtss_si32(_mm_set_ss(a)))
LEPTON_EMULATE_CONVERT(mm512, cvttps_epi32, m512i, std::int32_t, m512, float,
                       _mm_cvttss_si32(_mm_set_ss(a)))
LEPTON_EMULATE_CONVERT(mm512, cvtps_epu32, m512i, std::uint32_t, m512, float,
                       to_unsigned(round_with(a, 4)))
LEPTON_EMULATE_CONVERT(mm512, cvttps_epu32, m512i, std::uint32_t, m512, float,
                       to_unsigned(round_with(a, 3)))
#define _mm512_cvtps_epi32 lepton_emulate::mm512_cvtps_epi32
#define _mm512_cvtps_epu32 lepton_emulate::mm512_cvtps_epu32
#define _mm512_cvttps_epi32 lepton_emulate::mm512_cvttps_epi32
#define _mm512_cvttps_epu32 lepton_emulate::mm512_cvttps_epu32
#define _mm512_mask_cvtps_epi32 lepton_emulate::mm512_mask_cvtps_epi32
#define _mm512_mask_cvtps_epu32 lepton_emulate::mm512_mask_cvtps_epu32
#define _mm512_mask_cvttps_epi32 lepton_emulate::mm512_mask_cvttps_epi32
#define _mm512_mask_cvttps_epu32 lepton_emulate::mm512_mask_cvttps_epu32
#define _mm512_maskz_cvtps_epi32 lepton_emulate::mm512_maskz_cvtps_epi32
#define _mm512_maskz_cvtps_epu32 lepton_emulate::mm512_maskz_cvtps_epu32
#define _mm512_maskz_cvttps_epi32 lepton_emulate::mm512_maskz_cvttps_epi32
#define _mm512_maskz_cvttps_epu32 lepton_emulate::mm512_maskz_cvttps_epu32
static inline m512i mm512_cvt_roundps_epi32(const m512& a, int rounding) {
  return mm512_cvttps_epi32(mm512_roundscale_ps(a, rounding & 7));
}
static inline m512i mm512_cvtt_roundps_epi32(const m512& a, int) { return mm512_cvttps_epi32(a); }
static inline m512 mm512_cvt_roundepi32_ps(const m512i& a, int rounding) {
  check_nearest(rounding, "_mm512_cvt_roundepi32_ps");
  return mm512_cvtepi32_ps(a);
}
#undef _mm512_cvt_roundps_epi32
#define _mm512_cvt_roundps_epi32 lepton_emulate::mm512_cvt_roundps_epi32
#undef _mm512_cvtt_roundps_epi32
#define _mm512_cvtt_roundps_epi32 lepton_emulate::mm512_cvtt_roundps_epi32
#undef _mm512_cvt_roundepi32_ps
#define _mm512_cvt_roundepi32_ps lepton_emulate::mm512_cvt_roundepi32_ps
LEPTON_EMULATE_CONVERT(mm512, cvtps_pd, m512d, double, __m256, float, a)
LEPTON_EMULATE_CONVERT(mm512, cvtpd_ps, __m256, float, m512d, double, a)
#define _mm512_cvtps_pd lepton_emulate::mm512_cvtps_pd
#define _mm512_cvtpd_ps lepton_emulate::mm512_cvtpd_ps

// Widening.
LEPTON_EMULATE_CONVERT(mm512, cvtepi8_epi16, m512i, std::int16_t, __m256i, std::int8_t, a)
LEPTON_EMULATE_CONVERT(mm512, cvtepu8_epi16, m512i, std::int16_t, __m256i, std::uint8_t, a)
LEPTON_EMULATE_CONVERT(mm512, cvtepi8_epi32, m512i, std::int32_t, __m128i, std::int8_t, a)
LEPTON_EMULATE_CONVERT(mm512, cvtepu8_epi32, m512i, std::int32_t, __m128i, std::uint8_t, a)
LEPTON_EMULATE_CONVERT(mm512, cvtepi8_epi64, m512i, std::int64_t, __m128i, std::int8_t, a)
LEPTON_EMULATE_CONVERT(mm512, cvtepu8_epi64, m512i, std::int64_t, __m128i, std::uint8_t, a)
LEPTON_EMULATE_CONVERT(mm512, cvtepi16_epi32, m512i, std::int32_t, __m256i, std::int16_t, a)
LEPTON_EMULATE_CONVERT(mm512, cvtepu16_epi32, m512i, std::int32_t, __m256i, std::uint16_t, a)
LEPTON_EMULATE_CONVERT(mm512, cvtepi32_epi64, m512i, std::int64_t, __m256i, std::int32_t, a)
LEPTON_EMULATE_CONVERT(mm512, cvtepu32_epi64, m512i, std::int64_t, __m256i, std::uint32_t, a)
#define _mm512_cvtepi8_epi16 lepton_emulate::mm512_cvtepi8_epi16
#define _mm512_cvtepu8_epi16 lepton_emulate::mm512_cvtepu8_epi16
#define _mm512_cvtepi8_epi32 lepton_emulate::mm512_cvtepi8_epi32
#define _mm512_cvtepu8_epi32 lepton_emulate::mm512_cvtepu8_epi32
#define _mm512_cvtepi8_epi64 lepton_emulate::mm512_cvtepi8_epi64
#define _mm512_cvtepu8_epi64 lepton_emulate::mm512_cvtepu8_epi64
#define _mm512_mask_cvtepi8_epi16 lepton_emulate::mm512_mask_cvtepi8_epi16
#define _mm512_mask_cvtepu8_epi16 lepton_emulate::mm512_mask_cvtepu8_epi16
#define _mm512_mask_cvtepi8_epi32 lepton_emulate::mm512_mask_cvtepi8_epi32
#define _mm512_mask_cvtepu8_epi32 lepton_emulate::mm512_mask_cvtepu8_epi32
#define _mm512_mask_cvtepi8_epi64 lepton_emulate::mm512_mask_cvtepi8_epi64
#define _mm512_mask_cvtepu8_epi64 lepton_emulate::mm512_mask_cvtepu8_epi64
#define _mm512_maskz_cvtepi8_epi16 lepton_emulate::mm512_maskz_cvtepi8_epi16
#define _mm512_maskz_cvtepu8_epi16 lepton_emulate::mm512_maskz_cvtepu8_epi16
#define _mm512_maskz_cvtepi8_epi32 lepton_emulate::mm512_maskz_cvtepi8_epi32
#define _mm512_maskz_cvtepu8_epi32 lepton_emulate::mm512_maskz_cvtepu8_epi32
#define _mm512_maskz_cvtepi8_epi64 lepton_emulate::mm512_maskz_cvtepi8_epi64
#define _mm512_maskz_cvtepu8_epi64 lepton_emulate::mm512_maskz_cvtepu8_epi64
#define _mm512_cvtepi16_epi32 lepton_emulate::mm512_cvtepi16_epi32
#define _mm512_cvtepu16_epi32 lepton_emulate::mm512_cvtepu16_epi32
#define _mm512_cvtepi32_epi64 lepton_emulate::mm512_cvtepi32_epi64
#define _mm512_cvtepu32_epi64 lepton_emulate::mm512_cvtepu32_epi64
#define _mm512_mask_cvtepi16_epi32 lepton_emulate::mm512_mask_cvtepi16_epi32
#define _mm512_mask_cvtepu16_epi32 lepton_emulate::mm512_mask_cvtepu16_epi32
#define _mm512_mask_cvtepi32_epi64 lepton_emulate::mm512_mask_cvtepi32_epi64
#define _mm512_mask_cvtepu32_epi64 lepton_emulate::mm512_mask_cvtepu32_epi64
#define _mm512_maskz_cvtepi16_epi32 lepton_emulate::mm512_maskz_cvtepi16_epi32
#define _mm512_maskz_cvtepu16_epi32 lepton_emulate::mm512_maskz_cvtepu16_epi32
#define _mm512_maskz_cvtepi32_epi64 lepton_emulate::mm512_maskz_cvtepi32_epi64
#define _mm512_maskz_cvtepu32_epi64 lepton_emulate::mm512_maskz_cvtepu32_epi64

// Narrowing: VPMOV wraps, VPMOVS saturates signed, VPMOVUS reads unsigned and saturates. The masked
// store writes only the lanes of the mask.
#define LEPTON_EMULATE_NARROW(W, IN, OUT, WIDE, NARROWED)               \
  LEPTON_EMULATE_NARROW_ONE(W, cvtepi, IN, OUT, WIDE, NARROWED, int,    \
                            static_cast<std::uint64_t>(a))              \
  LEPTON_EMULATE_NARROW_ONE(W, cvtsepi, IN, OUT, WIDE, NARROWED, int,   \
                            saturate<std::int##NARROWED##_t>(a))        \
  LEPTON_EMULATE_NARROW_ONE(W, cvtusepi, IN, OUT, WIDE, NARROWED, uint, \
                            a > std::uint##NARROWED##_t(-1) ? std::uint##NARROWED##_t(-1) : a)
#define LEPTON_EMULATE_NARROW_ONE(W, CVT, IN, OUT, WIDE, NARROWED, INT, EXPR)                  \
  static inline OUT W##_##CVT##WIDE##_epi##NARROWED(const IN& a_) {                            \
    const auto x = lanes<std::INT##WIDE##_t>(a_);                                              \
    Pack<std::uint##NARROWED##_t, x.size> r;                                                   \
    for (int i = 0; i < r.size; ++i) {                                                         \
      const std::INT##WIDE##_t a = x.at[i];                                                    \
      r.at[i] = static_cast<std::uint##NARROWED##_t>(EXPR);                                    \
    }                                                                                          \
    return join<OUT>(r);                                                                       \
  }                                                                                            \
  static inline OUT W##_mask_##CVT##WIDE##_epi##NARROWED(                                      \
      const OUT& src, mask_t<std::int##WIDE##_t, sizeof(IN)> k, const IN& a) {                 \
    constexpr int n = sizeof(IN) / (WIDE / 8);                                                 \
    /* lanes past the last one of the result are zero, masked or not */                        \
    const std::uint64_t present = n == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << n) - 1;   \
    return select<std::int##NARROWED##_t>(                                                     \
        present, select<std::int##NARROWED##_t>(k, W##_##CVT##WIDE##_epi##NARROWED(a), src),   \
        zero<OUT>());                                                                          \
  }                                                                                            \
  static inline OUT W##_maskz_##CVT##WIDE##_epi##NARROWED(                                     \
      mask_t<std::int##WIDE##_t, sizeof(IN)> k, const IN& a) {                                 \
    return select<std::int##NARROWED##_t>(k, W##_##CVT##WIDE##_epi##NARROWED(a), zero<OUT>()); \
  }                                                                                            \
  static inline void W##_mask_##CVT##WIDE##_storeu_epi##NARROWED(                              \
      void* p, mask_t<std::int##WIDE##_t, sizeof(IN)> k, const IN& a) {                        \
    store_masked<std::int##NARROWED##_t>(p, k, W##_##CVT##WIDE##_epi##NARROWED(a));            \
  }
LEPTON_EMULATE_NARROW(mm512, m512i, __m256i, 16, 8)
LEPTON_EMULATE_NARROW(mm512, m512i, __m128i, 32, 8)
LEPTON_EMULATE_NARROW(mm512, m512i, __m256i, 32, 16)
LEPTON_EMULATE_NARROW(mm512, m512i, __m128i, 64, 8)
LEPTON_EMULATE_NARROW(mm512, m512i, __m128i, 64, 16)
LEPTON_EMULATE_NARROW(mm512, m512i, __m256i, 64, 32)
#define _mm512_cvtepi16_epi8 lepton_emulate::mm512_cvtepi16_epi8
#define _mm512_cvtepi32_epi8 lepton_emulate::mm512_cvtepi32_epi8
#define _mm512_cvtepi32_epi16 lepton_emulate::mm512_cvtepi32_epi16
#define _mm512_cvtepi64_epi8 lepton_emulate::mm512_cvtepi64_epi8
#define _mm512_cvtepi64_epi16 lepton_emulate::mm512_cvtepi64_epi16
#define _mm512_cvtepi64_epi32 lepton_emulate::mm512_cvtepi64_epi32
#define _mm512_cvtsepi16_epi8 lepton_emulate::mm512_cvtsepi16_epi8
#define _mm512_cvtsepi32_epi8 lepton_emulate::mm512_cvtsepi32_epi8
#define _mm512_cvtsepi32_epi16 lepton_emulate::mm512_cvtsepi32_epi16
#define _mm512_cvtsepi64_epi8 lepton_emulate::mm512_cvtsepi64_epi8
#define _mm512_cvtsepi64_epi16 lepton_emulate::mm512_cvtsepi64_epi16
#define _mm512_cvtsepi64_epi32 lepton_emulate::mm512_cvtsepi64_epi32
#define _mm512_cvtusepi16_epi8 lepton_emulate::mm512_cvtusepi16_epi8
#define _mm512_cvtusepi32_epi8 lepton_emulate::mm512_cvtusepi32_epi8
#define _mm512_cvtusepi32_epi16 lepton_emulate::mm512_cvtusepi32_epi16
#define _mm512_cvtusepi64_epi8 lepton_emulate::mm512_cvtusepi64_epi8
#define _mm512_cvtusepi64_epi16 lepton_emulate::mm512_cvtusepi64_epi16
#define _mm512_cvtusepi64_epi32 lepton_emulate::mm512_cvtusepi64_epi32
#define _mm512_mask_cvtepi16_epi8 lepton_emulate::mm512_mask_cvtepi16_epi8
#define _mm512_mask_cvtepi32_epi8 lepton_emulate::mm512_mask_cvtepi32_epi8
#define _mm512_mask_cvtepi32_epi16 lepton_emulate::mm512_mask_cvtepi32_epi16
#define _mm512_mask_cvtepi64_epi8 lepton_emulate::mm512_mask_cvtepi64_epi8
#define _mm512_mask_cvtepi64_epi16 lepton_emulate::mm512_mask_cvtepi64_epi16
#define _mm512_mask_cvtepi64_epi32 lepton_emulate::mm512_mask_cvtepi64_epi32
#define _mm512_mask_cvtsepi16_epi8 lepton_emulate::mm512_mask_cvtsepi16_epi8
#define _mm512_mask_cvtsepi32_epi8 lepton_emulate::mm512_mask_cvtsepi32_epi8
#define _mm512_mask_cvtsepi32_epi16 lepton_emulate::mm512_mask_cvtsepi32_epi16
#define _mm512_mask_cvtsepi64_epi8 lepton_emulate::mm512_mask_cvtsepi64_epi8
#define _mm512_mask_cvtsepi64_epi16 lepton_emulate::mm512_mask_cvtsepi64_epi16
#define _mm512_mask_cvtsepi64_epi32 lepton_emulate::mm512_mask_cvtsepi64_epi32
#define _mm512_mask_cvtusepi16_epi8 lepton_emulate::mm512_mask_cvtusepi16_epi8
#define _mm512_mask_cvtusepi32_epi8 lepton_emulate::mm512_mask_cvtusepi32_epi8
#define _mm512_mask_cvtusepi32_epi16 lepton_emulate::mm512_mask_cvtusepi32_epi16
#define _mm512_mask_cvtusepi64_epi8 lepton_emulate::mm512_mask_cvtusepi64_epi8
#define _mm512_mask_cvtusepi64_epi16 lepton_emulate::mm512_mask_cvtusepi64_epi16
#define _mm512_mask_cvtusepi64_epi32 lepton_emulate::mm512_mask_cvtusepi64_epi32
#define _mm512_maskz_cvtepi16_epi8 lepton_emulate::mm512_maskz_cvtepi16_epi8
#define _mm512_maskz_cvtepi32_epi8 lepton_emulate::mm512_maskz_cvtepi32_epi8
#define _mm512_maskz_cvtepi32_epi16 lepton_emulate::mm512_maskz_cvtepi32_epi16
#define _mm512_maskz_cvtepi64_epi8 lepton_emulate::mm512_maskz_cvtepi64_epi8
#define _mm512_maskz_cvtepi64_epi16 lepton_emulate::mm512_maskz_cvtepi64_epi16
#define _mm512_maskz_cvtepi64_epi32 lepton_emulate::mm512_maskz_cvtepi64_epi32
#define _mm512_maskz_cvtsepi16_epi8 lepton_emulate::mm512_maskz_cvtsepi16_epi8
#define _mm512_maskz_cvtsepi32_epi8 lepton_emulate::mm512_maskz_cvtsepi32_epi8
#define _mm512_maskz_cvtsepi32_epi16 lepton_emulate::mm512_maskz_cvtsepi32_epi16
#define _mm512_maskz_cvtsepi64_epi8 lepton_emulate::mm512_maskz_cvtsepi64_epi8
#define _mm512_maskz_cvtsepi64_epi16 lepton_emulate::mm512_maskz_cvtsepi64_epi16
#define _mm512_maskz_cvtsepi64_epi32 lepton_emulate::mm512_maskz_cvtsepi64_epi32
#define _mm512_maskz_cvtusepi16_epi8 lepton_emulate::mm512_maskz_cvtusepi16_epi8
#define _mm512_maskz_cvtusepi32_epi8 lepton_emulate::mm512_maskz_cvtusepi32_epi8
#define _mm512_maskz_cvtusepi32_epi16 lepton_emulate::mm512_maskz_cvtusepi32_epi16
#define _mm512_maskz_cvtusepi64_epi8 lepton_emulate::mm512_maskz_cvtusepi64_epi8
#define _mm512_maskz_cvtusepi64_epi16 lepton_emulate::mm512_maskz_cvtusepi64_epi16
#define _mm512_maskz_cvtusepi64_epi32 lepton_emulate::mm512_maskz_cvtusepi64_epi32
#define _mm512_mask_cvtepi16_storeu_epi8 lepton_emulate::mm512_mask_cvtepi16_storeu_epi8
#define _mm512_mask_cvtepi32_storeu_epi8 lepton_emulate::mm512_mask_cvtepi32_storeu_epi8
#define _mm512_mask_cvtepi32_storeu_epi16 lepton_emulate::mm512_mask_cvtepi32_storeu_epi16
#define _mm512_mask_cvtepi64_storeu_epi8 lepton_emulate::mm512_mask_cvtepi64_storeu_epi8
#define _mm512_mask_cvtepi64_storeu_epi16 lepton_emulate::mm512_mask_cvtepi64_storeu_epi16
#define _mm512_mask_cvtepi64_storeu_epi32 lepton_emulate::mm512_mask_cvtepi64_storeu_epi32
#define _mm512_mask_cvtsepi16_storeu_epi8 lepton_emulate::mm512_mask_cvtsepi16_storeu_epi8
#define _mm512_mask_cvtsepi32_storeu_epi8 lepton_emulate::mm512_mask_cvtsepi32_storeu_epi8
#define _mm512_mask_cvtsepi32_storeu_epi16 lepton_emulate::mm512_mask_cvtsepi32_storeu_epi16
#define _mm512_mask_cvtsepi64_storeu_epi8 lepton_emulate::mm512_mask_cvtsepi64_storeu_epi8
#define _mm512_mask_cvtsepi64_storeu_epi16 lepton_emulate::mm512_mask_cvtsepi64_storeu_epi16
#define _mm512_mask_cvtsepi64_storeu_epi32 lepton_emulate::mm512_mask_cvtsepi64_storeu_epi32
#define _mm512_mask_cvtusepi16_storeu_epi8 lepton_emulate::mm512_mask_cvtusepi16_storeu_epi8
#define _mm512_mask_cvtusepi32_storeu_epi8 lepton_emulate::mm512_mask_cvtusepi32_storeu_epi8
#define _mm512_mask_cvtusepi32_storeu_epi16 lepton_emulate::mm512_mask_cvtusepi32_storeu_epi16
#define _mm512_mask_cvtusepi64_storeu_epi8 lepton_emulate::mm512_mask_cvtusepi64_storeu_epi8
#define _mm512_mask_cvtusepi64_storeu_epi16 lepton_emulate::mm512_mask_cvtusepi64_storeu_epi16
#define _mm512_mask_cvtusepi64_storeu_epi32 lepton_emulate::mm512_mask_cvtusepi64_storeu_epi32
LEPTON_EMULATE_NARROW(mm256, __m256i, __m128i, 16, 8)
LEPTON_EMULATE_NARROW(mm256, __m256i, __m128i, 32, 8)
LEPTON_EMULATE_NARROW(mm256, __m256i, __m128i, 32, 16)
#define _mm256_cvtepi16_epi8 lepton_emulate::mm256_cvtepi16_epi8
#define _mm256_cvtepi32_epi8 lepton_emulate::mm256_cvtepi32_epi8
#define _mm256_cvtepi32_epi16 lepton_emulate::mm256_cvtepi32_epi16
#define _mm256_cvtsepi16_epi8 lepton_emulate::mm256_cvtsepi16_epi8
#define _mm256_cvtsepi32_epi8 lepton_emulate::mm256_cvtsepi32_epi8
#define _mm256_cvtsepi32_epi16 lepton_emulate::mm256_cvtsepi32_epi16
#define _mm256_cvtusepi16_epi8 lepton_emulate::mm256_cvtusepi16_epi8
#define _mm256_cvtusepi32_epi8 lepton_emulate::mm256_cvtusepi32_epi8
#define _mm256_cvtusepi32_epi16 lepton_emulate::mm256_cvtusepi32_epi16
#define _mm256_mask_cvtepi16_epi8 lepton_emulate::mm256_mask_cvtepi16_epi8
#define _mm256_mask_cvtepi32_epi8 lepton_emulate::mm256_mask_cvtepi32_epi8
#define _mm256_mask_cvtepi32_epi16 lepton_emulate::mm256_mask_cvtepi32_epi16
#define _mm256_mask_cvtsepi16_epi8 lepton_emulate::mm256_mask_cvtsepi16_epi8
#define _mm256_mask_cvtsepi32_epi8 lepton_emulate::mm256_mask_cvtsepi32_epi8
#define _mm256_mask_cvtsepi32_epi16 lepton_emulate::mm256_mask_cvtsepi32_epi16
#define _mm256_mask_cvtusepi16_epi8 lepton_emulate::mm256_mask_cvtusepi16_epi8
#define _mm256_mask_cvtusepi32_epi8 lepton_emulate::mm256_mask_cvtusepi32_epi8
#define _mm256_mask_cvtusepi32_epi16 lepton_emulate::mm256_mask_cvtusepi32_epi16
#define _mm256_maskz_cvtepi16_epi8 lepton_emulate::mm256_maskz_cvtepi16_epi8
#define _mm256_maskz_cvtepi32_epi8 lepton_emulate::mm256_maskz_cvtepi32_epi8
#define _mm256_maskz_cvtepi32_epi16 lepton_emulate::mm256_maskz_cvtepi32_epi16
#define _mm256_maskz_cvtsepi16_epi8 lepton_emulate::mm256_maskz_cvtsepi16_epi8
#define _mm256_maskz_cvtsepi32_epi8 lepton_emulate::mm256_maskz_cvtsepi32_epi8
#define _mm256_maskz_cvtsepi32_epi16 lepton_emulate::mm256_maskz_cvtsepi32_epi16
#define _mm256_maskz_cvtusepi16_epi8 lepton_emulate::mm256_maskz_cvtusepi16_epi8
#define _mm256_maskz_cvtusepi32_epi8 lepton_emulate::mm256_maskz_cvtusepi32_epi8
#define _mm256_maskz_cvtusepi32_epi16 lepton_emulate::mm256_maskz_cvtusepi32_epi16
#define _mm256_mask_cvtepi16_storeu_epi8 lepton_emulate::mm256_mask_cvtepi16_storeu_epi8
#define _mm256_mask_cvtepi32_storeu_epi8 lepton_emulate::mm256_mask_cvtepi32_storeu_epi8
#define _mm256_mask_cvtepi32_storeu_epi16 lepton_emulate::mm256_mask_cvtepi32_storeu_epi16
#define _mm256_mask_cvtsepi16_storeu_epi8 lepton_emulate::mm256_mask_cvtsepi16_storeu_epi8
#define _mm256_mask_cvtsepi32_storeu_epi8 lepton_emulate::mm256_mask_cvtsepi32_storeu_epi8
#define _mm256_mask_cvtsepi32_storeu_epi16 lepton_emulate::mm256_mask_cvtsepi32_storeu_epi16
#define _mm256_mask_cvtusepi16_storeu_epi8 lepton_emulate::mm256_mask_cvtusepi16_storeu_epi8
#define _mm256_mask_cvtusepi32_storeu_epi8 lepton_emulate::mm256_mask_cvtusepi32_storeu_epi8
#define _mm256_mask_cvtusepi32_storeu_epi16 lepton_emulate::mm256_mask_cvtusepi32_storeu_epi16
LEPTON_EMULATE_NARROW(mm, __m128i, __m128i, 16, 8)
LEPTON_EMULATE_NARROW(mm, __m128i, __m128i, 32, 8)
#define _mm_cvtepi16_epi8 lepton_emulate::mm_cvtepi16_epi8
#define _mm_cvtepi32_epi8 lepton_emulate::mm_cvtepi32_epi8
#define _mm_cvtsepi16_epi8 lepton_emulate::mm_cvtsepi16_epi8
#define _mm_cvtsepi32_epi8 lepton_emulate::mm_cvtsepi32_epi8
#define _mm_cvtusepi16_epi8 lepton_emulate::mm_cvtusepi16_epi8
#define _mm_cvtusepi32_epi8 lepton_emulate::mm_cvtusepi32_epi8
#define _mm_mask_cvtepi16_epi8 lepton_emulate::mm_mask_cvtepi16_epi8
#define _mm_mask_cvtepi32_epi8 lepton_emulate::mm_mask_cvtepi32_epi8
#define _mm_mask_cvtsepi16_epi8 lepton_emulate::mm_mask_cvtsepi16_epi8
#define _mm_mask_cvtsepi32_epi8 lepton_emulate::mm_mask_cvtsepi32_epi8
#define _mm_mask_cvtusepi16_epi8 lepton_emulate::mm_mask_cvtusepi16_epi8
#define _mm_mask_cvtusepi32_epi8 lepton_emulate::mm_mask_cvtusepi32_epi8
#define _mm_mask_cvtepi16_storeu_epi8 lepton_emulate::mm_mask_cvtepi16_storeu_epi8
#define _mm_mask_cvtepi32_storeu_epi8 lepton_emulate::mm_mask_cvtepi32_storeu_epi8
#define _mm_mask_cvtsepi16_storeu_epi8 lepton_emulate::mm_mask_cvtsepi16_storeu_epi8
#define _mm_mask_cvtsepi32_storeu_epi8 lepton_emulate::mm_mask_cvtsepi32_storeu_epi8
#define _mm_mask_cvtusepi16_storeu_epi8 lepton_emulate::mm_mask_cvtusepi16_storeu_epi8
#define _mm_mask_cvtusepi32_storeu_epi8 lepton_emulate::mm_mask_cvtusepi32_storeu_epi8

static inline float mm512_cvtss_f32(const m512& a) { return a.lane[0]; }
static inline double mm512_cvtsd_f64(const m512d& a) { return a.lane[0]; }
static inline int mm512_cvtsi512_si32(const m512i& a) { return a.lane[0]; }
#define _mm512_cvtss_f32 lepton_emulate::mm512_cvtss_f32
#define _mm512_cvtsd_f64 lepton_emulate::mm512_cvtsd_f64
#define _mm512_cvtsi512_si32 lepton_emulate::mm512_cvtsi512_si32

}  // namespace lepton_emulate
#pragma GCC pop_options
