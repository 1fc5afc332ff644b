// Torch side of the CUDA ops: device, stream, memory, by torch's stable ABI.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <initializer_list>
#include <utility>

#include "ops/tensor.h"

namespace lepton {

inline std::string device_of(const Tensor& tensor) {
  return tensor.is_cuda() ? "cuda:" + std::to_string(tensor.get_device_index()) : "cpu";
}

// While it lives, the device of the first tensor is current; `stream` is torch's on it.
class OnDevice {
 public:
  using Named = std::pair<const char*, const Tensor*>;

  OnDevice(const char* op, Named first, std::initializer_list<Named> others = {})
      : guard_((check(op, first, others), first.second->get_device_index())) {
    STABLE_TORCH_ERROR_CODE_CHECK(
        aoti_torch_get_current_cuda_stream(first.second->get_device_index(), &stream_));
  }
  void* stream() const { return stream_; }

  // Null tensors are left out.
  static void check(const char* op, Named first, std::initializer_list<Named> others) {
    LEPTON_CHECK(first.second->is_cuda(), op, ": ", first.first, " must be on a CUDA device, got ",
                 device_of(*first.second));
    for (const auto& [name, tensor] : others) {
      LEPTON_CHECK(tensor == nullptr || (tensor->is_cuda() && tensor->get_device_index() ==
                                                                  first.second->get_device_index()),
                   op, ": ", name, " must be on ", device_of(*first.second), " like ", first.first,
                   ", got ", device_of(*tensor));
    }
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_ = nullptr;
};

inline Tensor new_on(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType dtype) {
  return torch::stable::new_empty(like, sizes, dtype);
}

}  // namespace lepton
