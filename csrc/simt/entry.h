// For entry_<family>.cpp: C functions that run kernels in the emulator.
#pragma once

#include <cxxabi.h>
#include <dlfcn.h>

#include <cstdlib>
#include <string>

#include "simt/machine.h"

#define LEPTON_SIMT_ENTRY extern "C" __attribute__((visibility("default"))) int

namespace lepton::simt {

// "void lepton::kernel<int>(Params)" of a kernel's address.
inline std::string kernel_name(const void* kernel) {
  Dl_info info;
  if (dladdr(kernel, &info) == 0 || info.dli_sname == nullptr) return "kernel";
  int status = 0;
  char* plain = abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, &status);
  std::string name = status == 0 ? plain : info.dli_sname;
  std::free(plain);
  return name;
}

// The emulator's launcher: see cuda/launch.h.
struct Launcher {
  template <class Parameters>
  void operator()(void (*kernel)(Parameters), const LaunchShape& shape,
                  const Parameters& parameters) const {
    machine.launch(kernel_name(reinterpret_cast<const void*>(kernel)), shape,
                   [&] { kernel(parameters); });
  }
};

// Runs `body`, which launches; returns the number of findings.
template <class Body>
int run(const Body& body) {
  try {
    body();
  } catch (const Stop&) {
  }
  return static_cast<int>(report.count());
}

}  // namespace lepton::simt
