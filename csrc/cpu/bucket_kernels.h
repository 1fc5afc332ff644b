// The bucket kernels of each instruction set.
#pragma once

#include "params/bucket.h"

namespace lepton {

extern const BucketKernels kBucketGeneric;
#if defined(__x86_64__)
extern const BucketKernels kBucketAvx2;
extern const BucketKernels kBucketAvx512;
#endif

// The best within the instruction set in force.
const BucketKernels& choose_bucket_kernels();

}  // namespace lepton
