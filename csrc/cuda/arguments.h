// Arguments of the matrix ops on CUDA.
#pragma once

#include "cuda/on_device.h"

namespace lepton {

inline DType cuda_dtype(const char* op, const char* argument, ScalarType dtype) {
  return device_dtype("CUDA", op, argument, dtype);
}

inline int32_t to_int32(const char* op, const char* what, int64_t value) {
  LEPTON_CHECK(value <= std::numeric_limits<int32_t>::max(), op, ": ", what, " ", value,
               " is more than the CUDA kernels count to, 2147483647");
  return static_cast<int32_t>(value);
}

template <class T>
const T* data_of(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

}  // namespace lepton
