// The vector vocabulary, 8 lanes. What each function promises: simd_generic.h.
// Read inside an AVX2 target region (AVX2, FMA, F16C).
namespace {

struct F32 {
  static constexpr int width = 8;
  __m256 v;
};

struct I32 {
  static constexpr int width = 8;
  __m256i v;
};

// All bits set in the lanes below n.
inline __m256i first_lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// AVX2 has no masked access narrower than 32 bits.
inline __m128i load_u16_n(const uint16_t* p, int n) {
  uint16_t lanes[8] = {};
  for (int i = 0; i < n; ++i) lanes[i] = p[i];
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(lanes));
}
inline void store_u16_n(uint16_t* p, __m128i a, int n) {
  uint16_t lanes[8];
  _mm_storeu_si128(reinterpret_cast<__m128i*>(lanes), a);
  for (int i = 0; i < n; ++i) p[i] = lanes[i];
}

inline I32 f32_bits(F32 a) { return {_mm256_castps_si256(a.v)}; }
inline F32 f32_from_bits(I32 a) { return {_mm256_castsi256_ps(a.v)}; }

inline I32 i32_set(int32_t x) { return {_mm256_set1_epi32(x)}; }
inline I32 i32_load(const int32_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))};
}
inline void i32_store(int32_t* p, I32 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.v);
}
inline I32 i32_load_n(const int32_t* p, int n) {
  return {_mm256_maskload_epi32(p, first_lanes(n))};
}
inline void i32_store_n(int32_t* p, I32 a, int n) {
  _mm256_maskstore_epi32(p, first_lanes(n), a.v);
}
inline I32 i32_add(I32 a, I32 b) { return {_mm256_add_epi32(a.v, b.v)}; }
inline I32 i32_sub(I32 a, I32 b) { return {_mm256_sub_epi32(a.v, b.v)}; }
inline I32 i32_mul(I32 a, I32 b) { return {_mm256_mullo_epi32(a.v, b.v)}; }
inline I32 i32_min(I32 a, I32 b) { return {_mm256_min_epi32(a.v, b.v)}; }
inline I32 i32_max(I32 a, I32 b) { return {_mm256_max_epi32(a.v, b.v)}; }
inline I32 i32_and(I32 a, I32 b) { return {_mm256_and_si256(a.v, b.v)}; }
template <int count>
inline I32 i32_shl(I32 a) {
  return {_mm256_slli_epi32(a.v, count)};
}
template <int count>
inline I32 i32_sra(I32 a) {
  return {_mm256_srai_epi32(a.v, count)};
}
template <int count>
inline I32 i32_srl(I32 a) {
  return {_mm256_srli_epi32(a.v, count)};
}

inline I32 i32_load_i8(const int8_t* p) {
  return {_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))};
}
inline I32 i32_load_i8_n(const int8_t* p, int n) {
  int8_t lanes[8] = {};
  for (int i = 0; i < n; ++i) lanes[i] = p[i];
  return i32_load_i8(lanes);
}
inline void i32_store_i8(int8_t* p, I32 a) {
  const __m128i v16 =
      _mm_packs_epi32(_mm256_castsi256_si128(a.v), _mm256_extracti128_si256(a.v, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(v16, v16));
}
inline void i32_store_i8_n(int8_t* p, I32 a, int n) {
  int8_t lanes[8];
  i32_store_i8(lanes, a);
  for (int i = 0; i < n; ++i) p[i] = lanes[i];
}
inline void i32_store_i8_x4(int8_t* p, I32 a, I32 b, I32 c, I32 d) {
  i32_store_i8(p, a);
  i32_store_i8(p + I32::width, b);
  i32_store_i8(p + 2 * I32::width, c);
  i32_store_i8(p + 3 * I32::width, d);
}

inline int32_t i32_reduce_max(I32 a) {
  const __m128i v4 = _mm_max_epi32(_mm256_castsi256_si128(a.v), _mm256_extracti128_si256(a.v, 1));
  const __m128i v2 = _mm_max_epi32(v4, _mm_shuffle_epi32(v4, 0x0E));
  return _mm_cvtsi128_si32(_mm_max_epi32(v2, _mm_shuffle_epi32(v2, 0x01)));
}

inline F32 f32_set(float x) { return {_mm256_set1_ps(x)}; }
inline F32 f32_zero() { return {_mm256_setzero_ps()}; }
inline F32 f32_load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline void f32_store(float* p, F32 a) { _mm256_storeu_ps(p, a.v); }
inline F32 f32_load_n(const float* p, int n) { return {_mm256_maskload_ps(p, first_lanes(n))}; }
inline void f32_store_n(float* p, F32 a, int n) { _mm256_maskstore_ps(p, first_lanes(n), a.v); }
inline F32 f32_add(F32 a, F32 b) { return {_mm256_add_ps(a.v, b.v)}; }
inline F32 f32_sub(F32 a, F32 b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline F32 f32_mul(F32 a, F32 b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline F32 f32_div(F32 a, F32 b) { return {_mm256_div_ps(a.v, b.v)}; }
inline F32 f32_fma(F32 a, F32 b, F32 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline F32 f32_fnma(F32 a, F32 b, F32 c) { return {_mm256_fnmadd_ps(a.v, b.v, c.v)}; }
inline F32 f32_sqrt(F32 a) { return {_mm256_sqrt_ps(a.v)}; }
inline F32 f32_min(F32 a, F32 b) { return {_mm256_min_ps(a.v, b.v)}; }
inline F32 f32_max(F32 a, F32 b) { return {_mm256_max_ps(a.v, b.v)}; }
inline F32 f32_abs(F32 a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
inline F32 f32_neg(F32 a) { return {_mm256_xor_ps(_mm256_set1_ps(-0.0f), a.v)}; }
inline F32 f32_copysign(F32 magnitude, F32 sign) {
  const __m256 top = _mm256_set1_ps(-0.0f);
  return {_mm256_or_ps(_mm256_andnot_ps(top, magnitude.v), _mm256_and_ps(top, sign.v))};
}
inline F32 f32_round(F32 a) {
  return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline I32 f32_to_i32(F32 a) { return {_mm256_cvtps_epi32(a.v)}; }
inline F32 f32_from_i32(I32 a) { return {_mm256_cvtepi32_ps(a.v)}; }
inline F32 f32_select_lt(F32 a, F32 b, F32 x, F32 y) {
  return {_mm256_blendv_ps(y.v, x.v, _mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ))};
}

inline float f32_reduce_add(F32 a) {
  const __m128 v4 = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  const __m128 v2 = _mm_add_ps(v4, _mm_movehl_ps(v4, v4));
  return _mm_cvtss_f32(_mm_add_ss(v2, _mm_movehdup_ps(v2)));
}
inline float f32_reduce_max(F32 a) {
  const __m128 v4 = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  const __m128 v2 = _mm_max_ps(v4, _mm_movehl_ps(v4, v4));
  return _mm_cvtss_f32(_mm_max_ss(v2, _mm_movehdup_ps(v2)));
}
inline float f32_reduce_min(F32 a) {
  const __m128 v4 = _mm_min_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  const __m128 v2 = _mm_min_ps(v4, _mm_movehl_ps(v4, v4));
  return _mm_cvtss_f32(_mm_min_ss(v2, _mm_movehdup_ps(v2)));
}

inline F32 f32_from_bf16_bits(__m128i a) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(a), 16))};
}
inline __m128i bf16_bits(F32 a) {
  const __m256i bits = _mm256_castps_si256(a.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i half = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF));
  const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, half), 16);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q));
  const __m256i out = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7FC0), nan);
  return _mm_packus_epi32(_mm256_castsi256_si128(out), _mm256_extracti128_si256(out, 1));
}
inline F32 f32_load_bf16(const uint16_t* p) {
  return f32_from_bf16_bits(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline F32 f32_load_bf16_n(const uint16_t* p, int n) {
  return f32_from_bf16_bits(load_u16_n(p, n));
}
inline void f32_store_bf16(uint16_t* p, F32 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bf16_bits(a));
}
inline void f32_store_bf16_n(uint16_t* p, F32 a, int n) { store_u16_n(p, bf16_bits(a), n); }
// 16 values as those at even and at odd places: no shuffles.
inline void f32_load_bf16_pair(const uint16_t* p, F32& even, F32& odd) {
  const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  even.v = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
  odd.v = _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32(-0x10000)));
}
// The value is the upper half; what is below is not cleared.
inline __m256i bf16_in_upper_half(F32 a) {
  const __m256i bits = _mm256_castps_si256(a.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i half = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q));
  return _mm256_blendv_epi8(_mm256_add_epi32(bits, half), _mm256_set1_epi32(0x7FC00000), nan);
}
inline void f32_store_bf16_pair(uint16_t* p, F32 even, F32 odd) {
  const __m256i low = _mm256_srli_epi32(bf16_in_upper_half(even), 16);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm256_blend_epi16(low, bf16_in_upper_half(odd), 0xAA));
}
inline F32 f32_load_fp16(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
inline F32 f32_load_fp16_n(const uint16_t* p, int n) { return {_mm256_cvtph_ps(load_u16_n(p, n))}; }
inline void f32_store_fp16(uint16_t* p, F32 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
inline void f32_store_fp16_n(uint16_t* p, F32 a, int n) {
  store_u16_n(p, _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT), n);
}

}  // namespace
