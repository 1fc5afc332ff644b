// Packing of int8 weights: the bytes are those of the CPU
// (lepton_kernels/reference/packed_weight.py).
#pragma once

#include "cuda/int8_params.h"
#include "cuda/ptx.cuh"

namespace lepton {

constexpr int kPackThreads = 128;

// The header, and zeros between the sums and the tiles.
__device__ __forceinline__ void write_header(const PackParams& p) {
  const int t = static_cast<int>(threadIdx.x);
  if (t == 0) {
    const auto words = Global<int64_t>::of(p.header);
    words.store(0, PackedHeader::kMagic), words.store(1, PackedHeader::kVersion);
    words.store(2, p.out_features), words.store(3, p.in_features);
    words.store(4, p.group_size), words.store(5, p.group_padded);
    words.store(6, p.in_padded), words.store(7, p.out_padded);
  }
  const int64_t used = p.groups * p.out_padded;
  if (t < (used + 15) / 16 * 16 - used) Global<int32_t>(p.sums).store(used + t, 0);
}

// A block for each strip of 16 output features and each group of k; thread t: feature t % 16, every
// eighth word of k from t / 16 on.
template <class Unused>
__global__ void __launch_bounds__(kPackThreads) pack_weight_kernel(PackParams p) {
  const int strip = static_cast<int>(blockIdx.x), group = static_cast<int>(blockIdx.y);
  const int feature = static_cast<int>(threadIdx.x) % 16,
            first = static_cast<int>(threadIdx.x) / 16;
  const int64_t n = int64_t{strip} * 16 + feature;
  const bool inside = n < p.out_features;
  const Global<const int8_t> from =
      Global<const int8_t>(p.weight) +
      (inside ? n * p.n_stride + int64_t{group} * p.group_size * p.k_stride : 0);
  const Global<int8_t> tiles = Global<int8_t>(p.tiles) + int64_t{strip} * 16 * p.in_padded;
  if (p.header && strip == 0 && group == 0) write_header(p);
  if (int64_t{strip} * 16 >= p.out_padded) return;  // a weight without features
  // The last group's block also writes the padding of the row.
  const int begin = group * p.group_padded / 4;
  const int end = group + 1 == p.groups ? static_cast<int>(p.in_padded / 4)
                                        : begin + static_cast<int>(p.group_padded / 4);
  int32_t sum = 0;
  for (int word = begin + first; word < end; word += kPackThreads / 16) {
    const int64_t k = (word - begin) * int64_t{4};
    uint32_t value = 0;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (inside && k + e < p.group_size) {
        const int8_t w = from.load((k + e) * p.k_stride);
        sum += w;
        value |= static_cast<uint32_t>(static_cast<uint8_t>(w)) << (8 * e);
      }
    }
    tiles.store_as(int64_t{word} * 64 + feature * 4, value);
  }
  // Threads of one feature: the two halves of a warp, and the warps.
  sum += __shfl_xor_sync(kFullWarp, sum, 16);
  const Shared<int32_t> sums(0);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  if (lane_index() < 16) sums.store(warp * 16 + feature, sum);
  __syncthreads();
  if (threadIdx.x < 16) {
    int32_t total = 0;
    for (int w = 0; w < kPackThreads / 32; ++w) total += sums.load(w * 16 + feature);
    Global<int32_t>(p.sums).store(int64_t{group} * p.out_padded + n, total);
  }
}

}  // namespace lepton
