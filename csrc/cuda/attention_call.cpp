#include "cuda/attention_call.h"

namespace lepton {
namespace {

constexpr int64_t kMostRows = (int64_t{1} << 24) - 1;  // positions are exact in float32

void set_bias(CudaAttentionCall& call, const char* op, const Tensor& given, const Tensor& query,
              int64_t columns) {
  const int64_t want[4] = {query.size(0), query.size(2), query.size(1), columns};
  LEPTON_CHECK(given.dim() == 4, op, ": bias must have four dimensions, got ",
               tuple(given.sizes()));
  for (int64_t d = 0; d < 4; ++d) {
    LEPTON_CHECK(given.size(d) == 1 || given.size(d) == want[d], op,
                 ": bias must broadcast to (batch, heads, Lq, Lk), got ", tuple(given.sizes()));
  }
  Tensor bias = given;
  if (bias.scalar_type() == ScalarType::Double) bias = torch::stable::to(bias, ScalarType::Float);
  call.kept.push_back(bias);
  CudaAttention& a = call.a;
  Attention& p = a.p;
  p.bias_is_mask = bias.scalar_type() == ScalarType::Bool;
  LEPTON_CHECK(p.bias_is_mask || is_float(bias.scalar_type()), op,
               ": bias must be bool or float, got ", name_of(bias.scalar_type()));
  p.bias_dtype = p.bias_is_mask ? DType::i8 : kernel_dtype(op, "bias", bias.scalar_type());
  p.bias = bias.const_data_ptr();
  const auto stride = [&](int64_t d) { return bias.size(d) == 1 ? 0 : bias.stride(d); };
  p.bias_batch = stride(0);
  p.bias_head = stride(1);
  p.bias_row = stride(2);
  p.bias_column = stride(3);
  a.bias_batches = static_cast<int32_t>(bias.size(0));
  a.bias_heads = static_cast<int32_t>(bias.size(1));
  a.bias_rows = static_cast<int32_t>(bias.size(2));
  a.bias_columns = static_cast<int32_t>(bias.size(3));
}

const float* keep_floats(CudaAttentionCall& call, const Tensor& tensor) {
  Tensor dense = torch::stable::contiguous(tensor);
  if (dense.scalar_type() != ScalarType::Float) {
    dense = torch::stable::to(dense, ScalarType::Float);
  }
  call.kept.push_back(dense);
  return static_cast<const float*>(dense.const_data_ptr());
}

}  // namespace

bool has_attention_kernel(const Tensor& query, const Tensor& value) {
  constexpr int64_t kWidest = 256;
  return (query.scalar_type() == ScalarType::BFloat16 || query.scalar_type() == ScalarType::Half) &&
         (query.dim() != 4 || query.size(3) <= kWidest) &&
         (value.dim() != 4 || value.size(3) <= kWidest);
}

HeadStrides head_strides(const Tensor& tensor) {
  return {tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

Tensor keep(CudaAttentionCall& call, const Tensor& tensor) {
  call.kept.push_back(with_dense_rows(tensor));
  return call.kept.back();
}

void set_heads(CudaAttentionCall& call, const char* op, const Tensor& query, const Tensor& key,
               const Tensor& value) {
  for (const Tensor* tensor : {&query, &key, &value}) {
    LEPTON_CHECK(tensor->dim() == 4, op,
                 ": query, key and value must have shape (batch, length, heads, head_dim), got ",
                 tuple(tensor->sizes()));
    LEPTON_CHECK(tensor->size(1) <= kMostRows, op, ": lengths above ", kMostRows,
                 " are not supported, got ", tensor->size(1));
  }
  LEPTON_CHECK(key.size(3) == query.size(3), op, ": key must have the head dimension of query");
  LEPTON_CHECK(value.size(1) == key.size(1), op, ": value must have the length of key");
  LEPTON_CHECK(value.size(2) == key.size(2), op, ": value must have the heads of key");
  LEPTON_CHECK(value.size(0) == key.size(0), op, ": value must have the batch size of key");
  LEPTON_CHECK(key.size(2) == 0 ? query.size(2) == 0 : query.size(2) % key.size(2) == 0, op,
               ": heads of query must be a multiple of the heads of key");
  LEPTON_CHECK(
      key.scalar_type() == value.scalar_type() &&
          (key.scalar_type() == query.scalar_type() || key.scalar_type() == ScalarType::Char),
      op, ": key and value must have the dtype of query");
  CudaAttention& a = call.a;
  Attention& p = a.p;
  const Tensor q = keep(call, query), k = keep(call, key), v = keep(call, value);
  p.dtype = kernel_dtype(op, "query", query.scalar_type());
  p.kv_dtype = kernel_dtype(op, "key", key.scalar_type());
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

void set_options(CudaAttentionCall& call, const char* op, const AttentionOptions& options) {
  LEPTON_CHECK(options.window_left >= -1 && options.window_right >= -1, op,
               ": window_size must be at least 0, or -1 for no limit");
  LEPTON_CHECK(options.softcap >= 0 && std::isfinite(options.softcap), op,
               ": softcap must be 0 (off) or positive and finite, got ", options.softcap);
  LEPTON_CHECK(options.dropout_p >= 0 && options.dropout_p < 1, op,
               ": dropout_p must be at least 0 and below 1, got ", options.dropout_p);
  LEPTON_CHECK(std::isfinite(options.scale), op, ": scale must be finite, got ", options.scale);
  Attention& p = call.a.p;
  p.scale = static_cast<float>(options.scale);
  p.softcap = static_cast<float>(options.softcap);
  p.window_left = options.window_left;
  p.window_right = options.window_right;
  p.bottom_right = options.bottom_right;
  set_dropout(call.a, options.dropout_p);
}

void set_per_head(CudaAttentionCall& call, const char* op, const OptionalTensor& alibi_slopes,
                  const OptionalTensor& sinks, int64_t batch) {
  Attention& p = call.a.p;
  if (alibi_slopes) {
    const ScalarType dtype = alibi_slopes->scalar_type();
    LEPTON_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, op,
                 ": alibi_slopes must be float32 or float64, got ", name_of(dtype));
    const bool per_batch = alibi_slopes->dim() == 2 && alibi_slopes->size(0) == batch;
    LEPTON_CHECK((alibi_slopes->dim() == 1 || per_batch) &&
                     alibi_slopes->size(alibi_slopes->dim() - 1) == p.heads,
                 op, ": alibi_slopes must have shape (heads,) or (batch, heads), got ",
                 tuple(alibi_slopes->sizes()));
    p.alibi = keep_floats(call, *alibi_slopes);
    p.alibi_batch = alibi_slopes->dim() == 2 ? p.heads : 0;
  }
  if (sinks) {
    const ScalarType dtype = sinks->scalar_type();
    LEPTON_CHECK(is_float(dtype) || dtype == ScalarType::Double, op, ": sinks must be float, got ",
                 name_of(dtype));
    LEPTON_CHECK(sinks->dim() == 1 && sinks->size(0) == p.heads, op,
                 ": sinks must have shape (heads,), got ", tuple(sinks->sizes()));
    p.sinks = keep_floats(call, *sinks);
  }
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
  set_options(call, op, options);
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
  set_per_head(call, op, alibi_slopes, sinks, batch);
  if (options.dropout_p > 0) {
    LEPTON_CHECK(rng_state && rng_state->scalar_type() == ScalarType::Long &&
                     rng_state->numel() == 2 && rng_state->is_contiguous(),
                 op, ": rng_state must be int64 of shape (2,) when dropout_p is above 0");
    call.kept.push_back(*rng_state);
    a.rng_state = static_cast<const int64_t*>(rng_state->const_data_ptr());
  }
  return call;
}

void set_outputs(CudaAttentionCall& call, const Tensor& out, const Tensor& lse) {
  Attention& p = call.a.p;
  p.out = out.mutable_data_ptr();
  p.out_stride = head_strides(out);
  p.lse = static_cast<float*>(lse.mutable_data_ptr());
  p.lse_batch = lse.stride(0);
  p.lse_head = lse.stride(1);
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
  set_outputs(call, out, lse);
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
