// Matrix products of attention. Every product keeps one operand's elements one by one, spread over
// a vector, and reads the other as vectors; so neither keys nor values need a transposed copy.
// Read behind attention_math.h. The includer defines kVectors (vectors side by side in a tile) and
// kTileRows (rows of a tile), so that kVectors * kTileRows sums stay in registers.
namespace {

constexpr int kLanes = kVectors * F32::width;

// Where the single elements lie: element (row, k) at a + row * row_stride + k * k_stride, and every
// `k` steps one further block on.
struct Elements {
  const float* a;
  int64_t row_stride;
  int64_t k_stride;
  int64_t block_stride;
};

// c[r][lane] (+)= sum over blocks and k of a(r, k) * b[k][lane], rows `ldb` and `ldc` apart.
template <int rows, bool accumulate, bool row_is_dense>
inline void tile(const Elements& e, int64_t blocks, int64_t k, const float* b, int64_t ldb, float* c,
                 int64_t ldc) {
  F32 sum[rows][kVectors];
  for (int r = 0; r < rows; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      sum[r][v] = accumulate ? f32_load(c + r * ldc + v * F32::width) : f32_zero();
    }
  }
  // One of the strides is 1: known to the compiler, it needs half the registers for addresses.
  const int64_t row_stride = row_is_dense ? 1 : e.row_stride;
  const int64_t k_stride = row_is_dense ? e.k_stride : 1;
  for (int64_t block = 0; block < blocks; ++block) {
    const float* a = e.a + block * e.block_stride;
#pragma GCC unroll 2
    for (int64_t i = 0; i < k; ++i) {
      F32 y[kVectors];
      for (int v = 0; v < kVectors; ++v) y[v] = f32_load(b + v * F32::width);
      b += ldb;
      for (int r = 0; r < rows; ++r) {
        const F32 x = f32_set(a[r * row_stride + i * k_stride]);
        for (int v = 0; v < kVectors; ++v) sum[r][v] = multiply_add(x, y[v], sum[r][v]);
      }
    }
  }
  for (int r = 0; r < rows; ++r) {
    for (int v = 0; v < kVectors; ++v) f32_store(c + r * ldc + v * F32::width, sum[r][v]);
  }
}

template <int rows, bool accumulate, bool row_is_dense>
inline void last_tile(int64_t left, const Elements& e, int64_t blocks, int64_t k, const float* b,
                      int64_t ldb, float* c, int64_t ldc) {
  if constexpr (rows > 0) {
    if (left == rows) return tile<rows, accumulate, row_is_dense>(e, blocks, k, b, ldb, c, ldc);
    last_tile<rows - 1, accumulate, row_is_dense>(left, e, blocks, k, b, ldb, c, ldc);
  }
}

template <bool accumulate, bool row_is_dense>
[[gnu::noinline]] void multiply(int64_t rows, Elements e, int64_t blocks, int64_t k, const float* b,
                     int64_t ldb, float* c, int64_t ldc) {
  const int64_t step = row_is_dense ? 1 : e.row_stride;
  while (rows >= kTileRows) {
    tile<kTileRows, accumulate, row_is_dense>(e, blocks, k, b, ldb, c, ldc);
    e.a += kTileRows * step;
    c += kTileRows * ldc;
    rows -= kTileRows;
  }
  last_tile<kTileRows - 1, accumulate, row_is_dense>(rows, e, blocks, k, b, ldb, c, ldc);
}

// panel[r][lane] = sum over k of x[r][k] * y[k][lane]: scores, and gradients of probabilities.
inline void rows_times_panel(const float* x, int64_t ldx, int64_t rows, int64_t k, const float* y,
                             float* panel) {
  multiply<false, false>(rows, {x, ldx, 1, 0}, 1, k, y, kLanes, panel, kLanes);
}

// panel[c][lane] += sum over k of x[k][c] * y[k][lane]: outputs, and gradients of queries.
inline void columns_times_panel(const float* x, int64_t ldx, int64_t columns, int64_t k,
                                const float* y, float* panel) {
  multiply<true, true>(columns, {x, 1, ldx, 0}, 1, k, y, kLanes, panel, kLanes);
}

// out[r][c] += sum over panels and their lanes of x[panel][r][lane] * y[panel, lane][c] for
// `columns` (a multiple of kLanes): gradients of keys and values.
inline void panels_times_rows(const float* x, int64_t panel_stride, int64_t panels, int64_t rows,
                              const float* y, int64_t columns, float* out) {
  for (int64_t c = 0; c < columns; c += kLanes) {
    multiply<true, false>(rows, {x, kLanes, 1, panel_stride}, panels, kLanes, y + c, columns,
                          out + c, columns);
  }
}

}  // namespace
