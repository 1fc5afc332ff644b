// Which attention kernels run for a call, and with which shape; for the GPU and the emulator.
#pragma once

#include "cuda/attention_backward_bias.cuh"
#include "cuda/attention_backward_keys.cuh"
#include "cuda/attention_backward_queries.cuh"
#include "cuda/attention_forward.cuh"
#include "cuda/attention_plan.h"
#include "cuda/attention_reduce.cuh"
#include "cuda/launch.h"

namespace lepton {

// Slots of tiles of `rows` rows of one head: see sequence_of_slot.
inline int64_t attention_slots(bool cumulative, int64_t length, int64_t scale, int64_t batch,
                               int64_t rows) {
  return cumulative ? length * scale / rows + batch : (length * scale + rows - 1) / rows;
}

template <class Launch>
void launch_blocks(const Launch& launch, void (*kernel)(CudaAttention), int64_t blocks, int threads,
                   uint32_t shared_bytes, const CudaAttention& a) {
  if (blocks == 0) return;
  launch(kernel,
         LaunchShape{{static_cast<uint32_t>(blocks), 1, 1},
                     {static_cast<uint32_t>(threads), 1, 1},
                     shared_bytes},
         a);
}

template <class Launch>
void launch_rows(const Launch& launch, void (*kernel)(CudaAttention), const CudaAttention& a) {
  const int64_t warps = kReduceThreads / 32;
  launch_blocks(launch, kernel, (a.partial_rows + warps - 1) / warps, kReduceThreads, 0, a);
}

// Calls f with the padded head dimension as a constant.
template <int... kDims>
struct PaddedDims {
  template <class F>
  static void choose(int64_t dim, const F& f) {
    bool found = false;
    const auto attempt = [&](auto constant) {
      if (!found && dim <= constant.value) {
        found = true;
        f(constant);
      }
    };
    (attempt(IntConstant<kDims>{}), ...);
  }
};
template <bool kGeneral>
using ForwardDims = typename Choose<kGeneral, PaddedDims<64, 128, 256>,
                                    PaddedDims<32, 64, 96, 128, 192, 256>>::type;
using BackwardDims = PaddedDims<64, 128, 256>;

inline int64_t widest(const CudaAttention& a) {
  return a.p.head_dim > a.p.value_dim ? a.p.head_dim : a.p.value_dim;
}

template <class T, bool kGeneral, class Launch>
void launch_attention_forward(CudaAttention a, const Launch& launch) {
  ForwardDims<kGeneral>::choose(widest(a), [&](auto dim) {
    using Config = ForwardConfig<T, dim.value, kGeneral>;
    const int64_t slots =
        attention_slots(a.cu_q != nullptr, a.q_len, a.pack, a.batch, Config::kRows);
    a.slots = static_cast<int32_t>(slots);
    const int64_t blocks = slots * (a.p.heads / a.pack) * (a.cu_q ? 1 : a.batch) * a.splits;
    launch_blocks(launch, &attention_forward_kernel<Config>, blocks, Config::kThreads,
                  Config::kSharedBytes, a);
  });
}

template <class T, class Launch>
void launch_attention(const CudaAttention& a, const Launch& launch) {
  if (needs_general(a)) {
    launch_attention_forward<T, true>(a, launch);
  } else {
    launch_attention_forward<T, false>(a, launch);
  }
  if (a.splits > 1) launch_rows(launch, &attention_merge_kernel<T>, a);
}

template <class Config, class Launch>
void launch_backward_keys(CudaAttention a, const Launch& launch) {
  const int64_t slots = attention_slots(a.cu_k != nullptr, a.k_len, 1, a.batch, Config::kKeys);
  a.slots = static_cast<int32_t>(slots);
  launch_blocks(launch, &attention_backward_keys_kernel<Config>,
                slots * a.p.kv_heads * (a.cu_k ? 1 : a.batch), Config::kThreads,
                Config::kSharedBytes, a);
}

template <class T, bool kGeneral, class Launch>
void launch_backward_products(CudaAttention a, const Launch& launch) {
  BackwardDims::choose(widest(a), [&](auto dim) {
    using Queries = BackwardQueriesConfig<T, dim.value, kGeneral>;
    if constexpr (dim.value <= 128) {
      launch_backward_keys<BackwardKeysConfig<T, dim.value, kGeneral, 3>>(a, launch);
    } else {
      launch_backward_keys<BackwardKeysConfig<T, dim.value, kGeneral, 1>>(a, launch);
      launch_backward_keys<BackwardKeysConfig<T, dim.value, kGeneral, 2>>(a, launch);
    }
    const int64_t slots = attention_slots(a.cu_q != nullptr, a.q_len, 1, a.batch, Queries::kRows);
    a.slots = static_cast<int32_t>(slots);
    launch_blocks(launch, &attention_backward_queries_kernel<Queries>,
                  slots * a.p.heads * (a.cu_q ? 1 : a.batch), Queries::kThreads,
                  Queries::kSharedBytes, a);
  });
}

template <class T, class Launch>
void launch_backward_bias(const CudaAttention& a, const Launch& launch) {
  BackwardDims::choose(widest(a), [&](auto dim) {
    using Config = BackwardBiasConfig<T, dim.value>;
    const auto tiles = [](int64_t length, int64_t size) { return (length + size - 1) / size; };
    const int64_t blocks = tiles(a.bias_columns, Config::kKeys) *
                           tiles(a.bias_rows, Config::kRows) * a.bias_heads * a.bias_batches;
    launch_blocks(launch, &attention_backward_bias_kernel<Config>, blocks, Config::kThreads,
                  Config::kSharedBytes, a);
  });
}

template <class T, class Launch>
void launch_attention_backward(const CudaAttention& a, const Launch& launch) {
  launch_rows(launch, &attention_stats_kernel<T>, a);
  if (needs_general(a)) {
    launch_backward_products<T, true>(a, launch);
  } else {
    launch_backward_products<T, false>(a, launch);
  }
  if (a.grad_bias) launch_backward_bias<T>(a, launch);
  if (a.grad_sinks) {
    launch_blocks(launch, &attention_sinks_kernel<kReduceThreads>, a.p.heads, kReduceThreads,
                  kReduceThreads / 32 * sizeof(float), a);
  }
}

}  // namespace lepton
