// Opens and closes a region of a file in which the compiler may use an ISA that
// the build flags do not name. Open it after all includes: a header read inside
// would compile its inline functions for that ISA, and the linker may keep that
// copy for callers on machines without it. Only simd_*.h and activation.h are
// written to be read inside: all they hold is in anonymous namespaces.
//
// Feature macros such as __AVX512VNNI__ stay undefined inside a region, and the
// dispatcher must ask the CPU for every feature of the list.
#pragma once

#define LEPTON_ISA_AVX2 "avx2,fma,f16c"
#define LEPTON_ISA_AVX512 "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"
#define LEPTON_ISA_VBMI2 LEPTON_ISA_AVX512 ",avx512vbmi2"
#define LEPTON_ISA_AMX \
  "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,amx-tile,amx-int8,amx-bf16"
#define LEPTON_ISA_AMX_BF16 LEPTON_ISA_AMX ",avx512bf16"

#define LEPTON_ISA_AMX_VBMI2 LEPTON_ISA_AMX ",avx512vbmi2"

#define LEPTON_PRAGMA(...) _Pragma(#__VA_ARGS__)

// Before a loop. Emulated vectors are loops themselves: unrolled around them, and watched by
// sanitizers, a file would compile for a quarter of an hour.
#ifdef LEPTON_EMULATE_ISA
#define LEPTON_UNROLL(times)
#else
#define LEPTON_UNROLL(times) LEPTON_PRAGMA(GCC unroll times)
#endif

#if !(defined(__x86_64__) || defined(__i386__))
#define LEPTON_TARGET_BEGIN(isa)
#define LEPTON_TARGET_END
#elif defined(__clang__)
#define LEPTON_TARGET_BEGIN(isa) \
  LEPTON_PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#define LEPTON_TARGET_END LEPTON_PRAGMA(clang attribute pop)
#else
#define LEPTON_TARGET_BEGIN(isa) LEPTON_PRAGMA(GCC push_options) LEPTON_PRAGMA(GCC target(isa))
#define LEPTON_TARGET_END LEPTON_PRAGMA(GCC pop_options)
#endif

#define LEPTON_TARGET_BEGIN_AVX2 LEPTON_TARGET_BEGIN(LEPTON_ISA_AVX2)

// Emulated AVX-512 and AMX are plain C++ that any AVX2 machine runs.
#ifdef LEPTON_EMULATE_ISA
#define LEPTON_TARGET_BEGIN_AVX512 LEPTON_TARGET_BEGIN(LEPTON_ISA_AVX2)
#define LEPTON_TARGET_BEGIN_AMX LEPTON_TARGET_BEGIN(LEPTON_ISA_AVX2)
#define LEPTON_TARGET_BEGIN_AMX_BF16 LEPTON_TARGET_BEGIN(LEPTON_ISA_AVX2)
#define LEPTON_TARGET_BEGIN_VBMI2 LEPTON_TARGET_BEGIN(LEPTON_ISA_AVX2)
#define LEPTON_TARGET_BEGIN_AMX_VBMI2 LEPTON_TARGET_BEGIN(LEPTON_ISA_AVX2)
#else
#define LEPTON_TARGET_BEGIN_AVX512 LEPTON_TARGET_BEGIN(LEPTON_ISA_AVX512)
#define LEPTON_TARGET_BEGIN_AMX LEPTON_TARGET_BEGIN(LEPTON_ISA_AMX)
#define LEPTON_TARGET_BEGIN_AMX_BF16 LEPTON_TARGET_BEGIN(LEPTON_ISA_AMX_BF16)
#define LEPTON_TARGET_BEGIN_VBMI2 LEPTON_TARGET_BEGIN(LEPTON_ISA_VBMI2)
#define LEPTON_TARGET_BEGIN_AMX_VBMI2 LEPTON_TARGET_BEGIN(LEPTON_ISA_AMX_VBMI2)
#endif
