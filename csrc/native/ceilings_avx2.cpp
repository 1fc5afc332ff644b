// Ceilings of AVX2. The loops are written out: from intrinsics the compiler would compute each
// product once, and what keeps it from that makes gcc 12 spill the sums.
#include "cpu/intrinsics.h"
#include "cpu/target.h"
#include "native/ceilings.h"

#if defined(__x86_64__)

LEPTON_TARGET_BEGIN_AVX2
namespace lepton::ceilings {
namespace {

// Four cycles of latency on two ports need eight chains; two more hide scheduling accidents.
constexpr int kChains = 10;

double fp32_avx2(int64_t steps) {
  const __m256 a = _mm256_set1_ps(1.0f);
  const __m256 b = _mm256_set1_ps(1e-6f);
  int64_t left = steps;
  __asm__ volatile(
      "vxorps %%ymm4, %%ymm4, %%ymm4\n"
      "vxorps %%ymm5, %%ymm5, %%ymm5\n"
      "vxorps %%ymm6, %%ymm6, %%ymm6\n"
      "vxorps %%ymm7, %%ymm7, %%ymm7\n"
      "vxorps %%ymm8, %%ymm8, %%ymm8\n"
      "vxorps %%ymm9, %%ymm9, %%ymm9\n"
      "vxorps %%ymm10, %%ymm10, %%ymm10\n"
      "vxorps %%ymm11, %%ymm11, %%ymm11\n"
      "vxorps %%ymm12, %%ymm12, %%ymm12\n"
      "vxorps %%ymm13, %%ymm13, %%ymm13\n"
      "1:\n"
      "vfmadd231ps %2, %1, %%ymm4\n"
      "vfmadd231ps %2, %1, %%ymm5\n"
      "vfmadd231ps %2, %1, %%ymm6\n"
      "vfmadd231ps %2, %1, %%ymm7\n"
      "vfmadd231ps %2, %1, %%ymm8\n"
      "vfmadd231ps %2, %1, %%ymm9\n"
      "vfmadd231ps %2, %1, %%ymm10\n"
      "vfmadd231ps %2, %1, %%ymm11\n"
      "vfmadd231ps %2, %1, %%ymm12\n"
      "vfmadd231ps %2, %1, %%ymm13\n"
      "dec %0\n"
      "jnz 1b\n"
      : "+r"(left)
      : "x"(a), "x"(b)
      : "cc", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",
        "xmm12", "xmm13");
  return 2.0 * 8 * kChains * static_cast<double>(steps);
}

// The exact path of our kernels: bytes widened to 16 bits, since vpmaddubsw saturates.
double int8_avx2(int64_t steps) {
  const __m256i a = _mm256_set1_epi16(3);
  const __m256i b = _mm256_set1_epi16(-5);
  int64_t left = steps;
  __asm__ volatile(
      "vpxor %%ymm4, %%ymm4, %%ymm4\n"
      "vpxor %%ymm5, %%ymm5, %%ymm5\n"
      "vpxor %%ymm6, %%ymm6, %%ymm6\n"
      "vpxor %%ymm7, %%ymm7, %%ymm7\n"
      "vpxor %%ymm8, %%ymm8, %%ymm8\n"
      "vpxor %%ymm9, %%ymm9, %%ymm9\n"
      "vpxor %%ymm10, %%ymm10, %%ymm10\n"
      "vpxor %%ymm11, %%ymm11, %%ymm11\n"
      "vpxor %%ymm12, %%ymm12, %%ymm12\n"
      "vpxor %%ymm13, %%ymm13, %%ymm13\n"
      "1:\n"
      "vpmaddwd %2, %1, %%ymm2\n"
      "vpaddd %%ymm2, %%ymm4, %%ymm4\n"
      "vpmaddwd %2, %1, %%ymm3\n"
      "vpaddd %%ymm3, %%ymm5, %%ymm5\n"
      "vpmaddwd %2, %1, %%ymm2\n"
      "vpaddd %%ymm2, %%ymm6, %%ymm6\n"
      "vpmaddwd %2, %1, %%ymm3\n"
      "vpaddd %%ymm3, %%ymm7, %%ymm7\n"
      "vpmaddwd %2, %1, %%ymm2\n"
      "vpaddd %%ymm2, %%ymm8, %%ymm8\n"
      "vpmaddwd %2, %1, %%ymm3\n"
      "vpaddd %%ymm3, %%ymm9, %%ymm9\n"
      "vpmaddwd %2, %1, %%ymm2\n"
      "vpaddd %%ymm2, %%ymm10, %%ymm10\n"
      "vpmaddwd %2, %1, %%ymm3\n"
      "vpaddd %%ymm3, %%ymm11, %%ymm11\n"
      "vpmaddwd %2, %1, %%ymm2\n"
      "vpaddd %%ymm2, %%ymm12, %%ymm12\n"
      "vpmaddwd %2, %1, %%ymm3\n"
      "vpaddd %%ymm3, %%ymm13, %%ymm13\n"
      "dec %0\n"
      "jnz 1b\n"
      : "+r"(left)
      : "x"(a), "x"(b)
      : "cc", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",
        "xmm12", "xmm13");
  return 2.0 * 16 * kChains * static_cast<double>(steps);
}

// Four streams keep more lines in flight than one: a prefetcher follows each.
void read_avx2(const char* data, size_t bytes) {
  constexpr int kStreams = 4;
  const size_t part = bytes / kStreams;
  for (size_t i = 0; i < part; i += 64) {
    for (int s = 0; s < kStreams; ++s) {
      const char* p = data + s * part + i;
      __m256i low = _mm256_load_si256(reinterpret_cast<const __m256i*>(p));
      __m256i high = _mm256_load_si256(reinterpret_cast<const __m256i*>(p + 32));
      __asm__ volatile("" : : "x"(low), "x"(high));
    }
  }
}

}  // namespace
}  // namespace lepton::ceilings
LEPTON_TARGET_END

namespace lepton::ceilings {
const Level kAvx2Level = {"avx2", isa::kAvx2Level, fp32_avx2, nullptr, int8_avx2, read_avx2};
}  // namespace lepton::ceilings

#else

namespace lepton::ceilings {
const Level kAvx2Level = {"avx2", isa::kAvx2Level, nullptr, nullptr, nullptr, nullptr};
}  // namespace lepton::ceilings

#endif
