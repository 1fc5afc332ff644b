#include "cuda/attention_call.h"

#include "cuda/arguments.h"

namespace lepton {
namespace {

void set_bias(CudaAttentionCall& call, const char* op, const Tensor& given, const Tensor& query,
              int64_t columns) {
  Tensor bias = given;
  if (bias.scalar_type() == ScalarType::Double) bias = torch::stable::to(bias, ScalarType::Float);
  call.kept.push_back(bias);
  CudaAttention& a = call.a;
  set_bias(a.p, op, cuda_dtype, bias, query, columns);
  a.bias_batches = static_cast<int32_t>(bias.size(0));
  a.bias_heads = static_cast<int32_t>(bias.size(1));
  a.bias_rows = static_cast<int32_t>(bias.size(2));
  a.bias_columns = static_cast<int32_t>(bias.size(3));
}

}  // namespace

bool has_attention_kernel(const Tensor& query, const Tensor& value) {
  constexpr int64_t kWidest = 256;
  return (query.scalar_type() == ScalarType::BFloat16 || query.scalar_type() == ScalarType::Half) &&
         (query.dim() != 4 || query.size(3) <= kWidest) &&
         (value.dim() != 4 || value.size(3) <= kWidest);
}

Tensor keep(CudaAttentionCall& call, const Tensor& tensor) {
  call.kept.push_back(with_dense_rows(tensor));
  return call.kept.back();
}

void set_heads(CudaAttentionCall& call, const char* op, const Tensor& query, const Tensor& key,
               const Tensor& value) {
  check_heads(op, query, key, value);
  LEPTON_CHECK(
      key.scalar_type() == value.scalar_type() &&
          (key.scalar_type() == query.scalar_type() || key.scalar_type() == ScalarType::Char),
      op, ": key and value must have the dtype of query");
  CudaAttention& a = call.a;
  Attention& p = a.p;
  const Tensor q = keep(call, query), k = keep(call, key), v = keep(call, value);
  p.dtype = cuda_dtype(op, "query", query.scalar_type());
  p.kv_dtype = cuda_dtype(op, "key", key.scalar_type());
  p.q = q.const_data_ptr();
  p.k = k.const_data_ptr();
  p.v = v.const_data_ptr();
  p.q_stride = head_strides(q);
  p.k_stride = head_strides(k);
  p.v_stride = head_strides(v);
  p.heads = query.size(2);
  p.kv_heads = key.size(2);
  p.group = p.kv_heads ? p.heads / p.kv_heads : 1;
  p.head_dim = query.size(3);
  p.value_dim = value.size(3);
  a.batch = static_cast<int32_t>(query.size(0));
  a.q_len = static_cast<int32_t>(query.size(1));
  a.k_len = static_cast<int32_t>(key.size(1));
}

const int32_t* keep_ints(CudaAttentionCall& call, const char* op, const char* name,
                         const OptionalTensor& tensor, int64_t count) {
  if (!tensor) return nullptr;
  LEPTON_CHECK(
      tensor->scalar_type() == ScalarType::Int && tensor->dim() == 1 && tensor->size(0) == count,
      op, ": ", name, " must be int32 of shape (", count, ",), got ", tuple(tensor->sizes()));
  call.kept.push_back(torch::stable::contiguous(*tensor));
  return static_cast<const int32_t*>(call.kept.back().const_data_ptr());
}

CudaAttentionCall attention_call(const char* op, const Tensor& query, const Tensor& key,
                                 const Tensor& value, const OptionalTensor& bias,
                                 const OptionalTensor& alibi_slopes, const OptionalTensor& sinks,
                                 const OptionalTensor& cu_seqlens_q,
                                 const OptionalTensor& cu_seqlens_k,
                                 const OptionalTensor& rng_state, const AttentionOptions& options) {
  CudaAttentionCall call;
  set_heads(call, op, query, key, value);
  LEPTON_CHECK(key.size(0) == query.size(0), op, ": key must have the batch size of query");
  LEPTON_CHECK(key.scalar_type() == query.scalar_type(), op,
               ": key and value must have the dtype of query");
  CudaAttention& a = call.a;
  set_options(a.p, op, options);
  set_dropout(a.p, options.dropout_p);
  LEPTON_CHECK(cu_seqlens_q.has_value() == cu_seqlens_k.has_value(), op,
               ": cu_seqlens_q and cu_seqlens_k must be given together");
  int64_t batch = query.size(0);
  if (cu_seqlens_q) {
    LEPTON_CHECK(query.size(0) == 1 && !bias, op,
                 ": variable lengths want a batch of 1 and no bias");
    LEPTON_CHECK(cu_seqlens_q->dim() == 1 && cu_seqlens_q->size(0) >= 1, op,
                 ": cu_seqlens_q must be int32 of shape (batch + 1,)");
    batch = cu_seqlens_q->size(0) - 1;
    a.cu_q = keep_ints(call, op, "cu_seqlens_q", cu_seqlens_q, batch + 1);
    a.cu_k = keep_ints(call, op, "cu_seqlens_k", cu_seqlens_k, batch + 1);
    a.batch = static_cast<int32_t>(batch);
  }
  if (bias) set_bias(call, op, *bias, query, key.size(1));
  set_per_head(a.p, call.kept, op, alibi_slopes, sinks, batch);
  if (options.dropout_p > 0) {
    check_rng_state(op, rng_state);
    call.kept.push_back(*rng_state);
    a.rng_state = static_cast<const int64_t*>(rng_state->const_data_ptr());
  }
  return call;
}

std::pair<Tensor, Tensor> run_forward(CudaAttentionCall& call, const Tensor& query,
                                      int64_t value_dim, void* stream) {
  CudaAttention& a = call.a;
  const Attention& p = a.p;
  Tensor out =
      new_on(query, {query.size(0), query.size(1), query.size(2), value_dim}, query.scalar_type());
  Tensor lse = new_on(query, {query.size(0), query.size(2), query.size(1)}, ScalarType::Float);
  if (a.cu_q) {
    torch::stable::zero_(out);
    torch::stable::fill_(lse, -std::numeric_limits<double>::infinity());
  }
  if (lse.numel() == 0 || a.batch == 0) return {out, lse};
  set_outputs(a.p, out, lse);
  settle(a);
  settle_decoding(a, attention_processors());
  Tensor partial;
  if (a.splits > 1) {
    partial = new_on(query, {a.splits * a.partial_rows * (value_dim + 1)}, ScalarType::Float);
    a.partial = static_cast<float*>(partial.mutable_data_ptr());
  }
  (p.dtype == DType::bf16 ? attention_forward_bf16 : attention_forward_f16)(a, stream);
  return {out, lse};
}

}  // namespace lepton
