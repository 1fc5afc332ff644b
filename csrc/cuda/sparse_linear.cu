// Launches the kernels of sparse_linear.
#include "cuda/launcher.cuh"
#include "cuda/sparse_linear_cuda.h"
#include "cuda/sparse_linear_launch.h"

namespace lepton {

int64_t prepare_sparse_call(SparseCall& call) {
  call.processors = processor_count();
  return SparsePlan(call).bytes;
}

void enqueue_sparse_call(const SparseCall& call, uint8_t* scratch, void* stream) {
  run_sparse_call(call, scratch, CudaLauncher(stream),
                  [stream](const GemmParams& p, const GemmPlan& plan, OperandType type) {
                    enqueue_gemm(p, plan, type, stream);
                  });
}

}  // namespace lepton
