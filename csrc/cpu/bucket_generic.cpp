// Bucket kernels in portable C++.
#include <cmath>
#include <cstdint>
#include <cstring>

#include "cpu/bucket_kernels.h"
#include "cpu/simd_generic.h"

#include "cpu/bucket_reduce.h"

#include "cpu/bucket_quantize.h"

#include "cpu/bucket_outer.h"

namespace lepton {

const BucketKernels kBucketGeneric = {
    "generic", reduce, unscale, squares, convert, quantize, dequantize, outer,
};

}  // namespace lepton
