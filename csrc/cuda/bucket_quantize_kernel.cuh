// Gradient buckets: quantisation by blocks with error feedback.
#pragma once

#include "cuda/bucket_table.cuh"

namespace lepton {

constexpr float kBucketSmallest = 0x1p-110f;  // blocks below count as zeros

__device__ inline uint8_t e4m3_of(float x) {  // |x| <= 448; to the nearest, ties to even
  const uint32_t bits = __float_as_uint(x), magnitude = bits & 0x7fffffffu;
  uint32_t code;
  if (magnitude < 0x3c800000u) {  // below 2^-6: a multiple of 2^-9
    code = static_cast<uint32_t>(rintf(__uint_as_float(magnitude) * 512.0f));
  } else {
    code = ((magnitude + 0x7ffffu + (magnitude >> 20 & 1u)) >> 20) - (120u << 3);
  }
  return static_cast<uint8_t>(((bits >> 24) & 0x80u) | code);
}
__device__ inline float float_of_e4m3(uint8_t code) {
  const uint32_t exponent = code >> 3 & 15u, fraction = code & 7u;
  float magnitude = __uint_as_float(((exponent + 120u) << 23) | (fraction << 20));
  if (exponent == 0) magnitude = static_cast<float>(fraction) * 0x1p-9f;
  if ((code & 0x7fu) == 0x7fu) magnitude = __uint_as_float(0x7fc00000u);
  return code & 0x80u ? -magnitude : magnitude;
}

// kWarp: a warp a block of elements, else a thread block each.
template <class T, bool kFp8, bool kWarp>
__global__ void __launch_bounds__(kBucketThreads)
    bucket_quantize_kernel(const __grid_constant__ BucketQuantize p) {
  constexpr int kWarps = kBucketThreads / 32;
  constexpr int kGroup = kWarp ? 32 : kBucketThreads;
  constexpr float kLevels = kFp8 ? 448.0f : 127.0f;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t block =
      kWarp ? static_cast<int64_t>(blockIdx.x) * kWarps + warp : static_cast<int64_t>(blockIdx.x);
  const int64_t begin = block * p.block;
  if (begin >= p.count) return;  // whole warps leave, and only where nothing meets beyond a warp
  const int64_t end = p.count < begin + p.block ? p.count : begin + p.block;
  const Global<const T> x = Global<const T>::of(p.x);
  const Global<float> residual(p.residual);
  const auto value = [&](int64_t i) {
    const float v = to_float(x.load(i));
    return residual.is_null() ? v : v + residual.load(i);
  };
  const int member = kWarp ? static_cast<int>(lane_index()) : static_cast<int>(threadIdx.x);
  // As bits magnitudes sort like numbers, infinities and NaN last.
  unsigned largest = 0;
  for (int64_t i = begin + member; i < end; i += kGroup) {
    const unsigned magnitude = __float_as_uint(value(i)) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  largest = __reduce_max_sync(kFullWarp, largest);
  if constexpr (!kWarp) {
    const Shared<unsigned> of_warps(0);
    if (lane_index() == 0) of_warps.store(warp, largest);
    __syncthreads();
    for (int w = 0; w < kWarps; ++w) {
      const unsigned other = of_warps.load(w);
      largest = other > largest ? other : largest;
    }
  }
  const float amax = __uint_as_float(largest);
  const bool finite = largest < 0x7f800000u;
  const bool zero = !finite || amax < kBucketSmallest;
  const float scale = !finite ? __uint_as_float(0x7fc00000u) : zero ? 1.0f : amax / kLevels;
  const float inverse = zero ? 0.0f : kLevels / amax;
  if (member == 0) Global<float>(p.scale).store(block, scale);
  const Global<int8_t> q(p.q);
  for (int64_t i = begin + member; i < end; i += kGroup) {
    const float v = finite ? value(i) : 0.0f;
    const float scaled = fminf(fmaxf(v * inverse, -kLevels), kLevels);
    float decoded;
    if constexpr (kFp8) {
      const uint8_t code = e4m3_of(scaled);
      decoded = float_of_e4m3(code);
      q.store(i, static_cast<int8_t>(code));
    } else {
      decoded = rintf(scaled);
      q.store(i, static_cast<int8_t>(decoded));
    }
    if (!residual.is_null()) residual.store(i, finite ? v - decoded * scale : 0.0f);
  }
}

template <class T, bool kFp8>
__global__ void __launch_bounds__(kBucketThreads)
    bucket_dequantize_kernel(const __grid_constant__ BucketDequantize p) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kBucketThreads;
  const Global<const int8_t> q(p.q);
  const Global<const float> scale(p.scale);
  const Global<T> out = Global<T>::of(p.out);
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kBucketThreads + threadIdx.x; i < p.count;
       i += step) {
    const int8_t code = q.load(i);
    const float level = kFp8 ? float_of_e4m3(static_cast<uint8_t>(code)) : static_cast<float>(code);
    float value = level * scale.load(i / p.block) * p.factor;
    if (p.accumulate) value = to_float(out.load(i)) + value;
    out.store(i, from_float<T>(value));
  }
}

}  // namespace lepton
