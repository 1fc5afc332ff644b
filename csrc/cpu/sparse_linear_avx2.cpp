// Sparse kernels for AVX2, which has no expand: eight values at a time are spread by a shuffle that
// a table gives for their eight mask bits.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/int8_kernels.h"
#include "cpu/intrinsics.h"
#include "cpu/sparse_kernels.h"
#include "cpu/target.h"

#if defined(__x86_64__)

LEPTON_TARGET_BEGIN_AVX2
#include "cpu/simd_avx2.h"

#include "cpu/activation.h"

#include "cpu/int8_quantize.h"

#include "cpu/int8_epilogue.h"

#include "cpu/sparse_panel.h"

namespace {

// For each mask of eight bits, where each kept value comes from; 0x80 where none is kept, which
// vpshufb turns into zero.
struct ExpandTable {
  uint8_t low[256][8];   // from the lower half of a vector
  uint8_t high[256][8];  // from the upper half

  constexpr ExpandTable() : low{}, high{} {
    for (int mask = 0; mask < 256; ++mask) {
      uint8_t next = 0;
      for (int i = 0; i < 8; ++i) {
        const bool kept = mask >> i & 1;
        low[mask][i] = kept ? next : uint8_t{0x80};
        high[mask][i] = kept ? static_cast<uint8_t>(next + 8) : uint8_t{0x80};
        next = static_cast<uint8_t>(next + kept);
      }
    }
  }
};
alignas(64) constexpr ExpandTable kExpand;

template <DType dtype>
inline F32 expand_eight_floats(uint32_t mask, const uint8_t*& values) {
  const F32 next = load_float(values, dtype, 0, F32::width);
  values += __builtin_popcount(mask) * (dtype == DType::f32 ? 4 : 2);
  // The sign of an entry of 0x80 chooses zero.
  const __m256i from =
      _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(kExpand.low[mask])));
  return {_mm256_blendv_ps(_mm256_permutevar8x32_ps(next.v, from), _mm256_setzero_ps(),
                           _mm256_castsi256_ps(from))};
}

template <DType dtype>
inline void expand_strip_column(uint32_t mask, const uint8_t*& values, F32* w) {
  w[0] = expand_eight_floats<dtype>(mask & 0xFF, values);
  w[1] = expand_eight_floats<dtype>(mask >> 8, values);
}

}  // namespace

#include "cpu/sparse_float.h"

#define LEPTON_TRANSPOSE_8X8
#include "cpu/attention_transpose.h"

#include "cpu/sparse_float_lists.h"

namespace lepton {
namespace {

inline __m128i load_halves(const void* low, const void* high) {
  const __m128i first = _mm_loadl_epi64(static_cast<const __m128i*>(low));
  return _mm_castpd_si128(_mm_loadh_pd(_mm_castsi128_pd(first), static_cast<const double*>(high)));
}

// The next 16 weights; moves the pointer on.
inline __m128i expand_sixteen(const uint8_t* pattern, const int8_t*& values) {
  const uint32_t low = pattern[0], high = pattern[1];
  const int8_t* second = values + __builtin_popcount(low);
  const __m128i next = load_halves(values, second);
  values = second + __builtin_popcount(high);
  return _mm_shuffle_epi8(next, load_halves(kExpand.low[low], kExpand.high[high]));
}

inline __m256i expand_eight_rows(const uint8_t* pattern, const int8_t*& values) {
  const __m128i low = expand_sixteen(pattern, values);
  return _mm256_inserti128_si256(_mm256_castsi128_si256(low), expand_sixteen(pattern + 2, values),
                                 1);
}

inline __m256i widened(const uint8_t* b) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(b)));
}

struct Avx2Tile {
  using operand = int16_t;
  static constexpr int32_t zero_shift = 0;
  static constexpr int32_t few_zero_shift = 0;
  static constexpr int few_strips = 1;

  template <int height>
  static void rows(const int16_t* a, int64_t a_stride, const BlockList& list, int64_t blocks,
                   int32_t* c) {
    if constexpr (height <= 2) {
      columns<height, 4>(a, a_stride, list, blocks, 0, c);
    } else {
      // Eight columns at a time: 6 x 2 sums, two weights, a row and a product fill the registers.
      columns<height, 2>(a, a_stride, list, blocks, 0, c);
      columns<height, 2>(a, a_stride, list, blocks, 32, c + 8);
    }
  }

  // vpmaddubsw takes the magnitude of x and the weight with the sign of x. Its sums of two products
  // stay within 2 * 127 * 127 and do not saturate: neither side is ever -128.
  template <int rows, int>
  static void few(const SparseLinear& p, int64_t m, int64_t strip, int32_t* c) {
    const int64_t k_all = p.dense.layout.row_padded;
    const uint8_t* pattern = p.pattern + strip * 2 * k_all;
    const int8_t* values = static_cast<const int8_t*>(p.values) + p.offsets[strip];
    const int8_t* a = static_cast<const int8_t*>(p.dense.a) + m * p.dense.a_stride;
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i sum[rows][2];
    for (int r = 0; r < rows; ++r) sum[r][0] = sum[r][1] = _mm256_setzero_si256();
    for (int64_t k = 0; k < k_all; k += 4, pattern += 8) {
      const __m256i low = expand_eight_rows(pattern, values);
      const __m256i high = expand_eight_rows(pattern + 4, values);
      for (int r = 0; r < rows; ++r) {
        int32_t quad;
        std::memcpy(&quad, a + r * p.dense.a_stride + k, sizeof quad);
        const __m256i x = _mm256_set1_epi32(quad), magnitude = _mm256_abs_epi8(x);
        const __m256i pairs_low = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(low, x));
        const __m256i pairs_high = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(high, x));
        sum[r][0] = _mm256_add_epi32(sum[r][0], _mm256_madd_epi16(pairs_low, ones));
        sum[r][1] = _mm256_add_epi32(sum[r][1], _mm256_madd_epi16(pairs_high, ones));
      }
    }
    for (int r = 0; r < rows; ++r) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(c + r * kStrip), sum[r][0]);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(c + r * kStrip + 8), sum[r][1]);
    }
  }

 private:
  // height x 4 * vectors columns, from byte `at` of each block.
  template <int height, int vectors>
  static void columns(const int16_t* a, int64_t a_stride, const BlockList& list, int64_t blocks,
                      int at, int32_t* c) {
    __m256i sum[height][vectors];
    for (int r = 0; r < height; ++r) {
      for (int v = 0; v < vectors; ++v) sum[r][v] = _mm256_setzero_si256();
    }
    for (int64_t b = 0; b < blocks; ++b) {
      __m256i w[vectors];
      for (int v = 0; v < vectors; ++v) w[v] = widened(list.values + b * 64 + at + v * 16);
      const int16_t* x = a + int64_t{list.index[b]} * 4;
      for (int r = 0; r < height; ++r) {
        int64_t quad;
        std::memcpy(&quad, x + r * a_stride, sizeof quad);
        const __m256i xr = _mm256_set1_epi64x(quad);
        for (int v = 0; v < vectors; ++v) {
          __m256i next = sum[r][v];
          // As assembly: left to itself, gcc starts all products before the first sum and spills.
          __asm__ volatile("vpaddd %1, %0, %0" : "+x"(next) : "x"(_mm256_madd_epi16(xr, w[v])));
          sum[r][v] = next;
        }
      }
    }
    for (int r = 0; r < height; ++r) {
      for (int v = 0; v < vectors; v += 2) {
        // Each column has two neighbouring sums.
        const __m256i joined =
            _mm256_permute4x64_epi64(_mm256_hadd_epi32(sum[r][v], sum[r][v + 1]), 0xD8);
        __m256i* to = reinterpret_cast<__m256i*>(c + r * kPanelColumns + v * 4);
        _mm256_storeu_si256(to, _mm256_add_epi32(_mm256_loadu_si256(to), joined));
      }
    }
  }
};

void expand_int8(const SparseLinear& p, int64_t strip, int8_t* tiles) {
  const int64_t k_all = p.dense.layout.row_padded;
  const uint8_t* pattern = p.pattern + strip * 2 * k_all;
  const int8_t* values = static_cast<const int8_t*>(p.values) + p.offsets[strip];
  for (int64_t k = 0; k < k_all; k += 2, pattern += 4) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(tiles + k * kStrip),
                        expand_eight_rows(pattern, values));
  }
}

}  // namespace

const SparseKernels kSparseAvx2 = {
    "avx2",        &kInt8Avx2,
    true,          int8_few<Avx2Tile>,
    expand_int8,   run_panels<Int8BlockSource<Avx2Tile>>,
    float_bitmask, float_block,
};

}  // namespace lepton
LEPTON_TARGET_END

#endif
