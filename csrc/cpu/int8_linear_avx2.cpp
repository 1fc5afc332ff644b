// int8 kernels for AVX2. vpmaddubsw saturates its 16-bit sums, so bytes are widened to 16 bits and
// multiplied by vpmaddwd, whose sums of two products always fit 32 bits.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/int8_kernels.h"
#include "cpu/intrinsics.h"
#include "cpu/target.h"

#if defined(__x86_64__)

LEPTON_TARGET_BEGIN_AVX2
#include "cpu/simd_avx2.h"

#include "cpu/activation.h"

#include "cpu/int8_quantize.h"

#include "cpu/int8_epilogue.h"

#include "cpu/int8_driver.h"

#include "cpu/int8_weight_only.h"

namespace lepton {
namespace {

struct Int16Operand {
  using type = int16_t;
  static __m128i narrow(I32 q) {
    return _mm_packs_epi32(_mm256_castsi256_si128(q.v), _mm256_extracti128_si256(q.v, 1));
  }
  static void store(int16_t* p, I32 q) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow(q));
  }
  static void store_n(int16_t* p, I32 q, int n) {
    store_u16_n(reinterpret_cast<uint16_t*>(p), narrow(q), n);
  }
  static void store_x4(int16_t* p, I32 a, I32 b, I32 c, I32 d) {
    store(p, a);
    store(p + 8, b);
    store(p + 16, c);
    store(p + 24, d);
  }
};

constexpr int64_t kPrefetchBytes = 4096;

// Four columns: sums of (k0, k1) and of (k2, k3) side by side.
inline __m256i widened(const int8_t* b) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(b)));
}

inline __m256i four_of_row(const int16_t* a) {
  int64_t quad;
  std::memcpy(&quad, a, sizeof quad);
  return _mm256_set1_epi64x(quad);
}

// Adds the two halves of each column of two vectors: eight columns in order.
inline __m256i join_columns(__m256i low, __m256i high) {
  return _mm256_permute4x64_epi64(_mm256_hadd_epi32(low, high), 0xD8);
}

inline void store_columns(int32_t* c, __m256i low, __m256i high, bool accumulate) {
  __m256i sum = join_columns(low, high);
  __m256i* to = reinterpret_cast<__m256i*>(c);
  if (accumulate) sum = _mm256_add_epi32(sum, _mm256_loadu_si256(to));
  _mm256_storeu_si256(to, sum);
}

// height x 4 * vectors columns; 12 sums at most stay in registers.
template <int height, int vectors>
void multiply_rows(const int16_t* a, int64_t a_stride, const int8_t* b, int64_t k, int32_t* c,
                   int ldc, bool accumulate) {
  __m256i sum[height][vectors];
  for (int r = 0; r < height; ++r) {
    for (int v = 0; v < vectors; ++v) sum[r][v] = _mm256_setzero_si256();
  }
  for (int64_t i = 0; i < k; i += 4) {
    // Hardware prefetching alone leaves a stream from memory at half its rate or less.
    _mm_prefetch(reinterpret_cast<const char*>(b + i * kStrip + kPrefetchBytes), _MM_HINT_T0);
    __m256i w[vectors];
    for (int v = 0; v < vectors; ++v) w[v] = widened(b + i * kStrip + v * 16);
    for (int r = 0; r < height; ++r) {
      const __m256i x = four_of_row(a + r * a_stride + i);
      for (int v = 0; v < vectors; ++v) {
        __m256i next = sum[r][v];
        // As assembly: left to itself, gcc starts all products before the first sum and spills.
        __asm__ volatile("vpaddd %1, %0, %0" : "+x"(next) : "x"(_mm256_madd_epi16(x, w[v])));
        sum[r][v] = next;
      }
    }
  }
  for (int r = 0; r < height; ++r) {
    for (int v = 0; v < vectors; v += 2) {
      store_columns(c + r * ldc + v * 4, sum[r][v], sum[r][v + 1], accumulate);
    }
  }
}

struct Avx2Tile {
  using operand = int16_t;
  static constexpr int strips = 1;
  static constexpr int64_t k_chunk = 1024;  // 16 KiB of weights
  static constexpr int32_t zero_shift = 0;
  static constexpr int64_t block_bytes = 256 * 1024;
  static int rows() { return 6; }

  static void tile(const int16_t* a, int64_t a_stride, int rows, const int8_t* b, int64_t, int,
                   int64_t k, int32_t* c, int ldc, bool accumulate) {
    switch (rows) {
      case 1: return multiply_rows<1, 4>(a, a_stride, b, k, c, ldc, accumulate);
      case 2: return multiply_rows<2, 4>(a, a_stride, b, k, c, ldc, accumulate);
      case 3: return halves<3>(a, a_stride, b, k, c, ldc, accumulate);
      case 4: return halves<4>(a, a_stride, b, k, c, ldc, accumulate);
      case 5: return halves<5>(a, a_stride, b, k, c, ldc, accumulate);
      default: return halves<6>(a, a_stride, b, k, c, ldc, accumulate);
    }
  }

 private:
  // Eight columns at a time: 6 x 2 sums, two weights, a row and a product fill the 16 registers.
  template <int height>
  static void halves(const int16_t* a, int64_t a_stride, const int8_t* b, int64_t k, int32_t* c,
                     int ldc, bool accumulate) {
    multiply_rows<height, 2>(a, a_stride, b, k, c, ldc, accumulate);
    multiply_rows<height, 2>(a, a_stride, b + 32, k, c + 8, ldc, accumulate);
  }
};

void linear(const Int8Linear& p, const Int8Block& block) {
  Avx2Tile tile;
  Int8Driver<Avx2Tile>(p, block, tile).run();
}

}  // namespace

const Int8Kernels kInt8Avx2 = {
    "avx2",
    2,
    0,
    quantize_rows<Int16Operand>,
    quantize_rows<Int8Operand>,
    widen_rows,
    linear,
    weight_only_block,
};

}  // namespace lepton
LEPTON_TARGET_END

#endif
