// The small kernels around attention: rows of gradients, merging shares of keys, the gradient of
// sinks. Every sum has a fixed order.
#pragma once

#include "cuda/attention_score.cuh"

namespace lepton {

constexpr int kReduceThreads = 128;

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    x += __shfl_xor_sync(kFullWarp, x, distance);
  }
  return x;
}

// A warp for each row (batch, head, query): stats are -lse in units of log 2 and
// delta = sum(grad_out * out) - grad_lse.
template <class T>
__global__ void __launch_bounds__(kReduceThreads) attention_stats_kernel(const CudaAttention a) {
  const Attention& p = a.p;
  const int64_t row = int64_t{blockIdx.x} * (kReduceThreads / 32) + threadIdx.x / 32;
  const int heads = static_cast<int>(p.heads);
  const int64_t batch = row / a.q_len / heads;
  const int head = static_cast<int>(row / a.q_len % heads), query = static_cast<int>(row % a.q_len);
  if (row >= a.partial_rows) return;
  const Global<const T> grad = Global<const T>::of(static_cast<const T*>(p.grad_out)) +
                               (batch * p.grad_out_stride.batch + query * p.grad_out_stride.row +
                                head * p.grad_out_stride.head);
  const Global<const T> out =
      Global<const T>::of(static_cast<const T*>(p.out)) +
      (batch * p.out_stride.batch + query * p.out_stride.row + head * p.out_stride.head);
  float sum = 0.0f;
  for (int i = static_cast<int>(lane_index()); i < static_cast<int>(p.value_dim); i += 32) {
    sum = fmaf(to_float(grad.load(i)), to_float(out.load(i)), sum);
  }
  sum = warp_sum(sum);
  if (lane_index() != 0) return;
  if (p.grad_lse) {
    sum -= Global<const float>(p.grad_lse)
               .load(batch * p.grad_lse_stride.batch + head * p.grad_lse_stride.head +
                     query * p.grad_lse_stride.row);
  }
  const float lse =
      Global<const float>(p.lse).load(batch * p.lse_batch + head * p.lse_head + query);
  // A row that sees nothing: every weight is 2^-inf.
  const float minus_lse = lse == minus_infinity() ? lse : -lse * kLog2E;
  Global<float>(a.stats).template store_as<float2>(2 * row, make_float2(minus_lse, sum));
}

// A warp for each row: outputs of the shares of keys, weighed by their log-sum-exp.
template <class T>
__global__ void __launch_bounds__(kReduceThreads) attention_merge_kernel(const CudaAttention a) {
  const Attention& p = a.p;
  const int64_t row = int64_t{blockIdx.x} * (kReduceThreads / 32) + threadIdx.x / 32;
  if (row >= a.partial_rows) return;
  const int heads = static_cast<int>(p.heads), columns = static_cast<int>(p.value_dim);
  const int64_t batch = row / a.q_len / heads;
  const int head = static_cast<int>(row / a.q_len % heads), query = static_cast<int>(row % a.q_len);
  if (a.cu_q) {
    // Rows that no sequence covers were never written: they stay zero.
    const int covered = Global<const int32_t>(a.cu_q).load(a.batch);
    if (query >= covered) return;
  }
  const Global<const float> shares(a.partial);
  const auto share_at = [&](int split) { return (split * a.partial_rows + row) * (columns + 1); };
  const float sink = p.sinks ? Global<const float>(p.sinks).load(head) : minus_infinity();
  float most = sink;
  for (int split = 0; split < a.splits; ++split) {
    most = fmaxf(most, shares.load(share_at(split)));
  }
  const float origin = most == minus_infinity() ? 0.0f : most;
  float sum = exp2_approx((sink - origin) * kLog2E);
  for (int split = 0; split < a.splits; ++split) {
    sum += exp2_approx((shares.load(share_at(split)) - origin) * kLog2E);
  }
  const bool seen = sum > 0.0f || sum != sum;
  const Global<T> out =
      Global<T>::of(static_cast<T*>(p.out)) +
      (batch * p.out_stride.batch + query * p.out_stride.row + head * p.out_stride.head);
  for (int i = static_cast<int>(lane_index()); i < columns; i += 32) {
    float value = 0.0f;
    for (int split = 0; split < a.splits; ++split) {
      const int64_t at = share_at(split);
      value =
          fmaf(exp2_approx((shares.load(at) - origin) * kLog2E), shares.load(at + 1 + i), value);
    }
    out.store(i, from_float<T>(seen ? value / sum : 0.0f));
  }
  if (lane_index() == 0) {
    Global<float>(p.lse).store(batch * p.lse_batch + head * p.lse_head + query,
                               seen ? origin + log2f(sum) * kLn2 : minus_infinity());
  }
}

// A block for each head: -sum of exp(sink - lse) * delta over batches and queries.
template <int kThreads>
__global__ void __launch_bounds__(kThreads) attention_sinks_kernel(const CudaAttention a) {
  const Attention& p = a.p;
  const int head = static_cast<int>(blockIdx.x), heads = static_cast<int>(p.heads);
  const int64_t rows = a.partial_rows / heads;  // of one head
  const int covered =
      a.cu_q ? clamp_to(Global<const int32_t>(a.cu_q).load(a.batch), 0, a.q_len) : a.q_len;
  const float sink = Global<const float>(p.sinks).load(head) * kLog2E;
  float sum = 0.0f;
  for (int64_t i = threadIdx.x; i < rows; i += kReduceThreads) {
    const int64_t batch = i / a.q_len, query = i % a.q_len;
    if (query >= covered) continue;
    const float2 pair = Global<const float>(a.stats).template load_as<float2>(
        2 * ((batch * heads + head) * a.q_len + query));
    if (pair.x == minus_infinity()) continue;
    sum = fmaf(-exp2_approx(sink + pair.x), pair.y, sum);
  }
  sum = warp_sum(sum);
  const Shared<float> sums(0);
  if (lane_index() == 0) sums.store(static_cast<int>(threadIdx.x) / 32, sum);
  __syncthreads();
  if (threadIdx.x == 0) {
    float total = 0.0f;
    for (int warp = 0; warp < kReduceThreads / 32; ++warp) total += sums.load(warp);
    Global<float>(a.grad_sinks).store(head, total);
  }
}

}  // namespace lepton
