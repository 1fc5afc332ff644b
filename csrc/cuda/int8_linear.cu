// Launches the kernels of the int8 family.
#include "cuda/int8_linear_cuda.h"
#include "cuda/int8_linear_run.h"
#include "cuda/launcher.cuh"

namespace lepton {

int64_t prepare_int8_call(Int8Call& call) {
  call.processors = processor_count();
  return Int8Scratch(call).bytes();
}

void enqueue_int8_call(const Int8Call& call, uint8_t* scratch, void* stream) {
  run_int8_call(call, scratch, CudaLauncher(stream));
}

void enqueue_quantize_int8(const PrepareParams& params, void* stream) {
  launch_prepare(params, true, CudaLauncher(stream));
}

void enqueue_pack_int8_weight(const PackParams& params, void* stream) {
  launch_pack(params, CudaLauncher(stream));
}

void enqueue_gemm(const GemmParams& params, const GemmPlan& plan, OperandType type, void* stream) {
  const CudaLauncher launch(stream);
  switch (type) {
    case OperandType::i8: return launch_gemm<GemmShapes<MmaInt8>>(params, plan, launch);
    case OperandType::f16: return launch_gemm<GemmShapes<MmaFloat16<f16>>>(params, plan, launch);
    case OperandType::bf16: return launch_gemm<GemmShapes<MmaFloat16<bf16>>>(params, plan, launch);
  }
}

}  // namespace lepton
