// What masks and options do to a block's scores and to their weights.
#pragma once

#include "cuda/attention_score.cuh"
#include "cuda/attention_tile.cuh"

namespace lepton {

// Scores of a block of keys to units of log 2 where options change them; -inf where hidden.
template <class Block>
__device__ __forceinline__ void mask(const Block& b,
                                     Accumulators<Block::kRows16, Block::kKeys8>& scores,
                                     int first_key) {
  const int column = first_key + static_cast<int>(lane_index()) % 4 * 2;
#pragma unroll
  for (int m = 0; m < Block::kRows16; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = b.row_of(m, half), q = b.query_of(row), head = b.head_of(row);
      const int low = q + b.s.shift - b.a.left,
                high = min(b.s.k_len, q + b.s.shift + b.a.right + 1);
#pragma unroll
      for (int n = 0; n < Block::kKeys8; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& score = scores[m][n][2 * half + i];
          const int key = column + n * 8 + i;
          if constexpr (Block::kGeneral) {
            float unused;
            score = score_of(b.a, b.s, head, q, key, score, unused);
          }
          if (key < low || key >= high) score = minus_infinity();
        }
      }
    }
  }
}

// Zeroes what dropout drops of 8 keys, and applies the scales of int8 values.
template <class Block>
__device__ __forceinline__ void weigh(const Block& b, float (&p)[4], int m, int first_key) {
  const Attention& o = b.a.p;
  if (b.a.rng_state) {
    int queries[2];
    uint32_t planes[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = b.row_of(m, half);
      queries[half] = b.query_of(row);
      planes[half] = static_cast<uint32_t>(b.s.number * static_cast<int>(o.heads) + b.head_of(row));
    }
    const uint32_t kept = Dropout(b.a).kept_of_row_tile(b.a, first_key, queries, planes);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (!(kept >> i & 1u)) p[i] = 0.0f;
    }
  }
  if (o.v_scale) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int key = first_key + static_cast<int>(lane_index()) % 4 * 2 + i;
      const float scale = value_scale_of(b.a, b.s, b.kv_head, key);
      p[i] *= scale;
      p[2 + i] *= scale;
    }
  }
}

}  // namespace lepton
