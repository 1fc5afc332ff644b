// What Python calls around a launch.
#include "simt/entry.h"

using namespace lepton::simt;

extern "C" {

// Begins a call: forgets buffers and findings; `seed` draws the order of blocks, warps and lanes.
__attribute__((visibility("default"))) void simt_begin(uint64_t seed) {
  report.clear();
  global_memory.clear();
  machine.set_seed(seed);
}

__attribute__((visibility("default"))) void simt_buffer(const void* begin, uint64_t bytes,
                                                        int writable, const char* name) {
  global_memory.add(begin, bytes, writable != 0, name);
}

// Findings and counts of the launches since `simt_begin`, as JSON; valid until the next call.
__attribute__((visibility("default"))) const char* simt_report() {
  static std::string text;
  text = report.json();
  return text.c_str();
}
}
