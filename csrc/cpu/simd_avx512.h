// The vector vocabulary, 16 lanes. What each function promises: simd_generic.h.
// Read inside an AVX-512 target region (F, BW, DQ, VL; no BF16: vcvtneps2bf16
// flushes denormals, so bfloat16 is rounded with integer operations).
namespace {

struct F32 {
  static constexpr int width = 16;
  __m512 v;
};

struct I32 {
  static constexpr int width = 16;
  __m512i v;
};

inline __mmask16 first_lanes(int n) { return static_cast<__mmask16>((1u << n) - 1u); }

inline I32 f32_bits(F32 a) { return {_mm512_castps_si512(a.v)}; }
inline F32 f32_from_bits(I32 a) { return {_mm512_castsi512_ps(a.v)}; }

inline I32 i32_set(int32_t x) { return {_mm512_set1_epi32(x)}; }
inline I32 i32_load(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
inline void i32_store(int32_t* p, I32 a) { _mm512_storeu_si512(p, a.v); }
inline I32 i32_load_n(const int32_t* p, int n) {
  return {_mm512_maskz_loadu_epi32(first_lanes(n), p)};
}
inline void i32_store_n(int32_t* p, I32 a, int n) {
  _mm512_mask_storeu_epi32(p, first_lanes(n), a.v);
}
inline I32 i32_add(I32 a, I32 b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline I32 i32_sub(I32 a, I32 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
inline I32 i32_mul(I32 a, I32 b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
inline I32 i32_min(I32 a, I32 b) { return {_mm512_min_epi32(a.v, b.v)}; }
inline I32 i32_max(I32 a, I32 b) { return {_mm512_max_epi32(a.v, b.v)}; }
inline I32 i32_and(I32 a, I32 b) { return {_mm512_and_si512(a.v, b.v)}; }
template <int count>
inline I32 i32_shl(I32 a) {
  return {_mm512_slli_epi32(a.v, count)};
}
template <int count>
inline I32 i32_sra(I32 a) {
  return {_mm512_srai_epi32(a.v, count)};
}
template <int count>
inline I32 i32_srl(I32 a) {
  return {_mm512_srli_epi32(a.v, count)};
}

inline I32 i32_load_i8(const int8_t* p) {
  return {_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
inline I32 i32_load_i8_n(const int8_t* p, int n) {
  return {_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(first_lanes(n), p))};
}
inline void i32_store_i8(int8_t* p, I32 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(a.v));
}
inline void i32_store_i8_n(int8_t* p, I32 a, int n) {
  _mm512_mask_cvtsepi32_storeu_epi8(p, first_lanes(n), a.v);
}
// Four vectors at once: saturated, one store.
inline __m512i i32_narrow_x4(I32 a, I32 b, I32 c, I32 d) {
  const __m512i quads =
      _mm512_packs_epi16(_mm512_packs_epi32(a.v, b.v), _mm512_packs_epi32(c.v, d.v));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_epi32(order, quads);
}
inline void i32_store_i8_x4(int8_t* p, I32 a, I32 b, I32 c, I32 d) {
  _mm512_storeu_si512(p, i32_narrow_x4(a, b, c, d));
}

inline int32_t i32_reduce_max(I32 a) {
  const __m256i v8 =
      _mm256_max_epi32(_mm512_castsi512_si256(a.v), _mm512_extracti64x4_epi64(a.v, 1));
  const __m128i v4 = _mm_max_epi32(_mm256_castsi256_si128(v8), _mm256_extracti128_si256(v8, 1));
  const __m128i v2 = _mm_max_epi32(v4, _mm_shuffle_epi32(v4, 0x0E));
  return _mm_cvtsi128_si32(_mm_max_epi32(v2, _mm_shuffle_epi32(v2, 0x01)));
}

inline F32 f32_set(float x) { return {_mm512_set1_ps(x)}; }
inline F32 f32_zero() { return {_mm512_setzero_ps()}; }
inline F32 f32_load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void f32_store(float* p, F32 a) { _mm512_storeu_ps(p, a.v); }
inline F32 f32_load_n(const float* p, int n) { return {_mm512_maskz_loadu_ps(first_lanes(n), p)}; }
inline void f32_store_n(float* p, F32 a, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), a.v); }
inline F32 f32_add(F32 a, F32 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F32 f32_sub(F32 a, F32 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F32 f32_mul(F32 a, F32 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F32 f32_div(F32 a, F32 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F32 f32_fma(F32 a, F32 b, F32 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F32 f32_fnma(F32 a, F32 b, F32 c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }
inline F32 f32_sqrt(F32 a) { return {_mm512_sqrt_ps(a.v)}; }
inline F32 f32_min(F32 a, F32 b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F32 f32_max(F32 a, F32 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F32 f32_abs(F32 a) { return f32_from_bits(i32_and(f32_bits(a), i32_set(0x7FFFFFFF))); }
inline F32 f32_neg(F32 a) {
  return {_mm512_castsi512_ps(
      _mm512_xor_si512(_mm512_castps_si512(a.v), _mm512_set1_epi32(INT32_MIN)))};
}
inline F32 f32_copysign(F32 magnitude, F32 sign) {
  const __m512i top = _mm512_set1_epi32(INT32_MIN);
  return {_mm512_castsi512_ps(
      _mm512_or_si512(_mm512_andnot_si512(top, _mm512_castps_si512(magnitude.v)),
                      _mm512_and_si512(top, _mm512_castps_si512(sign.v))))};
}
inline F32 f32_round(F32 a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT)}; }
inline I32 f32_to_i32(F32 a) { return {_mm512_cvtps_epi32(a.v)}; }
inline F32 f32_from_i32(I32 a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline F32 f32_select_lt(F32 a, F32 b, F32 x, F32 y) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), y.v, x.v)};
}

inline __m256 upper_half(__m512 a) {
  return _mm256_castsi256_ps(_mm512_extracti64x4_epi64(_mm512_castps_si512(a), 1));
}
inline float f32_reduce_add(F32 a) {
  const __m256 v8 = _mm256_add_ps(_mm512_castps512_ps256(a.v), upper_half(a.v));
  const __m128 v4 = _mm_add_ps(_mm256_castps256_ps128(v8), _mm256_extractf128_ps(v8, 1));
  const __m128 v2 = _mm_add_ps(v4, _mm_movehl_ps(v4, v4));
  return _mm_cvtss_f32(_mm_add_ss(v2, _mm_movehdup_ps(v2)));
}
inline float f32_reduce_max(F32 a) {
  const __m256 v8 = _mm256_max_ps(_mm512_castps512_ps256(a.v), upper_half(a.v));
  const __m128 v4 = _mm_max_ps(_mm256_castps256_ps128(v8), _mm256_extractf128_ps(v8, 1));
  const __m128 v2 = _mm_max_ps(v4, _mm_movehl_ps(v4, v4));
  return _mm_cvtss_f32(_mm_max_ss(v2, _mm_movehdup_ps(v2)));
}
inline float f32_reduce_min(F32 a) {
  const __m256 v8 = _mm256_min_ps(_mm512_castps512_ps256(a.v), upper_half(a.v));
  const __m128 v4 = _mm_min_ps(_mm256_castps256_ps128(v8), _mm256_extractf128_ps(v8, 1));
  const __m128 v2 = _mm_min_ps(v4, _mm_movehl_ps(v4, v4));
  return _mm_cvtss_f32(_mm_min_ss(v2, _mm_movehdup_ps(v2)));
}

inline __m512i bf16_bits(F32 a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF));
  const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, half), 16);
  return _mm512_mask_blend_epi32(_mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q), rounded,
                                 _mm512_set1_epi32(0x7FC0));
}
inline F32 f32_from_bf16_bits(__m256i a) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(a), 16))};
}
inline F32 f32_load_bf16(const uint16_t* p) {
  return f32_from_bf16_bits(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline F32 f32_load_bf16_n(const uint16_t* p, int n) {
  return f32_from_bf16_bits(_mm256_maskz_loadu_epi16(first_lanes(n), p));
}
inline void f32_store_bf16(uint16_t* p, F32 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(bf16_bits(a)));
}
inline void f32_store_bf16_n(uint16_t* p, F32 a, int n) {
  _mm256_mask_storeu_epi16(p, first_lanes(n), _mm512_cvtepi32_epi16(bf16_bits(a)));
}
// 32 values as those at even and at odd places: no shuffles.
inline void f32_load_bf16_pair(const uint16_t* p, F32& even, F32& odd) {
  const __m512i both = _mm512_loadu_si512(p);
  even.v = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
  odd.v = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(-0x10000)));
}
// The value is the upper half; what is below is not cleared.
inline __m512i bf16_in_upper_half(F32 a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF));
  return _mm512_mask_blend_epi32(_mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q),
                                 _mm512_add_epi32(bits, half), _mm512_set1_epi32(0x7FC00000));
}
inline void f32_store_bf16_pair(uint16_t* p, F32 even, F32 odd) {
  const __m512i low = _mm512_srli_epi32(bf16_in_upper_half(even), 16);
  _mm512_storeu_si512(p, _mm512_mask_blend_epi16(0xAAAAAAAA, low, bf16_in_upper_half(odd)));
}
inline F32 f32_load_fp16(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline F32 f32_load_fp16_n(const uint16_t* p, int n) {
  return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(n), p))};
}
inline void f32_store_fp16(uint16_t* p, F32 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
inline void f32_store_fp16_n(uint16_t* p, F32 a, int n) {
  _mm256_mask_storeu_epi16(p, first_lanes(n), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}

}  // namespace
