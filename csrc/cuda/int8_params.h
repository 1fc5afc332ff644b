// Parameters of the int8 kernels on CUDA: plain structs, no torch. Layouts:
//
// * A packed weight is made of strips of 16 output features, a strip of blocks of 64 input bytes,
//   1 KiB each (lepton_kernels/reference/packed_weight.py): [k / 4][row][k % 4].
// * Activations become operand strips of 16 rows with the same strides, but a block holds
//   [row][16-byte chunk], chunk c of row r at c ^ (r / 2 % 4): what ldmatrix reads without bank
//   conflicts, and what cp.async copies as it is.
#pragma once

#include "params/int8_linear.h"

namespace lepton {

constexpr int kStripRows = 16;
constexpr int kBlockBytes = 64;    // of k, in every row of a strip
constexpr int kStripBlock = 1024;  // bytes of a block: 16 rows x 64

// Rows of x to operand strips, or (`plain`) to rows of int8 side by side.
struct PrepareParams {
  const void* x;
  int64_t x_stride;
  DType x_dtype;
  int32_t rows, padded_rows;  // rows in [rows, padded_rows) are written as zeros
  int32_t columns;
  int32_t group_size, group_padded, row_padded;
  bool symmetric;
  bool vectors;        // four columns of x can be loaded at once
  const float* scale;  // null: dynamic
  int32_t scale_stride;
  const int32_t* zero_point;
  int32_t zero_point_stride;
  int8_t* q;
  float* row_scale;   // null: not wanted
  int32_t* row_zero;  // null: not wanted
};

// A weight, packed or to be packed. Element (n, k) is at n * n_stride + k * k_stride.
struct PackParams {
  const int8_t* weight;
  int64_t n_stride, k_stride;
  int64_t out_features, in_features, groups, group_size, group_padded, in_padded, out_padded;
  int32_t* sums;
  int8_t* tiles;
  int8_t* unpacked;
};

// Packed int8 tiles to strips of 16-bit floats.
struct WidenWeightParams {
  const uint8_t* tiles;
  uint8_t* widened;
  int32_t row_padded;  // weights in a row
  int32_t planes;      // times that a row is written
};

// From sums to outputs; the order of operations is that of cpu/int8_epilogue.h.
struct FinishParams {
  int32_t m, n;
  const float* row_scale;     // null: 1
  const int32_t* row_zero;    // null: 0
  const int32_t* weight_sum;  // [groups][n_padded]
  int32_t n_padded;
  const float* weight_scale;  // (n, g) at n * weight_scale_stride + g; null: 1
  int32_t weight_scale_stride;
  const float* bias;  // null: none
  Activation activation;
  const void* residual;  // null: none
  int64_t residual_stride;
  DType residual_dtype;
  void* out;
  int64_t out_stride;
  DType out_dtype;
  bool vectors;            // eight outputs (and residuals) can be moved at once
  const float* out_scale;  // int8 output
  const int32_t* out_zero_point;
};

// out = finish(x w'): strips of rows times strips of weights.
struct GemmParams {
  const uint8_t* x;
  const uint8_t* w;
  int32_t x_strips, w_strips;
  int32_t blocks;       // of k, in each strip
  int32_t group_words;  // grouped: 4-byte words of k in a group
  int32_t groups;       // in a plane
  int32_t planes;       // of k, one after the other, with the same groups
  int32_t splits;       // of k; above 1 raw sums go to the workspace
  void* workspace;      // [splits][m][n_padded to the tile] of 32-bit sums
  int64_t workspace_stride;
  FinishParams finish;
};

}  // namespace lepton
