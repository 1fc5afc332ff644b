// Forward attention: a block takes a tile of query rows and walks over tiles of keys with the
// online softmax (Milakov and Gimelshein, 2018; Dao, "FlashAttention-2", 2023). Scores never leave
// registers.
#pragma once

#include "cuda/attention_forward_config.cuh"
#include "cuda/attention_forward_finish.cuh"
#include "cuda/attention_forward_scores.cuh"
#include "cuda/attention_gather.cuh"

namespace lepton {

template <class Config>
struct ForwardBlock {
  using T = typename Config::T;
  using QueryTile = typename Config::QueryTile;
  using KeyTile = typename Config::KeyTile;
  static constexpr int kRows16 = Config::kRows16, kKeys8 = Config::kKeys / 8;
  static constexpr int kDim8 = Config::kDim / 8, kSteps = Config::kDim / 16;
  static constexpr bool kGeneral = Config::kGeneral, kHoldsQuery = Config::kHoldQuery;
  using Copy = TileCopy<KeyTile, Config::kThreads, T>;

  const CudaAttention& a;
  Sequence s;
  int first_row, rows, head0, kv_head;  // the tile's first row of all `rows`; its first head
  int split = 0;                        // which share of the keys
  BlockRange range;
  Copy keys, values;              // without kGeneral: from row 0 of this head
  uint32_t key_lane, value_lane;  // ldmatrix addresses in stage 0
  uint32_t query_lane;
  Fragments<kRows16, Config::kHoldQuery ? kSteps : 1> query;
  Accumulators<kRows16, kDim8> out;
  float row_max[kRows16][2], row_sum[kRows16][2];
  float scale_log2;

  __device__ __forceinline__ ForwardBlock(const CudaAttention& attention)
      : a(attention),
        keys(Global<const T>(nullptr), 0, 0),
        values(Global<const T>(nullptr), 0, 0) {}

  __device__ __forceinline__ static uint32_t shared_at(uint32_t offset) {
    return Shared<uint8_t>(offset).address();
  }

  // Row of the sequence (of all packed heads) that element pair `half` of row block m lies in.
  __device__ __forceinline__ int row_of(int m, int half) const {
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(lane_index());
    return first_row + (warp * kRows16 + m) * 16 + half * 8 + lane / 4;
  }
  __device__ __forceinline__ int query_of(int row) const { return kGeneral ? row / a.pack : row; }
  __device__ __forceinline__ int head_of(int row) const {
    return kGeneral ? head0 + row % a.pack : head0;
  }

  // Keys or values from element `offset` on: row 0 of this head.
  __device__ __forceinline__ Copy rows_of(bool value, int64_t offset,
                                          uint32_t thread = threadIdx.x) const {
    const Attention& p = a.p;
    const Global<const T> data = Global<const T>::of(static_cast<const T*>(value ? p.v : p.k));
    return Copy(data + offset, (value ? p.v_stride : p.k_stride).row,
                static_cast<int>(value ? p.value_dim : p.head_dim), thread);
  }
  __device__ __forceinline__ int64_t offset_of(const HeadStrides& stride) const {
    return s.k_batch * stride.batch + s.k_begin * stride.row + kv_head * stride.head;
  }

  // Starts the copy of a block of keys or values. Without kMasked it is the one behind the last.
  template <bool kMasked>
  __device__ __forceinline__ void copy_keys(Copy& copy, int block, uint32_t stage, bool value) {
    const Attention& p = a.p;
    const uint32_t to = shared_at(Config::kKeyAt + (value ? KeyTile::kBytes : 0)) + stage;
    if constexpr (kGeneral) {
      gather_keys<KeyTile, Config::kThreads, T>(
          a, s, to, value ? p.v : p.k, value ? p.v_stride : p.k_stride,
          static_cast<int>(value ? p.value_dim : p.head_dim), kv_head, block * Config::kKeys);
    } else if constexpr (kMasked) {
      Copy once = Config::kTwoStages
                      ? copy
                      : rows_of(value, Shared<int64_t>(Config::kPlaceAt + 64).load(value),
                                thread_index_again());
      once.skip(block);
      once.template next<true>(to, s.k_len - block * Config::kKeys);
    } else {
      copy.template next<false>(to);
    }
  }

  __device__ __forceinline__ void copy_query() {
    const Attention& p = a.p;
    const int columns = static_cast<int>(p.head_dim);
    const Global<const T> q = Global<const T>::of(static_cast<const T*>(p.q));
    const int64_t base = s.q_batch * p.q_stride.batch + s.q_begin * p.q_stride.row;
    if constexpr (kGeneral) {
      gather_tile<QueryTile, Config::kThreads, T>(
          shared_at(0), q, columns, a.vector_q, [&](int r) -> int64_t {
            const int row = first_row + r;
            if (row >= rows) return -1;
            return base + query_of(row) * p.q_stride.row + head_of(row) * p.q_stride.head;
          });
    } else {
      TileCopy<QueryTile, Config::kThreads, T> copy(
          q + (base + head0 * p.q_stride.head + first_row * p.q_stride.row), p.q_stride.row,
          columns);
      copy.template next<true>(shared_at(0), rows - first_row);
    }
  }

  // One block of keys, the i-th visited, `last` if known; it lies `stage` bytes behind the first
  // stage.
  template <bool kMasked>
  __device__ __forceinline__ void step(int i, bool last, uint32_t stage) {
    Accumulators<kRows16, kKeys8> scores;
    cp_async_wait<0>();
    __syncthreads();
    if constexpr (kMasked) {
      get_keys();
      if (!Config::kTwoStages) last = i + 1 == range.count();
    }
    const int block = kMasked ? range.block(i) : 0, next = kMasked ? range.block(i + 1) : 0;
    if constexpr (Config::kTwoStages) {
      if (!last) {
        copy_keys<kMasked>(keys, next, stage ^ Config::kStageBytes, false);
        copy_keys<kMasked>(values, next, stage ^ Config::kStageBytes, true);
      }
    } else {
      copy_keys<kMasked>(values, block, 0, true);
    }
    cp_async_commit();
    clear(scores);
    multiply_transposed<T, QueryTile, KeyTile, Config::kHoldQuery>(scores, &query, query_lane,
                                                                   key_lane + stage);
    if constexpr (!Config::kTwoStages) {
      cp_async_wait<0>();
      __syncthreads();
      if (!last) copy_keys<kMasked>(keys, next, 0, false);
      cp_async_commit();
    }
    if constexpr (kMasked) mask(*this, scores, block * Config::kKeys);
    float shrink[kRows16][2];
#pragma unroll
    for (int m = 0; m < kRows16; ++m) raise<kMasked>(scores[m], m, shrink[m]);
    rescale(shrink);
    // 16 keys at a time: the special functions of the next run under the products of these.
#pragma unroll
    for (int n = 0; n < kKeys8; n += 2) {
      uint32_t p[kRows16][4];
#pragma unroll
      for (int m = 0; m < kRows16; ++m) {
#pragma unroll
        for (int j = n; j < n + 2; ++j) {
          exponentiate<kMasked>(scores[m][j], m, shrink[m], j == 0);
          if constexpr (kGeneral) weigh(*this, scores[m][j], m, block * Config::kKeys + j * 8);
          p[m][2 * (j - n)] = pack2<T>(scores[m][j][0], scores[m][j][1]);
          p[m][2 * (j - n) + 1] = pack2<T>(scores[m][j][2], scores[m][j][3]);
        }
      }
      multiply_step<T, KeyTile>(out, p, value_lane + stage, n / 2);
    }
  }

  // The running maxima of row block m with these scores; what was summed so far shrinks.
  template <bool kMasked>
  __device__ __forceinline__ void raise(const float (&scores)[kKeys8][4], int m,
                                        float (&shrink)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float most = fmaxf(scores[0][2 * half], scores[0][2 * half + 1]);
#pragma unroll
      for (int n = 1; n < kKeys8; ++n) {
        most = fmaxf(most, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
      }
      most = fmaxf(most, __shfl_xor_sync(kFullWarp, most, 1));
      most = fmaxf(most, __shfl_xor_sync(kFullWarp, most, 2));
      const float before = row_max[m][half];
      row_max[m][half] = fmaxf(before, most);
      shrink[half] = exp2_approx(fmaf(before, scale_log2, shift<kMasked>(m, half)));
    }
  }

  // The output so far, relative to the new maxima: soon they no longer rise.
  __device__ __forceinline__ void rescale(const float (&shrink)[kRows16][2]) {
    bool changed = false;
#pragma unroll
    for (int m = 0; m < kRows16; ++m) {
      changed = changed || shrink[m][0] != 1.0f || shrink[m][1] != 1.0f;
    }
    if (!__any_sync(kFullWarp, changed)) return;
#pragma unroll
    for (int m = 0; m < kRows16; ++m) {
#pragma unroll
      for (int n = 0; n < kDim8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) out[m][n][i] *= shrink[m][i / 2];
      }
    }
  }

  // What turns scores, in units of log 2, to exponents relative to the maximum. In a row that has
  // seen nothing yet all are -inf: there -inf - -inf would be no number.
  template <bool kMasked>
  __device__ __forceinline__ float shift(int m, int half) const {
    const float most = row_max[m][half];
    return (kMasked && most == minus_infinity() ? 0.0f : -most) * scale_log2;
  }

  // Scores of 8 keys to probabilities, relative to the running maxima, and their sums.
  template <bool kMasked>
  __device__ __forceinline__ void exponentiate(float (&scores)[4], int m, const float (&shrink)[2],
                                               bool first) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float& sum = row_sum[m][i / 2];
      scores[i] = exp2_approx(fmaf(scores[i], scale_log2, shift<kMasked>(m, i / 2)));
      sum = first && i % 2 == 0 ? fmaf(sum, shrink[i / 2], scores[i]) : sum + scores[i];
    }
  }

  __device__ __forceinline__ void start() {
    clear(out);
#pragma unroll
    for (int m = 0; m < kRows16; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        row_max[m][half] = minus_infinity();
        row_sum[m][half] = 0.0f;
      }
    }
    const Attention& p = a.p;
    scale_log2 = kGeneral ? 1.0f : p.scale * kLog2E;
    kv_head = head0 / static_cast<int>(p.group);
    if constexpr (!kGeneral && Config::kTwoStages) {
      // With one stage registers are too scarce to keep these while there are masks.
      keys = rows_of(false, offset_of(p.k_stride));
      values = rows_of(true, offset_of(p.v_stride));
    }
    const int warp = static_cast<int>(threadIdx.x) / 32;
    query_lane = QueryTile::lane_a(shared_at(0)) +
                 static_cast<uint32_t>(warp * kRows16 * 16 * QueryTile::kRowBytes);
    key_lane = KeyTile::lane_b(shared_at(Config::kKeyAt));
    value_lane = KeyTile::lane_a(shared_at(Config::kKeyAt + KeyTile::kBytes));
    if constexpr (!kGeneral && Config::kTwoStages) {
      // Through a shuffle, or ptxas computes it of the lane again for every block of keys.
      key_lane = __shfl_sync(kFullWarp, key_lane, static_cast<int>(lane_index()));
    }
  }

  // What only masks and the end need waits in shared memory, not in registers.
  __device__ __forceinline__ void put_place() const {
    const Shared<int> place(Config::kPlaceAt);
    if (threadIdx.x == 0) {
      place.store(0, s.number);
      place.store(1, s.q_begin);
      place.store(2, static_cast<int>(s.q_batch));
      place.store(3, rows);
      place.store(4, first_row);
      place.store(5, head0);
      place.store(6, split);
      place.store(7, s.k_len);
      place.store(8, s.shift);
      place.store(9, range.begin);
      place.store(10, range.end);
      place.store(11, range.full_begin);
      place.store(12, range.full_end);
      const Shared<int64_t> offsets(Config::kPlaceAt + 64);
      offsets.store(0, offset_of(a.p.k_stride));
      offsets.store(1, offset_of(a.p.v_stride));
    }
  }
  __device__ __forceinline__ void get_keys() {
    const Shared<int> place(Config::kPlaceAt);
    s.k_len = place.load(7);
    s.shift = place.load(8);
    first_row = place.load(4);
    range = {place.load(9), place.load(10), place.load(11), place.load(12)};
  }
  __device__ __forceinline__ void get_place() {
    const Shared<int> place(Config::kPlaceAt);
    s.number = place.load(0);
    s.q_begin = place.load(1);
    s.q_batch = place.load(2);
    rows = place.load(3);
    first_row = place.load(4);
    head0 = place.load(5);
    split = place.load(6);
  }

  __device__ __forceinline__ void run() {
    start();
    const int last_row = min(first_row + Config::kRows, rows) - 1;
    range = keys_of_queries<Config::kKeys, kGeneral>(a, s, query_of(first_row), query_of(last_row));
    if constexpr (kGeneral) {
      const int count = range.count(), splits = a.splits;
      const int begin = range.begin;
      range.begin = begin + static_cast<int>(int64_t{count} * split / splits);
      range.end = begin + static_cast<int>(int64_t{count} * (split + 1) / splits);
      range.full_begin = range.full_end = range.end;
    }
    if constexpr (Config::kTwoStages) {
      // The blocks without a mask begin in the first stage.
      if (range.masked() % 2 && range.full_begin < range.full_end) ++range.full_begin;
    }
    put_place();
    __syncthreads();
    if (range.count() > 0) {
      copy_query();
      copy_keys<true>(keys, range.block(0), 0, false);
      if constexpr (Config::kTwoStages) copy_keys<true>(values, range.block(0), 0, true);
      cp_async_commit();
      if constexpr (Config::kHoldQuery) {
        cp_async_wait<0>();
        __syncthreads();
        load_fragments<QueryTile>(query, query_lane);
      }
      int count = range.count(), i = 0;
      const int masked = range.masked();
      uint32_t stage = 0;
#pragma unroll 1
      for (; i < masked; ++i) {
        step<true>(i, i + 1 == count, stage);
        if (Config::kTwoStages) stage ^= Config::kStageBytes;
      }
      if constexpr (!kGeneral) {
        // The blocks from here on follow each other; those of the first step are under way.
        if constexpr (!Config::kTwoStages) {
          get_keys();
          count = range.count(), i = range.masked();
          const Shared<int64_t> offsets(Config::kPlaceAt + 64);
          keys = rows_of(false, offsets.load(0));
          values = rows_of(true, offsets.load(1));
        }
        keys.skip(range.full_begin + 1);
        values.skip(range.full_begin + (Config::kTwoStages ? 1 : 0));
        if constexpr (Config::kTwoStages) {
          // The stage is a constant of each half: addresses and maxima stay where they are.
          while (i < count) {
            step<false>(i, i + 1 == count, 0);
            if (++i == count) break;
            step<false>(i, i + 1 == count, Config::kStageBytes);
            ++i;
          }
        } else {
#pragma unroll 1
          for (; i < count; ++i) step<false>(i, i + 1 == count, 0);
        }
      }
    }
    get_place();
    finish_forward(*this);
  }
};

// Blocks: slots of row tiles, the last of a sequence first (with a causal window it has most keys),
// then groups of packed heads, then batches (without cumulative lengths), then splits.
template <class Config>
__global__ void __launch_bounds__(Config::kThreads)
    attention_forward_kernel(const CudaAttention a) {
  ForwardBlock<Config> block(a);
  const int pack = Config::kGeneral ? a.pack : 1;
  const int units = static_cast<int>(a.p.heads) / pack;
  const int index = static_cast<int>(blockIdx.x);
  int slot = a.slots - 1 - index % a.slots;
  int rest = index / a.slots;
  block.head0 = rest % units * pack;
  rest /= units;
  int number = 0;
  if (a.cu_q) {
    number = sequence_of_slot(a.cu_q, a.batch, a.q_len, pack, Config::kRows, slot);
  } else {
    number = rest % a.batch;
    rest /= a.batch;
  }
  if (Config::kGeneral) block.split = rest;
  block.s = sequence_at(a, number);
  block.rows = block.s.q_len * pack;
  block.first_row = slot * Config::kRows;
  if (block.first_row >= block.rows) return;
  block.run();
}

}  // namespace lepton
