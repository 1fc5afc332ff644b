// Matrix products of the int8 family: one group of k, many groups, and the sum of split products.
#pragma once

#include "cuda/gemm_tile.cuh"
#include "cuda/int8_finish.cuh"

namespace lepton {

// Moves a warp's sums through its own part of shared memory, from fragments to rows of eight
// columns; the swizzle keeps both sides free of bank conflicts.
template <class Shape, class Value>
class WarpTile {
 public:
  static constexpr int kColumnsWide = Shape::kFeatureTiles * 16;
  static constexpr int kRows = Shape::kRowTiles * 16;
  static constexpr int kLanesPerRow = kColumnsWide / kColumns;
  static constexpr int kRowsAtOnce = 32 / kLanesPerRow;
  static_assert(kColumnsWide == 32 || kColumnsWide == 64, "the swizzle needs 8 or 16 chunks");
  using Values = Value[Shape::kFeatureTiles][2 * Shape::kRowTiles][4];

  __device__ __forceinline__ WarpTile()
      : memory_(threadIdx.x / 32 * static_cast<uint32_t>(Shape::kWarpTileBytes)) {}

  __device__ __forceinline__ void put(const Values& sums) const {
    const int slot = static_cast<int>(lane_index()) / 4, word = static_cast<int>(lane_index()) % 4;
#pragma unroll
    for (int j = 0; j < 2 * Shape::kRowTiles; ++j) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int row = j * 8 + word * 2 + r;
#pragma unroll
        for (int i = 0; i < Shape::kFeatureTiles; ++i) {
          store(at(row, i * 4 + slot / 2) + slot % 2 * 2, sums[i][j][r], sums[i][j][2 + r]);
        }
      }
    }
    __syncwarp();
  }

  __device__ __forceinline__ void get(int row, int eight, Value (&values)[kColumns]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      load(at(row, eight * 2 + half), values + half * 4);
    }
  }

 private:
  __device__ __forceinline__ int at(int row, int chunk) const {
    return row * kColumnsWide + (chunk ^ (row >> 1 & 3) << 1 ^ (row & 1) ^ (chunk >> 3 & 1)) * 4;
  }
  __device__ __forceinline__ void store(int i, int32_t a, int32_t b) const {
    memory_.template store_as<int2>(i, make_int2(a, b));
  }
  __device__ __forceinline__ void store(int i, float a, float b) const {
    memory_.template store_as<float2>(i, make_float2(a, b));
  }
  __device__ __forceinline__ void load(int i, int32_t* to) const {
    const int4 v = memory_.template load_as<int4>(i);
    to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
  }
  __device__ __forceinline__ void load(int i, float* to) const {
    const float4 v = memory_.template load_as<float4>(i);
    to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
  }

  Shared<Value> memory_;
};

__device__ __forceinline__ void store_raw(void* workspace, int64_t i,
                                          const int32_t (&v)[kColumns]) {
  const auto to = Global<int32_t>::of(workspace);
  to.store_as(i, make_int4(v[0], v[1], v[2], v[3]));
  to.store_as(i + 4, make_int4(v[4], v[5], v[6], v[7]));
}
__device__ __forceinline__ void store_raw(void* workspace, int64_t i, const float (&v)[kColumns]) {
  const auto to = Global<float>::of(workspace);
  to.store_as(i, make_float4(v[0], v[1], v[2], v[3]));
  to.store_as(i + 4, make_float4(v[4], v[5], v[6], v[7]));
}
__device__ __forceinline__ void load_raw(const void* workspace, int64_t i, int32_t (&v)[kColumns]) {
  const auto from = Global<const int32_t>::of(workspace);
  const int4 low = from.load_as<int4>(i), high = from.load_as<int4>(i + 4);
  v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w;
  v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
}
__device__ __forceinline__ void load_raw(const void* workspace, int64_t i, float (&v)[kColumns]) {
  const auto from = Global<const float>::of(workspace);
  const float4 low = from.load_as<float4>(i), high = from.load_as<float4>(i + 4);
  v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w;
  v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
}

// Calls body(row of the output, lane's values) for the warp's rows inside the output.
template <class Shape, class Value, class Body>
__device__ __forceinline__ void for_each_row(const WarpTile<Shape, Value>& tile, int m0, int m,
                                             const Body& body) {
  using Tile = WarpTile<Shape, Value>;
  const int eight = static_cast<int>(lane_index()) % Tile::kLanesPerRow;
  const int first = static_cast<int>(lane_index()) / Tile::kLanesPerRow;
#pragma unroll 1
  for (int row = first; row < Tile::kRows && m0 + row < m; row += Tile::kRowsAtOnce) {
    Value values[kColumns];
    tile.get(row, eight, values);
    body(m0 + row, values);
  }
}

// Blocks of the grid next to each other share weights: tiles go down the rows, eight at a time.
struct TilePosition {
  int m, n;
};
template <class Shape>
__device__ __forceinline__ TilePosition tile_position(const GemmParams& p) {
  const int tiles_m = ceil_div(p.finish.m, Shape::kTileM);
  const int tiles_n = ceil_div(p.finish.n, Shape::kTileN);
  constexpr int kBand = 8;
  const int index = static_cast<int>(blockIdx.x);
  const int band = index / (kBand * tiles_n);
  const int height = min(kBand, tiles_m - band * kBand);
  const int inside = index - band * kBand * tiles_n;
  return {band * kBand + inside % height, inside / height};
}

// The sums of a block's tile to outputs, or to the workspace of split products.
template <class Shape>
__device__ __forceinline__ void finish_tile(const GemmParams& p, const TilePosition& at, int warp_m,
                                            int warp_n, const typename Shape::Sums& sums) {
  cp_async_wait<0>();
  __syncthreads();

  using Values = WarpTile<Shape, typename Shape::Sum>;
  const Values rows;
  rows.put(sums);
  const FinishParams& f = p.finish;
  const int m0 = at.m * Shape::kTileM + warp_m * Values::kRows;
  const int n0 = at.n * Shape::kTileN + warp_n * Values::kColumnsWide;
  const int n = n0 + static_cast<int>(lane_index()) % Values::kLanesPerRow * kColumns;
  const int split = static_cast<int>(blockIdx.z);
  if (p.splits > 1) {
    const int64_t plane = int64_t{split} * f.m;
    for_each_row(rows, m0, f.m, [&](int m, const auto& values) {
      if (n < f.n) store_raw(p.workspace, (plane + m) * p.workspace_stride + n, values);
    });
    return;
  }
  const ColumnParams columns(f, n);
  if constexpr (is_same<typename Shape::Sum, int32_t>) {
    if (f.out_dtype == DType::i32) {
      for_each_row(rows, m0, f.m,
                   [&](int m, const auto& values) { finish_int32(f, columns, m, values); });
      return;
    }
  }
  with_activation(f.activation, [&](auto tag) {
    for_each_row(rows, m0, f.m, [&](int m, const auto& values) {
      finish_sums<decltype(tag)::value>(f, columns, m, values);
    });
  });
}

// One group of k: grid (tiles, 1, splits).
template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocksPerProcessor)
    gemm_kernel(GemmParams p) {
  const TilePosition at = tile_position<Shape>(p);
  GemmTile<Shape> tile(p, at.m, at.n);
  typename Shape::Sums sums = {};
  const int split = static_cast<int>(blockIdx.z);
  const int begin = static_cast<int>(int64_t{p.blocks} * split / p.splits);
  const int end = static_cast<int>(int64_t{p.blocks} * (split + 1) / p.splits);
  tile.run(begin, end, [&](int, const auto& w, const auto& x) { multiply<Shape>(sums, w, x); });
  finish_tile<Shape>(p, at, tile.warp_m(), tile.warp_n(), sums);
}

// Adds up split products, in the order of k, and finishes them: a thread for eight columns.
template <class Sum>
__global__ void __launch_bounds__(128) gemm_finish_kernel(GemmParams p) {
  const FinishParams& f = p.finish;
  const int eights = ceil_div(f.n, kColumns);
  const int64_t index = int64_t{blockIdx.x} * 128 + threadIdx.x;
  const int m = static_cast<int>(index / eights);
  if (m >= f.m) return;
  const int n = static_cast<int>(index % eights) * kColumns;
  Sum total[kColumns] = {};
  for (int split = 0; split < p.splits; ++split) {
    Sum part[kColumns];
    load_raw(p.workspace, (int64_t{split} * f.m + m) * p.workspace_stride + n, part);
#pragma unroll
    for (int e = 0; e < kColumns; ++e) total[e] += part[e];
  }
  const ColumnParams columns(f, n);
  if constexpr (is_same<Sum, int32_t>) {
    if (f.out_dtype == DType::i32) return finish_int32(f, columns, m, total);
  }
  with_activation(f.activation,
                  [&](auto tag) { finish_sums<decltype(tag)::value>(f, columns, m, total); });
}

// Many groups of k: each group's sums become floats before the next group begins, as on the CPU. A
// k-step that lies in several groups is multiplied once for each, with the other words of k masked;
// no word lies in two groups.
template <class Shape>
class GroupedSums {
 public:
  __device__ __forceinline__ GroupedSums(const GemmParams& p, int m0, int n0)
      : p_(p), m0_(m0), n0_(n0) {}

  __device__ __forceinline__ void step(int k_step, const typename Shape::WeightFragments& w,
                                       const typename Shape::RowFragments& x) {
    const int first = k_step * 8;
    while (group_ < p_.groups * p_.planes && begin_ < first + 8) {
      const int begin = begin_ - first;
      const int end = begin + p_.group_words;
      if (begin <= 0 && end >= 8) {
        multiply<Shape>(sums_, w, x);
      } else {
        const int word = static_cast<int>(lane_index()) % 4;
        const uint32_t low = word >= begin && word < end ? ~0u : 0u;
        const uint32_t high = word + 4 >= begin && word + 4 < end ? ~0u : 0u;
        typename Shape::RowFragments masked;
#pragma unroll
        for (int i = 0; i < Shape::kRowTiles; ++i) {
          masked[i][0] = x[i][0] & low, masked[i][1] = x[i][1] & high;
          masked[i][2] = x[i][2] & low, masked[i][3] = x[i][3] & high;
        }
        multiply<Shape>(sums_, w, masked);
      }
      if (end > 8) return;
      flush();
      ++group_;
      begin_ += p_.group_words;
      // Behind its last group a plane is padded to whole blocks.
      if (group_ % p_.groups == 0) begin_ = group_ / p_.groups * (p_.blocks / p_.planes * 16);
    }
  }

  __device__ __forceinline__ const auto& scaled() const { return scaled_; }

 private:
  __device__ __forceinline__ void flush() {
    const FinishParams& f = p_.finish;
    const int group = group_ % p_.groups;
    const int slot = static_cast<int>(lane_index()) / 4, word = static_cast<int>(lane_index()) % 4;
#pragma unroll
    for (int i = 0; i < Shape::kFeatureTiles; ++i) {
#pragma unroll
      for (int odd = 0; odd < 2; ++odd) {
        const int n = n0_ + i * 16 + slot * 2 + odd;
        const bool inside = n < f.n;
        const float scale = inside ? Global<const float>(f.weight_scale)
                                         .load_constant(int64_t{n} * f.weight_scale_stride + group)
                                   : 0.0f;
        const int32_t weight_sum =
            inside && f.row_zero && f.weight_sum
                ? Global<const int32_t>(f.weight_sum).load_constant(int64_t{group} * f.n_padded + n)
                : 0;
#pragma unroll
        for (int j = 0; j < 2 * Shape::kRowTiles; ++j) {
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            const int m = m0_ + j * 8 + word * 2 + r;
            const int32_t zero =
                weight_sum != 0 && m < f.m ? Global<const int32_t>(f.row_zero).load(m) : 0;
            auto& sum = sums_[i][j][odd * 2 + r];
            const float part = scaled_sum(sum, zero, weight_sum, scale);
            float& y = scaled_[i][j][odd * 2 + r];
            y = group_ == 0 ? part : y + part;
            sum = 0;
          }
        }
      }
    }
  }

  const GemmParams& p_;
  int m0_, n0_;
  int group_ = 0;  // counted through all planes
  int begin_ = 0;  // its first word of k
  typename Shape::Sums sums_ = {};
  typename WarpTile<Shape, float>::Values scaled_ = {};
};

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads) gemm_grouped_kernel(GemmParams p) {
  const TilePosition at = tile_position<Shape>(p);
  GemmTile<Shape> tile(p, at.m, at.n);
  using Values = WarpTile<Shape, float>;
  const int m0 = at.m * Shape::kTileM + tile.warp_m() * Values::kRows;
  const int n0 = at.n * Shape::kTileN + tile.warp_n() * Values::kColumnsWide;
  GroupedSums<Shape> sums(p, m0, n0);
  tile.run(0, p.blocks, [&](int k_step, const auto& w, const auto& x) { sums.step(k_step, w, x); });
  cp_async_wait<0>();
  __syncthreads();

  const Values rows;
  rows.put(sums.scaled());
  const FinishParams& f = p.finish;
  const ColumnParams columns(f,
                             n0 + static_cast<int>(lane_index()) % Values::kLanesPerRow * kColumns);
  with_activation(f.activation, [&](auto tag) {
    for_each_row(rows, m0, f.m, [&](int m, const auto& values) {
      float y[kColumns];
#pragma unroll
      for (int e = 0; e < kColumns; ++e) y[e] = values[e];
      finish_scaled<decltype(tag)::value>(f, columns, m, y);
    });
  });
}

}  // namespace lepton
