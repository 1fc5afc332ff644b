// What the attention kernels get: the struct that the CPU kernels share, with device pointers, and
// what only a GPU needs. Lengths that live on the device are read there: no synchronisation.
#pragma once

#include "params/attention.h"

namespace lepton {

constexpr int32_t kNoLimit = 1 << 30;  // beyond any length, and far from overflow

struct CudaAttention {
  Attention p;  // seed and offset come from rng_state
  int32_t batch;
  int32_t q_len, k_len;  // of every sequence; with cumulative lengths the rows of the tensors
  const int32_t* cu_q;   // null: all sequences have q_len queries
  const int32_t* cu_k;
  const int32_t* seqlens_k;    // ends in a cache; null: k_len, or cu_k
  const int32_t* start_k;      // first row in a cache; null: 0
  const int32_t* batch_index;  // null: sequence b is batch b
  int32_t capacity;            // rows of a cache (of its pages) that a sequence can have
  int32_t cache_batch;         // batches or pages of the cache
  int32_t left, right;         // the window; kNoLimit where there is none
  const int64_t* rng_state;    // seed and offset; null: no dropout
  int32_t pack;                // heads that share the rows of a tile: 1 or p.group
  int32_t slots;               // row tiles of one head: of one sequence, or of all with cu_q
  bool vector_kv;              // rows of key and value begin at multiples of 16 bytes
  bool vector_q;               // those of query (backward: and grad_out) too
  int32_t splits;              // shares of the keys; above 1 `partial` is written
  float* partial;              // (splits, batch, heads, q_len) lse, then outputs of value_dim
  int64_t partial_rows;        // batch * heads * q_len
  // Backward only.
  float* stats;  // (batch, heads, q_len) pairs: -lse in units of log 2, and delta
  void* grad_k;
  HeadStrides grad_k_stride;
  void* grad_v;
  HeadStrides grad_v_stride;
  void* grad_bias;  // dense, dtype p.bias_dtype; strides are those of p.grad_bias_*
  int32_t bias_batches, bias_heads, bias_rows, bias_columns;
  float* grad_sinks;
};

}  // namespace lepton
