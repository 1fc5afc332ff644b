// Parameters of the sparse kernels on CUDA: plain structs, no torch.
// lepton_kernels/reference/sparse_weight.py describes the packed weight.
#pragma once

#include "cuda/int8_params.h"
#include "params/sparse_linear.h"

namespace lepton {

// A 2:4 weight as fragments of mma.sp: for each strip and 64 bytes of k, 16 bytes for each lane,
// and behind them 4 bytes of metadata for each lane.
constexpr int kFragmentBytes = 512;
constexpr int kSparseBlock = 640;

// float32 operands are split into planes of bfloat16, eight bits each; one term of a product takes
// one plane of x and one of the weight, and the terms follow each other along k. Four bits each.
struct PlaneTerms {
  int32_t count;
  uint32_t x, weight;
};

// A packed sparse weight to operands: dense strips, or fragments of mma.sp.
struct ExpandParams {
  const int64_t* offsets;  // [strips + 1], in values or in blocks
  const uint8_t* pattern;
  const uint8_t* values;
  int32_t strips;
  int32_t in_padded;   // of the pattern
  int32_t out_padded;  // of the operands, more for 2:4 int8
  PlaneTerms terms;
  uint8_t* to;
};

struct SparseCall {
  int32_t m, n;
  int64_t in_features;
  const void* x;
  int64_t x_stride;
  DType x_dtype;
  const uint8_t* packed;
  SparseLayout layout;
  bool two_of_four;  // at most two values in each four inputs of a row
  DType value_dtype;
  int64_t count;        // stored values or blocks
  FinishParams finish;  // without sizes and scales
  int32_t processors;
  GemmTileSize size;
  int32_t splits;
};

}  // namespace lepton
