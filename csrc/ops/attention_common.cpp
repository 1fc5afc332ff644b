#include "ops/attention_common.h"

#include <cstring>

namespace lepton {
namespace {

constexpr int64_t kMostRows = (int64_t{1} << 24) - 1;  // float32 counts lanes and keys exactly

bool is_bool(const Tensor& tensor) { return tensor.scalar_type() == ScalarType::Bool; }

void set_bias(AttentionCall& call, const char* op, const Tensor& bias, const Tensor& query,
              int64_t columns) {
  const int64_t want[4] = {query.size(0), query.size(2), query.size(1), columns};
  LEPTON_CHECK(bias.dim() == 4, op, ": bias must have four dimensions, got ", tuple(bias.sizes()));
  for (int64_t d = 0; d < 4; ++d) {
    LEPTON_CHECK(bias.size(d) == 1 || bias.size(d) == want[d], op,
                 ": bias must broadcast to (batch, heads, Lq, Lk), got ", tuple(bias.sizes()));
  }
  const auto stride = [&](int64_t d) { return bias.size(d) == 1 ? 0 : bias.stride(d); };
  Attention& p = call.p;
  p.bias_is_mask = is_bool(bias);
  p.bias_dtype = p.bias_is_mask ? DType::i8 : kernel_dtype(op, "bias", bias.scalar_type());
  LEPTON_CHECK(p.bias_is_mask || p.bias_dtype != DType::i8, op,
               ": bias must be bool or float, got int8");
  p.bias = bias.const_data_ptr();
  p.bias_batch = stride(0);
  p.bias_head = stride(1);
  p.bias_row = stride(2);
  p.bias_column = stride(3);
}

}  // namespace

const AttentionKernels& choose_attention_kernels(DType dtype, DType kv_dtype) {
#if defined(__x86_64__)
  if ((isa::allowed() & isa::kAmxBf16Level) == isa::kAmxBf16Level) {
    if (dtype == DType::bf16 && kv_dtype == DType::bf16) return kAttentionAmx;
    // Its products see 16 bits of a query, too few for float32.
    if (dtype != DType::f32 && kv_dtype == DType::i8) return kAttentionAmxInt8Cache;
  }
  static const Candidate<const AttentionKernels*> candidates[] = {
      {isa::kVnniLevel, &kAttentionAvx512},
      {isa::kAvx2Level, &kAttentionAvx2},
      {isa::kGeneric, &kAttentionGeneric},
  };
  return *choose(candidates, isa::allowed());
#else
  return kAttentionGeneric;
#endif
}

HeadStrides head_strides(const Tensor& tensor) {
  return {tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

const Tensor& dense_heads(AttentionCall& call, const Tensor& tensor) {
  call.kept.push_back(with_dense_rows(tensor));
  return call.kept.back();
}

const float* kept_floats(AttentionCall& call, const Tensor& tensor) {
  Tensor dense = torch::stable::contiguous(tensor);
  if (dense.scalar_type() != ScalarType::Float) {
    dense = torch::stable::to(dense, ScalarType::Float);
  }
  call.kept.push_back(dense);
  return static_cast<const float*>(dense.const_data_ptr());
}

void check_heads(const char* op, const Tensor& query, const Tensor& key, const Tensor& value) {
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

void set_query(AttentionCall& call, const char* op, const Tensor& query) {
  Attention& p = call.p;
  p.dtype = kernel_dtype(op, "query", query.scalar_type());
  LEPTON_CHECK(p.dtype != DType::i8, op, ": query must be float32, bfloat16 or float16, got int8");
  const Tensor& q = dense_heads(call, query);
  p.q = q.const_data_ptr();
  p.q_stride = head_strides(q);
  p.heads = query.size(2);
  p.head_dim = query.size(3);
  call.all_rows = query.size(0) * query.size(1);
}

void set_options(AttentionCall& call, const char* op, const AttentionOptions& options) {
  LEPTON_CHECK(options.window_left >= -1 && options.window_right >= -1, op,
               ": window_size must be at least 0, or -1 for no limit");
  LEPTON_CHECK(options.softcap >= 0 && std::isfinite(options.softcap), op,
               ": softcap must be 0 (off) or positive and finite, got ", options.softcap);
  LEPTON_CHECK(options.dropout_p >= 0 && options.dropout_p < 1, op,
               ": dropout_p must be at least 0 and below 1, got ", options.dropout_p);
  LEPTON_CHECK(std::isfinite(options.scale), op, ": scale must be finite, got ", options.scale);
  Attention& p = call.p;
  p.scale = static_cast<float>(options.scale);
  p.softcap = static_cast<float>(options.softcap);
  // Beyond any length, and far from overflow.
  p.window_left = std::min<int64_t>(options.window_left, int64_t{1} << 40);
  p.window_right = std::min<int64_t>(options.window_right, int64_t{1} << 40);
  p.bottom_right = options.bottom_right;
}

void set_per_head(AttentionCall& call, const char* op, const OptionalTensor& alibi_slopes,
                  const OptionalTensor& sinks, int64_t batch) {
  Attention& p = call.p;
  const auto floating = [](const Tensor& tensor) {
    return is_float(tensor.scalar_type()) || tensor.scalar_type() == ScalarType::Double;
  };
  if (alibi_slopes) {
    LEPTON_CHECK(alibi_slopes->scalar_type() == ScalarType::Float ||
                     alibi_slopes->scalar_type() == ScalarType::Double,
                 op, ": alibi_slopes must be float32 or float64, got ",
                 name_of(alibi_slopes->scalar_type()));
    const bool per_batch = alibi_slopes->dim() == 2 && alibi_slopes->size(0) == batch;
    LEPTON_CHECK((alibi_slopes->dim() == 1 || per_batch) &&
                     alibi_slopes->size(alibi_slopes->dim() - 1) == p.heads,
                 op, ": alibi_slopes must have shape (heads,) or (batch, heads), got ",
                 tuple(alibi_slopes->sizes()));
    p.alibi = kept_floats(call, *alibi_slopes);
    p.alibi_batch = alibi_slopes->dim() == 2 ? p.heads : 0;
  }
  if (sinks) {
    LEPTON_CHECK(floating(*sinks), op, ": sinks must be float, got ",
                 name_of(sinks->scalar_type()));
    LEPTON_CHECK(sinks->dim() == 1 && sinks->size(0) == p.heads, op,
                 ": sinks must have shape (heads,), got ", tuple(sinks->sizes()));
    p.sinks = kept_floats(call, *sinks);
  }
}

std::vector<int64_t> read_cu_seqlens(const char* op, const char* name, const Tensor& cu_seqlens,
                                     int64_t rows) {
  LEPTON_CHECK(cu_seqlens.dim() == 1 && cu_seqlens.size(0) >= 1 &&
                   cu_seqlens.scalar_type() == ScalarType::Int,
               op, ": ", name, " must be int32 of shape (batch + 1,)");
  const Tensor dense = torch::stable::contiguous(cu_seqlens);
  const auto* values = static_cast<const int32_t*>(dense.const_data_ptr());
  std::vector<int64_t> bounds(values, values + dense.size(0));
  LEPTON_CHECK(bounds.front() == 0, op, ": ", name, " must start at 0, got ", bounds.front());
  for (size_t i = 1; i < bounds.size(); ++i) {
    LEPTON_CHECK(bounds[i] >= bounds[i - 1], op, ": ", name, " must not decrease, got ",
                 bounds[i - 1], " then ", bounds[i], " at ", i);
  }
  LEPTON_CHECK(bounds.back() <= rows, op, ": ", name, " must end within the ", rows,
               " rows of its tensor, got ", bounds.back());
  return bounds;
}

AttentionCall attention_call(const char* op, const Tensor& query, const Tensor& key,
                             const Tensor& value, const OptionalTensor& bias,
                             const OptionalTensor& alibi_slopes, const OptionalTensor& sinks,
                             const OptionalTensor& cu_seqlens_q, const OptionalTensor& cu_seqlens_k,
                             const OptionalTensor& rng_state, const AttentionOptions& options) {
  check_heads(op, query, key, value);
  LEPTON_CHECK(key.size(0) == query.size(0), op, ": key must have the batch size of query");
  LEPTON_CHECK(
      key.scalar_type() == query.scalar_type() && value.scalar_type() == query.scalar_type(), op,
      ": key and value must have the dtype of query");
  AttentionCall call;
  call.kept.reserve(8);
  Attention& p = call.p;
  set_query(call, op, query);
  const Tensor k = dense_heads(call, key), v = dense_heads(call, value);
  p.kv_dtype = p.dtype;
  p.k = k.const_data_ptr();
  p.k_stride = head_strides(k);
  p.v = v.const_data_ptr();
  p.v_stride = head_strides(v);
  p.kv_heads = key.size(2);
  p.group = p.kv_heads ? p.heads / p.kv_heads : 1;
  p.value_dim = value.size(3);
  set_options(call, op, options);

  LEPTON_CHECK(cu_seqlens_q.has_value() == cu_seqlens_k.has_value(), op,
               ": cu_seqlens_q and cu_seqlens_k must be given together");
  if (cu_seqlens_q) {
    LEPTON_CHECK(query.size(0) == 1 && !bias, op,
                 ": variable lengths want a batch of 1 and no bias");
    const auto q = read_cu_seqlens(op, "cu_seqlens_q", *cu_seqlens_q, query.size(1));
    const auto kv = read_cu_seqlens(op, "cu_seqlens_k", *cu_seqlens_k, key.size(1));
    LEPTON_CHECK(q.size() == kv.size(), op, ": cu_seqlens_k must have the shape of cu_seqlens_q");
    for (size_t b = 0; b + 1 < q.size(); ++b) {
      call.sequences.push_back({0, q[b], q[b + 1] - q[b], 0, kv[b], kv[b + 1] - kv[b]});
    }
    call.covered_rows = q.back();
  } else {
    for (int64_t b = 0; b < query.size(0); ++b) {
      call.sequences.push_back({b, 0, query.size(1), b, 0, key.size(1)});
    }
    call.covered_rows = call.all_rows;
  }
  if (bias) set_bias(call, op, *bias, query, key.size(1));
  set_per_head(call, op, alibi_slopes, sinks, static_cast<int64_t>(call.sequences.size()));
  if (options.dropout_p > 0) {
    LEPTON_CHECK(rng_state && rng_state->scalar_type() == ScalarType::Long &&
                     rng_state->numel() == 2 && rng_state->is_contiguous(),
                 op, ": rng_state must be int64 of shape (2,) when dropout_p is above 0");
    const auto* state = static_cast<const int64_t*>(rng_state->const_data_ptr());
    p.seed = static_cast<uint64_t>(state[0]);
    p.offset = static_cast<uint32_t>(state[1]);
    const double threshold = options.dropout_p * 4294967296.0 + 0.5;
    p.dropout_below = threshold < 4294967295.0 ? static_cast<uint32_t>(threshold) : 0xFFFFFFFFu;
    p.dropout_scale = static_cast<float>(1.0 / (1.0 - options.dropout_p));
  }
  return call;
}

Tensor new_large_tensor(const std::vector<int64_t>& sizes, ScalarType dtype) {
  // malloc gives blocks of this size back to the system, and new pages fault at their first touch.
  constexpr int64_t kGivenBack = 4 << 20;
  Tensor tensor = new_tensor(sizes, dtype);
  const int64_t bytes = tensor.numel() * static_cast<int64_t>(tensor.element_size());
  if (bytes >= kGivenBack) ask_for_huge_pages(tensor.mutable_data_ptr(), bytes);
  return tensor;
}

void set_outputs(AttentionCall& call, const Tensor& out, const Tensor& lse) {
  Attention& p = call.p;
  p.out = out.mutable_data_ptr();
  p.out_stride = head_strides(out);
  p.lse = static_cast<float*>(lse.mutable_data_ptr());
  p.lse_batch = lse.stride(0);
  p.lse_head = lse.stride(1);
}

std::pair<Tensor, Tensor> new_outputs(AttentionCall& call, const Tensor& query, int64_t value_dim) {
  Tensor out = new_large_tensor({query.size(0), query.size(1), query.size(2), value_dim},
                                query.scalar_type());
  Tensor lse = new_tensor({query.size(0), query.size(2), query.size(1)}, ScalarType::Float);
  set_outputs(call, out, lse);
  if (call.covered_rows < call.all_rows) {
    const int64_t bytes = out.numel() * (call.p.dtype == DType::f32 ? 4 : 2);
    std::memset(out.mutable_data_ptr(), 0, static_cast<size_t>(bytes));
    std::fill_n(call.p.lse, lse.numel(), -std::numeric_limits<float>::infinity());
  }
  return {out, lse};
}

}  // namespace lepton
