// Few rows times an int8 bitmask weight: the weight is read once, packed, and expanded in shared
// memory. A block of threads takes a strip of 16 output features; its warps share the blocks of 64
// inputs, each expands one to the layout of a dense strip and multiplies it at once.
#pragma once

#include "cuda/int8_finish.cuh"
#include "cuda/sparse_params.h"

namespace lepton {

constexpr int kFewThreads = 128;
constexpr int kFewWarps = kFewThreads / 32;
constexpr int kFewRows = 16;
// A row of sums is 80 bytes: so that neither side of the exchange has bank conflicts.
constexpr int kFewSumsStride = 20;

struct FewLayout {
  static constexpr uint32_t kTiles = 0;  // two for each warp
  static constexpr uint32_t kSums = kTiles + kFewWarps * 2 * kStripBlock;
  static constexpr uint32_t kCounts = kSums + kFewWarps * kFewRows * kFewSumsStride * 4;
  static uint32_t bytes(int blocks) { return kCounts + static_cast<uint32_t>(blocks) * 4; }
};

// Four bytes from byte `at` on, which need not be aligned. The buffer is padded behind its end.
__device__ __forceinline__ uint32_t load_unaligned(Global<const uint32_t> values, uint32_t at) {
  const uint32_t low = values.load_constant(at >> 2), high = values.load_constant((at >> 2) + 1);
  return __funnelshift_r(low, high, at * 8);  // the shift counts modulo 32
}

// The kept bytes of `source` at the set bits of `mask` (4 bits), zeros elsewhere.
__device__ __forceinline__ uint32_t spread(uint32_t source, uint32_t mask) {
  uint32_t selector = mask & 1 ? 0x0 : 0x4;
  selector |= (mask & 2 ? mask & 1 : 4u) << 4;
  selector |= (mask & 4 ? static_cast<uint32_t>(__popc(mask & 3)) : 4u) << 8;
  selector |= (mask & 8 ? static_cast<uint32_t>(__popc(mask & 7)) : 4u) << 12;
  return __byte_perm(source, 0, selector);
}

// counts[b]: values of the strip before block b.
__device__ __forceinline__ void count_blocks(Global<const uint4> pattern, int blocks) {
  const Shared<int32_t> counts(FewLayout::kCounts);
  for (int b = static_cast<int>(threadIdx.x); b < blocks; b += kFewThreads) {
    int count = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint4 v = pattern.load(int64_t{b} * 8 + i);
      count += __popc(v.x) + __popc(v.y) + __popc(v.z) + __popc(v.w);
    }
    counts.store(b, count);
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    int before = 0;
    for (int b = 0; b < blocks; b += 32) {
      const int index = b + static_cast<int>(lane_index());
      const int own = index < blocks ? counts.load(index) : 0;
      int sum = own;
#pragma unroll
      for (int distance = 1; distance < 32; distance *= 2) {
        const int from = __shfl_up_sync(kFullWarp, sum, distance);
        if (static_cast<int>(lane_index()) >= distance) sum += from;
      }
      if (index < blocks) counts.store(index, before + sum - own);
      before += __shfl_sync(kFullWarp, sum, 31);
    }
  }
  __syncthreads();
}

// One block of the strip to the warp's tile, in the layout of a copied weight block
// (gemm_tile.cuh): lane l expands word l / 2 of k of eight features.
__device__ __forceinline__ void expand_block(Shared<uint8_t> tile, uint32_t mask,
                                             Global<const uint32_t> values, int64_t first) {
  const int lane = static_cast<int>(lane_index());
  const int own = __popc(mask);
  int sum = own;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const int from = __shfl_up_sync(kFullWarp, sum, distance);
    if (lane >= distance) sum += from;
  }
  const int64_t begin = first + sum - own;
  const Global<const uint32_t> from = values + (begin >> 2);
  const auto skew = static_cast<uint32_t>(begin & 3);
  uint32_t words[8];
#pragma unroll
  for (int r = 0; r < 8; ++r) {
    const uint32_t four = mask >> (4 * r) & 15u;
    const uint32_t at = skew + static_cast<uint32_t>(__popc(mask & ((1u << (4 * r)) - 1)));
    words[r] = four ? spread(load_unaligned(from, at), four) : 0u;
  }
  const int word = lane / 2, odd = word >> 1 & 1;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    // Chunk 2 (lane % 2) + which; words two apart begin with the other one: no bank conflicts.
    const bool upper = (i ^ odd) != 0;
    const int chunk = lane % 2 * 2 + (upper ? 1 : 0);
    tile.store_as(word * 64 + (chunk ^ odd << 1) * 16,
                  make_uint4(upper ? words[4] : words[0], upper ? words[5] : words[1],
                             upper ? words[6] : words[2], upper ? words[7] : words[3]));
  }
}

// A grid of strips. The rows of x are one operand strip; kEights x 8 of them are multiplied.
template <int kEights>
__global__ void __launch_bounds__(kFewThreads) sparse_few_kernel(FewParams p) {
  const int strip = static_cast<int>(blockIdx.x);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int slot = lane / 4, word = lane % 4;
  const int blocks = p.in_padded / kBlockBytes;
  const auto pattern = Global<const uint32_t>::of(p.pattern) + int64_t{strip} * blocks * 32;
  count_blocks(Global<const uint4>::of(p.pattern) + int64_t{strip} * blocks * 8, blocks);
  const Shared<int32_t> counts(FewLayout::kCounts);
  const auto values = Global<const uint32_t>::of(p.values);
  const int64_t first = Global<const int64_t>(p.offsets).load_constant(strip);
  const auto x = Global<const uint32_t>::of(p.x);

  int32_t sums[kEights][4] = {};
  int buffer = 0;
  for (int block = warp; block < blocks; block += kFewWarps) {
    const Shared<uint8_t> tile(FewLayout::kTiles +
                               static_cast<uint32_t>((warp * 2 + buffer) * kStripBlock));
    buffer ^= 1;
    expand_block(tile, pattern.load(int64_t{block} * 32 + lane), values,
                 first + counts.load(block));
    __syncwarp();
#pragma unroll
    for (int k_step = 0; k_step < 2; ++k_step) {
      uint32_t w[4];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const uint2 v = tile.load_as<uint2>(k_step * 512 + h * 256 + word * 64 +
                                            (slot / 2 ^ (word >> 1) << 1) * 16 + slot % 2 * 8);
        w[2 * h] = v.x, w[2 * h + 1] = v.y;
      }
#pragma unroll
      for (int j = 0; j < kEights; ++j) {
        const int64_t row = int64_t{block} * 256 + (j * 8 + slot) * 16 + word;
        const int swizzle = slot >> 1 & 3;
        mma_m16n8k32_s8(sums[j], w, x.load((row + ((2 * k_step) ^ swizzle) * 4)),
                        x.load((row + ((2 * k_step + 1) ^ swizzle) * 4)));
      }
    }
  }

  const Shared<int32_t> exchange(FewLayout::kSums);
#pragma unroll
  for (int j = 0; j < kEights; ++j) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = warp * kFewRows + j * 8 + word * 2 + r;
      exchange.store_as(row * kFewSumsStride + slot * 2, make_int2(sums[j][r], sums[j][2 + r]));
    }
  }
  __syncthreads();
  const int row = static_cast<int>(threadIdx.x) % 16, eight = static_cast<int>(threadIdx.x) / 16;
  if (eight >= 2 || row >= p.finish.m || row >= kEights * 8) return;
  int32_t total[kColumns] = {};
#pragma unroll
  for (int w = 0; w < kFewWarps; ++w) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int4 v =
          exchange.load_as<int4>((w * kFewRows + row) * kFewSumsStride + eight * 8 + half * 4);
      total[half * 4] += v.x, total[half * 4 + 1] += v.y;
      total[half * 4 + 2] += v.z, total[half * 4 + 3] += v.w;
    }
  }
  const ColumnParams columns(p.finish, strip * 16 + eight * kColumns);
  if (columns.count == 0) return;
  with_activation(p.finish.activation, [&](auto tag) {
    finish_sums<decltype(tag)::value>(p.finish, columns, row, total);
  });
}

}  // namespace lepton
