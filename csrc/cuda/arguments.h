// Arguments of the matrix ops on CUDA.
#pragma once

#include "cuda/on_device.h"

namespace lepton {

// dtype of a kernel's argument; float64 exists in the reference only.
inline DType cuda_dtype(const char* op, const char* argument, ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return DType::f32;
    case ScalarType::BFloat16: return DType::bf16;
    case ScalarType::Half: return DType::f16;
    case ScalarType::Char: return DType::i8;
    default:
      fail(op, ": ", argument, " of dtype ", name_of(dtype),
           " has no CUDA kernel; supported: float32, bfloat16, float16 (float64: "
           "lepton_kernels.force_backend('reference'))");
  }
}

inline int32_t to_int32(const char* op, const char* what, int64_t value) {
  LEPTON_CHECK(value <= std::numeric_limits<int32_t>::max(), op, ": ", what, " ", value,
               " is more than the CUDA kernels count to, 2147483647");
  return static_cast<int32_t>(value);
}

// Parameters are few: those that are not dense float32 are converted.
inline Tensor dense_floats(const Tensor& tensor) {
  const Tensor dense = tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
  return dense.scalar_type() == ScalarType::Float ? dense
                                                  : torch::stable::to(dense, ScalarType::Float);
}

template <class T>
const T* data_of(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

}  // namespace lepton
