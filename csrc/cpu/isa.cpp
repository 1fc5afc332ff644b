#include "cpu/isa.h"

#include <atomic>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace lepton::isa {
namespace {

struct Level {
  const char* name;
  Features needs;
  Features may_use;
};

constexpr Features kAll = ~Features{0};
constexpr Features kAnyAmx = kAmxTile | kAmxInt8 | kAmxBf16 | kAmxFp16;

constexpr Level kLevels[] = {
    {"generic", kGeneric, kGeneric},
    {"avx2", kAvx2Level, kAvx2Level},
    {"vnni", kVnniLevel, kAll & ~kAnyAmx},
    {"amx", kAmxLevel, kAll},
};

struct FeatureName {
  Features bit;
  const char* name;
};

constexpr FeatureName kFeatureNames[] = {
    {kAvx2, "avx2"},
    {kFma, "fma"},
    {kF16c, "f16c"},
    {kAvx512F, "avx512f"},
    {kAvx512Bw, "avx512bw"},
    {kAvx512Dq, "avx512dq"},
    {kAvx512Vl, "avx512vl"},
    {kAvx512Vnni, "avx512_vnni"},
    {kAvx512Vbmi2, "avx512_vbmi2"},
    {kAvx512Bf16, "avx512_bf16"},
    {kAvx512Fp16, "avx512_fp16"},
    {kAmxTile, "amx_tile"},
    {kAmxInt8, "amx_int8"},
    {kAmxBf16, "amx_bf16"},
    {kAmxFp16, "amx_fp16"},
};

#if defined(LEPTON_EMULATE_ISA)

Features detect() { return kAll >> (32 - 15) & ~(kAvx512Fp16 | kAmxFp16); }

#elif defined(__x86_64__)

uint64_t xcr0() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t{high} << 32) | low;
}

// Linux hands AMX tile data out on request, per process (Documentation/arch/x86/xstate.rst).
bool amx_permitted() {
  constexpr long kArchReqXcompPerm = 0x1023;
  constexpr long kXfeatureXtiledata = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureXtiledata) == 0;
}

Features detect() {
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return 0;
  constexpr unsigned kOsxsave = 1u << 27, kAvx = 1u << 28;
  if (!(c & kOsxsave) || !(c & kAvx)) return 0;
  const uint64_t saved = xcr0();
  const bool saves_ymm = (saved & 0x6) == 0x6;
  const bool saves_zmm = saves_ymm && (saved & 0xE0) == 0xE0;
  const bool saves_tiles = (saved & 0x60000) == 0x60000;
  if (!saves_ymm) return 0;

  Features found = 0;
  auto note = [&found](unsigned word, int bit, Features feature) {
    if (word >> bit & 1) found |= feature;
  };
  note(c, 12, kFma);
  note(c, 29, kF16c);
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return found;
  const unsigned subleaves = a;
  note(b, 5, kAvx2);
  if (saves_zmm) {
    note(b, 16, kAvx512F);
    note(b, 17, kAvx512Dq);
    note(b, 30, kAvx512Bw);
    note(b, 31, kAvx512Vl);
    note(c, 11, kAvx512Vnni);
    note(c, 6, kAvx512Vbmi2);
    note(d, 23, kAvx512Fp16);
  }
  const bool tiles = saves_tiles && (d >> 24 & 1) && amx_permitted();
  if (tiles) {
    note(d, 22, kAmxBf16);
    note(d, 24, kAmxTile);
    note(d, 25, kAmxInt8);
  }
  if (subleaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) {
    if (saves_zmm) note(a, 5, kAvx512Bf16);
    if (tiles) note(a, 21, kAmxFp16);
  }
  return found;
}

#else

Features detect() { return 0; }

#endif

std::atomic<Features> mask{kAll};

bool covers(Features have, Features needs) { return (have & needs) == needs; }

}  // namespace

Features present() {
  static const Features found = detect();
  return found;
}

Features allowed() { return present() & mask.load(std::memory_order_relaxed); }

bool force(const std::string& name) {
  if (name.empty()) {
    mask.store(kAll, std::memory_order_relaxed);
    return true;
  }
  for (const Level& level : kLevels) {
    if (name == level.name && covers(present(), level.needs)) {
      mask.store(level.may_use, std::memory_order_relaxed);
      return true;
    }
  }
  return false;
}

const char* in_use() {
  const char* best = "generic";
  for (const Level& level : kLevels) {
    if (covers(allowed(), level.needs)) best = level.name;
  }
  return best;
}

std::string names_present() {
  std::string names;
  for (const Level& level : kLevels) {
    if (!covers(present(), level.needs)) continue;
    if (!names.empty()) names += ' ';
    names += level.name;
  }
  return names;
}

std::string feature_names_present() {
  std::string names;
  for (const FeatureName& feature : kFeatureNames) {
    if (!covers(present(), feature.bit)) continue;
    if (!names.empty()) names += ' ';
    names += feature.name;
  }
  return names;
}

}  // namespace lepton::isa
