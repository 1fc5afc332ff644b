// Rows of bfloat16 as operands of tile products. Read behind attention_panel.h,
// amx_tiles.h and avx512_transpose.h.
//
// A tile of 1 KiB is one of
//   rows    16 rows x 32 elements: first operand
//   across  16 pairs of elements x 16 rows: second operand of a product over the elements
//   along   16 pairs of rows x 16 elements: second operand of a product over the rows
//   columns 16 elements x 32 rows: `rows` of the transposed matrix, first operand
namespace {

constexpr int kStrip = 32;             // rows that pass over the keys together
constexpr int kKeys = 128;             // keys of a block
constexpr int kKeyTiles = kKeys / 16;  // tiles of scores beside each other
constexpr int kKeySteps = kKeys / kStrip;
constexpr int64_t kTileHalves = 512;  // bfloat16 elements of a tile
constexpr int64_t kTileFloats = 256;

inline int64_t steps_of(int64_t dim) { return (dim + 31) / 32; }

// Elements [first, first + 32) of a row of n; zeros behind its end, or where there is no row.
inline __m512i load_halves(const uint16_t* row, int64_t first, int64_t n) {
  const int64_t left = n - first;
  if (row == nullptr || left <= 0) return _mm512_setzero_si512();
  if (left >= 32) return _mm512_loadu_si512(row + first);
  return _mm512_maskz_loadu_epi16(static_cast<__mmask32>((1u << left) - 1u), row + first);
}

// Words of a and b in turns: lo of elements 0 to 15, hi of 16 to 31.
inline void interleave_words(__m512i a, __m512i b, __m512i* lo, __m512i* hi) {
  const __m512i first =
      _mm512_set_epi32(0x002F000F, 0x002E000E, 0x002D000D, 0x002C000C, 0x002B000B, 0x002A000A,
                       0x00290009, 0x00280008, 0x00270007, 0x00260006, 0x00250005, 0x00240004,
                       0x00230003, 0x00220002, 0x00210001, 0x00200000);
  const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(0x00100010));
  *lo = _mm512_permutex2var_epi16(a, first, b);
  *hi = _mm512_permutex2var_epi16(a, second, b);
}

inline void store_tile(uint16_t* to, const __m512i* rows) {
  for (int i = 0; i < 16; ++i) _mm512_storeu_si512(to + i * 32, rows[i]);
}

// 16 rows: `across` tiles of all steps, `step_halves` apart.
inline void pack_across(const uint16_t* const* rows, int64_t dim, uint16_t* to,
                        int64_t step_halves) {
  for (int64_t step = 0; step < steps_of(dim); ++step) {
    __m512i r[16];
    for (int i = 0; i < 16; ++i) r[i] = load_halves(rows[i], 32 * step, dim);
    transpose_dwords(r);
    store_tile(to + step * step_halves, r);
  }
}

// 32 rows: pairs of `along` tiles, one pair for 32 elements, `pair_halves` apart.
inline void pack_along(const uint16_t* const* rows, int64_t dim, uint16_t* to,
                       int64_t pair_halves) {
  for (int64_t step = 0; step < steps_of(dim); ++step) {
    uint16_t* tiles = to + step * pair_halves;
    for (int i = 0; i < 16; ++i) {
      __m512i lo, hi;
      interleave_words(load_halves(rows[2 * i], 32 * step, dim),
                       load_halves(rows[2 * i + 1], 32 * step, dim), &lo, &hi);
      _mm512_storeu_si512(tiles + i * 32, lo);
      _mm512_storeu_si512(tiles + kTileHalves + i * 32, hi);
    }
  }
}

// 32 rows: pairs of `columns` tiles, one pair for 32 elements, `pair_halves` apart.
inline void pack_columns(const uint16_t* const* rows, int64_t dim, uint16_t* to,
                         int64_t pair_halves) {
  for (int64_t step = 0; step < steps_of(dim); ++step) {
    __m512i lo[16], hi[16];
    for (int i = 0; i < 16; ++i) {
      interleave_words(load_halves(rows[2 * i], 32 * step, dim),
                       load_halves(rows[2 * i + 1], 32 * step, dim), lo + i, hi + i);
    }
    transpose_dwords(lo);
    transpose_dwords(hi);
    store_tile(to + step * pair_halves, lo);
    store_tile(to + step * pair_halves + kTileHalves, hi);
  }
}

// 16 rows as they are, the sign of every element flipped by `flip`; one tile a step.
inline void pack_rows(const uint16_t* const* rows, int64_t dim, uint16_t flip, uint16_t* to) {
  const __m512i sign = _mm512_set1_epi16(static_cast<int16_t>(flip));
  for (int64_t step = 0; step < steps_of(dim); ++step) {
    for (int i = 0; i < 16; ++i) {
      const __m512i x = _mm512_xor_si512(load_halves(rows[i], 32 * step, dim), sign);
      _mm512_storeu_si512(to + step * kTileHalves + i * 32, x);
    }
  }
}

// Where `count` keys from `first` lie; null behind the last.
inline void key_rows(const Attention& p, const AttentionTask& t, const void* base,
                     const HeadStrides& stride, int64_t first, int count, const uint16_t** rows) {
  for (int i = 0; i < count; ++i) {
    rows[i] = first + i < t.sequence->k_len
                  ? static_cast<const uint16_t*>(base) + key_offset(p, t, stride, first + i)
                  : nullptr;
  }
}

// A block of keys for the forward kernel. Keys: for 32 keys at a time and each step, a pair of
// `across` tiles. Values: for 32 elements at a time and each 32 keys, a pair of `along` tiles.
inline int64_t key_block_halves(int64_t dim) { return kKeys * 32 * steps_of(dim); }

inline void pack_keys_across(const Attention& p, const AttentionTask& t, const void* base,
                             const HeadStrides& stride, int64_t dim, int64_t first, int step,
                             uint16_t* block) {
  const uint16_t* rows[kStrip];
  key_rows(p, t, base, stride, first + step * kStrip, kStrip, rows);
  uint16_t* to = block + step * steps_of(dim) * 2 * kTileHalves;
  pack_across(rows, dim, to, 2 * kTileHalves);
  pack_across(rows + 16, dim, to + kTileHalves, 2 * kTileHalves);
}

inline void pack_keys_along(const Attention& p, const AttentionTask& t, const void* base,
                            const HeadStrides& stride, int64_t dim, int64_t first, int step,
                            uint16_t* block) {
  const uint16_t* rows[kStrip];
  key_rows(p, t, base, stride, first + step * kStrip, kStrip, rows);
  pack_along(rows, dim, block + step * 2 * kTileHalves, kKeySteps * 2 * kTileHalves);
}

}  // namespace
