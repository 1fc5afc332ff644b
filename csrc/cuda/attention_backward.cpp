// Torch side of attention_backward on CUDA.
#include <tuple>

#include "cuda/attention_call.h"
#include "cuda/attention_reference.h"

namespace lepton {
namespace {

constexpr const char* kOp = "attention_backward";

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

bool has_shape(const Tensor& t, std::initializer_list<int64_t> sizes) {
  if (t.dim() != static_cast<int64_t>(sizes.size())) return false;
  int64_t d = 0;
  for (const int64_t size : sizes) {
    if (t.size(d++) != size) return false;
  }
  return true;
}

Tensor new_like(const Tensor& t) {
  return new_on(t, {t.sizes().begin(), t.sizes().end()}, t.scalar_type());
}

void set_grad_bias(CudaAttentionCall& call, Tensor& grad) {
  LEPTON_CHECK(!call.a.p.bias_is_mask, kOp, ": a boolean bias has no gradient");
  CudaAttention& a = call.a;
  const auto stride = [&](int64_t d) { return grad.size(d) == 1 ? 0 : grad.stride(d); };
  a.grad_bias = grad.mutable_data_ptr();
  a.p.grad_bias_batch = stride(0);
  a.p.grad_bias_head = stride(1);
  a.p.grad_bias_row = stride(2);
  a.p.grad_bias_column = stride(3);
}

Gradients attention_backward(const Tensor& grad_out, OptionalTensor grad_lse, const Tensor& query,
                             const Tensor& key, const Tensor& value, OptionalTensor bias,
                             OptionalTensor alibi_slopes, OptionalTensor sinks,
                             OptionalTensor cu_seqlens_q, OptionalTensor cu_seqlens_k,
                             OptionalTensor rng_state, const Tensor& out, const Tensor& lse,
                             double scale, int64_t window_left, int64_t window_right,
                             bool bottom_right, double softcap, double dropout_p, bool bias_grad) {
  const auto named = [](const char* name, const OptionalTensor& tensor) -> OnDevice::Named {
    return {name, tensor ? &*tensor : nullptr};
  };
  const OnDevice device(kOp, {"query", &query},
                        {{"grad_out", &grad_out},
                         named("grad_lse", grad_lse),
                         {"key", &key},
                         {"value", &value},
                         named("bias", bias),
                         named("alibi_slopes", alibi_slopes),
                         named("sinks", sinks),
                         named("cu_seqlens_q", cu_seqlens_q),
                         named("cu_seqlens_k", cu_seqlens_k),
                         named("rng_state", rng_state),
                         {"out", &out},
                         {"lse", &lse}});
  if (!has_attention_kernel(query, value)) {
    return call_reference<Gradients>(kOp, grad_out, grad_lse, query, key, value, bias, alibi_slopes,
                                     sinks, cu_seqlens_q, cu_seqlens_k, rng_state, out, lse, scale,
                                     window_left, window_right, bottom_right, softcap, dropout_p,
                                     bias_grad);
  }
  CudaAttentionCall call = attention_call(
      kOp, query, key, value, bias, alibi_slopes, sinks, cu_seqlens_q, cu_seqlens_k, rng_state,
      {scale, window_left, window_right, bottom_right, softcap, dropout_p});
  CudaAttention& a = call.a;
  Attention& p = a.p;
  const auto is_output = [&](const Tensor& t) {
    return has_shape(t, {query.size(0), query.size(1), query.size(2), value.size(3)}) &&
           t.scalar_type() == query.scalar_type();
  };
  const auto is_lse = [&](const Tensor& t) {
    return has_shape(t, {query.size(0), query.size(2), query.size(1)}) &&
           t.scalar_type() == ScalarType::Float;
  };
  LEPTON_CHECK(is_output(grad_out) && is_output(out), kOp,
               ": grad_out and out must have the shape and dtype of the output");
  LEPTON_CHECK(is_lse(lse), kOp, ": lse must be float32 of shape (batch, heads, Lq)");
  const Tensor dense_out = keep(call, out), dense_grad = keep(call, grad_out);
  const Tensor dense_lse = torch::stable::contiguous(lse);
  set_outputs(p, dense_out, dense_lse);
  p.grad_out = dense_grad.const_data_ptr();
  p.grad_out_stride = head_strides(dense_grad);
  if (grad_lse) {
    LEPTON_CHECK(is_lse(*grad_lse), kOp, ": grad_lse must be float32 of the shape of lse");
    p.grad_lse = static_cast<const float*>(grad_lse->const_data_ptr());
    p.grad_lse_stride = {grad_lse->stride(0), grad_lse->stride(2), grad_lse->stride(1)};
  }
  Tensor grad_q = new_like(query), grad_k = new_like(key), grad_v = new_like(value);
  const bool wants_bias = bias && bias_grad;
  // Rows that no sequence covers stay zero.
  if (a.cu_q) {
    for (Tensor* grad : {&grad_q, &grad_k, &grad_v}) torch::stable::zero_(*grad);
  }
  p.grad_q = grad_q.mutable_data_ptr();
  p.grad_q_stride = head_strides(grad_q);
  a.grad_k = grad_k.mutable_data_ptr();
  a.grad_k_stride = head_strides(grad_k);
  a.grad_v = grad_v.mutable_data_ptr();
  a.grad_v_stride = head_strides(grad_v);
  // The kernels write what they read: a float64 bias gets its gradient by way of float32.
  const bool wide_bias = wants_bias && bias->scalar_type() == ScalarType::Double;
  Tensor grad_bias = new_on(query, {0}, query.scalar_type());
  if (wants_bias) {
    grad_bias = new_on(query, {bias->sizes().begin(), bias->sizes().end()},
                       wide_bias ? ScalarType::Float : bias->scalar_type());
    set_grad_bias(call, grad_bias);
  }
  Tensor sink_sums =
      new_on(query, {sinks ? p.heads : 0}, sinks ? ScalarType::Float : query.scalar_type());
  if (sinks) a.grad_sinks = static_cast<float*>(sink_sums.mutable_data_ptr());
  Tensor stats = new_on(query, {2 * lse.numel()}, ScalarType::Float);
  a.stats = static_cast<float*>(stats.mutable_data_ptr());
  if (a.batch > 0 && p.heads > 0) {
    settle(a);
    (p.dtype == DType::bf16 ? attention_backward_bf16 : attention_backward_f16)(a, device.stream());
  } else {
    if (wants_bias) torch::stable::zero_(grad_bias);
    if (sinks) torch::stable::zero_(sink_sums);
  }
  if (wide_bias) grad_bias = torch::stable::to(grad_bias, ScalarType::Double);
  if (sinks && sinks->scalar_type() != ScalarType::Float) {
    sink_sums = torch::stable::to(sink_sums, sinks->scalar_type());
  }
  return {grad_q, grad_k, grad_v, grad_bias, sink_sums};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lepton, CUDA, m) {
  m.impl("attention_backward", TORCH_BOX(&attention_backward));
}

}  // namespace lepton
