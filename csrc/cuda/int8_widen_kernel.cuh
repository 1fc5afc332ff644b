// Operands of weight-only products: rows of x and int8 weights as strips of 16-bit floats.
//
// Every int8 is a bfloat16 and a float16. A float32 x is the sum of three bfloat16, each the next
// eight bits of it: three planes, one after the other along k, so that the product is still exact
// to float32.
#pragma once

#include "cuda/int8_prepare_kernel.cuh"

namespace lepton {

// The next eight bits of x: truncated, so that the rest keeps its sign and nothing overflows.
__device__ __forceinline__ bf16 take_plane(float& rest) {
  const uint32_t bits = __float_as_uint(rest);
  const float high = __uint_as_float(bits & 0xFFFF0000u);
  // NaN whose payload is in the low bits must not become an infinity.
  const bool nan = rest != rest;
  const bool infinite = (bits & 0x7FFFFFFFu) >= 0x7F800000u;
  rest = infinite ? 0.0f : rest - high;
  return {static_cast<uint16_t>(nan ? 0x7FC0u : bits >> 16)};
}

// The plane of a term; see PlaneTerms.
__device__ __forceinline__ int plane_of(uint32_t code, int term) {
  return static_cast<int>(code >> (4 * term) & 15u);
}

// Two values as a word of plane `plane`; values that To holds are in plane 0 alone.
template <class T, class To>
__device__ __forceinline__ uint32_t plane_word(float low, float high, int plane) {
  if constexpr (is_same<To, bf16> && !is_same<T, bf16>) {
    uint32_t l = 0, h = 0;
    for (int i = 0; i <= plane; ++i) l = take_plane(low).bits, h = take_plane(high).bits;
    return l | h << 16;
  } else {
    return pack2<To>(low, high);
  }
}

// A block for each row and term; a thread for each chunk of eight operands. To is f16 or bf16.
template <class T, class To>
__global__ void __launch_bounds__(kPrepareThreads) widen_rows_kernel(PrepareParams p) {
  const int row = static_cast<int>(blockIdx.x), term = static_cast<int>(blockIdx.y);
  const int plane = plane_of(p.plane_code, term);
  const bool inside = row < p.rows;
  const RowReader<T> x{Global<const T>::of(p.x) + (inside ? row * p.x_stride : 0), p.vectors};
  const int plane_blocks = p.row_padded * 2 / kBlockBytes;
  const int64_t blocks = int64_t{plane_blocks} * gridDim.y;
  const auto to = Global<uint8_t>::of(p.q);
  for (int chunk = static_cast<int>(threadIdx.x); chunk < plane_blocks * 4;
       chunk += kPrepareThreads) {
    uint32_t words[4] = {0, 0, 0, 0};
#pragma unroll
    for (int w = 0; w < 2; ++w) {
      const WordSource from(p, chunk * 2 + w);
      if (!inside || from.count == 0) continue;
      float v[4];
      x.four(from.column, from.count, v);
      words[2 * w] = plane_word<T, To>(v[0], v[1], plane);
      words[2 * w + 1] = plane_word<T, To>(v[2], v[3], plane);
    }
    to.store_as(operand_offset(row, (int64_t{term} * plane_blocks * 4 + chunk) * 16, blocks),
                make_uint4(words[0], words[1], words[2], words[3]));
  }
}

// Packed int8 tiles to strips of 16-bit floats, the same for every plane: a block for each strip, a
// thread for a word of four weights.
template <class To>
__global__ void __launch_bounds__(kPrepareThreads) widen_weight_kernel(WidenWeightParams p) {
  const int64_t strip = blockIdx.x;
  const int64_t words = int64_t{p.row_padded} * 4;  // of int8, in a strip
  const auto from = Global<const uint32_t>::of(p.tiles) + strip * words;
  const auto to = Global<uint32_t>::of(p.widened) + strip * words * 2 * p.planes;
  for (int64_t i = threadIdx.x; i < words; i += kPrepareThreads) {
    const uint32_t four = from.load(i);
    float v[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) v[e] = static_cast<float>(static_cast<int8_t>(four >> (8 * e)));
    // Word i is word-of-k i / 16 of feature i % 16; two words of 16-bit floats come of it.
    const int64_t at = i / 16 * 32 + i % 16;
    for (int plane = 0; plane < p.planes; ++plane) {
      to.store(plane * words * 2 + at, pack2<To>(v[0], v[1]));
      to.store(plane * words * 2 + at + 16, pack2<To>(v[2], v[3]));
    }
  }
}

}  // namespace lepton
