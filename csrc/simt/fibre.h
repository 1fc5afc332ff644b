// Stacks to run on, and the switch between them.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace lepton::simt {

// A suspended flow of control. The entry function must end by a switch, never by returning.
class Fibre {
 public:
  void start(void* stack, size_t bytes, void (*entry)());
  // Suspends the caller into `from` and resumes this one.
  void resume(Fibre& from);

 private:
#if defined(__x86_64__)
  void* stack_pointer_ = nullptr;
#else
  ucontext_t context_;
#endif
};

// Stacks with an inaccessible page below each, kept between launches.
class StackPool {
 public:
  static constexpr size_t kBytes = 256 * 1024;
  ~StackPool();
  void* stack(size_t index);

 private:
  std::vector<void*> stacks_;
};

}  // namespace lepton::simt
