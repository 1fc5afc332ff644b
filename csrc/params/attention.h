// Plain structs between the torch side and the attention kernels. No torch, no intrinsics.
#pragma once

#include <cstdint>

#include "params/int8_linear.h"  // DType

namespace lepton {

// Element (b, l, h, d) lies at b * batch + l * row + h * head + d.
struct HeadStrides {
  int64_t batch, row, head;
};

// One sequence: where its queries and keys are.
struct AttentionSequence {
  int64_t q_batch, q_begin, q_len;
  int64_t k_batch, k_begin, k_len;  // with a block table, k_batch is its row
};

struct Attention {
  int64_t heads, kv_heads, group;  // group = heads / kv_heads
  int64_t head_dim, value_dim;
  DType dtype;  // query, output and gradients
  const void* q;
  HeadStrides q_stride;
  DType kv_dtype;  // dtype, or i8 with scales
  const void* k;
  HeadStrides k_stride;
  const void* v;
  HeadStrides v_stride;
  const float* k_scale;  // int8 cache: one per row and head
  const float* v_scale;
  HeadStrides k_scale_stride, v_scale_stride;
  const int32_t* block_table;  // null: not paged
  int64_t block_table_stride;
  int64_t page;  // rows of a page; `batch` strides are between pages then

  const void* bias;   // null: none
  bool bias_is_mask;  // bytes; 0 hides
  DType bias_dtype;
  int64_t bias_batch, bias_head, bias_row, bias_column;  // strides; 0 where it is broadcast
  const float* alibi;                                    // null: none
  int64_t alibi_batch;                                   // stride; slopes of a batch are contiguous
  const float* sinks;                                    // null: none; one per head

  float scale, softcap;               // softcap 0: off
  int64_t window_left, window_right;  // -1: no limit
  bool bottom_right;
  uint32_t dropout_below;  // random words below this drop; 0: no dropout
  float dropout_scale;
  uint64_t seed;
  uint32_t offset;

  void* out;  // dense (B, Lq, H, Dv)
  HeadStrides out_stride;
  float* lse;  // (B, H, Lq); row stride 1
  int64_t lse_batch, lse_head;

  // Backward only.
  const void* grad_out;
  HeadStrides grad_out_stride;
  const float* grad_lse;  // null: zero
  HeadStrides grad_lse_stride;
  float* delta;  // as lse: rowsum(grad_out * out) - grad_lse
  void* grad_q;
  HeadStrides grad_q_stride;
  void* grad_k;
  HeadStrides grad_k_stride;
  void* grad_v;
  HeadStrides grad_v_stride;
  float* grad_bias;  // dense, of the shape of the bias
  int64_t grad_bias_batch, grad_bias_head, grad_bias_row, grad_bias_column;
};

// Words of the generator below the threshold drop a weight.
inline void set_dropout(Attention& p, double dropout_p) {
  const double threshold = dropout_p * 4294967296.0 + 0.5;
  p.dropout_below = threshold < 4294967295.0 ? static_cast<uint32_t>(threshold) : 0xFFFFFFFFu;
  p.dropout_scale = static_cast<float>(1.0 / (1.0 - dropout_p));
}

// Rows are the queries of all heads that share a key head: row r is query r % q_len of head
// kv_head * group + r / q_len. A task is a range of rows of one sequence and key head.
struct AttentionTask {
  const AttentionSequence* sequence;
  int64_t sequence_number;
  int64_t kv_head;
  int64_t row_begin, row_end;
  int64_t k_begin, k_end;     // keys to look at, within [0, k_len)
  float* partial;             // null: write the output; else (value_dim + 2) floats a row
  int64_t decode_heads;       // decoding: key heads from kv_head on, with one range of rows each
  int64_t partial_head;       // decoding: floats from the partial results of one head to the next
  float* grad_keys;           // backward: sums of all keys and values, added to
  const void* packed;         // what `pack` of the pass made of the sequence and key head, or null
  const AttentionTask* next;  // what the thread runs behind this one, if that is known, or null
  void* scratch;              // 64-byte aligned, of the kernel's size
};

// Keys and values of one sequence and key head, laid out once for all of its tasks.
struct AttentionPack {
  // Bytes for k_len keys; the pointer is null where a kernel reads keys as they are.
  int64_t (*bytes)(const Attention&, int64_t k_len);
  // Packs [k_begin, k_end) of the task, multiples of `keys` but for the last.
  void (*run)(const Attention&, const AttentionTask&, void* packed);
  int64_t keys;
};

struct AttentionKernels {
  const char* isa;
  int64_t lanes;       // rows that one panel holds
  int64_t block_rows;  // most rows that share a block of keys
  int64_t few_rows;    // up to here `decode` is faster than `forward`
  AttentionPack forward_pack, backward_pack;
  int64_t (*forward_scratch)(const Attention&);
  int64_t (*decode_scratch)(const Attention&, int64_t heads);
  int64_t (*backward_scratch)(const Attention&);
  void (*forward)(const Attention&, const AttentionTask&);
  void (*decode)(const Attention&, const AttentionTask&);
  // Merges `count` partial results, `stride` floats apart, into the output.
  void (*merge)(const Attention&, const AttentionTask&, const float* partial, int64_t count,
                int64_t stride);
  void (*backward)(const Attention&, const AttentionTask&);
  int64_t gradient_keys;  // keys that `finish_keys` wants together
  int64_t (*gradient_floats)(const Attention&, int64_t k_len);  // of grad_keys
  // Gradients of keys [k_begin, k_end): the sum of `count` grad_keys, `stride` apart.
  void (*finish_keys)(const Attention&, const AttentionTask&, const float* sums, int64_t count,
                      int64_t stride);
  // Adds the gradient of the bias of the rows of a task; wants delta.
  void (*backward_bias)(const Attention&, const AttentionTask&);
  // to[i] = scale * sum of `count` rows of n floats, `stride` apart.
  void (*finish_row)(const float* from, int64_t count, int64_t stride, float scale, int64_t n,
                     void* to, DType dtype);
};

}  // namespace lepton
