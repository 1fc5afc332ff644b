// Loops around a micro-kernel, once for every instruction set. Read inside a target region, behind
// int8_epilogue.h.
//
// A micro-kernel is an object with
//   operand          type of the quantised activations
//   strips           16-column strips that one tile covers
//   k_chunk          k of one call: the weights of a tile and chunk stay in the L1
//   zero_shift       what the operand adds to the quantised value
//   block_bytes      activations that stay in the L2 while all strips pass by
//   rows()           rows of one tile
//   tile(a, a_stride, rows, b, strip_bytes, strips, k, c, ldc, accumulate)
//                    c (+)= a * b for k (a multiple of 4) from packed strips; c has ldc >= 16
//                    strips
namespace {

constexpr int kMaxBlockRows = 96;

template <class Tile>
class Int8Driver {
 public:
  Int8Driver(const Int8Linear& p, const Int8Block& block, Tile& tile)
      : p_(p), block_(block), tile_(tile) {}

  void run() {
    const int64_t rows = block_.m_end - block_.m_begin;
    if (rows <= 0) return;
    const int64_t step = block_rows(rows);
    for (int64_t m0 = block_.m_begin; m0 < block_.m_end; m0 += step) {
      const int64_t left = block_.m_end - m0;
      const int count = static_cast<int>(left < step ? left : step);
      for (int64_t n0 = block_.n_begin; n0 < block_.n_end; n0 += kColumns) {
        const int64_t columns = block_.n_end - n0;
        panel(m0, count, n0, static_cast<int>(columns < kColumns ? columns : kColumns));
      }
    }
  }

 private:
  using Operand = typename Tile::operand;
  // At least 64 columns: whole rows of 256 bytes of float output are written together.
  static constexpr int kColumns = (Tile::strips < 4 ? 4 : Tile::strips) * kStrip;

  // As many rows as the L2 and the sums allow, in blocks of one size.
  int64_t block_rows(int64_t rows) const {
    const int64_t tile = tile_.rows();
    const int64_t row_bytes = (p_.layout.row_padded + 1) * int64_t{sizeof(Operand)};
    int64_t most = Tile::block_bytes / row_bytes;
    if (most > kMaxBlockRows) most = kMaxBlockRows;
    most = most / tile * tile;
    if (most < tile) most = tile;
    const int64_t blocks = (rows + most - 1) / most;
    const int64_t even = (rows + blocks - 1) / blocks;
    return (even + tile - 1) / tile * tile;
  }

  void panel(int64_t m0, int rows, int64_t n0, int columns) {
    const int strips = (columns + kStrip - 1) / kStrip;
    const bool grouped = p_.layout.groups > 1;
    for (int64_t g = 0; g < p_.layout.groups; ++g) {
      const int64_t begin = g * p_.layout.group_padded;
      // A single group may run over the padding at its end, which keeps k a multiple of 64.
      const int64_t end = grouped ? begin + p_.layout.group_padded : p_.layout.row_padded;
      for (int s = 0; s < strips; s += Tile::strips) {
        const int together = strips - s < Tile::strips ? strips - s : Tile::strips;
        const bool last = g + 1 == p_.layout.groups && s + Tile::strips >= strips;
        multiply(m0, rows, n0, s, together, begin, end, last ? columns : 0);
      }
      if (grouped) {
        add_group<kColumns>(p_, m0, rows, n0, columns, g, Tile::zero_shift, sums_, scaled_);
      }
    }
    if (p_.out_dtype == DType::i32) {
      finish_int32(p_, m0, rows, n0, columns, Tile::zero_shift, sums_, kColumns);
      return;
    }
    with_activation(p_.activation, [&](auto activation) {
      if (grouped) {
        finish_scaled<activation()>(p_, m0, rows, n0, columns, scaled_, kColumns);
      } else {
        finish_sums<activation(), kColumns>(p_, m0, rows, n0, columns, Tile::zero_shift, sums_);
      }
    });
  }

  // Sums of `strips` strips of the panel from its strip `s` on. `prefetched`: columns of the output
  // to fetch on the way.
  void multiply(int64_t m0, int rows, int64_t n0, int s, int strips, int64_t k_begin, int64_t k_end,
                int prefetched) {
    const int64_t strip_bytes = kStrip * p_.layout.row_padded;
    const Operand* a = static_cast<const Operand*>(p_.a) + m0 * p_.a_stride;
    const int8_t* b = p_.tiles + (n0 / kStrip + s) * strip_bytes;
    int32_t* c = sums_ + s * kStrip;
    int64_t k = k_begin;
    do {
      const int64_t left = k_end - k;
      const int64_t count = left < Tile::k_chunk ? left : Tile::k_chunk;
      const bool last = k + count >= k_end;
      for (int r = 0; r < rows; r += tile_.rows()) {
        const int height = rows - r < tile_.rows() ? rows - r : tile_.rows();
        if (last && prefetched > 0) prefetch_output(p_, m0 + r, height, n0, prefetched);
        tile_.tile(a + r * p_.a_stride + k, p_.a_stride, height, b + k * kStrip, strip_bytes,
                   strips, count, c + r * kColumns, kColumns, k != k_begin);
      }
      k += count;
    } while (k < k_end);
  }

  const Int8Linear& p_;
  const Int8Block& block_;
  Tile& tile_;
  // A tile may write all its rows even where fewer are wanted.
  static constexpr int kRows = kMaxBlockRows + 32;
  alignas(64) int32_t sums_[kRows * kColumns];
  alignas(64) float scaled_[kMaxBlockRows * kColumns];
};

}  // namespace
