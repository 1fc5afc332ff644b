// What every op needs of torch's stable ABI.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "check.h"
#include "params/int8_linear.h"

namespace lepton {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Tensor new_tensor(const std::vector<int64_t>& sizes, ScalarType dtype) {
  return torch::stable::empty(sizes, dtype);
}

inline const char* name_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Half: return "float16";
    case ScalarType::Char: return "int8";
    case ScalarType::Byte: return "uint8";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    default: return "another dtype";
  }
}

inline bool is_float(ScalarType dtype) {
  return dtype == ScalarType::Float || dtype == ScalarType::BFloat16 || dtype == ScalarType::Half;
}

// dtype of a kernel's argument; float64 exists in the reference only.
inline DType device_dtype(const char* device, const char* op, const char* argument,
                          ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return DType::f32;
    case ScalarType::BFloat16: return DType::bf16;
    case ScalarType::Half: return DType::f16;
    case ScalarType::Char: return DType::i8;
    default:
      fail(op, ": ", argument, " of dtype ", name_of(dtype), " has no ", device,
           " kernel; supported: float32, bfloat16, float16 (float64: "
           "lepton_kernels.force_backend('reference'))");
  }
}

inline DType kernel_dtype(const char* op, const char* argument, ScalarType dtype) {
  return device_dtype("CPU", op, argument, dtype);
}

// Parameters are few: those that are not dense float32 are converted.
inline Tensor dense_floats(const Tensor& tensor) {
  const Tensor dense = tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
  return dense.scalar_type() == ScalarType::Float ? dense
                                                  : torch::stable::to(dense, ScalarType::Float);
}

// `tensor` with elements of its last dimension side by side; a copy only where they are not.
inline Tensor with_dense_rows(const Tensor& tensor) {
  const bool dense = tensor.dim() == 0 || tensor.size(tensor.dim() - 1) <= 1 ||
                     tensor.stride(tensor.dim() - 1) == 1;
  return dense ? tensor : torch::stable::contiguous(tensor);
}

// A tensor as a matrix of rows of its last dimension, without a copy where the leading dimensions
// fold into one stride.
struct Rows {
  Tensor tensor;
  int64_t count;
  int64_t columns;
  int64_t stride;
};

inline Rows as_rows(const Tensor& given) {
  Tensor tensor = with_dense_rows(given);
  const int64_t dims = tensor.dim();
  const int64_t columns = tensor.size(dims - 1);
  int64_t count = 1;
  for (int64_t d = 0; d < dims - 1; ++d) count *= tensor.size(d);
  int64_t stride = dims > 1 ? tensor.stride(dims - 2) : columns;
  for (int64_t d = dims - 2; d > 0; --d) {
    const bool folds =
        tensor.size(d - 1) == 1 || tensor.stride(d - 1) == tensor.stride(d) * tensor.size(d);
    if (!folds) {
      tensor = torch::stable::contiguous(tensor);
      stride = columns;
      break;
    }
  }
  if (count <= 1) stride = columns;
  return {tensor, count, columns, stride};
}

}  // namespace lepton
