// Entry points of the attention kernels. `meta` holds shapes, element strides and flags, in the
// order in which it is read; tests/simt/attention_calls.py writes it.
#include "cuda/attention_launch.h"
#include "simt/entry.h"

namespace lepton {
namespace {

struct Meta {
  const int64_t* next;
  int64_t take() { return *next++; }
  int32_t take32() { return static_cast<int32_t>(take()); }
  HeadStrides strides() {
    HeadStrides s{};
    s.batch = take();
    s.row = take();
    s.head = take();
    return s;
  }
};

CudaAttention read(Meta& meta, const void* q, const void* k, const void* v, const void* bias,
                   const float* alibi, const float* sinks, const int32_t* cu_q, const int32_t* cu_k,
                   const int64_t* rng_state, double scale, double softcap, double dropout_p) {
  CudaAttention a{};
  Attention& p = a.p;
  p.dtype = static_cast<DType>(meta.take());
  p.kv_dtype = static_cast<DType>(meta.take());
  a.batch = meta.take32();
  a.q_len = meta.take32();
  a.k_len = meta.take32();
  p.heads = meta.take();
  p.kv_heads = meta.take();
  p.group = p.heads / p.kv_heads;
  p.head_dim = meta.take();
  p.value_dim = meta.take();
  p.window_left = meta.take();
  p.window_right = meta.take();
  p.bottom_right = meta.take() != 0;
  p.q_stride = meta.strides();
  p.k_stride = meta.strides();
  p.v_stride = meta.strides();
  p.out_stride = meta.strides();
  p.bias_is_mask = meta.take() != 0;
  p.bias_dtype = static_cast<DType>(meta.take());
  a.bias_batches = meta.take32();
  a.bias_heads = meta.take32();
  a.bias_rows = meta.take32();
  a.bias_columns = meta.take32();
  p.bias_batch = meta.take();
  p.bias_head = meta.take();
  p.bias_row = meta.take();
  p.bias_column = meta.take();
  p.alibi_batch = meta.take();
  p.q = q;
  p.k = k;
  p.v = v;
  p.bias = bias;
  p.alibi = alibi;
  p.sinks = sinks;
  a.cu_q = cu_q;
  a.cu_k = cu_k;
  a.rng_state = dropout_p > 0 ? rng_state : nullptr;
  p.scale = static_cast<float>(scale);
  p.softcap = static_cast<float>(softcap);
  set_dropout(a.p, dropout_p);
  p.lse_head = a.q_len;
  p.lse_batch = p.heads * a.q_len;
  return a;
}

template <class F>
int with_type(DType dtype, const F& f) {
  return simt::run([&] {
    if (dtype == DType::bf16) {
      f(bf16{});
    } else {
      f(f16{});
    }
  });
}

}  // namespace
}  // namespace lepton

using namespace lepton;

LEPTON_SIMT_ENTRY simt_attention_forward(const int64_t* meta_values, const void* q, const void* k,
                                         const void* v, const void* bias, const float* alibi,
                                         const float* sinks, const int32_t* cu_q,
                                         const int32_t* cu_k, const int64_t* rng_state,
                                         double scale, double softcap, double dropout_p, void* out,
                                         float* lse, float* partial, int64_t processors) {
  Meta meta{meta_values};
  CudaAttention a =
      read(meta, q, k, v, bias, alibi, sinks, cu_q, cu_k, rng_state, scale, softcap, dropout_p);
  a.p.out = out;
  a.p.lse = lse;
  settle(a);
  if (partial) {
    settle_decoding(a, processors);
    a.partial = partial;
  }
  return with_type(a.p.dtype,
                   [&](auto type) { launch_attention<decltype(type)>(a, simt::Launcher{}); });
}

LEPTON_SIMT_ENTRY simt_attention_cached(const int64_t* meta_values, const void* q, const void* k,
                                        const void* v, const int32_t* cu_q,
                                        const int32_t* seqlens_k, const int32_t* start_k,
                                        const int32_t* batch_index, const int32_t* block_table,
                                        const float* k_scale, const float* v_scale,
                                        const float* alibi, const float* sinks, double scale,
                                        double softcap, void* out, float* lse, float* partial,
                                        int64_t processors) {
  Meta meta{meta_values};
  CudaAttention a =
      read(meta, q, k, v, nullptr, alibi, sinks, cu_q, nullptr, nullptr, scale, softcap, 0.0);
  a.p.out = out;
  a.p.lse = lse;
  a.seqlens_k = seqlens_k;
  a.start_k = start_k;
  a.batch_index = batch_index;
  a.p.block_table = block_table;
  a.p.block_table_stride = meta.take();
  a.p.page = meta.take();
  a.capacity = meta.take32();
  a.cache_batch = meta.take32();
  a.p.k_scale = k_scale;
  a.p.v_scale = v_scale;
  a.p.k_scale_stride = meta.strides();
  a.p.v_scale_stride = meta.strides();
  settle(a);
  if (partial) {
    settle_decoding(a, processors);
    a.partial = partial;
  }
  return with_type(a.p.dtype,
                   [&](auto type) { launch_attention<decltype(type)>(a, simt::Launcher{}); });
}

LEPTON_SIMT_ENTRY simt_attention_backward(const int64_t* meta_values, const void* q, const void* k,
                                          const void* v, const void* bias, const float* alibi,
                                          const float* sinks, const int32_t* cu_q,
                                          const int32_t* cu_k, const int64_t* rng_state,
                                          double scale, double softcap, double dropout_p, void* out,
                                          float* lse, const void* grad_out, const float* grad_lse,
                                          float* stats, void* grad_q, void* grad_k, void* grad_v,
                                          void* grad_bias, float* grad_sinks) {
  Meta meta{meta_values};
  CudaAttention a =
      read(meta, q, k, v, bias, alibi, sinks, cu_q, cu_k, rng_state, scale, softcap, dropout_p);
  Attention& p = a.p;
  p.out = out;
  p.lse = lse;
  p.grad_out = grad_out;
  p.grad_out_stride = meta.strides();
  p.grad_lse = grad_lse;
  p.grad_lse_stride = meta.strides();
  p.grad_q = grad_q;
  p.grad_q_stride = meta.strides();
  a.grad_k = grad_k;
  a.grad_k_stride = meta.strides();
  a.grad_v = grad_v;
  a.grad_v_stride = meta.strides();
  a.grad_bias = grad_bias;
  p.grad_bias_batch = meta.take();
  p.grad_bias_head = meta.take();
  p.grad_bias_row = meta.take();
  p.grad_bias_column = meta.take();
  a.stats = stats;
  a.grad_sinks = grad_sinks;
  settle(a);
  return with_type(
      p.dtype, [&](auto type) { launch_attention_backward<decltype(type)>(a, simt::Launcher{}); });
}
