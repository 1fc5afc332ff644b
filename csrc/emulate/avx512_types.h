// Types and helpers of the AVX-512 emulation: registers as plain memory, lanes seen through memcpy.
// Semantics everywhere in this folder follow the Intel SDM (volume 2) and the Intrinsics Guide.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>

// The host needs AVX2, FMA and F16C, as the region of the kernels that call these functions does.
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")

namespace lepton_emulate {

// may_alias: kernels may dereference a cast pointer, as they may with the real types.
struct m512;
struct m512i;
struct m512d;

struct __attribute__((aligned(64), may_alias)) m512bh {
  std::uint16_t lane[32];
  explicit operator m512i() const;
};
struct __attribute__((aligned(64), may_alias)) m512i {
  std::int32_t lane[16];
  explicit operator m512bh()
      const;  // gcc 12 has no intrinsic for this cast; (__m512bh)x is how one writes it
  explicit operator m512() const;
  explicit operator m512d() const;
};
struct __attribute__((aligned(64), may_alias)) m512 {
  float lane[16];
  explicit operator m512i() const;
  explicit operator m512d() const;
};
struct __attribute__((aligned(64), may_alias)) m512d {
  double lane[8];
  explicit operator m512i() const;
  explicit operator m512() const;
};
#define __m512 lepton_emulate::m512
#define __m512i lepton_emulate::m512i
#define __m512d lepton_emulate::m512d
#define __m512bh lepton_emulate::m512bh

[[noreturn]] static inline void fail(const char* what, const char* why) {
  std::fprintf(stderr, "lepton emulation: %s: %s\n", what, why);
  std::abort();
}

// An aligned access faults on hardware; here it says so.
static inline void check_aligned(const void* p, std::size_t to, const char* what) {
  if (reinterpret_cast<std::uintptr_t>(p) % to != 0) fail(what, "address is not aligned");
}

template <class T, int N>
struct Pack {
  static constexpr int size = N;
  T at[N];
};

// The lanes of a register (ours, or a real 128/256-bit one) as an array.
template <class T, class V>
static inline Pack<T, sizeof(V) / sizeof(T)> lanes(const V& v) {
  Pack<T, sizeof(V) / sizeof(T)> r;
  std::memcpy(&r, &v, sizeof(V));
  return r;
}

// The reverse. A narrower array fills the low lanes; the others become zero.
template <class V, class T, int N>
static inline V join(const Pack<T, N>& p) {
  static_assert(sizeof(p) <= sizeof(V), "too many lanes");
  V r;
  if (sizeof(p) < sizeof(V)) std::memset(static_cast<void*>(&r), 0, sizeof(V));
  std::memcpy(static_cast<void*>(&r), &p, sizeof(p));
  return r;
}

// Same bits, other type; To may be narrower (the low part is kept).
template <class To, class From>
static inline To bits(const From& x) {
  static_assert(sizeof(To) <= sizeof(From), "widening is spelled out where it happens");
  To r;
  std::memcpy(static_cast<void*>(&r), &x, sizeof(To));
  return r;
}

inline m512bh::operator m512i() const { return bits<m512i>(*this); }
inline m512i::operator m512bh() const { return bits<m512bh>(*this); }
inline m512i::operator m512() const { return bits<m512>(*this); }
inline m512i::operator m512d() const { return bits<m512d>(*this); }
inline m512::operator m512i() const { return bits<m512i>(*this); }
inline m512::operator m512d() const { return bits<m512d>(*this); }
inline m512d::operator m512i() const { return bits<m512i>(*this); }
inline m512d::operator m512() const { return bits<m512>(*this); }

template <class V>
static inline V zero() {
  V r;
  std::memset(static_cast<void*>(&r), 0, sizeof(V));
  return r;
}

// Contents that the Guide calls undefined: a pattern that is a NaN in fp32 and that no correct
// kernel lets through.
template <class V>
static inline V undefined() {
  Pack<std::uint32_t, sizeof(V) / 4> p;
  for (int i = 0; i < p.size; ++i) p.at[i] = 0xFFA5A5A5u;
  return join<V>(p);
}

// The mask type that goes with a number of lanes.
template <int N>
struct MaskFor {
  using type = __mmask8;
};
template <>
struct MaskFor<16> {
  using type = __mmask16;
};
template <>
struct MaskFor<32> {
  using type = __mmask32;
};
template <>
struct MaskFor<64> {
  using type = __mmask64;
};
template <class T, std::size_t Bytes>
using mask_t = typename MaskFor<int(Bytes / sizeof(T))>::type;

static inline bool bit(std::uint64_t k, int i) { return (k >> i) & 1; }

// The unsigned integer as wide as a lane.
template <class T>
using index_t = typename std::conditional<
    sizeof(T) == 8, std::uint64_t,
    typename std::conditional<
        sizeof(T) == 4, std::uint32_t,
        typename std::conditional<sizeof(T) == 2, std::uint16_t, std::uint8_t>::type>::type>::type;

// Lane by lane: yes where the mask has a one, no elsewhere. Merge- and zero-masking are both this.
// On bits, without a choice between two places in memory: gcc 12 at -O3 reorders the stores before
// such a load.
template <class T, class V>
static inline V select(std::uint64_t k, const V& yes, const V& no) {
  using U = index_t<T>;
  const auto y = lanes<U>(yes), n = lanes<U>(no);
  Pack<U, y.size> r;
  for (int i = 0; i < r.size; ++i) {
    const U all = static_cast<U>(U(0) - U((k >> i) & 1));
    r.at[i] = static_cast<U>(n.at[i] ^ ((n.at[i] ^ y.at[i]) & all));
  }
  return join<V>(r);
}

}  // namespace lepton_emulate

// Function makers. W is mm512, mm256 or mm; V the register; T the lane type; EXPR the result of one
// lane.
#define LEPTON_EMULATE_UNARY(W, NAME, V, T, EXPR)                                     \
  static inline V W##_##NAME(const V& a_) {                                           \
    const auto x = lanes<T>(a_);                                                      \
    Pack<T, sizeof(V) / sizeof(T)> r;                                                 \
    for (int i = 0; i < r.size; ++i) {                                                \
      const T a = x.at[i];                                                            \
      r.at[i] = static_cast<T>(EXPR);                                                 \
    }                                                                                 \
    return join<V>(r);                                                                \
  }                                                                                   \
  static inline V W##_mask_##NAME(const V& src, mask_t<T, sizeof(V)> k, const V& a) { \
    return select<T>(k, W##_##NAME(a), src);                                          \
  }                                                                                   \
  static inline V W##_maskz_##NAME(mask_t<T, sizeof(V)> k, const V& a) {              \
    return select<T>(k, W##_##NAME(a), zero<V>());                                    \
  }

#define LEPTON_EMULATE_BINARY(W, NAME, V, T, EXPR)       \
  static inline V W##_##NAME(const V& a_, const V& b_) { \
    const auto x = lanes<T>(a_), y = lanes<T>(b_);       \
    Pack<T, sizeof(V) / sizeof(T)> r;                    \
    for (int i = 0; i < r.size; ++i) {                   \
      const T a = x.at[i], b = y.at[i];                  \
      r.at[i] = static_cast<T>(EXPR);                    \
    }                                                    \
    return join<V>(r);                                   \
  }                                                      \
  LEPTON_EMULATE_MASKED2(W, NAME, V, T, const V&, const V&)

// Merge- and zero-masked forms of a function of two arguments.
#define LEPTON_EMULATE_MASKED2(W, NAME, V, T, A, B)                                 \
  static inline V W##_mask_##NAME(const V& src, mask_t<T, sizeof(V)> k, A a, B b) { \
    return select<T>(k, W##_##NAME(a, b), src);                                     \
  }                                                                                 \
  static inline V W##_maskz_##NAME(mask_t<T, sizeof(V)> k, A a, B b) {              \
    return select<T>(k, W##_##NAME(a, b), zero<V>());                               \
  }

// One lane with an immediate or a scalar count n.
#define LEPTON_EMULATE_IMMEDIATE(W, NAME, V, T, EXPR) \
  static inline V W##_##NAME(const V& a_, int n_) {   \
    const unsigned n = static_cast<unsigned>(n_);     \
    const auto x = lanes<T>(a_);                      \
    Pack<T, sizeof(V) / sizeof(T)> r;                 \
    for (int i = 0; i < r.size; ++i) {                \
      const T a = x.at[i];                            \
      r.at[i] = static_cast<T>(EXPR);                 \
    }                                                 \
    return join<V>(r);                                \
  }                                                   \
  LEPTON_EMULATE_MASKED2(W, NAME, V, T, const V&, int)

#pragma GCC pop_options
