// Torch side of attention_forward and attention_cached on CUDA. Values that lie on the GPU
// (lengths, page numbers) are not checked, which would wait for it: kernels clamp them into their
// tensors.
#include <tuple>

#include "cuda/attention_call.h"
#include "cuda/attention_reference.h"

namespace lepton {
namespace {

OnDevice::Named named(const char* name, const OptionalTensor& tensor) {
  return {name, tensor ? &*tensor : nullptr};
}

std::tuple<Tensor, Tensor> attention_forward(
    const Tensor& query, const Tensor& key, const Tensor& value, OptionalTensor bias,
    OptionalTensor alibi_slopes, OptionalTensor sinks, OptionalTensor cu_seqlens_q,
    OptionalTensor cu_seqlens_k, OptionalTensor rng_state, double scale, int64_t window_left,
    int64_t window_right, bool bottom_right, double softcap, double dropout_p) {
  constexpr const char* kOp = "attention_forward";
  const OnDevice device(kOp, {"query", &query},
                        {{"key", &key},
                         {"value", &value},
                         named("bias", bias),
                         named("alibi_slopes", alibi_slopes),
                         named("sinks", sinks),
                         named("cu_seqlens_q", cu_seqlens_q),
                         named("cu_seqlens_k", cu_seqlens_k),
                         named("rng_state", rng_state)});
  if (!has_attention_kernel(query, value)) {
    return call_reference<std::tuple<Tensor, Tensor>>(
        kOp, query, key, value, bias, alibi_slopes, sinks, cu_seqlens_q, cu_seqlens_k, rng_state,
        scale, window_left, window_right, bottom_right, softcap, dropout_p);
  }
  CudaAttentionCall call = attention_call(
      kOp, query, key, value, bias, alibi_slopes, sinks, cu_seqlens_q, cu_seqlens_k, rng_state,
      {scale, window_left, window_right, bottom_right, softcap, dropout_p});
  auto [out, lse] = run_forward(call, query, value.size(3), device.stream());
  return {out, lse};
}

constexpr const char* kCached = "attention_cached";

void set_scales(CudaAttentionCall& call, const char* name, const OptionalTensor& scale,
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
  const OnDevice device(kCached, {"query", &query},
                        {{"key", &key},
                         {"value", &value},
                         named("cu_seqlens_q", cu_seqlens_q),
                         {"seqlens_k", &seqlens_k},
                         named("start_k", start_k),
                         named("batch_index", batch_index),
                         named("block_table", block_table),
                         named("key_scale", key_scale),
                         named("value_scale", value_scale),
                         named("alibi_slopes", alibi_slopes),
                         named("sinks", sinks)});
  if (!has_attention_kernel(query, value)) {
    return call_reference<std::tuple<Tensor, Tensor>>(
        kCached, query, key, value, cu_seqlens_q, seqlens_k, start_k, batch_index, block_table,
        key_scale, value_scale, alibi_slopes, sinks, scale, window_left, window_right, softcap);
  }
  CudaAttentionCall call;
  set_heads(call, kCached, query, key, value);
  CudaAttention& a = call.a;
  Attention& p = a.p;
  set_options(call.a.p, kCached, {scale, window_left, window_right, true, softcap, 0.0});
  set_dropout(call.a.p, 0.0);
  set_scales(call, "key_scale", key_scale, key, &p.k_scale, &p.k_scale_stride);
  set_scales(call, "value_scale", value_scale, value, &p.v_scale, &p.v_scale_stride);
  int64_t batch = query.size(0);
  if (cu_seqlens_q) {
    LEPTON_CHECK(query.size(0) == 1, kCached, ": cu_seqlens_q wants a query batch of 1");
    LEPTON_CHECK(cu_seqlens_q->dim() == 1 && cu_seqlens_q->size(0) >= 1, kCached,
                 ": cu_seqlens_q must be int32 of shape (batch + 1,)");
    batch = cu_seqlens_q->size(0) - 1;
    a.cu_q = keep_ints(call, kCached, "cu_seqlens_q", cu_seqlens_q, batch + 1);
  }
  a.batch = static_cast<int32_t>(batch);
  a.cache_batch = static_cast<int32_t>(key.size(0));
  int64_t capacity = key.size(1);
  if (block_table) {
    LEPTON_CHECK(!batch_index, kCached, ": batch_index and block_table exclude each other");
    LEPTON_CHECK(block_table->scalar_type() == ScalarType::Int && block_table->dim() == 2 &&
                     block_table->size(0) == batch,
                 kCached, ": block_table must be int32 of shape (", batch, ", blocks), got ",
                 tuple(block_table->sizes()));
    call.kept.push_back(torch::stable::contiguous(*block_table));
    p.block_table = static_cast<const int32_t*>(call.kept.back().const_data_ptr());
    p.block_table_stride = block_table->size(1);
    p.page = key.size(1);
    // Without pages there is nothing that a table could point to.
    capacity = key.size(0) > 0 ? p.page * block_table->size(1) : 0;
  } else {
    LEPTON_CHECK(batch_index || key.size(0) == batch, kCached, ": key must have the batch size ",
                 batch, " of query, got ", key.size(0));
  }
  LEPTON_CHECK(capacity <= std::numeric_limits<int32_t>::max(), kCached,
               ": a sequence of the cache has more rows than 32 bits count");
  a.capacity = static_cast<int32_t>(key.size(0) > 0 ? capacity : 0);
  a.seqlens_k = keep_ints(call, kCached, "seqlens_k", seqlens_k, batch);
  a.start_k = keep_ints(call, kCached, "start_k", start_k, batch);
  a.batch_index = keep_ints(call, kCached, "batch_index", batch_index, batch);
  set_per_head(call.a.p, call.kept, kCached, alibi_slopes, sinks, batch);
  auto [out, lse] = run_forward(call, query, value.size(3), device.stream());
  return {out, lse};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lepton, CUDA, m) {
  m.impl("attention_forward", TORCH_BOX(&attention_forward));
  m.impl("attention_cached", TORCH_BOX(&attention_cached));
}

}  // namespace lepton
