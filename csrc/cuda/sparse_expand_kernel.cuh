// Packed sparse weights to what the products read. A block of threads takes a strip of 16 output
// features; the values before each 64 bits of the pattern are counted as it goes.
#pragma once

#include "cuda/int8_widen_kernel.cuh"
#include "cuda/sparse_params.h"

namespace lepton {

constexpr int kExpandThreads = 128;
constexpr int kExpandSharedBytes = kExpandThreads / 32 * 4;

// Bits before this thread's in the block's 128 words of the pattern, and in all of them.
struct CountBefore {
  int before, all;

  __device__ __forceinline__ explicit CountBefore(uint64_t word) {
    const int own = __popcll(word);
    int sum = own;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const int from = __shfl_up_sync(kFullWarp, sum, distance);
      if (static_cast<int>(lane_index()) >= distance) sum += from;
    }
    const Shared<int32_t> totals(0);
    const int warp = static_cast<int>(threadIdx.x) / 32;
    if (lane_index() == 31) totals.store(warp, sum);
    __syncthreads();
    before = sum - own, all = 0;
#pragma unroll
    for (int w = 0; w < kExpandThreads / 32; ++w) {
      const int total = totals.load(w);
      if (w < warp) before += total;
      all += total;
    }
    __syncthreads();
  }
};

// The pattern of a strip by 64 bits: 16 rows x 4 inputs.
struct StripPattern {
  int words;
  Global<const uint64_t> pattern;

  __device__ __forceinline__ StripPattern(const ExpandParams& p, int strip)
      : words(p.in_padded / 4),
        pattern(Global<const uint64_t>::of(p.pattern) + int64_t{strip} * words) {}
  __device__ __forceinline__ uint64_t operator[](int index) const {
    return index < words ? pattern.load(index) : 0;
  }
};

// Calls body(index of the word, word, index of its first value) for each word of a strip, and for
// the empty ones up to out_padded inputs.
template <class Body>
__device__ __forceinline__ void for_each_word(const ExpandParams& p, int strip, const Body& body) {
  const StripPattern pattern(p, strip);
  const int words = p.out_padded / 4;
  int64_t first = Global<const int64_t>(p.offsets).load_constant(strip);
  for (int at = 0; at < words; at += kExpandThreads) {
    const int index = at + static_cast<int>(threadIdx.x);
    const uint64_t word = pattern[index];
    const CountBefore count(word);
    if (index < words) body(index, word, first + count.before);
    first += count.all;
  }
}

__device__ __forceinline__ int bits_below(uint64_t word, int bit) {
  return __popcll(word & ((uint64_t{1} << bit) - 1));
}

// A kept value as float32, or 0.
template <class T>
struct FloatValues {
  Global<const T> values;
  uint64_t word;
  int64_t first;

  __device__ __forceinline__ float at(int bit) const {
    return word >> bit & 1 ? to_float(values.load(first + bits_below(word, bit))) : 0.0f;
  }
};

// int8: a word of the pattern is one word of k for 16 features, 64 bytes of the dense strip.
template <class Unused>
__global__ void __launch_bounds__(kExpandThreads) expand_int8_kernel(ExpandParams p) {
  const int strip = static_cast<int>(blockIdx.x);
  const auto values = Global<const int8_t>::of(p.values);
  const Global<uint8_t> to = Global<uint8_t>(p.to) + int64_t{strip} * p.out_padded * 16;
  for_each_word(p, strip, [&](int index, uint64_t word, int64_t first) {
#pragma unroll
    for (int chunk = 0; chunk < 4; ++chunk) {
      uint32_t words[4] = {0, 0, 0, 0};
#pragma unroll
      for (int b = 0; b < 16; ++b) {
        if (word >> (chunk * 16 + b) & 1) {
          words[b / 4] |= static_cast<uint32_t>(static_cast<uint8_t>(values.load(first++)))
                          << (8 * (b % 4));
        }
      }
      to.store_as(int64_t{index} * 64 + chunk * 16,
                  make_uint4(words[0], words[1], words[2], words[3]));
    }
  });
}

// Floats: a word of the pattern is four inputs of 16 features, [input][feature]; two words of k of
// the dense strip. T is the dtype of the values, To that of the operands.
template <class T, class To>
__global__ void __launch_bounds__(kExpandThreads) expand_float_kernel(ExpandParams p) {
  const int strip = static_cast<int>(blockIdx.x);
  const int64_t plane_bytes = int64_t{p.out_padded} * 32;
  const Global<uint8_t> to = Global<uint8_t>(p.to) + strip * p.terms.count * plane_bytes;
  for_each_word(p, strip, [&](int index, uint64_t word, int64_t first) {
    const FloatValues<T> values{Global<const T>::of(p.values), word, first};
    for (int row = 0; row < 16; ++row) {
      const float v[4] = {values.at(row), values.at(16 + row), values.at(32 + row),
                          values.at(48 + row)};
      for (int term = 0; term < p.terms.count; ++term) {
        const int plane = plane_of(p.terms.weight, term);
        const int64_t at = term * plane_bytes + int64_t{index} * 128 + row * 4;
        to.store_as(at, plane_word<T, To>(v[0], v[1], plane));
        to.store_as(at + 64, plane_word<T, To>(v[2], v[3], plane));
      }
    }
  });
}

// Stored blocks of 16 features x 4 inputs; the rest of the strip becomes zeros first.
template <class T, class To>
__global__ void __launch_bounds__(kExpandThreads) expand_block_kernel(ExpandParams p) {
  const int strip = static_cast<int>(blockIdx.x);
  const int thread = static_cast<int>(threadIdx.x);
  constexpr bool kInt8 = is_same<T, int8_t>;
  const int64_t plane_bytes = int64_t{p.out_padded} * (kInt8 ? 16 : 32);
  const int64_t strip_bytes = p.terms.count * plane_bytes;
  const Global<uint8_t> to = Global<uint8_t>(p.to) + strip * strip_bytes;
  for (int64_t i = int64_t{thread} * 16; i < strip_bytes; i += kExpandThreads * 16) {
    to.store_as(i, make_uint4(0, 0, 0, 0));
  }
  __syncthreads();
  const Global<const int64_t> offsets(p.offsets);
  const auto quads = Global<const uint16_t>::of(p.pattern);
  const int64_t end = offsets.load(strip + 1);
  // Sixteen threads for a block: one for each feature.
  const int row = thread % 16;
  for (int64_t block = offsets.load(strip) + thread / 16; block < end;
       block += kExpandThreads / 16) {
    const int64_t quad = quads.load(block);
    if constexpr (kInt8) {
      const auto words = Global<const uint32_t>::of(p.values);
      to.store_as(quad * 64 + row * 4, words.load(block * 16 + row));
    } else {
      const Global<const T> values = Global<const T>::of(p.values) + block * 64 + row;
      const float v[4] = {to_float(values.load(0)), to_float(values.load(16)),
                          to_float(values.load(32)), to_float(values.load(48))};
      for (int term = 0; term < p.terms.count; ++term) {
        const int plane = plane_of(p.terms.weight, term);
        const int64_t at = term * plane_bytes + quad * 128 + row * 4;
        to.store_as(at, plane_word<T, To>(v[0], v[1], plane));
        to.store_as(at + 64, plane_word<T, To>(v[2], v[3], plane));
      }
    }
  }
}

// The columns of two values kept in four, in rising order, and where the values are. A group with
// fewer keeps zeros as well.
struct TwoOfFour {
  int columns[2];
  bool kept[2];

  __device__ __forceinline__ explicit TwoOfFour(uint32_t mask) {
    const int one = __ffs(static_cast<int>(mask)) - 1;
    const uint32_t rest = mask & (mask - 1);
    if (rest) {
      columns[0] = one, columns[1] = __ffs(static_cast<int>(rest)) - 1;
      kept[0] = kept[1] = true;
    } else if (one == 3) {
      columns[0] = 2, columns[1] = 3, kept[0] = false, kept[1] = true;
    } else {
      columns[0] = one < 0 ? 0 : one, columns[1] = 3, kept[0] = one >= 0, kept[1] = false;
    }
  }
  __device__ __forceinline__ uint32_t metadata() const {
    return static_cast<uint32_t>(columns[0] | columns[1] << 2);
  }
};

// int8 2:4: a word of the pattern is a group of four inputs for each of 16 features. Feature 2 s is
// row s of the fragment, feature 2 s + 1 row s + 8.
template <class Unused>
__global__ void __launch_bounds__(kExpandThreads) compress_int8_kernel(ExpandParams p) {
  const int strip = static_cast<int>(blockIdx.x);
  const auto values = Global<const uint8_t>(p.values);
  const Global<uint8_t> to =
      Global<uint8_t>(p.to) + int64_t{strip} * (p.out_padded / 64) * kSparseBlock;
  const StripPattern pattern(p, strip);
  for_each_word(p, strip, [&](int index, uint64_t word, int64_t first) {
    const int group = index % 16;  // of the 64 inputs of a fragment
    const uint64_t next = group % 2 == 0 ? pattern[index + 1] : 0;
    const Global<uint8_t> block = to + int64_t{index / 16} * kSparseBlock;
    for (int row = 0; row < 16; ++row) {
      const TwoOfFour two(static_cast<uint32_t>(word >> (row * 4)) & 15u);
      uint32_t pair = 0;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (two.kept[i]) {
          const int at = bits_below(word, row * 4 + two.columns[i]);
          pair |= static_cast<uint32_t>(values.load(first + at)) << (8 * i);
        }
      }
      const int slot = row / 2, upper = row % 2;
      // Bytes 2 group, 2 group + 1 of the 32 kept: register upper + 2 (group / 8) of lane
      // 4 slot + group / 2 % 4.
      const int lane = slot * 4 + group / 2 % 4;
      block.store_as(lane * 16 + (upper + group / 8 * 2) * 4 + group % 2 * 2,
                     static_cast<uint16_t>(pair));
      // Metadata: lanes 4 slot + upper + 2 (group / 8), four bits for each of eight groups. The
      // thread of the lower of two groups writes their byte.
      if (group % 2 == 0) {
        const TwoOfFour other(static_cast<uint32_t>(next >> (row * 4)) & 15u);
        block.store(kFragmentBytes + (slot * 4 + upper + group / 8 * 2) * 4 + group % 8 / 2,
                    static_cast<uint8_t>(two.metadata() | other.metadata() << 4));
      }
    }
  });
}

// The four inputs of a row in a word of the pattern of floats.
__device__ __forceinline__ uint32_t inputs_of(uint64_t word, int row) {
  uint32_t mask = 0;
#pragma unroll
  for (int k = 0; k < 4; ++k) mask |= static_cast<uint32_t>(word >> (k * 16 + row) & 1) << k;
  return mask;
}

// 16-bit 2:4: 32 inputs in a fragment. Words of the pattern are four inputs, so a group.
template <class T, class To>
__global__ void __launch_bounds__(kExpandThreads) compress_float_kernel(ExpandParams p) {
  const int strip = static_cast<int>(blockIdx.x);
  const int64_t plane_bytes = int64_t{p.out_padded / 32} * kSparseBlock;
  const StripPattern pattern(p, strip);
  const Global<uint8_t> to = Global<uint8_t>(p.to) + strip * p.terms.count * plane_bytes;
  for_each_word(p, strip, [&](int index, uint64_t word, int64_t first) {
    const FloatValues<T> values{Global<const T>::of(p.values), word, first};
    const int group = index % 8;
    const uint64_t next = group % 2 == 0 ? pattern[index + 1] : 0;
    for (int row = 0; row < 16; ++row) {
      const TwoOfFour two(inputs_of(word, row));
      const float low = two.kept[0] ? values.at(two.columns[0] * 16 + row) : 0.0f;
      const float high = two.kept[1] ? values.at(two.columns[1] * 16 + row) : 0.0f;
      const int slot = row / 2, upper = row % 2;
      const uint32_t metadata = two.metadata() | TwoOfFour(inputs_of(next, row)).metadata() << 4;
      for (int term = 0; term < p.terms.count; ++term) {
        const Global<uint8_t> block = to + term * plane_bytes + int64_t{index / 8} * kSparseBlock;
        block.store_as((slot * 4 + group % 4) * 16 + (upper + group / 4 * 2) * 4,
                       plane_word<T, To>(low, high, plane_of(p.terms.weight, term)));
        // Lane 4 slot: columns 0-15, lane 4 slot + 1: columns 16-31; the odd feature's are the
        // upper half.
        if (group % 2 == 0) {
          block.store(kFragmentBytes + (slot * 4 + group / 4) * 4 + upper * 2 + group % 4 / 2,
                      static_cast<uint8_t>(metadata));
        }
      }
    }
  });
}

}  // namespace lepton
