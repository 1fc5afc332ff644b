// Sparse int8 weights on AMX whose blocks lie together: 16 blocks of 4 inputs that begin at a
// multiple of 64 are one tile, as it is stored, and the activations of a step are those of the
// dense kernel. Nothing is copied or transposed; the time is that of the tiles that are kept. A
// tile that lacks some of its blocks is filled up with zeros.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/int8_kernels.h"
#include "cpu/intrinsics.h"
#include "cpu/sparse_kernels.h"
#include "cpu/target.h"

#if defined(__x86_64__)

LEPTON_TARGET_BEGIN_AMX
#if defined(__GNUC__) && !defined(__clang__)
// As in int8_linear_amx.cpp.
#pragma GCC optimize("O2")
#endif
#include "cpu/int8_avx512.h"

#include "cpu/sparse_panel.h"

#include "cpu/amx_tiles.h"

#include "cpu/int8_amx_epilogue.h"

namespace lepton {
namespace {

constexpr int64_t kTile = 1024;  // bytes
constexpr int64_t kBlocksOfTile = 16;
constexpr int kPair = 2 * kStrip;  // columns that are finished together
constexpr int kMostTiles = 4;      // of rows at once
constexpr int64_t kPanelRowBytes = 1 << 20;
constexpr int64_t kAheadBytes = 8 * 1024;

struct Step {
  int64_t k;  // first input
  const int8_t* w;
};

// Sums of `count` tiles of rows and one strip.
template <int count, class Aside>
void multiply_strip(const Step* step, int64_t steps, const int8_t* a, int64_t stride,
                    int64_t tile_rows, int32_t* c, const Aside& aside) {
  const int64_t tile = tile_rows * stride;
  _tile_zero(0);
  if (count > 1) _tile_zero(1);
  if (count > 2) _tile_zero(2);
  if (count > 3) _tile_zero(3);
  for (int64_t i = 0; i < steps; ++i) {
    const int8_t* x = a + step[i].k;
    _tile_loadd(6, step[i].w, kTileBytes);
    _tile_loadd(4, x, stride);
    _tile_dpbssd(0, 4, 6);
    if (count > 1) {
      _tile_loadd(5, x + tile, stride);
      _tile_dpbssd(1, 5, 6);
    }
    if (count > 2) {
      _tile_loadd(4, x + 2 * tile, stride);
      _tile_dpbssd(2, 4, 6);
    }
    if (count > 3) {
      _tile_loadd(5, x + 3 * tile, stride);
      _tile_dpbssd(3, 5, 6);
    }
    aside(step[i].w);
  }
  const int64_t next = tile_rows * kPair;
  _tile_stored(0, c, 4 * kPair);
  if (count > 1) _tile_stored(1, c + next, 4 * kPair);
  if (count > 2) _tile_stored(2, c + 2 * next, 4 * kPair);
  if (count > 3) _tile_stored(3, c + 3 * next, 4 * kPair);
}

// Sums of one or two tiles of rows and two strips that keep the same tiles.
template <int count, class Aside>
void multiply_pair(const Step* step0, const Step* step1, int64_t steps, const int8_t* a,
                   int64_t stride, int64_t tile_rows, int32_t* c, const Aside& aside) {
  const int64_t tile = tile_rows * stride;
  _tile_zero(0);
  _tile_zero(1);
  if (count > 1) _tile_zero(2);
  if (count > 1) _tile_zero(3);
  for (int64_t i = 0; i < steps; ++i) {
    const int8_t* x = a + step0[i].k;
    _tile_loadd(6, step0[i].w, kTileBytes);
    _tile_loadd(4, x, stride);
    _tile_dpbssd(0, 4, 6);
    _tile_loadd(7, step1[i].w, kTileBytes);
    _tile_dpbssd(1, 4, 7);
    if (count > 1) {
      _tile_loadd(5, x + tile, stride);
      _tile_dpbssd(2, 5, 6);
      _tile_dpbssd(3, 5, 7);
    }
    aside(step0[i].w);
    aside(step1[i].w);
  }
  int32_t* c1 = c + tile_rows * kPair;
  _tile_stored(0, c, 4 * kPair);
  _tile_stored(1, c + kStrip, 4 * kPair);
  if (count > 1) _tile_stored(2, c1, 4 * kPair);
  if (count > 1) _tile_stored(3, c1 + kStrip, 4 * kPair);
}

// The tiles that one strip keeps.
struct StepList {
  Step* steps;   // room for one per 64 inputs
  int8_t* rest;  // room for as many tiles
  int64_t count;

  // Reads the blocks of a strip; they come in the order of k.
  void read(const SparseLinear& p, int64_t strip) {
    const BlockList list = BlockList::of(p, strip, 64);
    const auto* values = reinterpret_cast<const int8_t*>(list.values);
    const int64_t blocks = list.end - list.index;
    const int64_t most = p.dense.layout.row_padded / kTileBytes;  // a damaged list may be longer
    int8_t* filled = rest;
    count = 0;
    for (int64_t b = 0; b < blocks && count < most;) {
      const int64_t first = list.index[b] / kBlocksOfTile * kBlocksOfTile;
      const bool whole = list.index[b] == first && blocks - b >= kBlocksOfTile &&
                         list.index[b + kBlocksOfTile - 1] == first + kBlocksOfTile - 1;
      steps[count].k = first * 4;
      if (whole) {
        steps[count++].w = values + b * 64;
        b += kBlocksOfTile;
        continue;
      }
      std::memset(filled, 0, kTile);
      // A list that is out of order, which no packed weight has, ends a tile early.
      int64_t last = -1;
      for (; b < blocks && list.index[b] / kBlocksOfTile * kBlocksOfTile == first &&
             list.index[b] > last;
           ++b) {
        last = list.index[b];
        std::memcpy(filled + (last - first) * 64, values + b * 64, 64);
      }
      steps[count++].w = filled;
      filled += kTile;
    }
  }

  bool same(const StepList& other) const {
    bool equal = count == other.count;
    for (int64_t i = 0; equal && i < count; ++i) equal = steps[i].k == other.steps[i].k;
    return equal;
  }
};

template <class Epilogue>
class TileProduct {
 public:
  TileProduct(const SparseLinear& p, const Int8Block& block, uint8_t* scratch)
      : p_(p), d_(p.dense), block_(block), stride_(p.dense.a_stride), pending_(p.dense, block) {
    const int64_t rows = block.m_end - block.m_begin;
    tiles_ = (rows + kTileRows16 - 1) / kTileRows16;
    tile_rows_ = (rows + tiles_ - 1) / tiles_;
    const int64_t k = d_.layout.row_padded;
    for (StepList& list : lists_) {
      list = {reinterpret_cast<Step*>(scratch), reinterpret_cast<int8_t*>(scratch) + k, 0};
      scratch += 17 * k;
    }
  }

  static int64_t scratch_bytes(int64_t k) {
    static_assert(sizeof(Step) <= kTileBytes, "a step for each 64 inputs fits k bytes");
    return 2 * 17 * k;
  }

  void run() {
    const TileScope scope(static_cast<int>(tile_rows_));
    int64_t most = kPanelRowBytes / (d_.layout.row_padded + 1) / tile_rows_;
    if (most < kMostTiles) most = kMostTiles;
    for (int64_t t = 0; t < tiles_; t += most) {
      const int64_t end = tiles_ - t < most ? tiles_ : t + most;
      for (int64_t n0 = block_.n_begin; n0 < block_.n_end; n0 += kPair) pair(t, end, n0);
    }
    pending_.finish(pending_.rows());
    if (pending_.past_cache()) _mm_sfence();
  }

 private:
  void pair(int64_t first, int64_t last, int64_t n0) {
    const int64_t left = block_.n_end - n0;
    const int columns = static_cast<int>(left < kPair ? left : kPair);
    scale_in_use_ ^= 1;
    float* scale = scale_[scale_in_use_];
    load_weight_scale(d_, n0, columns, 0, scale);
    const bool two = columns > kStrip;
    lists_[0].read(p_, n0 / kStrip);
    if (two) lists_[1].read(p_, n0 / kStrip + 1);
    const bool same = two && lists_[0].same(lists_[1]);
    const int64_t blocks = (last - first + kMostTiles - 1) / kMostTiles;
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t t0 = first + (last - first) * b / blocks;
      const int64_t t1 = first + (last - first) * (b + 1) / blocks;
      rows(t0, static_cast<int>(t1 - t0), n0, columns, same, b == 0, scale);
    }
  }

  void rows(int64_t tile, int count, int64_t n0, int columns, bool same, bool first,
            const float* scale) {
    const int64_t m = block_.m_begin + tile * tile_rows_;
    const int64_t left = block_.m_end - m;
    const int rows = static_cast<int>(left < count * tile_rows_ ? left : count * tile_rows_);
    const int64_t strips = columns > kStrip ? 2 : 1;
    const int64_t visits =
        (lists_[0].count + (strips > 1 ? lists_[1].count : 0)) * (same ? (count + 1) / 2 : 1);
    const int busiest = pending_.rows() > rows ? pending_.rows() : rows;
    const int even = visits > 0 ? static_cast<int>((busiest + visits - 1) / visits) : busiest;
    const int share = even < kLeastShare ? kLeastShare : even;
    int fetched = 0;
    const auto aside = [&](const int8_t* w) {
      pending_.finish(share);
      const int now = rows - fetched < share ? rows - fetched : share;
      if (now > 0 && !pending_.past_cache()) prefetch_output(d_, m + fetched, now, n0, columns);
      fetched += now;
      if (!first) return;
      for (int64_t i = 0; i < kTile; i += kTileBytes) {
        _mm_prefetch(reinterpret_cast<const char*>(w + kAheadBytes + i), _MM_HINT_T1);
      }
    };
    sums_in_use_ ^= 1;
    int32_t* c = sums_[sums_in_use_];
    const int8_t* a = static_cast<const int8_t*>(d_.a) + m * stride_;
    if (same) {
      for (int t = 0; t < count; t += 2) {
        const int8_t* x = a + t * tile_rows_ * stride_;
        int32_t* to = c + t * tile_rows_ * kPair;
        const Step *step0 = lists_[0].steps, *step1 = lists_[1].steps;
        if (count - t > 1) {
          multiply_pair<2>(step0, step1, lists_[0].count, x, stride_, tile_rows_, to, aside);
        } else {
          multiply_pair<1>(step0, step1, lists_[0].count, x, stride_, tile_rows_, to, aside);
        }
      }
    } else {
      for (int64_t s = 0; s < strips; ++s) {
        const StepList& list = lists_[s];
        int32_t* to = c + s * kStrip;
        switch (count) {
          case 1:
            multiply_strip<1>(list.steps, list.count, a, stride_, tile_rows_, to, aside);
            break;
          case 2:
            multiply_strip<2>(list.steps, list.count, a, stride_, tile_rows_, to, aside);
            break;
          case 3:
            multiply_strip<3>(list.steps, list.count, a, stride_, tile_rows_, to, aside);
            break;
          default: multiply_strip<4>(list.steps, list.count, a, stride_, tile_rows_, to, aside);
        }
      }
    }
    tiles_read_memory();
    pending_.finish(pending_.rows());
    pending_.set(m, rows, n0, columns, c, scale);
  }

  const SparseLinear& p_;
  const Int8Linear& d_;
  const Int8Block& block_;
  const int64_t stride_;
  int64_t tiles_, tile_rows_;
  StepList lists_[2];
  PendingRows<Epilogue, kPair> pending_;
  int scale_in_use_ = 0, sums_in_use_ = 0;
  alignas(64) float scale_[2][kPair];
  // One is finished while the other is filled.
  alignas(64) int32_t sums_[2][kMostTiles * kTileRows16 * kPair];
};

}  // namespace

bool sparse_tiles_pay(const SparseLinear& p) {
  // Lists differ little from each other: some are looked at.
  constexpr int64_t kSamples = 8;
  const int64_t strips = (p.dense.n + kStrip - 1) / kStrip;
  const int64_t step = (strips + kSamples - 1) / kSamples;
  int64_t blocks = 0, tiles = 0;
  for (int64_t s = 0; s < strips; s += step) {
    const BlockList list = BlockList::of(p, s, 64);
    int64_t tile = -1;
    for (const uint16_t* at = list.index; at < list.end; ++at) {
      tiles += *at / kBlocksOfTile != tile;
      tile = *at / kBlocksOfTile;
    }
    blocks += list.end - list.index;
  }
  return 4 * tiles * kBlocksOfTile <= 5 * blocks + 64 * kSamples;
}

int64_t sparse_tiles_scratch(int64_t k) { return TileProduct<Int32Epilogue>::scratch_bytes(k); }

void sparse_tiles_amx(const SparseLinear& p, const Int8Block& block, void* scratch) {
  if (block.m_end <= block.m_begin || block.n_end <= block.n_begin) return;
  with_activation(p.dense.activation, [&](auto activation) {
    TileProduct<FloatEpilogue<activation()>>(p, block, static_cast<uint8_t*>(scratch)).run();
  });
}

}  // namespace lepton
LEPTON_TARGET_END

#endif
