// Tile products of attention. Read behind attention_amx_pack.h.
namespace {

// s = a b for steps [from, to) of 32 keys: `rows` tiles by `across` tiles, over all `steps` of the
// elements. Tile (m, n) of s lies at (m * kKeyTiles + n) * kTileFloats. Rows of tiles take two sets
// of sums in turns, each stored while the products of the other are under way.
template <int tiles>
inline void rows_by_keys(const uint16_t* a, const uint16_t* b, int64_t steps, int from, int to,
                         float* s) {
  const uint16_t* a1 = a + steps * kTileHalves;
  for (int t = from; t < to; ++t) {
    const uint16_t* pairs = b + t * steps * 2 * kTileHalves;
    float* out = s + t * 2 * kTileFloats;
    float* out1 = out + kKeyTiles * kTileFloats;
    _tile_zero(0);
    _tile_zero(1);
    for (int64_t k = 0; k < steps; ++k) {
      const uint16_t* pair = pairs + k * 2 * kTileHalves;
      _tile_loadd(4, a + k * kTileHalves, kTileBytes);
      _tile_loadd(6, pair, kTileBytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, pair + kTileHalves, kTileBytes);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (tiles == 2) {
      if (t > from) {
        _tile_stored(2, out1 - 2 * kTileFloats, kTileBytes);
        _tile_stored(3, out1 - kTileFloats, kTileBytes);
      }
      _tile_zero(2);
      _tile_zero(3);
      for (int64_t k = 0; k < steps; ++k) {
        const uint16_t* pair = pairs + k * 2 * kTileHalves;
        _tile_loadd(5, a1 + k * kTileHalves, kTileBytes);
        _tile_loadd(6, pair, kTileBytes);
        _tile_dpbf16ps(2, 5, 6);
        _tile_loadd(7, pair + kTileHalves, kTileBytes);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
    _tile_stored(0, out, kTileBytes);
    _tile_stored(1, out + kTileFloats, kTileBytes);
    if (tiles == 2 && t + 1 == to) {
      _tile_stored(2, out1, kTileBytes);
      _tile_stored(3, out1 + kTileFloats, kTileBytes);
    }
  }
}

// out (+)= a b over steps [from, to) of `a`'s columns. Tile (m, t) of a lies at m * a_row + t *
// a_step halves; of b, the pair of step t and columns c at (c * b_column + t * b_step); of out,
// tile (m, n) at m * out_row + n * kTileFloats.
struct Product {
  const uint16_t* a;
  int64_t a_row, a_step;
  const uint16_t* b;
  int64_t b_column, b_step;
  float* out;
  int64_t out_row;
  int64_t columns;  // pairs of tiles
  int from, to;
};

template <int tiles>
inline void multiply_tiles(const Product& x, bool accumulate) {
  for (int64_t c = 0; c < x.columns; ++c) {
    float* out = x.out + c * 2 * kTileFloats;
    float* out1 = out + x.out_row;
    const uint16_t* pairs = x.b + c * x.b_column;
    if (accumulate) {
      _tile_loadd(0, out, kTileBytes);
      _tile_loadd(1, out + kTileFloats, kTileBytes);
    } else {
      _tile_zero(0);
      _tile_zero(1);
    }
    for (int t = x.from; t < x.to; ++t) {
      const uint16_t* pair = pairs + t * x.b_step;
      _tile_loadd(4, x.a + t * x.a_step, kTileBytes);
      _tile_loadd(6, pair, kTileBytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, pair + kTileHalves, kTileBytes);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (tiles == 2) {
      if (c > 0) {
        _tile_stored(2, out1 - 2 * kTileFloats, kTileBytes);
        _tile_stored(3, out1 - kTileFloats, kTileBytes);
      }
      if (accumulate) {
        _tile_loadd(2, out1, kTileBytes);
        _tile_loadd(3, out1 + kTileFloats, kTileBytes);
      } else {
        _tile_zero(2);
        _tile_zero(3);
      }
      for (int t = x.from; t < x.to; ++t) {
        const uint16_t* pair = pairs + t * x.b_step;
        _tile_loadd(5, x.a + x.a_row + t * x.a_step, kTileBytes);
        _tile_loadd(6, pair, kTileBytes);
        _tile_dpbf16ps(2, 5, 6);
        _tile_loadd(7, pair + kTileHalves, kTileBytes);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
    _tile_stored(0, out, kTileBytes);
    _tile_stored(1, out + kTileFloats, kTileBytes);
    if (tiles == 2 && c + 1 == x.columns) {
      _tile_stored(2, out1, kTileBytes);
      _tile_stored(3, out1 + kTileFloats, kTileBytes);
    }
  }
}

}  // namespace
