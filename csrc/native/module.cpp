// Python objects that keep state, free of torch. Each part registers itself in its own file.
#include "native/bindings.h"
#include "native/register.h"

PYBIND11_MODULE(_native, module) {
  module.doc() = "Objects with state and measurements of this machine; operators live in _ops.";
  lepton::register_bucket_ceiling(module);
  lepton::register_bucket_planner(module);
  lepton::register_shm_communicator(module);
  lepton::ceilings::register_ceilings(module);
}
