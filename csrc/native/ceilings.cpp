// Times the loops of the ceilings_*.cpp files on every thread at once.
#include "native/ceilings.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "native/register.h"

namespace py = pybind11;

namespace lepton::ceilings {
namespace {

using Clock = std::chrono::steady_clock;

// The best counts, since a ceiling is what is possible; short runs slip between interruptions.
constexpr int kRepeats = 20;
constexpr const Level* kLevels[] = {&kGenericLevel, &kAvx2Level, &kVnniLevel, &kAmxLevel};

bool present(const Level& level) { return (isa::present() & level.needs) == level.needs; }

void check_threads(int threads) {
  if (threads < 1 || threads > 4096) {
    throw std::invalid_argument("ceilings: threads must be from 1 to 4096, got " +
                                std::to_string(threads));
  }
}

// Seconds from the common start until the last thread has finished `body(thread)`.
double timed(int threads, const std::function<void(int)>& body) {
  std::atomic<int> ready{0};
  std::atomic<bool> go{false};
  std::vector<std::thread> pool;
  for (int t = 0; t < threads; ++t) {
    pool.emplace_back([&, t] {
      ready.fetch_add(1);
      while (!go.load(std::memory_order_acquire)) std::this_thread::yield();
      body(t);
    });
  }
  while (ready.load() < threads) std::this_thread::yield();
  const auto start = Clock::now();
  go.store(true, std::memory_order_release);
  for (std::thread& worker : pool) worker.join();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

Loop loop_of(const Level& level, const std::string& kind) {
  if (kind == "fp32") return level.fp32;
  if (kind == "bf16") return level.bf16;
  if (kind == "int8") return level.int8;
  throw std::invalid_argument("peak: kind must be fp32, bf16 or int8, got '" + kind + "'");
}

std::vector<std::string> names_with(const std::function<bool(const Level&)>& wanted) {
  std::vector<std::string> names;
  for (const Level* level : kLevels) {
    if (present(*level) && wanted(*level)) names.emplace_back(level->isa);
  }
  return names;
}

std::vector<std::string> isas(const std::string& kind) {
  return names_with([&](const Level& level) { return loop_of(level, kind) != nullptr; });
}

std::vector<std::string> read_isas() {
  return names_with([](const Level& level) { return level.read != nullptr; });
}

const Level& find(const std::string& name, const std::vector<std::string>& names,
                  const std::string& what) {
  if (std::find(names.begin(), names.end(), name) == names.end()) {
    std::string list;
    for (const std::string& present_name : names) list += " " + present_name;
    throw std::invalid_argument(what + ": unknown or absent ISA '" + name +
                                "'; measurable on this machine:" + list);
  }
  return **std::find_if(std::begin(kLevels), std::end(kLevels),
                        [&](const Level* level) { return name == level->isa; });
}

double peak(const std::string& kind, const std::string& isa, int threads, double seconds) {
  check_threads(threads);
  const Loop loop = loop_of(find(isa, isas(kind), "peak(" + kind + ")"), kind);
  int64_t steps = 1 << 12;
  auto run = [&](std::vector<double>& done) {
    return timed(threads, [&](int t) { done[t] = loop(steps); });
  };
  std::vector<double> done(threads);
  const double wanted = std::max(seconds, 1e-3) / kRepeats;
  for (double took = run(done); took < wanted / 2 && steps < int64_t{1} << 40; took = run(done)) {
    const double factor = took > 0 ? wanted / took : 8.0;
    steps = static_cast<int64_t>(static_cast<double>(steps) * std::clamp(factor, 1.5, 16.0));
  }
  double best = 0;
  for (int i = 0; i < kRepeats; ++i) {
    const double took = run(done);
    double total = 0;
    for (double operations : done) total += operations;
    best = std::max(best, total / took);
  }
  return best;
}

// Memory that the system may back with huge pages, so that a read is not held up by page walks.
class Pages {
 public:
  explicit Pages(size_t bytes) : bytes_(bytes) {
    void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) throw std::bad_alloc();
    data_ = static_cast<char*>(data);
#ifdef MADV_HUGEPAGE
    madvise(data_, bytes_, MADV_HUGEPAGE);  // a wish: without huge pages the read is slower
#endif
  }
  ~Pages() { munmap(data_, bytes_); }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  char* data() const { return data_; }

 private:
  char* data_;
  size_t bytes_;
};

// Bytes per second of reading `bytes` per thread again and again, each thread its own.
double read_bandwidth(size_t bytes, int threads, const std::string& isa, double seconds) {
  check_threads(threads);
  if (bytes < kReadGrain) {
    throw std::invalid_argument("read_bandwidth: bytes_per_thread must be at least " +
                                std::to_string(kReadGrain) + ", got " + std::to_string(bytes));
  }
  const Reader read = find(isa, read_isas(), "read_bandwidth").read;
  const size_t part = bytes / kReadGrain * kReadGrain;
  std::vector<std::unique_ptr<Pages>> memory(threads);
  for (auto& pages : memory) pages = std::make_unique<Pages>(part);
  // Each thread touches its own pages first; zero pages that nobody wrote would all be one page.
  timed(threads, [&](int t) { std::memset(memory[t]->data(), 1, part); });
  auto run = [&](int64_t passes) {
    return timed(threads, [&](int t) {
      for (int64_t i = 0; i < passes; ++i) read(memory[t]->data(), part);
    });
  };
  int64_t passes = 1;
  const double wanted = std::max(seconds, 1e-3) / kRepeats;
  for (double took = run(passes); took < wanted / 2; took = run(passes)) passes *= 2;
  double best = 0;
  for (int i = 0; i < kRepeats; ++i) {
    const double total = static_cast<double>(part) * threads * static_cast<double>(passes);
    best = std::max(best, total / run(passes));
  }
  return best;
}

}  // namespace

void register_ceilings(py::module_& module) {
  using Release = py::call_guard<py::gil_scoped_release>;
  module.def("peak", &peak, py::arg("kind"), py::arg("isa"), py::arg("threads") = 1,
             py::arg("seconds") = 0.25, Release(),
             "Operations per second of a register-only loop: kind fp32, bf16 or int8.");
  module.def("read_bandwidth", &read_bandwidth, py::arg("bytes_per_thread"), py::arg("threads") = 1,
             py::arg("isa") = "generic", py::arg("seconds") = 0.25, Release(),
             "Bytes per second of reading that much memory in every thread, over and over.");
  module.def("peak_isas", &isas, py::arg("kind"),
             "Instruction sets of this machine with a loop of that kind, worst first.");
  module.def("read_isas", &read_isas, "Instruction sets of this machine with a read, worst first.");
}

}  // namespace lepton::ceilings
