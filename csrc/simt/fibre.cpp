#include "simt/fibre.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

#if defined(__x86_64__)
// Saves what the System V ABI preserves over a call, exchanges the stacks, restores.
extern "C" void lepton_simt_switch(void** save, void* stack_pointer);
asm(R"(
.text
.p2align 4
.type lepton_simt_switch, @function
lepton_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size lepton_simt_switch, .-lepton_simt_switch
)");
#endif

namespace lepton::simt {

#if defined(__x86_64__)

void Fibre::start(void* stack, size_t bytes, void (*entry)()) {
  auto top = (reinterpret_cast<uintptr_t>(stack) + bytes) & ~uintptr_t{15};
  // At entry the stack pointer is 8 beyond a multiple of 16, as after a call.
  auto* frame = reinterpret_cast<void**>(top) - 8;
  for (int i = 0; i < 8; ++i) frame[i] = nullptr;
  frame[6] = reinterpret_cast<void*>(entry);
  stack_pointer_ = frame;
}

void Fibre::resume(Fibre& from) { lepton_simt_switch(&from.stack_pointer_, stack_pointer_); }

#else

void Fibre::start(void* stack, size_t bytes, void (*entry)()) {
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack;
  context_.uc_stack.ss_size = bytes;
  context_.uc_link = nullptr;
  makecontext(&context_, entry, 0);
}

void Fibre::resume(Fibre& from) { swapcontext(&from.context_, &context_); }

#endif

void* StackPool::stack(size_t index) {
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  while (stacks_.size() <= index) {
    void* memory = mmap(nullptr, kBytes + page, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    mprotect(memory, page, PROT_NONE);
    stacks_.push_back(memory);
  }
  return static_cast<uint8_t*>(stacks_[index]) + page;
}

StackPool::~StackPool() {
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  for (void* stack : stacks_) munmap(stack, kBytes + page);
}

}  // namespace lepton::simt
