// Picks a kernel: the first candidate whose every feature may be used.
#pragma once

#include <cstddef>

#include "cpu/isa.h"

namespace lepton {

// A kernel states all features that its file was compiled with.
template <class Kernel>
struct Candidate {
  isa::Features needs;
  Kernel kernel;
};

// Candidates in order of preference; the last one must need nothing.
template <class Kernel, size_t count>
const Kernel& choose(const Candidate<Kernel> (&candidates)[count], isa::Features allowed) {
  for (const Candidate<Kernel>& candidate : candidates) {
    if ((candidate.needs & allowed) == candidate.needs) return candidate.kernel;
  }
  return candidates[count - 1].kernel;
}

}  // namespace lepton
