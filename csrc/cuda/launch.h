// How a kernel is launched, the same for the GPU and for the emulator.
//
// `<family>_launch.h` decides from the parameters which instantiation runs and with which shape,
// and calls a launcher `launch(kernel, shape, parameters)`. `<family>.cu` passes one that enqueues
// on torch's stream, simt/entry_<family>.cpp one that emulates: the decision is tested too.
#pragma once

#include <cstdint>

namespace lepton {

struct Dim3 {
  uint32_t x = 1, y = 1, z = 1;
};

struct LaunchShape {
  Dim3 grid;
  Dim3 block;
  uint32_t shared_bytes = 0;
};

}  // namespace lepton
