#include "cuda/attention_cuda.h"
#include "cuda/attention_launch.h"
#include "cuda/launcher.cuh"

namespace lepton {

void attention_forward_bf16(const CudaAttention& a, void* stream) {
  launch_attention<bf16>(a, CudaLauncher(stream));
}

int64_t attention_processors() { return processor_count(); }

}  // namespace lepton
