// Loops around AMX products of weights with one scale per column. Read inside the AMX target
// region, behind int8_epilogue.h and amx_tiles.h.
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

using lepton::Int8Block;

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

// bf16_bits of 32 values in one line. Few instructions: tile loads take most of the front end.
inline __m512i bf16_line(__m512 y0, __m512 y1) {
  const __m512i half = _mm512_set1_epi32(0x7FFF), last = _mm512_set1_epi32(0x10000);
  const __m512i one = _mm512_set1_epi32(1), bits0 = _mm512_castps_si512(y0),
                bits1 = _mm512_castps_si512(y1);
  const __m512i up0 = _mm512_add_epi32(bits0, half), up1 = _mm512_add_epi32(bits1, half);
  const __m512i even0 = _mm512_mask_add_epi32(up0, _mm512_test_epi32_mask(bits0, last), up0, one);
  const __m512i even1 = _mm512_mask_add_epi32(up1, _mm512_test_epi32_mask(bits1, last), up1, one);
  if (_mm512_cmp_ps_mask(y0, y1, _CMP_UNORD_Q)) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi32_epi16(bf16_bits(F32{y0}))),
                              _mm512_cvtepi32_epi16(bf16_bits(F32{y1})), 1);
  }
  const __m512i high_halves =
      _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29, 27,
                       25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
  return _mm512_permutex2var_epi16(even0, high_halves, even1);
}

// load_float for a whole vector, small enough to be inlined.
inline F32 load_vector(const char* from, DType dtype) {
  if (dtype == DType::f32) return f32_load(reinterpret_cast<const float*>(from));
  const auto* halves = reinterpret_cast<const uint16_t*>(from);
  return dtype == DType::bf16 ? f32_load_bf16(halves) : f32_load_fp16(halves);
}

template <DType out>
inline void store_line(char* to, F32 y0, F32 y1, bool past_cache) {
  if (out == DType::f32) {
    auto* line = reinterpret_cast<float*>(to);
    if (past_cache) {
      _mm512_stream_ps(line, y0.v);
      _mm512_stream_ps(line + F32::width, y1.v);
    } else {
      f32_store(line, y0);
      f32_store(line + F32::width, y1);
    }
  } else {
    const __m512i line = bf16_line(y0.v, y1.v);
    if (past_cache) {
      _mm512_stream_si512(reinterpret_cast<__m512i*>(to), line);
    } else {
      _mm512_storeu_si512(to, line);
    }
  }
}

// finish_sums for whole lines of outputs: what belongs to a column stays in registers. Where
// `past_cache`, lines are aligned, are not read before they are written, and leave the cache to
// operands.
template <Activation activation, int ldc, DType out>
void finish_lines(const Int8Linear& p, int64_t m0, int rows, int64_t n0, const int32_t* c,
                  const float* scale, bool past_cache) {
  constexpr int width = F32::width;
  static_assert(ldc == 2 * width, "a line of bf16");
  const float* row_scale = p.row_scale + m0;
  const int32_t* row_zero = p.row_zero + m0;
  const DType residual_dtype = p.residual_dtype;
  const int64_t residual_bytes = bytes_of(residual_dtype), out_bytes = bytes_of(out);
  const int64_t residual_step = p.residual_stride * residual_bytes;
  const int64_t out_step = p.out_stride * out_bytes;
  const F32 scale0 = f32_load(scale), scale1 = f32_load(scale + width);
  // -0 is what changes no value in an addition.
  const F32 bias0 = p.bias ? f32_load(p.bias + n0) : f32_set(-0.0f);
  const F32 bias1 = p.bias ? f32_load(p.bias + n0 + width) : f32_set(-0.0f);
  const int32_t* weight_sum = p.weight_sum + n0;
  const int32_t* sums = c;
  const char* residual = static_cast<const char*>(p.residual);
  if (residual) residual += m0 * residual_step + n0 * residual_bytes;
  char* to = static_cast<char*>(p.out) + m0 * out_step + n0 * out_bytes;
  const auto finish = [&](auto count) {
    constexpr int n = decltype(count)::value;
    F32 y[2 * n];
#pragma GCC unroll 2
    for (int i = 0; i < n; ++i) {
      I32 sum0 = i32_load(sums), sum1 = i32_load(sums + width);
      if (row_zero[i] != 0) {
        sum0 = corrected_sum(sums, weight_sum, row_zero[i]);
        sum1 = corrected_sum(sums + width, weight_sum + width, row_zero[i]);
      }
      const F32 by = f32_set(row_scale[i]);
      y[2 * i] = f32_add(f32_mul(f32_mul(f32_from_i32(sum0), scale0), by), bias0);
      y[2 * i + 1] = f32_add(f32_mul(f32_mul(f32_from_i32(sum1), scale1), by), bias1);
      sums += ldc;
    }
    activate_each<activation>(y);
#pragma GCC unroll 2
    for (int i = 0; i < n; ++i) {
      F32 y0 = y[2 * i], y1 = y[2 * i + 1];
      if (residual) {
        y0 = f32_add(y0, load_vector(residual, residual_dtype));
        y1 = f32_add(y1, load_vector(residual + width * residual_bytes, residual_dtype));
        residual += residual_step;
      }
      store_line<out>(to, y0, y1, past_cache);
      to += out_step;
    }
    row_scale += n;
    row_zero += n;
  };
  int left = rows;
  for (; left > 1; left -= 2) finish(std::integral_constant<int, 2>{});
  if (left > 0) finish(std::integral_constant<int, 1>{});
}

template <Activation activation>
struct FloatEpilogue {
  template <int ldc>
  static void rows(const Int8Linear& p, int64_t m0, int rows, int64_t n0, int columns,
                   const int32_t* c, const float* scale, bool past_cache) {
    if (columns == ldc && p.out_dtype == DType::f32) {
      finish_lines<activation, ldc, DType::f32>(p, m0, rows, n0, c, scale, past_cache);
    } else if (columns == ldc && p.out_dtype == DType::bf16) {
      finish_lines<activation, ldc, DType::bf16>(p, m0, rows, n0, c, scale, past_cache);
    } else {
      finish_sums<activation, ldc>(p, m0, rows, n0, columns, 0, c, scale);
    }
  }
};

struct Int32Epilogue {
  template <int ldc>
  static void rows(const Int8Linear& p, int64_t m0, int rows, int64_t n0, int columns,
                   const int32_t* c, const float*, bool) {
    finish_int32(p, m0, rows, n0, columns, 0, c, ldc);
  }
};

template <int height, class Epilogue>
class AmxBlocks {
 public:
  AmxBlocks(const Int8Linear& p, const Int8Block& block)
      : p_(p), block_(block), strip_bytes_(kStrip * p.layout.row_padded) {
    const int64_t rows = block.m_end - block.m_begin;
    const int64_t blocks = (rows + height * kTileRows16 - 1) / (height * kTileRows16);
    tile_rows_ = static_cast<int>((rows + height * blocks - 1) / (height * blocks));
    rows_ = height * tile_rows_;
    past_cache_ = goes_past_cache();
  }

  void run() {
    const TileScope use(tile_rows_);
    const int64_t rows = block_.m_end - block_.m_begin;
    const int64_t step = panel_rows(rows);
    for (int64_t m0 = block_.m_begin; m0 < block_.m_end; m0 += step) {
      const int64_t m1 = m0 + step < block_.m_end ? m0 + step : block_.m_end;
      for (int64_t n0 = block_.n_begin; n0 < block_.n_end; n0 += kColumns) panel(m0, m1, n0);
    }
    finish_pending();
    if (past_cache_) _mm_sfence();
  }

 private:
  static constexpr int kStrips = 2;  // more streams of weights than that are slower
  static constexpr int kColumns = kStrips * kStrip;
  static constexpr int64_t kPanelBytes = 1024 * 1024;  // activations that stay in the L2
  static constexpr int64_t kNearBytes = 32 * 1024;     // weights that stay in the L1
  static constexpr int64_t kAheadBytes = 8 * 1024;     // of a strip that is used once

  static constexpr int kLeastShare = 4;  // rows at a time: each time what columns share is loaded
  static constexpr int64_t kPastCacheBytes = 1024 * 1024;

  // Rows whose sums are stored and wait for the epilogue.
  struct Pending {
    int64_t m, n;
    int rows, columns;
    const int32_t* sums;
    const float* scale;
  };

  // Outputs that would take half the L2 from the operands, in whole lines.
  bool goes_past_cache() const {
    const int64_t size = bytes_of(p_.out_dtype), row = p_.out_stride * size;
    const auto first = reinterpret_cast<uintptr_t>(p_.out) + block_.n_begin * size;
    const int64_t bytes = (block_.m_end - block_.m_begin) * (block_.n_end - block_.n_begin) * size;
    return bytes > kPastCacheBytes && (first | static_cast<uintptr_t>(row)) % 64 == 0;
  }

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
      const int busiest = pending_.rows > rows ? pending_.rows : rows;
      const int even = steps > 0 ? static_cast<int>((busiest + steps - 1) / steps) : 0;
      const int share = even > 0 && even < kLeastShare ? kLeastShare : even;
      if (share == 0) finish_pending();
      int prefetched = 0;
      multiply(m, b, columns, [&] {
        finish_pending(share);
        const int count = rows - prefetched < share ? rows - prefetched : share;
        if (count > 0 && !past_cache_) prefetch_output(p_, m + prefetched, count, n0, columns);
        prefetched += count;
        if (ahead) {
          for (int s = 0; s < kStrips; ++s) prefetch(fetched + s * strip_bytes_, kStrip);
          fetched += kStrip * kTileBytes;
        } else {
          prefetch(fetched, lines);
          fetched += lines * kTileBytes;
        }
      });
      pending_ = {m, n0, rows, columns, sums_, scale};
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

  // At most `most` of the rows that wait. Inlined: a call at every step of k costs a tenth.
  [[gnu::always_inline]] void finish_pending(int most = height * kTileRows16) {
    Pending& it = pending_;
    const int rows = it.rows < most ? it.rows : most;
    if (rows <= 0) return;
    Epilogue::template rows<kColumns>(p_, it.m, rows, it.n, it.columns, it.sums, it.scale,
                                      past_cache_);
    it.m += rows;
    it.sums += rows * kColumns;
    it.rows -= rows;
  }

  const Int8Linear& p_;
  const Int8Block& block_;
  const int64_t strip_bytes_;
  int tile_rows_, rows_;
  bool past_cache_;
  Pending pending_{};
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
