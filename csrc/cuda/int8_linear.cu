// Launches the kernels of the int8 family.
#include "cuda/int8_linear.h"

#include "cuda/int8_linear_run.h"
#include "cuda/stream_launcher.cuh"

namespace lepton {

int64_t prepare_int8_call(Int8Call& call) {
  call.processors = processors();
  return Int8Scratch(call).bytes();
}

void enqueue_int8_call(const Int8Call& call, uint8_t* scratch, void* stream) {
  run_int8_call(call, scratch, StreamLauncher(stream));
}

void enqueue_quantize_int8(const PrepareParams& params, void* stream) {
  launch_prepare(params, true, StreamLauncher(stream));
}

void enqueue_pack_int8_weight(const PackParams& params, void* stream) {
  launch_pack(params, StreamLauncher(stream));
}

}  // namespace lepton
