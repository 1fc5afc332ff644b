// Gradients of queries: a block takes a tile of query rows and walks over the keys that they see.
// Probabilities are computed once more, which costs two products of seven and saves the atomics, or
// the fp32 copies, that a sum from key tiles needs: the order of every sum is fixed.
#pragma once

#include "cuda/attention_backward_config.cuh"
#include "cuda/attention_gather.cuh"

namespace lepton {

template <class Config>
struct BackwardQueriesBlock {
  using T = typename Config::T;
  using QueryTile = typename Config::QueryTile;
  using KeyTile = typename Config::KeyTile;
  using Copy = TileCopy<KeyTile, Config::kThreads, T>;
  static constexpr int kRows16 = Config::kRows16, kKeys8 = Config::kKeys / 8;
  static constexpr int kDim8 = Config::kDim / 8, kSteps = Config::kDim / 16;
  static constexpr bool kHoldQueries = Config::kHoldQueries, kHoldGrads = Config::kHoldGrads;
  static constexpr bool kGeneral = Config::kGeneral;

  const CudaAttention& a;
  Sequence s;
  int first_query, head, kv_head;
  BlockRange range;
  Copy keys, values;                           // without kGeneral
  uint32_t query_lane, column_lane, row_lane;  // ldmatrix addresses
  Fragments<kRows16, kHoldQueries ? kSteps : 1> query_fragments;
  Fragments<kRows16, kHoldGrads ? kSteps : 1> grad_fragments;
  Accumulators<kRows16, kDim8> sums;
  float minus_lse[kRows16][2], delta[kRows16][2];
  float scale_log2;

  __device__ __forceinline__ BackwardQueriesBlock(const CudaAttention& attention)
      : a(attention),
        keys(Global<const T>(nullptr), 0, 0),
        values(Global<const T>(nullptr), 0, 0) {}

  __device__ __forceinline__ static uint32_t shared_at(uint32_t offset) {
    return Shared<uint8_t>(offset).address();
  }
  __device__ __forceinline__ int query_of(int m, int half) const {
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(lane_index());
    return first_query + (warp * kRows16 + m) * 16 + half * 8 + lane / 4;
  }

  __device__ __forceinline__ void copy_queries() {
    const Attention& p = a.p;
    const auto copy = [&](uint32_t to, const void* data, const HeadStrides& stride, int columns) {
      const Global<const T> from = Global<const T>::of(static_cast<const T*>(data));
      const int64_t base =
          s.q_batch * stride.batch + (s.q_begin + first_query) * stride.row + head * stride.head;
      const int rows = s.q_len - first_query;
      if constexpr (kGeneral) {
        gather_tile<QueryTile, Config::kThreads, T>(
            shared_at(to), from, columns, a.vector_q,
            [&](int r) -> int64_t { return r < rows ? base + r * stride.row : -1; });
      } else {
        TileCopy<QueryTile, Config::kThreads, T> once(from + base, stride.row, columns);
        once.template next<true>(shared_at(to), rows);
      }
    };
    copy(0, p.q, p.q_stride, static_cast<int>(p.head_dim));
    copy(Config::kGradAt, p.grad_out, p.grad_out_stride, static_cast<int>(p.value_dim));
  }

  // Starts the copy of a block of keys and values. Without kMasked it is the one behind the last.
  template <bool kMasked>
  __device__ __forceinline__ void copy_keys(int block, uint32_t stage) {
    const Attention& p = a.p;
    const uint32_t to = shared_at(Config::kStageAt) + stage;
    const int first = block * Config::kKeys;
    if constexpr (kGeneral) {
      gather_keys<KeyTile, Config::kThreads, T>(a, s, to, p.k, p.k_stride,
                                                static_cast<int>(p.head_dim), kv_head, first);
      gather_keys<KeyTile, Config::kThreads, T>(a, s, to + Config::kValueAt, p.v, p.v_stride,
                                                static_cast<int>(p.value_dim), kv_head, first);
    } else if constexpr (kMasked) {
      Copy k = keys, v = values;
      k.skip(block);
      v.skip(block);
      k.template next<true>(to, s.k_len - first);
      v.template next<true>(to + Config::kValueAt, s.k_len - first);
    } else {
      keys.template next<false>(to);
      values.template next<false>(to + Config::kValueAt);
    }
  }

  // Scores and the products of grad_out and values to gradients of scores, in `ds`.
  template <bool kMasked>
  __device__ __forceinline__ void differentiate(const Accumulators<kRows16, kKeys8>& scores,
                                                Accumulators<kRows16, kKeys8>& ds, int block) {
    const int column = block * Config::kKeys + static_cast<int>(lane_index()) % 4 * 2;
#pragma unroll
    for (int m = 0; m < kRows16; ++m) {
#pragma unroll
      for (int n = 0; n < kKeys8; ++n) {
        uint32_t kept = 15u;
        if constexpr (kGeneral) {
          if (a.rng_state) {
            const int both[2] = {query_of(m, 0), query_of(m, 1)};
            const uint32_t plane =
                static_cast<uint32_t>(s.number * static_cast<int>(a.p.heads) + head);
            const uint32_t planes[2] = {plane, plane};
            kept = Dropout(a).kept_of_row_tile(a, block * Config::kKeys + n * 8, both, planes);
          }
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int half = i / 2, key = column + n * 8 + i % 2;
          float score = scores[m][n][i], derivative = 1.0f, gradient = ds[m][n][i];
          if constexpr (kGeneral) {
            score = score_of(a, s, head, query_of(m, half), key, score, derivative);
            if (a.rng_state) gradient = kept >> i & 1u ? gradient * a.p.dropout_scale : 0.0f;
          }
          float weight = exp2_approx(fmaf(score, scale_log2, minus_lse[m][half]));
          if (kMasked && !is_visible(a, s, query_of(m, half), key)) weight = 0.0f;
          gradient = weight * (gradient - delta[m][half]);
          ds[m][n][i] = kGeneral ? gradient * derivative : gradient;
        }
      }
    }
  }

  template <bool kMasked>
  __device__ __forceinline__ void compute(int block, uint32_t stage) {
    Accumulators<kRows16, kKeys8> scores, ds;
    clear(scores);
    multiply_transposed<T, QueryTile, KeyTile, kHoldQueries>(scores, &query_fragments, query_lane,
                                                             column_lane + stage);
    clear(ds);
    multiply_transposed<T, QueryTile, KeyTile, kHoldGrads>(
        ds, &grad_fragments, query_lane + Config::kGradAt, column_lane + stage + Config::kValueAt);
    differentiate<kMasked>(scores, ds, block);
    uint32_t packed[kRows16][kKeys8][2];
    pack<T>(ds, packed);
    multiply<T, KeyTile>(sums, packed, row_lane + stage);
  }

  __device__ __forceinline__ void start() {
    const Attention& p = a.p;
    clear(sums);
    scale_log2 = kGeneral ? 1.0f : p.scale * kLog2E;
    kv_head = head / static_cast<int>(p.group);
    if constexpr (!kGeneral) {
      const auto rows_of = [&](const void* data, const HeadStrides& stride, int64_t columns) {
        return Copy(Global<const T>::of(static_cast<const T*>(data)) +
                        (s.k_batch * stride.batch + s.k_begin * stride.row + kv_head * stride.head),
                    stride.row, static_cast<int>(columns));
      };
      keys = rows_of(p.k, p.k_stride, p.head_dim);
      values = rows_of(p.v, p.v_stride, p.value_dim);
    }
    const int warp = static_cast<int>(threadIdx.x) / 32;
    query_lane = QueryTile::lane_a(shared_at(0)) +
                 static_cast<uint32_t>(warp * kRows16 * 16 * QueryTile::kRowBytes);
    column_lane = KeyTile::lane_b(shared_at(Config::kStageAt));
    row_lane = KeyTile::lane_a(shared_at(Config::kStageAt));
    const int64_t row = (s.q_batch * p.heads + head) * a.q_len + s.q_begin;
#pragma unroll
    for (int m = 0; m < kRows16; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int query = query_of(m, half);
        float2 pair = make_float2(0.0f, 0.0f);
        if (query < s.q_len) {
          pair = Global<const float>(a.stats).template load_as<float2>(2 * (row + query));
        }
        minus_lse[m][half] = pair.x;
        delta[m][half] = pair.y;
      }
    }
  }

  __device__ __forceinline__ void run() {
    start();
    const int last = min(first_query + Config::kRows, s.q_len) - 1;
    range = keys_of_queries<Config::kKeys, kGeneral>(a, s, first_query, last);
    // Keys without a mask begin in the first stage.
    if (range.masked() % 2 && range.full_begin < range.full_end) ++range.full_begin;
    put_place();
    copy_queries();
    if (range.count() > 0) copy_keys<true>(range.block(0), 0);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    if constexpr (kHoldQueries) load_fragments<QueryTile>(query_fragments, query_lane);
    if constexpr (kHoldGrads) {
      load_fragments<QueryTile>(grad_fragments, query_lane + Config::kGradAt);
    }
    get_place();
    if constexpr (Config::kStages == 1) {
#pragma unroll 1
      for (int i = 0; i < range.count(); ++i) {
        if (i > 0) {
          __syncthreads();
          copy_keys<true>(range.block(i), 0);
          cp_async_commit();
          cp_async_wait<0>();
          __syncthreads();
        }
        if (kGeneral || i < range.masked()) {
          compute<true>(range.block(i), 0);
        } else {
          compute<false>(range.block(i), 0);
        }
        get_place();
      }
    } else {
      uint32_t stage = 0;
#pragma unroll 1
      for (int i = 0; i < range.masked(); ++i) {
        cp_async_wait<0>();
        __syncthreads();
        if (i + 1 < range.count()) copy_keys<true>(range.block(i + 1), Config::kStageBytes - stage);
        cp_async_commit();
        compute<true>(range.block(i), stage);
        stage = Config::kStageBytes - stage;
        get_place();
      }
      if constexpr (!kGeneral) run_full(range.count() - range.masked());
    }
    finish();
  }

  // What loops don't need waits in shared memory, not in registers.
  __device__ __forceinline__ void put_place() const {
    const Shared<int> place(Config::kPlaceAt);
    if (threadIdx.x == 0) {
      put_sequence(place, s);
      place.store(kSequenceInts, first_query);
      place.store(kSequenceInts + 1, head);
      place.store(kSequenceInts + 2, kv_head);
      place.store(kSequenceInts + 3, range.begin);
      place.store(kSequenceInts + 4, range.end);
      place.store(kSequenceInts + 5, range.full_begin);
      place.store(kSequenceInts + 6, range.full_end);
    }
  }
  __device__ __forceinline__ void get_place() {
    const Shared<int> place(Config::kPlaceAt);
    s = get_sequence(place);
    first_query = place.load(kSequenceInts);
    head = place.load(kSequenceInts + 1);
    kv_head = place.load(kSequenceInts + 2);
    range = {place.load(kSequenceInts + 3), place.load(kSequenceInts + 4),
             place.load(kSequenceInts + 5), place.load(kSequenceInts + 6)};
  }

  // The blocks without a mask; the first is under way to the first stage.
  __device__ __forceinline__ void run_full(int count) {
    if (count == 0) return;
    keys.skip(range.full_begin + 1);
    values.skip(range.full_begin + 1);
    const auto step = [&](uint32_t stage) {
      cp_async_wait<0>();
      __syncthreads();
      if (--count > 0) copy_keys<false>(0, Config::kStageBytes - stage);
      cp_async_commit();
      compute<false>(0, stage);
    };
#pragma unroll 1
    while (true) {
      step(0);
      if (count == 0) break;
      step(Config::kStageBytes);
      if (count == 0) break;
    }
    get_place();
  }

  // By way of the rows of the query tile that this warp alone has read.
  __device__ __forceinline__ void finish() {
    const Attention& p = a.p;
#pragma unroll
    for (int m = 0; m < kRows16; ++m) {
#pragma unroll
      for (int n = 0; n < kDim8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[m][n][i] *= p.scale;
      }
    }
    const int warp = static_cast<int>(threadIdx.x) / 32;
    constexpr int kWarpRows = 16 * kRows16;
    __syncwarp();
    store_to_tile<T, QueryTile>(shared_at(0), warp * kWarpRows, sums);
    __syncwarp();
    const Global<T> to = Global<T>::of(static_cast<T*>(p.grad_q)) +
                         (s.q_batch * p.grad_q_stride.batch + s.q_begin * p.grad_q_stride.row +
                          head * p.grad_q_stride.head);
    store_tile_rows<T, QueryTile, kWarpRows>(
        shared_at(0), warp * kWarpRows, to, static_cast<int>(p.head_dim), [&](int r) -> int64_t {
          return first_query + r < s.q_len ? (first_query + r) * p.grad_q_stride.row : -1;
        });
  }
};

// Blocks: slots of row tiles, the last first, then heads, batches (without cumulative lengths).
template <class Config>
__global__ void __launch_bounds__(Config::kThreads)
    attention_backward_queries_kernel(const CudaAttention a) {
  BackwardQueriesBlock<Config> block(a);
  const int index = static_cast<int>(blockIdx.x), heads = static_cast<int>(a.p.heads);
  int slot = a.slots - 1 - index % a.slots, number = index / a.slots / heads;
  block.head = index / a.slots % heads;
  if (a.cu_q) number = sequence_of_slot(a.cu_q, a.batch, a.q_len, 1, Config::kRows, slot);
  block.s = sequence_at(a, number);
  block.first_query = slot * Config::kRows;
  if (block.first_query >= block.s.q_len) return;
  block.run();
}

}  // namespace lepton
