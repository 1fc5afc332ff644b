// Decisions about an attention call on the GPU that need no kernel: plain host code.
#pragma once

#include "cuda/attention_params.h"

namespace lepton {

template <int kValue>
struct IntConstant {
  static constexpr int value = kValue;
};
template <bool kCondition, class A, class B>
struct Choose {
  using type = A;
};
template <class A, class B>
struct Choose<false, A, B> {
  using type = B;
};

// The lean kernels know the window, sinks, grouped heads and cumulative lengths.
inline bool needs_general(const CudaAttention& a) {
  const Attention& p = a.p;
  return p.bias || p.alibi || p.softcap > 0 || a.rng_state || p.block_table || p.k_scale ||
         p.v_scale || p.kv_dtype != p.dtype || !a.vector_kv || !a.vector_q || !(p.scale > 0) ||
         a.pack > 1 || a.splits > 1;
}

// Whether rows of 16-bit elements begin at multiples of 16 bytes and are whole chunks of 16 bytes.
inline bool is_vector(const void* data, const HeadStrides& stride, int64_t columns) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride.batch % 8 == 0 &&
         stride.row % 8 == 0 && stride.head % 8 == 0 && columns % 8 == 0;
}

// What follows from the tensors of a call.
inline void settle(CudaAttention& a) {
  Attention& p = a.p;
  const auto limit = [](int64_t window) {
    return window < 0 || window > kNoLimit ? kNoLimit : static_cast<int32_t>(window);
  };
  a.left = limit(p.window_left);
  a.right = limit(p.window_right);
  a.vector_kv = p.kv_dtype == p.dtype && is_vector(p.k, p.k_stride, p.head_dim) &&
                is_vector(p.v, p.v_stride, p.value_dim);
  a.vector_q = is_vector(p.q, p.q_stride, p.head_dim) &&
               (!p.grad_out || is_vector(p.grad_out, p.grad_out_stride, p.value_dim));
  a.pack = 1;
  a.splits = 1;
  a.partial_rows = (a.cu_q ? 1 : int64_t{a.batch}) * p.heads * a.q_len;
}

// Few queries: the heads that share keys share a tile. Few tiles: they share the keys, so that all
// of the GPU's `processors` work; every share has at least some 256 keys.
inline void settle_decoding(CudaAttention& a, int64_t processors) {
  const Attention& p = a.p;
  constexpr int64_t kFewQueries = 16, kTileRows = 64, kFewestKeys = 256, kMostSplits = 128;
  if (a.batch == 0 || a.p.heads == 0) return;
  const int64_t queries = a.cu_q ? (a.q_len + a.batch - 1) / a.batch : a.q_len;
  if (queries > kFewQueries) return;
  if (p.group > 1) a.pack = static_cast<int32_t>(p.group);
  const int64_t keys = a.seqlens_k ? a.capacity : a.cu_k ? a.k_len / a.batch : a.k_len;
  const int64_t tiles =
      (queries * a.pack + kTileRows - 1) / kTileRows * a.batch * (p.heads / a.pack);
  const int64_t wanted = 2 * processors / (tiles > 0 ? tiles : 1), possible = keys / kFewestKeys;
  int64_t splits = wanted < possible ? wanted : possible;
  splits = splits < 1 || a.rng_state ? 1 : splits > kMostSplits ? kMostSplits : splits;
  a.splits = static_cast<int32_t>(splits);
}

}  // namespace lepton
