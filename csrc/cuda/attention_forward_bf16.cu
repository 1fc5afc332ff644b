#include "cuda/attention_cuda.h"
#include "cuda/attention_launch.h"
#include "cuda/launcher.cuh"

namespace lepton {

void attention_forward_bf16(const CudaAttention& a, void* stream) {
  launch_attention<bf16>(a, CudaLauncher(stream));
}

int64_t processor_count() {
  int device = 0, count = 0;
  check_cuda(cudaGetDevice(&device), "current device");
  check_cuda(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device),
             "multiprocessors of the device");
  return count;
}

}  // namespace lepton
