// Torch side of attention_backward on the CPU.
#include <cmath>
#include <cstring>
#include <tuple>

#include "ops/attention_common.h"

namespace lepton {
namespace {

constexpr const char* kOp = "attention_backward";

// Where gradients of keys and values are summed: one float32 row per key, head and share of rows.
struct Shares {
  int64_t count;       // shares of the rows of one sequence and key head
  int64_t head_padded, value_padded;
  int64_t floats(const AttentionSequence& s) const { return s.k_len * (head_padded + value_padded); }
};

struct GradientRows {
  void* grad_k;
  HeadStrides k_stride;
  void* grad_v;
  HeadStrides v_stride;
};

void* row_of(void* base, const HeadStrides& stride, DType dtype, const AttentionSequence& s,
             int64_t key, int64_t head) {
  const int64_t at = s.k_batch * stride.batch + (s.k_begin + key) * stride.row + head * stride.head;
  return static_cast<char*>(base) + at * (dtype == DType::f32 ? 4 : 2);
}

// Keys [begin, end): sums of the shares, to the dtype of the tensors.
void finish_keys(const AttentionCall& call, const AttentionKernels& kernels, const Shares& shares,
                 const GradientRows& to, const AttentionSequence& s, int64_t head, const float* sums,
                 int64_t begin, int64_t end) {
  const Attention& p = call.p;
  const int64_t stride = shares.floats(s);
  const float* values = sums + s.k_len * shares.head_padded;
  for (int64_t key = begin; key < end; ++key) {
    kernels.finish_row(sums + key * shares.head_padded, shares.count, stride, p.scale, p.head_dim,
                       row_of(to.grad_k, to.k_stride, p.dtype, s, key, head), p.dtype);
    kernels.finish_row(values + key * shares.value_padded, shares.count, stride, 1.0f, p.value_dim,
                       row_of(to.grad_v, to.v_stride, p.dtype, s, key, head), p.dtype);
  }
}

void run_backward(AttentionCall& call, const GradientRows& to) {
  const Attention& p = call.p;
  const AttentionKernels& kernels = choose_attention_kernels();
  const auto threads = static_cast<int64_t>(torch::stable::get_num_threads());
  Shares shares{1, (p.head_dim + kernels.padding - 1) / kernels.padding * kernels.padding,
                (p.value_dim + kernels.padding - 1) / kernels.padding * kernels.padding};
  const int64_t units = std::max<int64_t>(static_cast<int64_t>(call.sequences.size()) * p.kv_heads, 1);
  // Few heads share the work of one by rows, each share with sums of its own.
  if (threads > 1 && units < 4 * threads) shares.count = (4 * threads + units - 1) / units;
  int64_t rows_most = 0, keys_most = 0;
  for (const AttentionSequence& s : call.sequences) {
    rows_most = std::max(rows_most, s.q_len * p.group);
    keys_most = std::max(keys_most, s.k_len);
  }
  constexpr int64_t kFewestRows = 64;
  shares.count = std::clamp<int64_t>(rows_most / kFewestRows, 1, shares.count);

  const bool shared = shares.count > 1;
  int64_t floats = 0;
  for (const AttentionSequence& s : call.sequences) {
    floats += p.kv_heads * shares.count * shares.floats(s);
  }
  Tensor sums;
  float* free_sums = nullptr;
  if (shared) {
    sums = new_tensor({floats}, ScalarType::Float);
    free_sums = static_cast<float*>(sums.mutable_data_ptr());
  }
  std::vector<CostedTask> tasks;
  std::vector<const float*> sums_of;
  for (size_t b = 0; b < call.sequences.size(); ++b) {
    const AttentionSequence& s = call.sequences[b];
    const int64_t rows = s.q_len * p.group;
    for (int64_t h = 0; h < p.kv_heads; ++h) {
      sums_of.push_back(free_sums);
      for (int64_t i = 0; i < shares.count; ++i) {
        AttentionTask task{};
        task.sequence = &s;
        task.sequence_number = static_cast<int64_t>(b);
        task.kv_head = h;
        // Whole blocks of rows, so that only the last share has a partial panel.
        const int64_t blocks = (rows + kFewestRows - 1) / kFewestRows;
        task.row_begin = std::min(rows, blocks * i / shares.count * kFewestRows);
        task.row_end = std::min(rows, blocks * (i + 1) / shares.count * kFewestRows);
        task.k_end = s.k_len;
        const double width = static_cast<double>(3 * p.head_dim + 2 * p.value_dim);
        tasks.push_back({task, score_count(p, task) * width + static_cast<double>(s.k_len)});
        if (shared) {
          tasks.back().task.grad_k = free_sums;
          free_sums += shares.floats(s);
        }
      }
    }
  }
  const int64_t own_floats =
      shared ? 0 : keys_most * (shares.head_padded + shares.value_padded);
  const int64_t scratch = round_up(kernels.backward_scratch(p), 64);
  run_tasks(tasks, scratch + 4 * own_floats, [&](const AttentionTask& given) {
    AttentionTask task = given;
    const AttentionSequence& s = *task.sequence;
    float* own = shared ? task.grad_k
                        : reinterpret_cast<float*>(static_cast<char*>(task.scratch) + scratch);
    std::memset(own, 0, static_cast<size_t>(4 * shares.floats(s)));
    task.grad_k = own;
    task.grad_v = own + s.k_len * shares.head_padded;
    kernels.backward(p, task);
    if (!shared) {
      finish_keys(call, kernels, shares, to, s, task.kv_head, own, 0, s.k_len);
    }
  });
  if (!shared) return;
  for (size_t b = 0; b < call.sequences.size(); ++b) {
    const AttentionSequence& s = call.sequences[b];
    for (int64_t h = 0; h < p.kv_heads; ++h) {
      const float* from = sums_of[b * static_cast<size_t>(p.kv_heads) + static_cast<size_t>(h)];
      torch::stable::parallel_for(0, s.k_len, 256, [&](int64_t begin, int64_t end) {
        finish_keys(call, kernels, shares, to, s, h, from, begin, end);
      });
    }
  }
}

// One task per element of the bias's own batch and heads, and blocks of its rows (or, where rows
// are broadcast, of its keys); it sums over what is broadcast in a fixed order.
void run_bias(AttentionCall& call, const Tensor& bias, Tensor& grad) {
  Attention& p = call.p;
  const AttentionKernels& kernels = choose_attention_kernels();
  Tensor sums = grad.scalar_type() == ScalarType::Float
                    ? grad
                    : new_tensor({bias.size(0), bias.size(1), bias.size(2), bias.size(3)},
                                 ScalarType::Float);
  p.grad_bias = static_cast<float*>(sums.mutable_data_ptr());
  std::memset(p.grad_bias, 0, static_cast<size_t>(4 * sums.numel()));
  const auto stride = [&](int64_t d) { return sums.size(d) == 1 ? 0 : sums.stride(d); };
  p.grad_bias_batch = stride(0);
  p.grad_bias_head = stride(1);
  p.grad_bias_row = stride(2);
  p.grad_bias_column = stride(3);
  const int64_t batches = static_cast<int64_t>(call.sequences.size());
  const int64_t rows = batches ? call.sequences[0].q_len : 0;
  const int64_t keys = batches ? call.sequences[0].k_len : 0;
  const bool by_rows = bias.size(2) != 1 || bias.size(3) == 1;
  const int64_t length = bias.size(2) != 1 ? rows : by_rows ? 1 : keys;
  constexpr int64_t kStep = 192;
  struct Part {
    int64_t batch, head, begin, end;
  };
  std::vector<Part> parts;
  std::vector<CostedTask> tasks;
  for (int64_t b = 0; b < bias.size(0); ++b) {
    for (int64_t h = 0; h < bias.size(1); ++h) {
      for (int64_t i = 0; i < length; i += kStep) {
        AttentionTask task{};
        task.sequence_number = static_cast<int64_t>(parts.size());
        parts.push_back({b, h, i, std::min(length, i + kStep)});
        tasks.push_back({task, 1e6});
      }
    }
  }
  run_tasks(tasks, kernels.backward_scratch(p), [&](const AttentionTask& given) {
    const Part part = parts[static_cast<size_t>(given.sequence_number)];
    for (int64_t b = 0; b < batches; ++b) {
      if (bias.size(0) != 1 && b != part.batch) continue;
      for (int64_t h = 0; h < p.heads; ++h) {
        if (bias.size(1) != 1 && h != part.head) continue;
        AttentionTask task = given;
        task.sequence = &call.sequences[static_cast<size_t>(b)];
        task.sequence_number = b;
        task.kv_head = h / p.group;
        const int64_t first = h % p.group * rows;
        task.row_begin = first + (bias.size(2) != 1 ? part.begin : 0);
        task.row_end = first + (bias.size(2) != 1 ? part.end : rows);
        task.k_begin = by_rows ? 0 : part.begin;
        task.k_end = by_rows ? keys : part.end;
        kernels.backward_bias(p, task);
      }
    }
  });
  if (grad.scalar_type() == ScalarType::Float) return;
  const int64_t n = sums.numel();
  kernels.finish_row(p.grad_bias, 1, 0, 1.0f, n, grad.mutable_data_ptr(),
                     kernel_dtype(kOp, "bias", grad.scalar_type()));
}

// d loss / d sink = -sum of p_sink * delta over batch and rows.
void run_sinks(const AttentionCall& call, Tensor& grad) {
  const Attention& p = call.p;
  std::vector<float> sums(static_cast<size_t>(p.heads), 0.0f);
  for (int64_t h = 0; h < p.heads; ++h) {
    double sum = 0;
    for (const AttentionSequence& s : call.sequences) {
      const int64_t at = s.q_batch * p.lse_batch + h * p.lse_head + s.q_begin;
      for (int64_t i = 0; i < s.q_len; ++i) {
        if (p.lse[at + i] == -std::numeric_limits<float>::infinity()) continue;
        sum -= std::exp(static_cast<double>(p.sinks[h]) - p.lse[at + i]) * p.delta[at + i];
      }
    }
    sums[static_cast<size_t>(h)] = static_cast<float>(sum);
  }
  choose_attention_kernels().finish_row(sums.data(), 1, 0, 1.0f, p.heads, grad.mutable_data_ptr(),
                                        kernel_dtype(kOp, "sinks", grad.scalar_type()));
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> attention_backward(
    const Tensor& grad_out, OptionalTensor grad_lse, const Tensor& query, const Tensor& key,
    const Tensor& value, OptionalTensor bias, OptionalTensor alibi_slopes, OptionalTensor sinks,
    OptionalTensor cu_seqlens_q, OptionalTensor cu_seqlens_k, OptionalTensor rng_state,
    const Tensor& out, const Tensor& lse, double scale, int64_t window_left, int64_t window_right,
    bool bottom_right, double softcap, double dropout_p, bool bias_grad) {
  AttentionCall call = attention_call(
      kOp, query, key, value, bias, alibi_slopes, sinks, cu_seqlens_q, cu_seqlens_k, rng_state,
      {scale, window_left, window_right, bottom_right, softcap, dropout_p});
  Attention& p = call.p;
  const int64_t out_sizes[4] = {query.size(0), query.size(1), query.size(2), value.size(3)};
  const int64_t lse_sizes[3] = {query.size(0), query.size(2), query.size(1)};
  const auto has = [](const Tensor& t, const int64_t* sizes, int64_t dims) {
    bool same = t.dim() == dims;
    for (int64_t d = 0; same && d < dims; ++d) same = t.size(d) == sizes[d];
    return same;
  };
  LEPTON_CHECK(has(grad_out, out_sizes, 4) && grad_out.scalar_type() == query.scalar_type() &&
                   has(out, out_sizes, 4) && out.scalar_type() == query.scalar_type(),
               kOp, ": grad_out and out must have the shape and dtype of the output");
  LEPTON_CHECK(has(lse, lse_sizes, 3) && lse.scalar_type() == ScalarType::Float, kOp,
               ": lse must be float32 of shape (batch, heads, Lq)");
  const Tensor dense_out = dense_heads(call, out), dense_grad = dense_heads(call, grad_out);
  const Tensor dense_lse = torch::stable::contiguous(lse);
  set_outputs(call, dense_out, dense_lse);
  p.grad_out = dense_grad.const_data_ptr();
  p.grad_out_stride = head_strides(dense_grad);
  if (grad_lse) {
    LEPTON_CHECK(has(*grad_lse, lse_sizes, 3) && grad_lse->scalar_type() == ScalarType::Float, kOp,
                 ": grad_lse must be float32 of the shape of lse");
    p.grad_lse = static_cast<const float*>(grad_lse->const_data_ptr());
    p.grad_lse_stride = {grad_lse->stride(0), grad_lse->stride(2), grad_lse->stride(1)};
  }
  Tensor delta = new_tensor({query.size(0), query.size(2), query.size(1)}, ScalarType::Float);
  p.delta = static_cast<float*>(delta.mutable_data_ptr());

  const auto like = [](const Tensor& t) {
    return new_tensor({t.sizes().begin(), t.sizes().end()}, t.scalar_type());
  };
  Tensor grad_q = like(query), grad_k = like(key), grad_v = like(value);
  p.grad_q = grad_q.mutable_data_ptr();
  p.grad_q_stride = head_strides(grad_q);
  const auto clear = [&](Tensor& t) {
    const auto bytes = static_cast<size_t>(t.numel() * (p.dtype == DType::f32 ? 4 : 2));
    if (bytes) std::memset(t.mutable_data_ptr(), 0, bytes);
  };
  if (cu_seqlens_q) {
    // Rows that no sequence covers.
    clear(grad_q), clear(grad_k), clear(grad_v);
  }
  run_backward(call, {grad_k.mutable_data_ptr(), head_strides(grad_k), grad_v.mutable_data_ptr(),
                      head_strides(grad_v)});
  const bool wants_bias = bias && bias_grad;
  LEPTON_CHECK(!wants_bias || !p.bias_is_mask, kOp, ": a boolean bias has no gradient");
  Tensor grad_bias = wants_bias ? like(*bias) : new_tensor({0}, query.scalar_type());
  if (wants_bias) run_bias(call, *bias, grad_bias);
  Tensor grad_sinks = sinks ? like(*sinks) : new_tensor({0}, query.scalar_type());
  if (sinks) run_sinks(call, grad_sinks);
  return {grad_q, grad_k, grad_v, grad_bias, grad_sinks};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lepton, CPU, m) {
  m.impl("attention_backward", TORCH_BOX(&attention_backward));
}

}  // namespace lepton
