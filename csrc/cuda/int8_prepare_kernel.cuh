// Rows of x to what the products read: quantised with the formulas and the bits of
// cpu/int8_quantize.h, or copied where they are int8 already. Also packs and unpacks weights.
#pragma once

#include "cuda/int8_params.h"
#include "cuda/lanes.cuh"
#include "cuda/ptx.cuh"

namespace lepton {

constexpr int kPrepareThreads = 128;
constexpr int kPrepareSharedBytes = kPrepareThreads / 32 * 12;

// Byte of (row, k) in operand strips of `blocks` blocks each.
__host__ __device__ constexpr int64_t operand_offset(int64_t row, int64_t k_byte, int64_t blocks) {
  const int64_t r = row % 16, chunk = k_byte / 16 % 4;
  return (row / 16 * blocks + k_byte / kBlockBytes) * kStripBlock + r * 64 +
         (chunk ^ (r / 2 % 4)) * 16 + k_byte % 16;
}

// Four columns of a row as float32; those from `count` on are zero.
template <class T>
struct RowReader {
  Global<const T> row;
  bool vectors;

  __device__ __forceinline__ void four(int64_t column, int count, float (&v)[4]) const {
    if (vectors && count >= 4) {
      if constexpr (sizeof(T) == 4) {
        const float4 x = row.template load_as<float4>(column);
        v[0] = x.x, v[1] = x.y, v[2] = x.z, v[3] = x.w;
      } else {
        const uint2 x = row.template load_as<uint2>(column);
        const float2 low = unpack2<T>(x.x), high = unpack2<T>(x.y);
        v[0] = low.x, v[1] = low.y, v[2] = high.x, v[3] = high.y;
      }
      return;
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) v[e] = e < count ? to_float(row.load(column + e)) : 0.0f;
  }
};

// Where a word of four operands comes from; groups are padded to whole words.
struct WordSource {
  int64_t column;
  int count;  // columns inside its group

  __device__ __forceinline__ WordSource(const PrepareParams& p, int word) {
    const int at = word * 4;
    const int group = p.group_padded > 0 ? at / p.group_padded : 0;
    const int inside = at - group * p.group_padded;
    column = int64_t{group} * p.group_size + inside;
    const int left = p.group_size - inside;
    count = column >= p.columns || left <= 0 ? 0 : left < 4 ? left : 4;
  }
};

struct RowExtent {
  int32_t magnitude_bits;  // of the largest |x|; NaN and infinity order above every finite value
  float low, high;
};

// Over the block; every thread gets the result.
__device__ __forceinline__ RowExtent reduce(RowExtent e, bool bounds) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    e.magnitude_bits =
        max(e.magnitude_bits, __shfl_xor_sync(kFullWarp, e.magnitude_bits, distance));
    if (bounds) {
      e.low = f32_min({__shfl_xor_sync(kFullWarp, e.low, distance)}, {e.low}).v;
      e.high = f32_max({__shfl_xor_sync(kFullWarp, e.high, distance)}, {e.high}).v;
    }
  }
  constexpr int kWarps = kPrepareThreads / 32;
  const Shared<int32_t> bits(0);
  const Shared<float> extremes(kWarps * 4);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  if (lane_index() == 0) {
    bits.store(warp, e.magnitude_bits);
    extremes.store(warp * 2, e.low);
    extremes.store(warp * 2 + 1, e.high);
  }
  __syncthreads();
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    e.magnitude_bits = max(e.magnitude_bits, bits.load(w));
    e.low = f32_min({extremes.load(w * 2)}, {e.low}).v;
    e.high = f32_max({extremes.load(w * 2 + 1)}, {e.high}).v;
  }
  return e;
}

struct Quantizer {
  float scale, inverse;
  int32_t zero_point;
  float low, high;  // of x * inverse: integers, so clamping before rounding is clamping after it
};

// Rows below this magnitude count as zeros: 127 / amax would overflow. 2^-120.
constexpr float kSmallestRange = 7.52316384526264e-37f;
constexpr int32_t kInfinityBits = 0x7F800000;

// The formulas of lepton_kernels.quantize_int8; a scale of NaN for a row that is not finite.
__device__ __forceinline__ Quantizer make_quantizer(const PrepareParams& p, int row,
                                                    const RowExtent& e) {
  const float nan = __int_as_float(0x7FC00000);
  Quantizer q{nan, 0.0f, 0, 0.0f, 0.0f};
  if (p.scale) {
    q.zero_point =
        p.zero_point
            ? Global<const int32_t>(p.zero_point).load_constant(int64_t{row} * p.zero_point_stride)
            : 0;
    const float zero = static_cast<float>(q.zero_point);
    const float scale = Global<const float>(p.scale).load_constant(int64_t{row} * p.scale_stride);
    q.inverse = 1.0f / scale, q.low = -128.0f - zero, q.high = 127.0f - zero;
    if (e.magnitude_bits < kInfinityBits) q.scale = scale;
    return q;
  }
  const float range = p.symmetric ? __int_as_float(e.magnitude_bits) : e.high - e.low;
  // The difference of two finite values can overflow.
  if (e.magnitude_bits >= kInfinityBits || !(range <= 3.402823466e38f)) return q;
  const float steps = p.symmetric ? 127.0f : 255.0f;
  const float lowest = p.symmetric ? -127.0f : -128.0f;
  if (range < kSmallestRange) return {1.0f, 0.0f, 0, lowest, 127.0f};
  q.inverse = steps / range;
  const float zero = p.symmetric ? 0.0f : -128.0f - rintf(e.low * q.inverse);
  q.zero_point = static_cast<int32_t>(zero);
  q.low = lowest - zero, q.high = 127.0f - zero;
  q.scale = range / steps;
  return q;
}

__device__ __forceinline__ uint32_t quantize_word(const Quantizer& q, const float (&v)[4],
                                                  int count) {
  uint32_t word = 0;
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const float clamped = f32_min(f32_max({v[e] * q.inverse}, {q.low}), {q.high}).v;
    const int32_t level = __float2int_rn(clamped) + q.zero_point;
    if (e < count) word |= static_cast<uint32_t>(level & 0xFF) << (8 * e);
  }
  return word;
}

// A block for each row. T is the dtype of x; kPlain writes rows of int8 instead of strips.
template <class T, bool kPlain>
__global__ void __launch_bounds__(kPrepareThreads) quantize_rows_kernel(PrepareParams p) {
  const int row = static_cast<int>(blockIdx.x);
  const bool inside = row < p.rows;
  const int64_t begin = inside ? row * p.x_stride : 0;
  const RowReader<T> x{Global<const T>::of(p.x) + begin, p.vectors};
  const bool bounds = !p.scale && !p.symmetric;

  RowExtent extent{0, 0.0f, 0.0f};
  if (inside) {
    for (int64_t c = int64_t{threadIdx.x} * 4; c < p.columns; c += kPrepareThreads * 4) {
      const int64_t left = p.columns - c;
      float v[4];
      x.four(c, left < 4 ? static_cast<int>(left) : 4, v);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        extent.magnitude_bits = max(extent.magnitude_bits, __float_as_int(v[e]) & 0x7FFFFFFF);
        extent.low = f32_min({v[e]}, {extent.low}).v;
        extent.high = f32_max({v[e]}, {extent.high}).v;
      }
    }
  }
  extent = reduce(extent, bounds);
  const Quantizer q = make_quantizer(p, inside ? row : 0, extent);
  const bool finite = q.scale == q.scale;
  if (inside && threadIdx.x == 0) {
    if (p.row_scale) Global<float>(p.row_scale).store(row, q.scale);
    if (p.row_zero) Global<int32_t>(p.row_zero).store(row, q.zero_point);
  }
  const Global<int8_t> to(p.q);
  if constexpr (kPlain) {
    const int64_t first = int64_t{row} * p.columns;
    for (int c = static_cast<int>(threadIdx.x) * 4; c < p.columns; c += kPrepareThreads * 4) {
      const int count = min(4, p.columns - c);
      float v[4];
      x.four(c, count, v);
      const uint32_t word = finite ? quantize_word(q, v, count) : 0u;
      if (count == 4 && p.columns % 4 == 0) {
        to.store_as(first + c, word);
      } else {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          if (e < count) to.store(first + c + e, static_cast<int8_t>(word >> (8 * e)));
        }
      }
    }
  } else {
    const int blocks = p.row_padded / kBlockBytes;
    for (int chunk = static_cast<int>(threadIdx.x); chunk < blocks * 4; chunk += kPrepareThreads) {
      uint32_t words[4];
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const WordSource from(p, chunk * 4 + w);
        words[w] = 0;
        if (inside && finite && from.count > 0) {
          float v[4];
          x.four(from.column, from.count, v);
          words[w] = quantize_word(q, v, from.count);
        }
      }
      to.store_as(operand_offset(row, chunk * 16, blocks),
                  make_uint4(words[0], words[1], words[2], words[3]));
    }
  }
}

// Rows that are int8 already, to strips: a thread for each chunk of 16 bytes, a block for each row.
template <class Unused>
__global__ void __launch_bounds__(kPrepareThreads) copy_rows_kernel(PrepareParams p) {
  const int row = static_cast<int>(blockIdx.x);
  const bool inside = row < p.rows;
  const Global<const int8_t> x = Global<const int8_t>::of(p.x) + (inside ? row * p.x_stride : 0);
  if (inside && threadIdx.x == 0) {
    if (p.row_scale) {
      Global<float>(p.row_scale)
          .store(row,
                 p.scale ? Global<const float>(p.scale).load_constant(int64_t{row} * p.scale_stride)
                         : 1.0f);
    }
    if (p.row_zero) {
      Global<int32_t>(p.row_zero)
          .store(row, p.zero_point ? Global<const int32_t>(p.zero_point)
                                         .load_constant(int64_t{row} * p.zero_point_stride)
                                   : 0);
    }
  }
  const int blocks = p.row_padded / kBlockBytes;
  for (int chunk = static_cast<int>(threadIdx.x); chunk < blocks * 4; chunk += kPrepareThreads) {
    uint32_t words[4];
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const WordSource from(p, chunk * 4 + w);
      words[w] = 0;
      if (!inside) continue;
      if (p.vectors && from.count == 4) {
        words[w] = x.template load_as<uint32_t>(from.column);
      } else {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          if (e < from.count) {
            words[w] |= static_cast<uint32_t>(static_cast<uint8_t>(x.load(from.column + e)))
                        << (8 * e);
          }
        }
      }
    }
    Global<int8_t>(p.q).store_as(operand_offset(row, chunk * 16, blocks),
                                 make_uint4(words[0], words[1], words[2], words[3]));
  }
}

}  // namespace lepton
