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
// Most rows that the kernels for few rows take.
constexpr int64_t kFewInt8Rows = 4;

// What an instruction set brings. Blocks are as in Int8Kernels; `panel` is kPanelBytes of scratch.
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

}  // namespace lepton
