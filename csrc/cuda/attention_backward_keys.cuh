// Gradients of keys and values: a block takes a tile of keys and walks over the queries of all
// heads that share it. Scores are computed transposed, keys as rows: probabilities and their
// gradients are then, as they come out of the matrix unit, operand A of the sums over queries, and
// never leave registers. No atomics: the order of every sum is fixed.
#pragma once

#include "cuda/attention_backward_config.cuh"
#include "cuda/attention_gather.cuh"

namespace lepton {

template <class Config>
struct BackwardKeysBlock {
  using T = typename Config::T;
  using KeyTile = typename Config::KeyTile;
  using QueryTile = typename Config::QueryTile;
  using Copy = TileCopy<QueryTile, Config::kThreads, T>;
  static constexpr int kDim8 = Config::kDim / 8, kSteps = Config::kDim / 16;
  static constexpr bool kHoldKeys = Config::kHoldKeys, kHoldValues = Config::kHoldValues;
  static constexpr int kQueries8 = Config::kQueries / 8;
  static constexpr bool kGeneral = Config::kGeneral;

  const CudaAttention& a;
  Sequence s;
  int first_key, kv_head;
  BlockRange range;
  Copy queries, grads;             // of the head and block that come next, without kGeneral
  Global<const float> next_stats;  // this thread's pair of that block, without kGeneral
  uint32_t key_lane, column_lane, row_lane;  // ldmatrix addresses
  Fragments<1, kHoldKeys ? kSteps : 1> key_fragments;
  Fragments<1, kHoldValues ? kSteps : 1> value_fragments;
  Accumulators<1, kDim8> grad_key, grad_value;
  float scale_log2;

  __device__ __forceinline__ BackwardKeysBlock(const CudaAttention& attention)
      : a(attention),
        queries(Global<const T>(nullptr), 0, 0),
        grads(Global<const T>(nullptr), 0, 0),
        next_stats(nullptr) {}

  __device__ __forceinline__ static uint32_t shared_at(uint32_t offset) {
    return Shared<uint8_t>(offset).address();
  }

  __device__ __forceinline__ int key_of(int half) const {
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(lane_index());
    return first_key + warp * 16 + half * 8 + lane / 4;
  }
  __device__ __forceinline__ int64_t stats_row(int head, int query) const {
    return (s.q_batch * a.p.heads + head) * a.q_len + s.q_begin + query;
  }

  __device__ __forceinline__ Copy copy_of(const void* data, const HeadStrides& stride, int columns,
                                          int head) const {
    return Copy(Global<const T>::of(static_cast<const T*>(data)) +
                    (s.q_batch * stride.batch + s.q_begin * stride.row + head * stride.head),
                stride.row, columns);
  }

  __device__ __forceinline__ uint32_t stats_at() const {
    return shared_at(Config::kStageAt + Config::kStatsAt) + threadIdx.x * 8;
  }

  // Starts the copy of a block of queries of a head, their grad_out and their stats.
  __device__ __forceinline__ void copy_queries(int head, int block, uint32_t stage) {
    const Attention& p = a.p;
    const int first = block * Config::kQueries, rows = s.q_len - first;
    const uint32_t to = shared_at(Config::kStageAt) + stage;
    const int columns = static_cast<int>(p.head_dim), value_columns = static_cast<int>(p.value_dim);
    if constexpr (kGeneral) {
      const auto row_at = [&](const HeadStrides& stride) {
        const int64_t base = s.q_batch * stride.batch + s.q_begin * stride.row + head * stride.head;
        return [=](int r) -> int64_t { return r < rows ? base + (first + r) * stride.row : -1; };
      };
      gather_tile<QueryTile, Config::kThreads, T>(to,
                                                  Global<const T>::of(static_cast<const T*>(p.q)),
                                                  columns, a.vector_q, row_at(p.q_stride));
      gather_tile<QueryTile, Config::kThreads, T>(
          to + Config::kGradAt, Global<const T>::of(static_cast<const T*>(p.grad_out)),
          value_columns, a.vector_q, row_at(p.grad_out_stride));
    } else {
      Copy q = copy_of(p.q, p.q_stride, columns, head);
      q.skip(block);
      q.template next<true>(to, rows);
      Copy g = copy_of(p.grad_out, p.grad_out_stride, value_columns, head);
      g.skip(block);
      g.template next<true>(to + Config::kGradAt, rows);
    }
    const int i = static_cast<int>(threadIdx.x);
    if (i < Config::kQueries) {
      const bool valid = i < rows;
      cp_async<8>(stats_at() + stage,
                  Global<const float>(a.stats) + 2 * (stats_row(head, first) + (valid ? i : 0)),
                  valid ? 8u : 0u);
    }
  }

  // The same for a full block, the one that `queries` and `grads` have come to.
  __device__ __forceinline__ void copy_next(uint32_t stage) {
    const uint32_t to = shared_at(Config::kStageAt) + stage;
    queries.template next<false>(to);
    grads.template next<false>(to + Config::kGradAt);
    if (threadIdx.x < Config::kQueries) cp_async<8>(stats_at() + stage, next_stats);
    next_stats = next_stats + 2 * Config::kQueries;
  }

  __device__ __forceinline__ void copy_keys() {
    const Attention& p = a.p;
    const int columns = static_cast<int>(p.head_dim), value_columns = static_cast<int>(p.value_dim);
    if constexpr (kGeneral) {
      gather_keys<KeyTile, Config::kThreads, T>(a, s, shared_at(0), p.k, p.k_stride, columns,
                                                kv_head, first_key);
      gather_keys<KeyTile, Config::kThreads, T>(a, s, shared_at(Config::kValueAt), p.v, p.v_stride,
                                                value_columns, kv_head, first_key);
    } else {
      const auto copy = [&](uint32_t to, const void* data, const HeadStrides& stride, int count) {
        TileCopy<KeyTile, Config::kThreads, T> once(
            Global<const T>::of(static_cast<const T*>(data)) +
                (s.k_batch * stride.batch + (s.k_begin + first_key) * stride.row +
                 kv_head * stride.head),
            stride.row, count);
        once.template next<true>(shared_at(to), s.k_len - first_key);
      };
      copy(0, p.k, p.k_stride, columns);
      copy(Config::kValueAt, p.v, p.v_stride, value_columns);
    }
  }

  // Scores to probabilities p and, where wanted, the gradient of scores ds, both with what the sums
  // over queries take: dropped weights are zero in p.
  template <bool kMasked>
  __device__ __forceinline__ void differentiate(Accumulators<1, kQueries8>& p,
                                                Accumulators<1, kQueries8>& ds, int head, int block,
                                                uint32_t stage) {
    const int column = static_cast<int>(lane_index()) % 4 * 2;
    const Shared<float> stats =
        Shared<float>::from_address(shared_at(Config::kStageAt + Config::kStatsAt) + stage);
#pragma unroll
    for (int n = 0; n < kQueries8; ++n) {
      const float4 pair = stats.template load_as<float4>(2 * (n * 8 + column));
      uint32_t kept = 15u;
      const int first = block * Config::kQueries + n * 8 + column;
      if constexpr (kGeneral) {
        if (a.rng_state) {
          const int both[2] = {first, first + 1};
          const uint32_t plane =
              static_cast<uint32_t>(s.number * static_cast<int>(a.p.heads) + head);
          const uint32_t planes[2] = {plane, plane};
          const int warp = static_cast<int>(threadIdx.x) / 32;
          kept = Dropout(a).kept_of_column_tile(a, first_key + warp * 16, both, planes);
        }
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int half = i / 2;
        const float minus_lse = i % 2 ? pair.z : pair.x, delta = i % 2 ? pair.w : pair.y;
        float score = p[0][n][i], derivative = 1.0f;
        if constexpr (kGeneral) {
          score = score_of(a, s, head, first + i % 2, key_of(half), score, derivative);
        }
        float weight = exp2_approx(fmaf(score, scale_log2, minus_lse));
        if (kMasked && !is_visible(a, s, first + i % 2, key_of(half))) weight = 0.0f;
        if constexpr (Config::kKeyGradient) {
          float gradient = ds[0][n][i];
          if (kGeneral && a.rng_state)
            gradient = kept >> i & 1u ? gradient * a.p.dropout_scale : 0.0f;
          gradient = weight * (gradient - delta);
          ds[0][n][i] = kGeneral ? gradient * derivative : gradient;
        }
        p[0][n][i] = kGeneral && !(kept >> i & 1u) ? 0.0f : weight;
      }
    }
  }

  template <bool kMasked>
  __device__ __forceinline__ void compute(int head, int block, uint32_t stage) {
    Accumulators<1, kQueries8> p, ds;
    clear(p);
    multiply_transposed<T, KeyTile, QueryTile, kHoldKeys>(p, &key_fragments, key_lane,
                                                          column_lane + stage);
    if constexpr (Config::kKeyGradient) {
      clear(ds);
      multiply_transposed<T, KeyTile, QueryTile, kHoldValues>(
          ds, &value_fragments, key_lane + Config::kValueAt, column_lane + stage + Config::kGradAt);
    }
    differentiate<kMasked>(p, ds, head, block, stage);
    uint32_t packed[1][kQueries8][2];
    if constexpr (Config::kValues) {
      pack<T>(p, packed);
      multiply<T, QueryTile>(grad_value, packed, row_lane + stage + Config::kGradAt);
    }
    if constexpr (Config::kKeyGradient) {
      pack<T>(ds, packed);
      multiply<T, QueryTile>(grad_key, packed, row_lane + stage);
    }
  }

  __device__ __forceinline__ void start() {
    const Attention& p = a.p;
    clear(grad_key);
    clear(grad_value);
    scale_log2 = kGeneral ? 1.0f : p.scale * kLog2E;
    const int warp = static_cast<int>(threadIdx.x) / 32;
    key_lane =
        KeyTile::lane_a(shared_at(0)) + static_cast<uint32_t>(warp * 16 * KeyTile::kRowBytes);
    column_lane = QueryTile::lane_b(shared_at(Config::kStageAt));
    row_lane = QueryTile::lane_a(shared_at(Config::kStageAt));
  }

  // Points the copies at the full blocks of a head.
  __device__ __forceinline__ void seek(int head, int block) {
    const Attention& p = a.p;
    queries = copy_of(p.q, p.q_stride, static_cast<int>(p.head_dim), head);
    grads = copy_of(p.grad_out, p.grad_out_stride, static_cast<int>(p.value_dim), head);
    queries.skip(block);
    grads.skip(block);
    next_stats =
        Global<const float>(a.stats) + 2 * (stats_row(head, block * Config::kQueries) +
                                            static_cast<int>(threadIdx.x % Config::kQueries));
  }

  // What loops don't need waits in shared memory, not in registers.
  __device__ __forceinline__ void put_place() const {
    const Shared<int> place(Config::kPlaceAt);
    if (threadIdx.x == 0) {
      put_sequence(place, s);
      place.store(kSequenceInts, first_key);
      place.store(kSequenceInts + 1, kv_head);
      place.store(kSequenceInts + 2, range.begin);
      place.store(kSequenceInts + 3, range.end);
      place.store(kSequenceInts + 4, range.full_begin);
      place.store(kSequenceInts + 5, range.full_end);
    }
  }
  __device__ __forceinline__ void get_place() {
    const Shared<int> place(Config::kPlaceAt);
    s = get_sequence(place);
    first_key = place.load(kSequenceInts);
    kv_head = place.load(kSequenceInts + 1);
    range = {place.load(kSequenceInts + 2), place.load(kSequenceInts + 3),
             place.load(kSequenceInts + 4), place.load(kSequenceInts + 5)};
  }

  __device__ __forceinline__ int group() const { return static_cast<int>(a.p.group); }

  // Starts the copy of the i-th block. Masked blocks of all heads come first; full blocks follow
  // each other within a head.
  __device__ __forceinline__ void copy(int i, uint32_t stage) {
    const int head0 = kv_head * group(), masked = range.masked();
    const int full = range.count() - masked, all_masked = masked * group();
    if (i < all_masked) {
      copy_queries(head0 + i / masked, range.block(i % masked), stage);
    } else if (i < range.count() * group()) {
      const int j = i - all_masked;
      copy_queries(head0 + j / full, range.full_begin + j % full, stage);
    }
  }
  __device__ __forceinline__ void compute_masked(int i, uint32_t stage) {
    const int masked = range.masked();
    compute<true>(kv_head * group() + i / masked, range.block(i % masked), stage);
  }

  __device__ __forceinline__ void run() {
    start();
    const int last = min(first_key + Config::kKeys, s.k_len) - 1;
    range = queries_of_keys<Config::kQueries, kGeneral>(a, s, first_key, last);
    // Queries without a mask begin in the first stage.
    if (range.masked() * group() % 2 && range.full_begin < range.full_end) ++range.full_begin;
    put_place();
    copy_keys();
    copy(0, 0);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    if constexpr (kHoldKeys) load_fragments<KeyTile>(key_fragments, key_lane);
    if constexpr (kHoldValues) {
      load_fragments<KeyTile>(value_fragments, key_lane + Config::kValueAt);
    }
    get_place();
    if constexpr (Config::kStages == 1) {
#pragma unroll 1
      for (int i = 0; i < range.count() * group(); ++i) {
        if (i > 0) {
          __syncthreads();
          copy(i, 0);
          cp_async_commit();
          cp_async_wait<0>();
          __syncthreads();
        }
        if (kGeneral || i < range.masked() * group()) {
          compute_masked(i, 0);
        } else {
          compute<false>(0, 0, 0);
        }
        get_place();
      }
    } else {
      uint32_t stage = 0;
#pragma unroll 1
      for (int i = 0; i < range.masked() * group(); ++i) {
        cp_async_wait<0>();
        __syncthreads();
        copy(i + 1, Config::kStageBytes - stage);
        cp_async_commit();
        compute_masked(i, stage);
        stage = Config::kStageBytes - stage;
        get_place();
      }
      if constexpr (!kGeneral) run_full();
    }
    finish();
  }

  // The blocks without a mask, head after head; the very first is under way to the first stage.
  __device__ __forceinline__ void run_full() {
    if (range.full_begin == range.full_end) return;
#pragma unroll 1
    for (int i = 0; i < group(); ++i) {
      get_place();
      const int head = kv_head * group() + i;
      if (i == 0) {
        seek(head, range.full_begin + 1);
      } else {
        __syncthreads();
        seek(head, range.full_begin);
        copy_next(0);
        cp_async_commit();
      }
      int left = range.full_end - range.full_begin;
      const auto step = [&](uint32_t stage) {
        cp_async_wait<0>();
        __syncthreads();
        if (--left > 0) copy_next(Config::kStageBytes - stage);
        cp_async_commit();
        compute<false>(0, 0, stage);
      };
#pragma unroll 1
      while (true) {
        step(0);
        if (left == 0) break;
        step(Config::kStageBytes);
        if (left == 0) break;
      }
    }
  }

  // Gradients to memory, by way of this warp's rows of the tiles of keys and values.
  __device__ __forceinline__ void finish() {
    const Attention& p = a.p;
    const float value_scale = a.rng_state ? p.dropout_scale : 1.0f;
    __syncthreads();
    get_place();
    if constexpr (Config::kKeyGradient) {
      store(grad_key, p.scale, 0, a.grad_k, a.grad_k_stride, static_cast<int>(p.head_dim));
    }
    if constexpr (Config::kValues) {
      store(grad_value, value_scale, Config::kValueAt, a.grad_v, a.grad_v_stride,
            static_cast<int>(p.value_dim));
    }
  }

  __device__ __forceinline__ void store(Accumulators<1, kDim8>& sums, float scale, uint32_t tile,
                                        void* data, const HeadStrides& stride, int columns) {
#pragma unroll
    for (int n = 0; n < kDim8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[0][n][i] *= scale;
    }
    const int warp = static_cast<int>(threadIdx.x) / 32;
    store_to_tile<T, KeyTile>(shared_at(tile), warp * 16, sums);
    __syncwarp();
    const Global<T> to =
        Global<T>::of(static_cast<T*>(data)) +
        (s.k_batch * stride.batch + s.k_begin * stride.row + kv_head * stride.head);
    store_tile_rows<T, KeyTile, 16>(shared_at(tile), warp * 16, to, columns, [&](int r) -> int64_t {
      return first_key + r < s.k_len ? (first_key + r) * stride.row : -1;
    });
  }
};

// Blocks: slots of key tiles, key heads, batches (without cumulative lengths).
template <class Config>
__global__ void __launch_bounds__(Config::kThreads, 1)
    attention_backward_keys_kernel(const CudaAttention a) {
  BackwardKeysBlock<Config> block(a);
  const int index = static_cast<int>(blockIdx.x), heads = static_cast<int>(a.p.kv_heads);
  int slot = index % a.slots, number = index / a.slots / heads;
  block.kv_head = index / a.slots % heads;
  if (a.cu_k) number = sequence_of_slot(a.cu_k, a.batch, a.k_len, 1, Config::kKeys, slot);
  block.s = sequence_at(a, number);
  block.first_key = slot * Config::kKeys;
  if (block.first_key >= block.s.k_len) return;
  block.run();
}

}  // namespace lepton
