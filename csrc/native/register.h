// Each part of the module puts its names into it by a function of its own.
#pragma once

#include <pybind11/pybind11.h>

namespace lepton::ceilings {
void register_ceilings(pybind11::module_& module);
}
