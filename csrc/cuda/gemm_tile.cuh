// The product of a tile of weight strips with a tile of operand strips, both streamed through
// shared memory (int8_params.h has the layouts). One k-step is 32 bytes: an m16n8k32 of bytes or an
// m16n8k16 of 16-bit floats, whose fragments are the same words.
//
// A strip of 16 output features is the row operand of the product, 8 rows of x are its columns.
// Weights need no ldmatrix: a packed strip holds word k of features 2 s and 2 s + 1 side by side,
// so that 64 bits are half a fragment, if rows s and s + 8 of the product stand for these two.
#pragma once

#include "cuda/int8_params.h"
#include "cuda/ptx.cuh"

namespace lepton {

struct MmaInt8 {
  using Sum = int32_t;
  static __device__ __forceinline__ void run(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1) {
    mma_m16n8k32_s8(d, a, b0, b1);
  }
};

template <class T>
struct MmaFloat16 {
  using Sum = float;
  static __device__ __forceinline__ void run(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1) {
    mma_m16n8k16<T>(d, a, b0, b1);
  }
};

// Warps in a grid of kWarpsM (rows of x) by kWarpsN (features), each with kRowTiles x 16 rows and
// kFeatureTiles x 16 features.
template <class MmaType, int kWarpsM_, int kWarpsN_, int kRowTiles_, int kFeatureTiles_,
          int kStages_>
struct GemmShape {
  using Mma = MmaType;
  using Sum = typename Mma::Sum;
  static constexpr int kWarpsM = kWarpsM_;
  static constexpr int kWarpsN = kWarpsN_;
  static constexpr int kRowTiles = kRowTiles_;
  static constexpr int kFeatureTiles = kFeatureTiles_;
  static constexpr int kStages = kStages_;
  static constexpr int kThreads = 32 * kWarpsM * kWarpsN;
  static constexpr int kXStrips = kWarpsM * kRowTiles;
  static constexpr int kWStrips = kWarpsN * kFeatureTiles;
  static constexpr int kTileM = 16 * kXStrips;
  static constexpr int kTileN = 16 * kWStrips;
  static constexpr int kStageBytes = (kXStrips + kWStrips) * kStripBlock;
  static constexpr int kWarpTileBytes = kRowTiles * 16 * kFeatureTiles * 16 * 4;
  static constexpr int kTileBytes = kWarpTileBytes * kWarpsM * kWarpsN;
  static constexpr int kSharedBytes =
      kStages * kStageBytes > kTileBytes ? kStages* kStageBytes : kTileBytes;
  // As many as an SM's shared memory holds. Without a number ptxas aims at more, and spills for it.
  static constexpr int kBlocksPerProcessor = 160 * 1024 / (kSharedBytes + 1024);

  // sums[feature tile][eight rows][register]: register r of lane 4 s + t is feature 2 s + r / 2 of
  // the tile and row 2 t + r % 2 of the eight.
  using Sums = Sum[kFeatureTiles][2 * kRowTiles][4];
  using WeightFragments = uint32_t[kFeatureTiles][4];
  using RowFragments = uint32_t[kRowTiles][4];  // two products' worth each
};

template <class Shape>
class GemmTile {
 public:
  using WeightFragments = typename Shape::WeightFragments;
  using RowFragments = typename Shape::RowFragments;

  __device__ __forceinline__ GemmTile(const GemmParams& p, int tile_m, int tile_n)
      : source_(Global<const uint8_t>(p.x)) {
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    warp_m_ = warp % Shape::kWarpsM;
    warp_n_ = warp / Shape::kWarpsM;

    // Each thread copies chunks of one strip; strips past the end are the last one again.
    const int strip = static_cast<int>(threadIdx.x) / kLanesPerStrip;
    const int chunk = static_cast<int>(threadIdx.x) % kLanesPerStrip;
    const bool is_weight = strip >= Shape::kXStrips;
    copies_ = strip < kStrips;
    const int of_x = min(tile_m * Shape::kXStrips + strip, p.x_strips - 1);
    const int of_w = min(tile_n * Shape::kWStrips + strip - Shape::kXStrips, p.w_strips - 1);
    if (is_weight) source_ = Global<const uint8_t>(p.w);
    source_ = source_ + (is_weight ? of_w : of_x) * (int64_t{p.blocks} * kStripBlock) + chunk * 16;
    // Word q of a weight strip is 64 bytes: words two apart go into the same banks unless bit 1 of
    // q moves the chunk.
    swizzle_ = is_weight ? 32u : 0u;
    copy_to_ = Shared<uint8_t>(static_cast<uint32_t>(strip * kStripBlock + chunk * 16)).address();
    if (kLanesPerStrip >= 16) copy_to_ ^= (chunk >> 3 & 1) ? swizzle_ : 0u;

    const int row = lane / 16 * 8 + lane % 8, half = lane / 8 % 2;
    x_from_ = Shared<uint8_t>(static_cast<uint32_t>(warp_m_ * Shape::kRowTiles * kStripBlock +
                                                    row * 64 + (half ^ (row >> 1 & 3)) * 16))
                  .address();
    const int slot = lane / 4, word = lane % 4;
    w_from_ =
        static_cast<uint32_t>((Shape::kXStrips + warp_n_ * Shape::kFeatureTiles) * kStripBlock +
                              word * 64 + (slot / 2 ^ (word >> 1) << 1) * 16 + slot % 2 * 8);
  }

  // Multiplies k blocks [begin, end): `step(k-step from begin, weights, rows)`.
  template <class Step>
  __device__ __forceinline__ void run(int begin, int end, const Step& step) {
    const int count = end - begin;
    if (count <= 0) return;
    source_ = source_ + int64_t{begin} * kStripBlock;
    uint32_t write = 0;
#pragma unroll
    for (int s = 0; s < Shape::kStages - 1; ++s) {
      if (s < count) copy(write);
      cp_async_commit();
      write += Shape::kStageBytes;
    }
    cp_async_wait<Shape::kStages - 2>();
    __syncthreads();

    WeightFragments w[2];
    RowFragments x[2];
    uint32_t read = 0;
    load(read, 0, w[0], x[0]);
#pragma unroll 1
    for (int block = 0; block < count; ++block) {
      load(read, 1, w[1], x[1]);
      // Into the stage whose last fragments were read before the barrier of the block before.
      if (block + Shape::kStages - 1 < count) copy(write);
      cp_async_commit();
      write = write == kLastStage ? 0 : write + Shape::kStageBytes;
      step(2 * block, w[0], x[0]);
      cp_async_wait<Shape::kStages - 2>();
      __syncthreads();
      // Behind the last block: fragments of the same stage again, which nobody multiplies.
      if (block + 1 < count) read = read == kLastStage ? 0 : read + Shape::kStageBytes;
      load(read, 0, w[0], x[0]);
      step(2 * block + 1, w[1], x[1]);
    }
  }

  __device__ __forceinline__ int warp_m() const { return warp_m_; }
  __device__ __forceinline__ int warp_n() const { return warp_n_; }

 private:
  static constexpr int kStrips = Shape::kXStrips + Shape::kWStrips;
  // A power of two, so that a strip's chunks fall evenly to its threads.
  static constexpr int kLanesPerStrip = Shape::kThreads / kStrips >= 16  ? 16
                                        : Shape::kThreads / kStrips >= 8 ? 8
                                                                         : 4;
  static constexpr uint32_t kLastStage = (Shape::kStages - 1) * Shape::kStageBytes;
  static_assert(kStrips * kLanesPerStrip <= Shape::kThreads, "a strip for every thread");

  __device__ __forceinline__ void copy(uint32_t stage) {
    if (kStrips * kLanesPerStrip == Shape::kThreads || copies_) {
#pragma unroll
      for (int i = 0; i < 64 / kLanesPerStrip; ++i) {
        const int first = i * kLanesPerStrip;  // chunk `first + chunk of the thread`
        const uint32_t moved = kLanesPerStrip < 16 && (first >> 3 & 1) ? swizzle_ : 0u;
        cp_async<16>((copy_to_ ^ moved) + stage + first * 16, source_ + first * 16);
      }
    }
    source_ = source_ + kStripBlock;
  }

  __device__ __forceinline__ void load(uint32_t stage, int k_step, WeightFragments& w,
                                       RowFragments& x) const {
    const Shared<uint8_t> from(stage + w_from_);
#pragma unroll
    for (int i = 0; i < Shape::kFeatureTiles; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const uint2 v = from.template load_as<uint2>(i * kStripBlock + k_step * 512 + h * 256);
        w[i][2 * h] = v.x, w[i][2 * h + 1] = v.y;
      }
    }
#pragma unroll
    for (int i = 0; i < Shape::kRowTiles; ++i) {
      ldmatrix_x4(x[i], (x_from_ ^ static_cast<uint32_t>(k_step * 32)) + stage + i * kStripBlock);
    }
  }

  Global<const uint8_t> source_;
  int warp_m_, warp_n_;
  bool copies_;
  uint32_t swizzle_, copy_to_, x_from_, w_from_;
};

// One k-step of the warp's tile.
template <class Shape>
__device__ __forceinline__ void multiply(typename Shape::Sums& sums,
                                         const typename Shape::WeightFragments& w,
                                         const typename Shape::RowFragments& x) {
#pragma unroll
  for (int j = 0; j < Shape::kRowTiles; ++j) {
#pragma unroll
    for (int i = 0; i < Shape::kFeatureTiles; ++i) {
      Shape::Mma::run(sums[i][2 * j], w[i], x[j][0], x[j][1]);
    }
#pragma unroll
    for (int i = 0; i < Shape::kFeatureTiles; ++i) {
      Shape::Mma::run(sums[i][2 * j + 1], w[i], x[j][2], x[j][3]);
    }
  }
}

}  // namespace lepton
