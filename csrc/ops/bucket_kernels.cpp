// Chooses the bucket kernels, for the ops here and for the shared-memory communicator in _native.
#include "cpu/bucket_kernels.h"

#include "cpu/dispatch.h"

namespace lepton {

const BucketKernels& choose_bucket_kernels() {
#if defined(__x86_64__)
  static const Candidate<const BucketKernels*> candidates[] = {
      {isa::kVnniLevel, &kBucketAvx512},
      {isa::kAvx2Level, &kBucketAvx2},
      {isa::kGeneric, &kBucketGeneric},
  };
  return *choose(candidates, isa::allowed());
#else
  return kBucketGeneric;
#endif
}

}  // namespace lepton

// Called by _native through its address: the two libraries do not link to each other.
extern "C" __attribute__((visibility("default"))) const lepton::BucketKernels*
lepton_bucket_kernels() noexcept {
  return &lepton::choose_bucket_kernels();
}
