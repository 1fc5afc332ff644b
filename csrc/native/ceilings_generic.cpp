// Ceilings of code that the compiler made from plain loops: no bound of the machine, but what the
// generic kernels can hope for.
#include "native/ceilings.h"

namespace lepton::ceilings {
namespace {

constexpr int kLanes = 64;

double fp32(int64_t steps) {
  float sum[kLanes] = {}, a[kLanes], b[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    a[i] = 1.0f;
    b[i] = 1e-6f * static_cast<float>(i);
  }
  for (int64_t step = 0; step < steps; ++step) {
    for (int i = 0; i < kLanes; ++i) sum[i] += a[i] * b[i];
    // Without it the compiler would multiply once and add `steps` times.
    __asm__ volatile("" : : "r"(a), "r"(b), "r"(sum) : "memory");
  }
  return 2.0 * kLanes * static_cast<double>(steps);
}

double int8(int64_t steps) {
  constexpr int kDepth = 512;
  int8_t a[kDepth], b[kDepth];
  for (int i = 0; i < kDepth; ++i) {
    a[i] = static_cast<int8_t>(i);
    b[i] = static_cast<int8_t>(3 * i);
  }
  for (int64_t step = 0; step < steps; ++step) {
    int32_t sum = 0;
    for (int i = 0; i < kDepth; ++i) sum += int32_t{a[i]} * b[i];
    __asm__ volatile("" : : "r"(a), "r"(b), "r"(sum) : "memory");
  }
  return 2.0 * kDepth * static_cast<double>(steps);
}

void read(const char* data, size_t bytes) {
  const auto* words = reinterpret_cast<const uint64_t*>(data);
  uint64_t sum = 0;
  for (size_t i = 0; i < bytes / sizeof(uint64_t); ++i) sum += words[i];
  __asm__ volatile("" : : "r"(sum));
}

}  // namespace

const Level kGenericLevel = {"generic", isa::kGeneric, fp32, nullptr, int8, read};

}  // namespace lepton::ceilings
