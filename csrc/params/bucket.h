// Plain structs between the torch side, the shared-memory communicator and the bucket kernels.
#pragma once

#include <cstdint>

namespace lepton {

enum class BucketType : int32_t { f32, bf16, f16, i8, i64 };

inline int64_t bytes_of(BucketType type) {
  switch (type) {
    case BucketType::f32: return 4;
    case BucketType::bf16:
    case BucketType::f16: return 2;
    case BucketType::i8: return 1;
    default: return 8;
  }
}

// out[o][i] = (in[0][i] + in[1][i] + ...) / divisor, in that order, for every output o.
// Floats are added in fp32 and rounded once; integers wrap and know no divisor.
struct BucketReduce {
  const void* const* in;
  int32_t inputs;  // at least 1
  void* const* out;
  int32_t outputs;
  BucketType in_type;
  BucketType out_type;  // as in_type unless both are floats
  float divisor;
};

// Blocks of `block` floats to bytes with one scale each: int8 levels, or fp8 e4m3.
struct BucketQuantize {
  const void* x;
  BucketType type;
  float* residual;  // null: none; else added to x before, and left with what rounding took
  int8_t* q;
  float* scale;
  int64_t count;
  int64_t block;
  bool fp8;
};

// out = q * scale * factor, or out += that.
struct BucketDequantize {
  const int8_t* q;
  const float* scale;
  void* out;
  BucketType type;
  float factor;
  bool accumulate;
  int64_t count;
  int64_t block;
  bool fp8;
};

// What one rank brings to a linear layer's gradient: its factors, (terms, rows) the gradients of
// the layer's outputs and (terms, columns) its inputs; or the whole gradient; or nothing.
struct BucketFactors {
  const void* left;
  const void* right;
  int64_t terms;
  const void* product;  // null: none; else terms is 0
};

// out[o] (rows, columns) = (sum of the products, then of left^T right, in order) / divisor, for
// every output o, which may be a product. Added in fp32 and rounded once.
struct BucketOuter {
  // The largest tile of any instruction set.
  static constexpr int64_t kMostRows = 6, kMostColumns = 64;

  const BucketFactors* source;
  int32_t sources;
  void* const* out;
  int32_t outputs;
  int64_t rows, columns;
  BucketType type;
  float divisor;
  float* scratch;
  int64_t scratch_count;  // at least outer_scratch_count(all terms, columns)
};

// Floats in which the factors are laid out anew: a part of the L2, or one panel.
inline int64_t outer_scratch_count(int64_t terms, int64_t columns) {
  constexpr int64_t kTile = BucketOuter::kMostColumns, kPart = int64_t{1} << 17;
  const int64_t all = (columns + kTile - 1) / kTile * kTile;
  const int64_t fit = terms == 0 ? all : kPart / terms / kTile * kTile;
  const int64_t block = fit < kTile ? kTile : fit < all ? fit : all;
  return terms * (block + BucketOuter::kMostRows) + 2 * 16;  // two alignments
}

// What an instruction set brings. Ranges are in elements; quantisation counts blocks.
struct BucketKernels {
  const char* isa;
  // Returns the sum of squares of what was written, or 0 where `squares` is false.
  double (*reduce)(const BucketReduce&, int64_t begin, int64_t end, bool squares);
  // x *= factor; false where a product is NaN or infinite.
  bool (*unscale)(void* x, BucketType type, float factor, int64_t count);
  double (*squares)(const void* x, BucketType type, int64_t count);
  // out = x * factor, cast.
  void (*convert)(const void* x, BucketType from, void* out, BucketType to, float factor,
                  int64_t count);
  void (*quantize)(const BucketQuantize&, int64_t begin, int64_t end);
  void (*dequantize)(const BucketDequantize&, int64_t begin, int64_t end);
  // Rows [begin, end); returns the sum of squares of what was written.
  double (*outer)(const BucketOuter&, int64_t begin, int64_t end);
};

}  // namespace lepton
