// C functions about instruction sets, called from Python by ctypes. Nothing throws across them:
// texts are made once, and a failed allocation ends the program as it would anywhere.
#include <Python.h>

#include <string>

#include "cpu/isa.h"

#define LEPTON_API extern "C" __attribute__((visibility("default")))

LEPTON_API const char* lepton_isa_present() noexcept {
  static const std::string names = lepton::isa::names_present();
  return names.c_str();
}

LEPTON_API const char* lepton_features_present() noexcept {
  static const std::string names = lepton::isa::feature_names_present();
  return names.c_str();
}

LEPTON_API const char* lepton_isa_in_use() noexcept { return lepton::isa::in_use(); }

LEPTON_API int lepton_isa_force(const char* name) noexcept {
  return lepton::isa::force(name) ? 0 : 1;
}

LEPTON_API int lepton_isa_emulated() noexcept {
#ifdef LEPTON_EMULATE_ISA
  return 1;
#else
  return 0;
#endif
}

// The library is found as a module of the package and loaded by torch; importing it does nothing.
LEPTON_API PyObject* PyInit__ops() {
  static PyModuleDef module = {
      PyModuleDef_HEAD_INIT, "_ops", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
