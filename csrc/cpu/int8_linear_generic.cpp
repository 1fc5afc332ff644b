// int8 kernels in portable C++: the fallback, and the start of a port.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/int8_kernels.h"
#include "cpu/simd_generic.h"

#include "cpu/activation.h"

#include "cpu/int8_quantize.h"

#include "cpu/int8_epilogue.h"

#include "cpu/int8_driver.h"

#include "cpu/int8_weight_only.h"

namespace lepton {
namespace {

struct GenericTile {
  using operand = int8_t;
  static constexpr int strips = 1;
  static constexpr int64_t k_chunk = 1024;
  static constexpr int32_t zero_shift = 0;
  static constexpr int64_t block_bytes = 128 * 1024;
  static int rows() { return 4; }

  static void tile(const int8_t* a, int64_t a_stride, int rows, const int8_t* b, int64_t, int,
                   int64_t k, int32_t* c, int ldc, bool accumulate) {
    for (int r = 0; r < rows; ++r) {
      // Unsigned: sums wrap modulo 2^32, as documented for int8_mm.
      uint32_t sum[kStrip] = {};
      for (int64_t i = 0; i < k; i += 4) {
        for (int j = 0; j < kStrip; ++j) {
          const int8_t* w = b + i * kStrip + j * 4;
          const int8_t* x = a + r * a_stride + i;
          int32_t dot = 0;
          for (int t = 0; t < 4; ++t) dot += int32_t{x[t]} * int32_t{w[t]};
          sum[j] += static_cast<uint32_t>(dot);
        }
      }
      for (int j = 0; j < kStrip; ++j) {
        const uint32_t before = accumulate ? static_cast<uint32_t>(c[r * ldc + j]) : 0u;
        c[r * ldc + j] = static_cast<int32_t>(before + sum[j]);
      }
    }
  }
};

void linear(const Int8Linear& p, const Int8Block& block) {
  GenericTile tile;
  Int8Driver<GenericTile>(p, block, tile).run();
}

}  // namespace

const Int8Kernels kInt8Generic = {
    "generic",
    1,
    0,
    quantize_rows<Int8Operand>,
    quantize_rows<Int8Operand>,
    widen_rows,
    linear,
    weight_only_block,
};

}  // namespace lepton
