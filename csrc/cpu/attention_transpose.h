// Transposes a matrix of floats. Read inside a target region; LEPTON_TRANSPOSE_8X8 says that AVX
// is there.
namespace {

#ifdef LEPTON_TRANSPOSE_8X8
inline void transpose_8x8(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
  __m256 r[8], t[8];
  for (int i = 0; i < 8; ++i) r[i] = _mm256_loadu_ps(from + i * from_stride);
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xEE);
    r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xEE);
  }
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(to + i * to_stride, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
    _mm256_storeu_ps(to + (i + 4) * to_stride, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
  }
}
#endif

// One column of a strip of rows.
inline void gather_column(const float* from, int64_t from_stride, int count, float* to) {
  for (int i = 0; i < count; ++i, from += from_stride) to[i] = *from;
}

// to[c][r] = from[r][c]. Counters are int and the function is not inlined: gcc 12 otherwise warns of
// iterations that no stride could reach.
[[gnu::noinline]] void transpose(const float* from, int64_t from_stride, int64_t all_rows,
                                 int64_t all_columns, float* to, int64_t to_stride) {
  const int rows = static_cast<int>(all_rows), columns = static_cast<int>(all_columns);
  int r = 0;
#ifdef LEPTON_TRANSPOSE_8X8
  for (; r + 8 <= rows; r += 8) {
    int c = 0;
    for (; c + 8 <= columns; c += 8) {
      transpose_8x8(from + r * from_stride + c, from_stride, to + c * to_stride + r, to_stride);
    }
    for (; c < columns; ++c) {
      gather_column(from + r * from_stride + c, from_stride, 8, to + c * to_stride + r);
    }
  }
#endif
  for (int c = 0; c < columns; ++c) {
    gather_column(from + r * from_stride + c, from_stride, rows - r, to + c * to_stride + r);
  }
}

}  // namespace
