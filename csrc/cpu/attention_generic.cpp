// Attention kernels in portable C++: the fallback, and the start of a port.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/attention_kernels.h"
#include "cpu/simd_generic.h"
#include "cpu/target.h"

namespace {
using lepton::DType;
constexpr int kVectors = 4;
constexpr int kTileRows = 4;
constexpr int kBlockRows = 64;
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

namespace lepton {

const AttentionKernels kAttentionGeneric = {
    "generic",       kLanes,           kBlockRows,    kFewRows,   {},    {},       forward_scratch,
    decode_scratch,  backward_scratch, forward,       decode,     merge, backward, 256,
    gradient_floats, finish_keys,      backward_bias, finish_row,
};

}  // namespace lepton
