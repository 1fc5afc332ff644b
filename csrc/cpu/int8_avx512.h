// What every int8 kernel for AVX-512 and AMX is made of, in the order in which it must be read.
// Read inside the target region.
#include "cpu/simd_avx512.h"

#include "cpu/activation.h"

#include "cpu/int8_quantize.h"

#include "cpu/int8_epilogue.h"
