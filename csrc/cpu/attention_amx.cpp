// Attention kernels in bfloat16 for AMX: tile products, float32 sums. What the tiles don't serve
// (few rows, gradients of the bias) is as for AVX-512.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/attention_kernels.h"
#include "cpu/intrinsics.h"
#include "cpu/target.h"

#if defined(__x86_64__)

LEPTON_TARGET_BEGIN_AMX_BF16
#define LEPTON_TRANSPOSE_8X8
#include "cpu/simd_avx512.h"

namespace {
using lepton::DType;
constexpr int kVectors = 2;
constexpr int kTileRows = 12;
constexpr int kBlockRows = 128;
constexpr int kBackwardRows = 64;
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

#include "cpu/amx_tiles.h"

#include "cpu/avx512_transpose.h"

#include "cpu/attention_amx_pack.h"

#include "cpu/attention_amx_products.h"

#include "cpu/attention_amx_scores.h"

#include "cpu/attention_amx_forward.h"

#include "cpu/attention_amx_backward.h"

#include "cpu/attention_amx_decode.h"

namespace lepton {

const AttentionKernels kAttentionAmx = {
    "amx",
    kLanes,
    kBlockRows,
    kFewRows,
    {amx_forward_packed, amx_forward_pack, kKeys},
    {amx_backward_packed, amx_backward_pack, kKeys},
    amx_forward_scratch,
    amx_decode_scratch,
    amx_backward_scratch,
    amx_forward,
    amx_decode,
    merge,
    amx_backward,
    kKeys,
    amx_gradient_floats,
    amx_finish_keys,
    backward_bias,
    finish_row,
};

const AttentionKernels kAttentionAmxInt8Cache = {
    "amx",
    kLanes,
    kBlockRows,
    kFewRows,
    {},
    {},
    forward_scratch,
    amx_decode_scratch,
    backward_scratch,
    forward,
    amx_decode,
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
