// Comparisons and tests that give a mask.
#pragma once
#include "avx512_types.h"

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
namespace lepton_emulate {

// Predicates of VCMPPS (SDM, table of VCMPPD/VCMPPS). Bit 4 only changes which NaNs signal.
template <class F>
static inline bool float_predicate(F a, F b, int predicate) {
  const bool unordered = a != a || b != b;
  switch (predicate & 15) {
    case 0: return a == b;                 // EQ_OQ
    case 1: return a < b;                  // LT_OS
    case 2: return a <= b;                 // LE_OS
    case 3: return unordered;              // UNORD_Q
    case 4: return unordered || a != b;    // NEQ_UQ
    case 5: return unordered || a >= b;    // NLT_US
    case 6: return unordered || a > b;     // NLE_US
    case 7: return !unordered;             // ORD_Q
    case 8: return unordered || a == b;    // EQ_UQ
    case 9: return unordered || a < b;     // NGE_US
    case 10: return unordered || a <= b;   // NGT_US
    case 11: return false;                 // FALSE_OQ
    case 12: return !unordered && a != b;  // NEQ_OQ
    case 13: return a >= b;                // GE_OS
    case 14: return a > b;                 // GT_OS
    default: return true;                  // TRUE_UQ
  }
}

// Predicates of VPCMPD and its relatives (_MM_CMPINT_*).
template <class T>
static inline bool integer_predicate(T a, T b, int predicate) {
  switch (predicate & 7) {
    case 0: return a == b;
    case 1: return a < b;
    case 2: return a <= b;
    case 3: return false;
    case 4: return a != b;
    case 5: return a >= b;
    case 6: return a > b;
    default: return true;
  }
}

#define LEPTON_EMULATE_COMPARE(W, NAME, V, T, EXPR)                                             \
  static inline mask_t<T, sizeof(V)> W##_##NAME##_mask(const V& a_, const V& b_) {              \
    const auto x = lanes<T>(a_), y = lanes<T>(b_);                                              \
    std::uint64_t k = 0;                                                                        \
    for (int i = 0; i < x.size; ++i) {                                                          \
      const T a = x.at[i], b = y.at[i];                                                         \
      k |= std::uint64_t{static_cast<bool>(EXPR)} << i;                                         \
    }                                                                                           \
    return static_cast<mask_t<T, sizeof(V)>>(k);                                                \
  }                                                                                             \
  static inline mask_t<T, sizeof(V)> W##_mask_##NAME##_mask(mask_t<T, sizeof(V)> k, const V& a, \
                                                            const V& b) {                       \
    return static_cast<mask_t<T, sizeof(V)>>(k & W##_##NAME##_mask(a, b));                      \
  }
#define LEPTON_EMULATE_COMPARE_WITH(W, SUFFIX, V, T, PREDICATE)                             \
  static inline mask_t<T, sizeof(V)> W##_cmp_##SUFFIX##_mask(const V& a_, const V& b_,      \
                                                             int predicate) {               \
    const auto x = lanes<T>(a_), y = lanes<T>(b_);                                          \
    std::uint64_t k = 0;                                                                    \
    for (int i = 0; i < x.size; ++i)                                                        \
      k |= std::uint64_t{PREDICATE(x.at[i], y.at[i], predicate)} << i;                      \
    return static_cast<mask_t<T, sizeof(V)>>(k);                                            \
  }                                                                                         \
  static inline mask_t<T, sizeof(V)> W##_mask_cmp_##SUFFIX##_mask(                          \
      mask_t<T, sizeof(V)> k, const V& a, const V& b, int predicate) {                      \
    return static_cast<mask_t<T, sizeof(V)>>(k & W##_cmp_##SUFFIX##_mask(a, b, predicate)); \
  }
#define LEPTON_EMULATE_INTEGER_COMPARES(W, SUFFIX, V, T)   \
  LEPTON_EMULATE_COMPARE(W, cmpeq_##SUFFIX, V, T, a == b)  \
  LEPTON_EMULATE_COMPARE(W, cmpneq_##SUFFIX, V, T, a != b) \
  LEPTON_EMULATE_COMPARE(W, cmplt_##SUFFIX, V, T, a < b)   \
  LEPTON_EMULATE_COMPARE(W, cmple_##SUFFIX, V, T, a <= b)  \
  LEPTON_EMULATE_COMPARE(W, cmpgt_##SUFFIX, V, T, a > b)   \
  LEPTON_EMULATE_COMPARE(W, cmpge_##SUFFIX, V, T, a >= b)  \
  LEPTON_EMULATE_COMPARE_WITH(W, SUFFIX, V, T, integer_predicate)

LEPTON_EMULATE_INTEGER_COMPARES(mm512, epi8, m512i, std::int8_t)
#define _mm512_cmpeq_epi8_mask lepton_emulate::mm512_cmpeq_epi8_mask
#define _mm512_cmpneq_epi8_mask lepton_emulate::mm512_cmpneq_epi8_mask
#define _mm512_cmplt_epi8_mask lepton_emulate::mm512_cmplt_epi8_mask
#define _mm512_cmple_epi8_mask lepton_emulate::mm512_cmple_epi8_mask
#define _mm512_cmpgt_epi8_mask lepton_emulate::mm512_cmpgt_epi8_mask
#define _mm512_cmpge_epi8_mask lepton_emulate::mm512_cmpge_epi8_mask
#undef _mm512_cmp_epi8_mask
#define _mm512_cmp_epi8_mask lepton_emulate::mm512_cmp_epi8_mask
#define _mm512_mask_cmpeq_epi8_mask lepton_emulate::mm512_mask_cmpeq_epi8_mask
#define _mm512_mask_cmpneq_epi8_mask lepton_emulate::mm512_mask_cmpneq_epi8_mask
#define _mm512_mask_cmplt_epi8_mask lepton_emulate::mm512_mask_cmplt_epi8_mask
#define _mm512_mask_cmple_epi8_mask lepton_emulate::mm512_mask_cmple_epi8_mask
#define _mm512_mask_cmpgt_epi8_mask lepton_emulate::mm512_mask_cmpgt_epi8_mask
#define _mm512_mask_cmpge_epi8_mask lepton_emulate::mm512_mask_cmpge_epi8_mask
#undef _mm512_mask_cmp_epi8_mask
#define _mm512_mask_cmp_epi8_mask lepton_emulate::mm512_mask_cmp_epi8_mask
LEPTON_EMULATE_INTEGER_COMPARES(mm512, epu8, m512i, std::uint8_t)
#define _mm512_cmpeq_epu8_mask lepton_emulate::mm512_cmpeq_epu8_mask
#define _mm512_cmpneq_epu8_mask lepton_emulate::mm512_cmpneq_epu8_mask
#define _mm512_cmplt_epu8_mask lepton_emulate::mm512_cmplt_epu8_mask
#define _mm512_cmple_epu8_mask lepton_emulate::mm512_cmple_epu8_mask
#define _mm512_cmpgt_epu8_mask lepton_emulate::mm512_cmpgt_epu8_mask
#define _mm512_cmpge_epu8_mask lepton_emulate::mm512_cmpge_epu8_mask
#undef _mm512_cmp_epu8_mask
#define _mm512_cmp_epu8_mask lepton_emulate::mm512_cmp_epu8_mask
#define _mm512_mask_cmpeq_epu8_mask lepton_emulate::mm512_mask_cmpeq_epu8_mask
#define _mm512_mask_cmpneq_epu8_mask lepton_emulate::mm512_mask_cmpneq_epu8_mask
#define _mm512_mask_cmplt_epu8_mask lepton_emulate::mm512_mask_cmplt_epu8_mask
#define _mm512_mask_cmple_epu8_mask lepton_emulate::mm512_mask_cmple_epu8_mask
#define _mm512_mask_cmpgt_epu8_mask lepton_emulate::mm512_mask_cmpgt_epu8_mask
#define _mm512_mask_cmpge_epu8_mask lepton_emulate::mm512_mask_cmpge_epu8_mask
#undef _mm512_mask_cmp_epu8_mask
#define _mm512_mask_cmp_epu8_mask lepton_emulate::mm512_mask_cmp_epu8_mask
LEPTON_EMULATE_INTEGER_COMPARES(mm512, epi16, m512i, std::int16_t)
#define _mm512_cmpeq_epi16_mask lepton_emulate::mm512_cmpeq_epi16_mask
#define _mm512_cmpneq_epi16_mask lepton_emulate::mm512_cmpneq_epi16_mask
#define _mm512_cmplt_epi16_mask lepton_emulate::mm512_cmplt_epi16_mask
#define _mm512_cmple_epi16_mask lepton_emulate::mm512_cmple_epi16_mask
#define _mm512_cmpgt_epi16_mask lepton_emulate::mm512_cmpgt_epi16_mask
#define _mm512_cmpge_epi16_mask lepton_emulate::mm512_cmpge_epi16_mask
#undef _mm512_cmp_epi16_mask
#define _mm512_cmp_epi16_mask lepton_emulate::mm512_cmp_epi16_mask
#define _mm512_mask_cmpeq_epi16_mask lepton_emulate::mm512_mask_cmpeq_epi16_mask
#define _mm512_mask_cmpneq_epi16_mask lepton_emulate::mm512_mask_cmpneq_epi16_mask
#define _mm512_mask_cmplt_epi16_mask lepton_emulate::mm512_mask_cmplt_epi16_mask
#define _mm512_mask_cmple_epi16_mask lepton_emulate::mm512_mask_cmple_epi16_mask
#define _mm512_mask_cmpgt_epi16_mask lepton_emulate::mm512_mask_cmpgt_epi16_mask
#define _mm512_mask_cmpge_epi16_mask lepton_emulate::mm512_mask_cmpge_epi16_mask
#undef _mm512_mask_cmp_epi16_mask
#define _mm512_mask_cmp_epi16_mask lepton_emulate::mm512_mask_cmp_epi16_mask
LEPTON_EMULATE_INTEGER_COMPARES(mm512, epu16, m512i, std::uint16_t)
#define _mm512_cmpeq_epu16_mask lepton_emulate::mm512_cmpeq_epu16_mask
#define _mm512_cmpneq_epu16_mask lepton_emulate::mm512_cmpneq_epu16_mask
#define _mm512_cmplt_epu16_mask lepton_emulate::mm512_cmplt_epu16_mask
#define _mm512_cmple_epu16_mask lepton_emulate::mm512_cmple_epu16_mask
#define _mm512_cmpgt_epu16_mask lepton_emulate::mm512_cmpgt_epu16_mask
#define _mm512_cmpge_epu16_mask lepton_emulate::mm512_cmpge_epu16_mask
#undef _mm512_cmp_epu16_mask
#define _mm512_cmp_epu16_mask lepton_emulate::mm512_cmp_epu16_mask
#define _mm512_mask_cmpeq_epu16_mask lepton_emulate::mm512_mask_cmpeq_epu16_mask
#define _mm512_mask_cmpneq_epu16_mask lepton_emulate::mm512_mask_cmpneq_epu16_mask
#define _mm512_mask_cmplt_epu16_mask lepton_emulate::mm512_mask_cmplt_epu16_mask
#define _mm512_mask_cmple_epu16_mask lepton_emulate::mm512_mask_cmple_epu16_mask
#define _mm512_mask_cmpgt_epu16_mask lepton_emulate::mm512_mask_cmpgt_epu16_mask
#define _mm512_mask_cmpge_epu16_mask lepton_emulate::mm512_mask_cmpge_epu16_mask
#undef _mm512_mask_cmp_epu16_mask
#define _mm512_mask_cmp_epu16_mask lepton_emulate::mm512_mask_cmp_epu16_mask
LEPTON_EMULATE_INTEGER_COMPARES(mm512, epi32, m512i, std::int32_t)
#define _mm512_cmpeq_epi32_mask lepton_emulate::mm512_cmpeq_epi32_mask
#define _mm512_cmpneq_epi32_mask lepton_emulate::mm512_cmpneq_epi32_mask
#define _mm512_cmplt_epi32_mask lepton_emulate::mm512_cmplt_epi32_mask
#define _mm512_cmple_epi32_mask lepton_emulate::mm512_cmple_epi32_mask
#define _mm512_cmpgt_epi32_mask lepton_emulate::mm512_cmpgt_epi32_mask
#define _mm512_cmpge_epi32_mask lepton_emulate::mm512_cmpge_epi32_mask
#undef _mm512_cmp_epi32_mask
#define _mm512_cmp_epi32_mask lepton_emulate::mm512_cmp_epi32_mask
#define _mm512_mask_cmpeq_epi32_mask lepton_emulate::mm512_mask_cmpeq_epi32_mask
#define _mm512_mask_cmpneq_epi32_mask lepton_emulate::mm512_mask_cmpneq_epi32_mask
#define _mm512_mask_cmplt_epi32_mask lepton_emulate::mm512_mask_cmplt_epi32_mask
#define _mm512_mask_cmple_epi32_mask lepton_emulate::mm512_mask_cmple_epi32_mask
#define _mm512_mask_cmpgt_epi32_mask lepton_emulate::mm512_mask_cmpgt_epi32_mask
#define _mm512_mask_cmpge_epi32_mask lepton_emulate::mm512_mask_cmpge_epi32_mask
#undef _mm512_mask_cmp_epi32_mask
#define _mm512_mask_cmp_epi32_mask lepton_emulate::mm512_mask_cmp_epi32_mask
LEPTON_EMULATE_INTEGER_COMPARES(mm512, epu32, m512i, std::uint32_t)
#define _mm512_cmpeq_epu32_mask lepton_emulate::mm512_cmpeq_epu32_mask
#define _mm512_cmpneq_epu32_mask lepton_emulate::mm512_cmpneq_epu32_mask
#define _mm512_cmplt_epu32_mask lepton_emulate::mm512_cmplt_epu32_mask
#define _mm512_cmple_epu32_mask lepton_emulate::mm512_cmple_epu32_mask
#define _mm512_cmpgt_epu32_mask lepton_emulate::mm512_cmpgt_epu32_mask
#define _mm512_cmpge_epu32_mask lepton_emulate::mm512_cmpge_epu32_mask
#undef _mm512_cmp_epu32_mask
#define _mm512_cmp_epu32_mask lepton_emulate::mm512_cmp_epu32_mask
#define _mm512_mask_cmpeq_epu32_mask lepton_emulate::mm512_mask_cmpeq_epu32_mask
#define _mm512_mask_cmpneq_epu32_mask lepton_emulate::mm512_mask_cmpneq_epu32_mask
#define _mm512_mask_cmplt_epu32_mask lepton_emulate::mm512_mask_cmplt_epu32_mask
#define _mm512_mask_cmple_epu32_mask lepton_emulate::mm512_mask_cmple_epu32_mask
#define _mm512_mask_cmpgt_epu32_mask lepton_emulate::mm512_mask_cmpgt_epu32_mask
#define _mm512_mask_cmpge_epu32_mask lepton_emulate::mm512_mask_cmpge_epu32_mask
#undef _mm512_mask_cmp_epu32_mask
#define _mm512_mask_cmp_epu32_mask lepton_emulate::mm512_mask_cmp_epu32_mask
LEPTON_EMULATE_INTEGER_COMPARES(mm512, epi64, m512i, std::int64_t)
#define _mm512_cmpeq_epi64_mask lepton_emulate::mm512_cmpeq_epi64_mask
#define _mm512_cmpneq_epi64_mask lepton_emulate::mm512_cmpneq_epi64_mask
#define _mm512_cmplt_epi64_mask lepton_emulate::mm512_cmplt_epi64_mask
#define _mm512_cmple_epi64_mask lepton_emulate::mm512_cmple_epi64_mask
#define _mm512_cmpgt_epi64_mask lepton_emulate::mm512_cmpgt_epi64_mask
#define _mm512_cmpge_epi64_mask lepton_emulate::mm512_cmpge_epi64_mask
#undef _mm512_cmp_epi64_mask
#define _mm512_cmp_epi64_mask lepton_emulate::mm512_cmp_epi64_mask
#define _mm512_mask_cmpeq_epi64_mask lepton_emulate::mm512_mask_cmpeq_epi64_mask
#define _mm512_mask_cmpneq_epi64_mask lepton_emulate::mm512_mask_cmpneq_epi64_mask
#define _mm512_mask_cmplt_epi64_mask lepton_emulate::mm512_mask_cmplt_epi64_mask
#define _mm512_mask_cmple_epi64_mask lepton_emulate::mm512_mask_cmple_epi64_mask
#define _mm512_mask_cmpgt_epi64_mask lepton_emulate::mm512_mask_cmpgt_epi64_mask
#define _mm512_mask_cmpge_epi64_mask lepton_emulate::mm512_mask_cmpge_epi64_mask
#undef _mm512_mask_cmp_epi64_mask
#define _mm512_mask_cmp_epi64_mask lepton_emulate::mm512_mask_cmp_epi64_mask
LEPTON_EMULATE_INTEGER_COMPARES(mm256, epi8, __m256i, std::int8_t)
LEPTON_EMULATE_INTEGER_COMPARES(mm256, epu8, __m256i, std::uint8_t)
LEPTON_EMULATE_INTEGER_COMPARES(mm256, epi32, __m256i, std::int32_t)
#define _mm256_cmpeq_epi8_mask lepton_emulate::mm256_cmpeq_epi8_mask
#define _mm256_cmpeq_epu8_mask lepton_emulate::mm256_cmpeq_epu8_mask
#define _mm256_cmpeq_epi32_mask lepton_emulate::mm256_cmpeq_epi32_mask
#define _mm256_cmpneq_epi8_mask lepton_emulate::mm256_cmpneq_epi8_mask
#define _mm256_cmpneq_epu8_mask lepton_emulate::mm256_cmpneq_epu8_mask
#define _mm256_cmpneq_epi32_mask lepton_emulate::mm256_cmpneq_epi32_mask
#define _mm256_cmplt_epi8_mask lepton_emulate::mm256_cmplt_epi8_mask
#define _mm256_cmplt_epu8_mask lepton_emulate::mm256_cmplt_epu8_mask
#define _mm256_cmplt_epi32_mask lepton_emulate::mm256_cmplt_epi32_mask
#define _mm256_cmpgt_epi8_mask lepton_emulate::mm256_cmpgt_epi8_mask
#define _mm256_cmpgt_epu8_mask lepton_emulate::mm256_cmpgt_epu8_mask
#define _mm256_cmpgt_epi32_mask lepton_emulate::mm256_cmpgt_epi32_mask
LEPTON_EMULATE_INTEGER_COMPARES(mm, epi8, __m128i, std::int8_t)
#define _mm_cmpeq_epi8_mask lepton_emulate::mm_cmpeq_epi8_mask
#define _mm_cmpneq_epi8_mask lepton_emulate::mm_cmpneq_epi8_mask
#define _mm_cmplt_epi8_mask lepton_emulate::mm_cmplt_epi8_mask
#define _mm_cmpgt_epi8_mask lepton_emulate::mm_cmpgt_epi8_mask

LEPTON_EMULATE_COMPARE_WITH(mm512, ps, m512, float, float_predicate)
LEPTON_EMULATE_COMPARE_WITH(mm512, pd, m512d, double, float_predicate)
LEPTON_EMULATE_COMPARE_WITH(mm256, ps, __m256, float, float_predicate)
#undef _mm512_cmp_ps_mask
#define _mm512_cmp_ps_mask lepton_emulate::mm512_cmp_ps_mask
#undef _mm512_mask_cmp_ps_mask
#define _mm512_mask_cmp_ps_mask lepton_emulate::mm512_mask_cmp_ps_mask
#undef _mm256_cmp_ps_mask
#define _mm256_cmp_ps_mask lepton_emulate::mm256_cmp_ps_mask
#undef _mm256_mask_cmp_ps_mask
#define _mm256_mask_cmp_ps_mask lepton_emulate::mm256_mask_cmp_ps_mask
#undef _mm512_cmp_pd_mask
#define _mm512_cmp_pd_mask lepton_emulate::mm512_cmp_pd_mask
#undef _mm512_mask_cmp_pd_mask
#define _mm512_mask_cmp_pd_mask lepton_emulate::mm512_mask_cmp_pd_mask
LEPTON_EMULATE_COMPARE(mm512, cmpeq_ps, m512, float, a == b)
LEPTON_EMULATE_COMPARE(mm512, cmpneq_ps, m512, float, !(a == b))
LEPTON_EMULATE_COMPARE(mm512, cmplt_ps, m512, float, a < b)
LEPTON_EMULATE_COMPARE(mm512, cmple_ps, m512, float, a <= b)
LEPTON_EMULATE_COMPARE(mm512, cmpnlt_ps, m512, float, !(a < b))
LEPTON_EMULATE_COMPARE(mm512, cmpnle_ps, m512, float, !(a <= b))
LEPTON_EMULATE_COMPARE(mm512, cmpord_ps, m512, float, a == a && b == b)
LEPTON_EMULATE_COMPARE(mm512, cmpunord_ps, m512, float, a != a || b != b)
#define _mm512_cmpeq_ps_mask lepton_emulate::mm512_cmpeq_ps_mask
#define _mm512_cmpneq_ps_mask lepton_emulate::mm512_cmpneq_ps_mask
#define _mm512_cmplt_ps_mask lepton_emulate::mm512_cmplt_ps_mask
#define _mm512_cmple_ps_mask lepton_emulate::mm512_cmple_ps_mask
#define _mm512_cmpnlt_ps_mask lepton_emulate::mm512_cmpnlt_ps_mask
#define _mm512_cmpnle_ps_mask lepton_emulate::mm512_cmpnle_ps_mask
#define _mm512_cmpord_ps_mask lepton_emulate::mm512_cmpord_ps_mask
#define _mm512_cmpunord_ps_mask lepton_emulate::mm512_cmpunord_ps_mask
#define _mm512_mask_cmpeq_ps_mask lepton_emulate::mm512_mask_cmpeq_ps_mask
#define _mm512_mask_cmpneq_ps_mask lepton_emulate::mm512_mask_cmpneq_ps_mask
#define _mm512_mask_cmplt_ps_mask lepton_emulate::mm512_mask_cmplt_ps_mask
#define _mm512_mask_cmple_ps_mask lepton_emulate::mm512_mask_cmple_ps_mask
#define _mm512_mask_cmpnlt_ps_mask lepton_emulate::mm512_mask_cmpnlt_ps_mask
#define _mm512_mask_cmpnle_ps_mask lepton_emulate::mm512_mask_cmpnle_ps_mask
#define _mm512_mask_cmpord_ps_mask lepton_emulate::mm512_mask_cmpord_ps_mask
#define _mm512_mask_cmpunord_ps_mask lepton_emulate::mm512_mask_cmpunord_ps_mask

LEPTON_EMULATE_COMPARE(mm512, test_epi8, m512i, std::uint8_t, (a & b) != 0)
LEPTON_EMULATE_COMPARE(mm512, test_epi16, m512i, std::uint16_t, (a & b) != 0)
LEPTON_EMULATE_COMPARE(mm512, test_epi32, m512i, std::uint32_t, (a & b) != 0)
LEPTON_EMULATE_COMPARE(mm512, test_epi64, m512i, std::uint64_t, (a & b) != 0)
LEPTON_EMULATE_COMPARE(mm512, testn_epi8, m512i, std::uint8_t, (a & b) == 0)
LEPTON_EMULATE_COMPARE(mm512, testn_epi16, m512i, std::uint16_t, (a & b) == 0)
LEPTON_EMULATE_COMPARE(mm512, testn_epi32, m512i, std::uint32_t, (a & b) == 0)
LEPTON_EMULATE_COMPARE(mm512, testn_epi64, m512i, std::uint64_t, (a & b) == 0)
#define _mm512_test_epi8_mask lepton_emulate::mm512_test_epi8_mask
#define _mm512_test_epi16_mask lepton_emulate::mm512_test_epi16_mask
#define _mm512_test_epi32_mask lepton_emulate::mm512_test_epi32_mask
#define _mm512_test_epi64_mask lepton_emulate::mm512_test_epi64_mask
#define _mm512_testn_epi8_mask lepton_emulate::mm512_testn_epi8_mask
#define _mm512_testn_epi16_mask lepton_emulate::mm512_testn_epi16_mask
#define _mm512_testn_epi32_mask lepton_emulate::mm512_testn_epi32_mask
#define _mm512_testn_epi64_mask lepton_emulate::mm512_testn_epi64_mask
#define _mm512_mask_test_epi8_mask lepton_emulate::mm512_mask_test_epi8_mask
#define _mm512_mask_test_epi16_mask lepton_emulate::mm512_mask_test_epi16_mask
#define _mm512_mask_test_epi32_mask lepton_emulate::mm512_mask_test_epi32_mask
#define _mm512_mask_test_epi64_mask lepton_emulate::mm512_mask_test_epi64_mask
#define _mm512_mask_testn_epi8_mask lepton_emulate::mm512_mask_testn_epi8_mask
#define _mm512_mask_testn_epi16_mask lepton_emulate::mm512_mask_testn_epi16_mask
#define _mm512_mask_testn_epi32_mask lepton_emulate::mm512_mask_testn_epi32_mask
#define _mm512_mask_testn_epi64_mask lepton_emulate::mm512_mask_testn_epi64_mask

// VFPCLASSPS: imm bits are QNaN, +0, -0, +inf, -inf, denormal, finite negative, SNaN.
static inline __mmask16 mm512_fpclass_ps_mask(const m512& a, int imm) {
  const auto x = lanes<std::uint32_t>(a);
  unsigned k = 0;
  for (int i = 0; i < 16; ++i) {
    const std::uint32_t u = x.at[i], exponent = (u >> 23) & 255, fraction = u & 0x7FFFFF;
    const bool negative = u >> 31, nan = exponent == 255 && fraction, quiet = fraction >> 22;
    const bool infinite = exponent == 255 && !fraction, is_zero = !exponent && !fraction;
    const bool classes[8] = {nan && quiet,
                             is_zero && !negative,
                             is_zero && negative,
                             infinite && !negative,
                             infinite && negative,
                             !exponent && fraction,
                             negative && exponent != 255 && !is_zero,
                             nan && !quiet};
    for (int c = 0; c < 8; ++c)
      if (bit(static_cast<unsigned>(imm), c) && classes[c]) k |= 1u << i;
  }
  return static_cast<__mmask16>(k);
}
static inline __mmask16 mm512_mask_fpclass_ps_mask(__mmask16 k, const m512& a, int imm) {
  return static_cast<__mmask16>(k & mm512_fpclass_ps_mask(a, imm));
}
#undef _mm512_fpclass_ps_mask
#define _mm512_fpclass_ps_mask lepton_emulate::mm512_fpclass_ps_mask
#undef _mm512_mask_fpclass_ps_mask
#define _mm512_mask_fpclass_ps_mask lepton_emulate::mm512_mask_fpclass_ps_mask

}  // namespace lepton_emulate
#pragma GCC pop_options
