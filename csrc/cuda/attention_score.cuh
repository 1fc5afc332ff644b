// What attention computes of a score: where a block's sequence lies, which keys a query sees, the
// options that change a score, and the random words of dropout.
#pragma once

#include "cuda/attention_params.h"
#include "cuda/ptx.cuh"

namespace lepton {

constexpr float kLog2E = 1.44269504088896341f;
constexpr float kLn2 = 0.693147180559945309f;

__device__ __forceinline__ float minus_infinity() { return __uint_as_float(0xff800000u); }

__device__ __forceinline__ int clamp_to(int x, int low, int high) { return min(max(x, low), high); }

// One sequence: where its queries and keys are, and what part of them is this block's.
struct Sequence {
  int number;
  int q_begin, q_len, k_begin, k_len;
  int64_t q_batch, k_batch;
  int shift;  // added to a query's number it is the key of its diagonal
};

// Lengths come from the device and nobody has checked them: clamped, so that wrong ones stay
// within the tensors.
__device__ __forceinline__ Sequence sequence_at(const CudaAttention& a, int number) {
  Sequence s;
  s.number = number;
  s.q_batch = s.k_batch = number;
  s.q_begin = s.k_begin = 0;
  s.q_len = a.q_len;
  s.k_len = a.k_len;
  if (a.cu_q) {
    const Global<const int32_t> cu(a.cu_q);
    s.q_batch = 0;
    s.q_begin = clamp_to(cu.load(number), 0, a.q_len);
    s.q_len = clamp_to(cu.load(number + 1), s.q_begin, a.q_len) - s.q_begin;
  }
  if (a.cu_k) {
    const Global<const int32_t> cu(a.cu_k);
    s.k_batch = 0;
    s.k_begin = clamp_to(cu.load(number), 0, a.k_len);
    s.k_len = clamp_to(cu.load(number + 1), s.k_begin, a.k_len) - s.k_begin;
  }
  if (a.seqlens_k) {
    if (a.start_k)
      s.k_begin = clamp_to(Global<const int32_t>(a.start_k).load(number), 0, a.capacity);
    const int end = Global<const int32_t>(a.seqlens_k).load(number);
    s.k_len = clamp_to(end, s.k_begin, a.capacity) - s.k_begin;
    if (a.batch_index) {
      const int index = Global<const int32_t>(a.batch_index).load(number);
      s.k_batch = clamp_to(index, 0, a.cache_batch - 1);
    }
  }
  s.shift = a.p.bottom_right ? s.k_len - s.q_len : 0;
  return s;
}

// What a block needs only now and then waits in shared memory, not in registers.
constexpr int kSequenceInts = 8;
__device__ __forceinline__ void put_sequence(const Shared<int>& to, const Sequence& s) {
  to.store(0, s.number);
  to.store(1, s.q_begin);
  to.store(2, s.q_len);
  to.store(3, s.k_begin);
  to.store(4, s.k_len);
  to.store(5, static_cast<int>(s.q_batch));
  to.store(6, static_cast<int>(s.k_batch));
  to.store(7, s.shift);
}
__device__ __forceinline__ Sequence get_sequence(const Shared<int>& from) {
  Sequence s;
  s.number = from.load(0);
  s.q_begin = from.load(1);
  s.q_len = from.load(2);
  s.k_begin = from.load(3);
  s.k_len = from.load(4);
  s.q_batch = from.load(5);
  s.k_batch = from.load(6);
  s.shift = from.load(7);
  return s;
}

// With cumulative lengths the tiles of sequence b start at slot cu[b] * scale / rows + b: no two
// meet, since ceil((y - x) / rows) <= y / rows - x / rows + 1. Returns the sequence of a slot and
// makes `slot` the tile within it, which may lie behind its end.
__device__ __forceinline__ int sequence_of_slot(const int32_t* cumulative, int batch, int most,
                                                int scale, int rows, int& slot) {
  const Global<const int32_t> cu(cumulative);
  const auto start = [&](int b) {
    return static_cast<int>(int64_t{clamp_to(cu.load(b), 0, most)} * scale / rows) + b;
  };
  int low = 0, high = batch - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (start(middle) <= slot) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  slot -= start(low);
  return low;
}

// Blocks of kSize keys (or queries) [begin, end) that hold something visible, of which only those
// in [full_begin, full_end) need no mask. Masked blocks come first: `block(i)` is the i-th visited.
struct BlockRange {
  int begin, end, full_begin, full_end;

  __device__ __forceinline__ int count() const { return end - begin; }
  __device__ __forceinline__ int masked() const { return count() - (full_end - full_begin); }
  __device__ __forceinline__ int block(int i) const {
    const int before = full_begin - begin;
    if (i < before) return begin + i;
    return i < masked() ? full_end + i - before : full_begin + i - masked();
  }
};

// Of what [first_low, last_high) covers, blocks within [all_low, all_high) are full. With
// `kAllMasked` none is.
template <int kSize, bool kAllMasked>
__device__ __forceinline__ BlockRange block_range(int first_low, int last_high, int all_low,
                                                  int all_high) {
  BlockRange r;
  r.begin = first_low / kSize;
  r.end = max(ceil_div(last_high, kSize), r.begin);
  r.full_begin = kAllMasked ? r.end : clamp_to(ceil_div(max(all_low, 0), kSize), r.begin, r.end);
  r.full_end = kAllMasked ? r.end : clamp_to(max(all_high, 0) / kSize, r.full_begin, r.end);
  return r;
}

// The keys that queries [first, last] see.
template <int kSize, bool kAllMasked>
__device__ __forceinline__ BlockRange keys_of_queries(const CudaAttention& a, const Sequence& s,
                                                      int first, int last) {
  const int low = first + s.shift, high = last + s.shift;
  return block_range<kSize, kAllMasked>(clamp_to(low - a.left, 0, s.k_len),
                                        clamp_to(high + a.right + 1, 0, s.k_len), high - a.left,
                                        min(low + a.right + 1, s.k_len));
}

// The queries that see keys [first, last].
template <int kSize, bool kAllMasked>
__device__ __forceinline__ BlockRange queries_of_keys(const CudaAttention& a, const Sequence& s,
                                                      int first, int last) {
  const int low = first - s.shift, high = last - s.shift;
  return block_range<kSize, kAllMasked>(clamp_to(low - a.right, 0, s.q_len),
                                        clamp_to(high + a.left + 1, 0, s.q_len), high - a.right,
                                        min(low + a.left + 1, s.q_len));
}

__device__ __forceinline__ bool is_visible(const CudaAttention& a, const Sequence& s, int query,
                                           int key) {
  const int middle = query + s.shift;
  return key < s.k_len && query < s.q_len && key >= middle - a.left && key <= middle + a.right;
}

// Where the row of a key begins, in a cache or not.
__device__ __forceinline__ int64_t cache_row(const CudaAttention& a, const Sequence& s, int key,
                                             const HeadStrides& stride) {
  int64_t batch = s.k_batch;
  int row = s.k_begin + key;
  if (a.p.block_table) {
    const int page = static_cast<int>(a.p.page);
    const Global<const int32_t> table(a.p.block_table);
    batch =
        clamp_to(table.load(s.number * a.p.block_table_stride + row / page), 0, a.cache_batch - 1);
    row %= page;
  }
  return batch * stride.batch + row * stride.row;
}

// The scale of a row of an int8 cache of values.
__device__ __forceinline__ float value_scale_of(const CudaAttention& a, const Sequence& s,
                                                int kv_head, int key) {
  if (key >= s.k_len) return 0.0f;
  const HeadStrides& stride = a.p.v_scale_stride;
  return Global<const float>(a.p.v_scale)
      .load(cache_row(a, s, key, stride) + kv_head * stride.head);
}

// tanh by way of 2^x: 1e-7 of absolute error, where tanh.approx has 5e-4.
__device__ __forceinline__ float tanh_exp2(float x) {
  const float e = exp2_approx(fmaxf(fabsf(x) * (-2.0f * kLog2E), -120.0f));
  const float y = (1.0f - e) * reciprocal_approx(1.0f + e);
  return x < 0.0f ? -y : y;
}

// A score in units of log 2, with all options but the window; `derivative` is that of the score
// by scale * q k.
__device__ __forceinline__ float score_of(const CudaAttention& a, const Sequence& s, int head,
                                          int query, int key, float product, float& derivative) {
  const Attention& p = a.p;
  float score = product * p.scale;
  derivative = 1.0f;
  if (p.k_scale && key < s.k_len) {
    score *= Global<const float>(p.k_scale).load(cache_row(a, s, key, p.k_scale_stride) +
                                                 head / static_cast<int>(p.group) *
                                                     p.k_scale_stride.head);
  }
  if (p.softcap > 0.0f) {
    const float t = tanh_exp2(score / p.softcap);
    score = p.softcap * t;
    derivative = fmaf(-t, t, 1.0f);
  }
  if (p.alibi) {
    const float slope = Global<const float>(p.alibi).load(s.number * p.alibi_batch + head);
    score = fmaf(-slope, fabsf(static_cast<float>(key - query - s.shift)), score);
  }
  if (p.bias && key < s.k_len && query < s.q_len) {
    const int64_t at =
        s.number * p.bias_batch + head * p.bias_head + query * p.bias_row + key * p.bias_column;
    if (p.bias_is_mask) {
      if (!Global<const uint8_t>::of(p.bias).load(at)) score = minus_infinity();
    } else if (p.bias_dtype == DType::f32) {
      score += Global<const float>::of(p.bias).load(at);
    } else if (p.bias_dtype == DType::bf16) {
      score += to_float(Global<const bf16>::of(p.bias).load(at));
    } else {
      score += to_float(Global<const f16>::of(p.bias).load(at));
    }
  }
  return score * kLog2E;
}

// Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): word j % 4
// of counter (j / 4, i, b * heads + h, offset) under the seed belongs to query i and key j.
struct Dropout {
  uint32_t key0, key1, offset;

  __device__ __forceinline__ explicit Dropout(const CudaAttention& a)
      : key0(0), key1(0), offset(0) {
    if (!a.rng_state) return;
    const Global<const int64_t> state(a.rng_state);
    const uint64_t seed = static_cast<uint64_t>(state.load(0));
    key0 = static_cast<uint32_t>(seed);
    key1 = static_cast<uint32_t>(seed >> 32);
    offset = static_cast<uint32_t>(state.load(1));
  }

  __device__ __forceinline__ uint4 words(int key, int query, uint32_t plane) const {
    uint32_t c0 = static_cast<uint32_t>(key) / 4u, c1 = static_cast<uint32_t>(query);
    uint32_t c2 = plane, c3 = offset, k0 = key0, k1 = key1;
#pragma unroll
    for (int round = 0; round < 10; ++round) {
      const uint64_t x = uint64_t{0xD2511F53u} * c0, y = uint64_t{0xCD9E8D57u} * c2;
      c0 = static_cast<uint32_t>(y >> 32) ^ c1 ^ k0;
      c1 = static_cast<uint32_t>(y);
      c2 = static_cast<uint32_t>(x >> 32) ^ c3 ^ k1;
      c3 = static_cast<uint32_t>(x);
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    return make_uint4(c0, c1, c2, c3);
  }

  __device__ __forceinline__ static uint32_t pick(const uint4& w, int i) {
    const uint32_t low = i & 1 ? w.y : w.x, high = i & 1 ? w.w : w.z;
    return i & 2 ? high : low;
  }

  // Of the four elements that a lane has of a 16x8 product with queries as rows: bit i is set
  // where element i is kept. Two lanes share four keys: each draws for one of the two rows.
  __device__ __forceinline__ uint32_t kept_of_row_tile(const CudaAttention& a, int first_key,
                                                       const int (&query)[2],
                                                       const uint32_t (&plane)[2]) const {
    const int lane = static_cast<int>(lane_index());
    const bool odd = lane & 1;
    const uint4 w =
        words(first_key + lane % 4 / 2 * 4, odd ? query[1] : query[0], odd ? plane[1] : plane[0]);
    const uint32_t give0 = odd ? w.x : w.z, give1 = odd ? w.y : w.w;
    const uint32_t got0 = __shfl_xor_sync(kFullWarp, give0, 1);
    const uint32_t got1 = __shfl_xor_sync(kFullWarp, give1, 1);
    const uint32_t own0 = odd ? w.z : w.x, own1 = odd ? w.w : w.y;
    const uint32_t below = a.p.dropout_below;
    const uint32_t own = (own0 >= below ? 1u : 0u) | (own1 >= below ? 2u : 0u);
    const uint32_t got = (got0 >= below ? 1u : 0u) | (got1 >= below ? 2u : 0u);
    return odd ? got | own << 2 : own | got << 2;
  }

  // The same with keys as rows (first_key and 8 more) and queries as columns. Four lanes share four
  // keys of each half: each draws for one half and column.
  __device__ __forceinline__ uint32_t kept_of_column_tile(const CudaAttention& a, int first_key,
                                                          const int (&query)[2],
                                                          const uint32_t (&plane)[2]) const {
    const int turn = static_cast<int>(lane_index()) / 4 % 4;
    const int quad = static_cast<int>(lane_index()) / 16 * 4;
    const uint4 w = words(first_key + quad + turn / 2 * 8, turn & 1 ? query[1] : query[0],
                          turn & 1 ? plane[1] : plane[0]);
    uint32_t kept = 0;
#pragma unroll
    for (int x = 0; x < 4; ++x) {
      // Lane `turn ^ x` drew element `turn ^ x` of this lane, with its keys as words.
      const uint32_t word = __shfl_xor_sync(kFullWarp, pick(w, turn ^ x), x * 4);
      if (word >= a.p.dropout_below) kept |= 1u << (turn ^ x);
    }
    return kept;
  }
};

}  // namespace lepton
