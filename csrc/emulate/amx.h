// AMX tiles without the hardware: see README.md. Include after <immintrin.h>; each _tile_* macro
// takes over gcc's. Semantics follow the Intel SDM (LDTILECFG, TILELOADD, TDPBSSD, TDPBF16PS, ...)
// with stricter checks: whatever would raise #GP or #UD, and whatever no kernel of ours should do,
// aborts with a message.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")

namespace lepton_emulate {

// Memory layout of LDTILECFG's operand for palette 1.
struct TileConfig {
  std::uint8_t palette;
  std::uint8_t start_row;
  std::uint8_t reserved_0[14];
  std::uint16_t colsb[8];
  std::uint16_t reserved_1[8];
  std::uint8_t rows[8];
  std::uint8_t reserved_2[8];
};
static_assert(sizeof(TileConfig) == 64, "layout of the tile configuration");

struct Tile {
  alignas(64) std::uint8_t row[16][64];
};

// Per thread, as on hardware. palette 0: not configured.
struct TileState {
  TileConfig config;
  Tile tile[8];
};
inline thread_local TileState tile_state = {};

// For tests: does this thread still hold a configuration?
inline bool tiles_are_configured() { return tile_state.config.palette != 0; }

[[noreturn]] inline void tile_fail(const char* what, int tile, const char* why) {
  std::fprintf(stderr, "lepton emulation: %s, tile %d: %s\n", what, tile, why);
  std::abort();
}

// The tile's number from the token in the source. gcc pastes that token into the assembly text, so
// it must be a literal digit there; here anything else fails to compile as well.
template <int N>
constexpr int tile_number(const char (&token)[N]) {
  return N == 2 && token[0] >= '0' && token[0] <= '9' ? token[0] - '0' : -1;
}

template <int N>
struct LiteralTile {
  static_assert(N >= 0, "a tile's number must be a literal digit");
  static constexpr int value = N;
};

inline Tile& use_tile(int t, const char* what) {
  if (t < 0 || t > 7) tile_fail(what, t, "there are tiles 0 to 7 only");
  if (!tiles_are_configured())
    tile_fail(what, t,
              "no configuration is loaded (before _tile_loadconfig or after _tile_release)");
  if (tile_state.config.rows[t] == 0)
    tile_fail(what, t, "the configuration gives this tile no rows");
  return tile_state.tile[t];
}

inline void configure_tiles(const TileConfig& c) {
  const char* const what = "_tile_loadconfig";
  if (c.palette != 1)
    tile_fail(what, 0,
              "palette must be 1 (if the source sets it: the compiler dropped the stores, see "
              "README.md)");
  if (c.start_row != 0) tile_fail(what, 0, "start_row must be 0");
  for (const std::uint8_t x : c.reserved_0)
    if (x != 0) tile_fail(what, 0, "reserved bytes must be 0");
  for (const std::uint16_t x : c.reserved_1)
    if (x != 0) tile_fail(what, 0, "colsb of tiles 8 to 15 must be 0");
  for (const std::uint8_t x : c.reserved_2)
    if (x != 0) tile_fail(what, 0, "rows of tiles 8 to 15 must be 0");
  for (int t = 0; t < 8; ++t) {
    if (c.rows[t] > 16) tile_fail(what, t, "more than 16 rows");
    if (c.colsb[t] > 64) tile_fail(what, t, "more than 64 bytes per row");
    if (c.colsb[t] % 4 != 0) tile_fail(what, t, "bytes per row must be a multiple of 4");
    if ((c.rows[t] == 0) != (c.colsb[t] == 0))
      tile_fail(what, t, "rows and bytes per row must both be 0 or neither");
  }
  std::memset(&tile_state, 0, sizeof tile_state);  // a new configuration zeroes the tiles
  tile_state.config = c;
}

inline void tile_storeconfig(void* config) {
  std::memcpy(config, &tile_state.config, sizeof(TileConfig));
}
inline void tile_release() { std::memset(&tile_state, 0, sizeof tile_state); }

inline void tile_store(int t, void* base, long stride) {
  const Tile& tile = use_tile(t, "_tile_stored");
  for (int m = 0; m < tile_state.config.rows[t]; ++m)
    std::memcpy(static_cast<char*>(base) + m * stride, tile.row[m], tile_state.config.colsb[t]);
}
inline void tile_zero(int t) { std::memset(&use_tile(t, "_tile_zero"), 0, sizeof(Tile)); }

// C (m x n) += A (m x k) * B (k x n), where a 4-byte element of A and of B holds 4 bytes or 2
// halves along k.
struct Operands {
  Tile& c;
  const Tile& a;
  const Tile& b;
  int m, k, n;
};
inline Operands operands(int c, int a, int b, const char* what) {
  Operands o = {use_tile(c, what), use_tile(a, what), use_tile(b, what), 0, 0, 0};
  const TileConfig& f = tile_state.config;
  if (c == a || c == b || a == b) tile_fail(what, c, "the three tiles must be different");
  if (f.rows[a] != f.rows[c]) tile_fail(what, a, "A must have as many rows as C");
  if (f.rows[b] * 4 != f.colsb[a])
    tile_fail(what, b, "B must have as many rows as A has 4-byte columns");
  if (f.colsb[b] != f.colsb[c]) tile_fail(what, b, "B must be as wide as C");
  o.m = f.rows[c];
  o.k = f.rows[b];
  o.n = f.colsb[c] / 4;
  return o;
}

// TDPB[SU][SU]D. Bytes past a tile's width are zero, so the loops run over all 16 columns.
template <class A, class B>
inline void tile_dot_int8(int c, int a, int b, const char* what) {
  const Operands o = operands(c, a, b, what);
  std::int32_t columns[16][4][16];  // B by k, byte within the element, n
  for (int k = 0; k < o.k; ++k)
    for (int j = 0; j < 4; ++j)
      for (int n = 0; n < 16; ++n) columns[k][j][n] = static_cast<B>(o.b.row[k][4 * n + j]);
  for (int m = 0; m < o.m; ++m) {
    std::uint32_t sum[16];  // wraps
    std::memcpy(sum, o.c.row[m], sizeof sum);
    for (int k = 0; k < o.k; ++k)
      for (int j = 0; j < 4; ++j) {
        const std::int32_t x = static_cast<A>(o.a.row[m][4 * k + j]);
        for (int n = 0; n < 16; ++n) sum[n] += static_cast<std::uint32_t>(x * columns[k][j][n]);
      }
    std::memcpy(o.c.row[m], sum, sizeof sum);
  }
}

// The instructions on 16-bit floats ignore MXCSR: to nearest even, denormals read as zero, denormal
// results flushed. The host computes just so with MXCSR set to 0x9FC0. Not inlined: arithmetic must
// not move out of that scope. Order (SDM): even and odd elements have sums of their own, from zero,
// each step fused; then even + odd; then C.
using Halves = float[16][32];
[[maybe_unused]] __attribute__((noinline)) static void dot_floats(const Operands& o,
                                                                  const Halves& a,
                                                                  const Halves& b) {
  for (int m = 0; m < o.m; ++m) {
    float even[16] = {}, odd[16] = {}, sum[16];
    for (int k = 0; k < o.k; ++k)
      for (int n = 0; n < 16; ++n) {
        even[n] = __builtin_fmaf(a[m][2 * k], b[k][n], even[n]);
        odd[n] = __builtin_fmaf(a[m][2 * k + 1], b[k][16 + n], odd[n]);
      }
    std::memcpy(sum, o.c.row[m], sizeof sum);
    for (int n = 0; n < o.n; ++n) {
      const float pair = even[n] + odd[n];
      sum[n] = sum[n] + pair;
    }
    std::memcpy(o.c.row[m], sum, sizeof sum);
  }
}
inline float from_bf16(std::uint16_t x) {
  const std::uint32_t u = std::uint32_t{x} << 16;
  float f;
  std::memcpy(&f, &u, sizeof f);
  return f;
}
// A denormal fp16 is a normal float, and VCVTPH2PS does not look at DAZ: nothing is flushed here.
inline float from_fp16(std::uint16_t x) { return _cvtsh_ss(x); }

inline void tile_dot_floats(int c, int a, int b, float (*convert)(std::uint16_t),
                            const char* what) {
  const Operands o = operands(c, a, b, what);
  Halves wide_a = {}, wide_b = {};  // B: the 16 even elements of a row, then the 16 odd ones
  for (int r = 0; r < 16; ++r)
    for (int i = 0; i < 32; ++i) {
      std::uint16_t x, y;
      std::memcpy(&x, o.a.row[r] + 2 * i, 2);
      std::memcpy(&y, o.b.row[r] + 2 * i, 2);
      wide_a[r][i] = convert(x);
      wide_b[r][(i % 2) * 16 + i / 2] = convert(y);
    }
  const unsigned saved = _mm_getcsr();
  _mm_setcsr(0x9FC0);
  dot_floats(o, wide_a, wide_b);
  _mm_setcsr(saved);
}

}  // namespace lepton_emulate

#pragma GCC pop_options

// Always inlined, hence compiled for the baseline: that goes into any caller.
namespace lepton_emulate {

// gcc 12's _tile_loadconfig shows the compiler 8 of the 64 bytes, its _tile_loadd none of the bytes
// that it reads, and neither clobbers memory: a kernel that fills a buffer and then loads it needs
// a barrier of its own. These copies have that shape too, so that the compiler may delay the same
// stores (README.md says how little that proves). AddressSanitizer, which does not see inside
// assembly, gets a plain copy.
__attribute__((always_inline)) inline void tile_loadconfig(const void* config) {
  TileConfig copy;
#if defined(__SANITIZE_ADDRESS__)
  std::memcpy(&copy, config, sizeof copy);
#else
  const void* from;
  void* to;
  long count;
  __asm__ volatile("leaq %4, %%rsi\n\trep movsb"
                   : "=&S"(from), "=D"(to), "=c"(count), "=m"(copy)
                   : "m"(*static_cast<const void* const*>(config)), "1"(&copy), "2"(64L));
#endif
  configure_tiles(copy);
}
__attribute__((always_inline)) inline void copy_tile_row(std::uint8_t (&row)[64], const void* from,
                                                         long bytes) {
#if defined(__SANITIZE_ADDRESS__)
  std::memcpy(row, from, static_cast<std::size_t>(bytes));
#else
  void* to = row;
  __asm__ volatile("rep movsb" : "+S"(from), "+D"(to), "+c"(bytes), "+m"(row));
#endif
}

__attribute__((always_inline)) inline void tile_load(int t, const void* base, long stride,
                                                     const char* what) {
  Tile& tile = use_tile(t, what);
  std::memset(&tile, 0, sizeof tile);
  for (int m = 0; m < tile_state.config.rows[t]; ++m)
    copy_tile_row(tile.row[m], static_cast<const char*>(base) + m * stride,
                  tile_state.config.colsb[t]);
}

}  // namespace lepton_emulate

// In two steps, like gcc's: an argument that is itself a macro is expanded before it becomes a
// token.
#define LEPTON_EMULATE_TILE(TOKEN) LEPTON_EMULATE_TILE_TOKEN(#TOKEN)
#define LEPTON_EMULATE_TILE_TOKEN(TEXT) \
  lepton_emulate::LiteralTile<lepton_emulate::tile_number(TEXT)>::value

#undef _tile_loadconfig
#define _tile_loadconfig lepton_emulate::tile_loadconfig
#undef _tile_storeconfig
#define _tile_storeconfig lepton_emulate::tile_storeconfig
#undef _tile_release
#define _tile_release lepton_emulate::tile_release
#undef _tile_loadd
#define _tile_loadd(T, BASE, STRIDE)                                                   \
  lepton_emulate::tile_load(LEPTON_EMULATE_TILE(T), (BASE), static_cast<long>(STRIDE), \
                            "_tile_loadd")
#undef _tile_stream_loadd
#define _tile_stream_loadd(T, BASE, STRIDE)                                            \
  lepton_emulate::tile_load(LEPTON_EMULATE_TILE(T), (BASE), static_cast<long>(STRIDE), \
                            "_tile_stream_loadd")
#undef _tile_stored
#define _tile_stored(T, BASE, STRIDE) \
  lepton_emulate::tile_store(LEPTON_EMULATE_TILE(T), (BASE), static_cast<long>(STRIDE))
#undef _tile_zero
#define _tile_zero(T) lepton_emulate::tile_zero(LEPTON_EMULATE_TILE(T))
#define LEPTON_EMULATE_TDP(C, A, B) \
  LEPTON_EMULATE_TILE(C), LEPTON_EMULATE_TILE(A), LEPTON_EMULATE_TILE(B)
#undef _tile_dpbssd
#define _tile_dpbssd(C, A, B)                                                          \
  lepton_emulate::tile_dot_int8<std::int8_t, std::int8_t>(LEPTON_EMULATE_TDP(C, A, B), \
                                                          "_tile_dpbssd")
#undef _tile_dpbsud
#define _tile_dpbsud(C, A, B)                                                           \
  lepton_emulate::tile_dot_int8<std::int8_t, std::uint8_t>(LEPTON_EMULATE_TDP(C, A, B), \
                                                           "_tile_dpbsud")
#undef _tile_dpbusd
#define _tile_dpbusd(C, A, B)                                                           \
  lepton_emulate::tile_dot_int8<std::uint8_t, std::int8_t>(LEPTON_EMULATE_TDP(C, A, B), \
                                                           "_tile_dpbusd")
#undef _tile_dpbuud
#define _tile_dpbuud(C, A, B)                                                            \
  lepton_emulate::tile_dot_int8<std::uint8_t, std::uint8_t>(LEPTON_EMULATE_TDP(C, A, B), \
                                                            "_tile_dpbuud")
#undef _tile_dpbf16ps
#define _tile_dpbf16ps(C, A, B)                                                           \
  lepton_emulate::tile_dot_floats(LEPTON_EMULATE_TDP(C, A, B), lepton_emulate::from_bf16, \
                                  "_tile_dpbf16ps")
#undef _tile_dpfp16ps
#define _tile_dpfp16ps(C, A, B)                                                           \
  lepton_emulate::tile_dot_floats(LEPTON_EMULATE_TDP(C, A, B), lepton_emulate::from_fp16, \
                                  "_tile_dpfp16ps")
