// The int8 kernels of each instruction set.
#pragma once

#include "params/int8_linear.h"

namespace lepton {

extern const Int8Kernels kInt8Generic;
#if defined(__x86_64__)
extern const Int8Kernels kInt8Avx2;
extern const Int8Kernels kInt8Vnni;
extern const Int8Kernels kInt8Amx;
#endif

}  // namespace lepton
