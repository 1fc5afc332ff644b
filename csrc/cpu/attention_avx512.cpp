// Attention kernels for AVX-512, in float32; tiles of 12 rows by 32 columns.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/attention_kernels.h"
#include "cpu/intrinsics.h"
#include "cpu/target.h"

#if defined(__x86_64__)

LEPTON_TARGET_BEGIN_AVX512
#define LEPTON_TRANSPOSE_8X8
#include "cpu/simd_avx512.h"

namespace {
using lepton::DType;
constexpr int kVectors = 2;
constexpr int kTileRows = 12;
constexpr int kBlockRows = 256;
constexpr int kBackwardRows = 256;
}  // namespace

#include "cpu/attention_math.h"

#include "cpu/attention_ahead.h"

#include "cpu/attention_gemm.h"

#include "cpu/attention_transpose.h"

#include "cpu/attention_panel.h"

#include "cpu/attention_keys.h"

#include "cpu/attention_forward.h"

#include "cpu/attention_decode.h"

#include "cpu/attention_backward.h"

namespace lepton {

const AttentionKernels kAttentionAvx512 = {
    "avx512",
    kLanes,
    kBlockRows,
    kFewRows,
    {packed_bytes, pack, kBlockKeys},
    {packed_bytes, pack, kBlockKeys},
    forward_scratch,
    decode_scratch,
    backward_scratch,
    forward,
    decode,
    merge,
    backward,
    256,
    gradient_floats,
    finish_keys,
    backward_bias,
    finish_row,
};

}  // namespace lepton
LEPTON_TARGET_END

#endif
