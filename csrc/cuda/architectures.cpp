// What the library was compiled for, to be asked without a driver.
extern "C" __attribute__((visibility("default"))) const char* lepton_cuda_architectures() {
  return LEPTON_CUDA_ARCHITECTURES;
}
