// Sparse kernels in portable C++: the fallback, and the start of a port.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/int8_kernels.h"
#include "cpu/simd_generic.h"
#include "cpu/sparse_kernels.h"

#include "cpu/activation.h"

#include "cpu/int8_quantize.h"

#include "cpu/int8_epilogue.h"

#include "cpu/sparse_panel.h"

namespace {

template <DType dtype>
void expand_strip_column(uint32_t mask, const uint8_t*& values, F32* w) {
  for (int j = 0; j < kStrip; ++j) {
    w[j] = f32_zero();
    if (mask >> j & 1) {
      w[j] = load_float(values, dtype, 0, 1);
      values += dtype == DType::f32 ? 4 : 2;
    }
  }
}

}  // namespace

#include "cpu/sparse_float.h"

#include "cpu/attention_transpose.h"

#include "cpu/sparse_float_lists.h"

namespace lepton {
namespace {

// The next 64 weights of a strip, four columns of 16 rows; moves the pointer on.
void expand_quad(const uint8_t* pattern, const int8_t*& values, int8_t* weights) {
  for (int i = 0; i < 64; ++i) {
    const bool kept = pattern[i / 8] >> (i % 8) & 1;
    weights[i] = kept ? *values : int8_t{0};
    values += kept;
  }
}

void add_quad(const int8_t* x, const int8_t* weights, int32_t* c) {
  for (int j = 0; j < kStrip; ++j) {
    for (int t = 0; t < 4; ++t) c[j] += int32_t{x[t]} * int32_t{weights[j * 4 + t]};
  }
}

struct GenericTile {
  using operand = int8_t;
  static constexpr int32_t zero_shift = 0;
  static constexpr int32_t few_zero_shift = 0;
  static constexpr int few_strips = 1;

  template <int height>
  static void rows(const int8_t* a, int64_t a_stride, const BlockList& list, int64_t blocks,
                   int32_t* c) {
    for (int64_t b = 0; b < blocks; ++b) {
      const int8_t* weights = reinterpret_cast<const int8_t*>(list.values) + b * 64;
      for (int r = 0; r < height; ++r) {
        add_quad(a + r * a_stride + int64_t{list.index[b]} * 4, weights, c + r * kPanelColumns);
      }
    }
  }

  template <int rows, int>
  static void few(const SparseLinear& p, int64_t m, int64_t strip, int32_t* c) {
    const int64_t k_all = p.dense.layout.row_padded;
    const uint8_t* pattern = p.pattern + strip * 2 * k_all;
    const int8_t* values = static_cast<const int8_t*>(p.values) + p.offsets[strip];
    const int8_t* a = static_cast<const int8_t*>(p.dense.a) + m * p.dense.a_stride;
    std::memset(c, 0, sizeof(int32_t) * rows * kStrip);
    for (int64_t k = 0; k < k_all; k += 4) {
      int8_t weights[64];
      expand_quad(pattern + 2 * k, values, weights);
      for (int r = 0; r < rows; ++r)
        add_quad(a + r * p.dense.a_stride + k, weights, c + r * kStrip);
    }
  }
};

void expand_int8(const SparseLinear& p, int64_t strip, int8_t* tiles) {
  const int64_t k_all = p.dense.layout.row_padded;
  const uint8_t* pattern = p.pattern + strip * 2 * k_all;
  const int8_t* values = static_cast<const int8_t*>(p.values) + p.offsets[strip];
  for (int64_t k = 0; k < k_all; k += 4) expand_quad(pattern + 2 * k, values, tiles + k * kStrip);
}

}  // namespace

const SparseKernels kSparseGeneric = {
    "generic",     &kInt8Generic,
    true,          int8_few<GenericTile>,
    expand_int8,   run_panels<Int8BlockSource<GenericTile>>,
    float_bitmask, float_block,
};

}  // namespace lepton
