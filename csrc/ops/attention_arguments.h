// Arguments of the attention ops that the CPU and the CUDA kernels take alike.
#pragma once

#include <algorithm>

#include "ops/tensor.h"
#include "params/attention.h"

namespace lepton {

using OptionalTensor = std::optional<Tensor>;

struct AttentionOptions {
  double scale;
  int64_t window_left, window_right;
  bool bottom_right;
  double softcap, dropout_p;
};

// Element strides of a (B, L, H, D) tensor.
inline HeadStrides head_strides(const Tensor& tensor) {
  return {tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

inline void check_heads(const char* op, const Tensor& query, const Tensor& key,
                        const Tensor& value) {
  constexpr int64_t kMostRows = (int64_t{1} << 24) - 1;  // float32 counts positions exactly
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
}

inline void set_options(Attention& p, const char* op, const AttentionOptions& options) {
  LEPTON_CHECK(options.window_left >= -1 && options.window_right >= -1, op,
               ": window_size must be at least 0, or -1 for no limit");
  LEPTON_CHECK(options.softcap >= 0 && std::isfinite(options.softcap), op,
               ": softcap must be 0 (off) or positive and finite, got ", options.softcap);
  LEPTON_CHECK(options.dropout_p >= 0 && options.dropout_p < 1, op,
               ": dropout_p must be at least 0 and below 1, got ", options.dropout_p);
  LEPTON_CHECK(std::isfinite(options.scale), op, ": scale must be finite, got ", options.scale);
  p.scale = static_cast<float>(options.scale);
  p.softcap = static_cast<float>(options.softcap);
  // Beyond any length, and far from overflow.
  p.window_left = std::min<int64_t>(options.window_left, int64_t{1} << 40);
  p.window_right = std::min<int64_t>(options.window_right, int64_t{1} << 40);
  p.bottom_right = options.bottom_right;
}

// Fills what describes a bias that broadcasts to (batch, heads, Lq, columns) and is kept by the
// caller. `dtype_of` is kernel_dtype or that of another device.
template <class DTypeOf>
void set_bias(Attention& p, const char* op, const DTypeOf& dtype_of, const Tensor& bias,
              const Tensor& query, int64_t columns) {
  const int64_t want[4] = {query.size(0), query.size(2), query.size(1), columns};
  LEPTON_CHECK(bias.dim() == 4, op, ": bias must have four dimensions, got ", tuple(bias.sizes()));
  for (int64_t d = 0; d < 4; ++d) {
    LEPTON_CHECK(bias.size(d) == 1 || bias.size(d) == want[d], op,
                 ": bias must broadcast to (batch, heads, Lq, Lk), got ", tuple(bias.sizes()));
  }
  const auto stride = [&](int64_t d) { return bias.size(d) == 1 ? 0 : bias.stride(d); };
  p.bias_is_mask = bias.scalar_type() == ScalarType::Bool;
  p.bias_dtype = p.bias_is_mask ? DType::i8 : dtype_of(op, "bias", bias.scalar_type());
  LEPTON_CHECK(p.bias_is_mask || p.bias_dtype != DType::i8, op,
               ": bias must be bool or float, got int8");
  p.bias = bias.const_data_ptr();
  p.bias_batch = stride(0);
  p.bias_head = stride(1);
  p.bias_row = stride(2);
  p.bias_column = stride(3);
}

// ALiBi slopes and sinks as dense float32, which `kept` keeps alive; wants p.heads.
inline void set_per_head(Attention& p, std::vector<Tensor>& kept, const char* op,
                         const OptionalTensor& alibi_slopes, const OptionalTensor& sinks,
                         int64_t batch) {
  const auto keep = [&](const Tensor& tensor) {
    kept.push_back(dense_floats(tensor));
    return static_cast<const float*>(kept.back().const_data_ptr());
  };
  if (alibi_slopes) {
    const ScalarType dtype = alibi_slopes->scalar_type();
    LEPTON_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, op,
                 ": alibi_slopes must be float32 or float64, got ", name_of(dtype));
    const bool per_batch = alibi_slopes->dim() == 2 && alibi_slopes->size(0) == batch;
    LEPTON_CHECK((alibi_slopes->dim() == 1 || per_batch) &&
                     alibi_slopes->size(alibi_slopes->dim() - 1) == p.heads,
                 op, ": alibi_slopes must have shape (heads,) or (batch, heads), got ",
                 tuple(alibi_slopes->sizes()));
    p.alibi = keep(*alibi_slopes);
    p.alibi_batch = alibi_slopes->dim() == 2 ? p.heads : 0;
  }
  if (sinks) {
    const ScalarType dtype = sinks->scalar_type();
    LEPTON_CHECK(is_float(dtype) || dtype == ScalarType::Double, op, ": sinks must be float, got ",
                 name_of(dtype));
    LEPTON_CHECK(sinks->dim() == 1 && sinks->size(0) == p.heads, op,
                 ": sinks must have shape (heads,), got ", tuple(sinks->sizes()));
    p.sinks = keep(*sinks);
  }
}

inline void check_rng_state(const char* op, const OptionalTensor& rng_state) {
  LEPTON_CHECK(rng_state && rng_state->scalar_type() == ScalarType::Long &&
                   rng_state->numel() == 2 && rng_state->is_contiguous(),
               op, ": rng_state must be int64 of shape (2,) when dropout_p is above 0");
}

// Points the parameters at the outputs.
inline void set_outputs(Attention& p, const Tensor& out, const Tensor& lse) {
  p.out = out.mutable_data_ptr();
  p.out_stride = head_strides(out);
  p.lse = static_cast<float*>(lse.mutable_data_ptr());
  p.lse_batch = lse.stride(0);
  p.lse_head = lse.stride(1);
}

}  // namespace lepton
