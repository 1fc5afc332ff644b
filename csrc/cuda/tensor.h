// What every op on CUDA needs of torch's stable ABI, beyond ops/tensor.h.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "ops/tensor.h"

namespace lepton {

// The current device is that of a tensor while this lives; its current stream is torch's.
class OnDeviceOf {
 public:
  explicit OnDeviceOf(const Tensor& tensor) : index_(tensor.get_device_index()), guard_(index_) {}

  void* stream() const {
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream));
    return stream;
  }

  // `tensor` must be here too.
  void check(const char* op, const char* name, const Tensor& tensor) const {
    LEPTON_CHECK(tensor.is_cuda() && tensor.get_device_index() == index_, op, ": ", name,
                 " must be on cuda:", index_, " like x");
  }
  void check(const char* op, const char* name, const std::optional<Tensor>& tensor) const {
    if (tensor) check(op, name, *tensor);
  }

 private:
  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
};

// A contiguous tensor on the device of `like`.
inline Tensor new_tensor_like(const Tensor& like, const std::vector<int64_t>& sizes,
                              ScalarType dtype) {
  return torch::stable::new_empty(like, sizes, dtype);
}

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
