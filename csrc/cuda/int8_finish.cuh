// From sums to outputs, eight columns of a row at a time; the order of operations, and so every
// bit, is that of cpu/int8_epilogue.h:
//   y = float(sum - zero point * weight sum) * weight scale      (added up over groups)
//   y = activation(y * row scale + bias) + residual
#pragma once

#include "cuda/int8_params.h"
#include "cuda/lanes.cuh"
#include "cuda/ptx.cuh"

namespace lepton {

constexpr int kColumns = 8;

template <Activation activation>
__device__ __forceinline__ float activate(float y) {
  if constexpr (activation == Activation::relu) return relu_f32({y}).v;
  if constexpr (activation == Activation::gelu) return gelu_f32({y}).v;
  if constexpr (activation == Activation::gelu_tanh) return gelu_tanh_f32({y}).v;
  if constexpr (activation == Activation::silu) return silu_f32({y}).v;
  return y;
}

// What is the same for all rows of eight columns.
struct ColumnParams {
  int64_t n;
  int count;  // columns inside the output
  float scale[kColumns];
  float bias[kColumns];
  int32_t sum[kColumns];

  __device__ __forceinline__ ColumnParams(const FinishParams& p, int64_t first) : n(first) {
    const int64_t left = p.n - first;
    count = left >= kColumns ? kColumns : left > 0 ? static_cast<int>(left) : 0;
    const Global<const float> weight_scale(p.weight_scale);
    const Global<const float> biases(p.bias);
    const Global<const int32_t> sums(p.weight_sum);
#pragma unroll
    for (int e = 0; e < kColumns; ++e) {
      const bool inside = e < count;
      scale[e] = inside && p.weight_scale
                     ? weight_scale.load_constant((n + e) * p.weight_scale_stride)
                     : 1.0f;
      bias[e] = inside && p.bias ? biases.load_constant(n + e) : 0.0f;
      sum[e] = inside && p.row_zero && p.weight_sum ? sums.load_constant(n + e) : 0;
    }
  }
};

template <class T>
__device__ __forceinline__ void load_eight(const void* base, int64_t i, int count, bool vectors,
                                           float (&y)[kColumns]) {
  const auto from = Global<const T>::of(base);
  if (vectors && count == kColumns) {
    if constexpr (sizeof(T) == 4) {
      const float4 low = from.template load_constant_as<float4>(i);
      const float4 high = from.template load_constant_as<float4>(i + 4);
      y[0] = low.x, y[1] = low.y, y[2] = low.z, y[3] = low.w;
      y[4] = high.x, y[5] = high.y, y[6] = high.z, y[7] = high.w;
    } else {
      const uint4 v = from.template load_constant_as<uint4>(i);
      const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float2 pair = unpack2<T>(words[e]);
        y[2 * e] = pair.x, y[2 * e + 1] = pair.y;
      }
    }
    return;
  }
#pragma unroll
  for (int e = 0; e < kColumns; ++e) {
    y[e] = e < count ? to_float(from.load(i + e)) : 0.0f;
  }
}

template <class T>
__device__ __forceinline__ void store_eight(void* base, int64_t i, int count, bool vectors,
                                            const float (&y)[kColumns]) {
  const auto to = Global<T>::of(base);
  if (vectors && count == kColumns) {
    if constexpr (sizeof(T) == 4) {
      to.store_as(i, make_float4(y[0], y[1], y[2], y[3]));
      to.store_as(i + 4, make_float4(y[4], y[5], y[6], y[7]));
    } else {
      to.store_as(i, make_uint4(pack2<T>(y[0], y[1]), pack2<T>(y[2], y[3]), pack2<T>(y[4], y[5]),
                                pack2<T>(y[6], y[7])));
    }
    return;
  }
#pragma unroll
  for (int e = 0; e < kColumns; ++e) {
    if (e < count) to.store(i + e, from_float<T>(y[e]));
  }
}

__device__ __forceinline__ void store_eight_int8(const FinishParams& p, int64_t i, int count,
                                                 const float (&y)[kColumns]) {
  const float inverse = 1.0f / Global<const float>(p.out_scale).load_constant();
  const float zero =
      p.out_zero_point ? static_cast<float>(Global<const int32_t>(p.out_zero_point).load_constant())
                       : 0.0f;
  const auto to = Global<int8_t>::of(p.out);
  uint32_t words[2] = {0, 0};
#pragma unroll
  for (int e = 0; e < kColumns; ++e) {
    const float level = rintf(y[e] * inverse) + zero;
    // NaN ends as -128: max gives its second operand.
    const float clamped = f32_min(f32_max({level}, {-128.0f}), {127.0f}).v;
    const auto q = static_cast<int8_t>(__float2int_rn(clamped));
    if (p.vectors) {
      words[e / 4] |= static_cast<uint32_t>(static_cast<uint8_t>(q)) << (8 * (e % 4));
    } else if (e < count) {
      to.store(i + e, q);
    }
  }
  if (!p.vectors) return;
  if (count == kColumns) {
    to.store_as(i, make_uint2(words[0], words[1]));
    return;
  }
#pragma unroll
  for (int e = 0; e < kColumns; ++e) {
    if (e < count) to.store(i + e, static_cast<int8_t>(words[e / 4] >> (8 * (e % 4))));
  }
}

// y: sums times weight scales.
template <Activation activation>
__device__ __forceinline__ void finish_scaled(const FinishParams& p, const ColumnParams& columns,
                                              int64_t m, float (&y)[kColumns]) {
  if (p.row_scale) {
    const float row_scale = Global<const float>(p.row_scale).load(m);
#pragma unroll
    for (int e = 0; e < kColumns; ++e) y[e] *= row_scale;
  }
  if (p.bias) {
#pragma unroll
    for (int e = 0; e < kColumns; ++e) y[e] += columns.bias[e];
  }
#pragma unroll
  for (int e = 0; e < kColumns; ++e) y[e] = activate<activation>(y[e]);
  if (p.residual) {
    float r[kColumns];
    const int64_t at = m * p.residual_stride + columns.n;
    switch (p.residual_dtype) {
      case DType::f32: load_eight<float>(p.residual, at, columns.count, p.vectors, r); break;
      case DType::bf16: load_eight<bf16>(p.residual, at, columns.count, p.vectors, r); break;
      default: load_eight<f16>(p.residual, at, columns.count, p.vectors, r); break;
    }
#pragma unroll
    for (int e = 0; e < kColumns; ++e) y[e] += r[e];
  }
  const int64_t at = m * p.out_stride + columns.n;
  switch (p.out_dtype) {
    case DType::f32: store_eight<float>(p.out, at, columns.count, p.vectors, y); break;
    case DType::bf16: store_eight<bf16>(p.out, at, columns.count, p.vectors, y); break;
    case DType::f16: store_eight<f16>(p.out, at, columns.count, p.vectors, y); break;
    default: store_eight_int8(p, at, columns.count, y); break;
  }
}

// Plain int32 sums (int8_mm).
__device__ __forceinline__ void finish_int32(const FinishParams& p, const ColumnParams& columns,
                                             int64_t m, const int32_t (&sum)[kColumns]) {
  const auto to = Global<int32_t>::of(p.out);
  const int64_t at = m * p.out_stride + columns.n;
  if (p.vectors && columns.count == kColumns) {
    to.store_as(at, make_int4(sum[0], sum[1], sum[2], sum[3]));
    to.store_as(at + 4, make_int4(sum[4], sum[5], sum[6], sum[7]));
    return;
  }
#pragma unroll
  for (int e = 0; e < kColumns; ++e) {
    if (e < columns.count) to.store(at + e, sum[e]);
  }
}

// The sum of a row less what its zero point adds, as float times the weight scale.
__device__ __forceinline__ float scaled_sum(int32_t sum, int32_t zero, int32_t weight_sum,
                                            float scale) {
  const uint32_t product = static_cast<uint32_t>(zero) * static_cast<uint32_t>(weight_sum);
  return static_cast<float>(static_cast<int32_t>(static_cast<uint32_t>(sum) - product)) * scale;
}
__device__ __forceinline__ float scaled_sum(float sum, int32_t, int32_t, float scale) {
  return sum * scale;
}

// One row of eight sums to outputs.
template <Activation activation, class Sum>
__device__ __forceinline__ void finish_sums(const FinishParams& p, const ColumnParams& columns,
                                            int64_t m, const Sum (&sum)[kColumns]) {
  const int32_t zero = p.row_zero ? Global<const int32_t>(p.row_zero).load(m) : 0;
  float y[kColumns];
#pragma unroll
  for (int e = 0; e < kColumns; ++e) {
    y[e] = scaled_sum(sum[e], zero, columns.sum[e], columns.scale[e]);
  }
  finish_scaled<activation>(p, columns, m, y);
}

template <Activation activation>
struct ActivationTag {
  static constexpr Activation value = activation;
};

// Calls body(ActivationTag) for an activation known at run time.
template <class Body>
__device__ __forceinline__ void with_activation(Activation activation, const Body& body) {
  switch (activation) {
    case Activation::none: return body(ActivationTag<Activation::none>{});
    case Activation::relu: return body(ActivationTag<Activation::relu>{});
    case Activation::gelu: return body(ActivationTag<Activation::gelu>{});
    case Activation::gelu_tanh: return body(ActivationTag<Activation::gelu_tanh>{});
    case Activation::silu: return body(ActivationTag<Activation::silu>{});
  }
}

}  // namespace lepton
