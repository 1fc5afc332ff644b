// The vector vocabulary of cpu/simd_*.h for one CUDA thread, so that cpu/activation.h runs here
// with the bits that it has on every CPU: each word is one IEEE operation (nvcc gets --fmad=false).
#pragma once

#include "cuda/device.cuh"

namespace lepton {

struct F32 {
  float v;
};
struct I32 {
  int32_t v;
};

__device__ __forceinline__ I32 i32_wrap(uint32_t x) { return {static_cast<int32_t>(x)}; }
__device__ __forceinline__ uint32_t u32(I32 a) { return static_cast<uint32_t>(a.v); }
__device__ __forceinline__ I32 f32_bits(F32 a) { return {__float_as_int(a.v)}; }
__device__ __forceinline__ F32 f32_from_bits(I32 a) { return {__int_as_float(a.v)}; }
__device__ __forceinline__ I32 i32_sub(I32 a, I32 b) { return i32_wrap(u32(a) - u32(b)); }
template <int count>
__device__ __forceinline__ I32 i32_shl(I32 a) {
  return i32_wrap(u32(a) << count);
}
template <int count>
__device__ __forceinline__ I32 i32_sra(I32 a) {
  return {a.v >> count};
}
__device__ __forceinline__ F32 f32_set(float x) { return {x}; }
__device__ __forceinline__ F32 f32_zero() { return {0.0f}; }
__device__ __forceinline__ F32 f32_add(F32 a, F32 b) { return {a.v + b.v}; }
__device__ __forceinline__ F32 f32_sub(F32 a, F32 b) { return {a.v - b.v}; }
__device__ __forceinline__ F32 f32_mul(F32 a, F32 b) { return {a.v * b.v}; }
__device__ __forceinline__ F32 f32_div(F32 a, F32 b) { return {a.v / b.v}; }
__device__ __forceinline__ F32 f32_fma(F32 a, F32 b, F32 c) { return {fmaf(a.v, b.v, c.v)}; }
__device__ __forceinline__ F32 f32_fnma(F32 a, F32 b, F32 c) { return {fmaf(-a.v, b.v, c.v)}; }
// The second operand if either is NaN.
__device__ __forceinline__ F32 f32_min(F32 a, F32 b) { return {a.v < b.v ? a.v : b.v}; }
__device__ __forceinline__ F32 f32_max(F32 a, F32 b) { return {a.v > b.v ? a.v : b.v}; }
__device__ __forceinline__ F32 f32_abs(F32 a) {
  return {__int_as_float(__float_as_int(a.v) & 0x7FFFFFFF)};
}
__device__ __forceinline__ F32 f32_select_lt(F32 a, F32 b, F32 x, F32 y) {
  return {a.v < b.v ? x.v : y.v};
}

// activation.h is text for the place where the vocabulary is: here its functions are device code.
#pragma push_macro("inline")
#define inline __device__ __forceinline__
#include "cpu/activation.h"
#pragma pop_macro("inline")

}  // namespace lepton
