// Torch side of attention_backward on the CPU.
#include <cmath>
#include <cstring>
#include <tuple>

#include "ops/attention_common.h"

namespace lepton {
namespace {

constexpr const char* kOp = "attention_backward";

// Rows at which `count` shares of equal cost end.
std::vector<int64_t> share_rows(const Attention& p, const AttentionTask& whole, int64_t count) {
  constexpr int64_t kStep = 64;
  std::vector<double> cost{0.0};
  for (int64_t row = 0; row < whole.row_end; row += kStep) {
    AttentionTask step = whole;
    step.row_begin = row;
    step.row_end = std::min(row + kStep, whole.row_end);
    cost.push_back(cost.back() + score_count(p, step));
  }
  std::vector<int64_t> ends;
  size_t at = 0;
  for (int64_t i = 1; i < count; ++i) {
    const double wanted = cost.back() * static_cast<double>(i) / static_cast<double>(count);
    while (at + 1 < cost.size() && cost[at] < wanted) ++at;
    ends.push_back(std::min(static_cast<int64_t>(at) * kStep, whole.row_end));
  }
  ends.push_back(whole.row_end);
  return ends;
}

void run_backward(AttentionCall& call) {
  const Attention& p = call.p;
  const AttentionKernels& kernels = choose_attention_kernels(p.dtype, p.kv_dtype);
  const auto threads = static_cast<int64_t>(torch::stable::get_num_threads());
  const int64_t units =
      std::max<int64_t>(static_cast<int64_t>(call.sequences.size()) * p.kv_heads, 1);
  int64_t rows_most = 0, keys_most = 0;
  for (const AttentionSequence& s : call.sequences) {
    rows_most = std::max(rows_most, s.q_len * p.group);
    keys_most = std::max(keys_most, s.k_len);
  }
  // Few heads share the work of one by rows, each share with sums of its own.
  constexpr int64_t kFewestRows = 64;
  int64_t shares = 1;
  if (threads > 1 && units < 4 * threads) shares = (2 * threads + units - 1) / units;
  shares = std::clamp<int64_t>(rows_most / kFewestRows, 1, shares);
  const bool shared = shares > 1;

  int64_t floats = 0;
  for (const AttentionSequence& s : call.sequences) {
    floats += p.kv_heads * shares * kernels.gradient_floats(p, s.k_len);
  }
  Tensor sums;
  float* free_sums = nullptr;
  if (shared) {
    sums = new_large_tensor({floats}, ScalarType::Float);
    free_sums = static_cast<float*>(sums.mutable_data_ptr());
  }
  std::vector<CostedTask> tasks;
  std::vector<AttentionTask> heads;
  for (size_t b = 0; b < call.sequences.size(); ++b) {
    const AttentionSequence& s = call.sequences[b];
    for (int64_t h = 0; h < p.kv_heads; ++h) {
      AttentionTask task{};
      task.sequence = &s;
      task.sequence_number = static_cast<int64_t>(b);
      task.kv_head = h;
      task.row_end = s.q_len * p.group;
      task.k_end = s.k_len;
      task.grad_keys = free_sums;
      heads.push_back(task);
      for (const int64_t end : share_rows(p, task, shares)) {
        task.row_end = end;
        const double width = static_cast<double>(3 * p.head_dim + 2 * p.value_dim);
        tasks.push_back({task, score_count(p, task) * width + static_cast<double>(s.k_len)});
        task.row_begin = end;
        if (shared) task.grad_keys = free_sums += kernels.gradient_floats(p, s.k_len);
      }
    }
  }
  const AttentionPack& pack = kernels.backward_pack;
  const Packed packed(call, pack, [&](const AttentionSequence&, int64_t) { return shared; });
  const int64_t scratch = round_up(kernels.backward_scratch(p), 64);
  const int64_t own_sums = shared ? 0 : round_up(4 * kernels.gradient_floats(p, keys_most), 64);
  const int64_t own_packed = shared || !pack.bytes ? 0 : pack.bytes(p, keys_most);
  run_tasks(tasks, scratch + own_sums + own_packed, [&](const AttentionTask& given) {
    AttentionTask task = given;
    const AttentionSequence& s = *task.sequence;
    auto* own = static_cast<char*>(task.scratch) + scratch;
    if (!shared) task.grad_keys = reinterpret_cast<float*>(own);
    const int64_t count = kernels.gradient_floats(p, s.k_len);
    std::memset(task.grad_keys, 0, static_cast<size_t>(4 * count));
    task.packed = packed.at(task);
    if (own_packed) {
      pack.run(p, task, own + own_sums);
      task.packed = own + own_sums;
    }
    kernels.backward(p, task);
    if (!shared) kernels.finish_keys(p, task, task.grad_keys, 1, 0);
  });
  if (!shared) return;
  for (const AttentionTask& head : heads) {
    const int64_t step = kernels.gradient_keys, keys = head.sequence->k_len;
    torch::stable::parallel_for(0, (keys + step - 1) / step, 1, [&](int64_t begin, int64_t end) {
      AttentionTask task = head;
      task.k_begin = begin * step;
      task.k_end = std::min(end * step, keys);
      kernels.finish_keys(p, task, head.grad_keys, shares, kernels.gradient_floats(p, keys));
    });
  }
}

// One task per element of the bias's own batch and heads, and blocks of its rows (or, where rows
// are broadcast, of its keys); it sums over what is broadcast in a fixed order.
void run_bias(AttentionCall& call, const Tensor& bias, Tensor& grad) {
  Attention& p = call.p;
  const AttentionKernels& kernels = choose_attention_kernels(p.dtype, p.kv_dtype);
  Tensor sums =
      grad.scalar_type() == ScalarType::Float
          ? grad
          : new_tensor({bias.size(0), bias.size(1), bias.size(2), bias.size(3)}, ScalarType::Float);
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
        task.next = nullptr;
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
  choose_attention_kernels(p.dtype, p.kv_dtype)
      .finish_row(sums.data(), 1, 0, 1.0f, p.heads, grad.mutable_data_ptr(),
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
  set_outputs(p, dense_out, dense_lse);
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
    return new_large_tensor({t.sizes().begin(), t.sizes().end()}, t.scalar_type());
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
  p.grad_k = grad_k.mutable_data_ptr();
  p.grad_k_stride = head_strides(grad_k);
  p.grad_v = grad_v.mutable_data_ptr();
  p.grad_v_stride = head_strides(grad_v);
  run_backward(call);
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
