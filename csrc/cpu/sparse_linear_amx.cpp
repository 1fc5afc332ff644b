// Blocks of sparse int8 weights on AMX. Weights are the first operand, 16 rows of the weight by the
// 64 columns of 16 blocks; the activations lie as [k / 4][16 rows][4], so that what belongs to a
// block is one cache line, and the lines of 16 blocks are copied together into a second operand.
// Sums come out as [columns][rows].
//
// The copies cost as many loads and stores as the product takes cycles. Strips that keep the same
// blocks share them: 2 or 4 strips are multiplied together where their lists are equal.
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
#include "cpu/int8_avx512.h"

#include "cpu/sparse_panel.h"

#include "cpu/amx_tiles.h"

#include "cpu/avx512_transpose.h"

namespace lepton {
namespace {

constexpr int64_t kTile = 1024;        // bytes
constexpr int64_t kBlocksOfTile = 16;  // blocks of 4 columns
constexpr int64_t kRowsOfTile = 16;
constexpr int kRing = 4;   // steps of copied activations that are kept
constexpr int kAhead = 2;  // steps that copies run ahead: tile loads wait for stores
constexpr int64_t kWeightBytes = 256 << 10;
constexpr int64_t kRowBytes = 1 << 20;  // of activations that stay in the L2

// to[j][i] = from[i][j], 16 x 16 values of 32 bits.
inline void transpose_16x16(const void* from, int64_t from_stride, void* to, int64_t to_stride) {
  __m512i r[16];
  const auto* source = static_cast<const uint8_t*>(from);
  auto* target = static_cast<uint8_t*>(to);
  for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_si512(source + i * from_stride);
  transpose_dwords(r);
  for (int i = 0; i < 16; ++i) _mm512_storeu_si512(target + i * to_stride, r[i]);
}

// Up to 16 rows of k int8 values as [k / 4][16][4]; rows that are missing become zeros.
void pack_rows(const int8_t* rows, int64_t stride, int64_t count, int64_t k, int8_t* packed) {
  alignas(64) int8_t square[kTile] = {};
  for (int64_t i = 0; i < k; i += 64) {
    if (count == kRowsOfTile) {
      transpose_16x16(rows + i, stride, packed + i * 16, 64);
      continue;
    }
    for (int64_t r = 0; r < count; ++r) std::memcpy(square + r * 64, rows + r * stride + i, 64);
    transpose_16x16(square, 64, packed + i * 16, 64);
  }
}

// Strips that keep the same blocks. Their weights are packed a tile at a time, while the group
// before is multiplied.
struct Group {
  int64_t strip;
  int strips;             // 0: none
  int64_t blocks, steps;  // of 16 blocks
  const uint8_t* values;
  int32_t* lines;                 // [steps][16]: byte offsets into a tile of activations
  int8_t* weights;                // [strips][steps] tiles
  int64_t next_strip, next_step;  // to be packed

  bool packed() const { return next_strip == strips; }

  void pack_tile() {
    const int64_t first = next_step * kBlocksOfTile;
    const uint8_t* from = values + (next_strip * blocks + first) * 64;
    int8_t* to = weights + (next_strip * steps + next_step) * kTile;
    if (blocks - first >= kBlocksOfTile) {
      transpose_16x16(from, 64, to, 64);
    } else {
      alignas(64) int8_t rest[kTile] = {};
      std::memcpy(rest, from, static_cast<size_t>((blocks - first) * 64));
      transpose_16x16(rest, 64, to, 64);
    }
    if (++next_step == steps) next_step = 0, ++next_strip;
  }
};

template <int tiles>
inline void copy_lines(const int32_t* lines, const int8_t* x, int64_t x_bytes, int8_t* to) {
  for (int t = 0; t < tiles; ++t) {
    for (int i = 0; i < kBlocksOfTile; ++i) {
      const __m512i line = _mm512_loadu_si512(x + t * x_bytes + lines[i]);
      _mm512_storeu_si512(to + t * kTile + i * 64, line);
    }
  }
}

// Tiles 0 to 3 hold the sums of strip s and tile t of rows at s + strips * t.
template <int strips, int tiles>
inline void multiply_step(const int8_t* w, int64_t strip_bytes, const int8_t* x) {
  _tile_loadd(4, w, kTileBytes);
  if constexpr (strips == 4) {
    _tile_loadd(6, x, kTileBytes);
    _tile_dpbssd(0, 4, 6);
    _tile_loadd(5, w + strip_bytes, kTileBytes);
    _tile_dpbssd(1, 5, 6);
    _tile_loadd(7, w + 2 * strip_bytes, kTileBytes);
    _tile_dpbssd(2, 7, 6);
    _tile_loadd(4, w + 3 * strip_bytes, kTileBytes);
    _tile_dpbssd(3, 4, 6);
  } else if constexpr (strips == 2) {
    _tile_loadd(6, x, kTileBytes);
    _tile_dpbssd(0, 4, 6);
    _tile_loadd(5, w + strip_bytes, kTileBytes);
    _tile_dpbssd(1, 5, 6);
    if constexpr (tiles == 2) {
      _tile_loadd(7, x + kTile, kTileBytes);
      _tile_dpbssd(2, 4, 7);
      _tile_dpbssd(3, 5, 7);
    }
  } else {
    _tile_loadd(5, x, kTileBytes);
    _tile_dpbssd(0, 4, 5);
    if constexpr (tiles > 1) {
      _tile_loadd(6, x + kTile, kTileBytes);
      _tile_dpbssd(1, 4, 6);
    }
    if constexpr (tiles > 2) {
      _tile_loadd(7, x + 2 * kTile, kTileBytes);
      _tile_dpbssd(2, 4, 7);
    }
    if constexpr (tiles > 3) {
      _tile_loadd(5, x + 3 * kTile, kTileBytes);
      _tile_dpbssd(3, 4, 5);
    }
  }
}

// Sums of `tiles` tiles of rows from x on; c takes one tile of [column][row] after the other. At
// each step `aside` does some vector work, while the products run.
template <int strips, int tiles, class Aside>
void multiply(const Group& g, const int8_t* x, int64_t x_bytes, int8_t* ring, int32_t* c,
              Aside& aside) {
  constexpr int64_t kSlot = tiles * kTile;
  const int64_t strip_bytes = g.steps * kTile;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t i = 0; i < kAhead && i < g.steps; ++i) {
    copy_lines<tiles>(g.lines + i * kBlocksOfTile, x, x_bytes, ring + i * kSlot);
  }
  for (int64_t i = 0; i < g.steps; ++i) {
    if (i + kAhead < g.steps) {
      copy_lines<tiles>(g.lines + (i + kAhead) * kBlocksOfTile, x, x_bytes,
                        ring + (i + kAhead) % kRing * kSlot);
    }
    tiles_read_memory();
    multiply_step<strips, tiles>(g.weights + i * kTile, strip_bytes, ring + i % kRing * kSlot);
    aside.step();
  }
  _tile_stored(0, c, kTileBytes);
  if (strips * tiles > 1) _tile_stored(1, c + 256, kTileBytes);
  if (strips * tiles > 2) _tile_stored(2, c + 512, kTileBytes);
  if (strips * tiles > 3) _tile_stored(3, c + 768, kTileBytes);
  tiles_read_memory();
}

template <Activation activation, int ldc>
void finish_rows(const Int8Linear& p, int64_t m, int rows, int64_t n, int columns,
                 const int32_t* c) {
  finish_sums<activation, ldc>(p, m, rows, n, columns, 0, c);
}

// finish_rows of whole strips of float outputs, written past the caches: a store that misses would
// hold up the copies behind it, and its line would be read first.
template <Activation activation, int ldc>
void stream_rows(const Int8Linear& p, int64_t m, int rows, int64_t n, int, const int32_t* c) {
  for (int r = 0; r < rows; ++r) {
    const F32 row_scale = f32_set(p.row_scale[m + r]);
    float* out = static_cast<float*>(p.out) + (m + r) * p.out_stride + n;
    for (int j = 0; j < ldc; j += kStrip) {
      const I32 sum = corrected_sum(c + r * ldc + j, p.weight_sum + n + j, p.row_zero[m + r]);
      F32 y = f32_mul(f32_mul(f32_from_i32(sum), f32_load(p.weight_scale + n + j)), row_scale);
      if (p.bias) y = f32_add(y, f32_load(p.bias + n + j));
      y = activate<activation>(y);
      if (p.residual) {
        const int64_t at = (m + r) * p.residual_stride + n + j;
        y = f32_add(y, load_float(p.residual, p.residual_dtype, at, kStrip));
      }
      _mm512_stream_ps(out + j, y.v);
    }
  }
}

// Outputs that are left to be made from sums.
struct Pending {
  decltype(&finish_rows<Activation::none, kStrip>) finish;
  int64_t m, n;
  int rows, columns;
  const int32_t* c;
  int ldc;

  void run(const Int8Linear& p, int most) {
    if (rows == 0) return;
    const int now = rows < most ? rows : most;
    finish(p, m, now, n, columns, c);
    m += now;
    c += now * ldc;
    rows -= now;
  }
};

// Vector work beside the products: packs weights of the next group, and makes the outputs of the
// sums before. Stores of outputs miss the caches; all at once they would hold up the copies, whose
// stores come behind them and have to be done before tiles are loaded.
struct Aside {
  const Int8Linear& p;
  Group& next;
  Pending& pending;
  int64_t tiles_a_step;
  int rows_a_step;

  void step() {
    for (int64_t t = 0; t < tiles_a_step && !next.packed(); ++t) next.pack_tile();
    pending.run(p, rows_a_step);
  }
};

// A product of one task: its block of outputs, and its scratch.
class BlockProduct {
 public:
  BlockProduct(const SparseLinear& p, const Int8Block& block, uint8_t* scratch)
      : p_(p), block_(block), x_bytes_(p.dense.layout.row_padded * kRowsOfTile) {
    ring_ = reinterpret_cast<int8_t*>(scratch);
    sums_ = reinterpret_cast<int32_t*>(ring_ + kRing * 4 * kTile);
    outputs_ = sums_ + kTile;
    buffers_ = ring_ + (kRing + 2) * 4 * kTile;
    past_cache_ = p.dense.out_dtype == DType::f32 && goes_past_cache(p.dense, block);
  }

  static int64_t scratch_bytes(int64_t k) {
    return (kRing + 2) * 4 * kTile + 2 * (lines_bytes(k) + weight_bytes(k));
  }

  void run() {
    const TileScope scope(kTileRows16);
    const int64_t most = kRowBytes / (x_bytes_ + 1);
    const int64_t step = (most < 4 ? 4 : most) * kRowsOfTile;
    for (int64_t m0 = block_.m_begin; m0 < block_.m_end; m0 += step) {
      const int64_t m1 = block_.m_end - m0 < step ? block_.m_end : m0 + step;
      const int64_t first = block_.n_begin / kStrip;
      const int64_t last = (block_.n_end + kStrip - 1) / kStrip;
      Group now = group(first, last, 0);
      for (int parity = 1; now.strips > 0; parity ^= 1) {
        while (!now.packed()) now.pack_tile();
        Group next = group(now.strip + now.strips, last, parity);
        switch (now.strips) {
          case 4: rows<4, 1>(now, next, m0, m1); break;
          case 2: rows<2, 2>(now, next, m0, m1); break;
          default: rows<1, 4>(now, next, m0, m1); break;
        }
        now = next;
      }
      pending_.run(p_.dense, pending_.rows);
    }
    if (past_cache_) _mm_sfence();
  }

 private:
  static int64_t lines_bytes(int64_t k) { return k + 64; }
  // A strip that keeps all its blocks fits in any case.
  static int64_t weight_bytes(int64_t k) {
    return kWeightBytes > 16 * k + kTile ? kWeightBytes : 16 * k + kTile;
  }
  static int64_t steps_of(int64_t blocks) { return (blocks + kBlocksOfTile - 1) / kBlocksOfTile; }

  bool same_blocks(int64_t strip, int64_t other) const {
    const BlockList a = BlockList::of(p_, strip, 64), b = BlockList::of(p_, other, 64);
    const int64_t count = a.end - a.index;
    return b.end - b.index == count &&
           std::memcmp(a.index, b.index, static_cast<size_t>(count) * sizeof *a.index) == 0;
  }

  int strips_together(int64_t strip, int64_t last) const {
    const int64_t bytes = steps_of(p_.offsets[strip + 1] - p_.offsets[strip]) * kTile;
    const int64_t most = weight_bytes(p_.dense.layout.row_padded);
    if (strip + 2 > last || 2 * bytes > most || !same_blocks(strip, strip + 1)) return 1;
    const bool four = strip + 4 <= last && 4 * bytes <= most && same_blocks(strip, strip + 2) &&
                      same_blocks(strip, strip + 3);
    return four ? 4 : 2;
  }

  // The group that begins with `strip`, in one of two buffers.
  Group group(int64_t strip, int64_t last, int buffer) const {
    if (strip >= last) return {};
    const int64_t k = p_.dense.layout.row_padded;
    int8_t* at = buffers_ + buffer * (lines_bytes(k) + weight_bytes(k));
    const BlockList list = BlockList::of(p_, strip, 64);
    const int64_t blocks = list.end - list.index;
    auto* lines = reinterpret_cast<int32_t*>(at);
    // What fills the last step up is multiplied by weights of zero.
    for (int64_t b = 0; b < blocks; ++b) lines[b] = int32_t{list.index[b]} * 64;
    for (int64_t b = blocks; b % kBlocksOfTile; ++b) lines[b] = 0;
    const int strips = strips_together(strip, last);
    // An empty group has nothing to pack.
    return {strip,
            strips,
            blocks,
            steps_of(blocks),
            list.values,
            lines,
            at + lines_bytes(k),
            blocks == 0 ? strips : 0,
            0};
  }

  template <int strips, int tiles>
  void rows(const Group& g, Group& next, int64_t m0, int64_t m1) {
    for (int64_t m = m0; m < m1; m += tiles * kRowsOfTile) {
      const int64_t left = (m1 - m + kRowsOfTile - 1) / kRowsOfTile;
      if (tiles == 1 || left >= tiles) {
        part<strips, tiles>(g, next, m, m0, m1);
      } else if (tiles == 2 || left == 1) {
        part<strips, 1>(g, next, m, m0, m1);
      } else if constexpr (tiles == 4) {
        left == 2 ? part<strips, 2>(g, next, m, m0, m1) : part<strips, 3>(g, next, m, m0, m1);
      }
    }
  }

  template <int strips, int tiles>
  void part(const Group& g, Group& next, int64_t m, int64_t m0, int64_t m1) {
    const Int8Linear& d = p_.dense;
    constexpr int kColumns = strips * kStrip;
    const int64_t n = g.strip * kStrip, rows = tiles * kRowsOfTile;
    const int64_t steps = g.steps > 0 ? g.steps : 1;
    const int64_t all_steps = (m1 - m0 + rows - 1) / rows * steps;
    const int64_t spread = (pending_.rows + steps - 1) / steps;
    Aside aside{d, next, pending_, (next.strips * next.steps + all_steps - 1) / all_steps,
                static_cast<int>(spread < 2 ? 2 : spread)};
    const auto* x = static_cast<const int8_t*>(d.a) + m / kRowsOfTile * x_bytes_;
    multiply<strips, tiles>(g, x, x_bytes_, ring_, sums_, aside);
    pending_.run(d, pending_.rows);
    for (int t = 0; t < tiles; ++t) {
      for (int s = 0; s < strips; ++s) {
        transpose_16x16(sums_ + (s + strips * t) * 256, 64,
                        outputs_ + t * kRowsOfTile * kColumns + s * kStrip, 4 * kColumns);
      }
    }
    pending_ = {nullptr,
                m,
                n,
                static_cast<int>(m1 - m < rows ? m1 - m : rows),
                static_cast<int>(block_.n_end - n < kColumns ? block_.n_end - n : kColumns),
                outputs_,
                kColumns};
    with_activation(d.activation, [&](auto activation) {
      constexpr Activation kind = decltype(activation)::value;
      pending_.finish = past_cache_ && pending_.columns == kColumns ? stream_rows<kind, kColumns>
                                                                    : finish_rows<kind, kColumns>;
    });
  }

  const SparseLinear& p_;
  const Int8Block& block_;
  const int64_t x_bytes_;
  int8_t* ring_;
  int32_t* sums_;
  int32_t* outputs_;  // the same, [row][column]
  Pending pending_ = {};
  int8_t* buffers_;
  bool past_cache_;
};

void int8_block(const SparseLinear& p, const Int8Block& block, void* scratch) {
  if (block.m_end <= block.m_begin || block.n_end <= block.n_begin) return;
  BlockProduct(p, block, static_cast<uint8_t*>(scratch)).run();
}

}  // namespace

const SparseTileKernels kSparseAmx = {
    &kInt8Amx,          pack_rows,        BlockProduct::scratch_bytes, int8_block,
    sparse_bitmask_amx, sparse_tiles_pay, sparse_tiles_scratch,        sparse_tiles_amx,
};

}  // namespace lepton
LEPTON_TARGET_END

#endif
