// Torch side of attention_forward and attention_cached on the CPU.
#include <tuple>

#include "ops/attention_common.h"

namespace lepton {
namespace {

std::tuple<Tensor, Tensor> attention_forward(
    const Tensor& query, const Tensor& key, const Tensor& value, OptionalTensor bias,
    OptionalTensor alibi_slopes, OptionalTensor sinks, OptionalTensor cu_seqlens_q,
    OptionalTensor cu_seqlens_k, OptionalTensor rng_state, double scale, int64_t window_left,
    int64_t window_right, bool bottom_right, double softcap, double dropout_p) {
  AttentionCall call = attention_call(
      "attention_forward", query, key, value, bias, alibi_slopes, sinks, cu_seqlens_q, cu_seqlens_k,
      rng_state, {scale, window_left, window_right, bottom_right, softcap, dropout_p});
  auto [out, lse] = new_outputs(call, query, value.size(3));
  run_attention(call);
  return {out, lse};
}

constexpr const char* kCached = "attention_cached";

// One int per sequence.
std::vector<int64_t> read_ints(const char* name, const Tensor& tensor, int64_t count, int64_t low,
                               int64_t high) {
  LEPTON_CHECK(
      tensor.scalar_type() == ScalarType::Int && tensor.dim() == 1 && tensor.size(0) == count,
      kCached, ": ", name, " must be int32 of shape (", count, ",), got ", tuple(tensor.sizes()));
  const Tensor dense = torch::stable::contiguous(tensor);
  const auto* values = static_cast<const int32_t*>(dense.const_data_ptr());
  for (int64_t i = 0; i < count; ++i) {
    LEPTON_CHECK(values[i] >= low && values[i] <= high, kCached, ": ", name, " must be from ", low,
                 " to ", high, ", got ", values[i], " at ", i);
  }
  return {values, values + count};
}

void set_scales(AttentionCall& call, const char* name, const OptionalTensor& scale,
                const Tensor& cache, const float** data, HeadStrides* strides) {
  LEPTON_CHECK(scale.has_value() == (cache.scalar_type() == ScalarType::Char), kCached, ": ", name,
               " must be given exactly with an int8 cache");
  if (!scale) return;
  LEPTON_CHECK(scale->scalar_type() == ScalarType::Float && scale->dim() == 3 &&
                   scale->size(0) == cache.size(0) && scale->size(1) == cache.size(1) &&
                   scale->size(2) == cache.size(2),
               kCached, ": ", name,
               " must be float32 of the first three dimensions of its cache, got ",
               tuple(scale->sizes()));
  call.kept.push_back(*scale);
  *data = static_cast<const float*>(scale->const_data_ptr());
  *strides = head_strides(*scale);
}

std::tuple<Tensor, Tensor> attention_cached(const Tensor& query, const Tensor& key,
                                            const Tensor& value, OptionalTensor cu_seqlens_q,
                                            const Tensor& seqlens_k, OptionalTensor start_k,
                                            OptionalTensor batch_index, OptionalTensor block_table,
                                            OptionalTensor key_scale, OptionalTensor value_scale,
                                            OptionalTensor alibi_slopes, OptionalTensor sinks,
                                            double scale, int64_t window_left, int64_t window_right,
                                            double softcap) {
  check_heads(kCached, query, key, value);
  AttentionCall call;
  call.kept.reserve(8);
  Attention& p = call.p;
  set_query(call, kCached, query);
  LEPTON_CHECK(
      key.scalar_type() == value.scalar_type() &&
          (key.scalar_type() == query.scalar_type() || key.scalar_type() == ScalarType::Char),
      kCached, ": key and value must have the dtype of query, or int8");
  const Tensor k = dense_heads(call, key), v = dense_heads(call, value);
  p.kv_dtype = kernel_dtype(kCached, "key", key.scalar_type());
  p.k = k.const_data_ptr();
  p.k_stride = head_strides(k);
  p.v = v.const_data_ptr();
  p.v_stride = head_strides(v);
  p.kv_heads = key.size(2);
  p.group = p.kv_heads ? p.heads / p.kv_heads : 1;
  p.value_dim = value.size(3);
  set_options(p, kCached, {scale, window_left, window_right, true, softcap, 0.0});
  set_scales(call, "key_scale", key_scale, key, &p.k_scale, &p.k_scale_stride);
  set_scales(call, "value_scale", value_scale, value, &p.v_scale, &p.v_scale_stride);

  std::vector<int64_t> q_bounds;
  if (cu_seqlens_q) {
    LEPTON_CHECK(query.size(0) == 1, kCached, ": cu_seqlens_q wants a query batch of 1");
    q_bounds = read_cu_seqlens(kCached, "cu_seqlens_q", *cu_seqlens_q, query.size(1));
  }
  const int64_t batch = cu_seqlens_q ? static_cast<int64_t>(q_bounds.size()) - 1 : query.size(0);
  int64_t capacity = key.size(1);
  Tensor table;
  if (block_table) {
    LEPTON_CHECK(!batch_index, kCached, ": batch_index and block_table exclude each other");
    LEPTON_CHECK(block_table->scalar_type() == ScalarType::Int && block_table->dim() == 2 &&
                     block_table->size(0) == batch,
                 kCached, ": block_table must be int32 of shape (", batch, ", blocks), got ",
                 tuple(block_table->sizes()));
    table = torch::stable::contiguous(*block_table);
    call.kept.push_back(table);
    p.block_table = static_cast<const int32_t*>(table.const_data_ptr());
    p.block_table_stride = table.size(1);
    p.page = key.size(1);
    capacity = p.page * table.size(1);
  } else {
    LEPTON_CHECK(batch_index || key.size(0) == batch, kCached, ": key must have the batch size ",
                 batch, " of query, got ", key.size(0));
  }
  const auto ends = read_ints("seqlens_k", seqlens_k, batch, 0, capacity);
  std::vector<int64_t> starts(static_cast<size_t>(batch), 0), indices;
  if (start_k) starts = read_ints("start_k", *start_k, batch, 0, capacity);
  if (batch_index) indices = read_ints("batch_index", *batch_index, batch, 0, key.size(0) - 1);
  for (int64_t b = 0; b < batch; ++b) {
    const auto i = static_cast<size_t>(b);
    AttentionSequence s{};
    s.q_batch = cu_seqlens_q ? 0 : b;
    s.q_begin = cu_seqlens_q ? q_bounds[i] : 0;
    s.q_len = cu_seqlens_q ? q_bounds[i + 1] - q_bounds[i] : query.size(1);
    s.k_batch = batch_index ? indices[i] : b;
    s.k_begin = starts[i];
    s.k_len = std::max<int64_t>(ends[i] - starts[i], 0);
    if (block_table && s.k_len > 0) {
      for (int64_t j = s.k_begin / p.page; j <= (ends[i] - 1) / p.page; ++j) {
        const int32_t page = p.block_table[b * p.block_table_stride + j];
        LEPTON_CHECK(page >= 0 && page < key.size(0), kCached,
                     ": block_table must point to pages 0 to ", key.size(0) - 1, ", got ", page,
                     " at (", b, ", ", j, ")");
      }
    }
    call.sequences.push_back(s);
  }
  call.covered_rows = cu_seqlens_q ? q_bounds.back() : call.all_rows;
  set_per_head(p, call.kept, kCached, alibi_slopes, sinks, batch);
  auto [out, lse] = new_outputs(call, query, value.size(3));
  run_attention(call);
  return {out, lse};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lepton, CPU, m) {
  m.impl("attention_forward", TORCH_BOX(&attention_forward));
  m.impl("attention_cached", TORCH_BOX(&attention_cached));
}

}  // namespace lepton
