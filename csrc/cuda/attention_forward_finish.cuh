// The end of a block of forward attention: sums, sinks, log-sum-exp, and the output or a share of
// it.
#pragma once

#include "cuda/attention_score.cuh"
#include "cuda/attention_tile.cuh"

namespace lepton {

// Row of `partial`: lse and value_dim outputs.
template <class Block>
__device__ __forceinline__ int64_t partial_row(const Block& b, int head, int query) {
  return b.split * b.a.partial_rows + (b.s.q_batch * b.a.p.heads + head) * b.a.q_len + query;
}

template <class Block>
__device__ __forceinline__ void store_partial(const Block& b) {
  const int columns = static_cast<int>(b.a.p.value_dim);
#pragma unroll
  for (int m = 0; m < Block::kRows16; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = b.row_of(m, half);
      if (row >= b.rows) continue;
      const Global<float> to =
          Global<float>(b.a.partial) +
          (partial_row(b, b.head_of(row), b.s.q_begin + b.query_of(row)) * (columns + 1) + 1);
#pragma unroll
      for (int n = 0; n < Block::kDim8; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int column = n * 8 + static_cast<int>(lane_index()) % 4 * 2 + i;
          if (column < columns) to.store(column, b.out[m][n][2 * half + i]);
        }
      }
    }
  }
}

// By way of the rows of the query tile that this warp alone has read.
template <class Block>
__device__ __forceinline__ void store_out(const Block& b) {
  using T = typename Block::T;
  using QueryTile = typename Block::QueryTile;
  const Attention& p = b.a.p;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  constexpr int kWarpRows = 16 * Block::kRows16;
  if constexpr (Block::kHoldsQuery) __syncwarp();
  store_to_tile<T, QueryTile>(Block::shared_at(0), warp * kWarpRows, b.out);
  __syncwarp();
  const int columns = static_cast<int>(p.value_dim);
  const Global<T> to = Global<T>::of(static_cast<T*>(p.out)) + b.s.q_batch * p.out_stride.batch;
  store_tile_rows<T, QueryTile, kWarpRows>(
      Block::shared_at(0), warp * kWarpRows, to, columns, [&](int r) -> int64_t {
        const int row = b.first_row + r;
        if (row >= b.rows) return -1;
        return (b.s.q_begin + b.query_of(row)) * p.out_stride.row +
               b.head_of(row) * p.out_stride.head;
      });
}

// Sums of rows over their four lanes, the sink, the log-sum-exp; then the output.
template <class Block>
__device__ __forceinline__ void finish_forward(Block& b) {
  const Attention& p = b.a.p;
  const bool partial = Block::kGeneral && b.a.splits > 1;
#pragma unroll
  for (int m = 0; m < Block::kRows16; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = b.row_sum[m][half];
      sum += __shfl_xor_sync(kFullWarp, sum, 1);
      sum += __shfl_xor_sync(kFullWarp, sum, 2);
      const int row = b.row_of(m, half);
      float most = b.row_max[m][half] * b.scale_log2, factor = 1.0f;
      if (b.row_max[m][half] == minus_infinity()) most = minus_infinity();
      if (p.sinks && !partial && row < b.rows) {
        const float sink = Global<const float>(p.sinks).load(b.head_of(row)) * kLog2E;
        const float with_sink = fmaxf(most, sink);
        if (with_sink != minus_infinity()) {
          factor = exp2_approx(most - with_sink);
          sum = fmaf(sum, factor, exp2_approx(sink - with_sink));
          most = with_sink;
        }
      }
      const bool seen = sum > 0.0f || sum != sum;
      factor = seen ? factor / sum : 0.0f;
      const float lse = seen ? (most + log2f(sum)) * kLn2 : minus_infinity();
      if (!partial && b.a.rng_state) factor *= p.dropout_scale;
#pragma unroll
      for (int n = 0; n < Block::kDim8; ++n) {
        b.out[m][n][2 * half] *= factor;
        b.out[m][n][2 * half + 1] *= factor;
      }
      if (row < b.rows && lane_index() % 4 == 0) {
        const int head = b.head_of(row), q = b.s.q_begin + b.query_of(row);
        if (partial) {
          Global<float>(b.a.partial).store(partial_row(b, head, q) * (p.value_dim + 1), lse);
        } else {
          Global<float>(p.lse).store(b.s.q_batch * p.lse_batch + head * p.lse_head + q, lse);
        }
      }
    }
  }
  if (partial) {
    store_partial(b);
  } else {
    store_out(b);
  }
}

}  // namespace lepton
