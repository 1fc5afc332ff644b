// Sparse kernels for AVX-512 with VNNI and VBMI2, whose vpexpandb spreads 64 bytes by a mask.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/int8_kernels.h"
#include "cpu/intrinsics.h"
#include "cpu/sparse_kernels.h"
#include "cpu/target.h"

#if defined(__x86_64__)

LEPTON_TARGET_BEGIN_VBMI2
#include "cpu/int8_avx512.h"

#include "cpu/sparse_panel.h"

namespace {

template <DType dtype>
inline void expand_strip_column(uint32_t mask, const uint8_t*& values, F32* w) {
  const F32 next = load_float(values, dtype, 0, F32::width);
  values += __builtin_popcount(mask) * (dtype == DType::f32 ? 4 : 2);
  w[0] = {_mm512_maskz_expand_ps(static_cast<__mmask16>(mask), next.v)};
}

}  // namespace

#include "cpu/sparse_float.h"

#define LEPTON_TRANSPOSE_8X8
#include "cpu/attention_transpose.h"

#define LEPTON_LIST_ROW
namespace {

inline int list_row(const float* row, float* value, int32_t* at);

}  // namespace
#include "cpu/sparse_float_lists.h"

namespace {

inline int list_row(const float* row, float* value, int32_t* at) {
  const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i step = _mm512_set1_epi32(16 * kListRows);
  __m512i from = _mm512_mullo_epi32(lanes, _mm512_set1_epi32(kListRows));
  int count = 0;
  for (int k = 0; k < kListInputs; k += 16) {
    const __m512 w = _mm512_loadu_ps(row + k);
    const __mmask16 kept = _mm512_cmp_ps_mask(w, _mm512_setzero_ps(), _CMP_NEQ_UQ);
    _mm512_storeu_ps(value + count, _mm512_maskz_compress_ps(kept, w));
    _mm512_storeu_si512(at + count, _mm512_maskz_compress_epi32(kept, from));
    count += __builtin_popcount(kept);
    from = _mm512_add_epi32(from, step);
  }
  return count;
}

}  // namespace

#include "cpu/sparse_expand.h"

namespace lepton {
namespace {

inline __m512i four_of_row(const uint8_t* a) {
  int32_t quad;
  std::memcpy(&quad, a, sizeof quad);
  return _mm512_set1_epi32(quad);
}

struct Vbmi2Tile {
  using operand = uint8_t;
  static constexpr int32_t zero_shift = 128;
  static constexpr int32_t few_zero_shift = 128;
  static constexpr int few_strips = 4;

  template <int height>
  static void rows(const uint8_t* a, int64_t a_stride, const BlockList& list, int64_t blocks,
                   int32_t* c) {
    __m512i sum[height];
    for (int r = 0; r < height; ++r) sum[r] = _mm512_loadu_si512(c + r * kPanelColumns);
    for (int64_t b = 0; b < blocks; ++b) {
      const __m512i w = _mm512_loadu_si512(list.values + b * 64);
      const uint8_t* x = a + int64_t{list.index[b]} * 4;
      for (int r = 0; r < height; ++r) {
        sum[r] = _mm512_dpbusd_epi32(sum[r], four_of_row(x + r * a_stride), w);
      }
    }
    for (int r = 0; r < height; ++r) _mm512_storeu_si512(c + r * kPanelColumns, sum[r]);
  }

  template <int rows, int strips>
  static void few(const SparseLinear& p, int64_t m, int64_t strip, int32_t* c) {
    const int64_t k_all = p.dense.layout.row_padded, stride = p.dense.a_stride;
    const uint8_t* a = static_cast<const uint8_t*>(p.dense.a) + m * stride;
    const uint8_t* pattern = p.pattern + strip * 2 * k_all;
    const int8_t* values[strips];
    __m512i sum[strips][rows];
    for (int s = 0; s < strips; ++s) {
      values[s] = static_cast<const int8_t*>(p.values) + p.offsets[strip + s];
      for (int r = 0; r < rows; ++r) sum[s][r] = _mm512_setzero_si512();
    }
    // k is a multiple of 64: a line of every strip's pattern serves 32 columns.
    for (int64_t k = 0; k < k_all; k += 32, pattern += 64) {
      for (int s = 0; s < strips; ++s) prefetch(pattern + s * 2 * k_all + kPatternAhead);
      for (int u = 0; u < 8; ++u) {
        for (int s = 0; s < strips; ++s) {
          if (u % 2 == 0) prefetch(values[s] + kValuesAhead);
          const __m512i w = expand_quad(pattern + s * 2 * k_all + u * 8, values[s]);
          for (int r = 0; r < rows; ++r) {
            const __m512i x = four_of_row(a + r * stride + k + u * 4);
            sum[s][r] = _mm512_dpbusd_epi32(sum[s][r], x, w);
          }
        }
      }
    }
    for (int s = 0; s < strips; ++s) {
      for (int r = 0; r < rows; ++r) _mm512_storeu_si512(c + (s * rows + r) * kStrip, sum[s][r]);
    }
  }
};

void expand_int8(const SparseLinear& p, int64_t strip, int8_t* tiles) {
  const int64_t k_all = p.dense.layout.row_padded;
  const uint8_t* pattern = p.pattern + strip * 2 * k_all;
  const int8_t* values = static_cast<const int8_t*>(p.values) + p.offsets[strip];
  for (int64_t k = 0; k < k_all; k += 4, pattern += 8) {
    _mm512_storeu_si512(tiles + k * kStrip, expand_quad(pattern, values));
  }
}

}  // namespace

const SparseKernels kSparseVbmi2 = {
    "vnni",        &kInt8Vnni,
    false,         int8_few<Vbmi2Tile>,
    expand_int8,   run_panels<Int8BlockSource<Vbmi2Tile>>,
    float_bitmask, float_block,
};

}  // namespace lepton
LEPTON_TARGET_END

#endif
