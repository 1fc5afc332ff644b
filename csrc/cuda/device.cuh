// The words in which device code is written, for nvcc and for the emulator alike.
//
// Kernels use CUDA's own names (`threadIdx`, `__syncthreads`, `__shfl_xor_sync`, ...) and reach
// memory only through `Global` and `Shared`, so that the emulator sees every access. Under nvcc
// both are a bare address and cost nothing.
//
// * A kernel has one parameter, a plain struct, passed by value.
// * All shared memory is dynamic: `Shared<T>(offset in bytes)`, offsets from constexpr layouts.
// * A product and a sum are fused only where the code says `fmaf` (nvcc runs with --fmad=false).
// * Nothing here or above it includes torch or a header of the CUDA toolkit.
#pragma once

#include <cstdint>

#ifdef LEPTON_SIMT
#include "simt/language.h"
#endif

namespace lepton {

// 16-bit floats as bits; arithmetic is done in fp32. Conversions are in ptx.cuh.
struct f16 {
  uint16_t bits;
};
struct bf16 {
  uint16_t bits;
};

template <class A, class B>
constexpr bool is_same = false;
template <class A>
constexpr bool is_same<A, A> = true;

constexpr uint32_t kFullWarp = 0xffffffffu;

__device__ __forceinline__ uint32_t lane_index() { return threadIdx.x % 32u; }

template <class T>
__host__ __device__ constexpr T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

#ifndef LEPTON_SIMT

extern __shared__ __align__(128) uint8_t dynamic_shared_memory[];

// Elements of type T in global memory. `load_as` and `store_as` move a vector type (uint2, uint4,
// float4, ...) that begins at element i and must be aligned to its own size.
template <class T>
class Global {
 public:
  __device__ __forceinline__ explicit Global(T* address) : address_(address) {}
  template <class U>
  __device__ __forceinline__ static Global of(U* address) {  // from void* or another element type
    return Global(reinterpret_cast<T*>(address));
  }

  __device__ __forceinline__ T load(int64_t i = 0) const { return address_[i]; }
  // For data that stays constant while the kernel runs.
  __device__ __forceinline__ T load_constant(int64_t i = 0) const { return __ldg(address_ + i); }
  __device__ __forceinline__ void store(int64_t i, T value) const { address_[i] = value; }
  template <class V>
  __device__ __forceinline__ V load_as(int64_t i = 0) const {
    return *reinterpret_cast<const V*>(address_ + i);
  }
  template <class V>
  __device__ __forceinline__ V load_constant_as(int64_t i = 0) const {
    return __ldg(reinterpret_cast<const V*>(address_ + i));
  }
  template <class V>
  __device__ __forceinline__ void store_as(int64_t i, V value) const {
    *reinterpret_cast<V*>(address_ + i) = value;
  }
  // Returns the value before.
  __device__ __forceinline__ T atomic_add(int64_t i, T value) const {
    return atomicAdd(address_ + i, value);
  }
  __device__ __forceinline__ T atomic_max(int64_t i, T value) const {
    return atomicMax(address_ + i, value);
  }
  __device__ __forceinline__ T atomic_exchange(int64_t i, T value) const {
    return atomicExch(address_ + i, value);
  }
  __device__ __forceinline__ T atomic_cas(int64_t i, T expected, T value) const {
    return atomicCAS(address_ + i, expected, value);
  }

  __device__ __forceinline__ Global operator+(int64_t i) const { return Global(address_ + i); }
  __device__ __forceinline__ T* raw() const { return address_; }
  __device__ __forceinline__ bool is_null() const { return address_ == nullptr; }

 private:
  T* address_;
};

// Elements of type T in the block's dynamic shared memory.
template <class T>
class Shared {
 public:
  __device__ __forceinline__ explicit Shared(uint32_t offset_bytes)
      : address_(static_cast<uint32_t>(__cvta_generic_to_shared(dynamic_shared_memory)) +
                 offset_bytes) {}

  __device__ __forceinline__ T load(int i = 0) const { return *at(i); }
  __device__ __forceinline__ void store(int i, T value) const { *at(i) = value; }
  template <class V>
  __device__ __forceinline__ V load_as(int i = 0) const {
    return *reinterpret_cast<const V*>(at(i));
  }
  template <class V>
  __device__ __forceinline__ void store_as(int i, V value) const {
    *reinterpret_cast<V*>(at(i)) = value;
  }
  __device__ __forceinline__ T atomic_add(int i, T value) const { return atomicAdd(at(i), value); }
  __device__ __forceinline__ T atomic_max(int i, T value) const { return atomicMax(at(i), value); }

  // What the instructions of ptx.cuh take: a byte address in the shared window.
  __device__ __forceinline__ uint32_t address(int i = 0) const {
    return address_ + static_cast<uint32_t>(i) * static_cast<uint32_t>(sizeof(T));
  }
  __device__ __forceinline__ Shared operator+(int i) const { return from_address(address(i)); }
  __device__ __forceinline__ static Shared from_address(uint32_t address) {
    Shared shared;
    shared.address_ = address;
    return shared;
  }

 private:
  __device__ __forceinline__ Shared() {}
  __device__ __forceinline__ T* at(int i) const {
    return static_cast<T*>(__cvta_shared_to_generic(address(i)));
  }
  uint32_t address_;
};

#endif  // LEPTON_SIMT

}  // namespace lepton
