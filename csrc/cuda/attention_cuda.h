// The attention kernels as plain functions: the .cu files launch, attention*.cpp calls.
#pragma once

#include "cuda/attention_params.h"

namespace lepton {

void attention_forward_bf16(const CudaAttention& a, void* stream);
void attention_forward_f16(const CudaAttention& a, void* stream);
void attention_backward_bf16(const CudaAttention& a, void* stream);
void attention_backward_f16(const CudaAttention& a, void* stream);

// Streaming multiprocessors of the current device.
int64_t attention_processors();

}  // namespace lepton
