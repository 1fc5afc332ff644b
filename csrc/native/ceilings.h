// Ceilings of this machine: what register-only loops and plain reads reach, per instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/isa.h"

namespace lepton::ceilings {

// Does `steps` rounds of independent multiply-adds and returns how many operations that were
// (a multiply and an add count as two).
using Loop = double (*)(int64_t steps);

// Loads every byte of [data, data + bytes); bytes is a multiple of kReadGrain.
using Reader = void (*)(const char* data, size_t bytes);
constexpr size_t kReadGrain = 16384;

// What one instruction set offers; a null loop means that it has no such instruction.
struct Level {
  const char* isa;
  isa::Features needs;
  Loop fp32;
  Loop bf16;
  Loop int8;
  Reader read;
};

// One file each. The AVX-512 and AMX levels need real instructions: emulated builds lack them.
extern const Level kGenericLevel;
extern const Level kAvx2Level;
extern const Level kVnniLevel;
extern const Level kAmxLevel;

}  // namespace lepton::ceilings
