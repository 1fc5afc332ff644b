// CUDA's words for the host compiler: keywords, indices, warp functions, arithmetic intrinsics,
// and memory that is watched. Included by cuda/device.cuh only.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "simt/machine.h"

#define __device__
#define __host__
#define __global__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)

#define threadIdx (::lepton::simt::current->thread_index)
#define blockIdx (::lepton::simt::machine.block_index)
#define blockDim (::lepton::simt::machine.block)
#define gridDim (::lepton::simt::machine.grid)

// ---- vector types ----

#define LEPTON_VECTOR(type, name)                                  \
  struct alignas(2 * sizeof(type)) name##2 { type x, y; };         \
  struct alignas(4 * sizeof(type)) name##4 { type x, y, z, w; };   \
  inline name##2 make_##name##2(type x, type y) { return {x, y}; } \
  inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
LEPTON_VECTOR(float, float)
LEPTON_VECTOR(int, int)
LEPTON_VECTOR(unsigned, uint)
LEPTON_VECTOR(short, short)
LEPTON_VECTOR(unsigned short, ushort)
LEPTON_VECTOR(signed char, char)
LEPTON_VECTOR(unsigned char, uchar)
#undef LEPTON_VECTOR

namespace lepton::simt {

template <class To, class From>
inline To bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// ---- warp functions: each lane brings an Exchange ----

struct Exchange {
  uint64_t value;
  uint32_t source;  // lane to read from
  uint64_t result;
};

inline Exchange& exchange_of(Warp& warp, uint32_t lane) {
  return *static_cast<Exchange*>(warp.argument[lane]);
}

void shuffle(Warp& warp, uint32_t mask, const Place& place);
void vote(Warp& warp, uint32_t mask, const Place& place);
void sync_lanes(Warp& warp, uint32_t mask, const Place& place);
enum class Reduction { add, minimum, maximum, bit_and, bit_or };
template <Reduction kReduction, class T>
void reduce(Warp& warp, uint32_t mask, const Place&) {
  T total{};
  bool first = true;
  for (uint32_t lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1u)) continue;
    const auto value = static_cast<T>(exchange_of(warp, lane).value);
    if (first) {
      total = value;
    } else if constexpr (kReduction == Reduction::add) {
      total = static_cast<T>(static_cast<uint32_t>(total) + static_cast<uint32_t>(value));
    } else if constexpr (kReduction == Reduction::minimum) {
      total = std::min(total, value);
    } else if constexpr (kReduction == Reduction::maximum) {
      total = std::max(total, value);
    } else if constexpr (kReduction == Reduction::bit_and) {
      total &= value;
    } else {
      total |= value;
    }
    first = false;
  }
  for (uint32_t lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1u) exchange_of(warp, lane).result = static_cast<uint32_t>(total);
  }
}

template <class T>
inline T shuffle_from(uint32_t mask, T value, uint32_t source, const Place& place) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>, "4 or 8 bytes");
  Exchange exchange{0, source, 0};
  std::memcpy(&exchange.value, &value, sizeof value);
  machine.meet(Meeting::shuffle, mask, place, &exchange, &shuffle);
  std::memcpy(&value, &exchange.result, sizeof value);
  return value;
}

}  // namespace lepton::simt

inline void __syncthreads(lepton::simt::Place place = lepton::simt::Place::here()) {
  lepton::simt::machine.block_barrier(place);
}
inline void __syncwarp(uint32_t mask = 0xffffffffu,
                       lepton::simt::Place place = lepton::simt::Place::here()) {
  lepton::simt::Exchange none{};
  lepton::simt::machine.meet(lepton::simt::Meeting::sync, mask, place, &none,
                             &lepton::simt::sync_lanes);
}
inline void __threadfence() { lepton::simt::current->fenced = true; }
inline void __threadfence_block() {}

template <class T>
inline T __shfl_sync(uint32_t mask, T value, int source, int width = 32,
                     lepton::simt::Place place = lepton::simt::Place::here()) {
  const uint32_t lane = lepton::simt::current->lane;
  const auto w = static_cast<uint32_t>(width);
  return lepton::simt::shuffle_from(mask, value, lane / w * w + static_cast<uint32_t>(source) % w,
                                    place);
}
template <class T>
inline T __shfl_xor_sync(uint32_t mask, T value, int lane_mask, int width = 32,
                         lepton::simt::Place place = lepton::simt::Place::here()) {
  const uint32_t lane = lepton::simt::current->lane;
  const auto w = static_cast<uint32_t>(width);
  const uint32_t source = lane ^ static_cast<uint32_t>(lane_mask);
  return lepton::simt::shuffle_from(mask, value, source / w > lane / w ? lane : source, place);
}
template <class T>
inline T __shfl_down_sync(uint32_t mask, T value, unsigned delta, int width = 32,
                          lepton::simt::Place place = lepton::simt::Place::here()) {
  const uint32_t lane = lepton::simt::current->lane;
  const auto w = static_cast<uint32_t>(width);
  return lepton::simt::shuffle_from(mask, value, lane % w + delta < w ? lane + delta : lane, place);
}
template <class T>
inline T __shfl_up_sync(uint32_t mask, T value, unsigned delta, int width = 32,
                        lepton::simt::Place place = lepton::simt::Place::here()) {
  const uint32_t lane = lepton::simt::current->lane;
  const auto w = static_cast<uint32_t>(width);
  return lepton::simt::shuffle_from(mask, value, lane % w >= delta ? lane - delta : lane, place);
}
inline unsigned __ballot_sync(uint32_t mask, int predicate,
                              lepton::simt::Place place = lepton::simt::Place::here()) {
  lepton::simt::Exchange exchange{predicate != 0, 0, 0};
  lepton::simt::machine.meet(lepton::simt::Meeting::vote, mask, place, &exchange,
                             &lepton::simt::vote);
  return static_cast<unsigned>(exchange.result);
}
inline int __any_sync(uint32_t mask, int predicate,
                      lepton::simt::Place place = lepton::simt::Place::here()) {
  return __ballot_sync(mask, predicate, place) != 0;
}
inline int __all_sync(uint32_t mask, int predicate,
                      lepton::simt::Place place = lepton::simt::Place::here()) {
  return __ballot_sync(mask, predicate, place) == mask;
}
#define LEPTON_REDUCE(name, reduction, type)                                                     \
  inline type name(uint32_t mask, type value,                                                    \
                   lepton::simt::Place place = lepton::simt::Place::here()) {                    \
    lepton::simt::Exchange exchange{static_cast<uint32_t>(value), 0, 0};                         \
    lepton::simt::machine.meet(lepton::simt::Meeting::reduce, mask, place, &exchange,            \
                               &lepton::simt::reduce<lepton::simt::Reduction::reduction, type>); \
    return static_cast<type>(exchange.result);                                                   \
  }
LEPTON_REDUCE(__reduce_add_sync, add, unsigned)
LEPTON_REDUCE(__reduce_add_sync, add, int)
LEPTON_REDUCE(__reduce_min_sync, minimum, unsigned)
LEPTON_REDUCE(__reduce_min_sync, minimum, int)
LEPTON_REDUCE(__reduce_max_sync, maximum, unsigned)
LEPTON_REDUCE(__reduce_max_sync, maximum, int)
LEPTON_REDUCE(__reduce_and_sync, bit_and, unsigned)
LEPTON_REDUCE(__reduce_or_sync, bit_or, unsigned)
#undef LEPTON_REDUCE

// ---- arithmetic ----

inline unsigned __float_as_uint(float x) { return lepton::simt::bits<unsigned>(x); }
inline int __float_as_int(float x) { return lepton::simt::bits<int>(x); }
inline float __uint_as_float(unsigned x) { return lepton::simt::bits<float>(x); }
inline float __int_as_float(int x) { return lepton::simt::bits<float>(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((uint64_t{a} * b) >> 32);
}
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t both = uint64_t{y} << 32 | x;
  unsigned out = 0;
  for (unsigned i = 0; i < 4; ++i) {
    out |= static_cast<unsigned>(both >> (8 * (selector >> (4 * i) & 7u)) & 0xffu) << (8 * i);
  }
  return out;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  const uint64_t both = uint64_t{high} << 32 | low;
  return static_cast<unsigned>(both << (shift & 31u) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  const uint64_t both = uint64_t{high} << 32 | low;
  return static_cast<unsigned>(both >> (shift & 31u));
}
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fmaf(a, b, c); }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
// NaN becomes 0 and out of range saturates, as the instruction does.
inline int __float2int_rn(float x) {
  if (std::isnan(x)) return 0;
  if (x >= 2147483648.0f) return INT32_MAX;
  if (x < -2147483648.0f) return INT32_MIN;
  return static_cast<int>(std::nearbyint(x));
}
inline int __float2int_rz(float x) {
  if (std::isnan(x)) return 0;
  if (x >= 2147483648.0f) return INT32_MAX;
  if (x < -2147483648.0f) return INT32_MIN;
  return static_cast<int>(x);
}
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
using std::fabs;
using std::fmaf;
using std::isfinite;
using std::isnan;

template <class A, class B>
inline constexpr std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  return static_cast<T>(b) < static_cast<T>(a) ? static_cast<T>(b) : static_cast<T>(a);
}
template <class A, class B>
inline constexpr std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(b) : static_cast<T>(a);
}

namespace lepton {

// ---- memory: the twins of those in cuda/device.cuh ----

template <class T>
class Global {
 public:
  explicit Global(T* address) : address_(address), buffer_(simt::global_memory.find(address)) {}
  template <class U>
  static Global of(U* address) {
    return Global(reinterpret_cast<T*>(address));
  }

  using Value = std::remove_const_t<T>;
  using Place = simt::Place;

  Value load(int64_t i = 0, Place place = Place::here()) const { return get<Value>(i, place); }
  Value load_constant(int64_t i = 0, Place place = Place::here()) const {
    return get<Value>(i, place);
  }
  void store(int64_t i, Value value, Place place = Place::here()) const { put(i, value, place); }
  template <class V>
  V load_as(int64_t i = 0, Place place = Place::here()) const {
    return get<V>(i, place);
  }
  template <class V>
  V load_constant_as(int64_t i = 0, Place place = Place::here()) const {
    return get<V>(i, place);
  }
  template <class V>
  void store_as(int64_t i, V value, Place place = Place::here()) const {
    put(i, value, place);
  }
  Value atomic_add(int64_t i, Value value, Place place = Place::here()) const {
    return update(i, [value](Value old) { return static_cast<Value>(old + value); }, place);
  }
  Value atomic_max(int64_t i, Value value, Place place = Place::here()) const {
    return update(i, [value](Value old) { return old < value ? value : old; }, place);
  }
  Value atomic_exchange(int64_t i, Value value, Place place = Place::here()) const {
    return update(i, [value](Value) { return value; }, place);
  }
  Value atomic_cas(int64_t i, Value expected, Value value, Place place = Place::here()) const {
    return update(i, [=](Value old) { return old == expected ? value : old; }, place);
  }

  Global operator+(int64_t i) const { return Global(moved(i), buffer_); }
  T* raw() const { return address_; }
  simt::Buffer* buffer() const { return buffer_; }
  bool is_null() const { return address_ == nullptr; }

 private:
  Global(T* address, simt::Buffer* buffer) : address_(address), buffer_(buffer) {}
  // By integers: the address may lie outside of its tensor until it is used.
  T* moved(int64_t i) const {
    return reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(address_) +
                                static_cast<uintptr_t>(i * static_cast<int64_t>(sizeof(T))));
  }
  template <class V>
  V get(int64_t i, const Place& place) const {
    const T* from = moved(i);
    simt::global_memory.access(buffer_, from, sizeof(V), simt::AccessKind::read, place);
    V value;
    std::memcpy(&value, static_cast<const void*>(from), sizeof value);
    return value;
  }
  template <class V>
  void put(int64_t i, const V& value, const Place& place) const {
    static_assert(!std::is_const_v<T>, "a Global<const T> is not stored to");
    T* to = moved(i);
    simt::global_memory.access(buffer_, to, sizeof(V), simt::AccessKind::write, place);
    std::memcpy(static_cast<void*>(to), &value, sizeof value);
  }
  template <class F>
  Value update(int64_t i, const F& change, const Place& place) const {
    T* to = moved(i);
    const bool fenced = simt::current->fenced;
    simt::global_memory.access(buffer_, to, sizeof(T), simt::AccessKind::atomic, place);
    simt::current->fenced = fenced;
    simt::global_memory.publish(to);
    Value old;
    std::memcpy(&old, to, sizeof old);
    const Value next = change(old);
    std::memcpy(to, &next, sizeof next);
    return old;
  }
  T* address_;
  simt::Buffer* buffer_;
};

template <class T>
class Shared {
 public:
  explicit Shared(uint32_t offset_bytes) : address_(simt::SharedMemory::kBase + offset_bytes) {}
  using Place = simt::Place;

  T load(int i = 0, Place place = Place::here()) const { return get<T>(i, place); }
  void store(int i, T value, Place place = Place::here()) const { put(i, value, place); }
  template <class V>
  V load_as(int i = 0, Place place = Place::here()) const {
    return get<V>(i, place);
  }
  template <class V>
  void store_as(int i, V value, Place place = Place::here()) const {
    put(i, value, place);
  }
  T atomic_add(int i, T value, Place place = Place::here()) const {
    return update(i, [value](T old) { return static_cast<T>(old + value); }, place);
  }
  T atomic_max(int i, T value, Place place = Place::here()) const {
    return update(i, [value](T old) { return old < value ? value : old; }, place);
  }

  uint32_t address(int i = 0) const {
    return address_ + static_cast<uint32_t>(i) * static_cast<uint32_t>(sizeof(T));
  }
  Shared operator+(int i) const { return from_address(address(i)); }
  static Shared from_address(uint32_t address) {
    return Shared(address - simt::SharedMemory::kBase);
  }

 private:
  template <class V>
  V get(int i, const Place& place) const {
    V value;
    std::memcpy(&value,
                simt::machine.shared.access(address(i), sizeof(V), simt::AccessKind::read, place),
                sizeof value);
    return value;
  }
  template <class V>
  void put(int i, const V& value, const Place& place) const {
    std::memcpy(simt::machine.shared.access(address(i), sizeof(V), simt::AccessKind::write, place),
                &value, sizeof value);
  }
  template <class F>
  T update(int i, const F& change, const Place& place) const {
    uint8_t* at =
        simt::machine.shared.access(address(i), sizeof(T), simt::AccessKind::atomic, place);
    T old;
    std::memcpy(&old, at, sizeof old);
    const T next = change(old);
    std::memcpy(at, &next, sizeof next);
    return old;
  }
  uint32_t address_;
};

}  // namespace lepton
