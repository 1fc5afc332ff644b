// The gradient of an additive bias: gradients of scores, summed over what was broadcast. A block
// takes a tile of the bias, computes those scores again for every batch, head, row tile and key
// tile that shares it, and sums in registers and in a fixed order.
#pragma once

#include "cuda/attention_gather.cuh"

namespace lepton {

template <class T_, int kDim_>
struct BackwardBiasConfig {
  using T = T_;
  static constexpr int kDim = kDim_;
  static constexpr int kWarps = 4, kThreads = 32 * kWarps;
  static constexpr int kRows = 16 * kWarps;
  static constexpr int kKeys = 32;
  using QueryTile = Tile<kRows, kDim>;
  using KeyTile = Tile<kKeys, kDim>;
  static constexpr uint32_t kGradAt = QueryTile::kBytes;
  static constexpr uint32_t kKeyAt = 2 * QueryTile::kBytes, kValueAt = kKeyAt + KeyTile::kBytes;
  static constexpr uint32_t kSumsAt = kValueAt + KeyTile::kBytes;
  static constexpr uint32_t kSharedBytes = kSumsAt + kWarps * kKeys * 4;
};

template <class Config>
struct BackwardBiasBlock {
  using T = typename Config::T;
  using QueryTile = typename Config::QueryTile;
  using KeyTile = typename Config::KeyTile;
  static constexpr int kKeys8 = Config::kKeys / 8;

  const CudaAttention& a;
  Accumulators<1, kKeys8> sums;

  __device__ __forceinline__ explicit BackwardBiasBlock(const CudaAttention& attention)
      : a(attention) {}

  __device__ __forceinline__ static uint32_t shared_at(uint32_t offset) {
    return Shared<uint8_t>(offset).address();
  }

  __device__ __forceinline__ void copy(const Sequence& s, int head, int first_query,
                                       int first_key) {
    const Attention& p = a.p;
    const auto rows = [&](uint32_t to, const void* data, const HeadStrides& stride,
                          int64_t columns) {
      const int64_t base = s.q_batch * stride.batch + head * stride.head;
      gather_tile<QueryTile, Config::kThreads, T>(
          shared_at(to), Global<const T>::of(static_cast<const T*>(data)),
          static_cast<int>(columns), a.vector_q, [&](int r) -> int64_t {
            const int query = first_query + r;
            return query < s.q_len ? base + query * stride.row : -1;
          });
    };
    rows(0, p.q, p.q_stride, p.head_dim);
    rows(Config::kGradAt, p.grad_out, p.grad_out_stride, p.value_dim);
    const int kv_head = head / static_cast<int>(p.group);
    gather_keys<KeyTile, Config::kThreads, T>(a, s, shared_at(Config::kKeyAt), p.k, p.k_stride,
                                              static_cast<int>(p.head_dim), kv_head, first_key);
    gather_keys<KeyTile, Config::kThreads, T>(a, s, shared_at(Config::kValueAt), p.v, p.v_stride,
                                              static_cast<int>(p.value_dim), kv_head, first_key);
    cp_async_commit();
    cp_async_wait<0>();
  }

  // Adds the gradients of the scores of one tile.
  __device__ __forceinline__ void add(const Sequence& s, int head, int first_query, int first_key,
                                      const Dropout& dropout) {
    __syncthreads();
    copy(s, head, first_query, first_key);
    __syncthreads();
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(lane_index());
    const uint32_t rows =
        QueryTile::lane_a(shared_at(0)) + static_cast<uint32_t>(warp * 16 * QueryTile::kRowBytes);
    Accumulators<1, kKeys8> scores, products;
    clear(scores);
    clear(products);
    multiply_transposed<T, QueryTile, KeyTile, false, 1, kKeys8, 1>(
        scores, nullptr, rows, KeyTile::lane_b(shared_at(Config::kKeyAt)));
    multiply_transposed<T, QueryTile, KeyTile, false, 1, kKeys8, 1>(
        products, nullptr, rows + Config::kGradAt, KeyTile::lane_b(shared_at(Config::kValueAt)));
    int queries[2];
    float minus_lse[2], delta[2];
    uint32_t planes[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      queries[half] = first_query + warp * 16 + half * 8 + lane / 4;
      planes[half] = static_cast<uint32_t>(s.number * static_cast<int>(a.p.heads) + head);
      float2 pair = make_float2(0.0f, 0.0f);
      if (queries[half] < s.q_len) {
        pair = Global<const float>(a.stats).template load_as<float2>(
            2 * ((s.q_batch * a.p.heads + head) * a.q_len + queries[half]));
      }
      minus_lse[half] = pair.x;
      delta[half] = pair.y;
    }
#pragma unroll
    for (int n = 0; n < kKeys8; ++n) {
      uint32_t kept = 15u;
      if (a.rng_state) kept = dropout.kept_of_row_tile(a, first_key + n * 8, queries, planes);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int half = i / 2, key = first_key + n * 8 + lane % 4 * 2 + i % 2;
        float unused, gradient = products[0][n][i];
        const float score = score_of(a, s, head, queries[half], key, scores[0][n][i], unused);
        if (a.rng_state) gradient = kept >> i & 1u ? gradient * a.p.dropout_scale : 0.0f;
        if (is_visible(a, s, queries[half], key)) {
          sums[0][n][i] =
              fmaf(exp2_approx(score + minus_lse[half]), gradient - delta[half], sums[0][n][i]);
        }
      }
    }
  }

  __device__ __forceinline__ void store(int64_t at, float value) const {
    const Attention& p = a.p;
    if (p.bias_dtype == DType::f32) {
      Global<float>::of(static_cast<float*>(a.grad_bias)).store(at, value);
    } else if (p.bias_dtype == DType::bf16) {
      Global<bf16>::of(static_cast<bf16*>(a.grad_bias)).store(at, from_float<bf16>(value));
    } else {
      Global<f16>::of(static_cast<f16*>(a.grad_bias)).store(at, from_float<f16>(value));
    }
  }

  __device__ __forceinline__ void run(int batch, int head, int row_tile, int key_tile) {
    const Attention& p = a.p;
    clear(sums);
    const Dropout dropout(a);
    const bool sum_rows = a.bias_rows == 1, sum_keys = a.bias_columns == 1;
    const int last_batch = a.bias_batches == 1 ? a.batch : batch + 1;
    const int last_head = a.bias_heads == 1 ? static_cast<int>(p.heads) : head + 1;
    const int row_tiles = sum_rows ? ceil_div(a.q_len, Config::kRows) : row_tile + 1;
    const int key_tiles = sum_keys ? ceil_div(a.k_len, Config::kKeys) : key_tile + 1;
    for (int b = batch; b < last_batch; ++b) {
      const Sequence s = sequence_at(a, b);
      for (int h = head; h < last_head; ++h) {
        for (int r = row_tile; r < row_tiles; ++r) {
          for (int k = key_tile; k < key_tiles; ++k) {
            add(s, h, r * Config::kRows, k * Config::kKeys, dropout);
          }
        }
      }
    }
    finish(batch, head, row_tile, key_tile, sum_rows, sum_keys);
  }

  __device__ __forceinline__ void finish(int batch, int head, int row_tile, int key_tile,
                                         bool sum_rows, bool sum_keys) {
    const Attention& p = a.p;
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(lane_index());
    const int64_t base = batch * p.grad_bias_batch + head * p.grad_bias_head;
    if (sum_keys) {
      // To column 0 of this tile: over registers, then over the four lanes of a row.
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float sum = 0.0f;
#pragma unroll
        for (int n = 0; n < kKeys8; ++n) sum += sums[0][n][2 * half] + sums[0][n][2 * half + 1];
        sum += __shfl_xor_sync(kFullWarp, sum, 1);
        sum += __shfl_xor_sync(kFullWarp, sum, 2);
#pragma unroll
        for (int n = 0; n < kKeys8; ++n) {
#pragma unroll
          for (int i = 2 * half; i < 2 * half + 2; ++i) sums[0][n][i] = 0.0f;
        }
        if (lane % 4 == 0) sums[0][0][2 * half] = sum;
      }
    }
    if (!sum_rows) {
#pragma unroll
      for (int n = 0; n < kKeys8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int row = row_tile * Config::kRows + warp * 16 + i / 2 * 8 + lane / 4;
          const int column = key_tile * Config::kKeys + n * 8 + lane % 4 * 2 + i % 2;
          if (row < a.bias_rows && column < a.bias_columns) {
            store(base + row * p.grad_bias_row + column * p.grad_bias_column, sums[0][n][i]);
          }
        }
      }
      return;
    }
    // Over the rows of a warp, then over warps.
    const Shared<float> shared(Config::kSumsAt);
#pragma unroll
    for (int n = 0; n < kKeys8; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float sum = sums[0][n][i] + sums[0][n][i + 2];
        sum += __shfl_xor_sync(kFullWarp, sum, 4);
        sum += __shfl_xor_sync(kFullWarp, sum, 8);
        sum += __shfl_xor_sync(kFullWarp, sum, 16);
        if (lane < 4) shared.store(warp * Config::kKeys + n * 8 + lane * 2 + i, sum);
      }
    }
    __syncthreads();
    if (warp == 0) {
      float total = 0.0f;
      for (int w = 0; w < Config::kWarps; ++w) total += shared.load(w * Config::kKeys + lane);
      const int column = key_tile * Config::kKeys + lane;
      if (column < a.bias_columns) store(base + column * p.grad_bias_column, total);
    }
  }
};

// Blocks: key tiles, row tiles, heads, batches of the bias; one of what it broadcasts.
template <class Config>
__global__ void __launch_bounds__(Config::kThreads)
    attention_backward_bias_kernel(const CudaAttention a) {
  const int key_tiles = ceil_div(a.bias_columns, Config::kKeys);
  const int row_tiles = ceil_div(a.bias_rows, Config::kRows);
  int index = static_cast<int>(blockIdx.x);
  const int key_tile = index % key_tiles;
  index /= key_tiles;
  const int row_tile = index % row_tiles;
  index /= row_tiles;
  BackwardBiasBlock<Config> block(a);
  block.run(index / a.bias_heads, index % a.bias_heads, row_tile, key_tile);
}

}  // namespace lepton
