// Parameters of the int8 kernels on CUDA: plain structs, no torch. Layouts:
//
// * A packed weight is made of strips of 16 output features, a strip of blocks of 64 input bytes,
//   1 KiB each (lepton_kernels/reference/packed_weight.py): [k / 4][row][k % 4].
// * Activations become operand strips of 16 rows with the same strides, but a block holds
//   [row][16-byte chunk], chunk c of row r at c ^ (r / 2 % 4): what ldmatrix reads without bank
//   conflicts, and what cp.async copies as it is.
#pragma once

#include "params/packed_weight.h"

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
  uint32_t plane_code;  // widened rows: the plane of each term of k, four bits each
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
  PackedHeader* header;  // null: the sums and tiles only, else also what lies between them
};

// Sizes and sections of `packed`, a packed weight.
inline PackParams pack_params(const PackedHeader& h, uint8_t* packed) {
  PackParams p{};
  p.out_features = h.out_features, p.in_features = h.in_features;
  p.groups = h.groups(), p.group_size = h.group_size, p.group_padded = h.group_padded;
  p.in_padded = h.in_padded, p.out_padded = h.out_padded;
  p.header = reinterpret_cast<PackedHeader*>(packed);
  p.sums = reinterpret_cast<int32_t*>(packed + sizeof(PackedHeader));
  p.tiles = reinterpret_cast<int8_t*>(packed + h.tiles_offset());
  return p;
}

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

// How one product is cut into tiles of rows and features.
enum class GemmTileSize : int32_t { choose, small, medium, large };

// A whole call of int8_linear or int8_mm.
struct Int8Call {
  int32_t m, n;
  Int8RowLayout layout;
  int32_t n_padded;
  const void* x;
  int64_t x_stride;
  DType x_dtype;
  const float* x_scale;  // null: dynamic
  int32_t x_scale_stride;
  const int32_t* x_zero_point;
  int32_t x_zero_point_stride;
  bool weight_only;
  const int8_t* weight;  // not packed: packed in the scratch; null: see the next two
  int64_t weight_n_stride, weight_k_stride;
  const int32_t* weight_sum;
  const int8_t* tiles;
  FinishParams finish;  // without sizes, rows' scales and sums of weights
  int32_t processors;
  GemmTileSize size;  // `choose`, but in tests
  int32_t splits;     // 0: choose
};

inline int64_t element_bytes(DType dtype) {
  return dtype == DType::f32 || dtype == DType::i32 ? 4 : dtype == DType::i8 ? 1 : 2;
}

// Whether four columns of a row, beginning at a multiple of four in its group, can be loaded at
// once.
inline bool four_at_once(const void* x, int64_t stride, DType dtype, int64_t group_size) {
  const auto address = reinterpret_cast<uintptr_t>(x);
  return address % static_cast<uintptr_t>(4 * element_bytes(dtype)) == 0 && stride % 4 == 0 &&
         group_size % 4 == 0;
}

// Whether eight columns of every row can be moved at once.
inline bool eight_at_once(const void* tensor, int64_t stride) {
  return tensor == nullptr || (reinterpret_cast<uintptr_t>(tensor) % 16 == 0 && stride % 8 == 0);
}

}  // namespace lepton
