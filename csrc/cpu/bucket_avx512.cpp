// Bucket kernels for AVX-512.
#include <cmath>
#include <cstdint>
#include <cstring>

#include "cpu/bucket_kernels.h"
#include "cpu/intrinsics.h"
#include "cpu/target.h"

#if defined(__x86_64__)

LEPTON_TARGET_BEGIN_AVX512
#include "cpu/simd_avx512.h"

#include "cpu/bucket_reduce.h"

#include "cpu/bucket_quantize.h"

#include "cpu/bucket_outer.h"

namespace lepton {

const BucketKernels kBucketAvx512 = {
    "vnni", reduce, unscale, squares, convert, quantize, dequantize, outer,
};

}  // namespace lepton
LEPTON_TARGET_END

#endif
