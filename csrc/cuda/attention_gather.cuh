// Tiles of rows that lie anywhere: packed heads, pages, int8 caches, rows that are not aligned.
#pragma once

#include "cuda/attention_score.cuh"
#include "cuda/attention_tile.cuh"

namespace lepton {

__device__ __forceinline__ float stored_to_float(int8_t x) { return static_cast<float>(x); }
__device__ __forceinline__ float stored_to_float(bf16 x) { return to_float(x); }
__device__ __forceinline__ float stored_to_float(f16 x) { return to_float(x); }

// Row r of the tile comes from element `row_at(r)` on, or is zero where that is negative. `vector`
// says that all rows begin at multiples of 16 bytes and `columns` is a multiple of 8.
template <class Tile, int kThreads, class T, class Stored, class RowAt>
__device__ __forceinline__ void gather_tile(uint32_t base, Global<const Stored> from, int columns,
                                            bool vector, const RowAt& row_at) {
  constexpr int kPass = kThreads / Tile::kChunks;
  const int chunk = static_cast<int>(threadIdx.x) % Tile::kChunks;
  const int first = static_cast<int>(threadIdx.x) / Tile::kChunks;
#pragma unroll 1
  for (int row = first; row < Tile::kRows; row += kPass) {
    const int64_t at = row_at(row);
#pragma unroll 1
    for (int panel = 0; panel < Tile::kPanels; ++panel) {
      const int column = chunk * 8 + panel * Tile::kPanel;
      const uint32_t to =
          base + static_cast<uint32_t>(panel * Tile::kPanelBytes) + Tile::swizzle(row, chunk);
      if constexpr (is_same<T, Stored>) {
        if (vector) {
          const bool valid = at >= 0 && column < columns;
          cp_async<16>(to, from + (valid ? at + column : 0), valid ? 16u : 0u);
          continue;
        }
      }
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float x[2];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int c = column + 2 * i + j;
          x[j] = at >= 0 && c < columns ? stored_to_float(from.load(at + c)) : 0.0f;
        }
        words[i] = pack2<T>(x[0], x[1]);
      }
      Shared<uint32_t>::from_address(to).template store_as<uint4>(
          0, make_uint4(words[0], words[1], words[2], words[3]));
    }
  }
}

// Keys or values [first, first + rows of the tile) of a sequence.
template <class Tile, int kThreads, class T>
__device__ __forceinline__ void gather_keys(const CudaAttention& a, const Sequence& s,
                                            uint32_t base, const void* data,
                                            const HeadStrides& stride, int columns, int kv_head,
                                            int first) {
  const Attention& p = a.p;
  const auto row_at = [&](int r) -> int64_t {
    const int key = first + r;
    if (key >= s.k_len) return -1;
    return cache_row(a, s, key, stride) + kv_head * stride.head;
  };
  if (p.kv_dtype == DType::i8) {
    gather_tile<Tile, kThreads, T>(base, Global<const int8_t>::of(static_cast<const int8_t*>(data)),
                                   columns, false, row_at);
  } else {
    gather_tile<Tile, kThreads, T>(base, Global<const T>::of(static_cast<const T*>(data)), columns,
                                   a.vector_kv, row_at);
  }
}

}  // namespace lepton
