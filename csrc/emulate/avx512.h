// AVX-512 (F, BW, DQ, VL, CD, VBMI, VBMI2, VNNI, BF16, BITALG, VPOPCNTDQ) without the hardware: see
// README.md. Each function _mm512_x is lepton_emulate::mm512_x, and a macro beside it takes over
// the intrinsic's name. Hence include this after <immintrin.h> and after every other system header.
#pragma once
#include "avx512_compare.h"
#include "avx512_convert.h"
#include "avx512_convert_half.h"
#include "avx512_expand.h"
#include "avx512_float.h"
#include "avx512_int.h"
#include "avx512_mask.h"
#include "avx512_memory.h"
#include "avx512_part.h"
#include "avx512_permute.h"
#include "avx512_shift.h"
#include "avx512_types.h"
#include "avx512_vnni.h"
