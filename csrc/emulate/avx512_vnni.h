// Dot products: VPMADD, VNNI, BF16.
#pragma once
#include "avx512_convert.h"

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
namespace lepton_emulate {

// Pairs of 16-bit lanes; only -32768 * -32768 twice overflows, and it wraps.
static inline m512i mm512_madd_epi16(const m512i& a_, const m512i& b_) {
  const auto a = lanes<std::int16_t>(a_), b = lanes<std::int16_t>(b_);
  Pack<std::uint32_t, 16> r;
  for (int i = 0; i < 16; ++i)
    r.at[i] = static_cast<std::uint32_t>(a.at[2 * i] * b.at[2 * i]) +
              static_cast<std::uint32_t>(a.at[2 * i + 1] * b.at[2 * i + 1]);
  return join<m512i>(r);
}
// Unsigned times signed bytes, pairs added and saturated to 16 bits.
static inline m512i mm512_maddubs_epi16(const m512i& a_, const m512i& b_) {
  const auto a = lanes<std::uint8_t>(a_);
  const auto b = lanes<std::int8_t>(b_);
  Pack<std::int16_t, 32> r;
  for (int i = 0; i < 32; ++i)
    r.at[i] = saturate<std::int16_t>(a.at[2 * i] * b.at[2 * i] + a.at[2 * i + 1] * b.at[2 * i + 1]);
  return join<m512i>(r);
}
LEPTON_EMULATE_MASKED2(mm512, madd_epi16, m512i, std::int32_t, const m512i&, const m512i&)
LEPTON_EMULATE_MASKED2(mm512, maddubs_epi16, m512i, std::int16_t, const m512i&, const m512i&)
#define _mm512_madd_epi16 lepton_emulate::mm512_madd_epi16
#define _mm512_maddubs_epi16 lepton_emulate::mm512_maddubs_epi16
#define _mm512_mask_madd_epi16 lepton_emulate::mm512_mask_madd_epi16
#define _mm512_mask_maddubs_epi16 lepton_emulate::mm512_mask_maddubs_epi16
#define _mm512_maskz_madd_epi16 lepton_emulate::mm512_maskz_madd_epi16
#define _mm512_maskz_maddubs_epi16 lepton_emulate::mm512_maskz_maddubs_epi16

// VPDPBUSD, VPDPWSSD: all products exact, their sum added to 32 bits, wrapping or (the S forms)
// saturating once.
#define LEPTON_EMULATE_DOT(W, NAME, V, A, B, PER, FINISH)                               \
  static inline V W##_##NAME(const V& src, const V& a_, const V& b_) {                  \
    const auto c = lanes<std::int32_t>(src);                                            \
    const auto a = lanes<A>(a_);                                                        \
    const auto b = lanes<B>(b_);                                                        \
    Pack<std::int32_t, c.size> r;                                                       \
    for (int i = 0; i < r.size; ++i) {                                                  \
      std::int64_t sum = c.at[i];                                                       \
      for (int j = 0; j < (PER); ++j) sum += a.at[(PER) * i + j] * b.at[(PER) * i + j]; \
      r.at[i] = FINISH<std::int32_t>(sum);                                              \
    }                                                                                   \
    return join<V>(r);                                                                  \
  }                                                                                     \
  static inline V W##_mask_##NAME(const V& src, mask_t<int, sizeof(V)> k, const V& a,   \
                                  const V& b) {                                         \
    return select<std::int32_t>(k, W##_##NAME(src, a, b), src);                         \
  }                                                                                     \
  static inline V W##_maskz_##NAME(mask_t<int, sizeof(V)> k, const V& src, const V& a,  \
                                   const V& b) {                                        \
    return select<std::int32_t>(k, W##_##NAME(src, a, b), zero<V>());                   \
  }
#define LEPTON_EMULATE_DOTS(W, V)                                                    \
  LEPTON_EMULATE_DOT(W, dpbusd_epi32, V, std::uint8_t, std::int8_t, 4, static_cast)  \
  LEPTON_EMULATE_DOT(W, dpbusds_epi32, V, std::uint8_t, std::int8_t, 4, saturate)    \
  LEPTON_EMULATE_DOT(W, dpwssd_epi32, V, std::int16_t, std::int16_t, 2, static_cast) \
  LEPTON_EMULATE_DOT(W, dpwssds_epi32, V, std::int16_t, std::int16_t, 2, saturate)
LEPTON_EMULATE_DOTS(mm512, m512i)
LEPTON_EMULATE_DOTS(mm256, __m256i)
LEPTON_EMULATE_DOTS(mm, __m128i)
#define _mm512_dpbusd_epi32 lepton_emulate::mm512_dpbusd_epi32
#define _mm512_dpbusds_epi32 lepton_emulate::mm512_dpbusds_epi32
#define _mm512_dpwssd_epi32 lepton_emulate::mm512_dpwssd_epi32
#define _mm512_dpwssds_epi32 lepton_emulate::mm512_dpwssds_epi32
#define _mm512_mask_dpbusd_epi32 lepton_emulate::mm512_mask_dpbusd_epi32
#define _mm512_mask_dpbusds_epi32 lepton_emulate::mm512_mask_dpbusds_epi32
#define _mm512_mask_dpwssd_epi32 lepton_emulate::mm512_mask_dpwssd_epi32
#define _mm512_mask_dpwssds_epi32 lepton_emulate::mm512_mask_dpwssds_epi32
#define _mm512_maskz_dpbusd_epi32 lepton_emulate::mm512_maskz_dpbusd_epi32
#define _mm512_maskz_dpbusds_epi32 lepton_emulate::mm512_maskz_dpbusds_epi32
#define _mm512_maskz_dpwssd_epi32 lepton_emulate::mm512_maskz_dpwssd_epi32
#define _mm512_maskz_dpwssds_epi32 lepton_emulate::mm512_maskz_dpwssds_epi32
#undef _mm256_dpbusd_epi32
#define _mm256_dpbusd_epi32 lepton_emulate::mm256_dpbusd_epi32
#undef _mm256_dpbusds_epi32
#define _mm256_dpbusds_epi32 lepton_emulate::mm256_dpbusds_epi32
#undef _mm256_dpwssd_epi32
#define _mm256_dpwssd_epi32 lepton_emulate::mm256_dpwssd_epi32
#undef _mm256_dpwssds_epi32
#define _mm256_dpwssds_epi32 lepton_emulate::mm256_dpwssds_epi32
#define _mm256_mask_dpbusd_epi32 lepton_emulate::mm256_mask_dpbusd_epi32
#define _mm256_mask_dpbusds_epi32 lepton_emulate::mm256_mask_dpbusds_epi32
#define _mm256_mask_dpwssd_epi32 lepton_emulate::mm256_mask_dpwssd_epi32
#define _mm256_mask_dpwssds_epi32 lepton_emulate::mm256_mask_dpwssds_epi32
#define _mm256_maskz_dpbusd_epi32 lepton_emulate::mm256_maskz_dpbusd_epi32
#define _mm256_maskz_dpbusds_epi32 lepton_emulate::mm256_maskz_dpbusds_epi32
#define _mm256_maskz_dpwssd_epi32 lepton_emulate::mm256_maskz_dpwssd_epi32
#define _mm256_maskz_dpwssds_epi32 lepton_emulate::mm256_maskz_dpwssds_epi32
#undef _mm_dpbusd_epi32
#define _mm_dpbusd_epi32 lepton_emulate::mm_dpbusd_epi32
#undef _mm_dpbusds_epi32
#define _mm_dpbusds_epi32 lepton_emulate::mm_dpbusds_epi32
#undef _mm_dpwssd_epi32
#define _mm_dpwssd_epi32 lepton_emulate::mm_dpwssd_epi32
#undef _mm_dpwssds_epi32
#define _mm_dpwssds_epi32 lepton_emulate::mm_dpwssds_epi32
#define _mm_mask_dpbusd_epi32 lepton_emulate::mm_mask_dpbusd_epi32
#define _mm_mask_dpbusds_epi32 lepton_emulate::mm_mask_dpbusds_epi32
#define _mm_mask_dpwssd_epi32 lepton_emulate::mm_mask_dpwssd_epi32
#define _mm_mask_dpwssds_epi32 lepton_emulate::mm_mask_dpwssds_epi32
#define _mm_maskz_dpbusd_epi32 lepton_emulate::mm_maskz_dpbusd_epi32
#define _mm_maskz_dpbusds_epi32 lepton_emulate::mm_maskz_dpbusds_epi32
#define _mm_maskz_dpwssd_epi32 lepton_emulate::mm_maskz_dpwssd_epi32
#define _mm_maskz_dpwssds_epi32 lepton_emulate::mm_maskz_dpwssds_epi32

// While one lives, SSE arithmetic rounds to nearest even, reads denormals as zeros and flushes
// denormal results, with every exception masked: how the BF16 and AMX instructions compute without
// looking at MXCSR. The arithmetic must sit in a function that is not inlined, or the compiler may
// move it out of the scope.
class FlushDenormals {
 public:
  FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(0x9FC0); }
  ~FlushDenormals() { _mm_setcsr(saved_); }
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
  unsigned saved_;
};

// VDPBF16PS (SDM): per lane two fused multiply-adds in turn, the odd element first.
[[maybe_unused]] __attribute__((noinline)) static void dot_bf16(float* c, const std::uint16_t* a,
                                                                const std::uint16_t* b, int n) {
  for (int i = 0; i < n; ++i)
    for (int j = 1; j >= 0; --j)
      c[i] = __builtin_fmaf(float_of(std::uint32_t{a[2 * i + j]} << 16),
                            float_of(std::uint32_t{b[2 * i + j]} << 16), c[i]);
}
#define LEPTON_EMULATE_DOT_BF16(W, V, B)                                                    \
  static inline V W##_dpbf16_ps(const V& src, const B& a_, const B& b_) {                   \
    auto c = lanes<float>(src);                                                             \
    const auto a = lanes<std::uint16_t>(a_), b = lanes<std::uint16_t>(b_);                  \
    {                                                                                       \
      const FlushDenormals scope;                                                           \
      dot_bf16(c.at, a.at, b.at, c.size);                                                   \
    }                                                                                       \
    return join<V>(c);                                                                      \
  }                                                                                         \
  static inline V W##_mask_dpbf16_ps(const V& src, mask_t<float, sizeof(V)> k, const B& a,  \
                                     const B& b) {                                          \
    return select<float>(k, W##_dpbf16_ps(src, a, b), src);                                 \
  }                                                                                         \
  static inline V W##_maskz_dpbf16_ps(mask_t<float, sizeof(V)> k, const V& src, const B& a, \
                                      const B& b) {                                         \
    return select<float>(k, W##_dpbf16_ps(src, a, b), zero<V>());                           \
  }
LEPTON_EMULATE_DOT_BF16(mm512, m512, m512bh)
LEPTON_EMULATE_DOT_BF16(mm256, __m256, __m256bh)
#define _mm512_dpbf16_ps lepton_emulate::mm512_dpbf16_ps
#define _mm512_mask_dpbf16_ps lepton_emulate::mm512_mask_dpbf16_ps
#define _mm512_maskz_dpbf16_ps lepton_emulate::mm512_maskz_dpbf16_ps
#define _mm256_dpbf16_ps lepton_emulate::mm256_dpbf16_ps
#define _mm256_mask_dpbf16_ps lepton_emulate::mm256_mask_dpbf16_ps
#define _mm256_maskz_dpbf16_ps lepton_emulate::mm256_maskz_dpbf16_ps

}  // namespace lepton_emulate
#pragma GCC pop_options
