// Checks csrc/cpu/activation.h and the 16-bit conversions of csrc/cpu/simd_*.h.
//
//   g++ -O3 -std=c++17 -ffp-contract=off -fno-math-errno -I csrc
//       tests/cpp/activation_check.cpp -o activation_check -lpthread
//   ./activation_check         every 4099th float, seconds
//   ./activation_check --all   every float; with -mfma, which makes std::fma an instruction and
//                              changes no bit, some fifteen minutes on two idle cores
//
// Each activation: the AVX2 result is within 2 ULP of the exact value, and the portable code
// gives the same bits. With -DLEPTON_CHECK_AVX512 (and -DLEPTON_EMULATE_ISA where the machine
// has no AVX-512) so does the AVX-512 code. Without AVX2 only the portable code is checked.
// Exit status 1 on a violation.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <thread>
#include <vector>

#include "cpu/intrinsics.h"
#include "cpu/target.h"

namespace {

constexpr int kChunk = 1 << 12;

struct Isa {
  const char* name;
  void (*activation)(int which, const float* x, float* y);
  void (*to_16)(int which, const float* x, uint16_t* y, int n);
  void (*from_16)(int which, const uint16_t* x, float* y, int n);
};

}  // namespace

// The same drivers for each ISA, as text: a template would be instantiated at the end of the
// file, outside the target region. The last lanes go through the _n forms.
#define LEPTON_CHECK_DRIVERS                                                                   \
  template <F32 (*f)(F32)>                                                                     \
  void apply(const float* x, float* y) {                                                       \
    for (int i = 0; i < kChunk; i += F32::width) f32_store(y + i, f(f32_load(x + i)));         \
  }                                                                                            \
  void activation(int which, const float* x, float* y) {                                       \
    switch (which) {                                                                           \
      case 0: return apply<exp_f32>(x, y);                                                     \
      case 1: return apply<sigmoid_f32>(x, y);                                                 \
      case 2: return apply<silu_f32>(x, y);                                                    \
      case 3: return apply<gelu_f32>(x, y);                                                    \
      case 4: return apply<gelu_tanh_f32>(x, y);                                               \
      default: return apply<relu_f32>(x, y);                                                   \
    }                                                                                          \
  }                                                                                            \
  void to_16(int which, const float* x, uint16_t* y, int n) {                                  \
    int i = 0;                                                                                 \
    for (; i + F32::width <= n; i += F32::width) {                                             \
      which ? f32_store_fp16(y + i, f32_load(x + i)) : f32_store_bf16(y + i, f32_load(x + i)); \
    }                                                                                          \
    const F32 rest = f32_load_n(x + i, n - i);                                                 \
    which ? f32_store_fp16_n(y + i, rest, n - i) : f32_store_bf16_n(y + i, rest, n - i);       \
  }                                                                                            \
  void from_16(int which, const uint16_t* x, float* y, int n) {                                \
    int i = 0;                                                                                 \
    for (; i + F32::width <= n; i += F32::width) {                                             \
      f32_store(y + i, which ? f32_load_fp16(x + i) : f32_load_bf16(x + i));                   \
    }                                                                                          \
    f32_store_n(y + i, which ? f32_load_fp16_n(x + i, n - i) : f32_load_bf16_n(x + i, n - i),  \
                n - i);                                                                        \
  }

// Blank lines keep clang-format from sorting activation.h before what it needs.
namespace generic {
#include "cpu/simd_generic.h"

#include "cpu/activation.h"
LEPTON_CHECK_DRIVERS
}  // namespace generic

LEPTON_TARGET_BEGIN_AVX2
namespace avx2 {
#include "cpu/simd_avx2.h"

#include "cpu/activation.h"
LEPTON_CHECK_DRIVERS
}  // namespace avx2
LEPTON_TARGET_END

#ifdef LEPTON_CHECK_AVX512
LEPTON_TARGET_BEGIN_AVX512
namespace avx512 {
#include "cpu/simd_avx512.h"

#include "cpu/activation.h"
LEPTON_CHECK_DRIVERS
}  // namespace avx512
LEPTON_TARGET_END
#endif

namespace {

constexpr double kMaxUlp = 2.0;

double ref_exp(double x) { return std::exp(x); }
double ref_sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
double ref_silu(double x) { return x == -HUGE_VAL ? 0 : x * ref_sigmoid(x); }
double ref_gelu(double x) {
  return x == -HUGE_VAL ? 0 : 0.5 * x * std::erfc(-x * 0.70710678118654752440);
}
double ref_gelu_tanh(double x) {
  // As x * sigmoid: 1 + tanh cancels in the negative tail.
  const double w = 1.59576912160573071 * (x + 0.044715 * x * x * x);
  return x == -HUGE_VAL ? 0 : x * ref_sigmoid(w);
}
double ref_relu(double x) { return x < 0 ? 0 : x; }

struct Function {
  const char* name;
  double (*reference)(double);
};
constexpr Function kFunctions[] = {
    {"exp", ref_exp},   {"sigmoid", ref_sigmoid},     {"silu", ref_silu},
    {"gelu", ref_gelu}, {"gelu_tanh", ref_gelu_tanh}, {"relu", ref_relu},
};

uint32_t bits(float x) {
  uint32_t u;
  std::memcpy(&u, &x, sizeof u);
  return u;
}
float from_bits(uint32_t u) {
  float x;
  std::memcpy(&x, &u, sizeof x);
  return x;
}

// Distance in units of the last place of a float of the size of `exact`; below the smallest
// normal number the unit is the smallest denormal.
double ulp_error(float got, double exact) {
  if (std::isnan(exact) || std::isnan(got)) {
    return std::isnan(exact) && std::isnan(got) ? 0 : HUGE_VAL;
  }
  // Beyond the largest float by half a place or more, infinity is right.
  const double overflow = 0x1.ffffffp127;
  if (std::fabs(exact) >= overflow) exact = std::copysign(HUGE_VAL, exact);
  if (std::isinf(exact)) return got == exact || std::fabs(got) == 0x1.fffffep127f ? 0 : HUGE_VAL;
  if (std::isinf(got)) got = std::copysign(0x1p127f, got), exact -= std::copysign(0x1p127, exact);
  int exponent;
  std::frexp(exact, &exponent);
  return std::fabs(got - exact) / std::ldexp(1.0, std::max(exponent - 24, -149));
}

struct Worst {
  double normal = 0, denormal = 0;
  float normal_at = 0, denormal_at = 0;
  uint64_t different = 0;  // results whose bits differ between ISAs
  float different_at = 0;

  void merge(const Worst& o) {
    if (o.normal > normal) normal = o.normal, normal_at = o.normal_at;
    if (o.denormal > denormal) denormal = o.denormal, denormal_at = o.denormal_at;
    if (o.different != 0) different_at = o.different_at;
    different += o.different;
  }
};

Worst check_chunk(int which, const std::vector<Isa>& isas, uint64_t first, uint64_t step) {
  std::vector<float> x(kChunk), y(kChunk), other(kChunk);
  for (int i = 0; i < kChunk; ++i) {
    x[i] = from_bits(static_cast<uint32_t>(std::min<uint64_t>(first + i * step, 0xFFFFFFFF)));
  }
  Worst worst;
  isas[0].activation(which, x.data(), y.data());
  for (int i = 0; i < kChunk; ++i) {
    const double exact = kFunctions[which].reference(x[i]);
    const double error = ulp_error(y[i], exact);
    const bool denormal = std::fabs(exact) < 0x1p-126;
    double& most = denormal ? worst.denormal : worst.normal;
    if (error > most) most = error, (denormal ? worst.denormal_at : worst.normal_at) = x[i];
  }
  for (size_t k = 1; k < isas.size(); ++k) {
    isas[k].activation(which, x.data(), other.data());
    for (int i = 0; i < kChunk; ++i) {
      const bool both_nan = std::isnan(y[i]) && std::isnan(other[i]);
      if (bits(y[i]) != bits(other[i]) && !both_nan) ++worst.different, worst.different_at = x[i];
    }
  }
  return worst;
}

bool check_activation(int which, const std::vector<Isa>& isas, uint64_t step) {
  const uint64_t stride = kChunk * step;
  const uint64_t chunks = ((uint64_t{1} << 32) + stride - 1) / stride;
  std::atomic<uint64_t> next{0};
  const unsigned count = std::max(1u, std::thread::hardware_concurrency());
  std::vector<Worst> found(count);
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < count; ++t) {
    threads.emplace_back([&, t] {
      for (uint64_t c = next++; c < chunks; c = next++) {
        found[t].merge(check_chunk(which, isas, c * stride, step));
      }
    });
  }
  Worst worst;
  for (unsigned t = 0; t < count; ++t) {
    threads[t].join();
    worst.merge(found[t]);
  }
  const bool ok = worst.normal <= kMaxUlp && worst.denormal <= kMaxUlp && worst.different == 0;
  std::printf("%-10s max ULP %.4f at %a (%g); denormal results %.4f at %a (%g); ",
              kFunctions[which].name, worst.normal, static_cast<double>(worst.normal_at),
              static_cast<double>(worst.normal_at), worst.denormal,
              static_cast<double>(worst.denormal_at), static_cast<double>(worst.denormal_at));
  if (worst.different != 0) {
    std::printf("%llu results differ between ISAs, one at %a; ",
                static_cast<unsigned long long>(worst.different),
                static_cast<double>(worst.different_at));
  }
  std::printf("%s\n", ok ? "ok" : "FAILED");
  std::fflush(stdout);
  return ok;
}

// The limits, bit for bit where the sign of a zero matters.
bool check_special(const Isa& isa) {
  const float inf = HUGE_VALF, nan = std::numeric_limits<float>::quiet_NaN();
  const float args[] = {inf, -inf, 0.0f, -0.0f, nan, -nan};
  const float expected[6][4] = {{inf, 0, 1, 1},        {1, 0, 0.5f, 0.5f},
                                {inf, 0, 0.0f, -0.0f}, {inf, 0, 0.0f, -0.0f},
                                {inf, 0, 0.0f, -0.0f}, {inf, -0.0f, 0.0f, -0.0f}};
  bool ok = true;
  for (int which = 0; which < 6; ++which) {
    std::vector<float> x(kChunk), y(kChunk);
    std::copy(std::begin(args), std::end(args), x.begin());
    isa.activation(which, x.data(), y.data());
    for (int i = 0; i < 6; ++i) {
      const bool same = i >= 4   ? std::isnan(y[i])
                        : i == 1 ? y[i] == expected[which][i]
                                 : bits(y[i]) == bits(expected[which][i]);
      if (same) continue;
      std::printf("%s: %s(%g) is %g\n", isa.name, kFunctions[which].name,
                  static_cast<double>(args[i]), static_cast<double>(y[i]));
      ok = false;
    }
  }
  return ok;
}

// Every 16-bit pattern to float and back, and floats to 16 bits, against the portable code.
bool check_conversions(const Isa& isa, const Isa& portable, uint64_t step) {
  constexpr int n = 4099;  // an odd count, so that the _n forms run too
  bool ok = true;
  for (int which = 0; which < 2; ++which) {
    uint64_t bad = 0;
    std::vector<float> x(n), y(n + 16), z(n);
    std::vector<uint16_t> h(n), a(n + 16), b(n);
    const auto mark = static_cast<uint16_t>(0xABCD);
    for (uint32_t first = 0; first < 65536; first += n) {
      for (int i = 0; i < n; ++i) h[i] = static_cast<uint16_t>(first + i);
      std::fill(y.begin(), y.end(), 0.25f);
      isa.from_16(which, h.data(), y.data(), n);
      portable.from_16(which, h.data(), z.data(), n);
      bad += std::memcmp(y.data(), z.data(), n * sizeof(float)) != 0;
      bad += std::count(y.begin() + n, y.end(), 0.25f) != 16;
    }
    for (uint64_t first = 0; first < (uint64_t{1} << 32); first += n * step) {
      for (int i = 0; i < n; ++i) x[i] = from_bits(static_cast<uint32_t>(first + i * step));
      std::fill(a.begin(), a.end(), mark);
      isa.to_16(which, x.data(), a.data(), n);
      portable.to_16(which, x.data(), b.data(), n);
      bad += std::memcmp(a.data(), b.data(), n * sizeof(uint16_t)) != 0;
      bad += std::count(a.begin() + n, a.end(), mark) != 16;
    }
    std::printf("%s conversions, %s: %s\n", which ? "fp16" : "bf16", isa.name,
                bad == 0 ? "ok" : "FAILED");
    ok = ok && bad == 0;
  }
  return ok;
}

}  // namespace

int main(int argc, char** argv) {
  const bool all = argc > 1 && std::strcmp(argv[1], "--all") == 0;
  const uint64_t step = all ? 1 : 4099;
  const Isa portable = {"generic", generic::activation, generic::to_16, generic::from_16};
  std::vector<Isa> isas;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c")) {
    isas.push_back({"avx2", avx2::activation, avx2::to_16, avx2::from_16});
#ifdef LEPTON_CHECK_AVX512
    isas.push_back({"avx512", avx512::activation, avx512::to_16, avx512::from_16});
#endif
  } else {
    std::printf("this CPU has no AVX2: portable code only\n");
  }
#endif
  isas.push_back(portable);

  bool ok = true;
  for (const Isa& isa : isas) ok = check_special(isa) && ok;
  for (int which = 0; which < 6; ++which) ok = check_activation(which, isas, step) && ok;
  for (const Isa& isa : isas) {
    if (isa.to_16 != portable.to_16) ok = check_conversions(isa, portable, step) && ok;
  }
  return ok ? 0 : 1;
}
