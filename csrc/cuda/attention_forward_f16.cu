#include "cuda/attention_cuda.h"
#include "cuda/attention_launch.h"
#include "cuda/launcher.cuh"

namespace lepton {

void attention_forward_f16(const CudaAttention& a, void* stream) {
  launch_attention<f16>(a, CudaLauncher(stream));
}

}  // namespace lepton
