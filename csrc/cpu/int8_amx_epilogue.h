// The epilogue of int8 sums from AMX, spread over the products that come next: whole lines of
// outputs, and the rows that wait. Read inside the AMX target region, behind int8_epilogue.h.
namespace {

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

constexpr int kLeastShare = 4;  // rows at a time: each time what columns share is loaded

// Rows whose sums, `ldc` a row, are stored and wait for the epilogue.
template <class Epilogue, int ldc>
class PendingRows {
 public:
  PendingRows(const Int8Linear& p, const Int8Block& block)
      : p_(p), past_cache_(goes_past_cache(p, block)) {}

  int rows() const { return rows_; }
  bool past_cache() const { return past_cache_; }

  void set(int64_t m, int rows, int64_t n, int columns, const int32_t* sums, const float* scale) {
    m_ = m, n_ = n, rows_ = rows, columns_ = columns, sums_ = sums, scale_ = scale;
  }

  // At most `most` of them. Inlined: a call at every step of k costs a tenth.
  [[gnu::always_inline]] void finish(int most) {
    const int rows = rows_ < most ? rows_ : most;
    if (rows <= 0) return;
    Epilogue::template rows<ldc>(p_, m_, rows, n_, columns_, sums_, scale_, past_cache_);
    m_ += rows;
    sums_ += rows * ldc;
    rows_ -= rows;
  }

 private:
  const Int8Linear& p_;
  const bool past_cache_;
  int64_t m_ = 0, n_ = 0;
  int rows_ = 0, columns_ = 0;
  const int32_t* sums_ = nullptr;
  const float* scale_ = nullptr;
};

}  // namespace
