// int8 kernels for AMX: tiles of up to 16 rows x 16 columns, both operands signed.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/int8_kernels.h"
#include "cpu/intrinsics.h"
#include "cpu/target.h"

#if defined(__x86_64__)

LEPTON_TARGET_BEGIN_AMX
#if defined(__GNUC__) && !defined(__clang__)
// -O3 copies and vectorises what runs beside the products: 12 % slower at K = 384.
#pragma GCC optimize("O2")
#endif
#include "cpu/int8_avx512.h"

#include "cpu/int8_driver.h"

#include "cpu/int8_weight_only.h"

#include "cpu/amx_tiles.h"

#include "cpu/int8_amx_epilogue.h"

#include "cpu/int8_amx_blocks.h"

namespace lepton {
namespace {

// Weights with a scale per group: sums end with every group.
class AmxTile {
 public:
  using operand = int8_t;
  static constexpr int strips = 2;
  static constexpr int64_t k_chunk = 1024;  // 32 KiB of weights
  static constexpr int32_t zero_shift = 0;
  static constexpr int64_t block_bytes = 1024 * 1024;

  explicit AmxTile(int64_t rows) : tile_rows_(even_rows(rows)), use_(tile_rows_) {}

  int rows() const { return 2 * tile_rows_; }

  void tile(const int8_t* a, int64_t a_stride, int rows, const int8_t* b, int64_t strip_bytes,
            int strips, int64_t k, int32_t* c, int ldc, bool accumulate) const {
    const bool second_rows = rows > tile_rows_;
    const int8_t* a1 = a + tile_rows_ * a_stride;
    int32_t* c1 = c + tile_rows_ * ldc;
    if (second_rows && strips == 2) {
      two_by_two(a, a1, a_stride, b, strip_bytes, k, c, c1, ldc, accumulate);
      return;
    }
    for (int s = 0; s < strips; ++s) {
      one_by_one(a, a_stride, b + s * strip_bytes, k, c + s * kStrip, ldc, accumulate);
      if (second_rows) {
        one_by_one(a1, a_stride, b + s * strip_bytes, k, c1 + s * kStrip, ldc, accumulate);
      }
    }
  }

 private:
  static void two_by_two(const int8_t* a0, const int8_t* a1, int64_t a_stride, const int8_t* b,
                         int64_t strip_bytes, int64_t k, int32_t* c0, int32_t* c1, int ldc,
                         bool accumulate) {
    const int64_t c_bytes = int64_t{4} * ldc;
    if (accumulate) {
      _tile_loadd(0, c0, c_bytes);
      _tile_loadd(1, c0 + kStrip, c_bytes);
      _tile_loadd(2, c1, c_bytes);
      _tile_loadd(3, c1 + kStrip, c_bytes);
    } else {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    }
    for (int64_t i = 0; i < k; i += kTileBytes) {
      const int8_t* w = b + i * kStrip;
      _tile_loadd(6, w, kTileBytes);
      _tile_loadd(4, a0 + i, a_stride);
      _tile_dpbssd(0, 4, 6);
      _tile_loadd(5, a1 + i, a_stride);
      _tile_dpbssd(2, 5, 6);
      _tile_loadd(7, w + strip_bytes, kTileBytes);
      _tile_dpbssd(1, 4, 7);
      _tile_dpbssd(3, 5, 7);
    }
    _tile_stored(0, c0, c_bytes);
    _tile_stored(1, c0 + kStrip, c_bytes);
    _tile_stored(2, c1, c_bytes);
    _tile_stored(3, c1 + kStrip, c_bytes);
  }

  static void one_by_one(const int8_t* a, int64_t a_stride, const int8_t* b, int64_t k, int32_t* c,
                         int ldc, bool accumulate) {
    const int64_t c_bytes = int64_t{4} * ldc;
    if (accumulate) {
      _tile_loadd(0, c, c_bytes);
    } else {
      _tile_zero(0);
    }
    for (int64_t i = 0; i < k; i += kTileBytes) {
      _tile_loadd(4, a + i, a_stride);
      _tile_loadd(6, b + i * kStrip, kTileBytes);
      _tile_dpbssd(0, 4, 6);
    }
    _tile_stored(0, c, c_bytes);
  }

  static int even_rows(int64_t rows) {
    const int64_t tiles = (rows + kTileRows16 - 1) / kTileRows16;
    return static_cast<int>((rows + tiles - 1) / tiles);
  }

  int tile_rows_;
  TileScope use_;
};

void linear(const Int8Linear& p, const Int8Block& block) {
  if (block.m_end <= block.m_begin) return;
  if (p.layout.groups > 1) {
    AmxTile tile(block.m_end - block.m_begin);
    return Int8Driver<AmxTile>(p, block, tile).run();
  }
  if (p.out_dtype == DType::i32) return amx_linear<Int32Epilogue>(p, block);
  with_activation(p.activation,
                  [&](auto activation) { amx_linear<FloatEpilogue<activation()>>(p, block); });
}

}  // namespace

const Int8Kernels kInt8Amx = {
    "amx",      1,      2 * kTileRows16,   quantize_rows<Int8Operand>, quantize_rows<Int8Operand>,
    widen_rows, linear, weight_only_block,
};

}  // namespace lepton
LEPTON_TARGET_END

#endif
