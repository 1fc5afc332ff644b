// Loops around the sparse micro-kernels, once for every instruction set. Read inside a target
// region, behind int8_epilogue.h.
namespace {

using lepton::kPanelRows;
using lepton::kPanelStrips;
using lepton::SparseLinear;

constexpr int kPanelColumns = kPanelStrips * kStrip;

inline int columns_of(const Int8Block& block, int64_t n0) {
  return static_cast<int>(block.n_end - n0 < kStrip ? block.n_end - n0 : kStrip);
}

// Calls body(std::integral_constant<int, rows>) for 1 to 6 rows.
template <class Body>
inline void with_rows(int64_t rows, const Body& body) {
  switch (rows) {
    case 1: return body(std::integral_constant<int, 1>{});
    case 2: return body(std::integral_constant<int, 2>{});
    case 3: return body(std::integral_constant<int, 3>{});
    case 4: return body(std::integral_constant<int, 4>{});
    case 5: return body(std::integral_constant<int, 5>{});
    default: return body(std::integral_constant<int, 6>{});
  }
}

constexpr int kTileRows = 6;

// Calls body(integral constant rows, first row) for tiles of even height that cover `count` rows.
template <class Body>
inline void for_each_tile(int64_t count, const Body& body) {
  const int64_t tiles = (count + kTileRows - 1) / kTileRows;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t begin = count * t / tiles, end = count * (t + 1) / tiles;
    with_rows(end - begin, [&](auto rows) { body(rows, begin); });
  }
}

// The activations of a chunk of k stay in the L2 while all strips of the panel pass by.
//
// A source has `value` (type of the sums), `k_chunk`, a `State` per strip, `start(p, strip)` and
// `chunk(p, state, m0, rows, k_begin, k_end, c)`, which adds to c (row stride kPanelColumns) and
// moves the state on; `finish(p, m0, rows, n0, columns, c)` writes outputs.
template <class Source>
void run_panels(const SparseLinear& p, const Int8Block& block, void* scratch) {
  using Value = typename Source::value;
  Value* c = static_cast<Value*>(scratch);
  for (int64_t m0 = block.m_begin; m0 < block.m_end; m0 += kPanelRows) {
    const int64_t rows = block.m_end - m0 < kPanelRows ? block.m_end - m0 : kPanelRows;
    for (int64_t n0 = block.n_begin; n0 < block.n_end; n0 += kPanelColumns) {
      const int64_t left = block.n_end - n0;
      const int strips =
          static_cast<int>(left < kPanelColumns ? (left + kStrip - 1) / kStrip : kPanelStrips);
      typename Source::State state[kPanelStrips];
      for (int s = 0; s < strips; ++s) state[s] = Source::start(p, n0 / kStrip + s);
      std::memset(c, 0, static_cast<size_t>(rows * kPanelColumns) * sizeof(Value));
      const int64_t k_all = p.dense.layout.row_padded;
      for (int64_t k = 0; k < k_all; k += Source::k_chunk) {
        const int64_t k_end = k_all - k < Source::k_chunk ? k_all : k + Source::k_chunk;
        for (int s = 0; s < strips; ++s) {
          Source::chunk(p, state[s], m0, rows, k, k_end, c + s * kStrip);
        }
      }
      for (int s = 0; s < strips; ++s) {
        const int64_t n = n0 + s * kStrip;
        Source::finish(p, m0, static_cast<int>(rows), n, columns_of(block, n), c + s * kStrip);
      }
    }
  }
}

// Blocks of one strip, in the order of k.
struct BlockList {
  const uint16_t* index;
  const uint16_t* end;
  const uint8_t* values;

  static BlockList of(const SparseLinear& p, int64_t strip, int64_t block_bytes) {
    const uint16_t* index = reinterpret_cast<const uint16_t*>(p.pattern);
    return {index + p.offsets[strip], index + p.offsets[strip + 1],
            static_cast<const uint8_t*>(p.values) + p.offsets[strip] * block_bytes};
  }

  // How many of the next blocks begin below k.
  int64_t below(int64_t k) const {
    const uint16_t* at = index;
    while (at < end && int64_t{*at} * 4 < k) ++at;
    return at - index;
  }

  void skip(int64_t blocks, int64_t block_bytes) {
    index += blocks;
    values += blocks * block_bytes;
  }
};

// int8 blocks. A tile has `operand` and
//   rows<height>(a, a_stride, list, blocks, c)  adds `blocks` blocks to c (stride kPanelColumns)
template <class Tile>
struct Int8BlockSource {
  using value = int32_t;
  using State = BlockList;
  static constexpr int64_t k_chunk = 1024;
  static constexpr int64_t kBlockBytes = 64;

  static State start(const SparseLinear& p, int64_t strip) {
    return BlockList::of(p, strip, kBlockBytes);
  }
  static void chunk(const SparseLinear& p, State& list, int64_t m0, int64_t rows, int64_t,
                    int64_t k_end, int32_t* c) {
    using Operand = typename Tile::operand;
    const int64_t blocks = list.below(k_end);
    if (blocks == 0) return;
    const Operand* a = static_cast<const Operand*>(p.dense.a) + m0 * p.dense.a_stride;
    for_each_tile(rows, [&](auto height, int64_t r) {
      Tile::template rows<height()>(a + r * p.dense.a_stride, p.dense.a_stride, list, blocks,
                                    c + r * kPanelColumns);
    });
    list.skip(blocks, kBlockBytes);
  }
  static void finish(const SparseLinear& p, int64_t m0, int rows, int64_t n, int columns,
                     const int32_t* c) {
    with_activation(p.dense.activation, [&](auto activation) {
      finish_sums<activation(), kPanelColumns>(p.dense, m0, rows, n, columns, Tile::zero_shift, c);
    });
  }
};

// Bitmask, int8, few rows. A tile has `few_strips`, how many strips it takes together, and
// `few<rows, strips>(p, m, strip, c)`, which sets 16 sums per row, strip after strip.
template <class Tile, int rows, int strips>
void int8_few_strips(const SparseLinear& p, int64_t m, int64_t n, const Int8Block& block) {
  alignas(64) int32_t c[strips * rows * kStrip];
  Tile::template few<rows, strips>(p, m, n / kStrip, c);
  with_activation(p.dense.activation, [&](auto activation) {
    for (int s = 0; s < strips; ++s) {
      const int64_t at = n + s * kStrip;
      finish_sums<activation(), kStrip>(p.dense, m, rows, at, columns_of(block, at),
                                        Tile::few_zero_shift, c + s * rows * kStrip);
    }
  });
}

template <class Tile, int rows>
void int8_few_rows(const SparseLinear& p, const Int8Block& block) {
  constexpr int64_t together = Tile::few_strips * kStrip;
  int64_t n = block.n_begin;
  for (; n + together - kStrip < block.n_end; n += together) {
    int8_few_strips<Tile, rows, Tile::few_strips>(p, block.m_begin, n, block);
  }
  for (; n < block.n_end; n += kStrip) int8_few_strips<Tile, rows, 1>(p, block.m_begin, n, block);
}

template <class Tile>
void int8_few(const SparseLinear& p, const Int8Block& block) {
  switch (block.m_end - block.m_begin) {
    case 1: return int8_few_rows<Tile, 1>(p, block);
    case 2: return int8_few_rows<Tile, 2>(p, block);
    case 3: return int8_few_rows<Tile, 3>(p, block);
    default: return int8_few_rows<Tile, 4>(p, block);
  }
}

}  // namespace
