// What this CPU and operating system can run, and the instruction set in force.
#pragma once

#include <cstdint>
#include <string>

namespace lepton::isa {

using Features = uint32_t;

enum Feature : Features {
  kAvx2 = 1u << 0,
  kFma = 1u << 1,
  kF16c = 1u << 2,
  kAvx512F = 1u << 3,
  kAvx512Bw = 1u << 4,
  kAvx512Dq = 1u << 5,
  kAvx512Vl = 1u << 6,
  kAvx512Vnni = 1u << 7,
  kAvx512Vbmi2 = 1u << 8,
  kAvx512Bf16 = 1u << 9,
  kAvx512Fp16 = 1u << 10,
  kAmxTile = 1u << 11,
  kAmxInt8 = 1u << 12,
  kAmxBf16 = 1u << 13,
  kAmxFp16 = 1u << 14,
};

// Exactly what the target regions of target.h switch on.
constexpr Features kGeneric = 0;
constexpr Features kAvx2Level = kAvx2 | kFma | kF16c;
constexpr Features kVnniLevel =
    kAvx2Level | kAvx512F | kAvx512Bw | kAvx512Dq | kAvx512Vl | kAvx512Vnni;
constexpr Features kVbmi2Level = kVnniLevel | kAvx512Vbmi2;
constexpr Features kAmxLevel = kVnniLevel | kAmxTile | kAmxInt8 | kAmxBf16;
constexpr Features kAmxBf16Level = kAmxLevel | kAvx512Bf16;
constexpr Features kAmxVbmi2Level = kAmxLevel | kAvx512Vbmi2;

// Features that CPUID reports, the operating system saves (XCR0) and, for AMX, the kernel permits.
Features present();

// Features that kernels may use now: `present()`, less what a forced instruction set leaves out.
Features allowed();

// Limits kernels to "generic", "avx2", "vnni" or "amx"; "" lifts the limit. False: unknown or
// absent.
bool force(const std::string& name);

// Name of the best instruction set within `allowed()`.
const char* in_use();

// Names of the instruction sets within `present()`, worst first, separated by spaces.
std::string names_present();
std::string feature_names_present();

}  // namespace lepton::isa
