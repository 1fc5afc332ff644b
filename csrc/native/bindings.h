// Each part of the module registers its names in a file of its own.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

namespace lepton {

void register_bucket_ceiling(pybind11::module_& module);
void register_bucket_planner(pybind11::module_& module);
void register_shm_communicator(pybind11::module_& module);

}  // namespace lepton
