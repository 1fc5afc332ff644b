// The sparse kernels of each instruction set.
#pragma once

#include "params/sparse_linear.h"

namespace lepton {

extern const SparseKernels kSparseGeneric;
#if defined(__x86_64__)
extern const SparseKernels kSparseAvx2;
extern const SparseKernels kSparseVbmi2;
extern const SparseTileKernels kSparseAmx;
// Parts of kSparseAmx.
void sparse_bitmask_amx(const SparseLinear&, const Int8Block&);
bool sparse_tiles_pay(const SparseLinear&);
int64_t sparse_tiles_scratch(int64_t k);
void sparse_tiles_amx(const SparseLinear&, const Int8Block&, void* scratch);
#endif

}  // namespace lepton
