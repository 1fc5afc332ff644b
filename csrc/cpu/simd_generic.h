// The vector vocabulary, one lane, in standard C++: the definition of what
// simd_avx2.h and simd_avx512.h must do. Each of the three is read by a file of its
// own ISA, after <cmath>, <cstdint>, <cstring> and "cpu/intrinsics.h" and inside
// the target region; none has an include guard, because it is text for that place.
//
// Every operation is one IEEE-754 operation in the current rounding mode (nearest),
// so all three give the same bits, except the payload and sign of a NaN. That needs
// -ffp-contract=off: gcc may otherwise fuse an add with a mul, intrinsics included.
//
// Keep F32 and I32 out of std containers in an ISA file: their member functions are compiled
// at the end of the file, outside the region.
//
// In the _n forms 0 <= n <= width: the lanes from n on read as zero, and no memory
// past lane n-1 is touched.
namespace {

struct F32 {
  static constexpr int width = 1;
  float v;
};

struct I32 {
  static constexpr int width = 1;
  int32_t v;
};

inline I32 f32_bits(F32 a) {
  I32 r;
  std::memcpy(&r.v, &a.v, sizeof r.v);
  return r;
}
inline F32 f32_from_bits(I32 a) {
  F32 r;
  std::memcpy(&r.v, &a.v, sizeof r.v);
  return r;
}

// 32-bit integers. Sums, differences and products wrap.
inline I32 i32_wrap(uint32_t x) { return {static_cast<int32_t>(x)}; }
inline uint32_t u32(I32 a) { return static_cast<uint32_t>(a.v); }

inline I32 i32_set(int32_t x) { return {x}; }
inline I32 i32_load(const int32_t* p) { return {*p}; }
inline void i32_store(int32_t* p, I32 a) { *p = a.v; }
inline I32 i32_load_n(const int32_t* p, int n) { return {n > 0 ? *p : 0}; }
inline void i32_store_n(int32_t* p, I32 a, int n) {
  if (n > 0) *p = a.v;
}
inline I32 i32_add(I32 a, I32 b) { return i32_wrap(u32(a) + u32(b)); }
inline I32 i32_sub(I32 a, I32 b) { return i32_wrap(u32(a) - u32(b)); }
inline I32 i32_mul(I32 a, I32 b) { return i32_wrap(u32(a) * u32(b)); }
inline I32 i32_min(I32 a, I32 b) { return {a.v < b.v ? a.v : b.v}; }
inline I32 i32_max(I32 a, I32 b) { return {a.v > b.v ? a.v : b.v}; }
inline I32 i32_and(I32 a, I32 b) { return {a.v & b.v}; }
// Shift counts are 0..31. sra copies the sign bit down, srl shifts zeros in.
template <int count>
inline I32 i32_shl(I32 a) {
  return i32_wrap(u32(a) << count);
}
template <int count>
inline I32 i32_sra(I32 a) {
  return {a.v >> count};
}
template <int count>
inline I32 i32_srl(I32 a) {
  return i32_wrap(u32(a) >> count);
}
inline int32_t i32_reduce_max(I32 a) { return a.v; }

// int8 in memory: loads extend the sign, stores saturate.
inline I32 i32_load_i8(const int8_t* p) { return {*p}; }
inline I32 i32_load_i8_n(const int8_t* p, int n) { return {n > 0 ? *p : 0}; }
inline void i32_store_i8(int8_t* p, I32 a) {
  *p = static_cast<int8_t>(a.v < -128 ? -128 : a.v > 127 ? 127 : a.v);
}
inline void i32_store_i8_n(int8_t* p, I32 a, int n) {
  if (n > 0) i32_store_i8(p, a);
}
// Four vectors, one behind the other.
inline void i32_store_i8_x4(int8_t* p, I32 a, I32 b, I32 c, I32 d) {
  i32_store_i8(p, a);
  i32_store_i8(p + I32::width, b);
  i32_store_i8(p + 2 * I32::width, c);
  i32_store_i8(p + 3 * I32::width, d);
}

inline F32 f32_set(float x) { return {x}; }
inline F32 f32_zero() { return {0.0f}; }
inline F32 f32_load(const float* p) { return {*p}; }
inline void f32_store(float* p, F32 a) { *p = a.v; }
inline F32 f32_load_n(const float* p, int n) { return {n > 0 ? *p : 0.0f}; }
inline void f32_store_n(float* p, F32 a, int n) {
  if (n > 0) *p = a.v;
}
inline F32 f32_add(F32 a, F32 b) { return {a.v + b.v}; }
inline F32 f32_sub(F32 a, F32 b) { return {a.v - b.v}; }
inline F32 f32_mul(F32 a, F32 b) { return {a.v * b.v}; }
inline F32 f32_div(F32 a, F32 b) { return {a.v / b.v}; }
// a * b + c and c - a * b, rounded once.
inline F32 f32_fma(F32 a, F32 b, F32 c) { return {std::fma(a.v, b.v, c.v)}; }
inline F32 f32_fnma(F32 a, F32 b, F32 c) { return {std::fma(-a.v, b.v, c.v)}; }
inline F32 f32_sqrt(F32 a) { return {std::sqrt(a.v)}; }
// As minps and maxps: the second operand if either is NaN, or if both are zero.
inline F32 f32_min(F32 a, F32 b) { return {a.v < b.v ? a.v : b.v}; }
inline F32 f32_max(F32 a, F32 b) { return {a.v > b.v ? a.v : b.v}; }
inline F32 f32_abs(F32 a) { return f32_from_bits({f32_bits(a).v & 0x7FFFFFFF}); }
inline F32 f32_neg(F32 a) { return {-a.v}; }
inline F32 f32_copysign(F32 magnitude, F32 sign) { return {std::copysign(magnitude.v, sign.v)}; }
inline F32 f32_select_lt(F32 a, F32 b, F32 x, F32 y) { return {a.v < b.v ? x.v : y.v}; }
// To the nearest integer, ties to even.
inline F32 f32_round(F32 a) { return {std::nearbyint(a.v)}; }
// The same; NaN and what does not fit give INT32_MIN.
inline I32 f32_to_i32(F32 a) {
  const bool fits = a.v >= -2147483648.0f && a.v < 2147483648.0f;
  return {fits ? static_cast<int32_t>(std::lrint(a.v)) : INT32_MIN};
}
inline F32 f32_from_i32(I32 a) { return {static_cast<float>(a.v)}; }

// Across the lanes. Order: lane i with lane i + width/2, and so on down to one. So the
// sum of 16 numbers has the same bits on every width if wider groups are first added
// in that order too: 8 lanes take f32_reduce_add(f32_add(first 8, last 8)).
inline float f32_reduce_add(F32 a) { return a.v; }
inline float f32_reduce_max(F32 a) { return a.v; }
inline float f32_reduce_min(F32 a) { return a.v; }

// bfloat16: to nearest, ties to even; every NaN becomes 0x7FC0.
inline F32 f32_load_bf16(const uint16_t* p) {
  return f32_from_bits(i32_wrap(static_cast<uint32_t>(*p) << 16));
}
inline F32 f32_load_bf16_n(const uint16_t* p, int n) {
  return n > 0 ? f32_load_bf16(p) : f32_zero();
}
inline void f32_store_bf16(uint16_t* p, F32 a) {
  const uint32_t bits = u32(f32_bits(a));
  const uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  *p = static_cast<uint16_t>(a.v != a.v ? 0x7FC0 : rounded);
}
inline void f32_store_bf16_n(uint16_t* p, F32 a, int n) {
  if (n > 0) f32_store_bf16(p, a);
}
inline void f32_load_bf16_pair(const uint16_t* p, F32& even, F32& odd) {
  even = f32_load_bf16(p);
  odd = f32_load_bf16(p + F32::width);
}
inline void f32_store_bf16_pair(uint16_t* p, F32 even, F32 odd) {
  f32_store_bf16(p, even);
  f32_store_bf16(p + F32::width, odd);
}

// IEEE half precision, denormals included: to nearest, ties to even; NaN stays NaN
// (quiet, upper payload bits kept).
inline F32 f32_load_fp16(const uint16_t* p) {
  const uint32_t sign = (*p & 0x8000u) << 16;
  const uint32_t exponent = (*p >> 10) & 0x1F;
  const uint32_t fraction = *p & 0x3FF;
  if (exponent == 0) {
    const F32 magnitude = {static_cast<float>(fraction) * 0x1p-24f};
    return f32_from_bits(i32_wrap(u32(f32_bits(magnitude)) | sign));
  }
  if (exponent == 31) {
    const uint32_t quiet = fraction != 0 ? 0x400000u : 0u;
    return f32_from_bits(i32_wrap(sign | 0x7F800000u | quiet | fraction << 13));
  }
  return f32_from_bits(i32_wrap(sign | (exponent + 112) << 23 | fraction << 13));
}
inline F32 f32_load_fp16_n(const uint16_t* p, int n) {
  return n > 0 ? f32_load_fp16(p) : f32_zero();
}
inline void f32_store_fp16(uint16_t* p, F32 a) {
  const uint32_t bits = u32(f32_bits(a));
  const uint32_t sign = (bits >> 16) & 0x8000;
  const uint32_t magnitude = bits & 0x7FFFFFFF;
  uint32_t half;
  if (magnitude > 0x7F800000) {  // NaN
    half = 0x7E00 | ((magnitude >> 13) & 0x3FF);
  } else if (magnitude >= 0x477FF000) {  // 65520 and up round to infinity
    half = 0x7C00;
  } else if (magnitude >= 0x38800000) {  // 2^-14 and up: normal in half precision
    half = (magnitude - 0x38000000 + 0xFFF + ((magnitude >> 13) & 1)) >> 13;
  } else {
    // Adding 0.5 puts the last bit of a half denormal, 2^-24, at the last bit of a float.
    const F32 shifted = {f32_abs(a).v + 0.5f};
    half = u32(f32_bits(shifted)) - 0x3F000000;
  }
  *p = static_cast<uint16_t>(sign | half);
}
inline void f32_store_fp16_n(uint16_t* p, F32 a, int n) {
  if (n > 0) f32_store_fp16(p, a);
}

}  // namespace
