// Bucket kernels for AVX2.
#include <cmath>
#include <cstdint>
#include <cstring>

#include "cpu/bucket_kernels.h"
#include "cpu/intrinsics.h"
#include "cpu/target.h"

#if defined(__x86_64__)

LEPTON_TARGET_BEGIN_AVX2
#include "cpu/simd_avx2.h"

#include "cpu/bucket_reduce.h"

#include "cpu/bucket_quantize.h"

#include "cpu/bucket_outer.h"

namespace lepton {

const BucketKernels kBucketAvx2 = {
    "avx2", reduce, unscale, squares, convert, quantize, dequantize, outer,
};

}  // namespace lepton
LEPTON_TARGET_END

#endif
