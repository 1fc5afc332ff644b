// clang-format off: it finds no fixed point for the tables of macros in this file.
// Self-test of csrc/emulate: memory, and moves between lanes. Build and run: see csrc/emulate/README.md.
#include <vector>

#include "emulate_lanes.h"

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")

namespace {

void memory() {
  for (int round = 0; round < rounds; ++round) {
    const Lanes<u8> x = integers<u8>();
    const u64 k = next();
    u8 buffer[130];
    std::memset(buffer, 0xEE, sizeof buffer);
    _mm512_mask_storeu_epi8(buffer + 1, k, x);
    bool ok = buffer[0] == 0xEE && buffer[65] == 0xEE;
    for (int i = 0; i < 64; ++i) ok = ok && buffer[1 + i] == (k >> i & 1 ? x.at[i] : 0xEE);
    const Lanes<u8> z(_mm512_maskz_loadu_epi8(k, buffer + 1)), m(_mm512_mask_loadu_epi8(_mm512_set1_epi8(7), k, buffer + 1));
    for (int i = 0; i < 64; ++i) ok = ok && z.at[i] == (k >> i & 1 ? x.at[i] : 0) && m.at[i] == (k >> i & 1 ? x.at[i] : 7);
    check(ok, "masked bytes");
    _mm256_mask_storeu_epi8(buffer, u32(k), x.low());
    _mm_mask_storeu_epi8(buffer + 40, u16(k), x.lowest());
    const Lanes<u8> z2(_mm256_maskz_loadu_epi8(u32(k), buffer)), z3(_mm_maskz_loadu_epi8(u16(k), buffer + 40));
    ok = true;
    for (int i = 0; i < 32; ++i) ok = ok && z2.at[i] == (k >> i & 1 ? x.at[i] : 0) && (i >= 16 || z3.at[i] == z2.at[i]);
    check(ok, "masked bytes, 256 and 128");
    Lanes<u16> words(x);
    const Lanes<u16> w(_mm256_maskz_loadu_epi16(u16(k), words.at));
    Lanes<float> f = floats(), g;
    std::memset(g.at, 0, sizeof g.at);
    _mm512_mask_storeu_ps(g.at, u16(k), f);
    const Lanes<float> h(_mm512_maskz_loadu_ps(u16(k), f.at));
    ok = same(g, h);
    for (int i = 0; i < 16; ++i) ok = ok && w.at[i] == (k >> i & 1 ? words.at[i] : 0) && (k >> i & 1 ? same(h.at[i], f.at[i]) : h.at[i] == 0);
    check(ok, "masked words and floats");
    alignas(64) u8 aligned[64];
    _mm512_store_si512(aligned, x);
    _mm512_stream_si512(reinterpret_cast<__m512i*>(aligned), _mm512_load_si512(aligned));
    check(std::memcmp(aligned, x.at, 64) == 0 && same(*reinterpret_cast<const __m512i*>(aligned), x), "aligned");

    float table[256];
    for (int i = 0; i < 256; ++i) table[i] = static_cast<float>(i);
    Lanes<i32> index;
    for (int i = 0; i < 16; ++i) index.at[i] = static_cast<i32>(x.at[i]) - 128;
    const Lanes<float> gathered(_mm512_i32gather_ps(index, table + 128, 4)), some(_mm512_mask_i32gather_ps(f, u16(k), index, table + 128, 4));
    ok = true;
    for (int i = 0; i < 16; ++i) ok = ok && gathered.at[i] == x.at[i] && (k >> i & 1 ? some.at[i] == x.at[i] : same(some.at[i], f.at[i]));
    _mm512_i32scatter_ps(table + 128, index, _mm512_set1_ps(-1), 4);
    for (int i = 0; i < 16; ++i) ok = ok && table[x.at[i]] == -1;
    check(ok, "gather, scatter");
  }
  const Lanes<i32> s(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0)), t(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)),
      four(_mm512_set4_epi32(3, 2, 1, 0)), masked(_mm512_maskz_set1_epi32(6, 9));
  bool ok = same(s, t) && masked.at[0] == 0 && masked.at[2] == 9;
  for (int i = 0; i < 16; ++i) ok = ok && s.at[i] == i && four.at[i] == i % 4;
  check(ok, "set");
}


template <class T> struct PermuteOf;
#define PERMUTE_OF(T, SUFFIX)                                                                                             \
  template <> struct PermuteOf<T> {                                                                                       \
    static __m512i one(__m512i i, __m512i a) { return _mm512_permutexvar_##SUFFIX(i, a); }                                \
    static __m512i two(__m512i a, __m512i i, __m512i b) { return _mm512_permutex2var_##SUFFIX(a, i, b); }                 \
    static __m512i zeroed(u64 k, __m512i a, __m512i i, __m512i b) { return _mm512_maskz_permutex2var_##SUFFIX(k, a, i, b); } \
    static __m512i kept(__m512i a, u64 k, __m512i i, __m512i b) { return _mm512_mask_permutex2var_##SUFFIX(a, k, i, b); }  \
    static __m512i indices(__m512i a, __m512i i, u64 k, __m512i b) { return _mm512_mask2_permutex2var_##SUFFIX(a, i, k, b); } \
    static __m512i expanded(__m512i s, u64 k, __m512i a) { return _mm512_mask_expand_##SUFFIX(s, k, a); }                 \
    static __m512i expanded_zero(u64 k, __m512i a) { return _mm512_maskz_expand_##SUFFIX(k, a); }                         \
    static __m512i expanded_load(u64 k, const void* p) { return _mm512_maskz_expandloadu_##SUFFIX(k, p); }                \
    static __m512i compressed(__m512i s, u64 k, __m512i a) { return _mm512_mask_compress_##SUFFIX(s, k, a); }             \
    static void compressed_store(void* p, u64 k, __m512i a) { _mm512_mask_compressstoreu_##SUFFIX(p, k, a); }             \
    static __m512i low(__m512i a, __m512i b) { return _mm512_unpacklo_##SUFFIX(a, b); }                                   \
    static __m512i high(__m512i a, __m512i b) { return _mm512_unpackhi_##SUFFIX(a, b); }                                  \
  };
PERMUTE_OF(u8, epi8) PERMUTE_OF(u16, epi16) PERMUTE_OF(u32, epi32) PERMUTE_OF(u64, epi64)

template <class T>
void permutes_of() {
  using P = PermuteOf<T>;
  constexpr int n = 64 / sizeof(T), per = 16 / sizeof(T);
  for (int round = 0; round < rounds; ++round) {
    const Lanes<T> x = integers<T>(), y = integers<T>(), s = integers<T>(), index = integers<T>();
    const u64 k = next();
    const auto on = [&](int i) { return (k >> i & 1) != 0; };
    const auto pick = [&](int i) { return index.at[i] % (2 * n) < n ? x.at[index.at[i] % n] : y.at[index.at[i] % n]; };
    LANES_ARE("permutexvar", T, P::one(index, x), x.at[index.at[i] % n])
    LANES_ARE("permutex2var", T, P::two(x, index, y), pick(i))
    LANES_ARE("maskz permutex2var", T, P::zeroed(k, x, index, y), on(i) ? pick(i) : 0)
    LANES_ARE("mask permutex2var", T, P::kept(x, k, index, y), on(i) ? pick(i) : x.at[i])
    LANES_ARE("mask2 permutex2var", T, P::indices(x, index, k, y), on(i) ? pick(i) : index.at[i])
    const u64 valid = n == 64 ? ~u64{0} : (u64{1} << n % 64) - 1;
    const auto before = [&](int i) { return __builtin_popcountll(k & ((u64{1} << i) - 1)); };
    const int count = __builtin_popcountll(k & valid);
    LANES_ARE("expand", T, P::expanded(s, k, x), on(i) ? x.at[before(i)] : s.at[i])
    LANES_ARE("maskz expand", T, P::expanded_zero(k, x), on(i) ? x.at[before(i)] : 0)
    std::vector<T> exact(x.at, x.at + count);  // AddressSanitizer sees one element too many
    LANES_ARE("expandloadu", T, P::expanded_load(k, exact.data()), on(i) ? x.at[before(i)] : 0)
    std::vector<T> packed;
    for (int i = 0; i < n; ++i) if (on(i)) packed.push_back(x.at[i]);
    LANES_ARE("compress", T, P::compressed(s, k, x), i < count ? packed[static_cast<std::size_t>(i)] : s.at[i])
    P::compressed_store(exact.data(), k, x);
    check(exact == packed, "compressstoreu");
    LANES_ARE("unpacklo", T, P::low(x, y), (i % 2 ? y : x).at[i / per * per + i % per / 2])
    LANES_ARE("unpackhi", T, P::high(x, y), (i % 2 ? y : x).at[i / per * per + per / 2 + i % per / 2])
  }
}

void lane_moves() {
  permutes_of<u8>();
  permutes_of<u16>();
  permutes_of<u32>();
  permutes_of<u64>();
  AVX2_BINARY(shuffle_epi8, u8) AVX2_BINARY(unpacklo_epi8, u8) AVX2_BINARY(unpackhi_epi16, u16) AVX2_BINARY(unpacklo_epi32, u32) AVX2_BINARY(unpackhi_epi64, u64)
  AVX2_BINARY(packs_epi16, i16) AVX2_BINARY(packus_epi16, i16) AVX2_BINARY(packs_epi32, i32) AVX2_BINARY(packus_epi32, i32)
#define EVERY_IMMEDIATE(DO) DO(0) DO(1) DO(27) DO(0x4E) DO(0x93) DO(0xB1) DO(0xD8) DO(0xE4) DO(255)
// _MM_PERM_ENUM is what the real _mm512_shuffle_epi32 takes.
#define SHUFFLE32(N) { const Lanes<u32> x = integers<u32>(); check(halves_are(_mm512_shuffle_epi32(x, static_cast<_MM_PERM_ENUM>(N)), _mm256_shuffle_epi32(x.low(), N), _mm256_shuffle_epi32(x.high(), N)), "shuffle_epi32"); }
#define OTHER_SHUFFLES(N) AVX2_IMMEDIATE(shufflelo_epi16, u16, N) AVX2_IMMEDIATE(shufflehi_epi16, u16, N)                                        \
  { const Lanes<u64> x = integers<u64>(); check(halves_are(_mm512_permutex_epi64(x, N), _mm256_permute4x64_epi64(x.low(), N), _mm256_permute4x64_epi64(x.high(), N)), "permutex_epi64"); } \
  { const Lanes<float> x = floats(), y = floats();                                                                                              \
    check(halves_are(_mm512_permute_ps(x, N), _mm256_permute_ps(x.low_ps(), N), _mm256_permute_ps(x.high_ps(), N)), "permute_ps");               \
    check(halves_are(_mm512_shuffle_ps(x, y, N), _mm256_shuffle_ps(x.low_ps(), y.low_ps(), N), _mm256_shuffle_ps(x.high_ps(), y.high_ps(), N)), "shuffle_ps"); \
    check(halves_are(_mm512_moveldup_ps(x), _mm256_moveldup_ps(x.low_ps()), _mm256_moveldup_ps(x.high_ps())) && halves_are(_mm512_movehdup_ps(x), _mm256_movehdup_ps(x.low_ps()), _mm256_movehdup_ps(x.high_ps())), "movedup"); \
    const Lanes<i32> control = integers<i32>();                                                                                                 \
    check(halves_are(_mm512_permutevar_ps(x, control), _mm256_permutevar_ps(x.low_ps(), control.low()), _mm256_permutevar_ps(x.high_ps(), control.high())), "permutevar_ps"); \
    const __m128* p = reinterpret_cast<const __m128*>(x.at); const __m128* q = reinterpret_cast<const __m128*>(y.at);                            \
    const __m512 r = _mm512_shuffle_f32x4(x, y, N); const __m128* o = reinterpret_cast<const __m128*>(&r);                                       \
    check(same(o[0], p[N & 3]) && same(o[1], p[(N >> 2) & 3]) && same(o[2], q[(N >> 4) & 3]) && same(o[3], q[(N >> 6) & 3]), "shuffle_f32x4"); }
  EVERY_IMMEDIATE(SHUFFLE32)
  EVERY_IMMEDIATE(OTHER_SHUFFLES)
#define BYTES(N)                                                                                                                 \
  { const Lanes<u8> x = integers<u8>(), y = integers<u8>();                                                                      \
    check(halves_are(_mm512_alignr_epi8(x, y, N), _mm256_alignr_epi8(x.low(), y.low(), N), _mm256_alignr_epi8(x.high(), y.high(), N)), "alignr_epi8"); \
    check(halves_are(_mm512_bsrli_epi128(x, N), _mm256_bsrli_epi128(x.low(), N), _mm256_bsrli_epi128(x.high(), N)), "bsrli");     \
    check(halves_are(_mm512_bslli_epi128(x, N), _mm256_bslli_epi128(x.low(), N), _mm256_bslli_epi128(x.high(), N)), "bslli"); }
  BYTES(0) BYTES(1) BYTES(7) BYTES(8) BYTES(15) BYTES(16)
#define ALIGN_BYTES(N) { const Lanes<u8> x = integers<u8>(), y = integers<u8>(); check(halves_are(_mm512_alignr_epi8(x, y, N), _mm256_alignr_epi8(x.low(), y.low(), N), _mm256_alignr_epi8(x.high(), y.high(), N)), "alignr_epi8 long"); }
  ALIGN_BYTES(17) ALIGN_BYTES(31) ALIGN_BYTES(32)
  for (int n = 0; n < 16; ++n) {
    const Lanes<u32> x = integers<u32>(), y = integers<u32>();
    LANES_ARE("alignr_epi32", u32, _mm512_alignr_epi32(x, y, n), i + n < 16 ? y.at[i + n] : x.at[i + n - 16])
    const Lanes<u64> p(x), q(y);
    LANES_ARE("alignr_epi64", u64, _mm512_alignr_epi64(x, y, n), i + n % 8 < 8 ? q.at[i + n % 8] : p.at[i + n % 8 - 8])
    const __m128i part = _mm512_extracti32x4_epi32(x, n % 4);
    check(std::memcmp(&part, x.at + n % 4 * 4, 16) == 0, "extracti32x4");
    LANES_ARE("inserti32x4", u32, _mm512_inserti32x4(x, y.lowest(), n % 4), i / 4 == n % 4 ? y.at[i % 4] : x.at[i])
    const __m256i half = _mm512_extracti64x4_epi64(x, n % 2), eight = _mm512_extracti32x8_epi32(x, n % 2);
    check(same(half, n % 2 ? x.high() : x.low()) && same(eight, half), "extract halves");
    LANES_ARE("inserti64x4", u32, _mm512_inserti64x4(x, y.low(), n % 2), i / 8 == n % 2 ? y.at[i % 8] : x.at[i])
    LANES_ARE("broadcastd", u32, _mm512_broadcastd_epi32(x.lowest()), x.at[0] + 0 * u32(i))
    LANES_ARE("broadcast_i32x4", u32, _mm512_broadcast_i32x4(x.lowest()), x.at[i % 4])
    LANES_ARE("broadcast_i64x4", u32, _mm512_broadcast_i64x4(x.low()), x.at[i % 8])
    LANES_ARE("maskz broadcastd", u32, _mm512_maskz_broadcastd_epi32(0xA5A5, x.lowest()), 0xA5A5 >> i & 1 ? x.at[0] : 0)
    LANES_ARE("zext", u32, _mm512_zextsi256_si512(x.low()), i < 8 ? x.at[i] : 0)
    check(same(_mm512_castsi512_si256(x), x.low()) && same(_mm512_castps_si512(_mm512_castsi512_ps(x)), x), "casts");
    const Lanes<float> cast(_mm512_castsi256_si512(x.low())), cast_ps(_mm512_castps256_ps512(x.low_ps())), cast4(_mm512_castsi128_si512(x.lowest()));
    check(std::memcmp(cast.at, x.at, 32) == 0 && std::isnan(cast.at[8]) && std::isnan(cast.at[15]) && std::memcmp(cast_ps.at, x.at, 32) == 0 &&
              std::isnan(cast_ps.at[8]) && std::memcmp(cast4.at, x.at, 16) == 0 && std::isnan(cast4.at[4]), "poison above a widening cast");
    const __m256i mix = _mm256_permutex2var_epi32(x.low(), y.low(), x.high());
    const Lanes<u32> m(mix);
    bool ok = true;
    for (int i = 0; i < 8; ++i) ok = ok && m.at[i] == x.at[y.at[i] % 16];
    check(ok, "256 permutex2var");
  }
}

}  // namespace

int main() {
  memory();
  lane_moves();
  return finish();
}

#pragma GCC pop_options
