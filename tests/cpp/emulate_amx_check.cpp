// clang-format off: it finds no fixed point for the tables of macros in this file.
// Self-test of csrc/emulate: AMX products, and what aborts because the instruction would fault. Build and run: see csrc/emulate/README.md.
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "emulate_lanes.h"

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")

namespace {

struct Config {  // the test's own idea of the 64 bytes
  u8 bytes[64] = {};
  void tile(int t, int rows, int colsb) {
    bytes[0] = 1;
    bytes[16 + 2 * t] = static_cast<u8>(colsb & 255);
    bytes[17 + 2 * t] = static_cast<u8>(colsb >> 8);
    bytes[48 + t] = static_cast<u8>(rows);
  }
};
// The barrier that the kernels need as well.
void load_config(const Config& c) {
  __asm__ volatile("" ::: "memory");
  _tile_loadconfig(c.bytes);
}

template <class A, class B>
void amx_int8(void (*multiply)(), const char* what) {
  for (int round = 0; round < rounds; ++round) {
    const int m = 1 + int(next() % 16), k = 1 + int(next() % 16), n = 1 + int(next() % 16);
    Config c;
    c.tile(0, m, 4 * n);
    c.tile(1, m, 4 * k);
    c.tile(2, k, 4 * n);
    A a[16][70];
    B b[16][70];
    i32 out[16][18], want[16][18];
    for (auto& row : a) for (A& x : row) x = next() % 4 ? static_cast<A>(next()) : std::numeric_limits<A>::min();
    for (auto& row : b) for (B& x : row) x = next() % 4 ? static_cast<B>(next()) : std::numeric_limits<B>::max();
    for (auto& row : out) for (i32& x : row) x = static_cast<i32>(next());
    std::memcpy(want, out, sizeof want);
    for (int i = 0; i < m; ++i)
      for (int j = 0; j < n; ++j) {
        u32 sum = static_cast<u32>(out[i][j]);
        for (int l = 0; l < 4 * k; ++l) sum += static_cast<u32>(i32{a[i][l]} * i32{b[l / 4][4 * j + l % 4]});
        want[i][j] = static_cast<i32>(sum);
      }
    load_config(c);
    __asm__ volatile("" ::: "memory");
    _tile_loadd(0, out, sizeof out[0]);
    _tile_stream_loadd(1, a, sizeof a[0]);
    _tile_loadd(2, b, sizeof b[0]);
    multiply();
    _tile_stored(0, out, sizeof out[0]);
    check(std::memcmp(out, want, sizeof out) == 0, what);
    _tile_release();
  }
}

void amx_floats(bool half) {
  const auto flush = [](float f) { return std::fabs(f) < 1.17549435e-38f ? std::copysign(0.0f, f) : f; };
  for (int round = 0; round < rounds; ++round) {
    const int m = 1 + int(next() % 16), k = 1 + int(next() % 16), n = 1 + int(next() % 16);
    Config c;
    c.tile(5, m, 4 * n);
    c.tile(6, m, 4 * k);
    c.tile(7, k, 4 * n);
    u16 a[16][32], b[16][32];
    float out[16][16], want[16][16];
    const auto value = [&]() -> u16 {
      const u64 r = next();
      if (half) return static_cast<u16>(r % 5 ? r & 0xBFFF : r & 0x83FF);                       // denormal fp16 too
      return static_cast<u16>((r & 0x8000) | (r % 6 == 0 ? r >> 20 & 0x7F : (60 + (r >> 20) % 70) << 7 | (r >> 30 & 0x7F)));
    };
    const auto read = [&](u16 v) {
      if (half) return _mm_cvtss_f32(_mm_cvtph_ps(_mm_set1_epi16(static_cast<short>(v))));
      const u32 u = u32{v} << 16;
      float f;
      std::memcpy(&f, &u, 4);
      return flush(f);
    };
    for (auto& row : a) for (u16& x : row) x = value();
    for (auto& row : b) for (u16& x : row) x = value();
    for (auto& row : out) for (float& x : row) x = next() % 4 ? static_cast<float>(static_cast<i32>(next())) * 1e-9f : 1e-40f;
    std::memcpy(want, out, sizeof want);
    for (int i = 0; i < m; ++i)
      for (int j = 0; j < n; ++j) {
        float even = 0, odd = 0;
        for (int l = 0; l < k; ++l) {
          even = flush(std::fma(read(a[i][2 * l]), read(b[l][2 * j]), even));
          odd = flush(std::fma(read(a[i][2 * l + 1]), read(b[l][2 * j + 1]), odd));
        }
        want[i][j] = flush(flush(out[i][j]) + flush(even + odd));
      }
    load_config(c);
    __asm__ volatile("" ::: "memory");
    _tile_loadd(5, out, 64);
    _tile_loadd(6, a, 64);
    _tile_loadd(7, b, 64);
    const unsigned mxcsr = _mm_getcsr();
    if (half) {
      _tile_dpfp16ps(5, 6, 7);
    } else {
      _tile_dpbf16ps(5, 6, 7);
    }
    check(_mm_getcsr() == mxcsr, "mxcsr unchanged");
    _tile_stored(5, out, 64);
    check(std::memcmp(out, want, sizeof out) == 0, half ? "tdpfp16ps" : "tdpbf16ps");
    _tile_release();
  }
}

// Runs f in a child: does it abort?
template <class F>
void aborts(const char* what, F&& f) {
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    const rlimit no_core = {0, 0};
    setrlimit(RLIMIT_CORE, &no_core);
    if (!std::freopen("/dev/null", "w", stderr)) _exit(2);
    f();
    _exit(0);
  }
  int status = 0;
  check(child > 0 && waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT, what);
}

void strictness() {
  static u8 data[64 * 16 + 64];
  Config good;
  for (int t = 0; t < 8; ++t) good.tile(t, 16, 64);
  aborts("load before loadconfig", [] { _tile_loadd(0, data, 64); });
  aborts("zero before loadconfig", [] { _tile_zero(0); });
  aborts("use after release", [&] { load_config(good); _tile_release(); _tile_zero(0); });
  aborts("tdp after release", [&] { load_config(good); _tile_release(); _tile_dpbssd(0, 1, 2); });
  aborts("palette 0", [&] { Config c = good; c.bytes[0] = 0; load_config(c); });
  aborts("palette 2", [&] { Config c = good; c.bytes[0] = 2; load_config(c); });
  aborts("start_row", [&] { Config c = good; c.bytes[1] = 1; load_config(c); });
  aborts("reserved", [&] { Config c = good; c.bytes[5] = 1; load_config(c); });
  aborts("reserved colsb", [&] { Config c = good; c.bytes[33] = 1; load_config(c); });
  aborts("reserved rows", [&] { Config c = good; c.bytes[60] = 1; load_config(c); });
  aborts("17 rows", [&] { Config c = good; c.tile(3, 17, 64); load_config(c); });
  aborts("68 bytes", [&] { Config c = good; c.tile(3, 16, 68); load_config(c); });
  aborts("320 bytes", [&] { Config c = good; c.tile(3, 16, 320); load_config(c); });
  aborts("62 bytes", [&] { Config c = good; c.tile(3, 16, 62); load_config(c); });
  aborts("rows without columns", [&] { Config c = good; c.tile(3, 16, 0); load_config(c); });
  aborts("tile without rows", [&] { Config c = good; c.tile(3, 0, 0); load_config(c); _tile_zero(3); });
  aborts("tile 8", [&] { load_config(good); _tile_zero(8); });
  aborts("A rows", [&] { Config c = good; c.tile(1, 15, 64); load_config(c); _tile_dpbssd(0, 1, 2); });
  aborts("B rows", [&] { Config c = good; c.tile(2, 15, 64); load_config(c); _tile_dpbssd(0, 1, 2); });
  aborts("B width", [&] { Config c = good; c.tile(2, 16, 60); load_config(c); _tile_dpbf16ps(0, 1, 2); });
  aborts("same tile twice", [&] { load_config(good); _tile_dpbssd(0, 1, 1); });
  aborts("unaligned load", [] { (void)_mm512_load_si512(data + 1); });
  aborts("unaligned store", [] { _mm512_store_ps(data + 1 + 63 * (reinterpret_cast<std::uintptr_t>(data) % 64 == 63), _mm512_setzero_ps()); });
  aborts("unaligned stream", [] { _mm512_stream_si512(reinterpret_cast<__m512i*>(data + 4), _mm512_setzero_si512()); });
  aborts("rounding mode", [] { (void)_mm512_add_round_ps(_mm512_setzero_ps(), _mm512_setzero_ps(), _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC); });

  check(!lepton_emulate::tiles_are_configured(), "not configured at first");
  load_config(good);
  check(lepton_emulate::tiles_are_configured(), "configured");
  Config stored;
  _tile_storeconfig(stored.bytes);
  check(same(stored, good), "storeconfig");
  _tile_release();
  check(!lepton_emulate::tiles_are_configured(), "released");
  _tile_storeconfig(stored.bytes);
  check(same(stored, Config()), "storeconfig after release");
}

}  // namespace

int main() {
  amx_int8<i8, i8>([] { _tile_dpbssd(0, 1, 2); }, "tdpbssd");
  amx_int8<i8, u8>([] { _tile_dpbsud(0, 1, 2); }, "tdpbsud");
  amx_int8<u8, i8>([] { _tile_dpbusd(0, 1, 2); }, "tdpbusd");
  amx_int8<u8, u8>([] { _tile_dpbuud(0, 1, 2); }, "tdpbuud");
  amx_floats(false);
  amx_floats(true);
  strictness();
  return finish();
}

#pragma GCC pop_options
