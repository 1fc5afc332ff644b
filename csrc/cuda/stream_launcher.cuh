// The launcher of launch.h that enqueues on a CUDA stream. Host code for .cu files.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "cuda/launch.h"

namespace lepton {

inline void check_cuda(cudaError_t error) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
  }
}

class StreamLauncher {
 public:
  explicit StreamLauncher(void* stream) : stream_(static_cast<cudaStream_t>(stream)) {}

  template <class Parameters>
  void operator()(void (*kernel)(Parameters), const LaunchShape& shape,
                  const Parameters& parameters) const {
    constexpr uint32_t kWithoutAsking = 48 << 10;
    if (shape.shared_bytes > kWithoutAsking) {
      check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(shape.shared_bytes)));
    }
    const dim3 grid(shape.grid.x, shape.grid.y, shape.grid.z);
    const dim3 block(shape.block.x, shape.block.y, shape.block.z);
    kernel<<<grid, block, shape.shared_bytes, stream_>>>(parameters);
    check_cuda(cudaGetLastError());
  }

 private:
  cudaStream_t stream_;
};

// SMs of the current device.
inline int32_t processors() {
  int device = 0, count = 0;
  check_cuda(cudaGetDevice(&device));
  check_cuda(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

}  // namespace lepton
