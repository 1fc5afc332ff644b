#include "cuda/attention_cuda.h"
#include "cuda/attention_launch.h"
#include "cuda/launcher.cuh"

namespace lepton {

void attention_backward_f16(const CudaAttention& a, void* stream) {
  launch_attention_backward<f16>(a, CudaLauncher(stream));
}

}  // namespace lepton
