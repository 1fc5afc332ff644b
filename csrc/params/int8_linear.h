// Plain structs between the torch side and the int8 kernels. No torch, no intrinsics.
#pragma once

#include <cstdint>

namespace lepton {

enum class DType : int32_t { f32, bf16, f16, i8, i32 };
enum class Activation : int32_t { none, relu, gelu, gelu_tanh, silu };

// How `columns` values of a row lie once quantised: groups, each padded to a multiple of 4, the
// whole padded to a multiple of 64. A padded value is multiplied by a weight of zero.
struct Int8RowLayout {
  int64_t columns;
  int64_t group_size;
  int64_t groups;
  int64_t group_padded;
  int64_t row_padded;
};

// Quantises rows of x, or converts rows that are int8 already.
struct Int8Quantize {
  const void* x;
  int64_t x_stride;  // elements between rows; columns are contiguous
  DType x_dtype;
  Int8RowLayout layout;
  bool symmetric;             // dynamic quantisation only
  const float* scale;         // null: dynamic, else one per `scale_stride` rows
  int64_t scale_stride;       // 0: one for all rows, 1: one per row
  const int32_t* zero_point;  // null: 0
  int64_t zero_point_stride;
  void* q;            // rows of operands of the kernel
  int64_t q_stride;   // operands between rows
  float* row_scale;   // out, one per row; NaN for a row that is not finite
  int32_t* row_zero;  // out, one per row
};

// One int8 linear layer, or (out_dtype i32) a plain product.
struct Int8Linear {
  int64_t m, n;
  Int8RowLayout layout;  // along k, of both operands
  const void* a;         // quantised rows
  int64_t a_stride;      // operands between rows
  const float* row_scale;
  const int32_t* row_zero;
  const int8_t* tiles;        // packed weight
  const int32_t* weight_sum;  // [groups][n_padded]
  int64_t n_padded;
  const float* weight_scale;  // element (n, g) at n * weight_scale_stride + g
  int64_t weight_scale_stride;
  const float* bias;  // null: none
  Activation activation;
  const void* residual;  // null: none
  int64_t residual_stride;
  DType residual_dtype;
  void* out;
  int64_t out_stride;
  DType out_dtype;
  float out_scale_inverse;  // int8 output
  float out_zero_point;
};

// A rectangle of the output that one thread computes. n is a multiple of 16 but at the end.
struct Int8Block {
  int64_t m_begin, m_end, n_begin, n_end;
};

// What an instruction set brings.
struct Int8Kernels {
  const char* isa;
  int32_t operand_bytes;  // of the quantised activations
  int32_t row_slack;      // zero rows that `linear` may read behind the last one
  // Rows [begin, end) to kernel operands.
  void (*quantize_operands)(const Int8Quantize&, int64_t begin, int64_t end);
  // Rows [begin, end) to int8.
  void (*quantize)(const Int8Quantize&, int64_t begin, int64_t end);
  // Rows [begin, end) to float32 operands, for the weight-only product.
  void (*widen)(const Int8Quantize&, int64_t begin, int64_t end);
  void (*linear)(const Int8Linear&, const Int8Block&);
  void (*linear_weight_only)(const Int8Linear&, const Int8Block&);
};

}  // namespace lepton
