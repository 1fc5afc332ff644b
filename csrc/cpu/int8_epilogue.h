// From int32 sums to outputs, once for every instruction set:
//   y = float(sum - zero point * weight sum) * weight scale      (added up over groups)
//   y = activation(y * row scale + bias) + residual
// Each step rounds once; no step is contracted. Read inside a target region, behind a simd_*.h,
// activation.h and int8_quantize.h.
namespace {

using lepton::Activation;
using lepton::Int8Block;
using lepton::Int8Linear;

constexpr int kStrip = 16;

template <Activation activation>
inline F32 activate(F32 y) {
  if (activation == Activation::relu) return relu_f32(y);
  if (activation == Activation::gelu) return gelu_f32(y);
  if (activation == Activation::gelu_tanh) return gelu_tanh_f32(y);
  if (activation == Activation::silu) return silu_f32(y);
  return y;
}

template <Activation activation, int n>
inline void activate_each(F32 (&y)[n]) {
  if constexpr (activation == Activation::gelu) {
    gelu_f32(y);
  } else if constexpr (activation != Activation::none) {
    for (F32& v : y) v = activate<activation>(v);
  }
}

inline void store_float(void* base, DType dtype, int64_t i, F32 y, int n) {
  const bool full = n >= F32::width;
  if (dtype == DType::f32) {
    float* p = static_cast<float*>(base) + i;
    full ? f32_store(p, y) : f32_store_n(p, y, n);
  } else if (dtype == DType::bf16) {
    uint16_t* p = static_cast<uint16_t*>(base) + i;
    full ? f32_store_bf16(p, y) : f32_store_bf16_n(p, y, n);
  } else {
    uint16_t* p = static_cast<uint16_t*>(base) + i;
    full ? f32_store_fp16(p, y) : f32_store_fp16_n(p, y, n);
  }
}

inline void store_int8(void* base, int64_t i, F32 y, int n, const Int8Linear& p) {
  const F32 level =
      f32_add(f32_round(f32_mul(y, f32_set(p.out_scale_inverse))), f32_set(p.out_zero_point));
  // NaN ends as -128: max returns its second operand.
  const F32 clamped = f32_min(f32_max(level, f32_set(-128.0f)), f32_set(127.0f));
  int8_t* q = static_cast<int8_t*>(base) + i;
  const I32 lanes = f32_to_i32(clamped);
  n >= F32::width ? i32_store_i8(q, lanes) : i32_store_i8_n(q, lanes, n);
}

// Weight scales of one group, zeros behind the last column of a strip.
inline void load_weight_scale(const Int8Linear& p, int64_t n0, int columns, int64_t group,
                              float* scale) {
  for (int j = 0; j < columns; ++j) {
    scale[j] = p.weight_scale[(n0 + j) * p.weight_scale_stride + group];
  }
  for (int j = columns; j % kStrip; ++j) scale[j] = 0.0f;
}

constexpr int64_t bytes_of(DType dtype) {
  return dtype == DType::i8 ? 1 : dtype == DType::f32 || dtype == DType::i32 ? 4 : 2;
}

// A row of the output is pages away from the next one: no hardware prefetcher follows.
inline void prefetch_output(const Int8Linear& p, int64_t m0, int rows, int64_t n0, int columns) {
  const int64_t size = bytes_of(p.out_dtype);
  for (int r = 0; r < rows; ++r) {
    const char* line = static_cast<const char*>(p.out) + ((m0 + r) * p.out_stride + n0) * size;
    for (int64_t i = 0; i < columns * size; i += 64) __builtin_prefetch(line + i, 1);
  }
}

// Outputs of a block that would take half the L2 from the operands, in whole lines.
inline bool goes_past_cache(const Int8Linear& p, const Int8Block& block) {
  constexpr int64_t kPastCacheBytes = 1 << 20;
  const int64_t size = bytes_of(p.out_dtype), row = p.out_stride * size;
  const auto first = reinterpret_cast<uintptr_t>(p.out) + block.n_begin * size;
  const int64_t bytes = (block.m_end - block.m_begin) * (block.n_end - block.n_begin) * size;
  return bytes > kPastCacheBytes && (first | static_cast<uintptr_t>(row)) % 64 == 0;
}

// One vector of sums, without the part that the zero point of its row adds.
inline I32 corrected_sum(const int32_t* c, const int32_t* weight_sum, int32_t zero) {
  const I32 sum = i32_load(c);
  if (zero == 0) return sum;
  return i32_sub(sum, i32_mul(i32_set(zero), i32_load(weight_sum)));
}

// Adds one group's share of `rows` x `columns` outputs to y; the first group sets it.
template <int ldc>
void add_group(const Int8Linear& p, int64_t m0, int rows, int64_t n0, int columns, int64_t group,
               int32_t zero_shift, const int32_t* c, float* y) {
  alignas(64) float scale[ldc];
  load_weight_scale(p, n0, columns, group, scale);
  const int32_t* weight_sum = p.weight_sum + group * p.n_padded + n0;
  for (int r = 0; r < rows; ++r) {
    const int32_t zero = p.row_zero[m0 + r] + zero_shift;
    for (int j = 0; j < columns; j += F32::width) {
      const I32 sum = corrected_sum(c + r * ldc + j, weight_sum + j, zero);
      const F32 part = f32_mul(f32_from_i32(sum), f32_load(scale + j));
      float* to = y + r * ldc + j;
      f32_store(to, group == 0 ? part : f32_add(f32_load(to), part));
    }
  }
}

template <Activation activation>
inline void finish_vector(const Int8Linear& p, F32 y, F32 row_scale, int64_t m, int64_t n,
                          int lanes) {
  y = f32_mul(y, row_scale);
  if (p.bias) {
    y = f32_add(y, lanes >= F32::width ? f32_load(p.bias + n) : f32_load_n(p.bias + n, lanes));
  }
  y = activate<activation>(y);
  if (p.residual) {
    y = f32_add(y, load_float(p.residual, p.residual_dtype, m * p.residual_stride + n, lanes));
  }
  if (p.out_dtype == DType::i8) {
    store_int8(p.out, m * p.out_stride + n, y, lanes, p);
  } else {
    store_float(p.out, p.out_dtype, m * p.out_stride + n, y, lanes);
  }
}

// Outputs of `rows` x `columns` from sums of a single group; `scale` as load_weight_scale fills it.
template <Activation activation, int ldc>
void finish_sums(const Int8Linear& p, int64_t m0, int rows, int64_t n0, int columns,
                 int32_t zero_shift, const int32_t* c, const float* scale) {
  const int32_t* weight_sum = p.weight_sum + n0;
  for (int r = 0; r < rows; ++r) {
    const int32_t zero = p.row_zero[m0 + r] + zero_shift;
    const F32 row_scale = f32_set(p.row_scale[m0 + r]);
    for (int j = 0; j < columns; j += F32::width) {
      const I32 sum = corrected_sum(c + r * ldc + j, weight_sum + j, zero);
      const F32 y = f32_mul(f32_from_i32(sum), f32_load(scale + j));
      finish_vector<activation>(p, y, row_scale, m0 + r, n0 + j, lanes_left(j, columns));
    }
  }
}

template <Activation activation, int ldc>
void finish_sums(const Int8Linear& p, int64_t m0, int rows, int64_t n0, int columns,
                 int32_t zero_shift, const int32_t* c) {
  alignas(64) float scale[ldc];
  load_weight_scale(p, n0, columns, 0, scale);
  finish_sums<activation, ldc>(p, m0, rows, n0, columns, zero_shift, c, scale);
}

// Outputs of `rows` x `columns` from scaled sums.
template <Activation activation>
void finish_scaled(const Int8Linear& p, int64_t m0, int rows, int64_t n0, int columns,
                   const float* y, int ldc) {
  for (int r = 0; r < rows; ++r) {
    const F32 row_scale = f32_set(p.row_scale[m0 + r]);
    for (int j = 0; j < columns; j += F32::width) {
      finish_vector<activation>(p, f32_load(y + r * ldc + j), row_scale, m0 + r, n0 + j,
                                lanes_left(j, columns));
    }
  }
}

// Plain int32 sums (int8_mm).
inline void finish_int32(const Int8Linear& p, int64_t m0, int rows, int64_t n0, int columns,
                         int32_t zero_shift, const int32_t* c, int ldc) {
  const int32_t* weight_sum = p.weight_sum + n0;
  for (int r = 0; r < rows; ++r) {
    int32_t* out = static_cast<int32_t*>(p.out) + (m0 + r) * p.out_stride + n0;
    for (int j = 0; j < columns; j += I32::width) {
      const I32 sum = corrected_sum(c + r * ldc + j, weight_sum + j, zero_shift);
      const int n = lanes_left(j, columns);
      n == I32::width ? i32_store(out + j, sum) : i32_store_n(out + j, sum, n);
    }
  }
}

// Calls body(std::integral_constant<Activation>) for the activation of p.
template <class Body>
inline void with_activation(Activation activation, const Body& body) {
  switch (activation) {
    case Activation::none: return body(std::integral_constant<Activation, Activation::none>{});
    case Activation::relu: return body(std::integral_constant<Activation, Activation::relu>{});
    case Activation::gelu: return body(std::integral_constant<Activation, Activation::gelu>{});
    case Activation::gelu_tanh:
      return body(std::integral_constant<Activation, Activation::gelu_tanh>{});
    case Activation::silu: return body(std::integral_constant<Activation, Activation::silu>{});
  }
}

}  // namespace
