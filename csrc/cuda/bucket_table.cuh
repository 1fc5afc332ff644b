// What the bucket kernels share: entries of a table of tensors, and 16-byte accesses where
// addresses allow. All are bound by memory, and take one launch for any number of tensors.
#pragma once

#include "cuda/ptx.cuh"
#include "params/bucket_device.h"

namespace lepton {

constexpr int kBucketThreads = 256;
// Elements of one block's work.
constexpr int kBucketChunk = 32 * kBucketThreads;

__device__ inline BucketEntry bucket_entry(const BucketTable& table, int i) {
  if (table.entries == nullptr) return table.inline_entries[i];
  const Global<const int4> words = Global<const int4>::of(table.entries);
  const int4 low = words.load_constant(2 * i), high = words.load_constant(2 * i + 1);
  const auto join = [](int first, int second) {
    return static_cast<int64_t>(static_cast<uint64_t>(static_cast<uint32_t>(second)) << 32 |
                                static_cast<uint32_t>(first));
  };
  return {reinterpret_cast<void*>(join(low.x, low.y)), join(low.z, low.w), join(high.x, high.y),
          static_cast<uint32_t>(high.z), static_cast<BucketType>(high.w)};
}

// The tensor that a chunk belongs to: the last one that begins at or before it. Empty tensors
// begin where the next one does, and are passed over.
__device__ inline int bucket_find(const BucketTable& table, uint32_t chunk) {
  int low = 0, high = table.tensors - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (bucket_entry(table, middle).first_chunk <= chunk) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

template <class T>
__device__ inline bool aligned16(const T* address) {
  return reinterpret_cast<uintptr_t>(address) % 16 == 0;
}

// Elements that a thread moves at once: 16 bytes of the widest type, so that a warp's access is
// one run of memory whatever the types are.
template <class... Types>
constexpr int bucket_width = (... && (sizeof(Types) == 2)) ? 8 : 4;

// kWidth elements as fp32, from an address that is a multiple of their size.
template <int kWidth, class T>
__device__ inline void load_floats(Global<const T> x, int64_t i, float (&v)[kWidth]) {
  if constexpr (sizeof(T) == 4) {
    const auto four = x.template load_as<float4>(i);
    v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
  } else {
    uint32_t words[kWidth / 2];
    if constexpr (kWidth == 8) {
      const auto packed = x.template load_as<uint4>(i);
      words[0] = packed.x, words[1] = packed.y, words[2] = packed.z, words[3] = packed.w;
    } else {
      const auto packed = x.template load_as<uint2>(i);
      words[0] = packed.x, words[1] = packed.y;
    }
#pragma unroll
    for (int w = 0; w < kWidth / 2; ++w) {
      const float2 pair = unpack2<T>(words[w]);
      v[2 * w] = pair.x, v[2 * w + 1] = pair.y;
    }
  }
}
template <int kWidth, class T>
__device__ inline void store_floats(Global<T> y, int64_t i, const float (&v)[kWidth]) {
  if constexpr (sizeof(T) == 4) {
    y.store_as(i, make_float4(v[0], v[1], v[2], v[3]));
  } else if constexpr (kWidth == 8) {
    y.store_as(i, make_uint4(pack2<T>(v[0], v[1]), pack2<T>(v[2], v[3]), pack2<T>(v[4], v[5]),
                             pack2<T>(v[6], v[7])));
  } else {
    y.store_as(i, make_uint2(pack2<T>(v[0], v[1]), pack2<T>(v[2], v[3])));
  }
}

// Calls body(i, true) for this thread's share of the groups of kWidth elements among `count` (of
// one chunk) where `vector` holds, and body(i, false) for its share of the elements that are left.
template <int kWidth, class Body>
__device__ inline void bucket_share(int count, bool vector, const Body& body) {
  const int groups = vector ? count / kWidth : 0;
#pragma unroll 2
  for (int g = static_cast<int>(threadIdx.x); g < groups; g += kBucketThreads) {
    body(g * kWidth, true);
  }
#pragma unroll 1
  for (int i = groups * kWidth + static_cast<int>(threadIdx.x); i < count; i += kBucketThreads) {
    body(i, false);
  }
}

}  // namespace lepton
