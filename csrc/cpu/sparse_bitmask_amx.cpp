// Bitmask int8 weights times 5 to 16 rows on AMX: weights are expanded into tiles that the L1 holds
// and multiplied from there. The expansion is all that the vector units do, so that the time hardly
// depends on the number of rows.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/int8_kernels.h"
#include "cpu/intrinsics.h"
#include "cpu/sparse_kernels.h"
#include "cpu/target.h"

#if defined(__x86_64__)

LEPTON_TARGET_BEGIN_AMX_VBMI2
#include "cpu/int8_avx512.h"

#include "cpu/sparse_panel.h"

#include "cpu/amx_tiles.h"

#include "cpu/sparse_expand.h"

namespace lepton {
namespace {

constexpr int64_t kTile = 1024;  // bytes: 16 strip rows x 64 inputs
constexpr int kStrips = 4;       // side by side
constexpr int kRing = 4;         // steps of expanded weights that are kept
constexpr int kAhead = 2;        // steps that the expansion runs ahead: tile loads wait for stores

// One step of 64 inputs of a strip.
inline void expand_tile(const uint8_t* pattern, const int8_t*& values, int8_t* to) {
  prefetch(pattern + kPatternAhead);
  prefetch(pattern + kPatternAhead + 64);
  for (int q = 0; q < 16; ++q) {
    if (q % 2 == 0) prefetch(values + kValuesAhead);
    _mm512_storeu_si512(to + q * 64, expand_quad(pattern + q * 8, values));
  }
}

// Tiles 0 to 3: sums of a strip each; 4: activations; 6 and 7: weights.
template <int strips>
inline void multiply_step(const int8_t* x, int64_t x_stride, const int8_t* w) {
  _tile_loadd(4, x, x_stride);
  _tile_loadd(6, w, kTileBytes);
  _tile_dpbssd(0, 4, 6);
  if constexpr (strips == kStrips) {
    _tile_loadd(7, w + kTile, kTileBytes);
    _tile_dpbssd(1, 4, 7);
    _tile_loadd(6, w + 2 * kTile, kTileBytes);
    _tile_dpbssd(2, 4, 6);
    _tile_loadd(7, w + 3 * kTile, kTileBytes);
    _tile_dpbssd(3, 4, 7);
  }
}

template <int strips>
void run_strips(const SparseLinear& p, const Int8Block& block, int64_t n, int8_t* ring) {
  const int64_t k_all = p.dense.layout.row_padded, stride = p.dense.a_stride;
  const int64_t steps = k_all / 64, strip = n / kStrip;
  const int8_t* x = static_cast<const int8_t*>(p.dense.a) + block.m_begin * stride;
  const uint8_t* pattern = p.pattern + strip * 2 * k_all;
  const int8_t* values[strips];
  for (int s = 0; s < strips; ++s) {
    values[s] = static_cast<const int8_t*>(p.values) + p.offsets[strip + s];
  }
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t i = 0; i < steps + kAhead; ++i) {
    if (i < steps) {
      int8_t* to = ring + i % kRing * kStrips * kTile;
      for (int s = 0; s < strips; ++s) {
        expand_tile(pattern + s * 2 * k_all + i * 128, values[s], to + s * kTile);
      }
    }
    const int64_t ready = i - kAhead;
    if (ready < 0) continue;
    tiles_read_memory();
    multiply_step<strips>(x + ready * 64, stride, ring + ready % kRing * kStrips * kTile);
  }
  constexpr int kColumns = strips * kStrip;
  alignas(64) int32_t c[kTileRows16 * kColumns];
  _tile_stored(0, c, 4 * kColumns);
  if constexpr (strips == kStrips) {
    _tile_stored(1, c + kStrip, 4 * kColumns);
    _tile_stored(2, c + 2 * kStrip, 4 * kColumns);
    _tile_stored(3, c + 3 * kStrip, 4 * kColumns);
  }
  tiles_read_memory();
  const int columns =
      static_cast<int>(block.n_end - n < kColumns ? block.n_end - n : int64_t{kColumns});
  with_activation(p.dense.activation, [&](auto activation) {
    finish_sums<activation(), kColumns>(
        p.dense, block.m_begin, static_cast<int>(block.m_end - block.m_begin), n, columns, 0, c);
  });
}

}  // namespace

void sparse_bitmask_amx(const SparseLinear& p, const Int8Block& block) {
  const TileScope scope(static_cast<int>(block.m_end - block.m_begin));
  alignas(64) int8_t ring[kRing * kStrips * kTile];
  constexpr int64_t kTogether = kStrips * kStrip;
  int64_t n = block.n_begin;
  for (; n + kTogether - kStrip < block.n_end; n += kTogether) {
    run_strips<kStrips>(p, block, n, ring);
  }
  for (; n < block.n_end; n += kStrip) run_strips<1>(p, block, n, ring);
}

}  // namespace lepton
LEPTON_TARGET_END

#endif
