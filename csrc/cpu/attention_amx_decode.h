// Decoding on AMX: 16 rows of the cache, as they lie, times the few queries; weights times values,
// whose rows are interleaved on the way. Bfloat16, and int8 with the other operand in 16 bits, as
// two planes of bytes. Read behind attention_decode.h and amx_tiles.h.
namespace {

// Tiles 0-3 hold scores of 16 keys each, 4 queries, 5 keys or values, 6 sums of values, 7 weights.
class DecodeTiles {
 public:
  DecodeTiles(int query_bytes, int weight_rows) {
    TileConfig config{};
    config.palette = 1;
    for (int t = 0; t < 8; ++t) {
      config.column_bytes[t] = static_cast<uint16_t>(t < 5 ? query_bytes : kTileBytes);
      config.rows[t] = static_cast<uint8_t>(t < 6 ? kTileRows16 : weight_rows);
    }
    // gcc's intrinsic claims to read 8 bytes: without this the stores above may be dropped.
    __asm__ volatile("" : : "r"(&config) : "memory");
    _tile_loadconfig(&config);
  }
  ~DecodeTiles() { _tile_release(); }
  DecodeTiles(const DecodeTiles&) = delete;
  DecodeTiles& operator=(const DecodeTiles&) = delete;
};

// 16 bits of a number in two signed bytes, high * 256 + low. What 1.0 becomes keeps the high byte
// within its range when the low one carries.
constexpr float kPlanesOne = 32512.0f;

inline void split_planes(F32 x, int8_t* high, int8_t* low) {
  const I32 whole = f32_to_i32(x);
  const I32 upper = i32_sra<8>(i32_add(whole, i32_set(128)));
  i32_store_i8(high, upper);
  i32_store_i8(low, i32_sub(whole, i32_shl<8>(upper)));
}

// The largest magnitude of n floats, a multiple of the vector's width; NaN unless all are finite.
inline float largest(const float* x, int64_t n) {
  F32 most = f32_zero(), poison = f32_zero();
  for (int64_t i = 0; i < n; i += F32::width) {
    const F32 y = f32_load(x + i);
    most = f32_max(most, f32_abs(y));
    poison = f32_fma(y, f32_zero(), poison);
  }
  return f32_reduce_max(most) + f32_reduce_add(poison);
}

template <DType dtype_>
class TileProducts {
 public:
  static constexpr DType dtype = dtype_;
  static constexpr bool bf16 = dtype == DType::bf16;
  static constexpr int kGroup = bf16 ? 2 : 4;  // elements of a dword
  static constexpr int kChunk = 16 * kGroup;   // elements of a tile's row
  static constexpr int kPlanes = bf16 ? 1 : 2;
  static constexpr int kQueryBytes = 4 * kFewRows * kPlanes;  // of a row of the query's tile
  static constexpr int64_t kMostDim = 256;
  static constexpr int kKeys = kChunk;  // of a block: one tile of weights

  TileProducts(const Attention& p, int rows, Arena& arena)
      : dim_(p.head_dim),
        value_dim_(p.value_dim),
        rows_(rows),
        key_rows_(arena.take<char>(kKeys * kChunkBytes * (p.head_dim / kChunk))),
        zeros_(arena.take<char>(kChunkBytes * (p.value_dim / kChunk))),
        columns_(arena.take<float>(kKeys * kFewRows * kPlanes)),
        values_(arena.take<char>(1024 * kGroup * (p.value_dim / kChunk))),
        weights_(arena.take<char>(1024)),
        sums_(arena.take<int32_t>(bf16 ? 0 : p.value_dim * 16)) {
    if (zeros_) std::memset(zeros_, 0, static_cast<size_t>(kChunkBytes * (value_dim_ / kChunk)));
  }

  static bool serves(const Attention& p) {
    return p.head_dim % kChunk == 0 && p.value_dim % kChunk == 0 && p.head_dim <= kMostDim;
  }

  // A factor per row, then tiles of kChunk elements: dwords of (elements, rows).
  static int64_t query_bytes(const Attention& p) {
    return 64 + 16 * kQueryBytes * (p.head_dim / kChunk);
  }

  int weight_rows() const { return rows_ * kPlanes; }

  void load_query(int r, const void* from, DType q_dtype, float scale, void* query) const {
    auto* factor = static_cast<float*>(query);
    auto* tiles = static_cast<char*>(query) + 64;
    const auto place = [&](int64_t d, int plane) {
      return tiles + d / kGroup * kQueryBytes + (plane * kFewRows + r) * 4 +
             d % kGroup * (4 / kGroup);
    };
    if constexpr (bf16) {
      factor[r] = scale;
      for (int64_t d = 0; d < dim_; ++d) {
        std::memcpy(place(d, 0), static_cast<const uint16_t*>(from) + d, 2);
      }
    } else {
      float wide[kMostDim];
      int8_t high[kMostDim], low[kMostDim];
      with_dtype(q_dtype, [&](auto q) { widen_row<q()>(from, dim_, 1.0f, wide, dim_); });
      const float most = largest(wide, dim_);
      factor[r] = scale * (most / kPlanesOne);
      const float up = most > 0.0f ? kPlanesOne / most : 0.0f;
      for (int64_t d = 0; d < dim_; d += F32::width) {
        split_planes(f32_mul(f32_load(wide + d), f32_set(up)), high + d, low + d);
      }
      for (int64_t d = 0; d < dim_; ++d) {
        std::memcpy(place(d, 0), high + d, 1);
        std::memcpy(place(d, 1), low + d, 1);
      }
    }
  }

  void dot(const void* query, const DecodeKeys& keys, float* scores, Ahead& ahead) const {
    const auto* factor = static_cast<const float*>(query);
    const auto* tiles = static_cast<const char*>(query) + 64;
    const int count = (keys.count + 15) / 16;
    Rows16 rows[4];
    for (int i = 0; i < count; ++i) rows[i] = rows_from(keys, 16 * i);
    ahead.begin(2, kKeys / 16 * (dim_ / kChunk));
    tiles_read_memory();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t c = 0; c < dim_ / kChunk; ++c) {
      _tile_loadd(4, tiles + c * 16 * kQueryBytes, kQueryBytes);
#define LEPTON_SCORES(tile)                                                \
  if (tile < count) {                                                      \
    ahead.step();                                                          \
    _tile_loadd(5, rows[tile].first + c * kChunkBytes, rows[tile].stride); \
    if constexpr (bf16) {                                                  \
      _tile_dpbf16ps(tile, 5, 4);                                          \
    } else {                                                               \
      _tile_dpbssd(tile, 5, 4);                                            \
    }                                                                      \
  }
      LEPTON_SCORES(0)
      LEPTON_SCORES(1)
      LEPTON_SCORES(2)
      LEPTON_SCORES(3)
#undef LEPTON_SCORES
    }
    constexpr int kTileColumns = 16 * kFewRows * kPlanes;
    _tile_stored(0, columns_, kQueryBytes);
    _tile_stored(1, columns_ + kTileColumns, kQueryBytes);
    if constexpr (kKeys > 32) {
      _tile_stored(2, columns_ + 2 * kTileColumns, kQueryBytes);
      _tile_stored(3, columns_ + 3 * kTileColumns, kQueryBytes);
    }
    tiles_read_memory();
    for (int j = 0; j < 16 * count; j += 8) {
      if (!bf16) join_planes(j);
      transpose_8x8(columns_ + j * kFewRows, kFewRows, scores + j, kDecodeKeys);
    }
    for (int r = 0; r < rows_; ++r) {
      float* s = scores + r * kDecodeKeys;
      for (int j = 0; j < 16 * count; j += F32::width) {
        f32_store(s + j, f32_mul(f32_load(s + j), f32_set(factor[r])));
      }
    }
  }

  void add_values(const float* weights, const DecodeKeys& values, float* out, Ahead& ahead) const {
    float factor[kFewRows];
    ahead.begin(5, 16 + value_dim_ / 16);
    for (int r = 0; r < rows_; ++r) {
      factor[r] = pack_weights(weights + r * kDecodeKeys, values.count, r);
    }
    for (int g = 0; g < 16; ++g) {
      ahead.step();
      interleave(values, g);
    }
    tiles_read_memory();
    _tile_loadd(7, weights_, kTileBytes);
    for (int64_t n = 0; n < value_dim_ / 16; ++n) {
      ahead.step();
      if constexpr (bf16) {
        _tile_loadd(6, out + n * 16, value_dim_ * 4);
        _tile_loadd(5, values_ + n * 1024, kTileBytes);
        _tile_dpbf16ps(6, 7, 5);
        _tile_stored(6, out + n * 16, value_dim_ * 4);
      } else {
        _tile_zero(6);
        _tile_loadd(5, values_ + n * 1024, kTileBytes);
        _tile_dpbssd(6, 7, 5);
        _tile_stored(6, sums_ + n * 256, kTileBytes);
      }
    }
    tiles_read_memory();
    if (!bf16) add_sums(factor, out);
  }

  // Interleaving by 128-bit lanes: place 16 q + 4 lane + i of a chunk holds element i of quad q of
  // the lane.
  static int64_t element_at(int64_t place) {
    const int64_t chunk = place / kChunk * kChunk, in = place % kChunk;
    return chunk + in % 16 / 4 * (kChunk / 4) + in / 16 * 4 + in % 4;
  }

 private:
  static constexpr int kChunkBytes = 64;

  struct Rows16 {
    const char* first;
    int64_t stride;
  };

  // 16 keys as a tile loads them: in place if they are evenly spaced, else a copy, with zeros
  // behind the last.
  Rows16 rows_from(const DecodeKeys& keys, int first) const {
    const char* const* rows = keys.rows + first;
    const int count = keys.count - first < 16 ? keys.count - first : 16;
    bool even = count == 16;
    for (int i = 2; i < 16 && even; ++i) even = rows[i] - rows[i - 1] == rows[1] - rows[0];
    if (even) return {rows[0] + keys.offset, rows[1] - rows[0]};
    const int64_t bytes = kChunkBytes * (dim_ / kChunk);
    char* copy = key_rows_ + first * bytes;
    for (int i = 0; i < count; ++i) {
      std::memcpy(copy + i * bytes, rows[i] + keys.offset, static_cast<size_t>(bytes));
    }
    std::memset(copy + count * bytes, 0, static_cast<size_t>((16 - count) * bytes));
    return {copy, bytes};
  }

  // Eight keys by two planes of integers to eight by eight floats, in place.
  void join_planes(int first) const {
    for (int j = first; j < first + 8; ++j) {
      const auto* planes = reinterpret_cast<const __m256i*>(columns_ + j * 2 * kFewRows);
      const __m256i high = _mm256_slli_epi32(_mm256_loadu_si256(planes), 8);
      const __m256i whole = _mm256_add_epi32(high, _mm256_loadu_si256(planes + 1));
      _mm256_storeu_ps(columns_ + j * kFewRows, _mm256_cvtepi32_ps(whole));
    }
  }

  // Adds the planes of integers, times what a unit of a row's weights is worth.
  void add_sums(const float* factor, float* out) const {
    for (int64_t n = 0; n < value_dim_ / 16; ++n) {
      const int32_t* sums = sums_ + n * 256;
      for (int r = 0; r < rows_; ++r) {
        const I32 high = i32_load(sums + r * 16), low = i32_load(sums + (rows_ + r) * 16);
        float* to = out + r * value_dim_ + n * 16;
        const F32 sum = f32_from_i32(i32_add(i32_shl<8>(high), low));
        f32_store(to, f32_fma(sum, f32_set(factor[r]), f32_load(to)));
      }
    }
  }

  // The weights of a row as a row of the first operand; returns what a unit of it is worth.
  float pack_weights(const float* weights, int count, int r) const {
    char* to = weights_ + r * kTileBytes;
    const int end = static_cast<int>(padded_to(count, F32::width));
    if constexpr (bf16) {
      for (int j = 0; j < kKeys; j += F32::width) {
        const F32 x = j < end ? f32_load(weights + j) : f32_zero();
        f32_store_bf16(reinterpret_cast<uint16_t*>(to + j * 2), x);
      }
      return 1.0f;
    } else {
      const float most = largest(weights, end);
      const float up = most > 0.0f ? kPlanesOne / most : 0.0f;
      auto* high = reinterpret_cast<int8_t*>(to);
      for (int j = 0; j < kKeys; j += F32::width) {
        const F32 x = j < end ? f32_mul(f32_load(weights + j), f32_set(up)) : f32_zero();
        split_planes(x, high + j, high + rows_ * kTileBytes + j);
      }
      return most / kPlanesOne;
    }
  }

  // Group g of keys: their elements in turns, row g of the tiles of all chunks.
  void interleave(const DecodeKeys& values, int g) const {
    const char* row[kGroup];
    for (int i = 0; i < kGroup; ++i) {
      const int j = g * kGroup + i;
      row[i] = j < values.count ? values.rows[j] + values.offset : zeros_;
    }
    char* to = values_ + g * kTileBytes;
    constexpr int64_t kStep = 1024;
    for (int64_t c = 0; c < value_dim_ / kChunk; ++c, to += kGroup * kStep) {
      __m512i x[kGroup];
      for (int i = 0; i < kGroup; ++i) x[i] = _mm512_loadu_si512(row[i] + c * kChunkBytes);
      if constexpr (bf16) {
        _mm512_storeu_si512(to, _mm512_unpacklo_epi16(x[0], x[1]));
        _mm512_storeu_si512(to + kStep, _mm512_unpackhi_epi16(x[0], x[1]));
      } else {
        const __m512i lo0 = _mm512_unpacklo_epi8(x[0], x[1]);
        const __m512i lo1 = _mm512_unpacklo_epi8(x[2], x[3]);
        const __m512i hi0 = _mm512_unpackhi_epi8(x[0], x[1]);
        const __m512i hi1 = _mm512_unpackhi_epi8(x[2], x[3]);
        _mm512_storeu_si512(to, _mm512_unpacklo_epi16(lo0, lo1));
        _mm512_storeu_si512(to + kStep, _mm512_unpackhi_epi16(lo0, lo1));
        _mm512_storeu_si512(to + 2 * kStep, _mm512_unpacklo_epi16(hi0, hi1));
        _mm512_storeu_si512(to + 3 * kStep, _mm512_unpackhi_epi16(hi0, hi1));
      }
    }
  }

  int64_t dim_, value_dim_;
  int rows_;
  char *key_rows_, *zeros_;
  float* columns_;
  char *values_, *weights_;
  int32_t* sums_;
};

template <DType dtype>
using TileDecode = Decode<TileProducts<dtype>>;

inline int64_t amx_decode_scratch(const Attention& p, int64_t heads) {
  const AttentionTask none{};
  const Arena count{nullptr};
  const int64_t vectors = decode_scratch(p, heads);
  const int64_t tiles = p.kv_dtype == DType::i8
                            ? TileDecode<DType::i8>(p, none, heads, count).scratch_bytes()
                            : TileDecode<DType::bf16>(p, none, heads, count).scratch_bytes();
  return tiles > vectors ? tiles : vectors;
}

template <DType dtype>
inline void decode_by_tiles(const Attention& p, const AttentionTask& t) {
  using Products = TileProducts<dtype>;
  const auto rows = static_cast<int>(t.row_end - t.row_begin);
  const DecodeTiles tiles(Products::kQueryBytes, rows * Products::kPlanes);
  TileDecode<dtype>(p, t, t.decode_heads, Arena{static_cast<char*>(t.scratch)}).run();
}

inline void amx_decode(const Attention& p, const AttentionTask& t) {
  const bool int8 = p.kv_dtype == DType::i8;
  if (int8 && TileProducts<DType::i8>::serves(p)) return decode_by_tiles<DType::i8>(p, t);
  if (!int8 && TileProducts<DType::bf16>::serves(p)) return decode_by_tiles<DType::bf16>(p, t);
  decode(p, t);
}

}  // namespace
