// Torch side that the attention ops on CUDA share: checks, and the parameters of the kernels.
#pragma once

#include "cuda/attention_cuda.h"
#include "cuda/attention_plan.h"
#include "cuda/on_device.h"
#include "ops/attention_arguments.h"

namespace lepton {

// Parameters of a call, and the tensors that they point into.
struct CudaAttentionCall {
  CudaAttention a{};
  std::vector<Tensor> kept;
};

// What the kernels take: bfloat16 and float16, up to 256 elements of a head. The reference, plain
// torch on the GPU, serves the rest.
bool has_attention_kernel(const Tensor& query, const Tensor& value);

// `tensor` with a dense last dimension, kept alive by the call.
Tensor keep(CudaAttentionCall& call, const Tensor& tensor);

// Checks query, key and value and fills what follows from them.
void set_heads(CudaAttentionCall& call, const char* op, const Tensor& query, const Tensor& key,
               const Tensor& value);
const int32_t* keep_ints(CudaAttentionCall& call, const char* op, const char* name,
                         const OptionalTensor& tensor, int64_t count);

// Everything of attention_forward but the outputs.
CudaAttentionCall attention_call(const char* op, const Tensor& query, const Tensor& key,
                                 const Tensor& value, const OptionalTensor& bias,
                                 const OptionalTensor& alibi_slopes, const OptionalTensor& sinks,
                                 const OptionalTensor& cu_seqlens_q,
                                 const OptionalTensor& cu_seqlens_k,
                                 const OptionalTensor& rng_state, const AttentionOptions& options);

// Runs the forward kernels into a new output and lse; rows that no sequence covers are zero, -inf.
std::pair<Tensor, Tensor> run_forward(CudaAttentionCall& call, const Tensor& query,
                                      int64_t value_dim, void* stream);

}  // namespace lepton
