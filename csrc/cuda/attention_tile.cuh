// Tiles of 16-bit elements in shared memory, swizzled so that neither copies nor ldmatrix meet a
// bank twice, and the products of tiles.
#pragma once

#include "cuda/ptx.cuh"

namespace lepton {

// kRows x kDim elements as panels of 64 columns (32 where kDim is no multiple of 64). A row of a
// panel is 128 (64) bytes; the 16-byte chunk c of row r lies at chunk c ^ (r % 8)
// (c ^ (r / 2 % 4)), so that eight rows of one column of chunks cover all 32 banks.
template <int kRows_, int kDim_>
struct Tile {
  static constexpr int kRows = kRows_, kDim = kDim_;
  static constexpr int kPanel = kDim % 64 == 0 ? 64 : 32;
  static constexpr int kPanels = kDim / kPanel;
  static constexpr int kRowBytes = 2 * kPanel;
  static constexpr int kPanelBytes = kRows * kRowBytes;
  static constexpr int kBytes = kPanels * kPanelBytes;
  static constexpr int kChunks = kPanel / 8;  // of a row of a panel
  static constexpr int kSteps = kPanel / 16;  // matrix steps of a panel
  static_assert(kDim % 32 == 0 && kRows % 8 == 0, "whole swizzle patterns");

  __device__ __forceinline__ static uint32_t swizzle(int row, int chunk) {
    const int turn = kPanel == 64 ? row & 7 : (row >> 1) & 3;
    return static_cast<uint32_t>(row * kRowBytes + ((chunk ^ turn) << 4));
  }

  // The address that this lane gives to ldmatrix for the 16x16 block at (16 row_block, 16 step):
  // `at(lane_address(...), row_block, step)`. The tile must begin at a multiple of 128 bytes.
  // Row-major blocks: matrices in the order (0,0), (8,0), (0,8), (8,8): operand A of mma.
  __device__ __forceinline__ static uint32_t lane_a(uint32_t base) {
    const int lane = static_cast<int>(lane_index());
    return base + swizzle(lane & 15, lane >> 4);
  }
  // Order (0,0), (0,8), (8,0), (8,8): operand B of mma, where the tile's columns are summed over.
  // (Where its rows are, that is lane_a with a transposition. One order for both would leave the
  // two registers of an operand apart, and cost moves.)
  __device__ __forceinline__ static uint32_t lane_b(uint32_t base) {
    const int lane = static_cast<int>(lane_index());
    return base + swizzle((lane & 7) + ((lane >> 4) << 3), (lane >> 3) & 1);
  }
  __device__ __forceinline__ static uint32_t at(uint32_t lane_address, int row_block, int step) {
    return (lane_address ^ static_cast<uint32_t>((step % kSteps) << 5)) +
           static_cast<uint32_t>(step / kSteps * kPanelBytes + row_block * 16 * kRowBytes);
  }
};

// Copies rows of 16-byte multiples to tiles, one tile after the other. `columns` of a row count (a
// multiple of 8), the rest becomes zero. Asynchronous; the caller commits.
template <class Tile, int kThreads, class T>
struct TileCopy {
  static constexpr int kPass = kThreads / Tile::kChunks;  // rows that one pass covers
  static_assert(kPass % 8 == 0 && Tile::kRows % kPass == 0, "whole passes, same swizzle in each");
  // With kDim columns or at least the last panel partly filled, all panels but the last are full.
  Global<const T> from;  // this thread's first chunk of the next tile
  int64_t pass_stride;
  int chunk, columns;
  uint32_t to;  // offset of that chunk in a tile

  __device__ __forceinline__ TileCopy(Global<const T> rows, int64_t stride, int columns_,
                                      uint32_t thread = threadIdx.x)
      : from(rows), pass_stride(kPass * stride), columns(columns_) {
    chunk = static_cast<int>(thread) % Tile::kChunks * 8;
    const int row = static_cast<int>(thread) / Tile::kChunks;
    to = Tile::swizzle(row, chunk / 8);
    from = rows + (row * stride + chunk);
  }

  // A pointer to the tile that is `tiles` further on.
  __device__ __forceinline__ void skip(int tiles) {
    from = from + int64_t{tiles} * (Tile::kRows / kPass) * pass_stride;
  }

  // Copies a tile and moves on to the next. With kBounded rows from `rows` on become zero.
  template <bool kBounded>
  __device__ __forceinline__ void next(uint32_t base, int rows = 0) {
    const int row = static_cast<int>(kBounded ? thread_index_again() : threadIdx.x) / Tile::kChunks;
#pragma unroll
    for (int i = 0; i < Tile::kRows / kPass; ++i) {
#pragma unroll
      for (int panel = 0; panel < Tile::kPanels; ++panel) {
        bool valid = chunk < columns - panel * Tile::kPanel;
        if (kBounded) valid = valid && row + i * kPass < rows;
        cp_async<16>(
            base + to +
                static_cast<uint32_t>(panel * Tile::kPanelBytes + i * kPass * Tile::kRowBytes),
            from + panel * Tile::kPanel, valid ? 16u : 0u);
      }
      from = from + pass_stride;
    }
  }
};

// Accumulators of kRows16 x kColumns8 products of 16 x 8.
template <int kRows16, int kColumns8>
using Accumulators = float[kRows16][kColumns8][4];

template <int kRows16, int kColumns8>
__device__ __forceinline__ void clear(Accumulators<kRows16, kColumns8>& c) {
#pragma unroll
  for (int m = 0; m < kRows16; ++m) {
#pragma unroll
    for (int n = 0; n < kColumns8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) c[m][n][i] = 0.0f;
    }
  }
}

// Operand A of every step of a tile row block, held in registers.
template <int kRows16, int kSteps>
using Fragments = uint32_t[kRows16][kSteps][4];

template <class Tile, int kRows16, int kSteps>
__device__ __forceinline__ void load_fragments(Fragments<kRows16, kSteps>& a,
                                               uint32_t lane_address) {
#pragma unroll
  for (int m = 0; m < kRows16; ++m) {
#pragma unroll
    for (int s = 0; s < kSteps; ++s) ldmatrix_x4(a[m][s], Tile::at(lane_address, m, s));
  }
}

// c += a b^T: a in shared memory (kRows16 blocks of rows, ldmatrix addresses from a_at) or held in
// `held`; b is a tile whose rows are the columns of c.
template <class T, class TileA, class TileB, bool kHeld, int kRows16, int kColumns8, int kSteps>
__device__ __forceinline__ void multiply_transposed(Accumulators<kRows16, kColumns8>& c,
                                                    const Fragments<kRows16, kSteps>* held,
                                                    uint32_t a_at, uint32_t b_at) {
#pragma unroll
  for (int s = 0; s < TileB::kDim / 16; ++s) {
    uint32_t a[kRows16][4];
#pragma unroll
    for (int m = 0; m < kRows16; ++m) {
      if constexpr (kHeld) {
#pragma unroll
        for (int i = 0; i < 4; ++i) a[m][i] = (*held)[m][s][i];
      } else {
        ldmatrix_x4(a[m], TileA::at(a_at, m, s));
      }
    }
#pragma unroll
    for (int n = 0; n < kColumns8 / 2; ++n) {
      uint32_t b[4];
      ldmatrix_x4(b, TileB::at(b_at, n, s));
#pragma unroll
      for (int m = 0; m < kRows16; ++m) {
        mma_m16n8k16<T>(c[m][2 * n], a[m], b[0], b[1]);
        mma_m16n8k16<T>(c[m][2 * n + 1], a[m], b[2], b[3]);
      }
    }
  }
}

// c += a b for 16 of the rows of b, a tile: those of `step`. a holds fragments of 16 columns.
template <class T, class TileB, int kRows16, int kColumns8>
__device__ __forceinline__ void multiply_step(Accumulators<kRows16, kColumns8>& c,
                                              const uint32_t (&a)[kRows16][4], uint32_t b_at,
                                              int step) {
#pragma unroll
  for (int n = 0; n < kColumns8 / 2; ++n) {
    uint32_t b[4];
    ldmatrix_x4<true>(b, TileB::at(b_at, step, n));
#pragma unroll
    for (int m = 0; m < kRows16; ++m) {
      mma_m16n8k16<T>(c[m][2 * n], a[m], b[0], b[1]);
      mma_m16n8k16<T>(c[m][2 * n + 1], a[m], b[2], b[3]);
    }
  }
}

// c += a b: a is packed from accumulators (rows x kInner8 * 8), b a tile of kInner8 * 8 rows.
template <class T, class TileB, int kRows16, int kColumns8, int kInner8>
__device__ __forceinline__ void multiply(Accumulators<kRows16, kColumns8>& c,
                                         const uint32_t (&a)[kRows16][kInner8][2], uint32_t b_at) {
#pragma unroll
  for (int s = 0; s < kInner8 / 2; ++s) {
    uint32_t fragments[kRows16][4];
#pragma unroll
    for (int m = 0; m < kRows16; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) fragments[m][i] = a[m][2 * s + i / 2][i % 2];
    }
    multiply_step<T, TileB>(c, fragments, b_at, s);
  }
}

// Accumulators as operand A of `multiply`.
template <class T, int kColumns8>
__device__ __forceinline__ void pack_row(const float (&c)[kColumns8][4],
                                         uint32_t (&a)[kColumns8][2]) {
#pragma unroll
  for (int n = 0; n < kColumns8; ++n) {
    a[n][0] = pack2<T>(c[n][0], c[n][1]);
    a[n][1] = pack2<T>(c[n][2], c[n][3]);
  }
}
template <class T, int kRows16, int kColumns8>
__device__ __forceinline__ void pack(const Accumulators<kRows16, kColumns8>& c,
                                     uint32_t (&a)[kRows16][kColumns8][2]) {
#pragma unroll
  for (int m = 0; m < kRows16; ++m) pack_row<T>(c[m], a[m]);
}

// Writes a warp's accumulators, as T, to the rows of a tile that this warp owns.
template <class T, class Tile, int kRows16, int kColumns8>
__device__ __forceinline__ void store_to_tile(uint32_t base, int first_row,
                                              const Accumulators<kRows16, kColumns8>& c) {
  const int lane = static_cast<int>(lane_index());
#pragma unroll
  for (int m = 0; m < kRows16; ++m) {
#pragma unroll
    for (int n = 0; n < kColumns8; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = first_row + 16 * m + 8 * half + lane / 4;
        const uint32_t at = base + static_cast<uint32_t>(n / Tile::kChunks * Tile::kPanelBytes) +
                            Tile::swizzle(row, n % Tile::kChunks) +
                            static_cast<uint32_t>(lane % 4 * 4);
        Shared<uint32_t>::from_address(at).store(
            0, pack2<T>(c[m][n][2 * half], c[m][n][2 * half + 1]));
      }
    }
  }
}

// A warp stores rows [first, first + kCount) of a tile that it wrote; row r goes to element
// `row_at(r)` on, or nowhere where that is negative. Rows of memory begin at multiples of 16 bytes
// if `columns` is a multiple of 8.
template <class T, class Tile, int kCount, class RowAt>
__device__ __forceinline__ void store_tile_rows(uint32_t base, int first, Global<T> to, int columns,
                                                const RowAt& row_at) {
  constexpr int kRowChunks = Tile::kDim / 8;
#pragma unroll 4
  for (int j = static_cast<int>(lane_index()); j < kCount * kRowChunks; j += 32) {
    const int r = first + j / kRowChunks, chunk = j % kRowChunks;
    const int64_t row = row_at(r);
    if (row < 0 || chunk * 8 >= columns) continue;
    const uint32_t from = base + static_cast<uint32_t>(chunk / Tile::kChunks * Tile::kPanelBytes) +
                          Tile::swizzle(r, chunk % Tile::kChunks);
    const Shared<T> elements = Shared<T>::from_address(from);
    if (columns % 8 == 0) {
      to.template store_as<uint4>(row + chunk * 8, elements.template load_as<uint4>());
    } else {
      for (int i = 0; i < 8 && chunk * 8 + i < columns; ++i) {
        to.store(row + chunk * 8 + i, elements.load(i));
      }
    }
  }
}

}  // namespace lepton
