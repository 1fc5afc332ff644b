// Products with a 2:4 weight by mma.sp. Two blocks of k (two k-steps of 64 bytes of x) make a slab;
// the weight lies in memory as the fragments that the instruction takes (sparse_params.h), so that
// it is read without conflicts and without ldmatrix.
#pragma once

#include "cuda/int8_linear_kernel.cuh"
#include "cuda/sparse_params.h"

namespace lepton {

struct SparseMmaInt8 {
  using Sum = int32_t;
  static __device__ __forceinline__ void run(int32_t (&d)[4], const uint32_t (&w)[4],
                                             const uint32_t (&x)[4], uint32_t metadata) {
    mma_sp_m16n8k64_s8(d, w, x, metadata);
  }
};

template <class T>
struct SparseMmaFloat16 {
  using Sum = float;
  static __device__ __forceinline__ void run(float (&d)[4], const uint32_t (&w)[4],
                                             const uint32_t (&x)[4], uint32_t metadata) {
    mma_sp_m16n8k32<T>(d, w, x, metadata);
  }
};

// Like GemmShape; the sums are laid out the same, so that WarpTile takes them.
template <class MmaType, int kWarpsM_, int kWarpsN_, int kRowTiles_, int kFeatureTiles_,
          int kStages_>
struct SparseGemmShape {
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
  static constexpr int kXBytes = 2 * kStripBlock;
  static constexpr int kWBytes = 2 * kSparseBlock;
  static constexpr int kStageBytes = kXStrips * kXBytes + kWStrips * kWBytes;
  static constexpr int kWarpTileBytes = kRowTiles * 16 * kFeatureTiles * 16 * 4;
  static constexpr int kTileBytes = kWarpTileBytes * kWarpsM * kWarpsN;
  static constexpr int kSharedBytes =
      kStages * kStageBytes > kTileBytes ? kStages* kStageBytes : kTileBytes;
  using Sums = Sum[kFeatureTiles][2 * kRowTiles][4];
};

template <class Shape>
struct SparseFragments {
  uint32_t w[Shape::kFeatureTiles][4];
  uint32_t metadata[Shape::kFeatureTiles];
  uint32_t x[2 * Shape::kRowTiles][4];
};

template <class Shape>
class SparseGemmTile {
 public:
  using Fragments = SparseFragments<Shape>;

  __device__ __forceinline__ SparseGemmTile(const GemmParams& p, int tile_m, int tile_n)
      : x_(Global<const uint8_t>(p.x)), w_(Global<const uint8_t>(p.w)) {
    const int t = static_cast<int>(threadIdx.x), warp = t / 32, lane = t % 32;
    warp_m_ = warp % Shape::kWarpsM;
    warp_n_ = warp / Shape::kWarpsM;
    const int x_strip = t / kXLanes, w_strip = t / kWLanes;
    // Strips past the end are the last one again.
    const int of_x = min(tile_m * Shape::kXStrips + x_strip, p.x_strips - 1);
    const int of_w = min(tile_n * Shape::kWStrips + w_strip, p.w_strips - 1);
    x_ = x_ + of_x * (int64_t{p.blocks} * kStripBlock) + t % kXLanes * 16;
    w_ = w_ + of_w * (int64_t{p.blocks} * kSparseBlock) + t % kWLanes * 16;
    x_to_ = Shared<uint8_t>(static_cast<uint32_t>(x_strip * Shape::kXBytes + t % kXLanes * 16))
                .address();
    w_to_ = Shared<uint8_t>(
                static_cast<uint32_t>(kWBegin + w_strip * Shape::kWBytes + t % kWLanes * 16))
                .address();
    const int row = lane % 8, chunk = lane / 8;
    x_from_ = Shared<uint8_t>(static_cast<uint32_t>(warp_m_ * Shape::kRowTiles * Shape::kXBytes +
                                                    row * 64 + (chunk ^ (row >> 1 & 3)) * 16))
                  .address();
    w_from_ = static_cast<uint32_t>(kWBegin + warp_n_ * Shape::kFeatureTiles * Shape::kWBytes +
                                    lane * 16);
  }

  // Adds the products of slabs [begin, end) to the sums.
  __device__ __forceinline__ void run(int begin, int end, typename Shape::Sums& sums) {
    const int count = end - begin;
    if (count <= 0) return;
    x_ = x_ + int64_t{begin} * Shape::kXBytes;
    w_ = w_ + int64_t{begin} * Shape::kWBytes;
    uint32_t write = 0;
#pragma unroll
    for (int s = 0; s < Shape::kStages - 1; ++s) {
      if (s < count) copy(write);
      cp_async_commit();
      write += Shape::kStageBytes;
    }
    cp_async_wait<Shape::kStages - 2>();
    __syncthreads();

    Fragments f[2];
    uint32_t read = 0;
    load(read, 0, f[0]);
#pragma unroll 1
    for (int slab = 0; slab < count; ++slab) {
      load(read, 1, f[1]);
      // Into the stage whose last fragments were read before the barrier of the slab before.
      if (slab + Shape::kStages - 1 < count) copy(write);
      cp_async_commit();
      write = write == kLastStage ? 0 : write + Shape::kStageBytes;
      multiply(sums, f[0]);
      cp_async_wait<Shape::kStages - 2>();
      __syncthreads();
      // Behind the last slab: fragments of the same stage again, which nobody multiplies.
      if (slab + 1 < count) read = read == kLastStage ? 0 : read + Shape::kStageBytes;
      load(read, 0, f[0]);
      multiply(sums, f[1]);
    }
  }

  __device__ __forceinline__ int warp_m() const { return warp_m_; }
  __device__ __forceinline__ int warp_n() const { return warp_n_; }

 private:
  static constexpr int kXLanes = Shape::kThreads / Shape::kXStrips;
  static constexpr int kWLanes = Shape::kThreads / Shape::kWStrips;
  static constexpr int kXChunks = Shape::kXBytes / 16, kWChunks = Shape::kWBytes / 16;
  static constexpr uint32_t kWBegin = Shape::kXStrips * Shape::kXBytes;
  static constexpr uint32_t kLastStage = (Shape::kStages - 1) * Shape::kStageBytes;
  static_assert(kXLanes * Shape::kXStrips == Shape::kThreads, "rows for every thread");
  static_assert(kWLanes * Shape::kWStrips == Shape::kThreads, "weights for every thread");

  __device__ __forceinline__ void copy(uint32_t stage) {
    const int t = static_cast<int>(threadIdx.x);
#pragma unroll
    for (int first = 0; first < kXChunks; first += kXLanes) {
      cp_async<16>(x_to_ + stage + first * 16, x_ + first * 16);
    }
#pragma unroll
    for (int first = 0; first < kWChunks; first += kWLanes) {
      if (first + kWLanes <= kWChunks || t % kWLanes < kWChunks - first) {
        cp_async<16>(w_to_ + stage + first * 16, w_ + first * 16);
      }
    }
    x_ = x_ + Shape::kXBytes;
    w_ = w_ + Shape::kWBytes;
  }

  __device__ __forceinline__ void load(uint32_t stage, int k_step, Fragments& f) const {
    const Shared<uint8_t> from(stage + w_from_);
    const Shared<uint32_t> metadata(stage + w_from_ - lane_index() * 12);
#pragma unroll
    for (int i = 0; i < Shape::kFeatureTiles; ++i) {
      const int at = i * Shape::kWBytes + k_step * kSparseBlock;
      const uint4 v = from.template load_as<uint4>(at);
      f.w[i][0] = v.x, f.w[i][1] = v.y, f.w[i][2] = v.z, f.w[i][3] = v.w;
      f.metadata[i] = metadata.load((at + kFragmentBytes) / 4);
    }
#pragma unroll
    for (int j = 0; j < 2 * Shape::kRowTiles; ++j) {
      ldmatrix_x4(f.x[j],
                  x_from_ + stage + j / 2 * Shape::kXBytes + k_step * kStripBlock + j % 2 * 512);
    }
  }

  static __device__ __forceinline__ void multiply(typename Shape::Sums& sums, const Fragments& f) {
#pragma unroll
    for (int j = 0; j < 2 * Shape::kRowTiles; ++j) {
#pragma unroll
      for (int i = 0; i < Shape::kFeatureTiles; ++i) {
        Shape::Mma::run(sums[i][j], f.w[i], f.x[j], f.metadata[i]);
      }
    }
  }

  Global<const uint8_t> x_, w_;
  int warp_m_, warp_n_;
  uint32_t x_to_, w_to_, x_from_, w_from_;
};

// Grid (tiles, 1, splits).
template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads) sparse_gemm_kernel(GemmParams p) {
  const TilePosition at = tile_position<Shape>(p);
  SparseGemmTile<Shape> tile(p, at.m, at.n);
  typename Shape::Sums sums = {};
  const int split = static_cast<int>(blockIdx.z);
  const int64_t slabs = p.blocks / 2;
  tile.run(static_cast<int>(slabs * split / p.splits),
           static_cast<int>(slabs * (split + 1) / p.splits), sums);
  finish_tile<Shape>(p, at, tile.warp_m(), tile.warp_n(), sums);
}

}  // namespace lepton
