// The least time in which gradients of two ranks can be summed through memory: threads of one
// process that add two arrays and write the sum to both, with no message.
#include <algorithm>
#include <chrono>
#include <thread>
#include <vector>

#include "native/bindings.h"
#include "params/bucket.h"

namespace lepton {
namespace {

// Seconds of one pass over two arrays of `bytes` each.
double bucket_pass_seconds(int64_t bytes, int type, int threads, int rounds, uintptr_t kernels) {
  if (bytes <= 0 || threads < 1 || rounds < 1) {
    throw std::invalid_argument("bucket_pass_seconds: arguments must be positive");
  }
  const auto* reduce = reinterpret_cast<const BucketKernels* (*)()>(kernels)();
  const auto kind = static_cast<BucketType>(type);
  const int64_t count = bytes / bytes_of(kind);
  std::vector<uint8_t> first(static_cast<size_t>(bytes), 0), second(first);
  const auto run = [&](int thread) {
    const void* in[] = {first.data(), second.data()};
    void* out[] = {first.data(), second.data()};
    const BucketReduce p{in, 2, out, 2, kind, kind, 1.0f};
    const int64_t share = (count / threads + 63) / 64 * 64;
    const int64_t begin = std::min(share * thread, count), end = std::min(begin + share, count);
    for (int i = 0; i < rounds; ++i) reduce->reduce(p, begin, end, false);
  };
  const auto begin = std::chrono::steady_clock::now();
  std::vector<std::thread> others;
  for (int t = 1; t < threads; ++t) others.emplace_back(run, t);
  run(0);
  for (std::thread& other : others) other.join();
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
  return taken.count() / rounds;
}

}  // namespace

void register_bucket_ceiling(pybind11::module_& module) {
  module.def("bucket_pass_seconds", &bucket_pass_seconds,
             pybind11::call_guard<pybind11::gil_scoped_release>());
}

}  // namespace lepton
