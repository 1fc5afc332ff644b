// What the attention ops share: checks, sequences, the choice of a kernel, the queue of tasks.
#pragma once

#include <functional>

#include "cpu/attention_kernels.h"
#include "ops/attention_arguments.h"
#include "ops/int8_common.h"  // Scratch

namespace lepton {

// Tensors that live as long as the call, and the kernel's view of them.
struct AttentionCall {
  Attention p{};
  std::vector<AttentionSequence> sequences;
  std::vector<Tensor> kept;  // conversions that the pointers point into
  int64_t covered_rows = 0;  // query rows that some sequence covers, of `all_rows`
  int64_t all_rows = 0;
};

// For tensors of these dtypes.
const AttentionKernels& choose_attention_kernels(DType dtype, DType kv_dtype);

// `tensor` with a dense last dimension, kept alive by the call.
const Tensor& dense_heads(AttentionCall& call, const Tensor& tensor);

// Checks the inputs of attention_forward and fills everything but the outputs.
AttentionCall attention_call(const char* op, const Tensor& query, const Tensor& key,
                             const Tensor& value, const OptionalTensor& bias,
                             const OptionalTensor& alibi_slopes, const OptionalTensor& sinks,
                             const OptionalTensor& cu_seqlens_q, const OptionalTensor& cu_seqlens_k,
                             const OptionalTensor& rng_state, const AttentionOptions& options);

// Parts of attention_call that the cached form shares.
void set_query(AttentionCall& call, const char* op, const Tensor& query);
// Cumulative lengths as numbers, checked against the rows of their tensor.
std::vector<int64_t> read_cu_seqlens(const char* op, const char* name, const Tensor& cu_seqlens,
                                     int64_t rows);

// A new tensor; a large one on huge pages, where there are any.
Tensor new_large_tensor(const std::vector<int64_t>& sizes, ScalarType dtype);

// A new output and lse for the call; rows that no sequence covers are zero and -inf.
std::pair<Tensor, Tensor> new_outputs(AttentionCall& call, const Tensor& query, int64_t value_dim);

// Runs the forward kernels.
void run_attention(AttentionCall& call);

struct CostedTask {
  AttentionTask task;
  double cost;
};

// Score elements of a range of rows, as far as its window goes.
double score_count(const Attention& p, const AttentionTask& task);

// Runs f(index, scratch) for every task on torch's threads, the dearest tasks first. Which thread
// runs a task does not change what it computes.
void run_tasks(std::vector<CostedTask>& tasks, int64_t scratch_bytes,
               const std::function<void(const AttentionTask&)>& f);

// Keys and values laid out for a kernel, on torch's threads, where `wanted` says so.
class Packed {
 public:
  Packed(const AttentionCall& call, const AttentionPack& pack,
         const std::function<bool(const AttentionSequence&, int64_t head)>& wanted);
  // Those of a task; null where there are none.
  const void* at(const AttentionTask& task) const;

 private:
  Tensor memory_;
  std::vector<void*> packed_;
  int64_t kv_heads_;
};

}  // namespace lepton
