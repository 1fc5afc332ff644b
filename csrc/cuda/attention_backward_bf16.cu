#include "cuda/attention_cuda.h"
#include "cuda/attention_launch.h"
#include "cuda/launcher.cuh"

namespace lepton {

void attention_backward_bf16(const CudaAttention& a, void* stream) {
  launch_attention_backward<bf16>(a, CudaLauncher(stream));
}

}  // namespace lepton
