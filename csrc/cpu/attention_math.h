// Arithmetic of attention over the vocabulary of simd_*.h: powers of two, tanh, random words,
// rows of any dtype. Read after one of them, in the same target region.
namespace {

constexpr float kLog2E = 1.44269504088896341f;
constexpr float kLn2 = 0.693147180559945309f;
constexpr float kMinusInfinity = -__builtin_inff();

// One lane means no vector unit to speak of, and fma() there may be a library call.
inline F32 multiply_add(F32 a, F32 b, F32 c) {
  if constexpr (F32::width == 1) {
    return f32_add(f32_mul(a, b), c);
  } else {
    return f32_fma(a, b, c);
  }
}

// 2^x for x <= 127, relative error 1e-7; exactly 0 below -125.5, so that a hidden score of -inf
// leaves nothing behind and no denormal comes up, and exactly 1 at 0. NaN stays. The polynomial is
// a minimax fit of (2^f - 1) / f on [-1/2, 1/2], times 2.
inline F32 exp2_f32(F32 x) {
  // A float near 1.5 * 2^23 has a unit of 1: the sum is rounded to an integer n, and its lowest
  // bits are the exponent of 2^(n - 1), or of 0 where n = -126.
  const F32 shift = f32_set(12582912.0f + 126.0f);
  const F32 y = f32_max(f32_set(-126.0f), x);
  const F32 shifted = f32_add(y, shift);
  const F32 f = f32_sub(y, f32_sub(shifted, shift));
  F32 p = f32_set(0x1.5bba14p-9f);
  p = multiply_add(p, f, f32_set(0x1.3cea88p-6f));
  p = multiply_add(p, f, f32_set(0x1.c6b752p-4f));
  p = multiply_add(p, f, f32_set(0x1.ebf9bcp-2f));
  p = multiply_add(p, f, f32_set(0x1.62e42ap+0f));
  p = multiply_add(p, f, f32_set(2.0f));
  return f32_mul(p, f32_from_bits(i32_shl<23>(f32_bits(shifted))));
}

// log2(x) for normal x, error 1e-7; NaN stays. x = 2^e (1 + f) with f from sqrt(1/2) - 1 to
// sqrt(2) - 1; the polynomial is a minimax fit of log2(1 + f) / f.
inline F32 log2_f32(F32 x) {
  const I32 bits = f32_bits(x);
  const I32 e = i32_sra<23>(i32_sub(bits, i32_set(0x3F3504F3)));
  const F32 f = f32_sub(f32_from_bits(i32_sub(bits, i32_shl<23>(e))), f32_set(1.0f));
  F32 p = f32_set(0x1.132f14p-3f);
  p = multiply_add(p, f, f32_set(-0x1.b64bc4p-3f));
  p = multiply_add(p, f, f32_set(0x1.b90134p-3f));
  p = multiply_add(p, f, f32_set(-0x1.e707f8p-3f));
  p = multiply_add(p, f, f32_set(0x1.26c3p-2f));
  p = multiply_add(p, f, f32_set(-0x1.716be2p-2f));
  p = multiply_add(p, f, f32_set(0x1.ec7482p-2f));
  p = multiply_add(p, f, f32_set(-0x1.715452p-1f));
  p = multiply_add(p, f, f32_set(0x1.715476p+0f));
  const F32 not_a_number = f32_sub(x, x);
  return f32_add(multiply_add(p, f, f32_from_i32(e)), not_a_number);
}

// A Taylor polynomial near 0, where the quotient would cancel.
inline F32 tanh_f32(F32 x) {
  const F32 a = f32_abs(x);
  const F32 e = exp2_f32(f32_max(f32_set(-120.0f), f32_mul(a, f32_set(-2.0f * kLog2E))));
  const F32 one = f32_set(1.0f);
  const F32 far = f32_copysign(f32_div(f32_sub(one, e), f32_add(one, e)), x);
  const F32 square = f32_mul(x, x);
  F32 p = f32_set(62.0f / 2835.0f);
  p = multiply_add(p, square, f32_set(-17.0f / 315.0f));
  p = multiply_add(p, square, f32_set(2.0f / 15.0f));
  p = multiply_add(p, square, f32_set(-1.0f / 3.0f));
  const F32 near = multiply_add(f32_mul(p, square), x, x);
  return f32_select_lt(a, f32_set(0.3f), near, far);
}

// Philox-4x32-10: word t of counter (quad, row, plane, offset) for `lanes` rows.
template <int lanes>
inline void philox(uint64_t seed, uint32_t quad, const uint32_t* row, const uint32_t* plane,
                   uint32_t offset, uint32_t (*words)[lanes]) {
  uint32_t c0[lanes], c1[lanes], c2[lanes], c3[lanes];
  for (int i = 0; i < lanes; ++i) c0[i] = quad, c1[i] = row[i], c2[i] = plane[i], c3[i] = offset;
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    for (int i = 0; i < lanes; ++i) {
      const uint64_t a = uint64_t{0xD2511F53} * c0[i];
      const uint64_t b = uint64_t{0xCD9E8D57} * c2[i];
      c0[i] = static_cast<uint32_t>(b >> 32) ^ c1[i] ^ key0;
      c1[i] = static_cast<uint32_t>(b);
      c2[i] = static_cast<uint32_t>(a >> 32) ^ c3[i] ^ key1;
      c3[i] = static_cast<uint32_t>(a);
    }
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  for (int i = 0; i < lanes; ++i) {
    words[0][i] = c0[i], words[1][i] = c1[i], words[2][i] = c2[i], words[3][i] = c3[i];
  }
}

template <DType dtype>
inline F32 load_as_float(const void* p, int64_t i) {
  if constexpr (dtype == DType::f32) {
    return f32_load(static_cast<const float*>(p) + i);
  } else if constexpr (dtype == DType::bf16) {
    return f32_load_bf16(static_cast<const uint16_t*>(p) + i);
  } else if constexpr (dtype == DType::f16) {
    return f32_load_fp16(static_cast<const uint16_t*>(p) + i);
  } else {
    return f32_from_i32(i32_load_i8(static_cast<const int8_t*>(p) + i));
  }
}

template <DType dtype>
inline F32 load_as_float_n(const void* p, int64_t i, int n) {
  if constexpr (dtype == DType::f32) {
    return f32_load_n(static_cast<const float*>(p) + i, n);
  } else if constexpr (dtype == DType::bf16) {
    return f32_load_bf16_n(static_cast<const uint16_t*>(p) + i, n);
  } else if constexpr (dtype == DType::f16) {
    return f32_load_fp16_n(static_cast<const uint16_t*>(p) + i, n);
  } else {
    return f32_from_i32(i32_load_i8_n(static_cast<const int8_t*>(p) + i, n));
  }
}

inline void store_as(DType dtype, void* p, int64_t i, F32 x, int n) {
  if (dtype == DType::f32) {
    f32_store_n(static_cast<float*>(p) + i, x, n);
  } else if (dtype == DType::bf16) {
    f32_store_bf16_n(static_cast<uint16_t*>(p) + i, x, n);
  } else {
    f32_store_fp16_n(static_cast<uint16_t*>(p) + i, x, n);
  }
}

// Calls f with the dtype as a constant.
template <class F>
inline void with_dtype(DType dtype, const F& f) {
  switch (dtype) {
    case DType::f32: return f(std::integral_constant<DType, DType::f32>{});
    case DType::bf16: return f(std::integral_constant<DType, DType::bf16>{});
    case DType::f16: return f(std::integral_constant<DType, DType::f16>{});
    default: return f(std::integral_constant<DType, DType::i8>{});
  }
}

// n values to floats, times `factor`; zeros up to `padded`.
template <DType dtype>
inline void widen_row(const void* from, int64_t n, float factor, float* to, int64_t padded) {
  constexpr int width = F32::width;
  const F32 f = f32_set(factor);
  int64_t i = 0;
  for (; i + width <= n; i += width) f32_store(to + i, f32_mul(load_as_float<dtype>(from, i), f));
  if (i < n) {
    const int left = static_cast<int>(n - i);
    f32_store_n(to + i, f32_mul(load_as_float_n<dtype>(from, i, left), f), left);
    i = n;
  }
  for (; i < padded; ++i) to[i] = 0.0f;
}

// n floats, times `factor`, to memory of any float dtype.
inline void narrow_row(const float* from, int64_t n, float factor, void* to, DType dtype) {
  constexpr int width = F32::width;
  const F32 f = f32_set(factor);
  int64_t i = 0;
  for (; i + width <= n; i += width) {
    const F32 x = f32_mul(f32_load(from + i), f);
    if (dtype == DType::f32) {
      f32_store(static_cast<float*>(to) + i, x);
    } else if (dtype == DType::bf16) {
      f32_store_bf16(static_cast<uint16_t*>(to) + i, x);
    } else {
      f32_store_fp16(static_cast<uint16_t*>(to) + i, x);
    }
  }
  if (i < n) {
    const int left = static_cast<int>(n - i);
    store_as(dtype, to, i, f32_mul(f32_load_n(from + i, left), f), left);
  }
}

inline int64_t element_bytes(DType dtype) {
  return dtype == DType::f32 ? 4 : dtype == DType::i8 ? 1 : 2;
}

inline const void* element(const void* base, DType dtype, int64_t index) {
  return static_cast<const char*>(base) + index * element_bytes(dtype);
}

inline int64_t padded_to(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

}  // namespace
