// The x86 intrinsics, real or emulated. Include before a target region opens.
#pragma once

#if defined(__x86_64__) || defined(__i386__)

// gcc 12 takes the `__Y = __Y` of its own _mm512_undefined_*() for a mistake
// (gcc bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

#ifdef LEPTON_EMULATE_ISA
#include "emulate/amx.h"
#include "emulate/avx512.h"
#endif

#endif
