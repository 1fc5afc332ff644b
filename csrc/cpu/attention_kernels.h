// The attention kernels of each instruction set.
#pragma once

#include "params/attention.h"

namespace lepton {

extern const AttentionKernels kAttentionGeneric;
#if defined(__x86_64__)
extern const AttentionKernels kAttentionAvx2;
extern const AttentionKernels kAttentionAvx512;
extern const AttentionKernels kAttentionAmx;           // bfloat16 only
extern const AttentionKernels kAttentionAmxInt8Cache;  // keys and values in int8
#endif

}  // namespace lepton
