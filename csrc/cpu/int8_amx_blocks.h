// Loops around AMX products of weights with one scale per column. Read inside the AMX target
// region, behind int8_amx_epilogue.h and amx_tiles.h.
//
// A block is `height` x 2 tiles of sums, one high where all rows fit one tile. A product of tiles
// takes as many cycles as its first operand has rows, so rows are shared out evenly: 20 rows make
// two tiles of 10, not one of 16 and one of 4.
//
// Every block runs over the whole of k at once: its sums are stored once and never loaded again.
// What the vector units have to do meanwhile is spread over the steps of k, so that the matrix unit
// does not wait for it: the epilogue of the block before, prefetches of this block's outputs and of
// the weights to come.
namespace {

// Activations, and weights that do not stay in the L1, are loaded with the streaming hint: they
// leave the L1 to what is used again.
template <int strips, bool stream, class Aside>
void multiply_two_rows(const int8_t* a0, const int8_t* a1, int64_t a_stride, const int8_t* b,
                       int64_t strip_bytes, int64_t k, int32_t* c0, int32_t* c1, int64_t c_bytes,
                       const Aside& aside) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t i = 0; i < k; i += kTileBytes) {
    const int8_t* w = b + i * kStrip;
    if (stream) {
      _tile_stream_loadd(6, w, kTileBytes);
    } else {
      _tile_loadd(6, w, kTileBytes);
    }
    _tile_stream_loadd(4, a0 + i, a_stride);
    _tile_dpbssd(0, 4, 6);
    _tile_stream_loadd(5, a1 + i, a_stride);
    _tile_dpbssd(2, 5, 6);
    if (strips > 1) {
      if (stream) {
        _tile_stream_loadd(7, w + strip_bytes, kTileBytes);
      } else {
        _tile_loadd(7, w + strip_bytes, kTileBytes);
      }
      _tile_dpbssd(1, 4, 7);
      _tile_dpbssd(3, 5, 7);
    }
    aside();
  }
  _tile_stored(0, c0, c_bytes);
  _tile_stored(2, c1, c_bytes);
  if (strips > 1) {
    _tile_stored(1, c0 + kStrip, c_bytes);
    _tile_stored(3, c1 + kStrip, c_bytes);
  }
}

template <int strips, class Aside>
void multiply_one_row(const int8_t* a, int64_t a_stride, const int8_t* b, int64_t strip_bytes,
                      int64_t k, int32_t* c, int64_t c_bytes, const Aside& aside) {
  _tile_zero(0);
  _tile_zero(1);
  for (int64_t i = 0; i < k; i += kTileBytes) {
    const int8_t* w = b + i * kStrip;
    _tile_stream_loadd(4, a + i, a_stride);
    _tile_stream_loadd(6, w, kTileBytes);
    _tile_dpbssd(0, 4, 6);
    if (strips > 1) {
      _tile_stream_loadd(7, w + strip_bytes, kTileBytes);
      _tile_dpbssd(1, 4, 7);
    }
    aside();
  }
  _tile_stored(0, c, c_bytes);
  if (strips > 1) _tile_stored(1, c + kStrip, c_bytes);
}

template <int height, class Epilogue>
class AmxBlocks {
 public:
  AmxBlocks(const Int8Linear& p, const Int8Block& block)
      : p_(p), block_(block), strip_bytes_(kStrip * p.layout.row_padded), pending_(p, block) {
    const int64_t rows = block.m_end - block.m_begin;
    const int64_t blocks = (rows + height * kTileRows16 - 1) / (height * kTileRows16);
    tile_rows_ = static_cast<int>((rows + height * blocks - 1) / (height * blocks));
    rows_ = height * tile_rows_;
  }

  void run() {
    const TileScope use(tile_rows_);
    const int64_t rows = block_.m_end - block_.m_begin;
    const int64_t step = panel_rows(rows);
    for (int64_t m0 = block_.m_begin; m0 < block_.m_end; m0 += step) {
      const int64_t m1 = m0 + step < block_.m_end ? m0 + step : block_.m_end;
      for (int64_t n0 = block_.n_begin; n0 < block_.n_end; n0 += kColumns) panel(m0, m1, n0);
    }
    pending_.finish(height * kTileRows16);
    if (pending_.past_cache()) _mm_sfence();
  }

 private:
  static constexpr int kStrips = 2;  // more streams of weights than that are slower
  static constexpr int kColumns = kStrips * kStrip;
  static constexpr int64_t kPanelBytes = 1024 * 1024;  // activations that stay in the L2
  static constexpr int64_t kNearBytes = 32 * 1024;     // weights that stay in the L1
  static constexpr int64_t kAheadBytes = 8 * 1024;     // of a strip that is used once

  int64_t panel_rows(int64_t rows) const {
    const int64_t row_bytes = p_.layout.row_padded + 1;
    int64_t most = kPanelBytes / row_bytes / rows_;
    if (most < 1) most = 1;
    const int64_t blocks = (rows + rows_ - 1) / rows_;
    const int64_t panels = (blocks + most - 1) / most;
    return (blocks + panels - 1) / panels * rows_;
  }

  void panel(int64_t m0, int64_t m1, int64_t n0) {
    const int64_t left = block_.n_end - n0;
    const int columns = static_cast<int>(left < kColumns ? left : kColumns);
    scale_in_use_ ^= 1;
    float* scale = scale_[scale_in_use_];
    if (p_.out_dtype != DType::i32) load_weight_scale(p_, n0, columns, 0, scale);

    const int8_t* b = p_.tiles + n0 / kStrip * strip_bytes_;
    const int64_t steps = p_.layout.row_padded / kTileBytes;
    const int64_t blocks = (m1 - m0 + rows_ - 1) / rows_;
    // Weights to come: with one block in the panel and long strips, those a little ahead in the
    // same strips; else the next panel's, shared out among all steps.
    const bool ahead = blocks == 1 && strip_bytes_ > 2 * kAheadBytes;
    const int8_t* fetched = ahead ? b + kAheadBytes : b + kStrips * strip_bytes_;
    const int64_t lines = (kColumns + blocks - 1) / blocks;

    for (int64_t m = m0; m < m1; m += rows_) {
      const int rows = static_cast<int>(m1 - m < rows_ ? m1 - m : rows_);
      const int busiest = pending_.rows() > rows ? pending_.rows() : rows;
      const int even = steps > 0 ? static_cast<int>((busiest + steps - 1) / steps) : 0;
      const int share = even > 0 && even < kLeastShare ? kLeastShare : even;
      if (share == 0) pending_.finish(height * kTileRows16);
      int prefetched = 0;
      multiply(m, b, columns, [&] {
        pending_.finish(share);
        const int count = rows - prefetched < share ? rows - prefetched : share;
        if (count > 0 && !pending_.past_cache())
          prefetch_output(p_, m + prefetched, count, n0, columns);
        prefetched += count;
        if (ahead) {
          for (int s = 0; s < kStrips; ++s) prefetch(fetched + s * strip_bytes_, kStrip);
          fetched += kStrip * kTileBytes;
        } else {
          prefetch(fetched, lines);
          fetched += lines * kTileBytes;
        }
      });
      pending_.set(m, rows, n0, columns, sums_, scale);
    }
  }

  static void prefetch(const int8_t* from, int64_t lines) {
    for (int64_t i = 0; i < lines; ++i) {
      _mm_prefetch(reinterpret_cast<const char*>(from + i * kTileBytes), _MM_HINT_T1);
    }
  }

  template <class Aside>
  void multiply(int64_t m, const int8_t* b, int columns, const Aside& aside) {
    const int8_t* a = static_cast<const int8_t*>(p_.a) + m * p_.a_stride;
    const int64_t k = p_.layout.row_padded, c_bytes = int64_t{4} * kColumns;
    const int count = (columns + kStrip - 1) / kStrip;
    if constexpr (height == 2) {
      const int8_t* a1 = a + tile_rows_ * p_.a_stride;
      int32_t* c1 = sums_ + tile_rows_ * kColumns;
      if (count == 1) {
        multiply_two_rows<1, true>(a, a1, p_.a_stride, b, strip_bytes_, k, sums_, c1, c_bytes,
                                   aside);
      } else if (2 * strip_bytes_ > kNearBytes) {
        multiply_two_rows<2, true>(a, a1, p_.a_stride, b, strip_bytes_, k, sums_, c1, c_bytes,
                                   aside);
      } else {
        multiply_two_rows<2, false>(a, a1, p_.a_stride, b, strip_bytes_, k, sums_, c1, c_bytes,
                                    aside);
      }
    } else {
      if (count == 1) {
        multiply_one_row<1>(a, p_.a_stride, b, strip_bytes_, k, sums_, c_bytes, aside);
      } else {
        multiply_one_row<2>(a, p_.a_stride, b, strip_bytes_, k, sums_, c_bytes, aside);
      }
    }
  }

  const Int8Linear& p_;
  const Int8Block& block_;
  const int64_t strip_bytes_;
  int tile_rows_, rows_;
  PendingRows<Epilogue, kColumns> pending_;
  int scale_in_use_ = 0;
  alignas(64) float scale_[2][kColumns];
  // Stored at the end of a block, when the rows of the block before have all been finished.
  alignas(64) int32_t sums_[height * kTileRows16 * kColumns];
};

template <class Epilogue>
void amx_linear(const Int8Linear& p, const Int8Block& block) {
  if (block.m_end - block.m_begin <= kTileRows16) {
    AmxBlocks<1, Epilogue>(p, block).run();
  } else {
    AmxBlocks<2, Epilogue>(p, block).run();
  }
}

}  // namespace
