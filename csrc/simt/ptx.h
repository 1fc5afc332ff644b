// The instructions of cuda/ptx.cuh, from the tables of the PTX ISA 9.0. Included by it only.
#pragma once

#include "simt/language.h"
#include "simt/matrix.h"
#include "simt/number.h"

namespace lepton {

template <int kBytes, class T>
inline void cp_async(uint32_t destination, Global<T> source, uint32_t valid_bytes = kBytes,
                     simt::Place place = simt::Place::here()) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "cp.async moves 4, 8 or 16 bytes");
  simt::copy_async(destination, source.buffer(), source.raw(), kBytes, valid_bytes, place);
}
inline void cp_async_commit() { simt::copy_commit(); }
template <int kPending>
inline void cp_async_wait() {
  simt::copy_wait(kPending);
}

template <bool kTranspose = false>
inline void ldmatrix_x1(uint32_t& r0, uint32_t address, simt::Place place = simt::Place::here()) {
  uint32_t r[4];
  simt::load_matrices(r, address, 1, kTranspose, place);
  r0 = r[0];
}
template <bool kTranspose = false>
inline void ldmatrix_x2(uint32_t& r0, uint32_t& r1, uint32_t address,
                        simt::Place place = simt::Place::here()) {
  uint32_t r[4];
  simt::load_matrices(r, address, 2, kTranspose, place);
  r0 = r[0];
  r1 = r[1];
}
template <bool kTranspose = false>
inline void ldmatrix_x4(uint32_t& r0, uint32_t& r1, uint32_t& r2, uint32_t& r3, uint32_t address,
                        simt::Place place = simt::Place::here()) {
  uint32_t r[4];
  simt::load_matrices(r, address, 4, kTranspose, place);
  r0 = r[0];
  r1 = r[1];
  r2 = r[2];
  r3 = r[3];
}
template <bool kTranspose = false>
inline void ldmatrix_x4(uint32_t (&r)[4], uint32_t address,
                        simt::Place place = simt::Place::here()) {
  simt::load_matrices(r, address, 4, kTranspose, place);
}
inline uint32_t thread_index_again() { return threadIdx.x; }

inline uint32_t movmatrix(uint32_t fragment, simt::Place place = simt::Place::here()) {
  return simt::transpose_matrix(fragment, place);
}

template <class T>
inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                         simt::Place place = simt::Place::here()) {
  constexpr auto kType = is_same<T, f16> ? simt::MmaType::f16 : simt::MmaType::bf16;
  simt::multiply({kType, false, 0, d, a, {b0, b1, 0, 0}, 0}, place);
}
inline void mma_m16n8k32_s8(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                            simt::Place place = simt::Place::here()) {
  simt::multiply({simt::MmaType::s8, false, 0, d, a, {b0, b1, 0, 0}, 0}, place);
}
template <class T, int kSelector = 0>
inline void mma_sp_m16n8k32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[4],
                            uint32_t metadata, simt::Place place = simt::Place::here()) {
  static_assert(kSelector == 0 || kSelector == 1, "a pair of each four lanes");
  constexpr auto kType = is_same<T, f16> ? simt::MmaType::f16 : simt::MmaType::bf16;
  simt::multiply({kType, true, kSelector, d, a, {b[0], b[1], b[2], b[3]}, metadata}, place);
}
inline void mma_sp_m16n8k64_s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[4],
                               uint32_t metadata, simt::Place place = simt::Place::here()) {
  simt::multiply({simt::MmaType::s8, true, 0, d, a, {b[0], b[1], b[2], b[3]}, metadata}, place);
}

inline void named_barrier_sync(uint32_t id, uint32_t threads,
                               simt::Place place = simt::Place::here()) {
  simt::machine.named_barrier(id, threads, true, place);
}
inline void named_barrier_arrive(uint32_t id, uint32_t threads,
                                 simt::Place place = simt::Place::here()) {
  simt::machine.named_barrier(id, threads, false, place);
}

inline float exp2_approx(float x) { return simt::flushed(std::exp2(simt::flushed(x))); }
inline float log2_approx(float x) { return std::log2(simt::flushed(x)); }
inline float reciprocal_approx(float x) { return simt::flushed(1.0f / simt::flushed(x)); }
inline float tanh_approx(float x) { return simt::tanh_11_bits(x); }

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) { return simt::float_of_bf16(x.bits); }
inline float to_float(f16 x) { return simt::float_of_f16(x.bits); }
template <class T>
inline T from_float(float x) {
  if constexpr (is_same<T, float>) {
    return x;
  } else if constexpr (is_same<T, f16>) {
    return {simt::f16_of_float(x)};
  } else {
    return {simt::bf16_of_float(x)};
  }
}
template <class T>
inline uint32_t pack2(float low, float high) {
  return uint32_t{from_float<T>(high).bits} << 16 | from_float<T>(low).bits;
}
template <class T>
inline float2 unpack2(uint32_t packed) {
  return make_float2(to_float(T{static_cast<uint16_t>(packed & 0xffffu)}),
                     to_float(T{static_cast<uint16_t>(packed >> 16)}));
}
inline int32_t dot4(uint32_t a, uint32_t b, int32_t c) {
  auto sum = static_cast<uint32_t>(c);
  for (int i = 0; i < 4; ++i) {
    sum += static_cast<uint32_t>(static_cast<int8_t>(a >> (8 * i)) *
                                 static_cast<int8_t>(b >> (8 * i)));
  }
  return static_cast<int32_t>(sum);
}

}  // namespace lepton
