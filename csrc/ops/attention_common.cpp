#include "ops/attention_common.h"

#include <cstring>

namespace lepton {

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

const Tensor& dense_heads(AttentionCall& call, const Tensor& tensor) {
  call.kept.push_back(with_dense_rows(tensor));
  return call.kept.back();
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
  set_options(p, op, options);

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
  if (bias) set_bias(p, op, kernel_dtype, *bias, query, key.size(1));
  set_per_head(p, call.kept, op, alibi_slopes, sinks, static_cast<int64_t>(call.sequences.size()));
  if (options.dropout_p > 0) {
    check_rng_state(op, rng_state);
    const auto* state = static_cast<const int64_t*>(rng_state->const_data_ptr());
    p.seed = static_cast<uint64_t>(state[0]);
    p.offset = static_cast<uint32_t>(state[1]);
    set_dropout(p, options.dropout_p);
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

std::pair<Tensor, Tensor> new_outputs(AttentionCall& call, const Tensor& query, int64_t value_dim) {
  Tensor out = new_large_tensor({query.size(0), query.size(1), query.size(2), value_dim},
                                query.scalar_type());
  Tensor lse = new_tensor({query.size(0), query.size(2), query.size(1)}, ScalarType::Float);
  set_outputs(call.p, out, lse);
  if (call.covered_rows < call.all_rows) {
    const int64_t bytes = out.numel() * (call.p.dtype == DType::f32 ? 4 : 2);
    std::memset(out.mutable_data_ptr(), 0, static_cast<size_t>(bytes));
    std::fill_n(call.p.lse, lse.numel(), -std::numeric_limits<float>::infinity());
  }
  return {out, lse};
}

}  // namespace lepton
