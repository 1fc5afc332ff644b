// Ceilings of AVX-512 with VNNI; the loops are written out, see ceilings_avx2.cpp.
#include "cpu/intrinsics.h"
#include "cpu/target.h"
#include "native/ceilings.h"

#if defined(__x86_64__) && !defined(LEPTON_EMULATE_ISA)

LEPTON_TARGET_BEGIN_AVX512
namespace lepton::ceilings {
namespace {

// Five cycles of latency (vpdpbusd) on two ports need ten chains.
constexpr int kChains = 12;

double fp32_avx512(int64_t steps) {
  const __m512 a = _mm512_set1_ps(1.0f);
  const __m512 b = _mm512_set1_ps(1e-6f);
  int64_t left = steps;
  __asm__ volatile(
      "vpxord %%zmm2, %%zmm2, %%zmm2\n"
      "vpxord %%zmm3, %%zmm3, %%zmm3\n"
      "vpxord %%zmm4, %%zmm4, %%zmm4\n"
      "vpxord %%zmm5, %%zmm5, %%zmm5\n"
      "vpxord %%zmm6, %%zmm6, %%zmm6\n"
      "vpxord %%zmm7, %%zmm7, %%zmm7\n"
      "vpxord %%zmm8, %%zmm8, %%zmm8\n"
      "vpxord %%zmm9, %%zmm9, %%zmm9\n"
      "vpxord %%zmm10, %%zmm10, %%zmm10\n"
      "vpxord %%zmm11, %%zmm11, %%zmm11\n"
      "vpxord %%zmm12, %%zmm12, %%zmm12\n"
      "vpxord %%zmm13, %%zmm13, %%zmm13\n"
      "1:\n"
      "vfmadd231ps %2, %1, %%zmm2\n"
      "vfmadd231ps %2, %1, %%zmm3\n"
      "vfmadd231ps %2, %1, %%zmm4\n"
      "vfmadd231ps %2, %1, %%zmm5\n"
      "vfmadd231ps %2, %1, %%zmm6\n"
      "vfmadd231ps %2, %1, %%zmm7\n"
      "vfmadd231ps %2, %1, %%zmm8\n"
      "vfmadd231ps %2, %1, %%zmm9\n"
      "vfmadd231ps %2, %1, %%zmm10\n"
      "vfmadd231ps %2, %1, %%zmm11\n"
      "vfmadd231ps %2, %1, %%zmm12\n"
      "vfmadd231ps %2, %1, %%zmm13\n"
      "dec %0\n"
      "jnz 1b\n"
      : "+r"(left)
      : "x"(a), "x"(b)
      : "cc", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",
        "xmm12", "xmm13");
  return 2.0 * 16 * kChains * static_cast<double>(steps);
}

double int8_vnni(int64_t steps) {
  const __m512i a = _mm512_set1_epi8(3);
  const __m512i b = _mm512_set1_epi8(-5);
  int64_t left = steps;
  __asm__ volatile(
      "vpxord %%zmm2, %%zmm2, %%zmm2\n"
      "vpxord %%zmm3, %%zmm3, %%zmm3\n"
      "vpxord %%zmm4, %%zmm4, %%zmm4\n"
      "vpxord %%zmm5, %%zmm5, %%zmm5\n"
      "vpxord %%zmm6, %%zmm6, %%zmm6\n"
      "vpxord %%zmm7, %%zmm7, %%zmm7\n"
      "vpxord %%zmm8, %%zmm8, %%zmm8\n"
      "vpxord %%zmm9, %%zmm9, %%zmm9\n"
      "vpxord %%zmm10, %%zmm10, %%zmm10\n"
      "vpxord %%zmm11, %%zmm11, %%zmm11\n"
      "vpxord %%zmm12, %%zmm12, %%zmm12\n"
      "vpxord %%zmm13, %%zmm13, %%zmm13\n"
      "1:\n"
      "vpdpbusd %2, %1, %%zmm2\n"
      "vpdpbusd %2, %1, %%zmm3\n"
      "vpdpbusd %2, %1, %%zmm4\n"
      "vpdpbusd %2, %1, %%zmm5\n"
      "vpdpbusd %2, %1, %%zmm6\n"
      "vpdpbusd %2, %1, %%zmm7\n"
      "vpdpbusd %2, %1, %%zmm8\n"
      "vpdpbusd %2, %1, %%zmm9\n"
      "vpdpbusd %2, %1, %%zmm10\n"
      "vpdpbusd %2, %1, %%zmm11\n"
      "vpdpbusd %2, %1, %%zmm12\n"
      "vpdpbusd %2, %1, %%zmm13\n"
      "dec %0\n"
      "jnz 1b\n"
      : "+r"(left)
      : "x"(a), "x"(b)
      : "cc", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",
        "xmm12", "xmm13");
  return 2.0 * 64 * kChains * static_cast<double>(steps);
}

void read_avx512(const char* data, size_t bytes) {
  constexpr int kStreams = 4;
  const size_t part = bytes / kStreams;
  for (size_t i = 0; i < part; i += 64) {
    for (int s = 0; s < kStreams; ++s) {
      __m512i line = _mm512_load_si512(data + s * part + i);
      __asm__ volatile("" : : "v"(line));
    }
  }
}

}  // namespace
}  // namespace lepton::ceilings
LEPTON_TARGET_END

namespace lepton::ceilings {
const Level kVnniLevel = {"vnni", isa::kVnniLevel, fp32_avx512, nullptr, int8_vnni, read_avx512};
}  // namespace lepton::ceilings

#else

namespace lepton::ceilings {
const Level kVnniLevel = {"vnni", isa::kVnniLevel, nullptr, nullptr, nullptr, nullptr};
}  // namespace lepton::ceilings

#endif
