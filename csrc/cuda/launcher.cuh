// Enqueues kernels on torch's stream. Included by .cu files only.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "cuda/launch.h"

namespace lepton {

inline void check_cuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // an error of a launch is not found again by somebody else
  std::string message = std::string("lepton_kernels: ") + what + ": " + cudaGetErrorString(error);
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction ||
      error == cudaErrorUnsupportedPtxVersion) {
    int device = 0, major = 0, minor = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    message = "lepton_kernels: this build holds code for " LEPTON_CUDA_ARCHITECTURES
              ", which cuda:" +
              std::to_string(device) + " of compute capability " + std::to_string(major) + "." +
              std::to_string(minor) +
              " cannot run; build with LEPTON_CUDA_ARCHS for it, or use "
              "lepton_kernels.force_backend('reference')";
  }
  throw std::runtime_error(message);
}

// The launcher of launch.h for a GPU. `stream` is torch's current stream of the current device.
struct CudaLauncher {
  cudaStream_t stream;
  explicit CudaLauncher(void* stream) : stream(static_cast<cudaStream_t>(stream)) {}

  template <class Parameters>
  void operator()(void (*kernel)(Parameters), const LaunchShape& shape,
                  const Parameters& parameters) const {
    const void* function = reinterpret_cast<const void*>(kernel);
    if (shape.shared_bytes > 48 * 1024) {  // beyond that a kernel has to ask
      check_cuda(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(shape.shared_bytes)),
                 "shared memory of a kernel");
    }
    void* arguments[] = {const_cast<Parameters*>(&parameters)};
    check_cuda(cudaLaunchKernel(function, dim3(shape.grid.x, shape.grid.y, shape.grid.z),
                                dim3(shape.block.x, shape.block.y, shape.block.z), arguments,
                                shape.shared_bytes, stream),
               "launch of a kernel");
  }
};

// SMs of the current device.
inline int32_t processor_count() {
  int device = 0, count = 0;
  check_cuda(cudaGetDevice(&device), "the current device");
  check_cuda(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device),
             "the number of SMs");
  return count;
}

}  // namespace lepton
