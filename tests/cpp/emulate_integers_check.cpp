// clang-format off: it finds no fixed point for the tables of macros in this file.
// Self-test of csrc/emulate: integer arithmetic, shifts, comparisons and mask registers. Build and run: see csrc/emulate/README.md.
#include <algorithm>
#include <cstdlib>

#include "emulate_lanes.h"

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")

namespace {

void integer_arithmetic() {
  BINARY(add_epi8, u8, a + b) BINARY(add_epi16, u16, a + b) BINARY(add_epi32, u32, a + b) BINARY(add_epi64, u64, a + b)
  BINARY(sub_epi8, u8, a - b) BINARY(sub_epi16, u16, a - b) BINARY(sub_epi32, u32, a - b) BINARY(sub_epi64, u64, a - b)
  BINARY(adds_epi8, i8, clamp_to<i8>(a + b)) BINARY(adds_epu8, u8, clamp_to<u8>(a + b))
  BINARY(adds_epi16, i16, clamp_to<i16>(a + b)) BINARY(adds_epu16, u16, clamp_to<u16>(a + b))
  BINARY(subs_epi8, i8, clamp_to<i8>(a - b)) BINARY(subs_epu8, u8, clamp_to<u8>(a - b))
  BINARY(subs_epi16, i16, clamp_to<i16>(a - b)) BINARY(subs_epu16, u16, clamp_to<u16>(a - b))
  BINARY(mullo_epi16, i16, i64{a} * b) BINARY(mullo_epi32, i32, i64{a} * b) BINARY(mullo_epi64, i64, wide{a} * b)
  BINARY(mulhi_epi16, i16, (i64{a} * b) >> 16) BINARY(mulhi_epu16, u16, (i64{a} * b) >> 16)
  BINARY(mul_epi32, i64, i64{static_cast<i32>(a)} * i64{static_cast<i32>(b)})
  BINARY(mul_epu32, u64, u64{static_cast<u32>(a)} * u64{static_cast<u32>(b)})
  BINARY(min_epi8, i8, std::min(a, b)) BINARY(min_epu8, u8, std::min(a, b)) BINARY(min_epi16, i16, std::min(a, b))
  BINARY(min_epu16, u16, std::min(a, b)) BINARY(min_epi32, i32, std::min(a, b)) BINARY(min_epu32, u32, std::min(a, b))
  BINARY(min_epi64, i64, std::min(a, b)) BINARY(max_epi8, i8, std::max(a, b)) BINARY(max_epu8, u8, std::max(a, b))
  BINARY(max_epi16, i16, std::max(a, b)) BINARY(max_epu16, u16, std::max(a, b)) BINARY(max_epi32, i32, std::max(a, b))
  BINARY(max_epu32, u32, std::max(a, b)) BINARY(max_epi64, i64, std::max(a, b))
  BINARY(avg_epu8, u8, (a + b + 1) / 2) BINARY(avg_epu16, u16, (a + b + 1) / 2)
  BINARY(and_epi32, u32, a & b) BINARY(or_epi32, u32, a | b) BINARY(xor_epi32, u32, a ^ b) BINARY(andnot_epi32, u32, ~a & b)
  BINARY(and_epi64, u64, a & b) BINARY(or_epi64, u64, a | b) BINARY(xor_epi64, u64, a ^ b) BINARY(andnot_epi64, u64, ~a & b)
  UNARY(abs_epi8, i8, std::abs(int{a})) UNARY(abs_epi16, i16, std::abs(int{a})) UNARY(abs_epi32, i32, std::abs(i64{a}))
  UNARY(abs_epi64, i64, a < 0 ? u64{0} - static_cast<u64>(a) : static_cast<u64>(a))
  UNARY(popcnt_epi8, u8, __builtin_popcountll(a)) UNARY(popcnt_epi16, u16, __builtin_popcountll(a))
  UNARY(popcnt_epi32, u32, __builtin_popcountll(a)) UNARY(popcnt_epi64, u64, __builtin_popcountll(a))
  UNARY(lzcnt_epi32, u32, a ? __builtin_clz(a) : 32) UNARY(lzcnt_epi64, u64, a ? __builtin_clzll(a) : 64)
  AVX2_BINARY(mulhrs_epi16, i16) AVX2_BINARY(adds_epi8, i8) AVX2_BINARY(subs_epu16, u16) AVX2_BINARY(mul_epi32, i32)
  AVX2_BINARY(mul_epu32, i32) AVX2_BINARY(sad_epu8, u8) AVX2_BINARY(avg_epu8, u8) AVX2_UNARY(abs_epi8, i8) AVX2_UNARY(abs_epi32, i32)
  AVX2_BINARY(mulhi_epi16, i16) AVX2_BINARY(mulhi_epu16, i16) AVX2_BINARY(mullo_epi32, i32)
  for (int round = 0; round < rounds; ++round) {
    const Lanes<u64> x = integers<u64>(), y = integers<u64>(), z = integers<u64>();
    check(same(_mm512_and_si512(x, y), _mm512_and_epi64(x, y)) && same(_mm512_or_si512(x, y), _mm512_or_epi64(x, y)) &&
              same(_mm512_xor_si512(x, y), _mm512_xor_epi64(x, y)) && same(_mm512_andnot_si512(x, y), _mm512_andnot_epi64(x, y)),
          "si512 logic");
    const int imm = static_cast<int>(next() & 255);
    const Lanes<u64> r(_mm512_ternarylogic_epi32(x, y, z, imm));
    bool ok = true;
    for (int i = 0; i < 8; ++i)
      for (int p = 0; p < 64; ++p) {
        const int row = static_cast<int>((x.at[i] >> p & 1) << 2 | (y.at[i] >> p & 1) << 1 | (z.at[i] >> p & 1));
        ok = ok && static_cast<int>(r.at[i] >> p & 1) == (imm >> row & 1);
      }
    check(ok && same(r, Lanes<u64>(_mm512_ternarylogic_epi64(x, y, z, imm))), "ternarylogic");
    const Lanes<u8> o = integers<u8>(), m(_mm512_multishift_epi64_epi8(o, x));
    ok = true;
    for (int i = 0; i < 64; ++i) {
      u8 want = 0;
      for (int p = 0; p < 8; ++p) want = static_cast<u8>(want | (x.at[i / 8] >> ((o.at[i] + p) % 64) & 1) << p);
      ok = ok && m.at[i] == want;
    }
    check(ok, "multishift");
  }
}

void shifts() {
  SHIFT(slli_epi16, u16, n < w ? u64{a} << n : 0) SHIFT(slli_epi32, u32, n < w ? u64{a} << n : 0) SHIFT(slli_epi64, u64, n < w ? a << n : 0)
  SHIFT(srli_epi16, u16, n < w ? u64{a} >> n : 0) SHIFT(srli_epi32, u32, n < w ? u64{a} >> n : 0) SHIFT(srli_epi64, u64, n < w ? a >> n : 0)
  SHIFT(srai_epi16, i16, i64{a} >> std::min(n, w - 1)) SHIFT(srai_epi32, i32, i64{a} >> std::min(n, w - 1))
  SHIFT(srai_epi64, i64, a >> std::min(n, w - 1))
  BINARY(sllv_epi16, u16, b < 16 ? u64{a} << b : 0) BINARY(sllv_epi32, u32, b < 32 ? u64{a} << b : 0) BINARY(sllv_epi64, u64, b < 64 ? a << b : 0)
  BINARY(srlv_epi16, u16, b < 16 ? u64{a} >> b : 0) BINARY(srlv_epi32, u32, b < 32 ? u64{a} >> b : 0) BINARY(srlv_epi64, u64, b < 64 ? a >> b : 0)
  BINARY(srav_epi16, i16, i64{a} >> std::min<u64>(static_cast<u16>(b), 15)) BINARY(srav_epi32, i32, i64{a} >> std::min<u64>(static_cast<u32>(b), 31))
  BINARY(srav_epi64, i64, a >> std::min<u64>(static_cast<u64>(b), 63))
  AVX2_BINARY(sllv_epi32, i32) AVX2_BINARY(srlv_epi32, i32) AVX2_BINARY(srav_epi32, i32) AVX2_BINARY(sllv_epi64, i64)
  for (int n = 0; n < 64; ++n) {
    const Lanes<u32> x = integers<u32>(), r(_mm512_rol_epi32(x, n)), q(_mm512_ror_epi32(x, n));
    const Lanes<u64> y = integers<u64>(), s(_mm512_rol_epi64(y, n)), t(_mm512_ror_epi64(y, n));
    const __m128i count = _mm_cvtsi32_si128(n);
    bool ok = true;
    for (int i = 0; i < 16; ++i) ok = ok && r.at[i] == static_cast<u32>((u64{x.at[i]} << n % 32) | (u64{x.at[i]} << n % 32 >> 32)) && q.at[i] == static_cast<u32>(((u64{x.at[i]} << 32) | x.at[i]) >> n % 32);
    for (int i = 0; i < 8; ++i) ok = ok && s.at[i] == (n ? y.at[i] << n | y.at[i] >> (64 - n) : y.at[i]) && t.at[i] == (n ? y.at[i] >> n | y.at[i] << (64 - n) : y.at[i]);
    check(ok, "rotations");
    check(halves_are(_mm512_sll_epi32(x, count), _mm256_sll_epi32(x.low(), count), _mm256_sll_epi32(x.high(), count)) &&
              halves_are(_mm512_srl_epi32(x, count), _mm256_srl_epi32(x.low(), count), _mm256_srl_epi32(x.high(), count)) &&
              halves_are(_mm512_sra_epi32(x, count), _mm256_sra_epi32(x.low(), count), _mm256_sra_epi32(x.high(), count)) &&
              halves_are(_mm512_sll_epi64(y, count), _mm256_sll_epi64(y.low(), count), _mm256_sll_epi64(y.high(), count)) &&
              halves_are(_mm512_srl_epi64(y, count), _mm256_srl_epi64(y.low(), count), _mm256_srl_epi64(y.high(), count)),
          "shift by xmm");
  }
}

void comparisons_and_masks() {
  COMPARES(epi8, i8) COMPARES(epu8, u8) COMPARES(epi16, i16) COMPARES(epu16, u16) COMPARES(epi32, i32) COMPARES(epu32, u32) COMPARES(epi64, i64)
  COMPARE(test_epi8, u8, a & b) COMPARE(test_epi16, u16, a & b) COMPARE(test_epi32, u32, a & b) COMPARE(test_epi64, u64, a & b)
  COMPARE(testn_epi8, u8, !(a & b)) COMPARE(testn_epi16, u16, !(a & b)) COMPARE(testn_epi32, u32, !(a & b)) COMPARE(testn_epi64, u64, !(a & b))
#define PREDICATE(P)                                                                                                   \
  for (int round = 0; round < rounds; ++round) {                                                                       \
    const Lanes<float> x = floats(), y = next() % 3 ? floats() : x;                                                    \
    const unsigned want = static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(x.low_ps(), y.low_ps(), P))) |        \
                          static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(x.high_ps(), y.high_ps(), P))) << 8;  \
    check(_mm512_cmp_ps_mask(x, y, P) == want, "cmp_ps " #P);                                                          \
    check(_mm512_mask_cmp_ps_mask(0x0FF0, x, y, P) == (want & 0x0FF0), "mask cmp_ps " #P);                             \
    check(_mm256_cmp_ps_mask(x.low_ps(), y.low_ps(), P) == (want & 255), "256 cmp_ps " #P);                            \
  }
  PREDICATE(0) PREDICATE(1) PREDICATE(2) PREDICATE(3) PREDICATE(4) PREDICATE(5) PREDICATE(6) PREDICATE(7) PREDICATE(8)
  PREDICATE(9) PREDICATE(10) PREDICATE(11) PREDICATE(12) PREDICATE(13) PREDICATE(14) PREDICATE(15) PREDICATE(16)
  PREDICATE(17) PREDICATE(18) PREDICATE(19) PREDICATE(20) PREDICATE(21) PREDICATE(22) PREDICATE(23) PREDICATE(24)
  PREDICATE(25) PREDICATE(26) PREDICATE(27) PREDICATE(28) PREDICATE(29) PREDICATE(30) PREDICATE(31)
  for (int round = 0; round < rounds; ++round) {
    const Lanes<float> x = floats(), y = floats();
    check(_mm512_cmpeq_ps_mask(x, y) == _mm512_cmp_ps_mask(x, y, _CMP_EQ_OQ) && _mm512_cmpneq_ps_mask(x, y) == _mm512_cmp_ps_mask(x, y, _CMP_NEQ_UQ) &&
              _mm512_cmplt_ps_mask(x, y) == _mm512_cmp_ps_mask(x, y, _CMP_LT_OS) && _mm512_cmple_ps_mask(x, y) == _mm512_cmp_ps_mask(x, y, _CMP_LE_OS) &&
              _mm512_cmpnlt_ps_mask(x, y) == _mm512_cmp_ps_mask(x, y, _CMP_NLT_US) && _mm512_cmpnle_ps_mask(x, y) == _mm512_cmp_ps_mask(x, y, _CMP_NLE_US) &&
              _mm512_cmpord_ps_mask(x, y) == _mm512_cmp_ps_mask(x, y, _CMP_ORD_Q) && _mm512_cmpunord_ps_mask(x, y) == _mm512_cmp_ps_mask(x, y, _CMP_UNORD_Q),
          "named cmp_ps");
    unsigned infinite = 0, nan = 0;
    for (int i = 0; i < 16; ++i) infinite |= unsigned(std::isinf(x.at[i])) << i, nan |= unsigned(std::isnan(x.at[i])) << i;
    check(_mm512_fpclass_ps_mask(x, 0x18) == infinite && _mm512_fpclass_ps_mask(x, 0x81) == nan, "fpclass");

    const u64 a = next(), b = next();
    const auto a16 = static_cast<__mmask16>(a), b16 = static_cast<__mmask16>(b);
    check(_kand_mask16(a16, b16) == (a16 & b16) && _kor_mask64(a, b) == (a | b) && _kxor_mask8(u8(a), u8(b)) == u8(a ^ b) &&
              _kxnor_mask32(u32(a), u32(b)) == ~u32(a ^ b) && _kandn_mask64(a, b) == (~a & b) && _knot_mask16(a16) == u16(~a16) &&
              _kadd_mask8(u8(a), u8(b)) == u8(a + b) && _kshiftli_mask16(a16, 3) == u16(a16 << 3) && _kshiftri_mask64(a, 63) == a >> 63 &&
              _kshiftli_mask64(a, 64) == 0 && _kortestz_mask16_u8(0, 0) == 1 && _kortestz_mask16_u8(0, 4) == 0 &&
              _kortestc_mask8_u8(0xF0, 0x0F) == 1 && _kortestc_mask64_u8(a, ~a) == 1 && _ktestz_mask32_u8(5, 10) == 1 && _ktestc_mask32_u8(7, 5) == 1 &&
              _cvtmask16_u32(_cvtu32_mask16(0x12345)) == 0x2345 && _cvtmask64_u64(_cvtu64_mask64(a)) == a &&
              _mm512_kunpackb(0x12, 0x34) == 0x1234 && _mm512_kunpackd(1, 2) == 0x100000002ull && _mm512_kunpackw(1, 2) == 0x10002,
          "mask registers");
    __mmask64 memory = 0;
    _store_mask64(&memory, a);
    check(memory == a && _load_mask64(&memory) == a && _load_mask16(&memory) == a16, "mask memory");
    const Lanes<i8> m(_mm512_movm_epi8(a));
    bool ok = _mm512_movepi8_mask(m) == a;
    for (int i = 0; i < 64; ++i) ok = ok && m.at[i] == (a >> i & 1 ? -1 : 0);
    check(ok && _mm512_movepi32_mask(_mm512_movm_epi32(a16)) == a16 && _mm256_movepi8_mask(m.low()) == static_cast<u32>(a), "movm, movepi");
    check(_mm256_movepi8_mask(x.low()) == static_cast<u32>(_mm256_movemask_epi8(x.low())), "movepi8 avx2");
  }
}

}  // namespace

int main() {
  integer_arithmetic();
  shifts();
  comparisons_and_masks();
  return finish();
}

#pragma GCC pop_options
