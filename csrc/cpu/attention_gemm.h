// Matrix products of attention. Every product keeps one operand's elements one by one, spread over
// a vector, and reads the other as vectors; so neither keys nor values need a transposed copy.
// Read behind attention_math.h and attention_ahead.h. The includer defines kVectors (vectors side
// by side in a tile) and kTileRows (rows of a tile), so that kVectors * kTileRows sums stay in
// registers.
namespace {

constexpr int kLanes = kVectors * F32::width;

// Where the single elements lie: element (row, k) at a + row * row_stride + k * k_stride, and every
// `k` steps one further block on. What the compiler knows of it saves registers for addresses.
enum class Layout {
  rows_dense,  // row_stride is 1
  panel,       // row_stride is kLanes, k_stride 1
  k_dense,     // k_stride is 1
};

struct Elements {
  const float* a;
  int64_t row_stride;
  int64_t k_stride;
  int64_t block_stride;
};

// c[r][lane] (+)= sum over blocks and k of a(r, k) * b[k][lane], rows `ldb` and `ldc` apart.
template <int rows, bool accumulate, Layout layout>
inline void tile(const Elements& e, int64_t blocks, int64_t k, const float* b, int64_t ldb,
                 float* c, int64_t ldc) {
  // Loops over the sums are unrolled at once: left for later, gcc keeps the sums in memory, too.
  F32 sum[rows][kVectors];
  LEPTON_UNROLL(16)
  for (int r = 0; r < rows; ++r) {
    LEPTON_UNROLL(16)
    for (int v = 0; v < kVectors; ++v) {
      sum[r][v] = accumulate ? f32_load(c + r * ldc + v * F32::width) : f32_zero();
    }
  }
  // A pointer to every third row: those between are one and two strides on, which an address of
  // x86 can hold.
  constexpr int kEvery = layout == Layout::k_dense ? 3 : rows;
  constexpr int kPointers = (rows + kEvery - 1) / kEvery;
  const int64_t row_stride = layout == Layout::rows_dense ? 1
                             : layout == Layout::panel    ? kLanes
                                                          : e.row_stride;
  const int64_t k_stride = layout == Layout::rows_dense ? e.k_stride : 1;
  for (int64_t block = 0; block < blocks; ++block) {
    const float* a[kPointers];
    LEPTON_UNROLL(16)
    for (int i = 0; i < kPointers; ++i) {
      a[i] = e.a + block * e.block_stride + i * kEvery * row_stride;
    }
    LEPTON_UNROLL(2)
    for (int64_t i = 0; i < k; ++i) {
      F32 y[kVectors];
      LEPTON_UNROLL(16)
      for (int v = 0; v < kVectors; ++v) y[v] = f32_load(b + v * F32::width);
      b += ldb;
      LEPTON_UNROLL(16)
      for (int r = 0; r < rows; ++r) {
        const F32 x = f32_set(a[r / kEvery][r % kEvery * row_stride]);
        LEPTON_UNROLL(16)
        for (int v = 0; v < kVectors; ++v) sum[r][v] = multiply_add(x, y[v], sum[r][v]);
      }
      LEPTON_UNROLL(16)
      for (int j = 0; j < kPointers; ++j) a[j] += k_stride;
    }
  }
  LEPTON_UNROLL(16)
  for (int r = 0; r < rows; ++r) {
    LEPTON_UNROLL(16)
    for (int v = 0; v < kVectors; ++v) f32_store(c + r * ldc + v * F32::width, sum[r][v]);
  }
}

template <int rows, bool accumulate, Layout layout>
inline void tile_of(int64_t count, const Elements& e, int64_t blocks, int64_t k, const float* b,
                    int64_t ldb, float* c, int64_t ldc) {
  if constexpr (rows > 0) {
    if (count == rows) return tile<rows, accumulate, layout>(e, blocks, k, b, ldb, c, ldc);
    tile_of<rows - 1, accumulate, layout>(count, e, blocks, k, b, ldb, c, ldc);
  }
}

inline int64_t tiles_of(int64_t rows) { return (rows + kTileRows - 1) / kTileRows; }

// Tiles are of equal height, give or take a row: one of a few rows has too few sums to hide the
// latency of a multiply-add.
template <bool accumulate, Layout layout>
[[gnu::noinline]] void multiply(int64_t rows, Elements e, int64_t blocks, int64_t k, const float* b,
                                int64_t ldb, float* c, int64_t ldc, RowsAhead& ahead) {
  for (int64_t tiles = tiles_of(rows); tiles > 0; --tiles) {
    const int64_t count = (rows + tiles - 1) / tiles;
    tile_of<kTileRows, accumulate, layout>(count, e, blocks, k, b, ldb, c, ldc);
    ahead.step();
    e.a += count * e.row_stride;
    c += count * ldc;
    rows -= count;
  }
}

// panel[r][lane] = sum over k of x[r][k] * y[k][lane]: scores, and gradients of probabilities.
inline void rows_times_panel(const float* x, int64_t ldx, int64_t rows, int64_t k, const float* y,
                             float* panel, RowsAhead& ahead) {
  multiply<false, Layout::k_dense>(rows, {x, ldx, 1, 0}, 1, k, y, kLanes, panel, kLanes, ahead);
}

// panel[c][lane] += sum over k of x[k][c] * y[k][lane]: outputs, and gradients of queries.
inline void columns_times_panel(const float* x, int64_t ldx, int64_t columns, int64_t k,
                                const float* y, float* panel, RowsAhead& ahead) {
  multiply<true, Layout::rows_dense>(columns, {x, 1, ldx, 0}, 1, k, y, kLanes, panel, kLanes,
                                     ahead);
}

// out[r][c] += sum over panels and their lanes of x[panel][r][lane] * y[c / kLanes][panel, lane][c
// % kLanes] for `columns` (a multiple of kLanes): gradients of keys and values. Groups of columns
// of y are `group_stride` apart.
inline void panels_times_rows(const float* x, int64_t panel_stride, int64_t panels, int64_t rows,
                              const float* y, int64_t group_stride, int64_t columns, float* out,
                              RowsAhead& ahead) {
  for (int64_t c = 0; c < columns; c += kLanes, y += group_stride) {
    multiply<true, Layout::panel>(rows, {x, kLanes, 1, panel_stride}, panels, kLanes, y, kLanes,
                                  out + c, columns, ahead);
  }
}

}  // namespace
