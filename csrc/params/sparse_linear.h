// Plain structs between the torch side and the sparse kernels. No torch, no intrinsics.
#pragma once

#include "params/int8_linear.h"

namespace lepton {

enum class SparseLayout : int32_t { bitmask, n_of_m, block };

// A product with a packed sparse weight; lepton_kernels/reference/sparse_weight.py describes it.
struct SparseLinear {
  Int8Linear dense;  // everything but the weight: `tiles` is unused, float values have no
                     // weight_scale and no weight_sum
  DType value_dtype;
  const int64_t* offsets;  // [strips + 1], in values or in blocks
  const uint8_t* pattern;  // bitmask: 2 bytes per strip and padded column; block: uint16 per block
  const void* values;      // readable for 64 bytes behind the last one
};

// 32-bit sums that a panel of outputs needs: kPanelRows x kPanelStrips strips of 16.
constexpr int kPanelRows = 192;
constexpr int kPanelStrips = 16;
constexpr int64_t kPanelBytes = int64_t{4} * kPanelRows * kPanelStrips * 16;
// Of a task of float_bitmask.
constexpr int64_t kFloatScratchBytes = int64_t{9} << 17;
// Most rows that the kernels for few rows take.
constexpr int64_t kFewInt8Rows = 4;

// What an instruction set brings. Blocks are as in Int8Kernels; `panel` is kPanelBytes of scratch,
// aligned to a cache line, that of float_bitmask kFloatScratchBytes.
struct SparseKernels {
  const char* isa;
  const Int8Kernels* rows;  // quantises or widens the activations
  bool few_takes_int8;      // int8_few: rows as int8, not as operands of `rows`
  // Bitmask, int8, at most kFewInt8Rows rows: weights are expanded in registers.
  void (*int8_few)(const SparseLinear&, const Int8Block&);
  // One strip as dense tiles of the packed int8 weight.
  void (*expand_int8)(const SparseLinear&, int64_t strip, int8_t* tiles);
  void (*int8_block)(const SparseLinear&, const Int8Block&, void* panel);
  void (*float_bitmask)(const SparseLinear&, const Int8Block&, void* panel);
  void (*float_block)(const SparseLinear&, const Int8Block&, void* panel);
};

// int8 on tiles: rows are quantised by `rows` and, for blocks, packed 16 at a time.
struct SparseTileKernels {
  const Int8Kernels* rows;
  // Up to 16 rows of k (a multiple of 64) int8 values as 16 * k bytes, [k / 4][16][4].
  void (*pack_rows)(const int8_t* rows, int64_t stride, int64_t count, int64_t k, int8_t* packed);
  int64_t (*scratch_bytes)(int64_t k);  // of one task
  // m_begin is a multiple of 16; `a` is the packed rows.
  void (*int8_block)(const SparseLinear&, const Int8Block&, void* scratch);
  // Bitmask, at most kTileRowsAtOnce rows, as int8.
  void (*int8_bitmask)(const SparseLinear&, const Int8Block&);
  // Blocks that lie together; `a` is rows as int8.
  bool (*tiles_pay)(const SparseLinear&);
  int64_t (*tiles_scratch_bytes)(int64_t k);  // of one task
  void (*int8_tiles)(const SparseLinear&, const Int8Block&, void* scratch);
};
constexpr int64_t kTileRowsAtOnce = 16;

}  // namespace lepton
